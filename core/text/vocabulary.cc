#include "text/vocabulary.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"

namespace duet {
namespace {

constexpr size_t kMaxText = size_t{64} << 20, kMaxToken = 4096;
constexpr uint32_t kMaxId = (1 << 20) - 1;  // of the largest vocabulary that a model may have

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

void append_utf8(std::string& out, uint32_t code) {
  const auto tail = [code](int shift) { return static_cast<char>(0x80 | (code >> shift & 0x3f)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += {static_cast<char>(0xc0 | code >> 6), tail(0)};
  } else if (code < 0x10000) {
    out += {static_cast<char>(0xe0 | code >> 12), tail(6), tail(0)};
  } else {
    out += {static_cast<char>(0xf0 | code >> 18), tail(12), tail(6), tail(0)};
  }
}

class Parser {
 public:
  Parser(std::string_view text, std::string_view file) : text_(text), file_(file) {}

  Vocabulary parse() {
    if (text_.size() > kMaxText) fail(DUET_E_LIMIT, "{}: {} bytes, more than the {} allowed for a vocabulary", file_, text_.size(), kMaxText);
    if (text_.empty()) fail(DUET_E_FORMAT, "{}: the file is empty; a vocabulary has at least the 256 single bytes", file_);
    if (text_.substr(0, 3) == "\xef\xbb\xbf") fail(DUET_E_FORMAT, "{}: line 1, column 1: a byte order mark; save the file without one", file_);
    out_.pool.reserve(text_.size());  // a token is never longer than its literal
    out_.offset.reserve(std::min<size_t>(kMaxId, static_cast<size_t>(std::count(text_.begin(), text_.end(), '\n')) + 1) + 2);
    out_.offset = {0, 0};
    for (size_t begin = 0; begin < text_.size();) {
      const size_t end = std::min(text_.find('\n', begin), text_.size());
      line_ = text_.substr(begin, end - begin);
      if (!line_.empty() && line_.back() == '\r') line_.remove_suffix(1);
      at_ = 0;
      ++n_line_;
      token_line();
      begin = end + 1;
    }
    return std::move(out_);
  }

 private:
  void token_line() {
    if (line_.empty()) fail(DUET_E_FORMAT, "{}: line {} is empty", file_, n_line_);
    const uint64_t id = number("a token id");
    space();
    if (id > kMaxId) fail(DUET_E_LIMIT, "{}: line {}, column 1: the id is above {}", file_, n_line_, kMaxId);
    if (id == 0) fail(DUET_E_FORMAT, "{}: line {}, column 1: id 0 ends a text and must not be in the file; ids are 1, 2, 3, ...", file_, n_line_);
    if (id < n_line_) fail(DUET_E_FORMAT, "{}: line {}, column 1: id {} stands already on line {}", file_, n_line_, id, id);
    if (id > n_line_) fail(DUET_E_FORMAT, "{}: line {}, column 1: id {} follows id {}, so id {} is missing; ids are 1, 2, 3, ... in this order", file_, n_line_, id, n_line_ - 1, n_line_);
    literal();
    space();
    const size_t n = out_.pool.size() - out_.offset.back();
    if (n == 0) fail(DUET_E_FORMAT, "{}: line {}: the token is empty", file_, n_line_);
    const size_t column = at_ + 1;
    const uint64_t declared = number("the length in bytes");
    if (at_ < line_.size()) expected("the end of the line");
    if (declared != n) fail(DUET_E_FORMAT, "{}: line {}, column {}: declared {}{}, but the literal is {} bytes", file_, n_line_, column, declared > kMaxId ? "more than " : "", declared > kMaxId ? kMaxId : declared, n);
    out_.offset.push_back(static_cast<uint32_t>(out_.pool.size()));
  }

  // Digits; any value above kMaxId comes back as kMaxId + 1.
  uint64_t number(const char* what) {
    if (!is_digit(peek())) expected(what);
    uint64_t value = 0;
    for (; is_digit(peek()); ++at_) value = std::min<uint64_t>(value * 10 + static_cast<uint64_t>(peek() - '0'), kMaxId + 1);
    return value;
  }

  void space() {
    if (peek() != ' ') expected("a space");
    ++at_;
  }

  void literal() {
    const bool is_bytes = peek() == 'b';
    const char quote = peek(is_bytes ? 1 : 0);
    if (quote != '\'' && quote != '"') expected("a string literal, '..' or \"..\" or b'..' or b\"..\"");
    at_ += is_bytes ? 2 : 1;
    while (at_ < line_.size() && line_[at_] != quote) {
      const auto c = static_cast<unsigned char>(line_[at_]);
      if (c == '\\') {
        escape(is_bytes);
      } else if (c < 0x20 || c == 0x7f) {
        expected("a control character to be written as \\xNN");
      } else if (is_bytes && c >= 0x80) {
        expected("bytes above 0x7f to be written as \\xNN in a bytes literal");
      } else {
        const size_t n = utf8_length(line_.substr(at_, 4));
        if (n == 0) expected("UTF-8");
        out_.pool.append(line_, at_, n);
        at_ += n;
      }
      if (out_.pool.size() - out_.offset.back() > kMaxToken) fail(DUET_E_LIMIT, "{}: line {}: the token is longer than {} bytes", file_, n_line_, kMaxToken);
    }
    if (at_ == line_.size()) expected("the closing quote");
    ++at_;
  }

  void escape(bool is_bytes) {
    const char c = peek(1);
    switch (c) {
      case '\\': case '\'': case '"': out_.pool += c; break;
      case 't': out_.pool += '\t'; break;
      case 'n': out_.pool += '\n'; break;
      case 'r': out_.pool += '\r'; break;
      case 'x': return code_point(2, is_bytes);
      case 'u': if (!is_bytes) return code_point(4, false); [[fallthrough]];
      case 'U': if (!is_bytes) return code_point(8, false); [[fallthrough]];
      default: expected(is_bytes ? "one of the escapes \\\\ \\' \\\" \\t \\n \\r \\xNN" : "one of the escapes \\\\ \\' \\\" \\t \\n \\r \\xNN \\uNNNN \\UNNNNNNNN");
    }
    at_ += 2;
  }

  void code_point(size_t n_digits, bool is_byte) {
    uint64_t code = 0;
    for (size_t i = 0; i < n_digits; ++i) {
      const int digit = hex_value(peek(2 + i));
      if (digit < 0) {
        at_ += 2 + i;
        expected("a hexadecimal digit");
      }
      code = code << 4 | static_cast<uint64_t>(digit);
    }
    if (code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) expected("a code point up to 10FFFF that is no surrogate");
    if (is_byte) {
      out_.pool += static_cast<char>(code);
    } else {
      append_utf8(out_.pool, static_cast<uint32_t>(code));
    }
    at_ += 2 + n_digits;
  }

  char peek(size_t ahead = 0) const { return at_ + ahead < line_.size() ? line_[at_ + ahead] : '\n'; }

  [[noreturn]] void expected(const char* what) const {
    const std::string found = at_ < line_.size() ? "'" + printable(line_.substr(at_), 12) + "'" : "the end of the line";
    fail(DUET_E_FORMAT, "{}: line {}, column {}: expected {}, found {}", file_, n_line_, at_ + 1, what, found);
  }

  std::string_view text_, file_, line_;
  size_t at_ = 0;        // in line_
  uint64_t n_line_ = 0;  // from 1
  Vocabulary out_;
};

}  // namespace

Vocabulary parse_vocabulary(std::string_view text, std::string_view file) { return Parser(text, file).parse(); }

std::vector<uint32_t> sort_tokens(const Vocabulary& v, std::string_view file) {
  std::vector<uint32_t> order(v.size() - 1);
  std::iota(order.begin(), order.end(), 1);
  std::sort(order.begin(), order.end(), [&v](uint32_t a, uint32_t b) {
    const int c = v.bytes(a).compare(v.bytes(b));
    return c != 0 ? c < 0 : a < b;
  });
  const auto twice = std::adjacent_find(order.begin(), order.end(), [&v](uint32_t a, uint32_t b) { return v.bytes(a) == v.bytes(b); });
  if (twice != order.end()) fail(DUET_E_FORMAT, "{}: line {}: the token '{}' stands already on line {}", file, twice[1], printable(v.bytes(twice[1])), twice[0]);

  bool found[256] = {};
  for (const uint32_t token : order)
    if (v.bytes(token).size() == 1) found[static_cast<unsigned char>(v.bytes(token)[0])] = true;
  const auto n_missing = std::count(std::begin(found), std::end(found), false);
  if (n_missing == 0) return order;
  std::string missing;
  for (int b = 0; b < 256; ++b)
    if (!found[b]) missing += duet::format("{}0x{:02x}", missing.empty() ? "" : " ", b);
  fail(DUET_E_FORMAT, "{}: {} of the 256 single bytes {} no token, so not every text could be encoded: {}", file, n_missing, n_missing == 1 ? "has" : "have",
       printable(missing, 400));
}

}  // namespace duet
