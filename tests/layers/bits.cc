// Layers change no result, on any device.
#include "layers/scene.h"

using namespace layers;

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr bool kSlow = true;
#else
constexpr bool kSlow = false;
#endif
const char* const kStacks[] = {"validate", "trace", "canary", "validate,trace,canary", "canary,trace,validate"};

}  // namespace

TEST_CASE("results with layers are those without, to the last bit") {
  Lines log;
  for (const char* device : backends())
    for (const duet_dtype dtype : {DUET_F32, DUET_BF16, DUET_I4})
      for (const duet_mode mode : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT}) {
        const Result want = run(layers::library("", log), device, dtype, mode);
        for (const char* stack : kStacks) {
          if ((kSlow || dtype == DUET_I4) && stack != kStacks[3]) continue;  // all three at once will do
          CAPTURE(device, dtype, mode, stack);
          CHECK(run(layers::library(stack, log), device, dtype, mode) == want);
        }
      }
}

TEST_CASE("a device of its own memory, with rung 2 and recordings, is run stage by stage") {
  Lines log;
  for (const duet_mode mode : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT}) {
    const Result want = run(layers::library("", log), "reference", DUET_F32, mode);
    for (const char* stack : kStacks) {
      CAPTURE(mode, stack);
      CHECK(run(layers::library(stack, log, fixture("far")), "far", DUET_F32, mode) == want);
    }
  }
  const auto lib = layers::library("", log, fixture("far"));  // the fixture does what it is there for
  const auto m = load(lib, golden::path("tiny.pth"), "far");
  const auto s = state(m);
  for (const duet_mode mode : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT}) {
    const auto x = session(m, mode);
    const int32_t token = 5;
    auto b = DUET_INIT(duet_batch);
    b.n_seqs = 1;
    b.tokens = &token;
    CHECK(duet_forward(x.get(), s.get(), &b) == DUET_E_UNSUPPORTED);
    CHECK(says(duet_last_error(), mode == DUET_MODE_PARALLEL ? "rung 2 was used" : "a recording was begun"));
  }
}
