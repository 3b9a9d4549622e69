// The plugin: one device, the CPU that the host runs on.
#include <sys/sysinfo.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "device.h"

namespace duet_cpu {
namespace {

const char* refuses(void*, const duetp_shape*, duet_dtype weights, uint32_t rung) {
  if (rung != 1) return "the CPU backend implements the stages (rung 1) only";
  return takes_weights(weights) ? nullptr : kWeightsTaken;
}

duet_status open_plugin(const duetp_host* host, void** self) {
  return guarded(*host, [&]() -> duet_status {
    const char* isa = host->option(host->self, "isa");  // before Device: oneDNN's first product fixes its choice
    if (isa && !limit_instruction_set(isa)) return host->fail(host->self, DUET_E_INVALID, "the option isa (DUET_CPU_ISA) is avx3, avxvnni, avx2, sse4 or baseline");
    auto d = std::make_unique<Device>();
    std::memcpy(&d->host, host, std::min<size_t>(host->size, sizeof d->host));
    d->table.size = sizeof d->table;
    d->table.self = d.get();
    d->table.ops = &kOps;
    d->table.refuses = refuses;
    fill_memory_slots(d->table);
    fill_queue_slots(d->table);
    *self = d.release();
    return DUET_OK;
  });
}

void close_plugin(void* self) { delete static_cast<Device*>(self); }

uint32_t device_count(void*) { return 1; }

// "model name : ..." of the first processor; its name is only for people
void model_name(char* out, size_t size) {
  std::snprintf(out, size, "CPU");
  std::FILE* f = std::fopen("/proc/cpuinfo", "re");
  if (!f) return;
  for (char line[256]; std::fgets(line, sizeof line, f);) {
    if (std::strncmp(line, "model name", 10) != 0) continue;
    const char* name = std::strchr(line, ':');
    if (name) std::snprintf(out, size, "%.*s", static_cast<int>(std::strcspn(name + 1, "\n")) - 1, name + 2);
    break;
  }
  std::fclose(f);
}

duet_status device_info(void* self, uint32_t index, duetp_device_info* io) {
  const Device& d = *static_cast<Device*>(self);
  if (index != 0) return d.fail(DUET_E_NOT_FOUND, "the CPU backend has one device, 0");
  duetp_device_info info{};
  info.size = std::min<uint32_t>(io->size, sizeof info);
  info.kind = DUETP_KIND_CPU;
  std::snprintf(info.id, sizeof info.id, "host");
  char model[40];
  model_name(model, sizeof model);
  std::snprintf(info.name, sizeof info.name, "%s (%s%s)", model, instruction_set(), has_bf16_dot() ? "+BF16" : "");
  struct sysinfo s;
  if (sysinfo(&s) == 0) {
    info.mem_total = static_cast<uint64_t>(s.totalram) * s.mem_unit;
    info.mem_free = static_cast<uint64_t>(s.freeram) * s.mem_unit;
  }
  info.caps = DUETP_CAP_HOST_VISIBLE | DUETP_CAP_RECORD | DUETP_CAP_BORROWS_WEIGHTS;
  std::memcpy(io, &info, info.size);
  return DUET_OK;
}

duet_status device_open(void* self, uint32_t index, const duetp_device** out) {
  Device& d = *static_cast<Device*>(self);
  if (index != 0) return d.fail(DUET_E_NOT_FOUND, "the CPU backend has one device, 0");
  *out = &d.table;
  return DUET_OK;
}

}  // namespace
}  // namespace duet_cpu

static const duetp_plugin plugin = {
    .size = sizeof(duetp_plugin),
    .abi = DUETP_ABI,
    .id = "cpu",
    .version = "0.1.0",
    .vendor = "Duet",
    .build = "oneDNN, Highway",
    .sanitizer = DUETP_SANITIZER,
    .reserved = 0,
    .open = duet_cpu::open_plugin,
    .close = duet_cpu::close_plugin,
    .device_count = duet_cpu::device_count,
    .device_info = duet_cpu::device_info,
    .device_open = duet_cpu::device_open,
    .extension = nullptr,
    .no_device_reason = nullptr,
};
DUETP_DEFINE(plugin);
