// Files that are valid but hold no RWKV-7: said by name, so that nobody has to guess from a list of missing tensors.
#include "base/error.h"
#include "model/schema.h"

namespace duet {
namespace {

struct Sign {
  const char* part;  // of a tensor's name
  const char* architecture;
};
// From the special to the general: the first sign that any tensor shows decides.
constexpr Sign kSigns[] = {
    {"time_maa_", "RWKV-6"},
    {"time_faaaa", "RWKV-5"},
    {"att.gate.weight", "RWKV-5"},
    {"time_decay", "RWKV-4 or RWKV-5"},
    {"time_mix_", "RWKV-4 or RWKV-5"},
    {"qkv.qq.", "RWKV-7b (DeepEmbed attention)"},
    {"ffn.s_emb", "RWKV-7a (DeepEmbed)"},
    {"enn.weight", "RWKV-8"},
    {".rosa", "RWKV-8 (ROSA)"},
    {".lora_A", "a LoRA adapter, to be merged into its model first,"},
    {".disha", "a DiSHA adapter, to be merged into its model first,"},
    {".bone", "a Bone adapter, to be merged into its model first,"},
    {"q_proj", "a transformer or a hybrid with attention layers"},
    {"mlp.", "a transformer or a hybrid with its feed-forward layers"},
    {"self_attn", "a transformer or a hybrid with attention layers"},
    {"c_attn", "a transformer"},
    {".qkv", "a transformer"},
};

}  // namespace

void refuse_other_architectures(const Checkpoint& checkpoint) {
  for (const Sign& sign : kSigns)
    for (const Tensor& t : checkpoint.tensors())
      if (t.name.find(sign.part) != std::string::npos)
        fail(DUET_E_UNSUPPORTED, "{}: holds {} (tensor {} found); this engine runs RWKV-7", checkpoint.path(), sign.architecture, printable(t.name));
  for (const Tensor& t : checkpoint.tensors())
    if (t.name.starts_with("blocks.") || t.name == "emb.weight") return;
  if (checkpoint.tensors().empty()) fail(DUET_E_FORMAT, "{}: holds no tensors", checkpoint.path());
  fail(DUET_E_UNSUPPORTED, "{}: holds no RWKV-7 model: among its {} tensors ({} ...) is neither emb.weight nor any blocks.<i>.*", checkpoint.path(),
       checkpoint.tensors().size(), printable(checkpoint.tensors().front().name));
}

bool holds_only_states(const Checkpoint& checkpoint) {
  for (const Tensor& t : checkpoint.tensors())
    if (!t.name.starts_with("state.") && !t.name.ends_with(".att.time_state")) return false;
  return !checkpoint.tensors().empty();
}

}  // namespace duet
