"""The chat examples run, and tell the same story in C++ and in Python."""

import os
import subprocess
import sys
import unittest

from support import CHAT, SOURCE, STORIES

PYTHON_CHAT = os.path.join(SOURCE, "sdk/python/examples/chat.py")


class ExamplesTest(unittest.TestCase):
    def run_chat(self, *command, typed="Once upon a time\nThe fox said\n\n"):
        return subprocess.run(command, input=typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", timeout=120)

    def test_the_same_story(self):
        python, cpp = self.run_chat(sys.executable, PYTHON_CHAT, STORIES), self.run_chat(CHAT, STORIES)
        self.assertEqual((python.returncode, python.stderr), (0, ""))
        self.assertEqual((cpp.returncode, cpp.stderr), (0, ""))
        self.assertEqual(python.stdout, cpp.stdout)
        self.assertGreater(len(python.stdout), 200)

    def test_a_model_that_is_not_there(self):
        for command in ((sys.executable, PYTHON_CHAT), (CHAT,)):
            failed = self.run_chat(*command, "no such file")
            self.assertEqual(failed.returncode, 1)
            self.assertIn("no such file", failed.stderr)


if __name__ == "__main__":
    unittest.main()
