// The table of docs/modes.md: how far the two modes, a split prompt and each weight dtype are from one another. Not part of
// the suite: it checks nothing that the other tests do not.
#include <algorithm>
#include <cmath>
#include <cstdio>
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

Run run(const Model& m, const std::vector<int32_t>& tokens, duet_mode mode, uint32_t pass = 0) {
  const auto s = state(m);
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

}  // namespace

TEST_CASE("differences between the modes", "[.measure]") {
  std::printf("| model | backend | weights | modes: logits | modes: state | modes: KL | split in %u: logits | to f32: logits | to f32: KL |\n|---|---|---|---|---|---|---|---|---|\n", kPass);
  const auto g = golden::load("tiny_golden.safetensors");
  measure("tiny", golden::path("tiny.pth"), g.at("t300.tokens").i32);

  const std::string stories = std::string(DUET_SOURCE) + "/models/stories-7m";
  const auto lib = library();
  const auto t = tokenizer(load(lib, stories + "/stories-7m.pth", "reference"));
  const std::string text = golden::slurp(stories + "/heldout.txt").substr(0, 2000);
  std::vector<int32_t> tokens(1 + text.size());  // token 0 begins a text
  size_t n = 0;
  check(duet_tokenizer_encode(t.get(), text.data(), text.size(), tokens.data() + 1, text.size(), &n));
  REQUIRE(n >= 300);
  tokens.resize(300);
  measure("stories-7m", stories + "/stories-7m.pth", tokens);
}
