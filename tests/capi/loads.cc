// Loading as it goes wrong: stopped at any layer, again and again, from a file that changes meanwhile, or larger than the memory.
#include <malloc.h>
#include <unistd.h>

#include <filesystem>

#include "support/api.h"
#include "support/golden.h"

using namespace api;

namespace {

namespace fs = std::filesystem;

// Calls a function at the n-th report of progress.
struct At {
  uint64_t n = 0, calls = 0, done = 0, total = 0;
  bool grows = true;
  duet_status (*act)(At&) = nullptr;
  std::string path, other;
  static duet_status progress(void* user, uint64_t done, uint64_t total) {
    At& at = *static_cast<At*>(user);
    at.grows = at.grows && done > at.done && done <= total;
    at.done = done;
    at.total = total;
    return at.calls++ == at.n && at.act ? at.act(at) : DUET_OK;
  }
};

duet_status load_with(const Library& lib, const std::string& path, At& at, duet_model** out) {
  auto o = DUET_INIT(duet_model_options);
  o.device = "reference";
  o.progress = At::progress;
  o.progress_user = &at;
  return duet_model_load(lib.get(), path.c_str(), &o, out);
}

// Bytes that are allocated now; 0 under a sanitizer, which finds leaks itself.
size_t allocated() {
  const struct mallinfo2 m = ::mallinfo2();
  return m.uordblks + m.hblkhd;
}

size_t open_files() { return static_cast<size_t>(std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator())); }

// A copy of the tiny model for a test that changes it
struct Copy {
  std::string path = (fs::temp_directory_path() / ("duet_loads_" + std::to_string(::getpid()))).string();
  Copy() { fs::copy_file(golden::path("tiny.pth"), path, fs::copy_options::overwrite_existing); }
  Copy(const Copy&) = delete;
  Copy& operator=(const Copy&) = delete;
  ~Copy() {
    std::error_code ignored;
    fs::remove(path, ignored);
  }
};

// The beginning of a safetensors file of a model of this shape in BF16, and the size of the whole.
struct Sparse {
  std::string header = "{";
  uint64_t offset = 0;
  void add(const std::string& name, const std::vector<uint64_t>& shape) {
    uint64_t n = 2;
    std::string dims;
    for (const uint64_t d : shape) n *= d, dims += (dims.empty() ? "" : ",") + std::to_string(d);
    header += (header.size() > 1 ? ",\"" : "\"") + name + R"(":{"dtype":"BF16","shape":[)" + dims + R"(],"data_offsets":[)" + std::to_string(offset) + "," + std::to_string(offset + n) + "]}";
    offset += n;
  }
  Sparse(uint64_t L, uint64_t C, uint64_t V) {
    add("emb.weight", {V, C});
    for (uint64_t i = 0; i < L; ++i) {
      const std::string block = "blocks." + std::to_string(i) + ".";
      for (const char* norm : {"ln0", "ln1", "ln2", "att.ln_x"})
        if (i == 0 || std::string(norm) != "ln0")
          for (const char* part : {".weight", ".bias"}) add(block + norm + part, {C});
      for (const char* vector : {"att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g", "att.w0", "att.a0", "att.k_k", "att.k_a", "ffn.x_k"}) add(block + vector, {1, 1, C});
      add(block + "att.r_k", {C / 64, 64});
      for (const char* pair : {"w", "a", "v", "g"}) {
        if (i == 0 && *pair == 'v') continue;
        if (*pair == 'v') add(block + "att.v0", {1, 1, C});
        add(block + "att." + pair + "1", {C, 64});
        add(block + "att." + pair + "2", {64, C});
      }
      for (const char* square : {"receptance", "key", "value", "output"}) add(block + "att." + square + ".weight", {C, C});
      add(block + "ffn.key.weight", {4 * C, C});
      add(block + "ffn.value.weight", {C, 4 * C});
    }
    add("ln_out.weight", {C});
    add("ln_out.bias", {C});
    add("head.weight", {V, C});
    header += "}";
    header.append((64 - (8 + header.size()) % 64) % 64, ' ');
  }
  uint64_t size() const { return 8 + header.size() + offset; }
};

}  // namespace

TEST_CASE("a load that its callback stops, at each layer, leaves nothing behind") {
  const auto lib = library(1);
  At all;
  duet_model* m = nullptr;
  check(load_with(lib, golden::path("tiny.pth"), all, &m));
  CHECK(all.grows);
  CHECK(all.done == all.total);
  const Model model(m);
  CHECK(all.total == info(model).weight_bytes);
  REQUIRE(all.calls == info(model).n_layer + 1);
  const size_t before = allocated(), files = open_files();
  for (int round = 0; round < 20; ++round)
    for (uint64_t n = 0; n < all.calls; ++n) {
      for (const auto act : {+[](At&) -> duet_status { return DUET_E_CANCELLED; }, +[](At&) -> duet_status { throw 42; }}) {
        At at;
        at.n = n;
        at.act = act;
        duet_model* none = nullptr;
        const duet_status s = load_with(lib, golden::path("tiny.pth"), at, &none);
        const bool told = s == DUET_E_CANCELLED || s == DUET_E_INTERNAL;
        CHECK(told);
        CHECK(at.calls == n + 1);
        CHECK(none == nullptr);
      }
    }
  CHECK(allocated() < before + (1 << 20));
  CHECK(open_files() == files);
}

TEST_CASE("a thousand loads and frees keep the memory flat") {
  const auto lib = library(1);
  const auto cycle = [&] {
    const auto m = load(lib, golden::path("tiny.pth"), "reference");
    const auto s = state(m);
    (void)s;
  };
  for (int i = 0; i < 10; ++i) cycle();
  const size_t before = allocated(), files = open_files();
  for (int i = 0; i < 1000; ++i) cycle();
  CHECK(allocated() < before + (1 << 20));
  CHECK(open_files() == files);
}

TEST_CASE("a file that changes while it is loaded is refused, one that is replaced by renaming is not") {
  const auto lib = library(1);
  for (uint64_t n = 0;; ++n) {
    for (const auto act : {+[](At& at) -> duet_status { return ::truncate(at.path.c_str(), 4096) == 0 ? DUET_OK : DUET_E_IO; },
                           +[](At& at) -> duet_status { return ::truncate(at.path.c_str(), static_cast<off_t>(fs::file_size(at.path)) + 1) == 0 ? DUET_OK : DUET_E_IO; }}) {
      const Copy copy;
      At at;
      at.n = n;
      at.act = act;
      at.path = copy.path;
      duet_model* m = nullptr;
      CHECK(load_with(lib, copy.path, at, &m) == DUET_E_FORMAT);
      CHECK(std::string(duet_last_error()).find("changed while it was read") != std::string::npos);
      CHECK(m == nullptr);
    }
    const Copy copy;
    At at;
    at.n = n;
    at.path = copy.path;
    at.other = copy.path + ".new";
    fs::copy_file(golden::path("small_bf16.safetensors"), at.other, fs::copy_options::overwrite_existing);
    at.act = +[](At& a) -> duet_status { return ::rename(a.other.c_str(), a.path.c_str()) == 0 ? DUET_OK : DUET_E_IO; };
    duet_model* m = nullptr;
    check(load_with(lib, copy.path, at, &m));
    const Model model(m);
    CHECK(forward(session(model, DUET_MODE_RECURRENT), state(model), {1, 2, 3}) ==
          forward(session(load(lib, golden::path("tiny.pth"), "reference"), DUET_MODE_RECURRENT), state(load(lib, golden::path("tiny.pth"), "reference")), {1, 2, 3}));
    if (n + 1 == at.calls) break;
  }
}

#if !defined(__SANITIZE_THREAD__)  // whose shadow of so large a mapping takes too long
TEST_CASE("a model larger than the memory is refused before its first layer, with what it needs and what there is") {
  const auto lib = library(1);
  const Sparse sparse(64, 16384, 65536);  // 0.4 TB, and twice as much in f32
  const std::string path = (fs::temp_directory_path() / ("duet_sparse_" + std::to_string(::getpid()))).string();
  struct Remove {
    const std::string& path;
    ~Remove() { ::unlink(path.c_str()); }
  } remove{path};
  {
    std::ofstream out(path, std::ios::binary);
    const uint64_t n = sparse.header.size();
    out.write(reinterpret_cast<const char*>(&n), sizeof n);
    out << sparse.header;
  }
  std::error_code e;
  fs::resize_file(path, sparse.size(), e);
  if (e) return;  // a file system without sparse files
  auto o = DUET_INIT(duet_model_options);
  o.device = "reference";
  o.weights = DUET_F32;
  At at;
  o.progress = At::progress;
  o.progress_user = &at;
  duet_model* m = nullptr;
  CHECK(duet_model_load(lib.get(), path.c_str(), &o, &m) == DUET_E_MEMORY);
  const std::string sentence = duet_last_error();
  INFO(sentence);
  CHECK(sentence.find(path) != std::string::npos);
  CHECK(sentence.find("need ") != std::string::npos);
  CHECK(sentence.find("are free") != std::string::npos);
  CHECK(at.calls == 0);
  CHECK(m == nullptr);
}
#endif
