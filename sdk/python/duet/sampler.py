"""From logits to the next token."""

import ctypes

import numpy

from . import _abi
from ._arguments import INT32, floats, unsigned
from ._handle import Handle, made


class Sampler(Handle):
    """Penalties and bias, softmax, top-p, top-k, min-p, power 1/temperature, normalise, draw. One call at a time.

    What is None keeps the library's default: temperature 1, no cuts, no penalties, decay 0.996. temperature 0 = greedy.
    bias: a dict of token and what is added to its logit; -inf bans it.
    tokenizer: digits and blanks then count 0 in the penalties.
    The draw depends on (seed, sequence, number of tokens drawn) alone.
    """

    def __init__(self, *, temperature=None, top_p=None, top_k=None, min_p=None, presence=None, frequency=None, decay=None, seed=0, sequence=0, bias=None,
                 tokenizer=None):
        options = _abi.SamplerOptions()
        _abi.check(_abi.lib.duet_sampler_options_default(options))
        options.seed, options.sequence = unsigned(seed, "seed", 64), unsigned(sequence, "sequence", 64)
        if top_k is not None:
            options.top_k = unsigned(top_k, "top_k")
        numbers = dict(temperature=temperature, top_p=top_p, min_p=min_p, presence=presence, frequency=frequency, decay=decay)
        for name, value in numbers.items():
            if value is not None:
                setattr(options, name, value)
        tokens = numpy.array([_token(t) for t in bias or ()], numpy.int32)
        values = numpy.array(list((bias or {}).values()), numpy.float32)
        options.n_bias, options.bias_tokens, options.bias = tokens.size, tokens.ctypes.data, values.ctypes.data
        if tokenizer is not None:
            options.tokenizer = tokenizer.handle
        super().__init__("sampler", made(_abi.lib.duet_sampler_create, options))

    def probs(self, logits):
        """[V] -> [V]: what pick would draw from."""
        logits = floats(logits, (None,), "logits")
        out = numpy.empty_like(logits)
        _abi.check(_abi.lib.duet_sampler_probs(self.handle, logits.ctypes.data, unsigned(logits.size, "logits"), out.ctypes.data))
        return out

    def pick(self, logits):
        """Draws a token from logits [V], and accepts it."""
        logits = floats(logits, (None,), "logits")
        token = ctypes.c_int32()
        _abi.check(_abi.lib.duet_sampler_pick(self.handle, logits.ctypes.data, unsigned(logits.size, "logits"), token))
        return token.value

    def accept(self, token):
        """Counts a token that was chosen elsewhere."""
        _abi.check(_abi.lib.duet_sampler_accept(self.handle, _token(token)))

    def reset(self):
        """As freshly made."""
        _abi.check(_abi.lib.duet_sampler_reset(self.handle))


def _token(token):
    return unsigned(token, "token", INT32.bits - 1)
