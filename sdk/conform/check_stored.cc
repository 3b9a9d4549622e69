#include <algorithm>
#include <stdexcept>

#include "base/format.h"
#include "conform/batches.h"
#include "conform/checks.h"
#include "conform/forward.h"

namespace conform {
namespace {

constexpr uint32_t kSlots = 10;

// The distance of neighbours, as a share of the smaller, at most
double unit_of(duet_dtype stored) { return stored == DUET_F16 ? 0x1p-10 : 0x1p-7; }

void expect(bool holds, const std::string& fault) {
  if (!holds) throw std::runtime_error(fault);
}

// "", or why there are no such states
std::string refusal(Device& d, duet_dtype stored) {
  if (d.slots().f32_states) return "its wkv works on the host's states, which it knows in f32 only";
  const duetp_shape shape = shape_of(1, 1, 16, 16, 16);
  duetp_state* state = nullptr;
  const duet_status status = d->state_new(d.self(), &shape, 1, stored, &state);
  if (status == DUET_E_UNSUPPORTED) return d.said();
  d.check(status);
  d->state_free(d.self(), state);
  return "";
}

// What goes in comes out rounded to nearest even, f16 saturated; nothing else is touched.
Verdict keeps_rounded_numbers(Device& d, duet_dtype stored) {
  const duetp_shape shape = shape_of(3, 2, 16, 64, 67);
  State s(d, shape, 4, stored), t(d, shape, 2, stored);
  const size_t LC = size_t{3} * 32;
  std::vector<float> raw(LC * 18);
  Random random(77);
  for (float& f : raw) f = random.next();
  const float hard[] = {65503.9f, 65504, 65519.9f, 65520, 1e9f, -70000, 1e-3f, 6.1e-5f, 6.0e-5f, 5e-8f, 3e-8f, 2.9e-8f, 0x1.002p0f, 0x1.006p0f, 0x1.01p0f, 0x1.03p0f, -0x1.0021p0f, 1e-30f, -0.0f};
  std::copy(std::begin(hard), std::end(hard), raw.begin() + static_cast<std::ptrdiff_t>(LC));
  s.set(1, raw);
  const std::vector<float> want = s.rounded(raw), got = s.slot(1);
  for (size_t i = 0; i < want.size(); ++i)
    expect(got[i] == want[i], duet::format("{:.9g} was imported and {:.9g} exported, not {:.9g}: {}", raw[i], got[i], want[i], s.place(i)));
  s.set(1, got);
  expect(s.slot(1) == got, "a state that was exported and imported again is not the same");
  expect(s.slot(0) == s.initial(0) && s.slot(2) == s.initial(2), "an import changed another slot");
  d.check(d->state_copy(d.self(), d.queue(), s.get(), 3, s.get(), 1));
  d.check(d->state_copy(d.self(), d.queue(), t.get(), 0, s.get(), 2));
  d.check(d->state_copy(d.self(), d.queue(), s.get(), 0, nullptr, 0));
  expect(s.slot(3) == got && t.slot(0) == s.initial(2) && t.slot(1) == t.initial(1), "state_copy is wrong");
  expect(s.slot(0) == std::vector<float>(got.size()), "state_copy from NULL does not give zeros");
  return {};
}

// A number that the dtype does not have; "" if there is none
std::string not_rounded(State& s) {
  for (uint32_t slot = 0; slot < s.n_slots(); ++slot) {
    const std::vector<float> v = s.slot(slot), r = s.rounded(v);
    const auto at = std::mismatch(v.begin(), v.end(), r.begin()).first;
    if (at != v.end()) return duet::format("the state: slot {} holds {:.9g}, which is not of its dtype, in {}", slot, *at, s.place(static_cast<size_t>(at - v.begin())));
  }
  return "";
}

// Of the numbers that the run has changed, the share that is not the reference's. Rounded to nearest, only those beside a tie are not.
double share_of_others(State& got, State& want) {
  size_t changed = 0, other = 0;
  for (uint32_t slot = 0; slot < got.n_slots(); ++slot) {
    const std::vector<float> g = got.slot(slot), w = want.slot(slot), before = got.initial(slot);
    for (size_t i = 0; i < g.size(); ++i) changed += w[i] != before[i], other += g[i] != w[i];
  }
  return changed ? static_cast<double>(other) / static_cast<double>(changed) : 0;
}

// The stage begins with the same numbers on both: what it gives is as near as with f32 states, and what it leaves is that, rounded.
Verdict stage_case(Context& x, const Model& m, const StageCase& c, const Batch& b, duet_mode mode, duet_dtype stored) {
  const Model::Layers reference_layers(x.reference, m), layers(x.device, m);
  State want_state(x.reference, m.shape, kSlots, stored), got_state(x.device, m.shape, kSlots, stored);
  const Outcome want = run_stage(x.reference, m, reference_layers, c, b, mode, want_state), got = run_stage(x.device, m, layers, c, b, mode, got_state);
  const double state = tolerance(c, m.weights, mode, "the state", DUET_F32);
  Verdict v = compare(got, want, [&](const std::string& output, duet_dtype dtype) { return tolerance(c, m.weights, mode, output, dtype); });
  v.join(compare_states(got_state, want_state, b, state + unit_of(stored)));
  if (v.fault.empty()) v.fault = not_rounded(got_state);
  if (const double share = share_of_others(got_state, want_state); v.fault.empty() && state < 1e-4 && share > 0.1)
    v.fault = duet::format("the state: {:.0f} % of the numbers are not what the reference rounds to; to nearest, ties to even, few would be", 100 * share);
  return v;
}

// Two steps in a row. A number beside a tie goes one unit another way, and the layers and the second step carry that on.
Verdict network_case(Context& x, const Model& m, const Batch& b, duet_mode mode, uint32_t rung, duet_dtype stored) {
  const double limit = network_tolerance(m.weights) + 4 * unit_of(stored);
  const std::vector<int32_t> tokens = b.tokens(m.shape.n_vocab);
  State want_state(x.reference, m.shape, kSlots, stored), got_state(x.device, m.shape, kSlots, stored);
  Forward reference(x.reference, m, b, mode, want_state, tokens), forward(x.device, m, b, mode, got_state, tokens, rung);
  for (Forward* f : {&reference, &forward}) f->enqueue(), f->enqueue();
  Verdict v = compare(forward.outcome(), reference.outcome(), [&](const std::string&, duet_dtype) { return limit; });
  v.join(compare_states(got_state, want_state, b, limit));
  if (v.fault.empty()) v.fault = not_rounded(got_state);
  return v;
}

}  // namespace

void check_stored(Context& x) {
  if (!x.stage.empty() && x.stage != "state") return;
  const std::vector<StageCase> all = stage_cases();
  const StageCase wkv = *std::find_if(all.begin(), all.end(), [](const StageCase& c) { return c.stage == "wkv"; });
  std::vector<uint32_t> sizes{64};
  if (!x.quick) sizes = {20, 32, 64, 128};
  for (const duet_dtype stored : {DUET_F16, DUET_BF16}) {
    const std::string subject = duet::format("state in {}", name_of(stored)), why = refusal(x.device, stored);
    Line memory(subject, "", "");
    if (!why.empty()) {
      memory.refuse(why);
      x.report.add(memory);
      continue;
    }
    memory.run("import, export, copy", [&] { return keeps_rounded_numbers(x.device, stored); });
    x.report.add(memory);
    for (const duet_dtype weights : {DUET_F32, DUET_BF16})
      for (const duet_mode mode : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT}) {
        Line line(subject, name_of(weights), mode == DUET_MODE_PARALLEL ? "parallel" : "recurrent");
        std::vector<Batch> batches{recurrent_batch(1), recurrent_batch(9)};
        if (mode == DUET_MODE_PARALLEL) batches = parallel_batches(17), batches.push_back(parallel_batches(65)[0]);
        for (const uint32_t N : sizes) {
          const Model model(shape_of(2, 3, N, 2 * N + 3, 67), weights, x.seed);
          const auto name = [&](const char* what, const Batch& b) { return duet::format("{}, N {}, T {}{}", what, N, b.n_tokens(), b.lengths.size() > 1 ? " ragged" : ""); };
          for (const Batch& b : batches) {
            if (x.device.offers(wkv.fn) && x.device.refuses(model.shape, weights, 1).empty())
              line.run(name("wkv", b), [&] { return stage_case(x, model, wkv, b, mode, stored); });
            for (uint32_t rung = 1; rung <= 3; ++rung) {
              if (!x.device.offers_rung(rung)) continue;
              if (const std::string no = x.device.refuses(model.shape, weights, rung); !no.empty()) line.refuse(no);
              else line.run(name(rung == 1 ? "network" : rung == 2 ? "layers" : "step", b), [&] { return network_case(x, model, b, mode, rung, stored); });
            }
          }
        }
        x.report.add(line);
      }
  }
}

}  // namespace conform
