// Many objects, objects that outlive their library, and a process that forks.
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "capi/world.h"

using namespace api;

namespace {

// Whether a child in which `body` gives true ends well, and soon.
template <class Body>
bool child_ends_well(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);  // a hang is a failure
    ::_exit(body() ? 0 : 1);
  }
  int status = 1;
  return child > 0 && ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

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
  CHECK(child_ends_well([&] {
    auto b = DUET_INIT(duet_batch);
    duet_model* m = nullptr;
    const bool told = duet_forward(w.x.get(), w.s.get(), &b) == DUET_E_DEVICE &&
                      duet_model_load(w.lib.get(), golden::path("tiny.pth").c_str(), nullptr, &m) == DUET_E_DEVICE && m == nullptr;
    w.p.reset(), w.t.reset(), w.x.reset(), w.s.reset(), w.m.reset(), w.lib.reset();  // frees still work
    return told;
  }));
}

TEST_CASE("a child that is forked in the middle of a generation gets errors, and can begin anew; the parent goes on") {
  World w;
  struct User {
    World* w;
    int n = 0;
    bool well = false;
  } user{&w};
  auto o = DUET_INIT(duet_generate_options);
  o.max_tokens = 4;
  o.user = &user;
  static const int32_t never = -5;
  o.stops = &never;
  o.n_stops = 1;
  o.on_token = [](void* p, int32_t) -> duet_status {
    auto& u = *static_cast<User*>(p);
    if (u.n++ != 1) return DUET_OK;
    u.well = child_ends_well([&] {
      auto b = DUET_INIT(duet_batch);
      if (duet_forward(u.w->x.get(), u.w->s.get(), &b) != DUET_E_DEVICE || duet_state_reset(u.w->s.get(), 0) != DUET_E_DEVICE) return false;
      if (duet_sampler_reset(u.w->p.get()) != DUET_E_BUSY) return false;
      const Library again = library(1);
      const Model m = load(again, golden::path("tiny.pth"), "reference");
      return forward(session(m, DUET_MODE_AUTO), state(m), {1, 2}).size() == 2 * info(m).n_vocab;
    });
    return DUET_OK;
  };
  const int32_t prompt[2] = {0, 1};
  auto r = DUET_INIT(duet_generate_result);
  check(duet_generate(w.x.get(), w.s.get(), 0, w.p.get(), prompt, 2, &o, &r));
  CHECK(user.well);
  CHECK(r.n_new == 4);
}

TEST_CASE("children that are forked while other threads decode, make and free objects never hang") {
  World w;
  std::atomic<bool> stop{false};
  std::thread maker([&] {
    while (!stop) {
      duet_sampler* p = nullptr;
      if (duet_sampler_create(nullptr, &p) == DUET_OK) duet_sampler_free(p);
    }
  });
  std::thread decoder([&] {
    const int32_t token = 1;
    auto b = DUET_INIT(duet_batch);
    b.n_seqs = 1;
    b.tokens = &token;
    while (!stop) (void)duet_forward(w.x.get(), w.s.get(), &b);
  });
  int well = 0;
  for (int i = 0; i < 40; ++i)
    well += child_ends_well([&] {
      auto b = DUET_INIT(duet_batch);
      if (duet_forward(w.x.get(), w.s.get(), &b) != DUET_E_DEVICE) return false;
      duet_sampler* p = nullptr;
      if (duet_sampler_create(nullptr, &p) != DUET_OK) return false;
      duet_sampler_free(p);
      return duet_sampler_reset(p) == DUET_E_HANDLE;
    });
  stop = true;
  maker.join();
  decoder.join();
  CHECK(well == 40);
}
