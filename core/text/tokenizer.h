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
  // Calls take(token) for one token after another. Any bytes; never fails, never yields token 0. O(text * longest token), no
  // recursion, no memory.
  template <class F>
  void encode(std::string_view text, F&& take) const {
    while (!text.empty()) {
      const Trie::Match match = trie_.longest(vocabulary_, text);
      take(static_cast<int32_t>(match.token));
      text.remove_prefix(match.n);
    }
  }
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
