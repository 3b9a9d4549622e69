package duet_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"duet"
)

func TestABatchIsItsSequences(t *testing.T) {
	w := newWorld(t)
	sequences, slots := [][]int32{{1, 2}, {3, 4, 5}}, []uint32{1, 0}
	rows := must(w.session.ForwardBatch(w.state, slots, sequences, duet.Outputs{}))(t)
	if rows.Len() != 2 {
		t.Fatalf("%d rows", rows.Len())
	}
	for i, tokens := range sequences {
		other := must(w.model.NewState(2, duet.StateOptions{}))(t)
		defer other.Close()
		alone := must(w.session.Forward(other, slots[i], tokens, duet.Outputs{}))(t)
		if !reflect.DeepEqual(alone.Data, rows.Row(i)) || !reflect.DeepEqual(must(other.Get(slots[i]))(t), must(w.state.Get(slots[i]))(t)) {
			t.Errorf("sequence %d differs", i)
		}
	}
	if rows := must(w.session.ForwardBatch(w.state, nil, [][]int32{{}, {3}}, duet.Outputs{}))(t); rows.Len() != 1 {
		t.Errorf("%d rows", rows.Len())
	}
	if rows := must(w.session.ForwardBatch(w.state, nil, nil, duet.Outputs{}))(t); rows.Len() != 0 {
		t.Errorf("%d rows", rows.Len())
	}
}

func TestOutputsThatWereNotAskedForHaveNoRows(t *testing.T) {
	w := newWorld(t)
	logits := must(w.session.Forward(w.state, 0, []int32{1, 2}, duet.Outputs{NoLogits: true, Hidden: true}))(t)
	hidden, vFirst := must(w.session.Hidden(nil))(t), must(w.session.VFirst(nil))(t)
	if logits.Len() != 0 || logits.Last() != nil || vFirst.Len() != 0 || hidden.Len() != 1 || hidden.Width != 128 {
		t.Errorf("%d, %d, [%d,%d]", logits.Len(), vFirst.Len(), hidden.Len(), hidden.Width)
	}
}

func TestRowsAreCopiedToMemoryThatIsLargeEnough(t *testing.T) {
	w := newWorld(t)
	memory := make([]float32, 0, 256)
	first := must(w.session.Forward(w.state, 0, []int32{1}, duet.Outputs{}))(t)
	if again := must(w.session.Logits(memory))(t); &again.Data[0] != &memory[:1][0] || !reflect.DeepEqual(again, first) {
		t.Error("not in this memory")
	}
	two := must(w.session.Forward(w.state, 0, []int32{2, 3}, duet.Outputs{AllRows: true, Memory: memory}))(t)
	if two.Len() != 2 || !reflect.DeepEqual(memory[:256], first.Data) {
		t.Error("memory that is too small was written")
	}
	if len(two.Row(0)) != 256 || cap(two.Row(0)) != 256 || !reflect.DeepEqual(two.Row(1), two.Last()) {
		t.Error("rows overlap")
	}
}

func TestStatesAreForkedSetSavedAndLoaded(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "state")
	is := func(state *duet.State, slot uint32, want duet.StateArrays) {
		t.Helper()
		if !reflect.DeepEqual(must(state.Get(slot))(t), want) {
			t.Error("another state")
		}
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(w.session.Forward(w.state, 1, []int32{1, 2, 3}, duet.Outputs{}))(t)
	want, fresh := must(w.state.Get(1))(t), must(w.state.Get(0))(t)
	if reflect.DeepEqual(want, fresh) {
		t.Error("nothing was read")
	}
	ok(w.state.Copy(0, w.state, 1))
	is(w.state, 0, want)
	other := must(w.model.NewState(1, duet.StateOptions{WKV: duet.F32}))(t)
	defer other.Close()
	ok(other.Copy(0, w.state, 1))
	is(other, 0, want)
	ok(other.Reset(0))
	is(other, 0, fresh)
	ok(other.Load(0, must(w.state.Save(1))(t)))
	is(other, 0, want)
	ok(other.Reset(0))
	ok(w.state.SaveFile(1, file))
	ok(other.LoadFile(0, file))
	is(other, 0, want)
	ok(other.Reset(0))
	ok(other.Set(0, duet.StateArrays{AttX: want.AttX, FFNX: want.FFNX}))
	is(other, 0, duet.StateArrays{AttX: want.AttX, WKV: fresh.WKV, FFNX: want.FFNX})
	wkv := make([]float32, w.state.WKVSize())
	ok(w.state.GetInto(1, duet.StateArrays{WKV: wkv}))
	if !reflect.DeepEqual(wkv, want.WKV) || w.state.Slots() != 2 || w.state.XSize() != 3*128 {
		t.Error("another size")
	}
	var info struct{ Format string }
	ok(json.Unmarshal(must(w.library.FileInfo(file, duet.FileVerify))(t), &info))
	if info.Format == "" {
		t.Error("the file has no format")
	}
}

func TestNumbersHaveNames(t *testing.T) {
	got := fmt.Sprint(duet.F32, duet.F16, duet.BF16, duet.Q8, duet.Q4, duet.Dtype(0), duet.Dtype(9), duet.ModeAuto, duet.ModeRecurrent, duet.ModeParallel, duet.CPU,
		duet.IntegratedGPU, duet.GPU, duet.OtherDevice, duet.LogDebug, duet.LogInfo, duet.LogWarning, duet.LogError, duet.LogOff,
		duet.FinishLength, duet.FinishStopToken, duet.FinishStopText, duet.FinishCallback, duet.FinishCancelled)
	if got != "f32 f16 bf16 q8 q4 default 9 auto recurrent parallel cpu integrated gpu gpu other debug info warning error off "+
		"length stop token stop text callback cancelled" {
		t.Error(got)
	}
}

func TestLibraryFilesAndModelsTellWhatCTells(t *testing.T) {
	w := newWorld(t)
	folder := t.TempDir()
	if !strings.HasPrefix(duet.Version(), "0.") {
		t.Error(duet.Version())
	}
	var report struct{ Plugins []struct{ ID, Path string } }
	if err := json.Unmarshal(must(w.library.Report())(t), &report); err != nil || len(report.Plugins) == 0 {
		t.Errorf("%v: %+v", err, report)
	}
	devices := must(w.library.Devices())(t)
	if last := devices[len(devices)-1]; last.Plugin != "built in" || last.Kind != duet.CPU || last.Name == "" {
		t.Errorf("%+v", last)
	}
	info := must(w.model.Info())(t)
	if info.NLayer != 3 || info.NEmbd != 128 || info.NVocab != 256 || info.NHead*info.HeadSize != 128 || info.Weights != duet.BF16 || info.Device != "reference:0" {
		t.Errorf("%+v", info)
	}
	if info.StateBytes != uint64(4*(2*w.state.XSize()+w.state.WKVSize())) || info.NParams == 0 || info.WeightBytes < info.BytesPerToken || info.RankW == 0 {
		t.Errorf("%+v", info)
	}

	saved, converted, fresh := filepath.Join(folder, "saved"), filepath.Join(folder, "converted"), filepath.Join(folder, "fresh")
	if err := w.model.Save(saved); err != nil {
		t.Fatal(err)
	}
	var last [2]uint64
	progress := func(done, total uint64) error { last = [2]uint64{done, total}; return nil }
	if err := w.library.Convert(tiny(t), converted, duet.ConvertOptions{Weights: duet.F32, Progress: progress}); err != nil || last[0] != last[1] || last[1] == 0 {
		t.Fatal(err, last)
	}
	refused(t, w.library.Convert(tiny(t), converted, duet.ConvertOptions{}), duet.ErrExists, "converted")
	if err := w.library.Convert(tiny(t), converted, duet.ConvertOptions{Overwrite: true}); err != nil {
		t.Error(err)
	}
	var files [2]string
	for seed := range files {
		if err := w.library.Init(fresh, duet.InitOptions{NLayer: 2, NEmbd: 64, NVocab: 32, Seed: uint64(seed), Overwrite: true}); err != nil {
			t.Fatal(err)
		}
		files[seed] = string(must(os.ReadFile(fresh))(t))
	}
	if files[0] == files[1] {
		t.Error("the seed changes nothing")
	}
	model := must(w.library.Load(fresh, duet.ModelOptions{Flags: duet.FileStrict | duet.FileVerify}))(t)
	if info := must(model.Info())(t); info.NVocab != 32 || info.HeadSize != 64 || info.Weights != duet.F32 {
		t.Errorf("%+v", info)
	}
	model = must(w.library.Load(tiny(t), duet.ModelOptions{Weights: duet.F16}))(t)
	if info := must(model.Info())(t); info.Weights != duet.F16 {
		t.Errorf("%+v", info)
	}
	want := must(w.session.Forward(w.state, 0, []int32{1, 2, 3}, duet.Outputs{}))(t)
	for _, path := range []string{saved, converted} {
		model := must(w.library.Load(path, duet.ModelOptions{Device: "reference", Weights: duet.BF16}))(t)
		session, state := must(model.NewSession(duet.SessionOptions{}))(t), must(model.NewState(1, duet.StateOptions{}))(t)
		if got := must(session.Forward(state, 0, []int32{1, 2, 3}, duet.Outputs{}))(t); !reflect.DeepEqual(got, want) {
			t.Errorf("%s is another model", path)
		}
	}
}

func TestQuantisedWeightsAndLayers(t *testing.T) {
	w := newWorld(t)
	l := must(duet.NewLibrary(duet.LibraryOptions{Threads: 1, Layers: "canary"}))(t)
	defer l.Close()
	path := tiny(t)
	for _, weights := range []duet.Dtype{duet.Q8, duet.Q4} {
		forward := func(l *duet.Library) any {
			model := must(l.Load(path, duet.ModelOptions{Device: "reference", Weights: weights}))(t)
			defer model.Close()
			if info := must(model.Info())(t); info.Weights != weights {
				t.Errorf("%+v", info)
			}
			session, state := must(model.NewSession(duet.SessionOptions{}))(t), must(model.NewState(1, duet.StateOptions{}))(t)
			return must(session.Forward(state, 0, []int32{1, 2, 3}, duet.Outputs{}))(t)
		}
		if plain, layered := forward(w.library), forward(l); !reflect.DeepEqual(plain, layered) {
			t.Errorf("%v: a layer changes the logits", weights)
		}
	}
	unknown := must(duet.NewLibrary(duet.LibraryOptions{Threads: 1, Layers: "nonsense"}))(t)
	defer unknown.Close()
	refused(t, second(unknown.Load(path, duet.ModelOptions{Device: "reference"})), duet.ErrNotFound, "nonsense")
}

func TestTextBecomesTokensAndComesBack(t *testing.T) {
	l := library(t)
	world := must(l.NewTokenizer(""))(t)
	stories := must(l.NewTokenizer(filepath.Join(variable(t, "DUET_TEST_SOURCE"), "models/stories-7m/vocab.txt")))(t)
	if n := must(world.Size())(t); n != 65530 {
		t.Error(n)
	}
	for _, tokenizer := range []*duet.Tokenizer{world, stories} {
		for _, want := range []string{"", text, "caf\u00e9 \x00 \u4f60", "\xff end"} {
			if got := must(tokenizer.Decode(must(tokenizer.Encode(want))(t)))(t); got != want {
				t.Errorf("%q came back as %q", want, got)
			}
		}
	}
}

func TestSamplersDraw(t *testing.T) {
	logits := []float32{0, 1, 2, 3}
	greedy := duet.DefaultSamplerOptions()
	greedy.Temperature = 0
	picks := func(options duet.SamplerOptions, want int32) *duet.Sampler {
		t.Helper()
		sampler := must(duet.NewSampler(options))(t)
		if got := must(sampler.Pick(logits))(t); got != want {
			t.Errorf("%d was picked, not %d", got, want)
		}
		return sampler
	}
	picks(greedy, 3)
	banned := greedy
	banned.Bias = map[int32]float32{3: float32(math.Inf(-1)), 2: -0.5}
	picks(banned, 2)
	penalised := greedy
	penalised.Presence = 100
	sampler := picks(penalised, 3)
	if got := must(sampler.Pick(logits))(t); got != 2 {
		t.Error(got)
	}
	if err := sampler.Accept(1); err != nil {
		t.Error(err)
	}
	if got := must(sampler.Pick(logits))(t); got != 0 {
		t.Error(got)
	}
	if err := sampler.Reset(); err != nil {
		t.Error(err)
	}
	if got := must(sampler.Pick(logits))(t); got != 3 {
		t.Error(got)
	}
	sum := float32(0)
	for _, p := range must(must(duet.NewSampler(duet.DefaultSamplerOptions()))(t).Probs(logits))(t) {
		sum += p
	}
	if math.Abs(float64(sum-1)) > 1e-5 {
		t.Error(sum)
	}
	if o := duet.DefaultSamplerOptions(); o.Temperature != 1 || o.TopP != 1 || o.Decay != 0.996 {
		t.Errorf("%+v", o)
	}
}

func TestStopsEndAText(t *testing.T) {
	w := newWorld(t)
	tokenizer := must(w.library.NewTokenizer(""))(t)
	options := duet.DefaultSamplerOptions()
	options.Temperature = 0
	greedy := must(duet.NewSampler(options))(t)
	generate := func(stops []int32, stopTexts ...string) duet.GenerateResult {
		t.Helper()
		w.state.Reset(0)
		options := duet.GenerateOptions{MaxTokens: 20, Tokenizer: tokenizer, Stops: stops, StopTexts: stopTexts}
		return must(w.session.Generate(context.Background(), w.state, 0, greedy, []int32{0}, options))(t)
	}
	whole := generate([]int32{})
	if whole.Finish != duet.FinishLength || len(whole.Tokens) != 20 {
		t.Fatalf("%+v", whole)
	}
	at, stop := 0, whole.Tokens[5]
	for whole.Tokens[at] != stop {
		at++
	}
	stopped := generate([]int32{stop, 255})
	if stopped.Finish != duet.FinishStopToken || stopped.NNew != uint64(at+1) || len(stopped.Tokens) != at {
		t.Errorf("%+v of %+v", stopped, whole)
	}
	letter := regexp.MustCompile("[a-zA-Z]").FindString(whole.Text[1:])
	stopped = generate([]int32{}, "nothing says this", letter)
	if before, _, _ := strings.Cut(whole.Text, letter); stopped.Finish != duet.FinishStopText || stopped.Text != before {
		t.Errorf("%+v of %+v at %q", stopped, whole, letter)
	}
}

func TestToken0EndsATextUnlessThereAreNoStops(t *testing.T) {
	w := newWorld(t)
	always0 := biased(t, 0)
	ended := must(w.session.Generate(context.Background(), w.state, 0, always0, []int32{1}, duet.GenerateOptions{}))(t)
	if ended.Finish != duet.FinishStopToken || ended.NNew != 1 || len(ended.Tokens) != 0 {
		t.Errorf("%+v", ended)
	}
	wentOn := must(w.session.Generate(context.Background(), w.state, 0, always0, []int32{1}, duet.GenerateOptions{MaxTokens: 3, Stops: []int32{}}))(t)
	if wentOn.Finish != duet.FinishLength || !reflect.DeepEqual(wentOn.Tokens, []int32{0, 0, 0}) {
		t.Errorf("%+v", wentOn)
	}
}

func TestBothChatsTellTheSameStory(t *testing.T) {
	story := func(program string) string {
		chat := exec.Command(program, stories(t))
		chat.Stdin = strings.NewReader("Once upon a time\nBut then\n\n")
		return string(must(chat.Output())(t))
	}
	ours, cpp := story(variable(t, "DUET_TEST_GO_CHAT")), story(variable(t, "DUET_TEST_CHAT"))
	if ours != cpp || len(ours) < 100 {
		t.Errorf("%q and %q", ours, cpp)
	}
	out, err := exec.Command(variable(t, "DUET_TEST_GO_CHAT"), "no such file").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no such file") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestTheBindingIsWhole(t *testing.T) {
	named := regexp.MustCompile(`\bduet_\w+\(|\bDUET_\w+`)
	left := map[string]bool{ // with reason
		"duet_last_error(": true, "duet_session_output(": true, // by every call; duet_session_outputs gives all rows
		"duet_api_version(": true, "DUET_API_VERSION": true, // the library judges sizes
		"DUET_FP8_E4M3":        true, // no version of the library has it
		"DUET_OUT_LAST_LOGITS": true, "DUET_API": true, "DUET_H": true, "DUET_TYPES_H": true, "DUET_BACKEND": true, "DUET_LAYERS": true, "DUET_FILE_": true, "DUET_LOG_": true, "DUET_MODE_": true,
		"DUET_OUT_": true, "DUET_OUTPUT_": true, "DUET_FINISH_": true, "DUET_E_": true, "DUET_E_UNKNOWN": true,
	}
	ours := map[string]bool{}
	source := variable(t, "DUET_TEST_SOURCE")
	for _, pattern := range []string{"sdk/go/*.go", "sdk/go/shim.c"} {
		for _, file := range must(filepath.Glob(filepath.Join(source, pattern)))(t) {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, name := range named.FindAllString(string(must(os.ReadFile(file))(t)), -1) {
				ours[name] = true
			}
		}
	}
	for _, header := range []string{"api/duet.h", "api/duet_types.h"} {
		for _, name := range named.FindAllString(string(must(os.ReadFile(filepath.Join(source, header)))(t)), -1) {
			if !ours[name] && !left[name] {
				t.Errorf("%s of %s is not in the binding", name, header)
			}
		}
	}
}
