#include "model/describe.h"

#include <cmath>

#include "base/json.h"
#include "model_file.h"

using namespace duet;

TEST_CASE("a model is described") {
  ModelFile file = ModelFile::fresh(2, 32, 20, 16);
  file.convert("head.weight", DUET_BF16);
  file.metadata["note"] = "x";
  Messages m;
  const Json d = parse_json(describe_checkpoint(file.parse(m.log), m.log, 0), "description");
  CHECK(d["format"] == "safetensors");
  CHECK(d["path"] == "test.safetensors");
  CHECK(d["kind"] == "model");
  CHECK(d["architecture"] == "rwkv7");
  CHECK((d["n_layer"] == 2 && d["n_embd"] == 32 && d["n_head"] == 2 && d["head_size"] == 16 && d["n_ffn"] == 128 && d["n_vocab"] == 20));
  CHECK(d["ranks"] == Json{{"w", 32}, {"a", 32}, {"v", 32}, {"g", 32}});
  uint64_t parameters = 0, bytes = 0;
  for (const FileTensor& t : file.tensors) {
    parameters += t.data.size() / dtype_bytes(t.dtype);
    bytes += t.data.size();
  }
  CHECK(d["parameters"] == parameters);
  CHECK(d["weight_bytes"] == bytes);
  CHECK(d["state_floats"] == 2 * (2 * 32 + 2 * 16 * 16));
  CHECK(d["state_bytes"] == 4 * 2 * (2 * 32 + 2 * 16 * 16));
  CHECK(d["dtypes"] == Json{{"BF16", 1}, {"F32", file.tensors.size() - 1}});
  CHECK(d["metadata"] == Json{{"note", "x"}});
  CHECK(d["time_state"] == false);
  CHECK(d["fingerprint"] == file.open(m.log)->fingerprint());
  CHECK(!d.contains("verified"));
  REQUIRE(d["tensors"].size() == file.tensors.size());
  CHECK(d["tensors"][0] == Json{{"name", "blocks.0.ln1.weight"}, {"dtype", "F32"}, {"shape", {32}}});
}

TEST_CASE("a verified description has read every value") {
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  Messages good, bad, unread;
  CHECK(parse_json(describe_checkpoint(file.parse(good.log), good.log, DUET_FILE_VERIFY), "description")["verified"] == true);
  CHECK(good.all.empty());
  file.set("head.weight", 9, NAN);
  (void)describe_checkpoint(file.parse(unread.log), unread.log, 0);
  CHECK(unread.all.empty());
  (void)describe_checkpoint(file.parse(bad.log), bad.log, DUET_FILE_VERIFY);
  CHECK(bad.has("1 of the 640 values of head.weight"));
  std::string text;
  CHECK(error_of([&] { (void)describe_checkpoint(file.parse(bad.log), bad.log, DUET_FILE_VERIFY | DUET_FILE_STRICT); }, text) == DUET_E_NUMERIC);
}

TEST_CASE("a file of states is described") {
  ModelFile file;
  file.add("state.att_x", {2, 32});
  file.add("state.wkv", {2, 2, 16, 16});
  Messages m;
  const Json d = parse_json(describe_checkpoint(file.parse(m.log), m.log, DUET_FILE_VERIFY), "description");
  CHECK(d["kind"] == "state");
  CHECK(d["tensors"][1]["shape"] == Json{2, 2, 16, 16});
  CHECK(d["verified"] == true);
  CHECK(!d.contains("n_layer"));
  file.set("state.wkv", 0, INFINITY);
  (void)describe_checkpoint(file.parse(m.log), m.log, DUET_FILE_VERIFY);
  CHECK(m.has("state.wkv"));
}

TEST_CASE("a time_state in a model shows in its description") {
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  file.add("blocks.0.att.time_state", {2, 16, 16});
  Messages m;
  CHECK(parse_json(describe_checkpoint(file.parse(m.log), m.log, 0), "description")["time_state"] == true);
}

TEST_CASE("neither a model nor a state is an error") {
  ModelFile file;
  file.add("foo", {1});
  Messages m;
  std::string text;
  CHECK(error_of([&] { (void)describe_checkpoint(file.parse(m.log), m.log, 0); }, text) == DUET_E_UNSUPPORTED);
}
