// What a callback may do, and what happens when it does more.
#include <sys/wait.h>
#include <unistd.h>

#include <csetjmp>

#include "capi/world.h"

using namespace api;

TEST_CASE("calls from inside a callback, and frees there") {
  World w;
  struct User {
    World* w;
    duet_status forward = DUET_OK, reset = DUET_OK;
    std::vector<duet_status> others = {};
    int calls = 0;
  } user{&w};
  auto o = DUET_INIT(duet_generate_options);
  o.max_tokens = 3;
  o.user = &user;
  static const int32_t never = -5;
  o.stops = &never;
  o.n_stops = 1;
  o.on_token = [](void* p, int32_t) -> duet_status {
    auto& u = *static_cast<User*>(p);
    auto b = DUET_INIT(duet_batch);
    if (u.calls++ == 0) {
      u.forward = duet_forward(u.w->x.get(), u.w->s.get(), &b);
      u.reset = duet_state_reset(u.w->s.get(), 0);
      duet_state* s = u.w->s.get();
      size_t n = 0;
      float x = 0;
      int32_t token = 0;
      const float* row = nullptr;
      u.others = {duet_state_save(s, 0, nullptr, 0, &n),         duet_state_load(s, 0, "{}", 2),
                  duet_state_save_file(s, 0, "unused"),          duet_state_load_file(s, 0, "unused"),
                  duet_state_get(s, 0, nullptr, nullptr, nullptr), duet_state_set(s, 0, nullptr, nullptr, nullptr),
                  duet_state_copy(s, 1, s, 0),                   duet_session_output(u.w->x.get(), 0, 0, &row),
                  duet_sampler_reset(u.w->p.get()),              duet_sampler_pick(u.w->p.get(), &x, 1, &token),
                  duet_generate(u.w->x.get(), s, 1, u.w->p.get(), &token, 1, nullptr, nullptr)};
      u.w->m.reset();  // the running call keeps them alive
      u.w->s.reset();
      u.w->x.reset();
    }
    return DUET_OK;
  };
  const int32_t prompt[2] = {0, 1};
  auto r = DUET_INIT(duet_generate_result);
  check(duet_generate(w.x.get(), w.s.get(), 0, w.p.get(), prompt, 2, &o, &r));
  CHECK(user.forward == DUET_E_BUSY);
  CHECK(user.reset == DUET_E_BUSY);
  CHECK(user.others == std::vector<duet_status>(11, DUET_E_BUSY));  // nor is a state saved or loaded in the middle of a step
  CHECK(r.n_new == 3);
}

TEST_CASE("a callback that throws is stopped at the border") {
  World w;
  auto o = DUET_INIT(duet_generate_options);
  o.on_token = [](void*, int32_t) -> duet_status { throw 42; };
  const int32_t prompt[1] = {0};
  o.stops = prompt + 0;
  o.n_stops = 0;
  refused(duet_generate(w.x.get(), w.s.get(), 0, w.p.get(), prompt, 1, &o, nullptr), DUET_E_INTERNAL, "callback");
  (void)forward(w.x, w.s, {1});  // and the objects work on
}

TEST_CASE("a log callback that throws changes nothing") {
  int calls = 0;
  auto o = DUET_INIT(duet_library_options);
  o.log_level = DUET_LOG_DEBUG;
  o.log = [](void* user, int32_t, const char*) {
    ++*static_cast<int*>(user);
    throw 42;
  };
  o.log_user = &calls;
  o.plugin_path = "/nonexistent/plugin.so";
  duet_library* l = nullptr;
  check(duet_library_create(&o, &l));
  const Library lib(l);
  const auto m = load(lib, golden::path("tiny.pth"), "reference");
  CHECK(calls > 0);
  CHECK(forward(session(m, DUET_MODE_AUTO), state(m), {1, 2}).size() == 2 * info(m).n_vocab);
}

// Nobody can stop a longjmp. What it leaves behind is known all the same. In a child, since what the call held is lost.
TEST_CASE("objects that a longjmp left behind stay busy, and the others work on") {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(20);  // a hang is a failure
    World w;
    static std::jmp_buf out;
    auto o = DUET_INIT(duet_generate_options);
    o.on_token = [](void*, int32_t) -> duet_status { std::longjmp(out, 1); };
    const int32_t prompt = 0;
    if (setjmp(out) == 0) {
      (void)duet_generate(w.x.get(), w.s.get(), 0, w.p.get(), &prompt, 1, &o, nullptr);
      ::_exit(2);
    }
    auto b = DUET_INIT(duet_batch);
    const auto x = session(w.m, DUET_MODE_AUTO);
    const auto s = state(w.m);
    const bool busy = duet_forward(w.x.get(), s.get(), &b) == DUET_E_BUSY && duet_forward(x.get(), w.s.get(), &b) == DUET_E_BUSY &&
                      duet_sampler_reset(w.p.get()) == DUET_E_BUSY;
    const bool others = forward(x, s, {1, 2, 3}).size() == 3 * info(w.m).n_vocab;
    w.p.reset(), w.x.reset(), w.s.reset();  // frees still work
    ::_exit(busy && others ? 0 : 1);
  }
  int status = 1;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
