// Floats to the stored form of quantised matrices (duet_quantised.h) and back.
#pragma once
#include <cstdint>

#include "duet_quantised.h"

namespace duet {

// One matrix, in memory or in a mapped file. Integers are aligned to 64 bytes or a tile's row of them, scales and minimums to
// those of a tile.
struct QuantisedMatrix {
  duetp_quantised_form form;
  const void *data = nullptr, *scale = nullptr, *minimum = nullptr;  // minimum: DUET_I4 only
};

// Bytes of integers, scales and minimums in one block, each part aligned to 64 bytes.
uint64_t quantised_block_bytes(const duetp_quantised_form& form, duet_dtype dtype);
// The parts of such a block.
QuantisedMatrix quantised_parts(const duetp_quantised_form& form, duet_dtype dtype, const void* block);

// Rounds the outputs of the tiles [first, last) into their places in `block`. `weights` is f32: the rows of those outputs, or
// for the low-rank pairs, which are [in,out], the whole matrix. I8 takes the largest magnitude of a group as 127. I4 looks for
// the scale and minimum of least square error: plain rounding loses more (docs/quantisation.md). The same bits on every
// machine, whatever the number of threads.
void quantise(uint32_t id, duet_dtype dtype, const duetp_quantised_form& form, uint64_t first, uint64_t last, const float* weights, void* block);
// Elements [first, first + n) of the float form of tensor `id`, as f32.
void dequantise(uint32_t id, duet_dtype dtype, const QuantisedMatrix& matrix, uint64_t first, uint64_t n, float* weights);

}  // namespace duet
