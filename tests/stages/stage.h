// One stage, run on any device: its arguments by name, filled with random numbers, and what it leaves in them.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "frame.h"

namespace stages {

struct Argument {
  const char* name;
  int in, out;      // index in duetp_stage, -1 = not that
  bool m;           // a matrix input: bf16 beside bf16 weights
  char rows = 'T';  // T: [T,C]; R: [rows,C]; V: [rows,V]
  float spread = 1;
};

struct StageCase {
  const char* name;
  duetp_stage_fn duetp_ops::*fn;
  uint32_t which, layer;
  std::vector<Argument> arguments;
};

// Every stage in every variant. The layer counts from 0; kBlock is the block of embedding and head.
inline std::vector<StageCase> stage_cases() {
  constexpr uint32_t kBlock = ~0u;
  using A = std::vector<Argument>;
  const A mixes{{"x", 0, -1, false}, {"xr", -1, 0, true}, {"xw", -1, 1, true}, {"xk", -1, 2, true}, {"xv", -1, 3, true}, {"xa", -1, 4, true}, {"xg", -1, 5, true}};
  const A product{{"in", 0, -1, true}, {"out", -1, 0, false}};
  const A prepare0{{"k", 0, 0, false}, {"v", 1, 1, false}, {"w", 2, 2, false}, {"a", 3, 3, false}, {"kk", -1, 4, false}, {"v_first", -1, 5, false}};
  const A prepare1{{"k", 0, 0, false}, {"v", 1, 1, false}, {"w", 2, 2, false, 'T', 4}, {"a", 3, 3, false, 'T', 4}, {"lv", 4, -1, false}, {"v_first", 5, -1, false}, {"kk", -1, 4, false}};
  const A wkv{{"r", 0, -1, false}, {"w", 1, -1, false, 'T', 6}, {"k", 2, -1, false}, {"v", 3, -1, false}, {"kk", 4, -1, false, 'T', 0.15f}, {"a", 5, -1, false}, {"y", -1, 0, false}};
  const A gate{{"y", 0, -1, false}, {"r", 1, -1, false}, {"k", 2, -1, false}, {"v", 3, -1, false}, {"g", 4, -1, false}, {"out", -1, 0, true}};
  std::vector<StageCase> out{
      {"embed", &duetp_ops::embed, 0, kBlock, {{"x", -1, 0, false}}},
      {"shift_mix", &duetp_ops::shift_mix, 0, 1, mixes},
      {"linear r", &duetp_ops::linear, DUETP_LINEAR_R, 0, product},
      {"linear k", &duetp_ops::linear, DUETP_LINEAR_K, 1, product},
      {"linear v", &duetp_ops::linear, DUETP_LINEAR_V, 1, product},
      {"linear output", &duetp_ops::linear, DUETP_LINEAR_OUTPUT, 1, {{"in", 0, -1, true}, {"x", -1, 0, false}}},
      {"lowrank w", &duetp_ops::lowrank, DUETP_LOWRANK_W, 1, product},
      {"lowrank a", &duetp_ops::lowrank, DUETP_LOWRANK_A, 1, product},
      {"lowrank v", &duetp_ops::lowrank, DUETP_LOWRANK_V, 1, product},
      {"lowrank g", &duetp_ops::lowrank, DUETP_LOWRANK_G, 1, product},
      {"wkv_prepare, layer 0", &duetp_ops::wkv_prepare, 0, 0, prepare0},
      {"wkv_prepare", &duetp_ops::wkv_prepare, 0, 1, prepare1},
      {"wkv", &duetp_ops::wkv, 0, 1, wkv},
      {"norm_gate", &duetp_ops::norm_gate, 0, 1, gate},
      {"channel_mix", &duetp_ops::channel_mix, 0, 1, {{"x", 0, 0, false}}},
      {"head", &duetp_ops::head, 0, kBlock, {{"x", 0, -1, false}, {"hidden", -1, 0, false, 'R'}, {"logits", -1, 1, false, 'V'}}},
      {"head, hidden only", &duetp_ops::head, 0, kBlock, {{"x", 0, -1, false}, {"hidden", -1, 0, false, 'R'}}},
  };
  return out;
}

// linear's output x is added to, so it is an input too
inline bool is_input(const StageCase& c, const Argument& a) { return a.in >= 0 || (c.which == DUETP_LINEAR_OUTPUT && c.fn == &duetp_ops::linear && a.out == 0); }

// Numbers for each token of an argument, from the token's place in the whole text: a split or another batch sees the same.
inline std::vector<float> numbers(const Argument& a, int32_t first, int32_t n, uint32_t C) {
  std::vector<float> out;
  for (int32_t t = first; t < first + n; ++t) {
    Random random(static_cast<uint64_t>(t) * 131 + std::hash<std::string>()(a.name) % 1000003);
    for (uint32_t i = 0; i < C; ++i) out.push_back(a.spread * random.next());
  }
  return out;
}

struct Outcome {
  std::map<std::string, std::vector<unsigned char>> bytes;  // each output argument with all of its capacity
  std::map<std::string, duet_dtype> dtype;
};

// Runs the stage on a batch whose first token is token `first` of the whole text.
inline Outcome run_stage(Device& d, const Model& m, const Model::Layers& layers, const StageCase& c, const Batch& b, duet_mode mode, State& state, int32_t first = 0,
                         const std::vector<int32_t>* places = nullptr) {
  const uint32_t layer = std::min(c.layer, m.shape.n_layer), C = m.shape.n_embd;
  std::vector<int32_t> tokens = b.tokens(m.shape.n_vocab);
  std::vector<int32_t> place(tokens.size());
  for (size_t t = 0; t < tokens.size(); ++t) place[t] = places ? (*places)[t] : first + static_cast<int32_t>(t);
  for (size_t t = 0; t < tokens.size(); ++t) tokens[t] = (place[t] * 31 + 5) % static_cast<int32_t>(m.shape.n_vocab);
  Frame frame(d, b, tokens);
  duetp_stage s{};
  s.size = sizeof s;
  s.which = c.which;
  s.layer_index = layer;
  s.mode = mode;
  s.layer = layers[layer];
  s.frame = frame.table();
  s.state = state.get();
  std::map<std::string, std::unique_ptr<Memory>> memory;
  for (const Argument& a : c.arguments) {
    const duet_dtype dtype = a.m ? matrix_input(m.weights) : DUET_F32;
    const size_t rows = (a.rows == 'T' ? tokens.size() : b.rows.size()) + Frame::kSpare, columns = a.rows == 'V' ? m.shape.n_vocab : C;
    auto& mem = memory[a.name] = std::make_unique<Memory>(d, rows * columns * bytes_of(dtype), dtype);
    if (is_input(c, a)) {
      std::vector<unsigned char> data(tokens.size() * columns * bytes_of(dtype));
      for (size_t t = 0; t < tokens.size(); ++t) encode(numbers(a, place[t], 1, C), dtype, data.data() + t * columns * bytes_of(dtype));
      mem->write(data.data(), data.size());
    }
    if (a.in >= 0) s.in[a.in] = mem->ref();
    if (a.out >= 0) s.out[a.out] = mem->ref();
  }
  d.check((d->ops->*c.fn)(d.self(), d.queue(), &s));
  d.wait();
  Outcome out;
  for (const Argument& a : c.arguments) {
    if (a.out < 0) continue;
    out.bytes[a.name] = memory[a.name]->read();
    out.dtype[a.name] = memory[a.name]->dtype();
  }
  return out;
}

// How far a device may be from the reference, in one place, as a share of max(|reference|, rms of the output). f32: sums of
// a few hundred terms in another order, exp and tanh to a few units in the last place. bf16: one unit where a value falls on
// the other side of a tie; inside lowrank and channel_mix such a unit travels through the second product.
inline double tolerance(const StageCase& c, duet_dtype weights, duet_dtype output) {
  const bool two_products = c.fn == &duetp_ops::lowrank || c.fn == &duetp_ops::channel_mix;
  if (output == DUET_BF16) return 0x1p-7;
  return weights == DUET_BF16 && two_products ? 5e-3 : 2e-5;
}

// The largest difference as a share of max(|reference|, rms); NaN must be NaN in both.
inline double distance(const std::vector<float>& got, const std::vector<float>& want) {
  double square = 0, worst = 0;
  size_t n = 0;
  for (float w : want)
    if (std::isfinite(w)) square += double{w} * w, ++n;
  const double rms = std::sqrt(square / static_cast<double>(n ? n : 1)) + 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i]) != std::isnan(got[i])) return HUGE_VAL;
    if (!std::isnan(want[i])) worst = std::max(worst, std::fabs(double{got[i]} - want[i]) / std::max(std::fabs(double{want[i]}), rms));
  }
  return worst;
}

}  // namespace stages
