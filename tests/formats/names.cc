// Names and orientations in use, and the official ones they become. Values show where each element went.
#include <numeric>

#include "expect.h"

namespace duet {
namespace {

struct Numbered {
  std::string name;
  std::vector<uint64_t> shape;
};

// Tensors of bytes 0, 1, 2 ... in a file
std::string file_of(const std::vector<Numbered>& list) {
  std::vector<TensorToWrite> tensors;
  for (const Numbered& n : list)
    tensors.push_back({n.name, DType::u8, n.shape, [n](const auto& sink) {
                         std::vector<uint8_t> v(std::accumulate(n.shape.begin(), n.shape.end(), uint64_t{1}, std::multiplies<>()));
                         std::iota(v.begin(), v.end(), uint8_t{0});
                         sink(std::as_bytes(std::span(v)));
                       }});
  std::string out;
  write_safetensors(tensors, {}, [&](Bytes b) { out += as_text(b); });
  return out;
}

// Keeps the file alive beside the checkpoint.
struct Opened {
  std::string file;
  Checkpoint c;
  explicit Opened(const std::vector<Numbered>& list) : file(file_of(list)), c(parse(file)) {}
  const Tensor& operator[](const std::string& name) const {
    INFO(name);
    const Tensor* t = c.find(name);
    REQUIRE(t != nullptr);
    return *t;
  }
  std::vector<int> values(const std::string& name) const {
    std::vector<int> out;
    for (const std::byte b : (*this)[name].data) out.push_back(std::to_integer<int>(b));
    return out;
  }
};

using Shape = std::vector<uint64_t>;
using Values = std::vector<int>;

}  // namespace

TEST_CASE("names: each alias and its official name") {
  const std::pair<const char*, const char*> aliases[] = {{"model.embeddings.weight", "emb.weight"},
                                                         {"model.norm.bias", "ln_out.bias"},
                                                         {"lm_head.weight", "head.weight"},
                                                         {"model.layers.0.pre_norm.weight", "blocks.0.ln0.weight"},
                                                         {"model.layers.12.attn_norm.bias", "blocks.12.ln1.bias"},
                                                         {"model.layers.1.ffn_norm.bias", "blocks.1.ln2.bias"},
                                                         {"model.layers.1.attn.r_proj.weight", "blocks.1.att.receptance.weight"},
                                                         {"model.layers.1.attn.k_proj.weight", "blocks.1.att.key.weight"},
                                                         {"model.layers.1.attn.v_proj.weight", "blocks.1.att.value.weight"},
                                                         {"model.layers.1.attn.o_proj.weight", "blocks.1.att.output.weight"},
                                                         {"model.layers.1.attn.g_norm.weight", "blocks.1.att.ln_x.weight"},
                                                         {"model.layers.1.attn.r_k", "blocks.1.att.r_k"},
                                                         {"model.layers.1.ffn.key.weight", "blocks.1.ffn.key.weight"},
                                                         {"model.blocks.1.self_attn.time_mixer.r_k", "blocks.1.att.r_k"},
                                                         {"layers.1.attention.r_k", "blocks.1.att.r_k"},
                                                         {"layers.1.time_mixer.r_k", "blocks.1.att.r_k"},
                                                         {"layers.1.feed_forward_norm.weight", "blocks.1.ln2.weight"},
                                                         {"blocks.1.feed_forward.key.weight", "blocks.1.ffn.key.weight"},
                                                         {"_forward_module.model.layers.1.attn.r_k", "blocks.1.att.r_k"},
                                                         {"blocks.1.att.time_state", "blocks.1.att.time_state"},
                                                         {"state.att_x", "state.att_x"},
                                                         {"anything", "anything"},
                                                         {"blocks.", "blocks."},
                                                         {"blocks.1", "blocks.1"},
                                                         {"blocks.1.", "blocks.1."},
                                                         {"blocks.1.att.", "blocks.1.att."},
                                                         {"blocks.1.att.w_lora.lora.1.weight", "blocks.1.att.w_lora.lora.1.weight"},
                                                         {"blocks.1.att.x_lora.lora.0.weight", "blocks.1.att.x_lora.lora.0.weight"}};
  for (const auto& [from, to] : aliases) {
    const Opened o({{from, {2, 2}}});
    CHECK(o[to].name == to);
    CHECK(o.values(to) == Values{0, 1, 2, 3});
  }
}

TEST_CASE("names: low-rank pairs of linear layers are turned, their bias is not") {
  const Opened o({{"model.layers.1.attn.w_lora.lora.0.weight", {2, 3}},
                  {"model.layers.1.attn.w_lora.lora.2.weight", {3, 2}},
                  {"model.layers.1.attn.w_lora.lora.2.bias", {3}},
                  {"model.layers.1.attn.g_lora.lora.0.weight", {2, 3}}});
  CHECK(o["blocks.1.att.w1"].shape == Shape{3, 2});
  CHECK(o.values("blocks.1.att.w1") == Values{0, 3, 1, 4, 2, 5});
  CHECK(o["blocks.1.att.w2"].shape == Shape{2, 3});
  CHECK(o.values("blocks.1.att.w2") == Values{0, 2, 4, 1, 3, 5});
  CHECK(o["blocks.1.att.w0"].shape == Shape{1, 1, 3});
  CHECK(o.values("blocks.1.att.w0") == Values{0, 1, 2});
  CHECK(o["blocks.1.att.g1"].shape == Shape{3, 2});
}

TEST_CASE("names: the fused token-shift vectors come apart in the order r, w, k, v, a, g") {
  for (const Shape& shape : {Shape{6, 2}, Shape{6, 1, 2}, Shape{6, 1, 1, 2}}) {
    const Opened o({{"model.layers.0.attn.x_x", shape}, {"after", {1}}});
    CHECK(o.c.find("blocks.0.att.x_x") == nullptr);
    int first = 0;
    for (const char* name : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"}) {
      CHECK(o[std::string("blocks.0.att.") + name].shape == Shape{1, 1, 2});
      CHECK(o.values(std::string("blocks.0.att.") + name) == Values{first, first + 1});
      first += 2;
    }
  }
  CHECK(Opened({{"model.layers.0.attn.x_x", {5, 2}}}).c.find("blocks.0.att.x_x"));  // not what we know: left for the schema to refuse
}

TEST_CASE("names: vectors get their official shape") {
  const Opened o({{"blocks.0.att.k_k", {4}},
                  {"blocks.0.att.k_a", {1, 4}},
                  {"blocks.0.ffn.x_k", {1, 1, 4}},
                  {"blocks.0.ln1.weight", {4}},
                  {"blocks.0.att.x_r", {2, 2}},
                  {"k_k", {4}}});
  for (const char* name : {"blocks.0.att.k_k", "blocks.0.att.k_a", "blocks.0.ffn.x_k"}) CHECK(o[name].shape == Shape{1, 1, 4});
  CHECK(o["blocks.0.ln1.weight"].shape == Shape{4});
  CHECK(o["blocks.0.att.x_r"].shape == Shape{2, 2});
  CHECK(o["k_k"].shape == Shape{4});
}

TEST_CASE("names: pairs stored transposed are recognised by their shape") {
  const Opened o({{"emb.weight", {3, 4}},
                  {"blocks.0.att.w1", {2, 4}},
                  {"blocks.0.att.w2", {4, 2}},
                  {"blocks.0.att.g1", {4, 4}},
                  {"blocks.0.att.time_state", {1, 2, 2}},
                  {"blocks.0.att.key.weight", {4, 4}}});
  CHECK(o["blocks.0.att.w1"].shape == Shape{4, 2});
  CHECK(o.values("blocks.0.att.w1") == Values{0, 4, 1, 5, 2, 6, 3, 7});
  CHECK(o["blocks.0.att.w2"].shape == Shape{2, 4});
  CHECK(o.values("blocks.0.att.g1")[1] == 4);
  CHECK(o.values("blocks.0.att.time_state") == Values{0, 2, 1, 3});
  CHECK(o.values("blocks.0.att.key.weight")[1] == 1);

  const Opened official({{"emb.weight", {3, 4}}, {"blocks.0.att.w1", {4, 2}}, {"blocks.0.att.g1", {4, 4}}});
  CHECK(official.values("blocks.0.att.g1")[1] == 1);
  const Opened ambiguous({{"emb.weight", {3, 4}}, {"blocks.0.att.w1", {4, 4}}});
  CHECK(ambiguous.values("blocks.0.att.w1")[1] == 1);
  const Opened mixed({{"emb.weight", {3, 4}}, {"blocks.0.att.w1", {2, 4}}, {"blocks.1.att.w1", {4, 2}}});
  CHECK(mixed["blocks.0.att.w1"].shape == Shape{2, 4});
}

TEST_CASE("names: two names for one tensor (B-W23)") {
  const std::string file = file_of({{"model.embeddings.weight", {1, 1}}, {"emb.weight", {1, 1}}});
  refused(file, DUET_E_FORMAT, {"two tensors", "emb.weight"});
}

}  // namespace duet
