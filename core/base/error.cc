#include "base/error.h"

#include <system_error>

#include "base/utf8.h"

namespace duet {

std::string printable(std::string_view bytes, size_t limit) {
  std::string out;
  size_t i = 0;
  while (i < bytes.size() && out.size() < limit) {
    const size_t n = utf8_length(bytes.substr(i));
    const auto c = static_cast<unsigned char>(bytes[i]);
    if (n > 0 && c >= 0x20 && c != 0x7f) {
      out.append(bytes.substr(i, n));
      i += n;
    } else {
      out += duet::format("\\x{:02x}", c);
      ++i;
    }
  }
  if (i < bytes.size()) out += "...";
  return out;
}

std::string os_reason(int errno_value) { return std::generic_category().message(errno_value); }

}  // namespace duet
