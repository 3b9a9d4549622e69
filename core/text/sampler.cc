#include "text/sampler.h"

#include <algorithm>
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
  logits_.resize(n);
  std::copy_n(logits.data(), n, logits_.data());
  for (const auto& [token, bias] : options_.bias) {
    if (static_cast<size_t>(token) >= n) fail(DUET_E_INVALID, "sampler: a bias names token {}, but there are {} logits", token, n);
    logits_[token] += bias;
  }
  for (const auto& [token, count] : count_) {
    if (static_cast<size_t>(token) >= n) fail(DUET_E_INVALID, "sampler: token {} was accepted, but there are {} logits", token, n);
    logits_[token] -= options_.presence + count * options_.frequency;
  }
}

// Calls use(logits), with bias and penalties; they are not copied where nothing is added.
template <class Use>
auto Sampler::with_adjusted(std::span<const float> logits, Use use) {
  const size_t n = logits.size();
  if (n == 0 || n > kMaxLogits) fail(DUET_E_INVALID, "sampler: {} logits; there must be 1 to {}", n, kMaxLogits);
  const bool plain = options_.bias.empty() && count_.empty();
  if (!plain) adjust(logits);
  max_ = plain ? cuts_.largest(logits) : cuts_.largest(std::span<const double>(logits_));
  if (max_ == -kInf) {
    const auto bad = std::find_if(logits.begin(), logits.end(), [](float x) { return !(x < kInf); });
    if (bad != logits.end()) fail(DUET_E_NUMERIC, kLogitIsNoNumber, bad - logits.begin());
    fail(DUET_E_NUMERIC, kNothingToDraw, n);
  }
  return plain ? use(logits) : use(std::span<const double>(logits_));
}

// Calls use(logits, token_of) with what the cuts keep, by rising tokens.
template <class Logit, class Use>
auto Sampler::with_kept(std::span<const Logit> logits, Use use) {
  if (!cuts_.cut(logits, options_.top_p, options_.top_k, options_.min_p)) return use(logits, [](size_t i) { return static_cast<int32_t>(i); });
  return use(cuts_.kept_logits(), [tokens = cuts_.kept_tokens()](size_t i) { return tokens[i]; });
}

// Fills weights_; returns their sum.
template <class Logit>
double Sampler::weigh(std::span<const Logit> kept) {
  const double temperature = options_.temperature;
  weights_.resize(kept.size());
  double total = 0;
  for (size_t i = 0; i < kept.size(); ++i) total += weights_[i] = std::exp((kept[i] - max_) / temperature);  // the power 1/temperature of the softmax, up to the norm
  return total;
}

void Sampler::probs(std::span<const float> logits, std::span<float> out) {
  if (out.size() != logits.size()) fail(DUET_E_INVALID, "sampler: {} logits, but room for {} probabilities", logits.size(), out.size());
  with_adjusted(logits, [&](auto adjusted) {
    if (options_.temperature == 0) {
      const int32_t token = cuts_.first_largest(adjusted);
      std::fill(out.begin(), out.end(), 0.0f);
      out[token] = 1;
      return;
    }
    with_kept(adjusted, [&](auto kept, auto token_of) {
      const double total = weigh(kept);
      std::fill(out.begin(), out.end(), 0.0f);  // not before: it may be the logits' memory
      for (size_t i = 0; i < kept.size(); ++i) out[token_of(i)] = static_cast<float>(weights_[i] / total);
    });
  });
}

int32_t Sampler::draw(std::span<const float> logits) {
  return with_adjusted(logits, [&](auto adjusted) {
    if (options_.temperature == 0) return cuts_.first_largest(adjusted);
    return with_kept(adjusted, [&](auto kept, auto token_of) {
      const double u = counter_uniform(options_.seed, options_.sequence, position_);
      if (const auto quick = cuts_.draw(kept, options_.temperature, u)) return token_of(*quick);
      const double target = u * weigh(kept);
      double sum = 0;
      const auto drawn = std::find_if(weights_.begin(), weights_.end(), [&](double weight) { return (sum += weight) > target; });
      return token_of(static_cast<size_t>(drawn - weights_.begin()));  // there is one: target is below the sum of all, which is the same sum
    });
  });
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
