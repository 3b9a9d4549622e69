// Checks of what callers hand over.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "base/utf8.h"
#include "capi/guard.h"

namespace duet {

inline void require(const void* p, const char* name) {
  if (!p) fail(DUET_E_INVALID, "{} is NULL", name);
}

constexpr uint64_t kMaxTokens = 1u << 24;  // of one call
constexpr uint32_t kMaxStruct = 4096;  // no struct of this API will ever be larger: a larger `size` is garbage

// The caller's struct, whichever version of it: missing fields read as zero, unknown ones must be zero.
// `first` = size of the struct's first version.
template <class T>
T read_struct(const T* given, const char* name, uint32_t first = sizeof(T)) {
  T out{};
  out.size = sizeof(T);
  if (!given) return out;
  const uint32_t size = given->size;
  if (size < first || size > kMaxStruct)
    fail(DUET_E_ABI, "{}->size is {}, but the struct has at least {} bytes; initialise it with DUET_INIT", name, size, first);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (uint32_t i = sizeof(T); i < size; ++i)
    if (bytes[i] != 0) fail(DUET_E_ABI, "{}: a field at byte {} is set that this library ({} bytes) does not know", name, i, sizeof(T));
  std::memcpy(&out, given, std::min<size_t>(size, sizeof(T)));
  out.size = sizeof(T);
  return out;
}

// Fills the caller's struct as far as it goes; its `size` stays.
template <class T>
void write_struct(T* to, T from, const char* name, uint32_t first = sizeof(T)) {
  require(to, name);
  if (to->size < first || to->size > kMaxStruct)
    fail(DUET_E_ABI, "{}->size is {}, but the struct has at least {} bytes; initialise it with DUET_INIT", name, to->size, first);
  from.size = to->size;
  std::memcpy(to, &from, std::min<size_t>(to->size, sizeof(T)));
}

// A NUL-terminated string of at most `limit` bytes; NULL gives "".
inline std::string text_argument(const char* s, const char* name, size_t limit = 65536) {
  if (!s) return {};
  const size_t n = ::strnlen(s, limit + 1);
  if (n > limit) fail(DUET_E_LIMIT, "{} is longer than {} bytes", name, limit);
  return {s, n};
}
inline std::string path_argument(const char* s, const char* name) {
  require(s, name);
  std::string path = text_argument(s, name);
  if (path.empty()) fail(DUET_E_INVALID, "{} is empty", name);
  return path;
}

// The two-call protocol for sizes: writes *out_size always. False: only the size was asked for; else there is room for `n`.
template <class T>
bool give_size(size_t n, const T* dst, size_t cap, size_t* out_size) {
  require(out_size, "out_size");
  if (!dst && cap > 0) fail(DUET_E_INVALID, "dst is NULL but cap is {}", cap);
  *out_size = n;
  if (dst && n > cap) fail(DUET_E_SMALL, "the result has {} elements, but there is room for {}", n, cap);
  return dst != nullptr;
}
template <class T>
void give(const T* from, size_t n, T* dst, size_t cap, size_t* out_size) {
  if (give_size(n, dst, cap, out_size)) std::copy_n(from, n, dst);
}
inline void give_text(const std::string& text, char* dst, size_t cap, size_t* out_size) {
  give(text.data(), text.size(), dst, cap, out_size);
  if (dst && cap > text.size()) dst[text.size()] = '\0';
}

}  // namespace duet
