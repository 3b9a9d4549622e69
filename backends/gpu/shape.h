// Kernels that change how numbers are laid out or what they are, and nothing else.
#pragma once
#include "duet_types.h"
#include "gpu/port.h"

namespace duet_gpu {

// dst [columns, rows] = src [rows, columns] transposed; elements of 2, 4 or a multiple of 16 bytes.
Error transpose(const void* src, void* dst, uint32_t rows, uint32_t columns, uint32_t element_bytes, Stream stream);

// dst (bf16 or f32) [used rows, width] = f(src), with f = tanh, sigmoid or max(., 0)^2. used[0] rows of n_rows.
enum class Activation { tanh, sigmoid, relu_squared };
Error activate(const float* src, void* dst, bool bf16, Activation f, const int32_t* used, uint32_t n_rows, uint32_t width, Stream stream);

// The wkv matrices of a state as f32, and back, rounded (stored.h): `rows` of `width` numbers (a multiple of 4), in `stored` `stride` elements from row to
// row, in `plain` one row after another.
Error widen(const void* stored, duet_dtype t, uint64_t stride, float* plain, uint32_t rows, uint64_t width, Stream stream);
Error narrow(const float* plain, void* stored, duet_dtype t, uint64_t stride, uint32_t rows, uint64_t width, Stream stream);

}  // namespace duet_gpu
