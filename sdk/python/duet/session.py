"""Sessions: the two modes."""

import contextlib
import ctypes
import threading
import weakref

import numpy

from . import _abi, _arguments
from ._arguments import choice, unsigned
from ._errors import Error, Status
from ._handle import Handle
from .generation import Prompt, Stream, generate, generate_batch

MODES = {"auto": 0, "recurrent": 1, "parallel": 2}
ROWS = {"last": 0, "all": 1}
OUTPUTS = {"logits": 0, "hidden": 1, "v_first": 2}
NO_LOGITS, V_FIRST, HIDDEN = 2, 4, 8  # DUET_OUT_*


class Session(Handle):
    """Scratch memory, a queue and a mode. Made by Model.session. One call at a time.

    Outputs are float32 arrays. They are copies, unless ``copy=False`` asks for a read-only view of the session's own memory:
    while that array lives (or another made from it without a copy), calls that would overwrite or free it raise BufferError,
    as a bytearray does while a memoryview of it lives. So a view never changes and never dangles.
    """

    def __init__(self, pointer, log):
        super().__init__("session", pointer, log)
        self._lock = threading.Lock()
        self._views = []  # weak references to the memory of outputs that were not copied

    def forward(self, state, tokens, *, slot=0, rows="last", logits=True, hidden=False, v_first=False, copy=True):
        """Runs one sequence and advances its slot. Returns the logits [1,V] ([0,V] without tokens), or None if logits is false.

        rows: "last" = one row per sequence that has tokens, "all" = one per token; for logits and hidden.
        hidden: keep the last hidden state too, after ln_out. v_first: keep layer 0's value vectors too. See output().
        """
        return self.forward_batch(state, [tokens], slots=[slot], rows=rows, logits=logits, hidden=hidden, v_first=v_first, copy=copy)

    def forward_batch(self, state, sequences, *, slots=None, rows="last", logits=True, hidden=False, v_first=False, copy=True):
        """Runs a list of sequences, each on its slot of the state: those of ``slots``, None = 0, 1, 2, ... Rows are in batch order."""
        sequences = [_arguments.tokens(s, "tokens") for s in sequences]
        packed = numpy.concatenate(sequences) if sequences else numpy.empty(0, numpy.int32)
        lengths = numpy.array([unsigned(s.size, "tokens") for s in sequences], numpy.uint32)
        slots = numpy.array([unsigned(s, "slot") for s in (range(len(sequences)) if slots is None else slots)], numpy.uint32)
        if slots.size != lengths.size:
            raise ValueError(f"{slots.size} slots for {lengths.size} sequences")
        outputs = choice(rows, ROWS, "rows") | (0 if logits else NO_LOGITS) | (HIDDEN if hidden else 0) | (V_FIRST if v_first else 0)
        batch = _abi.Batch(n_seqs=lengths.size, tokens=packed.ctypes.data, lengths=lengths.ctypes.data, slots=slots.ctypes.data, outputs=outputs)
        with self._computing() as session:
            _abi.check(_abi.lib.duet_forward(session, state.handle, batch))
            return self._rows(session, OUTPUTS["logits"], copy) if logits else None

    def output(self, name, *, copy=True):
        """Rows of "logits" [rows,V], "hidden" [rows,C] or "v_first" [tokens,C] of the last forward; none if not asked for there."""
        which = choice(name, OUTPUTS, "name")
        with self._exclusive():
            return self._rows(self.handle, which, copy)

    def score(self, state, tokens, *, slot=0):
        """Float64 [n-1]: -log p(tokens[t+1] | state, tokens[0..t]). Advances the slot by all n tokens."""
        tokens = _arguments.tokens(tokens)
        out = numpy.empty(max(tokens.size - 1, 0), numpy.float64)
        with self._computing() as session:
            _abi.check(_abi.lib.duet_score(session, state.handle, unsigned(slot, "slot"), tokens.ctypes.data, tokens.size, out.ctypes.data))
        return out

    def generate(self, state, sampler, prompt, *, slot=0, max_tokens=256, tokenizer=None, stops=(0,), stop_texts=(), on_token=None, on_text=None, cancel=None):
        """Reads the prompt in the session's mode, then draws tokens recurrently. Returns a GenerateResult.

        max_tokens: new tokens. tokenizer: needed for text. stops: tokens that end it. stop_texts: strings that end it, of
        which no part is shown. on_token(token), on_text(text): return False to stop. cancel: a Cancel.
        The slot ends after the last token but one drawn: feed the last to go on.
        """
        with self._computing() as session:
            return generate(session, state, Prompt(prompt, sampler, slot, max_tokens, tokenizer, stops, stop_texts, on_token, on_text, cancel))

    def generate_batch(self, state, prompts):
        """generate for many sequences at once: a list of Prompt gives a list of GenerateResult.

        Prompts are read together, then a token of every sequence is drawn in each step. One that ends drops out, and the
        others go on. One that is cancelled, or has no logits to draw from (its slot is then undefined), has the finish
        "cancelled" or "numeric", and nothing is raised. Callbacks of one sequence come in order, those of several are mixed;
        what one raises stops all.
        """
        with self._computing() as session:
            return generate_batch(session, state, prompts)

    def stream(self, state, sampler, prompt, *, slot=0, max_tokens=256, tokenizer=None, stops=(0,), stop_texts=()):
        """As generate, but an iterator: a Stream of pieces of text, or of tokens if there is no tokenizer."""
        return Stream(lambda on_token, on_text, cancel: self.generate(
            state, sampler, prompt, slot=slot, max_tokens=max_tokens, tokenizer=tokenizer, stops=stops, stop_texts=stop_texts,
            on_token=on_token, on_text=on_text, cancel=cancel), is_text=tokenizer is not None)

    def close(self):
        """Frees the session. BufferError while an output that was not copied lives."""
        with self._exclusive():
            self._check_views()
            super().close()

    @contextlib.contextmanager
    def _exclusive(self):
        """The library has such a lock too, but rows are read after a call has returned."""
        if not self._lock.acquire(blocking=False):
            raise Error(Status.BUSY, "the session is in use by another call")
        try:
            yield
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _computing(self):
        """For calls that overwrite the outputs: gives the handle."""
        with self._exclusive():
            self._check_views()
            yield self.handle

    def _check_views(self):
        self._views = [view for view in self._views if view() is not None]
        if self._views:
            raise BufferError("an output of the session that was not copied is still in use; drop it first, or ask for a copy")

    def _rows(self, session, which, copy):
        data, n_rows, width = ctypes.c_void_p(), ctypes.c_uint32(), ctypes.c_uint32()
        _abi.check(_abi.lib.duet_session_outputs(session, which, data, n_rows, width))
        shape = (n_rows.value, width.value)
        if 0 in shape:
            return numpy.empty(shape, numpy.float32)
        memory = (ctypes.c_float * (shape[0] * shape[1])).from_address(data.value)
        rows = numpy.frombuffer(memoryview(memory).toreadonly(), numpy.float32).reshape(shape)
        if copy:
            return rows.copy()
        memory.session = self  # keeps it open
        self._views.append(weakref.ref(memory))
        return rows
