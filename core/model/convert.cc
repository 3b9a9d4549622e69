// Conversions between the floating-point types of files and weights. Straight-line selects without branches, which the
// compiler vectorises; f32 is the pivot.
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "model/weights.h"

namespace duet {
namespace {

struct F64 { using Bits = uint64_t; };
struct F32 { using Bits = uint32_t; };
struct F16 { using Bits = uint16_t; };
struct BF16 { using Bits = uint16_t; };

float widen(F32, uint32_t b) { return std::bit_cast<float>(b); }
float widen(BF16, uint16_t b) { return std::bit_cast<float>(uint32_t{b} << 16); }
float widen(F16, uint16_t b) {
  const uint32_t sign = uint32_t{b} << 16 & 0x8000'0000u, rest = b & 0x7fffu, moved = rest << 13;
  const uint32_t normal = moved + (112u << 23), special = moved | 0x7f80'0000u;
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(moved + (113u << 23)) - std::bit_cast<float>(113u << 23));
  return std::bit_cast<float>(sign | (rest >= 0x7c00u ? special : rest < 0x0400u ? subnormal : normal));
}
// Rounded to odd: a second rounding to f16 or bf16 then gives what rounding once would have given.
float widen(F64, uint64_t b) {
  const double d = std::bit_cast<double>(b);
  const float f = static_cast<float>(d);
  if (std::isnan(d) || static_cast<double>(f) == d) return f;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(f) - (std::fabs(static_cast<double>(f)) > std::fabs(d))) | 1u);
}

uint32_t narrow(F32, float f) { return std::bit_cast<uint32_t>(f); }
uint16_t narrow(BF16, float f) {
  const uint32_t b = std::bit_cast<uint32_t>(f);
  const bool nan = (b & 0x7fff'ffffu) > 0x7f80'0000u;
  return static_cast<uint16_t>((nan ? b | 0x0040'0000u : b + 0x7fffu + (b >> 16 & 1u)) >> 16);
}
uint16_t narrow(F16, float f) {
  const uint32_t b = std::bit_cast<uint32_t>(f), sign = b >> 16 & 0x8000u, rest = b & 0x7fff'ffffu;
  const uint32_t normal = (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13;
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(rest) + 0.5f) - 0x3f00'0000u;  // the sum rounds at 2^-24
  const uint32_t special = rest > 0x7f80'0000u ? 0x7e00u : 0x7c00u;
  return static_cast<uint16_t>(sign | (rest >= 0x4780'0000u ? special : rest < (113u << 23) ? subnormal : normal));
}

template <class From, class To>
void convert(const void* src, void* dst, uint64_t n) {
  const auto* s = static_cast<const unsigned char*>(src);
  auto* d = static_cast<unsigned char*>(dst);
  for (uint64_t i = 0; i < n; ++i) {
    typename From::Bits in;
    std::memcpy(&in, s + i * sizeof in, sizeof in);
    const typename To::Bits out = narrow(To{}, widen(From{}, in));
    std::memcpy(d + i * sizeof out, &out, sizeof out);
  }
}

void narrow_f64(const void* src, float* dst, uint64_t n) {
  const auto* s = static_cast<const unsigned char*>(src);
  for (uint64_t i = 0; i < n; ++i) {
    double in;
    std::memcpy(&in, s + i * sizeof in, sizeof in);
    dst[i] = static_cast<float>(in);
  }
}

template <class To>
void convert_to(const void* src, DType from, void* dst, uint64_t n) {
  switch (from) {
    case DType::f64: return convert<F64, To>(src, dst, n);
    case DType::f32: return convert<F32, To>(src, dst, n);
    case DType::f16: return convert<F16, To>(src, dst, n);
    default: return convert<BF16, To>(src, dst, n);
  }
}

}  // namespace

DType from_duet(duet_dtype t) { return t == DUET_F16 ? DType::f16 : t == DUET_BF16 ? DType::bf16 : DType::f32; }

const char* weights_name(duet_dtype t) {
  switch (t) {
    case DUET_F16: return "f16";
    case DUET_BF16: return "bf16";
    case DUET_I8: return "q8";
    case DUET_I4: return "q4";
    default: return "f32";
  }
}

void convert_floats(const void* src, DType from, void* dst, duet_dtype to, uint64_t n) {
  const bool floats = from == DType::f64 || from == DType::f32 || from == DType::f16 || from == DType::bf16;
  if (!floats || (to != DUET_F32 && to != DUET_F16 && to != DUET_BF16))
    fail(DUET_E_UNSUPPORTED, "cannot convert {} to dtype {}: weights are F64, F32, F16 or BF16, and become f32, f16 or bf16", dtype_name(from), to);
  if (from == from_duet(to)) {
    if (n != 0) std::memcpy(dst, src, n * dtype_bytes(from));
  } else if (to == DUET_F32 && from == DType::f64) {
    narrow_f64(src, static_cast<float*>(dst), n);
  } else if (to == DUET_F32) {
    convert_to<F32>(src, from, dst, n);
  } else if (to == DUET_F16) {
    convert_to<F16>(src, from, dst, n);
  } else {
    convert_to<BF16>(src, from, dst, n);
  }
}

}  // namespace duet
