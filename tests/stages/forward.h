// The whole network on a device, stage after stage, in Duet's order and with its reuse of memory.
#pragma once
#include <cstdint>
#include "stage.h"

namespace stages {

class Forward {
 public:
  Forward(Device& d, const Model& m, const Batch& b, duet_mode mode, State& state, const std::vector<int32_t>& tokens)
      : device_(d), model_(m), layers_(d, m), frame_(d, b, tokens), mode_(mode), state_(state) {
    const uint64_t T = tokens.size() + Frame::kSpare, C = m.shape.n_embd;
    const duet_dtype input = matrix_input(m.weights);
    for (auto& a : m_) a = std::make_unique<Memory>(d, T * C * bytes_of(input), input);
    for (auto& a : f_) a = std::make_unique<Memory>(d, T * C * 4, DUET_F32);
    const uint64_t rows = b.rows.size() + Frame::kSpare;
    hidden_ = std::make_unique<Memory>(d, rows * C * 4, DUET_F32);
    logits_ = std::make_unique<Memory>(d, rows * m.shape.n_vocab * 4, DUET_F32);
  }

  // Puts the step on the queue, or into its recording
  void enqueue() {
    enum { xr, xw, xk, xv, xa, xg };
    enum { x, r, k, v, w, a, g, lv, kk, v_first };
    const auto m = [&](int i) { return m_[i]->ref(); };
    const auto f = [&](int i) { return f_[i]->ref(); };
    const duetp_ref none{nullptr, 0, 0, 0};
    const uint32_t L = model_.shape.n_layer;
    const duetp_ops& ops = *device_->ops;
    stage(ops.embed, L, 0, {}, {f(x)});
    for (uint32_t i = 0; i < L; ++i) {
      stage(ops.shift_mix, i, 0, {f(x)}, {m(xr), m(xw), m(xk), m(xv), m(xa), m(xg)});
      stage(ops.linear, i, DUETP_LINEAR_R, {m(xr)}, {f(r)});
      stage(ops.linear, i, DUETP_LINEAR_K, {m(xk)}, {f(k)});
      stage(ops.linear, i, DUETP_LINEAR_V, {m(xv)}, {f(v)});
      stage(ops.lowrank, i, DUETP_LOWRANK_W, {m(xw)}, {f(w)});
      stage(ops.lowrank, i, DUETP_LOWRANK_A, {m(xa)}, {f(a)});
      if (i > 0) stage(ops.lowrank, i, DUETP_LOWRANK_V, {m(xv)}, {f(lv)});
      stage(ops.lowrank, i, DUETP_LOWRANK_G, {m(xg)}, {f(g)});
      stage(ops.wkv_prepare, i, 0, {f(k), f(v), f(w), f(a), i ? f(lv) : none, i ? f(v_first) : none}, {f(k), f(v), f(w), f(a), f(kk), i ? none : f(v_first)});
      stage(ops.wkv, i, 0, {f(r), f(w), f(k), f(v), f(kk), f(a)}, {f(lv)});
      stage(ops.norm_gate, i, 0, {f(lv), f(r), f(k), f(v), f(g)}, {m(xr)});
      stage(ops.linear, i, DUETP_LINEAR_OUTPUT, {m(xr)}, {f(x)});
      stage(ops.channel_mix, i, 0, {f(x)}, {f(x)});
    }
    stage(ops.head, L, 0, {f(x)}, {hidden_->ref(), logits_->ref()});
  }

  std::vector<unsigned char> run() {
    enqueue();
    return logits();
  }
  std::vector<unsigned char> logits() { return logits_->read(); }

 private:
  void stage(duetp_stage_fn fn, uint32_t layer, uint32_t which, std::initializer_list<duetp_ref> in, std::initializer_list<duetp_ref> out) {
    duetp_stage s{};
    s.size = sizeof s;
    s.which = which;
    s.layer_index = layer;
    s.mode = mode_;
    s.layer = layers_[layer];
    const duetp_frame frame = *frame_.table();  // as short-lived as the contract allows
    s.frame = &frame;
    s.state = state_.get();
    std::copy(in.begin(), in.end(), s.in);
    std::copy(out.begin(), out.end(), s.out);
    device_.check(fn(device_.self(), device_.queue(), &s));
  }

  Device& device_;
  const Model& model_;
  Model::Layers layers_;
  Frame frame_;
  duet_mode mode_;
  State& state_;
  std::unique_ptr<Memory> m_[6], f_[10], hidden_, logits_;
};

}  // namespace stages
