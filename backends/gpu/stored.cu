#include "gpu/stored.h"

namespace duet_gpu {
namespace {

constexpr uint32_t kThreads = 256;

// One row in a block's y, four numbers a thread.
template <class Stored>
__global__ void widen_kernel(const Stored* stored, uint64_t stride, float* plain, uint64_t width) {
  let_next_start();
  wait_for_inputs();
  const uint64_t at = 4ull * (blockIdx.x * kThreads + threadIdx.x);
  if (at < width) store_four(plain + blockIdx.y * width + at, load_four(stored + blockIdx.y * stride + at));
}

template <class Stored>
__global__ void narrow_kernel(const float* plain, Stored* stored, uint64_t stride, uint64_t width) {
  let_next_start();
  wait_for_inputs();
  const uint64_t at = 4ull * (blockIdx.x * kThreads + threadIdx.x);
  if (at < width) store_four(stored + blockIdx.y * stride + at, load_four(plain + blockIdx.y * width + at));
}

dim3 grid(uint32_t rows, uint64_t width) { return dim3(static_cast<uint32_t>((width / 4 + kThreads - 1) / kThreads), rows); }

}  // namespace

Error widen(const void* stored, duet_dtype t, uint64_t stride, float* plain, uint32_t rows, uint64_t width, Stream stream) {
  return with_stored(t, [&](auto of) {
    using Stored = decltype(of);
    return launch(widen_kernel<Stored>, grid(rows, width), dim3(kThreads), 0, stream, static_cast<const Stored*>(stored), stride, plain, width);
  });
}

Error narrow(const float* plain, void* stored, duet_dtype t, uint64_t stride, uint32_t rows, uint64_t width, Stream stream) {
  return with_stored(t, [&](auto of) {
    using Stored = decltype(of);
    return launch(narrow_kernel<Stored>, grid(rows, width), dim3(kThreads), 0, stream, plain, static_cast<Stored*>(stored), stride, width);
  });
}

}  // namespace duet_gpu
