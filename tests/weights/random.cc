// The generator of random models: determined by seed and place alone, and sane enough to measure speed with.
#include <cmath>
#include <numeric>

#include "model_file.h"

using namespace duet;

namespace {

std::unique_ptr<WeightSource> random_model(const char* shape, uint64_t seed = 1, float relu2 = 0) {
  auto o = DUET_INIT(duet_random_options);
  o.shape = shape;
  o.seed = seed;
  o.relu2 = relu2;
  return random_weights(o);
}

using Vector = std::vector<float>;

// y = W x, W [out,in]
Vector product(const float* w, const Vector& x, size_t n_out) {
  Vector y(n_out);
  for (size_t i = 0; i < n_out; ++i)
    for (size_t j = 0; j < x.size(); ++j) y[i] += w[i * x.size() + j] * x[j];
  return y;
}
// y = x M, M [in,out]
Vector low_rank(const float* m1, const float* m2, const Vector& x, size_t rank, float (*act)(float)) {
  Vector hidden(rank), y(x.size());
  for (size_t j = 0; j < x.size(); ++j)
    for (size_t d = 0; d < rank; ++d) hidden[d] += x[j] * m1[j * rank + d];
  for (size_t d = 0; d < rank; ++d)
    for (size_t j = 0; j < y.size(); ++j) y[j] += act(hidden[d]) * m2[d * y.size() + j];
  return y;
}
Vector norm(const Vector& x, const float* w, const float* b, size_t group, float eps) {
  Vector y(x.size());
  for (size_t g = 0; g < x.size(); g += group) {
    double mean = 0, variance = 0;
    for (size_t i = g; i < g + group; ++i) mean += x[i] / static_cast<double>(group);
    for (size_t i = g; i < g + group; ++i) variance += (x[i] - mean) * (x[i] - mean) / static_cast<double>(group);
    for (size_t i = g; i < g + group; ++i) y[i] = static_cast<float>((x[i] - mean) / std::sqrt(variance + eps)) * w[i] + b[i];
  }
  return y;
}
float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }
float same(float x) { return x; }
float tanh_of(float x) { return std::tanh(x); }

struct Activity {
  double nonzero = 0, decay_low = 1, decay_high = 0, largest = 0;  // share of relu^2; decays; largest |x|, |S|
};

// The first layers of the model on a few tokens, in plain code
Activity run(const WeightSource& source, uint32_t n_layer, size_t n_tokens) {
  const duetp_shape& s = source.shape();
  const size_t C = s.n_embd, N = s.head_size, F = s.n_ffn;
  const auto of_top = [&](uint32_t id) { return source.tensor(id, s.n_layer, DUET_F32); };
  const auto emb = of_top(DUETP_T_EMB), ln0_w = of_top(DUETP_T_LN0_W), ln0_b = of_top(DUETP_T_LN0_B);
  const auto floats = [](const std::shared_ptr<const void>& p) { return static_cast<const float*>(p.get()); };
  std::vector<Vector> x(n_tokens), v_first(n_tokens);
  for (size_t t = 0; t < n_tokens; ++t) {
    const float* row = floats(emb) + (t * 7919 + 3) % s.n_vocab * C;
    x[t] = norm(Vector(row, row + C), floats(ln0_w), floats(ln0_b), C, s.ln_eps);
  }
  Activity a;
  size_t n_positive = 0;
  for (uint32_t layer = 0; layer < n_layer; ++layer) {
    const HostLayer host = source.layer(layer, DUET_F32);
    const auto p = [&](uint32_t id) { return static_cast<const float*>(host.tensors[id]->data); };
    Vector S(C * N), previous(C), previous_z(C);
    for (size_t t = 0; t < n_tokens; ++t) {
      const Vector y = norm(x[t], p(DUETP_T_LN1_W), p(DUETP_T_LN1_B), C, s.ln_eps);
      const auto shifted = [&](const Vector& now, const Vector& before, uint32_t id) {
        Vector q(C);
        for (size_t i = 0; i < C; ++i) q[i] = now[i] + (before[i] - now[i]) * p(id)[i];
        return q;
      };
      const Vector r = product(p(DUETP_T_RECEPTANCE), shifted(y, previous, DUETP_T_X_R), C), k = product(p(DUETP_T_KEY), shifted(y, previous, DUETP_T_X_K), C);
      const Vector xv = shifted(y, previous, DUETP_T_X_V);
      Vector v = product(p(DUETP_T_VALUE), xv, C);
      const Vector lw = low_rank(p(DUETP_T_W1), p(DUETP_T_W2), shifted(y, previous, DUETP_T_X_W), s.rank_w, tanh_of);
      const Vector la = low_rank(p(DUETP_T_A1), p(DUETP_T_A2), shifted(y, previous, DUETP_T_X_A), s.rank_a, same);
      const Vector g = low_rank(p(DUETP_T_G1), p(DUETP_T_G2), shifted(y, previous, DUETP_T_X_G), s.rank_g, sigmoid);
      if (layer == 0) {
        v_first[t] = v;
      } else {
        const Vector lv = low_rank(p(DUETP_T_V1), p(DUETP_T_V2), xv, s.rank_v, same);
        for (size_t i = 0; i < C; ++i) v[i] += (v_first[t][i] - v[i]) * sigmoid(p(DUETP_T_V0)[i] + lv[i]);
      }
      previous = y;
      Vector o(C), bonus(C);
      for (size_t h = 0; h < C; h += N) {
        float length = 0, rk = 0;
        for (size_t q = h; q < h + N; ++q) length += k[q] * p(DUETP_T_K_K)[q] * k[q] * p(DUETP_T_K_K)[q];
        Vector kk(N), w(N), icl(N), k2(N);
        for (size_t q = 0; q < N; ++q) {
          const size_t c = h + q;
          kk[q] = k[c] * p(DUETP_T_K_K)[c] / std::sqrt(length);
          w[q] = std::exp(-0.60653066f * sigmoid(p(DUETP_T_W0)[c] + lw[c]));
          icl[q] = sigmoid(p(DUETP_T_A0)[c] + la[c]);
          k2[q] = k[c] * (1 + (icl[q] - 1) * p(DUETP_T_K_A)[c]);
          rk += r[c] * k2[q] * p(DUETP_T_R_K)[c];
          a.decay_low = std::min(a.decay_low, static_cast<double>(w[q]));
          a.decay_high = std::max(a.decay_high, static_cast<double>(w[q]));
        }
        for (size_t i = h; i < h + N; ++i) {
          float sa = 0;
          for (size_t q = 0; q < N; ++q) sa -= S[i * N + q] * kk[q];
          for (size_t q = 0; q < N; ++q) {
            float& e = S[i * N + q];
            e = e * w[q] + sa * kk[q] * icl[q] + v[i] * k2[q];
            o[i] += e * r[h + q];
            a.largest = std::max(a.largest, static_cast<double>(std::fabs(e)));
          }
          bonus[i] = rk * v[i];
        }
      }
      o = norm(o, p(DUETP_T_LN_X_W), p(DUETP_T_LN_X_B), N, s.gn_eps);
      for (size_t i = 0; i < C; ++i) o[i] = (o[i] + bonus[i]) * g[i];
      const Vector att = product(p(DUETP_T_OUTPUT), o, C);
      for (size_t i = 0; i < C; ++i) x[t][i] += att[i];
      const Vector z = norm(x[t], p(DUETP_T_LN2_W), p(DUETP_T_LN2_B), C, s.ln_eps);
      Vector u = product(p(DUETP_T_FFN_KEY), shifted(z, previous_z, DUETP_T_FFN_X_K), F);
      previous_z = z;
      for (float& e : u) {
        n_positive += e > 0;
        e = e > 0 ? e * e : 0;
      }
      const Vector ffn = product(p(DUETP_T_FFN_VALUE), u, C);
      for (size_t i = 0; i < C; ++i) x[t][i] += ffn[i];
      for (const float e : x[t]) a.largest = std::max(a.largest, static_cast<double>(std::fabs(e)));
    }
  }
  a.nonzero = static_cast<double>(n_positive) / static_cast<double>(n_layer * n_tokens * F);
  return a;
}

}  // namespace

TEST_CASE("the released shapes") {
  // parameters of the official table, less v0, v1, v2 of layer 0
  const std::tuple<const char*, uint64_t, uint64_t, uint64_t> released[] = {{"0.1b", 191084544, 768, 32}, {"0.4b", 450834432, 1024, 32}, {"1.5b", 1527668736, 2048, 64},
                                                                            {"2.9b", 2948065280, 2560, 64}, {"7.2b", 7199932416, 4096, 96}};
  for (const auto& [name, parameters, c, rank_v] : released) {
    const auto source = random_model(name);
    CHECK(parameter_count(source->shape()) == parameters - c - 2 * c * rank_v);
    CHECK((source->shape().n_vocab == 65536 && source->shape().head_size == 64 && source->shape().n_ffn == 4 * c));
    CHECK_NOTHROW(check_dimensions(source->shape(), DUET_E_INVALID, name));
  }
}

TEST_CASE("unknown shapes and impossible shares are refused") {
  std::string text;
  CHECK(error_of([] { (void)random_model("0.2b"); }, text) == DUET_E_INVALID);
  CHECK(text.find("no shape \"0.2b\"; there are 0.1b, 0.4b, 1.5b, 2.9b, 7.2b") != std::string::npos);
  CHECK(error_of([] { (void)random_model(nullptr); }, text) == DUET_E_INVALID);
  for (const float share : {-0.1f, 1.0f, 2.0f, NAN}) CHECK(error_of([&] { (void)random_model("0.1b", 1, share); }, text) == DUET_E_INVALID);
}

TEST_CASE("the same seed gives the same weights, another one others, every tensor its own") {
  const auto a = random_model("0.1b"), b = random_model("0.1b"), c = random_model("0.1b", 2);
  const size_t n = 768 * 768 * 2;
  const auto bytes = [&](const WeightSource& s, uint32_t id, uint32_t layer) {
    const auto p = s.tensor(id, layer, DUET_BF16);
    return std::string(static_cast<const char*>(p.get()), n);
  };
  const std::string key = bytes(*a, DUETP_T_KEY, 3);
  CHECK(key == bytes(*b, DUETP_T_KEY, 3));
  CHECK(key != bytes(*c, DUETP_T_KEY, 3));
  CHECK(key != bytes(*a, DUETP_T_KEY, 4));
  CHECK(key != bytes(*a, DUETP_T_VALUE, 3));
  CHECK(a->fingerprint() == b->fingerprint());
  CHECK(a->fingerprint() != c->fingerprint());
  CHECK(a->stored() == DUET_BF16);
  CHECK(a->time_state(0).empty());
}

TEST_CASE("16-bit weights are the rounded f32 ones") {
  const auto source = random_model("0.1b");
  const uint64_t n = 768 * 3072;
  const auto f32 = source->tensor(DUETP_T_FFN_KEY, 5, DUET_F32);
  for (const duet_dtype dtype : {DUET_BF16, DUET_F16}) {
    std::vector<uint16_t> rounded(n);
    convert_floats(f32.get(), DType::f32, rounded.data(), dtype, n);
    const auto made = source->tensor(DUETP_T_FFN_KEY, 5, dtype);
    CHECK(std::memcmp(rounded.data(), made.get(), 2 * n) == 0);
  }
}

TEST_CASE("matrices have the mean and deviation they should, whichever slice one looks at") {
  const auto source = random_model("0.1b", 5);
  const uint64_t n = 768 * 768;
  const auto memory = source->tensor(DUETP_T_RECEPTANCE, 0, DUET_F32);
  const auto* w = static_cast<const float*>(memory.get());
  for (uint64_t part = 0; part < 8; ++part) {
    double sum = 0, squares = 0, neighbours = 0;
    for (uint64_t i = part * n / 8; i < (part + 1) * n / 8 - 1; ++i) {
      const double v = w[i] * std::sqrt(768.0);
      sum += v;
      squares += v * v;
      neighbours += v * w[i + 1] * std::sqrt(768.0);
    }
    CHECK(std::fabs(sum * 8 / n) < 0.02);
    CHECK(std::fabs(squares * 8 / n - 1) < 0.02);
    CHECK(std::fabs(neighbours * 8 / n) < 0.02);
  }
}

TEST_CASE("activations stay near one, decays cover their range, relu^2 is as sparse as asked") {
  for (const float share : {0.0f, 0.1f, 0.3f}) {
    const Activity a = run(*random_model("0.1b", 3, share), 4, 4);
    CHECK(a.nonzero == Approx(share == 0 ? 0.5 : share).epsilon(0.1));
    CHECK(a.largest < 30);
    CHECK(a.decay_low < 0.57);
    CHECK(a.decay_low > 0.545);
    CHECK(a.decay_high > 0.999);
    CHECK(a.decay_high < 1);
  }
}
