"""duet.h for ctypes: structs, prototypes, and how the library is found. Nothing else in the package names a C type's layout."""

import ctypes
import os
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p

from ._errors import Error

LogFunction = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_char_p)
ProgressFunction = ctypes.CFUNCTYPE(c_int32, c_void_p, c_uint64, c_uint64)
TokenFunction = ctypes.CFUNCTYPE(c_int32, c_void_p, c_int32)
TextFunction = ctypes.CFUNCTYPE(c_int32, c_void_p, POINTER(ctypes.c_char), c_size_t)


class _Sized(ctypes.Structure):
    """A struct that begins with its own size."""

    def __init__(self, **fields):
        super().__init__(size=ctypes.sizeof(self), **fields)


class LibraryOptions(_Sized):
    _fields_ = [("size", c_uint32), ("n_threads", c_uint32), ("plugin_path", c_char_p), ("log", LogFunction), ("log_user", c_void_p),
                ("log_level", c_int32), ("reserved", c_uint32), ("layers", c_char_p)]


class DeviceInfo(_Sized):
    _fields_ = [("size", c_uint32), ("kind", c_uint32), ("spec", c_char_p), ("name", c_char_p), ("plugin", c_char_p), ("mem_total", c_uint64),
                ("mem_free", c_uint64), ("bytes_per_s", c_uint64)]


class ConvertOptions(_Sized):
    _fields_ = [("size", c_uint32), ("weights", c_int32), ("overwrite", c_uint32), ("flags", c_uint32), ("progress", ProgressFunction),
                ("progress_user", c_void_p)]


class InitOptions(_Sized):
    _fields_ = [("size", c_uint32), ("n_layer", c_uint32), ("n_embd", c_uint32), ("n_vocab", c_uint32), ("head_size", c_uint32), ("weights", c_int32),
                ("overwrite", c_uint32), ("reserved", c_uint32), ("seed", c_uint64)]


class ModelOptions(_Sized):
    _fields_ = [("size", c_uint32), ("weights", c_int32), ("device", c_char_p), ("flags", c_uint32), ("trainable", c_uint32),
                ("progress", ProgressFunction), ("progress_user", c_void_p)]


class ModelInfo(_Sized):
    _fields_ = [("size", c_uint32), ("n_layer", c_uint32), ("n_embd", c_uint32), ("n_head", c_uint32), ("head_size", c_uint32), ("n_ffn", c_uint32),
                ("n_vocab", c_uint32), ("rank_w", c_uint32), ("rank_a", c_uint32), ("rank_v", c_uint32), ("rank_g", c_uint32), ("weights", c_int32),
                ("n_params", c_uint64), ("weight_bytes", c_uint64), ("bytes_per_token", c_uint64), ("state_bytes", c_uint64), ("device", c_char_p)]


class RandomOptions(_Sized):
    _fields_ = [("size", c_uint32), ("shape", c_char_p), ("relu2", c_float), ("reserved", c_uint32), ("seed", c_uint64)]


class StateOptions(_Sized):
    _fields_ = [("size", c_uint32), ("wkv", c_int32)]


class SessionOptions(_Sized):
    _fields_ = [("size", c_uint32), ("mode", c_int32), ("max_tokens", c_uint32), ("reserved", c_uint32)]


class Batch(_Sized):
    _fields_ = [("size", c_uint32), ("n_seqs", c_uint32), ("tokens", c_void_p), ("lengths", c_void_p), ("slots", c_void_p), ("outputs", c_uint32),
                ("reserved", c_uint32)]


class SamplerOptions(_Sized):
    _fields_ = [("size", c_uint32), ("top_k", c_uint32), ("temperature", c_float), ("top_p", c_float), ("min_p", c_float), ("presence", c_float),
                ("frequency", c_float), ("decay", c_float), ("seed", c_uint64), ("sequence", c_uint64), ("n_bias", c_uint32), ("reserved", c_uint32),
                ("bias_tokens", c_void_p), ("bias", c_void_p), ("tokenizer", c_void_p)]


class GenerateOptions(_Sized):
    _fields_ = [("size", c_uint32), ("max_tokens", c_uint32), ("tokenizer", c_void_p), ("stops", c_void_p), ("stop_texts", POINTER(c_char_p)),
                ("n_stops", c_uint32), ("n_stop_texts", c_uint32), ("on_token", TokenFunction), ("on_text", TextFunction), ("user", c_void_p),
                ("cancel", POINTER(c_int32))]


class GenerateResult(_Sized):
    _fields_ = [("size", c_uint32), ("finish", c_uint32), ("n_prompt", c_uint64), ("n_new", c_uint64), ("prompt_s", c_double), ("new_s", c_double),
                ("status", c_int32), ("reserved", c_uint32)]


class Prompts(_Sized):
    _fields_ = [("size", c_uint32), ("n_seqs", c_uint32), ("tokens", c_void_p), ("lengths", c_void_p), ("slots", c_void_p), ("samplers", c_void_p),
                ("options", c_void_p)]


_SIZE = POINTER(c_size_t)
_HANDLE = POINTER(c_void_p)  # out
_FUNCTIONS = {  # arguments of the functions that return a status
    "library_create": (POINTER(LibraryOptions), _HANDLE),
    "library_report": (c_void_p, c_void_p, c_size_t, _SIZE),
    "device_count": (c_void_p, POINTER(c_uint32)),
    "device_get": (c_void_p, c_uint32, POINTER(DeviceInfo)),
    "file_info": (c_void_p, c_char_p, c_uint32, c_void_p, c_size_t, _SIZE),
    "file_convert": (c_void_p, c_char_p, c_char_p, POINTER(ConvertOptions)),
    "file_init": (c_void_p, c_char_p, POINTER(InitOptions)),
    "model_load": (c_void_p, c_char_p, POINTER(ModelOptions), _HANDLE),
    "model_random": (c_void_p, POINTER(RandomOptions), POINTER(ModelOptions), _HANDLE),
    "model_save": (c_void_p, c_char_p),
    "model_get": (c_void_p, POINTER(ModelInfo)),
    "state_create": (c_void_p, c_uint32, POINTER(StateOptions), _HANDLE),
    "state_reset": (c_void_p, c_uint32),
    "state_copy": (c_void_p, c_uint32, c_void_p, c_uint32),
    "state_get": (c_void_p, c_uint32, c_void_p, c_void_p, c_void_p),
    "state_set": (c_void_p, c_uint32, c_void_p, c_void_p, c_void_p),
    "state_save": (c_void_p, c_uint32, c_void_p, c_size_t, _SIZE),
    "state_load": (c_void_p, c_uint32, c_void_p, c_size_t),
    "state_save_file": (c_void_p, c_uint32, c_char_p),
    "state_load_file": (c_void_p, c_uint32, c_char_p),
    "session_create": (c_void_p, POINTER(SessionOptions), _HANDLE),
    "forward": (c_void_p, c_void_p, POINTER(Batch)),
    "session_outputs": (c_void_p, c_uint32, POINTER(c_void_p), POINTER(c_uint32), POINTER(c_uint32)),
    "score": (c_void_p, c_void_p, c_uint32, c_void_p, c_size_t, c_void_p),
    "tokenizer_load": (c_void_p, c_char_p, _HANDLE),
    "tokenizer_for_model": (c_void_p, _HANDLE),
    "tokenizer_size": (c_void_p, POINTER(c_uint32)),
    "tokenizer_encode": (c_void_p, c_char_p, c_size_t, c_void_p, c_size_t, _SIZE),
    "tokenizer_decode": (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, _SIZE),
    "sampler_options_default": (POINTER(SamplerOptions),),
    "sampler_create": (POINTER(SamplerOptions), _HANDLE),
    "sampler_probs": (c_void_p, c_void_p, c_uint32, c_void_p),
    "sampler_pick": (c_void_p, c_void_p, c_uint32, POINTER(c_int32)),
    "sampler_accept": (c_void_p, c_int32),
    "sampler_reset": (c_void_p,),
    "generate": (c_void_p, c_void_p, c_uint32, c_void_p, c_void_p, c_size_t, POINTER(GenerateOptions), POINTER(GenerateResult)),
    "generate_batch": (c_void_p, c_void_p, POINTER(Prompts), c_void_p),
}
_FREES = ("library", "model", "state", "session", "tokenizer", "sampler")


def _open():
    """libduet: the file that DUET_LIBRARY names, else the one beside this package, else the system's loader's."""
    named = os.environ.get("DUET_LIBRARY")
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libduet.so.0")
    name = named or (os.path.realpath(beside) if os.path.exists(beside) else "libduet.so.0")
    try:
        lib = ctypes.CDLL(name)
    except OSError as error:
        raise ImportError(f"cannot load Duet's library: {error}. Install Duet, or set DUET_LIBRARY to the path of libduet.so.0") from None
    lib.duet_api_version.restype, lib.duet_api_version.argtypes = c_uint32, ()
    if lib.duet_api_version() >> 16 != 1:
        raise ImportError(f"{name} has version {lib.duet_api_version() >> 16} of Duet's C interface, but this package needs 1")
    for function in ("duet_version_string", "duet_last_error"):
        getattr(lib, function).restype, getattr(lib, function).argtypes = c_char_p, ()
    lib.duet_status_name.restype, lib.duet_status_name.argtypes = c_char_p, (c_int32,)
    for function, arguments in _FUNCTIONS.items():
        getattr(lib, "duet_" + function).restype, getattr(lib, "duet_" + function).argtypes = c_int32, arguments
    for kind in _FREES:
        free = getattr(lib, f"duet_{kind}_free")
        free.restype, free.argtypes = None, (c_void_p,)
    return lib


lib = _open()


def check(status):
    """Raises what a status says. To be called by the thread that made the call, before its next one."""
    if status != 0:
        sentence = lib.duet_last_error().decode(errors="replace")
        raise Error(status, sentence or lib.duet_status_name(status).decode())


def sized(get):
    """The bytes that ``get(dst, cap, size)`` writes, by the two calls of duet.h."""
    size = c_size_t()
    check(get(None, 0, size))
    while True:
        out = (ctypes.c_char * size.value)()
        status = get(out, len(out), size)
        if status == 0:
            return out.raw[:size.value]
        if size.value <= len(out):  # it has not grown in between
            check(status)
