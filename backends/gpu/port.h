// What CUDA and HIP have under two names, under one: the kernels in this folder include this and neither vendor's header.
#pragma once
#if defined(__HIP__)
#include <hip/hip_bf16.h>
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif
#include <cstdint>

namespace duet_gpu {

#if defined(__HIP__)
using Stream = hipStream_t;
using Error = hipError_t;
using bf16 = __hip_bfloat16;
constexpr Error kSuccess = hipSuccess;
#else
using Stream = cudaStream_t;
using Error = cudaError_t;
using bf16 = __nv_bfloat16;
constexpr Error kSuccess = cudaSuccess;
#endif
using f16 = __half;

// Dependent launch. Where the hardware has it, a kernel may start while the one before it in the stream still runs:
//  - every thread of every kernel calls wait_for_inputs() before it touches memory that any earlier kernel writes or reads,
//    also the threads that then have nothing to do: what comes after counts on it. Before it may be read: weights, and what
//    copies have brought before the first kernel (used, starts, slots, rows; not tokens, which sample writes);
//  - let_next_start() lets the next kernel come as soon as this one leaves room for it. Call it first.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_inputs() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if defined(__HIP__)
inline int multiprocessors() {
  int device = 0, count = 0;
  return hipGetDevice(&device) == hipSuccess && hipDeviceGetAttribute(&count, hipDeviceAttributeMultiprocessorCount, device) == hipSuccess ? count : 1;
}
#else
// Of the current device; `otherwise` if the driver does not tell.
inline int device_attribute(cudaDeviceAttr which, int otherwise) {
  int device = 0, value = otherwise;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&value, which, device) != cudaSuccess) return otherwise;
  return value;
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount, 1); }
inline bool has_dependent_launch() { return device_attribute(cudaDevAttrComputeCapabilityMajor, 0) >= 9; }
#endif

// Enqueues kernel<<<grid, block, shared>>>(args...) as a dependent launch, where there is such. An empty grid is no work.
template <class... Parameters, class... Arguments>
Error launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return kSuccess;
#if defined(__HIP__)
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return hipGetLastError();
#else
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = has_dependent_launch() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
#endif
}

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(f16 x) { return __half2float(x); }
template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ __forceinline__ f16 from_f32<f16>(float x) { return __float2half_rn(x); }

}  // namespace duet_gpu
