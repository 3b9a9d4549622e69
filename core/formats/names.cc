#include "formats/names.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

namespace duet {
namespace {

struct Alias {
  std::string_view from, to;
};

constexpr Alias kFiles[] = {{"_forward_module.", ""}};
constexpr Alias kTop[] = {{"model.embeddings.", "emb."}, {"model.norm.", "ln_out."},   {"lm_head.", "head."},
                          {"model.layers.", "blocks."},  {"model.blocks.", "blocks."}, {"layers.", "blocks."}};
constexpr Alias kBlock[] = {{"pre_norm.", "ln0."},  {"attn_norm.", "ln1."}, {"ffn_norm.", "ln2."},   {"feed_forward_norm.", "ln2."}, {"attn.", "att."},
                            {"self_attn.", "att."}, {"attention.", "att."}, {"time_mixer.", "att."}, {"feed_forward.", "ffn."}};
constexpr Alias kAtt[] = {{"time_mixer.", ""},   {"r_proj.", "receptance."}, {"k_proj.", "key."},
                          {"v_proj.", "value."}, {"o_proj.", "output."},     {"g_norm.", "ln_x."}};

// name[at:] begins with one of the aliases: it is replaced
template <size_t N>
void replace_alias(std::string& name, size_t at, const Alias (&aliases)[N]) {
  for (const Alias& a : aliases)
    if (std::string_view(name).substr(at).starts_with(a.from)) {
      name.replace(at, a.from.size(), a.to);
      return;
    }
}

// "blocks.12.att.w1" -> position of "att.w1"; npos if the name is none of a block's
size_t block_part(std::string_view name) {
  constexpr std::string_view blocks = "blocks.";
  if (!name.starts_with(blocks)) return name.npos;
  const size_t dot = name.find('.', blocks.size());
  return dot == name.npos ? dot : dot + 1;
}

// "w_lora.lora.0.weight" -> "w1"; "" if it is no such name. Linear layers store these transposed.
std::string low_rank_name(std::string_view part) {
  constexpr Alias ends[] = {{"_lora.lora.0.weight", "1"}, {"_lora.lora.2.weight", "2"}, {"_lora.lora.2.bias", "0"}};
  if (part.empty() || std::string_view("wavg").find(part[0]) == std::string_view::npos) return "";
  for (const Alias& e : ends)
    if (part.substr(1) == e.from) return std::string(1, part[0]).append(e.to);
  return "";
}

void rename(View& v) {
  replace_alias(v.name, 0, kFiles);
  replace_alias(v.name, 0, kTop);
  const size_t block = block_part(v.name);
  if (block == std::string::npos) return;
  replace_alias(v.name, block, kBlock);
  constexpr std::string_view att = "att.";
  if (!std::string_view(v.name).substr(block).starts_with(att)) return;
  const size_t part = block + att.size();
  replace_alias(v.name, part, kAtt);
  if (const std::string low_rank = low_rank_name(std::string_view(v.name).substr(part)); !low_rank.empty()) {
    v.name.replace(part, std::string::npos, low_rank);
    if (low_rank[1] != '0' && v.rank == 2) v.swap_last();
  }
}

// att.x_x [6, .., C] -> att.x_r, x_w, x_k, x_v, x_a, x_g
void split_fused(Directory& d) {
  constexpr std::string_view fused = "att.x_x", order = "rwkvag";
  const size_t n = d.views.size();
  for (size_t i = 0; i < n; ++i) {
    const View whole = d.views[i];
    const size_t block = block_part(whole.name);
    if (block == std::string::npos || std::string_view(whole.name).substr(block) != fused || whole.rank < 2 || whole.shape[0] != order.size()) continue;
    for (size_t k = 0; k < order.size(); ++k) {
      View v = whole;
      v.name.back() = order[k];
      v.first += k * whole.step[0];
      v.rank = static_cast<uint8_t>(whole.rank - 1);
      std::copy(whole.shape.begin() + 1, whole.shape.end(), v.shape.begin());
      std::copy(whole.step.begin() + 1, whole.step.end(), v.step.begin());
      if (k == 0) d.views[i] = v;
      else d.views.push_back(v);
    }
  }
}

// Official vectors of a block are [1, 1, C], others store [C].
void unsqueeze(View& v) {
  constexpr std::array parts{"att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g", "att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a", "ffn.x_k"};
  const size_t block = block_part(v.name);
  if (block == std::string::npos || v.rank == 0 || v.rank > 2 || (v.rank == 2 && v.shape[0] != 1)) return;
  if (std::find(parts.begin(), parts.end(), std::string_view(v.name).substr(block)) == parts.end()) return;
  v.shape[2] = v.shape[v.rank - 1];
  v.step[2] = v.step[v.rank - 1];
  v.shape[0] = v.shape[1] = 1;
  v.step[0] = v.step[1] = v.shape[2];
  v.rank = 3;
}

bool in_low_rank_pair(std::string_view part) {
  constexpr std::string_view att = "att.";
  part.remove_prefix(std::min(part.size(), att.size()));
  return part.size() == 2 && std::string_view("wavg").find(part[0]) != part.npos && (part[1] == '1' || part[1] == '2');
}

// Some converters store the low-rank pairs and tuned states transposed, under the same names. The first of a pair is [C, D]
// officially, and D is never C in practice: one that can only be [D, C], with none that can only be [C, D], tells.
void undo_transposed_pairs(Directory& d) {
  const auto emb = std::find_if(d.views.begin(), d.views.end(), [](const View& v) { return v.name == "emb.weight"; });
  if (emb == d.views.end() || emb->rank != 2) return;
  const uint64_t width = emb->shape[1];
  size_t official = 0, transposed = 0;
  for (const View& v : d.views) {
    const size_t block = block_part(v.name);
    if (block == std::string::npos || v.rank != 2 || std::string_view(v.name).substr(block) != "att.w1") continue;
    official += v.shape[0] == width && v.shape[1] != width;
    transposed += v.shape[1] == width && v.shape[0] != width;
  }
  if (transposed == 0 || official > 0) return;
  for (View& v : d.views) {
    const size_t block = block_part(v.name);
    if (block == std::string::npos || v.rank < 2) continue;
    const std::string_view part = std::string_view(v.name).substr(block);
    if (in_low_rank_pair(part) || part == "att.time_state") v.swap_last();
  }
}

void check_unique(const Directory& d, std::string_view file) {
  std::vector<const View*> by_name;
  by_name.reserve(d.views.size());
  for (const View& v : d.views) by_name.push_back(&v);
  std::sort(by_name.begin(), by_name.end(), [](const View* a, const View* b) { return a->name < b->name; });
  const auto twice = std::adjacent_find(by_name.begin(), by_name.end(), [](const View* a, const View* b) { return a->name == b->name; });
  if (twice != by_name.end()) fail(DUET_E_FORMAT, "{}: two tensors are, or mean, {}", file, printable((*twice)->name));
}

}  // namespace

void use_official_names(Directory& directory, std::string_view file) {
  for (View& v : directory.views) rename(v);
  split_fused(directory);
  for (View& v : directory.views) unsqueeze(v);
  undo_transposed_pairs(directory);
  check_unique(directory, file);
}

}  // namespace duet
