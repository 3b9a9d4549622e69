// Where the weights of a model come from, one layer at a time: a checkpoint, or a generator.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/schema.h"

namespace duet {

// One layer's canonical host tensors in the dtype wanted: matrices `weights`, all else f32. `owner` keeps the data alive:
// the mapped file where nothing had to be converted, else fresh memory.
struct HostLayer {
  std::vector<duetp_tensor> storage;                       // those that exist
  std::array<const duetp_tensor*, DUETP_T_COUNT> tensors;  // by id, into storage
  std::vector<std::shared_ptr<const void>> owners;
  uint64_t bytes = 0;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const duetp_shape& shape() const = 0;
  virtual duet_dtype stored() const = 0;  // dtype of the matrices as they are; mixed: the widest
  virtual HostLayer layer(uint32_t index, duet_dtype weights) const = 0;  // 0 .. n_layer. [one-at-a-time]
  virtual std::vector<float> time_state(uint32_t layer) const = 0;        // [H,N,N] (value, key) or empty
  virtual std::string fingerprint() const = 0;  // of shape and contents: hex, equal for all containers and dtypes of one model
};

// strict: also refuses non-finite weights (else they are a warning that names the tensor and counts them, given when a layer is converted)
std::unique_ptr<WeightSource> open_weights(const std::string& path, const Log& log, const OpenOptions& options);
std::unique_ptr<WeightSource> random_weights(const duet_random_options& options);  // DUET_E_INVALID: unknown shape name lists those there are
std::unique_ptr<WeightSource> initial_weights(const duet_init_options& options);   // official initialisation

// Conversions, round to nearest even; to f16 overflow gives inf, which strict loading reports.
void convert_floats(const void* src, DType from, void* dst, duet_dtype to, uint64_t n);

void save_weights(const WeightSource& source, const std::string& path, bool overwrite, duet_dtype weights, const std::map<std::string, std::string>& metadata, duet_progress_fn progress, void* user);

}  // namespace duet
