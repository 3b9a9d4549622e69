package duet_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"duet"
)

const text = "Once upon a time there was a little fox who lived in the wood." // as in c_results.c

// variable is set by ctest (tests/bindings/CMakeLists.txt).
func variable(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set; run these tests by `ctest -L bindings`", name)
	}
	return value
}

func tiny(t *testing.T) string { return filepath.Join(variable(t, "DUET_TEST_GOLDEN"), "tiny.pth") }

func stories(t *testing.T) string {
	return filepath.Join(variable(t, "DUET_TEST_SOURCE"), "models/stories-7m/stories-7m.pth")
}

// must is for calls that must not fail: must(f())(t).
func must[T any](value T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func library(t *testing.T) *duet.Library {
	t.Helper()
	l := must(duet.NewLibrary(duet.LibraryOptions{Threads: 1}))(t)
	t.Cleanup(func() { l.Close() })
	return l
}

// A world is a small model on the reference backend, with a state, a session and a sampler.
type world struct {
	library *duet.Library
	model   *duet.Model
	state   *duet.State
	session *duet.Session
	sampler *duet.Sampler
}

func newWorld(t *testing.T) world {
	t.Helper()
	l := library(t)
	model := must(l.Load(tiny(t), duet.ModelOptions{Device: "reference"}))(t)
	w := world{
		library: l,
		model:   model,
		state:   must(model.NewState(2, duet.StateOptions{}))(t),
		session: must(model.NewSession(duet.SessionOptions{}))(t),
		sampler: must(duet.NewSampler(duet.DefaultSamplerOptions()))(t),
	}
	t.Cleanup(func() {
		w.sampler.Close()
		w.session.Close()
		w.state.Close()
		w.model.Close()
	})
	return w
}

// works: a call left everything as it should.
func (w world) works(t *testing.T) {
	t.Helper()
	if rows := must(w.session.Forward(w.state, 0, []int32{1}, duet.Outputs{}))(t); rows.Len() != 1 {
		t.Fatalf("%d rows of logits", rows.Len())
	}
}

// refused: the call failed with this status and a sentence that holds the word.
func refused(t *testing.T, err error, status duet.Status, word string) {
	t.Helper()
	var e *duet.Error
	if !errors.As(err, &e) || !errors.Is(err, status) || !strings.Contains(e.Sentence, word) {
		t.Errorf("%v where %v with %q was wanted", err, status, word)
	}
}

// second is the error of a call whose value is of no interest.
func second[T any](_ T, err error) error { return err }

// biased draws this token, and no other.
func biased(t *testing.T, token int32) *duet.Sampler {
	t.Helper()
	options := duet.DefaultSamplerOptions()
	options.Bias = map[int32]float32{token: 1e6}
	sampler := must(duet.NewSampler(options))(t)
	t.Cleanup(func() { sampler.Close() })
	return sampler
}
