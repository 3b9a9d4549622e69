// Random weights at trained-like scale in the shapes of the released models: activations and logits stay near one, decays
// cover (0.55, 1), and a chosen share of the relu^2 activations is not zero.
#include <fmt/format.h>

#include <cmath>

#include "base/error.h"
#include "model/generator.h"
#include "model/weights.h"

namespace duet {
namespace {

struct Release {
  const char* name;
  uint32_t n_layer, n_embd, rank_w, rank_a, rank_v, rank_g;
};
constexpr Release kReleases[] = {{"0.1b", 12, 768, 64, 64, 32, 128},
                                 {"0.4b", 24, 1024, 64, 64, 32, 128},
                                 {"1.5b", 24, 2048, 96, 96, 64, 256},
                                 {"2.9b", 32, 2560, 96, 96, 64, 320},
                                 {"7.2b", 32, 4096, 128, 128, 96, 480}};
constexpr float kLn2Bias = 0.5f;   // one direction that all channel mix inputs share; see key_mean
constexpr float kMaxFfnXK = 0.2f;  // keeps the spread of the channel mix inputs near one whatever the tokens
constexpr uint64_t kTile = 2048;

duetp_shape shape_of(const char* name) {
  for (const Release& r : kReleases) {
    if (name == nullptr || std::string_view(name) != r.name) continue;
    duetp_shape s{};
    s.size = sizeof s;
    s.n_layer = r.n_layer;
    s.n_embd = r.n_embd;
    s.head_size = 64;
    s.n_head = r.n_embd / 64;
    s.n_ffn = 4 * r.n_embd;
    s.n_vocab = 65536;
    s.rank_w = r.rank_w;
    s.rank_a = r.rank_a;
    s.rank_v = r.rank_v;
    s.rank_g = r.rank_g;
    s.ln_eps = 1e-5f;
    s.gn_eps = 64e-5f;
    return s;
  }
  std::vector<const char*> names;
  for (const Release& r : kReleases) names.push_back(r.name);
  fail(DUET_E_INVALID, "no shape \"{}\"; there are {}", name == nullptr ? "" : printable(name), fmt::join(names, ", "));
}

// x with P(standard normal < x) = p
double normal_quantile(double p) {
  double low = -40, high = 40;
  for (int i = 0; i < 100; ++i) {
    const double x = (low + high) / 2;
    (std::erfc(-x / std::sqrt(2.0)) / 2 < p ? low : high) = x;
  }
  return low;
}

struct Distribution {
  float center, spread;  // spread: standard deviation, or half the width of a uniform distribution
  bool uniform;
};
Distribution normal(double center, double deviation) { return {static_cast<float>(center), static_cast<float>(deviation), false}; }
Distribution uniform(double low, double high) { return {static_cast<float>((low + high) / 2), static_cast<float>((high - low) / 2), true}; }

class RandomWeights final : public WeightSource {
 public:
  explicit RandomWeights(const duet_random_options& options) : shape_(shape_of(options.shape)), seed_(options.seed) {
    if (!(options.relu2 >= 0 && options.relu2 < 1))
      fail(DUET_E_INVALID, "the share of relu^2 activations that are not zero is {}; it must be between 0 and 1 (0 = about half)", options.relu2);
    key_mean_ = key_mean(options.relu2 == 0 ? 0.5 : options.relu2);
  }

  const duetp_shape& shape() const override { return shape_; }
  duet_dtype dtype(uint32_t id, uint32_t) const override { return tensor_specs()[id].matrix ? DUET_BF16 : DUET_F32; }
  std::vector<float> time_state(uint32_t) const override { return {}; }

  std::shared_ptr<const void> tensor(uint32_t id, uint32_t layer, duet_dtype want) const override {
    const uint64_t n = tensor_count(id, layer, shape_), element = dtype_bytes(from_duet(want));
    const std::shared_ptr<void> memory = memory_.take(n * element, tensor_name(id, layer));
    const Distribution d = distribution(id);
    const uint64_t key = tensor_key(seed_, id, layer);
    in_slices(n, 32 * kTile, [&](uint64_t begin, uint64_t end) {
      float tile[kTile];
      for (uint64_t at = begin; at < end; at += kTile) {
        const uint64_t count = std::min(kTile, end - at);
        fill(tile, count, at, key, d);
        convert_floats(tile, DType::f32, static_cast<std::byte*>(memory.get()) + at * element, want, count);
      }
    });
    return memory;
  }

  void floats(uint32_t id, uint32_t layer, uint64_t first, uint64_t n, float* out) const override {
    const Distribution d = distribution(id);
    const uint64_t key = tensor_key(seed_, id, layer);
    in_slices(n, 32 * kTile, [&](uint64_t begin, uint64_t end) { fill(out + begin, end - begin, first + begin, key, d); });
  }

 private:
  // 64 bits make two elements, so `at` is even. The sum of two uniform numbers is normal enough.
  static void fill(float* out, uint64_t n, uint64_t at, uint64_t key, Distribution d) {
    const float scale = d.spread / (d.uniform ? 0x1p31f : 26754.96f);  // 65536 / sqrt(6): the deviation of the sum of two 16-bit numbers
    const auto value = [&](uint32_t bits) {
      return d.center + scale * static_cast<float>(d.uniform ? static_cast<int32_t>(bits) : static_cast<int32_t>((bits >> 16) + (bits & 0xffff)) - 65535);
    };
    for (uint64_t i = 0; i < n; i += 2) {
      const uint64_t bits = draw(key, (at + i) / 2);
      out[i] = value(static_cast<uint32_t>(bits));
      if (i + 1 < n) out[i + 1] = value(static_cast<uint32_t>(bits >> 32));
    }
  }

  // Element mean of ffn.key such that `share` of Wk z is above zero. The inputs z = LN + b, b the same in all channels, have
  // sum C b and mean square b^2 + q, where the token shift leaves q = E[(1-x)^2 + x^2] of the norm's one. With elements of
  // deviation C^(-1/2) around -m a row's product is normal with mean -m C b and variance b^2 + q.
  double key_mean(double share) const {
    const double x = kMaxFfnXK, q = 1 - x + 2 * x * x / 3, b = kLn2Bias;
    return normal_quantile(share) * std::sqrt(b * b + q) / (shape_.n_embd * b);
  }

  Distribution distribution(uint32_t id) const {
    const double c = shape_.n_embd, f = shape_.n_ffn;
    switch (id) {
      case DUETP_T_LN1_W: case DUETP_T_LN2_W: case DUETP_T_LN_X_W: case DUETP_T_LN0_W: case DUETP_T_LN_OUT_W: return uniform(0.8, 1.2);
      case DUETP_T_LN1_B: case DUETP_T_LN_X_B: case DUETP_T_LN0_B: case DUETP_T_LN_OUT_B: return uniform(-0.1, 0.1);
      case DUETP_T_LN2_B: return uniform(kLn2Bias, kLn2Bias);
      case DUETP_T_X_R: case DUETP_T_X_W: case DUETP_T_X_K: case DUETP_T_X_V: case DUETP_T_X_A: case DUETP_T_X_G: return uniform(0, 1);
      case DUETP_T_W0: return uniform(-8, 3);
      case DUETP_T_A0: return uniform(-1, 1);
      case DUETP_T_V0: return uniform(0, 1);
      case DUETP_T_W1: case DUETP_T_A1: case DUETP_T_V1: case DUETP_T_G1: return normal(0, 1 / std::sqrt(c));
      case DUETP_T_W2: return normal(0, 0.5 / std::sqrt(shape_.rank_w));
      case DUETP_T_A2: return normal(0, 0.5 / std::sqrt(shape_.rank_a));
      case DUETP_T_V2: return normal(0, 0.5 / std::sqrt(shape_.rank_v));
      case DUETP_T_G2: return normal(0, 1 / std::sqrt(shape_.rank_g));
      case DUETP_T_K_K: return uniform(0.5, 0.9);
      case DUETP_T_K_A: return uniform(0.9, 1.1);
      case DUETP_T_R_K: return uniform(-0.1, 0.1);
      case DUETP_T_RECEPTANCE: case DUETP_T_KEY: case DUETP_T_VALUE: return normal(0, 1 / std::sqrt(c));
      case DUETP_T_OUTPUT: return normal(0, 0.5 / std::sqrt(c));
      case DUETP_T_FFN_X_K: return uniform(0, kMaxFfnXK);
      case DUETP_T_FFN_KEY: return normal(key_mean_, 1 / std::sqrt(c));
      case DUETP_T_FFN_VALUE: return normal(0, 0.25 / std::sqrt(f));
      case DUETP_T_HEAD: return normal(0, 2 / std::sqrt(c));
      default: return normal(0, 1);  // emb, normalised by ln0
    }
  }

  duetp_shape shape_;
  uint64_t seed_;
  double key_mean_ = 0;
};

}  // namespace

std::unique_ptr<WeightSource> random_weights(const duet_random_options& options) { return std::make_unique<RandomWeights>(options); }

}  // namespace duet
