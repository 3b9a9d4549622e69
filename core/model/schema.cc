#include "model/schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <unordered_set>

#include "base/error.h"
#include "model/quantised_file.h"
#include "model/weights.h"

namespace duet {
namespace {

constexpr bool kMatrix = true, kVector = false;
constexpr uint32_t kMaxLayers = 4096, kMaxNamed = 5, kMaxWarned = 20;

constexpr std::array<TensorSpec, DUETP_T_COUNT> kSpecs = {{
    {DUETP_T_LN1_W, "ln1.weight", "C", kVector},
    {DUETP_T_LN1_B, "ln1.bias", "C", kVector},
    {DUETP_T_LN2_W, "ln2.weight", "C", kVector},
    {DUETP_T_LN2_B, "ln2.bias", "C", kVector},
    {DUETP_T_X_R, "att.x_r", "C", kVector},
    {DUETP_T_X_W, "att.x_w", "C", kVector},
    {DUETP_T_X_K, "att.x_k", "C", kVector},
    {DUETP_T_X_V, "att.x_v", "C", kVector},
    {DUETP_T_X_A, "att.x_a", "C", kVector},
    {DUETP_T_X_G, "att.x_g", "C", kVector},
    {DUETP_T_W0, "att.w0", "C", kVector},
    {DUETP_T_A0, "att.a0", "C", kVector},
    {DUETP_T_V0, "att.v0", "C", kVector},
    {DUETP_T_W1, "att.w1", "Cw", kMatrix},
    {DUETP_T_A1, "att.a1", "Ca", kMatrix},
    {DUETP_T_V1, "att.v1", "Cv", kMatrix},
    {DUETP_T_G1, "att.g1", "Cg", kMatrix},
    {DUETP_T_W2, "att.w2", "wC", kMatrix},
    {DUETP_T_A2, "att.a2", "aC", kMatrix},
    {DUETP_T_V2, "att.v2", "vC", kMatrix},
    {DUETP_T_G2, "att.g2", "gC", kMatrix},
    {DUETP_T_K_K, "att.k_k", "C", kVector},
    {DUETP_T_K_A, "att.k_a", "C", kVector},
    {DUETP_T_R_K, "att.r_k", "HN", kVector},
    {DUETP_T_RECEPTANCE, "att.receptance.weight", "CC", kMatrix},
    {DUETP_T_KEY, "att.key.weight", "CC", kMatrix},
    {DUETP_T_VALUE, "att.value.weight", "CC", kMatrix},
    {DUETP_T_OUTPUT, "att.output.weight", "CC", kMatrix},
    {DUETP_T_LN_X_W, "att.ln_x.weight", "C", kVector},
    {DUETP_T_LN_X_B, "att.ln_x.bias", "C", kVector},
    {DUETP_T_FFN_X_K, "ffn.x_k", "C", kVector},
    {DUETP_T_FFN_KEY, "ffn.key.weight", "FC", kMatrix},
    {DUETP_T_FFN_VALUE, "ffn.value.weight", "CF", kMatrix},
    {DUETP_T_EMB, "emb.weight", "VC", kMatrix},
    {DUETP_T_LN0_W, "blocks.0.ln0.weight", "C", kVector},
    {DUETP_T_LN0_B, "blocks.0.ln0.bias", "C", kVector},
    {DUETP_T_LN_OUT_W, "ln_out.weight", "C", kVector},
    {DUETP_T_LN_OUT_B, "ln_out.bias", "C", kVector},
    {DUETP_T_HEAD, "head.weight", "VC", kMatrix},
}};

uint32_t dimension(char letter, const duetp_shape& s) {
  switch (letter) {
    case 'V': return s.n_vocab;
    case 'C': return s.n_embd;
    case 'H': return s.n_head;
    case 'N': return s.head_size;
    case 'F': return s.n_ffn;
    case 'w': return s.rank_w;
    case 'a': return s.rank_a;
    case 'v': return s.rank_v;
    default: return s.rank_g;
  }
}

bool is_value_mix(uint32_t id) { return id == DUETP_T_V0 || id == DUETP_T_V1 || id == DUETP_T_V2; }

template <class Dims>
std::string text_of(const Dims& dims) {
  return duet::format("[{}]", fmt::join(dims, ","));
}

// [C] may come as [1,1,C]; all else must match exactly.
bool fits(const std::vector<uint64_t>& found, const std::vector<uint32_t>& expected) {
  if (expected.size() != 1) return std::equal(found.begin(), found.end(), expected.begin(), expected.end());
  const auto ones = static_cast<size_t>(std::count(found.begin(), found.end(), uint64_t{1}));
  return expected[0] == 1 ? ones == found.size() && !found.empty()
                          : ones + 1 == found.size() && std::count(found.begin(), found.end(), uint64_t{expected[0]}) == 1;
}

// One reading of a checkpoint; problems are collected, so that a message can name the first five.
class Reading {
 public:
  explicit Reading(const Checkpoint& file) : file_(file) {}

  ModelTensors run(const Log& log, bool strict) {
    if (holds_only_states(file_)) fail(DUET_E_FORMAT, "{}: holds a state, not a model; load it as an initial state", file_.path());
    refuse_other_architectures(file_);
    ModelTensors model;
    model.quantised = quantised_dtype(file_);
    model.shape = model.quantised != 0 ? declared_shape() : infer_shape();
    model.shape.ln_eps = 1e-5f;
    model.shape.gn_eps = group_norm_eps();
    check_dimensions(model.shape, DUET_E_FORMAT, file_.path());
    for (auto* parts : {&model.layers, &model.scales, &model.minimums}) parts->resize(model.shape.n_layer + 1);
    for (uint32_t layer = 0; layer <= model.shape.n_layer; ++layer)
      for (const TensorSpec& spec : kSpecs) {
        const std::vector<uint32_t> expected = tensor_shape(spec.id, layer, model.shape);
        if (expected.empty()) continue;
        if (spec.matrix && model.quantised != 0)
          find_parts(model, spec.id, layer);
        else
          model.layers[layer][spec.id] = find(tensor_name(spec.id, layer), expected);
      }
    find_time_states(model);
    stop_at_problems();
    check_dtypes(log);
    report_unknown(log, strict);
    return model;
  }

 private:
  template <class... A>
  void problem(fmt::format_string<A...> f, A&&... a) {
    if (problems_.size() < kMaxNamed) problems_.push_back(duet::format(f, std::forward<A>(a)...));
    ++n_problems_;
  }
  void stop_at_problems() const {
    if (n_problems_ == 0) return;
    fail(DUET_E_FORMAT, "{}: no valid RWKV-7 model: {}{}", file_.path(), fmt::join(problems_, "; "),
         n_problems_ > kMaxNamed ? duet::format("; and {} more", n_problems_ - kMaxNamed) : "");
  }

  // L = 1 + the largest i of "blocks.<i>."
  uint32_t count_layers() {
    uint32_t n = 0;
    for (const Tensor& t : file_.tensors()) {
      if (!t.name.starts_with("blocks.")) continue;
      const std::string_view digits = std::string_view(t.name).substr(7, t.name.find('.', 7) - 7);
      uint32_t i = kMaxLayers;
      const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), i);
      const bool plain = error == std::errc{} && end == digits.data() + digits.size() && (digits == "0" || digits[0] != '0');
      if (plain && i < kMaxLayers)
        n = std::max(n, i + 1);
      else
        problem("{}: \"{}\" is no layer number (0 to {})", printable(t.name), printable(digits), kMaxLayers - 1);
    }
    if (n == 0) problem("there is no blocks.0.*");
    return n;
  }

  // A tensor with two dimensions, from which the shape is read
  const Tensor* matrix(const std::string& name, const char* form) {
    const Tensor* t = file_.find(name);
    if (t == nullptr)
      problem("{} is missing (expected {})", name, form);
    else if (t->shape.size() != 2)
      problem("{} has shape {}, expected {}", name, text_of(t->shape), form);
    return t;
  }
  uint32_t dim(const Tensor* t, size_t axis) const {
    if (t->shape[axis] > UINT32_MAX) fail(DUET_E_LIMIT, "{}: {} has shape {}, beyond 32 bits", file_.path(), t->name, text_of(t->shape));
    return static_cast<uint32_t>(t->shape[axis]);
  }

  duetp_shape infer_shape() {
    duetp_shape s{};
    s.size = sizeof s;
    s.n_layer = count_layers();
    const Tensor *emb = matrix("emb.weight", "[V,C]"), *r_k = matrix("blocks.0.att.r_k", "[H,N]"), *key = matrix("blocks.0.ffn.key.weight", "[F,C]"),
                 *w1 = matrix("blocks.0.att.w1", "[C,D]"), *a1 = matrix("blocks.0.att.a1", "[C,D]"), *g1 = matrix("blocks.0.att.g1", "[C,D]"),
                 *v1 = s.n_layer > 1 ? matrix("blocks.1.att.v1", "[C,D]") : nullptr;
    stop_at_problems();
    s.n_vocab = dim(emb, 0);
    s.n_embd = dim(emb, 1);
    s.n_head = dim(r_k, 0);
    s.head_size = dim(r_k, 1);
    s.n_ffn = dim(key, 0);
    s.rank_w = dim(w1, 1);
    s.rank_a = dim(a1, 1);
    s.rank_g = dim(g1, 1);
    s.rank_v = v1 != nullptr ? dim(v1, 1) : 0;
    return s;
  }

  duetp_shape declared_shape() {
    const duetp_shape s = quantised_shape(file_);
    if (const uint32_t n = count_layers(); n != s.n_layer) problem("it has {} layers, but its __metadata__ says {}", n, s.n_layer);
    stop_at_problems();
    return s;
  }

  float group_norm_eps() const {
    float eps = file_.gn_eps();
    if (const auto own = file_.metadata().find(kGroupNormEps); own != file_.metadata().end())
      if (std::from_chars(own->second.data(), own->second.data() + own->second.size(), eps).ec != std::errc{}) eps = 0;
    if (!(eps > 0 && eps < 1)) fail(DUET_E_FORMAT, "{}: the group norm's epsilon {} is not between 0 and 1", file_.path(), eps);
    return eps;
  }

  // In `dtype`; without one, in any of floats, which check_dtypes sees to.
  const Tensor* find(const std::string& name, const std::vector<uint32_t>& expected, std::optional<DType> dtype = {}) {
    const Tensor* t = file_.find(name);
    if (t == nullptr) {
      problem("{} is missing (expected {})", name, text_of(expected));
    } else if (!fits(t->shape, expected)) {
      problem("{} has shape {}, expected {}", name, text_of(t->shape), text_of(expected));
    } else if (dtype && t->dtype != *dtype) {
      problem("{} is {}, expected {}", name, dtype_name(t->dtype), dtype_name(*dtype));
    } else {
      known_.insert(t);
      if (!dtype) floats_.push_back(t);
    }
    return t;
  }

  void find_parts(ModelTensors& model, uint32_t id, uint32_t layer) {
    const Tensor** const places[] = {&model.layers[layer][id], &model.scales[layer][id], &model.minimums[layer][id]};
    const auto parts = quantised_parts_in_file(model.quantised, quantised_form(id, layer, model.quantised, model.shape));
    for (size_t i = 0; i < parts.size(); ++i) *places[i] = find(tensor_name(id, layer) + parts[i].suffix, parts[i].shape, parts[i].dtype);
  }

  void find_time_states(ModelTensors& model) {
    const duetp_shape& s = model.shape;
    std::vector<const Tensor*> states(s.n_layer);
    for (uint32_t layer = 0; layer < s.n_layer; ++layer) {
      const std::string name = duet::format("blocks.{}.att.time_state", layer);
      const Tensor* t = states[layer] = file_.find(name);
      if (t == nullptr) continue;
      if (!fits(t->shape, {s.n_head, s.head_size, s.head_size}))
        problem("{} has shape {}, expected [{},{},{}]", name, text_of(t->shape), s.n_head, s.head_size, s.head_size);
      known_.insert(t);
      floats_.push_back(t);
    }
    if (std::any_of(states.begin(), states.end(), [](const Tensor* t) { return t != nullptr; })) model.time_state = std::move(states);
  }

  void check_dtypes(const Log& log) const {
    const Tensor* wide = nullptr;
    size_t n_wide = 0;
    for (const Tensor* t : floats_)
      if (t->dtype == DType::f64) {
        if (n_wide++ == 0) wide = t;
      } else if (t->dtype != DType::f32 && t->dtype != DType::f16 && t->dtype != DType::bf16) {
        fail(DUET_E_UNSUPPORTED, "{}: {} is {}; weights must be F64, F32, F16 or BF16", file_.path(), t->name, dtype_name(t->dtype));
      }
    if (wide != nullptr) log.info("{}: {} tensors ({} ...) are F64 and are converted", file_.path(), n_wide, wide->name);
  }

  void report_unknown(const Log& log, bool strict) const {
    uint32_t n = 0;
    for (const Tensor& t : file_.tensors()) {
      if (known_.count(&t) != 0 || t.name == "blocks.0.att.v0" || t.name == "blocks.0.att.v1" || t.name == "blocks.0.att.v2") continue;
      if (strict) fail(DUET_E_FORMAT, "{}: unknown tensor {} (refused by strict loading)", file_.path(), printable(t.name));
      if (++n <= kMaxWarned) log.warn("{}: unknown tensor {} is ignored", file_.path(), printable(t.name));
    }
    if (n > kMaxWarned) log.warn("{}: {} more unknown tensors are ignored", file_.path(), n - kMaxWarned);
  }

  const Checkpoint& file_;
  std::vector<std::string> problems_;
  size_t n_problems_ = 0;
  std::unordered_set<const Tensor*> known_;
  std::vector<const Tensor*> floats_;  // those of them that may have any float type
};

}  // namespace

const std::array<TensorSpec, DUETP_T_COUNT>& tensor_specs() { return kSpecs; }

std::string tensor_name(uint32_t id, uint32_t layer) {
  return id < DUETP_T_EMB ? duet::format("blocks.{}.{}", layer, kSpecs[id].suffix) : kSpecs[id].suffix;
}

std::vector<uint32_t> tensor_shape(uint32_t id, uint32_t layer, const duetp_shape& shape) {
  std::vector<uint32_t> dims;
  if ((id < DUETP_T_EMB) != (layer < shape.n_layer) || (layer == 0 && is_value_mix(id))) return dims;
  for (const char* d = kSpecs[id].dims; *d != '\0'; ++d) dims.push_back(dimension(*d, shape));
  return dims;
}

uint64_t tensor_count(uint32_t id, uint32_t layer, const duetp_shape& shape) {
  const std::vector<uint32_t> dims = tensor_shape(id, layer, shape);
  uint64_t n = !dims.empty();
  for (const uint32_t d : dims) n *= d;
  return n;
}

uint64_t parameter_count(const duetp_shape& shape) {
  uint64_t n = 0;
  for (uint32_t layer = 0; layer <= shape.n_layer; ++layer)
    for (const TensorSpec& spec : kSpecs) n += tensor_count(spec.id, layer, shape);
  return n;
}

void check_dimensions(const duetp_shape& s, duet_status invalid, const std::string& what) {
  const struct {
    const char* name;
    uint32_t value, limit;
  } all[] = {{"the number of layers", s.n_layer, kMaxLayers}, {"the width n_embd", s.n_embd, 65536},     {"the vocabulary", s.n_vocab, 1u << 20},
             {"the head size", s.head_size, 1024},            {"the number of heads", s.n_head, 65536}, {"the channel mix's width", s.n_ffn, 1u << 20},
             {"the rank of w", s.rank_w, 65536},              {"the rank of a", s.rank_a, 65536},       {"the rank of g", s.rank_g, 65536},
             {"the rank of v", s.n_layer == 1 ? 1 : s.rank_v, 65536}};
  for (const auto& d : all) {
    if (d.value > d.limit) fail(DUET_E_LIMIT, "{}: {} is {}, more than the {} allowed", what, d.name, d.value, d.limit);
    if (d.value == 0) fail(invalid, "{}: {} is 0", what, d.name);
  }
  if (uint64_t{s.n_head} * s.head_size != s.n_embd)
    fail(invalid, "{}: the width n_embd is {}, but {} heads of size {} make {}", what, s.n_embd, s.n_head, s.head_size, uint64_t{s.n_head} * s.head_size);
}

ModelTensors check_schema(const Checkpoint& checkpoint, const Log& log, bool strict) { return Reading(checkpoint).run(log, strict); }

}  // namespace duet
