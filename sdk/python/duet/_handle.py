"""Owners of the library's objects."""

import weakref

from . import _abi
from ._errors import Error, Status


def _free(free, pointer, log):
    """``log`` is held until the object is gone."""
    free(pointer)


class Handle:
    """Owns one object of the library. A context manager; collected objects are freed, and what is open at exit."""

    def __init__(self, kind, pointer, log=None):
        self._kind = kind
        self._pointer = pointer
        self._log = log  # the library may log until the last object made from it is gone
        self._finalizer = weakref.finalize(self, _free, getattr(_abi.lib, f"duet_{kind}_free"), pointer, log)

    @property
    def handle(self):
        """The handle, for calls of duet.h by ctypes."""
        if not self._finalizer.alive:
            raise Error(Status.HANDLE, f"the {self._kind} is closed")
        return self._pointer

    @property
    def closed(self):
        """Whether close() was called."""
        return not self._finalizer.alive

    def close(self):
        """Frees the object. Others that need it keep what they need. Twice is fine."""
        self._finalizer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def made(create, *arguments):
    """The handle that ``create(*arguments, &handle)`` returns."""
    out = _abi.c_void_p()
    _abi.check(create(*arguments, out))
    return out.value
