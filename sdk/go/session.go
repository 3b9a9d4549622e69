package duet

// #include "shim.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// A Mode says how a run of tokens is computed.
type Mode int32

const (
	ModeAuto      Mode = C.DUET_MODE_AUTO      // parallel for runs of tokens, recurrent for single tokens
	ModeRecurrent Mode = C.DUET_MODE_RECURRENT // one token per sequence and step
	ModeParallel  Mode = C.DUET_MODE_PARALLEL  // whole sequences at once
)

func (m Mode) String() string { return named(int(m), "auto", "recurrent", "parallel") }

// SessionOptions say how to make a Session.
type SessionOptions struct {
	Mode      Mode
	MaxTokens uint32 // tokens that one pass computes at once; longer batches are fed in pieces. 0 = as fits the device
}

// Outputs say what a forward computes beside the state: by default the logits of the last token of each sequence.
type Outputs struct {
	AllRows  bool      // a row per token; else one per sequence that has tokens
	NoLogits bool      // else rows [V]
	Hidden   bool      // rows [C]: the last hidden state, after ln_out
	VFirst   bool      // rows [C]: layer 0's value vector, always a row per token
	Memory   []float32 // where it is large enough, the logits are copied to it
}

// Rows are [n, Width].
type Rows struct {
	Data  []float32 // one row after another
	Width int       // elements of a row: V or C
}

// Len is the number of rows: 0 for what was not asked for, or if no sequence has tokens.
func (r Rows) Len() int {
	if r.Width == 0 {
		return 0
	}
	return len(r.Data) / r.Width
}

// Row is one row.
func (r Rows) Row(i int) []float32 { return r.Data[i*r.Width : (i+1)*r.Width : (i+1)*r.Width] }

// Last is the last row, nil if there is none.
func (r Rows) Last() []float32 {
	if r.Len() == 0 {
		return nil
	}
	return r.Row(r.Len() - 1)
}

// A Session is scratch memory, a queue and a mode. A state goes through sessions of both modes.
type Session struct{ owner *owner }

// NewSession makes a session for states of this model.
func (m *Model) NewSession(options SessionOptions) (*Session, error) {
	leave, err := enter(m.owner)
	if err != nil {
		return nil, err
	}
	defer leave()
	o, err := own("session", m.owner.log, func(session C.duetgo) { C.duetgo_session_free(session) }, func(out *C.duetgo) error {
		return check(C.duetgo_session_create(m.owner.handle, C.duet_mode(options.Mode), C.uint32_t(options.MaxTokens), out))
	})
	if err != nil {
		return nil, err
	}
	o.alone = true // the library has such a lock too, but rows are copied after its call has returned
	return &Session{o}, nil
}

// Close frees the session. It returns nil.
func (s *Session) Close() error { return s.owner.close() }

// Forward runs one sequence and advances its slot. It returns the logits: [1,V], or [T,V] for AllRows.
func (s *Session) Forward(state *State, slot uint32, tokens []int32, outputs Outputs) (Rows, error) {
	return s.ForwardBatch(state, []uint32{slot}, [][]int32{tokens}, outputs)
}

// ForwardBatch runs several sequences and advances their slots, which are distinct; nil = 0, 1, 2 ... It returns the logits, in
// the batch's order.
func (s *Session) ForwardBatch(state *State, slots []uint32, sequences [][]int32, outputs Outputs) (Rows, error) {
	n, err := count(len(sequences), "sequences")
	if err != nil {
		return Rows{}, err
	}
	if slots != nil {
		if err := sameLength(len(slots), len(sequences), "slots"); err != nil {
			return Rows{}, err
		}
	}
	var packed []int32
	lengths := make([]C.uint32_t, len(sequences))
	for i, tokens := range sequences {
		if lengths[i], err = count(len(tokens), fmt.Sprintf("sequence %d", i)); err != nil {
			return Rows{}, err
		}
		packed = append(packed, tokens...)
	}
	leave, err := enter(s.owner, state.owner)
	if err != nil {
		return Rows{}, err
	}
	defer leave()
	wanted := flag(outputs.AllRows, C.DUET_OUT_ALL_LOGITS) | flag(outputs.NoLogits, C.DUET_OUT_NO_LOGITS) |
		flag(outputs.Hidden, C.DUET_OUT_HIDDEN) | flag(outputs.VFirst, C.DUET_OUT_V_FIRST)
	o := C.duetgo_forward(s.owner.handle, state.owner.handle, n,
		pointer[C.int32_t](packed), pointer[C.uint32_t](lengths), orNULL[C.uint32_t](slots), wanted)
	if err := check(o); err != nil {
		return Rows{}, err
	}
	return s.rows(C.DUET_OUTPUT_LOGITS, outputs.Memory)
}

// Logits of the last forward: rows [V]. They are copied to the memory given where it is large enough; nil is new memory.
func (s *Session) Logits(memory []float32) (Rows, error) {
	return s.output(C.DUET_OUTPUT_LOGITS, memory)
}

// Hidden states of the last forward: rows [C]. As Logits.
func (s *Session) Hidden(memory []float32) (Rows, error) {
	return s.output(C.DUET_OUTPUT_HIDDEN, memory)
}

// VFirst is layer 0's value vectors of the last forward: rows [C]. As Logits.
func (s *Session) VFirst(memory []float32) (Rows, error) {
	return s.output(C.DUET_OUTPUT_V_FIRST, memory)
}

func (s *Session) output(output C.uint32_t, memory []float32) (Rows, error) {
	leave, err := enter(s.owner)
	if err != nil {
		return Rows{}, err
	}
	defer leave()
	return s.rows(output, memory)
}

func (s *Session) rows(output C.uint32_t, memory []float32) (Rows, error) {
	var data *C.float
	var n, width C.uint32_t
	if err := check(C.duetgo_session_outputs(s.owner.handle, output, &data, &n, &width)); err != nil {
		return Rows{}, err
	}
	borrowed := unsafe.Slice((*float32)(unsafe.Pointer(data)), int(n)*int(width))
	return Rows{append(memory[:0], borrowed...), int(width)}, nil
}

// Score gives [T-1]: -log p(tokens[t+1] | state, tokens[0..t]), natural log. Advances the slot by all T tokens.
func (s *Session) Score(state *State, slot uint32, tokens []int32) ([]float64, error) {
	leave, err := enter(s.owner, state.owner)
	if err != nil {
		return nil, err
	}
	defer leave()
	tokens = copied(tokens)
	nll := make([]float64, len(tokens))
	o := C.duetgo_score(s.owner.handle, state.owner.handle, C.uint32_t(slot), pointer[C.int32_t](tokens), C.size_t(len(tokens)), pointer[C.double](nll))
	if err := check(o); err != nil {
		return nil, err
	}
	return nll[:len(nll)-1], nil
}
