// Streaming: what comes out piece by piece is what would come out at once.
#include "text/stream.h"

#include <random>

#include "base/error.h"
#include "base/utf8.h"
#include "support/catch.h"

using namespace duet;

namespace {

const std::string kReplacement = "\xef\xbf\xbd";

struct Shown {
  std::string text;
  bool stopped;
};

// Pieces of 1 to `longest` bytes.
Shown stream(const std::string& bytes, const std::vector<std::string>& stops, std::mt19937& random, size_t longest) {
  TextStream s(stops);
  std::string out;
  for (size_t at = 0; at < bytes.size();) {
    const size_t n = 1 + random() % longest;
    const std::string piece = s.push(bytes.substr(at, n));
    if (!utf8_valid(piece)) FAIL("a piece is not UTF-8");
    out += piece;
    at += n;
  }
  out += s.finish();
  return {out, s.stopped()};
}

std::string whole(const std::string& bytes) {
  TextStream s;
  const std::string pushed = s.push(bytes);
  return pushed + s.finish();
}

}  // namespace

TEST_CASE("characters come out whole, as soon as they are whole") {
  TextStream s;
  CHECK(s.push("a\xe2") == "a");
  CHECK(s.push("\x82").empty());
  CHECK(s.push("\xac\xf0\x9f\x98") == "\xe2\x82\xac");
  CHECK(s.push("\x80") == "\xf0\x9f\x98\x80");
  CHECK(s.push("").empty());
  CHECK(s.finish().empty());
}

TEST_CASE("bytes that cannot become a character are replaced, one mark for each longest start of one") {
  CHECK(whole("a\xff" "b") == "a" + kReplacement + "b");
  CHECK(whole("\xe2\x82") == kReplacement);                                        // cut: three bytes announced, two came
  CHECK(whole("\xe2\x82" "a") == kReplacement + "a");
  CHECK(whole("\xf0\x9f\x98" "a") == kReplacement + "a");
  CHECK(whole("\xc0\xaf") == kReplacement + kReplacement);                         // overlong: c0 begins nothing
  CHECK(whole("\xe0\x80\xaf") == kReplacement + kReplacement + kReplacement);      // overlong
  CHECK(whole("\xed\xa0\x80") == kReplacement + kReplacement + kReplacement);      // surrogate
  CHECK(whole("\xf4\x90\x80\x80") == kReplacement + kReplacement + kReplacement + kReplacement);
  CHECK(whole("\xe2\x82\xe2\x82\xac") == kReplacement + "\xe2\x82\xac");
  CHECK(whole("\x80") == kReplacement);
  CHECK(whole(std::string("\0", 1)) == std::string("\0", 1));
  TextStream s;
  CHECK(s.push("\xe2\x82").empty());
  CHECK(s.push("a") == kReplacement + "a");  // not before it is known
}

TEST_CASE("a stop text that crosses tokens ends the text, and no part of it comes out") {
  TextStream s({"\nUser:", "\n\n"});
  CHECK(s.push("Hi.") == "Hi.");
  CHECK(s.push("\nUs").empty());
  CHECK(s.push("ual") == "\nUsual");
  CHECK(s.push("\n").empty());
  CHECK_FALSE(s.stopped());
  CHECK(s.push("User: no").empty());
  CHECK(s.stopped());
  CHECK(s.push("more").empty());
  CHECK(s.finish().empty());
}

TEST_CASE("what was held back for a stop text that did not come is not lost") {
  TextStream s({"aab"});
  CHECK(s.push("aa").empty());
  CHECK(s.push("a") == "a");
  CHECK(s.push("\xe2\x82") == "aa");
  CHECK(s.finish() == kReplacement);
  CHECK_FALSE(s.stopped());
}

TEST_CASE("of several stop texts the first to end counts, and the longest that ends there") {
  std::mt19937 random(1);
  CHECK(stream("xabcd", {"abcd", "bc"}, random, 9).text == "xa");
  CHECK(stream("xabcd", {"bcd", "abcd"}, random, 9).text == "x");
  CHECK(stream("\xe2\x82stop", {"stop"}, random, 1).text == kReplacement);
}

TEST_CASE("stop texts that are empty or not UTF-8 are refused") {
  CHECK_THROWS_AS(TextStream({"ok", ""}), Error);
  CHECK_THROWS_AS(TextStream({"\xe2\x82"}), Error);
  CHECK_THROWS_AS(TextStream({"\x82\xac"}), Error);
}

TEST_CASE("any split gives the text of the whole, cut before the first stop text") {
  std::mt19937 random(3);
  const std::vector<std::string> parts = {"a", "b", "ab", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xe2", "\x82", "\xf0\x9f", "\xff", "\n"};
  const std::vector<std::vector<std::string>> stop_sets = {{}, {"abab"}, {"aab", "ba\n"}, {"\xe2\x82\xac", "\nab"}, {"\xc3\xa9\xc3\xa9", "aaaaab", "b\xf0\x9f\x98\x80"}};
  size_t n_stopped = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (size_t n = random() % 25; n > 0; --n) bytes += parts[random() % parts.size()];
    const auto& stops = stop_sets[static_cast<size_t>(round) % stop_sets.size()];
    size_t first_end = std::string::npos, begin = bytes.size();
    for (const std::string& stop : stops) {
      const size_t at = bytes.find(stop);
      if (at == bytes.npos || at + stop.size() > first_end) continue;
      begin = at + stop.size() < first_end ? at : std::min(begin, at);
      first_end = at + stop.size();
    }
    const Shown shown = stream(bytes, stops, random, 1 + random() % 6);
    CHECK(shown.text == whole(bytes.substr(0, begin)));
    CHECK(shown.stopped == (first_end != std::string::npos));
    n_stopped += shown.stopped;
  }
  CHECK(n_stopped > 100);
}

TEST_CASE("a long text that nearly matches a long stop text passes through whole") {
  TextStream s({std::string(100'000, 'a') + "b"});
  std::string out;
  for (int i = 0; i < 300'000; ++i) out += s.push("a");
  CHECK(out.size() == 200'000);
  out += s.finish();
  CHECK(out.size() == 300'000);
}
