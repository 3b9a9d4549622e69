// One exception type for the cold code (loading, parsing, configuring). capi/guard.h turns it into a status and a
// sentence at the C border; nothing crosses it. Hot code returns duet_status.
#pragma once
#include <exception>
#include <string>
#include <utility>

#include "base/format.h"
#include "duet_types.h"

namespace duet {

class Error : public std::exception {
 public:
  Error(duet_status code, std::string text) : code_(code), text_(std::move(text)) {}
  duet_status code() const noexcept { return code_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  duet_status code_;
  std::string text_;
};

// fail(DUET_E_FORMAT, "{}: entry {} ends at byte {}, beyond the file", path, i, end)
template <class... A>
[[noreturn]] void fail(duet_status code, fmt::format_string<A...> format, A&&... args) {
  throw Error(code, duet::format(format, std::forward<A>(args)...));
}

// Bytes of a foreign file or argument as text for a message: control characters and invalid UTF-8 escaped, cut at `limit`.
std::string printable(std::string_view bytes, size_t limit = 80);

// strerror for this thread
std::string os_reason(int errno_value);

}  // namespace duet
