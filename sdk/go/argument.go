package duet

// #include "shim.h"
import "C"

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unsafe"
)

// pointer gives memory to C, as an element type of the same size: for the time of a call C may have what holds no pointers
// itself. It is never NULL, which the library may take for something else than no elements.
func pointer[E, T any](s []T) *E {
	if len(s) == 0 {
		return (*E)(unsafe.Pointer(&nothing))
	}
	return (*E)(unsafe.Pointer(&s[0]))
}

var nothing uint64

// orNULL is for what may be left out.
func orNULL[E, T any](s []T) *E {
	if s == nil {
		return nil
	}
	return pointer[E](s)
}

// cString ends a string as C does, so no other NUL may be in it.
func cString(s, name string) (*C.char, error) {
	if strings.IndexByte(s, 0) >= 0 {
		return nil, holdsNUL(name)
	}
	return pointer[C.char](append([]byte(s), 0)), nil
}

func holdsNUL(name string) error {
	return &Error{ErrInvalid, name + " holds a NUL character; take it out"}
}

// optional is NULL for "".
func optional(s, name string) (*C.char, error) {
	if s == "" {
		return nil, nil
	}
	return cString(s, name)
}

func flag(wanted bool, bit C.uint32_t) C.uint32_t {
	if wanted {
		return bit
	}
	return 0
}

func count(n int, name string) (C.uint32_t, error) {
	if n > math.MaxUint32 {
		return 0, &Error{ErrLimit, fmt.Sprintf("%s: %d are more than 32 bits can count", name, n)}
	}
	return C.uint32_t(n), nil
}

func sameLength(got, want int, name string) error {
	if got == want {
		return nil
	}
	return &Error{ErrInvalid, fmt.Sprintf("%s has %d elements; %d are needed", name, got, want)}
}

// copied keeps another goroutine that writes to the slice from changing what C reads.
func copied(tokens []int32) []int32 { return append([]int32(nil), tokens...) }

// sized gives what get writes, by the two calls of duet.h.
func sized(get func(dst *C.char, cap C.size_t, size *C.size_t) C.duetgo_outcome) ([]byte, error) {
	var size C.size_t
	if err := check(get(nil, 0, &size)); err != nil {
		return nil, err
	}
	for {
		out := make([]byte, size)
		o := get(pointer[C.char](out), C.size_t(len(out)), &size)
		err := check(o)
		if o.status == C.DUET_E_SMALL && int(size) > len(out) {
			continue // it has grown in between
		}
		if err != nil {
			return nil, err
		}
		return out[:size], nil
	}
}

// named is the name of a number, which the library may have more of.
func named(n int, names ...string) string {
	if 0 <= n && n < len(names) {
		return names[n]
	}
	return strconv.Itoa(n)
}
