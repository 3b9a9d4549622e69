package duet

// #include "shim.h"
import "C"

// A Dtype is the type of numbers in storage; 0 is a default.
type Dtype int32

const (
	F32  Dtype = C.DUET_F32  // IEEE binary32
	F16  Dtype = C.DUET_F16  // IEEE binary16
	BF16 Dtype = C.DUET_BF16 // the upper half of binary32
	Q8   Dtype = C.DUET_I8   // quantised to 8 bits: docs/quantisation.md
	Q4   Dtype = C.DUET_I4   // quantised to 4 bits
)

func (d Dtype) String() string {
	switch d {
	case Q8:
		return "q8"
	case Q4:
		return "q4"
	}
	return named(int(d), "default", "f32", "f16", "bf16")
}

// ModelOptions say how to load a Model.
type ModelOptions struct {
	Weights  Dtype  // of the matrices on the device; 0 = as stored
	Device   string // "cpu", "cuda:1"; "" = what the variable DUET_BACKEND names, else the best device that can run the model
	Flags    FileFlags
	Progress Progress
}

// RandomOptions say which random weights to make.
type RandomOptions struct {
	Shape string  // "0.1b" "0.4b" "1.5b" "2.9b" "7.2b": the released models' sizes and ranks
	Relu2 float32 // share of relu^2 activations that are not zero, in (0,1); 0 = as random weights give
	Seed  uint64  // of the random numbers
}

// ModelInfo tells the shape and size of a model.
type ModelInfo struct {
	NLayer, NEmbd, NHead, HeadSize, NFFN, NVocab uint32
	RankW, RankA, RankV, RankG                   uint32
	Weights                                      Dtype // of the matrices
	NParams                                      uint64
	WeightBytes                                  uint64 // in memory, of all that the model needs
	BytesPerToken                                uint64 // weights read to generate one token of one sequence
	StateBytes                                   uint64 // of one sequence in the canonical form, f32
	Device                                       string // "cpu:0"
}

// A Model is immutable weights on one device.
type Model struct{ owner *owner }

// Load reads an official .pth, a safetensors file, or a folder in the Hugging Face form.
func (l *Library) Load(path string, options ModelOptions) (*Model, error) {
	file, err := cString(path, "path")
	if err != nil {
		return nil, err
	}
	return l.model(options, func(device *C.char, progress C.duetgo, out *C.duetgo) C.duetgo_outcome {
		return C.duetgo_model_load(l.owner.handle, file, C.duet_dtype(options.Weights), device, C.uint32_t(options.Flags), progress, out)
	})
}

// Random makes weights at trained-like scale, for measuring speed without a file.
func (l *Library) Random(random RandomOptions, options ModelOptions) (*Model, error) {
	shape, err := cString(random.Shape, "Shape")
	if err != nil {
		return nil, err
	}
	return l.model(options, func(device *C.char, progress C.duetgo, out *C.duetgo) C.duetgo_outcome {
		return C.duetgo_model_random(l.owner.handle, shape, C.float(random.Relu2), C.uint64_t(random.Seed),
			C.duet_dtype(options.Weights), device, C.uint32_t(options.Flags), progress, out)
	})
}

func (l *Library) model(options ModelOptions, create func(device *C.char, progress C.duetgo, out *C.duetgo) C.duetgo_outcome) (*Model, error) {
	device, err := optional(options.Device, "Device")
	if err != nil {
		return nil, err
	}
	leave, err := enter(l.owner)
	if err != nil {
		return nil, err
	}
	defer leave()
	o, err := own("model", l.owner.log, func(model C.duetgo) { C.duetgo_model_free(model) }, func(out *C.duetgo) error {
		return withProgress(options.Progress, func(progress C.duetgo) C.duetgo_outcome { return create(device, progress, out) })
	})
	if err != nil {
		return nil, err
	}
	return &Model{o}, nil
}

// Close frees the weights, when no state or session needs them any more. It returns nil.
func (m *Model) Close() error { return m.owner.close() }

// Info tells shape and size.
func (m *Model) Info() (ModelInfo, error) {
	leave, err := enter(m.owner)
	if err != nil {
		return ModelInfo{}, err
	}
	defer leave()
	var i C.duet_model_info
	if err := check(C.duetgo_model_get(m.owner.handle, &i)); err != nil {
		return ModelInfo{}, err
	}
	return ModelInfo{
		NLayer: uint32(i.n_layer), NEmbd: uint32(i.n_embd), NHead: uint32(i.n_head), HeadSize: uint32(i.head_size),
		NFFN: uint32(i.n_ffn), NVocab: uint32(i.n_vocab),
		RankW: uint32(i.rank_w), RankA: uint32(i.rank_a), RankV: uint32(i.rank_v), RankG: uint32(i.rank_g),
		Weights: Dtype(i.weights), NParams: uint64(i.n_params), WeightBytes: uint64(i.weight_bytes),
		BytesPerToken: uint64(i.bytes_per_token), StateBytes: uint64(i.state_bytes), Device: C.GoString(i.device),
	}, nil
}

// Save writes the weights as safetensors, atomically, over an existing file.
func (m *Model) Save(path string) error {
	file, err := cString(path, "path")
	if err != nil {
		return err
	}
	leave, err := enter(m.owner)
	if err != nil {
		return err
	}
	defer leave()
	return check(C.duetgo_model_save(m.owner.handle, file))
}
