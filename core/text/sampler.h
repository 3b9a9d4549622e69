// From logits to the next token: the official order of docs/mathematics.md, sampling.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/cuts.h"
#include "text/tokenizer.h"

namespace duet {

struct SamplerOptions {
  uint32_t top_k = 0;
  float temperature = 1, top_p = 1, min_p = 0, presence = 0, frequency = 0, decay = 0.996f;
  uint64_t seed = 0, sequence = 0;
  std::vector<std::pair<int32_t, float>> bias;
  std::shared_ptr<const Tokenizer> tokenizer;
};

// Why nothing can be drawn, whoever finds out: the sampler with a token, or a device's stage for it; with the number of logits.
constexpr char kLogitIsNoNumber[] = "sampler: the logit of token {} is NaN or +inf: weights that are not finite give such, and duet_file_info with DUET_FILE_VERIFY names them";
constexpr char kNothingToDraw[] = "sampler: all {} logits are -inf after the bias; there is no token to draw";

// Uniform in [0,1), a multiple of 2^-53: Philox4x32-10 keyed by seed, counter (position, sequence). The same on every device.
double counter_uniform(uint64_t seed, uint64_t sequence, uint64_t position);

class Sampler {
 public:
  explicit Sampler(SamplerOptions options);  // DUET_E_INVALID names the option, its value and the range
  // out [n]. DUET_E_NUMERIC if a logit is NaN or +inf, or all are -inf; DUET_E_INVALID if a bias or an accepted token lies
  // beyond the logits. Work in double, sums by rising token. Temperature 0 takes the first largest logit; ties with the last
  // value that top_p keeps stay, ties at the end of top_k go to the lower ids.
  void probs(std::span<const float> logits, std::span<float> out);
  int32_t pick(std::span<const float> logits);  // draws and accepts
  int32_t draw(std::span<const float> logits);  // the same again until something is accepted
  void accept(int32_t token);
  void reset();

  // What a device needs to draw as pick() does.
  const SamplerOptions& options() const { return options_; }
  uint64_t position() const { return position_; }
  const std::unordered_map<int32_t, double>& counts() const { return count_; }
  bool keeps_counts() const { return options_.presence != 0 || options_.frequency != 0; }
  bool is_free(int32_t token) const;  // enters the counts with 0
  const std::vector<int32_t>& free_tokens() const { return free_; }  // all of those, where counts are kept

 private:
  void adjust(std::span<const float> logits);  // fills logits_
  template <class Use>
  auto with_adjusted(std::span<const float> logits, Use use);
  template <class Logit, class Use>
  auto with_kept(std::span<const Logit> logits, Use use);
  template <class Logit>
  double weigh(std::span<const Logit> kept);

  SamplerOptions options_;
  std::unordered_map<int32_t, double> count_;  // official "occurrence" table
  uint64_t position_ = 0;                      // tokens accepted so far
  std::vector<int32_t> free_;

  // Scratch, kept from call to call so that a token costs no allocation.
  std::vector<double> logits_;  // with bias and penalties
  double max_ = 0;              // the largest of them
  Cuts cuts_;
  std::vector<double> weights_;  // of what is kept
};

}  // namespace duet
