#include "base/json.h"

#include <set>
#include <vector>

#include "base/error.h"

namespace duet {
namespace {

constexpr size_t kMaxBytes = 1 << 20, kMaxDepth = 64;

// Checks only; the tree is built afterwards, when duplicates and depth can no longer harm.
class Checker : public nlohmann::json_sax<Json> {
 public:
  explicit Checker(std::string_view file) : file_(file) {}
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& k) override {
    if (!keys_.back().insert(k).second) fail(DUET_E_FORMAT, "{}: the key \"{}\" stands twice", file_, printable(k));
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail(DUET_E_FORMAT, "{}: not valid JSON at byte {}", file_, position);
  }

 private:
  bool open() {
    if (keys_.size() == kMaxDepth) fail(DUET_E_LIMIT, "{}: JSON nested deeper than {}", file_, kMaxDepth);
    keys_.emplace_back();
    return true;
  }
  bool close() {
    keys_.pop_back();
    return true;
  }
  std::string_view file_;
  std::vector<std::set<std::string>> keys_;
};

}  // namespace

Json parse_json(std::string_view text, std::string_view file) {
  if (text.size() > kMaxBytes) fail(DUET_E_LIMIT, "{}: {} bytes of JSON, more than the {} allowed", file, text.size(), kMaxBytes);
  if (text.substr(0, 3) == "\xef\xbb\xbf") fail(DUET_E_FORMAT, "{}: begins with a byte order mark at byte 0", file);
  Checker checker(file);
  Json::sax_parse(text.begin(), text.end(), &checker);
  return Json::parse(text.begin(), text.end());
}

std::string json_quote(std::string_view text) {
  return Json(std::string(text)).dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace duet
