// A World-format vocabulary: the bytes of its tokens, read from a text that may be hostile.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

struct Vocabulary {
  std::string pool;              // bytes of all tokens, one after another, in the order of ids
  std::vector<uint32_t> offset;  // [size()+1] into pool; token 0 is empty

  uint32_t size() const { return static_cast<uint32_t>(offset.size() - 1); }  // largest id + 1
  std::string_view bytes(uint32_t token) const { return {pool.data() + offset[token], offset[token + 1] - offset[token]}; }
};

// Reads lines `<id> <literal> <byte length>`, ids 1, 2, 3, ... in order, so that id n stands on line n. The literal is '..'
// or "..", where \xNN, \uNNNN and \UNNNNNNNN are code points that become UTF-8, or b'..' or b"..", where \xNN is a byte; the
// other escapes are \\ \' \" \t \n \r. Lines end in LF or CRLF, the last one may end without. Nothing else is accepted.
// Allocates the size of the text and 4 MiB. DUET_E_FORMAT and DUET_E_LIMIT name file, line and column.
Vocabulary parse_vocabulary(std::string_view text, std::string_view file);

// The ids in the order of their bytes. DUET_E_FORMAT if two tokens have the same bytes (both lines are named), or if one of
// the 256 single bytes has no token: then some text could not be encoded. Allocates 4 bytes a token.
std::vector<uint32_t> sort_tokens(const Vocabulary& vocabulary, std::string_view file);

}  // namespace duet
