// Small model files made in memory, to be bent by the tests.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "model/weights.h"
#include "support/catch.h"

// A folder for the time of a test
struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / fmt::format("duet_weights_{}", ::getpid());
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string file(const char* name) const { return (path / name).string(); }
  size_t n_files() const { return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(path), std::filesystem::directory_iterator())); }
};

struct FileTensor {
  std::string name;
  duet::DType dtype = duet::DType::f32;
  std::vector<uint64_t> shape;
  std::string data;
};

struct Messages {
  std::vector<std::string> all;
  duet::Log log{[](void* user, int32_t, const char* text) { static_cast<Messages*>(user)->all.emplace_back(text); }, this, DUET_LOG_INFO};
  bool has(const std::string& part) const {
    return std::any_of(all.begin(), all.end(), [&](const std::string& s) { return s.find(part) != std::string::npos; });
  }
};

struct ModelFile {
  std::vector<FileTensor> tensors;
  std::map<std::string, std::string> metadata;
  std::string bytes;  // of the last opening; checkpoints point into it

  // The official initialisation, all F32
  static ModelFile fresh(uint32_t n_layer, uint32_t n_embd, uint32_t n_vocab, uint32_t head_size, uint64_t seed = 1) {
    auto o = DUET_INIT(duet_init_options);
    o.n_layer = n_layer;
    o.n_embd = n_embd;
    o.n_vocab = n_vocab;
    o.head_size = head_size;
    o.seed = seed;
    return of(*duet::initial_weights(o));
  }
  static ModelFile of(const duet::WeightSource& source) {
    ModelFile file;
    for (uint32_t layer = 0; layer <= source.shape().n_layer; ++layer) {
      const duet::HostLayer host = source.layer(layer, DUET_F32);
      for (const duetp_tensor& t : host.storage)
        file.tensors.push_back({t.name, duet::DType::f32, {t.dim, t.dim + t.n_dim}, std::string(static_cast<const char*>(t.data), t.bytes)});
    }
    return file;
  }

  FileTensor& operator[](const std::string& name) {
    for (FileTensor& t : tensors)
      if (t.name == name) return t;
    throw std::out_of_range(name);
  }
  void erase(const std::string& name) {
    (*this)[name];
    tensors.erase(std::find_if(tensors.begin(), tensors.end(), [&](const FileTensor& t) { return t.name == name; }));
  }
  void add(const std::string& name, std::vector<uint64_t> shape, duet::DType dtype = duet::DType::f32) {
    uint64_t n = duet::dtype_bytes(dtype);
    for (const uint64_t d : shape) n *= d;
    tensors.push_back({name, dtype, std::move(shape), std::string(n, '\0')});
  }
  void reshape(const std::string& name, std::vector<uint64_t> shape) {
    erase(name);
    add(name, std::move(shape));
  }
  void convert(const std::string& name, duet_dtype to) {
    FileTensor& t = (*this)[name];
    std::string out(t.data.size() / duet::dtype_bytes(t.dtype) * duet::dtype_bytes(duet::from_duet(to)), '\0');
    duet::convert_floats(t.data.data(), t.dtype, out.data(), to, t.data.size() / duet::dtype_bytes(t.dtype));
    t.data = out;
    t.dtype = duet::from_duet(to);
  }
  void set(const std::string& name, size_t i, float value) { std::memcpy((*this)[name].data.data() + i * sizeof value, &value, sizeof value); }

  duet::Checkpoint parse(const duet::Log& log) {
    std::vector<duet::TensorToWrite> plan;
    for (const FileTensor& t : tensors) plan.push_back({t.name, t.dtype, t.shape, [&t](const auto& sink) { sink(duet::as_bytes(t.data)); }});
    bytes.clear();
    duet::write_safetensors(plan, metadata, [this](duet::Bytes b) { bytes += duet::as_text(b); });
    return duet::Checkpoint::parse(duet::as_bytes(bytes), "test.safetensors", log);
  }
  std::unique_ptr<duet::WeightSource> open(const duet::Log& log, const duet::OpenOptions& options = {}) {
    return duet::checkpoint_weights(parse(log), log, options);
  }
};

// The error that f ends with: its code, and its text in `text`
template <class F>
duet_status error_of(const F& f, std::string& text) {
  try {
    f();
  } catch (const duet::Error& e) {
    text = e.what();
    return e.code();
  }
  text.clear();
  return DUET_OK;
}
