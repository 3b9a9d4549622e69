// The kernel that runs one sequence, all layers in one, beside kernels of their own for every step: the same weights, the same tokens.
#include <cmath>
#include <cstdlib>
#include <sstream>

#include "cuda/scene.h"

using namespace api;
using namespace scene;

namespace {

// The logits of every token, read one by one, and the state after the first and after the last
struct Steps {
  size_t n_layer = 0;
  std::vector<float> logits;
  Arrays first, last;
};

Model random_model(const Library& lib, const std::string& shape, duet_dtype weights) {
  auto how = DUET_INIT(duet_random_options);
  how.shape = shape.c_str();
  auto o = DUET_INIT(duet_model_options);
  o.device = "cuda:0";
  o.weights = weights;
  duet_model* m = nullptr;
  check(duet_model_random(lib.get(), &how, &o, &m));
  return Model(m);
}

// On a device of its own, as `resident` (DUET_CUDA_RESIDENT) is read when a device is opened
Steps steps(const std::string& shape, duet_dtype weights, duet_dtype stored, const char* resident) {
  REQUIRE(::setenv("DUET_CUDA_RESIDENT", resident, 1) == 0);
  const auto lib = library(1);
  const Model m = random_model(lib, shape, weights);
  const Session x = session(m, DUET_MODE_RECURRENT);
  const State s = state(m, 2, stored);
  Steps out;
  out.n_layer = info(m).n_layer;
  const char* named = std::getenv("DUET_TEST_TOKENS");  // two are enough for racecheck, which takes seconds for each
  for (int32_t i = 0, n = named ? std::atoi(named) : 20; i < n; ++i) {
    const std::vector<float> of_token = forward(x, s, {(i * 7919 + 3) % 60000}, 1);
    out.logits.insert(out.logits.end(), of_token.begin(), of_token.end());
    if (i == 0) out.first = arrays(m, s, 1);
  }
  out.last = arrays(m, s, 1);
  REQUIRE(::unsetenv("DUET_CUDA_RESIDENT") == 0);
  return out;
}

// |a - b| / |b|; 1e30 for NaN
double apart(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) difference += std::pow(double{a[i]} - b[i], 2), size += std::pow(double{b[i]}, 2);
  const double ratio = std::sqrt(difference / size);
  return std::isfinite(ratio) ? ratio : 1e30;
}

// Sums differ by their order alone. Where an element then rounds to another bf16 or 8-bit number the next layers differ by as much
// as rounding does, and in the end all do (`most`); the first layer's results hardly.
void compare(duet_dtype weights, duet_dtype stored, double most) {
  constexpr double kMostAtFirst = 3e-3;
  if (lacks_gpus(1)) return;
  const char* named = std::getenv("DUET_TEST_SHAPES");
  std::istringstream shapes(named ? named : "0.1b 0.4b");
  for (std::string shape; shapes >> shape;) {
    INFO(shape);
    const Steps separate = steps(shape, weights, stored, "0"), together = steps(shape, weights, stored, "1"), again = steps(shape, weights, stored, "1");
    CHECK(together.logits == again.logits);
    CHECK(together.last == again.last);
    const auto of_layer = [](const std::vector<float>& all, size_t layer, size_t n) { return std::vector<float>(all.begin() + layer * n, all.begin() + (layer + 1) * n); };
    const auto in_layer = [&](const char* what, size_t layer, std::vector<float> Arrays::*of) {
      const size_t n = (together.first.*of).size() / together.n_layer;
      const double x = apart(of_layer(together.first.*of, layer, n), of_layer(separate.first.*of, layer, n));
      std::cout << "  " << what << " of layer " << layer << ": " << x << "\n";
      CHECK(x < kMostAtFirst);
    };
    std::cout << shape << ", " << weights << ", states in " << stored << "\n";
    in_layer("wkv", 0, &Arrays::wkv);      // of receptance, key, value and the low-rank pairs
    in_layer("ffn_x", 0, &Arrays::ffn_x);  // of the head's end and output
    in_layer("att_x", 1, &Arrays::att_x);  // of channel mix
    in_layer("wkv", 1, &Arrays::wkv);      // and of value's low-rank pair
    const double logits = apart(together.logits, separate.logits), wkv = apart(together.last.wkv, separate.last.wkv);
    std::cout << "  logits: " << logits << ", wkv: " << wkv << "\n";
    CHECK(logits < most);
    CHECK(wkv < most);
    CHECK(apart(together.last.att_x, separate.last.att_x) < most);
    CHECK(apart(together.last.ffn_x, separate.last.ffn_x) < most);
    if (logits == 0) WARN("the same bits: is there no such kernel on this GPU?");
  }
}

}  // namespace

TEST_CASE("one sequence in one kernel: bf16") { compare(DUET_BF16, DUET_F32, 0.06); }
TEST_CASE("one sequence in one kernel: bf16, states in f16") { compare(DUET_BF16, DUET_F16, 0.06); }
TEST_CASE("one sequence in one kernel: q8") { compare(DUET_I8, DUET_F32, 0.06); }
TEST_CASE("one sequence in one kernel: q8, states in bf16") { compare(DUET_I8, DUET_BF16, 0.06); }
TEST_CASE("one sequence in one kernel: q4") { compare(DUET_I4, DUET_F32, 0.15); }
