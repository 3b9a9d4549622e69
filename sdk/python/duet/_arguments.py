"""Checks of what callers hand over. ctypes cuts integers and strings silently; here they are refused."""

import operator
import os

import numpy

INT32 = numpy.iinfo(numpy.int32)


def unsigned(value, name, bits=32):
    """An int of that many bits, as ctypes would take it."""
    value = operator.index(value)
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} is {value}; it must be from 0 to {(1 << bits) - 1}")
    return value


def path(value, name):
    """A file name as the system's bytes."""
    return _no_nul(os.fsencode(value), name)


def text(value, name):
    """A str as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    return _no_nul(value.encode(), name)


def _no_nul(value, name):
    if b"\0" in value:
        raise ValueError(f"{name} holds a NUL character; take it out")
    return value


def choice(value, choices, name):
    """The code of a name in a dict."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        raise ValueError(f"{name} is {value!r}; it is one of {', '.join(map(repr, choices))}") from None


def function(value, name):
    """A callable, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable, not {type(value).__name__}")
    return value


def tokens(values, name="tokens"):
    """A one-dimensional int32 array of its own: another thread may write to the caller's array while the library reads."""
    given = numpy.asarray(values)
    if given.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not {given.ndim}")
    if given.size == 0 and not isinstance(values, numpy.ndarray):
        return numpy.empty(0, numpy.int32)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {given.dtype}; convert them with .astype(numpy.int32)")
    if given.size and not (INT32.min <= given.min() and given.max() <= INT32.max):
        raise ValueError(f"{name} must fit 32 bits")
    return numpy.array(given, numpy.int32, order="C")


def floats(values, shape, name):
    """A contiguous float32 array of that shape; the caller's own memory where it can be."""
    given = values if isinstance(values, numpy.ndarray) else numpy.asarray(values, numpy.float32)
    if given.dtype != numpy.float32:
        raise TypeError(f"{name} must be float32, not {given.dtype}; convert it with .astype(numpy.float32)")
    if len(given.shape) != len(shape) or any(want is not None and got != want for got, want in zip(given.shape, shape)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} has the shape {given.shape}; ({wanted}) is needed")
    return numpy.require(given, numpy.float32, ["C", "ALIGNED"])
