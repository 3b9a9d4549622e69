"""Text to tokens and back."""

import ctypes

import numpy

from . import _abi, _arguments
from ._handle import Handle


class Tokenizer(Handle):
    """Made by Library.tokenizer and Model.tokenizer. Any thread. Token 0 ends a text, and begins one; text never becomes token 0."""

    def __init__(self, pointer):
        super().__init__("tokenizer", pointer)

    def __len__(self):
        """The largest id + 1."""
        n = ctypes.c_uint32()
        _abi.check(_abi.lib.duet_tokenizer_size(self.handle, n))
        return n.value

    def encode(self, text):
        """An int32 array. text: str, or bytes that need not be UTF-8."""
        if isinstance(text, str):
            text = text.encode()
        elif not isinstance(text, bytes):
            raise TypeError(f"text must be a str or bytes, not {type(text).__name__}")
        out = numpy.empty(len(text), numpy.int32)  # a token has at least one byte
        n = ctypes.c_size_t()
        _abi.check(_abi.lib.duet_tokenizer_encode(self.handle, text, len(text), out.ctypes.data, out.size, n))
        return out[: n.value].copy()

    def decode_bytes(self, tokens):
        """The bytes of the tokens: single tokens may hold parts of a character."""
        handle, tokens = self.handle, _arguments.tokens(tokens)
        return _abi.sized(lambda *to: _abi.lib.duet_tokenizer_decode(handle, tokens.ctypes.data, tokens.size, *to))

    def decode(self, tokens):
        """The text of the tokens; what is not UTF-8 becomes U+FFFD."""
        return self.decode_bytes(tokens).decode(errors="replace")
