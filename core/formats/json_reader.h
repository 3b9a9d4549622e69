// JSON read forward, piece by piece, with the grammar known beforehand: no tree is built, so the memory needed does not
// depend on the input. For the headers of safetensors; configurations go through base/json.h.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "base/reader.h"

namespace duet {

class JsonReader {
 public:
  // `base`: offset of the text in the file
  JsonReader(Bytes bytes, std::string_view file, uint64_t base);

  uint64_t size() const { return text_.size(); }
  uint64_t offset() const { return base_ + at_; }
  void subject(std::string_view s) { subject_ = s; }  // what the next pieces are about, for messages

  template <class F>
  void object(F&& member) { list('{', '}', member); }  // member() reads key, colon and value
  template <class F>
  void array(F&& item) { list('[', ']', item); }
  void colon() { expect(':'); }
  std::string text(size_t limit = SIZE_MAX);  // DUET_E_LIMIT above `limit` bytes
  uint64_t integer();                         // digits only
  void end();                                 // only white space is left

  [[noreturn]] void bad(std::string_view found) const;

 private:
  template <class F>
  void list(char open, char close, F& item) {
    expect(open);
    if (next_is(close)) return;
    do item();
    while (next_is(','));
    expect(close);
  }
  char peek();  // skips white space; 0 at the end
  bool next_is(char c);
  void expect(char c);
  void escape(std::string& out);
  uint32_t four_digits();

  std::string_view text_;
  std::string file_, subject_;
  uint64_t base_;
  size_t at_ = 0;
};

}  // namespace duet
