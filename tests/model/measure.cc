// The tables of docs/modes.md and docs/states.md: how far the two modes, a split prompt, each weight dtype and each dtype of the
// stored state are from one another. Not part of the suite: it checks nothing that the other tests do not.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <tuple>
#include <utility>

#include "support/api.h"
#include "support/golden.h"

using namespace api;

namespace {

constexpr uint32_t kPass = 16;  // tokens of a pass, where the prompt is split

struct Run {
  std::vector<float> logits;
  Arrays state;
};

Run run(const Model& m, const std::vector<int32_t>& tokens, duet_mode mode, uint32_t pass = 0, duet_dtype wkv = DUET_F32) {
  const auto s = state(m, 1, wkv);
  auto logits = forward(session(m, mode, pass), s, tokens);
  return {std::move(logits), arrays(m, s)};
}

double worst_state(const Arrays& a, const Arrays& b) { return std::max({worst(a.att_x, b.att_x), worst(a.wkv, b.wkv), worst(a.ffn_x, b.ffn_x)}); }

std::vector<double> log_softmax(const float* logits, size_t V) {
  const double top = *std::max_element(logits, logits + V);
  double sum = 0;
  for (size_t i = 0; i < V; ++i) sum += std::exp(logits[i] - top);
  std::vector<double> out(V);
  for (size_t i = 0; i < V; ++i) out[i] = logits[i] - top - std::log(sum);
  return out;
}

// mean over the tokens of KL(p || q)
double mean_kl(const std::vector<float>& p, const std::vector<float>& q, size_t V) {
  double sum = 0;
  for (size_t at = 0; at < p.size(); at += V) {
    const auto lp = log_softmax(p.data() + at, V), lq = log_softmax(q.data() + at, V);
    for (size_t i = 0; i < V; ++i) sum += std::exp(lp[i]) * (lp[i] - lq[i]);
  }
  return sum / static_cast<double>(p.size() / V);
}

void measure(const char* name, const std::string& path, const std::vector<int32_t>& tokens) {
  const auto lib = library();
  const auto exact_model = load(lib, path, "reference", DUET_F32);
  const size_t V = info(exact_model).n_vocab;
  const auto exact = run(exact_model, tokens, DUET_MODE_RECURRENT);
  for (const char* backend : backends())
    for (const auto& [dtype, dtype_name] : {std::pair(DUET_F32, "f32"), std::pair(DUET_BF16, "bf16"), std::pair(DUET_F16, "f16"), std::pair(DUET_I8, "q8"), std::pair(DUET_I4, "q4")}) {
      const auto m = load(lib, path, backend, dtype);
      const auto parallel = run(m, tokens, DUET_MODE_PARALLEL), recurrent = run(m, tokens, DUET_MODE_RECURRENT);
      const auto pieces = run(m, tokens, DUET_MODE_PARALLEL, kPass);
      std::printf("| %s | %s | %s | %.1e | %.1e | %.1e | %.1e | %.1e | %.1e |\n", name, backend, dtype_name, worst(parallel.logits, recurrent.logits),
                  worst_state(parallel.state, recurrent.state), mean_kl(recurrent.logits, parallel.logits, V), worst(parallel.logits, pieces.logits),
                  worst(parallel.logits, exact.logits), mean_kl(exact.logits, parallel.logits, V));
    }
}

// Against f32 in the same mode, f32 weights
void measure_stored(const char* name, const std::string& path, const std::vector<int32_t>& tokens) {
  const auto lib = library();
  for (const char* backend : backends()) {
    const auto m = load(lib, path, backend, DUET_F32);
    const size_t V = info(m).n_vocab;
    for (const auto& [mode, pass, how] : {std::tuple(DUET_MODE_RECURRENT, 0u, "recurrent"), std::tuple(DUET_MODE_PARALLEL, kPass, "parallel, passes of 16"), std::tuple(DUET_MODE_PARALLEL, 0u, "parallel, one pass")}) {
      const auto exact = run(m, tokens, mode, pass);
      for (const auto& [dtype, dtype_name] : {std::pair(DUET_F16, "f16"), std::pair(DUET_BF16, "bf16")}) {
        duet_state* none = nullptr;
        auto o = DUET_INIT(duet_state_options);
        o.wkv = dtype;
        if (duet_state_create(m.get(), 1, &o, &none) == DUET_E_UNSUPPORTED) continue;
        duet_state_free(none);
        const auto got = run(m, tokens, mode, pass, dtype);
        const size_t third = tokens.size() / 3 * V;
        const auto part = [&](const std::vector<float>& v, size_t i) { return std::vector<float>(v.begin() + static_cast<std::ptrdiff_t>(i * third), v.begin() + static_cast<std::ptrdiff_t>((i + 1) * third)); };
        float largest = 0;
        for (float x : exact.state.wkv) largest = std::max(largest, std::abs(x));
        std::printf("| %s | %s | %s | %s | %.1e | %.1e | %.1e | %.1e | %.2g |\n", name, backend, dtype_name, how, worst(got.logits, exact.logits), worst(got.state.wkv, exact.state.wkv),
                    mean_kl(part(exact.logits, 0), part(got.logits, 0), V), mean_kl(part(exact.logits, 2), part(got.logits, 2), V), static_cast<double>(largest));
      }
    }
  }
}

// The first `most` tokens of the stories' held-out text, after token 0.
std::vector<int32_t> story_tokens(const std::string& folder, size_t most) {
  const auto lib = library();
  const auto t = tokenizer(load(lib, folder + "/stories-7m.pth", "reference"));
  const std::string text = golden::slurp(folder + "/heldout.txt").substr(0, 8 * most);
  std::vector<int32_t> tokens(1 + text.size());  // token 0 begins a text
  size_t n = 0;
  check(duet_tokenizer_encode(t.get(), text.data(), text.size(), tokens.data() + 1, text.size(), &n));
  REQUIRE(n >= most);
  tokens.resize(most);
  return tokens;
}

const std::string kStories = std::string(DUET_SOURCE) + "/models/stories-7m";

}  // namespace

TEST_CASE("differences between the modes", "[.measure]") {
  std::printf("| model | backend | weights | modes: logits | modes: state | modes: KL | split in %u: logits | to f32: logits | to f32: KL |\n|---|---|---|---|---|---|---|---|---|\n", kPass);
  const auto g = golden::load("tiny_golden.safetensors");
  measure("tiny", golden::path("tiny.pth"), g.at("t300.tokens").i32);

  measure("stories-7m", kStories + "/stories-7m.pth", story_tokens(kStories, 300));
}

TEST_CASE("differences of stored states", "[.measure]") {
  std::printf("| model | backend | state | mode | logits | S | KL, first third | KL, last third | largest of S |\n|---|---|---|---|---|---|---|---|---|\n");
  measure_stored("tiny", golden::path("tiny.pth"), golden::load("tiny_golden.safetensors").at("t300.tokens").i32);
  measure_stored("stories-7m", kStories + "/stories-7m.pth", story_tokens(kStories, 600));
}
