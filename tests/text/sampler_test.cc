// The sampler: the golden probabilities, the generator's known answers, draws that follow them.
#include "text/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "base/error.h"
#include "support/catch.h"
#include "support/golden.h"

using namespace duet;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
using Floats = std::vector<float>;

Floats probs(Sampler& s, const Floats& logits) {
  Floats out(logits.size());
  s.probs(logits, out);
  return out;
}

Floats probs(SamplerOptions o, const Floats& logits) {
  Sampler s(std::move(o));
  return probs(s, logits);
}

double worst_difference(const Floats& a, const Floats& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(double{a[i]} - double{b[i]}));
  return worst;
}

Floats random_logits(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 2.2f);
  Floats out(n);
  for (float& x : out) x = normal(random);
  return out;
}

void check_refused(const SamplerOptions& o, const std::string& part) {
  try {
    Sampler s(o);
    FAIL("accepted; expected: " << part);
  } catch (const Error& e) {
    CHECK(e.code() == DUET_E_INVALID);
    INFO(e.what());
    CHECK(std::string(e.what()).find(part) != std::string::npos);
  }
}

void check_fails(SamplerOptions o, const Floats& logits, duet_status code, const std::string& part) {
  Sampler s(std::move(o));
  try {
    s.pick(logits);
    FAIL("accepted; expected: " << part);
  } catch (const Error& e) {
    CHECK(e.code() == code);
    INFO(e.what());
    CHECK(std::string(e.what()).find(part) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("the official probabilities, without history") {
  const auto cases = golden::load_json("sampling_golden.json")["static"];
  REQUIRE(cases.size() == 66);
  for (const auto& c : cases) {
    Floats logits;
    for (const auto& x : c["logits"]) logits.push_back(x.is_string() ? -kInf : x.get<float>());
    SamplerOptions o;
    o.temperature = c["temperature"];
    o.top_p = c["top_p"];
    o.top_k = c["top_k"];
    INFO(c["name"] << " temperature " << o.temperature << " top_p " << o.top_p << " top_k " << o.top_k);
    CHECK(worst_difference(probs(o, logits), c["probs"].get<Floats>()) < 1e-6);
  }
}

TEST_CASE("the official probabilities, with penalties and bans, over thirty steps") {
  const auto tensors = golden::load("sampling_penalty.safetensors");
  const auto row_of = [&tensors](const char* name, size_t step) {
    const golden::Tensor& t = tensors.at(name);
    REQUIRE(t.shape == std::vector<uint64_t>{30, 512});
    return Floats(t.f32.begin() + static_cast<long>(step) * 512, t.f32.begin() + static_cast<long>(step + 1) * 512);
  };
  const auto run = golden::load_json("sampling_golden.json")["penalty_run"];
  SamplerOptions o;
  o.temperature = run["args"]["temperature"];
  o.top_p = run["args"]["top_p"];
  o.presence = run["args"]["alpha_presence"];
  o.frequency = run["args"]["alpha_frequency"];
  o.decay = run["args"]["alpha_decay"];
  for (const int32_t token : run["args"]["token_ban"]) o.bias.emplace_back(token, -kInf);
  o.tokenizer = std::make_shared<Tokenizer>(Tokenizer::load(DUET_SOURCE "/models/world/rwkv_vocab_v20230424.txt"));
  Sampler s(o);
  for (size_t t = 0; t < 30; ++t) {
    INFO("step " << t);
    CHECK(worst_difference(probs(s, row_of("logits", t)), row_of("probs", t)) < 1e-6);
    s.accept(run["forced_tokens"][t]);
  }
  s.reset();
  CHECK(worst_difference(probs(s, row_of("logits", 0)), row_of("probs", 0)) < 1e-6);
}

TEST_CASE("the cuts agree with sorting everything") {
  for (const uint32_t seed : {1u, 2u, 3u}) {
    Floats logits = random_logits(5000, seed);
    for (size_t i = 0; i < logits.size(); i += 7) logits[i] = std::round(logits[i] * 4) / 4;  // ties
    for (size_t i = 0; i < logits.size(); i += 11) logits[i] = i % 2 == 0 ? -kInf : logits[i] - 100;
    std::vector<size_t> rank(logits.size());
    for (size_t i = 0; i < rank.size(); ++i) rank[i] = i;
    std::stable_sort(rank.begin(), rank.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    std::vector<double> p(logits.size());
    double sum = 0;
    for (size_t i = 0; i < p.size(); ++i) sum += p[i] = std::exp(double{logits[i]} - double{logits[rank[0]]});
    for (const float top_p : {0.0f, 0.1f, 0.5f, 0.9f, 0.999f, 0.9999999f, 1.0f, 2.0f}) {
      for (const uint32_t top_k : {0u, 1u, 37u, 4000u, 4999u, 5000u, 9000u}) {
        for (const float min_p : {0.0f, 0.02f, 1.0f}) {
          std::vector<double> kept = p;
          double reached = 0, cutoff = 0;
          for (const size_t i : rank) {
            if (top_p < 1 && (reached += p[i] / sum) >= double{top_p}) {
              cutoff = p[i];
              break;
            }
          }
          for (double& x : kept) x = x < cutoff ? 0 : x;
          for (size_t r = top_k == 0 ? rank.size() : top_k; r < rank.size(); ++r) kept[rank[r]] = 0;
          double total = 0;
          for (double& x : kept) total += x = x < double{min_p} * (1 - 1e-12) ? 0 : std::pow(x, 1 / 0.8);
          Floats expected(p.size());
          for (size_t i = 0; i < p.size(); ++i) expected[i] = static_cast<float>(kept[i] / total);
          SamplerOptions o;
          o.top_p = top_p;
          o.top_k = top_k;
          o.min_p = min_p;
          o.temperature = 0.8f;
          INFO("seed " << seed << " top_p " << top_p << " top_k " << top_k << " min_p " << min_p);
          const Floats found = probs(o, logits);
          CHECK(worst_difference(found, expected) < 1e-6);
          const auto n_nonzero = [](const Floats& x) { return std::count_if(x.begin(), x.end(), [](float v) { return v > 1e-30f; }); };
          CHECK(n_nonzero(found) == n_nonzero(expected));
        }
      }
    }
  }
}

TEST_CASE("min-p acts after top-k and before the power, relative to the largest") {
  const Floats logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  SamplerOptions o;
  o.min_p = 0.4f;
  o.temperature = 2;  // after the power the third would pass: sqrt(0.15 / 0.5) = 0.55
  const Floats p = probs(o, logits);
  CHECK(p[0] == Approx(std::sqrt(0.5) / (std::sqrt(0.5) + std::sqrt(0.3))));
  CHECK(p[1] == Approx(1 - p[0]));
  CHECK(p[2] == 0);
  CHECK(p[3] == 0);
}

TEST_CASE("ties") {
  const Floats logits = {1, 3, 2, 3, 3, 0};
  SamplerOptions greedy, top_p, top_k;
  greedy.temperature = 0;
  greedy.top_k = 2;
  top_p.top_p = 0;
  top_k.top_k = 2;
  CHECK(probs(greedy, logits) == Floats{0, 1, 0, 0, 0, 0});
  Sampler s(greedy);
  for (int i = 0; i < 5; ++i) CHECK(s.pick(logits) == 1);
  CHECK(worst_difference(probs(top_p, logits), {0, 1.f / 3, 0, 1.f / 3, 1.f / 3, 0}) < 1e-6);
  CHECK(probs(top_k, logits) == Floats{0, 0.5f, 0, 0.5f, 0, 0});
  CHECK(probs(SamplerOptions{}, Floats(4, 7.f)) == Floats(4, 0.25f));
}

TEST_CASE("bias adds up, bans, and is seen by greedy") {
  SamplerOptions o;
  o.temperature = 0;
  o.bias = {{2, 1.5f}, {2, 1.0f}, {0, -kInf}};
  CHECK(probs(o, {9, 1, 0}) == Floats{0, 0, 1});
}

TEST_CASE("extreme logits and temperatures stay finite") {
  for (const float t : {1e-30f, 0.01f, 1.0f, 1e30f}) {
    SamplerOptions o;
    o.temperature = t;
    for (const Floats& logits : {Floats{3e38f, -3e38f, 0}, Floats{1e-40f, 0, -kInf}, Floats{-3e38f, -kInf, -kInf}, Floats{5}}) {
      double sum = 0;
      for (const float p : probs(o, logits)) sum += p;
      CHECK(sum == Approx(1));
    }
  }
}

TEST_CASE("Philox4x32-10 gives its published answers") {
  // The first two words of the known-answer vectors of Random123: key and counter, all zeros, all ones, digits of pi.
  const auto uniform = [](uint32_t w0, uint32_t w1) { return static_cast<double>((uint64_t{w1} << 32 | w0) >> 11) * 0x1p-53; };
  CHECK(counter_uniform(0, 0, 0) == uniform(0x6627e8d5, 0xe169c58d));
  CHECK(counter_uniform(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}) == uniform(0x408f276d, 0x41c83b0e));
  CHECK(counter_uniform(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88) == uniform(0xd16cfe09, 0x94fdcceb));
}

TEST_CASE("uniform numbers lie from 0 to below 1 and differ with seed, sequence and position") {
  double sum = 0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const double u = counter_uniform(7, 1, i);
    if (!(u >= 0 && u < 1)) FAIL("position " << i << " gives " << u);
    sum += u;
  }
  CHECK(sum / 10000 == Approx(0.5).margin(0.01));
  CHECK(counter_uniform(1, 2, 3) != counter_uniform(2, 2, 3));
  CHECK(counter_uniform(1, 2, 3) != counter_uniform(1, 3, 3));
  CHECK(counter_uniform(1, 2, 3) != counter_uniform(1, 2, 4));
  CHECK(counter_uniform(1, 2, 3) != counter_uniform(1, 3, 2));
}

TEST_CASE("draws depend on seed, sequence and the number of draws alone") {
  const Floats logits = random_logits(300, 4);
  const auto draws = [&](uint64_t seed, uint64_t sequence) {
    SamplerOptions o;
    o.seed = seed;
    o.sequence = sequence;
    Sampler s(o);
    std::vector<int32_t> out;
    for (int i = 0; i < 64; ++i) out.push_back(s.pick(logits));
    s.reset();
    CHECK(s.pick(logits) == out[0]);
    Sampler later(o);  // the first 40 tokens came from elsewhere
    for (int i = 0; i < 40; ++i) later.accept(1);
    CHECK(later.pick(logits) == out[40]);
    return out;
  };
  CHECK(draws(5, 0) == draws(5, 0));
  CHECK(draws(5, 0) != draws(6, 0));
  CHECK(draws(5, 0) != draws(5, 1));
}

TEST_CASE("draws follow the probabilities") {
  const Floats logits = random_logits(20, 5);
  SamplerOptions o;
  o.top_p = 0.9f;
  o.seed = 11;
  Sampler s(o);
  const Floats p = probs(s, logits);
  constexpr int kDraws = 100'000;
  std::vector<int> n(logits.size());
  for (int i = 0; i < kDraws; ++i) ++n[static_cast<size_t>(s.pick(logits))];
  for (size_t i = 0; i < p.size(); ++i) {
    INFO("token " << i);
    CHECK(std::abs(n[i] - p[i] * kDraws) <= 5 * std::sqrt(p[i] * kDraws));  // five standard deviations; none where p is 0
  }
}

TEST_CASE("what is drawn is counted as if it had been accepted") {
  const Floats logits = random_logits(50, 6);
  SamplerOptions o;
  o.presence = 0.5f;
  o.frequency = 0.5f;
  Sampler drawn(o), told(o);
  for (int i = 0; i < 40; ++i) {
    CHECK(probs(drawn, logits) == probs(told, logits));
    told.accept(drawn.pick(logits));
  }
}

TEST_CASE("options out of range name the option, its value and the range") {
  const auto with = [](auto member, float value) {
    SamplerOptions o;
    o.*member = value;
    return o;
  };
  check_refused(with(&SamplerOptions::temperature, -0.5f), "temperature is -0.5; it must be 0 or more");
  check_refused(with(&SamplerOptions::temperature, kNan), "temperature is nan");
  check_refused(with(&SamplerOptions::temperature, kInf), "temperature is inf");
  check_refused(with(&SamplerOptions::top_p, -1e-6f), "top_p is -1e-06");
  check_refused(with(&SamplerOptions::top_p, kNan), "top_p is nan");
  check_refused(with(&SamplerOptions::min_p, -1), "min_p is -1; it must be from 0 to 1");
  check_refused(with(&SamplerOptions::min_p, 1.5f), "min_p is 1.5; it must be from 0 to 1");
  check_refused(with(&SamplerOptions::min_p, kNan), "min_p is nan");
  check_refused(with(&SamplerOptions::presence, kInf), "presence is inf; it must be finite");
  check_refused(with(&SamplerOptions::frequency, kNan), "frequency is nan; it must be finite");
  check_refused(with(&SamplerOptions::decay, 1.01f), "decay is 1.01; it must be from 0 to 1");
  check_refused(with(&SamplerOptions::decay, -0.1f), "decay is -0.1");
  check_refused(with(&SamplerOptions::decay, kNan), "decay is nan");
  SamplerOptions o;
  o.bias = {{3, 1.0f}, {-1, 1.0f}};
  check_refused(o, "names token -1");
  o.bias = {{3, kNan}};
  check_refused(o, "the bias of token 3 is nan");
  o.bias = {{3, kInf}};
  check_refused(o, "the bias of token 3 is inf");
}

TEST_CASE("logits that are not numbers name the token") {
  check_fails({}, {1, 2, kNan}, DUET_E_NUMERIC, "the logit of token 2 is NaN or +inf: weights that are not finite give such, and duet_file_info with DUET_FILE_VERIFY names them");
  check_fails({}, {1, kInf, 2}, DUET_E_NUMERIC, "the logit of token 1 is NaN or +inf: ");
  check_fails({}, {-kInf, -kInf}, DUET_E_NUMERIC, "all 2 logits are -inf");
  check_fails({}, {}, DUET_E_INVALID, "0 logits");
  SamplerOptions banned;
  banned.bias = {{0, -kInf}, {1, -kInf}};
  check_fails(banned, {1, 2}, DUET_E_NUMERIC, "all 2 logits are -inf");
  SamplerOptions beyond;
  beyond.bias = {{2, 1}};
  check_fails(beyond, {1, 2}, DUET_E_INVALID, "names token 2, but there are 2 logits");
  SamplerOptions counted;
  counted.presence = 1;
  Sampler s(counted);
  s.accept(9);
  CHECK_THROWS_AS(s.pick(Floats{1, 2}), Error);
  CHECK_THROWS_AS(s.accept(-1), Error);
  Floats small(1);
  CHECK_THROWS_AS(s.probs(Floats{1, 2}, small), Error);
}
