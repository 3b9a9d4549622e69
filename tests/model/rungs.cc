// Devices that offer only runs of layers, or only whole steps, run whole models and give the bits of the stages.
#include "support/api.h"
#include "support/golden.h"

using namespace api;

TEST_CASE("rungs 2 and 3 give the bits of rung 1") {
  auto o = DUET_INIT(duet_library_options);
  o.plugin_path = DUET_RUNGS;
  duet_library* p = nullptr;
  check(duet_library_create(&o, &p));
  const Library lib(p);
  const auto tokens = golden::load("tiny_golden.safetensors").at("t300.tokens").i32;
  Batch b;
  b.add({tokens.begin(), tokens.begin() + 80}, 1);  // more rows than one step gives
  b.add({tokens.begin() + 80, tokens.begin() + 90}, 0);
  for (const duet_dtype dtype : {DUET_F32, DUET_BF16})
    for (const duet_mode mode : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT}) {
      std::vector<std::vector<float>> got;
      std::vector<Arrays> states;
      for (const char* device : {"reference", "rung2", "rung3"}) {
        const auto m = load(lib, golden::path("tiny.pth"), device, dtype);
        const auto s = state(m, 2);
        const auto x = session(m, mode, 64);  // rung 3 runs 64 tokens at a time: the same passes for all
        got.push_back(forward(x, s, b, DUET_OUT_ALL_LOGITS | DUET_OUT_V_FIRST | DUET_OUT_HIDDEN));
        states.push_back(arrays(m, s, 1));
      }
      CHECK(got[1] == got[0]);
      CHECK(got[2] == got[0]);
      CHECK(states[1] == states[0]);
      CHECK(states[2] == states[0]);
    }
}
