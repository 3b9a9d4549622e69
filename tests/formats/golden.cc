// All containers of one model hold the same tensors.
#include <algorithm>
#include <cstring>

#include "base/file.h"
#include "formats/checkpoint.h"
#include "support/catch.h"

namespace duet {
namespace {

const std::string kGolden = DUET_GOLDEN;

float from_bf16(uint16_t b) {
  const uint32_t u = uint32_t{b} << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

std::vector<float> floats(const Tensor& t) {
  REQUIRE((t.dtype == DType::f32 || t.dtype == DType::bf16));
  std::vector<float> out(t.count());
  for (size_t i = 0; i < out.size(); ++i) {
    if (t.dtype == DType::f32) {
      std::memcpy(&out[i], t.data.data() + 4 * i, 4);
    } else {
      uint16_t b;
      std::memcpy(&b, t.data.data() + 2 * i, 2);
      out[i] = from_bf16(b);
    }
  }
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool unused(const std::string& name) { return name.starts_with("blocks.0.att.v") && name.size() == 15; }  // v0, v1, v2 of layer 0

// Every tensor of `a` but the unused ones is in `b`, and the other way round.
void check_same(const Checkpoint& a, const Checkpoint& b) {
  for (const Tensor& t : a.tensors()) {
    INFO(t.name);
    const Tensor* other = b.find(t.name);
    if (other == nullptr) {
      CHECK(unused(t.name));
      continue;
    }
    CHECK(t.shape == other->shape);
    CHECK(same_bits(floats(t), floats(*other)));
  }
  for (const Tensor& t : b.tensors()) CHECK(a.find(t.name) != nullptr);
}

Checkpoint open_golden(const std::string& name) { return Checkpoint::open(kGolden + "/" + name, Log()); }

std::string rewritten(const Checkpoint& c, bool as_f32, bool reversed) {
  std::vector<TensorToWrite> tensors;
  for (const Tensor& t : c.tensors()) {
    const std::vector<float> values = floats(t);
    if (as_f32) tensors.push_back({t.name, DType::f32, t.shape, [values](const auto& sink) { sink(std::as_bytes(std::span(values))); }});
    else tensors.push_back({t.name, t.dtype, t.shape, [data = t.data](const auto& sink) { sink(data.first(1)), sink(data.subspan(1)); }});
  }
  if (reversed) std::reverse(tensors.begin(), tensors.end());
  std::string out;
  write_safetensors(tensors, {{"format", "pt"}, {"quote\"", "line\n\xc3\xa9"}}, [&](Bytes b) { out.append(as_text(b)); });
  return out;
}

}  // namespace

TEST_CASE("every container of the tiny model gives the same tensors") {
  const Checkpoint pth = open_golden("tiny.pth");
  CHECK(pth.format() == "pth");
  CHECK(pth.tensors().size() == 105);
  CHECK(pth.tensors().front().name == "emb.weight");
  CHECK(pth.find("blocks.1.att.w1")->shape == std::vector<uint64_t>{128, 32});
  CHECK(pth.find("blocks.1.att.x_r")->shape == std::vector<uint64_t>{1, 1, 128});
  CHECK(pth.find("blocks.1.att.nothing") == nullptr);
  CHECK(pth.gn_eps() == 64e-5f);

  SECTION("views into shared storages, transposed, of mixed dtypes") {
    const Checkpoint views = open_golden("tiny_views.pth");
    CHECK(views.find("blocks.0.att.w0")->dtype == DType::f32);
    check_same(pth, views);
  }
  SECTION("a Hugging Face folder, by its name or its config.json") {
    const Checkpoint folder = open_golden("tiny_fla");
    CHECK(folder.format() == "hugging face");
    CHECK(folder.gn_eps() == Approx(64e-5));
    check_same(pth, folder);
    check_same(pth, open_golden("tiny_fla/config.json"));
    check_same(pth, open_golden("tiny_fla/model.safetensors"));
  }
  SECTION("safetensors, F32 and bf16, in any order") {
    for (const bool as_f32 : {false, true}) {
      const std::string file = rewritten(pth, as_f32, as_f32);
      const Checkpoint c = Checkpoint::parse(as_bytes(file), "rewritten", Log());
      CHECK(c.format() == "safetensors");
      CHECK(c.metadata().at("quote\"") == "line\n\xc3\xa9");
      CHECK(c.tensors().size() == pth.tensors().size());
      CHECK(c.tensors().front().name == (as_f32 ? pth.tensors().back().name : "emb.weight"));
      check_same(pth, c);
    }
  }
}

TEST_CASE("the other golden models can be read and their checksums agree") {
  for (const std::string name : {"tinyf32_f32.safetensors", "small_bf16.safetensors", "tiny.pth", "tiny_views.pth", "tiny_fla"}) {
    INFO(name);
    const Checkpoint c = Checkpoint::open(kGolden + "/" + name, Log(), {.strict = true, .verify = true});
    CHECK(c.find("head.weight") != nullptr);
  }
  CHECK(open_golden("small_bf16.safetensors").find("blocks.3.att.g1")->shape == std::vector<uint64_t>{256, 96});
}

TEST_CASE("the bundled model's folder is found by its only file of weights") {
  const Checkpoint c = Checkpoint::open(std::string(DUET_SOURCE) + "/models/stories-7m", Log(), {.strict = true, .verify = true});
  CHECK(c.format() == "pth");
  CHECK(c.find("emb.weight") != nullptr);
}

}  // namespace duet
