package duet_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"duet"
)

func bytesOf[T float32 | float64](numbers []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&numbers[0])), len(numbers)*int(unsafe.Sizeof(numbers[0])))
}

func TestEveryBackendGivesTheBitsOfC(t *testing.T) {
	devices := must(library(t).Devices())(t)
	if last := devices[len(devices)-1].Spec; last != "reference:0" {
		t.Errorf("the last device is %s", last)
	}
	for _, device := range devices {
		t.Run(device.Spec, func(t *testing.T) { compare(t, device.Spec) })
	}
}

func compare(t *testing.T, device string) {
	folder := t.TempDir()
	if out, err := exec.Command(variable(t, "DUET_TEST_C_RESULTS"), stories(t), device, folder).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	same := func(name string, got []byte) {
		t.Helper()
		if want := must(os.ReadFile(filepath.Join(folder, name)))(t); !bytes.Equal(got, want) {
			t.Errorf("%s differs from C", name)
		}
	}

	model := must(library(t).Load(stories(t), duet.ModelOptions{Device: device}))(t)
	defer model.Close()
	tokenizer := must(model.NewTokenizer())(t)
	defer tokenizer.Close()
	state := must(model.NewState(3, duet.StateOptions{}))(t)
	defer state.Close()
	parallel := must(model.NewSession(duet.SessionOptions{Mode: duet.ModeParallel}))(t)
	defer parallel.Close()
	recurrent := must(model.NewSession(duet.SessionOptions{Mode: duet.ModeRecurrent}))(t)
	defer recurrent.Close()
	tokens := append([]int32{0}, must(tokenizer.Encode(text))(t)...)

	logits := must(parallel.Forward(state, 0, tokens, duet.Outputs{AllRows: true, Hidden: true, VFirst: true}))(t)
	if vocabulary := must(model.Info())(t).NVocab; logits.Len() != len(tokens) || logits.Width != int(vocabulary) {
		t.Errorf("logits are [%d,%d]", logits.Len(), logits.Width)
	}
	same("logits", bytesOf(logits.Data))
	same("hidden", bytesOf(must(parallel.Hidden(nil))(t).Data))
	same("v_first", bytesOf(must(parallel.VFirst(nil))(t).Data))
	same("nll", bytesOf(must(recurrent.Score(state, 1, tokens))(t)))
	same("state", must(state.Save(1))(t))
	options := duet.DefaultSamplerOptions()
	options.Temperature, options.TopP, options.Presence, options.Seed, options.Tokenizer = 0.8, 0.7, 0.25, 7, tokenizer
	sampler := must(duet.NewSampler(options))(t)
	defer sampler.Close()
	same("probs", bytesOf(must(sampler.Probs(logits.Last()))(t)))

	var shown strings.Builder
	result := must(parallel.Generate(context.Background(), state, 2, sampler, tokens, duet.GenerateOptions{
		MaxTokens: 50, Tokenizer: tokenizer, StopTexts: []string{"nothing says this"},
		OnText: func(text string) error { return second(shown.WriteString(text)) },
	}))(t)
	same("text", []byte(result.Text))
	same("text", []byte(shown.String()))
	if result.Finish != duet.FinishLength || result.NNew != 50 || result.NPrompt != uint64(len(tokens)) || result.NewTime <= 0 {
		t.Errorf("%+v", result)
	}
	if decoded := must(tokenizer.Decode(result.Tokens))(t); decoded != result.Text {
		t.Errorf("the tokens are %q, the text is %q", decoded, result.Text)
	}
}

func TestABatchOfGenerationsIsEachOfThem(t *testing.T) {
	w := newWorld(t)
	tokenizer := must(w.library.NewTokenizer(""))(t)
	defer tokenizer.Close()
	never, only := map[int32]float32{}, map[int32]float32{}
	for token := int32(0); token < 256; token++ {
		never[token] = float32(math.Inf(-1))
		if token != 9 {
			only[token] = never[token]
		}
	}
	var shown string
	prompts := func() []duet.Prompt { // text to its length, a text that ends it, a callback that stops, nothing to draw from, a stop token
		sampler := func(sequence uint64, bias map[int32]float32) *duet.Sampler {
			options := duet.DefaultSamplerOptions()
			options.Temperature, options.TopP, options.Seed, options.Sequence, options.Bias = 0.8, 0.7, 7, sequence, bias
			sampler := must(duet.NewSampler(options))(t)
			t.Cleanup(func() { sampler.Close() })
			return sampler
		}
		calls := 0
		shown = ""
		letter := must(tokenizer.Encode("a"))(t)[0]
		return []duet.Prompt{
			{[]int32{1, 2, 3}, sampler(0, nil), duet.GenerateOptions{MaxTokens: 12, Tokenizer: tokenizer, Stops: []int32{}, StopTexts: []string{"nothing says this"},
				OnText: func(text string) error { shown += text; return nil }}},
			{[]int32{4, 5}, sampler(1, map[int32]float32{letter: 1e6}), duet.GenerateOptions{Tokenizer: tokenizer, Stops: []int32{8, 9}, StopTexts: []string{"nor this", "aaa"}}},
			{[]int32{6}, sampler(2, nil), duet.GenerateOptions{Stops: []int32{}, OnToken: func(int32) error {
				if calls++; calls == 7 {
					return duet.Stop
				}
				return nil
			}}},
			{[]int32{7, 8}, sampler(3, never), duet.GenerateOptions{}},
			{make([]int32, 20), sampler(4, only), duet.GenerateOptions{Stops: []int32{9}}},
		}
	}
	slots := []uint32{4, 0, 3, 1, 2}
	state := must(w.model.NewState(5, duet.StateOptions{}))(t)
	defer state.Close()
	results := must(w.session.GenerateBatch(context.Background(), state, slots, prompts()))(t)
	finishes := []duet.Finish{duet.FinishLength, duet.FinishStopText, duet.FinishCallback, duet.FinishNumeric, duet.FinishStopToken}
	if shown != results[0].Text || shown == "" {
		t.Errorf("shown %q of %q", shown, results[0].Text)
	}
	for i, p := range prompts() {
		alone := must(w.model.NewState(1, duet.StateOptions{}))(t)
		defer alone.Close()
		want, err := w.session.Generate(context.Background(), alone, 0, p.Sampler, p.Tokens, p.Options)
		got := results[i]
		if got.Finish != finishes[i] || got.NPrompt != uint64(len(p.Tokens)) {
			t.Errorf("%d: %v, %+v", i, got.Finish, got)
		}
		if i == 3 {
			if !errors.Is(err, duet.ErrNumeric) || got.Finish.String() != "numeric" {
				t.Errorf("%v, %v", err, got.Finish)
			}
			continue
		}
		if err != nil || got.Finish != want.Finish || !reflect.DeepEqual(got.Tokens, want.Tokens) || got.Text != want.Text || got.NNew != want.NNew {
			t.Errorf("%d: %+v; alone: %+v, %v", i, got, want, err)
		}
		if !bytes.Equal(must(state.Save(slots[i]))(t), must(alone.Save(0))(t)) {
			t.Errorf("%d: another state than alone", i)
		}
	}
}
