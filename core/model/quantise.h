// Floats to the stored form of quantised matrices (duet_quantised.h) and back.
#pragma once
#include <cstdint>
#include <memory>

#include "duet_quantised.h"

namespace duet {

// One matrix. Integers, scales and minimums lie in this order, each aligned to 64 bytes, in `owner` or in a mapped file.
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
// Back to f32, in the float form of tensor `id`.
void dequantise(uint32_t id, duet_dtype dtype, const QuantisedMatrix& matrix, float* weights);

}  // namespace duet
