// A folder of one test, with fake plugins in it, and what a registry makes of it.
#pragma once
#include <stdlib.h>
#include <sys/stat.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "plugin/registry.h"
#include "support/catch.h"

namespace duet {

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::string fake_library(const std::string& way) { return DUET_FAKES "/libfake_" + way + ".so"; }

class Scene {
 public:
  Scene() {
    std::string name = std::filesystem::temp_directory_path() / "duet-plugins-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder_ = std::filesystem::canonical(name);
    ::setenv("DUET_TEST_CANARY", (folder_ + "/canary").c_str(), 1);
    for (const char* v : {"DUET_BACKEND", "DUET_PLUGIN_PATH", "DUET_PLUGIN_ADD", "DUET_PLUGIN_SELECT", "DUET_PLUGIN_DISABLE", "DUET_LAYERS"}) ::unsetenv(v);
  }
  Scene(const Scene&) = delete;
  Scene& operator=(const Scene&) = delete;
  ~Scene() { std::filesystem::remove_all(folder_); }

  const std::string& folder() const { return folder_; }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  std::string write(const std::string& name, const std::string& bytes, mode_t mode = 0644) const {
    std::filesystem::create_directories(std::filesystem::path(path(name)).parent_path());
    std::filesystem::remove(path(name));  // a fresh file: a library that is loaded must not change, and some systems flush what is truncated
    std::ofstream(path(name), std::ios::binary) << bytes;
    ::chmod(path(name).c_str(), mode);
    return path(name);
  }
  std::string library(const std::string& way, const std::string& name) const { return write(name, slurp(fake_library(way))); }
  // `sub/fake.duet.json` and its library; the path of the manifest
  std::string plugin(const std::string& way, const std::string& sub = ".", const std::string& abi = "1.1", const std::string& id = "fake") const {
    library(way, sub + "/libduet_" + id + ".so");
    return write(sub + "/" + id + ".duet.json", manifest(id, "libduet_" + id + ".so", abi));
  }
  static std::string manifest(const std::string& id, const std::string& library, const std::string& abi = "1.1") {
    return R"({"format": 1, "id": ")" + id + R"(", "library": ")" + library + R"(", "abi": ")" + abi + R"(", "arch": ")" DUET_ARCH R"("})";
  }

  std::string canary() const { return slurp(path("canary")); }  // the fakes whose code has run, a line each

 private:
  std::string folder_;
};

// A library's worth of surroundings; the log is kept quiet.
struct World {
  Team team{1};
  Log log{[](void*, int32_t, const char*) {}, nullptr, DUET_LOG_OFF};
  Registry registry;
  explicit World(const std::string& plugin_path = "") : registry({plugin_path, ""}, team, log) {}
  Json report() { return parse_json(registry.report(), "the report")["plugins"]; }
};

template <class F>
Error error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e;
  }
  FAIL("no error was thrown");
  return {0, ""};
}

inline bool says(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  WARN("\"" << text << "\" does not say \"" << part << "\"");
  return false;
}

}  // namespace duet
