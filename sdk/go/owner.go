package duet

// #include "shim.h"
import "C"

import (
	"runtime"
	"runtime/cgo"
	"sync"
	"sync/atomic"
)

// An owner holds one object of the library: Library, Model and the others have one each. It frees the object when it has
// been closed and no call is in it.
type owner struct {
	kind   string
	free   func(C.duetgo)
	log    *logger
	handle C.duetgo // read between enter and leave
	alone  bool     // one call at a time

	lock   sync.Mutex
	calls  int
	closed bool
}

// own makes an object by create. What is not closed is freed when the collector finds it.
func own(kind string, log *logger, free func(C.duetgo), create func(out *C.duetgo) error) (*owner, error) {
	o := &owner{kind: kind, free: free, log: log}
	log.retain()
	runtime.SetFinalizer(o, (*owner).close)
	if err := create(&o.handle); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// enter lets a call use the handles of the owners until leave.
func enter(owners ...*owner) (leave func(), err error) {
	for i, o := range owners {
		if err := o.enter(); err != nil {
			leaveAll(owners[:i])
			return nil, err
		}
	}
	return func() { leaveAll(owners) }, nil
}

func leaveAll(owners []*owner) {
	for _, o := range owners {
		o.leave()
	}
}

func (o *owner) enter() error {
	if o == nil {
		return &Error{ErrHandle, "the object is empty; make it by the functions that return one"}
	}
	o.lock.Lock()
	defer o.lock.Unlock()
	if o.closed {
		return &Error{ErrHandle, "the " + o.kind + " is closed"}
	}
	if o.alone && o.calls > 0 {
		return &Error{ErrBusy, "the " + o.kind + " is in use by another call"}
	}
	o.calls++
	return nil
}

func (o *owner) leave() {
	o.lock.Lock()
	o.calls--
	last := o.closed && o.calls == 0
	o.lock.Unlock()
	if last {
		o.end()
	}
}

// close always returns nil, as the Close of io.Closer that it is.
func (o *owner) close() error {
	if o == nil {
		return nil
	}
	o.lock.Lock()
	last := !o.closed && o.calls == 0
	o.closed = true
	o.lock.Unlock()
	if last {
		o.end()
	}
	return nil
}

func (o *owner) end() {
	runtime.SetFinalizer(o, nil)
	o.free(o.handle)
	o.log.release()
}

// A logger is the log function of a library. The library lives until the last object made from it is gone, and may log until
// then: each of them retains the logger.
type logger struct {
	handle cgo.Handle
	uses   atomic.Int32
}

func (l *logger) retain() {
	if l != nil {
		l.uses.Add(1)
	}
}

func (l *logger) release() {
	if l != nil && l.uses.Add(-1) == 0 {
		l.handle.Delete()
	}
}

// number is 0 for none.
func (l *logger) number() C.duetgo {
	if l == nil {
		return 0
	}
	return C.duetgo(l.handle)
}
