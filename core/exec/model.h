// Immutable weights on one device.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "exec/library.h"
#include "model/weights.h"

namespace duet {

class Model {
 public:
  // Hands the layers to the device one at a time. `weights` 0 = as stored. progress in bytes.
  Model(std::shared_ptr<Library> library, std::unique_ptr<WeightSource> source, const std::string& path, const std::string& device, duet_dtype weights,
        duet_progress_fn progress, void* progress_user);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  Library& library() const { return *library_; }
  const std::shared_ptr<Library>& shared_library() const { return library_; }
  const Device& device() const { return *device_; }
  const duetp_shape& shape() const { return shape_; }
  duet_dtype weights() const { return weights_; }
  const std::string& path() const { return path_; }  // "" for random weights
  const std::string& fingerprint() const { return fingerprint_; }
  const std::vector<float>& initial_wkv() const { return initial_wkv_; }  // [L,H,N,N] of time_state, or empty
  const duetp_layer* layer(uint32_t i) const { return layers_[i]; }        // n_layer = embedding and head
  const duetp_layer* const* layers() const { return layers_.data(); }
  uint64_t n_params() const { return n_params_; }
  uint64_t weight_bytes() const { return weight_bytes_; }
  uint64_t bytes_per_token() const { return bytes_per_token_; }
  // of one sequence, with S in `wkv`
  uint64_t state_bytes(duet_dtype wkv) const { return uint64_t{shape_.n_layer} * shape_.n_embd * (2 * sizeof(float) + uint64_t{shape_.head_size} * (wkv == DUET_F32 ? 4 : 2)); }

  // Before a pass in recurrent mode: on the first call, layers whose weights are mapped become what that mode wants. A program that
  // only reads texts, or waits for a first token, does without. [any-thread]
  void prepare_recurrent() const;

  // Writes all weights as safetensors, atomically.
  void save(const std::string& path) const;

  // Runs fn(queue) with the model's own queue and waits for it. [any-thread]
  template <class F>
  void with_queue(F&& fn) const {
    std::lock_guard lock(queue_mutex_);
    fn(queue_);
    check_plugin(*device_, device_->table.queue_wait(device_->memory_self, queue_));
  }

 private:
  void prepare_layer(uint32_t i, duet_mode mode) const;
  void free_layers() noexcept;

  std::shared_ptr<Library> library_;
  std::shared_ptr<const Device> device_;
  mutable std::mutex source_mutex_;       // a source serves one at a time
  std::unique_ptr<WeightSource> source_;  // kept: its layers may be borrowed, and save() reads it
  duetp_shape shape_{};
  duet_dtype weights_ = 0;
  std::string path_, fingerprint_;
  std::vector<float> initial_wkv_;
  std::vector<duetp_layer*> layers_;
  std::vector<HostLayer> borrowed_;  // the weights of a device that borrows them
  std::vector<uint32_t> mapped_;     // layers of borrowed weights whose matrices lie in a file
  mutable std::once_flag prepared_recurrent_;
  uint64_t n_params_ = 0, weight_bytes_ = 0, bytes_per_token_ = 0;
  mutable std::mutex queue_mutex_;
  duetp_queue* queue_ = nullptr;
};

}  // namespace duet
