// A vocabulary of the 256 single bytes and some more tokens, as the text of its file.
#pragma once
#include <fmt/format.h>

#include <string>
#include <vector>

inline std::string byte_line(int b) { return fmt::format("{} b'\\x{:02x}' 1\n", b + 1, b); }

// Lines 1 to 256 are the bytes; more[i] stands on line 257 + i and holds `<literal> <length>`.
inline std::string small_vocabulary(const std::vector<std::string>& more = {}) {
  std::string out;
  for (int b = 0; b < 256; ++b) out += byte_line(b);
  for (size_t i = 0; i < more.size(); ++i) out += fmt::format("{} {}\n", 257 + i, more[i]);
  return out;
}
