// World-format tokenizer: greedy longest match over bytes with a trie. Immutable after construction.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/trie.h"
#include "text/vocabulary.h"

namespace duet {

class Tokenizer {
 public:
  // `text` is the vocabulary file's content, `file` its name for messages. A line is `<id> <literal> <byte length>`; the
  // literal is a Python str or bytes literal, read as data (never evaluated). DUET_E_FORMAT names file, line and column;
  // DUET_E_LIMIT: file above 64 MiB, token above 4 KiB, id above 2^20.
  Tokenizer(std::string_view text, std::string_view file);
  static Tokenizer load(const std::string& path);

  uint32_t size() const { return vocabulary_.size(); }  // largest id + 1
  // Appends the tokens. Any bytes; never fails, never yields token 0. O(text * longest token), no recursion.
  void encode(std::string_view text, std::vector<int32_t>& out) const;
  // Bytes of a token: "" for token 0. DUET_E_INVALID outside [0, size()).
  std::string_view bytes(int32_t token) const;
  // DUET_E_INVALID naming both sizes, unless the model has a row for every token and at most 64 rows without one.
  void check_fits(uint32_t n_vocab, std::string_view model) const;

 private:
  std::string file_;
  Vocabulary vocabulary_;
  Trie trie_;
};

}  // namespace duet
