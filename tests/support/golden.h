// Golden tensors, read by a few lines that share nothing with the library's reader.
#pragma once
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace golden {

std::string slurp(const std::string& path);

struct Tensor {
  std::vector<uint64_t> shape;
  std::vector<float> f32;    // F32
  std::vector<int32_t> i32;  // I32
};
using Tensors = std::map<std::string, Tensor>;

Tensors parse(const std::string& bytes);  // safetensors
std::string path(const std::string& name);
Tensors load(const std::string& name);
nlohmann::json load_json(const std::string& name);

}  // namespace golden
