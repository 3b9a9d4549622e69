#include "formats/json_reader.h"

#include "base/utf8.h"

namespace duet {

JsonReader::JsonReader(Bytes bytes, std::string_view file, uint64_t base) : text_(as_text(bytes)), file_(file), base_(base) {}

void JsonReader::bad(std::string_view found) const {
  fail(DUET_E_FORMAT, "{}: {}{}{} at byte {} of the header", file_, subject_, subject_.empty() ? "" : ": ", found, offset());
}

char JsonReader::peek() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) ++at_;
  return at_ < text_.size() ? text_[at_] : '\0';
}

bool JsonReader::next_is(char c) {
  if (peek() != c) return false;
  ++at_;
  return true;
}

void JsonReader::expect(char c) {
  if (!next_is(c)) bad(duet::format("\"{}\" found, '{}' expected", printable(text_.substr(at_, 1)), c));
}

void JsonReader::end() {
  if (peek(); at_ < text_.size()) bad(duet::format("{} bytes after the last bracket", text_.size() - at_));
}

uint64_t JsonReader::integer() {
  peek();
  const size_t start = at_;
  uint64_t v = 0;
  bool ok = true;
  for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_)
    ok = ok && checked_mul(v, 10, v) && checked_add(v, static_cast<uint64_t>(text_[at_] - '0'), v);
  const size_t digits = at_ - start;
  const bool more = at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E');
  if (!ok || digits == 0 || more || (digits > 1 && text_[start] == '0'))
    bad(duet::format("\"{}\" is not a whole number of 64 bits,", printable(text_.substr(start, 24))));
  return v;
}

std::string JsonReader::text(size_t limit) {
  expect('"');
  const size_t start = at_;
  size_t stop = start;
  while (stop < text_.size() && text_[stop] != '"') stop += text_[stop] == '\\' ? 2 : 1;
  if (stop >= text_.size()) bad("text without an end");
  const auto check = [&](size_t bytes) {
    if (bytes > limit)
      fail(DUET_E_LIMIT, "{}: {}{}text of {} bytes at byte {} of the header, more than the {} allowed", file_, subject_, subject_.empty() ? "" : ": ", bytes,
           base_ + start, limit);
  };
  check((stop - start) / 6);  // the longest escape, \u0041, is 6 bytes for one
  std::string out;
  out.reserve(stop - start);
  while (at_ < stop) {
    const char c = text_[at_];
    if (static_cast<unsigned char>(c) < 0x20) bad("a control character in text");
    ++at_;
    if (c == '\\') escape(out);
    else out += c;
  }
  at_ = stop + 1;
  check(out.size());
  if (!utf8_valid(out)) bad(duet::format("\"{}\" is not UTF-8,", printable(out)));
  return out;
}

void JsonReader::escape(std::string& out) {
  const char c = text_[at_++];
  switch (c) {
    case '"':
    case '\\':
    case '/': out += c; return;
    case 'b': out += '\b'; return;
    case 'f': out += '\f'; return;
    case 'n': out += '\n'; return;
    case 'r': out += '\r'; return;
    case 't': out += '\t'; return;
    case 'u': break;
    default: bad("an unknown escape in text");
  }
  uint32_t u = four_digits();
  if (u >= 0xd800 && u < 0xdc00 && text_.substr(at_, 2) == "\\u") {  // first half of a pair
    at_ += 2;
    const uint32_t low = four_digits();
    if (low < 0xdc00 || low > 0xdfff) bad("half a surrogate pair in text");
    u = 0x10000 + ((u - 0xd800) << 10) + (low - 0xdc00);
  }
  if (u < 0x80) {
    out += static_cast<char>(u);
  } else if (u < 0x800) {
    out += static_cast<char>(0xc0 | u >> 6);
    out += static_cast<char>(0x80 | (u & 0x3f));
  } else if (u < 0x10000) {  // a lone surrogate becomes invalid UTF-8 here, which text() refuses
    out += static_cast<char>(0xe0 | u >> 12);
    out += static_cast<char>(0x80 | (u >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (u & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | u >> 18);
    out += static_cast<char>(0x80 | (u >> 12 & 0x3f));
    out += static_cast<char>(0x80 | (u >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (u & 0x3f));
  }
}

uint32_t JsonReader::four_digits() {
  uint32_t u = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) bad("an escape of fewer than four hexadecimal digits in text");
    u = u << 4 | static_cast<uint32_t>(digit);
  }
  return u;
}

}  // namespace duet
