// Many objects, objects that outlive their library, and a process that forks.
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include "capi/world.h"

using namespace api;

TEST_CASE("a library that is freed first leaves its objects working") {
  World w;
  w.lib.reset();
  const auto want = forward(w.x, w.s, {1, 2, 3});
  w.m.reset();
  check(duet_state_reset(w.s.get(), 0));
  CHECK(forward(w.x, w.s, {1, 2, 3}) == want);
}

TEST_CASE("many objects live and die") {
  World w;
  std::vector<State> live;
  for (int i = 0; i < 200; ++i) live.push_back(state(w.m));
  live.clear();
  for (int i = 0; i < 20000; ++i) {
    duet_sampler* p = nullptr;
    REQUIRE(duet_sampler_create(nullptr, &p) == DUET_OK);
    duet_sampler_free(p);
  }
}

TEST_CASE("ten thousand live sessions, and a million objects one after another, in flat memory") {
  World w;
  const auto allocated = [] {
    const struct mallinfo2 m = ::mallinfo2();
    return m.uordblks + m.hblkhd;  // 0 under a sanitizer, which finds leaks itself
  };
  const auto crowd = [&] {
    std::vector<Session> live;
    for (int i = 0; i < 10000; ++i) live.push_back(session(w.m, DUET_MODE_AUTO));
    (void)forward(live.front(), w.s, {1, 2});
    (void)forward(live.back(), w.s, {1, 2});
  };
  crowd();  // the table of handles keeps its size
  const size_t before = allocated();
  crowd();
  int failed = 0;
  for (int i = 0; i < 1000000; ++i) {
    duet_sampler* p = nullptr;
    failed += duet_sampler_create(nullptr, &p) != DUET_OK;
    duet_sampler_free(p);
  }
  CHECK(failed == 0);
  CHECK(allocated() < before + (1 << 20));
}

TEST_CASE("a forked child is told to make its own library") {
  World w;
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(20);  // a hang is a failure
    auto b = DUET_INIT(duet_batch);
    duet_model* m = nullptr;
    const bool told = duet_forward(w.x.get(), w.s.get(), &b) == DUET_E_DEVICE &&
                      duet_model_load(w.lib.get(), golden::path("tiny.pth").c_str(), nullptr, &m) == DUET_E_DEVICE && m == nullptr;
    w.p.reset(), w.t.reset(), w.x.reset(), w.s.reset(), w.m.reset(), w.lib.reset();  // frees still work
    ::_exit(told ? 0 : 1);
  }
  int status = 1;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
