"""Statuses of the library, and the exception that carries them."""

import enum


class Status(enum.IntEnum):
    """Codes of duet_types.h. A newer library may return others: compare with OK, not with a list."""

    OK = 0
    INVALID = -1
    NOT_FOUND = -2
    UNSUPPORTED = -3
    MEMORY = -4
    FORMAT = -5
    ABI = -6
    DEVICE = -7
    SMALL = -8
    CANCELLED = -9
    IO = -10
    BUSY = -11
    HANDLE = -12
    LIMIT = -13
    NUMERIC = -14
    EXISTS = -15
    INTERNAL = -100


class Error(Exception):
    """A call that failed. ``status`` is a Status, or an int that this package does not know; the text is the library's sentence."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        try:
            self.status = Status(status)
        except ValueError:
            self.status = int(status)
