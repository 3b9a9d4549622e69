#include "device.h"

#include <cstdio>

namespace duet_cuda {

const char* const kLost = "; the device is lost to this process: end it and start again";

// All but those that belong to one call.
bool loses_device(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
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
    case cudaErrorDevicesUnavailable:  // taken by another process, as far as is known when a context is made
    case cudaErrorNotSupported: return false;
    default: return true;
  }
}

// The host names the device before these sentences.
void Device::check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  (void)cudaGetLastError();  // ours now
  char text[256];
  std::snprintf(text, sizeof text, "%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
  if (e == cudaErrorMemoryAllocation) throw Failure(DUET_E_MEMORY, std::string(text) + "; " + free_memory());
  if (!loses_device(e)) throw Failure(DUET_E_DEVICE, text);
  std::lock_guard lock(fault_mutex);
  if (fault.empty()) fault = std::string(text) + kLost;
  throw Failure(DUET_E_DEVICE, fault);
}

void Device::check_alive() {
  const cudaError_t e = cudaStreamQuery(setup);
  if (e == cudaErrorNotReady)
    (void)cudaGetLastError();
  else
    check(e, "what was enqueued before");
}

bool Device::is_lost() {
  std::lock_guard lock(fault_mutex);
  return !fault.empty();
}

std::string Device::free_memory() const {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) (void)cudaGetLastError();
  char text[64];
  std::snprintf(text, sizeof text, "%zu of %zu bytes are free", free, total);
  return text;
}

Memory Device::allocate(uint64_t bytes, const char* what) {
  Memory m;
  const cudaError_t e = cudaMalloc(&m.data_, bytes ? bytes : 256);
  if (e == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    char text[160];
    std::snprintf(text, sizeof text, "out of memory: %s needs %llu bytes, and ", what, static_cast<unsigned long long>(bytes));
    throw Failure(DUET_E_MEMORY, text + free_memory());
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
