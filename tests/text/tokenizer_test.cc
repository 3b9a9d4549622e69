// The World tokenizer: golden cases, exactness on any bytes, longest match against a naive search.
#include "text/tokenizer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <random>

#include "base/error.h"
#include "support/allocations.h"
#include "support/catch.h"
#include "support/golden.h"
#include "text/small_vocabulary.h"

using namespace duet;

namespace {

const Tokenizer& world() {
  static const Tokenizer tokenizer = Tokenizer::load(DUET_SOURCE "/models/world/rwkv_vocab_v20230424.txt");
  return tokenizer;
}

std::vector<int32_t> encode(const Tokenizer& t, std::string_view text) {
  std::vector<int32_t> out;
  t.encode(text, [&](int32_t token) { out.push_back(token); });
  return out;
}

std::string decode(const Tokenizer& t, const std::vector<int32_t>& tokens) {
  std::string out;
  for (const int32_t token : tokens) out += t.bytes(token);
  return out;
}

std::string base64_bytes(const std::string& text) {
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  uint32_t bits = 0;
  int n = 0;
  for (const char c : text) {
    if (c == '=') break;
    bits = bits << 6 | static_cast<uint32_t>(digits.find(c));
    if ((n += 6) >= 8) out += static_cast<char>(bits >> (n -= 8) & 0xff);
  }
  return out;
}

std::string random_bytes(std::mt19937& random, size_t n) {
  std::string out(n, '\0');
  for (char& c : out) c = static_cast<char>(random() & 0xff);
  return out;
}

}  // namespace

TEST_CASE("every golden case gives the official tokens and decodes to its bytes") {
  const auto expected = golden::load_json("tokenizer_golden.json");
  CHECK(world().size() == expected["vocab_entries"].get<uint32_t>() + 1);
  REQUIRE(expected["cases"].size() == 414);
  for (const auto& c : expected["cases"]) {
    const std::string text = base64_bytes(c["bytes_b64"]);
    const auto tokens = encode(world(), text);
    CHECK(tokens == c["ids"].get<std::vector<int32_t>>());
    CHECK(decode(world(), tokens) == text);
  }
}

TEST_CASE("all tokens of the World vocabulary have the bytes that Python reads in their literals") {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a over the length and the bytes of each token; expected: ast.literal_eval of each line
  const auto add = [&hash](unsigned char c) { hash = (hash ^ c) * 0x100000001b3; };
  for (uint32_t token = 1; token < world().size(); ++token) {
    const std::string_view bytes = world().bytes(static_cast<int32_t>(token));
    add(static_cast<unsigned char>(bytes.size()));
    for (const char c : bytes) add(static_cast<unsigned char>(c));
  }
  CHECK(hash == 0xc23ec404a272e3f1);
}

TEST_CASE("ids of the World vocabulary that prompts rely on") {
  CHECK(encode(world(), "\n") == std::vector<int32_t>{11});
  CHECK(encode(world(), "\n\n") == std::vector<int32_t>{261});
  CHECK(encode(world(), "User") == std::vector<int32_t>{24281});
  CHECK(encode(world(), "<think>") == std::vector<int32_t>{61, 35762, 63});
  CHECK(encode(world(), "").empty());
  for (int b = 0; b < 256; ++b) CHECK(world().bytes(b + 1) == std::string(1, static_cast<char>(b)));
}

TEST_CASE("the same tokens whether lines end in LF or CRLF, and without the last line end") {
  const std::string lf = small_vocabulary({"'ab' 2", "'abc' 3"});
  std::string crlf;
  for (const char c : lf) crlf += c == '\n' ? std::string("\r\n") : std::string(1, c);
  for (const std::string& text : {lf, crlf, lf.substr(0, lf.size() - 1), crlf.substr(0, crlf.size() - 2), crlf.substr(0, crlf.size() - 1)}) {
    const Tokenizer t(text, "vocab.txt");
    CHECK(t.size() == 259);
    CHECK(encode(t, "abcab") == std::vector<int32_t>{258, 257});
  }
}

TEST_CASE("decode(encode(bytes)) is bytes, for any bytes") {
  std::mt19937 random(1);
  const Tokenizer small(small_vocabulary({"'ab' 2", "'\\u20ac' 3"}), "vocab.txt");
  for (const Tokenizer* t : {&world(), &small}) {
    for (int pair = 0; pair < 65536; ++pair) {
      const std::string text = {static_cast<char>(pair >> 8), static_cast<char>(pair & 0xff)};
      if (decode(*t, encode(*t, text)) != text) FAIL("bytes " << pair);
    }
    for (size_t n = 0; n < 300; ++n) {
      const std::string text = random_bytes(random, n * 7);
      const auto tokens = encode(*t, text);
      CHECK(decode(*t, tokens) == text);
      CHECK(std::count(tokens.begin(), tokens.end(), 0) == 0);
    }
  }
}

TEST_CASE("text is never a special token, whatever it spells, and broken UTF-8 stays as it is") {
  for (const std::string text : {"hello<EOD>world", "<|endoftext|>", "<s>", "\nUser:", "\xed\xa0\x80", "\xc0\xaf", "\xf4\x90\x80\x80", "\xff\xfe", "\xe2\x82"}) {
    const auto tokens = encode(world(), text);
    CHECK(decode(world(), tokens) == text);
    CHECK(std::count(tokens.begin(), tokens.end(), 0) == 0);
  }
  const std::string nul("a\0b", 3);
  CHECK(decode(world(), encode(world(), nul)) == nul);
}

TEST_CASE("100 MB of text, of one byte or of any, come back from their tokens, and encoding takes no memory") {
#if defined(__SANITIZE_ADDRESS__)
  constexpr size_t kBytes = 10'000'000;
#else
  constexpr size_t kBytes = 100'000'000;
#endif
  const Tokenizer& tokenizer = world();
  std::mt19937_64 random(3);
  std::string any(kBytes, '\0');
  for (size_t i = 0; i + 8 <= kBytes; i += 8) {
    const uint64_t eight = random();
    std::memcpy(any.data() + i, &eight, sizeof eight);
  }
  for (const std::string& text : {std::string(kBytes, '\n'), any}) {
    size_t at = 0;
    bool equal = true;
    const size_t peak = peak_allocated([&] {
      tokenizer.encode(text, [&](int32_t token) {
        const std::string_view bytes = tokenizer.bytes(token);
        equal = equal && text.compare(at, bytes.size(), bytes) == 0;
        at += bytes.size();
      });
    });
    CHECK(equal);
    CHECK(at == kBytes);
    CHECK(peak < 4096);
  }
}

TEST_CASE("each token is the longest that the text begins with") {
  std::mt19937 random(2);
  for (int round = 0; round < 30; ++round) {
    std::vector<std::string> more;
    std::map<std::string, int32_t> id;
    for (int b = 0; b < 256; ++b) id[std::string(1, static_cast<char>(b))] = b + 1;
    for (int i = 0; i < 60; ++i) {  // over three letters, so that they share many prefixes
      std::string token;
      for (size_t n = 2 + random() % 9; token.size() < n;) token += static_cast<char>('a' + random() % 3);
      if (!id.emplace(token, static_cast<int32_t>(257 + more.size())).second) continue;
      more.push_back(fmt::format("'{}' {}", token, token.size()));
    }
    const Tokenizer t(small_vocabulary(more), "vocab.txt");
    for (int i = 0; i < 20; ++i) {
      std::string text;
      for (size_t n = random() % 200; text.size() < n;) text += static_cast<char>('a' + random() % (i % 2 == 0 ? 3 : 4));
      std::vector<int32_t> naive;
      for (size_t at = 0; at < text.size();) {
        size_t n = std::min<size_t>(text.size() - at, 12);
        while (id.count(text.substr(at, n)) == 0) --n;
        naive.push_back(id[text.substr(at, n)]);
        at += n;
      }
      CHECK(encode(t, text) == naive);
    }
  }
}

TEST_CASE("bytes of tokens that do not exist are refused, token 0 is empty") {
  CHECK(world().bytes(0).empty());
  CHECK(world().size() == 65530);
  for (const int32_t token : {-1, 65530, 65535, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()})
    CHECK_THROWS_AS(world().bytes(token), Error);
}

TEST_CASE("a vocabulary fits a model with a row for each token and a few to spare") {
  CHECK_NOTHROW(world().check_fits(65536, "model.pth"));
  CHECK_NOTHROW(world().check_fits(65530, "model.pth"));
  CHECK_NOTHROW(world().check_fits(65594, "model.pth"));
  for (const uint32_t n : {0u, 4096u, 65529u, 65595u}) {
    try {
      world().check_fits(n, "model.pth");
      FAIL("accepted " << n);
    } catch (const Error& e) {
      CHECK(e.code() == DUET_E_INVALID);
      const std::string text = e.what();
      CHECK(text.find("65529") != text.npos);
      CHECK(text.find(fmt::format("model.pth has {} rows", n)) != text.npos);
    }
  }
  CHECK_NOTHROW(Tokenizer::load(DUET_SOURCE "/models/stories-7m/vocab.txt").check_fits(4096, "stories-7m.pth"));
}
