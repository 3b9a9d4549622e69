#include "text/cuts.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>

namespace duet {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr int32_t kLastToken = std::numeric_limits<int32_t>::max();
constexpr size_t kBlock = 64;

size_t blocks_of(size_t n) { return (n + kBlock - 1) / kBlock; }

// What goes over a whole vocabulary are loops over plain pointers, in operations that compilers turn into vectors for any
// processor: the library's checks of indices would keep them from it.

// exp(x) for x from -700 to 0, to a relative 10^-12.
double quick_exp(double x) {
  constexpr double kShift = 0x1.8p52;  // a sum with it is rounded to a whole number, and ends in its bits
  const double shifted = x * 0x1.71547652b82fep0 + kShift;
  const double r = x - (shifted - kShift) * 0x1.62e42fefa39efp-1;
  // Fitted to e^r for |r| <= ln(2) / 2: the largest relative error is 8e-13. In halves, so that they overlap.
  const double r2 = r * r, r4 = r2 * r2;
  const double low = (0x1.ffffffffff7a1p-1 + 0x1.ffffffffd55b1p-1 * r) + r2 * (0x1.00000000880efp-1 + 0x1.555555a08cff3p-3 * r);
  const double high = (0x1.55555404defd4p-5 + 0x1.111082a0f01e3p-7 * r) + r2 * (0x1.6c18b36b04275p-10 + 0x1.a1a82ff78d480p-13 * r);
  const double p = low + r4 * (high + r4 * 0x1.9eda8535decb2p-16);
  return std::bit_cast<double>(std::bit_cast<uint64_t>(p) + (std::bit_cast<uint64_t>(shifted) << 52));
}

// How far a quick sum of n, or a multiple of it, may lie from one of std::exp, in shares of the sum of all: the exponentials'
// errors, and n roundings of each.
double margin_of(size_t n) { return 1e-11 + 8.0 * static_cast<double>(n) * 0x1p-53; }

// w[i] = exp((logits[i] - max) * scale), or e^-700 where that is less.
template <class Logit>
void quick_weights(const Logit* logits, size_t n, double max, double scale, double* w) {
  for (size_t i = 0; i < n; ++i) {
    const double x = (logits[i] - max) * scale;
    w[i] = x > -700 ? x : -700;
  }
  for (size_t i = 0; i < n; ++i) w[i] = quick_exp(w[i]);  // a loop of its own, or g++ takes the bound for a branch
}

// The same for up to kBlock logits, and zeros. Returns their sum.
template <class Logit>
double weigh_block(const Logit* logits, size_t n, double max, double scale, double* w) {
  quick_weights(logits, n, max, scale, w);
  for (size_t i = n; i < kBlock; ++i) w[i] = 0;
  constexpr size_t kLanes = 8;
  double lane[kLanes] = {};
  for (size_t i = 0; i < kBlock; i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) lane[j] += w[i + j];
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

// The largest of kBlock logits; NaN if one is NaN.
template <class Logit>
Logit peak_of(const Logit* logits) {
  constexpr size_t kLanes = kBlock / 2;
  std::conditional_t<sizeof(Logit) == 4, int32_t, int64_t> nan = 0;
  for (size_t i = 0; i < kBlock; ++i) nan |= !(logits[i] == logits[i]);
  if (nan) return std::numeric_limits<Logit>::quiet_NaN();
  Logit lane[kLanes];
  for (size_t j = 0; j < kLanes; ++j) lane[j] = logits[j] > logits[j + kLanes] ? logits[j] : logits[j + kLanes];
  return *std::max_element(lane, lane + kLanes);
}

}  // namespace

template <class Logit>
double Cuts::largest(std::span<const Logit> logits) {
  peaks_.resize(blocks_of(logits.size()));
  const size_t n_whole = logits.size() / kBlock;
  for (size_t b = 0; b < n_whole; ++b) peaks_[b] = peak_of(logits.data() + b * kBlock);
  if (n_whole < peaks_.size()) {
    Logit rest[kBlock];
    std::fill(std::copy(logits.begin() + n_whole * kBlock, logits.end(), rest), rest + kBlock, -std::numeric_limits<Logit>::infinity());
    peaks_.back() = peak_of(rest);
  }
  max_ = -kInf;
  for (const double peak : peaks_) {
    if (!(peak < kInf)) return max_ = -kInf;
    max_ = std::max(max_, peak);
  }
  return max_;
}

template <class Logit>
int32_t Cuts::first_largest(std::span<const Logit> logits) const {
  const auto block = std::find(peaks_.begin(), peaks_.end(), max_) - peaks_.begin();
  return static_cast<int32_t>(std::find(logits.begin() + block * static_cast<ptrdiff_t>(kBlock), logits.end(), static_cast<Logit>(max_)) - logits.begin());
}

// Fills sums_ with exp((logit - max_) * scale); returns the sum of all.
template <class Logit>
double Cuts::weigh(std::span<const Logit> logits, double scale) {
  sums_.resize(blocks_of(logits.size()));
  double w[kBlock];
  double total = 0;
  for (size_t b = 0; b < sums_.size(); ++b)
    total += sums_[b] = weigh_block(logits.data() + b * kBlock, std::min(kBlock, logits.size() - b * kBlock), max_, scale, w);
  return total;
}

// The tokens whose logit is `floor` or more.
template <class Logit>
void Cuts::gather(std::span<const Logit> logits, double floor) {
  size_t n = 0;
  for (size_t b = 0; b < peaks_.size(); ++b) {
    if (peaks_[b] < floor) continue;
    if (tokens_.size() < n + kBlock) tokens_.resize(2 * n + kBlock), logits_.resize(2 * n + kBlock);
    const size_t end = std::min((b + 1) * kBlock, logits.size());
    int32_t* tokens = tokens_.data();
    double* kept = logits_.data();
    for (size_t i = b * kBlock; i < end; ++i) {  // without a branch that would be hard to predict
      const double logit = logits.data()[i];
      tokens[n] = static_cast<int32_t>(i);
      kept[n] = logit;
      n += logit >= floor;
    }
  }
  n_kept_ = n;
}

// A logit that at least k reach: the k-th largest of the blocks' peaks.
double Cuts::peak_of_rank(uint32_t k) {
  if (k > peaks_.size()) return -kInf;
  sums_ = peaks_;
  std::nth_element(sums_.begin(), sums_.begin() + (k - 1), sums_.end(), std::greater<>());
  return sums_[k - 1];
}

// The run of equal logits in which the sum of weight(place) over the ranks of logits_ gets to `target`, or else the last. Instead
// of sorting all, adds weights up in buckets, and goes on within the one in which the sum gets there.
template <class Weight>
Cuts::Run Cuts::reach(double target, Weight weight) {
  constexpr int32_t kBuckets = 1024;
  constexpr size_t kFew = 64;
  double before = 0;
  const auto narrow = [&](size_t n, auto item) {
    double low = kInf, high = -kInf;
    for (size_t i = 0; i < n; ++i) {
      const double logit = item(i).logit;
      if (logit < low) low = logit;
      if (logit > high) high = logit;
    }
    const double scale = (kBuckets - 1) / (high - low);
    if (!(scale < kInf)) return false;  // they hardly differ, if at all
    buckets_.resize(n);
    int32_t* bucket = buckets_.data();
    for (size_t i = 0; i < n; ++i) bucket[i] = static_cast<int32_t>((high - item(i).logit) * scale);
    double sum[kBuckets] = {};
    for (size_t i = 0; i < n; ++i) sum[bucket[i]] += item(i).weight;
    int32_t b = 0;
    for (const auto last = static_cast<int32_t>((high - low) * scale); b < last && before + sum[b] < target; ++b) before += sum[b];
    next_.clear();
    for (size_t i = 0; i < n; ++i)
      if (bucket[i] == b) next_.push_back(item(i));
    among_.swap(next_);
    return true;
  };
  const double* logits = logits_.data();
  const auto first = [&](size_t i) { return Item{logits[i], weight(i), i}; };
  if (!narrow(n_kept_, first)) {
    among_.clear();
    for (size_t i = 0; i < n_kept_; ++i) among_.push_back(first(i));
  }
  const auto again = [&](size_t i) { return among_.data()[i]; };
  while (among_.size() > kFew && narrow(among_.size(), again)) {
  }
  const auto by_rank = [](const Item& a, const Item& c) { return a.logit != c.logit ? a.logit > c.logit : a.place < c.place; };
  if (!std::is_sorted(among_.begin(), among_.end(), by_rank)) std::sort(among_.begin(), among_.end(), by_rank);
  for (size_t i = 0;;) {
    Run run{among_[i].logit, before, before, i};
    for (; i < among_.size() && among_[i].logit == run.logit; ++i) run.upto += among_[i].weight;
    if (run.upto >= target || i == among_.size()) return run;
    before = run.upto;
  }
}

// The last logit that a sum of `target` over the ranks of logits_ keeps; -inf if they stay below it; nothing if it is too near to tell.
std::optional<double> Cuts::quick_cut_p(double target, double margin) {
  weights_.resize(n_kept_);
  quick_weights(logits_.data(), n_kept_, max_, 1, weights_.data());
  const Run run = reach(target, [weights = weights_.data()](size_t i) { return weights[i]; });
  if (run.upto + margin < target) return -kInf;
  if (run.upto < target + margin || (run.before > 0 && run.before + margin > target)) return std::nullopt;
  return run.logit;
}

// The same for all logits, with std::exp. Adds up in buckets of 1/64 of a logit and sorts the one in which the sum gets there.
template <class Logit>
double Cuts::exact_cut_p(std::span<const Logit> logits, double top_p) {
  constexpr int kBuckets = 4096;
  weights_.resize(logits.size());
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) total += weights_[i] = std::exp(logits[i] - max_);
  const double target = top_p * total;
  const auto bucket = [&](size_t i) { return static_cast<int>(std::min((max_ - logits[i]) * 64, kBuckets - 1.0)); };
  std::array<double, kBuckets> sum{};
  for (size_t i = 0; i < logits.size(); ++i) sum[bucket(i)] += weights_[i];
  double reached = 0;
  int b = 0;
  while (b < kBuckets - 1 && reached + sum[b] < target) reached += sum[b++];

  ranks_.clear();
  for (size_t i = 0; i < logits.size(); ++i)
    if (bucket(i) == b) ranks_.push_back({logits[i], static_cast<int32_t>(i)});
  std::sort(ranks_.begin(), ranks_.end(), [](Rank a, Rank c) { return a.logit != c.logit ? a.logit > c.logit : a.token < c.token; });
  for (const Rank& r : ranks_)
    if ((reached += weights_[static_cast<size_t>(r.token)]) >= target) return r.logit;
  return ranks_.back().logit;  // in this order the bucket's sum missed the target by a rounding
}

// All cuts keep the head of one ranking, so that together they keep the shortest.
template <class Logit>
bool Cuts::cut(std::span<const Logit> logits, double top_p, uint32_t top_k, double min_p) {
  const bool cuts_p = top_p < 1, cuts_k = top_k > 0 && top_k < logits.size();
  if (!cuts_p && !cuts_k && !(min_p > 0)) return false;

  // What is below a cut for certain is left out at once, and so is -inf, which weighs nothing.
  Rank last{std::numeric_limits<double>::lowest(), kLastToken};
  if (min_p > 0) last.logit = std::max(last.logit, max_ + std::log(min_p));
  double floor = last.logit, total = 0;
  if (cuts_k) floor = std::max(floor, peak_of_rank(top_k));
  if (cuts_p) {
    total = weigh(logits, 1);
    // Logits so low that all n of them would sum up to no more than what may be cut off, and lower by more than roundings.
    floor = std::max(floor, max_ + std::log((1 - top_p) * total / static_cast<double>(logits.size())) - (1e-6 + std::abs(max_) * 0x1p-50));
  }
  gather(logits, floor);

  const auto cut = [&last](Rank r) {
    if (r.logit > last.logit || (r.logit == last.logit && r.token < last.token)) last = r;
  };
  if (cuts_k && top_k < n_kept_) {
    const Run run = reach(top_k, [](size_t) { return 1.0; });
    cut({run.logit, tokens_[among_[run.first + top_k - static_cast<size_t>(run.before) - 1].place]});
  }
  if (cuts_p) {
    const std::optional<double> quick = quick_cut_p(top_p * total, margin_of(logits.size()) * total);
    cut({quick ? *quick : exact_cut_p(logits, top_p), kLastToken});
  }
  size_t n = 0;
  int32_t* tokens = tokens_.data();
  double* kept = logits_.data();
  for (size_t i = 0; i < n_kept_; ++i) {
    const double logit = kept[i];
    const int32_t token = tokens[i];
    kept[n] = logit;
    tokens[n] = token;
    n += (logit > last.logit) | ((logit == last.logit) & (token <= last.token));
  }
  n_kept_ = n;
  return true;
}

template <class Logit>
std::optional<size_t> Cuts::draw(std::span<const Logit> logits, double temperature, double u) {
  const double scale = 1 / temperature, total = weigh(logits, scale), target = u * total, margin = margin_of(logits.size()) * total;
  double before = 0;
  size_t b = 0;
  while (b + 1 < sums_.size() && before + sums_[b] <= target) before += sums_[b++];
  double w[kBlock];
  const size_t n = std::min(kBlock, logits.size() - b * kBlock);
  weigh_block(logits.data() + b * kBlock, n, max_, scale, w);
  for (size_t i = 0; i < n; ++i) {
    const double upto = before + w[i];
    if (upto > target) return before + margin < target && target + margin < upto ? std::optional(b * kBlock + i) : std::nullopt;
    before = upto;
  }
  return std::nullopt;
}

template double Cuts::largest(std::span<const float>);
template double Cuts::largest(std::span<const double>);
template int32_t Cuts::first_largest(std::span<const float>) const;
template int32_t Cuts::first_largest(std::span<const double>) const;
template bool Cuts::cut(std::span<const float>, double, uint32_t, double);
template bool Cuts::cut(std::span<const double>, double, uint32_t, double);
template std::optional<size_t> Cuts::draw(std::span<const float>, double, double);
template std::optional<size_t> Cuts::draw(std::span<const double>, double, double);

}  // namespace duet
