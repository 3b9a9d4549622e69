// From logits to the next token: the official order of docs/mathematics.md, sampling.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "text/tokenizer.h"

namespace duet {

struct SamplerOptions {
  uint32_t top_k = 0;
  float temperature = 1, top_p = 1, min_p = 0, presence = 0, frequency = 0, decay = 0.996f;
  uint64_t seed = 0, sequence = 0;
  std::vector<std::pair<int32_t, float>> bias;
  std::shared_ptr<const Tokenizer> tokenizer;
};

// Uniform in [0,1): Philox4x32-10 keyed by seed, counter (sequence, position). The same on every device.
double counter_uniform(uint64_t seed, uint64_t sequence, uint64_t position);

class Sampler {
 public:
  explicit Sampler(SamplerOptions options);  // DUET_E_INVALID names the option, its value and the range
  // out [n]. DUET_E_NUMERIC if a logit is NaN or +inf, or all are -inf. Work in double.
  void probs(std::span<const float> logits, std::span<float> out);
  int32_t pick(std::span<const float> logits);  // draws and accepts
  void accept(int32_t token);
  void reset();

 private:
  SamplerOptions options_;
  std::unordered_map<int32_t, double> count_;  // official "occurrence" table
  uint64_t position_ = 0;                      // tokens accepted so far
};

}  // namespace duet
