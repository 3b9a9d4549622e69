#include "text/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace duet {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr size_t kMaxLogits = 1 << 24;  // so many roundings stay far below 1 - top_p for every float below 1

void check_range(const char* name, float value, float low, float high) {
  if (value >= low && value <= high) return;  // false for NaN
  if (high < std::numeric_limits<float>::max()) fail(DUET_E_INVALID, "sampler: {} is {}; it must be from {} to {}", name, value, low, high);
  if (low > std::numeric_limits<float>::lowest()) fail(DUET_E_INVALID, "sampler: {} is {}; it must be {} or more, and finite", name, value, low);
  fail(DUET_E_INVALID, "sampler: {} is {}; it must be finite", name, value);
}

// The largest of n numbers, in lanes that a compiler keeps in vectors; -inf where one is NaN or +inf, which adjust() then names.
float largest(std::span<const float> x) {
  constexpr size_t kLanes = 16;
  std::array<float, kLanes> lane;
  lane.fill(-std::numeric_limits<float>::infinity());
  std::array<int32_t, kLanes> bad{};
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) {
      lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
      bad[j] |= !(x[i + j] < std::numeric_limits<float>::infinity());
    }
  for (; i < x.size(); ++i) {
    lane[0] = std::max(lane[0], x[i]);
    bad[0] |= !(x[i] < std::numeric_limits<float>::infinity());
  }
  if (std::any_of(bad.begin(), bad.end(), [](int32_t b) { return b != 0; })) return -std::numeric_limits<float>::infinity();
  return *std::max_element(lane.begin(), lane.end());
}

}  // namespace

Sampler::Sampler(SamplerOptions options) : options_(std::move(options)) {
  constexpr float kLowest = std::numeric_limits<float>::lowest(), kMost = std::numeric_limits<float>::max();
  check_range("temperature", options_.temperature, 0, kMost);
  check_range("top_p", options_.top_p, 0, kMost);
  check_range("min_p", options_.min_p, 0, 1);
  check_range("presence", options_.presence, kLowest, kMost);
  check_range("frequency", options_.frequency, kLowest, kMost);
  check_range("decay", options_.decay, 0, 1);
  for (const auto& [token, bias] : options_.bias) {
    if (token < 0) fail(DUET_E_INVALID, "sampler: a bias names token {}; tokens are 0 or more", token);
    if (std::isnan(bias) || bias == kInf) fail(DUET_E_INVALID, "sampler: the bias of token {} is {}; it must be finite, or -inf to ban the token", token, bias);
  }
  const auto n = options_.tokenizer && keeps_counts() ? static_cast<int32_t>(options_.tokenizer->size()) : 0;
  for (int32_t token = 1; token < n; ++token)
    if (is_free(token)) free_.push_back(token);
}

// Official: digits and blanks may repeat freely. Token 0 and rows without a token have no text, so they count.
bool Sampler::is_free(int32_t token) const {
  constexpr std::string_view kFree = " \t0123456789";
  const Tokenizer* t = options_.tokenizer.get();
  return t != nullptr && token > 0 && static_cast<uint32_t>(token) < t->size() && kFree.find(t->bytes(token)) != kFree.npos;
}

void Sampler::adjust(std::span<const float> logits) {
  const size_t n = logits.size();
  if (n == 0 || n > kMaxLogits) fail(DUET_E_INVALID, "sampler: {} logits; there must be 1 to {}", n, kMaxLogits);
  logits_.assign(logits.begin(), logits.end());
  for (size_t i = 0; i < n; ++i)
    if (!(logits_[i] < kInf)) fail(DUET_E_NUMERIC, kLogitIsNoNumber, i);
  for (const auto& [token, bias] : options_.bias) {
    if (static_cast<size_t>(token) >= n) fail(DUET_E_INVALID, "sampler: a bias names token {}, but there are {} logits", token, n);
    logits_[token] += bias;
  }
  for (const auto& [token, count] : count_) {
    if (static_cast<size_t>(token) >= n) fail(DUET_E_INVALID, "sampler: token {} was accepted, but there are {} logits", token, n);
    logits_[token] -= options_.presence + count * options_.frequency;
  }
  max_ = *std::max_element(logits_.begin(), logits_.end());
  if (max_ == -kInf) fail(DUET_E_NUMERIC, kNothingToDraw, n);
}

// The first rank at which the sum of weight(token) over all ranks so far is `target` or more. Instead of sorting all, adds
// the weights up in buckets of 1/64 of a logit and sorts the one bucket in which the sum gets there.
template <class Weight>
Sampler::Rank Sampler::reach(double target, Weight weight) {
  constexpr int kBuckets = 4096;
  const auto bucket = [this](size_t i) { return static_cast<int>(std::min((max_ - logits_[i]) * 64, kBuckets - 1.0)); };
  std::array<double, kBuckets> sum{};
  for (size_t i = 0; i < logits_.size(); ++i) sum[bucket(i)] += weight(i);
  double reached = 0;
  int b = 0;
  while (b < kBuckets - 1 && reached + sum[b] < target) reached += sum[b++];

  ranks_.clear();
  for (size_t i = 0; i < logits_.size(); ++i)
    if (bucket(i) == b) ranks_.push_back({logits_[i], static_cast<int32_t>(i)});
  std::sort(ranks_.begin(), ranks_.end(), [](Rank a, Rank c) { return a.logit != c.logit ? a.logit > c.logit : a.token < c.token; });
  for (const Rank& r : ranks_)
    if ((reached += weight(r.token)) >= target) return r;
  return ranks_.back();  // in this order the bucket's sum missed the target by a rounding
}

// All cuts keep the head of one ranking, so that together they keep the shortest.
Sampler::Rank Sampler::last_kept() {
  constexpr int32_t kLast = std::numeric_limits<int32_t>::max();
  Rank last{-kInf, kLast};
  const auto cut = [&last](Rank r) {
    if (r.logit > last.logit || (r.logit == last.logit && r.token < last.token)) last = r;
  };
  if (options_.top_p < 1) {
    p_.resize(logits_.size());
    double sum = 0;
    for (size_t i = 0; i < p_.size(); ++i) sum += p_[i] = std::exp(logits_[i] - max_);
    cut({reach(options_.top_p * sum, [this](size_t i) { return p_[i]; }).logit, kLast});
  }
  if (options_.top_k > 0 && options_.top_k < logits_.size()) cut(reach(options_.top_k, [](size_t) { return 1.0; }));
  if (options_.min_p > 0) cut({max_ + std::log(static_cast<double>(options_.min_p)), kLast});
  return last;
}

void Sampler::keep(std::span<const float> logits) {
  kept_.clear();
  if (options_.temperature == 0 && options_.bias.empty() && count_.empty()) {  // nothing is added: no logit need be copied
    if (const float max = largest(logits); max > -kInf) {
      kept_.push_back({static_cast<int32_t>(std::find(logits.begin(), logits.end(), max) - logits.begin()), 1});
      total_ = 1;
      return;
    }
  }
  adjust(logits);
  if (options_.temperature == 0) {
    kept_.push_back({static_cast<int32_t>(std::find(logits_.begin(), logits_.end(), max_) - logits_.begin()), 1});
    total_ = 1;
    return;
  }
  const Rank last = last_kept();
  const double temperature = options_.temperature;
  total_ = 0;
  for (size_t i = 0; i < logits_.size(); ++i) {
    const double logit = logits_[i];
    if (logit < last.logit || (logit == last.logit && static_cast<int32_t>(i) > last.token)) continue;
    const double weight = std::exp((logit - max_) / temperature);  // the power 1/temperature of the softmax, up to the norm
    kept_.push_back({static_cast<int32_t>(i), weight});
    total_ += weight;
  }
}

void Sampler::probs(std::span<const float> logits, std::span<float> out) {
  if (out.size() != logits.size()) fail(DUET_E_INVALID, "sampler: {} logits, but room for {} probabilities", logits.size(), out.size());
  keep(logits);
  std::fill(out.begin(), out.end(), 0.0f);
  for (const Kept& k : kept_) out[k.token] = static_cast<float>(k.weight / total_);
}

int32_t Sampler::draw(std::span<const float> logits) {
  keep(logits);
  const double target = counter_uniform(options_.seed, options_.sequence, position_) * total_;
  double sum = 0;
  const auto drawn = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& k) { return (sum += k.weight) > target; });
  return drawn->token;  // there is one: target < total_, which is the same sum
}

int32_t Sampler::pick(std::span<const float> logits) {
  const int32_t token = draw(logits);
  accept(token);
  return token;
}

void Sampler::accept(int32_t token) {
  if (token < 0) fail(DUET_E_INVALID, "sampler: token {} cannot be accepted; tokens are 0 or more", token);
  ++position_;
  if (!keeps_counts()) return;  // nobody asks for them
  for (auto& [other, count] : count_) count *= options_.decay;
  count_[token] += is_free(token) ? 0 : 1;
}

void Sampler::reset() {
  count_.clear();
  position_ = 0;
}

}  // namespace duet
