// What is wrong with a device is named by the layer that looks for it, with stage, layer and place.
#include "layers/scene.h"

using namespace layers;

namespace {

// The sentence of the first forward on a broken plugin; "" if all went well
std::string fault(const char* layer, const char* way) {
  Lines log;
  const auto lib = layers::library(layer, log, broken(way));
  const auto m = load(lib, golden::path("tiny.pth"), "broken", DUET_F32);
  const auto s = state(m, 4);
  const auto x = session(m, DUET_MODE_PARALLEL);
  const Batch b = ragged();
  auto batch = DUET_INIT(duet_batch);
  batch.n_seqs = 4;
  batch.tokens = b.tokens.data();
  batch.lengths = b.lengths.data();
  batch.slots = b.slots.data();
  for (int i = 0; i < 2; ++i)  // a state of another layout shows when it is read
    if (const duet_status status = duet_forward(x.get(), s.get(), &batch); status != DUET_OK) {
      CHECK(status == DUET_E_DEVICE);
      return duet_last_error();
    }
  return "";
}

}  // namespace

TEST_CASE("validate names the stage, the layer, the output, both values and the place") {
  CHECK(fault("validate", "good").empty());
  const std::string zeros = fault("validate", "zeros");
  CHECK(says(zeros, "broken:0: validate: layer 0, wkv: y is 0 where the reference has "));
  CHECK(says(zeros, ", at token "));
  CHECK(says(zeros, ", column "));
  CHECK(says(zeros, "a difference of 1, more than 2e-05"));
  CHECK(says(fault("validate", "off_by_one"), "validate: layer 0, wkv: y is "));
  CHECK(says(fault("validate", "second_layer"), "validate: layer 1, wkv: y is 0 where"));
  CHECK(says(fault("validate", "state_layout"), "validate: layer 0, wkv: the state is "));
  CHECK(says(fault("validate", "other_slot"), "validate: layer 0, wkv: "));
}

TEST_CASE("canary names the stage that wrote past its end, left something unwritten, or changed an input") {
  CHECK(fault("canary", "good").empty());
  CHECK(says(fault("canary", "past_the_end"), "broken:0: canary: layer 0, wkv: wrote past the end of its output y, byte 0 after it"));
  CHECK(says(fault("canary", "unwritten"), "canary: layer 0, wkv: left unwritten a part of its output y, row 8, column "));
  CHECK(says(fault("canary", "input"), "canary: layer 0, wkv: wrote to its input 0, which it may only read"));
}

TEST_CASE("stacked layers each see what is theirs") {
  CHECK(says(fault("validate,canary", "past_the_end"), "canary: layer 0, wkv: wrote past"));
  CHECK(says(fault("canary,validate", "zeros"), "validate: layer 0, wkv: y is 0"));
  CHECK(says(fault("trace,validate", "zeros"), "validate: layer 0, wkv: y is 0"));
}
