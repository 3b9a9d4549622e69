// RWKV-7's forward pass, written once, in the stages of duet_plugin.h.
#pragma once
#include <cstdint>
#include "exec/model.h"

namespace duet {

// Device memory of one pass over at most `n_tokens` tokens. All [n_tokens, C]; f32, but for the matrix inputs (m), which
// have the weights' dtype when that is bf16. One arena; refs that are never alive together share memory. A device that runs
// whole layers keeps all but x and v_first to itself: the others are none.
struct Activations {
  duetp_ref x{};                        // residual stream
  duetp_ref xr{}, xw{}, xk{}, xv{}, xa{}, xg{};  // (m) token-shifted inputs
  duetp_ref r{}, k{}, v{}, w{}, a{}, g{};  // receptance; key; value; decay, first as low-rank output, then w_raw; in-context rate; gate
  duetp_ref lv{}, kk{}, v_first{};      // value residual's low-rank output; removal key; layer 0's value
  duetp_ref y{}, o{};                   // wkv output (shares lv); gated output (m, shares xr)
  Activations() = default;
  static uint64_t bytes(const Model& model, uint32_t n_tokens);
  Activations(duetp_buffer* arena, const Model& model, uint32_t n_tokens);
};

struct Pass {
  const Model& model;
  duetp_queue* queue;
  const duetp_frame& frame;
  duetp_state* state;
  duet_mode mode;  // recurrent or parallel
  const Activations& act;
};

// Each of these enqueues work; nothing has been computed when it returns. Devices with a rung-2 slot run all layers in it.
// tokens -> x after the last layer
void forward_layers(const Pass& pass);
// x at rows.rows -> hidden and logits; either may be none
void forward_head(const Pass& pass, const duetp_frame& rows, duetp_ref hidden, duetp_ref logits);
// logits of rows.rows -> tokens, with what exec/draws.h makes in device memory
void forward_sample(const Pass& pass, const duetp_frame& rows, duetp_ref logits, duetp_ref draw_rows, duetp_ref entries, duetp_ref history);
// Layers and head as one rung-3 step, on a device that has it.
void forward_step(const Pass& pass, const duetp_frame& rows, duetp_ref hidden, duetp_ref logits);

}  // namespace duet
