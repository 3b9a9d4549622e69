// Golden tensors, read by a few lines that share nothing with the library's reader.
#pragma once
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace golden {

inline std::string slurp(const std::string& path) {
  std::ifstream f(path, std::ios::binary);
  if (!f) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(f), {}};
}

struct Tensor {
  std::vector<uint64_t> shape;
  std::vector<float> f32;    // F32
  std::vector<int32_t> i32;  // I32
};
using Tensors = std::map<std::string, Tensor>;

inline Tensors parse(const std::string& bytes) {
  uint64_t n = 0;
  std::memcpy(&n, bytes.data(), 8);
  Tensors out;
  const auto header = nlohmann::json::parse(bytes.substr(8, n));
  for (const auto& [name, t] : header.items()) {
    if (name == "__metadata__") continue;
    Tensor& to = out[name];
    to.shape = t["shape"].get<std::vector<uint64_t>>();
    const size_t begin = t["data_offsets"][0], size = t["data_offsets"][1].get<size_t>() - begin;
    const char* from = bytes.data() + 8 + n + begin;
    if (t["dtype"] == "F32") {
      to.f32.resize(size / 4);
      std::memcpy(to.f32.data(), from, size);
    } else if (t["dtype"] == "I32") {
      to.i32.resize(size / 4);
      std::memcpy(to.i32.data(), from, size);
    }
  }
  return out;
}

inline std::string path(const std::string& name) { return std::string(DUET_GOLDEN) + "/" + name; }
inline Tensors load(const std::string& name) { return parse(slurp(path(name))); }
inline nlohmann::json load_json(const std::string& name) { return nlohmann::json::parse(slurp(path(name))); }

}  // namespace golden
