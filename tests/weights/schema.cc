#include "model/schema.h"

#include "model_file.h"

using namespace duet;

namespace {

duet_status check(ModelFile& file, std::string& text, bool strict = false, Messages* messages = nullptr) {
  Messages own;
  const Log& log = (messages ? messages : &own)->log;
  const Checkpoint checkpoint = file.parse(log);
  return error_of([&] { (void)check_schema(checkpoint, log, strict); }, text);
}
bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("the table of tensors is in the order of the ids and has the official names") {
  for (uint32_t id = 0; id < DUETP_T_COUNT; ++id) CHECK(tensor_specs()[id].id == id);
  CHECK(tensor_name(DUETP_T_W1, 7) == "blocks.7.att.w1");
  CHECK(tensor_name(DUETP_T_LN0_B, 7) == "blocks.0.ln0.bias");
  CHECK(tensor_name(DUETP_T_HEAD, 7) == "head.weight");
}

TEST_CASE("the shape is read from the tensors alone") {
  std::string text;
  ModelFile file = ModelFile::fresh(3, 48, 77, 16);  // three heads of 16
  file.reshape("blocks.0.ffn.key.weight", {100, 48});
  for (const char* i : {"0", "1", "2"}) {
    file.reshape(fmt::format("blocks.{}.ffn.key.weight", i), {100, 48});
    file.reshape(fmt::format("blocks.{}.ffn.value.weight", i), {48, 100});
    file.reshape(fmt::format("blocks.{}.att.g1", i), {48, 5});
    file.reshape(fmt::format("blocks.{}.att.g2", i), {5, 48});
  }
  Messages m;
  const Checkpoint checkpoint = file.parse(m.log);
  const ModelTensors model = check_schema(checkpoint, m.log, true);
  const duetp_shape& s = model.shape;
  CHECK((s.n_layer == 3 && s.n_embd == 48 && s.n_head == 3 && s.head_size == 16 && s.n_vocab == 77 && s.n_ffn == 100));
  CHECK((s.rank_w == 32 && s.rank_a == 32 && s.rank_v == 32 && s.rank_g == 5));
  CHECK(s.gn_eps == 64e-5f);
  REQUIRE(model.layers.size() == 4);
  CHECK(model.layers[0][DUETP_T_V1] == nullptr);
  CHECK(model.layers[1][DUETP_T_V1]->name == "blocks.1.att.v1");
  CHECK(model.layers[3][DUETP_T_EMB]->name == "emb.weight");
  CHECK(model.layers[3][DUETP_T_W1] == nullptr);
  CHECK(m.all.empty());
}

TEST_CASE("one layer needs no v0, v1, v2") {
  ModelFile file = ModelFile::fresh(1, 32, 10, 32);
  Messages m;
  const Checkpoint checkpoint = file.parse(m.log);
  CHECK(check_schema(checkpoint, m.log, true).shape.rank_v == 0);
}

TEST_CASE("v0, v1, v2 of layer 0 are ignored whatever they are") {
  std::string text;
  ModelFile file = ModelFile::fresh(2, 32, 10, 16);
  file.add("blocks.0.att.v0", {7}, DType::i8);
  file.add("blocks.0.att.v1", {3, 1, 2}, DType::f64);
  file.add("blocks.0.att.v2", {});
  Messages m;
  CHECK(check(file, text, true, &m) == DUET_OK);
  CHECK(m.all.empty());
}

TEST_CASE("vectors may come as [C] or [1,1,C], and as nothing else") {
  std::string text;
  for (const std::vector<uint64_t>& shape : std::vector<std::vector<uint64_t>>{{32}, {1, 1, 32}, {1, 32}, {32, 1}}) {
    ModelFile file = ModelFile::fresh(1, 32, 10, 16);
    file.reshape("blocks.0.att.x_r", shape);
    CHECK(check(file, text) == DUET_OK);
  }
  for (const std::vector<uint64_t>& shape : std::vector<std::vector<uint64_t>>{{}, {1}, {2, 16}, {33}, {1, 1, 31}, {2, 32}}) {
    ModelFile file = ModelFile::fresh(1, 32, 10, 16);
    file.reshape("blocks.0.att.x_r", shape);
    CHECK(check(file, text) == DUET_E_FORMAT);
    CHECK(says(text, "blocks.0.att.x_r has shape"));
    CHECK(says(text, "expected [32]"));
  }
}

TEST_CASE("every tensor is needed, and needed in its shape") {
  const ModelFile good = ModelFile::fresh(2, 32, 10, 16);
  for (const FileTensor& t : good.tensors) {
    std::string text;
    ModelFile file = good;
    file.erase(t.name);
    CHECK(check(file, text) == DUET_E_FORMAT);
    CHECK(says(text, t.name + " is missing"));
    file = good;
    file.reshape(t.name, {3, 5, 7});
    CHECK(check(file, text) == DUET_E_FORMAT);
    CHECK(says(text, t.name + " has shape [3,5,7]"));
  }
}

TEST_CASE("a gap in the layers names the first five tensors and counts the others") {
  std::string text;
  ModelFile file = ModelFile::fresh(3, 32, 10, 16);
  std::erase_if(file.tensors, [](const FileTensor& t) { return t.name.starts_with("blocks.1."); });
  file.add("blocks.1.att.v1", {32, 32});
  CHECK(check(file, text) == DUET_E_FORMAT);
  CHECK(says(text, "blocks.1.ln1.weight is missing (expected [32])"));
  CHECK(says(text, "blocks.1.att.x_r is missing"));
  CHECK(!says(text, "blocks.1.att.x_w"));
  CHECK(says(text, "and 27 more"));
}

TEST_CASE("layer numbers that are none") {
  for (const char* name : {"blocks.01.att.w1", "blocks.-1.att.w1", "blocks.999999999.att.w1", "blocks.99999999999999999999.x", "blocks..att.w1", "blocks.1x.y", "blocks.", "blocks.4096.x"}) {
    std::string text;
    ModelFile file = ModelFile::fresh(1, 32, 10, 16);
    file.add(name, {1});
    CHECK(check(file, text) == DUET_E_FORMAT);
    CHECK(says(text, std::string(name) + ": "));
    CHECK(says(text, "is no layer number"));
  }
}

TEST_CASE("dimensions that contradict each other") {
  std::string text;
  ModelFile file = ModelFile::fresh(3, 32, 10, 16);
  file.reshape("head.weight", {11, 32});
  CHECK(check(file, text) == DUET_E_FORMAT);
  CHECK(says(text, "head.weight has shape [11,32], expected [10,32]"));

  file = ModelFile::fresh(3, 32, 10, 16);
  file.reshape("blocks.2.att.a1", {32, 16});
  file.reshape("blocks.2.att.a2", {16, 32});
  CHECK(check(file, text) == DUET_E_FORMAT);
  CHECK(says(text, "blocks.2.att.a1 has shape [32,16], expected [32,32]"));

  file = ModelFile::fresh(3, 32, 10, 16);
  for (const char* i : {"0", "1", "2"}) file.reshape(fmt::format("blocks.{}.att.r_k", i), {3, 10});
  CHECK(check(file, text) == DUET_E_FORMAT);
  CHECK(says(text, "n_embd is 32, but 3 heads of size 10 make 30"));
}

TEST_CASE("dimensions beyond the limits or zero") {
  std::string text;
  ModelFile file = ModelFile::fresh(1, 16, 10, 16);
  file.reshape("emb.weight", {0, 16});
  CHECK(check(file, text) == DUET_E_FORMAT);
  CHECK(says(text, "the vocabulary is 0"));
  file.reshape("emb.weight", {(1u << 20) + 1, 1});
  CHECK(check(file, text) == DUET_E_LIMIT);
  CHECK(says(text, "the vocabulary is 1048577, more than the 1048576 allowed"));
  file.reshape("emb.weight", {uint64_t{1} << 40, 0});
  CHECK(check(file, text) == DUET_E_LIMIT);
  CHECK(says(text, "beyond 32 bits"));
  file = ModelFile::fresh(1, 16, 10, 16);
  file.reshape("blocks.0.att.r_k", {1, 1025});
  CHECK(check(file, text) == DUET_E_LIMIT);
  CHECK(says(text, "the head size is 1025"));
}

TEST_CASE("other architectures are named") {
  const std::pair<const char*, const char*> signs[] = {{"blocks.0.att.time_maa_x", "RWKV-6"},
                                                       {"blocks.0.att.time_faaaa", "RWKV-5"},
                                                       {"blocks.0.att.time_decay", "RWKV-4"},
                                                       {"blocks.0.att.time_mix_k", "RWKV-4"},
                                                       {"blocks.0.ffn.s_emb.weight", "RWKV-7a"},
                                                       {"blocks.0.qkv.qq.weight", "RWKV-7b"},
                                                       {"blocks.0.ffn.enn.weight", "RWKV-8"},
                                                       {"blocks.0.att.key.lora_A", "LoRA"},
                                                       {"blocks.3.att.q_proj.weight", "transformer"},
                                                       {"blocks.3.mlp.up_proj.weight", "transformer"},
                                                       {"transformer.h.0.attn.c_attn.weight", "transformer"}};
  for (const auto& [name, architecture] : signs) {
    std::string text;
    ModelFile file = ModelFile::fresh(1, 32, 10, 16);
    file.add(name, {4});
    CHECK(check(file, text) == DUET_E_UNSUPPORTED);
    CHECK(says(text, architecture));
    CHECK(says(text, name));
    CHECK(says(text, "this engine runs RWKV-7"));
  }
  std::string text;
  ModelFile image;
  image.add("conv1.weight", {4});
  CHECK(check(image, text) == DUET_E_UNSUPPORTED);
  CHECK(says(text, "conv1.weight"));
  ModelFile nothing;
  CHECK(check(nothing, text) == DUET_E_FORMAT);
}

TEST_CASE("a file of states is no model") {
  std::string text;
  ModelFile file;
  file.add("blocks.0.att.time_state", {2, 16, 16});
  CHECK(check(file, text) == DUET_E_FORMAT);
  CHECK(says(text, "holds a state, not a model"));
}

TEST_CASE("unknown tensors are warnings, and errors when strict") {
  std::string text;
  ModelFile file = ModelFile::fresh(1, 32, 10, 16);
  file.add("foo", {4});
  file.add("blocks.0.att.bar", {4}, DType::i64);
  Messages m;
  CHECK(check(file, text, false, &m) == DUET_OK);
  CHECK(m.has("unknown tensor foo"));
  CHECK(m.has("unknown tensor blocks.0.att.bar"));
  CHECK(check(file, text, true) == DUET_E_FORMAT);
  CHECK(says(text, "unknown tensor foo"));
  for (int i = 0; i < 100; ++i) file.add(fmt::format("extra.{}", i), {1});
  Messages many;
  CHECK(check(file, text, false, &many) == DUET_OK);
  CHECK(many.all.size() == 21);
  CHECK(many.has("82 more unknown tensors"));
}

TEST_CASE("dtypes: F64 is noted, integers are refused by name") {
  std::string text;
  ModelFile file = ModelFile::fresh(1, 32, 10, 16);
  FileTensor& t = file["blocks.0.att.w0"];
  t.dtype = DType::f64;
  t.data.assign(32 * 8, '\0');
  Messages m;
  CHECK(check(file, text, false, &m) == DUET_OK);
  CHECK(m.has("F64"));
  t.dtype = DType::i32;
  t.data.assign(32 * 4, '\0');
  CHECK(check(file, text) == DUET_E_UNSUPPORTED);
  CHECK(says(text, "blocks.0.att.w0 is I32"));
}

TEST_CASE("time_state of some layers, in its shape") {
  std::string text;
  ModelFile file = ModelFile::fresh(2, 32, 10, 16);
  file.add("blocks.1.att.time_state", {2, 16, 16});
  Messages m;
  const Checkpoint checkpoint = file.parse(m.log);
  const ModelTensors model = check_schema(checkpoint, m.log, true);
  REQUIRE(model.time_state.size() == 2);
  CHECK(model.time_state[0] == nullptr);
  CHECK(model.time_state[1] != nullptr);
  file.reshape("blocks.1.att.time_state", {2, 16, 15});
  CHECK(check(file, text) == DUET_E_FORMAT);
  CHECK(says(text, "blocks.1.att.time_state has shape [2,16,15], expected [2,16,16]"));
}
