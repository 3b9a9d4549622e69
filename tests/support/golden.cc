#include "support/golden.h"

#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace golden {

std::string slurp(const std::string& path) {
  std::ifstream f(path, std::ios::binary);
  if (!f) throw std::runtime_error("cannot read " + path);
  std::ostringstream bytes;
  bytes << f.rdbuf();
  return std::move(bytes).str();
}

Tensors parse(const std::string& bytes) {
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

std::string path(const std::string& name) { return std::string(DUET_GOLDEN) + "/" + name; }
Tensors load(const std::string& name) { return parse(slurp(path(name))); }
nlohmann::json load_json(const std::string& name) { return nlohmann::json::parse(slurp(path(name))); }

}  // namespace golden
