"""Wrong types, shapes and numbers are refused before the library is called, or by it; what fits is taken without a copy."""

import unittest

import numpy
from support import TINY, TinyTest

import duet
from duet import _arguments


class ArgumentsTest(TinyTest):
    def test_tokens(self):
        for good in ([1, 2], (1, 2), range(1, 3), numpy.array([1, 2]), numpy.array([1, 2], numpy.uint8), numpy.array([1, 0, 2, 0], ">i4")[::2]):
            self.assertEqual(_arguments.tokens(good).tolist(), [1, 2])
        for wrong in ([1.0, 2.0], numpy.array([1, 2], numpy.float32), [True, False], ["1"], numpy.empty(0), [1 << 70]):
            with self.subTest(wrong=wrong), self.assertRaisesRegex(TypeError, "tokens must be integers"):
                self.session.forward(self.state, wrong)
        for wrong in ([[1, 2]], 3, None, "12"):
            with self.subTest(wrong=wrong), self.assertRaisesRegex(ValueError, "tokens must have one dimension"):
                self.session.forward(self.state, wrong)
        for wrong in ([1 << 31], [-(1 << 31) - 1], numpy.array([1 << 63], numpy.uint64)):
            with self.subTest(wrong=wrong), self.assertRaisesRegex(ValueError, "32 bits"):
                self.session.forward(self.state, wrong)
        self.refused(duet.Status.INVALID, "token 256 at position 1", self.session.forward, self.state, [1, 256])
        self.refused(duet.Status.INVALID, "token -1", self.session.forward, self.state, [-1])

    def test_arrays_of_a_state(self):
        good = self.state.get()
        for name, array in good._asdict().items():
            with self.assertRaisesRegex(TypeError, f"{name} must be float32, not float64"):
                self.state.set(**{name: array.astype(numpy.float64)})
            for shape in ((-1,), (1, *array.shape), array.shape[::-1]):
                with self.assertRaisesRegex(ValueError, f"{name} has the shape"):
                    self.state.set(**{name: array.reshape(shape) if shape != array.shape[::-1] else array.T[:1]})
        nan = good.att_x.copy()
        nan[0, 0] = numpy.nan
        self.refused(duet.Status.NUMERIC, "att_x", self.state.set, att_x=nan)
        strided = numpy.arange(6 * 128, dtype=numpy.float32).reshape(6, 128)[::2]
        self.state.set(att_x=strided)
        numpy.testing.assert_array_equal(self.state.get().att_x, strided)
        self.assertIs(_arguments.floats(good.att_x, (3, 128), "x"), good.att_x)  # no copy

    def test_logits_of_a_sampler(self):
        with self.assertRaisesRegex(TypeError, "float32"):
            self.sampler.pick(numpy.zeros(4))
        with self.assertRaisesRegex(ValueError, "shape"):
            self.sampler.pick(numpy.zeros((1, 4), numpy.float32))
        self.assertIn(self.sampler.pick([0.0, 1.0]), (0, 1))
        self.refused(duet.Status.INVALID, "0 logits", self.sampler.pick, [])
        self.refused(duet.Status.NUMERIC, "token 1", self.sampler.probs, [0.0, numpy.nan])

    def test_numbers_are_never_cut(self):
        for slot in (-1, 1 << 32):
            with self.assertRaisesRegex(ValueError, f"slot is {slot}"):
                self.state.reset(slot)
            with self.assertRaisesRegex(ValueError, f"slot is {slot}"):
                self.session.forward(self.state, [1], slot=slot)
        with self.assertRaises(TypeError):
            self.state.reset(1.0)
        self.refused(duet.Status.INVALID, "slot 2", self.state.reset, 2)
        for make in (lambda: duet.Library(n_threads=1 << 32), lambda: duet.Sampler(seed=1 << 64), lambda: duet.Sampler(top_k=-1), lambda: self.model.state(-1),
                     lambda: self.sampler.accept(1 << 31), lambda: duet.Sampler(bias={-1: 0.0})):
            with self.assertRaisesRegex(ValueError, "must be from 0"):
                make()
        self.refused(duet.Status.LIMIT, "n_slots", self.model.state, 0)
        with self.assertRaisesRegex(ValueError, "2 slots for 1 sequences"):
            self.session.forward_batch(self.state, [[1]], slots=[0, 1])
        self.refused(duet.Status.INVALID, "twice", self.session.forward_batch, self.state, [[1], [2]], slots=[0, 0])

    def test_names(self):
        for call in (lambda: self.library.load("a\0b"), lambda: self.library.load(TINY, device="c\0pu")):
            with self.assertRaisesRegex(ValueError, "NUL"):
                call()
        for call in (lambda: self.model.session("serial"), lambda: self.library.load(TINY, weights="f64"), lambda: duet.Library(log_level="loud"),
                     lambda: self.session.forward(self.state, [1], rows="some"), lambda: self.session.output("nothing")):
            with self.assertRaisesRegex(ValueError, "it is one of"):
                call()
        self.refused(duet.Status.NOT_FOUND, "no such file", self.library.load, "no such file")
        self.refused(duet.Status.NOT_FOUND, "tpu", self.library.load, TINY, device="tpu")
        self.refused(duet.Status.NOT_FOUND, "there is no layer nonsense", duet.Library(layers="nonsense").load, TINY)
        self.refused(duet.Status.INVALID, "9b", self.library.random, "9b")
        self.refused(duet.Status.INVALID, "temperature", duet.Sampler, temperature=-1)
        with self.assertRaisesRegex(TypeError, "callable"):
            self.library.load(TINY, progress=3)
        with self.assertRaisesRegex(TypeError, "a str or bytes"):
            self.library.tokenizer().encode(3)
        with self.assertRaisesRegex(TypeError, "not a str"):
            self.session.generate(self.state, self.sampler, [0], stop_texts="end")
        with self.assertRaisesRegex(ValueError, "needs a tokenizer"):
            self.session.generate(self.state, self.sampler, [0], on_text=print)
        self.refused(duet.Status.INVALID, "empty", self.session.generate, self.state, self.sampler, [])


if __name__ == "__main__":
    unittest.main()
