"""Models: immutable weights on one device."""

import dataclasses

from . import _abi
from ._arguments import choice, path, text, unsigned
from ._handle import Handle, made
from .session import MODES, Session
from .state import State
from .tokenizer import Tokenizer

DTYPES = {None: 0, "f32": 1, "f16": 2, "bf16": 3, "q8": 16, "q4": 17}
DTYPE_NAMES = {code: name for name, code in DTYPES.items()}


def model_options(weights, device, flags, progress):
    options = _abi.ModelOptions(weights=choice(weights, DTYPES, "weights"), flags=flags, progress=progress)
    if device is not None:
        options.device = text(device, "device")
    return options


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    n_ffn: int
    n_vocab: int
    rank_w: int
    rank_a: int
    rank_v: int
    rank_g: int
    weights: str  # "f32", "f16", "bf16", "q8", "q4"
    n_params: int
    weight_bytes: int  # in memory, of all that a model needs
    bytes_per_token: int  # weights read to generate one token of one sequence
    state_bytes: int  # of one sequence in the canonical form
    device: str  # "cpu:0"


class Model(Handle):
    """Made by Library.load and Library.random. Any thread."""

    def __init__(self, pointer, log):
        super().__init__("model", pointer, log)
        info = _abi.ModelInfo()
        _abi.check(_abi.lib.duet_model_get(pointer, info))
        values = {field.name: getattr(info, field.name) for field in dataclasses.fields(ModelInfo)}
        self.info = ModelInfo(**{**values, "weights": DTYPE_NAMES.get(info.weights, str(info.weights)), "device": info.device.decode()})

    def save(self, file):
        """Writes the weights as safetensors, atomically, over an existing file."""
        _abi.check(_abi.lib.duet_model_save(self.handle, path(file, "file")))

    def tokenizer(self):
        """The Tokenizer of vocab.txt beside the model, else the World vocabulary where it fits."""
        return Tokenizer(made(_abi.lib.duet_tokenizer_for_model, self.handle))

    def state(self, n_slots=1, *, wkv=None):
        """A fresh State of n_slots sequences. wkv: dtype of the matrices on the device; None = f32."""
        options = _abi.StateOptions(wkv=choice(wkv, DTYPES, "wkv"))
        n_slots = unsigned(n_slots, "n_slots")
        return State(made(_abi.lib.duet_state_create, self.handle, n_slots, options), self._log, self.info, n_slots)

    def session(self, mode="auto", *, max_tokens=0):
        """A Session. mode: "auto" (parallel for runs of tokens, recurrent for single ones), "recurrent" or "parallel".
        max_tokens: that one pass computes at once; 0 = 512."""
        options = _abi.SessionOptions(mode=choice(mode, MODES, "mode"), max_tokens=unsigned(max_tokens, "max_tokens"))
        return Session(made(_abi.lib.duet_session_create, self.handle, options), self._log)
