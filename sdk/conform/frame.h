// Frames and states of a device under test.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "conform/model.h"
#include "duet_stage.h"

namespace conform {

// What a run works on. The capacities are larger than what is used, so that a stage that takes one for the other is seen.
struct Batch {
  std::vector<int32_t> lengths, slots, rows;
  int32_t n_tokens() const { return std::accumulate(lengths.begin(), lengths.end(), 0); }
  std::vector<int32_t> tokens(uint32_t n_vocab) const {
    std::vector<int32_t> out;
    for (int32_t t = 0; t < n_tokens(); ++t) out.push_back(static_cast<int32_t>((static_cast<uint32_t>(t) * 7919u + 3) % n_vocab));
    return out;
  }
};

class Frame {
 public:
  Frame(Device& d, const Batch& b, const std::vector<int32_t>& tokens) {
    std::vector<int32_t> starts{0};
    for (int32_t n : b.lengths) starts.push_back(starts.back() + n);
    table_.size = sizeof table_;
    table_.n_tokens = static_cast<uint32_t>(tokens.size()) + kSpare;
    table_.n_seqs = static_cast<uint32_t>(b.lengths.size()) + kSpare;
    table_.n_rows = static_cast<uint32_t>(b.rows.size()) + kSpare;
    table_.max_len = table_.n_tokens;
    table_.used = put(d, "used", {starts.back(), static_cast<int32_t>(b.lengths.size()), static_cast<int32_t>(b.rows.size())}, 3);
    table_.tokens = put(d, "tokens", tokens, table_.n_tokens);
    table_.starts = put(d, "starts", starts, table_.n_seqs + 1);
    table_.slots = put(d, "slots", b.slots, table_.n_seqs);
    table_.rows = put(d, "rows", b.rows, table_.n_rows);
  }
  const duetp_frame* table() const { return &table_; }

  static constexpr uint32_t kSpare = 3;

 private:
  duetp_ref put(Device& d, const char* name, std::vector<int32_t> v, size_t capacity) {
    v.resize(capacity, INT32_MAX);  // never to be used
    memory_.push_back(std::make_unique<Memory>(d, name, capacity * 4, DUET_F32));
    memory_.back()->write(v.data(), capacity * 4);
    return memory_.back()->ref();
  }
  std::vector<std::unique_ptr<Memory>> memory_;
  duetp_frame table_{};
};

// Slots filled with numbers that depend on slot and position only
class State {
 public:
  State(Device& d, const duetp_shape& s, uint32_t n_slots, duet_dtype stored = DUET_F32) : device_(d), shape_(s), n_slots_(n_slots), stored_(stored) {
    d.check(d->state_new(d.self(), &s, n_slots, stored, &state_));
    for (uint32_t slot = 0; slot < n_slots; ++slot) set(slot, initial(slot));
  }
  ~State() { device_->state_free(device_.self(), state_); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  duetp_state* get() const { return state_; }
  uint32_t n_slots() const { return n_slots_; }
  void set(uint32_t i, const std::vector<float>& v) {  // as slot() gives it
    const size_t LC = size_t{shape_.n_layer} * shape_.n_embd;
    device_.check(device_->state_import(device_.self(), device_.queue(), state_, i, v.data(), v.data() + LC, v.data() + LC * (1 + shape_.head_size)));
  }
  std::vector<float> initial(uint32_t i) const {  // what the slot held first
    const size_t n = size_t{shape_.n_layer} * shape_.n_embd * (2 + shape_.head_size);
    static std::map<uint32_t, std::vector<float>> streams;  // each as long as it was ever needed: thousands of states begin alike
    std::vector<float>& stream = streams[i];
    if (stream.size() < n) {
      Random random(1000 + i);
      stream.resize(n);
      for (float& f : stream) f = random.next();
    }
    return rounded({stream.begin(), stream.begin() + static_cast<std::ptrdiff_t>(n)});
  }
  // The slot as a state of this dtype keeps it
  std::vector<float> rounded(std::vector<float> v) const {
    if (stored_ == DUET_F32) return v;
    const size_t LC = size_t{shape_.n_layer} * shape_.n_embd;
    for (float* S = v.data() + LC; S < v.data() + LC * (1 + shape_.head_size); ++S) *S = duetp_stored(*S, stored_);
    return v;
  }
  std::vector<float> slot(uint32_t i) {  // att_x, wkv, ffn_x
    const size_t LC = size_t{shape_.n_layer} * shape_.n_embd;
    std::vector<float> v(LC * (2 + shape_.head_size));
    device_.check(device_->state_export(device_.self(), device_.queue(), state_, i, v.data(), v.data() + LC, v.data() + LC * (1 + shape_.head_size)));
    device_.wait();
    return v;
  }
  std::string place(size_t i) const {  // of element i of slot(): "wkv of layer 1, head 0, value 3, key 4"
    const size_t C = shape_.n_embd, N = shape_.head_size, LC = shape_.n_layer * C;
    const auto text = [](size_t n) { return std::to_string(n); };
    if (i < LC || i >= LC * (N + 1)) return (i < LC ? "att_x" : "ffn_x") + (" of layer " + text(i % LC / C)) + ", channel " + text(i % C);
    i -= LC;
    return "wkv of layer " + text(i / (C * N)) + ", head " + text(i / (N * N) % shape_.n_head) + ", value " + text(i / N % N) + ", key " + text(i % N);
  }
  // The slot with each head's keys as rows and values as columns
  std::vector<float> exchanged(std::vector<float> v) const {
    const size_t N = shape_.head_size, LC = size_t{shape_.n_layer} * shape_.n_embd;
    for (float* S = v.data() + LC; S < v.data() + LC * (N + 1); S += N * N)
      for (size_t i = 0; i < N; ++i)
        for (size_t j = 0; j < i; ++j) std::swap(S[i * N + j], S[j * N + i]);
    return v;
  }
  std::vector<float> all() {
    std::vector<float> v;
    for (uint32_t i = 0; i < n_slots_; ++i) {
      const std::vector<float> one = slot(i);
      v.insert(v.end(), one.begin(), one.end());
    }
    return v;
  }

 private:
  Device& device_;
  duetp_shape shape_;
  uint32_t n_slots_;
  duet_dtype stored_;
  duetp_state* state_ = nullptr;
};

}  // namespace conform
