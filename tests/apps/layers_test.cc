// --layers, on every command that runs a model.
#include "apps/command.h"
#include "support/catch.h"

using namespace command;

namespace {

bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

// What a run must repeat: not its speed
std::string result(const Result& r) { return r.out.substr(0, r.out.find("speed")); }

}  // namespace

TEST_CASE("every command that runs a model takes --layers, and its output stays what it was") {
  const Folder folder;
  const std::string model = small_model(folder);
  write(folder / "text.txt", "some text\n");
  const std::vector<Words> commands = {
      {"generate", "--prompt", "a", "--max-tokens", "3", "--seed", "1"},
      {"logits", "--model", model, "--tokens", "1,2,3", "--output", folder / "out.safetensors"},
      {"eval", "--text", folder / "text.txt"},
      {"bench", "--model", model, "--prompt-tokens", "4", "--gen-tokens", "2", "--repeat", "1", "--json"},
  };
  for (Words words : commands) {
    CAPTURE(words[0]);
    words.insert(words.end(), {"--backend", "reference"});
    const Result plain = run(words);
    INFO(plain.error);
    CHECK(plain.code == 0);
    CHECK_FALSE(has(plain.error, "validate: "));
    words.insert(words.end(), {"--layers", "validate,trace"});
    const Result r = run(words);
    INFO(r.error);
    CHECK(r.code == 0);
    CHECK(has(r.error, " stages of reference (plain C, one thread) agree with the reference"));
    CHECK(has(r.error, "trace: wkv "));
    if (words[0] != "bench") CHECK(result(r) == result(plain));
    words.push_back("--quiet");
    CHECK_FALSE(has(good(words).error, "trace: "));
  }
}

TEST_CASE("an unknown layer ends with 1 and names those there are; doctor tells of layers, backends does not") {
  const Result r = run({"generate", "--prompt", "a", "--layers", "nonsense"});
  CHECK(r.code == 1);
  CHECK(has(r.error, "there is no layer nonsense; layers: canary trace validate"));
  CHECK(has(good({"doctor"}).out, "--layers trace"));
  CHECK(has(good({"doctor"}, Setting{"", {"DUET_LAYERS=nonsense"}, "", "", {}}).out, "nonsense"));
  CHECK_FALSE(has(good({"backends"}).out, "trace"));
  CHECK(run({"info", bundled_model(), "--layers", "trace"}).code == 2);
}
