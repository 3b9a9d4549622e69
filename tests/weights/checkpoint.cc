// A checkpoint as a source of weights.
#include <cmath>

#include "model_file.h"

using namespace duet;

namespace {

bool inside(const ModelFile& file, const void* p) { return p >= file.bytes.data() && p < file.bytes.data() + file.bytes.size(); }

}  // namespace

TEST_CASE("what fits is not copied, the rest is converted") {
  ModelFile file = ModelFile::fresh(2, 32, 20, 16);
  file.convert("blocks.1.att.key.weight", DUET_BF16);
  file.convert("blocks.1.ln1.weight", DUET_BF16);
  file["blocks.1.att.x_r"].shape = {1, 1, 32};
  Messages m;
  const auto source = file.open(m.log);
  const HostLayer f32 = source->layer(1, DUET_F32), bf16 = source->layer(1, DUET_BF16), top = source->layer(2, DUET_F32);
  CHECK(inside(file, f32.tensors[DUETP_T_VALUE]->data));
  CHECK(!inside(file, f32.tensors[DUETP_T_KEY]->data));
  CHECK(inside(file, bf16.tensors[DUETP_T_KEY]->data));
  CHECK(!inside(file, bf16.tensors[DUETP_T_VALUE]->data));
  CHECK(bf16.tensors[DUETP_T_VALUE]->dtype == DUET_BF16);
  CHECK(bf16.tensors[DUETP_T_VALUE]->bytes == 2 * 32 * 32);
  CHECK(bf16.tensors[DUETP_T_LN1_W]->dtype == DUET_F32);
  CHECK(*static_cast<const float*>(bf16.tensors[DUETP_T_LN1_W]->data) == 1.0f);
  const duetp_tensor& x_r = *f32.tensors[DUETP_T_X_R];
  CHECK((x_r.n_dim == 1 && x_r.dim[0] == 32 && x_r.id == DUETP_T_X_R && std::string(x_r.name) == "blocks.1.att.x_r"));
  CHECK(f32.tensors[DUETP_T_EMB] == nullptr);
  CHECK((top.tensors[DUETP_T_EMB] != nullptr && top.tensors[DUETP_T_X_R] == nullptr && top.storage.size() == 6));
  uint64_t bytes = 0;
  for (const duetp_tensor& t : f32.storage) bytes += t.bytes;
  CHECK(f32.bytes == bytes);
  CHECK(source->layer(0, DUET_F32).tensors[DUETP_T_V0] == nullptr);
  CHECK(m.all.empty());
}

TEST_CASE("a layer outlives its source") {
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  Messages m;
  auto source = file.open(m.log);
  const HostLayer layer = source->layer(0, DUET_BF16);
  source.reset();
  CHECK(std::string(layer.tensors[DUETP_T_KEY]->name) == "blocks.0.att.key.weight");
  std::vector<float> key(32 * 32), original(32 * 32);
  convert_floats(layer.tensors[DUETP_T_KEY]->data, DType::bf16, key.data(), DUET_F32, key.size());
  std::memcpy(original.data(), file["blocks.0.att.key.weight"].data.data(), original.size() * sizeof(float));
  bool close = true;
  for (size_t i = 0; i < key.size(); ++i) close &= std::fabs(key[i] - original[i]) <= std::fabs(original[i]) / 256;
  CHECK(close);
}

TEST_CASE("data that are not aligned in the file are copied") {
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  Messages m;
  (void)file.parse(m.log);
  const std::string shifted = "x" + file.bytes;
  const auto source = checkpoint_weights(Checkpoint::parse(as_bytes(shifted).subspan(1), "shifted", m.log), m.log, {});
  const HostLayer layer = source->layer(0, DUET_F32);
  for (const duetp_tensor& t : layer.storage) {
    CHECK(reinterpret_cast<uintptr_t>(t.data) % 4 == 0);
    CHECK(std::memcmp(t.data, file[t.name].data.data(), t.bytes) == 0);
  }
}

TEST_CASE("the stored dtype is that of the matrices, the widest if mixed") {
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  Messages m;
  const auto convert_matrices = [&](duet_dtype to) {
    for (FileTensor& t : file.tensors)
      if (t.shape.size() == 2 && !t.name.ends_with("r_k")) file.convert(t.name, to);
  };
  CHECK(file.open(m.log)->stored() == DUET_F32);
  convert_matrices(DUET_BF16);
  CHECK(file.open(m.log)->stored() == DUET_BF16);
  CHECK(file.open(m.log)->dtype(DUETP_T_W0, 0) == DUET_F32);
  file.convert("head.weight", DUET_F16);
  CHECK(file.open(m.log)->stored() == DUET_F32);
  convert_matrices(DUET_F16);
  CHECK(file.open(m.log)->stored() == DUET_F16);
}

TEST_CASE("the fingerprint is that of the model, not of its file") {
  ModelFile file = ModelFile::fresh(2, 32, 20, 16);
  Messages m;
  for (FileTensor& t : file.tensors) {  // numbers that all dtypes hold
    file.convert(t.name, DUET_BF16);
    file.convert(t.name, DUET_F32);
  }
  const std::string original = file.open(m.log)->fingerprint();
  CHECK(original.size() == 32);
  ModelFile other = file;
  std::reverse(other.tensors.begin(), other.tensors.end());
  for (FileTensor& t : other.tensors) other.convert(t.name, DUET_BF16);
  other["blocks.0.att.x_r"].shape = {1, 1, 32};
  other.add("blocks.0.att.v0", {32});
  CHECK(other.open(m.log)->fingerprint() == original);
  for (const char* name : {"blocks.0.att.w0", "blocks.1.att.r_k", "ln_out.bias"}) {
    ModelFile changed = file;
    changed.set(name, 31, 0.5f);
    CHECK(changed.open(m.log)->fingerprint() != original);
  }
  CHECK(ModelFile::fresh(2, 32, 21, 16).open(m.log)->fingerprint() != original);
}

TEST_CASE("values that are not finite are named and counted, and refused when strict") {
  for (const float bad : {NAN, INFINITY, -INFINITY, 1e38f, -1e38f}) {
    ModelFile file = ModelFile::fresh(1, 32, 20, 16);
    file.set("blocks.0.att.key.weight", 5, bad);
    file.set("blocks.0.att.key.weight", 6, bad);
    Messages mapped, verified, converted;
    (void)file.open(mapped.log)->layer(0, DUET_F32);
    CHECK(mapped.all.empty());  // a mapped matrix is not read
    const auto source = file.open(verified.log, {false, true});
    (void)source->layer(0, DUET_F32);
    CHECK(verified.has("2 of the 1024 values of blocks.0.att.key.weight are not finite or beyond 1e30"));
    (void)source->layer(0, DUET_F32);
    CHECK(verified.all.size() == 1);
    (void)file.open(converted.log)->layer(0, DUET_BF16);
    CHECK(converted.has("2 of the 1024 values of blocks.0.att.key.weight"));
    std::string text;
    CHECK(error_of([&] { (void)file.open(converted.log, {true, false})->layer(0, DUET_F32); }, text) == DUET_E_NUMERIC);
    CHECK(text.find("blocks.0.att.key.weight") != std::string::npos);
  }
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  file.set("blocks.0.att.w0", 0, NAN);
  Messages m;
  (void)file.open(m.log)->layer(0, DUET_F32);
  CHECK(m.has("1 of the 32 values of blocks.0.att.w0"));
}

TEST_CASE("what overflows f16 is reported") {
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  file.set("head.weight", 3, 70000.0f);
  Messages m;
  std::string text;
  const HostLayer top = file.open(m.log)->layer(1, DUET_F16);
  CHECK(m.has("1 of the 640 values of head.weight are not finite"));
  CHECK(static_cast<const uint16_t*>(top.tensors[DUETP_T_HEAD]->data)[3] == 0x7c00);
  CHECK(error_of([&] { (void)file.open(m.log, {true, false})->layer(1, DUET_F16); }, text) == DUET_E_NUMERIC);
}

TEST_CASE("tensors of zeros that make a model mute are named, those that training starts with are not") {
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  Messages m;
  (void)file.open(m.log, {false, true})->layer(0, DUET_F32);
  CHECK(m.all.empty());
  std::fill(file["blocks.0.ln1.weight"].data.begin(), file["blocks.0.ln1.weight"].data.end(), '\0');
  (void)file.open(m.log, {false, true})->layer(0, DUET_F32);
  CHECK(m.has("all 32 values of blocks.0.ln1.weight are zero"));
}

TEST_CASE("time_state comes as f32 in its order") {
  ModelFile file = ModelFile::fresh(2, 32, 20, 16);
  file.add("blocks.1.att.time_state", {2, 16, 16});
  for (size_t i = 0; i < 512; ++i) file.set("blocks.1.att.time_state", i, static_cast<float>(i) / 4);
  file.convert("blocks.1.att.time_state", DUET_F16);
  Messages m;
  const auto source = file.open(m.log, {true, true});
  CHECK(source->time_state(0).empty());
  const std::vector<float> state = source->time_state(1);
  REQUIRE(state.size() == 512);
  CHECK((state[0] == 0 && state[1] == 0.25f && state[511] == 127.75f));
}

TEST_CASE("F64 weights are converted") {
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  FileTensor& t = file["blocks.0.att.w0"];
  std::vector<double> values(32, 0.1);
  t.dtype = DType::f64;
  t.data.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
  Messages m;
  const auto source = file.open(m.log);
  CHECK(source->dtype(DUETP_T_W0, 0) == DUET_F32);
  CHECK(*static_cast<const float*>(source->tensor(DUETP_T_W0, 0, DUET_F32).get()) == 0.1f);
}
