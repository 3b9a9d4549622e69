// Bytes of tokens in, whole UTF-8 characters out; stops at stop texts, of which no part ever comes out.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

// What comes out in sum does not depend on how the bytes are split. If several stop texts occur, the one that ends first
// counts; of those that end together, the longest.
class TextStream {
 public:
  explicit TextStream(std::vector<std::string> stop_texts = {});  // DUET_E_INVALID: one is empty or not UTF-8
  // Adds the bytes of one token and returns what may be shown now: whole characters that cannot begin a stop text.
  // Bytes that can never become a character come out as U+FFFD, one for each longest start of a character, as the web does.
  std::string push(std::string_view bytes);
  bool stopped() const { return stopped_; }  // a stop text has been seen; nothing more comes out
  std::string finish();                      // the rest: what was held back for a stop text that did not come, U+FFFD for a cut character

 private:
  struct Stop {
    std::string text;
    std::vector<uint32_t> border;  // [n+1] longest proper prefix of text[0,n) that also ends it (Knuth, Morris, Pratt)
    uint32_t matched = 0;          // longest prefix of text that the bytes so far end with
    bool advance(char c);          // true when the whole text has been matched
  };
  std::string release(size_t end, bool is_last);  // characters that begin before held_[end]

  std::vector<Stop> stops_;
  std::string held_;
  size_t begin_ = 0;  // held_[0, begin_) has come out
  bool stopped_ = false;
};

}  // namespace duet
