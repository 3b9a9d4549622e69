// The whole network on a device over one rung of the ladder, in Duet's order and with its reuse of memory.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "conform/record.h"
#include "conform/stage.h"

namespace conform {

class Forward {
 public:
  // rung 1: stage after stage; 2: embed, layers, head; 3: step. `pieces`: rung 2 in one call for each layer.
  Forward(Device& d, const Model& m, const Batch& b, duet_mode mode, State& state, const std::vector<int32_t>& tokens, uint32_t rung = 1, bool pieces = false);

  // Puts the step on the queue, or into a recording
  void enqueue();
  std::vector<unsigned char> run() {
    enqueue();
    return logits();
  }
  std::vector<unsigned char> logits() { return logits_->read(); }
  // Logits, the hidden rows, x after the last layer and layer 0's value vectors. Throws when any canary was touched.
  Outcome outcome();

 private:
  enum { xr, xw, xk, xv, xa, xg };
  enum { x, r, k, v, w, a, g, lv, kk, v_first };
  void stage(Stage fn, uint32_t layer, uint32_t which, std::initializer_list<duetp_ref> in, std::initializer_list<duetp_ref> out);
  void stages_of_layer(uint32_t i);
  void step(duetp_step_fn fn, uint32_t first, uint32_t n, bool whole);

  Device& device_;
  const Model& model_;
  Model::Layers layers_;
  Frame frame_;
  duet_mode mode_;
  State& state_;
  uint32_t rung_;
  bool pieces_;
  std::unique_ptr<Memory> m_[6], f_[10], hidden_, logits_;
};

}  // namespace conform
