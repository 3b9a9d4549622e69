#include "files.h"
#include "progress.h"
#include "runtime.h"
#include "subcommands.h"

namespace duet {

void run_init(const Arguments& arguments) {
  std::string out;
  auto o = DUET_INIT(duet_init_options);
  o.head_size = 64;
  bool force = false;
  LibraryOptions library_options;
  Options options("init", "--layers L --embd C --vocab-size V OUT [OPTIONS]",
                  "Writes a fresh model with the official initialisation and the current trainer's ranks, as safetensors. The same\n"
                  "options give the same file.");
  options.argument("OUT", out)  // the ranges are the library's limits
      .number<uint32_t>("layers", "L", o.n_layer, 1, 4096, "layers")
      .number<uint32_t>("embd", "C", o.n_embd, 1, 65536, "width, a multiple of the head size")
      .number<uint32_t>("vocab-size", "V", o.n_vocab, 1, 1u << 20, "vocabulary size")
      .number<uint32_t>("head-size", "N", o.head_size, 1, 1024, "channels of a head (default: 64)")
      .number<uint64_t>("seed", "S", o.seed, 0, UINT64_MAX, "seed of the initialisation (default: 0)")
      .dtype(o.weights, "f32, bf16 or f16: the matrices (default: f32)")
      .flag("force", force, "replace OUT if it exists")
      .flag("quiet", library_options.quiet, "no progress on standard error");
  if (!options.parse(arguments)) return;
  for (const char* name : {"layers", "embd", "vocab-size"}) options.require(name);
  check_output(out, {});
  if (!force) check_absent(out);
  o.overwrite = force ? 1 : 0;
  const Library library = library_options.open();
  Progress progress("initialising", library_options.quiet);
  o.progress = Progress::call;
  o.progress_user = &progress;
  check(duet_file_init(library.get(), out.c_str(), &o));
}

}  // namespace duet
