// .pth files whose parts are sound but do not fit together, and the forms that are allowed.
#include "expect.h"
#include "pickle_builder.h"

namespace duet {
namespace {

const std::string kEight = "abcdefgh";

// This tensor over one storage of 8 bytes
std::string one(const PthTensor& t) { return pth_of(pickle_of({t}), {kEight}); }

std::string in_dict(const PickleBuilder& value) {
  return pth_of(PickleBuilder().raw("}").text("state_dict").raw(value.bytes.substr(2)).raw("s.").bytes, {kEight});
}

}  // namespace

TEST_CASE("pth: views are gathered, shared storages are not copied") {
  const std::string file =
      pth_of(pickle_of({{.name = "whole", .type = "ByteStorage", .key = "0", .elements = 8, .shape = {2, 4}, .stride = {4, 1}},
                        {.name = "turned", .type = "ByteStorage", .key = "0", .elements = 8, .shape = {4, 2}, .stride = {1, 4}},
                        {.name = "every third", .type = "ByteStorage", .key = "0", .elements = 8, .offset = 1, .shape = {3, 1}, .stride = {3, 999}},
                        {.name = "scalar", .type = "ByteStorage", .key = "0", .elements = 8, .offset = 7, .shape = {}, .stride = {}},
                        {.name = "none", .type = "HalfStorage", .key = "0", .elements = 4, .offset = 4, .shape = {3, 0}, .stride = {1, 1}},
                        {.name = "cube", .type = "HalfStorage", .key = "0", .elements = 4, .shape = {2, 1, 2}, .stride = {1, 7, 2}}}),
             {kEight});
  const Checkpoint c = parse(file, {.strict = true});
  CHECK(as_text(c.find("whole")->data) == "abcdefgh");
  CHECK(as_text(c.find("turned")->data) == "aebfcgdh");
  CHECK(as_text(c.find("every third")->data) == "beh");
  CHECK(as_text(c.find("scalar")->data) == "h");
  CHECK(c.find("scalar")->data.data() == c.find("whole")->data.data() + 7);
  CHECK(c.find("none")->data.empty());
  CHECK(as_text(c.find("cube")->data) == "abefcdgh");
  CHECK(c.find("cube")->dtype == DType::f16);
}

TEST_CASE("pth: every dtype (B-W24)") {
  const std::pair<const char*, DType> types[] = {{"DoubleStorage", DType::f64},    {"FloatStorage", DType::f32}, {"HalfStorage", DType::f16},
                                                 {"BFloat16Storage", DType::bf16}, {"LongStorage", DType::i64},  {"IntStorage", DType::i32},
                                                 {"ShortStorage", DType::i16},     {"CharStorage", DType::i8},   {"ByteStorage", DType::u8},
                                                 {"BoolStorage", DType::boolean}};
  for (const auto& [name, dtype] : types) {
    const auto n = static_cast<int64_t>(8 / dtype_bytes(dtype));
    CHECK(parse(one({.type = name, .elements = n, .shape = {n}, .stride = {1}})).find("a")->dtype == dtype);
  }
  refused(one({.type = "ComplexFloatStorage", .elements = 1, .shape = {1}, .stride = {1}}), DUET_E_UNSUPPORTED, {"torch.ComplexFloatStorage"});
  refused(one({.type = "QInt8Storage", .elements = 8, .shape = {8}, .stride = {1}}), DUET_E_UNSUPPORTED, {"torch.QInt8Storage"});
}

TEST_CASE("pth: tensors that do not fit their storage (B-W22)") {
  CHECK(parse(one({.elements = 2, .shape = {2}, .stride = {1}})).find("a"));
  const auto bad = [](PthTensor t, const std::vector<std::string>& words, duet_status code = DUET_E_FORMAT) {
    std::vector<std::string> all = words;
    all.push_back("tensor a");
    refused(one(t), code, all);
  };
  bad({.elements = 3, .shape = {2}, .stride = {1}}, {"3 F32", "8 bytes", "archive/data/0"});
  bad({.elements = 1, .shape = {1}, .stride = {1}}, {"1 F32", "8 bytes"});
  bad({.elements = int64_t{1} << 62, .shape = {2}, .stride = {1}}, {"8 bytes"});
  bad({.elements = -2, .shape = {2}, .stride = {1}}, {"-2", "negative"});
  bad({.elements = 2, .offset = 1, .shape = {2}, .stride = {1}}, {"beyond its storage of 2"});
  bad({.elements = 2, .offset = -1, .shape = {2}, .stride = {1}}, {"offset -1"});
  bad({.elements = 2, .offset = INT64_MAX, .shape = {2}, .stride = {1}}, {"beyond"});
  bad({.elements = 2, .offset = 3, .shape = {0}, .stride = {1}}, {"beyond"});
  bad({.elements = 2, .shape = {3}, .stride = {1}}, {"[3]", "beyond"});
  bad({.elements = 2, .shape = {-1}, .stride = {1}}, {"dimension -1"});
  bad({.elements = 2, .shape = {2}, .stride = {-1}}, {"stride -1"});
  bad({.elements = 2, .shape = {2}, .stride = {0}}, {"stride 0"});
  bad({.elements = 2, .shape = {2}, .stride = {2}}, {"beyond"});
  bad({.elements = 2, .shape = {3}, .stride = {INT64_MAX}}, {"beyond"});
  bad({.elements = 2, .shape = {2, 2}, .stride = {1, 1}}, {"beyond its storage of 2"});  // more elements than the storage
  bad({.elements = 2, .shape = {int64_t{1} << 32, int64_t{1} << 32}, .stride = {1, 1}}, {"beyond"});
  bad({.elements = 2, .shape = {int64_t{1} << 62, 4, 0}, .stride = {1, 1, 1}}, {"beyond"});
  bad({.elements = 2, .shape = std::vector<int64_t>(64, 1), .stride = std::vector<int64_t>(64, 1)}, {"64 dimensions"}, DUET_E_LIMIT);
  refused(pth_of(pickle_of({{.name = "a", .key = "1", .elements = 2, .shape = {2}, .stride = {1}}}), {kEight}), DUET_E_FORMAT,
          {"tensor a", "archive/data/1", "missing"});
  refused(pth_of(pickle_of({{.name = "a", .key = "../../x", .elements = 2, .shape = {2}, .stride = {1}}}), {kEight}), DUET_E_FORMAT, {"tensor a", "missing"});
  refused(pth_of(pickle_of({{.name = "a", .key = std::string(1000, 'k'), .elements = 2, .shape = {2}, .stride = {1}}}), {kEight}), DUET_E_FORMAT,
          {"tensor a", "missing"});
}

TEST_CASE("pth: names") {
  const auto named = [](const std::string& name) {
    return pth_of(pickle_of({{.name = name, .key = "0", .elements = 2, .shape = {2}, .stride = {1}}}), {kEight});
  };
  refused(named(""), DUET_E_FORMAT, {"name"});
  refused(named("\xff"), DUET_E_FORMAT, {"\\xff"});
  refused(named("a\x1b[0m"), DUET_E_FORMAT, {"\\x1b"});
  refused(named(std::string(257, 'n')), DUET_E_LIMIT, {"257", "256"});
  const PthTensor a{.name = "a", .key = "0", .elements = 2, .shape = {2}, .stride = {1}};
  refused(pth_of(pickle_of({a, a}), {kEight}), DUET_E_FORMAT, {"two tensors", " a"});
  PthTensor wrapped = a;
  wrapped.name = "_forward_module.a";
  CHECK(parse(pth_of(pickle_of({wrapped}), {kEight})).find("a"));
  refused(pth_of(pickle_of({wrapped, a}), {kEight}), DUET_E_FORMAT, {"two tensors", " a"});
}

TEST_CASE("pth: one storage behind many tensors (B-W23)") {
  const auto many = [](int n, const std::vector<int64_t>& shape, const std::vector<int64_t>& stride) {
    PickleBuilder p;
    p.raw("}(").text("first").tensor("ByteStorage", "0", 1024, 0, shape, stride).raw("q\x07");
    for (int i = 1; i < n; ++i) p.text(std::to_string(i)).raw("h\x07");
    return pth_of(p.raw("u.").bytes, {std::string(1024, 'x')});
  };
  CHECK(parse(many(1000, {1024}, {1})).tensors().size() == 1000);
  refused(many(100'000, {1024}, {1}), DUET_E_LIMIT, {"65536 tensors"});
  refused(many(1000, {512, 2}, {1, 512}), DUET_E_LIMIT, {"rearranged"});  // copies would take many times the storage
}

TEST_CASE("pth: nesting, and values that are no tensors") {
  const std::string tensor = PickleBuilder().tensor("FloatStorage", "0", 2, 0, {2}, {1}).bytes.substr(2);
  CHECK(parse(in_dict(PickleBuilder().raw("}").text("a").raw(tensor).raw("s"))).find("a"));
  CHECK(parse(in_dict(PickleBuilder().raw(tensor))).find("state_dict"));

  const std::string extra = pth_of(PickleBuilder()
                                       .raw("}(")
                                       .text("epoch")
                                       .raw("K\x03")
                                       .raw("K\x04"
                                            "N")
                                       .text("a")
                                       .raw(tensor)
                                       .raw("u.")
                                       .bytes,
                                   {kEight});
  Warnings w;
  CHECK(Checkpoint::parse(as_bytes(extra), "file", w.log).tensors().size() == 1);
  REQUIRE(w.texts.size() == 1);
  CHECK(w.texts[0] == "file: 2 values that are no named tensors are ignored, the first is epoch, which is an integer");
  expect_error(DUET_E_FORMAT, {"epoch", "strict"}, [&] { parse(extra, {.strict = true}); });

  for (const auto& [pickle, kind] : {std::pair("N.", "None"), std::pair("].", "a list"), std::pair("K\x01.", "an integer")})
    refused(pth_of(PickleBuilder().raw(pickle).bytes, {}), DUET_E_FORMAT, {kind, "dict of named tensors"});
  CHECK(parse(pth_of(PickleBuilder().raw("}.").bytes, {})).tensors().empty());
}

TEST_CASE("pth: byte order, other zip archives, TorchScript") {
  const auto with = [](const std::string& name, const std::string& content) {
    ZipBuilder z;
    z.add(name, content);
    return pth_of(PickleBuilder().raw("}.").bytes, {}, z);
  };
  CHECK(parse(with("archive/byteorder", "little")).tensors().empty());
  refused(with("archive/byteorder", "big"), DUET_E_UNSUPPORTED, {"big-endian"});
  refused(with("archive/byteorder", "middle"), DUET_E_FORMAT, {"middle"});
  refused(with("archive/constants.pkl", "x"), DUET_E_UNSUPPORTED, {"TorchScript"});
  ZipBuilder other;
  other.add("word/document.xml", "<x/>");
  refused(other.finish(), DUET_E_FORMAT, {"word/data.pkl", "torch.save"});
}

TEST_CASE("pth: a tensor that must be copied is read through its checksum (B-W9)") {
  std::string file = pth_of(pickle_of({{.name = "turned", .type = "ByteStorage", .key = "0", .elements = 8, .shape = {4, 2}, .stride = {1, 4}}}), {kEight});
  file[file.find(kEight)] ^= 1;
  refused(file, DUET_E_FORMAT, {"archive/data/0", "damaged"});
}

}  // namespace duet
