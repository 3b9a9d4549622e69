// States as safetensors: written with metadata, read from any file that holds the three tensors or official time_state.
#include <fmt/format.h>

#include <cmath>

#include "exec/state.h"

namespace duet {
namespace {

// FNV-1a over the three arrays: finds flipped bits, not forgers.
std::string checksum(const StateArrays& a) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (const std::vector<float>* v : {&a.att_x, &a.wkv, &a.ffn_x})
    for (std::byte b : std::as_bytes(std::span(*v))) h = (h ^ std::to_integer<uint64_t>(b)) * 0x100000001b3ull;
  return duet::format("{:016x}", h);
}

std::string shape_text(const std::vector<uint64_t>& shape) { return duet::format("[{}]", fmt::join(shape, ",")); }

void read_part(const Checkpoint& file, std::string_view name, const std::vector<uint64_t>& shape, float* out) {
  const Tensor* t = file.find(name);
  if (!t) fail(DUET_E_FORMAT, "{}: holds no {}; a state has state.att_x, state.wkv and state.ffn_x", file.path(), name);
  if (t->shape != shape)
    fail(DUET_E_INVALID, "{}: {} is {}, but this model's is {}: the state belongs to another model", file.path(), name, shape_text(t->shape), shape_text(shape));
  if (t->dtype != DType::f32 && t->dtype != DType::f16 && t->dtype != DType::bf16)
    fail(DUET_E_UNSUPPORTED, "{}: {} has dtype {}; a state is F32, F16 or BF16", file.path(), name, dtype_name(t->dtype));
  convert_floats(t->data.data(), t->dtype, out, DUET_F32, t->count());
  for (uint64_t i = 0; i < t->count(); ++i)
    if (!std::isfinite(out[i])) fail(DUET_E_NUMERIC, "{}: {} holds {} at element {}", file.path(), name, out[i], i);
}

void check_metadata(const Checkpoint& file, const Model& model, const StateArrays& arrays) {
  const auto value = [&](const char* key) {
    const auto i = file.metadata().find(key);
    return i == file.metadata().end() ? std::string() : i->second;
  };
  if (const std::string f = value("duet.fingerprint"); !f.empty() && f != model.fingerprint())
    fail(DUET_E_INVALID, "{}: made with the model of fingerprint {}, but this model's is {}", file.path(), printable(f), model.fingerprint());
  if (const std::string c = value("duet.checksum"); !c.empty() && c != checksum(arrays))
    fail(DUET_E_FORMAT, "{}: damaged: its checksum is {}, but its numbers give {}", file.path(), printable(c), checksum(arrays));
}

}  // namespace

std::string serialise_state(const Model& model, const StateArrays& a) {
  const duetp_shape& s = model.shape();
  const auto produce = [](const std::vector<float>& v) {
    return [&v](const std::function<void(Bytes)>& sink) { sink(std::as_bytes(std::span(v))); };
  };
  std::string out;
  write_safetensors({{"state.att_x", DType::f32, {s.n_layer, s.n_embd}, produce(a.att_x)},
                     {"state.wkv", DType::f32, {s.n_layer, s.n_head, s.head_size, s.head_size}, produce(a.wkv)},
                     {"state.ffn_x", DType::f32, {s.n_layer, s.n_embd}, produce(a.ffn_x)}},
                    {{"duet.format", "state"}, {"duet.version", "1"}, {"duet.fingerprint", model.fingerprint()}, {"duet.checksum", checksum(a)}},
                    [&](Bytes b) { out.append(as_text(b)); });
  return out;
}

StateArrays parse_state(const Model& model, Bytes bytes, const std::string& name) {
  const Checkpoint file = Checkpoint::parse(bytes, name, model.library().log);
  const duetp_shape& s = model.shape();
  if (const auto v = file.metadata().find("duet.version"); v != file.metadata().end() && v->second != "1")
    fail(DUET_E_UNSUPPORTED, "{}: state format version {}; this library reads version 1", name, printable(v->second));
  StateArrays a(s);
  if (!file.find("state.wkv") && file.find("blocks.0.att.time_state")) {  // state tuning: token-shift vectors start at zero
    const uint64_t n = uint64_t{s.n_embd} * s.head_size;
    for (uint32_t i = 0; i < s.n_layer; ++i)
      read_part(file, duet::format("blocks.{}.att.time_state", i), {s.n_head, s.head_size, s.head_size}, a.wkv.data() + i * n);
    if (file.find(duet::format("blocks.{}.att.time_state", s.n_layer)))
      fail(DUET_E_INVALID, "{}: holds states of more than this model's {} layers: it belongs to another model", name, s.n_layer);
    return a;
  }
  read_part(file, "state.att_x", {s.n_layer, s.n_embd}, a.att_x.data());
  read_part(file, "state.wkv", {s.n_layer, s.n_head, s.head_size, s.head_size}, a.wkv.data());
  read_part(file, "state.ffn_x", {s.n_layer, s.n_embd}, a.ffn_x.data());
  check_metadata(file, model, a);
  return a;
}

}  // namespace duet
