"""RWKV-7 in two modes: Python on Duet's C interface, by ctypes and NumPy.

    import duet

    with duet.Library() as library, library.load("stories-7m.pth") as model:
        tokenizer, state, session = model.tokenizer(), model.state(), model.session()
        prompt = [0, *tokenizer.encode("Once upon a time")]  # token 0 begins a text
        for piece in session.stream(state, duet.Sampler(seed=1), prompt, tokenizer=tokenizer):
            print(piece, end="", flush=True)

Rules that hold for every function, so that they are not repeated below:

- A call that fails raises ``duet.Error`` with the status and the library's sentence; arguments of a wrong type or shape
  raise ``TypeError`` or ``ValueError`` before the library is called. Nothing has changed then, unless duet.h says so.
- Objects are context managers with ``close()``, and close themselves when they are collected, in any order: what is still
  needed stays alive. A call on a closed object raises ``Error`` with ``Status.HANDLE``. Closing twice is fine.
- Threads: Library, Model and Tokenizer may be used from any threads at once. State, Session and Sampler: one call at a time;
  a second caller, or a call from inside the object's own callback, gets ``Error`` with ``Status.BUSY``. Calls release the GIL.
- An exception in a callback stops the call and is raised again by it. A callback stops the call by returning ``False``.
- Tokens go in as sequences or arrays of integers and are copied (4 bytes each). Numbers go in as float32 arrays, without a
  copy when they are contiguous, and come out as float32 arrays. Shapes: V vocabulary, C width, L layers, H heads of N channels.
"""

from ._errors import Error, Status
from ._version import __version__
from .generation import Cancel, GenerateResult, Prompt, Stream
from .library import Device, Library, version
from .model import Model, ModelInfo
from .sampler import Sampler
from .session import Session
from .state import State, StateArrays
from .tokenizer import Tokenizer

__all__ = ["Cancel", "Device", "Error", "GenerateResult", "Library", "Model", "ModelInfo", "Prompt", "Sampler", "Session", "State", "StateArrays",
           "Status", "Stream", "Tokenizer", "__version__", "version"]
