// The command line itself: help, version, and every way of getting an option wrong.
#include "apps/command.h"
#include "support/catch.h"

using namespace command;

namespace {

const Words kSubcommands = {"generate", "logits", "tokenize", "eval", "info", "convert", "init", "backends", "doctor", "bench"};

bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

}  // namespace

TEST_CASE("help and version go to standard output") {
  for (const Words& words : {Words{"--help"}, Words{"-h"}, Words{"help"}}) {
    const Result r = good(words);
    for (const std::string& name : kSubcommands) CHECK(has(r.out, "  " + name + " "));
    CHECK(r.error.empty());
  }
  for (const std::string& name : kSubcommands) {
    const Result r = good({name, "--help"});
    CHECK(has(r.out, "Usage: duet " + name));
    CHECK(has(r.out, "--help"));
    CHECK(r.error.empty());
    CHECK(good({"help", name}).out == r.out);
    CHECK(good({name, "-h"}).out == r.out);
  }
  CHECK(has(good({"--version"}).out, "duet 0."));
}

TEST_CASE("wrong usage exits with 2 and names the flag, the range and the nearest flag") {
  struct Case {
    Words words, parts;
  };
  const std::vector<Case> cases = {
      {{}, {"subcommand is missing"}},
      {{"genrate"}, {"genrate", "did you mean generate?"}},
      {{"--verison"}, {"--verison"}},
      {{"help", "nothing"}, {"nothing"}},
      {{"generate", "--temprature", "1"}, {"--temprature", "did you mean --temperature?"}},
      {{"generate", "--temp", "nan"}, {"--temp", "did you mean --temperature?"}},
      {{"generate", "--max"}, {"--max", "did you mean --max-tokens?"}},
      {{"generate", "-t", "1"}, {"-t"}},
      {{"generate", "--prompt"}, {"--prompt", "needs a value"}},
      {{"generate", "--prompt", "--seed", "3"}, {"--prompt", "needs a value", "--seed"}},
      {{"generate", "--model="}, {"--model"}},
      {{"generate", "--model", ""}, {"--model", "empty"}},
      {{"generate", "--quiet=yes"}, {"--quiet", "takes no value"}},
      {{"generate", "--quiet", "yes"}, {"unexpected argument 'yes'"}},
      {{"generate", "--seed", "1", "--seed", "1"}, {"--seed", "twice"}},
      {{"generate", "--quiet", "--quiet"}, {"--quiet", "twice"}},
      {{"generate", "a text"}, {"unexpected argument 'a text'"}},
      {{"generate", "--", "a text"}, {"unexpected argument 'a text'"}},
      {{"generate", "@options"}, {"@options"}},
      {{"generate", "--prompt", "a", "--prompt-file", "b"}, {"--prompt", "--prompt-file"}},
      {{"generate", "--state-in", "x"}, {"--state-in", "--prompt"}},
      {{"generate", "--stop", ""}, {"--stop", "empty"}},
      {{"generate", "--stop", "a", "--stop", "b\xff"}, {"--stop", "not UTF-8"}},
      {{"generate", "--stop", std::string(4097, 'a')}, {"--stop", "4097 bytes, more than the 4096"}},
      {{"generate", "--mode", "fast"}, {"--mode", "fast", "auto, parallel, recurrent"}},
      {{"generate", "--dtype", "f64"}, {"--dtype", "f64", "f32, bf16, f16"}},
      {{"logits"}, {"--tokens"}},
      {{"logits", "--tokens", "1"}, {"--output"}},
      {{"logits", "--tokens", "1", "--tokens-file", "f", "--output", "o"}, {"--tokens", "--tokens-file"}},
      {{"logits", "--tokens", "", "--output", "o"}, {"no tokens"}},
      {{"logits", "--tokens", "1", "--output", "o", "--chunk", "0"}, {"--chunk", "from 1"}},
      {{"eval"}, {"--text"}},
      {{"info"}, {"FILE"}},
      {{"info", ""}, {"FILE", "empty"}},
      {{"info", "a", "b"}, {"unexpected argument 'b'"}},
      {{"convert", "a"}, {"OUT"}},
      {{"init", "out", "--layers", "1", "--embd", "64"}, {"--vocab-size"}},
      {{"init", "out", "--layers", "4097", "--embd", "64", "--vocab-size", "9"}, {"--layers", "from 1 to 4096"}},
      {{"init", "out", "--layers", "1", "--embd", "65537", "--vocab-size", "9"}, {"--embd", "from 1 to 65536"}},
      {{"init", "out", "--layers", "1", "--embd", "64", "--vocab-size", "1048577"}, {"--vocab-size", "from 1 to 1048576"}},
      {{"init", "out", "--layers", "1", "--embd", "4096", "--vocab-size", "9", "--head-size", "1025"}, {"--head-size", "from 1 to 1024"}},
      {{"bench", "--relu2", "0.1"}, {"--relu2", "--shape"}},
      {{"bench", "--model", "a", "--shape", "0.1b"}, {"--model", "--shape"}},
      {{"bench", "--batch", "1,,2"}, {"--batch", "''", "from 1"}},
      {{"bench", "--prompt-tokens", "8,"}, {"--prompt-tokens", "''"}},
  };
  for (const Case& c : cases) {
    const Result r = run(c.words);
    INFO(Catch::Detail::stringify(c.words) << r.error);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    for (const std::string& part : c.parts) CHECK(has(r.error, part));
    CHECK_FALSE(has(r.error, "\x1b"));  // not a terminal: no colours
  }
}

TEST_CASE("numbers are read strictly") {
  struct Case {
    std::string flag;
    Words values;
    std::string range;
  };
  const std::vector<Case> cases = {
      {"--threads", {"-1", "0", "1e9", "1000000000", "abc", "8 ", " 8", "+8", "0x8", "8.0", "2147483648", "\xff"}, "1 to 256"},
      {"--temperature", {"nan", "-1", "inf", "-nan", "1e400", "1,5", "0x1p3", "1.5f"}, "0 to 100"},
      {"--top-p", {"2", "-0.1", "nan", "1.0001"}, "0 to 1"},
      {"--min-p", {"2", "-1"}, "0 to 1"},
      {"--top-k", {"-1", "1.5", "4294967296"}, "0 to 1048576"},
      {"--max-tokens", {"0", "-1", "9999999999"}, "1 to 1000000000"},
      {"--seed", {"99999999999999999999", "18446744073709551616", "-1", "1.0"}, "0 to 18446744073709551615"},
      {"--penalty-decay", {"1.5"}, "0 to 1"},
      {"--presence-penalty", {"1e9"}, "-100 to 100"},
  };
  for (const Case& c : cases) {
    for (const std::string& value : c.values) {
      const Result r = run({"generate", c.flag, value});
      INFO(c.flag << " " << value << ": " << r.error);
      CHECK(r.code == 2);
      CHECK(has(r.error, c.flag + ": "));
      CHECK(has(r.error, c.range));
    }
  }
}

TEST_CASE("an unknown backend is an error that lists what there is") {
  for (const Setting& setting : {Setting{}, Setting{"", {"DUET_BACKEND=nonsense"}, "", "", {}}}) {
    Words words = {"generate", "--max-tokens", "1"};
    if (setting.variables.empty()) words.insert(words.end(), {"--backend", "nonsense"});
    const Result r = run(words, setting);
    INFO(r.error);
    CHECK(r.code == 1);
    CHECK(has(r.error, "nonsense"));
    CHECK(has(r.error, "reference"));
  }
  CHECK(run({"generate", "--max-tokens", "1", "--backend", "reference:99"}).code == 1);
  good({"generate", "--max-tokens", "1", "--backend", "reference"}, {"", {"DUET_BACKEND=nonsense"}, "", "", {}});  // the flag wins
}

TEST_CASE("a --plugin-path that gives no plugin is an error where a model runs, one that gives some is none") {
  const Folder folder;
  const std::string missing = folder / "plugin.so", relative = "plugin.so", empty = folder.path();
  const std::vector<std::pair<std::string, std::string>> cases = {
      {missing, "no such file or folder"}, {relative, "absolute paths only"}, {empty, "no manifests"}, {missing + ":" + relative, "no such file or folder (plugin_path); plugin.so: "}};
  for (const auto& [path, word] : cases)
    for (const Words& words : {Words{"generate", "--prompt", "a", "--max-tokens", "1"}, Words{"eval", "--text", bundled_vocab()}, Words{"bench"},
                               Words{"logits", "--tokens", "1", "--output", folder / "out"}}) {
      Words all = words;
      all.insert(all.end(), {"--quiet", "--plugin-path", path});
      const Result r = run(all);
      INFO(words[0] << " " << r.error);
      CHECK(r.code == 1);
      CHECK(r.out.empty());
      CHECK(has(r.error, "--plugin-path " + path + ": "));
      CHECK(has(r.error, word));
      CHECK(folder.names().empty());
    }
  good({"generate", "--prompt", "a", "--max-tokens", "1", "--plugin-path", DUET_BUILD "/lib/duet/plugins-1:" + missing});
}

TEST_CASE("backends and doctor tell what there is to compute on") {
  const nlohmann::json devices = json({"backends", "--json"});
  REQUIRE(devices.size() >= 1);
  Words specs;
  for (const auto& d : devices) {
    specs.push_back(d.at("spec"));
    CHECK_FALSE(d.at("plugin").get<std::string>().empty());
  }
  CHECK(std::count(specs.begin(), specs.end(), "reference:0") == 1);
  const Result table = good({"backends"});
  for (const std::string& spec : specs) CHECK(has(table.out, spec));

  const nlohmann::json report = json({"doctor", "--json"});
  CHECK(report.at("plugins").size() >= 1);
  CHECK(report.at("bundled_model").at("found") == true);
  for (const auto& plugin : report.at("plugins")) {
    INFO(plugin.dump());
    if (plugin.at("taken"))
      CHECK(plugin.at("devices").empty() == plugin.at("layer").get<bool>());
    else
      CHECK_FALSE(plugin.at("reason").get<std::string>().empty());
  }
  const Result text = good({"doctor"});
  CHECK(has(text.out, "reference"));
  CHECK_FALSE(has(text.out, "\x1b"));
  for (const char* name : {"DUET_BACKEND", "DUET_PLUGIN_PATH", "DUET_PLUGIN_ADD", "DUET_PLUGIN_SELECT", "DUET_PLUGIN_DISABLE", "DUET_LAYERS"}) CHECK(has(text.out, std::string(name) + " "));

  const Result missing = good({"doctor", "--plugin-path", "/nonexistent/plugin.so"});
  CHECK(has(missing.out, "/nonexistent/plugin.so"));
}
