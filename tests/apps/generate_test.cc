#include "apps/command.h"
#include "support/catch.h"
#include "support/golden.h"

using namespace command;

namespace {

bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }
const std::string kPrompt = "Once upon a time";

std::string text_of(Words more) {
  Words words = {"generate", "--prompt", kPrompt, "--max-tokens", "12", "--quiet"};
  words.insert(words.end(), more.begin(), more.end());
  const Result r = good(words);
  CHECK(r.error.empty());
  return r.out;
}

}  // namespace

TEST_CASE("generate writes the text to standard output and statistics to standard error") {
  const Result r = good({"generate", "--prompt", kPrompt, "--max-tokens", "12"});
  CHECK_FALSE(r.out.empty());
  CHECK(r.out.compare(0, kPrompt.size(), kPrompt) != 0);
  for (const char* part : {"prompt", "generation", "tok/s", "peak memory"}) CHECK(has(r.error, part));
  CHECK_FALSE(has(r.out + r.error, "\x1b"));
  CHECK(text_of({}) == r.out);

  const Result with_json = good({"generate", "--prompt", kPrompt, "--max-tokens", "12", "--json"});
  CHECK(with_json.out == r.out);
  const auto statistics = nlohmann::json::parse(with_json.error);
  CHECK(statistics.at("generation").at("tokens") == 12);
  CHECK(statistics.at("prompt").at("tokens").get<int>() >= 2);  // token 0 and the prompt
  CHECK(statistics.at("generation").at("tokens_per_second").get<double>() > 0);
  CHECK(statistics.at("peak_memory_bytes").get<double>() > 1e6);
  CHECK(statistics.at("finish") == "length");
}

TEST_CASE("the same seed gives the same text") {
  const std::string first = text_of({"--seed", "1", "--temperature", "1.5", "--top-p", "1"});
  CHECK(text_of({"--seed", "1", "--temperature", "1.5", "--top-p", "1"}) == first);
  CHECK(text_of({"--seed", "1", "--temperature", "1.5", "--top-p", "1", "--threads", "1"}) == first);
  CHECK(text_of({"--seed", "2", "--temperature", "1.5", "--top-p", "1"}) != first);
}

TEST_CASE("greedy ways of sampling agree") {
  const std::string greedy = text_of({"--temperature", "0"});
  CHECK(text_of({"--top-k", "1"}) == greedy);
  CHECK(text_of({"--top-p", "0"}) == greedy);
  CHECK(text_of({"--min-p", "1", "--seed", "9"}) == greedy);
  CHECK(text_of({"--temperature", "0", "--mode", "recurrent", "--dtype", "f32"}) == text_of({"--temperature", "0", "--mode", "parallel", "--dtype", "f32"}));
}

TEST_CASE("the state is stored as --state says, where the backend can") {
  const auto text = [](const char* stored) { return text_of({"--temperature", "0", "--dtype", "f32", "--backend", "reference", "--state", stored}); };
  CHECK(text("f32") == text_of({"--temperature", "0", "--dtype", "f32", "--backend", "reference"}));
  for (const char* stored : {"f16", "bf16"}) CHECK_FALSE(text(stored).empty());
  CHECK(run({"generate", "--prompt", kPrompt, "--state", "q8"}).code == 2);
  if (good({"backends"}).out.find("cpu:0") == std::string::npos) return;
  const Result refused = run({"generate", "--prompt", kPrompt, "--backend", "cpu", "--state", "f16"});
  CHECK(refused.code == 1);
  CHECK(refused.error.find("f32 only") != std::string::npos);
}

TEST_CASE("a prompt from a file is the prompt byte for byte") {
  const Folder folder;
  write(folder / "prompt", kPrompt);
  CHECK(good({"generate", "--prompt-file", folder / "prompt", "--max-tokens", "12", "--quiet"}).out == text_of({}));
  CHECK(run({"generate", "--prompt-file", folder / "missing"}).code == 1);
  // bytes that are not UTF-8, whatever the locale
  Setting c_locale;
  c_locale.variables = {"LC_ALL=C"};
  CHECK(good({"generate", "--prompt", "caf\xe9 \xff", "--max-tokens", "2", "--quiet"}, c_locale).code == 0);
  CHECK(good({"generate", "--max-tokens", "2", "--quiet"}).code == 0);  // no prompt at all
}

TEST_CASE("a prompt of 100 MB is refused, with its length, in bounded time and memory") {
  const Folder folder;
  constexpr uint64_t kBytes = 100'000'000;
  write(folder / "prompt", std::string(kBytes, '\xff'));  // a byte that is a token of its own
  const Result r = run({"generate", "--prompt-file", folder / "prompt", "--max-tokens", "1"});
  CHECK(r.code == 1);
  CHECK(has(r.error, "a prompt of 100000001 tokens; at most 16777216"));
  CHECK(r.out.empty());
#if !defined(__SANITIZE_ADDRESS__)
  CHECK(r.peak_memory < 6 * kBytes);  // the text, its tokens, and the model
#endif
  CHECK(r.seconds < 30);
}

TEST_CASE("a vocabulary of another model is refused, with both sizes") {
  const Folder folder;
  const std::string small = small_model(folder), large = folder / "large.safetensors";
  good({"init", "--layers", "1", "--embd", "64", "--vocab-size", "5000", "--head-size", "32", large});
  for (const std::string& model : {small, large}) {  // fewer rows than tokens, and many more
    const Result r = run({"generate", "--model", model, "--vocab", bundled_vocab(), "--prompt", "a", "--max-tokens", "1"});
    CHECK(r.code == 1);
    CHECK(has(r.error, bundled_vocab()));
    CHECK(has(r.error, model == small ? "299" : "5000"));
  }
}

TEST_CASE("generation stops before a stop text") {
  const std::string whole = text_of({"--temperature", "0"});
  REQUIRE(whole.size() > 8);
  const std::string stop = whole.substr(4, 3);
  const std::string part = good({"generate", "--prompt", kPrompt, "--temperature", "0", "--max-tokens", "12", "--stop", "\x01never", "--stop", stop, "--quiet"}).out;
  CHECK(part == whole.substr(0, whole.find(stop)));
}

TEST_CASE("a saved state goes on where the text ended") {
  const Folder folder;
  const Result first = good({"generate", "--prompt", kPrompt, "--max-tokens", "1", "--dtype", "f32", "--state-out", folder / "a.state", "--json"});
  Setting s;
  s.in = kPrompt;
  auto tokens = nlohmann::json::parse(good({"tokenize", "--vocab", bundled_vocab()}, s).out).get<std::vector<int>>();
  s.in = first.out;  // one token: encoding its bytes gives it back
  const auto drawn = nlohmann::json::parse(good({"tokenize", "--vocab", bundled_vocab()}, s).out).get<std::vector<int>>();
  REQUIRE(drawn.size() == 1);
  std::string list = "0";
  for (const int t : tokens) list += "," + std::to_string(t);
  list += "," + std::to_string(drawn[0]);
  good({"logits", "--tokens", list, "--dtype", "f32", "--output", folder / "whole.safetensors"});
  const auto saved = golden::parse(golden::slurp(folder / "a.state")), whole = golden::parse(golden::slurp(folder / "whole.safetensors"));
  for (const char* name : {"state.att_x", "state.wkv", "state.ffn_x"}) {
    REQUIRE(saved.at(name).shape == whole.at(name).shape);
    double worst = 0;
    for (size_t i = 0; i < saved.at(name).f32.size(); ++i) worst = std::max(worst, std::abs(double{saved.at(name).f32[i]} - whole.at(name).f32[i]));
    CHECK(worst < 1e-4);
  }
  // going on from a state file and from an output of `logits` is the same
  const auto go_on = [&](const std::string& from) {
    return good({"generate", "--state-in", from, "--prompt", " the", "--temperature", "0", "--dtype", "f32", "--max-tokens", "8", "--quiet"}).out;
  };
  CHECK(go_on(folder / "a.state") == go_on(folder / "whole.safetensors"));
  CHECK_FALSE(go_on(folder / "a.state").empty());
}

TEST_CASE("generate leaves the working directory alone") {
  const Folder folder;
  Setting s;
  s.folder = folder.path();
  good({"generate", "--max-tokens", "2"}, s);
  good({"doctor"}, s);
  CHECK(folder.names().empty());
}
