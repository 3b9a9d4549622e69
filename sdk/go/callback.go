package duet

// #include "shim.h"
import "C"

import (
	"context"
	"runtime/cgo"
	"sync/atomic"
	"unsafe"
)

// A call is a call of C that calls back. C runs on a goroutine of its own, and the callbacks run on the caller's: there a
// callback may panic or end its goroutine, as in a call of Go, and there the context is watched in the meantime.
type call struct {
	asked chan func() error // from C: what to call
	goOn  chan bool         // to C, after each
	err   error             // of a callback
	over  bool              // a callback failed: none is called again
	stop  int32             // what C looks at between tokens
}

// run makes the call, and returns what a callback returned, when C has returned. It never leaves C running.
func (c *call) run(ctx context.Context, enterC func()) error {
	c.asked, c.goOn = make(chan func() error), make(chan bool)
	done := make(chan struct{})
	go func() {
		defer close(done)
		enterC()
	}()
	defer func() { // a callback may have panicked
		atomic.StoreInt32(&c.stop, 1)
		<-done
	}()
	cancelled := ctx.Done()
	for {
		select {
		case <-cancelled:
			atomic.StoreInt32(&c.stop, 1)
			cancelled = nil
		case callback := <-c.asked:
			c.serve(callback)
		case <-done:
			return c.err
		}
	}
}

// serve calls back, and tells C whether to go on, whichever way the callback ends.
func (c *call) serve(callback func() error) {
	c.over = true
	goOn := false
	defer func() { c.goOn <- goOn }()
	c.err = callback()
	goOn = c.err == nil
	c.over = !goOn && c.err != Stop
}

// ask is what C's callbacks do.
func (c *call) ask(callback func() error) C.duet_status {
	if !c.over {
		c.asked <- callback
		if <-c.goOn {
			return C.DUET_OK
		}
	}
	return C.DUET_E_CANCELLED
}

// Progress is told how far a long call has come: bytes done, bytes in all. An error stops the call, which returns it: so
// ctx.Err() lets a context cancel.
type Progress func(done, total uint64) error

type reporting struct {
	call
	progress Progress
}

// withProgress makes a call that reports to the progress function, if there is one.
func withProgress(progress Progress, enterC func(user C.duetgo) C.duetgo_outcome) (err error) {
	if progress == nil {
		return check(enterC(0))
	}
	r := &reporting{progress: progress}
	handle := cgo.NewHandle(r)
	defer handle.Delete()
	if failed := r.run(context.Background(), func() { err = check(enterC(C.duetgo(handle))) }); failed != nil {
		return failed
	}
	return err
}

//export duetgoProgress
func duetgoProgress(user C.duetgo, done, total C.uint64_t) C.duet_status {
	r := cgo.Handle(user).Value().(*reporting)
	return r.ask(func() error { return r.progress(uint64(done), uint64(total)) })
}

//export duetgoToken
func duetgoToken(user C.duetgo, token C.int32_t) C.duet_status {
	return cgo.Handle(user).Value().(*stream).token(int32(token))
}

//export duetgoText
func duetgoText(user C.duetgo, text *C.char, n C.size_t) C.duet_status {
	return cgo.Handle(user).Value().(*stream).text(string(unsafe.Slice((*byte)(unsafe.Pointer(text)), n)))
}

// C may be on any thread, and must see neither a panic nor the end of a goroutine: the function gets a goroutine for each
// message. Messages are rare.
//
//export duetgoLog
func duetgoLog(user C.duetgo, level C.int32_t, message *C.char) {
	log, text, done := cgo.Handle(user).Value().(LogFunction), C.GoString(message), make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }() // it has no call to come out of
		log(LogLevel(level), text)
	}()
	<-done
}
