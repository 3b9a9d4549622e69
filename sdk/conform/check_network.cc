#include <cstring>

#include "base/format.h"
#include "conform/batches.h"
#include "conform/checks.h"
#include "conform/forward.h"

namespace conform {
namespace {

constexpr uint32_t kSlots = 10;

std::vector<duetp_shape> shapes(bool quick) {
  std::vector<duetp_shape> out{shape_of(3, 2, 64, 208, 67)};
  out[0].rank_v = 16;  // all sizes are multiples of 8, as kernels of whole 16-byte pieces want them
  if (quick) return out;
  out.push_back(shape_of(2, 5, 64, 1280, 67));
  out.back().rank_v = 32;
  out.push_back(shape_of(3, 2, 64, 200, 67));
  for (uint32_t N : {16u, 32u, 64u, 128u}) out.push_back(shape_of(2, 1, N, 3 * N, 131));
  out.push_back(shape_of(1, 3, 64, 200, 67));
  return out;
}

std::vector<Batch> batches(duet_mode mode, bool quick) {
  if (mode == DUET_MODE_RECURRENT) return {recurrent_batch(1), recurrent_batch(9)};
  std::vector<Batch> out = parallel_batches(54);
  if (quick) return out;
  for (int32_t T : {1, 17, 200})
    for (const Batch& b : parallel_batches(T)) out.push_back(b);
  return out;
}

struct Result {
  Outcome outcome;
  std::vector<float> state;
  bool operator==(const Result& o) const { return outcome == o.outcome && std::memcmp(state.data(), o.state.data(), state.size() * sizeof(float)) == 0; }
};

// Two steps in a row, so that the second meets what the first left in state and scratch
Result two_steps(Forward& f, State& state) {
  f.enqueue();
  f.enqueue();
  return {f.outcome(), state.all()};
}

Verdict compare_case(Context& x, const Model& m, const Batch& b, duet_mode mode, uint32_t rung) {
  const std::vector<int32_t> tokens = b.tokens(m.shape.n_vocab);
  const double limit = network_tolerance(m.weights);
  const auto allowed = [&](const std::string&, duet_dtype) { return limit; };
  State want_state(x.reference, m.shape, kSlots), got_state(x.device, m.shape, kSlots);
  Forward reference(x.reference, m, b, mode, want_state, tokens), forward(x.device, m, b, mode, got_state, tokens, rung);
  const Result want = two_steps(reference, want_state), got = two_steps(forward, got_state);
  Verdict v = compare(got.outcome, want.outcome, allowed);
  v.join(compare_states(got_state, want_state, b, limit));
  const auto expect = [&](bool holds, const char* fault) {
    if (v.fault.empty() && !holds) v.fault = fault;
  };
  const auto again = [&](uint32_t r, bool pieces) {
    State state(x.device, m.shape, kSlots);
    Forward f(x.device, m, b, mode, state, tokens, r, pieces);
    return two_steps(f, state);
  };
  expect(again(rung, false) == got, "not deterministic: the same run twice gave different bits");
  if (x.device.records()) {
    State state(x.device, m.shape, kSlots);
    const std::vector<float> before = state.all();
    Forward f(x.device, m, b, mode, state, tokens, rung);
    Recording record(x.device, [&] { f.enqueue(); });
    x.device.wait();
    expect(state.all() == before, "work ran while it was recorded");
    record.run();
    record.run();
    expect(Result{f.outcome(), state.all()} == got, "a recorded run gave other bits than one at once");
  }
  if (rung == 2 && m.shape.n_layer > 1) v.join(compare(again(2, true).outcome, got.outcome, allowed));
  for (uint32_t r = 1; r < rung; ++r)
    if (x.device.offers_rung(r) && x.device.refuses(m.shape, m.weights, r).empty()) v.join(compare(again(r, false).outcome, got.outcome, allowed));
  return v;
}

// A text whose parts run on either device and in either mode, against the reference alone
Verdict hand_over(Context& x, const Model& m, uint32_t rung) {
  struct Part {
    bool device;
    int32_t n;
    duet_mode mode;
  };
  State here(x.reference, m.shape, 2), there(x.device, m.shape, 2), whole(x.reference, m.shape, 2);
  int32_t at = 0;
  const auto run = [&](Device& d, State& state, int32_t n, duet_mode mode, uint32_t r) {
    Outcome last;
    std::vector<int32_t> tokens;
    for (int32_t t = at; t < at + n; ++t) tokens.push_back((t * 29 + 7) % static_cast<int32_t>(m.shape.n_vocab));
    const int32_t piece = mode == DUET_MODE_RECURRENT ? 1 : n;
    for (int32_t t = 0; t < n; t += piece) {
      Forward f(d, m, {{piece}, {1}, {piece - 1}}, mode, state, {tokens.begin() + t, tokens.begin() + t + piece}, r);
      f.enqueue();
      last = f.outcome();
    }
    return last.outputs.at("logits");
  };
  Verdict v;
  for (const Part& part : {Part{false, 13, DUET_MODE_PARALLEL}, Part{true, 7, DUET_MODE_RECURRENT}, Part{true, 20, DUET_MODE_PARALLEL},
                           Part{false, 3, DUET_MODE_RECURRENT}, Part{true, 1, DUET_MODE_PARALLEL}, Part{true, 2, DUET_MODE_RECURRENT}}) {
    if (part.device) there.set(1, here.slot(1));
    const Outcome::Output got = part.device ? run(x.device, there, part.n, part.mode, rung) : run(x.reference, here, part.n, part.mode, 1);
    if (part.device) here.set(1, there.slot(1));
    const Outcome::Output want = run(x.reference, whole, part.n, DUET_MODE_RECURRENT, 1);
    v.join(compare(got, want, duet::format("logits of token {}", at + part.n - 1), network_tolerance(m.weights)));
    at += part.n;
  }
  v.join(compare_states(here, whole, {{at}, {1}, {}}, network_tolerance(m.weights)));
  return v;
}

std::string name_of(const duetp_shape& s) { return duet::format("L {}, H {}, N {}", s.n_layer, s.n_head, s.head_size); }

}  // namespace

void check_network(Context& x, uint32_t rung) {
  constexpr const char* names[] = {"", "network", "layers", "step"};
  const std::string subject = names[rung];
  if (!x.stage.empty() && x.stage != subject) return;
  if (!x.device.offers_rung(rung)) {
    Line line(subject, "", "");
    line.absent = true;
    line.reason = duet::format("rung {} is not offered", rung);
    return x.report.add(line);
  }
  for (const duet_dtype dtype : kWeights) {
    Line parallel(subject, conform::name_of(dtype), "parallel"), recurrent(subject, conform::name_of(dtype), "recurrent"),
        over(subject + " handed over", conform::name_of(dtype), "both");
    for (const duetp_shape& shape : shapes(x.quick)) {
      if (const std::string why = x.device.refuses(shape, dtype, rung); !why.empty()) {
        for (Line* line : {&parallel, &recurrent, &over}) line->refuse(why);
        continue;
      }
      const Model model(shape, dtype, x.seed);
      for (const Batch& b : batches(DUET_MODE_PARALLEL, x.quick))
        parallel.run(duet::format("{}, T {}{}", name_of(shape), b.n_tokens(), b.lengths.size() > 1 ? " ragged" : ""),
                     [&] { return compare_case(x, model, b, DUET_MODE_PARALLEL, rung); });
      for (const Batch& b : batches(DUET_MODE_RECURRENT, x.quick))
        recurrent.run(duet::format("{}, batch {}", name_of(shape), b.lengths.size()), [&] { return compare_case(x, model, b, DUET_MODE_RECURRENT, rung); });
      over.run(name_of(shape), [&] { return hand_over(x, model, rung); });
    }
    for (const Line* line : {&parallel, &recurrent, &over}) x.report.add(*line);
  }
}

}  // namespace conform
