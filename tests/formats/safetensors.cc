// Hostile and damaged safetensors files.
#include "expect.h"
#include "zip_builder.h"

namespace duet {
namespace {

std::string file_of(std::string_view header, size_t data_bytes) { return little(header.size(), 8) + std::string(header) + std::string(data_bytes, '\1'); }

// {"a": one tensor} of 8 bytes of data, with parts of the description replaced
std::string one(std::string_view dtype, std::string_view shape, std::string_view offsets, size_t data_bytes = 8) {
  return file_of(fmt::format(R"({{"a":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape, offsets), data_bytes);
}

constexpr const char* kTensorB = R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]})";
constexpr const char* kTensorA = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";

}  // namespace

TEST_CASE("safetensors: what is valid loads, dtypes and ranks and empty tensors included") {
  CHECK(parse(one("\"F32\"", "[2]", "[0,8]")).find("a")->count() == 2);
  CHECK(parse(one("\"F32\"", "[2]", "[0,8]")).find("a")->data.size() == 8);
  CHECK(parse(one("\"I64\"", "[]", "[0,8]")).find("a")->shape.empty());
  CHECK(parse(one("\"BF16\"", "[0,7]", "[0,0]", 0)).find("a")->data.empty());
  CHECK(parse(one("\"U8\"", "[1,1,1,1,1,1,1,8]", "[0,8]")).find("a")->shape.size() == 8);
  CHECK(parse(file_of("{}", 0)).tensors().empty());
  CHECK(
      parse(file_of(" \n{ } \t", 0).substr(0, 0) + file_of("{ \"a\" : { \"shape\" : [ 2 ] , \"dtype\":\"F32\",\"data_offsets\":[ 0 , 8 ]} }  ", 8)).find("a"));
  const Checkpoint escaped =
      parse(file_of(R"({"__metadata__":{"k":"\"\\\/\b\f\n\r\t\u00e9\u20ac\ud83d\ude00"},"\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0));
  CHECK(escaped.metadata().at("k") == "\"\\/\b\f\n\r\t\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  CHECK(escaped.find("a"));
}

TEST_CASE("safetensors: tensors stay in place unless their elements are misaligned") {
  const std::string header = R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"y":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  std::string file = little(header.size() + 7, 8) + header + std::string(7, ' ') + std::string(1, 'x') + "abcd";
  const Checkpoint c = parse(file);
  const auto inside = [&](const Tensor* t) { return as_text(t->data).data() >= file.data() && as_text(t->data).data() < file.data() + file.size(); };
  CHECK(inside(c.find("x")));
  CHECK(as_text(c.find("y")->data) == "abcd");
  CHECK(reinterpret_cast<uintptr_t>(c.find("y")->data.data()) % 4 == 0);
}

TEST_CASE("safetensors: header length (B-W25)") {
  std::string good = file_of(std::string("{") + kTensorA + "}", 4);
  for (const uint64_t n : {uint64_t{1} << 63, ~uint64_t{0}, uint64_t{good.size()} - 7, uint64_t{100} << 20}) {
    std::string bad = good;
    patch(bad, 0, n, 8);
    refused(bad, DUET_E_FORMAT, {std::to_string(n), "byte 0"});
  }
  std::string empty = good;
  patch(empty, 0, 0, 8);
  refused(empty, DUET_E_FORMAT, {"byte 8"});
  refused(little(0, 8) + "{}", DUET_E_FORMAT, {"byte 8"});
}

TEST_CASE("safetensors: a header that is not the JSON it should be (B-W26)") {
  const std::string a = kTensorA, b = kTensorB;
  refused(file_of("{" + a + "," + a + "}", 4), DUET_E_FORMAT, {"tensor a", "twice"});
  refused(file_of("{" + a + "," + b + "}x", 8), DUET_E_FORMAT, {"after the last bracket", "byte 1"});
  refused(file_of("{" + a + "," + b, 8), DUET_E_FORMAT, {"byte"});
  refused(file_of("{" + a + ",}", 4), DUET_E_FORMAT, {"byte"});
  refused(file_of("{" + a + "" + b + "}", 8), DUET_E_FORMAT, {"expected", "byte"});
  refused(file_of("{'a':1}", 0), DUET_E_FORMAT, {"byte 9"});
  refused(file_of("{\"a\":NaN}", 0), DUET_E_FORMAT, {"tensor a", "byte 13"});
  refused(file_of("{\"a\":" + std::string(100000, '['), 0), DUET_E_FORMAT, {"tensor a", "byte 13"});
  refused(file_of("{\"a\":" + std::string(100000, '{'), 0), DUET_E_FORMAT, {"tensor a"});
  refused(file_of("{\"__proto__\":{}}", 0), DUET_E_FORMAT, {"__proto__"});
  refused(file_of("{\"a\xff\":{}}", 0), DUET_E_FORMAT, {"UTF-8", "\\xff"});
  refused(file_of("{\"\":{}}", 0), DUET_E_FORMAT, {"name"});
  refused(file_of("{\"a\\u0000b\":{}}", 0), DUET_E_FORMAT, {"a\\x00b"});
  refused(file_of("{\"a\nb\":{}}", 0), DUET_E_FORMAT, {"control character"});
  refused(file_of("{\"\\ud800\":{}}", 0), DUET_E_FORMAT, {"UTF-8"});
  refused(file_of("{\"\\ud800\\u0041\":{}}", 0), DUET_E_FORMAT, {"surrogate"});
  refused(file_of("{\"\\u00g0\":{}}", 0), DUET_E_FORMAT, {"hexadecimal"});
  refused(file_of("{\"\\u12", 0), DUET_E_FORMAT, {"without an end"});
  refused(file_of("{\"\\", 0), DUET_E_FORMAT, {"without an end"});
  refused(file_of("{\"\\x41\":{}}", 0), DUET_E_FORMAT, {"escape"});
  refused(file_of("{\"" + std::string(10 << 20, 'k') + "\":{}}", 0), DUET_E_LIMIT, {"256", "byte 10"});
  refused(file_of("{\"" + std::string(257, 'k') + "\":{}}", 0), DUET_E_LIMIT, {"257", "256"});
  refused(file_of("{\"__metadata__\":{},\"__metadata__\":{}}", 0), DUET_E_FORMAT, {"second __metadata__"});
  refused(file_of("{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", 0), DUET_E_FORMAT, {"__metadata__", "twice"});
  refused(file_of("{\"__metadata__\":{\"k\":1}}", 0), DUET_E_FORMAT, {"byte"});
  refused(file_of("{\"__metadata__\":[]}", 0), DUET_E_FORMAT, {"byte"});
  std::string bom = file_of("\xef\xbb\xbf{}", 0);
  refused(bom, DUET_E_FORMAT, {});
  // the length in the first byte is that of the header; with a mark the file is not even recognised
  expect_error(DUET_E_FORMAT, {"neither"}, [&] { parse(bom); });
}

TEST_CASE("safetensors: dtype, shape and data_offsets (B-W27)") {
  refused(one("\"F32\"", "[2]", "[8,0]"), DUET_E_FORMAT, {"tensor a", "8 to 0"});
  refused(one("\"F32\"", "[2]", "[0,4,8]"), DUET_E_FORMAT, {"tensor a", "two data_offsets"});
  refused(one("\"F32\"", "[2]", "[0]"), DUET_E_FORMAT, {"tensor a", "two data_offsets"});
  refused(one("\"F32\"", "[2]", "[]"), DUET_E_FORMAT, {"tensor a", "byte"});
  refused(one("\"F32\"", "[2]", "8"), DUET_E_FORMAT, {"tensor a", "byte"});
  for (const char* offset : {"8.0", "\"8\"", "-1", "8e0", "08", "+8", "18446744073709551616", "null"}) {
    INFO(offset);
    refused(one("\"F32\"", "[2]", fmt::format("[0,{}]", offset)), DUET_E_FORMAT, {"tensor a", "byte"});
  }
  refused(one("\"F32\"", "[2]", "[0,9007199254740993]"), DUET_E_FORMAT, {"tensor a", "9007199254740993"});
  refused(one("\"F32\"", "[2]", "[0,18446744073709551615]"), DUET_E_FORMAT, {"tensor a"});
  refused(one("\"F32\"", "[3]", "[0,8]"), DUET_E_FORMAT, {"tensor a", "[3]"});
  refused(one("\"F16\"", "[2]", "[0,8]"), DUET_E_FORMAT, {"tensor a", "F16"});
  refused(one("\"F32\"", "[4294967296,4294967296]", "[0,0]", 0), DUET_E_FORMAT, {"tensor a"});  // the product wraps to 0
  refused(one("\"F64\"", "[2305843009213693952]", "[0,0]", 0), DUET_E_FORMAT, {"tensor a"});    // the bytes wrap to 0
  refused(one("\"F32\"", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), DUET_E_LIMIT, {"tensor a", "8 dimensions"});
  refused(one("\"C64\"", "[2]", "[999,8]"), DUET_E_UNSUPPORTED, {"tensor a", "C64"});
  refused(one("\"F8_E4M3\"", "[8]", "[0,8]"), DUET_E_UNSUPPORTED, {"tensor a", "F8_E4M3"});
  refused(file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8), DUET_E_FORMAT, {"tensor a", "\"x\""});
  refused(file_of(R"({"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}})", 8), DUET_E_FORMAT, {"tensor a", "twice"});
  refused(file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,8]}})", 8), DUET_E_FORMAT, {"tensor a", "twice"});
  refused(file_of(R"({"a":{"dtype":"F32","shape":[2]}})", 8), DUET_E_FORMAT, {"tensor a", "data_offsets"});
}

TEST_CASE("safetensors: the tensors cover the data exactly (B-W6, B-W27)") {
  const std::string a = kTensorA, b = kTensorB;
  CHECK(parse(file_of("{" + b + "," + a + "}", 8)).tensors().front().name == "b");
  refused(file_of("{" + b + "}", 8), DUET_E_FORMAT, {"before tensor b", "4 bytes"});        // hole
  refused(file_of("{" + a + "}", 8), DUET_E_FORMAT, {"4 bytes", "after the last tensor"});  // trailing bytes
  refused(file_of("{}", 3), DUET_E_FORMAT, {"3 bytes at byte 10"});
  refused(file_of("{" + a + R"(,"c":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4), DUET_E_FORMAT, {"overlaps"});
  refused(file_of("{" + a + R"(,"c":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})", 6), DUET_E_FORMAT, {"tensor c", "overlaps"});
  ZipBuilder z;
  z.add("archive/data.pkl", "x");
  const std::string good = file_of("{" + a + "}", 4);
  refused(good + z.finish(), DUET_E_FORMAT, {"after the last tensor", "byte " + std::to_string(good.size())});  // polyglot
}

TEST_CASE("safetensors: more tensors or metadata than allowed") {
  std::string header = "{";
  for (int i = 0; i < 65537; ++i) header += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i ? "," : "", i);
  refused(file_of(header + "}", 0), DUET_E_LIMIT, {"65536 tensors"});
  header = "{\"__metadata__\":{";
  for (int i = 0; i < 4097; ++i) header += fmt::format("{}\"{}\":\"\"", i ? "," : "", i);
  refused(file_of(header + "}}", 0), DUET_E_LIMIT, {"4096", "__metadata__"});
}

}  // namespace duet
