// The one way in which bytes of a file become numbers: a bounded reader and checked arithmetic. Every error names the
// file and the offset. Nothing here allocates but the message of an error.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace duet {

using Bytes = std::span<const std::byte>;

inline std::string_view as_text(Bytes b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }
inline Bytes as_bytes(std::string_view s) { return {reinterpret_cast<const std::byte*>(s.data()), s.size()}; }

// a + b, a * b: false on overflow.
[[nodiscard]] inline bool checked_add(uint64_t a, uint64_t b, uint64_t& out) { return !__builtin_add_overflow(a, b, &out); }
[[nodiscard]] inline bool checked_mul(uint64_t a, uint64_t b, uint64_t& out) { return !__builtin_mul_overflow(a, b, &out); }

// Little-endian reader over a span that it does not own.
class ByteReader {
 public:
  // `file` for messages; `base` = offset of the span in the file
  ByteReader(Bytes bytes, std::string_view file, uint64_t base = 0) : bytes_(bytes), file_(file), base_(base) {}

  size_t left() const { return bytes_.size() - at_; }
  uint64_t offset() const { return base_ + at_; }  // in the file

  Bytes take(uint64_t n, const char* what) {
    if (n > left()) fail(DUET_E_FORMAT, "{}: {} at byte {} needs {} bytes, but only {} are left", file_, what, offset(), n, left());
    const Bytes out = bytes_.subspan(at_, static_cast<size_t>(n));
    at_ += static_cast<size_t>(n);
    return out;
  }
  std::string_view text(uint64_t n, const char* what) { return as_text(take(n, what)); }
  void skip(uint64_t n, const char* what) { (void)take(n, what); }
  uint8_t u8(const char* what) { return number<uint8_t>(what); }
  uint16_t u16(const char* what) { return number<uint16_t>(what); }
  uint32_t u32(const char* what) { return number<uint32_t>(what); }
  uint64_t u64(const char* what) { return number<uint64_t>(what); }

 private:
  template <class T>
  T number(const char* what) {
    const Bytes b = take(sizeof(T), what);
    uint64_t v = 0;
    for (size_t i = sizeof(T); i-- > 0;) v = v << 8 | std::to_integer<uint64_t>(b[i]);
    return static_cast<T>(v);
  }

  Bytes bytes_;
  std::string_view file_;
  uint64_t base_;
  size_t at_ = 0;
};

// bytes[offset, offset+n), or an error naming `what`
inline Bytes sub_bytes(Bytes bytes, uint64_t offset, uint64_t n, std::string_view file, std::string_view what) {
  if (offset > bytes.size() || n > bytes.size() - offset)
    fail(DUET_E_FORMAT, "{}: {} lies at bytes {} to {}+{}, beyond the {} bytes there are", file, what, offset, offset, n, bytes.size());
  return bytes.subspan(static_cast<size_t>(offset), static_cast<size_t>(n));
}

}  // namespace duet
