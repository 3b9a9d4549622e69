// What trace counts, and the file that it writes.
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "layers/scene.h"

using namespace layers;

namespace {

using Counts = std::map<std::string, uint64_t>;

// calls by stage, of the table in the log
Counts counts_in(const Lines& log) {
  Counts out;
  for (const std::string& line : log.all) {
    if (line.rfind("trace: ", 0) != 0 || line.find('%') == line.npos) continue;
    std::istringstream in(line.substr(7, 14));
    std::string name, second;
    in >> name >> second;
    out[second.empty() ? name : name + " " + second] = std::stoull(line.substr(21));
  }
  return out;
}

// of a run of one pass over a model of n layers
Counts one_pass(uint64_t n) {
  Counts c{{"embed", 1}, {"head", 1}, {"lowrank v", n - 1}};
  for (const char* name : {"shift_mix", "linear r", "linear k", "linear v", "linear output", "lowrank w", "lowrank a", "lowrank g", "wkv_prepare", "wkv", "norm_gate", "channel_mix"})
    c[name] = n;
  return c;
}

}  // namespace

TEST_CASE("trace counts every stage, and writes each call as an event of Chrome's format") {
  const std::string path = std::filesystem::temp_directory_path() / ("duet-trace-" + std::to_string(::getpid()) + ".json");
  ::setenv("DUET_TRACE_FILE", path.c_str(), 1);
  Lines log;
  uint32_t n_layer = 0;
  {
    const auto lib = layers::library("trace", log);
    const auto m = load(lib, golden::path("tiny.pth"), "reference");
    n_layer = info(m).n_layer;
    (void)forward(session(m, DUET_MODE_PARALLEL), state(m), ragged().tokens);
    CHECK_FALSE(std::filesystem::exists(path));  // whole, or not at all
  }
  ::unsetenv("DUET_TRACE_FILE");
  CHECK(n_layer > 1);
  CHECK(counts_in(log) == one_pass(n_layer));

  const auto events = nlohmann::json::parse(golden::slurp(path)).at("traceEvents");
  std::filesystem::remove(path);
  Counts counts;
  double end = 0;
  for (const auto& e : events) {
    ++counts[e.at("name")];
    CHECK(e.at("ph") == "X");
    CHECK(e.at("args").at("layer") <= n_layer);
    CHECK(e.at("args").at("tokens") == 15);
    CHECK(e.at("args").at("mode") == "parallel");
    CHECK(e.at("dur") >= 0);
    CHECK(e.at("ts").get<double>() >= end - 0.01);  // one after another
    end = e.at("ts").get<double>() + e.at("dur").get<double>();
  }
  CHECK(counts == one_pass(n_layer));
}

TEST_CASE("a trace file that cannot be written fails the load, and nothing that ran leaves none") {
  ::setenv("DUET_TRACE_FILE", "/nonexistent/trace.json", 1);
  Lines log;
  CHECK(says(fault_of_load(layers::library("trace", log), "reference", DUET_E_IO), "the layer trace: /nonexistent/trace.json: cannot be written: "));
  const std::string path = std::filesystem::temp_directory_path() / ("duet-no-trace-" + std::to_string(::getpid()) + ".json");
  ::setenv("DUET_TRACE_FILE", path.c_str(), 1);
  CHECK(fault_of_load(layers::library("trace", log), "reference", DUET_OK).empty());
  ::unsetenv("DUET_TRACE_FILE");
  CHECK_FALSE(std::filesystem::exists(path));
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::temp_directory_path()))
    if (entry.path().string().rfind(path, 0) == 0) FAIL_CHECK("left " << entry.path());
}

TEST_CASE("a trace replaces regular files only, what a link points to, and is not stopped by what a killed process has left") {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ("duet-trace-folder-" + std::to_string(::getpid()));
  fs::create_directory(folder);
  const fs::path pipe = folder / "pipe", target = folder / "target", link = folder / "link";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  Lines log;
  for (const fs::path& path : {folder, pipe}) {
    ::setenv("DUET_TRACE_FILE", path.c_str(), 1);
    CHECK(says(fault_of_load(layers::library("trace", log), "reference", DUET_E_IO), path.string() + ": is not a regular file"));
  }
  CHECK(fs::is_fifo(pipe));

  for (const fs::path& file : {target, folder / ("target.tmp." + std::to_string(::getpid()))}) std::ofstream(file) << "old";
  fs::create_symlink(target, link);
  ::setenv("DUET_TRACE_FILE", link.c_str(), 1);
  {
    const auto lib = layers::library("trace", log);
    const auto m = load(lib, golden::path("tiny.pth"), "reference");
    (void)forward(session(m, DUET_MODE_PARALLEL), state(m), ragged().tokens);
  }
  ::unsetenv("DUET_TRACE_FILE");
  CHECK(fs::is_symlink(link));
  CHECK(nlohmann::json::parse(golden::slurp(target)).contains("traceEvents"));
  CHECK(std::distance(fs::directory_iterator(folder), {}) == 4);  // nothing else is left
  fs::remove_all(folder);
}
