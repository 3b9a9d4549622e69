#include "conform/numbers.h"

#include <cmath>
#include <cstring>

namespace conform {
namespace {

uint16_t bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float from_bf16(uint16_t h) {
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

uint16_t f16(float f) {
  if (std::fabs(f) < 0x1p-14f) return 0;
  int e;
  const float m = std::frexp(std::fabs(f), &e);  // m in [0.5, 1)
  return static_cast<uint16_t>((f < 0 ? 0x8000 : 0) | (e + 14) << 10 | (static_cast<int>(m * 2048) & 1023));
}

}  // namespace

const char* name_of(duet_dtype t) {
  switch (t) {
    case DUET_F32: return "f32";
    case DUET_BF16: return "bf16";
    case DUET_F16: return "f16";
    case DUET_I8: return "q8";
    default: return "q4";
  }
}

void encode(const std::vector<float>& values, duet_dtype dtype, unsigned char* p) {
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = dtype == DUET_BF16 ? bf16(values[i]) : dtype == DUET_F16 ? f16(values[i]) : 0;
    std::memcpy(p + i * bytes_of(dtype), dtype == DUET_F32 ? static_cast<const void*>(&values[i]) : &half, bytes_of(dtype));
  }
}

std::vector<float> decode(const std::vector<unsigned char>& bytes, duet_dtype dtype) {
  std::vector<float> out(bytes.size() / bytes_of(dtype));
  for (size_t i = 0; i < out.size(); ++i) {
    if (dtype == DUET_F32) {
      std::memcpy(&out[i], &bytes[4 * i], 4);
    } else {
      uint16_t half;
      std::memcpy(&half, &bytes[2 * i], 2);
      out[i] = from_bf16(half);
    }
  }
  return out;
}

}  // namespace conform
