// UTF-8, the strict form of RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once
#include <cstddef>
#include <string_view>

namespace duet {

// Length of the character that `s` begins with; 0 if s is empty, malformed or cut short there.
inline size_t utf8_length(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  if (s.empty()) return 0;
  const unsigned char a = byte(0);
  if (a < 0x80) return 1;
  const size_t n = a >= 0xc2 && a <= 0xdf ? 2 : a >= 0xe0 && a <= 0xef ? 3 : a >= 0xf0 && a <= 0xf4 ? 4 : 0;
  if (n == 0 || s.size() < n) return 0;
  for (size_t i = 1; i < n; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  if (a == 0xe0 && byte(1) < 0xa0) return 0;  // overlong
  if (a == 0xed && byte(1) > 0x9f) return 0;  // surrogate
  if (a == 0xf0 && byte(1) < 0x90) return 0;  // overlong
  if (a == 0xf4 && byte(1) > 0x8f) return 0;  // above U+10FFFF
  return n;
}

inline bool utf8_valid(std::string_view s) {
  while (!s.empty()) {
    const size_t n = utf8_length(s);
    if (n == 0) return false;
    s.remove_prefix(n);
  }
  return true;
}

}  // namespace duet
