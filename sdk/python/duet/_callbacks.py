"""Python functions as C callbacks that no exception leaves."""

from . import _abi
from ._errors import Status


class Callbacks:
    """Keeps what the callbacks of one call raised, so that the call can raise it again."""

    def __init__(self):
        self.raised = None

    def run(self, function, *arguments):
        """A status. Once a function raised, neither it nor its fellows are called again."""
        if self.raised is not None:
            return Status.CANCELLED
        try:
            return Status.CANCELLED if function(*arguments) is False else Status.OK
        except BaseException as raised:  # KeyboardInterrupt too
            self.raised = raised
            return Status.CANCELLED

    def check(self, status):
        """After the C call: first what a function raised, then what the call says."""
        if self.raised is not None:
            try:
                raise self.raised
            finally:
                self.raised = None  # its traceback holds this frame, which holds it
        _abi.check(status)


def progress(callbacks, function):
    """A C callback for a ``progress(done, total)``, or NULL."""
    if function is None:
        return _abi.ProgressFunction()
    return _abi.ProgressFunction(lambda _, done, total: callbacks.run(function, done, total))


def log(function):
    """A C callback for a ``log(level, message)``. What it raises goes to sys.unraisablehook: no call could raise it."""

    def show(_, level, message):
        function(level, message.decode(errors="replace"))

    return _abi.LogFunction(show)
