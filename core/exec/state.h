// The memory of n sequences on a model's device.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "exec/model.h"

namespace duet {

// The canonical form of one sequence, f32.
struct StateArrays {
  std::vector<float> att_x;  // [L,C]
  std::vector<float> wkv;    // [L,H,N,N] (value row, key column)
  std::vector<float> ffn_x;  // [L,C]
  explicit StateArrays(const duetp_shape& s)
      : att_x(size_t{s.n_layer} * s.n_embd), wkv(size_t{s.n_layer} * s.n_embd * s.head_size), ffn_x(size_t{s.n_layer} * s.n_embd) {}
};

class State {
 public:
  State(std::shared_ptr<Model> model, uint32_t n_slots, duet_dtype wkv);  // wkv 0 = f32
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  const std::shared_ptr<Model>& model() const { return model_; }
  uint32_t n_slots() const { return n_slots_; }
  duet_dtype wkv() const { return wkv_; }
  duetp_state* device_state() const { return state_; }
  void check_slot(uint32_t slot) const;  // DUET_E_INVALID

  void reset(uint32_t slot);
  void copy_from(uint32_t slot, const State& src, uint32_t src_slot);
  StateArrays get(uint32_t slot) const;
  void set(uint32_t slot, const StateArrays& arrays);  // DUET_E_NUMERIC: not finite

  std::atomic<bool> busy{false};  // see Exclusive in capi/handle.h

 private:
  std::shared_ptr<Model> model_;
  uint32_t n_slots_;
  duet_dtype wkv_;
  duetp_state* state_ = nullptr;
};

// The file form (docs/states.md): safetensors with a fingerprint of the model and a checksum of the numbers.
std::string serialise_state(const Model& model, const StateArrays& arrays);
// Also official files of `blocks.i.att.time_state` (token-shift vectors are then zero), and any safetensors that holds the
// three tensors. `name` for messages.
StateArrays parse_state(const Model& model, Bytes bytes, const std::string& name);

}  // namespace duet
