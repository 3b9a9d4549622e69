"""The C interface itself, as this package declares it: every pointer NULL, every handle wrong, every struct of a wrong size, made
from duet.h; random calls; and plugins that are wrong."""

import ctypes
import os
import random
import re
import subprocess
import sys
import tempfile
import unittest

from support import SOURCE, TINY, TinyTest

import duet
from duet import _abi

FAKES = os.environ["DUET_TEST_FAKES"]
HANDLES = ("library", "model", "state", "session", "tokenizer", "sampler")
MAY_BE_NULL = {("library_create", "options"), ("file_convert", "options"), ("model_load", "options"), ("model_random", "options"), ("state_create", "options"),
               ("session_create", "options"), ("sampler_create", "options"), ("generate", "options"), ("generate", "out_result"), ("generate_batch", "out_results"), ("tokenizer_load", "path"),
               ("state_get", "att_x"), ("state_get", "wkv"), ("state_get", "ffn_x"), ("state_set", "att_x"), ("state_set", "wkv"), ("state_set", "ffn_x")}


def functions():
    """name -> [(type, name of the argument)] of each function of duet.h that returns a status."""
    with open(os.path.join(SOURCE, "api/duet.h"), encoding="utf-8") as header:
        found = re.findall(r"DUET_API duet_status duet_(\w+)\(([^)]*)\);", header.read())
    return {name: [re.fullmatch(r"(.*?[ *])(\w+)", part.strip()).groups() for part in arguments.split(",")] for name, arguments in found}


class ContractTest(TinyTest):
    def setUp(self):
        super().setUp()
        self.tokenizer = self.library.tokenizer()
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.tokens, self.floats = (ctypes.c_int32 * 4)(1, 2, 3, 4), (ctypes.c_float * 4096)()
        self.named = {
            "flags": 0, "cap": 4096 * 4, "slot": 0, "dst_slot": 0, "src_slot": 1, "n_slots": 1, "index": 0, "output": 0, "row": 0, "token": 1, "n": 4, "size": 4,
            "path": TINY.encode(), "in": TINY.encode(), "out": os.path.join(self.folder.name, "out").encode(), "text": b"text", "src": b"none", "tokens": self.tokens,
            "prompt": self.tokens, "logits": self.floats, "dst": self.floats, "out_probs": self.floats, "out_nll": (ctypes.c_double * 4)(),
            "att_x": self.floats, "wkv": (ctypes.c_float * (self.model.info.state_bytes // 4))(), "ffn_x": self.floats, "out_results": None,
        }

    def good(self, function):
        """Arguments with which the function does something, or says what else is wrong than what is tested."""
        self.session.forward(self.state, [1])  # so that there are outputs
        out = []
        for (kind, name), declared in zip(functions()[function], _abi._FUNCTIONS[function]):
            handle = re.fullmatch(r"duet_(\w+)\* ", kind)
            if handle and handle.group(1) in HANDLES:
                out.append(getattr(self, handle.group(1)).handle)
            elif name in self.named:
                out.append(self.named[name])
            elif name == "batch":
                out.append(_abi.Batch(n_seqs=1, tokens=ctypes.addressof(self.tokens)))
            elif name == "random":
                out.append(_abi.RandomOptions(shape=b"no such shape"))
            elif declared._type_ is _abi.InitOptions:
                out.append(_abi.InitOptions(n_layer=1, n_embd=64, n_vocab=16, overwrite=1))
            else:  # a struct, or room for one result
                out.append(declared._type_())
        if function in ("state_save_file", "model_save"):
            out[-1] = self.named["out"]
        if function == "sampler_create":
            _abi.lib.duet_sampler_options_default(out[0])
        return out

    def call(self, function, arguments):
        """The status and the sentence. What a call made is freed."""
        status = getattr(_abi.lib, "duet_" + function)(*arguments)
        sentence = _abi.lib.duet_last_error().decode()
        kind, name = functions()[function][-1]
        if status == 0 and kind.endswith("** ") and "const" not in kind and arguments[-1] is not None:
            getattr(_abi.lib, f"duet_{name[4:]}_free")(arguments[-1])
        return status, sentence

    def test_the_package_declares_every_function(self):
        self.assertEqual(set(functions()) - {"session_output"}, set(_abi._FUNCTIONS))

    def test_every_pointer_null(self):
        n = 0
        for function in _abi._FUNCTIONS:
            for i, (kind, name) in enumerate(functions()[function]):
                if "*" not in kind or (function, name) in MAY_BE_NULL:
                    continue
                arguments = self.good(function)
                arguments[i] = None
                with self.subTest(function=function, argument=name):
                    status, sentence = self.call(function, arguments)
                    handle = re.fullmatch(r"duet_(\w+)\* ", kind)
                    self.assertEqual(status, duet.Status.HANDLE if handle and handle.group(1) in HANDLES else duet.Status.INVALID)
                    self.assertIn(handle.group(1) if status == duet.Status.HANDLE else name, sentence)
                    n += 1
        self.assertGreater(n, 80)

    def test_every_handle_wrong(self):
        closed = duet.Sampler()
        freed = closed.handle
        closed.close()
        for function in _abi._FUNCTIONS:
            for i, (kind, name) in enumerate(functions()[function]):
                handle = re.fullmatch(r"duet_(\w+)\* ", kind)
                if not handle or handle.group(1) not in HANDLES:
                    continue
                other = self.model if handle.group(1) != "model" else self.state
                for wrong in (freed, other.handle, 1, 0xdeadbeef, 2**64 - 1, getattr(self, handle.group(1)).handle ^ 1 << 32):
                    arguments = self.good(function)
                    arguments[i] = wrong
                    with self.subTest(function=function, argument=name, wrong=wrong):
                        status, sentence = self.call(function, arguments)
                        self.assertEqual(status, duet.Status.HANDLE)
                        self.assertIn("not live", sentence)
        for kind in HANDLES:  # frees have no status
            for wrong in (None, freed, freed, 1, 2**64 - 1):
                getattr(_abi.lib, f"duet_{kind}_free")(wrong)

    def test_every_struct_of_a_wrong_size(self):
        n = 0
        for function, declared in _abi._FUNCTIONS.items():
            for i, pointer in enumerate(declared):
                struct = getattr(pointer, "_type_", None)
                if not isinstance(struct, type) or not issubclass(struct, ctypes.Structure):
                    continue
                for size in (0, 4, 4097, 2**32 - 1):
                    arguments = self.good(function)
                    arguments[i].size = size
                    with self.subTest(function=function, size=size):
                        self.assertEqual(self.call(function, arguments)[0], duet.Status.ABI)
                later = type("Later", (ctypes.Structure,), {"_fields_": [("known", struct), ("tail", ctypes.c_ubyte * 64)]})()
                arguments = self.good(function)
                later.known = arguments[i]
                later.known.size = ctypes.sizeof(later)
                arguments[i] = ctypes.cast(ctypes.pointer(later), pointer)
                with self.subTest(function=function, later=struct.__name__):
                    self.assertNotEqual(self.call(function, arguments)[0], duet.Status.ABI)
                n += 1
        self.assertGreaterEqual(n, 15)

    def test_random_calls_in_any_order(self):
        draw = random.Random(3)
        things = {"model": [self.model], "state": [], "session": [], "sampler": []}
        make = {"state": lambda: draw.choice(things["model"]).state(2), "session": lambda: draw.choice(things["model"]).session(), "sampler": duet.Sampler,
                "model": lambda: self.library.load(TINY, device="reference")}

        def expect(live, call):
            try:
                call()
                self.assertTrue(live)
            except duet.Error as error:
                self.assertEqual((live, error.status), (False, duet.Status.HANDLE))

        for _ in range(2000):
            kind = draw.choice(list(things))
            if draw.random() < 0.2 and sum(not t.closed for t in things[kind]) < (2 if kind == "model" else 6):
                try:
                    things[kind].append(make[kind]())
                except duet.Error as error:  # of a model that is closed
                    self.assertEqual(error.status, duet.Status.HANDLE)
                    self.assertIn(kind, ("state", "session"))
            elif draw.random() < 0.1 and things[kind]:
                draw.choice(things[kind]).close()  # again, for some
            elif all(things.values()):
                state, session, sampler = (draw.choice(things[k]) for k in ("state", "session", "sampler"))
                expect(not state.closed, state.reset)
                expect(not sampler.closed, sampler.reset)
                try:
                    session.forward(state, [draw.randrange(256)])
                    self.assertFalse(state.closed or session.closed)
                except duet.Error as error:  # they may be of two models
                    self.assertEqual(error.status, duet.Status.HANDLE if state.closed or session.closed else duet.Status.INVALID)

    def test_objects_made_and_freed_keep_the_memory_flat(self):
        def resident():
            with open("/proc/self/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

        def crowd():
            sessions = [self.model.session() for _ in range(1000)]
            for _ in range(20000):
                duet.Sampler().close()
            for session in sessions:
                session.close()

        crowd()
        before = resident()
        crowd()
        self.assertLess(resident(), before + (4 << 20))


class PluginTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = os.path.realpath(folder.name)
        os.environ["DUET_TEST_CANARY"] = os.path.join(self.folder, "canary")
        self.addCleanup(os.environ.pop, "DUET_TEST_CANARY")

    def plugin(self, way, name="plugin.so", mode=0o644, cut=None):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(os.path.join(FAKES, f"libfake_{way}.so"), "rb") as source, open(path, "wb") as out:
            out.write(source.read()[:cut])
        os.chmod(path, mode)
        return path

    def ran(self):
        return os.path.exists(os.environ["DUET_TEST_CANARY"])

    def check_refused(self, path, word):
        with duet.Library(n_threads=1, plugin_path=path, log_level="off") as library:
            plugins = library.report()["plugins"]
            self.assertEqual([p["taken"] for p in plugins], [True, False])
            self.assertIn(word, plugins[1]["reason"])
            with library.load(TINY) as model:  # the engine goes on
                self.assertEqual(model.info.device, "reference:0")
                self.assertEqual(model.session().forward(model.state(), [1]).shape, (1, 256))

    def test_what_is_wrong_with_the_file(self):
        self.check_refused("plugin.so", "absolute paths only")
        self.check_refused(self.plugin("good", "shared.so", 0o666), "can be changed by others")
        self.check_refused(self.plugin("good", "cut.so", cut=9000), "beyond the")
        self.check_refused(self.plugin("no_note", "note.so"), "no plugin of Duet")
        self.check_refused(self.plugin("wrong_major", "major.so"), "made for plugin ABI 2.0")
        self.check_refused(self.plugin("small_note", "small.so"), "less than the")
        self.assertFalse(self.ran())

    def test_what_is_wrong_with_the_code(self):
        for way, word in (("no_symbol", "does not export"), ("null_slot", "no device_info"), ("open_fails", "too old"), ("open_throws", "no such luck"),
                          ("query_null", "gave no table"), ("misaligned", "aligned to 64 bytes")):
            self.check_refused(self.plugin(way, way + ".so"), word)
        self.assertTrue(self.ran())

    def test_twice(self):
        one, two = self.plugin("good", "one.so"), self.plugin("good", "two.so")
        report = duet.Library(plugin_path=f"{one}:{one}:{two}", log_level="off").report()["plugins"]
        self.assertEqual([p["taken"] for p in report], [True, True, False])
        self.assertIn("taken already", report[2]["reason"])

    def test_a_stage_that_fails_or_throws_is_an_error_of_the_call(self):
        for way, status, word in (("stage_fails", duet.Status.LIMIT, "three heads"), ("stage_throws", duet.Status.INTERNAL, "a stage went wrong")):
            library = duet.Library(plugin_path=self.plugin(way, way + ".so"), log_level="off")
            model = library.load(TINY, device="fake")
            library.close()  # in use
            for _ in range(2):
                with self.assertRaisesRegex(duet.Error, word) as caught:
                    model.session().forward(model.state(), [1])
                self.assertEqual(caught.exception.status, status)

    def test_nothing_is_taken_from_where_it_was_planted(self):
        for place in (".", "duet/plugins-1", "lib/duet/plugins-1"):
            self.plugin("good", place + "/libduet_fake.so")
            with open(os.path.join(self.folder, place, "fake.duet.json"), "w", encoding="ascii") as manifest:
                manifest.write(f'{{"format": 1, "id": "fake", "library": "libduet_fake.so", "abi": "1.1", "arch": "{os.uname().machine}"}}')
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("DUET_PLUGIN", "XDG_"))}
        environment.update(HOME=self.folder, LD_LIBRARY_PATH=self.folder + ":.")
        program = "import duet; print([p['id'] for p in duet.Library().report()['plugins']])"
        done = subprocess.run([sys.executable, "-c", program], cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
        self.assertNotIn("fake", done.stdout)
        self.assertIn("reference", done.stdout)
        self.assertFalse(self.ran())


if __name__ == "__main__":
    unittest.main()
