// Reproducible numbers, and the float types as bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "duet_types.h"

namespace conform {

// The n-th of a stream, uniform in [-1, 1)
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  float next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<float>(static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-52 - 1);
  }

 private:
  uint64_t state_;
};

const char* name_of(duet_dtype t);
// What weights come in
constexpr duet_dtype kWeights[] = {DUET_F32, DUET_BF16, DUET_F16, DUET_I8, DUET_I4};
inline size_t bytes_of(duet_dtype t) { return t == DUET_F32 ? 4 : 2; }
inline duet_dtype matrix_input(duet_dtype weights) { return weights == DUET_BF16 ? DUET_BF16 : DUET_F32; }

// `values` as f32, bf16 (rounded) or f16 (truncated; |value| < 2) at p
void encode(const std::vector<float>& values, duet_dtype dtype, unsigned char* p);
// of f32 or bf16
std::vector<float> decode(const std::vector<unsigned char>& bytes, duet_dtype dtype);

}  // namespace conform
