#include "queue.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace duet_cpu {
namespace {

uint64_t aligned(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

bool overlap(const Access& a, const Access& b) {
  if (!a.write && !b.write) return false;
  const char *a0 = static_cast<const char*>(a.at), *b0 = static_cast<const char*>(b.at);
  return a0 < b0 + b.bytes && b0 < a0 + a.bytes;
}

bool same_partition(const Access& a, const Access& b) { return a.partition && a.partition == b.partition && a.heads == b.heads && a.at == b.at && a.bytes == b.bytes; }

}  // namespace

void Needs::include(const Needs& o) {
  for (int i = 0; i < kRegions; ++i) region[i] = std::max(region[i], aligned(o.region[i]));
  rows = std::max(rows, aligned(o.rows));
  panel = std::max(panel, aligned(o.panel));
  product = std::max(product, aligned(o.product));
  token = std::max(token, aligned(o.token));
  wkv = std::max(wkv, aligned(o.wkv));
  state = std::max(state, aligned(o.state));
}

const Call& Program::call(const Call& c) {
  calls_.push_back(c);
  return calls_.back();
}

void Program::add(Phase phase, std::initializer_list<Access> touched) {
  size_t level = fence_;
  for (size_t k = levels_.size(); k > level; --k)
    for (const Access& a : touched)
      for (const Access& b : levels_[k - 1].touched)
        if (overlap(a, b)) level = std::max(level, same_partition(a, b) ? k - 1 : k);
  if (level == levels_.size()) levels_.emplace_back();
  for (const Access& a : touched)
    if (a.at) levels_[level].touched.push_back(a);
  phase.call = static_cast<uint32_t>(calls_.size() - 1);
  levels_[level].phases.push_back(phase);
  ++n_phases_;
}

bool Program::dealt_alike(const Phase& a, const Phase& b) const {
  const Call &x = calls_[a.call], &y = calls_[b.call];
  if (x.starts != y.starts || x.used != y.used) return false;
  return a.tokens ? b.tokens != nullptr : a.head && b.head && x.layer->shape.n_head == y.layer->shape.n_head;
}

void Program::run_tokens(Phases from, Phases to, Worker& w) const {
  constexpr uint32_t kTurn = 8;  // tokens
  const Range mine = share(calls_[from->call].n_tokens(), w);
  for (uint32_t t = mine.from; t < mine.to; t += kTurn)
    for (Phases p = from; p != to; ++p) p->tokens(calls_[p->call], w, t, std::min(t + kTurn, mine.to));
}

// This thread's pairs of sequence and head: laid out head after head, they are dealt by the tokens before them.
void Program::run_heads(Phases from, Phases to, Worker& w) const {
  constexpr uint64_t kTurn = 48;  // tokens; a multiple of what wkv and the integer products take at a time
  const Call& c = calls_[from->call];
  const uint64_t T = c.n_tokens(), H = c.layer->shape.n_head;
  const uint64_t first = (T * H * w.i + w.n - 1) / w.n, last = (T * H * (w.i + 1) + w.n - 1) / w.n;
  for (uint64_t h = first / (T ? T : 1); h < H && h * T < last; ++h)
    for (uint32_t q = 0; q < c.n_seqs(); ++q) {
      const uint64_t t0 = static_cast<uint64_t>(c.starts[q]), t1 = static_cast<uint64_t>(c.starts[q + 1]);
      if (h * T + t0 < first || h * T + t0 >= last) continue;
      for (uint64_t t = t0; t < t1; t += kTurn)
        for (Phases p = from; p != to; ++p) p->head(calls_[p->call], w, q, h, t, std::min(t + kTurn, t1));
    }
}

void Program::clear() {
  calls_.clear();
  levels_.clear();
  n_phases_ = fence_ = 0;
  needs = Needs();
}

}  // namespace duet_cpu

using namespace duet_cpu;

duetp_queue::duetp_queue(Device& d) : device(d) {
  const uint32_t n = d.host.team_size(d.host.self);
  threads_.reserve(n);
  for (uint32_t i = 0; i < n; ++i) threads_.emplace_back(d.gemms);
  workers_.resize(n);
}

duetp_queue::~duetp_queue() { device.host.free(device.host.self, scratch_); }

void duetp_queue::prepare(const Gemm& g) {
  for (GemmThread& t : threads_) t.prepare(g);
}

// One block for the regions and the private memory of all threads. Grows to the largest list so far.
bool duetp_queue::reserve(const Program& p) {
  const uint64_t tile = kMaxTileRows * kTileColumns * sizeof(float);
  Needs want = have_;
  want.include(p.needs);
  if (scratch_ && std::memcmp(&want, &have_, sizeof want) == 0) return true;
  uint64_t shared = 0;
  for (uint64_t bytes : want.region) shared += bytes;
  const uint64_t each = tile + want.rows + want.panel + want.product + want.token + want.wkv + want.state;
  device.host.free(device.host.self, scratch_);
  have_ = Needs();
  char* at = static_cast<char*>(scratch_ = memory(device, shared + each * workers_.size()));
  if (!at) return false;
  have_ = want;
  void* region[kRegions];
  for (int i = 0; i < kRegions; ++i) region[i] = at, at += want.region[i];
  for (size_t i = 0; i < workers_.size(); ++i) {
    Worker& w = workers_[i];
    const auto take = [&](uint64_t bytes) { return static_cast<void*>((at += bytes) - bytes); };
    std::copy(region, region + kRegions, w.region);
    w.i = static_cast<uint32_t>(i);
    w.n = static_cast<uint32_t>(workers_.size());
    w.gemm = &threads_[i];
    w.tile = static_cast<float*>(take(tile));
    w.rows = take(want.rows);
    w.panel = take(want.panel);
    w.product = take(want.product);
    w.token = static_cast<float*>(take(want.token));
    w.wkv = take(want.wkv);
    w.state = static_cast<float*>(take(want.state));
  }
  return true;
}

void duetp_queue::work(const Program& p, uint32_t i, uint32_t n) {
  const OneOpenMpThread one;
  Worker& w = workers_[i];
  w.n = n;
  std::atomic<uint32_t>* next = next_.get();
  w.weights = weights_.data();
  for (size_t k = 0; k < p.levels_.size(); ++k) {
    if (k > 0) device.host.barrier(device.host.self);
    const std::vector<Program::Phase>& phases = p.levels_[k].phases;
    w.next = next;
    next += phases.size();
    if (failure_.load(std::memory_order_relaxed) != DUET_OK) continue;  // but meet the others at the barriers
    try {
      for (auto phase = phases.begin(), end = phase; phase != phases.end(); w.next += end - phase, w.weights += phase->weights != nullptr, phase = end) {
        end = phase + 1;
        while (end != phases.end() && p.dealt_alike(*phase, *end)) ++end;
        if (phase->run)
          phase->run(p.calls_[phase->call], w);
        else
          phase->tokens ? p.run_tokens(phase, end, w) : p.run_heads(phase, end, w);
      }
    } catch (...) {  // oneDNN's
      failure_.store(thrown_status(), std::memory_order_relaxed);
    }
  }
}

duet_status duetp_queue::run(Program& p) {
  if (p.empty()) return DUET_OK;
  const duet_status status = guarded(device, [&]() -> duet_status {
    if (!reserve(p)) return device.fail(DUET_E_MEMORY, "out of memory: the scratch of the CPU backend; use smaller batches or shorter prompts at a time");
    if (n_next_ < p.n_phases_) {
      n_next_ = p.n_phases_;
      next_ = std::make_unique<std::atomic<uint32_t>[]>(n_next_);
    }
    weights_.clear();
    for (const Program::Level& l : p.levels_)
      for (const Program::Phase& phase : l.phases)
        if (phase.weights) weights_.push_back(phase.weights);
    weights_.push_back(nullptr);
    for (size_t k = 0; k < p.n_phases_; ++k) next_[k].store(0, std::memory_order_relaxed);
    struct Run {
      duetp_queue* q;
      const Program* p;
    } run{this, &p};
    device.host.team(device.host.self, [](void* ctx, uint32_t i, uint32_t n) { static_cast<Run*>(ctx)->q->work(*static_cast<Run*>(ctx)->p, i, n); }, &run);
    const duet_status failure = failure_.exchange(DUET_OK);
    return failure == DUET_OK ? failure : device.fail(failure, failure == DUET_E_MEMORY ? "out of memory in a matrix product" : "a matrix product failed in oneDNN");
  });
  if (status_ == DUET_OK) status_ = status;
  return status;
}

duet_status duetp_queue::flush() {
  const duet_status status = run(pending_);
  pending_.clear();
  return status;
}

duet_status duetp_queue::wait() {
  flush();
  return std::exchange(status_, DUET_OK);
}

namespace duet_cpu {
namespace {

duet_status queue_new(void* self, duetp_queue** out) {
  Device& d = *static_cast<Device*>(self);
  return guarded(d, [&] { return *out = new duetp_queue(d), DUET_OK; });
}
duet_status queue_wait(void*, duetp_queue* q) { return q->wait(); }
void queue_free(void*, duetp_queue* q) { delete q; }

duet_status upload(void*, duetp_queue* q, duetp_ref dst, const void* src, uint64_t n) {
  const duet_status status = q->flush();
  if (n) std::memcpy(address(dst), src, n);
  return status;
}

duet_status download(void*, duetp_queue* q, void* dst, duetp_ref src, uint64_t n) {
  const duet_status status = q->flush();
  if (n) std::memcpy(dst, address(src), n);
  return status;
}

void copy_phase(const Call& c, Worker& w) {
  if (w.i == 0) std::memmove(c.out[0], c.in[0], c.bytes);
}

duet_status copy(void* self, duetp_queue* q, duetp_ref dst, duetp_ref src, uint64_t n) {
  if (n == 0) return DUET_OK;
  return guarded(*static_cast<Device*>(self), [&] {
    Call c{};
    c.in[0] = address(src);
    c.out[0] = address(dst);
    c.bytes = n;
    q->target().call(c);
    q->target().fence();  // a copy may write the frame, which phases read without naming it
    q->target().phase(copy_phase, {{c.in[0], n, false}, {c.out[0], n, true}});
    q->target().fence();
    return DUET_OK;
  });
}

duet_status record_begin(void* self, duetp_queue* q) {
  const Device& d = *static_cast<Device*>(self);
  if (q->recording) return d.fail(DUET_E_INVALID, "record_begin: this queue is recording already");
  return guarded(d, [&] { return q->recording = std::make_unique<duetp_record>(), DUET_OK; });
}

duet_status record_end(void* self, duetp_queue* q, duetp_record** out) {
  if (!q->recording) return static_cast<Device*>(self)->fail(DUET_E_INVALID, "record_end: this queue is not recording");
  *out = q->recording.release();
  return DUET_OK;
}

duet_status record_run(void*, duetp_queue* q, duetp_record* r) {
  q->flush();
  return q->run(r->program);
}

void record_free(void*, duetp_record* r) { delete r; }

}  // namespace

void fill_queue_slots(duetp_device& t) {
  t.queue_new = queue_new;
  t.queue_wait = queue_wait;
  t.queue_free = queue_free;
  t.upload = upload;
  t.download = download;
  t.copy = copy;
  t.record_begin = record_begin;
  t.record_end = record_end;
  t.record_run = record_run;
  t.record_free = record_free;
}

}  // namespace duet_cpu
