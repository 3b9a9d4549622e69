#include "formats/hugging_face.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "formats/names.h"
#include "formats/recognise.h"
#include "formats/safetensors.h"

namespace duet {
namespace {

constexpr uint64_t kMaxConfig = 64 << 10, kMaxIndex = 384 << 10;  // a tree of JSON takes up to 30 times its text
constexpr size_t kMaxShards = 1024;

class Config {
 public:
  explicit Config(const std::string& path) : path_(printable(path, 300)), json_(parse_json(read_file(path, kMaxConfig), path_)) {
    if (!json_.is_object()) fail(DUET_E_FORMAT, "{}: holds no JSON object", path_);
  }

  const Json* value(const char* key) const {  // null counts as absent
    const auto it = json_.find(key);
    return it == json_.end() || it->is_null() ? nullptr : &*it;
  }
  uint64_t size(const char* key, uint64_t fallback) const {
    const Json* v = value(key);
    if (v == nullptr) return fallback;
    if (!v->is_number_unsigned() || *v == 0)
      fail(DUET_E_FORMAT, "{}: \"{}\" is {}, where a positive whole number belongs", path_, key,
           printable(v->dump(-1, ' ', true, Json::error_handler_t::replace)));
    return v->get<uint64_t>();
  }
  std::string text(const char* key, const char* fallback) const {
    const Json* v = value(key);
    if (v != nullptr && !v->is_string()) fail(DUET_E_FORMAT, "{}: \"{}\" is no text", path_, key);
    return v == nullptr ? fallback : v->get<std::string>();
  }
  bool flag(const char* key, bool fallback) const {
    const Json* v = value(key);
    if (v != nullptr && !v->is_boolean()) fail(DUET_E_FORMAT, "{}: \"{}\" is neither true nor false", path_, key);
    return v == nullptr ? fallback : v->get<bool>();
  }

  void check_model() const {
    if (const std::string type = text("model_type", ""); type != "rwkv7")
      fail(DUET_E_UNSUPPORTED, "{}: model_type \"{}\"; this library runs \"rwkv7\"", path_, printable(type));
    if (value("attn")) fail(DUET_E_UNSUPPORTED, "{}: \"attn\" is set: a hybrid with attention layers, not RWKV-7", path_);
    if (const std::string act = text("hidden_act", "sqrelu"); act != "sqrelu")
      fail(DUET_E_UNSUPPORTED, "{}: hidden_act \"{}\"; RWKV-7 has \"sqrelu\"", path_, printable(act));
    if (!flag("norm_first", true)) fail(DUET_E_UNSUPPORTED, "{}: norm_first is false; RWKV-7 normalises the embedding", path_);
    const Json* values = value("value_dim");
    if (values == nullptr) return;
    const uint64_t width = size("hidden_size", 0);
    const auto check = [&](const Json& v) {
      if (!v.is_null() && v != width)
        fail(DUET_E_UNSUPPORTED, "{}: value_dim {} differs from hidden_size {}; RWKV-7 has one width", path_,
             printable(v.dump(-1, ' ', true, Json::error_handler_t::replace)), width);
    };
    if (values->is_array())
      for (const Json& v : *values) check(v);
    else check(*values);
  }

  float gn_eps() const {
    const Json* eps = value("norm_eps");
    if (eps != nullptr && !eps->is_number()) fail(DUET_E_FORMAT, "{}: \"norm_eps\" is no number", path_);
    const double e = static_cast<double>(size("head_dim", 64)) * (eps ? eps->get<double>() : 1e-5);
    if (!(e > 0 && e < 1)) fail(DUET_E_FORMAT, "{}: head_dim * norm_eps is {}, where a number between 0 and 1 belongs", path_, e);
    return static_cast<float>(e);
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Json json_;
};

class HuggingFaceReader {
 public:
  HuggingFaceReader(const std::string& config, const std::function<Bytes(const std::string&)>& open)
      : config_(config), folder_(folder_of(config)), open_(open) {}

  Directory read() {
    config_.check_model();
    directory_.format = "hugging face";
    directory_.gn_eps = config_.gn_eps();
    const std::string single = folder_ + "/model.safetensors", index = folder_ + "/model.safetensors.index.json";
    if (is_regular_file(index)) read_shards(index);
    else add_file(single);
    use_official_names(directory_, folder_);
    tie_head();
    check_shape();
    return std::move(directory_);
  }

 private:
  // The views of one safetensors file; returns how many there are.
  size_t add_file(const std::string& path) {
    const Bytes bytes = open_(path);
    const std::string name = printable(path, 300);
    const Content content = recognise(bytes);
    if (content == Content::zip) fail(DUET_E_FORMAT, "{}: a zip archive, where safetensors belongs", name);
    if (content != Content::safetensors) refuse(bytes, name);
    Directory d = read_safetensors(bytes, name);
    if (directory_.views.size() + d.views.size() > kMaxTensors) fail(DUET_E_LIMIT, "{}: more than {} tensors in all files together", name, kMaxTensors);
    const size_t n = d.views.size();
    for (; !d.views.empty(); d.views.pop_front()) directory_.views.push_back(std::move(d.views.front()));
    directory_.metadata.merge(d.metadata);
    return n;
  }

  void read_shards(const std::string& index) {
    const std::string name = printable(index, 300);
    const Json json = parse_json(read_file(index, kMaxIndex), name);
    const auto map = json.find("weight_map");
    if (!json.is_object() || map == json.end() || !map->is_object()) fail(DUET_E_FORMAT, "{}: no \"weight_map\" object", name);
    std::set<std::string> shards;
    for (const auto& [tensor, shard] : map->items()) {
      if (!shard.is_string()) fail(DUET_E_FORMAT, "{}: the shard of tensor {} is no file name", name, printable(tensor));
      const std::string file = shard.get<std::string>();
      if (file.empty() || file == "." || file == ".." || file.find_first_of(std::string("/\\\0", 3)) != file.npos)
        fail(DUET_E_FORMAT, "{}: the shard \"{}\" of tensor {} is not the plain name of a file in the same folder", name, printable(file), printable(tensor));
      if (shards.insert(file).second && shards.size() > kMaxShards) fail(DUET_E_LIMIT, "{}: more than {} shards", name, kMaxShards);
    }
    std::set<std::string> seen;
    for (const std::string& shard : shards) {
      for (size_t n = add_file(folder_ + "/" + shard), i = directory_.views.size() - n; i < directory_.views.size(); ++i) {
        const std::string& tensor = directory_.views[i].name;
        const auto it = map->find(tensor);
        if (it == map->end() || *it != shard)
          fail(DUET_E_FORMAT, "{}: shard {} holds tensor {}, which the index {}", name, printable(shard), printable(tensor),
               it == map->end() ? "does not list" : duet::format("places in {}", printable(it->get<std::string>())));
        seen.insert(tensor);
      }
    }
    for (const auto& [tensor, shard] : map->items())
      if (!seen.contains(tensor)) fail(DUET_E_FORMAT, "{}: tensor {} is not in shard {}", name, printable(tensor), printable(shard.get<std::string>()));
  }

  const View* find(std::string_view name) const {
    const auto it = std::find_if(directory_.views.begin(), directory_.views.end(), [&](const View& v) { return v.name == name; });
    return it == directory_.views.end() ? nullptr : &*it;
  }

  void tie_head() {
    const View* emb = find("emb.weight");
    if (!config_.flag("tie_word_embeddings", false) || emb == nullptr || find("head.weight")) return;
    View head = *emb;
    head.name = "head.weight";
    directory_.views.push_back(std::move(head));
  }

  // What the configuration says about sizes must be what the tensors are.
  void check_shape() const {
    const View* emb = find("emb.weight");
    if (emb == nullptr || emb->rank != 2) return;  // for the schema to report
    const auto same = [&](const char* key, uint64_t found) {
      if (const uint64_t said = config_.size(key, found); said != found)
        fail(DUET_E_FORMAT, "{}: {} is {}, but tensor emb.weight is {}", config_.path(), key, said, emb->shape_text());
    };
    same("vocab_size", emb->shape[0]);
    same("hidden_size", emb->shape[1]);
    if (const uint64_t layers = config_.size("num_hidden_layers", 0); layers > 0) {
      const std::string next = duet::format("blocks.{}.", layers), last = duet::format("blocks.{}.", layers - 1);
      bool has_last = false;
      for (const View& v : directory_.views) {
        has_last = has_last || v.name.starts_with(last);
        if (v.name.starts_with(next)) fail(DUET_E_FORMAT, "{}: num_hidden_layers is {}, but there is a tensor {}", config_.path(), layers, printable(v.name));
      }
      if (!has_last) fail(DUET_E_FORMAT, "{}: num_hidden_layers is {}, but there is no tensor {}*", config_.path(), layers, last);
    }
  }

  Config config_;
  std::string folder_;
  const std::function<Bytes(const std::string&)>& open_;
  Directory directory_;
};

}  // namespace

Directory read_hugging_face(const std::string& config, const std::function<Bytes(const std::string& path)>& open) {
  return HuggingFaceReader(config, open).read();
}

}  // namespace duet
