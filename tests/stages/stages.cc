// Each stage of the CPU plugin by itself: what must be equal to the last bit, whatever the threads, the batch and the split.
// How far it is from the reference, duet-conform checks (tests/conform).
#include "conform/stage.h"

#include <signal.h>
#include <sys/time.h>

#include <cmath>
#include <cstring>

#include "conform/batches.h"
#include "conform/compare.h"
#include "plugin/load.h"
#include "support/catch.h"

using namespace conform;

namespace {

const duetp_plugin& plugin() {
  static const duetp_plugin p = duet::load_plugin_table(DUET_CPU_PLUGIN);
  return p;
}

constexpr uint32_t kSlots = 10;

StageCase channel_mix() {
  for (const StageCase& c : stage_cases())
    if (c.stage == "channel_mix") return c;
  throw std::logic_error("no channel_mix");
}

// Makes channel mix of a layer have inputs that are known beforehand: LN gives 1 everywhere, so a row of key that is all 1 or all -1
// makes C^2 or 0 of relu^2, whatever the token. Row k of value, [C,F], has `unread` where relu^2 is 0.
void make_known(Model& m, uint32_t layer, const std::vector<bool>& wanted, bool unread_is_nan) {
  const uint32_t C = m.shape.n_embd, F = m.shape.n_ffn;
  const float zero = 0, one = 1;
  const auto put = [&](uint32_t id, uint64_t i, float value) {
    const uint16_t f16 = value == 1 ? 0x3c00 : value == -1 ? 0xbc00 : value == 0 ? 0 : 0x7e00;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t half = m.weights == DUET_F16 ? f16 : static_cast<uint16_t>(bits >> 16);
    std::memcpy(m.bytes(layer, id) + i * bytes_of(m.weights), m.weights == DUET_F32 ? static_cast<const void*>(&bits) : &half, bytes_of(m.weights));
  };
  for (uint32_t i = 0; i < C; ++i) {
    std::memcpy(m.bytes(layer, DUETP_T_LN2_W) + i * 4, &zero, 4);
    std::memcpy(m.bytes(layer, DUETP_T_LN2_B) + i * 4, &one, 4);
    std::memcpy(m.bytes(layer, DUETP_T_FFN_X_K) + i * 4, &zero, 4);
  }
  for (uint32_t k = 0; k < F; ++k)
    for (uint32_t i = 0; i < C; ++i) {
      put(DUETP_T_FFN_KEY, uint64_t{k} * C + i, wanted[k] ? 1.0f : -1.0f);
      if (!wanted[k]) put(DUETP_T_FFN_VALUE, uint64_t{i} * F + k, unread_is_nan ? std::nanf("") : 0.0f);
    }
}

}  // namespace

TEST_CASE("the number of threads does not change a bit", "[threads]") {
  for (const duet_dtype dtype : {DUET_F32, DUET_BF16, DUET_I8, DUET_I4}) {
    const Model model(shape_of(2, 3, 16, 200, 67), dtype);
    for (const StageCase& c : stage_cases())
      for (const bool recurrent : {false, true}) {
        const Batch b = recurrent ? recurrent_batch(9) : parallel_batches(70)[1];
        const duet_mode mode = recurrent ? DUET_MODE_RECURRENT : DUET_MODE_PARALLEL;
        Outcome first;
        std::vector<float> first_state;
        for (const uint32_t n : {1u, 2u, 3u}) {
          Device d(plugin(), n);
          const Model::Layers layers(d, model);
          State state(d, model.shape, kSlots);
          const Outcome now = run_stage(d, model, layers, c, b, mode, state);
          INFO(c.name() << ", " << name_of(dtype) << ", " << n << " threads, mode " << mode);
          if (n == 1) {
            first = now;
            first_state = state.all();
          }
          CHECK(now == first);
          CHECK(state.all() == first_state);
        }
      }
  }
}

// A handler runs on the stack of whoever is interrupted, which kernels of oneDNN move elsewhere.
TEST_CASE("a signal during a product does not change a bit") {
  const Model model(shape_of(2, 3, 64, 256, 67), DUET_F32);
  Device d(plugin(), 1);
  const Model::Layers layers(d, model);
  const auto run = [&] {
    State state(d, model.shape, kSlots);
    return run_stage(d, model, layers, channel_mix(), {{250}, {1}, {0}}, DUET_MODE_PARALLEL, state);
  };
  const Outcome quiet = run();
  static volatile sig_atomic_t arrived;
  arrived = 0;
  struct sigaction action {}, before {};
  action.sa_handler = [](int) { arrived = arrived + 1; };
  action.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &action, &before);
  const itimerval often{{0, 50}, {0, 50}}, never{};
  setitimer(ITIMER_REAL, &often, nullptr);
  bool same = true;
  for (int i = 0; i < 300 || (arrived < 100 && i < 100000); ++i) same = same && run() == quiet;
  setitimer(ITIMER_REAL, &never, nullptr);
  sigaction(SIGALRM, &before, nullptr);
  CHECK(same);
  CHECK(arrived >= 100);
}

TEST_CASE("what else is in the batch does not change a bit") {
  for (const duet_dtype dtype : kWeights) {
    const Model model(shape_of(2, 2, 64, 200, 67), dtype);
    Device d(plugin());
    const Model::Layers layers(d, model);
    const size_t C = model.shape.n_embd;
    for (const StageCase& c : stage_cases()) {
      if (c.stage == "head") continue;  // its rows are checked through logits in forward.cc
      State together(d, model.shape, kSlots);
      const Batch all{{1, 1, 1, 1, 1, 1, 1, 1, 1}, {8, 7, 6, 5, 4, 3, 2, 1, 0}, {0}};
      const Outcome batch = run_stage(d, model, layers, c, all, DUET_MODE_RECURRENT, together);
      for (const int32_t t : {0, 3, 8}) {
        State alone(d, model.shape, kSlots);
        const Outcome one = run_stage(d, model, layers, c, {{1}, {8 - t}, {0}}, DUET_MODE_RECURRENT, alone, {t});
        for (const auto& [name, output] : one.outputs) {
          const size_t row = C * bytes_of(output.dtype);
          INFO(c.name() << ": " << name << ", " << name_of(dtype) << ", sequence " << t);
          CHECK(std::memcmp(output.bytes.data(), batch.outputs.at(name).bytes.data() + static_cast<size_t>(t) * row, row) == 0);
        }
        CHECK(alone.slot(static_cast<uint32_t>(8 - t)) == together.slot(static_cast<uint32_t>(8 - t)));
      }
    }
  }
}

TEST_CASE("how many are in the batch does not change a bit") {
  constexpr int32_t kMost = 40;
  for (const duet_dtype dtype : {DUET_BF16, DUET_F32, DUET_I8, DUET_I4})
    for (const uint32_t F : {131u, 4400u}) {  // of a part of the value matrix one block of rows, and two; short and long slices of quantised keys
      const Model model(shape_of(2, 3, 20, F, 67), dtype);
      Device d(plugin(), 2);
      const Model::Layers layers(d, model);
      const size_t C = model.shape.n_embd;
      for (const StageCase& c : stage_cases()) {
        if (c.stage != "linear" && c.stage != "lowrank" && c.stage != "channel_mix") continue;
        std::vector<Outcome> alone;
        State one(d, model.shape, kMost);
        for (int32_t t = 0; t < kMost; ++t) alone.push_back(run_stage(d, model, layers, c, {{1}, {t}, {0}}, DUET_MODE_RECURRENT, one, {t}));
        for (const int32_t n : {2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 23, 31, 32, 33, 40}) {
          State state(d, model.shape, kMost);
          Batch all{{}, {}, {0}};
          for (int32_t t = 0; t < n; ++t) all.lengths.push_back(1), all.slots.push_back(t);
          const Outcome batch = run_stage(d, model, layers, c, all, DUET_MODE_RECURRENT, state);
          for (int32_t t = 0; t < n; ++t)
            for (const auto& [name, output] : alone[static_cast<size_t>(t)].outputs) {
              const size_t row = C * bytes_of(output.dtype);
              INFO(c.name() << ": " << name << ", " << name_of(dtype) << ", F " << F << ", sequence " << t << " of " << n);
              CHECK(std::memcmp(output.bytes.data(), batch.outputs.at(name).bytes.data() + static_cast<size_t>(t) * row, row) == 0);
            }
        }
      }
    }
}

TEST_CASE("where a text is split does not change a bit, in either mode") {
  const int32_t T = 67;
  for (const duet_dtype dtype : kWeights) {
    const Model model(shape_of(2, 2, 64, 200, 67), dtype);
    Device d(plugin(), 3);
    const Model::Layers layers(d, model);
    const size_t C = model.shape.n_embd;
    for (const StageCase& c : stage_cases()) {
      if (c.stage == "head") continue;
      State whole_state(d, model.shape, kSlots);
      const Outcome whole = run_stage(d, model, layers, c, {{T}, {3}, {0}}, DUET_MODE_PARALLEL, whole_state);
      for (const int32_t piece : {1, 7, 32, 40}) {
        State state(d, model.shape, kSlots);
        for (int32_t t = 0; t < T; t += piece) {
          const int32_t n = std::min(piece, T - t);
          const Outcome part = run_stage(d, model, layers, c, {{n}, {3}, {0}}, DUET_MODE_PARALLEL, state, {t});
          for (const auto& [name, output] : part.outputs) {
            const size_t row = C * bytes_of(output.dtype);
            INFO(c.name() << ": " << name << ", " << name_of(dtype) << ", pieces of " << piece << ", token " << t);
            CHECK(std::memcmp(output.bytes.data(), whole.outputs.at(name).bytes.data() + static_cast<size_t>(t) * row, static_cast<size_t>(n) * row) == 0);
          }
        }
        INFO(c.name() << ": the state, " << name_of(dtype) << ", pieces of " << piece);
        CHECK(state.all() == whole_state.all());
      }
    }
  }
}

TEST_CASE("recurrent channel mix reads no row of a float value matrix whose input relu^2 left at zero") {
  const StageCase mix = channel_mix();
  for (const duet_dtype dtype : {DUET_F32, DUET_BF16, DUET_F16})
    for (const uint32_t F : {7u, 131u, 600u})  // less than a row for each stretch, odd, several steps
      for (const uint32_t every : {0u, 1u, 2u, 7u, 16u}) {  // which inputs are not zero: none, all ...
        std::vector<bool> wanted(F);
        for (uint32_t k = 0; k < F; ++k) wanted[k] = every != 0 && (k * 5) % every == 0;
        wanted[F - 1] = every != 0;
        Model zeros(shape_of(2, 3, 20, F, 67), dtype), poisoned(zeros.shape, dtype);
        make_known(zeros, mix.layer, wanted, false);
        make_known(poisoned, mix.layer, wanted, true);
        Device reference(reference_plugin()), d(plugin());
        const Model::Layers expected(reference, zeros), clean(d, zeros), layers(d, poisoned);
        for (const int32_t n : {1, 2, 3, 9}) {
          State a(reference, zeros.shape, kSlots), b(d, zeros.shape, kSlots), c(d, zeros.shape, kSlots);
          const Outcome want = run_stage(reference, zeros, expected, mix, recurrent_batch(n), DUET_MODE_RECURRENT, a);
          const Outcome got = run_stage(d, zeros, clean, mix, recurrent_batch(n), DUET_MODE_RECURRENT, b);
          INFO(name_of(dtype) << ", F " << F << ", every " << every << ", batch " << n);
          CHECK(compare(got, want, [](const std::string&, duet_dtype) { return 2e-5; }).fault == "");
          CHECK(run_stage(d, poisoned, layers, mix, recurrent_batch(n), DUET_MODE_RECURRENT, c) == got);
        }
      }
}

TEST_CASE("the CPU plugin copies a float value matrix when recurrent mode wants it, and gives it back as it was") {
  for (const duet_dtype dtype : kWeights) {
    const Model model(shape_of(2, 3, 20, 131, 67), dtype);
    Device d(plugin(), 3);
    Model::Layers layers(d, model, false);
    const bool is_float = dtype == DUET_F32 || dtype == DUET_BF16 || dtype == DUET_F16;
    const uint64_t copied = is_float ? uint64_t{1} << DUETP_T_FFN_VALUE : 0;
    for (int again = 0; again < 3; ++again) {
      if (again > 0) CHECK(layers.prepare(1, DUET_MODE_RECURRENT) == copied);
      for (const uint32_t id : {DUETP_T_FFN_KEY, DUETP_T_FFN_VALUE, DUETP_T_LN2_W}) {
        INFO(name_of(dtype) << ", tensor " << id << ", " << again);
        const duetp_tensor& t = model.tensor(1, id);
        std::vector<unsigned char> bytes(t.bytes);
        d.check(d->layer_export(d.self(), layers[1], id, bytes.data(), bytes.size()));
        CHECK(std::memcmp(bytes.data(), t.data, bytes.size()) == 0);
      }
    }
  }
}

TEST_CASE("parallel channel mix gives the same bits before and after the value matrix is copied, recurrent the same numbers") {
  const StageCase mix = channel_mix();
  for (const auto& [dtype, F] : {std::pair(DUET_F32, 131u), std::pair(DUET_F16, 131u), std::pair(DUET_BF16, 131u), std::pair(DUET_BF16, 700u), std::pair(DUET_BF16, 2300u),
                                 std::pair(DUET_I8, 131u), std::pair(DUET_I4, 131u)}) {
    const Model model(shape_of(2, 3, 20, F, 67), dtype);
    Device reference(reference_plugin()), d(plugin(), 3);
    const Model::Layers expected(reference, model);
    Model::Layers layers(d, model, false);
    layers.prepare(mix.layer, DUET_MODE_PARALLEL);
    Outcome before;
    for (const bool copied : {false, true}) {
      if (copied) layers.prepare(mix.layer, DUET_MODE_RECURRENT);
      for (const duet_mode mode : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT}) {
        const Batch batch = mode == DUET_MODE_PARALLEL ? parallel_batches(70)[1] : recurrent_batch(3);
        INFO(name_of(dtype) << ", F " << F << ", mode " << mode << ", copied " << copied);
        State a(reference, model.shape, kSlots), b(d, model.shape, kSlots);
        const Outcome want = run_stage(reference, model, expected, mix, batch, mode, a), got = run_stage(d, model, layers, mix, batch, mode, b);
        CHECK(compare(got, want, [&, dtype = dtype](const std::string& name, duet_dtype output) { return tolerance(mix, dtype, mode, name, output); }).fault == "");
        if (mode == DUET_MODE_PARALLEL && copied) CHECK(got == before);
        if (mode == DUET_MODE_PARALLEL) before = got;
      }
    }
  }
}
