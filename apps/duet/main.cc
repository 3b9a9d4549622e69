// duet: RWKV-7 on the command line. Chooses the subcommand and turns the way it ends into the exit code.
#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "duet.h"
#include "options.h"
#include "subcommands.h"
#include "terminal.h"

namespace duet {
namespace {

struct Subcommand {
  const char* name;
  const char* summary;
  void (*run)(const Arguments&);
};

constexpr Subcommand kSubcommands[] = {
    {"generate", "continue a text", run_generate},
    {"logits", "write the logits and the state after given tokens", run_logits},
    {"tokenize", "text to token ids, or back", run_tokenize},
    {"eval", "score documents: loss, bits per byte, perplexity", run_eval},
    {"info", "what a model file holds", run_info},
    {"convert", "rewrite a model as safetensors, in another dtype if wanted", run_convert},
    {"init", "make a fresh model with the official initialisation", run_init},
    {"backends", "the devices that can be computed on", run_backends},
    {"doctor", "every plugin that was considered, and why it was or was not taken", run_doctor},
    {"bench", "measure the speed of both modes", run_bench},
};

std::string overview() {
  std::string out = "Usage: duet SUBCOMMAND [OPTIONS]\n\nRWKV-7 in two modes: parallel reads a prompt at once, recurrent writes a token at a time,\nand both share one state.\n\n";
  for (const Subcommand& s : kSubcommands) out += fmt::format("  {:<10} {}\n", s.name, s.summary);
  return out +
         "\n  duet SUBCOMMAND --help, duet help SUBCOMMAND   its options\n"
         "  duet --version                                 the version\n"
         "\nExit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n"
         "Environment: DUET_BACKEND chooses the backend, DUET_PLUGIN_PATH replaces the search for plugins, DUET_LAYERS puts\n             layers around the backend, NO_COLOR turns colours off.\n";
}

const Subcommand& find(const std::string& name) {
  std::vector<std::string> names;
  for (const Subcommand& s : kSubcommands) {
    if (name == s.name) return s;
    names.emplace_back(s.name);
  }
  const std::string near = nearest(name, names);
  throw Usage(fmt::format("there is no {} '{}'{}", name.compare(0, 1, "-") == 0 ? "option" : "subcommand", name, near.empty() ? "" : fmt::format("; did you mean {}?", near)));
}

void dispatch(Arguments arguments, std::string& subcommand) {
  if (arguments.empty()) throw Usage("a subcommand is missing");
  const std::string first = arguments.front();
  arguments.erase(arguments.begin());
  if (first == "--version") {
    if (!arguments.empty()) throw Usage("--version stands alone");
    write_out(fmt::format("duet {}\n", duet_version_string()));
  } else if (first == "help" || first == "--help" || first == "-h") {
    if (arguments.size() > 1) throw Usage("help takes one subcommand");
    if (arguments.empty())
      write_out(overview());
    else
      find(arguments.front()).run({"--help"});
  } else {
    const Subcommand& chosen = find(first);
    subcommand = chosen.name;
    chosen.run(arguments);
  }
}

int run(const Arguments& arguments) {
  std::string subcommand;
  const auto report = [&](const char* sentence) {
    write_error(fmt::format("duet{}{}: {} {}\n", subcommand.empty() ? "" : " ", subcommand, on_error(Colour::red, "error:"), sentence));
  };
  try {
    dispatch(arguments, subcommand);
    return EXIT_OK;
  } catch (const Interrupted&) {
    return EXIT_INTERRUPTED;
  } catch (const Usage& e) {
    report(e.what());
    write_error(fmt::format("Try 'duet {}--help'.\n", subcommand.empty() ? "" : subcommand + " "));
    return EXIT_USAGE;
  } catch (const std::bad_alloc&) {
    report("out of memory");
  } catch (const std::exception& e) {
    report(e.what());
  }
  return EXIT_FAILED;
}

}  // namespace
}  // namespace duet

int main(int argc, char** argv) {
  duet::prepare_process();
  return duet::run(duet::Arguments(argv + std::min(argc, 1), argv + argc));
}
