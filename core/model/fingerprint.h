// 128 bits that tell models apart. Not cryptographic: it guards against mistakes, not against forgery.
#pragma once
#include <bit>
#include <cstdint>
#include <string>

#include "base/format.h"

namespace duet {

// Two lanes over 32-bit words, the same on every platform: h = (h ^ word) * odd, then h ^= h >> 32. Each step is a
// bijection of h, so that no word is forgotten.
class Fingerprint {
 public:
  void add(uint32_t word) {
    a_ = (a_ ^ word) * 0x9e37'79b9'7f4a'7c15u;
    b_ = (b_ ^ word) * 0xc2b2'ae3d'27d4'eb4fu;
    a_ ^= a_ >> 32;
    b_ ^= b_ >> 32;
  }
  void add(const float* values, uint64_t n) {
    for (uint64_t i = 0; i < n; ++i) add(std::bit_cast<uint32_t>(values[i]));
  }
  std::string text() const { return duet::format("{:016x}{:016x}", a_, b_); }

 private:
  uint64_t a_ = 0x6a09'e667'f3bc'c908u, b_ = 0xbb67'ae85'84ca'a73bu;  // square roots of 2 and 3
};

}  // namespace duet
