// What must be equal: packing, batch order, splits, threads, repeated runs; and what the two modes may differ by.
#include <limits>
#include <random>

#include "support/api.h"
#include "support/golden.h"

using namespace api;

namespace {

std::vector<int32_t> random_tokens(size_t n, uint32_t seed, int32_t V = 256) {
  std::mt19937 r(seed);
  std::vector<int32_t> t(n);
  for (auto& x : t) x = static_cast<int32_t>(r() % static_cast<uint32_t>(V));
  return t;
}

std::vector<int32_t> part(const std::vector<int32_t>& t, size_t from, size_t to) { return {t.begin() + static_cast<ptrdiff_t>(from), t.begin() + static_cast<ptrdiff_t>(to)}; }

const duet_mode kModes[] = {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT};
#ifdef __SANITIZE_ADDRESS__
const duet_dtype kDtypes[] = {DUET_F32, DUET_BF16, DUET_I4};  // slow there: one of each kind
#else
const duet_dtype kDtypes[] = {DUET_F32, DUET_BF16, DUET_F16, DUET_I8, DUET_I4};
#endif

}  // namespace

TEST_CASE("parallel and recurrent agree at every split") {
  const auto lib = library();
  for (const char* backend : backends()) {
    const auto m = load(lib, golden::path("tiny.pth"), backend, DUET_F32);
    const auto tokens = random_tokens(33, 1);
    const auto parallel = session(m, DUET_MODE_PARALLEL), recurrent = session(m, DUET_MODE_RECURRENT);
    const auto s = state(m);
    const auto want = forward(recurrent, s, tokens);
    const auto want_state = arrays(m, s);
    for (size_t split = 0; split <= tokens.size(); ++split) {
      INFO(backend << ", " << split << " tokens in parallel, the rest one by one");
      check(duet_state_reset(s.get(), 0));
      auto got = forward(parallel, s, part(tokens, 0, split));
      const auto rest = forward(recurrent, s, part(tokens, split, tokens.size()));
      got.insert(got.end(), rest.begin(), rest.end());
      CHECK(worst(got, want) < 2e-5);
      CHECK(worst(arrays(m, s).wkv, want_state.wkv) < 2e-5);
    }
  }
}

// Their products add integers, in one order in both modes, and the recurrence walks the tokens in order in both. (The
// reference rounds its states from f64 at each split.)
TEST_CASE("quantised weights on the CPU plugin: both modes give the same bits, at every split") {
  const auto lib = library();
  for (const char* backend : backends())
    for (const duet_dtype dtype : {DUET_I8, DUET_I4}) {
      if (backend != std::string("cpu")) continue;
      INFO(backend << ", dtype " << dtype);
      const auto m = load(lib, golden::path("tiny.pth"), backend, dtype);
      const auto tokens = random_tokens(50, 8);
      const auto parallel = session(m, DUET_MODE_PARALLEL), recurrent = session(m, DUET_MODE_RECURRENT);
      const auto s = state(m);
      const auto want = forward(recurrent, s, tokens);
      const auto want_state = arrays(m, s);
      for (const size_t split : {0, 1, 31, 33, 50}) {
        check(duet_state_reset(s.get(), 0));
        auto got = forward(parallel, s, part(tokens, 0, split));
        const auto rest = forward(recurrent, s, part(tokens, split, tokens.size()));
        got.insert(got.end(), rest.begin(), rest.end());
        CHECK(got == want);
        CHECK(arrays(m, s) == want_state);
      }
    }
}

TEST_CASE("recurrent mode: the same bits however the tokens are split") {
  const auto lib = library();
  for (const char* backend : backends())
    for (const duet_dtype dtype : kDtypes) {
      const auto m = load(lib, golden::path("tiny.pth"), backend, dtype);
      const auto x = session(m, DUET_MODE_RECURRENT);
      const auto tokens = random_tokens(20, 2);
      const auto s = state(m);
      const auto want = forward(x, s, tokens);
      const auto want_state = arrays(m, s);
      for (const size_t split : {1, 7, 19}) {
        check(duet_state_reset(s.get(), 0));
        auto got = forward(x, s, part(tokens, 0, split));
        const auto rest = forward(x, s, part(tokens, split, tokens.size()));
        got.insert(got.end(), rest.begin(), rest.end());
        CHECK(got == want);
        CHECK(arrays(m, s) == want_state);
      }
    }
}

TEST_CASE("a sequence's bits do not depend on what else is in the batch, on its place, or on its slot") {
  const auto lib = library();
  for (const char* backend : backends())
    for (const duet_dtype dtype : kDtypes)
      for (const duet_mode mode : kModes) {
        if (!on_cpu(backend)) continue;
        INFO(backend << ", dtype " << dtype << ", mode " << mode);
        const auto m = load(lib, golden::path("tiny.pth"), backend, dtype);
        const size_t V = info(m).n_vocab;
        const auto x = session(m, mode);
        const auto tokens = random_tokens(29, 3);
        const auto alone = state(m);
        const auto want = forward(x, alone, tokens);
        const auto want_state = arrays(m, alone);
        const auto s = state(m, 9);
        // the other slots are poisoned: reading one would show
        const auto i = info(m);
        const std::vector<float> huge(size_t{i.n_layer} * i.n_embd * i.head_size, 1e30f);
        for (uint32_t slot = 0; slot < 9; ++slot)
          if (slot != 5) check(duet_state_set(s.get(), slot, huge.data(), huge.data(), huge.data()));
        for (uint32_t before = 0; before < 4; ++before) {
          check(duet_state_reset(s.get(), 5));
          Batch b;
          size_t first = 0;
          for (uint32_t k = 0; k < 8; ++k) {
            if (k == 2 * before) {
              first = b.tokens.size();
              b.add(tokens, 5);
            } else {
              b.add(random_tokens((k * 13) % 40, 10 + k), k < 5 ? k : k + 1);  // k = 0: an empty sequence
            }
          }
          const auto all = forward(x, s, b);
          const std::vector<float> got(all.begin() + static_cast<ptrdiff_t>(first * V), all.begin() + static_cast<ptrdiff_t>((first + tokens.size()) * V));
          CHECK(got == want);
          CHECK(arrays(m, s, 5) == want_state);
        }
      }
}

TEST_CASE("parallel mode: splitting a prompt changes no bits on the CPU") {
  const auto lib = library();
  for (const char* backend : backends())
    for (const duet_dtype dtype : kDtypes) {
      if (backend == std::string("reference") || !on_cpu(backend)) continue;  // the reference keeps S in double within a call
      INFO(backend << ", dtype " << dtype);
      const auto m = load(lib, golden::path("tiny.pth"), backend, dtype);
      const auto tokens = random_tokens(150, 4);
      const auto s = state(m);
      const auto want = forward(session(m, DUET_MODE_PARALLEL), s, tokens);
      const auto want_state = arrays(m, s);
      for (const uint32_t pass : {1u, 16u, 33u, 149u}) {
        check(duet_state_reset(s.get(), 0));
        CHECK(forward(session(m, DUET_MODE_PARALLEL, pass), s, tokens) == want);
        CHECK(arrays(m, s) == want_state);
      }
    }
}

TEST_CASE("parallel mode: the same bits before and after a model's first pass in recurrent mode") {
  const auto lib = library();
  for (const char* backend : backends())
    for (const duet_dtype dtype : kDtypes) {  // f32 is mapped: its layers become what recurrent mode wants at that pass
      INFO(backend << ", dtype " << dtype);
      const auto m = load(lib, golden::path("tiny.pth"), backend, dtype);
      const auto tokens = random_tokens(40, 8);
      const auto want = forward(session(m, DUET_MODE_PARALLEL), state(m), tokens), recurrent = forward(session(m, DUET_MODE_RECURRENT), state(m), tokens);
      CHECK(forward(session(m, DUET_MODE_PARALLEL), state(m), tokens) == want);
      CHECK(forward(session(m, DUET_MODE_RECURRENT), state(m), tokens) == recurrent);
    }
}

TEST_CASE("the same bits from run to run and whatever the threads") {
  std::vector<float> want[2];
  for (const uint32_t threads : {1u, 2u, 3u, 2u}) {
    const auto lib = library(threads);
    const auto m = load(lib, golden::path("tiny.pth"), backends().back(), DUET_BF16);
    for (const duet_mode mode : kModes) {
      const auto got = forward(session(m, mode), state(m), random_tokens(70, 5));
      auto& w = want[mode == DUET_MODE_PARALLEL];
      if (w.empty()) w = got;
      CHECK(got == w);
    }
  }
}

TEST_CASE("auto reads runs in parallel and single tokens recurrently") {
  const auto lib = library();
  const auto m = load(lib, golden::path("tiny.pth"), backends().back());
  const auto tokens = random_tokens(40, 6);
  const auto a = state(m), b = state(m);
  const auto x = session(m, DUET_MODE_AUTO);
  CHECK(forward(x, a, tokens) == forward(session(m, DUET_MODE_PARALLEL), b, tokens));
  CHECK(forward(x, a, {7}) == forward(session(m, DUET_MODE_RECURRENT), b, {7}));
}

TEST_CASE("outputs: last logits, none, hidden, v_first") {
  const auto lib = library();
  for (const char* backend : backends())
    for (const duet_mode mode : kModes) {
      INFO(backend << ", mode " << mode);
      const auto m = load(lib, golden::path("tiny.pth"), backend, DUET_F32);
      const auto i = info(m);
      const auto x = session(m, mode, 16);  // several passes
      Batch b;
      b.add(random_tokens(21, 7), 0);
      b.add({}, 1);
      b.add(random_tokens(1, 8), 2);
      b.add(random_tokens(90, 9), 3);
      const auto run = [&](uint32_t outputs, uint32_t which) { return forward(x, state(m, 4), b, outputs, which); };
      const auto all = run(DUET_OUT_ALL_LOGITS, DUET_OUTPUT_LOGITS);
      REQUIRE(all.size() == size_t{112} * i.n_vocab);
      const auto row = [&](const std::vector<float>& v, size_t r, size_t width) {
        return std::vector<float>(v.begin() + static_cast<ptrdiff_t>(r * width), v.begin() + static_cast<ptrdiff_t>((r + 1) * width));
      };
      const auto last = run(DUET_OUT_LAST_LOGITS, DUET_OUTPUT_LOGITS);
      REQUIRE(last.size() == size_t{3} * i.n_vocab);  // the empty sequence has no row
      CHECK(row(last, 0, i.n_vocab) == row(all, 20, i.n_vocab));
      CHECK(row(last, 1, i.n_vocab) == row(all, 21, i.n_vocab));
      CHECK(row(last, 2, i.n_vocab) == row(all, 111, i.n_vocab));
      CHECK(run(DUET_OUT_NO_LOGITS, DUET_OUTPUT_LOGITS).empty());
      const auto hidden = run(DUET_OUT_ALL_LOGITS | DUET_OUT_HIDDEN, DUET_OUTPUT_HIDDEN);
      REQUIRE(hidden.size() == size_t{112} * i.n_embd);
      CHECK(row(run(DUET_OUT_NO_LOGITS | DUET_OUT_HIDDEN, DUET_OUTPUT_HIDDEN), 2, i.n_embd) == row(hidden, 111, i.n_embd));
      const auto v = run(DUET_OUT_V_FIRST, DUET_OUTPUT_V_FIRST);
      REQUIRE(v.size() == size_t{112} * i.n_embd);
      // v_first of a token depends on it and the one before alone: the single token of slot 2 gives the same from a zero state
      Batch one;
      one.add({b.tokens[21]}, 0);
      CHECK(forward(x, state(m), one, DUET_OUT_V_FIRST, DUET_OUTPUT_V_FIRST) == row(v, 21, i.n_embd));
    }
}

// Outputs lie where the pass left them, or, if it took several, were copied: a text that is scored comes into their way.
TEST_CASE("the outputs of a forward outlast a score, and end with the next forward") {
  const auto lib = library();
  for (const char* backend : backends())
    for (const uint32_t n : {1, 3, 64, 65}) {
      INFO(backend << ", " << n << " sequences");
      const auto m = load(lib, golden::path("tiny.pth"), backend, DUET_F32);
      const auto x = session(m, DUET_MODE_AUTO);
      const auto s = state(m, n + 1);
      Batch b;
      for (uint32_t i = 0; i < n; ++i) b.add({static_cast<int32_t>(5 * i % 256)}, i);
      const auto outputs = [&](uint32_t which) {
        const float* data = nullptr;
        uint32_t rows = 0, width = 0;
        check(duet_session_outputs(x.get(), which, &data, &rows, &width));
        return std::vector<float>(data, data + size_t{rows} * width);
      };
      const auto logits = forward(x, s, b, DUET_OUT_LAST_LOGITS | DUET_OUT_HIDDEN), hidden = outputs(DUET_OUTPUT_HIDDEN);
      CHECK(logits.size() == n * info(m).n_vocab);
      CHECK(hidden.size() == n * info(m).n_embd);
      const auto tokens = random_tokens(100, 5);
      std::vector<double> nll(99);
      check(duet_score(x.get(), s.get(), n, tokens.data(), tokens.size(), nll.data()));
      CHECK(outputs(DUET_OUTPUT_LOGITS) == logits);
      CHECK(outputs(DUET_OUTPUT_HIDDEN) == hidden);
      (void)forward(x, s, b, DUET_OUT_NO_LOGITS);
      CHECK(outputs(DUET_OUTPUT_LOGITS).empty());
      CHECK(outputs(DUET_OUTPUT_HIDDEN).empty());
    }
}

TEST_CASE("score gives the same as all logits") {
  const auto lib = library();
  const auto m = load(lib, golden::path("tiny.pth"), backends().back(), DUET_F32);
  const auto tokens = golden::load("tiny_golden.safetensors").at("t300.tokens").i32;
  for (const duet_mode mode : kModes) {
    std::vector<double> nll(tokens.size() - 1);
    const auto s = state(m);
    check(duet_score(session(m, mode).get(), s.get(), 0, tokens.data(), tokens.size(), nll.data()));
    double sum = 0;
    for (double v : nll) sum += v;
    CHECK(sum / static_cast<double>(nll.size()) == Approx(golden::load_json("tiny_golden.json")["losses"]["t300"].get<double>()).margin(1e-5));
  }
}
