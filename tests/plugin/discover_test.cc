// Where plugins are looked for, where never, and who may have put them there.
#include "plugin/discover.h"

#include <sys/auxv.h>
#include <unistd.h>

#include "base/environment.h"
#include "plugin/permissions.h"
#include "scene.h"

using namespace duet;

namespace {

std::vector<std::string> paths(const std::vector<Candidate>& found) {
  std::vector<std::string> out;
  for (const Candidate& c : found) out.push_back(c.path);
  return out;
}

using Paths = std::vector<std::string>;

}  // namespace

TEST_CASE("search order: plugin_path, else DUET_PLUGIN_PATH, else the union of the rest") {
  const Scene scene;
  const std::string a = scene.plugin("good", "a"), b = scene.plugin("good", "b"), c = scene.plugin("good", "c");
  const std::string home = scene.plugin("good", "home/.local/share/duet/plugins-1"), xdg = scene.plugin("good", "xdg/duet/plugins-1");
  ::setenv("HOME", scene.path("home").c_str(), 1);
  ::unsetenv("XDG_DATA_HOME");
  CHECK(paths(discover("")) == Paths{home});
  ::setenv("XDG_DATA_HOME", "relative", 1);
  CHECK(paths(discover("")) == Paths{home});
  ::setenv("XDG_DATA_HOME", scene.path("xdg").c_str(), 1);
  CHECK(paths(discover("")) == Paths{xdg});
  ::setenv("DUET_PLUGIN_ADD", (b + ":" + scene.path("c")).c_str(), 1);
  CHECK(paths(discover("")) == Paths{b, c, xdg});
  ::setenv("DUET_PLUGIN_PATH", scene.path("b/").c_str(), 1);
  CHECK(paths(discover("")) == Paths{b});
  CHECK(paths(discover(scene.path("a"))) == Paths{a});
  CHECK(paths(discover(scene.path("a") + "::" + scene.path("a/../a") + ":" + a)) == Paths{a});  // the same file once
}

TEST_CASE("a folder is read in the order of the names, and only its manifests count") {
  const Scene scene;
  for (const char* id : {"zeta", "alpha", "mid"}) scene.plugin("good", "d", "1.1", id);
  CHECK(paths(discover(scene.path("d"))) == Paths{scene.path("d/alpha.duet.json"), scene.path("d/mid.duet.json"), scene.path("d/zeta.duet.json")});
}

TEST_CASE("relative names are refused, missing ones are named, bare libraries are taken only when they replace the search") {
  const Scene scene;
  const std::string library = scene.library("good", "libduet_fake.so");
  for (const char* name : {"libduet_fake.so", "./libduet_fake.so", ".", "fake.duet.json"}) {
    const auto found = discover(name);
    REQUIRE(found.size() == 1);
    CHECK(says(found[0].refused, "plugin_path takes absolute paths only"));
  }
  CHECK(says(discover(scene.path("nowhere"))[0].refused, "no such file or folder"));
  CHECK(World(library).report()[1]["taken"] == true);
  ::setenv("DUET_PLUGIN_PATH", library.c_str(), 1);
  CHECK(World().report()[1]["taken"] == true);
  ::unsetenv("DUET_PLUGIN_PATH");
  ::setenv("DUET_PLUGIN_ADD", library.c_str(), 1);
  ::setenv("XDG_DATA_HOME", scene.path("none").c_str(), 1);
  const Json added = World().report()[1];
  CHECK(added["taken"] == false);
  CHECK(says(added["reason"], "a bare library only from DUET_PLUGIN_PATH"));
}

TEST_CASE("the first of two with one id wins, and the report says so") {
  const Scene scene;
  const std::string first = scene.plugin("good", "a"), second = scene.plugin("newer_minor", "b", "1.8");
  World world(scene.path("a") + ":" + scene.path("b"));
  const Json report = world.report();
  CHECK(report[1]["taken"] == true);
  CHECK(report[2]["taken"] == false);
  CHECK(says(report[2]["reason"], "a plugin with the id \"fake\" was taken already: " + first));
  CHECK(scene.canary() == "good\n");
}

TEST_CASE("a broken first does not take its id from a sound second") {
  const Scene scene;
  scene.plugin("open_fails", "a"), scene.plugin("good", "b");
  CHECK(World(scene.path("a") + ":" + scene.path("b")).registry.devices().size() == 2);
}

TEST_CASE("nobody can pose as the reference") {
  const Scene scene;
  const Json report = World(scene.plugin("good", ".", "1.1", "reference")).report();
  CHECK(says(report[1]["reason"], "taken already: built in"));
  CHECK(scene.canary().empty());
}

TEST_CASE("DUET_PLUGIN_SELECT and DUET_PLUGIN_DISABLE") {
  const Scene scene;
  const std::string path = scene.plugin("good");
  const auto taken = [&] { return World(path).report()[1]["taken"] == true; };
  ::setenv("DUET_PLUGIN_SELECT", "cuda,f*", 1);
  CHECK(taken());
  ::setenv("DUET_PLUGIN_DISABLE", "x,fak?", 1);
  CHECK(says(World(path).report()[1]["reason"], "disabled by DUET_PLUGIN_DISABLE=x,fak?"));
  ::unsetenv("DUET_PLUGIN_DISABLE");
  ::setenv("DUET_PLUGIN_SELECT", "cuda", 1);
  CHECK(says(World(path).report()[1]["reason"], "not among DUET_PLUGIN_SELECT=cuda"));
  CHECK(scene.canary() == "good\n");
  CHECK(says(World(scene.path("libduet_fake.so")).report()[1]["reason"], "not among"));
}

TEST_CASE("what others can change is not taken") {
  struct Change {
    const char* what;
    mode_t mode;
    const char* sentence;
  };
  for (const Change& c : {Change{"p/libduet_fake.so", 0666, "the file can be changed by others (mode 0666)"}, Change{"p/libduet_fake.so", 0664, "mode 0664"},
                          Change{"p/fake.duet.json", 0646, "mode 0646"}, Change{"p", 0777, "the folder can be changed by others (mode 0777)"}, Change{"p", 01777, "mode 1777"}, Change{"p", 0775, "mode 0775"}}) {
    const Scene scene;
    const std::string path = scene.plugin("good", "p");
    ::chmod(scene.path(c.what).c_str(), c.mode);
    for (const std::string& name : {path, scene.path("p/libduet_fake.so")}) {
      if (std::string(c.what) == "p/fake.duet.json" && name != path) continue;  // a bare library has no manifest
      const Json p = World(name).report()[1];
      CHECK(p["taken"] == false);
      CHECK(says(p["reason"], c.sentence));
      CHECK(says(p["reason"], "chmod go-w"));
    }
    CHECK(scene.canary().empty());
  }
}

TEST_CASE("a link is judged by both folders and by the file behind it") {
  const Scene scene;
  scene.library("good", "open/libduet_fake.so"), scene.library("good", "shut/libduet_fake.so");
  std::filesystem::create_directories(scene.path("links"));
  std::filesystem::create_symlink(scene.path("open/libduet_fake.so"), scene.path("links/a.so"));
  std::filesystem::create_symlink(scene.path("shut/libduet_fake.so"), scene.path("links/b.so"));
  std::filesystem::create_symlink(scene.path("shut/libduet_fake.so"), scene.path("open/c.so"));
  ::chmod(scene.path("open").c_str(), 0777);
  for (const char* name : {"links/a.so", "open/c.so"}) {
    const Error e = error_of([&] { check_permissions(scene.path(name)); });
    CHECK(e.code() == DUET_E_INVALID);
    CHECK(says(e.what(), "the folder can be changed by others"));
  }
  CHECK_NOTHROW(check_permissions(scene.path("links/b.so")));
  std::filesystem::create_symlink(scene.path("links/loop"), scene.path("links/loop"));
  CHECK(error_of([&] { check_permissions(scene.path("links/loop")); }).code() == DUET_E_IO);
  CHECK(error_of([&] { check_permissions(scene.path("links/nothing")); }).code() == DUET_E_NOT_FOUND);
}

TEST_CASE("what belongs to another user is not taken") {
  if (::geteuid() != 0) return;  // only root can give a file away
  const Scene scene;
  const std::string library = scene.library("good", "libduet_fake.so");
  REQUIRE(::chown(library.c_str(), 12345, 12345) == 0);
  CHECK(says(error_of([&] { check_permissions(library); }).what(), "belongs to user 12345"));
}

TEST_CASE("the default search takes nothing from the working directory") {
  ::unsetenv("DUET_PLUGIN_PATH"), ::unsetenv("DUET_PLUGIN_ADD");
  const std::string here = std::filesystem::current_path();
  for (const Json& p : World().report()) CHECK(p["path"].get<std::string>().rfind(here, 0) != 0);
}

TEST_CASE("plugins planted in the working directory, in $HOME and on LD_LIBRARY_PATH are never opened") {
  const Scene scene;
  scene.library("good", "libduet_fake.so"), scene.library("good", "libduet_cpu.so"), scene.library("good", "libduet.so");
  scene.plugin("good", "duet/plugins-1"), scene.plugin("good", "lib/duet/plugins-1"), scene.plugin("good", "plugins-1"), scene.plugin("good");
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  ::setenv("HOME", scene.folder().c_str(), 1);
  ::setenv("LD_LIBRARY_PATH", (scene.folder() + ":.").c_str(), 1);
  ::unsetenv("XDG_DATA_HOME");
  const std::string command = "cd '" + scene.folder() + "' && '" + program + "' 'the default search takes nothing from the working directory' >/dev/null";
  CHECK(std::system(command.c_str()) == 0);
  CHECK(scene.canary().empty());
}

TEST_CASE("a program with raised privileges takes nothing from its environment") {
  if (::geteuid() != 0 || DUETP_SANITIZER != 0) return;  // only root can make one; the sanitizer's leak check does not run in one
  const Scene scene;
  const std::string program = scene.write("raised", slurp("/proc/self/exe"));
  REQUIRE(::chown(program.c_str(), 65534, 65534) == 0);
  REQUIRE(::chmod(program.c_str(), 04755) == 0);
  CHECK(std::system(("DUET_PLUGIN_PATH=/x '" + program + "' '[raised]' >/dev/null").c_str()) == 0);
}
TEST_CASE("what such a program sees", "[.][raised]") {
  if (::getauxval(AT_SECURE) == 0) {
    WARN("the file system knows no raised privileges");
    return;
  }
  CHECK(environment("DUET_PLUGIN_PATH").empty());
  CHECK(::getenv("DUET_PLUGIN_PATH") != nullptr);
}

TEST_CASE("where this build is, and where its data would be") {
  CHECK(library_folder() == DUET_BUILD "/bin");  // the tests link the library into the program
  const Error e = error_of([] { data_file("no/such/file"); });
  CHECK(e.code() == DUET_E_NOT_FOUND);
  CHECK(says(e.what(), "/bin/../share/duet/no/such/file"));
  CHECK(says(e.what(), "/bin/../../share/duet/no/such/file"));
  ::setenv("DUET_TEST_EMPTY", "", 1);
  CHECK(environment("DUET_TEST_EMPTY").empty());
  CHECK(environment("DUET_TEST_UNSET").empty());
}
