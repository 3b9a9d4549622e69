// Where the weights of a model come from, one layer at a time: a checkpoint, or a generator.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/quantise.h"
#include "model/schema.h"

namespace duet {

// Bytes of a tensor as a model holds it in `dtype`: scales and minimums included. 0 = the layer has none.
uint64_t stored_bytes(uint32_t id, uint32_t layer, duet_dtype dtype, const duetp_shape& shape);
// The form of a matrix in DUET_I8 or DUET_I4.
duetp_quantised_form quantised_form(uint32_t id, uint32_t layer, duet_dtype dtype, const duetp_shape& shape);

// One layer's canonical host tensors in the dtype wanted: matrices `weights`, all else f32. `owners` keep the data alive:
// the mapped file where nothing had to be converted, else fresh memory.
struct HostLayer {
  HostLayer() = default;
  HostLayer(HostLayer&&) = default;
  HostLayer& operator=(HostLayer&&) = default;

  std::vector<duetp_tensor> storage;                         // those that exist
  std::array<const duetp_tensor*, DUETP_T_COUNT> tensors{};  // by id, into storage
  std::vector<std::string> names;
  std::vector<std::shared_ptr<const void>> owners;
  uint64_t bytes = 0;
};

// Memory for weights that had to be converted or made. Tensors lie one after another in large blocks on huge pages, which
// recurrent mode streams through a few percent faster; a block lives as long as one of its tensors.
class WeightMemory {
 public:
  std::shared_ptr<void> take(uint64_t bytes, const std::string& what);  // 64-byte aligned; DUET_E_MEMORY names `what`

 private:
  std::shared_ptr<std::byte> block_;
  uint64_t used_ = 0, size_ = 0;
};

// All functions [one-at-a-time].
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const duetp_shape& shape() const = 0;
  // As it is stored; F64 counts as F32. Only for tensors that the layer has.
  virtual duet_dtype dtype(uint32_t id, uint32_t layer) const = 0;
  // Dense and row-major in `want`, a float type. Points into the mapped file where nothing had to be converted.
  virtual std::shared_ptr<const void> tensor(uint32_t id, uint32_t layer, duet_dtype want) const = 0;
  // Whether tensor() would point into a mapped file, which costs no memory of the process's own.
  virtual bool in_place(uint32_t id, uint32_t layer, duet_dtype want) const {
    (void)id, (void)layer, (void)want;
    return false;
  }
  // Elements [first, first + n) of the same in f32, into the caller's memory.
  virtual void floats(uint32_t id, uint32_t layer, uint64_t first, uint64_t n, float* out) const;
  // A matrix in `want`, DUET_I8 or DUET_I4: as it is stored, or rounded a few rows at a time. `owner` keeps its parts alive.
  virtual QuantisedMatrix quantised(uint32_t id, uint32_t layer, duet_dtype want, std::shared_ptr<const void>& owner) const;
  virtual std::vector<float> time_state(uint32_t layer) const = 0;  // [H,N,N] (value, key) or empty

  // Layer 0 .. n_layer. `next` is called before each tensor, with the bytes of those that the layer has so far.
  HostLayer layer(uint32_t index, duet_dtype weights, const std::function<void(uint64_t)>& next = {}) const;
  duet_dtype stored() const;                                  // dtype of the matrices as they are; mixed: the widest
  // Of the shape and of all tensors but the matrices, as f32: 32 hex digits, equal for all containers and weight dtypes of a model.
  std::string fingerprint() const;

 protected:
  mutable WeightMemory memory_;
};

// strict: also refuses weights that are not finite or are beyond 1e30; else they are a warning that names the tensor and
// counts them. Given when a tensor is handed out: always if it was converted, for mapped matrices only with strict or verify,
// which read them all.
std::unique_ptr<WeightSource> open_weights(const std::string& path, const Log& log, const OpenOptions& options);
std::unique_ptr<WeightSource> checkpoint_weights(Checkpoint checkpoint, const Log& log, const OpenOptions& options);
std::unique_ptr<WeightSource> random_weights(const duet_random_options& options);  // DUET_E_INVALID: unknown shape name lists those there are
std::unique_ptr<WeightSource> initial_weights(const duet_init_options& options);   // official initialisation

// Conversions, round to nearest even; to f16 overflow gives inf, which strict loading reports. No alignment is asked of src.
void convert_floats(const void* src, DType from, void* dst, duet_dtype to, uint64_t n);
DType from_duet(duet_dtype t);
const char* weights_name(duet_dtype t);  // as `duet --dtype` has them

// Warns (strict: DUET_E_NUMERIC) about values that are not finite or beyond 1e30, and about tensors of zeros that make a model mute.
void check_values(const void* data, DType dtype, uint64_t n, const std::string& file, const std::string& name, const Log& log, bool strict);

// Streams a safetensors file with official names and forms, tensor by tensor. Matrices become `weights` (0 = as stored),
// vectors keep their dtype. `progress` counts bytes; a result other than 0 stops with that code.
void save_weights(const WeightSource& source, const std::string& path, bool overwrite, duet_dtype weights, const std::map<std::string, std::string>& metadata, duet_progress_fn progress, void* user);

}  // namespace duet
