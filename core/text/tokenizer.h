// World-format tokenizer: greedy longest match over bytes with a trie. Immutable after construction.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

class Tokenizer {
 public:
  // `text` is the vocabulary file's content, `file` its name for messages. A line is `<id> <literal> <byte length>`; the
  // literal is a Python str or bytes literal, read as data (never evaluated). DUET_E_FORMAT names file, line and column;
  // DUET_E_LIMIT: file above 64 MiB, token above 4 KiB, id above 2^20.
  Tokenizer(std::string_view text, std::string_view file);
  static Tokenizer load(const std::string& path);

  uint32_t size() const { return static_cast<uint32_t>(offset_.size() - 1); }  // largest id + 1
  // Any bytes; never fails, never yields token 0. O(text * longest token), no recursion.
  void encode(std::string_view text, std::vector<int32_t>& out) const;
  // Bytes of a token: "" for token 0 and for ids that the file leaves out. DUET_E_INVALID outside [0, size()).
  std::string_view bytes(int32_t token) const;
  void check_fits(uint32_t n_vocab, std::string_view model) const;  // DUET_E_INVALID naming both sizes

 private:
  std::string pool_;              // bytes of all tokens, one after another
  std::vector<uint32_t> offset_;  // [size()+1] into pool_
  std::string file_;
  // trie members, private to the implementation: the text/tokenizer.cc author chooses them
};

}  // namespace duet
