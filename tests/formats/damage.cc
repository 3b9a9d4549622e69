// Small files of each format, cut at every byte and with every bit of their directories flipped: each time a clear error, or
// what still loads is a whole and sensible checkpoint.
#include "expect.h"
#include "pickle_builder.h"

namespace duet {
namespace {

std::string small_pth(bool like_torch) {
  ZipBuilder z;
  z.descriptors = z.zip64_end = like_torch;
  z.alignment = like_torch ? 64 : 1;
  return pth_of(pickle_of({{.name = "emb.weight", .elements = 6, .shape = {2, 3}, .stride = {3, 1}},
                           {.name = "b", .type = "HalfStorage", .key = "1", .elements = 4, .offset = 1, .shape = {2, 1}, .stride = {2, 1}}}),
                {std::string(24, '\x5a'), std::string(8, '\x5b')}, z);
}

std::string small_safetensors() {
  std::string out;
  const auto bytes = [](size_t n) { return [n](const auto& sink) { sink(as_bytes(std::string(n, '\x5a'))); }; };
  write_safetensors({{"emb.weight", DType::f32, {2, 3}, bytes(24)}, {"b", DType::f16, {4}, bytes(8)}}, {{"format", "pt"}}, [&](Bytes b) { out += as_text(b); });
  return out;
}

// Loads whole or fails cleanly; true if it loads.
template <class Load>
bool sound(const std::string& file, Load&& load) {
  try {
    const Checkpoint c = load(file);
    uint64_t sum = 0;
    for (const Tensor& t : c.tensors()) {
      REQUIRE(t.data.size() == t.count() * dtype_bytes(t.dtype));
      for (const std::byte b : t.data) sum += std::to_integer<uint64_t>(b);  // touches every byte, for the sanitizers
    }
    return sum <= 255 * file.size();
  } catch (const Error& e) {
    INFO(e.what());
    REQUIRE(clean(e.what()));
    return false;
  }
}

template <class Load>
void damage(const std::string& file, size_t first_data, size_t last_data, Load&& load) {
  REQUIRE(sound(file, load));
  for (size_t n = 0; n < file.size(); ++n) {
    INFO("cut to " << n);
    REQUIRE_FALSE(sound(file.substr(0, n), load));
  }
  std::string flipped = file;
  for (size_t i = 0; i < file.size(); ++i) {
    if (i >= first_data && i < last_data) continue;
    for (int bit = 0; bit < 8; ++bit) {
      INFO("byte " << i << " bit " << bit);
      flipped[i] = static_cast<char>(file[i] ^ 1 << bit);
      sound(flipped, load);
    }
    flipped[i] = file[i];
  }
}

const auto kParse = [](const std::string& f) { return parse(f); };

}  // namespace

TEST_CASE("damage: .pth (B-W7, B-W8)") {
  for (const bool like_torch : {true, false}) damage(small_pth(like_torch), 0, 0, kParse);
}

TEST_CASE("damage: .pth, verified: a flipped bit is found unless it is in what nobody reads") {
  const std::string file = small_pth(true);
  size_t unnoticed = 0;
  std::string flipped = file;
  for (size_t i = 0; i < file.size(); ++i) {
    flipped[i] = static_cast<char>(file[i] ^ 1);
    unnoticed += sound(flipped, [](const std::string& f) { return parse(f, {.verify = true}); });
    flipped[i] = file[i];
  }
  // versions, times, attributes and padding; never data, names, sizes or offsets
  CHECK(unnoticed < file.size() / 2);
  const size_t data = file.find(std::string(24, '\x5a'));
  flipped[data + 7] ^= 1;
  CHECK_FALSE(sound(flipped, [](const std::string& f) { return parse(f, {.verify = true}); }));
}

TEST_CASE("damage: safetensors (B-W7, B-W8)") {
  const std::string file = small_safetensors();
  damage(file, file.size() - 32, file.size(), kParse);
}

TEST_CASE("damage: the pieces of a Hugging Face folder (B-W7, B-W8)") {
  const Folder f;
  const std::string config = R"({"model_type":"rwkv7","hidden_size":3,"vocab_size":2,"head_dim":3,"norm_eps":1e-5})";
  const std::string index = R"({"weight_map":{"emb.weight":"a.safetensors","b":"a.safetensors"}})";
  const std::string shard = small_safetensors();
  const auto with = [&](const char* name) {
    return [&f, name](const std::string& content) {
      f.write(name, content);
      return Checkpoint::open(f.path(), Log(nullptr, nullptr, DUET_LOG_OFF));
    };
  };
  f.write("config.json", config);
  f.write("model.safetensors.index.json", index);
  f.write("a.safetensors", shard);
  damage(config, 0, 0, with("config.json"));
  f.write("config.json", config);
  damage(index, 0, 0, with("model.safetensors.index.json"));
  f.write("model.safetensors.index.json", index);
  damage(shard, shard.size() - 32, shard.size(), with("a.safetensors"));
}

}  // namespace duet
