"""Callbacks that raise, calls from callbacks and from other threads, children of fork()."""

import os
import threading
import unittest
import warnings

from support import TINY, TinyTest

import duet


class Raised(BaseException):
    """Not even an Exception."""


class CallbackTest(TinyTest):
    def setUp(self):
        super().setUp()
        self.tokenizer = self.library.tokenizer()
        self.calls = 0

    def throw(self, *_):
        self.calls += 1
        raise Raised

    def test_what_a_callback_raises_comes_out_of_the_call(self):
        for call in (lambda: self.library.load(TINY, progress=self.throw),
                     lambda: self.library.convert(TINY, "not written", progress=self.throw),
                     lambda: self.session.generate(self.state, self.sampler, [0], stops=[], on_token=self.throw),
                     lambda: self.session.generate(self.state, self.sampler, [0], stops=[], tokenizer=self.tokenizer, on_text=self.throw)):
            self.calls = 0
            with self.assertRaises(Raised):
                call()
            self.assertEqual(self.calls, 1)
        self.assertFalse(os.path.exists("not written"))
        texts = []  # the library shows the text of the token at which on_token stopped: the binding must not
        with self.assertRaises(Raised):
            self.session.generate(self.state, self.sampler, [0], stops=[], tokenizer=self.tokenizer, on_token=self.throw, on_text=texts.append)
        self.assertEqual(texts, [])
        self.assertEqual(self.session.forward(self.state, [1]).shape, (1, 256))  # and all work on

    def test_what_a_callback_of_a_batch_raises_comes_out_of_it_and_its_fellows_are_not_called_again(self):
        others = []

        def third_fails(_):
            self.calls += 1
            if self.calls == 3:
                raise Raised

        prompts = [duet.Prompt([0], self.sampler, stops=[], on_token=third_fails), duet.Prompt([0], duet.Sampler(), stops=[], on_token=others.append)]
        with self.assertRaises(Raised):
            self.session.generate_batch(self.state, prompts)
        self.assertEqual((self.calls, len(others)), (3, 2))
        self.assertEqual(self.session.forward(self.state, [1]).shape, (1, 256))

    def test_what_is_wrong_with_a_sequence_of_a_batch(self):
        other = duet.Sampler()
        closed = duet.Sampler()
        closed.close()

        def batch(**changed):
            return self.session.generate_batch(self.state, [duet.Prompt([1], self.sampler, max_tokens=2),
                                                            duet.Prompt(**{"tokens": [1], "sampler": other, "max_tokens": 2, **changed})])

        self.refused(duet.Status.INVALID, "same sampler", batch, sampler=self.sampler)
        self.refused(duet.Status.HANDLE, "closed", batch, sampler=closed)
        self.refused(duet.Status.INVALID, "sequence 1 is empty", batch, tokens=[])
        self.refused(duet.Status.INVALID, "slot 0 stands twice", batch, slot=0)
        self.refused(duet.Status.INVALID, "slot 2", batch, slot=2)
        for error, word, changed in ((ValueError, "tokenizer", {"on_text": print}), (TypeError, "not a str", {"stop_texts": "x"}),
                                     (TypeError, "on_token must be callable", {"on_token": 1}), (ValueError, "slot is -1", {"slot": -1}),
                                     (ValueError, "max_tokens", {"max_tokens": 2**32}), (TypeError, "integers", {"tokens": [0.5]})):
            with self.assertRaisesRegex(error, word):
                batch(**changed)
        self.refused(duet.Status.INVALID, "sequence 0 is empty", self.session.generate_batch, self.state, [duet.Prompt([], other)])
        self.assertEqual(self.session.generate_batch(self.state, []), [])
        self.assertEqual(len(batch()), 2)

    def test_calls_from_a_callback_of_a_batch_are_busy_and_frees_are_fine(self):
        caught, sampler = [], duet.Sampler()

        def on_token(_):
            for call in (lambda: self.session.forward(self.state, [1]), self.session.close, self.sampler.reset):
                try:
                    call()
                except duet.Error as error:
                    caught.append(error.status)
            self.model.close(), self.state.close(), sampler.close()

        prompts = [duet.Prompt([0], self.sampler, stops=[], max_tokens=2, on_token=on_token), duet.Prompt([0], sampler, stops=[], max_tokens=3)]
        self.assertEqual([r.n_new for r in self.session.generate_batch(self.state, prompts)], [2, 3])
        self.assertEqual(caught[:3], [duet.Status.BUSY] * 3)

    def test_false_stops(self):
        self.refused(duet.Status.CANCELLED, "progress", self.library.load, TINY, progress=lambda done, total: False)
        result = self.session.generate(self.state, self.sampler, [0], stops=[], on_token=lambda token: False)
        self.assertEqual((result.finish, len(result.tokens)), ("callback", 1))

    def test_stops(self):
        greedy = duet.Sampler(temperature=0)
        whole = self.session.generate(self.state, greedy, [0], stops=[], max_tokens=20, tokenizer=self.tokenizer)
        self.assertEqual(whole.finish, "length")
        self.state.reset()
        stop = whole.tokens[5]
        first = whole.tokens.index(stop)
        result = self.session.generate(self.state, greedy, [0], stops=[stop], max_tokens=20)
        self.assertEqual((result.finish, result.tokens, result.n_new), ("stop token", whole.tokens[:first], first + 1))
        self.state.reset()
        stop_text = next(c for c in whole.text[1:] if c.isascii() and c.isalpha())
        result = self.session.generate(self.state, greedy, [0], stops=[], stop_texts=[stop_text], max_tokens=20, tokenizer=self.tokenizer)
        self.assertEqual((result.finish, result.text), ("stop text", whole.text[:whole.text.index(stop_text)]))

    def test_calls_from_a_callback_on_its_own_objects_are_busy(self):
        caught = []

        def on_token(token):
            for call in (lambda: self.session.forward(self.state, [1]), lambda: self.session.output("logits"), self.session.close, self.state.get,
                         self.sampler.reset):
                try:
                    call()
                except duet.Error as error:
                    caught.append(error.status)
            self.model.close()  # frees of others are fine, as is freeing the state: the call keeps what it needs
            self.state.close()

        result = self.session.generate(self.state, self.sampler, [0], stops=[], max_tokens=2, on_token=on_token)
        self.assertEqual(result.n_new, 2)
        self.assertEqual(caught[:5], [duet.Status.BUSY] * 5)

    def test_cancel_from_another_thread(self):
        cancel, begun = duet.Cancel(), threading.Event()
        other = threading.Thread(target=lambda: (begun.wait(), cancel.set()))
        other.start()
        result = self.session.generate(self.state, self.sampler, [0], stops=[], max_tokens=10**9, on_token=lambda _: begun.set(), cancel=cancel)
        other.join()
        self.assertEqual(result.finish, "cancelled")
        self.assertEqual(len(result.tokens), result.n_new)
        self.assertTrue(cancel.is_set())
        self.assertEqual(self.session.generate(self.state, self.sampler, [0], cancel=cancel).n_prompt, 0)
        cancel.clear()
        self.assertEqual(self.session.generate(self.state, self.sampler, [0], stops=[], max_tokens=2, cancel=cancel).finish, "length")


class ThreadTest(TinyTest):
    def run_threads(self, work, n=3):
        failures = []

        def guarded():
            try:
                work()
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=guarded) for _ in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def test_sessions_of_one_model_run_at_once(self):
        want = self.session.forward(self.state, range(60)).tobytes()

        def work():
            session, state = self.model.session(), self.model.state()
            for _ in range(5):
                state.reset()
                self.assertEqual(session.forward(state, range(60)).tobytes(), want)

        self.run_threads(work)

    def test_one_session_from_several_threads_is_busy_never_a_race(self):
        done = {"ok": 0, "busy": 0}

        def work():
            for _ in range(100):
                try:
                    rows = self.session.forward(self.state, range(20), rows="all")
                    self.assertEqual(rows.shape, (20, 256))
                    done["ok"] += 1
                except duet.Error as error:
                    self.assertEqual(error.status, duet.Status.BUSY)
                    done["busy"] += 1

        self.run_threads(work)
        self.assertGreater(done["ok"], 0)
        self.assertEqual(sum(done.values()), 300)

    def test_closing_in_another_thread_is_an_error_not_a_crash(self):
        for _ in range(20):
            session, state = self.model.session(), self.model.state()

            def work():
                try:
                    for _ in range(100):
                        session.forward(state, [1, 2, 3])
                except duet.Error as error:
                    self.assertIn(error.status, (duet.Status.HANDLE, duet.Status.BUSY))

            def close():
                state.close()
                while not session.closed:
                    try:
                        session.close()
                    except duet.Error as error:
                        self.assertEqual(error.status, duet.Status.BUSY)

            thread = threading.Thread(target=close)
            thread.start()
            self.run_threads(work, 1)
            thread.join()

    def test_a_forked_child_is_told_to_make_its_own_library(self):
        with warnings.catch_warnings():  # Python 3.12 warns of threads, which this test is about
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                self.session.forward(self.state, [1])
            except duet.Error as error:
                os._exit(0 if error.status == duet.Status.DEVICE else 1)
            os._exit(2)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)

    def test_a_child_forked_in_the_middle_of_a_generation_can_begin_anew(self):
        codes = []

        def on_token(token):
            child = os.fork()
            if child == 0:
                try:
                    self.model.state()
                except duet.Error as error:
                    model = duet.Library(n_threads=1).load(TINY, device="reference")
                    well = model.session().forward(model.state(), [1]).shape == (1, 256)
                    os._exit(0 if well and error.status == duet.Status.DEVICE else 1)
                os._exit(2)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            result = self.session.generate(self.state, self.sampler, [0], stops=[], max_tokens=2, on_token=on_token)
        self.assertEqual((codes, result.n_new), ([0, 0], 2))


if __name__ == "__main__":
    unittest.main()
