"""Generation: the loop of the library, with callbacks or as an iterator."""

import ctypes
import dataclasses
import queue
import threading
import weakref
from typing import Callable, Optional, Sequence

import numpy

from . import _abi, _arguments
from ._arguments import function, unsigned
from ._callbacks import Callbacks
from ._errors import Status
from .sampler import Sampler
from .tokenizer import Tokenizer

FINISHES = {0: "length", 1: "stop token", 2: "stop text", 3: "callback"}
OF_SEQUENCES = {Status.CANCELLED: "cancelled", Status.NUMERIC: "numeric"}  # what ends a sequence, but not the others of its batch


class Cancel:
    """Stops generations, from any thread or callback: their finish is then "cancelled"."""

    def __init__(self):
        self._flag = ctypes.c_int32(0)

    def set(self):
        self._flag.value = 1

    def clear(self):
        self._flag.value = 0

    def is_set(self):
        return self._flag.value != 0


@dataclasses.dataclass(frozen=True)
class GenerateResult:
    finish: str  # "length", "stop token", "stop text", "callback", "cancelled"; of generate_batch also "numeric": no logits to draw from
    n_prompt: int  # tokens read
    n_new: int  # tokens drawn, a stop token included
    prompt_s: float  # seconds; of prompts that are read together, until this one was
    new_s: float
    tokens: list  # drawn, without a stop token. The slot has read all of them but the last, if no stop token came
    text: str  # of these tokens, up to a stop text; "" without a tokenizer


@dataclasses.dataclass
class Prompt:
    """A sequence of Session.generate_batch; its options are those of Session.generate."""

    tokens: Sequence  # 1 or more
    sampler: Sampler  # its own: no two sequences share one
    slot: Optional[int] = None  # its own; None = its place in the batch
    max_tokens: int = 256
    tokenizer: Optional[Tokenizer] = None
    stops: Sequence = (0,)
    stop_texts: Sequence = ()
    on_token: Optional[Callable] = None
    on_text: Optional[Callable] = None
    cancel: Optional[Cancel] = None


class _Sequence:
    """One sequence: its arguments in C, and what its callbacks collect."""

    def __init__(self, prompt, callbacks):
        function(prompt.on_token, "on_token"), function(prompt.on_text, "on_text")
        if prompt.on_text is not None and prompt.tokenizer is None:
            raise ValueError("on_text needs a tokenizer")
        if isinstance(prompt.stop_texts, str):
            raise TypeError("stop_texts must be a sequence of str, not a str")
        tokens, pieces = [], []

        def take_token(token):
            tokens.append(token)
            return prompt.on_token(token) if prompt.on_token is not None else None

        def take_text(data, n):
            text = ctypes.string_at(data, n).decode()
            pieces.append(text)
            return prompt.on_text(text) if prompt.on_text is not None else None

        self._tokens, self._pieces = tokens, pieces
        self.tokens, self._stops = _arguments.tokens(prompt.tokens, "prompt"), _arguments.tokens(prompt.stops, "stops")
        stop_texts = [_arguments.text(t, "a stop text") for t in prompt.stop_texts]
        self.options = _abi.GenerateOptions(
            max_tokens=unsigned(prompt.max_tokens, "max_tokens"), stops=self._stops.ctypes.data, n_stops=self._stops.size,
            stop_texts=(ctypes.c_char_p * max(len(stop_texts), 1))(*stop_texts), n_stop_texts=len(stop_texts),
            on_token=_abi.TokenFunction(lambda _, token: callbacks.run(take_token, token)))
        if prompt.tokenizer is not None:
            self.options.tokenizer = prompt.tokenizer.handle
            self.options.on_text = _abi.TextFunction(lambda _, data, n: callbacks.run(take_text, data, n))
        if prompt.cancel is not None:
            self.options.cancel = ctypes.pointer(prompt.cancel._flag)
        self.result = _abi.GenerateResult()

    def take(self, status):
        """A GenerateResult, when the call has ended."""
        r = self.result
        finish = OF_SEQUENCES.get(status) or FINISHES.get(r.finish, str(r.finish))
        return GenerateResult(finish, r.n_prompt, r.n_new, r.prompt_s, r.new_s, self._tokens, "".join(self._pieces))


def generate(session, state, prompt):
    """duet_generate on the handle of a session; see Session.generate."""
    callbacks = Callbacks()
    s = _Sequence(prompt, callbacks)
    status = _abi.lib.duet_generate(session, state.handle, unsigned(prompt.slot, "slot"), prompt.sampler.handle, s.tokens.ctypes.data, s.tokens.size,
                                    s.options, s.result)
    callbacks.check(0 if status == Status.CANCELLED else status)
    return s.take(status)


def generate_batch(session, state, prompts):
    """duet_generate_batch on the handle of a session; see Session.generate_batch."""
    callbacks, prompts = Callbacks(), list(prompts)
    sequences = [_Sequence(prompt, callbacks) for prompt in prompts]
    n = len(sequences)
    packed = numpy.concatenate([s.tokens for s in sequences]) if sequences else numpy.empty(0, numpy.int32)
    lengths = numpy.array([unsigned(s.tokens.size, "tokens") for s in sequences], numpy.uint32)
    slots = numpy.array([i if prompt.slot is None else unsigned(prompt.slot, "slot") for i, prompt in enumerate(prompts)], numpy.uint32)
    samplers = (ctypes.c_void_p * max(n, 1))(*(prompt.sampler.handle for prompt in prompts))
    options = (ctypes.c_void_p * max(n, 1))(*(ctypes.addressof(s.options) for s in sequences))
    results = (ctypes.c_void_p * max(n, 1))(*(ctypes.addressof(s.result) for s in sequences))
    call = _abi.Prompts(n_seqs=n, tokens=packed.ctypes.data, lengths=lengths.ctypes.data, slots=slots.ctypes.data, samplers=ctypes.addressof(samplers),
                        options=ctypes.addressof(options))
    status = _abi.lib.duet_generate_batch(session, state.handle, call, results)
    of_sequences = any(s.result.status in OF_SEQUENCES for s in sequences)  # then the others have results
    callbacks.check(0 if of_sequences else status)
    return [s.take(s.result.status) for s in sequences]


class Stream:
    """An iterator over a generation that stays in step with its consumer: nothing is drawn that was not asked for.

    The generation runs on a thread of its own, which waits while the consumer has a piece: until the end, or until close(),
    its session, state and sampler are busy. Iterating to the end, close(), leaving a ``with`` block, and being collected
    end it. What it raises, next() raises. To be iterated by one thread; cancel() from any.
    """

    def __init__(self, run, is_text):
        self._worker = _Worker(run, is_text)
        self._finalizer = weakref.finalize(self, self._worker.stop)

    def __iter__(self):
        return self

    def __next__(self):
        return self._worker.next()

    @property
    def result(self):
        """The GenerateResult, once the generation has ended; None before, and if it raised."""
        return self._worker.result

    def cancel(self):
        """Ends the generation soon: also while another thread waits in next(). The result's finish is then "cancelled"."""
        self._worker.cancel.set()

    def close(self):
        """Ends the generation and waits for it. The state is then where it was when the last piece came out."""
        self._finalizer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


_END = object()


class _Worker:
    """The generating thread, and the two queues of at most one element by which it and the consumer take turns.

    Knows nothing of its Stream, so that a Stream that nobody holds is collected. A daemon, because the interpreter waits
    for others before it runs finalizers; Stream's finalizer stops it before the interpreter goes."""

    def __init__(self, run, is_text):
        self.cancel, self.result = Cancel(), None
        self._pieces, self._turns = queue.SimpleQueue(), queue.SimpleQueue()
        self._raised = None
        self._ended = self._asked = False
        self._thread = threading.Thread(target=self._work, args=(run, is_text), name="duet stream", daemon=True)
        self._thread.start()

    def next(self):
        if self._ended:
            raise StopIteration
        if not self._asked:  # else an exception such as KeyboardInterrupt came before the piece did
            self._turns.put(True)
            self._asked = True
        piece = self._pieces.get()
        self._asked = False
        if piece is not _END:
            return piece
        self._ended = True
        self._thread.join()
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised
        raise StopIteration

    def stop(self):
        self._ended = True
        self.cancel.set()
        self._turns.put(False)
        if threading.current_thread() is not self._thread:  # a collector runs anywhere
            self._thread.join()

    def _work(self, run, is_text):
        try:
            if self._turns.get():
                self.result = run(None if is_text else self._show, self._show if is_text else None, self.cancel)
            else:
                self.result = GenerateResult("cancelled", 0, 0, 0.0, 0.0, [], "")
        except BaseException as raised:
            self._raised = raised
        self._pieces.put(_END)

    def _show(self, piece):
        self._pieces.put(piece)
        return self._turns.get()
