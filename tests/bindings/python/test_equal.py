"""The Python binding gives the bits that the C interface gives."""

import os
import subprocess
import tempfile
import unittest

import numpy
from support import C_RESULTS, SOURCE, STORIES, TEXT, TINY, TinyTest

import duet


class EqualTest(unittest.TestCase):
    def compare(self, device):
        with tempfile.TemporaryDirectory() as folder, duet.Library(n_threads=1) as library, library.load(STORIES, device=device) as model:
            subprocess.run([C_RESULTS, STORIES, device, folder], check=True)

            def same(name, got):
                with open(os.path.join(folder, name), "rb") as file:
                    self.assertEqual(bytes(got), file.read(), name)

            tokenizer, state = model.tokenizer(), model.state(3)
            parallel, recurrent = model.session("parallel"), model.session("recurrent")
            tokens = [0, *tokenizer.encode(TEXT)]
            logits = parallel.forward(state, tokens, rows="all", hidden=True, v_first=True)
            self.assertEqual(logits.shape, (len(tokens), model.info.n_vocab))
            same("logits", logits.tobytes())
            same("logits", parallel.output("logits", copy=False).tobytes())
            same("hidden", parallel.output("hidden").tobytes())
            same("v_first", parallel.output("v_first").tobytes())
            same("nll", recurrent.score(state, tokens, slot=1).tobytes())
            same("state", state.save(1))
            sampler = duet.Sampler(temperature=0.8, top_p=0.7, presence=0.25, seed=7, tokenizer=tokenizer)
            same("probs", sampler.probs(logits[-1]).tobytes())
            shown = []
            result = parallel.generate(state, sampler, tokens, slot=2, max_tokens=50, tokenizer=tokenizer, stop_texts=["nothing says this"],
                                       on_text=shown.append)
            same("text", result.text.encode())
            same("text", "".join(shown).encode())
            self.assertEqual(result.finish, "length")
            self.assertEqual(result.n_new, 50)
            self.assertEqual(result.n_prompt, len(tokens))
            self.assertEqual(tokenizer.decode(result.tokens), result.text)
            state.reset(2)
            sampler.reset()
            with parallel.stream(state, sampler, tokens, slot=2, max_tokens=50, tokenizer=tokenizer) as pieces:
                same("text", "".join(pieces).encode())
            self.assertEqual(pieces.result.tokens, result.tokens)

    def test_every_backend_gives_the_bits_of_c(self):
        with duet.Library() as library:
            devices = [device.spec for device in library.devices()]
        self.assertIn("reference:0", devices)
        for device in devices:
            with self.subTest(device=device):
                self.compare(device)


class BatchTest(TinyTest):
    def test_a_batch_is_its_sequences(self):
        rows = self.session.forward_batch(self.state, [[1, 2], [3, 4, 5]], slots=[1, 0])
        for row, tokens, slot in zip(rows, ([1, 2], [3, 4, 5]), (1, 0)):
            other = self.model.state(2)
            alone = self.session.forward(other, tokens, slot=slot)
            numpy.testing.assert_array_equal(alone[0], row)
            numpy.testing.assert_array_equal(other.get(slot).wkv, self.state.get(slot).wkv)

    def test_an_empty_sequence_has_no_row_and_changes_nothing(self):
        self.session.forward(self.state, [1, 2])
        before = self.state.get()
        self.assertEqual(self.session.forward_batch(self.state, [[], [3]]).shape, (1, 256))
        self.assertEqual(self.session.forward(self.state, []).shape, (0, 256))
        numpy.testing.assert_array_equal(self.state.get().wkv, before.wkv)

    def test_outputs_that_were_not_asked_for_have_no_rows(self):
        self.assertIsNone(self.session.forward(self.state, [1, 2], logits=False, hidden=True))
        self.assertEqual(self.session.output("hidden").shape, (1, 128))
        self.assertEqual(self.session.output("logits").shape[0], 0)
        self.assertEqual(self.session.output("v_first").shape[0], 0)


class GenerateBatchTest(TinyTest):
    def test_a_batch_of_generations_is_each_of_them(self):
        tokenizer, n, never = self.library.tokenizer(), 5, {token: float("-inf") for token in range(256)}
        only = {token: bias for token, bias in never.items() if token != 9}

        def prompts(slots):
            """Text to its length, a callback that stops, a cancel, nothing to draw from, and a stop token."""
            shown, drawn, cancel = [], [], duet.Cancel()

            def cancels(token):
                drawn.append(token)
                if len(drawn) == 4:
                    cancel.set()

            def sampler(i, bias=None):
                return duet.Sampler(temperature=0.8, top_p=0.7, presence=0.25, seed=7, sequence=i, bias=bias)

            stopping = iter([None] * 6 + [False])
            return [duet.Prompt([1, 2, 3], sampler(0), slots[0], 12, tokenizer, [], on_text=shown.append),
                    duet.Prompt([4, 5], sampler(1), slots[1], stops=[], on_token=lambda _: next(stopping)),
                    duet.Prompt([6], sampler(2), slots[2], stops=[], on_token=cancels, cancel=cancel),
                    duet.Prompt([7, 8], sampler(3, never), slots[3]),
                    duet.Prompt([9] * 20, sampler(4, only), slots[4], stops=[9])], shown

        slots, state = [4, 0, 3, 1, 2], self.model.state(n)
        asked, shown = prompts(slots)
        results = self.session.generate_batch(state, asked)
        self.assertEqual([r.finish for r in results], ["length", "callback", "cancelled", "numeric", "stop token"])
        self.assertEqual([r.n_new for r in results], [12, 7, 4, 0, 1])
        self.assertEqual([r.n_prompt for r in results], [3, 2, 1, 2, 20])
        self.assertEqual("".join(shown), results[0].text)
        self.assertEqual(tokenizer.decode(results[0].tokens)[:len(results[0].text)], results[0].text)
        alone, _ = prompts([0] * n)
        for i, prompt in enumerate(alone):
            other, options = self.model.state(1), dict(vars(prompt))
            arguments = [options.pop("sampler"), options.pop("tokens")]
            if i == 3:
                self.refused(duet.Status.NUMERIC, "", self.session.generate, other, *arguments, **options)
                continue
            want = self.session.generate(other, *arguments, **options)
            self.assertEqual((results[i].finish, results[i].tokens, results[i].text, results[i].n_new), (want.finish, want.tokens, want.text, want.n_new))
            for got, part in zip(state.get(slots[i]), other.get()):
                numpy.testing.assert_array_equal(got, part)

    def test_slots_are_places_in_the_batch_unless_given(self):
        self.session.generate_batch(self.state, [duet.Prompt([i + 1, 2], duet.Sampler(), max_tokens=1) for i in range(2)])
        for i in range(2):
            other = self.model.state()
            self.session.forward(other, [i + 1, 2])
            numpy.testing.assert_array_equal(other.get().wkv, self.state.get(i).wkv)


class StateTest(TinyTest):
    def same(self, a, b):
        return all(numpy.array_equal(x, y) for x, y in zip(a, b))

    def test_states_are_forked_set_saved_and_loaded(self):
        self.session.forward(self.state, [1, 2, 3], slot=1)
        want, other = self.state.get(1), self.model.state()
        self.assertEqual([a.shape for a in want], [(3, 128), (3, 2, 64, 64), (3, 128)])
        self.assertFalse(self.same(self.state.get(0), want))
        self.state.copy_from(self.state, 1, 0)
        self.assertTrue(self.same(self.state.get(0), want))
        other.load(self.state.save(1))
        self.assertTrue(self.same(other.get(), want))
        other.reset()
        self.assertFalse(self.same(other.get(), want))
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "state.safetensors")
            self.state.save_file(file, 1)
            other.load_file(file)
            self.assertTrue(self.same(other.get(), want))
            self.assertEqual(self.library.file_info(file)["format"], self.library.file_info(file, verify=True)["format"])
        other.reset()
        other.set(**want._asdict())
        self.assertTrue(self.same(other.get(), want))
        ones = numpy.ones((3, 128), numpy.float32)
        other.set(ffn_x=ones)
        self.assertTrue(self.same(other.get(), (want.att_x, want.wkv, ones)))


class RestTest(TinyTest):
    def test_versions(self):
        self.assertTrue(duet.version().startswith(duet.__version__))

    def test_library_files_and_models(self):
        self.assertTrue(self.library.report()["plugins"])
        self.assertEqual(self.library.devices()[-1].plugin, "built in")
        info = self.model.info
        self.assertEqual((info.n_layer, info.n_embd, info.n_vocab, info.weights, info.device), (3, 128, 256, "bf16", "reference:0"))
        self.assertEqual(info.state_bytes, sum(a.nbytes for a in self.state.get()))
        seen = []
        with tempfile.TemporaryDirectory() as folder:
            saved, converted, fresh = (os.path.join(folder, name) for name in ("saved", "converted", "fresh"))
            self.model.save(saved)
            self.library.convert(TINY, converted, weights="f32", progress=lambda done, total: seen.append((done, total)))
            self.library.init(fresh, n_layer=2, n_embd=64, n_vocab=32, seed=3)
            self.assertEqual(seen[-1][0], seen[-1][1])
            want = self.session.forward(self.state, [1, 2, 3])
            for file in (saved, converted):
                model = self.library.load(file, device="reference", weights="bf16")
                numpy.testing.assert_array_equal(model.session().forward(model.state(), [1, 2, 3]), want)
            for dtype in ("q8", "q4"):
                self.library.convert(TINY, converted, weights=dtype, overwrite=True)
                for model in (self.library.load(converted, device="reference"), self.library.load(TINY, device="reference", weights=dtype)):
                    self.assertEqual(model.info.weights, dtype)
                    self.assertLess(model.info.weight_bytes, self.model.info.weight_bytes)
            self.assertEqual(self.library.load(fresh, device="reference").info.n_vocab, 32)
            self.refused(duet.Status.EXISTS, "converted", self.library.convert, TINY, converted)

    def test_tokenizer(self):
        world = self.library.tokenizer()
        self.assertEqual(len(world), 65530)
        for text in ("", "caf\u00e9 \0 \u4f60\u597d"):
            self.assertEqual(world.decode(world.encode(text)), text)
        self.assertEqual(world.decode_bytes(world.encode(b"\xff end")), b"\xff end")
        self.assertEqual(world.decode(world.encode(b"\xff end")), "\ufffd end")
        self.assertEqual(world.encode(TEXT).dtype, numpy.int32)
        stories = self.library.tokenizer(os.path.join(SOURCE, "models/stories-7m/vocab.txt"))
        self.assertEqual(stories.decode(stories.encode(TEXT)), TEXT)

    def test_sampler(self):
        logits = numpy.array([0, 1, 2, 3], numpy.float32)
        self.assertEqual(duet.Sampler(temperature=0).pick(logits), 3)
        self.assertEqual(duet.Sampler(temperature=0, bias={3: -numpy.inf}).pick(logits), 2)
        weights = numpy.exp(logits.astype(numpy.float64))
        numpy.testing.assert_allclose(self.sampler.probs(logits), weights / weights.sum(), rtol=1e-6)
        penalised = duet.Sampler(presence=100.0, temperature=0)
        penalised.accept(3)
        self.assertEqual(penalised.pick(logits), 2)
        penalised.reset()
        self.assertEqual(penalised.pick(logits), 3)
        a, b, c = duet.Sampler(seed=1), duet.Sampler(seed=1), duet.Sampler(seed=1, sequence=1)
        draws = [[s.pick(logits) for _ in range(50)] for s in (a, b, c)]
        self.assertEqual(draws[0], draws[1])
        self.assertNotEqual(draws[0], draws[2])


if __name__ == "__main__":
    unittest.main()
