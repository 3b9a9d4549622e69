// All stages of the CPU plugin in a row: what it may put off, reorder and record must not show.
#include "conform/forward.h"

#include <cmath>
#include <cstring>

#include "conform/compare.h"
#include "plugin/load.h"
#include "support/catch.h"

using namespace conform;

namespace {

const duetp_plugin& plugin() {
  static const duetp_plugin p = duet::load_plugin_table(DUET_CPU_PLUGIN);
  return p;
}

constexpr uint32_t kSlots = 6;

Batch ragged() { return {{13, 0, 40, 1}, {4, 2, -1, 0}, {53, 0, 12}}; }
Batch one_each() { return {{1, 1, 0, 1, 1}, {4, 2, 5, -1, 0}, {3, 0, 1, 2}}; }

struct Result {
  std::vector<unsigned char> logits;
  std::vector<float> state;
  bool operator==(const Result& o) const { return logits == o.logits && state == o.state; }
};

// Two steps in a row, so that the second meets what the first left in state and scratch
Result two_steps(Device& d, const Model& m, const Batch& b, duet_mode mode) {
  State state(d, m.shape, kSlots);
  Forward f(d, m, b, mode, state, b.tokens(m.shape.n_vocab));
  f.run();
  return {f.run(), state.all()};
}

}  // namespace

TEST_CASE("a step that runs at once and a recorded one give the same bits, whatever the threads", "[threads]") {
  for (const duet_mode mode : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT}) {
    const Batch b = mode == DUET_MODE_PARALLEL ? ragged() : one_each();
    for (const duet_dtype dtype : {DUET_F32, DUET_BF16, DUET_I8, DUET_I4}) {
      const Model model(shape_of(3, 3, 16, 200, 67), dtype);
      Device one(plugin(), 1);
      const Result want = two_steps(one, model, b, mode);
      for (const uint32_t n : {2u, 3u}) {
        Device d(plugin(), n);
        REQUIRE(d.records());
        CHECK(two_steps(d, model, b, mode) == want);
        State state(d, model.shape, kSlots);
        Forward f(d, model, b, mode, state, b.tokens(model.shape.n_vocab));
        const std::vector<float> before = state.all();
        duetp_record* record = nullptr;
        d.check(d->record_begin(d.self(), d.queue()));
        f.enqueue();
        d.check(d->record_end(d.self(), d.queue(), &record));
        d.wait();
        CHECK(state.all() == before);  // recording runs nothing
        for (int step = 0; step < 2; ++step) d.check(d->record_run(d.self(), d.queue(), record));
        const Result got{f.logits(), state.all()};
        CHECK(got == want);
        d->record_free(d.self(), record);
      }
    }
  }
}

TEST_CASE("each row of logits is the same in every batch") {
  for (const duet_dtype dtype : kWeights) {
    const Model model(shape_of(2, 2, 64, 200, 67), dtype);
    Device d(plugin());
    const Batch all{{9}, {1}, {8, 7, 6, 5, 4, 3, 2, 1, 0}};
    State state(d, model.shape, kSlots);
    const std::vector<unsigned char> logits = Forward(d, model, all, DUET_MODE_PARALLEL, state, all.tokens(67)).run();
    for (int32_t row : {0, 4, 8}) {
      const Batch one{{9}, {1}, {row}};
      State again(d, model.shape, kSlots);
      const std::vector<unsigned char> alone = Forward(d, model, one, DUET_MODE_PARALLEL, again, one.tokens(67)).run();
      CHECK(std::memcmp(alone.data(), logits.data() + static_cast<size_t>(8 - row) * 67 * 4, 67 * 4) == 0);
    }
  }
}

TEST_CASE("both modes continue from each other's state") {
  const Model model(shape_of(2, 2, 64, 200, 67), DUET_F32);
  Device d(plugin());
  const Batch prompt{{20}, {1}, {19}}, token{{1}, {1}, {0}};
  State whole(d, model.shape, kSlots), mixed(d, model.shape, kSlots);
  const std::vector<int32_t> text = prompt.tokens(67);
  const std::vector<unsigned char> want = Forward(d, model, prompt, DUET_MODE_PARALLEL, whole, text).run();
  std::vector<unsigned char> got;
  for (int32_t t : text) got = Forward(d, model, token, DUET_MODE_RECURRENT, mixed, {t}).run();
  CHECK(distance(decode(got, DUET_F32), decode(want, DUET_F32)) < 1e-5);
  CHECK(distance(mixed.all(), whole.all()) < 1e-5);
}

TEST_CASE("memory that runs out is an error of the wait, and the next step works") {
  const Model model(shape_of(1, 2, 64, 200, 67), DUET_F32);
  Device d(plugin());
  const Batch b{{9}, {1}, {8}};
  State state(d, model.shape, kSlots);
  Forward f(d, model, b, DUET_MODE_PARALLEL, state, b.tokens(67));
  d.host().memory_limit = 1024;
  f.enqueue();
  CHECK(d->queue_wait(d.self(), d.queue()) == DUET_E_MEMORY);
  CHECK(d.host().sentence.find("memory") != std::string::npos);
  d.host().memory_limit = SIZE_MAX;
  CHECK(d->queue_wait(d.self(), d.queue()) == DUET_OK);
  const std::vector<float> logits = decode(f.run(), DUET_F32);
  CHECK(std::isfinite(logits[0]));
}

TEST_CASE("what the plugin does not offer is refused with a sentence") {
  Device d(plugin());
  const duetp_shape shape = shape_of(1, 2, 16, 64, 67);
  duetp_state* state = nullptr;
  CHECK(d->state_new(d.self(), &shape, 1, DUET_BF16, &state) == DUET_E_UNSUPPORTED);
  CHECK(d.host().sentence.find("f32") != std::string::npos);
  CHECK(d->refuses(d.self(), &shape, DUET_FP8_E4M3, 1) != nullptr);
  CHECK(d->refuses(d.self(), &shape, DUET_F32, 3) != nullptr);
  CHECK(d->refuses(d.self(), &shape, DUET_F16, 1) == nullptr);
  duetp_record* record = nullptr;
  CHECK(d->record_end(d.self(), d.queue(), &record) == DUET_E_INVALID);
}
