#include "apps/command.h"
#include "support/catch.h"
#include "support/golden.h"

using namespace command;

namespace {

golden::Tensors logits(const Folder& folder, Words words) {
  const std::string path = folder / "out.safetensors";
  words.insert(words.begin(), "logits");
  words.insert(words.end(), {"--output", path});
  const Result r = good(words);
  CHECK(r.out.empty());
  return golden::parse(golden::slurp(path));
}

double worst(const golden::Tensor& a, const golden::Tensor& b) {
  REQUIRE(a.shape == b.shape);
  double w = 0;
  for (size_t i = 0; i < a.f32.size(); ++i) w = std::max(w, std::abs(double{a.f32[i]} - b.f32[i]));
  return w;
}

std::string list_of(const std::vector<int32_t>& tokens) {
  std::string out;
  for (const int32_t t : tokens) out += (out.empty() ? "" : ",") + std::to_string(t);
  return out;
}

const char* const kStates[] = {"state.att_x", "state.wkv", "state.ffn_x"};

}  // namespace

TEST_CASE("logits agree with the golden data in both modes and in any pieces") {
  const Folder folder;
  const auto expected = golden::load("tiny_golden.safetensors");
  const std::string tokens = list_of(expected.at("t64.tokens").i32);
  for (const std::string mode : {"parallel", "recurrent"}) {
    for (const Words& chunk : {Words{}, Words{"--chunk", "1"}, Words{"--chunk", "7"}, Words{"--chunk", "64"}}) {
      Words words = {"--model", golden::path("tiny.pth"), "--dtype", "f32", "--mode", mode, "--tokens", tokens};
      words.insert(words.end(), chunk.begin(), chunk.end());
      const auto got = logits(folder, words);
      INFO(mode << " " << Catch::Detail::stringify(chunk));
      CHECK(worst(got.at("logits"), expected.at("t64.logits")) < 1e-4);
      for (const std::string name : kStates) CHECK(worst(got.at(name), expected.at("t64." + name)) < 1e-4);
    }
  }
}

TEST_CASE("logits go on from the state of another run") {
  const Folder folder;
  const auto expected = golden::load("tiny_golden.safetensors");
  const std::string first = folder / "first.safetensors";
  good({"logits", "--model", golden::path("tiny_fla"), "--dtype", "f32", "--tokens", list_of(expected.at("t64.tokens").i32), "--output", first});
  write(folder / "tokens.json", nlohmann::json(expected.at("t17.tokens").i32).dump(2));
  const auto got = logits(folder, {"--model", golden::path("tiny.pth"), "--dtype", "f32", "--state-in", first, "--tokens-file", folder / "tokens.json"});
  CHECK(worst(got.at("logits"), expected.at("t64_then_t17.logits")) < 1e-4);
  for (const std::string name : kStates) CHECK(worst(got.at(name), expected.at("t64_then_t17." + name)) < 1e-4);
}

TEST_CASE("the output is a well-formed safetensors file") {
  const Folder folder;
  const std::string model = small_model(folder);
  const auto got = logits(folder, {"--model", model, "--tokens", "1 2,3", "--chunk", "2", "--hidden", "--v-first"});
  CHECK(got.at("logits").shape == std::vector<uint64_t>{3, 300});
  CHECK(got.at("state.att_x").shape == std::vector<uint64_t>{2, 64});
  CHECK(got.at("state.wkv").shape == std::vector<uint64_t>{2, 2, 32, 32});
  CHECK(got.at("state.ffn_x").shape == std::vector<uint64_t>{2, 64});
  CHECK(got.at("hidden").shape == std::vector<uint64_t>{3, 64});
  CHECK(got.at("v_first").shape == std::vector<uint64_t>{3, 64});
  const std::string bytes = golden::slurp(folder / "out.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  CHECK((8 + header) % 64 == 0);
  size_t floats = 0;
  for (const auto& [name, tensor] : got) floats += tensor.f32.size();
  CHECK(bytes.size() == 8 + header + 4 * floats);
  CHECK(folder.names() == Words{"out.safetensors", "small.safetensors"});  // no temporary file is left
}

TEST_CASE("logits refuse tokens and states that do not fit") {
  const Folder folder;
  const std::string model = small_model(folder);
  const std::string out = folder / "out.safetensors";
  for (const char* tokens : {"300", "1,x", "1,-1", "[1"}) {
    const Result r = run({"logits", "--model", model, "--tokens", tokens, "--output", out});
    INFO(tokens << ": " << r.error);
    CHECK(r.code == 1);
    CHECK_FALSE(r.error.empty());
  }
  for (const char* token : {"4294967296", "-1"}) CHECK(run({"logits", "--model", model, "--tokens", std::string("1,") + token, "--output", out}).error.find(std::string("found ") + token) != std::string::npos);
  write(folder / "nonsense", "not a state");
  CHECK(run({"logits", "--model", model, "--tokens", "1", "--state-in", folder / "nonsense", "--output", out}).code == 1);
  good({"logits", "--tokens", "1", "--output", folder / "other.state"});  // of the bundled model: another shape
  const Result r = run({"logits", "--model", model, "--tokens", "1", "--state-in", folder / "other.state", "--output", out});
  CHECK(r.code == 1);
  CHECK(r.error.find("state") != r.error.npos);
  CHECK(folder.names() == Words{"nonsense", "other.state", "small.safetensors"});
}
