// Generation with the bundled model: streams, stops, cancels, repeats.
#include <string>

#include "support/api.h"

using namespace api;

namespace {

const std::string kStories = std::string(DUET_SOURCE) + "/models/stories-7m/stories-7m.pth";

struct Story {
  std::string text;
  std::vector<int32_t> tokens;
  duet_generate_result result = DUET_INIT(duet_generate_result);
  duet_status status = DUET_OK;
};

Sampler sampler(uint64_t seed, float temperature = 1) {
  auto o = DUET_INIT(duet_sampler_options);
  check(duet_sampler_options_default(&o));
  o.seed = seed;
  o.temperature = temperature;
  o.top_p = 0.9f;
  duet_sampler* p = nullptr;
  check(duet_sampler_create(&o, &p));
  return Sampler(p);
}

struct Setting {
  uint32_t max_tokens = 40;
  std::vector<const char*> stop_texts = {};
  volatile int32_t* cancel = nullptr;
  size_t callback_stops_after = 1000;
  int32_t cancel_after = -1;
};

Story tell(const Model& m, const Sampler& p, const Setting& set = {}, duet_mode mode = DUET_MODE_AUTO) {
  const auto t = tokenizer(m);
  const std::string prompt = "Once upon a time";
  std::vector<int32_t> tokens(1 + prompt.size());
  size_t n = 0;
  check(duet_tokenizer_encode(t.get(), prompt.data(), prompt.size(), tokens.data() + 1, prompt.size(), &n));
  tokens.resize(1 + n);  // token 0 begins a text
  Story story;
  struct User {
    Story* story;
    const Setting* set;
  } user{&story, &set};
  auto o = DUET_INIT(duet_generate_options);
  o.max_tokens = set.max_tokens;
  o.tokenizer = t.get();
  o.stop_texts = set.stop_texts.data();
  o.n_stop_texts = static_cast<uint32_t>(set.stop_texts.size());
  o.user = &user;
  o.cancel = set.cancel;
  o.on_token = [](void* u, int32_t token) -> duet_status {
    auto& x = *static_cast<User*>(u);
    x.story->tokens.push_back(token);
    if (x.set->cancel && static_cast<int32_t>(x.story->tokens.size()) == x.set->cancel_after) *x.set->cancel = 1;
    return x.story->tokens.size() >= x.set->callback_stops_after ? DUET_E_CANCELLED : DUET_OK;
  };
  o.on_text = [](void* u, const char* text, size_t size) -> duet_status {
    static_cast<User*>(u)->story->text.append(text, size);
    return DUET_OK;
  };
  const auto x = session(m, mode);
  const auto s = state(m);
  story.status = duet_generate(x.get(), s.get(), 0, p.get(), tokens.data(), tokens.size(), &o, &story.result);
  return story;
}

}  // namespace

TEST_CASE("same seed, same text, another seed, another text") {
  const auto lib = library();
  const auto m = load(lib, kStories, backends().back());
  const Story a = tell(m, sampler(1)), b = tell(m, sampler(1)), c = tell(m, sampler(2));
  check(a.status);
  CHECK(a.tokens == b.tokens);
  CHECK(a.text == b.text);
  CHECK(a.tokens != c.tokens);
  CHECK(a.text.size() > 20);
  CHECK(a.result.finish == DUET_FINISH_LENGTH);
  CHECK(a.result.n_new == 40);
  CHECK(a.result.n_prompt >= 4);
}

TEST_CASE("greedy text is the same on every backend in f32") {
  const auto lib = library();
  std::string want;
  for (const char* backend : backends()) {
    const auto m = load(lib, kStories, backend, DUET_F32);
    const Story s = tell(m, sampler(0, 0), {.max_tokens = 12});
    if (want.empty()) want = s.text;
    CHECK(s.text == want);
  }
}

TEST_CASE("stop texts, callbacks and cancel") {
  const auto lib = library();
  const auto m = load(lib, kStories, backends().back());
  const Story whole = tell(m, sampler(1));
  const std::string stop = whole.text.substr(10, 6);
  const Story cut = tell(m, sampler(1), {.stop_texts = {stop.c_str()}});
  CHECK(cut.result.finish == DUET_FINISH_STOP_TEXT);
  CHECK(cut.text == whole.text.substr(0, whole.text.find(stop)));
  const Story early = tell(m, sampler(1), {.callback_stops_after = 3});
  check(early.status);
  CHECK(early.result.finish == DUET_FINISH_CALLBACK);
  CHECK(early.result.n_new == 3);
  volatile int32_t cancel = 0;
  const Story cancelled = tell(m, sampler(1), {.cancel = &cancel, .cancel_after = 5});
  CHECK(cancelled.status == DUET_E_CANCELLED);
  CHECK(cancelled.result.n_new == 5);
  CHECK(whole.text.compare(0, cancelled.text.size(), cancelled.text) == 0);
}
