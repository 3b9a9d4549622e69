// Pickles that are hostile, damaged or simply something else.
#include "formats/pickle.h"

#include <chrono>

#include "expect.h"
#include "pickle_builder.h"

namespace duet {
namespace {

constexpr uint64_t kMemory = 4 << 20;

void run(const std::string& pickle) { Pickle(as_bytes(pickle), "file", 1000, kMemory); }

void bad(const PickleBuilder& p, const std::vector<std::string>& words, duet_status code = DUET_E_FORMAT) {
  std::vector<std::string> all = words;
  all.push_back("at byte 1");  // offsets begin at 1000 here
  expect_error(code, all, [&] { run(p.bytes); });
}

PickleBuilder pickle() { return {}; }

// Nothing but a clean error or success
void survives(const std::string& bytes) {
  try {
    run(bytes);
  } catch (const Error& e) {
    INFO(e.what());
    CHECK(clean(e.what()));
  }
}

}  // namespace

TEST_CASE("pickle: all kinds of values") {
  const std::string bytes = pickle()
                                .raw("(N\x88\x89")
                                .integer(-5)
                                .raw("J\xfe\xff\xff\xff")
                                .raw("K\x07M\x01\x02")
                                .raw("\x8a")
                                .raw(std::string(1, '\0'))
                                .raw("G\x40\x09\x21\xfb\x54\x44\x2d\x18")
                                .text("x")
                                .raw("\x8c\x02yz")
                                .raw("U\x01w")
                                .raw(")]}")
                                .raw(
                                    "(K\x01K\x02l(K\x01K\x02"
                                    "dt.")
                                .bytes;
  const Pickle p(as_bytes(bytes), "file", 0, kMemory);
  using K = Pickle::Kind;
  std::vector<K> kinds;
  std::vector<int64_t> integers;
  std::string texts;
  REQUIRE(p.kind(p.top()) == K::tuple);
  p.each(p.top(), [&](Pickle::Ref r) {
    kinds.push_back(p.kind(r));
    if (p.kind(r) == K::integer) integers.push_back(p.integer(r));
    if (p.kind(r) == K::text) texts += p.text(r);
  });
  CHECK(kinds == std::vector<K>{K::none, K::boolean, K::boolean, K::integer, K::integer, K::integer, K::integer, K::integer, K::real, K::text, K::text, K::text,
                                K::tuple, K::list, K::dict, K::list, K::dict});
  CHECK(integers == std::vector<int64_t>{-5, -2, 7, 513, 0});
  CHECK(texts == "xyzw");
  CHECK(p.count(p.item(p.top(), 15)) == 2);
}

TEST_CASE("pickle: protocols 2 to 5, frames, memo and stack opcodes") {
  const std::string framed = std::string("\x80\x04\x95", 3) + little(4, 8) +
                             "}\x94"
                             "0h" +
                             std::string("\0.", 2);
  run(framed);
  run(pickle().raw("}q\x05(00h\x05.").bytes);  // POP removes a mark, too
  run(pickle().raw("}(NNN1.").bytes);          // POP_MARK
  run(pickle()
          .raw("]N2\x86"
               "a.")
          .bytes);  // DUP
  run(pickle().raw("}r").raw(little(256, 4)).raw("0j").raw(little(256, 4)).raw(".").bytes);
  run(pickle().text("collections").text("OrderedDict").raw("\x93)R}b.").bytes);
  for (const char protocol : {'\0', '\1', '\6', '\xff'}) bad(pickle().raw("\x80").raw(std::string(1, protocol)), {"protocol"}, DUET_E_UNSUPPORTED);
  bad(pickle().raw("\x95").raw(little(1000, 8)).raw("N."), {"frame of 1000"});
}

TEST_CASE("pickle: globals other than those of tensors are refused and nothing runs (B-W17)") {
  const Folder folder;
  const std::string canary = folder / "canary";
  const std::string attack = pickle().global("posix", "system").raw("(").text("touch " + canary).raw("tR.").bytes;
  bad(pickle().global("posix", "system").raw("(").text("touch " + canary).raw("tR."), {"global posix.system not allowed at byte 1002"});
  refused(pth_of(attack, {}), DUET_E_FORMAT, {"archive/data.pkl", "global posix.system not allowed at byte 66"});
  refused(pth_of(pickle().text("os").text("system").raw("\x93(").text("touch " + canary).raw("tR.").bytes, {}), DUET_E_FORMAT,
          {"global os.system not allowed"});
  CHECK_FALSE(std::filesystem::exists(canary));
  for (const char* name : {"builtins\neval\n", "torch\nload\n", "torch._utils\n_rebuild_tensor\n", "collections\nordereddict\n",
                           "numpy.core.multiarray\n_reconstruct\n", "__builtin__\ngetattr\n"})
    bad(pickle().raw("c").raw(name), {"not allowed"});
  bad(pickle().global("torch", "ComplexFloatStorage"), {"torch.ComplexFloatStorage"}, DUET_E_UNSUPPORTED);
  bad(pickle().raw("c").raw(std::string(1000, 'x')), {"without an end"});
  bad(pickle().raw("ctorch\n"), {"without an end"});
  bad(pickle().raw("c\x1b[31m\n\xff\n"), {"\\x1b[31m.\\xff"});
}

TEST_CASE("pickle: every opcode, alone and after every prefix of a real pickle (B-W18)") {
  const std::string real = pickle_of({{.name = "a", .key = "0", .elements = 2, .shape = {2}, .stride = {1}}});
  for (int op = 0; op < 256; ++op) {
    const std::string one(1, static_cast<char>(op));
    survives(one);
    survives(one + ".");
    for (size_t n = 0; n <= real.size(); ++n)
      for (const char* tail : {"", ".", "\x01\x01\x01\x01\x01\x01\x01\x01."}) survives(real.substr(0, n) + one + tail);
  }
  for (size_t n = 0; n < real.size(); ++n) expect_error(DUET_E_FORMAT, {}, [&] { run(real.substr(0, n)); });
  run(real);
}

TEST_CASE("pickle: billion laughs cost nothing (B-W19)") {
  for (const int levels : {34, 200}) {
    PickleBuilder p;
    p.raw(")q").raw(
        std::string("\0"
                    "0",
                    2));
    for (int i = 0; i < levels; ++i) {
      const std::string get = "h" + std::string(1, static_cast<char>(i));
      p.raw(get + get + "\x86q" + std::string(1, static_cast<char>(i + 1)) + "0");
    }
    p.raw("h" + std::string(1, static_cast<char>(levels)));
    const auto start = std::chrono::steady_clock::now();
    refused(pth_of(p.raw(".").bytes, {}), DUET_E_FORMAT, {"a tuple"});
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::milliseconds(100));
  }
}

TEST_CASE("pickle: budget (B-W19, B-W20)") {
  for (const char* op : {"N", "(", "]", "}", "2", ")", "\x88"}) {
    INFO(op);
    std::string much = pickle().raw("N").bytes;
    for (int i = 0; i < 4 << 20; ++i) much += op;
    expect_error(DUET_E_LIMIT, {"node budget", "at byte"}, [&] { run(much); });
  }
  bad(pickle().raw("Nr").raw(little(0x7fffffff, 4)), {"node budget", "2147483647"}, DUET_E_LIMIT);
  bad(pickle().raw("Nr").raw(little(2 << 20, 4)), {"node budget"}, DUET_E_LIMIT);
  std::string nested = pickle().raw(")").bytes;  // 100 000 deep: nothing recurses
  for (int i = 0; i < 100000; ++i) nested += "\x85";
  run(nested + ".");
  std::string marks = pickle().bytes + std::string(100000, '(') + "N" + std::string(100000, 't') + ".";
  run(marks);
  expect_error(DUET_E_LIMIT, {"67108864"}, [] { run(std::string((64 << 20) + 1, 'N')); });
}

TEST_CASE("pickle: operands of the wrong kind, or missing (B-W21)") {
  bad(pickle().text("x").raw("NNs"), {"SETITEM on text"});
  bad(pickle().raw("N(NNu"), {"SETITEMS on None"});
  bad(pickle().raw("](NNu"), {"SETITEMS on a list"});
  bad(pickle().tensor("FloatStorage", "0", 1, 0, {1}, {1}).raw("NNs"), {"SETITEM on a tensor"});
  bad(pickle().raw("}(Nu"), {"1 keys and values"});
  bad(pickle().raw("}Na"), {"APPEND to a dict"});
  bad(pickle().raw(")(Ne"), {"APPENDS to a tuple"});
  bad(pickle().raw("K\x01}b"), {"BUILD on an integer"});
  bad(pickle().raw("}K\x01"
                   "b"),
      {"BUILD with an integer"});
  bad(pickle().raw("NNR"), {"REDUCE with None"});
  bad(pickle().raw("N)R"), {"REDUCE of None"});
  bad(pickle().global("collections", "OrderedDict").raw("]\x85R"), {"OrderedDict with 1"});
  bad(pickle().global("torch", "FloatStorage").raw(")R"), {"storage outside"});
  bad(pickle().global("torch._utils", "_rebuild_tensor_v2").raw(")R"), {"_rebuild_tensor_v2 with 0"});
  bad(pickle().global("torch._utils", "_rebuild_parameter").raw("NNN\x87R"), {"_rebuild_parameter of None"});
  bad(pickle().global("torch._utils", "_rebuild_parameter").raw("N\x85R"), {"_rebuild_parameter with 1"});
  const auto rebuild = [](const char* arguments) {
    return pickle().global("torch._utils", "_rebuild_tensor_v2").raw("(").storage("FloatStorage", "0", 1).raw(arguments).raw("\x89NtR");
  };
  run(rebuild("K\x01))").raw(".").bytes);
  bad(rebuild("N))"), {"an offset that is None"});
  bad(rebuild("K\x01"
              "])"),
      {"a shape that is a list"});
  bad(rebuild("K\x01)]"), {"strides that are a list"});
  bad(rebuild("K\x01N\x85)"), {"a dimension that is None"});
  bad(rebuild("K\x01K\x01\x85N\x85"), {"a stride that is None"});
  bad(rebuild("K\x01K\x01\x85)"), {"1 dimensions with 0 strides"});
  bad(pickle().global("torch._utils", "_rebuild_tensor_v2").raw("(NK\x01))NNtR"), {"_rebuild_tensor_v2 of None"});
  bad(pickle().raw("NQ"), {"a persistent id that is None"});
  bad(pickle().raw(")Q"), {"0 items"});
  bad(pickle().raw("(").text("module").raw("NNNNtQ"), {"a persistent id of a module"});
  bad(pickle().raw("(").text("storage").raw("NNNNtQ"), {"a storage type that is None"});
  bad(pickle().raw("(").text("storage").global("collections", "OrderedDict").raw("NNNtQ"), {"whose type is OrderedDict"});
  bad(pickle().raw("(").text("storage").global("torch", "FloatStorage").raw("NNNtQ"), {"a storage key that is None"});
  for (const char* op : {"0", "2", ".", "\x85", "\x86", "\x87", "a", "s", "b", "R", "Q", "q\x01", "\x94", "\x93"}) {
    INFO(op);
    bad(pickle().raw(op), {});
  }
  for (const char* op : {"1", "t", "l", "d", "e", "u"}) bad(pickle().raw(op), {"no mark"});
  for (const char* op : {"(e", "(u", "((u", "N((u"}) bad(pickle().raw(op), {"underflow"});
  bad(pickle().raw("N(0a"), {"underflow"});
  bad(pickle().raw("NN."), {"1 values are left over"});
  bad(pickle().raw("N.N"), {"1 bytes after the pickle's end"});
  bad(pickle().raw("h\x07"), {"memo entry 7"});
  bad(pickle().raw("Nq\x07h\x06"), {"memo entry 6"});
  bad(pickle().raw("j").raw(little(0xffffffff, 4)), {"memo entry 4294967295"});
  bad(pickle().raw("\x8b").raw(little(2u << 30, 4)), {"2147483648"});
  bad(pickle().raw("\x8a\x09"
                   "123456789"),
      {"9 bytes"}, DUET_E_LIMIT);
  bad(pickle().raw("X").raw(little(0xffffffff, 4)), {"4294967295"});
  bad(pickle().raw("\x8d").raw(little(~uint64_t{0}, 8)), {"18446744073709551615"});
  bad(pickle().raw("i"), {"opcode 0x69"});
  bad(pickle().raw("o"), {"opcode 0x6f"});
  bad(pickle().raw("\x81"), {"opcode 0x81"});
}

}  // namespace duet
