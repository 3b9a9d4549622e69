// The official initialisation (docs/mathematics.md, initialisation), with the ranks of the current trainer.
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "model/generator.h"
#include "model/orthogonal.h"
#include "model/weights.h"

namespace duet {
namespace {

// Rounds half to even, as the trainer does
uint32_t rank(double factor, uint32_t n_embd) { return 32 * std::max(1u, static_cast<uint32_t>(std::nearbyint(factor * std::sqrt(n_embd) / 32))); }

duetp_shape shape_of(const duet_init_options& o) {
  duetp_shape s{};
  s.size = sizeof s;
  s.n_layer = o.n_layer;
  s.n_embd = o.n_embd;
  s.n_vocab = o.n_vocab;
  s.head_size = o.head_size == 0 ? 64 : o.head_size;
  s.n_head = s.n_embd / s.head_size;
  if (s.n_embd % s.head_size != 0) fail(DUET_E_INVALID, "a new model: the head size {} does not divide the width n_embd, {}", s.head_size, s.n_embd);
  s.rank_w = s.rank_a = rank(2.5, s.n_embd);
  s.rank_v = s.n_layer == 1 ? 0 : rank(1.7, s.n_embd);
  s.rank_g = rank(5, s.n_embd);
  s.ln_eps = 1e-5f;
  s.gn_eps = 64e-5f;
  s.n_ffn = s.n_embd <= 65536 ? 4 * s.n_embd : 1;  // wider is refused below
  check_dimensions(s, DUET_E_INVALID, "a new model");
  return s;
}

class InitialWeights final : public WeightSource {
 public:
  explicit InitialWeights(const duet_init_options& o) : shape_(shape_of(o)), weights_(o.weights == 0 ? DUET_F32 : o.weights), seed_(o.seed) {
    if (weights_ != DUET_F32 && weights_ != DUET_F16 && weights_ != DUET_BF16)
      fail(DUET_E_UNSUPPORTED, "a new model: matrices of dtype {} cannot be made; choose f32, f16 or bf16", weights_);
  }

  const duetp_shape& shape() const override { return shape_; }
  duet_dtype dtype(uint32_t id, uint32_t) const override { return tensor_specs()[id].matrix ? weights_ : DUET_F32; }
  std::vector<float> time_state(uint32_t) const override { return {}; }

  std::shared_ptr<const void> tensor(uint32_t id, uint32_t layer, duet_dtype want) const override {
    const uint64_t n = tensor_count(id, layer, shape_);
    const std::string name = tensor_name(id, layer);
    const std::shared_ptr<void> values = memory_.take(n * sizeof(float), name);
    fill(static_cast<float*>(values.get()), n, id, layer);
    if (want == DUET_F32) return values;
    const std::shared_ptr<void> converted = memory_.take(n * dtype_bytes(from_duet(want)), name);
    convert_floats(values.get(), DType::f32, converted.get(), want, n);
    return converted;
  }

 private:
  void fill(float* out, uint64_t n, uint32_t id, uint32_t layer) const {
    const std::vector<uint32_t> dims = tensor_shape(id, layer, shape_);
    switch (id) {
      case DUETP_T_EMB: return fill_uniform(out, n, 1e-4, id, layer);
      case DUETP_T_RECEPTANCE: case DUETP_T_VALUE: case DUETP_T_FFN_KEY: return fill_orthogonal(out, dims, 1, id, layer);
      case DUETP_T_KEY: return fill_orthogonal(out, dims, 0.1, id, layer);
      case DUETP_T_HEAD: return fill_orthogonal(out, dims, 0.5 * stretch(dims), id, layer);
      case DUETP_T_W2: case DUETP_T_A2: case DUETP_T_V2: case DUETP_T_G2: return fill_orthogonal(out, dims, 0.1 * stretch(dims), id, layer);
      case DUETP_T_R_K: return std::fill_n(out, n, -0.04f), void();
      case DUETP_T_W1: case DUETP_T_A1: case DUETP_T_V1: case DUETP_T_G1: case DUETP_T_OUTPUT: case DUETP_T_FFN_VALUE: return std::fill_n(out, n, 0.0f), void();
      default:
        for (uint64_t i = 0; i < n; ++i) out[i] = static_cast<float>(channel(id, layer, i));
    }
  }

  // Element n of the vectors, which say what each channel begins with
  double channel(uint32_t id, uint32_t layer, uint64_t n) const {
    const double l = shape_.n_layer, c = shape_.n_embd, half = (shape_.head_size - 1) / 2.0;
    const double depth = l > 1 ? layer / (l - 1) : 0, rest = 1 - layer / l;
    const double x = n / c, ramp = c > 1 ? n / (c - 1) : 0, linear = ramp - 0.5;
    const double q = half > 0 ? (static_cast<double>(n % shape_.head_size) - half) / half : 0, zigzag = q * std::fabs(q);
    switch (id) {
      case DUETP_T_X_R: case DUETP_T_X_G: return 1 - std::pow(x, 0.2 * rest);
      case DUETP_T_X_W: case DUETP_T_X_A: return 1 - std::pow(x, 0.9 * rest);
      case DUETP_T_X_K: case DUETP_T_X_V: return 1 - std::pow(x, 0.7 * rest);
      case DUETP_T_FFN_X_K: return 1 - std::pow(x, std::pow(rest, 4));
      case DUETP_T_W0: return -6 + 6 * std::pow(ramp, 1 + std::pow(depth, 0.3)) + 0.5 + 2.5 * zigzag;
      case DUETP_T_A0: return -0.19 + 0.3 * zigzag + 0.4 * linear;
      case DUETP_T_V0: return 0.73 - 0.4 * linear;
      case DUETP_T_K_K: return 0.71 - 0.1 * linear;
      case DUETP_T_K_A: return 1.02;
      case DUETP_T_LN_X_W: return std::pow((1 + layer) / l, 0.7);
      case DUETP_T_LN1_W: case DUETP_T_LN2_W: case DUETP_T_LN0_W: case DUETP_T_LN_OUT_W: return 1;
      default: return 0;  // the norms' biases
    }
  }

  void fill_uniform(float* out, uint64_t n, double limit, uint32_t id, uint32_t layer) const {
    const uint64_t key = tensor_key(seed_, id, layer);
    for (uint64_t i = 0; i < n; ++i) out[i] = static_cast<float>(limit * (2 * unit(draw(key, i)) - 1));
  }

  // Orthonormal columns, or rows where those are fewer, times gain
  void fill_orthogonal(float* out, const std::vector<uint32_t>& dims, double gain, uint32_t id, uint32_t layer) const {
    const uint64_t rows = std::max(dims[0], dims[1]), cols = std::min(dims[0], dims[1]), n = rows * cols;
    fill_normal(out, n, tensor_key(seed_, id, layer));
    orthogonalise(out, rows, cols);
    for (uint64_t i = 0; i < n; ++i) out[i] = static_cast<float>(gain * out[i]);
    if (dims[0] >= dims[1]) return;
    const std::vector<float> tall(out, out + n);
    for (uint64_t r = 0; r < rows; ++r)
      for (uint64_t c = 0; c < cols; ++c) out[c * rows + r] = tall[r * cols + c];
  }

  // Box and Muller: two draws make two numbers
  static void fill_normal(float* out, uint64_t n, uint64_t key) {
    in_slices(n, 1 << 16, [&](uint64_t begin, uint64_t end) {
      for (uint64_t i = begin; i < end; i += 2) {
        const double radius = std::sqrt(-2 * std::log(unit(draw(key, i)))), angle = 2 * std::numbers::pi * unit(draw(key, i + 1));
        out[i] = static_cast<float>(radius * std::cos(angle));
        if (i + 1 < end) out[i + 1] = static_cast<float>(radius * std::sin(angle));
      }
    });
  }

  static double stretch(const std::vector<uint32_t>& dims) { return dims[0] > dims[1] ? std::sqrt(static_cast<double>(dims[0]) / dims[1]) : 1; }

  duetp_shape shape_;
  duet_dtype weights_;
  uint64_t seed_;
};

}  // namespace

std::unique_ptr<WeightSource> initial_weights(const duet_init_options& options) { return std::make_unique<InitialWeights>(options); }

}  // namespace duet
