// Objects used from several threads: immutable ones freely, the others one at a time with DUET_E_BUSY for a second caller.
#include <atomic>
#include <thread>

#include "support/api.h"
#include "support/golden.h"

using namespace api;

TEST_CASE("two sessions on one model from two threads give the bits of one") {
  const auto lib = library(2);
  const auto m = load(lib, golden::path("tiny.pth"), nullptr);
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 60; ++i) tokens.push_back(i * 4);
  const auto want = forward(session(m, DUET_MODE_PARALLEL), state(m), tokens);
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int k = 0; k < 3; ++k)
    threads.emplace_back([&] {
      duet_session* x = nullptr;
      duet_state* s = nullptr;
      auto o = DUET_INIT(duet_session_options);
      o.mode = DUET_MODE_PARALLEL;
      if (duet_session_create(m.get(), &o, &x) != DUET_OK || duet_state_create(m.get(), 1, nullptr, &s) != DUET_OK) return;
      for (int round = 0; round < 5; ++round)
        if (duet_state_reset(s, 0) == DUET_OK && try_forward(x, s, tokens) == want) ++good;
      duet_session_free(x);
      duet_state_free(s);
    });
  for (auto& t : threads) t.join();
  CHECK(good == 15);
}

TEST_CASE("a model's first passes in recurrent mode begin while others read in parallel") {
  const auto lib = library(2);
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 40; ++i) tokens.push_back(i * 5);
  const auto modes = {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT, DUET_MODE_PARALLEL, DUET_MODE_RECURRENT};
  std::vector<std::vector<float>> want;
  const auto m = load(lib, golden::path("tiny.pth"), nullptr);
  for (const duet_mode mode : modes) want.push_back(forward(session(m, mode), state(m), tokens));
  for (int round = 0; round < 4; ++round) {
    const auto fresh = load(lib, golden::path("tiny.pth"), nullptr);  // mapped, and new to both modes
    std::atomic<int> good{0};
    std::vector<std::thread> threads;
    size_t k = 0;
    for (const duet_mode mode : modes)
      threads.emplace_back([&, mode, k = k++] {
        if (try_forward(fresh, mode, tokens) == want[k]) ++good;
      });
    for (auto& t : threads) t.join();
    CHECK(good == 4);
  }
}

TEST_CASE("one file loaded by several threads at once") {
  const auto lib = library(1);
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int k = 0; k < 3; ++k)
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        duet_model* m = nullptr;
        duet_state* s = nullptr;
        if (duet_model_load(lib.get(), golden::path("tiny.pth").c_str(), nullptr, &m) == DUET_OK && duet_state_create(m, 1, nullptr, &s) == DUET_OK) ++good;
        duet_model_free(m);
        duet_state_free(s);
      }
    });
  for (auto& t : threads) t.join();
  CHECK(good == 15);
}

TEST_CASE("one session from two threads: busy for one, never a race") {
  const auto lib = library(1);
  const auto m = load(lib, golden::path("tiny.pth"), nullptr);
  const auto x = session(m, DUET_MODE_RECURRENT);
  const auto s = state(m);
  std::atomic<int> ok{0}, busy{0}, other{0};
  const auto work = [&] {
    const int32_t token = 5;
    auto b = DUET_INIT(duet_batch);
    b.n_seqs = 1;
    b.tokens = &token;
    for (int i = 0; i < 200; ++i) {
      const duet_status r = duet_forward(x.get(), s.get(), &b);
      ++(r == DUET_OK ? ok : r == DUET_E_BUSY ? busy : other);
    }
  };
  std::thread a(work), b(work);
  a.join();
  b.join();
  CHECK(other == 0);
  CHECK(ok + busy == 400);
  CHECK(ok > 0);
}

TEST_CASE("cancel from another thread ends a generation") {
  const auto lib = library(1);
  const auto m = load(lib, golden::path("tiny.pth"), nullptr);
  const auto x = session(m, DUET_MODE_AUTO);
  const auto s = state(m);
  duet_sampler* p = nullptr;
  check(duet_sampler_create(nullptr, &p));
  const Sampler sampler(p);
  volatile int32_t cancel = 0;
  auto o = DUET_INIT(duet_generate_options);
  o.max_tokens = 100000000;
  static const int32_t never = -1;
  o.stops = &never;
  o.n_stops = 1;
  o.cancel = &cancel;
  duet_status result = DUET_OK;
  std::thread t([&] {
    const int32_t prompt = 0;
    result = duet_generate(x.get(), s.get(), 0, p, &prompt, 1, &o, nullptr);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  __atomic_store_n(&cancel, 1, __ATOMIC_RELAXED);
  t.join();
  CHECK(result == DUET_E_CANCELLED);
}
