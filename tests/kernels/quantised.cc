// Products with q8 and q4 weights: whichever kernel computes them, and into whatever place, the bits are those of the plain one.
#include "kernels.h"

#include <cstring>
#include <random>
#include <vector>

#include "support/catch.h"

using namespace duet_cpu;

namespace {

struct Restored {
  ~Restored() { limit_integers(Integers::kVnni); }
};

// A matrix of `out` outputs, all integers at random, and rows of inputs, among them one of zeros
struct Case {
  std::vector<uint8_t> integers, memory;
  std::vector<uint16_t> scales, minimums;
  Matrix m;
  RoundedRows x;

  Case(duet_dtype dtype, uint32_t in, uint32_t out, size_t rows) {
    std::mt19937 random(in + out);
    const size_t groups = (in + kGroup - 1) / kGroup;
    integers.resize(groups * kGroup * out / (dtype == DUET_I4 ? 2 : 1));
    for (uint8_t& q : integers) q = static_cast<uint8_t>(random());
    if (dtype == DUET_I8)
      for (uint8_t& q : integers) q = q == 0x80 ? 0x81 : q;
    scales.resize(groups * out), minimums.resize(groups * out);
    for (uint16_t& s : scales) s = static_cast<uint16_t>(0x3c00 + random() % 0x200);  // bf16, 2^-7 to 2^-3
    for (uint16_t& s : minimums) s = static_cast<uint16_t>(0xbc00 + random() % 0x200);
    m.data = integers.data(), m.dtype = dtype, m.in = in, m.out = out, m.scale = scales.data();
    if (dtype == DUET_I4) m.minimum = minimums.data();
    memory.resize(rounded_bytes(in, rows));
    x = rounded_rows(in, rows, memory.data());
    std::vector<float> inputs(rows * in);
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = i / in == 1 ? 0.0f : static_cast<float>(static_cast<int32_t>(random())) * 0x1p-30f;
    round_rows(inputs.data(), in, rows, x);
  }

  std::vector<float> product(Integers most, size_t rows, bool add, size_t gap) const {
    const Restored restored;
    limit_integers(most);
    const size_t ld = m.out + gap;
    std::vector<float> y(rows * ld, 0.5f);
    multiply_tile(m, 0, m.out, x, rows, {y.data(), ld, add}, {});
    return y;
  }
};

bool same(const std::vector<float>& a, const std::vector<float>& b) { return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0; }

}  // namespace

TEST_CASE("every integer product gives the bits of the plain one") {
  for (const duet_dtype dtype : {DUET_I8, DUET_I4})
    for (const uint32_t in : {8u, 64u, 200u, 1024u})
      for (const uint32_t out : {16u, 48u, 64u, 128u})
        for (const size_t rows : {1, 2, 3, 4, 5, 6, 7, 13, 36})
          for (const bool add : {false, true}) {
            const Case c(dtype, in, out, rows);
            const std::vector<float> plain = c.product(Integers::kNone, rows, add, 16);
            for (const Integers most : {Integers::kAvx2, Integers::kAvxVnni, Integers::kVnni}) {
              INFO("dtype " << dtype << ", " << in << " x " << out << ", " << rows << " rows, add " << add << ", integers " << static_cast<int>(most));
              REQUIRE(same(c.product(most, rows, add, 16), plain));
            }
          }
}

TEST_CASE("a product is added to what is there, and nothing beside its outputs is written") {
  for (const duet_dtype dtype : {DUET_I8, DUET_I4})
    for (const Integers most : {Integers::kNone, Integers::kAvx2, Integers::kAvxVnni, Integers::kVnni}) {
      const Case c(dtype, 200, 48, 5);
      const std::vector<float> stored = c.product(most, 5, false, 16), added = c.product(most, 5, true, 16);
      for (size_t i = 0; i < stored.size(); ++i) REQUIRE(added[i] == (i % 64 < 48 ? 0.5f + stored[i] : 0.5f));
      for (size_t i = 0; i < stored.size(); ++i)
        if (i % 64 >= 48) REQUIRE(stored[i] == 0.5f);
    }
}
