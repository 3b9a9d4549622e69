// Package duet runs RWKV-7 in two modes, on the C library of Duet.
//
// Rules that hold for every function, so that they are not repeated:
//
//   - Errors are an *Error with the library's status and its sentence, or what a callback returned. After an error nothing has
//     changed, unless duet.h says so.
//   - Owners: Library, Model, State, Session, Tokenizer and Sampler belong to who made them, who closes them: in any order, as
//     the library keeps what is still needed. Closing twice is fine, as is closing during a call, which ends as it would have.
//     What is forgotten is freed after the garbage collector has found it. That may be late, as the collector does not see
//     how large a model is; and never, where a log function refers to what comes from its library.
//   - Goroutines: Library, Model and Tokenizer are used by any number at once; State, Session and Sampler by one at a time, and
//     others get ErrBusy.
//   - Callbacks run on the goroutine that makes the call (but for the log). A panic in one stops the call and goes on when the
//     library has been left. After a failure or panic, neither it nor the other callback of that call is called again.
//   - Options: a zero field means the default, except in SamplerOptions.
//   - Shapes are row-major: V vocabulary, C width, L layers, H heads of N channels, T tokens. Results are copies.
//
// duet.h says what each option means; the names are the same. Files of models are mapped into memory: do not overwrite one in
// place while it is loaded.
package duet

// #cgo pkg-config: duet
// #include "shim.h"
import "C"

// Version is that of the library that the program runs against: "0.1.0 (gcc 12.2.0, x86_64)".
func Version() string { return C.GoString(C.duet_version_string()) }
