// What an RWKV-7 checkpoint must hold (docs/mathematics.md, tensors): shape inference and the check of every tensor,
// before anything is allocated for the weights.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "duet_plugin.h"
#include "formats/checkpoint.h"

namespace duet {

struct TensorSpec {
  uint32_t id;         // DUETP_T_*
  const char* suffix;  // "att.w1", after "blocks.<i>."; whole name for the block n_layer, "blocks.0.ln0.weight" included
  bool matrix;         // has the weight dtype; else f32 on the device
};
const std::array<TensorSpec, DUETP_T_COUNT>& tensor_specs();  // by id
std::string tensor_name(uint32_t id, uint32_t layer);
// Dimensions in canonical form ([C] for the [1,1,C] of files); empty = this layer has none (v0, v1, v2 of layer 0; block tensors elsewhere)
std::vector<uint32_t> tensor_shape(uint32_t id, uint32_t layer, const duetp_shape& shape);

using LayerTensors = std::array<const Tensor*, DUETP_T_COUNT>;  // nullptr where the layer has none

struct ModelTensors {
  duetp_shape shape;
  std::vector<LayerTensors> layers;       // [L+1]; the last is the block of embedding and head
  std::vector<const Tensor*> time_state;  // [L], or empty
};

// DUET_E_FORMAT names the first tensors that are missing or mis-shaped, expected and found; DUET_E_UNSUPPORTED names other
// architectures (RWKV-4/5/6, hybrids, 7a/7b). Unknown tensors: a warning each (strict: an error). Layer 0's v0, v1, v2 are ignored.
ModelTensors check_schema(const Checkpoint& checkpoint, const Log& log, bool strict);

// As check_schema for a file of states alone: `state.att_x` etc., or official `time_state`. See exec/state.cc.

}  // namespace duet
