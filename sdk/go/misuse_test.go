package duet_test

import (
	"context"
	"errors"
	"math"
	"os"
	"testing"

	"duet"
)

func TestLengthsThatDoNotFit(t *testing.T) {
	w := newWorld(t)
	batch := func(slots []uint32, sequences ...[]int32) error {
		return second(w.session.ForwardBatch(w.state, slots, sequences, duet.Outputs{}))
	}
	refused(t, batch([]uint32{0}, []int32{1}, []int32{2}), duet.ErrInvalid, "slots has 1 elements; 2")
	refused(t, batch([]uint32{0, 0}, []int32{1}, []int32{2}), duet.ErrInvalid, "twice")
	refused(t, batch(nil, []int32{1}, []int32{2}, []int32{3}), duet.ErrInvalid, "slot 2")
	refused(t, batch([]uint32{7}, []int32{1}), duet.ErrInvalid, "slot 7")
	refused(t, batch(nil, []int32{1, 256}), duet.ErrInvalid, "token 256 at position 1")
	refused(t, batch(nil, []int32{-1}), duet.ErrInvalid, "token -1")
	refused(t, second(w.session.Score(w.state, 0, nil)), duet.ErrLimit, "0 tokens")
	refused(t, second(w.session.Generate(context.Background(), w.state, 0, w.sampler, nil, duet.GenerateOptions{})), duet.ErrInvalid, "empty")

	small, nan := make([]float32, 5), make([]float32, w.state.XSize())
	nan[1] = float32(math.NaN())
	refused(t, w.state.Set(0, duet.StateArrays{AttX: small}), duet.ErrInvalid, "AttX has 5")
	refused(t, w.state.GetInto(0, duet.StateArrays{WKV: small}), duet.ErrInvalid, "WKV has 5")
	refused(t, w.state.GetInto(0, duet.StateArrays{FFNX: []float32{}}), duet.ErrInvalid, "FFNX has 0")
	refused(t, w.state.Set(0, duet.StateArrays{FFNX: nan}), duet.ErrNumeric, "ffn_x")
	refused(t, w.state.Load(0, nil), duet.ErrFormat, "")
	refused(t, w.state.Reset(2), duet.ErrInvalid, "slot 2")
	refused(t, w.sampler.ProbsInto(small, nan), duet.ErrInvalid, "probs has 5")
	refused(t, second(w.sampler.Probs(nan)), duet.ErrNumeric, "token 1")
	refused(t, second(w.sampler.Pick(nil)), duet.ErrInvalid, "0 logits")
	w.works(t)
}

func TestWhatIsWrongWithASequenceOfABatch(t *testing.T) {
	w := newWorld(t)
	other, closed := biased(t, 7), biased(t, 7)
	closed.Close()
	two := duet.GenerateOptions{MaxTokens: 2}
	batch := func(slots []uint32, second duet.Prompt) error {
		prompts := []duet.Prompt{{Tokens: []int32{1}, Sampler: w.sampler, Options: two}, second}
		results, err := w.session.GenerateBatch(context.Background(), w.state, slots, prompts)
		if (err == nil) != (len(results) == 2) {
			t.Errorf("%d results, %v", len(results), err)
		}
		return err
	}
	tokens := []int32{1}
	refused(t, batch(nil, duet.Prompt{Tokens: tokens}), duet.ErrInvalid, "sequence 1 has no sampler")
	refused(t, batch(nil, duet.Prompt{Tokens: tokens, Sampler: &duet.Sampler{}}), duet.ErrHandle, "empty")
	refused(t, batch(nil, duet.Prompt{Tokens: tokens, Sampler: closed}), duet.ErrHandle, "the sampler is closed")
	refused(t, batch(nil, duet.Prompt{Tokens: tokens, Sampler: w.sampler}), duet.ErrInvalid, "same sampler")
	refused(t, batch(nil, duet.Prompt{Sampler: other}), duet.ErrInvalid, "sequence 1 is empty")
	refused(t, batch([]uint32{0}, duet.Prompt{Tokens: tokens, Sampler: other}), duet.ErrInvalid, "slots has 1 elements; 2")
	refused(t, batch([]uint32{1, 1}, duet.Prompt{Tokens: tokens, Sampler: other}), duet.ErrInvalid, "slot 1 stands twice")
	refused(t, batch([]uint32{0, 2}, duet.Prompt{Tokens: tokens, Sampler: other}), duet.ErrInvalid, "slot 2")
	wrong := duet.GenerateOptions{OnText: func(string) error { return nil }}
	refused(t, batch(nil, duet.Prompt{Tokens: tokens, Sampler: other, Options: wrong}), duet.ErrInvalid, "OnText needs a tokenizer")
	wrong = duet.GenerateOptions{StopTexts: []string{"a\x00"}}
	refused(t, batch(nil, duet.Prompt{Tokens: tokens, Sampler: other, Options: wrong}), duet.ErrInvalid, "a stop text holds a NUL")
	if err := batch([]uint32{1, 0}, duet.Prompt{Tokens: tokens, Sampler: other, Options: two}); err != nil {
		t.Error(err)
	}
	if results := must(w.session.GenerateBatch(context.Background(), w.state, nil, nil))(t); len(results) != 0 {
		t.Errorf("%+v", results)
	}
	w.works(t)
}

func TestNamesThatAreWrong(t *testing.T) {
	w := newWorld(t)
	load := func(path, device string) error {
		return second(w.library.Load(path, duet.ModelOptions{Device: device}))
	}
	refused(t, load("no such file", ""), duet.ErrNotFound, "no such file")
	refused(t, load("tiny\x00.pth", ""), duet.ErrInvalid, "path holds a NUL")
	refused(t, load("", ""), duet.ErrInvalid, "")
	refused(t, load(tiny(t), "tpu"), duet.ErrNotFound, "tpu")
	refused(t, second(w.library.Load(tiny(t), duet.ModelOptions{Flags: 1 << 30})), duet.ErrInvalid, "flags")
	refused(t, load(tiny(t), "c\x00pu"), duet.ErrInvalid, "Device holds a NUL")
	refused(t, second(w.library.Random(duet.RandomOptions{Shape: "9b"}, duet.ModelOptions{})), duet.ErrInvalid, "9b")
	refused(t, second(w.library.FileInfo("a\x00b", 0)), duet.ErrInvalid, "path holds a NUL")
	refused(t, w.library.Convert("a", "b\x00", duet.ConvertOptions{}), duet.ErrInvalid, "output holds a NUL")
	refused(t, second(duet.NewLibrary(duet.LibraryOptions{PluginPath: "\x00"})), duet.ErrInvalid, "PluginPath holds a NUL")
	refused(t, second(duet.NewLibrary(duet.LibraryOptions{Threads: 257})), duet.ErrLimit, "257")
	refused(t, second(w.model.NewState(0, duet.StateOptions{})), duet.ErrLimit, "n_slots")
	refused(t, second(w.model.NewState(1, duet.StateOptions{WKV: duet.Q8})), duet.ErrUnsupported, "f16 only")
	refused(t, second(w.model.NewSession(duet.SessionOptions{Mode: 9})), duet.ErrInvalid, "9")
	refused(t, second(w.model.NewTokenizer()), duet.ErrNotFound, "vocab.txt")
	options := duet.DefaultSamplerOptions()
	options.Temperature = -1
	refused(t, second(duet.NewSampler(options)), duet.ErrInvalid, "temperature")
	generate := func(options duet.GenerateOptions) error {
		return second(w.session.Generate(context.Background(), w.state, 0, w.sampler, []int32{0}, options))
	}
	refused(t, generate(duet.GenerateOptions{OnText: func(string) error { return nil }}), duet.ErrInvalid, "OnText needs a tokenizer")
	refused(t, generate(duet.GenerateOptions{StopTexts: []string{"a\x00b"}}), duet.ErrInvalid, "a stop text holds a NUL")
	refused(t, generate(duet.GenerateOptions{StopTexts: []string{"end"}}), duet.ErrInvalid, "tokenizer")
	w.works(t)
}

func TestAStateBelongsToAModel(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	refused(t, second(w.session.Forward(other.state, 0, []int32{1}, duet.Outputs{})), duet.ErrInvalid, "another model")
	if err := w.state.Copy(0, other.state, 0); err != nil { // of one shape
		t.Error(err)
	}
	w.works(t)
}

func TestErrorsAreOfTheirStatus(t *testing.T) {
	_, err := library(t).Load("no such file", duet.ModelOptions{})
	var status duet.Status
	if !errors.As(err, &status) || status != duet.ErrNotFound || status.Error() != "DUET_E_NOT_FOUND" {
		t.Errorf("%v is %v", err, status)
	}
	if errors.Is(err, duet.ErrInvalid) || errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v is of another kind", err)
	}
	if name := duet.Status(-99).Error(); name != "DUET_E_UNKNOWN" {
		t.Error(name)
	}
}
