package duet_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
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
