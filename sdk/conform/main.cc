// duet-conform: checks one device of a plugin against the reference backend, which is compiled in.
#include <getopt.h>
#include <stdlib.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>

#include "conform/checks.h"
#include "conform/crash.h"
#include "conform/perf.h"
#include "plugin/elf_note.h"
#include "plugin/load.h"

namespace conform {
namespace {

constexpr const char* kUsage =
    "usage: duet-conform --plugin FILE [options]\n"
    "Checks a plugin for Duet against the reference backend. One line for each stage or rung, dtype and mode.\n"
    "\n"
    "  --plugin FILE   the plugin's library\n"
    "  --device N      its device, from 0 (0)\n"
    "  --stage NAME    only this: a stage (wkv, \"linear r\"), memory, state, sample, network, layers, step\n"
    "  --rung N        only this rung of the ladder: 1 stages, 2 layers, 3 step\n"
    "  --seed N        other random numbers (1)\n"
    "  --quick         fewer shapes and lengths\n"
    "  --expect FILE   what is expected to fail or to be unsupported, with reasons; what is not as the list says fails\n"
    "  --perf          measures instead of checking: time, bytes, and the time in which this memory moves them\n"
    "  --json          the report as JSON\n"
    "  --help\n"
    "\n"
    "The file of --expect: lines \"fail|unsupported SUBJECT[, DTYPE[, MODE]]: REASON\"; SUBJECT as in the report, or * for all.\n"
    "Exit code: 0 the plugin conforms, 1 it does not or could not be opened, 2 wrong usage.\n";

struct Usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  std::string plugin, stage;
  uint32_t device = 0, rung = 0;
  uint64_t seed = 1;
  Expectations expect;
  bool quick = false, perf = false, json = false, help = false;
};

template <class T>
T number(const char* option, const char* text, T lowest, T highest) {
  T value{};
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, value);
  if (error != std::errc() || stop != end || value < lowest || value > highest)
    throw Usage(std::string(option) + ": '" + text + "' is not a whole number from " + std::to_string(lowest) + " to " + std::to_string(highest));
  return value;
}

void check_stage_name(const std::string& stage) {
  std::set<std::string> names{"memory", "state", "sample", "network", "layers", "step"};
  for (const StageCase& c : stage_cases()) names.insert({c.stage, c.name()});
  if (stage.empty() || names.count(stage)) return;
  std::string list;
  for (const std::string& n : names) list += (list.empty() ? "" : ", ") + n;
  throw Usage("--stage: there is no '" + stage + "'; there are " + list);
}

Expectations read_expectations(const char* file) {
  try {
    return Expectations(file);
  } catch (const std::exception& e) {
    throw Usage(std::string("--expect: ") + e.what());
  }
}

Options parse(int argc, char** argv) {
  const option names[] = {{"plugin", required_argument, nullptr, 'p'},
                          {"device", required_argument, nullptr, 'd'},
                          {"stage", required_argument, nullptr, 's'},
                          {"rung", required_argument, nullptr, 'r'},
                          {"seed", required_argument, nullptr, 'n'},
                          {"quick", no_argument, nullptr, 'q'},
                          {"json", no_argument, nullptr, 'j'},
                          {"help", no_argument, nullptr, 'h'},
                          {"expect", required_argument, nullptr, 'e'},
                          {"perf", no_argument, nullptr, 'm'},
                          {}};
  Options o;
  int c;
  while ((c = ::getopt_long(argc, argv, "", names, nullptr)) != -1) switch (c) {
      case 'p': o.plugin = optarg; break;
      case 'd': o.device = number<uint32_t>("--device", optarg, 0, 63); break;
      case 's': o.stage = optarg; break;
      case 'r': o.rung = number<uint32_t>("--rung", optarg, 1, 3); break;
      case 'n': o.seed = number<uint64_t>("--seed", optarg, 0, UINT32_MAX); break;
      case 'e': o.expect = read_expectations(optarg); break;
      case 'm': o.perf = true; break;
      case 'q': o.quick = true; break;
      case 'j': o.json = true; break;
      case 'h': o.help = true; break;
      default: throw Usage("");  // getopt_long has said what is wrong
    }
  if (o.help) return o;
  if (optind < argc) throw Usage(std::string("there is no argument '") + argv[optind] + "'; the plugin goes after --plugin");
  if (o.plugin.empty()) throw Usage("--plugin FILE is missing");
  if (o.perf && o.expect.given()) throw Usage("--perf checks nothing, so that --expect would mean nothing");
  check_stage_name(o.stage);
  return o;
}

// The library's table, after what can be judged without running any of its code.
duetp_plugin load(const std::string& file) {
  char* resolved = ::realpath(file.c_str(), nullptr);
  if (resolved == nullptr) throw std::runtime_error(file + ": " + std::strerror(errno));
  const std::string path = resolved;
  ::free(resolved);
  duet::check_plugin_note(duet::read_plugin_note(path), path);
  return duet::load_plugin_table(path);
}

int run(const Options& o) {
  now_running("opening the plugin");
  const duetp_plugin plugin = load(o.plugin);
  if (o.perf) {
    Device device(plugin, 0, o.device);  // with a thread for each core
    return measure({device, o.stage, o.rung, o.seed, o.quick, o.json});
  }
  Device device(plugin, 2, o.device), reference(reference_plugin(), 1);
  const std::string spec = device.slots().spec, name = device.slots().info.name;
  Report report(o.json, o.expect);
  Context x{device, reference, report, o.seed, o.quick, o.stage};
  if (o.rung == 0) check_memory(x), check_stored(x);
  if (o.rung <= 1) check_stages(x);
  if (o.rung == 0) check_sample(x);
  for (uint32_t rung = 1; rung <= 3; ++rung)
    if (o.rung == 0 || o.rung == rung) check_network(x, rung);
  check_process(x);
  return report.finish(spec, name, o.stage.empty() && o.rung == 0);
}

}  // namespace
}  // namespace conform

int main(int argc, char** argv) {
  try {
    const conform::Options o = conform::parse(argc, argv);
    if (o.help) return std::fputs(conform::kUsage, stdout) < 0;
    if constexpr (DUETP_SANITIZER == 0) conform::name_crashes();  // a sanitizer has more to say
    return conform::run(o);
  } catch (const conform::Usage& e) {
    if (*e.what()) std::fprintf(stderr, "duet-conform: %s\n", e.what());
    std::fputs("duet-conform --help shows the options\n", stderr);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "duet-conform: %s\n", e.what());
    return 1;
  }
}
