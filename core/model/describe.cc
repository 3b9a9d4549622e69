#include "model/describe.h"

#include <cmath>
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

// Reading a tensor as it is stored checks its values.
void verify(const WeightSource& source, uint32_t id, uint32_t layer) {
  const duet_dtype dtype = source.dtype(id, layer);
  std::shared_ptr<const void> owner;
  if (duetp_is_quantised(dtype))
    (void)source.quantised(id, layer, dtype, owner);
  else
    (void)source.tensor(id, layer, dtype);
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
  out["weights"] = weights_name(source->stored());
  out["fingerprint"] = source->fingerprint();
  if (!options.verify) return;
  for (uint32_t layer = 0; layer <= s.n_layer; ++layer)
    for (const TensorSpec& spec : tensor_specs())
      if (tensor_count(spec.id, layer, s) != 0) verify(*source, spec.id, layer);
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
  if (out.contains("parameters")) out["bits_per_weight"] = std::round(800.0 * static_cast<double>(bytes) / out["parameters"].get<double>()) / 100;
  if (options.verify) out["verified"] = true;
  out["metadata"] = checkpoint.metadata();
  out["tensors"] = describe_tensors(checkpoint);
  return out.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace duet
