#include "exec/state.h"

#include <cmath>

#include "exec/memory.h"

namespace duet {
namespace {

void check_finite(std::span<const float> v, const char* part) {
  for (size_t i = 0; i < v.size(); ++i)
    if (!std::isfinite(v[i])) fail(DUET_E_NUMERIC, "state: {}[{}] is {}, not a finite number; nothing was changed", part, i, v[i]);
}

}  // namespace

State::State(std::shared_ptr<Model> model, uint32_t n_slots, duet_dtype wkv) : model_(std::move(model)), n_slots_(n_slots), wkv_(wkv ? wkv : DUET_F32) {
  const Device& d = model_->device();
  if (wkv_ != DUET_F32 && d.f32_states) fail(DUET_E_UNSUPPORTED, "{} keeps the wkv state in f32 only", d.spec);
  check_memory(duet::format("a state of {} slots needs", n_slots_), n_slots_ * model_->state_bytes(wkv_), free_memory(d), d, "create fewer slots");
  check_plugin(d, d.table.state_new(d.memory_self, &model_->shape(), n_slots_, wkv_, &state_));
  try {
    if (!model_->initial_wkv().empty())
      for (uint32_t i = 0; i < n_slots_; ++i) reset(i);
  } catch (...) {
    d.table.state_free(d.memory_self, state_);
    throw;
  }
}

State::~State() {
  const Device& d = model_->device();
  d.table.state_free(d.memory_self, state_);
}

void State::check_slot(uint32_t slot) const {
  if (slot >= n_slots_) fail(DUET_E_INVALID, "slot {} of a state with {} slots", slot, n_slots_);
}

void State::reset(uint32_t slot) {
  check_slot(slot);
  const Device& d = model_->device();
  model_->with_queue([&](duetp_queue* q) {
    check_plugin(d, d.table.state_copy(d.memory_self, q, state_, slot, nullptr, 0));
    if (model_->initial_wkv().empty()) return;
    const StateArrays zero(model_->shape());
    check_plugin(d, d.table.state_import(d.memory_self, q, state_, slot, zero.att_x.data(), model_->initial_wkv().data(), zero.ffn_x.data()));
    check_plugin(d, d.table.queue_wait(d.memory_self, q));  // the arrays must outlive the work
  });
}

void State::copy_from(uint32_t slot, const State& src, uint32_t src_slot) {
  check_slot(slot);
  src.check_slot(src_slot);
  const duetp_shape &a = model_->shape(), &b = src.model_->shape();
  if (a.n_layer != b.n_layer || a.n_embd != b.n_embd || a.head_size != b.head_size)
    fail(DUET_E_INVALID, "a state of {} layers, width {}, head size {} does not fit a model of {}, {}, {}", b.n_layer, b.n_embd, b.head_size, a.n_layer, a.n_embd,
         a.head_size);
  const Device& d = model_->device();
  if (&d == &src.model_->device() && wkv_ == src.wkv_)
    model_->with_queue([&](duetp_queue* q) { check_plugin(d, d.table.state_copy(d.memory_self, q, state_, slot, src.state_, src_slot)); });
  else
    set(slot, src.get(src_slot));
}

StateArrays State::get(uint32_t slot) const {
  check_slot(slot);
  const Device& d = model_->device();
  StateArrays out(model_->shape());
  model_->with_queue(
      [&](duetp_queue* q) { check_plugin(d, d.table.state_export(d.memory_self, q, state_, slot, out.att_x.data(), out.wkv.data(), out.ffn_x.data())); });
  return out;
}

void State::set(uint32_t slot, const StateArrays& arrays) {
  check_slot(slot);
  check_finite(arrays.att_x, "att_x");
  check_finite(arrays.wkv, "wkv");
  check_finite(arrays.ffn_x, "ffn_x");
  const Device& d = model_->device();
  model_->with_queue([&](duetp_queue* q) {
    check_plugin(d, d.table.state_import(d.memory_self, q, state_, slot, arrays.att_x.data(), arrays.wkv.data(), arrays.ffn_x.data()));
  });
}

}  // namespace duet
