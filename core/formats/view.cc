#include "formats/view.h"

#include <utility>

#include "base/utf8.h"

namespace duet {

uint64_t View::count() const {
  uint64_t n = 1;
  for (size_t i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

bool View::dense() const {
  uint64_t expected = 1;
  for (size_t i = rank; i-- > 0;) {
    if (shape[i] == 0) return true;
    if (shape[i] > 1 && step[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

void View::set_row_major() {
  uint64_t n = 1;
  for (size_t i = rank; i-- > 0;) {
    step[i] = n;
    n *= shape[i];
  }
}

void View::swap_last() {
  std::swap(shape[rank - 1], shape[rank - 2]);
  std::swap(step[rank - 1], step[rank - 2]);
}

void check_name(std::string_view name, std::string_view file) {
  if (name.size() > kMaxName) fail(DUET_E_LIMIT, "{}: a tensor's name of {} bytes, more than the {} allowed: {}", file, name.size(), kMaxName, printable(name));
  bool ok = !name.empty() && utf8_valid(name);
  for (const char c : name) ok = ok && static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
  if (!ok) fail(DUET_E_FORMAT, "{}: \"{}\" cannot be a tensor's name", file, printable(name));
}

std::string View::shape_text() const {
  std::string out = "[";
  for (size_t i = 0; i < rank; ++i) out += duet::format("{}{}", i ? ", " : "", shape[i]);
  return out + "]";
}

}  // namespace duet
