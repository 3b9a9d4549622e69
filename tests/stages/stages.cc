// Each stage of a plugin against the reference, and what must be equal to the last bit.
#include "stage.h"

extern "C" {
#include "../../backends/reference/reference.h"
}
#include "support/catch.h"

using namespace stages;

namespace {

const duetp_plugin* plugin() {
  static const duetp_plugin* p = load_plugin(DUET_CPU_PLUGIN);
  return p;
}

const char* name_of(duet_dtype t) { return t == DUET_F32 ? "f32" : t == DUET_BF16 ? "bf16" : "f16"; }

constexpr uint32_t kSlots = 10;

// T tokens as one sequence, and ragged: with an empty sequence, and one that starts from zero and is dropped
std::vector<Batch> parallel_batches(int32_t T) {
  std::vector<Batch> out{{{T}, {3}, {T - 1}}};
  if (T > 2) out.push_back({{T / 2, 0, 1, T - T / 2 - 1}, {4, 2, -1, 0}, {T - 1, 0, T / 2}});
  return out;
}

// n sequences of one token; the second is empty, the fourth is dropped
Batch recurrent_batch(int32_t n) {
  Batch b;
  for (int32_t i = 0; i < n; ++i) {
    b.lengths.push_back(i == 1 ? 0 : 1);
    b.slots.push_back(i == 3 ? -1 : n - i);
    if (i < b.n_tokens()) b.rows.push_back(i);
  }
  return b;
}

struct Pair {  // the reference and the plugin with the same model
  explicit Pair(const Model& m, uint32_t n_threads = 2) : reference(&duet_reference_plugin, 1), device(plugin(), n_threads), model(m), reference_layers(reference, m), layers(device, m) {}

  void compare(const StageCase& c, const Batch& b, duet_mode mode) {
    State want_state(reference, model.shape, kSlots), got_state(device, model.shape, kSlots);
    const Outcome want = run_stage(reference, model, reference_layers, c, b, mode, want_state);
    const Outcome got = run_stage(device, model, layers, c, b, mode, got_state);
    for (const auto& [name, bytes] : want.bytes) {
      INFO(c.name << ": " << name << ", " << name_of(model.weights) << ", H " << model.shape.n_head << ", N " << model.shape.head_size << ", tokens " << b.n_tokens() << ", sequences "
                  << b.lengths.size() << ", mode " << mode);
      const duet_dtype dtype = want.dtype.at(name);
      CHECK(distance(decode(got.bytes.at(name), dtype), decode(bytes, dtype)) <= tolerance(c, model.weights, dtype));
    }
    INFO(c.name << ": the state, " << name_of(model.weights) << ", N " << model.shape.head_size << ", tokens " << b.n_tokens() << ", mode " << mode);
    CHECK(distance(got_state.all(), want_state.all()) <= tolerance(c, DUET_F32, DUET_F32));
  }

  Device reference, device;
  const Model& model;
  Model::Layers reference_layers, layers;
};

}  // namespace

TEST_CASE("parallel mode agrees with the reference") {
  for (const duet_dtype dtype : {DUET_F32, DUET_BF16, DUET_F16})
    for (const uint32_t H : {1u, 3u})
      for (const uint32_t N : {16u, 64u, 128u}) {
        if (H == 3 && N == 128) continue;  // nothing new, and the reference is slow
        const Model model(shape_of(2, H, N, 2 * H * N + 8, 37), dtype);
        Pair pair(model);
        for (const int32_t T : {1, 2, 15, 16, 17, 64, 65, 130}) {
          if (T > 17 && H == 3 && N == 64 && dtype == DUET_F16) continue;
          for (const Batch& b : parallel_batches(T))
            for (const StageCase& c : stage_cases()) pair.compare(c, b, DUET_MODE_PARALLEL);
        }
      }
}

TEST_CASE("recurrent mode agrees with the reference") {
  for (const duet_dtype dtype : {DUET_F32, DUET_BF16, DUET_F16})
    for (const uint32_t H : {1u, 3u})
      for (const uint32_t N : {16u, 64u, 128u, 20u}) {
        const Model model(shape_of(2, H, N, 3 * H * N, 70), dtype);
        Pair pair(model);
        for (const int32_t B : {1, 2, 3, 4, 9})
          for (const StageCase& c : stage_cases()) pair.compare(c, recurrent_batch(B), DUET_MODE_RECURRENT);
      }
}

TEST_CASE("a whole output tile and an odd depth agree with the reference") {  // 192 = 3 tiles, then ranks of no round size
  for (const duet_dtype dtype : {DUET_F32, DUET_BF16, DUET_F16}) {
    const Model model(shape_of(2, 3, 64, 131, 257), dtype);
    Pair pair(model);
    for (const StageCase& c : stage_cases()) pair.compare(c, parallel_batches(33)[1], DUET_MODE_PARALLEL);
  }
}

TEST_CASE("the number of threads does not change a bit", "[threads]") {
  for (const duet_dtype dtype : {DUET_F32, DUET_BF16}) {
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
          INFO(c.name << ", " << name_of(dtype) << ", " << n << " threads, mode " << mode);
          if (n == 1) {
            first = now;
            first_state = state.all();
          }
          CHECK(now.bytes == first.bytes);
          CHECK(state.all() == first_state);
        }
      }
  }
}

TEST_CASE("what else is in the batch does not change a bit") {
  for (const duet_dtype dtype : {DUET_F32, DUET_BF16, DUET_F16}) {
    const Model model(shape_of(2, 2, 64, 200, 67), dtype);
    Device d(plugin());
    const Model::Layers layers(d, model);
    const size_t C = model.shape.n_embd;
    for (const StageCase& c : stage_cases()) {
      if (c.fn == &duetp_ops::head) continue;  // its rows are checked through logits in forward.cc
      State together(d, model.shape, kSlots);
      const Batch all{{1, 1, 1, 1, 1, 1, 1, 1, 1}, {8, 7, 6, 5, 4, 3, 2, 1, 0}, {0}};
      const Outcome batch = run_stage(d, model, layers, c, all, DUET_MODE_RECURRENT, together);
      for (const int32_t t : {0, 3, 8}) {
        State alone(d, model.shape, kSlots);
        const Outcome one = run_stage(d, model, layers, c, {{1}, {8 - t}, {0}}, DUET_MODE_RECURRENT, alone, t);
        for (const auto& [name, bytes] : one.bytes) {
          const size_t row = C * bytes_of(one.dtype.at(name));
          INFO(c.name << ": " << name << ", " << name_of(dtype) << ", sequence " << t);
          CHECK(std::memcmp(bytes.data(), batch.bytes.at(name).data() + static_cast<size_t>(t) * row, row) == 0);
        }
        CHECK(alone.slot(static_cast<uint32_t>(8 - t)) == together.slot(static_cast<uint32_t>(8 - t)));
      }
    }
  }
}

TEST_CASE("where a text is split does not change a bit, in either mode") {
  const int32_t T = 67;
  for (const duet_dtype dtype : {DUET_F32, DUET_BF16, DUET_F16}) {
    const Model model(shape_of(2, 2, 64, 200, 67), dtype);
    Device d(plugin(), 3);
    const Model::Layers layers(d, model);
    const size_t C = model.shape.n_embd;
    for (const StageCase& c : stage_cases()) {
      if (c.fn == &duetp_ops::head) continue;
      State whole_state(d, model.shape, kSlots);
      const Outcome whole = run_stage(d, model, layers, c, {{T}, {3}, {0}}, DUET_MODE_PARALLEL, whole_state);
      for (const int32_t piece : {1, 7, 32, 40}) {
        State state(d, model.shape, kSlots);
        for (int32_t t = 0; t < T; t += piece) {
          const int32_t n = std::min(piece, T - t);
          const Outcome part = run_stage(d, model, layers, c, {{n}, {3}, {0}}, DUET_MODE_PARALLEL, state, t);
          for (const auto& [name, bytes] : part.bytes) {
            const size_t row = C * bytes_of(part.dtype.at(name));
            INFO(c.name << ": " << name << ", " << name_of(dtype) << ", pieces of " << piece << ", token " << t);
            CHECK(std::memcmp(bytes.data(), whole.bytes.at(name).data() + static_cast<size_t>(t) * row, static_cast<size_t>(n) * row) == 0);
          }
        }
        INFO(c.name << ": the state, " << name_of(dtype) << ", pieces of " << piece);
        CHECK(state.all() == whole_state.all());
      }
    }
  }
}
