#include "exec/session.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "exec/session_parts.h"

namespace duet {
namespace {

constexpr size_t kMaxRecordings = 8;
constexpr uint32_t kSmallFrame = 4096;  // i32: one upload of all of it costs less than five of its parts
// Tokens of a pass unless the user says otherwise: enough for the device's arithmetic to be what takes the time.
constexpr uint32_t kPass = 512, kPassOfAccelerator = 2048;

uint32_t round_up(uint32_t n, uint32_t to) { return (n + to - 1) / to * to; }
uint32_t row_blocks(uint32_t n_rows) { return (n_rows + kRowBlock - 1) / kRowBlock; }

// Where the parts of a frame of `capacity` tokens lie, in i32; every part begins at a multiple of 64 bytes.
struct FrameLayout {
  uint32_t used, tokens, starts, slots, rows, size;
  explicit FrameLayout(uint32_t capacity) {
    used = 0;  // i32[3] of the layers' frame, then of each block of rows
    tokens = 16 * (1 + row_blocks(capacity));
    starts = tokens + round_up(capacity, 16);
    slots = starts + round_up(capacity + 1, 16);
    rows = slots + round_up(capacity, 16);
    size = rows + round_up(capacity, 16);
  }
};

}  // namespace

Session::Session(std::shared_ptr<Model> model, duet_mode mode, uint32_t max_tokens)
    : model_(std::move(model)), device_(model_->device()), mode_(mode), max_tokens_(max_tokens) {
  if (max_tokens_ == 0) max_tokens_ = device_.has(DUETP_CAP_HOST_VISIBLE) ? kPass : kPassOfAccelerator;
  if (device_.step && !device_.head.fn) max_tokens_ = std::min(max_tokens_, kRowBlock);  // rung 3 alone: all rows of a pass in one step
  check_plugin(device_, device_.table.queue_new(device_.memory_self, &queue_));
}

Session::~Session() {
  drop_recordings();
  for (duetp_buffer** b : {&arena_, &frame_, &head_, &draws_}) free_buffer(*b);
  device_.table.queue_free(device_.memory_self, queue_);
}

void Session::drop_recordings() noexcept {
  for (Recording& r : recordings_) device_.table.record_free(device_.memory_self, r.record);
  recordings_.clear();
}

duetp_buffer* Session::new_buffer(uint64_t bytes) {
  duetp_buffer* b = nullptr;
  check_plugin(device_, device_.table.buffer_new(device_.memory_self, bytes, &b));
  return b;
}

void Session::free_buffer(duetp_buffer*& buffer) noexcept {
  if (buffer) device_.table.buffer_free(device_.memory_self, buffer);
  buffer = nullptr;
}

void Session::wait() { check_plugin(device_, device_.table.queue_wait(device_.memory_self, queue_)); }

// Makes room; grows by doubling up to what one pass may need, so that a session of single tokens stays small.
void Session::reserve(uint32_t n_tokens, uint32_t n_rows, const Rows& rows) {
  const duetp_shape& s = model_->shape();
  if (n_tokens > token_capacity_) {
    drop_recordings();
    token_capacity_ = 0;
    const uint32_t capacity = std::min(std::max(std::bit_ceil(n_tokens), 16u), std::max(max_tokens_, n_tokens));
    free_buffer(arena_);
    free_buffer(frame_);
    arena_ = new_buffer(Activations::bytes(*model_, capacity));
    act_ = Activations(arena_, *model_, capacity);
    frame_ = new_buffer(FrameLayout(capacity).size * sizeof(int32_t));
    staging_.assign(FrameLayout(capacity).size, 0);
    token_capacity_ = capacity;
  }
  n_rows = std::min(n_rows, kRowBlock);
  if (n_rows > row_capacity_) {
    drop_recordings();
    row_capacity_ = 0;
    const uint32_t capacity = std::min(std::bit_ceil(n_rows), kRowBlock);
    const uint64_t hidden_bytes = (uint64_t{capacity} * s.n_embd * sizeof(float) + 63) / 64 * 64;
    free_buffer(head_);
    head_ = new_buffer(hidden_bytes + uint64_t{capacity} * s.n_vocab * sizeof(float));
    hidden_ = {head_, 0, DUET_F32, 0};
    logits_ = {head_, hidden_bytes, DUET_F32, 0};
    row_capacity_ = capacity;
  }
  if (!device_.has(DUETP_CAP_HOST_VISIBLE)) row_block_.resize(size_t{row_capacity_} * ((rows.hidden ? s.n_embd : 0) + (rows.logits ? s.n_vocab : 0)));
}

// Layers and at most one block of rows, by the widest rung that the device has.
void Session::enqueue(const Pass& pass, const duetp_frame& block, const Rows& rows) {
  const duetp_ref hidden = rows.hidden ? hidden_ : kNone, logits = rows.logits ? logits_ : kNone;
  if (device_.step) return forward_step(pass, block, hidden, logits);
  forward_layers(pass);
  if (block.n_rows > 0) forward_head(pass, block, hidden, logits);
}

// Runs what enqueue() enqueues as one recorded piece of work, recorded on first use.
void Session::replay(const Recording& wanted, const std::function<void()>& enqueue) {
  const duetp_device& t = device_.table;
  std::erase_if(recordings_, [&](const Recording& r) {
    const bool gone = r.state.expired();
    if (gone) t.record_free(device_.memory_self, r.record);
    return gone;
  });
  const auto same = [&](const Recording& r) {
    return r.state.lock() == wanted.state.lock() && r.n_tokens == wanted.n_tokens && r.n_rows == wanted.n_rows && r.logits == wanted.logits && r.hidden == wanted.hidden &&
           r.draws == wanted.draws;
  };
  auto found = std::find_if(recordings_.begin(), recordings_.end(), same);
  if (found == recordings_.end()) {
    if (recordings_.size() == kMaxRecordings) {
      t.record_free(device_.memory_self, recordings_.front().record);
      recordings_.erase(recordings_.begin());
    }
    recordings_.reserve(kMaxRecordings);
    Recording made = wanted;
    check_plugin(device_, t.record_begin(device_.memory_self, queue_));
    try {
      enqueue();
    } catch (...) {  // the queue must not stay in recording
      if (t.record_end(device_.memory_self, queue_, &made.record) == DUET_OK) t.record_free(device_.memory_self, made.record);
      throw;
    }
    check_plugin(device_, t.record_end(device_.memory_self, queue_, &made.record));
    recordings_.push_back(made);
    found = recordings_.end() - 1;
  }
  check_plugin(device_, t.record_run(device_.memory_self, queue_, found->record));
}

void Session::upload(duetp_ref to, const void* from, uint64_t bytes) {
  if (bytes > 0) check_plugin(device_, device_.table.upload(device_.memory_self, queue_, to, from, bytes));
}

// The block of rows that the head has written: where the device has them, if the host can read that, else downloaded.
// index[i] = row of the batch's output
void Session::take_rows(std::span<const uint32_t> index, const Rows& rows) {
  const uint64_t C = model_->shape().n_embd, V = model_->shape().n_vocab;
  const bool visible = device_.has(DUETP_CAP_HOST_VISIBLE);
  float* next = row_block_.data();
  const auto fetch = [&](duetp_ref src, uint64_t width) -> const float* {
    if (visible) return reinterpret_cast<const float*>(static_cast<const char*>(device_.table.buffer_ptr(device_.memory_self, src.buf)) + src.off);
    float* dst = std::exchange(next, next + index.size() * width);
    check_plugin(device_, device_.table.download(device_.memory_self, queue_, dst, src, index.size() * width * sizeof(float)));
    return dst;
  };
  const float* hidden = rows.hidden ? fetch(hidden_, C) : nullptr;  // [rows, C]
  const float* logits = rows.logits ? fetch(logits_, V) : nullptr;  // [rows, V]
  wait();
  rows.take(index, hidden, logits);
}

// Uploads the frame of a pass, for which there must be room.
Session::Packed Session::pack(std::span<const Run> runs) {
  Packed p;
  uint32_t n_tokens = 0, max_len = 0;
  const FrameLayout at(token_capacity_);
  const auto ref = [&](uint32_t word) { return duetp_ref{frame_, uint64_t{word} * sizeof(int32_t), 0, 0}; };
  int32_t* w = staging_.data();
  uint32_t n_rows = 0;
  const auto row = [&](uint32_t token, uint32_t index) {
    w[at.rows + n_rows++] = static_cast<int32_t>(token);
    p.row_index.push_back(index);
  };
  const auto n_seqs = static_cast<uint32_t>(runs.size());
  for (uint32_t s = 0; s < n_seqs; ++s) {
    const Run& r = runs[s];
    w[at.starts + s] = static_cast<int32_t>(n_tokens);
    w[at.slots + s] = static_cast<int32_t>(r.slot);
    std::copy_n(r.tokens, r.n, w + at.tokens + n_tokens);
    for (uint32_t i = 0; i < r.n; ++i) p.token_index.push_back(r.token_index + i);
    if (r.row_index && r.all_rows)
      for (uint32_t i = 0; i < r.n; ++i) row(n_tokens + i, *r.row_index + i);
    if (r.row_index && !r.all_rows) row(n_tokens + r.n - 1, *r.row_index);
    n_tokens += r.n;
    max_len = std::max(max_len, r.n);
  }
  w[at.starts + n_seqs] = static_cast<int32_t>(n_tokens);
  const auto use = [&](uint32_t block, uint32_t n) {  // used of the layers' frame (block 0) or of a block of rows
    w[at.used + 16 * block] = static_cast<int32_t>(n_tokens);
    w[at.used + 16 * block + 1] = static_cast<int32_t>(n_seqs);
    w[at.used + 16 * block + 2] = static_cast<int32_t>(n);
  };
  p.frame = {sizeof(duetp_frame), n_tokens, n_seqs, 0, max_len, ref(at.used), ref(at.tokens), ref(at.starts), ref(at.slots), ref(at.rows)};
  use(0, 0);
  for (uint32_t first = 0; first < n_rows; first += kRowBlock) {
    duetp_frame block = p.frame;
    block.n_rows = std::min(kRowBlock, n_rows - first);
    block.used = ref(at.used + 16 * (1 + first / kRowBlock));
    block.rows = ref(at.rows + first);
    use(1 + first / kRowBlock, block.n_rows);
    p.blocks.push_back(block);
  }
  const auto upload_part = [&](uint32_t part, uint32_t n) { upload(ref(part), w + part, n * sizeof(int32_t)); };  // a long pass of the past leaves long parts
  if (at.size <= kSmallFrame) {
    upload_part(0, at.size);
  } else {
    upload_part(at.used, 16 * (1 + row_blocks(n_rows)));
    upload_part(at.tokens, n_tokens);
    upload_part(at.starts, n_seqs + 1);
    upload_part(at.slots, n_seqs);
    upload_part(at.rows, n_rows);
  }
  return p;
}

void Session::run_pass(const std::shared_ptr<State>& state, std::span<const Run> runs, duet_mode mode, const Rows& rows) {
  uint32_t n_tokens = 0, n_rows = 0;
  for (const Run& r : runs) {
    n_tokens += r.n;
    if (r.row_index) n_rows += r.all_rows ? r.n : 1;
  }
  reserve(n_tokens, n_rows, rows);
  const Packed p = pack(runs);
  const std::vector<duetp_frame>& blocks = p.blocks;

  const Pass pass{*model_, queue_, p.frame, state->device_state(), mode, act_};
  const duetp_frame& first_block = blocks.empty() ? p.frame : blocks[0];
  if (mode == DUET_MODE_RECURRENT && device_.records() && blocks.size() <= 1)
    replay({state, n_tokens, n_rows, rows.logits, rows.hidden, false}, [&] { enqueue(pass, first_block, rows); });
  else
    enqueue(pass, first_block, rows);
  if (rows.take_v_first) {
    const uint64_t C = model_->shape().n_embd;
    v_first_.resize(n_tokens * C);
    check_plugin(device_, device_.table.download(device_.memory_self, queue_, v_first_.data(), act_.v_first, v_first_.size() * sizeof(float)));
    wait();
    for (uint32_t t = 0; t < n_tokens; ++t) rows.take_v_first(p.token_index[t], v_first_.data() + t * C);
  }
  for (uint32_t b = 0; b < blocks.size(); ++b) {
    if (b > 0) forward_head(pass, blocks[b], rows.hidden ? hidden_ : kNone, rows.logits ? logits_ : kNone);
    take_rows(std::span(p.row_index).subspan(b * kRowBlock, blocks[b].n_rows), rows);
  }
  if (blocks.empty()) wait();
}

// Whole sequences, packed; what is longer than a pass goes on in the next one through the state.
void Session::run_parallel(const std::shared_ptr<State>& state, const Batch& batch, const Rows& rows) {
  std::vector<Run> runs;
  uint32_t in_pass = 0, token = 0, row = 0;
  const auto flush = [&] {
    if (!runs.empty()) run_pass(state, runs, DUET_MODE_PARALLEL, rows);
    runs.clear();
    in_pass = 0;
  };
  for (size_t s = 0; s < batch.lengths.size(); ++s)
    for (uint32_t done = 0; done < batch.lengths[s];) {
      const uint32_t n = std::min(batch.lengths[s] - done, max_tokens_ - in_pass);
      const bool last = done + n == batch.lengths[s], wanted = (rows.logits || rows.hidden) && (rows.all || last);
      runs.push_back({batch.tokens.data() + token, n, batch.slots[s], token, wanted ? std::optional(row) : std::nullopt, rows.all});
      done += n;
      token += n;
      in_pass += n;
      if (wanted) row += rows.all ? n : 1;
      if (in_pass == max_tokens_) flush();
    }
  flush();
}

// One token of every sequence that still has one, step by step.
void Session::run_recurrent(const std::shared_ptr<State>& state, const Batch& batch, const Rows& rows) {
  model_->prepare_recurrent();
  struct Sequence {
    uint32_t slot, first_token, length, last_row;
  };
  std::vector<Sequence> sequences;
  uint32_t token = 0, row = 0, longest = 0;
  for (size_t s = 0; s < batch.lengths.size(); ++s) {
    if (batch.lengths[s] > 0) sequences.push_back({batch.slots[s], token, batch.lengths[s], row++});
    token += batch.lengths[s];
    longest = std::max(longest, batch.lengths[s]);
  }
  std::vector<Run> runs;
  for (uint32_t step = 0; step < longest; ++step) {
    const auto flush = [&] {
      if (!runs.empty()) run_pass(state, runs, DUET_MODE_RECURRENT, rows);
      runs.clear();
    };
    for (const Sequence& s : sequences) {
      if (step >= s.length) continue;
      const uint32_t at = s.first_token + step;
      const bool wanted = (rows.logits || rows.hidden) && (rows.all || step + 1 == s.length);
      runs.push_back({batch.tokens.data() + at, 1, s.slot, at, wanted ? std::optional(rows.all ? at : s.last_row) : std::nullopt, rows.all});
      if (runs.size() == max_tokens_) flush();
    }
    flush();
  }
}

void Session::check(const State& state, const Batch& batch) const {
  if (&state.model()->device() != &device_ || state.model()->fingerprint() != model_->fingerprint())
    fail(DUET_E_INVALID, "the state was created with another model than the session; copy it with duet_state_copy");
  std::vector<uint32_t> slots = batch.slots;
  for (uint32_t s : slots) state.check_slot(s);
  std::sort(slots.begin(), slots.end());
  if (const auto twice = std::adjacent_find(slots.begin(), slots.end()); twice != slots.end())
    fail(DUET_E_INVALID, "slot {} stands twice in the batch; two sequences cannot advance one state", *twice);
  for (size_t i = 0; i < batch.tokens.size(); ++i)
    if (batch.tokens[i] < 0 || static_cast<uint32_t>(batch.tokens[i]) >= model_->shape().n_vocab)
      fail(DUET_E_INVALID, "token {} at position {} is outside the model's vocabulary [0, {})", batch.tokens[i], i, model_->shape().n_vocab);
}

void Session::run(const std::shared_ptr<State>& state, const Batch& batch, const Rows& rows, duet_mode mode) {
  const bool single = std::all_of(batch.lengths.begin(), batch.lengths.end(), [](uint32_t n) { return n <= 1; });
  try {
    if (mode == DUET_MODE_RECURRENT || (mode == DUET_MODE_AUTO && single))
      run_recurrent(state, batch, rows);
    else
      run_parallel(state, batch, rows);
  } catch (...) {  // nothing half-enqueued may run with the next batch
    (void)device_.table.queue_wait(device_.memory_self, queue_);
    throw;
  }
}

void Session::forward(const std::shared_ptr<State>& state, const Batch& batch, std::optional<duet_mode> mode) {
  check(*state, batch);  // before the last forward's outputs make room for these
  const uint32_t C = model_->shape().n_embd, V = model_->shape().n_vocab;
  Rows rows;
  rows.all = batch.outputs & DUET_OUT_ALL_LOGITS;
  rows.logits = !(batch.outputs & DUET_OUT_NO_LOGITS);
  rows.hidden = batch.outputs & DUET_OUT_HIDDEN;
  const auto n_tokens = static_cast<uint32_t>(batch.tokens.size());
  const auto n_seqs = static_cast<uint32_t>(std::count_if(batch.lengths.begin(), batch.lengths.end(), [](uint32_t n) { return n > 0; }));
  const uint32_t n_rows = rows.all ? n_tokens : n_seqs;
  for (Output& o : outputs_) o.data = nullptr, o.rows = 0;  // until they are computed
  const auto room = [](Output& o, uint32_t n, uint32_t width) {
    o.copies.resize(size_t{n} * width);
    o.data = o.copies.data();
    return o.copies.data();
  };
  const auto keep = [&](Output& o, uint32_t width, std::span<const uint32_t> index, const float* from) {
    if (index.size() == n_rows) {  // all of them, hence in their order
      o.data = from;
      return;
    }
    float* to = room(o, n_rows, width);
    for (size_t i = 0; i < index.size(); ++i) std::copy_n(from + i * width, width, to + size_t{index[i]} * width);
  };
  rows.take = [&](std::span<const uint32_t> index, const float* hidden, const float* logits) {
    if (hidden) keep(outputs_[DUET_OUTPUT_HIDDEN], C, index, hidden);
    if (logits) keep(outputs_[DUET_OUTPUT_LOGITS], V, index, logits);
  };
  const bool v_first = batch.outputs & DUET_OUT_V_FIRST;
  if (v_first) rows.take_v_first = [&](uint32_t token, const float* v) { std::copy_n(v, C, room(outputs_[DUET_OUTPUT_V_FIRST], n_tokens, C) + size_t{token} * C); };
  run(state, batch, rows, mode.value_or(mode_));
  const auto finish = [](Output& o, bool wanted, uint32_t n, uint32_t width) { o.rows = wanted ? n : 0, o.width = width; };
  finish(outputs_[DUET_OUTPUT_LOGITS], rows.logits, n_rows, V);
  finish(outputs_[DUET_OUTPUT_HIDDEN], rows.hidden, n_rows, C);
  finish(outputs_[DUET_OUTPUT_V_FIRST], v_first, n_tokens, C);
}

void Session::keep_outputs() {
  for (Output& o : outputs_) {
    if (o.rows == 0 || o.data == o.copies.data()) continue;
    o.copies.assign(o.data, o.data + size_t{o.rows} * o.width);
    o.data = o.copies.data();
  }
}

void Session::score(const std::shared_ptr<State>& state, uint32_t slot, std::span<const int32_t> tokens, double* out_nll) {
  const uint32_t V = model_->shape().n_vocab;
  Rows rows;
  rows.all = rows.logits = true;
  rows.take = [&](std::span<const uint32_t> index, const float*, const float* logits) {
    for (const uint32_t t : index) {
      if (t + 1 >= tokens.size()) return;
      const double top = *std::max_element(logits, logits + V);
      double sum = 0;
      for (uint32_t i = 0; i < V; ++i) sum += std::exp(logits[i] - top);
      out_nll[t] = top + std::log(sum) - logits[tokens[t + 1]];
      logits += V;
    }
  };
  const Batch batch{tokens, {static_cast<uint32_t>(tokens.size())}, {slot}, 0};
  check(*state, batch);
  keep_outputs();
  run(state, batch, rows, mode_);
}

}  // namespace duet
