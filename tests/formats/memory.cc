// While a file is being rejected, no more memory is taken than its size and 16 MiB. A program of its own, because it
// replaces operator new to count.
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "expect.h"
#include "pickle_builder.h"

namespace {

std::atomic<int64_t> g_live{0}, g_peak{0};

void* counted(void* p) noexcept {
  if (p == nullptr) return p;
  const auto n = static_cast<int64_t>(::malloc_usable_size(p));
  const int64_t live = g_live += n;
  for (int64_t peak = g_peak; live > peak && !g_peak.compare_exchange_weak(peak, live);) {
  }
  return p;
}

void release(void* p) noexcept {
  if (p != nullptr) g_live -= static_cast<int64_t>(::malloc_usable_size(p));
  ::free(p);
}

}  // namespace

void* operator new(size_t n) {
  if (void* p = counted(::malloc(n))) return p;
  throw std::bad_alloc();
}
void* operator new(size_t n, const std::nothrow_t&) noexcept { return counted(::malloc(n)); }
void* operator new(size_t n, std::align_val_t a, const std::nothrow_t&) noexcept { return counted(::aligned_alloc(static_cast<size_t>(a), n)); }
void operator delete(void* p) noexcept { release(p); }
void operator delete(void* p, size_t) noexcept { release(p); }
void operator delete(void* p, std::align_val_t) noexcept { release(p); }

namespace duet {
namespace {

constexpr int64_t kAllowance = 16 << 20;

// Rejects the file (or loads it, where `may_load`) and reports the memory that took.
template <class F>
void bounded(uint64_t file_bytes, F&& load) {
  const int64_t before = g_live;
  g_peak = before;
  std::string message = "loaded";
  try {
    load();
  } catch (const Error& e) {
    message = e.what();
  }
  const int64_t peak = g_peak - before;
  INFO(message);
  CHECK(message != "loaded");
  INFO("peak " << peak << " for a file of " << file_bytes);
  CHECK(peak > 0);
  CHECK(peak <= static_cast<int64_t>(file_bytes) + kAllowance);
}

void bounded(const std::string& file) {
  bounded(file.size(), [&] { parse(file); });
}

std::string safetensors(const std::string& header, const std::string& data = "") { return little(header.size(), 8) + header + data; }

std::string repeated(std::string_view s, size_t n) {
  std::string out;
  for (size_t i = 0; i < n; ++i) out += s;
  return out;
}

std::string pickle(const std::string& body) { return pth_of("\x80\x02" + body, {}); }

}  // namespace

TEST_CASE("memory: the counter counts") {
  const int64_t before = g_live;
  {
    const std::vector<char> v(1 << 20);
    CHECK(g_live >= before + (1 << 20));
  }
  CHECK(g_live < before + (1 << 16));
}

TEST_CASE("memory: safetensors headers") {
  bounded(little(uint64_t{1} << 40, 8) + "{}");
  std::string header = "{";
  for (int i = 0; i < 65536; ++i) header += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i ? "," : "", i);
  bounded(safetensors(header + "}", "x"));  // as many tensors as there may be, and a byte too much
  bounded(safetensors(header + R"(,"0":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"));
  bounded(safetensors("{\"" + std::string(32 << 20, 'k')));  // names and values of any length
  bounded(safetensors("{\"" + std::string(32 << 20, 'k') + "\":1}"));
  bounded(safetensors("{\"__metadata__\":{\"k\":\"" + std::string(32 << 20, 'v') + "\"},}"));
  bounded(safetensors("{\"__metadata__\":{\"" + repeated("\\u00e9", 4 << 20) + "\":\"\"},}"));
  header = "{\"__metadata__\":{";
  for (int i = 0; i < 4096; ++i) header += fmt::format("{}\"{}\":\"{}\"", i ? "," : "", i, std::string(1000, 'v'));
  bounded(safetensors(header + "},}"));
  bounded(safetensors("{\"a\":" + std::string(32 << 20, '[')));
  bounded(safetensors("{\"a\":{\"shape\":[" + repeated("1,", 1 << 20)));
  bounded(safetensors("{\"a\":{\"data_offsets\":[" + repeated("1,", 1 << 20)));
}

TEST_CASE("memory: zip directories") {
  ZipBuilder z;
  z.alignment = 1;
  for (int i = 0; i < 65535; ++i) z.add(fmt::format("m/{}", i), "");
  bounded(z.finish());
  ZipBuilder few;
  few.add("m/data.pkl", "}.");
  std::string file = few.finish();
  for (const size_t at : {few.end64 + 24, few.end64 + 32}) patch(file, at, 65536, 8);
  for (const size_t at : {few.end + 8, few.end + 10}) patch(file, at, 0xffff, 2);
  bounded(file);
}

TEST_CASE("memory: pickles (B-W19, B-W20)") {
  for (const char* op : {"N", "(", "]", "}", "2", ")", "\x88", "K\1", "N0", "(0", "Nq\1", "(l"}) {
    INFO(op);
    bounded(pickle("N" + repeated(op, 2 << 20)));
    bounded(pickle(repeated(op, 200'000)));
  }
  bounded(pickle("Nr" + little(0x7fffffff, 4)));
  bounded(pickle("Nr" + little(600'000, 4)));
  bounded(pickle(")" + repeated("\x85", 1 << 20)));
  bounded(pickle("](" + repeated("N", 100'000) + repeated("h\1", 10)));
  bounded(
      pickle("Nq\1"
             "](" +
             repeated("h\1", 3 << 20)));
  bounded(pickle("c" + std::string(32 << 20, 'x')));
  bounded(pickle("X" + little(32 << 20, 4) + std::string(32 << 20, 'x') + "."));
  std::string laughs = ")q\x01";
  for (int i = 1; i < 200; ++i)
    laughs +=
        "h" + std::string(1, static_cast<char>(i)) + "h" + std::string(1, static_cast<char>(i)) + "\x86q" + std::string(1, static_cast<char>(i + 1)) + "0";
  bounded(pickle(laughs + "."));
}

TEST_CASE("memory: as many tensors as a pickle can name, one too many or all in the wrong place") {
  for (const int n : {65536, 100'000}) {
    PickleBuilder p;
    p.raw("}(").text("first").tensor("ByteStorage", "0", 8, 0, {8}, {1}).raw("q\x07");
    for (int i = 1; i < n; ++i) p.text(std::to_string(i)).raw("h\x07");
    bounded(pth_of(p.text("1").raw("h\x07u.").bytes, {"abcdefgh"}));
  }
  PickleBuilder p;
  p.raw("}(").text("first").tensor("ByteStorage", "0", 1 << 20, 0, {512, 2048}, {1, 512}).raw("q\x07");
  for (int i = 1; i < 1000; ++i) p.text(std::to_string(i)).raw("h\x07");
  bounded(pth_of(p.raw("u.").bytes, {std::string(1 << 20, 'x')}));  // a thousand copies of one storage
}

TEST_CASE("memory: Hugging Face folders") {
  const Folder f;
  const auto config = [&](const std::string& text) {
    f.write("config.json", text);
    bounded(text.size(), [&] { Checkpoint::open(f.path(), Log()); });
  };
  config("{\"x\":[" + repeated("[],", 20000) + "[]]}");
  config("{\"x\":[" + repeated("{},", 20000) + "[]]}");
  config(std::string(1 << 20, ' '));
  const std::string rwkv = "{\"model_type\":\"rwkv7\"}";
  f.write("config.json", rwkv);
  const auto index = [&](const std::string& text) {
    f.write("model.safetensors.index.json", text);
    bounded(rwkv.size() + text.size(), [&] { Checkpoint::open(f.path(), Log()); });
  };
  index("{\"x\":[" + repeated("[],", 130'000) + "[]]}");
  index("{\"x\":[" + repeated("{},", 130'000) + "[]]}");
  index("[" + repeated("0,", 195'000) + "0]");
  std::string map = "{\"weight_map\":{";
  for (int i = 0; i < 30'000; ++i) map += fmt::format("\"{}\":\"a\",", i);
  index(map + "\"x\":\"a\"}}");
  map = "{\"weight_map\":{";
  for (int i = 0; i < 60'000; ++i) map += fmt::format("\"{:x}\":0,", i);
  index(map.substr(0, 390'000) + "}}");
}

}  // namespace duet
