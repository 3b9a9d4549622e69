"""The library object, its devices, and work on files."""

import dataclasses
import json

from . import _abi, _callbacks
from ._arguments import choice, function, path, text, unsigned
from ._handle import Handle, made
from .model import DTYPES, Model, model_options
from .tokenizer import Tokenizer

STRICT, VERIFY = 1, 2  # DUET_FILE_*
LOG_LEVELS = {None: 0, "debug": 1, "info": 2, "warning": 3, "error": 4, "off": 5}
DEVICE_KINDS = {0: "cpu", 1: "integrated gpu", 2: "gpu"}


def version():
    """Of the library that was loaded: "0.1.0 (GNU 12.2.0, x86_64)"."""
    return _abi.lib.duet_version_string().decode()


def file_flags(strict, verify):
    return (STRICT if strict else 0) | (VERIFY if verify else 0)


@dataclasses.dataclass(frozen=True)
class Device:
    kind: str  # "cpu", "integrated gpu", "gpu", "other"
    spec: str  # "cpu:0"
    name: str
    plugin: str  # path, or "built in"
    mem_total: int  # bytes; 0 = unknown
    mem_free: int
    bytes_per_s: int


class Library(Handle):
    """Finds plugins, owns the threads and the log. Any thread.

    n_threads: 0 = the physical cores that the process may use.
    plugin_path: ':'-separated absolute paths that replace the default search.
    log(level, message): called from any thread, with the level's number (1 debug to 4 error); it must not call duet. None =
        standard error.
    log_level: "debug", "info", "warning", "error", "off"; None = warnings and errors.
    layers: ','-separated interposing layers around the devices of models, such as "validate,trace".
    """

    def __init__(self, *, n_threads=0, plugin_path=None, log=None, log_level=None, layers=None):
        options = _abi.LibraryOptions(n_threads=unsigned(n_threads, "n_threads"), log_level=choice(log_level, LOG_LEVELS, "log_level"))
        if plugin_path is not None:
            options.plugin_path = path(plugin_path, "plugin_path")
        if layers is not None:
            options.layers = text(layers, "layers")
        c_log = None
        if function(log, "log") is not None:
            c_log = options.log = _callbacks.log(log)
        super().__init__("library", made(_abi.lib.duet_library_create, options), c_log)

    def report(self):
        """Every plugin that was considered, and why it was or was not taken, as a dict. Opens all plugins."""
        handle = self.handle
        return json.loads(_abi.sized(lambda *to: _abi.lib.duet_library_report(handle, *to)))

    def devices(self):
        """A list of Device, the best first."""
        n = _abi.c_uint32()
        _abi.check(_abi.lib.duet_device_count(self.handle, n))
        out = []
        for i in range(n.value):
            d = _abi.DeviceInfo()
            _abi.check(_abi.lib.duet_device_get(self.handle, i, d))
            out.append(Device(DEVICE_KINDS.get(d.kind, "other"), d.spec.decode(), d.name.decode(errors="replace"), d.plugin.decode(errors="replace"),
                              d.mem_total, d.mem_free, d.bytes_per_s))
        return out

    def file_info(self, file, *, strict=False, verify=False):
        """What a model or state file holds, as a dict."""
        handle, name, flags = self.handle, path(file, "file"), file_flags(strict, verify)
        return json.loads(_abi.sized(lambda *to: _abi.lib.duet_file_info(handle, name, flags, *to)))

    def convert(self, source, target, *, weights=None, overwrite=False, strict=False, verify=False, progress=None):
        """Rewrites a model as safetensors. weights: "f32", "bf16", "f16", "q8", "q4"; None = as stored. progress(done, total) in bytes."""
        callbacks = _callbacks.Callbacks()
        options = _abi.ConvertOptions(weights=choice(weights, DTYPES, "weights"), overwrite=bool(overwrite), flags=file_flags(strict, verify),
                                      progress=_callbacks.progress(callbacks, function(progress, "progress")))
        callbacks.check(_abi.lib.duet_file_convert(self.handle, path(source, "source"), path(target, "target"), options))

    def init(self, target, *, n_layer, n_embd, n_vocab, head_size=0, weights="f32", overwrite=False, seed=0):
        """Writes a fresh model with the official initialisation. head_size: 0 = 64."""
        options = _abi.InitOptions(n_layer=unsigned(n_layer, "n_layer"), n_embd=unsigned(n_embd, "n_embd"), n_vocab=unsigned(n_vocab, "n_vocab"),
                                   head_size=unsigned(head_size, "head_size"), weights=choice(weights, DTYPES, "weights"), overwrite=bool(overwrite),
                                   seed=unsigned(seed, "seed", 64))
        _abi.check(_abi.lib.duet_file_init(self.handle, path(target, "target"), options))

    def load(self, file, *, weights=None, device=None, strict=False, verify=False, progress=None):
        """A Model from a .pth, a .safetensors or a folder.

        weights: dtype of the matrices on the device, "f32", "bf16", "f16", "q8", "q4"; None = as stored.
        device: "cpu", "cuda:1"; None = DUET_BACKEND, else the best device that can run the model.
        progress(done, total): bytes.
        """
        handle, name = self.handle, path(file, "file")
        return self._model(lambda options, out: _abi.lib.duet_model_load(handle, name, options, out), weights, device, file_flags(strict, verify), progress)

    def random(self, shape, *, seed=0, relu2=0.0, weights=None, device=None, progress=None):
        """A Model of random weights for measuring speed. shape: "0.1b" "0.4b" "1.5b" "2.9b" "7.2b"."""
        handle = self.handle
        random = _abi.RandomOptions(shape=text(shape, "shape"), relu2=relu2, seed=unsigned(seed, "seed", 64))
        return self._model(lambda options, out: _abi.lib.duet_model_random(handle, random, options, out), weights, device, 0, progress)

    def _model(self, create, weights, device, flags, progress):
        callbacks = _callbacks.Callbacks()
        options = model_options(weights, device, flags, _callbacks.progress(callbacks, function(progress, "progress")))
        out = _abi.c_void_p()
        callbacks.check(create(options, out))
        return Model(out.value, self._log)

    def tokenizer(self, file=None):
        """A Tokenizer from a vocabulary in World format; None = the World vocabulary that ships with Duet."""
        return Tokenizer(made(_abi.lib.duet_tokenizer_load, self.handle, None if file is None else path(file, "file")))
