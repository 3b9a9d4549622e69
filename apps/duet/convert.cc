#include "files.h"
#include "progress.h"
#include "runtime.h"
#include "subcommands.h"

namespace duet {

void run_convert(const Arguments& arguments) {
  FileOptions file;
  LibraryOptions library_options;
  std::string in, out;
  duet_dtype dtype = 0;
  bool force = false;
  Options options("convert", "IN OUT [OPTIONS]", "Writes a model as safetensors with official names. OUT appears whole or not at all.");
  options.argument("IN", in).argument("OUT", out).dtype(dtype, "f32, bf16, f16, q8 or q4: the matrices in OUT (default: as stored); vectors keep their dtype").flag("force", force, "replace OUT if it exists");
  file.declare(options);
  library_options.declare(options);
  if (!options.parse(arguments)) return;
  check_output(out, {in});
  if (!force) check_absent(out);

  const Library library = library_options.open();
  Progress progress("converting", library_options.quiet);
  auto o = DUET_INIT(duet_convert_options);
  o.weights = dtype;
  o.overwrite = force ? 1 : 0;
  o.flags = file.flags();
  o.progress = Progress::call;
  o.progress_user = &progress;
  check(duet_file_convert(library.get(), in.c_str(), out.c_str(), &o));
}

}  // namespace duet
