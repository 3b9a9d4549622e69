package duet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"

	"duet"
)

func TestObjectsOutliveWhatTheyCameFrom(t *testing.T) {
	w := newWorld(t)
	want := must(w.session.Forward(w.state, 0, []int32{0, 1}, duet.Outputs{}))(t)
	w.state.Reset(0)
	w.library.Close()
	w.model.Close()
	refused(t, second(w.model.NewSession(duet.SessionOptions{})), duet.ErrHandle, "the model is closed")
	refused(t, second(w.library.Load(tiny(t), duet.ModelOptions{})), duet.ErrHandle, "the library is closed")
	if got := must(w.session.Forward(w.state, 0, []int32{0, 1}, duet.Outputs{}))(t); !reflect.DeepEqual(got, want) {
		t.Error("other logits")
	}
	must(w.session.Generate(context.Background(), w.state, 0, w.sampler, []int32{0}, duet.GenerateOptions{}))(t)
	w.session.Close()
	must(w.state.Get(0))(t)
}

func TestClosingTwiceIsFineAndUsingWhatIsClosedIsNot(t *testing.T) {
	w := newWorld(t)
	tokenizer := must(w.library.NewTokenizer(""))(t)
	for _, closer := range []io.Closer{w.session, w.state, w.sampler, tokenizer, w.model, w.library} {
		for i := 0; i < 2; i++ {
			if err := closer.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	for _, err := range []error{
		second(w.library.Report()), second(w.library.Devices()), second(w.library.FileInfo(tiny(t), 0)), second(w.library.NewTokenizer("")),
		w.library.Convert(tiny(t), "out", duet.ConvertOptions{}), w.library.Init("out", duet.InitOptions{}),
		second(w.library.Random(duet.RandomOptions{Shape: "0.1b"}, duet.ModelOptions{})), second(w.library.Load(tiny(t), duet.ModelOptions{})),
		second(w.model.Info()), w.model.Save("out"), second(w.model.NewState(1, duet.StateOptions{})), second(w.model.NewTokenizer()),
		second(w.state.Get(0)), w.state.Set(0, duet.StateArrays{}), w.state.Reset(0), second(w.state.Save(0)), w.state.Load(0, nil),
		w.state.SaveFile(0, "out"), w.state.LoadFile(0, "in"), w.state.Copy(0, w.state, 1),
		second(w.session.Forward(w.state, 0, nil, duet.Outputs{})), second(w.session.Hidden(nil)), second(w.session.Score(w.state, 0, nil)),
		second(w.session.Generate(context.Background(), w.state, 0, w.sampler, nil, duet.GenerateOptions{})),
		second(tokenizer.Size()), second(tokenizer.Encode("")), second(tokenizer.Decode(nil)),
		second(w.sampler.Pick(nil)), second(w.sampler.Probs(nil)), w.sampler.Accept(0), w.sampler.Reset(),
		second(duet.NewSampler(duet.SamplerOptions{Tokenizer: tokenizer})),
	} {
		refused(t, err, duet.ErrHandle, "is closed")
	}
	refused(t, second((&duet.Library{}).Devices()), duet.ErrHandle, "empty")
	if err := (&duet.Session{}).Close(); err != nil {
		t.Error(err)
	}
}

func TestAHandleThatWasFreedBehindTheOwnersBackIsAnErrorTwiceFreedToo(t *testing.T) {
	w := newWorld(t)
	duet.FreeBehindItsBack(w.session)
	refused(t, second(w.session.Forward(w.state, 0, []int32{1}, duet.Outputs{})), duet.ErrHandle, "not live")
	w.session.Close()
}

func TestSessionsOfOneModelRunAtOnce(t *testing.T) {
	w := newWorld(t)
	tokens := make([]int32, 60)
	for i := range tokens {
		tokens[i] = int32(i)
	}
	want := must(w.session.Forward(w.state, 0, tokens, duet.Outputs{}))(t)
	var all sync.WaitGroup
	for i := 0; i < 3; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			session, err := w.model.NewSession(duet.SessionOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer session.Close()
			state, err := w.model.NewState(1, duet.StateOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer state.Close()
			for i := 0; i < 3; i++ {
				err := state.Reset(0)
				got, failed := session.Forward(state, 0, tokens, duet.Outputs{})
				if err != nil || failed != nil || !reflect.DeepEqual(got, want) {
					t.Error("other logits", err, failed)
				}
			}
		}()
	}
	all.Wait()
}

func TestOneSessionInSeveralGoroutinesIsBusyNeverARace(t *testing.T) {
	w := newWorld(t)
	var lock sync.Mutex
	var all sync.WaitGroup
	done, busy := 0, 0
	begin := make(chan bool)
	for i := 0; i < 3; i++ {
		state := must(w.model.NewState(1, duet.StateOptions{}))(t)
		defer state.Close()
		tokens := []int32{int32(i), 7, 8, 9}
		want := must(w.session.Forward(state, 0, tokens, duet.Outputs{AllRows: true}))(t)
		all.Add(1)
		go func() {
			defer all.Done()
			<-begin
			for i := 0; i < 200; i++ {
				state.Reset(0)
				rows, err := w.session.Forward(state, 0, tokens, duet.Outputs{AllRows: true})
				lock.Lock()
				switch {
				case err == nil && reflect.DeepEqual(rows, want):
					done++
				case errors.Is(err, duet.ErrBusy):
					busy++
				}
				lock.Unlock()
			}
		}()
	}
	close(begin)
	all.Wait()
	if done == 0 || done+busy != 600 {
		t.Errorf("%d done, %d busy", done, busy)
	}

	leave := must(duet.Hold(w.session))(t)
	refused(t, second(w.session.Forward(w.state, 0, []int32{1}, duet.Outputs{})), duet.ErrBusy, "in use by another call")
	refused(t, second(w.session.Logits(nil)), duet.ErrBusy, "in use by another call")
	leave()
	w.works(t)
}

func TestClosingInAnotherGoroutineIsAnErrorNotACrash(t *testing.T) {
	w := newWorld(t)
	for i := 0; i < 20; i++ {
		session, state := must(w.model.NewSession(duet.SessionOptions{}))(t), must(w.model.NewState(1, duet.StateOptions{}))(t)
		begun, ended := make(chan bool), make(chan error)
		go func() {
			close(begun)
			for {
				if _, err := session.Forward(state, 0, []int32{1, 2, 3}, duet.Outputs{}); err != nil {
					ended <- err
					return
				}
			}
		}()
		<-begun
		if i%2 == 0 {
			state.Close()
		}
		session.Close()
		state.Close()
		refused(t, <-ended, duet.ErrHandle, "is closed")
	}
}

// An idler logs nothing, and tells by a finalizer when the last one who could have called it is gone.
func idler(gone chan<- bool) duet.LogFunction {
	held := new([16]int)
	runtime.SetFinalizer(held, func(*[16]int) { gone <- true })
	return func(level duet.LogLevel, message string) { runtime.KeepAlive(held) }
}

func collected(gone <-chan bool) bool {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		runtime.GC()
		select {
		case <-gone:
			return true
		case <-time.After(time.Millisecond):
		}
	}
	return false
}

func TestTheLogFunctionLivesAsLongAsAnythingCanLog(t *testing.T) {
	gone := make(chan bool, 1)
	l := must(duet.NewLibrary(duet.LibraryOptions{Threads: 1, Log: idler(gone), LogLevel: duet.LogDebug}))(t)
	tokenizer := must(l.NewTokenizer(""))(t)
	sampler := must(duet.NewSampler(duet.SamplerOptions{Tokenizer: tokenizer}))(t) // keeps its tokenizer
	l.Close()
	tokenizer.Close()
	for i := 0; i < 3; i++ {
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	if len(gone) != 0 {
		t.Error("the log function is gone, and a sampler is there")
	}
	sampler.Close()
	if !collected(gone) {
		t.Error("the log function is still there, and everything is closed")
	}
}

func TestWhatIsForgottenIsFreed(t *testing.T) {
	gone := make(chan bool, 1)
	func() {
		l := must(duet.NewLibrary(duet.LibraryOptions{Threads: 1, Log: idler(gone), LogLevel: duet.LogDebug}))(t)
		model := must(l.Load(tiny(t), duet.ModelOptions{Device: "reference"}))(t)
		session, state := must(model.NewSession(duet.SessionOptions{}))(t), must(model.NewState(1, duet.StateOptions{}))(t)
		must(session.Forward(state, 0, []int32{1}, duet.Outputs{}))(t)
	}()
	if !collected(gone) {
		t.Error("the log function is still there, and nobody has anything that could log")
	}
}

func TestTheCollectorMayRunDuringCalls(t *testing.T) {
	w := newWorld(t)
	want := must(w.state.Save(0))(t)
	stop := make(chan bool)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	for i := 0; i < 50; i++ {
		model := must(w.library.Load(tiny(t), duet.ModelOptions{Device: "reference", Progress: func(_, _ uint64) error { return nil }}))(t)
		got := must(must(model.NewState(1, duet.StateOptions{}))(t).Save(0))(t) // closed by nobody
		if !bytes.Equal(got, want) {
			t.Error("another state")
		}
	}
	close(stop)
}
