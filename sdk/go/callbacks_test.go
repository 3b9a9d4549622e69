package duet_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"

	"duet"
)

var errOwn = errors.New("of the callback")

// panicOf is what a call panics with.
func panicOf(call func()) (value any) {
	defer func() { value = recover() }()
	call()
	return nil
}

// noGoroutineIsLeft waits: what a call started ends before it, but the runtime counts a goroutine a little longer.
func noGoroutineIsLeft(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, there were %d", runtime.NumGoroutine(), before)
		}
	}
}

func TestProgressEndsACall(t *testing.T) {
	w := newWorld(t)
	calls, output := 0, filepath.Join(t.TempDir(), "out")
	progress := func(done, total uint64) error {
		calls++
		return errOwn
	}
	for name, call := range map[string]func() error{
		"Load":    func() error { return second(w.library.Load(tiny(t), duet.ModelOptions{Progress: progress})) },
		"Convert": func() error { return w.library.Convert(tiny(t), output, duet.ConvertOptions{Progress: progress}) },
		"Init": func() error {
			return w.library.Init(output, duet.InitOptions{NLayer: 1, NEmbd: 64, NVocab: 32, Progress: progress})
		},
		"Random": func() error {
			return second(w.library.Random(duet.RandomOptions{Shape: "0.1b"}, duet.ModelOptions{Device: "reference", Progress: progress}))
		},
	} {
		calls = 0
		if err := call(); err != errOwn || calls != 1 {
			t.Errorf("%s: %v after %d calls", name, err, calls)
		}
	}
	if _, err := os.Stat(output); !errors.Is(err, os.ErrNotExist) {
		t.Error("there is an output")
	}
}

func TestAnErrorOfACallbackComesOutOfTheCall(t *testing.T) {
	w := newWorld(t)
	tokenizer := must(w.library.NewTokenizer(""))(t)
	defer tokenizer.Close()
	letter := must(tokenizer.Encode("a"))(t)[0]
	shown := 0
	options := duet.GenerateOptions{
		Tokenizer: tokenizer, Stops: []int32{}, // the library shows the text of the token at which OnToken stopped: after an error the binding must not
		OnToken: func(int32) error { return errOwn },
		OnText:  func(string) error { shown++; return nil },
	}
	result, err := w.session.Generate(context.Background(), w.state, 0, biased(t, letter), []int32{0, 1}, options)
	if err != errOwn || shown != 0 || result.Finish != duet.FinishCallback || result.NNew != 1 || result.NPrompt != 2 || result.Text != "" {
		t.Errorf("%v, %+v, shown %d", err, result, shown)
	}
	options.OnToken, options.OnText = nil, func(string) error { return errOwn }
	if _, err := w.session.Generate(context.Background(), w.state, 0, biased(t, letter), []int32{0, 1}, options); err != errOwn {
		t.Error(err)
	}
	w.works(t)
}

func TestAnErrorOfACallbackEndsAllSequencesOfABatch(t *testing.T) {
	w := newWorld(t)
	other := biased(t, 7)
	calls := 0
	third := func(end func() error) []duet.Prompt {
		calls = 0
		return []duet.Prompt{
			{Tokens: []int32{0}, Sampler: w.sampler, Options: duet.GenerateOptions{Stops: []int32{}, OnToken: func(int32) error {
				if calls++; calls == 3 {
					return end()
				}
				return nil
			}}},
			{Tokens: []int32{0, 1}, Sampler: other, Options: duet.GenerateOptions{MaxTokens: 10, Stops: []int32{}}}, // no callback
		}
	}
	results, err := w.session.GenerateBatch(context.Background(), w.state, nil, third(func() error { return errOwn }))
	if err != errOwn || calls != 3 || len(results) != 2 || len(results[0].Tokens) != 3 || len(results[1].Tokens) != 2 || results[1].NPrompt != 2 {
		t.Errorf("%v after %d calls, %+v", err, calls, results)
	}
	results, err = w.session.GenerateBatch(context.Background(), w.state, nil, third(func() error { return duet.Stop }))
	if err != nil || calls != 3 || results[0].Finish != duet.FinishCallback || results[1].Finish != duet.FinishLength || results[1].NNew != 10 {
		t.Errorf("%v after %d calls, %+v", err, calls, results)
	}
	before := runtime.NumGoroutine()
	generate := func() {
		w.session.GenerateBatch(context.Background(), w.state, nil, third(func() error { panic("in the third") }))
	}
	if got := panicOf(generate); got != "in the third" || calls != 3 {
		t.Errorf("%v after %d calls", got, calls)
	}
	w.works(t)
	noGoroutineIsLeft(t, before)
}

func TestAContextCancelsABatch(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(context.Background())
	prompts := []duet.Prompt{
		{Tokens: []int32{0, 1}, Sampler: w.sampler, Options: duet.GenerateOptions{MaxTokens: 2, Stops: []int32{}}},
		{Tokens: []int32{0}, Sampler: biased(t, 7), Options: duet.GenerateOptions{MaxTokens: 1e9, Stops: []int32{}, OnToken: func(int32) error {
			time.AfterFunc(10*time.Millisecond, cancel)
			return nil
		}}},
	}
	results, err := w.session.GenerateBatch(ctx, w.state, nil, prompts)
	if err != context.Canceled || results[0].Finish != duet.FinishLength || results[0].NNew != 2 || results[1].Finish != duet.FinishCancelled {
		t.Errorf("%v, %+v", err, results)
	}
	if results[1].NNew < 1 || len(results[1].Tokens) != int(results[1].NNew) {
		t.Errorf("%+v", results[1])
	}
	results, err = w.session.GenerateBatch(ctx, w.state, nil, prompts)
	if err != context.Canceled || len(results) != 2 || results[0].Finish != duet.FinishCancelled || results[0].NPrompt != 0 {
		t.Errorf("of a context that was cancelled before: %v, %+v", err, results)
	}
	w.works(t)
}

func TestStopIsNoError(t *testing.T) {
	w := newWorld(t)
	var drawn []int32
	result := must(w.session.Generate(context.Background(), w.state, 0, w.sampler, []int32{0, 1}, duet.GenerateOptions{
		Stops: []int32{},
		OnToken: func(token int32) error {
			if drawn = append(drawn, token); len(drawn) == 3 {
				return duet.Stop
			}
			return nil
		},
	}))(t)
	if result.Finish != duet.FinishCallback || result.NNew != 3 || !reflect.DeepEqual(result.Tokens, drawn) {
		t.Errorf("%+v, drawn %v", result, drawn)
	}
}

func TestAPanicComesOutOfTheCallAndTheCallbacksAreNotCalledAgain(t *testing.T) {
	w := newWorld(t)
	before := runtime.NumGoroutine()
	tokenizer := must(w.library.NewTokenizer(""))(t)
	defer tokenizer.Close()
	letter := must(tokenizer.Encode("a"))(t)[0]
	tokens, texts := 0, 0
	options := duet.GenerateOptions{
		Tokenizer: tokenizer, Stops: []int32{},
		OnToken: func(int32) error { tokens++; panic("in OnToken") },
		OnText:  func(string) error { texts++; panic("in OnText") },
	}
	generate := func() {
		w.session.Generate(context.Background(), w.state, 0, biased(t, letter), []int32{0, 1}, options)
	}
	if got := panicOf(generate); got != "in OnToken" || tokens != 1 || texts != 0 {
		t.Errorf("%v after %d tokens, %d texts", got, tokens, texts)
	}
	options.OnToken = nil
	if got := panicOf(generate); got != "in OnText" || texts != 1 {
		t.Errorf("%v after %d texts", got, texts)
	}
	load := func() {
		w.library.Load(tiny(t), duet.ModelOptions{Progress: func(_, _ uint64) error { panic("in progress") }})
	}
	if got := panicOf(load); got != "in progress" {
		t.Error(got)
	}
	w.works(t)
	noGoroutineIsLeft(t, before)
}

func TestACallbackMayEndItsGoroutine(t *testing.T) { // as t.FailNow does
	w := newWorld(t)
	var ended sync.WaitGroup
	ended.Add(1)
	go func() {
		defer ended.Done()
		options := duet.GenerateOptions{Stops: []int32{}, OnToken: func(int32) error { runtime.Goexit(); return nil }}
		w.session.Generate(context.Background(), w.state, 0, w.sampler, []int32{0}, options)
		t.Error("Generate returned")
	}()
	ended.Wait()
	w.works(t)
}

func TestAContextCancels(t *testing.T) {
	w := newWorld(t)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	drawn := make(chan int32, 1)
	var asked time.Time
	go func() {
		<-drawn
		asked = time.Now()
		cancel()
	}()
	endless := duet.GenerateOptions{MaxTokens: 1e9, Stops: []int32{}, OnToken: func(token int32) error {
		select {
		case drawn <- token:
		default:
		}
		return nil
	}}
	result, err := w.session.Generate(ctx, w.state, 0, w.sampler, []int32{0, 1}, endless)
	if late := time.Since(asked); late > 5*time.Second {
		t.Errorf("%v from the cancel to the end", late)
	}
	if err != context.Canceled || result.Finish != duet.FinishCancelled || result.NPrompt != 2 || result.NNew < 1 || len(result.Tokens) != int(result.NNew) {
		t.Errorf("%v, %+v", err, result)
	}
	// The library, which would refuse an empty prompt, is not called.
	if result, err = w.session.Generate(ctx, w.state, 0, w.sampler, nil, endless); err != context.Canceled || result.Finish != duet.FinishCancelled {
		t.Errorf("of a context that was cancelled before: %v, %+v", err, result)
	}

	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	endless.OnToken = nil // no call to Go in between
	if _, err = w.session.Generate(ctx, w.state, 0, w.sampler, []int32{0}, endless); err != context.DeadlineExceeded {
		t.Error(err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	endless.OnToken = func(int32) error { cancel(); return nil }
	if _, err = w.session.Generate(ctx, w.state, 0, w.sampler, []int32{0}, endless); err != context.Canceled {
		t.Errorf("cancelled by a callback: %v", err)
	}
	w.works(t)
	noGoroutineIsLeft(t, before)
}

func TestAContextCancelsWhileThePromptIsRead(t *testing.T) {
	w := newWorld(t)
	session := must(w.model.NewSession(duet.SessionOptions{MaxTokens: 7}))(t)
	defer session.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	result, err := session.Generate(ctx, w.state, 0, w.sampler, make([]int32, 100_000), duet.GenerateOptions{})
	if err != context.DeadlineExceeded || result.NPrompt%7 != 0 || result.NPrompt == 100_000 || result.NNew != 0 {
		t.Errorf("%v, %+v", err, result)
	}
	w.works(t)
}

func TestACallFromItsOwnCallbackIsBusy(t *testing.T) {
	w := newWorld(t)
	other := must(w.model.NewState(1, duet.StateOptions{}))(t)
	session := must(w.model.NewSession(duet.SessionOptions{}))(t)
	options := duet.GenerateOptions{MaxTokens: 2, Stops: []int32{}, OnToken: func(int32) error {
		refused(t, second(w.session.Forward(w.state, 0, []int32{1}, duet.Outputs{})), duet.ErrBusy, "the session is in use by another call")
		refused(t, second(w.session.Logits(nil)), duet.ErrBusy, "session")
		refused(t, second(w.state.Get(0)), duet.ErrBusy, "state")
		refused(t, w.sampler.Reset(), duet.ErrBusy, "sampler")
		must(session.Forward(other, 0, []int32{1}, duet.Outputs{}))(t) // others work
		return nil
	}}
	must(w.session.Generate(context.Background(), w.state, 0, w.sampler, []int32{0}, options))(t)

	// Closing is fine: what the call needs lives until its end.
	options.OnToken = func(int32) error {
		w.session.Close()
		w.state.Close()
		w.sampler.Close()
		return w.model.Close()
	}
	if result := must(w.session.Generate(context.Background(), w.state, 0, w.sampler, []int32{0}, options))(t); result.NNew != 2 {
		t.Errorf("%+v", result)
	}
	refused(t, second(w.session.Logits(nil)), duet.ErrHandle, "the session is closed")
}

func TestTheLogFunctionMayPanicAndEndItsGoroutine(t *testing.T) {
	var lock sync.Mutex
	var messages []string
	log := func(level duet.LogLevel, message string) {
		lock.Lock()
		defer lock.Unlock()
		if messages = append(messages, fmt.Sprint(level, message)); len(messages)%2 == 0 {
			runtime.Goexit()
		}
		panic("in log")
	}
	for i := 0; i < 2; i++ {
		l := must(duet.NewLibrary(duet.LibraryOptions{Log: log, LogLevel: duet.LogDebug}))(t)
		must(l.Devices())(t)
		l.Close()
	}
	if len(messages) < 2 {
		t.Errorf("messages: %q", messages)
	}
	silent := must(duet.NewLibrary(duet.LibraryOptions{Log: log, LogLevel: duet.LogOff}))(t)
	defer silent.Close()
	n := len(messages)
	must(silent.Devices())(t)
	if len(messages) != n {
		t.Errorf("messages: %q", messages[n:])
	}
}
