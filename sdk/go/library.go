package duet

// #include "shim.h"
import "C"

import "runtime/cgo"

// A LogFunction takes messages, on goroutines of its own, several at once. It must not call Duet. A panic in it ends there.
type LogFunction func(level LogLevel, message string)

// A LogLevel says how grave a message is; in options, the least grave one that is wanted.
type LogLevel int32

const (
	LogDebug   LogLevel = C.DUET_LOG_DEBUG   // for who works on Duet
	LogInfo    LogLevel = C.DUET_LOG_INFO    // what goes on
	LogWarning LogLevel = C.DUET_LOG_WARNING // something that may surprise
	LogError   LogLevel = C.DUET_LOG_ERROR   // something that failed
	LogOff     LogLevel = C.DUET_LOG_OFF     // in options: no message at all
)

func (l LogLevel) String() string {
	return named(int(l), "default", "debug", "info", "warning", "error", "off")
}

// LibraryOptions say how to make a Library.
type LibraryOptions struct {
	Threads    uint32      // 0 = the physical cores that the process may use
	PluginPath string      // ':'-separated plugin files, manifests or folders, absolute; replaces the default search
	Log        LogFunction // nil = standard error. It lives until the last object made from the library is closed
	LogLevel   LogLevel    // 0 = warnings and errors
	Layers     string      // ','-separated interposing layers around the devices of models, such as "validate,trace"
}

// A DeviceKind says what a device is.
type DeviceKind uint32

const (
	CPU DeviceKind = iota
	IntegratedGPU
	GPU
	OtherDevice
)

func (k DeviceKind) String() string { return named(int(k), "cpu", "integrated gpu", "gpu", "other") }

// A Device is what a model can be loaded to.
type Device struct {
	Kind                              DeviceKind
	Spec                              string // "cpu:0": what ModelOptions.Device takes
	Name                              string // "AMD EPYC"
	Plugin                            string // its file, or "built in"
	MemTotal, MemFree, BytesPerSecond uint64 // bytes; 0 = unknown
}

// FileFlags say how strictly files are read; they are or-ed.
type FileFlags uint32

const (
	FileStrict FileFlags = C.DUET_FILE_STRICT // warnings (unknown tensors, non-finite weights) are errors
	FileVerify FileFlags = C.DUET_FILE_VERIFY // reads every byte: a disk that cannot, checksums, finite weights
)

// ConvertOptions say how to convert a model.
type ConvertOptions struct {
	Weights   Dtype // of the matrices; 0 = as stored
	Overwrite bool  // without it, an output that exists is ErrExists
	Flags     FileFlags
	Progress  Progress
}

// InitOptions say how to make a fresh model.
type InitOptions struct {
	NLayer, NEmbd, NVocab uint32 // L, C, V, required
	HeadSize              uint32 // N, a divisor of C; 0 = 64
	Weights               Dtype  // 0 = F32
	Overwrite             bool   // without it, an output that exists is ErrExists
	Seed                  uint64 // of the random numbers
	Progress              Progress
}

// A Library finds plugins, owns the threads and the log. Make as many as you like.
type Library struct{ owner *owner }

// NewLibrary makes a library. Plugins are looked for now, and opened when they are needed.
func NewLibrary(options LibraryOptions) (*Library, error) {
	pluginPath, err := optional(options.PluginPath, "PluginPath")
	if err != nil {
		return nil, err
	}
	layers, err := optional(options.Layers, "Layers")
	if err != nil {
		return nil, err
	}
	var log *logger
	if options.Log != nil {
		log = &logger{handle: cgo.NewHandle(options.Log)}
		log.retain()
		defer log.release()
	}
	o, err := own("library", log, func(library C.duetgo) { C.duetgo_library_free(library) }, func(out *C.duetgo) error {
		return check(C.duetgo_library_create(C.uint32_t(options.Threads), pluginPath, log.number(), C.int32_t(options.LogLevel), layers, out))
	})
	if err != nil {
		return nil, err
	}
	return &Library{o}, nil
}

// Close frees the library. It returns nil.
func (l *Library) Close() error { return l.owner.close() }

// Report is JSON: every plugin that was considered, and why it was or was not taken. Opens all plugins.
func (l *Library) Report() ([]byte, error) {
	leave, err := enter(l.owner)
	if err != nil {
		return nil, err
	}
	defer leave()
	return sized(func(dst *C.char, cap C.size_t, size *C.size_t) C.duetgo_outcome {
		return C.duetgo_library_report(l.owner.handle, dst, cap, size)
	})
}

// Devices are ranked, the best first.
func (l *Library) Devices() ([]Device, error) {
	leave, err := enter(l.owner)
	if err != nil {
		return nil, err
	}
	defer leave()
	var n C.uint32_t
	if err := check(C.duetgo_device_count(l.owner.handle, &n)); err != nil {
		return nil, err
	}
	devices := make([]Device, n)
	for i := range devices {
		var d C.duet_device_info
		if err := check(C.duetgo_device_get(l.owner.handle, C.uint32_t(i), &d)); err != nil {
			return nil, err
		}
		kind := DeviceKind(d.kind)
		if kind > OtherDevice {
			kind = OtherDevice
		}
		devices[i] = Device{kind, C.GoString(d.spec), C.GoString(d.name), C.GoString(d.plugin), uint64(d.mem_total), uint64(d.mem_free), uint64(d.bytes_per_s)}
	}
	return devices, nil
}

// FileInfo is JSON: what a model or state file holds.
func (l *Library) FileInfo(path string, flags FileFlags) ([]byte, error) {
	file, err := cString(path, "path")
	if err != nil {
		return nil, err
	}
	leave, err := enter(l.owner)
	if err != nil {
		return nil, err
	}
	defer leave()
	return sized(func(dst *C.char, cap C.size_t, size *C.size_t) C.duetgo_outcome {
		return C.duetgo_file_info(l.owner.handle, file, C.uint32_t(flags), dst, cap, size)
	})
}

// Convert rewrites a model as safetensors with official names; the file appears whole or not at all.
func (l *Library) Convert(input, output string, options ConvertOptions) error {
	in, err := cString(input, "input")
	if err != nil {
		return err
	}
	out, err := cString(output, "output")
	if err != nil {
		return err
	}
	leave, err := enter(l.owner)
	if err != nil {
		return err
	}
	defer leave()
	return withProgress(options.Progress, func(progress C.duetgo) C.duetgo_outcome {
		return C.duetgo_file_convert(l.owner.handle, in, out, C.duet_dtype(options.Weights), flag(options.Overwrite, 1), C.uint32_t(options.Flags), progress)
	})
}

// Init writes a fresh model with the official initialisation.
func (l *Library) Init(output string, options InitOptions) error {
	out, err := cString(output, "output")
	if err != nil {
		return err
	}
	leave, err := enter(l.owner)
	if err != nil {
		return err
	}
	defer leave()
	return withProgress(options.Progress, func(progress C.duetgo) C.duetgo_outcome {
		o := C.duet_init_options{
			n_layer: C.uint32_t(options.NLayer), n_embd: C.uint32_t(options.NEmbd), n_vocab: C.uint32_t(options.NVocab),
			head_size: C.uint32_t(options.HeadSize), weights: C.duet_dtype(options.Weights),
			overwrite: flag(options.Overwrite, 1), seed: C.uint64_t(options.Seed),
		}
		return C.duetgo_file_init(l.owner.handle, out, o, progress)
	})
}
