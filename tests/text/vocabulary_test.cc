// Vocabulary files that are wrong or hostile: each is refused with a sentence that says where and why; nothing runs.
#include "text/vocabulary.h"

#include <filesystem>
#include <random>

#include "base/error.h"
#include "support/allocations.h"
#include "support/catch.h"
#include "text/small_vocabulary.h"
#include "text/tokenizer.h"

using namespace duet;

namespace {

struct Refusal {
  duet_status code = DUET_OK;
  std::string text;
  bool says(const std::string& part) const {
    if (text.find(part) != text.npos) return true;
    WARN(text << " -- lacks -- " << part);
    return false;
  }
};

Refusal refusal(std::string_view vocabulary) {
  try {
    Tokenizer tokenizer(vocabulary, "vocab.txt");
    return {};
  } catch (const Error& e) {
    return {e.code(), e.what()};
  }
}

// The bytes of one more token after the single bytes.
std::string token_of(const std::string& literal, size_t n) {
  const Tokenizer t(small_vocabulary({fmt::format("{} {}", literal, n)}), "vocab.txt");
  return std::string(t.bytes(257));
}

void check_refused(const std::string& line, duet_status code, const std::vector<std::string>& parts) {
  const Refusal r = refusal(small_vocabulary({line}));
  INFO(line);
  CHECK(r.code == code);
  CHECK(r.says("vocab.txt: line 257"));
  for (const std::string& part : parts) CHECK(r.says(part));
}

}  // namespace

TEST_CASE("literals mean what they mean in Python") {
  CHECK(token_of("'a b'", 3) == "a b");
  CHECK(token_of("\"it's\"", 4) == "it's");
  CHECK(token_of("'say \"x\"'", 7) == "say \"x\"");
  CHECK(token_of(R"('\\\'\"\t\n\r')", 6) == "\\'\"\t\n\r");
  CHECK(token_of(R"(b"\\\'\"\t\n\r")", 6) == "\\'\"\t\n\r");
  CHECK(token_of(R"('\x41\xe9')", 3) == "A\xc3\xa9");  // a code point in a str
  CHECK(token_of(R"(b'\x41\xE9')", 2) == "A\xe9");     // a byte in a bytes literal
  CHECK(token_of(R"('\u20ac\U0001F600')", 7) == "\xe2\x82\xac\xf0\x9f\x98\x80");
  CHECK(token_of("'\xe2\x82\xac'", 3) == "\xe2\x82\xac");
  CHECK(token_of(R"('\x00\x00')", 2) == std::string(2, '\0'));
}

TEST_CASE("what is no vocabulary at all") {
  CHECK(refusal("").code == DUET_E_FORMAT);
  CHECK(refusal("").says("vocab.txt: the file is empty"));
  CHECK(refusal("\n").says("line 1 is empty"));
  CHECK(refusal("\r\n").says("line 1 is empty"));
  CHECK(refusal("\xef\xbb\xbf" + small_vocabulary()).says("line 1, column 1: a byte order mark"));
  CHECK(refusal(small_vocabulary() + "\n").says("line 257 is empty"));
  CHECK(refusal(small_vocabulary() + "257 'ab' 2\n\n258 'abc' 3\n").says("line 258 is empty"));
  CHECK(refusal(std::string(1, '\0')).says("line 1, column 1: expected a token id, found '\\x00'"));
  CHECK(refusal("{\"model\": {}}").says("line 1, column 1: expected a token id"));
  const Refusal large = refusal(std::string((size_t{64} << 20) + 1, 'a'));
  CHECK(large.code == DUET_E_LIMIT);
  CHECK(large.says("67108865 bytes, more than the 67108864"));
}

TEST_CASE("a vocabulary is data: Python in it is refused and never runs") {
  const std::string canary = (std::filesystem::temp_directory_path() / fmt::format("duet-vocabulary-canary-{}", std::random_device()())).string();
  const Refusal r = refusal("1 __import__('os').system('touch " + canary + "') 1\n");
  CHECK(r.code == DUET_E_FORMAT);
  CHECK(r.says("line 1, column 3: expected a string literal"));
  CHECK(r.says("found '__import__"));
  CHECK_FALSE(std::filesystem::exists(canary));
}

TEST_CASE("literals beyond the grammar") {
  const auto f = DUET_E_FORMAT;
  check_refused(R"('\xZZ' 1)", f, {"column 8: expected a hexadecimal digit"});
  check_refused(R"('\x1' 1)", f, {"column 9: expected a hexadecimal digit"});
  check_refused(R"('\u12' 1)", f, {"column 10: expected a hexadecimal digit"});
  check_refused(R"('\U0001F60' 4)", f, {"expected a hexadecimal digit"});
  check_refused(R"('\N{DASH}' 3)", f, {"column 6: expected one of the escapes"});
  check_refused(R"('\1' 1)", f, {"column 6: expected one of the escapes"});
  check_refused(R"('\a' 1)", f, {"column 6: expected one of the escapes"});
  check_refused(R"(b'\u0041' 1)", f, {"column 7: expected one of the escapes"});
  check_refused(R"(b'\U00000041' 1)", f, {"column 7: expected one of the escapes"});
  check_refused(R"('\ud800' 3)", f, {"column 6: expected a code point up to 10FFFF that is no surrogate"});
  check_refused(R"('\U00110000' 4)", f, {"expected a code point up to 10FFFF"});
  check_refused("f'ab' 2", f, {"column 5: expected a string literal", "found 'f'ab'"});
  check_refused("r'ab' 2", f, {"column 5: expected a string literal"});
  check_refused("B'ab' 2", f, {"column 5: expected a string literal"});
  check_refused("bb'ab' 2", f, {"column 5: expected a string literal"});
  check_refused("ab 2", f, {"column 5: expected a string literal"});
  check_refused("'''ab''' 2", f, {"column 7: expected a space"});
  check_refused("'a' 'b' 2", f, {"column 9: expected the length in bytes"});
  check_refused("'a''b' 2", f, {"column 8: expected a space"});
  check_refused("'ab", f, {"column 8: expected the closing quote, found the end of the line"});
  check_refused("'ab\" 2", f, {"expected the closing quote"});
  check_refused("'ab\\", f, {"expected one of the escapes"});
  check_refused("'a\tb' 3", f, {"column 7: expected a control character to be written as"});
  check_refused(std::string("'a\0b' 3", 7), f, {"column 7: expected a control character"});
  check_refused("b'\xe2\x82\xac' 3", f, {"column 7: expected bytes above 0x7f to be written as"});
  check_refused("'\xff\xfe' 2", f, {"column 6: expected UTF-8, found '\\xff\\xfe"});
  check_refused("'\xed\xa0\x80' 3", f, {"expected UTF-8"});
  check_refused("'' 0", f, {"the token is empty"});
}

TEST_CASE("declared lengths that are not the literal's") {
  check_refused("'abcd' 5", DUET_E_FORMAT, {"column 12: declared 5, but the literal is 4 bytes"});
  check_refused("'ab' -1", DUET_E_FORMAT, {"column 10: expected the length in bytes, found '-1'"});
  check_refused("'ab' 2000000000", DUET_E_FORMAT, {"declared more than 1048575, but the literal is 2 bytes"});
  check_refused("'ab' 36893488147419103234", DUET_E_FORMAT, {"declared more than 1048575"});  // 2^65 + 2
  check_refused("'ab' 2.0", DUET_E_FORMAT, {"expected the end of the line, found '.0'"});
  check_refused("'ab' 2 ", DUET_E_FORMAT, {"expected the end of the line"});
  check_refused("'ab'", DUET_E_FORMAT, {"expected a space, found the end of the line"});
  check_refused("'ab' ", DUET_E_FORMAT, {"expected the length in bytes, found the end of the line"});
  check_refused("'ab'  2", DUET_E_FORMAT, {"expected the length in bytes, found ' 2'"});
}

TEST_CASE("ids that are not 1, 2, 3, ...") {
  const std::string bytes = small_vocabulary();
  const auto check = [&](const std::string& id, duet_status code, const std::vector<std::string>& parts) {
    const Refusal r = refusal(bytes + id + " 'ab' 2\n");
    INFO(id);
    CHECK(r.code == code);
    CHECK(r.says("vocab.txt: line 257, column "));
    for (const std::string& part : parts) CHECK(r.says(part));
  };
  check("0", DUET_E_FORMAT, {"id 0 ends a text"});
  check("100", DUET_E_FORMAT, {"id 100 stands already on line 100"});
  check("256", DUET_E_FORMAT, {"id 256 stands already on line 256"});
  check("259", DUET_E_FORMAT, {"id 259 follows id 256, so id 257 is missing"});
  check("65536", DUET_E_FORMAT, {"id 257 is missing"});
  check("1048576", DUET_E_LIMIT, {"above 1048575"});
  check("18446744073709551873", DUET_E_LIMIT, {"above 1048575"});  // 2^64 + 257
  check("-5", DUET_E_FORMAT, {"expected a token id, found '-5"});
  check("1e30", DUET_E_FORMAT, {"column 2: expected a space, found 'e30"});
  check("257.0", DUET_E_FORMAT, {"column 4: expected a space, found '.0"});
  check("0x101", DUET_E_FORMAT, {"column 2: expected a space"});
  check(" 257", DUET_E_FORMAT, {"column 1: expected a token id"});
  check("+257", DUET_E_FORMAT, {"column 1: expected a token id"});
  check("abc", DUET_E_FORMAT, {"column 1: expected a token id, found 'abc"});
}

TEST_CASE("tokens that stand twice name both lines, whatever their spelling") {
  const Refusal r = refusal(small_vocabulary({"'ab' 2", "'cd' 2", "b'a\\x62' 2"}));
  CHECK(r.code == DUET_E_FORMAT);
  CHECK(r.says("line 259: the token 'ab' stands already on line 257"));
  CHECK(refusal(small_vocabulary({"'a' 1"})).says("line 257: the token 'a' stands already on line 98"));
}

TEST_CASE("single bytes without a token are listed") {
  std::string text;
  for (int b = 0, id = 1; b < 256; ++b)
    if (b != 0x41 && b != 0xfe) text += fmt::format("{} b'\\x{:02x}' 1\n", id++, b);
  const Refusal r = refusal(text);
  CHECK(r.code == DUET_E_FORMAT);
  CHECK(r.says("vocab.txt: 2 of the 256 single bytes have no token"));
  CHECK(r.says(": 0x41 0xfe"));
  CHECK(refusal("1 'a' 1\n").says("255 of the 256"));
  CHECK(refusal("1 'a' 1\n").text.size() < 1000);
}

TEST_CASE("tokens up to 4 KiB, no longer") {
  const std::string most(4096, 'x');
  CHECK(token_of("'" + most + "'", 4096) == most);
  check_refused("'" + most + "x' 4097", DUET_E_LIMIT, {"longer than 4096 bytes"});
  check_refused("'" + std::string(10 << 20, 'x') + "' 10485760", DUET_E_LIMIT, {"longer than 4096 bytes"});
}

TEST_CASE("many long tokens that share a long prefix") {
  const std::string prefix(4000, 'x');
  std::vector<std::string> more;
  for (int i = 0; i < 2000; ++i) more.push_back(fmt::format("'{}{:04}' 4004", prefix, i));
  const Tokenizer t(small_vocabulary(more), "vocab.txt");
  std::vector<int32_t> tokens;
  t.encode(prefix + "1999" + prefix + "0000" + prefix.substr(1), [&](int32_t token) { tokens.push_back(token); });
  REQUIRE(tokens.size() == 2 + 3999);
  CHECK(tokens[0] == 257 + 1999);
  CHECK(tokens[1] == 257);
  CHECK(tokens[2] == 'x' + 1);
}

TEST_CASE("a vocabulary that is cut or damaged anywhere is read or refused, nothing else") {
  const std::string whole = small_vocabulary({"'ab' 2", R"('\u20ac' 3)", "\"it's\" 4", "b'\\xff\\xfe' 2"});
  size_t n_read = 0, n_refused = 0;
  const auto attempt = [&](const std::string& text) {
    const Refusal r = refusal(text);
    if (r.code == DUET_OK) {
      ++n_read;
    } else {
      ++n_refused;
      if (r.code != DUET_E_FORMAT && r.code != DUET_E_LIMIT) FAIL("code " << r.code);
      if (r.text.find("vocab.txt: ") != 0) FAIL(r.text);
    }
  };
  for (size_t n = 0; n < whole.size(); ++n) attempt(whole.substr(0, n));
  CHECK(n_read == 9);  // lines 1 to 256, 257, 258, 259, each with and without its line end, and line 260 without
  for (size_t bit = 0; bit < whole.size() * 8; bit += 3) {
    std::string text = whole;
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ 1 << bit % 8);
    attempt(text);
  }
  CHECK(n_refused > whole.size());
}

TEST_CASE("refusing a large vocabulary takes no more memory than its size and 16 MiB") {
  std::string text = small_vocabulary();
  int id = 257;
  for (; id <= 500'000; ++id) text += fmt::format("{} 'token {:x}' {}\n", id, id * 77, 6 + fmt::format("{:x}", id * 77).size());
  const auto check = [](const std::string& vocabulary, const std::string& part) {
    Refusal r;
    const size_t peak = peak_allocated([&] { r = refusal(vocabulary); });
    CHECK(r.says(part));
    CHECK(peak < vocabulary.size() + (size_t{16} << 20));
  };
  check(text + fmt::format("{} 'token 4d4d' 10\n", id), "line 500001: the token 'token 4d4d' stands already on line 257");
  check(text + fmt::format("{} 'token' 6\n", id), "line 500001");
  check(text + fmt::format("{} '", id) + std::string(4096, 'x') + "y", "longer than 4096 bytes");
  check("1048575 'a' 1\n", "id 1 is missing");
  check(std::string(30'000'000, '\n'), "line 1 is empty");
  check("1 '" + std::string(30'000'000, 'x'), "longer than 4096 bytes");
}

TEST_CASE("files that cannot be read") {
  CHECK_THROWS_AS(Tokenizer::load(DUET_SOURCE "/no/such/vocab.txt"), Error);
  CHECK_THROWS_AS(Tokenizer::load(DUET_SOURCE), Error);
}
