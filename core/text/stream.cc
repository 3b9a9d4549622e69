#include "text/stream.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"

namespace duet {
namespace {

struct Piece {
  size_t n;      // bytes, at least 1
  bool is_whole; // a character
  bool is_open;  // not yet one: the bytes end inside it
};

// What `s` begins with: a character, or the longest part of one.
Piece first_piece(std::string_view s) {
  if (const size_t n = utf8_length(s); n > 0) return {n, true, false};
  const auto byte = [s](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char lead = byte(0);
  const size_t needs = lead >= 0xc2 && lead <= 0xdf ? 2 : lead >= 0xe0 && lead <= 0xef ? 3 : lead >= 0xf0 && lead <= 0xf4 ? 4 : 1;
  unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80, high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  size_t n = 1;
  for (; n < needs && n < s.size() && byte(n) >= low && byte(n) <= high; ++n) low = 0x80, high = 0xbf;
  return {n, false, n < needs && n == s.size()};
}

}  // namespace

TextStream::TextStream(std::vector<std::string> stop_texts) {
  for (std::string& text : stop_texts) {
    if (text.empty() || !utf8_valid(text)) fail(DUET_E_INVALID, "stop text '{}': it must be UTF-8 and not empty", printable(text));
    Stop stop{std::move(text), {0, 0}};
    for (size_t n = 1; n < stop.text.size(); ++n) {
      uint32_t k = stop.border[n];
      while (k > 0 && stop.text[k] != stop.text[n]) k = stop.border[k];
      stop.border.push_back(k + (stop.text[k] == stop.text[n] ? 1 : 0));
    }
    stops_.push_back(std::move(stop));
  }
}

bool TextStream::Stop::advance(char c) {
  while (matched > 0 && text[matched] != c) matched = border[matched];
  if (text[matched] == c) ++matched;
  return matched == text.size();
}

std::string TextStream::push(std::string_view bytes) {
  for (const char c : bytes) {
    if (stopped_) return {};
    held_ += c;
    size_t n_stop = 0;  // bytes of the stop text that ends here
    for (Stop& stop : stops_)
      if (stop.advance(c)) n_stop = std::max(n_stop, stop.text.size());
    if (n_stop > 0) {
      stopped_ = true;
      return release(held_.size() - n_stop, true);
    }
  }
  size_t n_maybe = 0;  // bytes that may be the beginning of a stop text
  for (const Stop& stop : stops_) n_maybe = std::max<size_t>(n_maybe, stop.matched);
  return release(held_.size() - n_maybe, false);
}

std::string TextStream::finish() {
  if (stopped_) return {};
  return release(held_.size(), true);
}

// A stop text begins with the first byte of a character, so it never begins inside of one.
std::string TextStream::release(size_t end, bool is_last) {
  std::string out;
  while (begin_ < end) {
    const std::string_view rest = std::string_view(held_).substr(begin_);
    const Piece piece = first_piece(is_last ? rest.substr(0, end - begin_) : rest);
    if (piece.is_open && !is_last) break;
    if (piece.is_whole) {
      out.append(rest, 0, piece.n);
    } else {
      out += "\xef\xbf\xbd";
    }
    begin_ += piece.n;
  }
  if (begin_ > held_.size() / 2) {  // moving what is left costs less than what has come out
    held_.erase(0, begin_);
    begin_ = 0;
  }
  return out;
}

}  // namespace duet
