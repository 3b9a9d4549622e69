// Random weights of one small shape, in canonical tensors that lie at addresses aligned to their element and no better.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "conform/device.h"
#include "conform/numbers.h"

namespace conform {

duetp_shape shape_of(uint32_t n_layer, uint32_t n_head, uint32_t head_size, uint32_t n_ffn, uint32_t n_vocab);

class Model {
 public:
  Model(const duetp_shape& shape, duet_dtype weights, uint64_t seed = 1);

  // The layers of a device, freed with it
  class Layers {
   public:
    Layers(Device& d, const Model& m, bool prepared = true);  // for both modes
    ~Layers();
    Layers(const Layers&) = delete;
    Layers& operator=(const Layers&) = delete;
    uint64_t prepare(uint32_t i, duet_mode mode);  // the tensors that the layer has copies of, as bits
    const duetp_layer* operator[](uint32_t i) const { return layers_[i]; }
    const duetp_layer* const* table() const { return layers_.data(); }

   private:
    Device& device_;
    std::vector<duetp_layer*> layers_;
  };

  // What a layer is made of, and its bytes, to be changed before it is. The layer has the tensor.
  const duetp_tensor& tensor(uint32_t layer, uint32_t id) const;
  unsigned char* bytes(uint32_t layer, uint32_t id) { return static_cast<unsigned char*>(const_cast<void*>(tensor(layer, id).data)); }

  const duetp_shape shape;
  const duet_dtype weights;

 private:
  struct Block {
    uint32_t index;
    std::vector<std::vector<unsigned char>> data;
    std::vector<duetp_tensor> tensors;
  };
  void add(Block& b, uint32_t id, std::vector<uint32_t> dim, float center, float spread, bool matrix = false);
  Block block(uint32_t index);

  Random random_;
  std::vector<Block> blocks_;
};

}  // namespace conform
