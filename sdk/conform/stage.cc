#include "conform/stage.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>

#include "conform/record.h"

namespace conform {
namespace {

uint64_t hash(const char* name) {
  uint64_t h = 14695981039346656037u;
  for (; *name; ++name) h = (h ^ static_cast<unsigned char>(*name)) * 1099511628211u;
  return h % 1000003;
}

// Row t of an argument
std::vector<float> numbers(const Argument& a, int32_t t, const duetp_shape& s, const Input& input) {
  const std::string name = a.name;
  Random random((static_cast<uint64_t>(t) * 131 + hash(a.name)) ^ input.seed << 32);
  std::vector<float> row(s.n_embd);
  for (float& f : row) {
    const float u = random.next();
    f = a.range == Argument::unit_interval ? 0.5f + 0.5f * u : a.spread * u;
    if (input.pattern == Pattern::fast_decay && name == "w") f = 20 + 4 * u;
    if (input.pattern == Pattern::slow_decay && name == "w") f = -30 + 4 * u;
    if (input.pattern == Pattern::saturated) {
      if (a.range == Argument::unit_interval) f = u < 0 ? 0 : 1;
      if (name == "w" || (a.range == Argument::plain && (name == "a" || name == "lv"))) f = (u < 0 ? -60 : 60) + u;
      if (name == "k" && t % 3 == 1) f = 0;
    }
  }
  if (a.range == Argument::unit_head)
    for (uint32_t h = 0; h < s.n_head; ++h) {
      float* kk = row.data() + size_t{h} * s.head_size;
      double square = 0;
      for (uint32_t i = 0; i < s.head_size; ++i) square += double{kk[i]} * kk[i];
      for (uint32_t i = 0; i < s.head_size; ++i) kk[i] = static_cast<float>(kk[i] / std::sqrt(square));
    }
  return row;
}

}  // namespace

bool is_input(const StageCase& c, const Argument& a) { return a.in >= 0 || (c.stage == "linear" && c.which == DUETP_LINEAR_OUTPUT && a.out == 0); }

const char* name_of(Pattern p) {
  constexpr const char* names[] = {"random", "fast decay", "slow decay", "saturated gates"};
  return names[static_cast<int>(p)];
}

bool has_matrix(const StageCase& c) {
  return c.stage == "embed" || c.stage == "linear" || c.stage == "lowrank" || c.stage == "channel_mix" || c.stage == "head";
}

std::vector<StageCase> stage_cases() {
  using A = std::vector<Argument>;
  using D = duet::Device;
  const A mixes{{"x", 0, -1, false}, {"xr", -1, 0, true}, {"xw", -1, 1, true}, {"xk", -1, 2, true},
                {"xv", -1, 3, true}, {"xa", -1, 4, true}, {"xg", -1, 5, true}};
  const A product{{"in", 0, -1, true}, {"out", -1, 0, false}};
  const A prepare0{{"k", 0, 0, false}, {"v", 1, 1, false}, {"w", 2, 2, false}, {"a", 3, 3, false}, {"kk", -1, 4, false}, {"v_first", -1, 5, false}};
  const A prepare1{{"k", 0, 0, false},   {"v", 1, 1, false},        {"w", 2, 2, false, 'T', 4}, {"a", 3, 3, false, 'T', 4},
                   {"lv", 4, -1, false}, {"v_first", 5, -1, false}, {"kk", -1, 4, false}};
  const A apart{{"k", 0, -1, false},  {"v", 1, -1, false},  {"w", 2, -1, false},     {"a", 3, -1, false},    {"lv", 4, -1, false}, {"v_first", 5, -1, false},
                {"k'", -1, 0, false}, {"v'", -1, 1, false}, {"w_raw", -1, 2, false}, {"iclr", -1, 3, false}, {"kk", -1, 4, false}};
  const A wkv{{"r", 0, -1, false},
              {"w", 1, -1, false, 'T', 6},
              {"k", 2, -1, false},
              {"v", 3, -1, false},
              {"kk", 4, -1, false, 'T', 1, Argument::unit_head},
              {"a", 5, -1, false, 'T', 1, Argument::unit_interval},
              {"y", -1, 0, false}};
  const A gate{{"y", 0, -1, false}, {"r", 1, -1, false}, {"k", 2, -1, false}, {"v", 3, -1, false}, {"g", 4, -1, false}, {"out", -1, 0, true}};
  const std::vector<Pattern> all{Pattern::random, Pattern::fast_decay, Pattern::slow_decay, Pattern::saturated}, gates{Pattern::random, Pattern::saturated};
  return {
      {"embed", "", &D::embed, 0, kBlock, {{"x", -1, 0, false}}},
      {"shift_mix", "", &D::shift_mix, 0, 1, mixes},
      {"linear", "r", &D::linear, DUETP_LINEAR_R, 0, product},
      {"linear", "k", &D::linear, DUETP_LINEAR_K, 1, product},
      {"linear", "v", &D::linear, DUETP_LINEAR_V, 1, product},
      {"linear", "output", &D::linear, DUETP_LINEAR_OUTPUT, 1, {{"in", 0, -1, true}, {"x", -1, 0, false}}},
      {"lowrank", "w", &D::lowrank, DUETP_LOWRANK_W, 1, product},
      {"lowrank", "a", &D::lowrank, DUETP_LOWRANK_A, 1, product},
      {"lowrank", "v", &D::lowrank, DUETP_LOWRANK_V, 1, product},
      {"lowrank", "g", &D::lowrank, DUETP_LOWRANK_G, 1, product},
      {"wkv_prepare", "layer 0", &D::wkv_prepare, 0, 0, prepare0, gates},
      {"wkv_prepare", "", &D::wkv_prepare, 0, 1, prepare1, gates},
      {"wkv_prepare", "apart", &D::wkv_prepare, 0, 1, apart},
      {"wkv", "", &D::wkv, 0, 1, wkv, all},
      {"norm_gate", "", &D::norm_gate, 0, 1, gate, gates},
      {"channel_mix", "", &D::channel_mix, 0, 1, {{"x", 0, 0, false}}},
      {"head", "", &D::head, 0, kBlock, {{"x", 0, -1, false}, {"hidden", -1, 0, false, 'R'}, {"logits", -1, 1, false, 'V'}}},
      {"head", "hidden only", &D::head, 0, kBlock, {{"x", 0, -1, false}, {"hidden", -1, 0, false, 'R'}}},
      {"head", "logits only", &D::head, 0, kBlock, {{"x", 0, -1, false}, {"logits", -1, 1, false, 'V'}}},
  };
}

StageRun::StageRun(Device& d, const Model& m, const Model::Layers& layers, const StageCase& c, const Batch& b, duet_mode mode, State& state, const Input& input)
    : device_(d), layers_(layers), case_(c) {
  const uint32_t C = m.shape.n_embd;
  const size_t T = static_cast<size_t>(b.n_tokens());
  std::vector<int32_t> tokens(T);
  for (size_t t = 0; t < T; ++t) tokens[t] = ((input.first + static_cast<int32_t>(t)) * 31 + 5) % static_cast<int32_t>(m.shape.n_vocab);
  frame_ = std::make_unique<Frame>(d, b, tokens);
  table_.size = sizeof table_;
  table_.which = c.which;
  table_.mode = mode;
  table_.frame = frame_->table();
  table_.state = state.get();
  in_layer(std::min(c.layer, m.shape.n_layer));
  for (const Argument& a : c.arguments) {
    const duet_dtype dtype = a.m ? matrix_input(m.weights) : DUET_F32;
    Place& p = places_[a.name];
    p.columns = a.rows == 'V' ? m.shape.n_vocab : C;
    const size_t rows = (a.rows == 'T' ? T : b.rows.size()) + Frame::kSpare, row = p.columns * bytes_of(dtype);
    p.memory = std::make_unique<Memory>(d, a.name, rows * row, dtype);
    if (is_input(c, a)) {
      p.data.resize(T * row);
      for (size_t t = 0; t < T; ++t) encode(numbers(a, input.first + static_cast<int32_t>(t), m.shape, input), dtype, p.data.data() + t * row);
      p.memory->write(p.data.data(), p.data.size());
    }
    if (a.in >= 0) table_.in[a.in] = p.memory->ref();
    if (a.out >= 0) table_.out[a.out] = p.memory->ref();
  }
}

void StageRun::enqueue() { device_.run(case_.fn, table_); }

void StageRun::in_layer(uint32_t layer) {
  table_.layer_index = layer;
  table_.layer = layers_[layer];
}

Outcome StageRun::outcome() {
  Outcome out;
  for (const Argument& a : case_.arguments) {
    const Place& p = places_[a.name];
    std::vector<unsigned char> bytes = p.memory->read();
    if (a.out >= 0) out.outputs[a.name] = Outcome::Output(std::move(bytes), p.memory->dtype(), p.columns);
    else if (!std::equal(p.data.begin(), p.data.end(), bytes.begin())) throw std::runtime_error(std::string(a.name) + ": written to, though it is only read");
  }
  return out;
}

Outcome run_stage(Device& d, const Model& m, const Model::Layers& layers, const StageCase& c, const Batch& b, duet_mode mode, State& state,
                  const Input& input) {
  StageRun run(d, m, layers, c, b, mode, state, input);
  if (input.recorded) {
    Recording record(d, [&] { run.enqueue(); });
    record.run();
    d.wait();
  } else {
    run.enqueue();
    d.wait();
  }
  return run.outcome();
}

}  // namespace conform
