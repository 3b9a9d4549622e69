#include <algorithm>
#include <cstring>

#include "base/format.h"
#include "conform/batches.h"
#include "conform/checks.h"
#include "duet_quantised.h"

namespace conform {
namespace {

struct Size {
  uint32_t n_head, head_size, n_ffn, n_vocab;
  bool wide() const { return n_head > 8; }  // few tokens are enough, and the reference is slow
};

std::vector<Size> sizes(bool quick) {
  if (quick) return {{1, 128, 264, 37}, {3, 64, 131, 257}, {3, 20, 180, 70}};
  std::vector<Size> out;
  for (uint32_t H : {1u, 3u})
    for (uint32_t N : {16u, 32u, 64u, 128u}) out.push_back({H, N, 2 * H * N + 8, 37});
  out.push_back({3, 64, 131, 257});  // a whole output tile, an odd depth
  out.push_back({3, 20, 180, 70});
  out.push_back({32, 64, 2056, 70});
  return out;
}

std::vector<Batch> batches(const Size& s, duet_mode mode, bool quick) {
  std::vector<Batch> out;
  if (mode == DUET_MODE_PARALLEL) {
    std::vector<int32_t> lengths{0, 1, 2, 15, 16, 17, 63, 64, 65};
    if (quick) lengths = {0, 1, 2, 17, 65};
    if (s.wide()) lengths = {1, 2, 17};
    if (!quick && s.n_head == 1 && s.head_size <= 64) lengths.push_back(1000);
    for (int32_t T : lengths)
      for (const Batch& b : parallel_batches(T)) out.push_back(b);
  } else {
    std::vector<int32_t> counts{1, 2, 3, 4, 9};
    if (quick) counts = {1, 4, 9};
    if (s.wide()) counts = {1, 3};
    if (!quick && s.n_head == 1) counts.push_back(s.head_size <= 64 ? 300 : 33);
    for (int32_t n : counts) out.push_back(recurrent_batch(n));
  }
  return out;
}

bool same_bits(State& a, State& b) {
  for (uint32_t slot = 0; slot < a.n_slots(); ++slot) {
    const std::vector<float> x = a.slot(slot), y = b.slot(slot);
    if (std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) != 0) return false;
  }
  return true;
}

// Begins with states of zeros, whose layout cannot be mistaken: what is left in them then shows a layout that is exchanged.
bool exchanges_values_and_keys(Context& x, const Model& m, const Model::Layers& reference_layers, const Model::Layers& layers, const StageCase& c,
                               const Batch& b, duet_mode mode, const Input& input, uint32_t n_slots) {
  State want(x.reference, m.shape, n_slots), got(x.device, m.shape, n_slots);
  for (uint32_t slot = 0; slot < n_slots; ++slot) {
    const std::vector<float> zero(want.initial(slot).size());
    want.set(slot, zero);
    got.set(slot, zero);
  }
  run_stage(x.reference, m, reference_layers, c, b, mode, want, input);
  run_stage(x.device, m, layers, c, b, mode, got, input);
  double as_it_is = 0, exchanged = 0;
  for (uint32_t slot = 0; slot < n_slots; ++slot) {
    as_it_is = std::max(as_it_is, distance(got.slot(slot), want.slot(slot)));
    exchanged = std::max(exchanged, distance(got.exchanged(got.slot(slot)), want.slot(slot)));
  }
  const double limit = tolerance(c, m.weights, mode, "the state", DUET_F32);
  return !(as_it_is <= limit) && exchanged <= limit;
}

// The stage on reference and device; then the same again, at once and through a recording, to the last bit.
Verdict compare_case(Context& x, const Model& m, const Model::Layers& reference_layers, const Model::Layers& layers, const StageCase& c, const Batch& b,
                     duet_mode mode, Input input) {
  const uint32_t n_slots = std::max<uint32_t>(5, static_cast<uint32_t>(b.lengths.size()) + 1);
  State want_state(x.reference, m.shape, n_slots), got_state(x.device, m.shape, n_slots);
  const Outcome want = run_stage(x.reference, m, reference_layers, c, b, mode, want_state, input);
  const Outcome got = run_stage(x.device, m, layers, c, b, mode, got_state, input);
  Verdict v = compare(got, want, [&](const std::string& output, duet_dtype dtype) { return tolerance(c, m.weights, mode, output, dtype); });
  v.join(compare_states(got_state, want_state, b, tolerance(c, m.weights, mode, "the state", DUET_F32)));
  if (!v.fault.empty() && c.stage == "wkv" && exchanges_values_and_keys(x, m, reference_layers, layers, c, b, mode, input, n_slots))
    v.fault = "wrong state layout: keys are its rows and values its columns; rows are values (" + v.fault + ")";
  if (!v.fault.empty() || input.pattern != Pattern::random) return v;
  const auto repeats = [&](const char* fault) {
    State again_state(x.device, m.shape, n_slots);
    const Outcome again = run_stage(x.device, m, layers, c, b, mode, again_state, input);
    if (v.fault.empty() && !(again == got && same_bits(again_state, got_state))) v.fault = fault;
  };
  repeats("not deterministic: the same run twice gave different bits");
  input.recorded = true;
  if (x.device.records()) repeats("a recorded run gave other bits than one at once");
  return v;
}

std::string name_of(const Size& s, const Batch& b, duet_mode mode, Pattern p) {
  std::string out = duet::format("H {}, N {}, ", s.n_head, s.head_size);
  out += mode == DUET_MODE_RECURRENT ? duet::format("batch {}", b.lengths.size()) : duet::format("T {}{}", b.n_tokens(), b.lengths.size() > 1 ? " ragged" : "");
  return p == Pattern::random ? out : duet::format("{}, {}", out, name_of(p));
}

}  // namespace

void check_stages(Context& x) {
  std::vector<StageCase> offered;
  for (const StageCase& c : stage_cases()) {
    if (!x.stage.empty() && x.stage != c.stage && x.stage != c.name()) continue;
    if (x.device.offers(c.fn)) {
      offered.push_back(c);
    } else {
      Line line(c.name(), "", "");
      line.absent = true;
      line.reason = (x.device.slots().*c.fn).fn ? "left to the reference" : "not offered";
      x.report.add(line);
    }
  }
  for (const duet_dtype dtype : kWeights) {
    // Beside quantised weights all is f32: stages without a matrix do the same as with f32 weights, but for wkv, which may be coarser.
    std::vector<StageCase> cases;
    for (const StageCase& c : offered)
      if (has_matrix(c) || c.stage == "wkv" || !duetp_is_quantised(dtype)) cases.push_back(c);
    std::vector<Line> lines;
    for (const StageCase& c : cases)
      for (const char* mode : {"parallel", "recurrent"}) lines.emplace_back(c.name(), name_of(dtype), mode);
    for (const Size& s : sizes(x.quick)) {
      const duetp_shape shape = shape_of(2, s.n_head, s.head_size, s.n_ffn, s.n_vocab);
      if (const std::string why = x.device.refuses(shape, dtype, 1); !why.empty()) {
        for (Line& line : lines) line.refuse(why);
        continue;
      }
      if (cases.empty()) continue;
      const Model model(shape, dtype, x.seed);
      const Model::Layers reference_layers(x.reference, model), layers(x.device, model);
      for (size_t i = 0; i < lines.size(); ++i) {
        const StageCase& c = cases[i / 2];
        const duet_mode mode = i % 2 ? DUET_MODE_RECURRENT : DUET_MODE_PARALLEL;
        for (const Batch& b : batches(s, mode, x.quick))
          for (const Pattern p : c.patterns)
            if (p == Pattern::random || !s.wide())
              lines[i].run(name_of(s, b, mode, p), [&] { return compare_case(x, model, reference_layers, layers, c, b, mode, {0, p, x.seed}); });
      }
    }
    for (const Line& line : lines) x.report.add(line);
  }
}

}  // namespace conform
