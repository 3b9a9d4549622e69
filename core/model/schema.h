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
  const char* dims;    // a letter each: V, C, H, N, F, and the ranks w, a, v, g
  bool matrix;         // has the weight dtype; else f32 on the device
};
const std::array<TensorSpec, DUETP_T_COUNT>& tensor_specs();  // by id
std::string tensor_name(uint32_t id, uint32_t layer);
// Dimensions in canonical form ([C] for the [1,1,C] of files); empty = this layer has none (v0, v1, v2 of layer 0; block tensors elsewhere)
std::vector<uint32_t> tensor_shape(uint32_t id, uint32_t layer, const duetp_shape& shape);
uint64_t tensor_count(uint32_t id, uint32_t layer, const duetp_shape& shape);  // elements; 0 = this layer has none
uint64_t parameter_count(const duetp_shape& shape);                            // of all tensors that a model needs

// In __metadata__ of files that Duet writes, where it is not 64e-5 (a Hugging Face config may say so).
constexpr const char* kGroupNormEps = "duet.group_norm_eps";

// DUET_E_LIMIT, or `invalid` for a zero or heads that do not make up the width; `what` begins the sentence.
void check_dimensions(const duetp_shape& shape, duet_status invalid, const std::string& what);

using LayerTensors = std::array<const Tensor*, DUETP_T_COUNT>;  // nullptr where the layer has none

struct ModelTensors {
  duetp_shape shape;
  duet_dtype quantised = 0;               // DUET_I8 or DUET_I4 where the matrices are; `layers` has their integers
  std::vector<LayerTensors> layers;       // [L+1]; the last is the block of embedding and head
  std::vector<LayerTensors> scales, minimums;  // [L+1]; nullptr where a tensor has none
  std::vector<const Tensor*> time_state;  // [L], nullptr where a layer has none; or empty
};

// DUET_E_FORMAT names the first tensors that are missing, mis-shaped or, of quantised matrices, of another dtype, expected and found; DUET_E_UNSUPPORTED names other
// architectures (RWKV-4/5/6, hybrids, 7a/7b). Unknown tensors: a warning each (strict: an error). Layer 0's v0, v1, v2 are ignored.
ModelTensors check_schema(const Checkpoint& checkpoint, const Log& log, bool strict);

// Nothing but states: `state.att_x` etc., or official `time_state` (exec/state.cc reads them).
bool holds_only_states(const Checkpoint& checkpoint);
// Throws DUET_E_UNSUPPORTED when a name tells of another architecture (architecture.cc).
void refuse_other_architectures(const Checkpoint& checkpoint);

}  // namespace duet
