// A model with layers, used from several threads.
#include <algorithm>
#include <atomic>
#include <thread>

#include "layers/scene.h"

using namespace layers;

TEST_CASE("two sessions of a model with layers run from two threads") {
  Lines log;
  const auto lib = layers::library("validate,trace,canary", log);
  const auto m = load(lib, golden::path("tiny.pth"), nullptr);
  const std::vector<int32_t> tokens = ragged().tokens;
  const auto want = forward(session(m, DUET_MODE_PARALLEL), state(m), tokens);
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int k = 0; k < 2; ++k)
    threads.emplace_back([&] {
      duet_session* x = nullptr;
      duet_state* s = nullptr;
      auto o = DUET_INIT(duet_session_options);
      o.mode = DUET_MODE_PARALLEL;
      auto b = DUET_INIT(duet_batch);
      const auto length = static_cast<uint32_t>(tokens.size());
      b.n_seqs = 1;
      b.tokens = tokens.data();
      b.lengths = &length;
      b.outputs = DUET_OUT_ALL_LOGITS;
      const float* data = nullptr;
      uint32_t rows = 0, width = 0;
      if (duet_session_create(m.get(), &o, &x) == DUET_OK && duet_state_create(m.get(), 1, nullptr, &s) == DUET_OK && duet_forward(x, s, &b) == DUET_OK &&
          duet_session_outputs(x, DUET_OUTPUT_LOGITS, &data, &rows, &width) == DUET_OK && std::equal(want.begin(), want.end(), data, data + size_t{rows} * width))
        ++good;
      duet_session_free(x);
      duet_state_free(s);
    });
  for (auto& t : threads) t.join();
  CHECK(good == 2);
}
