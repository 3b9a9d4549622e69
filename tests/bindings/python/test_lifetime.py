"""Objects are closed and collected in any order, and arrays of a session's own memory never change and never dangle."""

import gc
import subprocess
import sys
import textwrap
import unittest
import weakref

import numpy
from support import TINY, TinyTest

import duet


class LifetimeTest(TinyTest):
    def test_a_session_goes_on_after_its_model_and_library_are_closed(self):
        want = self.session.forward(self.state, [1, 2])
        self.state.reset()
        self.library.close()
        self.model.close()
        numpy.testing.assert_array_equal(self.session.forward(self.state, [1, 2]), want)
        self.refused(duet.Status.HANDLE, "the model is closed", self.model.session)
        self.refused(duet.Status.HANDLE, "the library is closed", self.library.load, TINY)

    def test_closing_twice_is_fine_and_using_what_is_closed_is_not(self):
        for thing in (self.session, self.state, self.sampler, self.model, self.library):
            self.assertFalse(thing.closed)
            with thing:
                pass
            thing.close()
            self.assertTrue(thing.closed)
        self.refused(duet.Status.HANDLE, "closed", self.session.forward, self.state, [1])
        self.refused(duet.Status.HANDLE, "closed", self.session.output, "logits")
        self.refused(duet.Status.HANDLE, "closed", self.state.get)
        self.refused(duet.Status.HANDLE, "closed", self.sampler.reset)
        self.refused(duet.Status.HANDLE, "closed", self.model.tokenizer)

    def test_a_handle_that_was_freed_behind_the_objects_back(self):
        duet._abi.lib.duet_session_free(self.session.handle)
        self.refused(duet.Status.HANDLE, "not live", self.session.forward, self.state, [1])
        self.session.close()

    def test_a_copy_is_the_callers(self):
        copy = self.session.forward(self.state, [1])
        want = copy.tobytes()
        self.session.forward(self.state, [2])
        self.assertEqual(copy.tobytes(), want)
        copy[0, 0] = 1

    def test_a_view_blocks_what_would_overwrite_it_and_cannot_be_written(self):
        view = self.session.forward(self.state, [1], copy=False)
        want = view.tobytes()
        with self.assertRaises(ValueError):
            view[0, 0] = 1
        with self.assertRaises(ValueError):
            view.flags.writeable = True
        part = view[0, 3:5]
        del view
        for call in (lambda: self.session.forward(self.state, [2]), lambda: self.session.score(self.state, [1, 2]),
                     lambda: self.session.generate(self.state, self.sampler, [0]), self.session.close):
            with self.assertRaisesRegex(BufferError, "still in use"):
                call()
        self.assertEqual(part.tobytes(), want[12:20])
        self.assertEqual(self.session.output("logits").tobytes(), want)  # reading is fine
        del part
        self.assertNotEqual(self.session.forward(self.state, [2]).tobytes(), want)

    def test_a_view_keeps_its_session_alive(self):
        view = self.session.forward(self.state, [1], copy=False)
        want = view.tobytes()
        watch = weakref.ref(self.session)
        del self.session
        self.model.close()
        gc.collect()
        others = [self.model_again().session() for _ in range(3)]
        self.assertEqual(view.tobytes(), want)
        self.assertIsNotNone(watch())
        del view
        gc.collect()
        self.assertIsNone(watch())
        del others

    def model_again(self):
        return self.library.load(TINY, device="reference")

    def test_the_log_function_lives_as_long_as_anything_can_log(self):
        messages = []

        class Log:
            def __call__(self, level, message):
                messages.append((level, message))

        log = Log()
        watch = weakref.ref(log)
        library = duet.Library(n_threads=1, log=log, log_level="debug")
        session = library.load(TINY, device="reference").session()
        library.close()
        del library, log
        gc.collect()
        self.assertTrue(messages)
        self.assertIsNotNone(watch())
        del session
        gc.collect()
        self.assertIsNone(watch())

    def test_what_a_log_function_raises_goes_to_unraisablehook(self):
        seen, hook = [], sys.unraisablehook
        sys.unraisablehook = lambda u: seen.append(u.exc_type)
        try:

            def log(level, message):
                raise KeyError(message)

            duet.Library(log=log, log_level="debug").devices()
        finally:
            sys.unraisablehook = hook
        self.assertEqual(set(seen), {KeyError})

    def test_a_program_may_end_with_everything_open(self):
        program = textwrap.dedent("""
            import sys, duet
            library = duet.Library()
            model = library.load(sys.argv[1])
            state, session = model.state(), model.session()
            view = session.forward(state, [1], copy=False)
            stream = model.session().stream(state, duet.Sampler(), [0], max_tokens=1000, stops=[])
            next(stream)
            print("end")
        """)
        done = subprocess.run([sys.executable, "-c", program, TINY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, text=True)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "end\n", ""))


if __name__ == "__main__":
    unittest.main()
