#include "queue.h"

#include <algorithm>
#include <cstring>

#include "wkv_chunked.h"

struct duetp_record {
  cudaGraphExec_t graph;
};

namespace duet_cuda {
namespace {

constexpr uint64_t kStaging = 4 << 20;    // larger copies go without
constexpr uint64_t kWorkspace = 32 << 20; // what cuBLAS asks for on this hardware

// Lays tensors out one after another, each at a multiple of 256 bytes.
class Layout {
 public:
  explicit Layout(char* base) : base_(base) {}
  char* next(uint64_t bytes) {
    char* p = base_ + at_;
    at_ += (bytes + 255) / 256 * 256;
    return p;
  }
  float* floats(uint64_t n) { return reinterpret_cast<float*>(next(4 * n)); }
  uint64_t bytes() const { return at_; }

 private:
  char* base_;
  uint64_t at_ = 0;
};

uint64_t lay_out(Scratch& s, char* base, const duetp_shape& shape, duet_dtype weights, uint64_t n_tokens, uint64_t n_seqs, uint64_t n_rows) {
  const uint64_t C = shape.n_embd, input = weights == DUET_BF16 ? 2 : 4, ranks = shape.rank_w + shape.rank_a + shape.rank_v + shape.rank_g;
  Layout layout(base);
  s.places = reinterpret_cast<duet_gpu::Place*>(layout.next(n_tokens * sizeof(duet_gpu::Place)));
  s.rkv_inputs = layout.next(3 * n_tokens * C * input);
  s.mixed[DUETP_SHIFT_MIX_OUT_R] = s.rkv_inputs;
  s.mixed[DUETP_SHIFT_MIX_OUT_K] = s.rkv_inputs + n_tokens * C * input;
  s.mixed[DUETP_SHIFT_MIX_OUT_V] = s.rkv_inputs + 2 * n_tokens * C * input;
  for (const uint32_t i : {DUETP_SHIFT_MIX_OUT_W, DUETP_SHIFT_MIX_OUT_A, DUETP_SHIFT_MIX_OUT_G}) s.mixed[i] = layout.next(n_tokens * C * input);
  s.gated = s.mixed[DUETP_SHIFT_MIX_OUT_W];
  s.channel = s.mixed[DUETP_SHIFT_MIX_OUT_A];
  s.low = layout.next(n_tokens * ranks * input + 4 * 256);
  s.low_f32 = layout.floats(n_tokens * ranks + 4 * 64);
  s.r = layout.floats(3 * n_tokens * C);
  s.k = s.r + n_tokens * C;
  s.v = s.k + n_tokens * C;
  for (float** f : {&s.w, &s.a, &s.lv, &s.g, &s.kk}) *f = layout.floats(n_tokens * C);
  s.y = s.lv;
  s.inner = layout.next(n_tokens * shape.n_ffn * input);
  s.inner_f32 = layout.floats(n_tokens * shape.n_ffn);
  const uint64_t wkv = wkv_scratch_bytes(static_cast<uint32_t>(n_tokens), static_cast<uint32_t>(n_seqs), shape.n_head, shape.head_size);
  s.wkv = wkv > 0 ? layout.next(wkv) : nullptr;
  s.hidden = layout.next(n_rows * C * input);
  return layout.bytes();
}

duet_status queue_new(void* self, duetp_queue** out) {
  return guarded(self, [&](Device& d) { *out = std::make_unique<duetp_queue>(d).release(); });
}

duet_status queue_wait(void* self, duetp_queue* q) {
  return guarded(self, [&](Device&) { q->wait(); });
}

void queue_free(void* self, duetp_queue* q) {
  const OnDevice here(static_cast<Device*>(self)->index);
  delete q;
}

duet_status record_begin(void* self, duetp_queue* q) {
  return guarded(self, [&](Device& d) {
    // relaxed: a pass that is larger than all before it may still grow the queue's scratch
    d.check(cudaStreamBeginCapture(q->stream, cudaStreamCaptureModeRelaxed), "beginning a recording");
    q->recorded = true;
  });
}

duet_status record_end(void* self, duetp_queue* q, duetp_record** out) {
  return guarded(self, [&](Device& d) {
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(q->stream, &graph);
    std::unique_ptr<duetp_record> record(new (std::nothrow) duetp_record{});
    if (!record) cudaGraphDestroy(graph), throw std::bad_alloc();
    d.check(ended, "ending a recording");
    const cudaError_t e = cudaGraphInstantiate(&record->graph, graph, 0);
    cudaGraphDestroy(graph);
    d.check(e, "preparing a recording");
    *out = record.release();
  });
}

duet_status record_run(void* self, duetp_queue* q, duetp_record* r) {
  return guarded(self, [&](Device& d) { d.check(cudaGraphLaunch(r->graph, q->stream), "starting a recording"); });
}

void record_free(void* self, duetp_record* r) {
  if (!r) return;
  const OnDevice here(static_cast<Device*>(self)->index);
  cudaGraphExecDestroy(r->graph);
  delete r;
}

// Copies of the host's memory go through page-locked staging, so that `src` is free again at once and nobody waits.
duet_status upload(void* self, duetp_queue* q, duetp_ref dst, const void* src, uint64_t n) {
  return guarded(self, [&](Device& d) {
    char* to = dst.buf->memory.data() + dst.off;
    if (n > kStaging) return d.check(cudaMemcpyAsync(to, src, n, cudaMemcpyHostToDevice, q->stream), "an upload");  // pageable: has left src on return
    if (!q->up) q->up = std::make_unique<Pinned>(d, kStaging);
    if (q->up_used + n > q->up->bytes()) {
      d.check(cudaStreamSynchronize(q->stream), "waiting for uploads");
      q->up_used = 0;
    }
    std::memcpy(q->up->data() + q->up_used, src, n);
    d.check(cudaMemcpyAsync(to, q->up->data() + q->up_used, n, cudaMemcpyHostToDevice, q->stream), "an upload");
    q->up_used += (n + 63) / 64 * 64;
  });
}

duet_status download(void* self, duetp_queue* q, void* dst, duetp_ref src, uint64_t n) {
  return guarded(self, [&](Device& d) {
    const char* from = src.buf->memory.data() + src.off;
    if (!q->down) q->down = std::make_unique<Pinned>(d, kStaging);
    if (q->down_used + n > q->down->bytes()) return d.check(cudaMemcpyAsync(dst, from, n, cudaMemcpyDeviceToHost, q->stream), "a download");
    d.check(cudaMemcpyAsync(q->down->data() + q->down_used, from, n, cudaMemcpyDeviceToHost, q->stream), "a download");
    q->downloads.push_back({dst, q->down_used, n});
    q->down_used += (n + 63) / 64 * 64;
  });
}

duet_status copy(void* self, duetp_queue* q, duetp_ref dst, duetp_ref src, uint64_t n) {
  return guarded(self, [&](Device& d) {
    d.check(cudaMemcpyAsync(dst.buf->memory.data() + dst.off, src.buf->memory.data() + src.off, n, cudaMemcpyDeviceToDevice, q->stream), "a copy");
  });
}

}  // namespace

void fill_queue_slots(duetp_device& t) {
  t.queue_new = queue_new;
  t.queue_wait = queue_wait;
  t.queue_free = queue_free;
  t.record_begin = record_begin;
  t.record_end = record_end;
  t.record_run = record_run;
  t.record_free = record_free;
  t.upload = upload;
  t.download = download;
  t.copy = copy;
}

}  // namespace duet_cuda

using namespace duet_cuda;

duetp_queue::duetp_queue(Device& d) : device(d) { d.check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a queue"); }

duetp_queue::~duetp_queue() {
  (void)cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
}

void duetp_queue::wait() {
  const std::vector<Download> finished = std::exchange(downloads, {});  // whether it works or not: their dst may be gone the next time
  up_used = down_used = 0;
  device.check(cudaStreamSynchronize(stream), "running what was enqueued");
  for (const Download& d : finished) std::memcpy(d.dst, down->data() + d.from, d.n);
}

void duetp_queue::gemm(const Gemm& g) {
  if (g.rows == 0) return;
  if (!workspace.data()) workspace = device.allocate(kWorkspace, "cuBLAS's workspace");
  try {
    device.cublas.run(g, workspace.data(), workspace.bytes(), stream);
  } catch (const Failure& e) {  // cuBLAS's status tells neither a fault of the device nor that memory is short
    device.check_alive();
    if (e.code == DUET_E_UNSUPPORTED) throw;
    throw Failure(e.code, e.text + "; " + device.free_memory());
  }
}

// At least that many bytes, zero when they are new. Grows by doubling, so that what recordings keep alive is no more than what is
// in use; without recordings nothing is kept.
char* duetp_queue::grow(std::vector<Memory>& m, uint64_t bytes, const char* what) {
  if (bytes == 0) return nullptr;
  if (m.empty() || m.back().bytes() < bytes) {
    if (!recorded && !m.empty()) {
      device.check(cudaStreamSynchronize(stream), "waiting for the last pass");
      bytes = std::max(bytes, m.back().bytes() + m.back().bytes() / 2);
      m.clear();
    } else if (!m.empty()) {
      bytes = std::max(bytes, 2 * m.back().bytes());
    }
    Memory bigger = device.allocate(bytes, what);
    device.zero(bigger);
    m.push_back(std::move(bigger));
  }
  return m.back().data();
}

Scratch duetp_queue::reserve(const duetp_shape& shape, duet_dtype weights, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_rows) {
  Scratch s{};
  const uint64_t bytes = lay_out(s, nullptr, shape, weights, n_tokens, n_seqs, n_rows);
  lay_out(s, grow(scratch, bytes, "scratch memory of a pass"), shape, weights, n_tokens, n_seqs, n_rows);
  return s;
}
