// Draws of whole vocabularies: quick sums and narrowed ranks must not be seen in what is drawn.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "support/allocations.h"
#include "support/draw_cases.h"
#include "text/sampler.h"

using namespace duet;
using draw_cases::Floats;
using draw_cases::kInf;

namespace {

Floats probs(const SamplerOptions& o, const Floats& logits) {
  Sampler s(o);
  Floats out(logits.size());
  s.probs(logits, out);
  return out;
}

// One draw of docs/mathematics.md, "Sampling", that sorts all tokens and takes every sum with std::exp.
int32_t plain_draw(const Sampler& s, const Floats& logits) {
  const SamplerOptions& o = s.options();
  std::vector<double> logit(logits.begin(), logits.end());
  for (const auto& [token, bias] : o.bias) logit[static_cast<size_t>(token)] += bias;
  for (const auto& [token, count] : s.counts()) logit[static_cast<size_t>(token)] -= o.presence + count * o.frequency;
  std::vector<size_t> rank(logit.size());
  std::iota(rank.begin(), rank.end(), size_t{0});
  std::stable_sort(rank.begin(), rank.end(), [&](size_t a, size_t b) { return logit[a] > logit[b]; });
  const double max = logit[rank[0]];
  if (o.temperature == 0) return static_cast<int32_t>(rank[0]);
  size_t n = rank.size();
  if (o.top_k > 0) n = std::min<size_t>(n, o.top_k);
  if (o.top_p < 1) {
    double sum = 0, reached = 0;
    for (const double x : logit) sum += std::exp(x - max);
    size_t r = 0;
    while (r + 1 < rank.size() && (reached += std::exp(logit[rank[r]] - max)) < o.top_p * sum) ++r;
    while (r + 1 < rank.size() && logit[rank[r + 1]] == logit[rank[r]]) ++r;
    n = std::min(n, r + 1);
  }
  if (o.min_p > 0) n = std::min<size_t>(n, static_cast<size_t>(std::count_if(logit.begin(), logit.end(), [&](double x) { return x >= max + std::log(double{o.min_p}); })));
  std::vector<double> weight(logit.size());
  for (size_t r = 0; r < n; ++r) weight[rank[r]] = std::exp((logit[rank[r]] - max) / o.temperature);
  const double target = counter_uniform(o.seed, o.sequence, s.position()) * std::accumulate(weight.begin(), weight.end(), 0.0);
  double sum = 0;
  return static_cast<int32_t>(std::find_if(weight.begin(), weight.end(), [&](double w) { return (sum += w) > target; }) - weight.begin());
}

void compare(uint32_t V, size_t stride, int n_draws) {
  const auto all = draw_cases::samplers(V, nullptr);
  for (uint32_t kind = 0; kind < 6; ++kind) {
    const Floats logits = draw_cases::logits(V, V + kind)[kind];
    for (size_t i = kind % stride; i < all.size(); i += stride) {
      Sampler s(all[i]);
      for (int draw = 0; draw < n_draws; ++draw) {
        INFO("V " << V << ", kind " << kind << ", sampler " << i << ", draw " << draw);
        const int32_t want = plain_draw(s, logits);
        REQUIRE(s.pick(logits) == want);
      }
    }
  }
}

// A logit and a bias that add up to x, to 48 bits.
struct Sum {
  float logit, bias;
  explicit Sum(double x) : logit(static_cast<float>(x)), bias(static_cast<float>(x - logit)) {}
  double value() const { return double{logit} + double{bias}; }
};

}  // namespace

TEST_CASE("draws are those of sorting everything and adding up with std::exp") {
  for (const uint32_t V : {1u, 2u, 63u, 64u, 65u, 1000u}) compare(V, 1, 3);
  compare(65536, 11, 1);
}

TEST_CASE("draws at the very border of two tokens are those of std::exp") {
  int n_first = 0, n = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SamplerOptions o;
    o.seed = seed;
    const double u = counter_uniform(seed, 0, 0);
    if (u < 0.5) continue;
    for (int step = -20; step <= 20; ++step) {
      const Sum d(std::log((1 - u) / u) * (1 + 2e-14 * step));  // 1 = u (1 + e^d), but for roundings
      o.bias = {{1, d.bias}};
      const int32_t want = 1.0 > u * (1 + std::exp(d.value())) ? 0 : 1;
      INFO("seed " << seed << ", step " << step);
      CHECK(Sampler(o).pick(Floats{0, d.logit}) == want);
      n_first += want == 0, ++n;
    }
  }
  CHECK(n > 1000);
  CHECK(n_first > n / 4);  // so the steps do cross the border
  CHECK(n_first < n * 3 / 4);
}

TEST_CASE("top-p at the very border of two tokens is that of std::exp") {
  int n_one = 0, n = 0;
  for (float top_p = 0.51f; top_p < 0.999f; top_p += 0.0037f)
    for (int step = -20; step <= 20; ++step) {
      const Sum d(std::log((1 - double{top_p}) / top_p) * (1 + 2e-14 * step));
      SamplerOptions o;
      o.top_p = top_p;
      o.bias = {{1, d.bias}};
      const bool one = 1.0 >= top_p * (1 + std::exp(d.value()));
      INFO("top_p " << top_p << ", step " << step);
      CHECK((probs(o, {0, d.logit})[1] == 0) == one);
      n_one += one, ++n;
    }
  CHECK(n_one > n / 4);
  CHECK(n_one < n * 3 / 4);
}

TEST_CASE("of a million equal logits, the border is where counting puts it") {
  constexpr size_t kMany = (size_t{1} << 20) + 1;
  Floats logits(kMany, -7.25f);
  logits[12345] = -kInf;
  SamplerOptions o;
  for (const auto& [top_p, top_k] : {std::pair{1.0f, 0u}, {0.5f, 0u}, {0.0f, 0u}, {0.9999999f, 0u}, {1.0f, 777u}, {0.5f, 777'777u}}) {
    o.top_p = top_p, o.top_k = top_k;
    INFO("top_p " << top_p << " top_k " << top_k);
    const Floats p = probs(o, logits);
    const size_t end = top_k > 0 ? top_k + (top_k > 12345 ? 1 : 0) : kMany;  // ties with the last of top_p stay; those with the last of top_k go by id
    const size_t kept = top_k > 0 ? top_k : kMany - 1;
    CHECK(static_cast<size_t>(std::count(p.begin(), p.end(), static_cast<float>(1.0 / static_cast<double>(kept)))) == kept);
    CHECK(std::all_of(p.begin() + static_cast<ptrdiff_t>(end), p.end(), [](float x) { return x == 0; }));
    CHECK(p[12345] == 0);
    Sampler s(o);
    for (uint64_t i = 0; i < 5; ++i) {
      const auto nth = static_cast<int32_t>(counter_uniform(0, 0, i) * static_cast<double>(kept));
      CHECK(s.pick(logits) == nth + (nth >= 12345 ? 1 : 0));
    }
  }
}

TEST_CASE("ranks are told apart that differ by less than a float can") {
  SamplerOptions o;
  o.top_k = 100;
  o.frequency = 1e-40f;
  o.decay = 1e-38f;
  Sampler s(o);
  for (int i = 0; i < 8; ++i) s.accept(i < 1 ? 3 : 200 + i);  // token 3 is 10^-306 below its peers by now
  Floats logits(150, 0.0f), p(150);
  logits.resize(300, -1.0f), p.resize(300);
  s.probs(logits, p);
  CHECK(p[3] == 0);
  CHECK(std::count(p.begin(), p.end(), 0.01f) == 100);
  CHECK(p[100] == 0.01f);
  CHECK(p[101] == 0);
}

TEST_CASE("probabilities may take the place of their logits") {
  for (const float temperature : {0.0f, 1.0f})
    for (const float top_p : {0.9f, 1.0f}) {
      SamplerOptions o;
      o.temperature = temperature, o.top_p = top_p;
      Floats row = draw_cases::logits(200, 3)[0];
      const Floats want = probs(o, row);
      Sampler(o).probs(row, row);
      CHECK(row == want);
    }
}

TEST_CASE("a draw allocates nothing once there were some") {
  const Floats logits = draw_cases::logits(5000, 1)[0];
  for (const float top_p : {0.9f, 1.0f})
    for (const uint32_t top_k : {0u, 50u})
      for (const float temperature : {0.0f, 1.0f})
        for (const float bias : {0.0f, 2.0f}) {
          SamplerOptions o;
          o.temperature = temperature, o.top_p = top_p, o.top_k = top_k;
          if (bias > 0) o.bias = {{7, bias}};
          Sampler s(o);
          for (int i = 0; i < 4; ++i) s.pick(logits);
          CHECK(peak_allocated([&] { s.pick(logits); }) == 0);
        }
}
