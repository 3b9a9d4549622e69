// Conversions against exact arithmetic in double.
#include <bit>
#include <cmath>
#include <random>

#include "model_file.h"

using namespace duet;

namespace {

template <class To, class From>
To one(From value, DType from, duet_dtype to) {
  To out;
  convert_floats(&value, from, &out, to, 1);
  return out;
}
float from_f16(uint16_t b) { return one<float>(b, DType::f16, DUET_F32); }
float from_bf16(uint16_t b) { return one<float>(b, DType::bf16, DUET_F32); }

// The value of f16 bits by its definition
double f16_value(uint16_t b) {
  const int exponent = b >> 10 & 31, fraction = b & 1023;
  const double magnitude = exponent == 31 ? (fraction ? NAN : HUGE_VAL) : exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return b & 0x8000 ? -magnitude : magnitude;
}
double bf16_value(uint16_t b) { return std::bit_cast<float>(uint32_t{b} << 16); }

// `found` is what `value` rounds to, ties to even: no neighbour is nearer. Infinity stands where the next number would be.
template <class Value>
bool is_nearest(double value, uint16_t found, Value value_of, double beyond) {
  if (std::signbit(value) != (found >> 15 != 0)) return false;
  const auto at = [&](uint16_t b) { return std::isinf(value_of(b)) ? beyond : std::fabs(value_of(b)); };
  const uint16_t m = found & 0x7fff;
  const double x = std::isinf(value) ? beyond * 2 : std::fabs(value), d = std::fabs(x - at(m));
  if (std::isnan(value_of(m))) return false;
  if (m > 0 && (std::fabs(x - at(m - 1)) < d || (std::fabs(x - at(m - 1)) == d && m % 2))) return false;
  if (!std::isinf(value_of(m)) && (std::fabs(x - at(m + 1)) < d || (std::fabs(x - at(m + 1)) == d && m % 2))) return false;
  return true;
}
bool is_nearest_f16(double v, uint16_t b) { return is_nearest(v, b, f16_value, 65536); }
bool is_nearest_bf16(double v, uint16_t b) { return is_nearest(v, b, bf16_value, 0x1p128); }

}  // namespace

TEST_CASE("all f16 and bf16 numbers widen to their values and come back") {
  bool values = true, back = true;
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto b = static_cast<uint16_t>(i);
    const float h = from_f16(b), w = from_bf16(b);
    values &= std::isnan(f16_value(b)) ? std::isnan(h) : (h == static_cast<float>(f16_value(b)) && std::signbit(h) == (b >> 15 != 0));
    values &= std::isnan(bf16_value(b)) ? std::isnan(w) : w == static_cast<float>(bf16_value(b));
    const auto h2 = one<uint16_t>(h, DType::f32, DUET_F16), w2 = one<uint16_t>(w, DType::f32, DUET_BF16);
    back &= std::isnan(h) ? std::isnan(f16_value(h2)) : h2 == b;
    back &= std::isnan(w) ? std::isnan(bf16_value(w2)) : w2 == b;
  }
  CHECK(values);
  CHECK(back);
}

TEST_CASE("f32 and f64 round once, to nearest even") {
  std::mt19937_64 random(7);
  bool f32_f16 = true, f32_bf16 = true, f64_f16 = true, f64_bf16 = true, f64_f32 = true;
  const auto test = [&](double v) {
    const float f = static_cast<float>(v);
    f32_f16 &= is_nearest_f16(f, one<uint16_t>(f, DType::f32, DUET_F16));
    f32_bf16 &= is_nearest_bf16(f, one<uint16_t>(f, DType::f32, DUET_BF16));
    f64_f16 &= is_nearest_f16(v, one<uint16_t>(v, DType::f64, DUET_F16));
    f64_bf16 &= is_nearest_bf16(v, one<uint16_t>(v, DType::f64, DUET_BF16));
    f64_f32 &= one<float>(v, DType::f64, DUET_F32) == f;
  };
  for (int i = 0; i < 200000; ++i) {
    const double magnitude = std::ldexp(1 + static_cast<double>(random() >> 12) * 0x1p-52, static_cast<int>(random() % 60) - 40);
    test(random() % 2 ? magnitude : -magnitude);
  }
  for (uint32_t i = 0; i < 0x7c00; ++i) {  // halfway between neighbours, and a breath to either side
    const double half = (f16_value(static_cast<uint16_t>(i)) + (i == 0x7bff ? 65536 : f16_value(static_cast<uint16_t>(i + 1)))) / 2;
    for (const double v : {half, half * (1 + 1e-15), half * (1 - 1e-15), half * (1 + 1e-7), half * (1 - 1e-7)}) test(v);
  }
  for (uint32_t i = 0; i < 0x7f80; ++i) {
    const double half = (bf16_value(static_cast<uint16_t>(i)) + (i == 0x7f7f ? 0x1p128 : bf16_value(static_cast<uint16_t>(i + 1)))) / 2;
    for (const double v : {half, half * (1 + 1e-15), half * (1 - 1e-15)}) test(v);
  }
  for (const double v : {0.0, -0.0, HUGE_VAL, -HUGE_VAL, 65519.0, 65520.0, 65536.0, 1e30, 3.4e38, 1e-7, 1e-8, 2e-8, 1e-45, 1e-300}) test(v);
  CHECK(f32_f16);
  CHECK(f32_bf16);
  CHECK(f64_f16);
  CHECK(f64_bf16);
  CHECK(f64_f32);
}

TEST_CASE("NaN stays NaN with any payload") {
  for (const uint32_t b : {0x7f80'0001u, 0x7fc0'0000u, 0x7fff'ffffu, 0xff80'0001u, 0xffff'ffffu}) {
    CHECK(std::isnan(f16_value(one<uint16_t>(b, DType::f32, DUET_F16))));
    CHECK(std::isnan(bf16_value(one<uint16_t>(b, DType::f32, DUET_BF16))));
  }
  CHECK(std::isnan(f16_value(one<uint16_t>(std::bit_cast<double>(0x7ff0'0000'0000'0001u), DType::f64, DUET_F16))));
  CHECK(std::isnan(one<float>(std::bit_cast<double>(0x7ff0'0000'0000'0001u), DType::f64, DUET_F32)));
}

TEST_CASE("runs of any length and alignment, between the 16-bit types, nothing but floats") {
  for (uint64_t n = 0; n < 70; ++n) {
    std::vector<float> source(n + 1), back(n + 1, -1.0f);
    for (uint64_t i = 0; i < n; ++i) source[i] = static_cast<float>(i) - 20;
    std::vector<unsigned char> f16(2 * n + 3), shifted(2 * n + 3);
    std::vector<uint16_t> bf16(n + 1, 0xabcd);
    convert_floats(source.data(), DType::f32, f16.data(), DUET_F16, n);
    if (n != 0) std::memcpy(shifted.data() + 1, f16.data(), 2 * n);
    convert_floats(shifted.data() + 1, DType::f16, bf16.data(), DUET_BF16, n);
    CHECK(bf16[n] == 0xabcd);
    convert_floats(bf16.data(), DType::bf16, back.data(), DUET_F32, n);
    CHECK(back[n] == -1.0f);
    CHECK(std::equal(source.begin(), source.begin() + static_cast<ptrdiff_t>(n), back.begin()));
  }
  std::string text;
  int32_t i = 1;
  float f = 0;
  CHECK(error_of([&] { convert_floats(&i, DType::i32, &f, DUET_F32, 1); }, text) == DUET_E_UNSUPPORTED);
  CHECK(error_of([&] { convert_floats(&f, DType::f32, &i, DUET_I8, 1); }, text) == DUET_E_UNSUPPORTED);
}
