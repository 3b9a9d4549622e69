// wkv_cpp: computes the recurrence, wkv, on the host's memory and threads, and leaves all else to the host.
#include <duet_stage.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <new>

#include "walk.h"

// Nothing here throws: no exception may cross into the host.
namespace wkv_cpp {
namespace {

struct Plugin {
  const duetp_host* host;
  duetp_device device;
};

// One call, shared by the threads: each takes the next head of the next sequence until none is left.
struct Work {
  duetp_wkv stage;
  float* scratch;  // of each thread, `share` floats: a state for sequences without one, and what walk() needs
  size_t share;
  std::atomic<uint32_t> next{0};
};

size_t scratch_floats(uint32_t N) { return (size_t{N} * N + 2 * N + 15) / 16 * 16; }

void run(void* context, uint32_t thread, uint32_t) noexcept {
  Work& work = *static_cast<Work*>(context);
  const duetp_wkv& s = work.stage;
  const uint32_t H = s.run.H, N = s.run.N;
  const size_t C = s.run.C;
  float *none = work.scratch + thread * work.share, *scratch = none + size_t{N} * N;
  for (uint32_t item; (item = work.next.fetch_add(1, std::memory_order_relaxed)) < s.run.n_seqs * H;) {
    const duetp_seq seq = duetp_seq_of(&s.run, item / H);
    const uint32_t h = item % H;
    const size_t at = seq.first * C + size_t{h} * N;
    float* S = none;
    if (seq.wkv) S = seq.wkv + size_t{h} * N * N;
    else std::fill_n(none, size_t{N} * N, 0.0f);
    walk({s.r + at, s.w_raw + at, s.k + at, s.v + at, s.kk + at, s.a + at, s.y + at, C, N, seq.end - seq.first}, S, scratch);
  }
}

duet_status wkv(void* self, duetp_queue*, const duetp_stage* a) noexcept {
  const duetp_host& host = *static_cast<Plugin*>(self)->host;
  Work work{duetp_wkv_of(a), nullptr, 0};
  work.share = scratch_floats(work.stage.run.N);
  const size_t bytes = work.share * host.team_size(host.self) * sizeof(float);
  work.scratch = static_cast<float*>(host.alloc(host.self, bytes, 64));
  if (!work.scratch) {
    char text[80];
    std::snprintf(text, sizeof text, "no memory: %zu bytes of scratch for wkv", bytes);
    return host.fail(host.self, DUET_E_MEMORY, text);
  }
  host.team(host.self, run, &work);
  host.free(host.self, work.scratch);
  return DUET_OK;
}

constexpr duetp_ops ops = [] {
  duetp_ops o{};
  o.size = sizeof o;
  o.wkv = wkv;
  return o;
}();

duet_status open_plugin(const duetp_host* host, void** self) noexcept {
  void* memory = host->alloc(host->self, sizeof(Plugin), alignof(Plugin));
  if (!memory) return host->fail(host->self, DUET_E_MEMORY, "no memory for the plugin");
  Plugin* p = new (memory) Plugin{host, {}};
  p->device.size = sizeof p->device;
  p->device.self = p;
  p->device.ops = &ops;
  *self = p;
  return DUET_OK;
}

void close_plugin(void* self) noexcept {
  const duetp_host* host = static_cast<Plugin*>(self)->host;
  host->free(host->self, self);
}

uint32_t device_count(void*) noexcept { return 1; }

duet_status device_info(void*, uint32_t, duetp_device_info* io) noexcept {
  std::snprintf(io->id, sizeof io->id, "host");
  std::snprintf(io->name, sizeof io->name, "the host's memory and threads");
  io->kind = DUETP_KIND_CPU;
  io->caps = DUETP_CAP_HOST_VISIBLE;
  return DUET_OK;
}

duet_status device_open(void* self, uint32_t, const duetp_device** out) noexcept {
  *out = &static_cast<Plugin*>(self)->device;
  return DUET_OK;
}

constexpr duetp_plugin plugin = [] {
  duetp_plugin p{};
  p.size = sizeof p;
  p.abi = DUETP_ABI;
  p.id = "wkv_cpp";
  p.version = "0.1";
  p.vendor = "you";
  p.build = "C++20";
  p.sanitizer = DUETP_SANITIZER;
  p.open = open_plugin;
  p.close = close_plugin;
  p.device_count = device_count;
  p.device_info = device_info;
  p.device_open = device_open;
  return p;
}();

}  // namespace
}  // namespace wkv_cpp

DUETP_DEFINE(wkv_cpp::plugin);
