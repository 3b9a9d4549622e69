#include "apps/command.h"
#include "support/catch.h"

using namespace command;

TEST_CASE("tokenize and --decode give back any bytes") {
  std::string bytes;
  for (int round = 0; round < 3; ++round) {
    for (int b = 0; b < 256; ++b) bytes += static_cast<char>(round == 1 ? 255 - b : b);
  }
  bytes += "plain text, \xe4\xb8\xad\xe6\x96\x87 <|endoftext|>";
  for (const Words& vocab : {Words{}, Words{"--vocab", bundled_vocab()}}) {
    for (const std::string& text : {bytes, std::string(), std::string("\n")}) {
      Words encode = {"tokenize"}, decode = {"tokenize", "--decode"};
      encode.insert(encode.end(), vocab.begin(), vocab.end());
      decode.insert(decode.end(), vocab.begin(), vocab.end());
      Setting s;
      s.in = text;
      const Result ids = good(encode, s);
      CHECK(ids.error.empty());
      const auto list = nlohmann::json::parse(ids.out);
      CHECK(list.is_array());
      for (const auto& id : list) CHECK(id.get<int>() > 0);
      s.in = ids.out;
      CHECK(good(decode, s).out == text);
    }
  }
}

TEST_CASE("tokenize reads a file as standard input, and ids in three forms") {
  const Folder folder;
  write(folder / "text", "Once upon a time");
  Setting s;
  s.in = "Once upon a time";
  const Result from_input = good({"tokenize", "--vocab", bundled_vocab()}, s);
  CHECK(good({"tokenize", "--vocab", bundled_vocab(), "--file", folder / "text"}).out == from_input.out);
  // single bytes have the ids 1 to 256
  for (const char* ids : {"[66,67]", "66,67", "66 67\n", " [ 66 , 67 ]\n", "66,\n67"}) {
    s.in = ids;
    CHECK(good({"tokenize", "--decode"}, s).out == "AB");
  }
}

TEST_CASE("tokenize names what is wrong with its input") {
  Setting s;
  for (const char* ids : {"[66,67", "[66,]", "66,,67", "66 x", "[66 67]", "-1", "[[66]]", "99999999999", "66]", "0.5"}) {
    s.in = ids;
    const Result r = run({"tokenize", "--decode"}, s);
    INFO(ids << ": " << r.error);
    CHECK(r.code == 1);
    CHECK(r.out.empty());
    CHECK(r.error.find("byte ") != r.error.npos);
  }
  s.in = "66,2000000";
  CHECK(run({"tokenize", "--decode"}, s).code == 1);
  for (const char* path : {"/nonexistent/file", "/"}) {
    const Result r = run({"tokenize", "--file", path});
    CHECK(r.code == 1);
    CHECK(r.error.find(path) != r.error.npos);
  }
  CHECK(run({"tokenize", "--vocab", "/nonexistent/vocab"}).code == 1);
}
