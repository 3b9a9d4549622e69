// Files of quantised matrices: what is written is what is read, in place; what is wrong is refused by name.
#include "model/quantised_file.h"

#include <cmath>

#include "base/file.h"
#include "base/json.h"
#include "model/describe.h"
#include "model_file.h"

using namespace duet;

namespace {

constexpr duet_dtype kBoth[] = {DUET_I8, DUET_I4};

// Widths that leave padding everywhere, and sizes that are no multiples of 64
ModelFile floats(uint32_t n_layer = 2) { return ModelFile::fresh(n_layer, 48, 37, 16); }

ModelFile saved(const WeightSource& source, duet_dtype dtype) {
  const Folder folder;
  Messages m;
  save_weights(source, folder.file("saved"), true, dtype, {}, nullptr, nullptr);
  const Checkpoint file = Checkpoint::open(folder.file("saved"), m.log);
  ModelFile out;
  out.metadata = file.metadata();
  for (const Tensor& t : file.tensors()) out.tensors.push_back({t.name, t.dtype, t.shape, std::string(as_text(t.data))});
  return out;
}
ModelFile quantised(duet_dtype dtype, uint32_t n_layer = 2) {
  ModelFile file = floats(n_layer);
  Messages m;
  return saved(*file.open(m.log), dtype);
}

bool equal(const HostLayer& a, const HostLayer& b) {
  bool same = a.storage.size() == b.storage.size() && a.bytes == b.bytes;
  for (size_t i = 0; same && i < a.storage.size(); ++i) {
    const duetp_tensor &x = a.storage[i], &y = b.storage[i];
    same = x.id == y.id && x.dtype == y.dtype && x.bytes == y.bytes && x.scale_bytes == y.scale_bytes && x.minimum_bytes == y.minimum_bytes && x.group == y.group &&
           std::memcmp(x.data, y.data, x.bytes) == 0 && (x.scale_bytes == 0 || std::memcmp(x.scale, y.scale, x.scale_bytes) == 0) &&
           (x.minimum_bytes == 0 || std::memcmp(x.minimum, y.minimum, x.minimum_bytes) == 0);
  }
  return same;
}

bool all_equal(const WeightSource& a, const WeightSource& b, duet_dtype dtype) {
  for (uint32_t layer = 0; layer <= a.shape().n_layer; ++layer)
    if (!equal(a.layer(layer, dtype), b.layer(layer, dtype))) return false;
  return true;
}

void refused(ModelFile& file, duet_status code, const std::vector<std::string>& words, const OpenOptions& options = {}) {
  Messages m;
  std::string text;
  CHECK(error_of([&] { (void)file.open(m.log, options)->layer(0, DUET_I8); }, text) == code);
  INFO(text);
  for (const std::string& word : words) CHECK(text.find(word) != text.npos);
  CHECK(text.find("test.safetensors") != text.npos);
}

}  // namespace

TEST_CASE("a quantised file holds what quantising on the fly gives, and is read in place") {
  for (const duet_dtype dtype : kBoth)
    for (const uint32_t n_layer : {1u, 2u}) {
      const Folder folder;
      Messages m;
      ModelFile file = floats(n_layer);
      file.metadata[kGroupNormEps] = "0.00016";
      file.add("blocks.0.att.time_state", {3, 16, 16});
      file.set("blocks.0.att.time_state", 17, 3.5f);
      const auto source = file.open(m.log);
      save_weights(*source, folder.file("q"), false, dtype, {{"note", "x"}}, nullptr, nullptr);
      const auto again = open_weights(folder.file("q"), m.log, {true, true});
      CHECK(again->stored() == dtype);
      CHECK(again->shape().gn_eps == 0.00016f);
      CHECK(again->fingerprint() == source->fingerprint());
      CHECK(again->time_state(0) == source->time_state(0));
      CHECK(all_equal(*again, *source, dtype));
      for (uint32_t layer = 0; layer <= n_layer; ++layer)
        for (const TensorSpec& spec : tensor_specs()) {
          if (!spec.matrix || tensor_count(spec.id, layer, again->shape()) == 0) continue;
          INFO(tensor_name(spec.id, layer));
          CHECK(again->in_place(spec.id, layer, dtype));
          for (const duet_dtype other : {DUET_F32, DUET_F16, DUET_BF16, dtype == DUET_I8 ? DUET_I4 : DUET_I8}) CHECK(!again->in_place(spec.id, layer, other));
          CHECK(!source->in_place(spec.id, layer, dtype));
          std::shared_ptr<const void> a, b;
          CHECK(again->quantised(spec.id, layer, dtype, a).data == again->quantised(spec.id, layer, dtype, b).data);
        }
      CHECK(m.all.empty());
      save_weights(*again, folder.file("r"), false, 0, {{"note", "x"}}, nullptr, nullptr);
      CHECK(as_text(MappedFile(folder.file("r")).bytes()) == as_text(MappedFile(folder.file("q")).bytes()));
    }
}

TEST_CASE("names, types and shapes are those that are documented") {
  ModelFile q8 = quantised(DUET_I8), q4 = quantised(DUET_I4);
  CHECK(q8.metadata["duet.quantised"] == "q8");
  CHECK(q4.metadata["duet.quantised"] == "q4");
  CHECK(q8.metadata["duet.version"] == "1");
  CHECK(parse_json(q8.metadata["duet.shape"], "shape") == Json{{"n_layer", 2}, {"n_embd", 48}, {"n_head", 3}, {"head_size", 16}, {"n_ffn", 192}, {"n_vocab", 37},
                                                                {"rank_w", 32}, {"rank_a", 32}, {"rank_v", 32}, {"rank_g", 32}});
  using Shape = std::vector<uint64_t>;
  const auto is = [](const FileTensor& t, DType dtype, const Shape& shape) { return t.dtype == dtype && t.shape == shape; };
  CHECK(is(q8["blocks.0.ffn.key.weight"], DType::i8, {12, 16, 16, 4}));
  CHECK(is(q8["blocks.0.ffn.value.weight"], DType::i8, {3, 48, 16, 4}));
  CHECK(is(q8["blocks.0.ffn.value.weight.scale"], DType::bf16, {3, 3, 16}));
  CHECK(is(q8["blocks.1.att.w1"], DType::i8, {2, 16, 16, 4}));
  CHECK(is(q8["emb.weight"], DType::i8, {37, 16, 1, 4}));
  CHECK(is(q8["head.weight.scale"], DType::bf16, {3, 1, 16}));
  CHECK(is(q4["head.weight"], DType::u8, {3, 8, 16, 4}));
  CHECK(is(q4["emb.weight.minimum"], DType::bf16, {37, 1, 1}));
  CHECK(is(q4["blocks.0.ln1.weight"], DType::f32, {48}));
  CHECK(is(q4["blocks.0.att.w0"], DType::f32, {1, 1, 48}));
  const size_t matrices = 2 * (4 + 2 + 8) - 2 + 2;
  CHECK(q8.tensors.size() == floats().tensors.size() + matrices);
  CHECK(q4.tensors.size() == floats().tensors.size() + 2 * matrices);
}

TEST_CASE("sizes that are multiples of 64 keep the official order") {
  ModelFile file = ModelFile::fresh(1, 64, 64, 64);
  Messages m;
  const ModelFile q = saved(*file.open(m.log), DUET_I4);
  CHECK(q.tensors[0].name == "emb.weight");
  CHECK(q.tensors[1].name == "emb.weight.scale");
  CHECK(q.tensors[2].name == "emb.weight.minimum");
  CHECK(q.tensors[3].name == "blocks.0.ln0.weight");
  CHECK(q.tensors.back().name == "head.weight.minimum");
}

TEST_CASE("parts that lie at odd addresses are copied") {
  for (const duet_dtype dtype : kBoth) {
    ModelFile file = quantised(dtype);
    Messages m;
    const auto right = file.open(m.log);
    const std::string moved = "x" + file.bytes;
    const auto source = checkpoint_weights(Checkpoint::parse(as_bytes(moved).subspan(1), "moved", m.log), m.log, {true, true});
    CHECK(all_equal(*source, *right, dtype));
    CHECK(!source->in_place(DUETP_T_KEY, 0, dtype));
    const HostLayer layer = source->layer(0, dtype);
    CHECK(reinterpret_cast<uintptr_t>(layer.tensors[DUETP_T_KEY]->data) % 64 == 0);
    CHECK(m.all.empty());
  }
}

TEST_CASE("floats on request, whole and in parts") {
  for (const duet_dtype dtype : kBoth) {
    ModelFile file = quantised(dtype);
    Messages m;
    const auto source = file.open(m.log);
    for (uint32_t layer = 0; layer <= 2; ++layer) {
      const HostLayer host = source->layer(layer, dtype), f32 = source->layer(layer, DUET_F32), bf16 = source->layer(layer, DUET_BF16);
      for (const duetp_tensor& t : host.storage) {
        if (!tensor_specs()[t.id].matrix) continue;
        INFO(t.name);
        const uint64_t n = tensor_count(t.id, layer, source->shape()), columns = t.dim[1];
        const auto* w = static_cast<const float*>(f32.tensors[t.id]->data);
        const duetp_quantised_form form = duetp_form(&t);
        bool same = true;
        for (uint64_t i = 0; i < n; ++i) {
          const uint64_t row = i / columns, column = i % columns, in_major = duetp_is_in_major(t.id);
          same &= w[i] == duetp_quantised_weight(&t, &form, in_major ? column : row, in_major ? row : column);
        }
        CHECK(same);
        std::vector<float> part(columns);
        source->floats(t.id, layer, n - columns, columns, part.data());
        CHECK(std::equal(part.begin(), part.end(), w + n - columns));
        std::vector<uint16_t> rounded(n);
        convert_floats(w, DType::f32, rounded.data(), DUET_BF16, n);
        CHECK(std::memcmp(rounded.data(), bf16.tensors[t.id]->data, 2 * n) == 0);
      }
    }
    CHECK(m.all.empty());
  }
}

TEST_CASE("from one type to another goes through floats") {
  Messages m;
  for (const duet_dtype from : kBoth)
    for (const duet_dtype to : {DUET_F32, DUET_BF16, from == DUET_I8 ? DUET_I4 : DUET_I8}) {
      ModelFile file = quantised(from);
      const auto source = file.open(m.log);
      ModelFile converted = saved(*source, to), plain = ModelFile::of(*source);
      CHECK((converted.metadata.count("duet.quantised") != 0) == (duetp_is_quantised(to) != 0));
      CHECK(converted.open(m.log)->stored() == to);
      CHECK(all_equal(*converted.open(m.log), *plain.open(m.log), to));
    }
  CHECK(m.all.empty());
}

TEST_CASE("a part that is missing, of another type or shape is named") {
  const std::string key = "blocks.1.att.key.weight", w2 = "blocks.0.att.w2";
  const struct {
    std::string name;
    std::vector<uint64_t> shape;  // empty = erased
    DType dtype;
    std::vector<std::string> words;
  } cases[] = {
      {key, {}, DType::i8, {key + " is missing (expected [3,16,16,4])"}},
      {key + ".scale", {}, DType::i8, {key + ".scale is missing (expected [3,1,16])"}},
      {w2 + ".minimum", {}, DType::i8, {w2 + ".minimum is missing"}},
      {key, {3, 16, 16, 4}, DType::u8, {key + " is U8, expected I8"}},
      {key, {48, 48}, DType::f32, {key + " has shape [48,48], expected [3,16,16,4]"}},
      {key + ".scale", {3, 1, 16}, DType::f32, {key + ".scale is F32, expected BF16"}},
      {key + ".scale", {3, 16}, DType::bf16, {key + ".scale has shape [3,16], expected [3,1,16]"}},
      {w2 + ".minimum", {3, 1, 16}, DType::f16, {w2 + ".minimum is F16, expected BF16"}},
      {"emb.weight", {37, 16, 4}, DType::i8, {"emb.weight has shape [37,16,4], expected [37,16,1,4]"}},
      {"head.weight.scale", {4, 1, 16}, DType::bf16, {"head.weight.scale has shape [4,1,16], expected [3,1,16]"}},
      {"blocks.0.ln1.weight", {48}, DType::i8, {"blocks.0.ln1.weight is I8; weights must be"}},
  };
  const ModelFile as_q8 = quantised(DUET_I8), as_q4 = quantised(DUET_I4);
  for (const auto& c : cases) {
    const bool q4 = c.name.ends_with(".minimum");
    ModelFile file = q4 ? as_q4 : as_q8;
    file.erase(c.name);
    if (!c.shape.empty()) file.add(c.name, c.shape, c.dtype);
    refused(file, c.name == "blocks.0.ln1.weight" ? DUET_E_UNSUPPORTED : DUET_E_FORMAT, c.words);
  }
}

TEST_CASE("what __metadata__ says is checked before it is believed") {
  const ModelFile good = quantised(DUET_I8);
  const auto with = [&](const char* key, const std::string& value) {
    ModelFile file = good;
    file.metadata[key] = value;
    return file;
  };
  const auto shape_with = [&](const char* dimension, const Json& value) {
    Json shape = parse_json(good.metadata.at("duet.shape"), "shape");
    if (value.is_null()) shape.erase(dimension);
    else shape[dimension] = value;
    return with("duet.shape", shape.dump());
  };
  struct Case {
    ModelFile file;
    duet_status code;
    std::vector<std::string> words;
  };
  std::vector<Case> cases = {
      {with("duet.quantised", "q5"), DUET_E_UNSUPPORTED, {"duet.quantised", "\"q5\"", "q8 and q4"}},
      {with("duet.quantised", "q4"), DUET_E_FORMAT, {"blocks.0.att.w1 has shape [2,16,16,4], expected [2,8,16,4]"}},
      {with("duet.quantised", ""), DUET_E_FORMAT, {"emb.weight.scale", "__metadata__", "duet.quantised"}},
      {with("duet.version", "2"), DUET_E_UNSUPPORTED, {"duet.version", "\"2\""}},
      {with("duet.version", ""), DUET_E_UNSUPPORTED, {"duet.version"}},
      {with("duet.shape", ""), DUET_E_FORMAT, {"duet.shape", "JSON"}},
      {with("duet.shape", "[2,48]"), DUET_E_FORMAT, {"duet.shape", "no n_layer"}},
      {with("duet.shape", "{\"n_layer\":2"), DUET_E_FORMAT, {"duet.shape", "JSON"}},
      {with("duet.shape", std::string(2 << 20, '[')), DUET_E_LIMIT, {"duet.shape"}},
      {shape_with("rank_g", nullptr), DUET_E_FORMAT, {"no rank_g"}},
      {shape_with("n_embd", -48), DUET_E_FORMAT, {"n_embd is -48"}},
      {shape_with("n_embd", 48.5), DUET_E_FORMAT, {"n_embd is 48.5"}},
      {shape_with("n_embd", "48"), DUET_E_FORMAT, {"n_embd"}},
      {shape_with("n_embd", uint64_t{1} << 32), DUET_E_FORMAT, {"n_embd is 4294967296"}},
      {shape_with("n_embd", 0), DUET_E_FORMAT, {"n_embd is 0"}},
      {shape_with("n_embd", 64), DUET_E_FORMAT, {"3 heads of size 16"}},
      {shape_with("n_layer", 3), DUET_E_FORMAT, {"2 layers", "says 3"}},
      {shape_with("n_layer", 0), DUET_E_FORMAT, {"2 layers", "says 0"}},
      {shape_with("n_layer", UINT32_MAX), DUET_E_FORMAT, {"2 layers"}},
      {shape_with("n_ffn", UINT32_MAX), DUET_E_LIMIT, {"channel mix"}},
      {shape_with("n_ffn", 193), DUET_E_FORMAT, {"blocks.0.ffn.key.weight has shape [12,16,16,4], expected [13,16,16,4]"}},
      {shape_with("n_vocab", 38), DUET_E_FORMAT, {"emb.weight has shape [37,16,1,4], expected [38,16,1,4]"}},
      {shape_with("rank_v", 49), DUET_E_FORMAT, {"blocks.1.att.v1 has shape"}},
      {shape_with("rank_w", 0), DUET_E_FORMAT, {"the rank of w is 0"}},
      {shape_with("head_size", 48), DUET_E_FORMAT, {"3 heads of size 48"}},
  };
  for (Case& c : cases) refused(c.file, c.code, c.words);
  ModelFile one = quantised(DUET_I8, 1);
  Json shape = parse_json(one.metadata["duet.shape"], "shape");
  CHECK(shape["rank_v"] == 0);
  shape["rank_v"] = 32;
  one.metadata["duet.shape"] = shape.dump();
  refused(one, DUET_E_FORMAT, {"rank_v is 32"});
  ModelFile plain = floats();
  plain.metadata = good.metadata;
  refused(plain, DUET_E_FORMAT, {"blocks.0.att.w1 has shape [48,32], expected [2,16,16,4]"});
}

TEST_CASE("strict and verified reading looks into the parts (B-W31, B-W35)") {
  const auto put = [](ModelFile& file, const std::string& name, size_t byte, const std::string& bytes) { file[name].data.replace(byte, bytes.size(), bytes); };
  const std::string key = "blocks.0.ffn.key.weight", nan("\xc0\x7f", 2), infinity("\x80\xff", 2), huge("\xff\x7e", 2);
  struct Case {
    duet_dtype dtype;
    std::string name, bytes;
    size_t at;
    duet_status code;
    std::string words;
  };
  const ModelFile q8 = quantised(DUET_I8), q4 = quantised(DUET_I4);
  const std::vector<Case> cases = {
      {DUET_I8, key + ".scale", nan, 0, DUET_E_NUMERIC, "1 of the 192 values of " + key + ".scale are not finite"},
      {DUET_I8, key + ".scale", infinity, 2, DUET_E_NUMERIC, "1 of the 192 values of " + key + ".scale"},
      {DUET_I4, key + ".scale", huge, 4, DUET_E_NUMERIC, "1 of the 192 values of " + key + ".scale"},
      {DUET_I4, key + ".minimum", nan, 6, DUET_E_NUMERIC, "1 of the 192 values of " + key + ".minimum"},
      {DUET_I8, key, "\x80", 1, DUET_E_FORMAT, "1 integers are -128, which is outside [-127,127], in the matrix of " + key},
      {DUET_I8, key, "\x01", 12 * 64, DUET_E_FORMAT, "1 numbers are not zero in the padding of " + key},           // input 48 of output 0
      {DUET_I4, key, "\x10", 6 * 64 + 3, DUET_E_FORMAT, "1 numbers are not zero in the padding of " + key},        // input 48 + 7
      {DUET_I8, "head.weight", "\x01", 2 * 1024 + 5 * 4, DUET_E_FORMAT, "1 numbers are not zero in the padding"},  // output 37
      {DUET_I8, "head.weight.scale", "\x80\x3f", 2 * 37, DUET_E_FORMAT, "1 numbers are not zero in the padding"},
      {DUET_I4, "head.weight.minimum", "\x80\x3f", 2 * 47, DUET_E_FORMAT, "1 numbers are not zero in the padding"},
  };
  for (const Case& c : cases) {
    ModelFile file = c.dtype == DUET_I8 ? q8 : q4;
    put(file, c.name, c.at, c.bytes);
    INFO(c.words);
    Messages unread, verified, described;
    (void)file.open(unread.log)->layer(0, c.dtype);
    const auto source = file.open(verified.log, {false, true});
    for (const uint32_t layer : {0u, 2u, 0u, 2u}) (void)source->layer(layer, c.dtype);
    CHECK(verified.has(c.words));
    CHECK(verified.all.size() == 1);
    (void)describe_checkpoint(file.parse(described.log), described.log, DUET_FILE_VERIFY);
    CHECK(described.has(c.words));
    std::string text;
    const auto strict = file.open(verified.log, {true, false});
    CHECK(error_of([&] { (void)strict->layer(0, c.dtype), (void)strict->layer(2, c.dtype); }, text) == c.code);
    CHECK(text.find(c.words) != text.npos);
    Messages other;
    const auto converted = file.open(other.log);
    for (const uint32_t layer : {0u, 2u}) (void)converted->layer(layer, c.dtype == DUET_I8 ? DUET_I4 : DUET_I8);
    CHECK(other.has(c.words));
  }
  ModelFile file = q8;
  put(file, key + ".scale", 0, nan);
  Messages m;
  (void)file.open(m.log)->layer(0, DUET_F32);
  CHECK(m.has("48 of the 9216 values of " + key + " are not finite"));
  std::fill(file["head.weight.scale"].data.begin(), file["head.weight.scale"].data.end(), '\0');
  (void)file.open(m.log, {false, true})->layer(2, DUET_I8);
  CHECK(m.has("all 48 values of head.weight.scale are zero"));
}

TEST_CASE("a quantised model is described as one") {
  for (const duet_dtype dtype : kBoth) {
    ModelFile file = quantised(dtype), plain = floats();
    Messages m;
    const Json d = parse_json(describe_checkpoint(file.parse(m.log), m.log, DUET_FILE_VERIFY), "description");
    const Json right = parse_json(describe_checkpoint(plain.parse(m.log), m.log, 0), "description");
    for (const char* same : {"n_layer", "n_embd", "n_vocab", "ranks", "parameters", "fingerprint"}) CHECK(d[same] == right[same]);
    CHECK(right["weights"] == "f32");
    CHECK(right["bits_per_weight"] == 32);
    CHECK(d["weights"] == (dtype == DUET_I8 ? "q8" : "q4"));
    uint64_t bytes = 0;
    for (const FileTensor& t : file.tensors) bytes += t.data.size();
    CHECK(d["weight_bytes"] == bytes);
    CHECK(d["bits_per_weight"].get<double>() == Approx(8.0 * static_cast<double>(bytes) / d["parameters"].get<double>()).margin(0.005));
    CHECK(d["dtypes"][dtype == DUET_I8 ? "I8" : "U8"] == 2 * (4 + 2 + 8) - 2 + 2);
    CHECK(m.all.empty());
  }
}

TEST_CASE("damage: a quantised file cut anywhere, or with a bit of any byte of its header flipped (B-W7, B-W8)") {
  ModelFile plain = ModelFile::fresh(1, 16, 3, 16);
  Messages quiet;
  ModelFile model = saved(*plain.open(quiet.log), DUET_I4);
  (void)model.parse(quiet.log);
  const std::string file = model.bytes;
  uint64_t header = 0;
  std::memcpy(&header, file.data(), sizeof header);
  // Loads whole or fails cleanly; true if it loads.
  const auto sound = [](std::string_view bytes) {
    const Log log(nullptr, nullptr, DUET_LOG_OFF);
    try {
      const auto source = checkpoint_weights(Checkpoint::parse(as_bytes(bytes), "file", log), log, {true, true});
      for (uint32_t layer = 0; layer <= source->shape().n_layer; ++layer)
        for (const duet_dtype dtype : {DUET_F32, DUET_I8, DUET_I4}) (void)source->layer(layer, dtype);
      return true;
    } catch (const Error& e) {
      const std::string_view text = e.what();
      REQUIRE((!text.empty() && text.size() <= 1024 && text.find_first_of("\n\t") == text.npos));
      return false;
    }
  };
  REQUIRE(sound(file));
  for (size_t n = 0; n < file.size(); ++n)
    if (sound(std::string_view(file).substr(0, n))) FAIL("cut to " << n);
  std::string flipped = file;
  size_t loaded = 0;
  for (size_t i = 0; i < 8 + header; ++i) {
    flipped[i] = static_cast<char>(file[i] ^ 1 << i % 8);
    loaded += sound(flipped);
    flipped[i] = file[i];
  }
  CHECK(loaded < 200);  // blanks that stay blanks
}
