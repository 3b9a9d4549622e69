// info, convert, init, and what is refused before any work.
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "apps/command.h"
#include "support/catch.h"
#include "support/golden.h"

using namespace command;

namespace {

std::string logits_of(const Folder& folder, const std::string& model) {
  const std::string out = folder / "logits-of-it";
  good({"logits", "--model", model, "--dtype", "f32", "--tokens", "0,1,2,3,254", "--output", out});
  return golden::slurp(out);
}

}  // namespace

TEST_CASE("info describes a model file") {
  const auto info = json({"info", bundled_model(), "--json"});
  CHECK(info.at("n_layer") == 6);
  CHECK(info.at("n_vocab") == 4096);
  CHECK(info.at("tensors").size() > 100);
  const Result table = good({"info", bundled_model()}), list = good({"info", bundled_model(), "--tensors", "--verify"});
  CHECK(table.out.find("n_embd") != table.out.npos);
  CHECK(table.out.find("blocks.0.att.w0") == table.out.npos);
  CHECK(list.out.find("blocks.0.att.w0") != list.out.npos);
  CHECK(json({"info", golden::path("tiny_fla"), "--json"}).at("n_embd") == 128);
  for (const char* path : {"/nonexistent/model", "/dev/zero"}) {
    const Result r = run({"info", path});
    CHECK(r.code == 1);
    CHECK(r.error.find(path) != r.error.npos);
  }
}

TEST_CASE("info reads a file once, and warns once") {
  const Folder folder;
  const std::string model = small_model(folder);
  spoil(model, "ln_out.weight");
  const std::string error = good({"info", model, "--verify"}).error;
  const size_t first = error.find("ln_out.weight");
  REQUIRE(first != error.npos);
  CHECK(error.find("ln_out.weight", first + 1) == error.npos);
}

TEST_CASE("convert writes the same model as safetensors") {
  const Folder folder;
  const std::string out = folder / "tiny.safetensors";
  good({"convert", golden::path("tiny_views.pth"), out});
  CHECK(logits_of(folder, out) == logits_of(folder, golden::path("tiny.pth")));
  const std::string wide = folder / "wide.safetensors";
  good({"convert", golden::path("tiny_fla"), wide, "--dtype", "f32"});
  CHECK(logits_of(folder, wide) == logits_of(folder, golden::path("tiny.pth")));
  CHECK(std::filesystem::file_size(wide) > std::filesystem::file_size(out) * 3 / 2);

  const std::string before = golden::slurp(out);
  const Result again = run({"convert", golden::path("tiny_fla"), out, "--dtype", "f32"});
  CHECK(again.code == 1);
  CHECK(again.error.find("--force") != again.error.npos);
  CHECK(golden::slurp(out) == before);
  good({"convert", golden::path("tiny_fla"), out, "--dtype", "f32", "--force"});
  CHECK(golden::slurp(out) == golden::slurp(wide));
  CHECK(folder.names() == Words{"logits-of-it", "tiny.safetensors", "wide.safetensors"});
}

TEST_CASE("convert quantises, and the file gives what quantising while loading gives") {
  const Folder folder;
  const auto logits = [&](const std::string& model, const Words& more) {
    Words words = {"logits", "--model", model, "--backend", "reference", "--tokens", "0,1,2,3,254", "--output", folder / "logits"};
    words.insert(words.end(), more.begin(), more.end());
    good(words);
    return golden::slurp(folder / "logits");
  };
  const std::string tiny = golden::path("tiny.pth"), out = folder / "quantised", back = folder / "back";
  for (const char* dtype : {"q8", "q4"}) {
    good({"convert", tiny, out, "--dtype", dtype, "--force"});
    const auto info = json({"info", out, "--json"}), original = json({"info", tiny, "--json"});
    CHECK(info.at("weights") == dtype);
    CHECK(info.at("parameters") == original.at("parameters"));
    CHECK(info.at("fingerprint") == original.at("fingerprint"));
    CHECK(info.at("bits_per_weight").get<double>() < (dtype == std::string("q8") ? 10 : 6));
    good({"info", out, "--verify", "--strict"});
    CHECK(logits(out, {}) == logits(tiny, {"--dtype", dtype}));
    CHECK(logits(out, {}) != logits(tiny, {}));
    good({"convert", out, back, "--dtype", "f32", "--force"});
    CHECK(json({"info", back, "--json"}).at("weights") == "f32");
    CHECK(logits(back, {}) == logits(out, {"--dtype", "f32"}));
  }
  const Result fresh = run({"init", "--layers", "1", "--embd", "64", "--vocab-size", "10", folder / "fresh", "--dtype", "q8"});
  CHECK(fresh.code == 1);
  CHECK(fresh.error.find("convert it to q8") != fresh.error.npos);
}

TEST_CASE("init makes the same model from the same seed") {
  const Folder folder;
  const std::string a = small_model(folder);
  const std::string bytes = golden::slurp(a);
  const Words same = {"init", "--layers", "2", "--embd", "64", "--vocab-size", "300", "--head-size", "32"};
  const auto with = [&](Words more) {
    more.insert(more.begin(), same.begin(), same.end());
    return more;
  };
  good(with({"--seed", "7", folder / "b"}));
  CHECK(golden::slurp(folder / "b") == bytes);
  good(with({"--seed", "8", folder / "c"}));
  CHECK(golden::slurp(folder / "c") != bytes);
  CHECK(run(with({"--seed", "8", a})).code == 1);
  CHECK(golden::slurp(a) == bytes);
  good(with({"--seed", "8", a, "--force"}));
  CHECK(golden::slurp(a) == golden::slurp(folder / "c"));
  CHECK(json({"info", a, "--json"}).at("head_size") == 32);
  const Result bad = run({"init", "--layers", "1", "--embd", "100", "--vocab-size", "10", folder / "d"});
  CHECK(bad.code == 1);
  CHECK_FALSE(bad.error.empty());
  CHECK(folder.names() == Words{"b", "c", "small.safetensors"});
}

TEST_CASE("an output that cannot or must not be written is refused before any work") {
  const Folder folder;
  const std::string model = small_model(folder), content = golden::slurp(model);
  std::filesystem::create_symlink(model, folder / "link");
  std::filesystem::create_directory(folder / "model");
  std::filesystem::copy(golden::path("tiny_fla"), folder / "model");
  struct Case {
    Words words;
    int code;
  };
  const Words generate = {"generate", "--model", model, "--prompt", "a", "--state-out"}, logits = {"logits", "--model", model, "--tokens", "1", "--output"};
  const auto with = [](Words words, const std::string& last) {
    words.push_back(last);
    return words;
  };
  const std::vector<Case> cases = {
      {with(logits, model), 2},
      {with(logits, folder / "link"), 2},
      {with(logits, folder.path() + "/./small.safetensors"), 2},
      {with(generate, model), 2},
      {{"convert", model, model, "--force"}, 2},
      {{"convert", folder / "model", folder / "model/model.safetensors", "--force"}, 2},
      {{"generate", "--model", model, "--prompt", "a", "--state-in", folder / "s", "--state-out", folder / "s"}, 2},
      {with(logits, folder / "missing/out"), 1},
      {with(generate, folder / "missing/out"), 1},
      {with(logits, folder / "small.safetensors/out"), 1},
      {with(logits, folder.path()), 1},
      {with(logits, "/dev/full"), 1},
      {with(logits, "/proc/duet.safetensors"), 1},
      {{"convert", model, folder / "missing/out"}, 1},
      {{"convert", model, "/proc/duet.safetensors"}, 1},
      {{"init", "--layers", "1", "--embd", "64", "--vocab-size", "10", folder / "missing/out"}, 1},
      {{"init", "--layers", "1", "--embd", "64", "--vocab-size", "10", folder / "link"}, 1},
  };
  for (const Case& c : cases) {
    const Result r = run(c.words);
    INFO(Catch::Detail::stringify(c.words) << r.error);
    CHECK(r.code == c.code);
    CHECK_FALSE(r.died);
    CHECK(r.error.find("error:") != r.error.npos);
  }
  CHECK(golden::slurp(model) == content);
  CHECK(golden::slurp(folder / "model/model.safetensors") == golden::slurp(golden::path("tiny_fla/model.safetensors")));
  CHECK(folder.names() == Words{"link", "model", "small.safetensors"});
}

TEST_CASE("what a killed process has left beside its output does not stop one of the same number") {
  const Folder folder;
  const std::string out = folder / "out";
  for (const std::string& writer : Words{"logits --tokens 1 --output", "generate --prompt a --max-tokens 1 --quiet --state-out"}) {
    // the shell becomes the command: $$ is its number too
    const std::string line = ": >'" + out + ".tmp.'$$; exec '" + program() + "' " + writer + " '" + out + "' >/dev/null";
    INFO(line);
    CHECK(std::system(line.c_str()) == 0);
    CHECK(std::filesystem::remove(out));
  }
}

TEST_CASE("a disk that is full leaves the old file as it was, and no half of a new one") {
  const Folder folder, outputs;
  const std::string model = small_model(folder), out = outputs / "out";
  write(out, "old");
  const std::vector<Words> writers = {{"generate", "--max-tokens", "2", "--state-out", out},
                                      {"logits", "--tokens", "1,2,3", "--output", out},
                                      {"convert", model, out, "--dtype", "bf16", "--force"},
                                      {"init", "--layers", "1", "--embd", "64", "--vocab-size", "100", out, "--force"}};
  for (const Words& words : writers)
    for (const uint64_t limit : {1000, 5000, 20000}) {
      Setting s;
      s.file_limit = limit;
      const Result r = run(words, s);
      INFO(Catch::Detail::stringify(words) << r.error);
      CHECK(r.code == 1);
      CHECK_FALSE(r.died);
      CHECK(r.error.find(out) != r.error.npos);
      CHECK(r.error.find("File too large") != r.error.npos);
      CHECK(golden::slurp(out) == "old");
      CHECK(outputs.names() == Words{"out"});
    }
  Setting s;
  s.file_limit = 1000;
  s.in = std::string(5000, '.');
  const Result r = run({"tokenize", "--vocab", bundled_vocab()}, s);
  CHECK(r.code == 1);
  CHECK(r.error.find("standard output: File too large") != r.error.npos);
}

TEST_CASE("init shows its progress on a terminal, and not with --quiet") {
  const Folder folder;
  for (const bool quiet : {false, true}) {
    const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (terminal < 0) {
      WARN("this system gives no terminal: " << std::strerror(errno));
      return;
    }
    REQUIRE(::grantpt(terminal) == 0);
    REQUIRE(::unlockpt(terminal) == 0);
    Setting s;
    s.error_path = ::ptsname(terminal);
    const int other_end = ::open(s.error_path.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC);  // so that what was written stays
    Words words = {"init", "--layers", "100", "--embd", "64", "--vocab-size", "1000", folder / "out", "--force"};  // small matrices: slow on any machine
    if (quiet) words.push_back("--quiet");
    CHECK(run(words, s).code == 0);
    ::fcntl(terminal, F_SETFL, O_NONBLOCK);
    char bytes[4096];
    const ssize_t n = ::read(terminal, bytes, sizeof bytes);
    const std::string shown(bytes, n > 0 ? static_cast<size_t>(n) : 0);
    CHECK((shown.find("initialising ") != shown.npos) == !quiet);
    CHECK(shown.empty() == quiet);
    ::close(other_end);
    ::close(terminal);
  }
}

TEST_CASE("a model that cannot be read is an error that names it") {
  const Folder folder;
  write(folder / "page.pth", "<!DOCTYPE html><html>not found</html>");
  write(folder / "empty", "");
  for (const std::string& path : {folder / "page.pth", folder / "empty", folder / "missing", folder.path(), std::string("/dev/zero")}) {
    for (const Words& words : {Words{"generate", "--model", path}, Words{"eval", "--model", path, "--text", bundled_vocab()}, Words{"bench", "--model", path}}) {
      const Result r = run(words);
      INFO(Catch::Detail::stringify(words) << r.error);
      CHECK(r.code == 1);
      CHECK(r.error.find(path) != r.error.npos);
      CHECK(r.out.empty());
    }
  }
  const std::string model = small_model(folder);
  for (const Words& words : {Words{"generate", "--model", model, "--prompt", "a"}, Words{"eval", "--model", model, "--text", bundled_vocab()}}) {
    const Result r = run(words);  // no vocabulary beside it, and V is not 65536
    CHECK(r.code == 1);
    CHECK(r.error.find("--vocab FILE") != r.error.npos);
  }
}
