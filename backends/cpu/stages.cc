// The nine stages: each resolves its references and appends its phases, naming what they touch.
#include <algorithm>

#include "phases.h"

namespace duet_cpu {
namespace {

const int32_t* numbers(duetp_ref r) { return static_cast<const int32_t*>(address(r)); }

Call resolve(const duetp_stage& a) {
  const duetp_frame& f = *a.frame;
  const bool recurrent = a.mode == DUET_MODE_RECURRENT;
  Call c{a.which,    a.layer_index, recurrent, recurrent && a.layer->has_value_by_inputs(), a.layer, a.state, f.n_tokens, f.n_seqs, f.n_rows,
         numbers(f.used), numbers(f.tokens), numbers(f.starts), numbers(f.slots), numbers(f.rows), {}, {}, 0};
  for (int i = 0; i < 6; ++i) c.in[i] = address(a.in[i]), c.out[i] = address(a.out[i]);
  return c;
}

// A stage under construction: what its phases touch, in the units in which stages think.
class Stage {
 public:
  Stage(duetp_queue* q, const duetp_stage& a) : queue_(*q), program_(q->target()), call_(resolve(a)), shape_(call_.layer->shape) { program_.call(call_); }

  const Call& call() const { return call_; }
  Needs& needs() { return needs_; }
  uint64_t tokens() const { return call_.max_tokens; }
  uint64_t C() const { return shape_.n_embd; }
  uint64_t m() const { return m_bytes(call_.layer->bf16); }

  // activations [T,C]
  Access reads(const void* p) const { return {p, p ? tokens() * C() * 4 : 0, false}; }
  Access writes(const void* p) const { return {p, p ? tokens() * C() * 4 : 0, true}; }
  Access reads_m(const void* p) const { return {p, p ? tokens() * C() * m() : 0, false}; }
  Access writes_m(const void* p) const { return {p, p ? tokens() * C() * m() : 0, true}; }
  // divided as TokenFn divides: by tokens
  Access by_token(Access a) const {
    a.partition = call_.used;
    return a;
  }
  // as HeadFn: by sequence and head
  Access by_head(Access a) const {
    a.partition = call_.starts;
    a.heads = shape_.n_head;
    return a;
  }
  // a scratch region; any address that only it has
  Access region(Region r, bool write) const { return {reinterpret_cast<const char*>(&queue_) + r, 1, write}; }
  // activations [T,C] for a product, which reads them rounded where its weights are quantised
  Access input(const void* in, Region rounded) const { return quantised() ? region(rounded, false) : reads_m(in); }
  // one of the three parts of a layer's state, in any slot
  Access kept(uint32_t part, bool write) const {
    return {reinterpret_cast<const char*>(call_.state) + 3 * static_cast<uint64_t>(call_.layer_index) + part, 1, write};
  }

  bool quantised() const { return duetp_is_quantised(call_.layer->weights); }
  // the product with matrix `id`, of inputs that arise within the stage: `rows` of them in `region`
  void product(uint32_t id, Region region, uint64_t rows) {
    const Matrix& m = call_.layer->matrix[id];
    needs_.region[region] = m.quantised() ? rounded_bytes(m.in, rows) : rows * m.in * this->m();
    product(id);
  }
  // the product with matrix `id`: what its threads need, and a oneDNN product that they can run
  void product(uint32_t id) {
    const Gemm* g = call_.recurrent ? nullptr : call_.layer->gemm[id];
    if (!g) return;
    queue_.prepare(*g);
    needs_.rows = std::max<uint64_t>(needs_.rows, kMaxTileRows * static_cast<uint64_t>(g->depth) * m_bytes(g->bf16));
    needs_.panel = std::max<uint64_t>(needs_.panel, padded_depth(g->depth, g->bf16) * kTileColumns * m_bytes(g->bf16));
    needs_.product = std::max<uint64_t>(needs_.product, g->scratch_bytes);
  }
  // [T,C] rounded for the product that follows, by whom `divided` says
  template <class Fn>
  void round(Fn fn, const void* in, Region rounded, Access (Stage::*divided)(Access) const) {
    if (!quantised()) return;
    needs_.region[rounded] = rounded_bytes(C(), tokens());
    phase(fn, {(this->*divided)(reads_m(in)), (this->*divided)(region(rounded, true))});
  }
  template <class Fn>
  void phase(Fn fn, std::initializer_list<Access> touched) {
    program_.needs.include(needs_);
    program_.phase(fn, touched);
  }
  // the product with matrix `id`
  void product_phase(PhaseFn fn, uint32_t id, std::initializer_list<Access> touched) {
    program_.needs.include(needs_);
    program_.phase(fn, touched, &call_.layer->weights_of(id));
  }

 private:
  duetp_queue& queue_;
  Program& program_;
  const Call call_;
  const duetp_shape& shape_;
  Needs needs_;
};

template <class F>
duet_status enqueue(void* self, duetp_queue* q, const duetp_stage* a, const F& f) {
  return guarded(*static_cast<Device*>(self), [&] {
    Stage s(q, *a);
    f(s);
    return static_cast<duet_status>(DUET_OK);
  });
}

duet_status embed(void* self, duetp_queue* q, const duetp_stage* a) {
  return enqueue(self, q, a, [](Stage& s) { s.phase(embed_tokens, {s.by_token(s.writes(s.call().out[DUETP_EMBED_OUT_X]))}); });
}

duet_status shift_mix(void* self, duetp_queue* q, const duetp_stage* a) {
  return enqueue(self, q, a, [](Stage& s) {
    const Call& c = s.call();
    s.needs().token = 2 * s.C() * sizeof(float);
    const void* x = c.in[DUETP_SHIFT_MIX_IN_X];
    const auto out = [&](uint32_t i) { return s.by_token(s.writes_m(c.out[i])); };
    s.phase(shift_mix_tokens, {s.reads(x), out(0), out(1), out(2), out(3), out(4), out(5), s.kept(0, c.recurrent)});
    if (!c.recurrent) s.phase(shift_mix_keep, {s.reads(x), s.kept(0, true)});
  });
}

duet_status linear(void* self, duetp_queue* q, const duetp_stage* a) {
  return enqueue(self, q, a, [](Stage& s) {
    const Call& c = s.call();
    const Region rounded = static_cast<Region>(kRoundedR + c.which);
    const void* in = c.in[DUETP_LINEAR_IN];
    s.product(kLinear[c.which]);
    if (c.which == DUETP_LINEAR_OUTPUT && heads_are_groups(c.layer->shape))
      s.round(linear_round_head, in, rounded, &Stage::by_head);
    else
      s.round(linear_round, in, rounded, &Stage::by_token);
    s.product_phase(linear_product, kLinear[c.which], {s.input(in, rounded), s.writes(c.out[DUETP_LINEAR_OUT])});
  });
}

duet_status lowrank(void* self, duetp_queue* q, const duetp_stage* a) {
  return enqueue(self, q, a, [](Stage& s) {
    const Call& c = s.call();
    const Region hidden = static_cast<Region>(kHiddenW + c.which);
    const Region down = static_cast<Region>(kRoundedDownW + c.which);
    s.product(DUETP_T_W1 + c.which);
    s.product(DUETP_T_W2 + c.which, hidden, s.tokens());
    s.round(lowrank_down_round, c.in[DUETP_LOWRANK_IN], down, &Stage::by_token);
    s.product_phase(lowrank_down, DUETP_T_W1 + c.which, {s.input(c.in[DUETP_LOWRANK_IN], down), s.region(hidden, true)});
    if (up_by_head(c))
      s.phase(lowrank_up_head, {s.region(hidden, false), s.by_head(s.writes(c.out[DUETP_LOWRANK_OUT]))});
    else
      s.product_phase(lowrank_up, DUETP_T_W2 + c.which, {s.region(hidden, false), s.writes(c.out[DUETP_LOWRANK_OUT])});
  });
}

duet_status wkv_prepare(void* self, duetp_queue* q, const duetp_stage* a) {
  return enqueue(self, q, a, [](Stage& s) {
    const Call& c = s.call();
    const auto in = [&](uint32_t i) { return s.by_head(s.reads(c.in[i])); };
    const auto out = [&](uint32_t i) { return s.by_head(s.writes(c.out[i])); };
    s.phase(prepare_heads, {in(0), in(1), in(2), in(3), in(4), in(5), out(0), out(1), out(2), out(3), out(4), out(5)});
  });
}

duet_status wkv(void* self, duetp_queue* q, const duetp_stage* a) {
  return enqueue(self, q, a, [](Stage& s) {
    const Call& c = s.call();
    const uint64_t N = c.layer->shape.head_size;
    const auto in = [&](uint32_t i) { return s.by_head(s.reads(c.in[i])); };
    s.needs().wkv = wkv_scratch_bytes(N);
    s.needs().state = N * wkv_stride(N) * sizeof(float);
    s.phase(wkv_heads, {in(0), in(1), in(2), in(3), in(4), in(5), s.by_head(s.writes(c.out[DUETP_WKV_OUT_Y])), s.by_head(s.kept(1, true))});
  });
}

duet_status norm_gate(void* self, duetp_queue* q, const duetp_stage* a) {
  return enqueue(self, q, a, [](Stage& s) {
    const Call& c = s.call();
    const auto in = [&](uint32_t i) { return s.by_head(s.reads(c.in[i])); };
    s.phase(norm_gate_heads, {in(0), in(1), in(2), in(3), in(4), s.by_head(s.writes_m(c.out[DUETP_NORM_GATE_OUT]))});
  });
}

duet_status channel_mix(void* self, duetp_queue* q, const duetp_stage* a) {
  return enqueue(self, q, a, [](Stage& s) {
    const Call& c = s.call();
    const void* x = c.out[DUETP_CHANNEL_MIX_X];
    s.needs().token = 3 * s.C() * sizeof(float);
    s.product(DUETP_T_FFN_KEY, kMixed, s.tokens());
    s.product(DUETP_T_FFN_VALUE, kKey, s.tokens());
    s.phase(channel_mix_tokens, {s.reads(x), s.region(kMixed, true), s.kept(2, c.recurrent)});
    if (!c.recurrent) s.phase(channel_mix_keep, {s.reads(x), s.kept(2, true)});
    s.product_phase(channel_mix_key, DUETP_T_FFN_KEY, {s.region(kMixed, false), s.region(kKey, true)});
    if (c.skips) {
      s.needs().region[kSums] = kValueParts * s.tokens() * sums_apart(*c.layer) * sizeof(float);
      s.needs().rows = std::max<uint64_t>(s.needs().rows, skip_scratch_bytes(c.layer->shape.n_ffn, s.C()));
    }
    s.product_phase(channel_mix_value, DUETP_T_FFN_VALUE, {s.region(kKey, false), s.region(kSums, true), s.writes(x)});
    if (c.skips) s.phase(channel_mix_sum, {s.region(kSums, false), s.writes(x)});
  });
}

duet_status head(void* self, duetp_queue* q, const duetp_stage* a) {
  return enqueue(self, q, a, [](Stage& s) {
    const Call& c = s.call();
    const uint64_t rows = c.max_rows;
    const void *hidden = c.out[DUETP_HEAD_OUT_HIDDEN], *logits = c.out[DUETP_HEAD_OUT_LOGITS];
    s.needs().token = s.C() * sizeof(float);
    if (logits) s.product(DUETP_T_HEAD, kMixed, rows);
    s.phase(head_rows, {s.reads(c.in[DUETP_HEAD_IN_X]), {hidden, rows * s.C() * 4, true}, s.region(kMixed, true)});
    if (!logits) return;
    s.product_phase(head_product, DUETP_T_HEAD, {s.region(kMixed, false), {logits, rows * c.layer->shape.n_vocab * 4, true}});
  });
}

duetp_ops make_ops() {
  duetp_ops o{};
  o.size = sizeof o;
  o.embed = embed;
  o.shift_mix = shift_mix;
  o.linear = linear;
  o.lowrank = lowrank;
  o.wkv_prepare = wkv_prepare;
  o.wkv = wkv;
  o.norm_gate = norm_gate;
  o.channel_mix = channel_mix;
  o.head = head;
  return o;
}

}  // namespace

const duetp_ops kOps = make_ops();

}  // namespace duet_cpu
