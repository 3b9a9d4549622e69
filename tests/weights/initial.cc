// The official initialisation: rules of its table, checked on whole tensors.
#include <sched.h>

#include <cmath>

#include "model/orthogonal.h"
#include "model_file.h"

using namespace duet;

namespace {

duet_init_options options(uint32_t n_layer, uint32_t n_embd, uint32_t n_vocab, uint32_t head_size = 0, uint64_t seed = 1) {
  auto o = DUET_INIT(duet_init_options);
  o.n_layer = n_layer;
  o.n_embd = n_embd;
  o.n_vocab = n_vocab;
  o.head_size = head_size;
  o.seed = seed;
  return o;
}

std::vector<float> values(const WeightSource& source, uint32_t id, uint32_t layer) {
  const auto p = source.tensor(id, layer, DUET_F32);
  const auto* f = static_cast<const float*>(p.get());
  return {f, f + tensor_count(id, layer, source.shape())};
}

// Rows or columns, whichever are fewer, are orthogonal and of length `gain`
void check_orthogonal(const WeightSource& source, uint32_t id, uint32_t layer, double gain) {
  const std::vector<float> w = values(source, id, layer);
  const std::vector<uint32_t> dims = tensor_shape(id, layer, source.shape());
  const size_t rows = dims[0], cols = dims[1];
  double worst = 0;
  for (size_t a = 0; a < std::min(rows, cols); ++a)
    for (size_t b = 0; b <= a; ++b) {
      double dot = 0;
      for (size_t i = 0; i < std::max(rows, cols); ++i) dot += rows < cols ? double{w[a * cols + i]} * w[b * cols + i] : double{w[i * cols + a]} * w[i * cols + b];
      worst = std::max(worst, std::fabs(dot / (gain * gain) - (a == b)));
    }
  INFO(tensor_name(id, layer));
  CHECK(worst < 1e-5);
}

}  // namespace

TEST_CASE("ranks of the current trainer") {
  const std::array<uint32_t, 5> table[] = {{768, 64, 64, 32, 128}, {1024, 64, 64, 64, 160}, {2048, 128, 128, 64, 224}, {2560, 128, 128, 96, 256}, {4096, 160, 160, 96, 320}, {64, 32, 32, 32, 32}};
  for (const auto& [c, w, a, v, g] : table) {
    const duetp_shape s = initial_weights(options(2, c, 100))->shape();
    CHECK((s.rank_w == w && s.rank_a == a && s.rank_v == v && s.rank_g == g && s.n_ffn == 4 * c && s.head_size == 64));
  }
  // 5 sqrt(256) / 32 = 2.5 rounds to 2
  CHECK(initial_weights(options(2, 256, 100))->shape().rank_g == 64);
  CHECK(initial_weights(options(1, 64, 100))->shape().rank_v == 0);
}

TEST_CASE("vectors follow their formulas") {
  const auto source = initial_weights(options(3, 64, 10, 16));
  const auto at = [&](uint32_t id, uint32_t layer, size_t n) { return values(*source, id, layer)[n]; };
  CHECK(at(DUETP_T_X_R, 1, 0) == 1.0f);
  CHECK(at(DUETP_T_X_R, 1, 32) == Approx(1 - std::pow(0.5, 0.2 * 2 / 3)));
  CHECK(at(DUETP_T_X_G, 0, 32) == Approx(1 - std::pow(0.5, 0.2)));
  CHECK(at(DUETP_T_X_W, 0, 16) == Approx(1 - std::pow(0.25, 0.9)));
  CHECK(at(DUETP_T_X_A, 2, 16) == Approx(1 - std::pow(0.25, 0.3)));
  CHECK(at(DUETP_T_X_K, 0, 16) == Approx(1 - std::pow(0.25, 0.7)));
  CHECK(at(DUETP_T_X_V, 0, 16) == Approx(1 - std::pow(0.25, 0.7)));
  CHECK(at(DUETP_T_FFN_X_K, 1, 16) == Approx(1 - std::pow(0.25, 16.0 / 81)));
  CHECK(at(DUETP_T_W0, 0, 0) == Approx(-5.5 - 2.5));         // the first channel of a head: q = -1
  CHECK(at(DUETP_T_W0, 2, 63) == Approx(0.5 + 2.5));         // the last
  CHECK(at(DUETP_T_W0, 1, 31) == Approx(-5.5 + 6 * std::pow(31 / 63.0, 1 + std::pow(0.5, 0.3)) + 2.5));
  CHECK(at(DUETP_T_A0, 0, 0) == Approx(-0.19 - 0.3 - 0.2));
  CHECK(at(DUETP_T_V0, 1, 63) == Approx(0.73 - 0.2));
  CHECK(at(DUETP_T_K_K, 1, 0) == Approx(0.71 + 0.05));
  CHECK(at(DUETP_T_K_A, 1, 5) == 1.02f);
  CHECK(at(DUETP_T_R_K, 1, 5) == -0.04f);
  CHECK(at(DUETP_T_LN_X_W, 0, 5) == Approx(std::pow(1 / 3.0, 0.7)));
  CHECK(at(DUETP_T_LN_X_W, 2, 5) == 1.0f);
  CHECK((at(DUETP_T_LN1_W, 1, 5) == 1.0f && at(DUETP_T_LN0_W, 3, 5) == 1.0f && at(DUETP_T_LN_OUT_B, 3, 5) == 0.0f));
}

TEST_CASE("matrices: zero, uniform or orthogonal with their gains") {
  const auto source = initial_weights(options(2, 64, 200, 16));
  for (const uint32_t id : {DUETP_T_W1, DUETP_T_A1, DUETP_T_V1, DUETP_T_G1, DUETP_T_OUTPUT, DUETP_T_FFN_VALUE})
    for (const float v : values(*source, id, 1)) REQUIRE(v == 0);
  float low = 0, high = 0;
  for (const float v : values(*source, DUETP_T_EMB, 2)) {
    low = std::min(low, v);
    high = std::max(high, v);
  }
  CHECK((low >= -1e-4f && low < -0.99e-4f && high <= 1e-4f && high > 0.99e-4f));
  check_orthogonal(*source, DUETP_T_RECEPTANCE, 0, 1);
  check_orthogonal(*source, DUETP_T_VALUE, 1, 1);
  check_orthogonal(*source, DUETP_T_KEY, 1, 0.1);
  check_orthogonal(*source, DUETP_T_FFN_KEY, 1, 1);
  check_orthogonal(*source, DUETP_T_HEAD, 2, 0.5 * std::sqrt(200 / 64.0));
  for (const uint32_t id : {DUETP_T_W2, DUETP_T_A2, DUETP_T_V2, DUETP_T_G2}) check_orthogonal(*source, id, 1, 0.1);
  check_orthogonal(*initial_weights(options(1, 16, 10, 16)), DUETP_T_W2, 0, 0.1 * std::sqrt(2.0));  // rank 32, wider than the model
  check_orthogonal(*initial_weights(options(1, 64, 30)), DUETP_T_HEAD, 1, 0.5);                     // fewer tokens than channels
}

TEST_CASE("orthogonal matrices are those of QR with a positive diagonal") {
  // A = Q R by hand: columns (3,4), (1,2) -> (0.6,0.8), then (1,2) - 2.2 (0.6,0.8) = (-0.32,0.24) -> (-0.8,0.6)
  float a[] = {3, 1, 4, 2};
  orthogonalise(a, 2, 2);
  CHECK(a[0] == Approx(0.6));
  CHECK(a[2] == Approx(0.8));
  CHECK(a[1] == Approx(-0.8));
  CHECK(a[3] == Approx(0.6));
  float nearly_singular[] = {1, 1, 1, 1.0001f};  // repeated until it is right
  orthogonalise(nearly_singular, 2, 2);
  CHECK(nearly_singular[0] == Approx(std::sqrt(0.5)));
  CHECK(nearly_singular[1] == Approx(-std::sqrt(0.5)).epsilon(1e-3));
  CHECK(std::fabs(nearly_singular[0] * nearly_singular[1] + nearly_singular[2] * nearly_singular[3]) < 1e-6);
  float zero[] = {0, 0, 0, 0};
  std::string text;
  CHECK(error_of([&] { orthogonalise(zero, 2, 2); }, text) == DUET_E_NUMERIC);
}

TEST_CASE("an orthogonal matrix has the same bits on one processor and on all") {
  cpu_set_t all, one;
  REQUIRE(::sched_getaffinity(0, sizeof all, &all) == 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu)
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  for (const auto& [rows, cols] : {std::pair<uint64_t, uint64_t>(300, 300), std::pair<uint64_t, uint64_t>(500, 131)}) {
    std::vector<float> a(rows * cols);
    for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 2654435761u % 1000003 / 1000003.0 - 0.5);
    std::vector<float> b = a;
    orthogonalise(a.data(), rows, cols);
    REQUIRE(::sched_setaffinity(0, sizeof one, &one) == 0);
    orthogonalise(b.data(), rows, cols);
    REQUIRE(::sched_setaffinity(0, sizeof all, &all) == 0);
    CHECK(a == b);
  }
}

TEST_CASE("the seed decides, and so do layer and tensor, a dtype only rounds") {
  const auto a = initial_weights(options(2, 64, 50)), b = initial_weights(options(2, 64, 50)), c = initial_weights(options(2, 64, 50, 0, 2));
  CHECK(values(*a, DUETP_T_KEY, 0) == values(*b, DUETP_T_KEY, 0));
  CHECK(values(*a, DUETP_T_KEY, 0) != values(*c, DUETP_T_KEY, 0));
  CHECK(values(*a, DUETP_T_KEY, 0) != values(*a, DUETP_T_KEY, 1));
  CHECK(values(*a, DUETP_T_VALUE, 0) != values(*a, DUETP_T_RECEPTANCE, 0));
  auto o = options(2, 64, 50);
  o.weights = DUET_BF16;
  const auto rounded = initial_weights(o);
  CHECK(rounded->stored() == DUET_BF16);
  CHECK(a->stored() == DUET_F32);
  const std::vector<float> key = values(*a, DUETP_T_KEY, 0);
  std::vector<uint16_t> expected(key.size());
  convert_floats(key.data(), DType::f32, expected.data(), DUET_BF16, key.size());
  CHECK(std::memcmp(expected.data(), rounded->tensor(DUETP_T_KEY, 0, DUET_BF16).get(), 2 * key.size()) == 0);
}

TEST_CASE("one layer, one channel per head: nothing divides by zero") {
  for (const auto& o : {options(1, 1, 1, 1), options(1, 2, 3, 1), options(2, 3, 2, 3)}) {
    const auto source = initial_weights(o);
    for (uint32_t layer = 0; layer <= o.n_layer; ++layer)
      for (uint32_t id = 0; id < DUETP_T_COUNT; ++id)
        if (tensor_count(id, layer, source->shape()) != 0)
          for (const float v : values(*source, id, layer)) REQUIRE(std::isfinite(v));
  }
}

TEST_CASE("impossible models are refused by name") {
  const auto refused = [](const duet_init_options& o, duet_status code, const char* part) {
    std::string text;
    CHECK(error_of([&] { (void)initial_weights(o); }, text) == code);
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  refused(options(0, 64, 10), DUET_E_INVALID, "number of layers is 0");
  refused(options(1, 0, 10), DUET_E_INVALID, "n_embd is 0");
  refused(options(1, 64, 0), DUET_E_INVALID, "vocabulary is 0");
  refused(options(1, 100, 10), DUET_E_INVALID, "head size 64 does not divide");
  refused(options(5000, 64, 10), DUET_E_LIMIT, "number of layers is 5000");
  refused(options(1, 1u << 31, 10), DUET_E_LIMIT, "n_embd is 2147483648");
  refused(options(1, 64, (1u << 20) + 1), DUET_E_LIMIT, "vocabulary is 1048577");
  refused(options(1, 2048, 10, 2048), DUET_E_LIMIT, "head size is 2048");
  auto o = options(1, 64, 10);
  o.weights = DUET_I4;
  refused(o, DUET_E_UNSUPPORTED, "dtype 17");
}
