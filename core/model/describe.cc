#include "model/describe.h"

#include <nlohmann/json.hpp>

#include "model/weights.h"

namespace duet {
namespace {

using Json = nlohmann::ordered_json;

Json describe_tensors(const Checkpoint& checkpoint) {
  Json all = Json::array();
  for (const Tensor& t : checkpoint.tensors()) all.push_back({{"name", t.name}, {"dtype", dtype_name(t.dtype)}, {"shape", t.shape}});
  return all;
}

void describe_model(Json& out, const Checkpoint& checkpoint, const Log& log, const OpenOptions& options) {
  const std::unique_ptr<WeightSource> source = checkpoint_weights(checkpoint, log, options);
  const duetp_shape& s = source->shape();
  const uint64_t state_floats = uint64_t{s.n_layer} * s.n_embd * (2 + s.head_size);
  out.update({{"kind", "model"}, {"architecture", "rwkv7"}, {"n_layer", s.n_layer}, {"n_embd", s.n_embd}, {"n_head", s.n_head}, {"head_size", s.head_size},
              {"n_ffn", s.n_ffn}, {"n_vocab", s.n_vocab}, {"ranks", {{"w", s.rank_w}, {"a", s.rank_a}, {"v", s.rank_v}, {"g", s.rank_g}}},
              {"parameters", parameter_count(s)}, {"state_floats", state_floats}, {"state_bytes", state_floats * sizeof(float)}});
  bool time_state = false;
  for (uint32_t layer = 0; layer < s.n_layer; ++layer) time_state |= !source->time_state(layer).empty();
  out["time_state"] = time_state;
  out["fingerprint"] = source->fingerprint();
  if (!options.verify) return;
  for (uint32_t layer = 0; layer <= s.n_layer; ++layer)
    for (const TensorSpec& spec : tensor_specs())
      if (tensor_count(spec.id, layer, s) != 0) (void)source->tensor(spec.id, layer, source->dtype(spec.id, layer));  // checks its values
}

void verify_states(const Checkpoint& checkpoint, const Log& log, bool strict) {
  for (const Tensor& t : checkpoint.tensors()) check_values(t.data.data(), t.dtype, t.count(), checkpoint.path(), t.name, log, strict);
}

}  // namespace

std::string describe_checkpoint(const Checkpoint& checkpoint, const Log& log, uint32_t flags) {
  const OpenOptions options{(flags & DUET_FILE_STRICT) != 0, (flags & DUET_FILE_VERIFY) != 0};
  Json out{{"format", checkpoint.format()}, {"path", checkpoint.path()}};
  if (holds_only_states(checkpoint)) {
    out["kind"] = "state";
    if (options.verify) verify_states(checkpoint, log, options.strict);
  } else {
    describe_model(out, checkpoint, log, options);
  }
  std::map<std::string, uint64_t> dtypes;
  uint64_t bytes = 0;
  for (const Tensor& t : checkpoint.tensors()) {
    ++dtypes[dtype_name(t.dtype)];
    bytes += t.data.size();
  }
  out["dtypes"] = dtypes;
  out["weight_bytes"] = bytes;
  if (options.verify) out["verified"] = true;
  out["metadata"] = checkpoint.metadata();
  out["tensors"] = describe_tensors(checkpoint);
  return out.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace duet
