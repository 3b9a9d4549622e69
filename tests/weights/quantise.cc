// Rounding to q8 and q4 and back.
#include "model/quantise.h"

#include <sched.h>

#include <cmath>
#include <random>

#include "model_file.h"

using namespace duet;

namespace {

constexpr duet_dtype kBoth[] = {DUET_I8, DUET_I4};
constexpr uint32_t kOutMajor = DUETP_T_KEY, kInMajor = DUETP_T_W1, kRows = DUETP_T_EMB;

struct Quantised {
  duetp_quantised_form form;
  std::vector<std::byte> block;
  QuantisedMatrix parts;
  uint32_t id;
  duet_dtype dtype;

  Quantised(uint32_t tensor, duet_dtype t, uint32_t out, uint32_t in, const std::vector<float>& w)
      : form(duetp_form_of(tensor, t, out, in)), block(quantised_block_bytes(form, t)), parts(quantised_parts(form, t, block.data())), id(tensor), dtype(t) {
    quantise(id, dtype, form, 0, form.tiles, w.data(), block.data());
  }
  std::vector<float> floats() const {
    std::vector<float> w(size_t{form.out} * form.in);
    dequantise(id, dtype, parts, 0, w.size(), w.data());
    return w;
  }
  const uint8_t* integers() const { return static_cast<const uint8_t*>(parts.data); }
};

std::vector<float> normal(size_t n, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> w(n);
  for (float& x : w) x = distribution(random);
  return w;
}

std::vector<float> transposed(const std::vector<float>& w, uint32_t rows, uint32_t columns) {
  std::vector<float> out(w.size());
  for (uint32_t r = 0; r < rows; ++r)
    for (uint32_t c = 0; c < columns; ++c) out[size_t{c} * rows + r] = w[size_t{r} * columns + c];
  return out;
}

double relative_error(const std::vector<float>& found, const std::vector<float>& right) {
  double error = 0, all = 0;
  for (size_t i = 0; i < right.size(); ++i) {
    error += std::pow(double{found[i]} - right[i], 2);
    all += std::pow(double{right[i]}, 2);
  }
  return std::sqrt(error / all);
}

}  // namespace

TEST_CASE("the error is that of so many bits") {
  for (const uint32_t in : {256u, 100u}) {
    const std::vector<float> w = normal(size_t{512} * in);
    const double q8 = relative_error(Quantised(kOutMajor, DUET_I8, 512, in, w).floats(), w), q4 = relative_error(Quantised(kOutMajor, DUET_I4, 512, in, w).floats(), w);
    INFO(q8 << " " << q4);
    CHECK((q8 > 0.004 && q8 < 0.007));
    CHECK((q4 > 0.05 && q4 < 0.086));  // 0.088 without a search
  }
}

TEST_CASE("no q4 group is further off than evenly spaced steps over its range") {
  const std::vector<float> w = normal(64 * 64);
  const std::vector<float> found = Quantised(kOutMajor, DUET_I4, 64, 64, w).floats();
  for (size_t o = 0; o < 64; ++o) {
    const auto first = w.begin() + static_cast<ptrdiff_t>(64 * o);
    const auto [low, high] = std::minmax_element(first, first + 64);
    const double step = (*high - *low) / 15.0;
    double plain = 0, searched = 0;
    for (size_t i = 64 * o; i < 64 * o + 64; ++i) {
      plain += std::pow(*low + step * std::nearbyint((w[i] - *low) / step) - w[i], 2);
      searched += std::pow(found[i] - w[i], 2);
    }
    CHECK(searched < plain * 1.05);  // scale and minimum are bf16
  }
}

TEST_CASE("the same bits on one processor and on all") {
  cpu_set_t all, one;
  REQUIRE(::sched_getaffinity(0, sizeof all, &all) == 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu)
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  const std::vector<float> w = normal(300 * 130);
  for (const duet_dtype dtype : kBoth) {
    const Quantised a(kOutMajor, dtype, 300, 130, w);
    REQUIRE(::sched_setaffinity(0, sizeof one, &one) == 0);
    const Quantised b(kOutMajor, dtype, 300, 130, w);
    REQUIRE(::sched_setaffinity(0, sizeof all, &all) == 0);
    CHECK(a.block == b.block);
  }
}

TEST_CASE("outputs may be rounded tile by tile") {
  const std::vector<float> w = normal(100 * 70);
  for (const duet_dtype dtype : kBoth) {
    const Quantised whole(kOutMajor, dtype, 100, 70, w);
    Quantised pieces(kOutMajor, dtype, 100, 70, normal(100 * 70, 2));
    for (uint64_t tile = 0; tile < pieces.form.tiles; ++tile) quantise(kOutMajor, dtype, pieces.form, tile, tile + 1, w.data() + tile * 16 * 70, pieces.block.data());
    CHECK(pieces.block == whole.block);
  }
}

TEST_CASE("both orientations of a matrix have one form") {
  const std::vector<float> w = normal(37 * 130);  // [out,in]
  for (const duet_dtype dtype : kBoth) {
    const Quantised out_major(kOutMajor, dtype, 37, 130, w), in_major(kInMajor, dtype, 37, 130, transposed(w, 37, 130));
    CHECK(out_major.block == in_major.block);
    CHECK(in_major.floats() == transposed(out_major.floats(), 37, 130));
    CHECK(Quantised(kRows, dtype, 37, 130, w).floats() == out_major.floats());
  }
}

TEST_CASE("any range of a matrix comes back by itself") {
  for (const duet_dtype dtype : kBoth)
    for (const uint32_t id : {kOutMajor, kInMajor, kRows}) {
      const Quantised q(id, dtype, 20, 70, normal(20 * 70));
      const std::vector<float> all = q.floats();
      for (const uint64_t first : {0, 1, 69, 70, 700, 1399})
        for (const uint64_t n : {0, 1, 71, 700}) {
          if (first + n > all.size()) continue;
          std::vector<float> some(n + 1, -7.0f);
          dequantise(id, dtype, q.parts, first, n, some.data());
          CHECK(std::equal(some.begin(), some.end() - 1, all.begin() + static_cast<ptrdiff_t>(first)));
          CHECK(some[n] == -7.0f);
        }
    }
}

TEST_CASE("the padding is zero and does not sway the rounding") {
  const uint32_t out = 19, in = 70;
  for (const duet_dtype dtype : kBoth) {
    const Quantised q(kOutMajor, dtype, out, in, std::vector<float>(out * in, -3.0f));
    REQUIRE((q.form.tiles == 2 && q.form.groups == 2));
    uint64_t nonzero = 0, scales = 0;
    for (uint64_t i = 0; i < q.form.bytes; ++i) nonzero += q.integers()[i] != 0;
    for (uint64_t i = 0; i < q.form.scales; ++i) scales += duetp_bf16(q.parts.scale, i) != 0 || (q.parts.minimum != nullptr && duetp_bf16(q.parts.minimum, i) != 0);
    CHECK(nonzero == (dtype == DUET_I8 ? out * in : 0));  // one value is its minimum
    CHECK(scales == out * 2);
    std::vector<float> w = normal(out * in);  // the second group's six inputs are rounded as if they were alone
    for (float& x : w) x += 5;
    std::vector<float> last(out * 6);
    for (uint32_t o = 0; o < out; ++o) std::copy_n(w.begin() + o * in + 64, 6, last.begin() + o * 6);
    const std::vector<float> all = Quantised(kOutMajor, dtype, out, in, w).floats(), some = Quantised(kOutMajor, dtype, out, 6, last).floats();
    for (uint32_t o = 0; o < out; ++o) CHECK(std::equal(some.begin() + o * 6, some.begin() + o * 6 + 6, all.begin() + o * in + 64));
  }
}

TEST_CASE("one value throughout is exact to bf16") {
  for (const float value : {1.0f, -1.0f, 0.3f, -1e-3f, 7e20f, 0.0f})
    for (const duet_dtype dtype : kBoth)
      for (const float x : Quantised(kOutMajor, dtype, 3, 100, std::vector<float>(300, value)).floats()) CHECK(std::fabs(x - value) <= std::fabs(value) / 256);
}

TEST_CASE("what is not finite stays visible, in its group alone") {
  for (const float bad : {NAN, -NAN, INFINITY, -INFINITY})
    for (const size_t at : {0u, 63u, 64u, 191u})
      for (const duet_dtype dtype : kBoth) {
        std::vector<float> w = normal(2 * 192);
        w[at] = bad;
        const std::vector<float> back = Quantised(kOutMajor, dtype, 2, 192, w).floats();
        for (size_t i = 0; i < back.size(); ++i) CHECK(std::isfinite(back[i]) == (i / 64 != at / 64));
      }
}

TEST_CASE("numbers at the ends of the range do no harm") {
  for (const float size : {1e-45f, 1e-38f, 1e-36f, 1e30f, 1e37f, 3e38f})
    for (const duet_dtype dtype : kBoth) {
      std::vector<float> w = normal(64);
      for (float& x : w) x = std::clamp(x / 4, -1.0f, 1.0f) * size;
      for (const float x : Quantised(kOutMajor, dtype, 1, 64, w).floats()) CHECK(std::fabs(x) <= size * 1.01f);
    }
}

TEST_CASE("q8 of what came from q8 is the same") {
  for (const float size : {1.0f, 3e-5f, 123.0f}) {
    std::vector<float> w = normal(50 * 200);
    for (float& x : w) x *= size;
    const Quantised once(kOutMajor, DUET_I8, 50, 200, w), twice(kOutMajor, DUET_I8, 50, 200, once.floats());
    CHECK(twice.block == once.block);
    for (uint64_t i = 0; i < once.form.bytes; ++i) CHECK(once.integers()[i] != 0x80);
  }
}
