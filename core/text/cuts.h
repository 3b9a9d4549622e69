// The tokens that top_p, top_k and min_p keep, found without sorting the vocabulary, and quick draws from them.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace duet {

// Logits are float or double. Sums are taken twice only if need be: first of quick exponentials in any order, and where such
// a sum comes so near to what it is compared with that rounding could tell, of std::exp in the order that sampler.h promises.
// So the answer is that of the second way. Scratch is kept from call to call: a token costs no allocation.
class Cuts {
 public:
  // The largest logit, to which the calls below then refer. -inf if one is NaN or +inf, or all are -inf.
  template <class Logit>
  double largest(std::span<const Logit> logits);
  template <class Logit>
  int32_t first_largest(std::span<const Logit> logits) const;

  // Fills kept_logits() and kept_tokens(), by rising tokens. false, and does not, if all are kept.
  template <class Logit>
  bool cut(std::span<const Logit> logits, double top_p, uint32_t top_k, double min_p);
  std::span<const double> kept_logits() const { return {logits_.data(), n_kept_}; }
  std::span<const int32_t> kept_tokens() const { return {tokens_.data(), n_kept_}; }

  // The first at which the running sum of exp((logit - largest) / temperature) exceeds u times the sum of all; nothing if
  // quick sums cannot tell.
  template <class Logit>
  std::optional<size_t> draw(std::span<const Logit> logits, double temperature, double u);

 private:
  struct Rank {  // in the order of falling logits, then rising tokens
    double logit;
    int32_t token;
  };
  struct Item {
    double logit, weight;
    size_t place;  // in logits_
  };
  struct Run {  // equal logits
    double logit, before, upto;  // the sums of weights of the ranks before them, and with them
    size_t first;                // in among_
  };
  template <class Logit>
  double weigh(std::span<const Logit> logits, double scale);
  template <class Logit>
  void gather(std::span<const Logit> logits, double floor);
  double peak_of_rank(uint32_t k);
  template <class Weight>
  Run reach(double target, Weight weight);
  std::optional<double> quick_cut_p(double target, double margin);
  template <class Logit>
  double exact_cut_p(std::span<const Logit> logits, double top_p);

  double max_ = 0;
  std::vector<double> peaks_;    // the largest logit of each block
  std::vector<double> sums_;     // of each block's weights
  std::vector<double> logits_;   // what is kept, or may be
  std::vector<int32_t> tokens_;  // theirs
  size_t n_kept_ = 0;
  std::vector<double> weights_;  // of logits_; of all logits where the quick way could not tell
  std::vector<int32_t> buckets_;
  std::vector<Item> among_, next_;  // what reach() has narrowed the ranks to
  std::vector<Rank> ranks_;      // one bucket of exact_cut_p()
};

}  // namespace duet
