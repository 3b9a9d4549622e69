// States: save, load, fork, move, reset, tuned initial states; bad state files leave the live state as it was.
#include <signal.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "formats/pickle_builder.h"
#include "support/api.h"
#include "support/golden.h"

using namespace api;

namespace {

const std::vector<int32_t> kText = {0, 17, 99, 3, 200, 41, 41, 255, 8};

std::string save(const State& s, uint32_t slot = 0) {
  size_t n = 0;
  check(duet_state_save(s.get(), slot, nullptr, 0, &n));
  std::string out(n, '\0');
  check(duet_state_save(s.get(), slot, out.data(), out.size(), &n));
  return out;
}

// A model of two layers, 16 channels and 32 tokens whose outputs depend on its state. A fresh one's do not: the matrices
// behind attention and channel mix begin as zero, and get other numbers here.
struct SmallModel {
  std::string path = (std::filesystem::temp_directory_path() / ("duet_small_" + std::to_string(::getpid()))).string();
  explicit SmallModel(const Library& lib) {
    auto o = DUET_INIT(duet_init_options);
    o.n_layer = 2;
    o.n_embd = 16;
    o.n_vocab = 32;
    o.head_size = 8;
    o.overwrite = 1;
    check(duet_file_init(lib.get(), path.c_str(), &o));
    std::string bytes = golden::slurp(path);
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), sizeof header);
    const auto tensors = nlohmann::json::parse(bytes.substr(8, header));
    for (const auto& [name, t] : tensors.items()) {
      if (name != "emb.weight" && name.find("att.output") == name.npos && name.find("ffn.value") == name.npos) continue;
      const size_t begin = t["data_offsets"][0], end = t["data_offsets"][1];
      for (size_t at = begin; at < end; at += sizeof(float)) {
        const float v = static_cast<float>(at * 2654435761u % 1000) / 1000 - 0.5f;
        std::memcpy(bytes.data() + 8 + header + at, &v, sizeof v);
      }
    }
    std::ofstream(path, std::ios::binary) << bytes;
  }
  SmallModel(const SmallModel&) = delete;
  SmallModel& operator=(const SmallModel&) = delete;
  ~SmallModel() { ::unlink(path.c_str()); }
};

duet_status load_bytes(const State& s, const std::string& bytes) { return duet_state_load(s.get(), 0, bytes.data(), bytes.size()); }

}  // namespace

TEST_CASE("save, load and fork are the identity, bit for bit") {
  const auto lib = library();
  for (const char* backend : backends()) {
    const auto m = load(lib, golden::path("tiny.pth"), backend);
    const auto x = session(m, DUET_MODE_AUTO);
    const auto s = state(m, 3);
    (void)forward(x, s, kText, 1);
    const auto want = arrays(m, s, 1);
    const std::string bytes = save(s, 1);
    check(duet_state_copy(s.get(), 2, s.get(), 1));
    CHECK(arrays(m, s, 2) == want);
    check(duet_state_load(s.get(), 0, bytes.data(), bytes.size()));
    CHECK(arrays(m, s, 0) == want);
    const auto next = forward(x, s, kText, 1);
    CHECK(forward(x, s, kText, 0) == next);
    CHECK(forward(x, s, kText, 2) == next);
    check(duet_state_reset(s.get(), 2));
    CHECK(arrays(m, s, 2) == arrays(m, state(m)));
  }
}

TEST_CASE("stored in f16 or bf16 a state keeps rounded numbers, through every way in and out") {
  const auto lib = library();
  for (const char* backend : backends()) {
    const auto m = load(lib, golden::path("tiny.pth"), backend);
    for (const duet_dtype dtype : {DUET_F16, DUET_BF16}) {
      if (std::string(backend) == "cpu") continue;  // refuses: below
      const auto exact = state(m, 2);
      const auto s = state(m, 3, dtype);
      (void)forward(session(m, DUET_MODE_RECURRENT), exact, kText);
      const auto want = arrays(m, exact);
      check(duet_state_copy(s.get(), 1, exact.get(), 0));  // from f32: rounds the matrices and nothing else
      const auto got = arrays(m, s, 1);
      CHECK(got.att_x == want.att_x);
      CHECK(got.ffn_x == want.ffn_x);
      CHECK(got.wkv != want.wkv);
      const double unit = dtype == DUET_F16 ? 0x1p-11 : 0x1p-8;
      bool near = true;
      for (size_t i = 0; i < want.wkv.size(); ++i) near = near && std::abs(got.wkv[i] - want.wkv[i]) <= unit * std::max(std::abs(want.wkv[i]), 0x1p-14f);
      CHECK(near);
      check(duet_state_copy(s.get(), 2, s.get(), 1));
      const std::string bytes = save(s, 2);
      check(duet_state_load(s.get(), 0, bytes.data(), bytes.size()));
      check(duet_state_load(exact.get(), 1, bytes.data(), bytes.size()));
      for (uint32_t slot : {0u, 2u}) CHECK(arrays(m, s, slot) == got);
      CHECK(arrays(m, exact, 1) == got);  // back to f32 nothing is lost
      const auto x = session(m, DUET_MODE_AUTO);
      const auto next = forward(x, s, kText, 0);
      CHECK(forward(x, s, kText, 2) == next);
      CHECK(arrays(m, s, 0) == arrays(m, s, 2));
      const auto after = arrays(m, s, 0);
      check(duet_state_set(s.get(), 1, after.att_x.data(), after.wkv.data(), after.ffn_x.data()));
      CHECK(arrays(m, s, 1) == after);  // what a step left is rounded already
    }
    auto large = arrays(m, state(m));
    for (size_t i = 0; i < large.wkv.size(); ++i) large.wkv[i] = i % 2 ? -1e9f : 65519.0f;
    if (std::string(backend) == "cpu") continue;
    const auto s = state(m, 1, DUET_F16);
    check(duet_state_set(s.get(), 0, nullptr, large.wkv.data(), nullptr));
    const auto saturated = arrays(m, s);
    CHECK(saturated.wkv[0] == 65504.0f);
    CHECK(saturated.wkv[1] == -65504.0f);
  }
}

TEST_CASE("a backend that stores f32 only refuses other states with a sentence") {
  const auto lib = library();
  for (const char* backend : backends()) {
    const auto m = load(lib, golden::path("tiny.pth"), backend);
    auto o = DUET_INIT(duet_state_options);
    for (const duet_dtype dtype : {DUET_F16, DUET_BF16, DUET_I8}) {
      if (dtype != DUET_I8 && std::string(backend) != "cpu") continue;
      o.wkv = dtype;
      duet_state* s = nullptr;
      CHECK(duet_state_create(m.get(), 1, &o, &s) == DUET_E_UNSUPPORTED);
      CHECK(std::string(duet_last_error()).find("f32") != std::string::npos);
    }
  }
}

TEST_CASE("states move between backends and weight dtypes") {
  const auto lib = library();
  const auto a = load(lib, golden::path("tiny.pth"), "reference", DUET_F32);
  const auto b = load(lib, golden::path("tiny_fla"), backends().back(), DUET_BF16);
  const auto s = state(a), t = state(b);
  (void)forward(session(a, DUET_MODE_PARALLEL), s, kText);
  check(duet_state_copy(t.get(), 0, s.get(), 0));
  CHECK(arrays(b, t) == arrays(a, s));
  const std::string bytes = save(t);  // the fingerprint is the weights', whatever the container and dtype
  check(load_bytes(s, bytes));
  CHECK(arrays(b, t) == arrays(a, s));
}

TEST_CASE("state files are safetensors that others can read") {
  const auto lib = library();
  const auto m = load(lib, golden::path("tiny.pth"), "reference");
  const auto s = state(m);
  (void)forward(session(m, DUET_MODE_PARALLEL), s, kText);
  const auto t = golden::parse(save(s));
  const auto want = arrays(m, s);
  CHECK(t.at("state.att_x").f32 == want.att_x);
  CHECK(t.at("state.wkv").f32 == want.wkv);
  CHECK(t.at("state.ffn_x").f32 == want.ffn_x);
  CHECK(t.at("state.wkv").shape == std::vector<uint64_t>{3, 2, 64, 64});
  const std::string path = std::string(DUET_BUILD) + "/state.safetensors";
  check(duet_state_save_file(s.get(), 0, path.c_str()));
  const auto u = state(m);
  check(duet_state_load_file(u.get(), 0, path.c_str()));
  CHECK(arrays(m, u) == want);
  CHECK(duet_state_save_file(s.get(), 0, "/nonexistent/state") == DUET_E_NOT_FOUND);
}

TEST_CASE("bad states are refused and change nothing") {
  const auto lib = library();
  const auto m = load(lib, golden::path("tiny.pth"), "reference");
  const auto s = state(m);
  (void)forward(session(m, DUET_MODE_PARALLEL), s, kText);
  const auto before = arrays(m, s);
  const std::string good = save(s);
  const auto refused = [&](const std::string& bytes) {
    const duet_status r = load_bytes(s, bytes);
    const bool clear = r != DUET_OK && std::string(duet_last_error()).size() > 10;
    return clear;
  };
  uint64_t header = 0;
  std::memcpy(&header, good.data(), 8);
  for (size_t n = 0; n < 8 + header; ++n)
    if (!refused(good.substr(0, n))) FAIL("a state cut at byte " << n << " was taken");
  for (size_t n = 8 + header; n < good.size(); n += 1009) REQUIRE(refused(good.substr(0, n)));
  for (size_t i = 0; i < 8 + header; ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ 1 << bit);
      if (load_bytes(s, bad) != DUET_OK) continue;  // a flip in a key of the metadata or in white space may go unnoticed ...
      if (arrays(m, s) != before) FAIL("bit " << bit << " of byte " << i << " changed the state");  // ... but never changes the numbers
    }
  CHECK(arrays(m, s) == before);
  std::string flipped = good;
  flipped[good.size() - 3] = static_cast<char>(flipped[good.size() - 3] ^ 1);
  CHECK(load_bytes(s, flipped) == DUET_E_FORMAT);
  CHECK(std::string(duet_last_error()).find("checksum") != std::string::npos);

  const auto other = load(lib, golden::path("tinyf32_f32.safetensors"), "reference");  // same shape, other weights
  CHECK(load_bytes(s, save(state(other))) == DUET_E_INVALID);
  CHECK(std::string(duet_last_error()).find("fingerprint") != std::string::npos);
  const auto larger = load(lib, golden::path("small_bf16.safetensors"), "reference");
  CHECK(load_bytes(s, save(state(larger))) == DUET_E_INVALID);
  CHECK(std::string(duet_last_error()).find("[4,256]") != std::string::npos);
  CHECK(duet_state_copy(s.get(), 0, state(larger).get(), 0) == DUET_E_INVALID);
  std::string future = good;
  future.replace(future.find("\"duet.version\":\"1\""), 18, "\"duet.version\":\"2\"");
  CHECK(load_bytes(s, future) == DUET_E_UNSUPPORTED);

  std::string unchecked = good;  // numbers that are none, in a file without a checksum of ours
  unchecked.replace(unchecked.find("duet.checksum"), 13, "some_checksum");
  check(load_bytes(s, unchecked));
  const float infinite = std::numeric_limits<float>::infinity();
  std::memcpy(unchecked.data() + unchecked.size() - sizeof infinite, &infinite, sizeof infinite);
  CHECK(load_bytes(s, unchecked) == DUET_E_NUMERIC);
  CHECK(std::string(duet_last_error()).find("state.ffn_x") != std::string::npos);
  CHECK(arrays(m, s) == before);

  std::vector<float> nan(before.wkv.size(), std::numeric_limits<float>::quiet_NaN());
  CHECK(duet_state_set(s.get(), 0, nullptr, nan.data(), nullptr) == DUET_E_NUMERIC);
  CHECK(arrays(m, s) == before);
}

TEST_CASE("official tuned states give the wkv state of every layer, token shift begins at zero") {
  const auto lib = library();
  const auto m = load(lib, golden::path("tiny.pth"), "reference");
  const auto s = state(m);
  (void)forward(session(m, DUET_MODE_PARALLEL), s, kText);
  const auto want = arrays(m, s);
  const auto tuned = [&](size_t n_layers) {  // F32 [H,N,N] (value, key) of each layer
    std::string header = "{", data;
    const size_t bytes = want.wkv.size() / 3 * sizeof(float);
    for (size_t i = 0; i < n_layers; ++i) {
      header += (i ? ",\"blocks." : "\"blocks.") + std::to_string(i) + R"(.att.time_state":{"dtype":"F32","shape":[2,64,64],"data_offsets":[)" + std::to_string(i * bytes) + "," +
                std::to_string((i + 1) * bytes) + "]}";
      data.append(reinterpret_cast<const char*>(want.wkv.data()) + i % 3 * bytes, bytes);
    }
    header += "}";
    const uint64_t n = header.size();
    return std::string(reinterpret_cast<const char*>(&n), sizeof n) + header + data;
  };
  CHECK(load_bytes(s, tuned(2)) == DUET_E_FORMAT);
  CHECK(std::string(duet_last_error()).find("blocks.2.att.time_state") != std::string::npos);
  CHECK(load_bytes(s, tuned(4)) == DUET_E_INVALID);
  CHECK(arrays(m, s) == want);
  check(load_bytes(s, tuned(3)));
  const auto got = arrays(m, s);
  CHECK(got.wkv == want.wkv);
  CHECK(got.att_x == std::vector<float>(want.att_x.size()));
  CHECK(got.ffn_x == std::vector<float>(want.ffn_x.size()));
}

TEST_CASE("a disk that is full at any byte leaves the old file as it was") {
  const auto lib = library();
  const auto m = load(lib, golden::path("tiny.pth"), "reference");
  const auto s = state(m);
  const auto folder = std::filesystem::temp_directory_path() / ("duet_full_disk_" + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  const std::string path = folder / "state.safetensors";
  check(duet_state_save_file(s.get(), 0, path.c_str()));
  const std::string old = golden::slurp(path);
  (void)forward(session(m, DUET_MODE_PARALLEL), s, kText);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  for (size_t n = 0; n < old.size(); n = n < 16 ? n + 1 : n * 3 / 2) {
    rlimit little = before;
    little.rlim_cur = n;
    ::setrlimit(RLIMIT_FSIZE, &little);
    const duet_status r = duet_state_save_file(s.get(), 0, path.c_str());
    ::setrlimit(RLIMIT_FSIZE, &before);
    CHECK(r == DUET_E_IO);
    CHECK(std::string(duet_last_error()).find("writing at byte " + std::to_string(n)) != std::string::npos);
    CHECK(golden::slurp(path) == old);
    CHECK(std::distance(std::filesystem::directory_iterator(folder), std::filesystem::directory_iterator()) == 1);
  }
  ::signal(SIGXFSZ, handler);
  check(duet_state_save_file(s.get(), 0, path.c_str()));
  CHECK(golden::slurp(path) != old);
  std::filesystem::remove_all(folder);
}

TEST_CASE("a hundred thousand restores of two sessions in turn give the uninterrupted bits") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr int32_t kSteps = 2000;
#else
  constexpr int32_t kSteps = 100'000;
#endif
  const auto lib = library(1);  // the work of a step is too little to share
  const SmallModel file(lib);
  const auto m = load(lib, file.path, backends().back());
  const auto x = session(m, DUET_MODE_RECURRENT);
  const auto whole = state(m, 2), s = state(m);
  std::string saved[2] = {save(s), save(s)};
  double largest = 0;
  for (int32_t step = 0; step < kSteps; ++step) {
    const auto k = static_cast<uint32_t>(step & 1);
    const int32_t token = (step * 7 + static_cast<int32_t>(k) * 13) % 32;
    const auto want = forward(x, whole, {token}, k);
    check(load_bytes(s, saved[k]));
    const auto got = forward(x, s, {token});
    if (got != want) FAIL("other bits at step " << step);
    for (const float v : got) largest = std::isfinite(v) ? std::max(largest, std::fabs(double{v})) : HUGE_VAL;
    saved[k] = save(s);
  }
  CHECK(largest < 1e3);
  for (uint32_t k = 0; k < 2; ++k) {
    check(load_bytes(s, saved[k]));
    CHECK(arrays(m, s) == arrays(m, whole, k));
  }
  CHECK(arrays(m, whole, 0).wkv != arrays(m, whole, 1).wkv);  // two texts
}

TEST_CASE("a .pth is read as a state, and one that is hostile runs nothing and changes nothing") {
  const auto lib = library();
  const auto m = load(lib, golden::path("tiny.pth"), "reference");
  const auto s = state(m);
  (void)forward(session(m, DUET_MODE_PARALLEL), s, kText);
  const auto before = arrays(m, s);
  const auto refused = [&](const std::string& bytes, duet_status code, const std::string& part) {
    const duet_status r = load_bytes(s, bytes);
    INFO(part << ": " << duet_status_name(r) << ", " << duet_last_error());
    CHECK(r == code);
    CHECK(std::string(duet_last_error()).find(part) != std::string::npos);
    CHECK(arrays(m, s) == before);
  };
  const size_t n = 2 * 64 * 64, bytes = n * sizeof(float);
  std::vector<duet::PthTensor> tensors;
  std::vector<std::string> storages;
  for (size_t i = 0; i < 3; ++i) {
    tensors.push_back({.name = "blocks." + std::to_string(i) + ".att.time_state", .key = std::to_string(i), .elements = int64_t{n}, .shape = {2, 64, 64}, .stride = {64 * 64, 64, 1}});
    storages.emplace_back(reinterpret_cast<const char*>(before.wkv.data()) + i * bytes, bytes);
  }
  const std::string good = duet::pth_of(duet::pickle_of(tensors), storages);

  const std::string canary = std::string(DUET_BUILD) + "/hostile_state";
  const std::string attack = duet::PickleBuilder().global("posix", "system").raw("(").text("touch " + canary).raw("tR.").bytes;
  refused(duet::pth_of(attack, storages), DUET_E_FORMAT, "state: pickle archive/data.pkl: global posix.system not allowed");
  CHECK_FALSE(std::filesystem::exists(canary));
  duet::PickleBuilder laughs;  // a tuple of two of a tuple of two ..., 34 deep
  laughs.raw(std::string(")q\0" "0", 4));
  for (int level = 0; level < 34; ++level) {
    const std::string get = "h" + std::string(1, static_cast<char>(level));
    laughs.raw(get + get + "\x86q" + std::string(1, static_cast<char>(level + 1)) + "0");
  }
  refused(duet::pth_of(laughs.raw("h\x22.").bytes, storages), DUET_E_FORMAT, "a tuple");
  auto beyond = tensors;
  beyond[1].offset = 1;
  refused(duet::pth_of(duet::pickle_of(beyond), storages), DUET_E_FORMAT, "blocks.1.att.time_state");
  auto short_of_one = tensors;
  short_of_one.pop_back();
  refused(duet::pth_of(duet::pickle_of(short_of_one), storages), DUET_E_FORMAT, "blocks.2.att.time_state");
  auto turned = tensors;  // copied on reading, hence compared with its checksum
  turned[0].stride = {64 * 64, 1, 64};
  std::string damaged = duet::pth_of(duet::pickle_of(turned), storages);
  damaged[damaged.find(storages[0]) + 5] ^= 1;
  refused(damaged, DUET_E_FORMAT, "damaged");
  auto not_finite = storages;
  const float infinity = std::numeric_limits<float>::infinity();
  std::memcpy(not_finite[2].data() + 40, &infinity, sizeof infinity);
  refused(duet::pth_of(duet::pickle_of(tensors), not_finite), DUET_E_NUMERIC, "blocks.2.att.time_state holds inf at element 10");
  for (size_t cut = 0; cut < good.size(); cut += cut < 3000 ? 1 : 997) {
    if (load_bytes(s, good.substr(0, cut)) == DUET_OK) FAIL("a state cut at byte " << cut << " was taken");
  }
  CHECK(arrays(m, s) == before);

  const auto t = state(m);
  check(load_bytes(t, good));
  CHECK(arrays(m, t).wkv == before.wkv);
}

TEST_CASE("a state that needs more memory than there is is refused with what it needs and what is free, and the model goes on") {
  constexpr uint32_t kSlots = 1 << 20;
  struct sysinfo system {};
  REQUIRE(::sysinfo(&system) == 0);
  for (const char* device : backends()) {
    if (!on_cpu(device)) continue;
    const auto m = load(library(1), std::string(DUET_SOURCE) + "/models/stories-7m", device);
    const uint64_t bytes = info(m).state_bytes * kSlots;
    if (bytes < (uint64_t{system.totalram} + system.totalswap) * system.mem_unit) {
      WARN("this machine has memory for the largest state");
      return;
    }
    duet_state* s = nullptr;
    CHECK(duet_state_create(m.get(), kSlots, nullptr, &s) == DUET_E_MEMORY);
    const std::string sentence = duet_last_error();
    INFO(sentence);
    CHECK(sentence.find("a state of 1048576 slots needs " + std::to_string(bytes) + " bytes of memory on " + device + ":0, but ") == 0);
    CHECK(sentence.find(" are free; create fewer slots") != sentence.npos);
    CHECK(s == nullptr);
    CHECK_FALSE(forward(session(m, DUET_MODE_AUTO), state(m), {0, 1}).empty());
  }
}
