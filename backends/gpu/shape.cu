#include "gpu/shape.h"

#include "gpu/stored.h"

namespace duet_gpu {
namespace {

constexpr uint32_t kTile = 32, kRows = 8;

template <class T>
__global__ void transpose_kernel(const T* src, T* dst, uint32_t rows, uint32_t columns) {
  __shared__ T tile[kTile][kTile + 1];  // one more: no bank conflicts when read by columns
  let_next_start();
  wait_for_inputs();
  const uint32_t column = blockIdx.x * kTile + threadIdx.x, row = blockIdx.y * kTile;
  for (uint32_t i = threadIdx.y; i < kTile; i += kRows)
    if (row + i < rows && column < columns) tile[i][threadIdx.x] = src[static_cast<uint64_t>(row + i) * columns + column];
  __syncthreads();
  const uint32_t to_row = blockIdx.x * kTile, to_column = blockIdx.y * kTile + threadIdx.x;
  for (uint32_t i = threadIdx.y; i < kTile; i += kRows)
    if (to_row + i < columns && to_column < rows) dst[static_cast<uint64_t>(to_row + i) * rows + to_column] = tile[threadIdx.x][i];
}

// Of elements of `pieces` times 16 bytes
__global__ void transpose_large_kernel(const uint4* src, uint4* dst, uint32_t rows, uint32_t columns, uint32_t pieces) {
  let_next_start();
  wait_for_inputs();
  const uint64_t n = static_cast<uint64_t>(rows) * columns * pieces, step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const uint64_t element = i / pieces, row = element / columns, column = element % columns;
    dst[(column * rows + row) * pieces + i % pieces] = src[i];
  }
}

template <Activation f>
__device__ __forceinline__ float apply(float x) {
  if constexpr (f == Activation::tanh) return tanhf(x);
  if constexpr (f == Activation::sigmoid) return 1.0f / (1.0f + expf(-x));
  x = fmaxf(x, 0.0f);
  return x * x;
}

template <class T, Activation f>
__global__ void activate_kernel(const float* src, T* dst, const int32_t* used, uint32_t width) {
  let_next_start();
  wait_for_inputs();
  const uint64_t n = static_cast<uint64_t>(used[0]) * width, step = 4ull * gridDim.x * blockDim.x;
  for (uint64_t i = 4ull * (blockIdx.x * blockDim.x + threadIdx.x); i < n; i += step) {
    if (i + 4 <= n) {
      const float4 v = *reinterpret_cast<const float4*>(src + i);
      T out[4] = {from_f32<T>(apply<f>(v.x)), from_f32<T>(apply<f>(v.y)), from_f32<T>(apply<f>(v.z)), from_f32<T>(apply<f>(v.w))};
      if constexpr (sizeof(T) == 2)
        *reinterpret_cast<uint2*>(dst + i) = *reinterpret_cast<uint2*>(out);
      else
        *reinterpret_cast<uint4*>(dst + i) = *reinterpret_cast<uint4*>(out);
    } else {
      for (uint64_t j = i; j < n; ++j) dst[j] = from_f32<T>(apply<f>(src[j]));
    }
  }
}

template <class T>
Error activate_as(const float* src, T* dst, Activation f, const int32_t* used, uint32_t n_rows, uint32_t width, Stream stream) {
  const auto kernel = f == Activation::tanh ? activate_kernel<T, Activation::tanh> : f == Activation::sigmoid ? activate_kernel<T, Activation::sigmoid> : activate_kernel<T, Activation::relu_squared>;
  const uint64_t blocks = (static_cast<uint64_t>(n_rows) * width + 1023) / 1024;
  return launch(kernel, dim3(static_cast<uint32_t>(blocks < 2048 ? blocks : 2048)), dim3(256), 0, stream, src, dst, used, width);
}

constexpr uint32_t kWidth = 256;  // threads of a block

// One row in a block's y, four numbers a thread.
template <class Stored>
__global__ void widen_kernel(const Stored* stored, uint64_t stride, float* plain, uint64_t width) {
  let_next_start();
  wait_for_inputs();
  const uint64_t at = 4ull * (blockIdx.x * kWidth + threadIdx.x);
  if (at < width) store_four(plain + blockIdx.y * width + at, load_four(stored + blockIdx.y * stride + at));
}

template <class Stored>
__global__ void narrow_kernel(const float* plain, Stored* stored, uint64_t stride, uint64_t width) {
  let_next_start();
  wait_for_inputs();
  const uint64_t at = 4ull * (blockIdx.x * kWidth + threadIdx.x);
  if (at < width) store_four(stored + blockIdx.y * stride + at, load_four(plain + blockIdx.y * width + at));
}

dim3 fours_of(uint32_t rows, uint64_t width) { return dim3(static_cast<uint32_t>((width / 4 + kWidth - 1) / kWidth), rows); }

}  // namespace

Error transpose(const void* src, void* dst, uint32_t rows, uint32_t columns, uint32_t element_bytes, Stream stream) {
  if (element_bytes % 16 == 0) return launch(transpose_large_kernel, dim3(1024), dim3(256), 0, stream, static_cast<const uint4*>(src), static_cast<uint4*>(dst), rows, columns, element_bytes / 16);
  const dim3 grid((columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile), block(kTile, kRows);
  if (element_bytes == 2) return launch(transpose_kernel<uint16_t>, grid, block, 0, stream, static_cast<const uint16_t*>(src), static_cast<uint16_t*>(dst), rows, columns);
  return launch(transpose_kernel<uint32_t>, grid, block, 0, stream, static_cast<const uint32_t*>(src), static_cast<uint32_t*>(dst), rows, columns);
}

Error activate(const float* src, void* dst, bool bf16_out, Activation f, const int32_t* used, uint32_t n_rows, uint32_t width, Stream stream) {
  if (bf16_out) return activate_as(src, static_cast<bf16*>(dst), f, used, n_rows, width, stream);
  return activate_as(src, static_cast<float*>(dst), f, used, n_rows, width, stream);
}

Error widen(const void* stored, duet_dtype t, uint64_t stride, float* plain, uint32_t rows, uint64_t width, Stream stream) {
  return with_stored(t, [&](auto of) {
    using Stored = decltype(of);
    return launch(widen_kernel<Stored>, fours_of(rows, width), dim3(kWidth), 0, stream, static_cast<const Stored*>(stored), stride, plain, width);
  });
}

Error narrow(const float* plain, void* stored, duet_dtype t, uint64_t stride, uint32_t rows, uint64_t width, Stream stream) {
  return with_stored(t, [&](auto of) {
    using Stored = decltype(of);
    return launch(narrow_kernel<Stored>, fours_of(rows, width), dim3(kWidth), 0, stream, plain, static_cast<Stored*>(stored), stride, width);
  });
}

}  // namespace duet_gpu
