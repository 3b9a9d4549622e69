// Handles that are NULL, freed, another kind's, forged or another library's: a code and a sentence each, and never a crash.
#include <algorithm>
#include <random>

#include "capi/world.h"

using namespace api;

namespace {

// Every function that takes a handle first, with every other argument good.
template <class F>
void each_call(World& w, duet_library* l, duet_model* m, duet_state* s, duet_session* x, duet_tokenizer* t, duet_sampler* p, F&& f) {
  static uint32_t u = 0;
  static size_t n = 0;
  static int32_t token = 0;
  static const float* row = nullptr;
  static float logits[4] = {};
  static int32_t tokens[4] = {1, 2, 3, 4};
  static double nll[4];
  const std::string path = golden::path("tiny.pth");
  auto info = DUET_INIT(duet_device_info);
  auto model_info = DUET_INIT(duet_model_info);
  auto batch = DUET_INIT(duet_batch);
  auto random = DUET_INIT(duet_random_options);
  random.shape = "0.1b";
  auto init = DUET_INIT(duet_init_options);
  init.n_layer = init.n_embd = init.n_vocab = 64;
  duet_model* om = nullptr;
  duet_state* os = nullptr;
  duet_session* ox = nullptr;
  duet_tokenizer* ot = nullptr;
  const std::string out = std::string(DUET_BUILD) + "/misuse.safetensors";
  if (l != w.lib.get()) {
    f(duet_library_report(l, nullptr, 0, &n));
    f(duet_device_count(l, &u));
    f(duet_device_get(l, 0, &info));
    f(duet_file_info(l, path.c_str(), 0, nullptr, 0, &n));
    f(duet_file_convert(l, path.c_str(), out.c_str(), nullptr));
    f(duet_file_init(l, out.c_str(), &init));
    f(duet_model_load(l, path.c_str(), nullptr, &om));
    f(duet_model_random(l, &random, nullptr, &om));
    f(duet_tokenizer_load(l, nullptr, &ot));
  }
  if (m != w.m.get()) {
    f(duet_model_save(m, out.c_str()));
    f(duet_model_get(m, &model_info));
    f(duet_state_create(m, 1, nullptr, &os));
    f(duet_session_create(m, nullptr, &ox));
    f(duet_tokenizer_for_model(m, &ot));
  }
  if (s != w.s.get()) {
    f(duet_state_reset(s, 0));
    f(duet_state_copy(s, 0, w.s.get(), 0));
    f(duet_state_copy(w.s.get(), 0, s, 0));
    f(duet_state_get(s, 0, nullptr, nullptr, nullptr));
    f(duet_state_set(s, 0, nullptr, nullptr, nullptr));
    f(duet_state_save(s, 0, nullptr, 0, &n));
    f(duet_state_load(s, 0, tokens, sizeof tokens));
    f(duet_state_save_file(s, 0, out.c_str()));
    f(duet_state_load_file(s, 0, out.c_str()));
    f(duet_forward(w.x.get(), s, &batch));
    f(duet_score(w.x.get(), s, 0, tokens, 4, nll));
    f(duet_generate(w.x.get(), s, 0, w.p.get(), tokens, 4, nullptr, nullptr));
  }
  if (x != w.x.get()) {
    f(duet_forward(x, w.s.get(), &batch));
    f(duet_session_output(x, 0, 0, &row));
    f(duet_session_outputs(x, 0, &row, &u, &u));
    f(duet_score(x, w.s.get(), 0, tokens, 4, nll));
    f(duet_generate(x, w.s.get(), 0, w.p.get(), tokens, 4, nullptr, nullptr));
  }
  if (t != w.t.get()) {
    f(duet_tokenizer_size(t, &u));
    f(duet_tokenizer_encode(t, "a", 1, nullptr, 0, &n));
    f(duet_tokenizer_decode(t, tokens, 1, nullptr, 0, &n));
  }
  if (p != w.p.get()) {
    f(duet_sampler_probs(p, logits, 4, logits));
    f(duet_sampler_pick(p, logits, 4, &token));
    f(duet_sampler_accept(p, 1));
    f(duet_sampler_reset(p));
    f(duet_generate(w.x.get(), w.s.get(), 0, p, tokens, 4, nullptr, nullptr));
  }
}

template <class T>
T* forged(uint64_t bits) {
  return reinterpret_cast<T*>(bits);
}

}  // namespace

TEST_CASE("every handle: NULL, freed, another kind's, forged") {
  World w;
  const auto bad = [](duet_status s) { refused(s, DUET_E_HANDLE, "handle"); };
  each_call(w, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, bad);
  for (const uint64_t bits : {uint64_t{1}, uint64_t{0xdeadbeef}, ~uint64_t{0}, uint64_t{1} << 63, reinterpret_cast<uint64_t>(w.m.get()) ^ (uint64_t{1} << 32)})
    each_call(w, forged<duet_library>(bits), forged<duet_model>(bits), forged<duet_state>(bits), forged<duet_session>(bits), forged<duet_tokenizer>(bits),
              forged<duet_sampler>(bits), bad);
  void *m = w.m.get(), *l = w.lib.get();  // live, but of another kind
  each_call(w, static_cast<duet_library*>(m), static_cast<duet_model*>(l), static_cast<duet_state*>(l), static_cast<duet_session*>(l),
            static_cast<duet_tokenizer*>(l), static_cast<duet_sampler*>(l), bad);
  World freed;
  duet_library* fl = freed.lib.get();
  duet_model* fm = freed.m.get();
  duet_state* fs = freed.s.get();
  duet_session* fx = freed.x.get();
  duet_tokenizer* ft = freed.t.get();
  duet_sampler* fp = freed.p.get();
  freed.lib.reset(), freed.m.reset(), freed.s.reset(), freed.x.reset(), freed.t.reset(), freed.p.reset();
  each_call(w, fl, fm, fs, fx, ft, fp, bad);
  duet_model_free(fm);  // twice: nothing happens
  duet_library_free(nullptr);
  duet_state_free(fs);
}

TEST_CASE("objects of two libraries do not mix, but states can be copied") {
  World a, b;
  auto batch = DUET_INIT(duet_batch);
  const int32_t token = 1;
  batch.n_seqs = 1;
  batch.tokens = &token;
  refused(duet_forward(a.x.get(), b.s.get(), &batch), DUET_E_INVALID, "another model");
  (void)forward(b.x, b.s, {1, 2});
  check(duet_state_copy(a.s.get(), 0, b.s.get(), 0));
  CHECK(arrays(a.m, a.s) == arrays(b.m, b.s));
}

TEST_CASE("random calls in any order: live handles work, all others are told so") {
  const auto lib = library(1);
  struct Thing {
    void* handle;
    bool live;
  };
  enum { MODEL, STATE, SESSION, SAMPLER };
  std::vector<Thing> things[4];
  std::mt19937 random(11);
  const auto pick = [&](int kind) -> Thing {
    const auto& of = things[kind];
    return of.empty() ? Thing{nullptr, false} : of[random() % of.size()];
  };
  const auto n_live = [&](int kind) { return std::count_if(things[kind].begin(), things[kind].end(), [](const Thing& t) { return t.live; }); };
  const auto expect = [](duet_status got, bool live, duet_status otherwise = DUET_OK) {
    INFO(duet_status_name(got) << ": " << duet_last_error());
    CHECK(got == (live ? otherwise : duet_status{DUET_E_HANDLE}));
  };
  const auto made = [&](duet_status got, bool live, int kind, void* handle) {
    expect(got, live);
    if (got == DUET_OK) things[kind].push_back({handle, true});
  };
  const auto free_one = [&](int kind, Thing& t) {
    if (kind == MODEL) duet_model_free(static_cast<duet_model*>(t.handle));
    if (kind == STATE) duet_state_free(static_cast<duet_state*>(t.handle));
    if (kind == SESSION) duet_session_free(static_cast<duet_session*>(t.handle));
    if (kind == SAMPLER) duet_sampler_free(static_cast<duet_sampler*>(t.handle));
    t.live = false;
  };
  for (int step = 0; step < 5000; ++step) {
    const Thing m = pick(MODEL), s = pick(STATE), other = pick(STATE), x = pick(SESSION), p = pick(SAMPLER);
    auto* const model = static_cast<duet_model*>(m.handle);
    auto *const st = static_cast<duet_state*>(s.handle), *const to = static_cast<duet_state*>(other.handle);
    auto* const ses = static_cast<duet_session*>(x.handle);
    auto* const sam = static_cast<duet_sampler*>(p.handle);
    const auto slot = static_cast<uint32_t>(random() % 3);  // two are there
    const duet_status slot_status = slot < 2 ? DUET_OK : DUET_E_INVALID;
    switch (random() % 11) {
      case 0: {
        if (n_live(MODEL) > 2) break;
        auto o = DUET_INIT(duet_model_options);
        o.device = "reference";
        duet_model* out = nullptr;
        const duet_status got = duet_model_load(lib.get(), golden::path("tiny.pth").c_str(), &o, &out);
        made(got, true, MODEL, out);
        break;
      }
      case 1: {
        if (n_live(STATE) > 8) break;
        duet_state* out = nullptr;
        const duet_status got = duet_state_create(model, 2, nullptr, &out);
        made(got, m.live, STATE, out);
        break;
      }
      case 2: {
        if (n_live(SESSION) > 8) break;
        duet_session* out = nullptr;
        const duet_status got = duet_session_create(model, nullptr, &out);
        made(got, m.live, SESSION, out);
        break;
      }
      case 3: {
        if (n_live(SAMPLER) > 8) break;
        duet_sampler* out = nullptr;
        const duet_status got = duet_sampler_create(nullptr, &out);
        made(got, true, SAMPLER, out);
        break;
      }
      case 4: {
        const int kind = static_cast<int>(random() % 4);
        if (!things[kind].empty()) free_one(kind, things[kind][random() % things[kind].size()]);  // again, for some
        break;
      }
      case 5: {
        const int32_t token = random() % 4 ? static_cast<int32_t>(random() % 256) : 999;
        auto b = DUET_INIT(duet_batch);
        b.n_seqs = 1;
        b.tokens = &token;
        expect(duet_forward(ses, st, &b), x.live && s.live, token < 256 ? DUET_OK : DUET_E_INVALID);
        break;
      }
      case 6: expect(duet_state_reset(st, slot), s.live, slot_status); break;
      case 7: expect(duet_state_copy(to, 0, st, slot), other.live && s.live, slot_status); break;
      case 8: {
        const int32_t prompt[2] = {0, static_cast<int32_t>(random() % 256)};
        auto o = DUET_INIT(duet_generate_options);
        o.max_tokens = 2;
        expect(duet_generate(ses, st, slot, sam, prompt, 2, &o, nullptr), x.live && s.live && p.live, slot_status);
        break;
      }
      case 9: {
        auto i = DUET_INIT(duet_model_info);
        expect(duet_model_get(model, &i), m.live);
        break;
      }
      default: expect(duet_sampler_reset(sam), p.live); break;
    }
  }
  for (int kind = 0; kind < 4; ++kind)
    for (Thing& t : things[kind]) free_one(kind, t);
}
