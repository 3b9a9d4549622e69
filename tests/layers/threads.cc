// A model with layers, used from several threads.
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
      if (try_forward(m, DUET_MODE_PARALLEL, tokens) == want) ++good;
    });
  for (auto& t : threads) t.join();
  CHECK(good == 2);
}
