#include "text/tokenizer.h"

#include "base/error.h"
#include "base/file.h"

namespace duet {

Tokenizer::Tokenizer(std::string_view text, std::string_view file)
    : file_(printable(file, 300)), vocabulary_(parse_vocabulary(text, file_)), trie_(vocabulary_, sort_tokens(vocabulary_, file_)) {
  vocabulary_.pool.shrink_to_fit();
}

Tokenizer Tokenizer::load(const std::string& path) {
  const MappedFile file(path);
  Tokenizer out(as_text(file.bytes()), path);
  file.check_unchanged();
  return out;
}

std::string_view Tokenizer::bytes(int32_t token) const {
  if (token < 0 || static_cast<uint32_t>(token) >= size()) fail(DUET_E_INVALID, "{}: no token {}; its tokens are 0 to {}", file_, token, size() - 1);
  return vocabulary_.bytes(static_cast<uint32_t>(token));
}

void Tokenizer::check_fits(uint32_t n_vocab, std::string_view model) const {
  constexpr uint32_t kMaxUnused = 64;  // rows that pad a model's vocabulary to a round size
  if (n_vocab < size() || n_vocab - size() > kMaxUnused)
    fail(DUET_E_INVALID, "{} has tokens 0 to {}, but {} has {} rows (at most {} more than tokens are expected): this is another model's vocabulary", file_,
         size() - 1, model, n_vocab, kMaxUnused);
}

}  // namespace duet
