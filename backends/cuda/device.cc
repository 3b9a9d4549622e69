#include "device.h"

#include <cstdio>

namespace duet_cuda {
namespace {

// Errors that belong to one call; after all others the driver's context is lost.
bool is_recoverable(cudaError_t e) {
  switch (e) {
    case cudaErrorMemoryAllocation:
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureUnmatched:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureMerge:
    case cudaErrorStreamCaptureWrongThread:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidDevice:
    case cudaErrorNotSupported: return true;
    default: return false;
  }
}

}  // namespace

void Device::check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  (void)cudaGetLastError();  // ours now
  char text[256];
  std::snprintf(text, sizeof text, "cuda:%d: %s: %s (%s)", index, what, cudaGetErrorString(e), cudaGetErrorName(e));
  if (is_recoverable(e)) throw Failure(e == cudaErrorMemoryAllocation ? DUET_E_MEMORY : DUET_E_DEVICE, text);
  const std::string all = std::string(text) + "; the device is lost to this process: end it and start again";
  std::lock_guard lock(fault_mutex);
  if (fault.empty()) fault = all;
  throw Failure(DUET_E_DEVICE, fault);
}

Memory Device::allocate(uint64_t bytes, const char* what) {
  Memory m;
  const cudaError_t e = cudaMalloc(&m.data_, bytes ? bytes : 256);
  if (e == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) (void)cudaGetLastError();
    char text[256];
    std::snprintf(text, sizeof text, "cuda:%d is out of memory: %s needs %llu bytes, and %llu of %llu are free", index, what, static_cast<unsigned long long>(bytes),
                  static_cast<unsigned long long>(free), static_cast<unsigned long long>(total));
    throw Failure(DUET_E_MEMORY, text);
  }
  check(e, what);
  m.bytes_ = bytes;
  return m;
}

void Device::zero(const Memory& m) {
  check(cudaMemsetAsync(m.data(), 0, m.bytes(), setup), "zeroing memory");
  check(cudaStreamSynchronize(setup), "zeroing memory");
}

}  // namespace duet_cuda
