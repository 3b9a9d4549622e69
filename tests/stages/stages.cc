// Each stage of the CPU plugin by itself: what must be equal to the last bit, whatever the threads, the batch and the split.
// How far it is from the reference, duet-conform checks (tests/conform).
#include "conform/stage.h"

#include <cstring>

#include "conform/batches.h"
#include "plugin/load.h"
#include "support/catch.h"

using namespace conform;

namespace {

const duetp_plugin& plugin() {
  static const duetp_plugin p = duet::load_plugin_table(DUET_CPU_PLUGIN);
  return p;
}

constexpr uint32_t kSlots = 10;

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
