#include "exec/forward.h"

#include <initializer_list>

namespace duet {
namespace {

uint64_t aligned(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

duet_dtype matrix_input(duet_dtype weights) { return weights == DUET_BF16 ? DUET_BF16 : DUET_F32; }

// Lays refs out one after another, each at a multiple of 64 bytes. Their sizes tend to be multiples of 4 KiB, at which caches
// would put the same element of all of them into one set and take loads of one for stores to another: so they are moved apart.
class Arena {
 public:
  Arena(duetp_buffer* buffer, uint64_t elements) : buffer_(buffer), elements_(elements) {}
  duetp_ref next(duet_dtype dtype) {
    const duetp_ref r{buffer_, at_, dtype, 0};
    at_ += aligned(elements_ * (dtype == DUET_F32 ? 4 : 2)) + kApart;
    return r;
  }
  uint64_t bytes() const { return at_; }

 private:
  static constexpr uint64_t kApart = 256;

  duetp_buffer* buffer_;
  uint64_t elements_, at_ = 0;
};

uint64_t lay_out(Activations& a, duetp_buffer* buffer, const Model& model, uint32_t n_tokens) {
  Arena arena(buffer, uint64_t{n_tokens} * model.shape().n_embd);
  for (duetp_ref* f : {&a.x, &a.v_first}) *f = arena.next(DUET_F32);
  if (model.device().layers || model.device().step) return arena.bytes();
  for (duetp_ref* m : {&a.xr, &a.xw, &a.xk, &a.xv, &a.xa, &a.xg}) *m = arena.next(matrix_input(model.weights()));
  for (duetp_ref* f : {&a.r, &a.k, &a.v, &a.w, &a.a, &a.g, &a.lv, &a.kk}) *f = arena.next(DUET_F32);
  a.y = a.lv;
  a.o = a.xr;
  return arena.bytes();
}

// One stage with its arguments: Call(pass, layer).in(..).out(..).run(device.wkv)
class Call {
 public:
  Call(const Pass& p, uint32_t layer, uint32_t which = 0) : pass_(p) {
    s_.size = sizeof s_;
    s_.which = which;
    s_.layer_index = layer;
    s_.mode = p.mode;
    s_.layer = p.model.layer(layer);
    s_.frame = &p.frame;
    s_.state = p.state;
  }
  Call& in(std::initializer_list<duetp_ref> refs) {
    std::copy(refs.begin(), refs.end(), s_.in);
    return *this;
  }
  Call& out(std::initializer_list<duetp_ref> refs) {
    std::copy(refs.begin(), refs.end(), s_.out);
    return *this;
  }
  Call& rows(const duetp_frame& f) {
    s_.frame = &f;
    return *this;
  }
  void run(const Device::Stage& stage) { check_plugin(pass_.model.device(), stage(pass_.queue, s_)); }

 private:
  const Pass& pass_;
  duetp_stage s_{};
};

constexpr duetp_ref kNone{nullptr, 0, 0, 0};

void time_mix(const Pass& p, uint32_t i) {
  const Device& d = p.model.device();
  const Activations& b = p.act;
  Call(p, i).in({b.x}).out({b.xr, b.xw, b.xk, b.xv, b.xa, b.xg}).run(d.shift_mix);
  Call(p, i, DUETP_LINEAR_R).in({b.xr}).out({b.r}).run(d.linear);
  Call(p, i, DUETP_LINEAR_K).in({b.xk}).out({b.k}).run(d.linear);
  Call(p, i, DUETP_LINEAR_V).in({b.xv}).out({b.v}).run(d.linear);
  Call(p, i, DUETP_LOWRANK_W).in({b.xw}).out({b.w}).run(d.lowrank);
  Call(p, i, DUETP_LOWRANK_A).in({b.xa}).out({b.a}).run(d.lowrank);
  if (i > 0) Call(p, i, DUETP_LOWRANK_V).in({b.xv}).out({b.lv}).run(d.lowrank);
  Call(p, i, DUETP_LOWRANK_G).in({b.xg}).out({b.g}).run(d.lowrank);
  Call(p, i).in({b.k, b.v, b.w, b.a, i > 0 ? b.lv : kNone, i > 0 ? b.v_first : kNone}).out({b.k, b.v, b.w, b.a, b.kk, i > 0 ? kNone : b.v_first}).run(d.wkv_prepare);
  Call(p, i).in({b.r, b.w, b.k, b.v, b.kk, b.a}).out({b.y}).run(d.wkv);
  Call(p, i).in({b.y, b.r, b.k, b.v, b.g}).out({b.o}).run(d.norm_gate);
  Call(p, i, DUETP_LINEAR_OUTPUT).in({b.o}).out({b.x}).run(d.linear);  // x += W o
}

void channel_mix(const Pass& p, uint32_t i) { Call(p, i).in({p.act.x}).out({p.act.x}).run(p.model.device().channel_mix); }

// The arguments of rungs 2 and 3
duetp_step step(const Pass& p, const duetp_frame& frame) {
  duetp_step s{};
  s.size = sizeof s;
  s.n_layer = p.model.shape().n_layer;
  s.mode = p.mode;
  s.layers = p.model.layers();
  s.frame = &frame;
  s.state = p.state;
  s.x = p.act.x;
  s.v_first = p.act.v_first;
  return s;
}

}  // namespace

uint64_t Activations::bytes(const Model& model, uint32_t n_tokens) {
  Activations a;
  return lay_out(a, nullptr, model, n_tokens);
}

Activations::Activations(duetp_buffer* arena, const Model& model, uint32_t n_tokens) { lay_out(*this, arena, model, n_tokens); }

void forward_layers(const Pass& p) {
  const Device& d = p.model.device();
  const uint32_t L = p.model.shape().n_layer;
  Call(p, L).out({p.act.x}).run(d.embed);
  if (d.layers) {
    const duetp_step s = step(p, p.frame);
    return check_plugin(d, d.layers(d.table.self, p.queue, &s));
  }
  for (uint32_t i = 0; i < L; ++i) {
    time_mix(p, i);
    channel_mix(p, i);
  }
}

void forward_head(const Pass& p, const duetp_frame& rows, duetp_ref hidden, duetp_ref logits) {
  Call(p, p.model.shape().n_layer).rows(rows).in({p.act.x}).out({hidden, logits}).run(p.model.device().head);
}

void forward_sample(const Pass& p, const duetp_frame& rows, duetp_ref logits, duetp_ref draw_rows, duetp_ref entries, duetp_ref history) {
  Call(p, p.model.shape().n_layer).rows(rows).in({logits}).out({draw_rows, entries, history}).run(p.model.device().sample);
}

void forward_step(const Pass& p, const duetp_frame& rows, duetp_ref hidden, duetp_ref logits) {
  const Device& d = p.model.device();
  duetp_step s = step(p, rows);
  s.hidden = hidden;
  s.logits = logits;
  check_plugin(d, d.step(d.table.self, p.queue, &s));
}

}  // namespace duet
