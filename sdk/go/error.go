package duet

// #include "shim.h"
import "C"

import (
	"errors"
	"unsafe"
)

// A Status is the kind of a failure, and an error to compare with: errors.Is(err, duet.ErrNotFound).
type Status int32

const (
	ErrInvalid     Status = C.DUET_E_INVALID     // the caller broke the contract; the same call will fail again
	ErrNotFound    Status = C.DUET_E_NOT_FOUND   // a file, device, plugin or tensor that was named is not there
	ErrUnsupported Status = C.DUET_E_UNSUPPORTED // valid, but this plugin, device or build cannot do it
	ErrMemory      Status = C.DUET_E_MEMORY      // host or device memory exhausted
	ErrFormat      Status = C.DUET_E_FORMAT      // bytes are not what they claim to be
	ErrABI         Status = C.DUET_E_ABI         // the library is of a version that does not know what is asked for
	ErrDevice      Status = C.DUET_E_DEVICE      // driver or device fault
	ErrSmall       Status = C.DUET_E_SMALL       // a buffer was too small
	ErrCancelled   Status = C.DUET_E_CANCELLED   // a callback or flag asked to stop
	ErrIO          Status = C.DUET_E_IO          // the operating system refused
	ErrBusy        Status = C.DUET_E_BUSY        // used by two goroutines at once, or by its own callback
	ErrHandle      Status = C.DUET_E_HANDLE      // closed
	ErrLimit       Status = C.DUET_E_LIMIT       // over a stated limit
	ErrNumeric     Status = C.DUET_E_NUMERIC     // not finite where it must be
	ErrExists      Status = C.DUET_E_EXISTS      // the output exists and overwriting was not asked for
	ErrInternal    Status = C.DUET_E_INTERNAL    // a bug in Duet
)

// Error is the name in C: "DUET_E_INVALID".
func (s Status) Error() string { return C.GoString(C.duet_status_name(C.duet_status(s))) }

// An Error is a failed call of the library.
type Error struct {
	Status   Status
	Sentence string // names the thing and the way out
}

func (e *Error) Error() string { return e.Sentence }

// Unwrap gives the status, for errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Status }

// Stop is what OnToken and OnText return to end a generation that is no failure.
var Stop = errors.New("stop the generation")

// check makes an error of a failed call, and frees its sentence.
func check(o C.duetgo_outcome) error {
	if o.status == C.DUET_OK {
		return nil
	}
	err := &Error{Status(o.status), C.GoString(o.sentence)}
	C.free(unsafe.Pointer(o.sentence))
	if err.Sentence == "" {
		err.Sentence = err.Status.Error()
	}
	return err
}
