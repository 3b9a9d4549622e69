// Writes a safetensors file of F32 tensors: data aligned to 64 bytes, and the file appears whole or not at all.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace duet {

struct OutTensor {
  std::string name;
  std::vector<uint64_t> shape;
  std::span<const float> data;
};

// Failure: the file cannot be written; nothing has changed then.
void write_safetensors(const std::string& path, const std::vector<OutTensor>& tensors);

}  // namespace duet
