#include "conform/forward.h"

#include <algorithm>

namespace conform {

Forward::Forward(Device& d, const Model& m, const Batch& b, duet_mode mode, State& state, const std::vector<int32_t>& tokens, uint32_t rung, bool pieces)
    : device_(d), model_(m), layers_(d, m), frame_(d, b, tokens), mode_(mode), state_(state), rung_(rung), pieces_(pieces) {
  constexpr const char *mixed[] = {"xr", "xw", "xk", "xv", "xa", "xg"}, *full[] = {"x", "r", "k", "v", "w", "a", "g", "lv", "kk", "v_first"};
  const uint64_t T = tokens.size() + Frame::kSpare, C = m.shape.n_embd, rows = b.rows.size() + Frame::kSpare;
  const duet_dtype input = matrix_input(m.weights);
  for (int i = 0; i < 6; ++i) m_[i] = std::make_unique<Memory>(d, mixed[i], T * C * bytes_of(input), input);
  for (int i = 0; i < 10; ++i) f_[i] = std::make_unique<Memory>(d, full[i], T * C * 4, DUET_F32);
  hidden_ = std::make_unique<Memory>(d, "hidden", rows * C * 4, DUET_F32);
  logits_ = std::make_unique<Memory>(d, "logits", rows * m.shape.n_vocab * 4, DUET_F32);
}

void Forward::enqueue() {
  using D = duet::Device;
  const uint32_t L = model_.shape.n_layer;
  const duetp_ref at_x = f_[x]->ref();
  if (rung_ == 3) return step(device_.slots().step, 0, L, true);
  stage(&D::embed, L, 0, {}, {at_x});
  if (rung_ == 1)
    for (uint32_t i = 0; i < L; ++i) stages_of_layer(i);
  else if (pieces_)
    for (uint32_t i = 0; i < L; ++i) step(device_.slots().layers, i, 1, false);
  else step(device_.slots().layers, 0, L, false);
  stage(&D::head, L, 0, {at_x}, {hidden_->ref(), logits_->ref()});
}

Outcome Forward::outcome() {
  for (const auto& m : m_) (void)m->read();
  for (const auto& f : f_) (void)f->read();
  Outcome out;
  const uint32_t C = model_.shape.n_embd;
  out.outputs["logits"] = Outcome::Output(logits_->read(), DUET_F32, model_.shape.n_vocab);
  out.outputs["hidden"] = Outcome::Output(hidden_->read(), DUET_F32, C);
  out.outputs["x"] = Outcome::Output(f_[x]->read(), DUET_F32, C);
  out.outputs["v_first"] = Outcome::Output(f_[v_first]->read(), DUET_F32, C);
  return out;
}

void Forward::stages_of_layer(uint32_t i) {
  using D = duet::Device;
  const auto m = [&](int n) { return m_[n]->ref(); };
  const auto f = [&](int n) { return f_[n]->ref(); };
  const duetp_ref none{nullptr, 0, 0, 0};
  stage(&D::shift_mix, i, 0, {f(x)}, {m(xr), m(xw), m(xk), m(xv), m(xa), m(xg)});
  stage(&D::linear, i, DUETP_LINEAR_R, {m(xr)}, {f(r)});
  stage(&D::linear, i, DUETP_LINEAR_K, {m(xk)}, {f(k)});
  stage(&D::linear, i, DUETP_LINEAR_V, {m(xv)}, {f(v)});
  stage(&D::lowrank, i, DUETP_LOWRANK_W, {m(xw)}, {f(w)});
  stage(&D::lowrank, i, DUETP_LOWRANK_A, {m(xa)}, {f(a)});
  if (i > 0) stage(&D::lowrank, i, DUETP_LOWRANK_V, {m(xv)}, {f(lv)});
  stage(&D::lowrank, i, DUETP_LOWRANK_G, {m(xg)}, {f(g)});
  stage(&D::wkv_prepare, i, 0, {f(k), f(v), f(w), f(a), i ? f(lv) : none, i ? f(v_first) : none}, {f(k), f(v), f(w), f(a), f(kk), i ? none : f(v_first)});
  stage(&D::wkv, i, 0, {f(r), f(w), f(k), f(v), f(kk), f(a)}, {f(lv)});
  stage(&D::norm_gate, i, 0, {f(lv), f(r), f(k), f(v), f(g)}, {m(xr)});
  stage(&D::linear, i, DUETP_LINEAR_OUTPUT, {m(xr)}, {f(x)});
  stage(&D::channel_mix, i, 0, {f(x)}, {f(x)});
}

void Forward::stage(Stage fn, uint32_t layer, uint32_t which, std::initializer_list<duetp_ref> in, std::initializer_list<duetp_ref> out) {
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
  device_.run(fn, s);
}

void Forward::step(duetp_step_fn fn, uint32_t first, uint32_t n, bool whole) {
  duetp_step s{};
  s.size = sizeof s;
  s.first_layer = first;
  s.n_layer = n;
  s.mode = mode_;
  s.layers = layers_.table();
  const duetp_frame frame = *frame_.table();
  s.frame = &frame;
  s.state = state_.get();
  s.x = f_[x]->ref();
  s.v_first = f_[v_first]->ref();
  if (whole) s.hidden = hidden_->ref(), s.logits = logits_->ref();
  device_.run(fn, s);
}

}  // namespace conform
