// What a callback may do, and what happens when it does more.
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
