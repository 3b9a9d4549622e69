"""What the tests share. The variables come from CMake."""

import os
import unittest

import duet

SOURCE = os.environ["DUET_TEST_SOURCE"]
STORIES = os.path.join(SOURCE, "models/stories-7m/stories-7m.pth")
TINY = os.path.join(os.environ["DUET_TEST_GOLDEN"], "tiny.pth")
C_RESULTS = os.environ["DUET_TEST_C_RESULTS"]
CHAT = os.environ["DUET_TEST_CHAT"]
TEXT = "Once upon a time there was a little fox who lived in the wood."  # as in c_results.c


class TinyTest(unittest.TestCase):
    """A small model on the reference backend, with a state, a session and a sampler."""

    def setUp(self):
        self.library = duet.Library(n_threads=1)
        self.model = self.library.load(TINY, device="reference")
        self.state, self.session, self.sampler = self.model.state(2), self.model.session(), duet.Sampler()

    def refused(self, status, word, call, *arguments, **named):
        """The call raises Error with this status and a sentence that holds the word."""
        with self.assertRaisesRegex(duet.Error, word) as caught:
            call(*arguments, **named)
        self.assertEqual(caught.exception.status, status)
