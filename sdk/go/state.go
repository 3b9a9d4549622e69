package duet

// #include "shim.h"
import "C"

// StateOptions say how to make a State.
type StateOptions struct {
	WKV Dtype // of the matrices in the device's memory; 0 = F32
}

// A StateArrays is one sequence in the canonical form.
type StateArrays struct {
	AttX []float32 // [L,C]
	WKV  []float32 // [L,H,N,N]: value row, key column
	FFNX []float32 // [L,C]
}

// A State is the whole memory of sequences, one in each slot. Both modes read and leave the same state.
type State struct {
	owner          *owner
	slots          uint32
	xSize, wkvSize int
}

// NewState makes fresh slots: zero, or the model's tuned state if it has one.
func (m *Model) NewState(slots uint32, options StateOptions) (*State, error) {
	info, err := m.Info()
	if err != nil {
		return nil, err
	}
	leave, err := enter(m.owner)
	if err != nil {
		return nil, err
	}
	defer leave()
	o, err := own("state", m.owner.log, func(state C.duetgo) { C.duetgo_state_free(state) }, func(out *C.duetgo) error {
		return check(C.duetgo_state_create(m.owner.handle, C.uint32_t(slots), C.duet_dtype(options.WKV), out))
	})
	if err != nil {
		return nil, err
	}
	xSize := int(info.NLayer) * int(info.NEmbd)
	return &State{o, slots, xSize, xSize * int(info.HeadSize)}, nil
}

// Close frees the state. It returns nil.
func (s *State) Close() error { return s.owner.close() }

// Slots is the number of sequences that it holds.
func (s *State) Slots() uint32 { return s.slots }

// XSize is the number of elements of AttX and of FFNX: L*C.
func (s *State) XSize() int { return s.xSize }

// WKVSize is the number of elements of WKV: L*H*N*N.
func (s *State) WKVSize() int { return s.wkvSize }

// Reset makes a slot as it was when fresh.
func (s *State) Reset(slot uint32) error {
	leave, err := enter(s.owner)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_state_reset(s.owner.handle, C.uint32_t(slot)))
}

// Copy takes over a slot: to fork, of this state; or of that of another model object, device or dtype, if the shape is the same.
func (s *State) Copy(slot uint32, source *State, sourceSlot uint32) error {
	leave, err := enter(s.owner, source.owner)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_state_copy(s.owner.handle, C.uint32_t(slot), source.owner.handle, C.uint32_t(sourceSlot)))
}

// Get copies a slot.
func (s *State) Get(slot uint32) (StateArrays, error) {
	arrays := StateArrays{make([]float32, s.xSize), make([]float32, s.wkvSize), make([]float32, s.xSize)}
	if err := s.GetInto(slot, arrays); err != nil {
		return StateArrays{}, err
	}
	return arrays, nil
}

// GetInto copies a slot to the caller's arrays; nil skips a part.
func (s *State) GetInto(slot uint32, arrays StateArrays) error {
	leave, err := s.enterWith(arrays)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_state_get(s.owner.handle, C.uint32_t(slot), orNULL[C.float](arrays.AttX), orNULL[C.float](arrays.WKV), orNULL[C.float](arrays.FFNX)))
}

// Set writes a slot; nil keeps a part. Refuses numbers that are not finite.
func (s *State) Set(slot uint32, arrays StateArrays) error {
	leave, err := s.enterWith(arrays)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_state_set(s.owner.handle, C.uint32_t(slot), orNULL[C.float](arrays.AttX), orNULL[C.float](arrays.WKV), orNULL[C.float](arrays.FFNX)))
}

func (s *State) enterWith(arrays StateArrays) (leave func(), err error) {
	for _, part := range []struct {
		given []float32
		want  int
		name  string
	}{{arrays.AttX, s.xSize, "AttX"}, {arrays.WKV, s.wkvSize, "WKV"}, {arrays.FFNX, s.xSize, "FFNX"}} {
		if part.given != nil {
			if err := sameLength(len(part.given), part.want, part.name); err != nil {
				return nil, err
			}
		}
	}
	return enter(s.owner)
}

// Save gives a slot as the bytes of a safetensors file.
func (s *State) Save(slot uint32) ([]byte, error) {
	leave, err := enter(s.owner)
	if err != nil {
		return nil, err
	}
	defer leave()
	return sized(func(dst *C.char, cap C.size_t, size *C.size_t) C.duetgo_outcome {
		return C.duetgo_state_save(s.owner.handle, C.uint32_t(slot), dst, cap, size)
	})
}

// Load takes the bytes of a safetensors file. A failed load leaves the slot as it was.
func (s *State) Load(slot uint32, file []byte) error {
	leave, err := enter(s.owner)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_state_load(s.owner.handle, C.uint32_t(slot), pointer[C.char](file), C.size_t(len(file))))
}

// SaveFile writes a slot to a file, atomically.
func (s *State) SaveFile(slot uint32, path string) error {
	file, err := cString(path, "path")
	if err != nil {
		return err
	}
	leave, err := enter(s.owner)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_state_save_file(s.owner.handle, C.uint32_t(slot), file))
}

// LoadFile reads a slot from a file.
func (s *State) LoadFile(slot uint32, path string) error {
	file, err := cString(path, "path")
	if err != nil {
		return err
	}
	leave, err := enter(s.owner)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_state_load_file(s.owner.handle, C.uint32_t(slot), file))
}
