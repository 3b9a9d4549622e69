"""States: the whole memory of n sequences."""

from typing import NamedTuple

import numpy

from . import _abi
from ._arguments import floats, path, unsigned
from ._handle import Handle


class StateArrays(NamedTuple):
    """One sequence in the canonical form, float32."""

    att_x: numpy.ndarray  # [L,C]
    wkv: numpy.ndarray  # [L,H,N,N], value row, key column
    ffn_x: numpy.ndarray  # [L,C]


class State(Handle):
    """Made by Model.state. One call at a time. Slots are numbered from 0; each holds one sequence."""

    def __init__(self, pointer, log, info, n_slots):
        super().__init__("state", pointer, log)
        self.n_slots = n_slots
        x = (info.n_layer, info.n_embd)
        self._shapes = StateArrays(x, (info.n_layer, info.n_head, info.head_size, info.head_size), x)

    def reset(self, slot=0):
        """Makes a slot fresh: zero, or the model's tuned state if it has one."""
        _abi.check(_abi.lib.duet_state_reset(self.handle, unsigned(slot, "slot")))

    def copy_from(self, source, source_slot=0, slot=0):
        """Forks or moves a slot, also from a State of another Model object, device or dtype of one shape."""
        _abi.check(_abi.lib.duet_state_copy(self.handle, unsigned(slot, "slot"), source.handle, unsigned(source_slot, "source_slot")))

    def get(self, slot=0):
        """StateArrays of new arrays."""
        out = StateArrays(*(numpy.empty(shape, numpy.float32) for shape in self._shapes))
        _abi.check(_abi.lib.duet_state_get(self.handle, unsigned(slot, "slot"), *(a.ctypes.data for a in out)))
        return out

    def set(self, slot=0, *, att_x=None, wkv=None, ffn_x=None):
        """Sets the parts that are given. Refuses numbers that are not finite. Contiguous float32 arrays are not copied."""
        parts = [None if given is None else floats(given, shape, name)
                 for given, shape, name in zip((att_x, wkv, ffn_x), self._shapes, StateArrays._fields)]
        _abi.check(_abi.lib.duet_state_set(self.handle, unsigned(slot, "slot"), *(None if p is None else p.ctypes.data for p in parts)))

    def save(self, slot=0):
        """A safetensors file, as bytes."""
        handle, slot = self.handle, unsigned(slot, "slot")
        return _abi.sized(lambda *to: _abi.lib.duet_state_save(handle, slot, *to))

    def load(self, data, slot=0):
        """From the bytes of a file, which are not copied. A failed load leaves the slot as it was."""
        data = numpy.frombuffer(data, numpy.uint8) if len(data) else numpy.empty(0, numpy.uint8)
        _abi.check(_abi.lib.duet_state_load(self.handle, unsigned(slot, "slot"), data.ctypes.data, data.size))

    def save_file(self, file, slot=0):
        """Writes a safetensors file, atomically."""
        _abi.check(_abi.lib.duet_state_save_file(self.handle, unsigned(slot, "slot"), path(file, "file")))

    def load_file(self, file, slot=0):
        """A failed load leaves the slot as it was."""
        _abi.check(_abi.lib.duet_state_load_file(self.handle, unsigned(slot, "slot"), path(file, "file")))
