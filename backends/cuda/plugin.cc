// The plugin: one device per GPU that the driver shows.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "device.h"

namespace duet_cuda {
namespace {

struct Plugin {
  const duetp_host* host;
  int n_devices = 0;
  std::string no_device;  // why there is none
};

void close_device(void* self) {
  auto* d = static_cast<Device*>(self);
  const OnDevice here(d->index);
  cudaStreamDestroy(d->setup);
  delete d;
}

duet_status open_plugin(const duetp_host* host, void** self) {
  auto* p = new (std::nothrow) Plugin{host, 0, {}};
  if (!p) return host->fail(host->self, DUET_E_MEMORY, "the CUDA backend is out of host memory");
  const cudaError_t e = cudaGetDeviceCount(&p->n_devices);
  if (e != cudaSuccess) {
    (void)cudaGetLastError();
    p->n_devices = 0;
    p->no_device = e == cudaErrorInsufficientDriver ? "no NVIDIA driver, or one older than the CUDA of this build" : cudaGetErrorString(e);
  } else if (p->n_devices == 0) {
    p->no_device = "the NVIDIA driver shows no GPU";
  }
  *self = p;
  return DUET_OK;
}

void close_plugin(void* self) { delete static_cast<Plugin*>(self); }

uint32_t device_count(void* self) { return static_cast<uint32_t>(static_cast<Plugin*>(self)->n_devices); }

const char* no_device_reason(void* self) { return static_cast<Plugin*>(self)->no_device.c_str(); }

duet_status fail(const Plugin& p, cudaError_t e, uint32_t index) {
  (void)cudaGetLastError();
  char text[256];
  std::snprintf(text, sizeof text, "cuda:%u: %s%s", index, cudaGetErrorString(e), loses_device(e) ? kLost : "");
  return p.host->fail(p.host->self, e == cudaErrorMemoryAllocation ? DUET_E_MEMORY : DUET_E_DEVICE, text);
}

duet_status device_info(void* self, uint32_t index, duetp_device_info* io) {
  const Plugin& p = *static_cast<Plugin*>(self);
  if (index >= device_count(self)) return p.host->fail(p.host->self, DUET_E_NOT_FOUND, "the CUDA backend has no device of this number");
  cudaDeviceProp properties;
  size_t free = 0, total = 0;
  const OnDevice here(static_cast<int>(index));
  cudaError_t e = here.result;
  if (e == cudaSuccess) e = cudaGetDeviceProperties(&properties, static_cast<int>(index));
  if (e == cudaSuccess) e = cudaMemGetInfo(&free, &total);
  int clock_khz = 0, bus_bits = 0;
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, static_cast<int>(index));
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, static_cast<int>(index));
  if (e != cudaSuccess) return fail(p, e, index);
  duetp_device_info info{};
  info.size = std::min<uint32_t>(io->size, sizeof info);
  info.kind = properties.integrated ? DUETP_KIND_INTEGRATED_GPU : DUETP_KIND_GPU;
  std::snprintf(info.id, sizeof info.id, "%04x:%02x:%02x.0", properties.pciDomainID, properties.pciBusID, properties.pciDeviceID);
  std::snprintf(info.name, sizeof info.name, "%.63s", properties.name);
  info.mem_total = total;
  info.mem_free = free;
  info.bytes_per_s = 2000ull * static_cast<uint64_t>(clock_khz) * static_cast<uint64_t>(bus_bits) / 8;  // two transfers a clock
  info.caps = DUETP_CAP_RECORD;
  std::memcpy(io, &info, info.size);
  return DUET_OK;
}

duet_status device_open(void* self, uint32_t index, const duetp_device** out) {
  const Plugin& p = *static_cast<Plugin*>(self);
  if (index >= device_count(self)) return p.host->fail(p.host->self, DUET_E_NOT_FOUND, "the CUDA backend has no device of this number");
  cudaStream_t setup = nullptr;
  const OnDevice here(static_cast<int>(index));
  int major = 0;
  cudaError_t e = here.result;
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, static_cast<int>(index));
  if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&setup, cudaStreamNonBlocking);
  if (e != cudaSuccess) return fail(p, e, index);
  auto* d = new (std::nothrow) Device();
  if (!d) return cudaStreamDestroy(setup), p.host->fail(p.host->self, DUET_E_MEMORY, "the CUDA backend is out of host memory");
  d->host = p.host;
  d->index = static_cast<int>(index);
  d->compute_major = major;
  d->resident = p.host->option(p.host->self, "resident");
  d->setup = setup;
  d->table.size = sizeof d->table;
  d->table.self = d;
  d->table.ops = &kOps;
  d->table.close = close_device;
  d->table.refuses = refuses;
  fill_memory_slots(d->table);
  fill_layer_slots(d->table);
  fill_state_slots(d->table);
  fill_queue_slots(d->table);
  *out = &d->table;
  return DUET_OK;
}

}  // namespace
}  // namespace duet_cuda

static const duetp_plugin plugin = {
    .size = sizeof(duetp_plugin),
    .abi = DUETP_ABI,
    .id = "cuda",
    .version = "0.1.0",
    .vendor = "Duet",
    .build = DUET_CUDA_BUILD,
    .sanitizer = DUETP_SANITIZER,
    .reserved = 0,
    .open = duet_cuda::open_plugin,
    .close = duet_cuda::close_plugin,
    .device_count = duet_cuda::device_count,
    .device_info = duet_cuda::device_info,
    .device_open = duet_cuda::device_open,
    .extension = nullptr,
    .no_device_reason = duet_cuda::no_device_reason,
};
DUETP_DEFINE(plugin);
