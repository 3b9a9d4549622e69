#include "model/quantise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "model/generator.h"

namespace duet {
namespace {

constexpr uint32_t kGroup = DUETP_QUANTISED_GROUP;

// Round to nearest even, for |x| < 2^22. Unlike the library's functions it is vectorised for every x86-64.
inline float nearest(float x) { return x + 12582912.0f - 12582912.0f; }

float to_bf16(float f) {
  const uint32_t b = std::bit_cast<uint32_t>(f);
  return std::isnan(f) ? f : std::bit_cast<float>((b + 0x7fffu + (b >> 16 & 1u)) & 0xffff'0000u);
}
uint16_t bits16(float f) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(f) >> 16 | (std::isnan(f) ? 0x40u : 0u)); }

struct Rounded {
  float scale = 0, minimum = 0;
  int8_t q[kGroup] = {};
};

Rounded round_i8(const float* x) {
  Rounded r;
  float largest = 0, finite = 0;
  for (uint32_t i = 0; i < kGroup; ++i) largest = std::max(largest, std::fabs(x[i])), finite += x[i] * 0;
  r.scale = to_bf16(largest / 127) + finite;  // NaN where a weight is not finite
  const float factor = 1 / r.scale;
  if (!(factor < INFINITY)) return r;  // all zero or next to it, or not finite
  for (uint32_t i = 0; i < kGroup; ++i) r.q[i] = static_cast<int8_t>(std::clamp(nearest(x[i] * factor), -127.0f, 127.0f));
  return r;
}

// Several sums side by side, because the compiler may not reorder a single one. Wider vectors than SSE has would go through memory.
constexpr uint32_t kLanes = 4;
using Lanes [[gnu::vector_size(kLanes * sizeof(float))]] = float;

float total(const Lanes& v) { return (v[0] + v[2]) + (v[1] + v[3]); }

// u = round((x - minimum) / scale) in [0,15]; returns the square error, and in `slope` and `offset` the least-squares line
// from u to x. Of n weights x; `real` is 1 for these and 0 for the padding, where u becomes 0.
struct Try {
  float error, slope, offset;
};
Try try_i4(const float* x, const float* real, float n, float mean, float scale, float minimum, float* u) {
  const float factor = 1 / scale;
  Lanes error{}, sum{}, square{}, cross{};
  for (uint32_t i = 0; i < kGroup; i += kLanes) {
    Lanes w, r;
    std::memcpy(&w, x + i, sizeof w);
    std::memcpy(&r, real + i, sizeof r);
    Lanes v = (w - minimum) * factor + 12582912.0f - 12582912.0f;  // as nearest()
    v = v > 0 ? v : Lanes{};
    v = (v < 15 ? v : Lanes{} + 15) * r;
    const Lanes off = (v * scale + minimum - w) * r;
    error += off * off;
    sum += v;
    square += v * v;
    cross += v * (w - mean);
    std::memcpy(u + i, &v, sizeof v);
  }
  const float u_sum = total(sum), u_mean = u_sum / n, variance = total(square) - u_sum * u_mean;
  const float slope = variance > 0 ? total(cross) / variance : scale;
  return {total(error), slope, mean - slope * u_mean};
}

Rounded round_i4(const float* x, uint32_t n) {
  // The range of x, drawn in by these shares: outliers pay, the many gain. Each is then fitted to its own integers.
  static constexpr float kShares[] = {1.0f, 0.84f};
  constexpr int kFits = 2;
  Rounded best;
  float low = x[0], high = x[0], sum = 0, finite = 0;
  for (uint32_t i = 0; i < n; ++i) low = std::min(low, x[i]), high = std::max(high, x[i]), sum += x[i], finite += x[i] * 0;
  best.minimum = to_bf16(low) + finite;
  const float range = high - low, mean = sum / static_cast<float>(n);
  if (!(range > 0) || !(range < 1e37f)) return best;  // all alike, or not finite
  float least = INFINITY, u[kGroup], real[kGroup];
  for (uint32_t i = 0; i < kGroup; ++i) real[i] = i < n;
  for (const float share : kShares) {
    float scale = range * share / 15, minimum = (low + high) / 2 - range * share / 2;
    for (int fit = 0; fit <= kFits; ++fit) {
      scale = to_bf16(scale);
      minimum = to_bf16(minimum);
      if (!(scale > 1e-37f)) break;
      const Try t = try_i4(x, real, static_cast<float>(n), mean, scale, minimum, u);
      if (t.error < least) {
        least = t.error;
        best.scale = scale;
        best.minimum = minimum;
        for (uint32_t i = 0; i < kGroup; ++i) best.q[i] = static_cast<int8_t>(u[i]);
      }
      scale = t.slope;
      minimum = t.offset;
    }
  }
  return best;
}

// Group g of output o, and how many of its inputs the matrix has; zeros beyond. [out,in]: `weights` begins with output first_row.
uint32_t gather(const float* weights, bool in_major, const duetp_quantised_form& f, uint64_t o, uint64_t first_row, uint64_t g, float* x) {
  const uint64_t first = g * kGroup, n = o < f.out ? std::min<uint64_t>(kGroup, f.in - first) : 0;
  if (in_major)
    for (uint64_t i = 0; i < n; ++i) x[i] = weights[(first + i) * f.out + o];
  else if (n > 0)
    std::memcpy(x, weights + (o - first_row) * f.in + first, n * sizeof *x);
  std::fill(x + n, x + kGroup, 0.0f);
  return static_cast<uint32_t>(n);
}

uint64_t aligned(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

uint64_t quantised_block_bytes(const duetp_quantised_form& f, duet_dtype dtype) {
  return aligned(f.bytes) + aligned(f.scales * 2) * (dtype == DUET_I4 ? 2 : 1);
}

QuantisedMatrix quantised_parts(const duetp_quantised_form& f, duet_dtype dtype, const void* block) {
  const auto* at = static_cast<const std::byte*>(block);
  const std::byte* scale = at + aligned(f.bytes);
  return {f, at, scale, dtype == DUET_I4 ? scale + aligned(f.scales * 2) : nullptr};
}

void quantise(uint32_t id, duet_dtype dtype, const duetp_quantised_form& f, uint64_t first, uint64_t last, const float* weights, void* block) {
  const QuantisedMatrix parts = quantised_parts(f, dtype, block);
  auto* data = static_cast<uint8_t*>(const_cast<void*>(parts.data));
  auto* scale = static_cast<uint16_t*>(const_cast<void*>(parts.scale));
  auto* minimum = static_cast<uint16_t*>(const_cast<void*>(parts.minimum));
  const bool in_major = duetp_is_in_major(id), i4 = dtype == DUET_I4;
  const uint64_t first_row = in_major ? 0 : first * f.width;
  in_slices(last - first, 1, [&](uint64_t begin, uint64_t end) {
    float x[kGroup];
    for (uint64_t tile = first + begin; tile < first + end; ++tile)
      for (uint64_t g = 0; g < f.groups; ++g)
        for (uint64_t lane = 0; lane < f.width; ++lane) {
          const uint32_t n = gather(weights, in_major, f, tile * f.width + lane, first_row, g, x);
          const Rounded r = n == 0 ? Rounded{} : i4 ? round_i4(x, n) : round_i8(x);
          const uint64_t s = (tile * f.groups + g) * f.width + lane;
          scale[s] = bits16(r.scale);
          if (i4) {
            minimum[s] = bits16(r.minimum);
            for (uint64_t i = 0; i < kGroup / 8; ++i)
              for (uint64_t j = 0; j < 4; ++j)
                data[(((tile * f.groups + g) * 8 + i) * f.width + lane) * 4 + j] = static_cast<uint8_t>(r.q[8 * i + j] | r.q[8 * i + 4 + j] << 4);
          } else {
            for (uint64_t i = 0; i < kGroup / 4; ++i) std::memcpy(data + (((tile * f.groups + g) * 16 + i) * f.width + lane) * 4, r.q + 4 * i, 4);
          }
        }
  });
}

void dequantise(uint32_t id, duet_dtype dtype, const QuantisedMatrix& m, uint64_t first, uint64_t n, float* weights) {
  duetp_tensor t{};
  t.dtype = dtype;
  t.data = m.data;
  t.scale = m.scale;
  t.minimum = m.minimum;
  const bool in_major = duetp_is_in_major(id);
  const uint64_t columns = in_major ? m.form.out : m.form.in;
  in_slices(n, columns, [&](uint64_t begin, uint64_t end) {
    uint64_t row = (first + begin) / columns, column = (first + begin) % columns;
    for (uint64_t at = begin; at < end; ++at) {
      weights[at] = duetp_quantised_weight(&t, &m.form, in_major ? column : row, in_major ? row : column);
      if (++column == columns) column = 0, ++row;
    }
  });
}

}  // namespace duet
