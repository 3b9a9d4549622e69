// A file of named tensors, whichever container it came in. Names are official ones (`blocks.0.att.w1`), matrices are in
// official orientation, data are dense and row-major: from here on nobody asks where a tensor came from.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "base/reader.h"
#include "duet.h"

namespace duet {

enum class DType : uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean };
size_t dtype_bytes(DType t);
const char* dtype_name(DType t);  // safetensors' names: "F32", "BF16" ...
duet_dtype to_duet(DType t);      // 0 if the C API has none

struct Tensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<uint64_t> shape;
  Bytes data;  // points into the mapped file, or into memory that the checkpoint owns
  uint64_t count() const {
    uint64_t n = 1;
    for (uint64_t d : shape) n *= d;  // checked when the file was read
    return n;
  }
};

struct OpenOptions {
  bool strict = false;  // warnings are errors
  bool verify = false;  // check every checksum the container has
};

class Checkpoint {
 public:
  // Recognised by content: zip -> .pth, JSON header -> safetensors, folder or config.json -> Hugging Face.
  // Phase 1 reads the directory, phase 2 checks it whole, only then are tensors that need copying copied.
  static Checkpoint open(const std::string& path, const Log& log, const OpenOptions& options = {});
  // The same for a file that is already in memory (state blobs, tests). `bytes` must outlive the checkpoint.
  static Checkpoint parse(Bytes bytes, std::string_view name, const Log& log, const OpenOptions& options = {});

  const std::string& path() const { return path_; }
  const std::string& format() const { return format_; }            // "pth", "safetensors", "hugging face"
  const std::vector<Tensor>& tensors() const { return tensors_; }  // in file order
  const Tensor* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  float gn_eps() const { return gn_eps_; }  // 64e-5 unless a config says otherwise
  void check_unchanged() const;             // the mapped files: DUET_E_FORMAT "changed while it was read"

 private:
  friend struct CheckpointBuilder;  // formats/*.cc fill one in
  std::string path_, format_;
  std::vector<Tensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
  float gn_eps_ = 64e-5f;
  std::vector<std::shared_ptr<const void>> owners_;  // mapped files and copied tensors
  std::vector<std::function<void()>> unchanged_;
};

// Safetensors: names, shapes and order as given, data 64-byte aligned, JSON header padded with spaces.
struct TensorToWrite {
  std::string name;
  DType dtype;
  std::vector<uint64_t> shape;
  std::function<void(const std::function<void(Bytes)>& sink)> produce;  // must deliver count * dtype_bytes bytes in all
};
// Streams to `sink`; one tensor's bytes at a time are in memory.
void write_safetensors(const std::vector<TensorToWrite>& tensors, const std::map<std::string, std::string>& metadata, const std::function<void(Bytes)>& sink);
// Atomic file of the same.
void save_safetensors(const std::string& path, bool overwrite, const std::vector<TensorToWrite>& tensors, const std::map<std::string, std::string>& metadata);

}  // namespace duet
