"""Generation: the loop of the library, with callbacks or as an iterator."""

import ctypes
import dataclasses
import queue
import threading
import weakref

from . import _abi, _arguments
from ._arguments import function, unsigned
from ._callbacks import Callbacks
from ._errors import Status

FINISHES = {0: "length", 1: "stop token", 2: "stop text", 3: "callback"}


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
    finish: str  # "length", "stop token", "stop text", "callback", "cancelled"
    n_prompt: int  # tokens read
    n_new: int  # tokens drawn, a stop token included
    prompt_s: float  # seconds
    new_s: float
    tokens: list  # drawn, without a stop token. The slot has read all of them but the last, if no stop token came
    text: str  # of these tokens, up to a stop text; "" without a tokenizer


def generate(session, state, sampler, prompt, slot, max_tokens, tokenizer, stops, stop_texts, on_token, on_text, cancel):
    """duet_generate on the handle of a session; see Session.generate."""
    function(on_token, "on_token"), function(on_text, "on_text")
    if on_text is not None and tokenizer is None:
        raise ValueError("on_text needs a tokenizer")
    if isinstance(stop_texts, str):
        raise TypeError("stop_texts must be a sequence of str, not a str")
    callbacks, tokens, pieces = Callbacks(), [], []

    def take_token(token):
        tokens.append(token)
        return on_token(token) if on_token is not None else None

    def take_text(data, n):
        text = ctypes.string_at(data, n).decode()
        pieces.append(text)
        return on_text(text) if on_text is not None else None

    prompt, stops = _arguments.tokens(prompt, "prompt"), _arguments.tokens(stops, "stops")
    c_stop_texts = [_arguments.text(t, "a stop text") for t in stop_texts]
    c_stop_texts = (ctypes.c_char_p * max(len(c_stop_texts), 1))(*c_stop_texts)
    options = _abi.GenerateOptions(
        max_tokens=unsigned(max_tokens, "max_tokens"), stops=stops.ctypes.data, n_stops=stops.size, stop_texts=c_stop_texts, n_stop_texts=len(stop_texts),
        on_token=_abi.TokenFunction(lambda _, token: callbacks.run(take_token, token)))
    if tokenizer is not None:
        options.tokenizer = tokenizer.handle
        options.on_text = _abi.TextFunction(lambda _, data, n: callbacks.run(take_text, data, n))
    if cancel is not None:
        options.cancel = ctypes.pointer(cancel._flag)
    result = _abi.GenerateResult()
    status = _abi.lib.duet_generate(session, state.handle, unsigned(slot, "slot"), sampler.handle, prompt.ctypes.data, prompt.size, options, result)
    cancelled = status == Status.CANCELLED
    callbacks.check(0 if cancelled else status)
    finish = "cancelled" if cancelled else FINISHES.get(result.finish, str(result.finish))
    return GenerateResult(finish, result.n_prompt, result.n_new, result.prompt_s, result.new_s, tokens, "".join(pieces))


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
