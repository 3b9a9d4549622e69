// Samplers and logits on which whoever draws must agree with the host's sampler, token by token.
#pragma once
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "exec/draws.h"
#include "support/catch.h"

namespace draw_cases {

using duet::SamplerOptions;
using Floats = std::vector<float>;
constexpr float kInf = std::numeric_limits<float>::infinity();

// `tokenizer`, if any, makes some tokens free.
inline std::vector<SamplerOptions> samplers(uint32_t n_vocab, std::shared_ptr<const duet::Tokenizer> tokenizer) {
  std::vector<SamplerOptions> out;
  const auto last = static_cast<int32_t>(n_vocab - 1);
  uint64_t seed = 1;
  for (const float temperature : {0.0f, 0.3f, 1.0f, 1.7f, 1e-30f, 1e30f})
    for (const float top_p : {0.0f, 0.3f, 0.9f, 0.9999999f, 1.0f})
      for (const uint32_t top_k : {0u, 1u, 7u, 1000u}) {
        SamplerOptions o;
        o.temperature = temperature, o.top_p = top_p, o.top_k = top_k;
        o.min_p = seed % 3 ? 0 : 0.05f;
        if (seed % 2) o.presence = 0.4f, o.frequency = 0.3f, o.decay = seed % 5 ? 0.9f : 0;
        if (seed % 4 == 1) o.bias = {{0, 1.5f}, {last, -kInf}, {0, 0.25f}, {last / 2, 3.0f}};
        if (n_vocab == 1) o.bias.clear();
        if (seed % 8 == 1) o.tokenizer = tokenizer;
        o.seed = seed * 0x123456789ull, o.sequence = seed % 7 ? seed : ~uint64_t{0} - seed;
        out.push_back(o);
        ++seed;
      }
  return out;
}

// Normal, with ties, flat, all equal, mostly banned, far apart.
inline std::vector<Floats> logits(uint32_t n_vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  const auto fill = [&](auto f) {
    Floats v(n_vocab);
    for (uint32_t i = 0; i < n_vocab; ++i) v[i] = f(i);
    return v;
  };
  return {fill([&](uint32_t) { return 3 * normal(random); }),
          fill([&](uint32_t) { return std::round(6 * normal(random)) / 4; }),
          fill([&](uint32_t) { return 1e-3f * normal(random); }),
          fill([&](uint32_t) { return 2.5f; }),
          fill([&](uint32_t i) { return i % 5 == 3 || i == 0 ? normal(random) : -kInf; }),
          fill([&](uint32_t i) { return i % 11 ? -3e38f : 40 * normal(random); })};
}

}  // namespace draw_cases
