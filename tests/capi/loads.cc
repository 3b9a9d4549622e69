// Loading as it goes wrong: stopped at any tensor, again and again, from a file that changes meanwhile, or larger than the memory.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>

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

TEST_CASE("a load that its callback stops, at each tensor, leaves nothing behind") {
  const auto lib = library(1);
  At all;
  duet_model* m = nullptr;
  check(load_with(lib, golden::path("tiny.pth"), all, &m));
  CHECK(all.grows);
  CHECK(all.done == all.total);
  const Model model(m);
  CHECK(all.total == info(model).weight_bytes);
  CHECK(all.calls == golden::load("tinyf32_f32.safetensors").size() - 3);  // the same tensors; layer 0 has no use for v0, v1, v2
  const size_t before = allocated(), files = open_files();
  for (int round = 0; round < 3; ++round)
    for (uint64_t n = 0; n < all.calls; ++n) {
      for (const auto act : {+[](At&) -> duet_status { return DUET_E_CANCELLED; }, +[](At&) -> duet_status { throw 42; }}) {
        At at;
        at.n = n;
        at.act = act;
        duet_model* none = nullptr;
        const duet_status s = load_with(lib, golden::path("tiny.pth"), at, &none);
        const bool told = s == DUET_E_INTERNAL || (s == DUET_E_CANCELLED && std::string(duet_last_error()).find(std::to_string(at.done) + " of " + std::to_string(all.total)) != std::string::npos);
        CHECK(told);
        CHECK(at.calls == n + 1);
        CHECK(none == nullptr);
      }
    }
  CHECK(allocated() < before + (1 << 20));
  CHECK(open_files() == files);
}

TEST_CASE("a new model reports what is written, and can be stopped before it appears") {
  const auto lib = library(1);
  const std::string path = (fs::temp_directory_path() / ("duet_new_" + std::to_string(::getpid()))).string();
  const auto make = [&](At& at, uint32_t size) {
    auto o = DUET_INIT(duet_init_options);
    o.size = size;
    o.n_layer = 2;
    o.n_embd = o.n_vocab = 64;
    o.overwrite = 1;
    o.progress = At::progress;
    o.progress_user = &at;
    return duet_file_init(lib.get(), path.c_str(), &o);
  };
  At all;
  check(make(all, sizeof(duet_init_options)));
  CHECK(all.grows);
  CHECK(all.done == all.total);
  CHECK(all.total + 16384 > fs::file_size(path));
  CHECK(all.calls > 2 * 30);  // a tensor is one report, or more
  fs::remove(path);
  for (uint64_t n = 0; n < all.calls; ++n) {
    At at;
    at.n = n;
    at.act = +[](At&) -> duet_status { return DUET_E_CANCELLED; };
    CHECK(make(at, sizeof(duet_init_options)) == DUET_E_CANCELLED);
    CHECK_FALSE(fs::exists(path));
  }
  At unseen;  // the struct of version 1.0, which ended before `progress`
  check(make(unseen, offsetof(duet_init_options, progress)));
  CHECK(unseen.calls == 0);
  fs::remove(path);
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
namespace {

// A file of a model of 0.4 TB in BF16 that takes no room on the disk: all its weights are zero.
struct HugeFile {
  std::string path = (fs::temp_directory_path() / ("duet_sparse_" + std::to_string(::getpid()))).string();
  uint64_t weight_bytes = 0;
  bool made = false;  // false: a file system without sparse files
  HugeFile() {
    const Sparse sparse(64, 16384, 65536);
    weight_bytes = sparse.offset;
    std::ofstream out(path, std::ios::binary);
    const uint64_t n = sparse.header.size();
    out.write(reinterpret_cast<const char*>(&n), sizeof n);
    out << sparse.header;
    out.close();
    std::error_code e;
    fs::resize_file(path, sparse.size(), e);
    made = !e;
  }
  HugeFile(const HugeFile&) = delete;
  HugeFile& operator=(const HugeFile&) = delete;
  ~HugeFile() { ::unlink(path.c_str()); }
};

uint64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

TEST_CASE("a model larger than the memory is refused before its first tensor, with what it needs and what there is") {
  const auto lib = library(1);
  const HugeFile file;
  if (!file.made) return;
  auto o = DUET_INIT(duet_model_options);
  o.device = "reference";
  o.weights = DUET_F32;
  At at;
  o.progress = At::progress;
  o.progress_user = &at;
  duet_model* m = nullptr;
  CHECK(duet_model_load(lib.get(), file.path.c_str(), &o, &m) == DUET_E_MEMORY);
  const std::string sentence = duet_last_error();
  INFO(sentence);
  CHECK(sentence.find(file.path) != std::string::npos);
  CHECK(sentence.find("need ") != std::string::npos);
  CHECK(sentence.find("are free") != std::string::npos);
  CHECK(at.calls == 0);
  CHECK(m == nullptr);
}

TEST_CASE("a model larger than the memory that needs no conversion is mapped and not read, with a warning") {
  std::vector<std::string> warnings;
  auto lo = DUET_INIT(duet_library_options);
  lo.n_threads = 1;
  lo.log = [](void* user, int32_t, const char* text) { static_cast<std::vector<std::string>*>(user)->emplace_back(text); };
  lo.log_user = &warnings;
  duet_library* l = nullptr;
  check(duet_library_create(&lo, &l));
  const Library lib(l);
  const HugeFile file;
  if (!file.made) return;
  const uint64_t before = resident_bytes();
  const auto m = load(lib, file.path, "reference");
  CHECK(info(m).weight_bytes >= file.weight_bytes);
  CHECK(resident_bytes() < before + (uint64_t{1} << 30));
  const auto told = std::count_if(warnings.begin(), warnings.end(), [&](const std::string& w) {
    return w.find(file.path + ": the weights are " + std::to_string(info(m).weight_bytes) + " bytes, but ") == 0 && w.find("are free") != std::string::npos;
  });
  CHECK(told == 1);
}
#endif
