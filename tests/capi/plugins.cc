// Plugins that are wrong, planted, or fail, as a user of duet.h meets them: a sentence in the report, and the engine works on.
// tests/plugin has more ways to be wrong, below the C interface.
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "capi/world.h"

using namespace api;

namespace {

using Json = nlohmann::json;

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
std::string fake(const std::string& way) { return slurp(DUET_FAKES "/libfake_" + way + ".so"); }

// A folder with plugins in it. A fake whose code runs leaves its name in the file `canary`.
class Folder {
 public:
  Folder() {
    std::string name = std::filesystem::temp_directory_path() / "duet-capi-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = std::filesystem::canonical(name);
    ::setenv("DUET_TEST_CANARY", (path_ + "/canary").c_str(), 1);
    for (const char* v : {"DUET_BACKEND", "DUET_PLUGIN_PATH", "DUET_PLUGIN_ADD", "DUET_PLUGIN_SELECT", "DUET_PLUGIN_DISABLE"}) ::unsetenv(v);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }

  const std::string& path() const { return path_; }
  std::string write(const std::string& name, const std::string& bytes, mode_t mode = 0644) const {
    const std::string to = path_ + "/" + name;
    std::filesystem::create_directories(std::filesystem::path(to).parent_path());
    std::ofstream(to, std::ios::binary) << bytes;
    ::chmod(to.c_str(), mode);
    return to;
  }
  // With its manifest, as an installed one.
  void plant(const std::string& way, const std::string& folder, const std::string& id) const {
    write(folder + "/libduet_" + id + ".so", fake(way));
    write(folder + "/" + id + ".duet.json", R"({"format": 1, "id": ")" + id + R"(", "library": "libduet_)" + id + R"(.so", "abi": "1.1", "arch": ")" DUET_ARCH R"("})");
  }
  std::string canary() const { return slurp(path_ + "/canary"); }

 private:
  std::string path_;
};

Library library_with(const std::string& plugin_path) {
  auto o = DUET_INIT(duet_library_options);
  o.n_threads = 1;
  o.log_level = DUET_LOG_OFF;
  o.plugin_path = plugin_path.empty() ? nullptr : plugin_path.c_str();
  duet_library* l = nullptr;
  check(duet_library_create(&o, &l));
  return Library(l);
}
Json report(const Library& l) {
  size_t n = 0;
  check(duet_library_report(l.get(), nullptr, 0, &n));
  std::string text(n, '\0');
  check(duet_library_report(l.get(), text.data(), n, &n));
  return Json::parse(text)["plugins"];
}
bool works_on_the_reference(const Library& l) {
  const Model m = load(l, golden::path("tiny.pth"), nullptr);
  return info(m).device == std::string("reference:0") && forward(session(m, DUET_MODE_AUTO), state(m), {1, 2}).size() == 2 * info(m).n_vocab;
}

}  // namespace

TEST_CASE("a plugin that is wrong leaves its sentence in the report, and models run without it") {
  struct Case {
    const char* way;
    bool ran;
    const char* word;
  };
  for (const Case& c : {Case{"no_note", false, "no plugin of Duet"}, Case{"wrong_major", false, "made for plugin ABI 2.0, this Duet speaks 1.1"},
                        Case{"small_note", false, "less than the"}, Case{"no_symbol", true, "does not export duetp_query"}, Case{"query_null", true, "gave no table"},
                        Case{"small_table", true, "16 bytes, less than"}, Case{"null_slot", true, "its table has no device_info"},
                        Case{"open_fails", true, "the driver is \\xff too old"}, Case{"open_throws", true, "open threw an exception: no such luck"},
                        Case{"zero_devices", true, "no card is plugged in"}, Case{"misaligned", true, "must be aligned to 64 bytes"}}) {
    CAPTURE(c.way);
    const Folder folder;
    const Library l = library_with(folder.write("plugin.so", fake(c.way)));
    const Json plugins = report(l);
    REQUIRE(plugins.size() == 2);
    CHECK(plugins[1]["taken"] == false);
    CHECK(plugins[1]["reason"].get<std::string>().find(c.word) != std::string::npos);
    CHECK(folder.canary().empty() != c.ran);
    CHECK(works_on_the_reference(l));
    auto o = DUET_INIT(duet_model_options);
    o.device = "fake";
    duet_model* m = nullptr;
    refused(duet_model_load(l.get(), golden::path("tiny.pth").c_str(), &o, &m), DUET_E_NOT_FOUND, c.word);
  }
}

TEST_CASE("none of a plugin's code runs when its path, its permissions or its bytes are wrong") {
  const Folder folder;
  const std::string good = fake("good"), shared = folder.write("shared.so", good, 0666), open = folder.write("open/plugin.so", good);
  std::string other = good;
  other[18] = '\xf3';  // RISC-V
  ::chmod((folder.path() + "/open").c_str(), 0777);
  std::filesystem::create_symlink(open, folder.path() + "/link.so");
  const std::string text = folder.write("text.so", "#!/bin/sh\n"), cut = folder.write("cut.so", good.substr(0, good.size() / 2)), foreign = folder.write("foreign.so", other);
  for (const auto& [path, word] : {std::pair<std::string, const char*>{"plugin.so", "absolute paths only"}, {"./plugin.so", "absolute paths only"}, {shared, "can be changed by others"},
                                   {open, "folder can be changed by others"}, {folder.path() + "/link.so", "folder can be changed by others"}, {text, "not an ELF library"},
                                   {cut, "beyond the"}, {foreign, "another machine"}, {folder.path() + "/none.so", "no such file"}}) {
    CAPTURE(path);
    const Library l = library_with(path);
    const Json plugins = report(l);
    REQUIRE(plugins.size() == 2);
    CHECK(plugins[1]["taken"] == false);
    CHECK(plugins[1]["reason"].get<std::string>().find(word) != std::string::npos);
    CHECK(works_on_the_reference(l));
  }
  CHECK(folder.canary().empty());
}

TEST_CASE("a plugin that was planted in the working directory, in $HOME or on LD_LIBRARY_PATH is not opened") {
  const Folder folder;
  for (const char* place : {".", "duet/plugins-1", "lib/duet/plugins-1", "plugins-1"}) folder.plant("good", place, "fake"), folder.plant("good", place, "cpu");
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::setenv("HOME", folder.path().c_str(), 1);
    ::setenv("LD_LIBRARY_PATH", (folder.path() + ":.").c_str(), 1);
    ::unsetenv("XDG_DATA_HOME");
    bool planted = ::chdir(folder.path().c_str()) != 0;
    for (const Json& p : report(library_with(""))) planted |= p["path"].get<std::string>().rfind(folder.path(), 0) == 0 || p["id"] == "fake";
    ::_exit(planted);
  }
  int status = 1;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
  CHECK(folder.canary().empty());
}

TEST_CASE("one plugin twice, and two of one name: the first is taken") {
  const Folder folder;
  const std::string a = folder.write("a.so", fake("good")), b = folder.write("b.so", fake("newer_minor"));
  const Library l = library_with(a + ":" + a + ":" + b);
  const Json plugins = report(l);
  REQUIRE(plugins.size() == 3);
  CHECK(plugins[1]["taken"] == true);
  CHECK(plugins[2]["taken"] == false);
  CHECK(plugins[2]["reason"].get<std::string>().find("taken already: " + a) != std::string::npos);
}

TEST_CASE("a library that is freed while its plugin is in use") {
  const Folder folder;
  Library l = library_with(folder.write("plugin.so", fake("good")));
  const Model m = load(l, golden::path("tiny.pth"), "fake");
  l.reset();
  CHECK(forward(session(m, DUET_MODE_AUTO), state(m), {1}).size() == info(m).n_vocab);
}

TEST_CASE("a stage that fails or throws ends the call, and nothing else") {
  const bool throws = GENERATE(false, true);
  const Folder folder;
  const Library l = library_with(folder.write("plugin.so", fake(throws ? "stage_throws" : "stage_fails")));
  const Model m = load(l, golden::path("tiny.pth"), "fake");
  const Session x = session(m, DUET_MODE_AUTO);
  const State s = state(m);
  const int32_t token = 1;
  auto b = DUET_INIT(duet_batch);
  b.n_seqs = 1;
  b.tokens = &token;
  for (int i = 0; i < 2; ++i) refused(duet_forward(x.get(), s.get(), &b), throws ? DUET_E_INTERNAL : DUET_E_LIMIT, throws ? "a stage went wrong" : "no more than three heads");
  check(duet_state_reset(s.get(), 0));
  const Model other = load(l, golden::path("tiny.pth"), "reference");
  CHECK(forward(session(other, DUET_MODE_AUTO), state(other), {1}).size() == info(m).n_vocab);
}

// docs/security.md: it cannot be contained. The process ends at once, by the plugin's own signal.
TEST_CASE("a stage that aborts takes the process with it") {
  const Folder folder;
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(20);
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    ::signal(SIGABRT, SIG_DFL);  // not Catch2's
    const Library l = library_with(folder.write("plugin.so", fake("stage_aborts")));
    const Model m = load(l, golden::path("tiny.pth"), "fake");
    (void)forward(session(m, DUET_MODE_AUTO), state(m), {1});
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGABRT);
}
