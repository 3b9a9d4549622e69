// Work is put off: a stage appends its phases to a list, and the list runs as a whole, on the host's thread team, when someone
// waits or looks. A phase divides its output among the threads. The list is cut into levels with a barrier between them: a phase
// goes into the first level before which all is done that it needs, whichever stages were appended meanwhile. A recording is
// such a list that is kept.
#pragma once
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "device.h"

namespace duet_cpu {

// A stage with its references resolved to memory. Also the argument of its phases.
struct Call {
  uint32_t which, layer_index;
  bool recurrent;
  bool skips;  // channel mix: rows of the value matrix whose inputs are zero
  const duetp_layer* layer;
  duetp_state* state;
  uint32_t max_tokens, max_seqs, max_rows;
  const int32_t *used, *tokens, *starts, *slots, *rows;
  void *in[6], *out[6];
  uint64_t bytes;  // of a copy

  uint32_t n_tokens() const { return static_cast<uint32_t>(used[0]); }
  uint32_t n_seqs() const { return static_cast<uint32_t>(used[1]); }
  uint32_t n_rows() const { return static_cast<uint32_t>(used[2]); }
};

// Memory between the phases of one stage. Stages of a kind follow one another, so each kind has one.
enum Region {
  kHiddenW, kHiddenA, kHiddenV, kHiddenG, kMixed, kKey, kSums,
  // inputs of products with quantised weights, rounded:
  kRoundedR, kRoundedK, kRoundedV, kRoundedOutput, kRoundedDownW, kRoundedDownA, kRoundedDownV, kRoundedDownG,
  kRegions
};

// What one thread works with. Private memory is sized by the largest call of the list.
struct Worker {
  uint32_t i, n;
  std::atomic<uint32_t>* next;  // of this phase: tasks that are not bound to a thread
  const Matrix* const* weights;  // of this phase and of those that follow, as far as they are products; NULL ends them
  GemmThread* gemm;
  void* region[kRegions];
  float* tile;    // [kMaxTileRows, kTileColumns]
  void* rows;     // [kMaxTileRows, depth]: inputs, padded or widened; or what add_rows needs
  void* panel;    // see pack_panel
  void* product;  // oneDNN's
  float* token;   // [3, C]
  void* wkv;      // wkv_scratch_bytes
  float* state;   // S of a sequence without a slot
};
using PhaseFn = void (*)(const Call&, Worker&);
// Phases that the queue deals, by tokens or by sequences and heads. Neighbours within a level run in turns, a few tokens of each
// at a time, so that what one leaves is still in cache for the next.
using TokenFn = void (*)(const Call&, Worker&, uint32_t from, uint32_t to);
// The tokens [t0, t1) of sequence q in one head.
using HeadFn = void (*)(const Call&, Worker&, uint32_t q, size_t head, size_t t0, size_t t1);

struct Range {
  uint32_t from, to;
};
// a thread's share of n things; one thing goes to thread 0
inline Range share(uint32_t n, const Worker& w) {
  const auto bound = [&](uint64_t i) { return static_cast<uint32_t>((n * i + w.n - 1) / w.n); };
  return {bound(w.i), bound(w.i + 1)};
}

struct Needs {  // bytes
  uint64_t region[kRegions] = {};
  uint64_t rows = 0, panel = 0, product = 0, token = 0, wkv = 0, state = 0;
  void include(const Needs& o);
};

// A stretch of memory that a phase reads or writes. Phases that share a partition (same tokens, or same sequences and heads, and
// exactly the same stretch) hand each thread what it wrote itself, so they need no barrier among them.
struct Access {
  const void* at;
  uint64_t bytes;
  bool write;
  const void* partition = nullptr;  // the frame's counts, when divided by tokens; its starts, when by sequence and head
  uint32_t heads = 0;
};

class Program {
 public:
  const Call& call(const Call& c);  // the calls that follow belong to it
  void phase(PhaseFn fn, std::initializer_list<Access> touched, const Matrix* weights = nullptr) { add({fn, nullptr, nullptr, weights, 0}, touched); }
  void phase(TokenFn fn, std::initializer_list<Access> touched) { add({nullptr, fn, nullptr, nullptr, 0}, touched); }
  void phase(HeadFn fn, std::initializer_list<Access> touched) { add({nullptr, nullptr, fn, nullptr, 0}, touched); }
  void fence() { fence_ = levels_.size(); }  // what follows waits for all that came before
  void clear();
  bool empty() const { return levels_.empty(); }

  Needs needs;

 private:
  friend struct ::duetp_queue;
  struct Phase {
    PhaseFn run;
    TokenFn tokens;
    HeadFn head;            // one of the three
    const Matrix* weights;  // of a product
    uint32_t call;
  };
  using Phases = std::vector<Phase>::const_iterator;
  struct Level {
    std::vector<Phase> phases;
    std::vector<Access> touched;
  };
  void add(Phase phase, std::initializer_list<Access> touched);
  void run_tokens(Phases from, Phases to, Worker& w) const;
  void run_heads(Phases from, Phases to, Worker& w) const;
  bool dealt_alike(const Phase& a, const Phase& b) const;

  std::vector<Call> calls_;
  std::vector<Level> levels_;
  size_t n_phases_ = 0, fence_ = 0;  // nothing goes into a level before the latter
};

}  // namespace duet_cpu

struct duetp_record {
  duet_cpu::Program program;
};

struct duetp_queue {
  explicit duetp_queue(duet_cpu::Device& d);
  ~duetp_queue();
  duetp_queue(const duetp_queue&) = delete;
  duetp_queue& operator=(const duetp_queue&) = delete;

  duet_cpu::Program& target() { return recording ? recording->program : pending_; }
  duet_status flush();                      // runs what is pending
  duet_status run(duet_cpu::Program& p);    // now
  duet_status wait();                       // flush, then the first failure since the last wait
  void prepare(const duet_cpu::Gemm& g);    // each thread can run it from now on

  duet_cpu::Device& device;
  std::unique_ptr<duetp_record> recording;

 private:
  bool reserve(const duet_cpu::Program& p);
  void work(const duet_cpu::Program& p, uint32_t i, uint32_t n);

  duet_cpu::Program pending_;
  std::vector<duet_cpu::GemmThread> threads_;
  std::vector<duet_cpu::Worker> workers_;
  std::vector<const duet_cpu::Matrix*> weights_;  // of the program that runs, in its order
  std::unique_ptr<std::atomic<uint32_t>[]> next_;
  size_t n_next_ = 0;
  void* scratch_ = nullptr;
  duet_cpu::Needs have_;
  std::atomic<duet_status> failure_{DUET_OK};  // of a phase, while a program runs
  duet_status status_ = DUET_OK;
};
