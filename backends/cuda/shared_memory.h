// What the current device has, for the products of few rows.
#pragma once
#include <algorithm>

#include "gpu/port.h"

namespace duet_cuda {

inline uint32_t multiprocessors() { return static_cast<uint32_t>(duet_gpu::multiprocessors()); }

// Bytes of dynamic shared memory that a block may ask for. More would bring none of these kernels anything.
inline uint32_t max_shared() { return std::min(220u << 10, static_cast<uint32_t>(duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 48 << 10)) - 1024); }

// A kernel's limit is shared by all threads of the process: each one sets the same.
template <class Kernel>
duet_gpu::Error allow_shared(Kernel kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(max_shared()));
}

}  // namespace duet_cuda
