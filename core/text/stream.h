// Bytes of tokens in, whole UTF-8 characters out; stops at stop texts, of which no part ever comes out.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace duet {

class TextStream {
 public:
  explicit TextStream(std::vector<std::string> stop_texts = {});
  // Adds the bytes of one token and returns what may be shown now: whole characters that cannot begin a stop text.
  // Bytes that can never become a character come out as U+FFFD.
  std::string push(std::string_view bytes);
  bool stopped() const { return stopped_; }  // a stop text has been seen; nothing more comes out
  std::string finish();                      // the rest: what was held back for a stop text that did not come, U+FFFD for a cut character

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace duet
