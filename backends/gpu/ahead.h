// Weights on their way to the L2 cache while a short kernel runs: memory is never idle between two products.
#pragma once
#include "gpu/port.h"

namespace duet_gpu {

// What the blocks of a later product read first: block b of n_blocks begins at item n_items * b / n_blocks of `base` (see
// product.cu), and `piece` bytes from `skip` bytes after there are asked for. No piece: nothing.
struct Ahead {
  const char* base = nullptr;
  uint64_t bytes = 0;       // all items
  uint32_t item_bytes = 0;  // a multiple of 16
  uint32_t n_items = 0, n_blocks = 0;
  uint64_t skip = 0;
  uint32_t piece = 0;
};

// By all threads of `n` blocks, of which this is number `block`.
__device__ __forceinline__ void fetch_ahead([[maybe_unused]] const Ahead& a, [[maybe_unused]] uint32_t block, [[maybe_unused]] uint32_t n) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr uint32_t kRequest = 4096;
  const uint32_t requests = (a.piece + kRequest - 1) / kRequest;
  for (uint32_t i = block + n * threadIdx.x; i < requests * a.n_blocks; i += n * blockDim.x) {
    const uint32_t of = i / requests, part = i % requests;
    const uint64_t at = static_cast<uint64_t>(a.n_items) * of / a.n_blocks * a.item_bytes + a.skip + part * kRequest;
    if (at >= a.bytes) continue;
    const uint64_t left = min(a.bytes - at, static_cast<uint64_t>(a.piece - part * kRequest));
    const uint32_t size = static_cast<uint32_t>(left < kRequest ? left : kRequest) & ~15u;
    if (size > 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(a.base + at)), "r"(size) : "memory");
  }
#endif
}

}  // namespace duet_gpu
