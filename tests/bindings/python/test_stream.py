"""Streams stay in step with their consumer, end however they are left, and raise what the generation raises."""

import gc
import threading
import unittest

import numpy
from support import TinyTest

import duet


class StreamTest(TinyTest):
    def stream(self, n=20, **named):
        return self.session.stream(self.state, duet.Sampler(seed=3), [0, 1], max_tokens=n, stops=[], **named)

    def tokens(self, n=20):
        return self.model.session().generate(self.model.state(), duet.Sampler(seed=3), [0, 1], max_tokens=n, stops=[]).tokens

    def test_tokens_and_text(self):
        want = self.tokens()
        stream = self.stream()
        self.assertIsNone(stream.result)
        self.assertEqual(list(stream), want)
        self.assertEqual(stream.result.tokens, want)
        self.assertEqual(stream.result.finish, "length")
        self.assertEqual(list(stream), [])
        self.state.reset()
        tokenizer = self.library.tokenizer()
        self.assertEqual("".join(self.stream(tokenizer=tokenizer)), tokenizer.decode(want))

    def test_nothing_is_drawn_that_was_not_asked_for(self):
        stream = self.stream()
        got = [next(stream) for _ in range(5)]
        stream.close()
        self.assertEqual(stream.result.finish, "callback")
        self.assertEqual(stream.result.tokens, got)
        other, session = self.model.state(), self.model.session()
        session.generate(other, duet.Sampler(seed=3), [0, 1], max_tokens=5, stops=[])
        numpy.testing.assert_array_equal(self.state.get().wkv, other.get().wkv)
        self.assertEqual(list(stream), [])

    def test_its_objects_are_busy_until_it_ends(self):
        with self.stream() as stream:
            next(stream)
            self.refused(duet.Status.BUSY, "in use", self.session.forward, self.state, [1])
            self.refused(duet.Status.BUSY, "in use", self.state.get)
            self.refused(duet.Status.BUSY, "in use", self.session.close)
        self.session.forward(self.state, [1])

    def test_left_in_every_way(self):
        threads = threading.active_count()
        self.stream().close()
        stream = self.stream()
        stream.close()
        self.assertEqual((stream.result.finish, stream.result.n_prompt), ("cancelled", 0))
        next(self.stream())  # collected at once
        for _ in self.stream():
            break
        gc.collect()
        stream = self.stream(10**9)
        next(stream)
        stream.cancel()
        self.assertLessEqual(len(list(stream)), 1)
        self.assertEqual(stream.result.finish, "cancelled")
        self.assertEqual(threading.active_count(), threads)
        self.session.forward(self.state, [1])

    def test_what_the_generation_raises_next_raises(self):
        for wrong, error in (([], duet.Error), ([1.5], TypeError), ([999], duet.Error)):
            stream = self.session.stream(self.state, self.sampler, wrong)
            with self.assertRaises(error):
                next(stream)
            self.assertEqual(list(stream), [])
            self.assertIsNone(stream.result)

    def test_an_interrupted_next_loses_nothing_and_stays_in_step(self):
        want = self.tokens()
        stream = self.stream()
        got = [next(stream)]
        stream._worker._pieces = InterruptedOnce(stream._worker._pieces)
        with self.assertRaises(KeyboardInterrupt):
            next(stream)
        got += [next(stream), next(stream)]
        self.assertEqual(got, want[:3])
        stream.close()
        self.assertEqual((stream.result.finish, stream.result.tokens), ("callback", got))


class InterruptedOnce:
    """A queue whose first get() is interrupted, as by Ctrl-C."""

    def __init__(self, queue):
        self.put, self.queue, self.interrupted = queue.put, queue, False

    def get(self):
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        return self.queue.get()


if __name__ == "__main__":
    unittest.main()
