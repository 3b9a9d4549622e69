// What a container's directory says about one tensor, before anything is allocated: a strided window into mapped bytes.
// Renaming, transposing and splitting only change windows; the data move once, at the end, if they have to move at all.
#pragma once
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>

#include "formats/checkpoint.h"

namespace duet {

constexpr size_t kMaxTensors = 65536, kMaxRank = 8, kMaxName = 256;

struct View {
  std::string name;
  DType dtype = DType::f32;
  uint8_t rank = 0;
  uint32_t record = 0;                           // which checksum covers the storage (zip)
  std::array<uint64_t, kMaxRank> shape{}, step;  // step: distance of neighbours, in elements
  uint64_t first = 0;                            // element of `storage` at which the window begins
  Bytes storage;

  uint64_t count() const;                          // checked when the directory was read
  uint64_t bytes() const { return count() * dtype_bytes(dtype); }
  const std::byte* data() const { return storage.data() + first * dtype_bytes(dtype); }
  bool dense() const;                              // row-major without gaps
  void set_row_major();                            // step from shape
  void swap_last();                                // transpose of the last two dimensions
  std::string shape_text() const;                  // "[128, 32]"
};

struct Directory {
  std::string format;
  std::deque<View> views;
  std::map<std::string, std::string> metadata;
  float gn_eps = 64e-5f;
  std::function<void(const View&)> check_storage;  // compares the checksum of the view's storage; empty if the container has none
};

// 1 to kMaxName bytes of UTF-8 without control characters
void check_name(std::string_view name, std::string_view file);

// Things that are odd but harmless: a warning, or an error if the caller wants strictness.
class Notes {
 public:
  Notes(const Log& log, bool strict) : log_(log), strict_(strict) {}
  template <class... A>
  void warn(fmt::format_string<A...> format, A&&... args) const {
    const std::string text = duet::format(format, std::forward<A>(args)...);
    if (strict_) fail(DUET_E_FORMAT, "{} (strict reading was asked for)", text);
    log_.warn("{}", text);
  }

 private:
  const Log& log_;
  bool strict_;
};

}  // namespace duet
