#include <fmt/format.h>

#include "files.h"
#include "runtime.h"
#include "subcommands.h"

namespace duet {

void run_tokenize(const Arguments& arguments) {
  std::string vocab, file;
  bool decode = false;
  Options options("tokenize", "[OPTIONS]", "Writes the token ids of a text as a JSON array, or with --decode the bytes of given token ids.");
  options.file("vocab", "FILE", vocab, "vocabulary in World format (default: the World vocabulary)")
      .file("file", "FILE", file, "read this file (default: standard input)")
      .flag("decode", decode, "read token ids (a JSON array, or separated by commas or blanks) and write their bytes");
  if (!options.parse(arguments)) return;

  const std::string input = read_text(file);
  const Library library = LibraryOptions().open();
  const Tokenizer tokenizer = make<Tokenizer>(duet_tokenizer_load, library.get(), vocab.empty() ? nullptr : vocab.c_str());
  if (decode) {
    const std::vector<int32_t> tokens = parse_tokens(input, file.empty() ? "standard input" : file);
    write_out(get_text(duet_tokenizer_decode, tokenizer.get(), tokens.data(), tokens.size()));
    return;
  }
  write_out(fmt::format("[{}]\n", fmt::join(encode(tokenizer.get(), input), ",")));
}

}  // namespace duet
