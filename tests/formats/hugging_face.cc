// Hugging Face folders: configurations, shards and their index.
#include <map>

#include "expect.h"
#include "zip_builder.h"

namespace duet {
namespace {

constexpr const char* kEmb = "model.embeddings.weight";

struct Named {
  std::string name;
  std::vector<uint64_t> shape;
};

std::string file_of(const std::vector<Named>& named) {
  std::vector<TensorToWrite> tensors;
  for (const Named& n : named) {
    uint64_t bytes = 2;
    for (const uint64_t d : n.shape) bytes *= d;
    tensors.push_back({n.name, DType::bf16, n.shape, [bytes, c = n.name.back()](const auto& sink) { sink(as_bytes(std::string(bytes, c))); }});
  }
  std::string out;
  write_safetensors(tensors, {}, [&](Bytes b) { out += as_text(b); });
  return out;
}

const std::string kConfig =
    R"("model_type": "rwkv7", "hidden_size": 8, "vocab_size": 4, "num_hidden_layers": 1, "head_dim": 4, "norm_eps": 1e-5, "value_dim": [8], "attn": null)";

// A folder with a model of one layer; `config` replaces the inside of config.json.
struct Model : Folder {
  explicit Model(const std::string& config = kConfig) {
    write("config.json", "{" + config + "}");
    write("model.safetensors", file_of({{kEmb, {4, 8}}, {"model.layers.0.attn.w_lora.lora.0.weight", {2, 8}}, {"lm_head.weight", {4, 8}}}));
  }
  Checkpoint open() const { return Checkpoint::open(path(), Log(nullptr, nullptr, DUET_LOG_OFF)); }
};

// The same in two shards; `map` is the text of weight_map's members.
struct Sharded : Folder {
  explicit Sharded(const std::string& map) {
    write("config.json", "{" + kConfig + "}");
    write("one.safetensors", file_of({{kEmb, {4, 8}}, {"model.layers.0.attn.w_lora.lora.0.weight", {2, 8}}}));
    write("two.safetensors", file_of({{"lm_head.weight", {4, 8}}}));
    write("model.safetensors.index.json", "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {" + map + "}}");
  }
  Checkpoint open() const { return Checkpoint::open(path(), Log(nullptr, nullptr, DUET_LOG_OFF)); }
};

const std::string kFirst = R"("model.embeddings.weight": "one.safetensors", "model.layers.0.attn.w_lora.lora.0.weight": "one.safetensors")",
                  kSecond = R"("lm_head.weight": "two.safetensors")";

void config_refused(const std::string& more, duet_status code, const std::vector<std::string>& words) {
  INFO(more);
  const Model m(more);
  std::vector<std::string> all = words;
  all.push_back("config.json");
  expect_error(code, all, [&] { m.open(); });
}

// kConfig with one text replaced
std::string but(const std::string& from, const std::string& to) {
  std::string out = kConfig;
  REQUIRE(out.find(from) != out.npos);
  return out.replace(out.find(from), from.size(), to);
}

}  // namespace

TEST_CASE("hugging face: a folder, its config.json, and the group norm's eps") {
  const Model m;
  const Checkpoint c = m.open();
  CHECK(c.format() == "hugging face");
  CHECK(c.gn_eps() == Approx(4e-5));
  CHECK(c.find("blocks.0.att.w1")->shape == std::vector<uint64_t>{8, 2});
  CHECK(Checkpoint::open(m / "config.json", Log()).find("head.weight"));
  CHECK(Model(but("1e-5", "0.00001")).open().gn_eps() == Approx(4e-5));
  CHECK(Model(R"("model_type": "rwkv7")").open().gn_eps() == Approx(64e-5));
  CHECK(Model(but("[8]", "8")).open().find("emb.weight"));
  CHECK(Model(but("[8]", "null")).open().find("emb.weight"));
}

TEST_CASE("hugging face: a tied head is the embedding") {
  const Model m(kConfig + R"(, "tie_word_embeddings": true)");
  CHECK(m.open().find("head.weight")->data.data() != m.open().find("emb.weight")->data.data());  // there is a head of its own
  m.write("model.safetensors", file_of({{kEmb, {4, 8}}, {"model.layers.0.attn.w_lora.lora.0.weight", {2, 8}}}));
  const Checkpoint c = m.open();
  CHECK(c.find("head.weight")->data.data() == c.find("emb.weight")->data.data());
  CHECK(c.find("head.weight")->shape == std::vector<uint64_t>{4, 8});
}

TEST_CASE("hugging face: other architectures (B-W32)") {
  config_refused(but("\"rwkv7\"", "\"llama\\u001b\""), DUET_E_UNSUPPORTED, {"model_type", "llama\\x1b"});
  config_refused(R"("hidden_size": 8)", DUET_E_UNSUPPORTED, {"model_type \"\""});
  config_refused(but("\"attn\": null", "\"attn\": {\"layers\": [1]}"), DUET_E_UNSUPPORTED, {"hybrid"});
  config_refused(but("[8]", "[16]"), DUET_E_UNSUPPORTED, {"value_dim 16", "hidden_size 8"});
  config_refused(but("[8]", "[8, \"x\"]"), DUET_E_UNSUPPORTED, {"value_dim"});
  config_refused(kConfig + R"(, "hidden_act": "gelu")", DUET_E_UNSUPPORTED, {"gelu"});
  config_refused(kConfig + R"(, "norm_first": false)", DUET_E_UNSUPPORTED, {"norm_first"});
}

TEST_CASE("hugging face: configurations that are wrong") {
  config_refused(but("\"rwkv7\"", "7"), DUET_E_FORMAT, {"model_type"});
  config_refused(but("\"head_dim\": 4", "\"head_dim\": \"4\""), DUET_E_FORMAT, {"head_dim"});
  for (const char* v : {"0", "-1", "1.5", "1e30", "true"})
    config_refused(but("\"vocab_size\": 4", std::string("\"vocab_size\": ") + v), DUET_E_FORMAT, {"vocab_size"});
  for (const char* v : {"\"x\"", "0", "-1e-5", "1e300"}) config_refused(but("1e-5", v), DUET_E_FORMAT, {"norm_eps"});
  config_refused(kConfig + R"(, "norm_first": 1)", DUET_E_FORMAT, {"norm_first"});
  config_refused(but("\"vocab_size\": 4", "\"vocab_size\": 5"), DUET_E_FORMAT, {"vocab_size is 5", "emb.weight is [4, 8]"});
  config_refused(R"("model_type": "rwkv7", "hidden_size": 9)", DUET_E_FORMAT, {"hidden_size is 9", "[4, 8]"});
  config_refused(but("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2"), DUET_E_FORMAT, {"num_hidden_layers is 2", "blocks.1."});
  config_refused(kConfig + R"(, "hidden_size": 8)", DUET_E_FORMAT, {"hidden_size", "twice"});
  config_refused("", DUET_E_UNSUPPORTED, {"model_type"});
  config_refused("x", DUET_E_FORMAT, {"JSON", "byte"});
  config_refused("\"x\": " + std::string(30000, '['), DUET_E_LIMIT, {"nested"});
  config_refused(kConfig + std::string(70000, ' '), DUET_E_LIMIT, {"65536"});
  const Model m(but("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 1"));
  m.write("model.safetensors", file_of({{kEmb, {4, 8}}, {"model.layers.0.attn_norm.weight", {8}}, {"model.layers.1.attn_norm.weight", {8}}}));
  expect_error(DUET_E_FORMAT, {"num_hidden_layers is 1", "blocks.1.ln1.weight"}, [&] { m.open(); });
}

TEST_CASE("hugging face: the weights are missing or something else") {
  const Model m;
  std::filesystem::remove(m / "model.safetensors");
  expect_error(DUET_E_NOT_FOUND, {"model.safetensors"}, [&] { m.open(); });
  m.write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n");
  expect_error(DUET_E_FORMAT, {"model.safetensors", "Git LFS"}, [&] { m.open(); });
  ZipBuilder z;
  z.add("m/data.pkl", "}.");
  m.write("model.safetensors", z.finish());
  expect_error(DUET_E_FORMAT, {"model.safetensors", "zip"}, [&] { m.open(); });
}

TEST_CASE("hugging face: shards (B-W28)") {
  const Checkpoint c = Sharded(kFirst + "," + kSecond).open();
  CHECK(c.tensors().size() == 3);
  CHECK(c.find("head.weight"));
  const auto bad = [](const std::string& map, duet_status code, const std::vector<std::string>& words) {
    INFO(map);
    const Sharded s(map);
    expect_error(code, words, [&] { s.open(); });
  };
  bad(kFirst + R"(, "lm_head.weight": "three.safetensors")", DUET_E_NOT_FOUND, {"three.safetensors"});
  for (const char* shard : {"../one.safetensors", "/etc/passwd", "a/b", "a\\\\b", "..", ".", "", "one\\u0000"})
    bad(kFirst + fmt::format(R"(, "lm_head.weight": "{}")", shard), DUET_E_FORMAT, {"index.json", "lm_head.weight", "plain name"});
  bad(kFirst + R"(, "lm_head.weight": 2)", DUET_E_FORMAT, {"lm_head.weight"});
  bad(kFirst + "," + kSecond + R"(, "model.norm.weight": "two.safetensors")", DUET_E_FORMAT, {"model.norm.weight", "two.safetensors", "not in shard"});
  bad(kFirst + R"(, "model.norm.weight": "two.safetensors")", DUET_E_FORMAT, {"two.safetensors", "lm_head.weight", "does not list"});
  bad(kFirst + R"(, "lm_head.weight": "one.safetensors", "model.norm.weight": "two.safetensors")", DUET_E_FORMAT,
      {"lm_head.weight", "two.safetensors", "places in one.safetensors"});
  bad(kFirst + "," + kFirst + "," + kSecond, DUET_E_FORMAT, {"index.json", "twice"});
  bad(kFirst + R"(, "lm_head.weight": "model.safetensors.index.json")", DUET_E_FORMAT, {"model.safetensors.index.json"});  // a cycle
  bad(kFirst + R"(, "lm_head.weight": "config.json")", DUET_E_FORMAT, {"config.json"});

  const Sharded twice(kFirst + "," + kSecond);
  twice.write("two.safetensors", file_of({{"lm_head.weight", {4, 8}}, {kEmb, {4, 8}}}));
  expect_error(DUET_E_FORMAT, {"two.safetensors", kEmb, "one.safetensors"}, [&] { twice.open(); });

  for (const char* index : {"[]", "{}", "{\"weight_map\": []}", "{\"weight_map\": {}", "7"}) {
    INFO(index);
    twice.write("model.safetensors.index.json", index);
    expect_error(DUET_E_FORMAT, {"index.json"}, [&] { twice.open(); });
  }
  twice.write("model.safetensors.index.json", std::string(600 << 10, ' '));
  expect_error(DUET_E_LIMIT, {"index.json"}, [&] { twice.open(); });
  std::string map;
  for (int i = 0; i < 1025; ++i) map += fmt::format("{}\"{}\":\"{}\"", i ? "," : "", i, i);
  bad(map, DUET_E_LIMIT, {"1024 shards"});
}

}  // namespace duet
