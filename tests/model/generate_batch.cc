// Generation of many sequences, on devices that draw by themselves and on those that do not: each must get what it gets alone,
// step by step, from the reference and the host's sampler: tokens, state, and what the sampler remembers.
#include <cmath>

#include "support/api.h"
#include "support/golden.h"

using namespace api;

namespace {

struct Wish {
  duet_sampler_options sampler;
  std::vector<int32_t> prompt;
  uint32_t max_tokens = 40;
  std::vector<int32_t> stops = {};
  uint32_t stops_after = 1000, cancels_after = 1000, throws_after = 1000;
};

struct Told {
  std::vector<int32_t> tokens;
  duet_generate_result result = DUET_INIT(duet_generate_result);
  Arrays state;
  std::vector<float> probs;  // of the sampler afterwards
  duet_status status = DUET_OK;
};

duet_sampler_options options(float temperature, float top_p = 1, uint32_t top_k = 0, float min_p = 0, float presence = 0, float frequency = 0, float decay = 0.9f) {
  auto o = DUET_INIT(duet_sampler_options);
  o.temperature = temperature, o.top_p = top_p, o.top_k = top_k, o.min_p = min_p;
  o.presence = presence, o.frequency = frequency, o.decay = decay;
  o.seed = 7;
  return o;
}

struct World {
  Library lib;
  Model m;
  Tokenizer t;
  explicit World(const char* device, uint32_t n_threads = 0) : lib(open(device, n_threads)), m(load(lib, golden::path("tiny.pth"), device, DUET_F32)) {
    duet_tokenizer* p = nullptr;
    check(duet_tokenizer_load(lib.get(), nullptr, &p));
    t.reset(p);
  }
  static Library open(const std::string& device, uint32_t n_threads) {
    auto o = DUET_INIT(duet_library_options);
    o.n_threads = n_threads;
    if (device == "draws") o.plugin_path = DUET_DRAWS;
    duet_library* p = nullptr;
    check(duet_library_create(&o, &p));
    return Library(p);
  }
};

// What the callbacks of one sequence share.
struct User {
  const Wish* wish;
  Told* told;
  volatile int32_t cancel = 0;
};

duet_status on_token(void* user, int32_t token) {
  auto& u = *static_cast<User*>(user);
  u.told->tokens.push_back(token);
  const size_t n = u.told->tokens.size();
  if (n == u.wish->throws_after) throw 1;
  if (n == u.wish->cancels_after) u.cancel = 1;
  return n == u.wish->stops_after ? DUET_E_CANCELLED : DUET_OK;
}

struct Asked {
  Sampler sampler;
  User user;
  duet_generate_options options = DUET_INIT(duet_generate_options);
  Asked(const World& w, const Wish& wish, Told& told, uint64_t sequence) : user{&wish, &told} {
    auto o = wish.sampler;
    o.sequence = sequence;
    if (o.presence != 0) o.tokenizer = w.t.get();
    duet_sampler* p = nullptr;
    check(duet_sampler_create(&o, &p));
    sampler.reset(p);
    options.max_tokens = wish.max_tokens;
    options.stops = wish.stops.data();
    options.n_stops = static_cast<uint32_t>(wish.stops.size());
    static const int32_t none = 0;
    if (wish.stops.empty()) options.stops = &none;
    options.on_token = on_token;
    options.cancel = &user.cancel;
    options.user = &user;
  }
  void look(const World& w, const State& s, uint32_t slot) {
    user.told->state = arrays(w.m, s, slot);
    if (user.wish->sampler.n_bias > 0) return;  // it bans all tokens
    std::vector<float> logits(info(w.m).n_vocab);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
    user.told->probs.resize(logits.size());
    check(duet_sampler_probs(sampler.get(), logits.data(), static_cast<uint32_t>(logits.size()), user.told->probs.data()));
    int32_t next = 0;
    check(duet_sampler_pick(sampler.get(), logits.data(), static_cast<uint32_t>(logits.size()), &next));
    user.told->probs.push_back(static_cast<float>(next));  // shows the position
  }
};

std::vector<Told> alone(const World& w, const std::vector<Wish>& wishes) {
  std::vector<Told> out(wishes.size());
  for (size_t i = 0; i < wishes.size(); ++i) {
    Asked a(w, wishes[i], out[i], i);
    const auto s = state(w.m);
    const auto x = session(w.m, DUET_MODE_AUTO);
    out[i].status = duet_generate(x.get(), s.get(), 0, a.sampler.get(), wishes[i].prompt.data(), wishes[i].prompt.size(), &a.options, &out[i].result);
    a.look(w, s, 0);
  }
  return out;
}

std::vector<Told> together(const World& w, const std::vector<Wish>& wishes, duet_status* status = nullptr, duet_mode mode = DUET_MODE_AUTO, uint32_t max_tokens = 0) {
  std::vector<Told> out(wishes.size());
  std::vector<std::unique_ptr<Asked>> asked;
  std::vector<int32_t> tokens;
  std::vector<uint32_t> lengths, slots;
  std::vector<duet_sampler*> samplers;
  std::vector<const duet_generate_options*> options;
  std::vector<duet_generate_result*> results;
  const auto n = static_cast<uint32_t>(wishes.size());
  for (uint32_t i = 0; i < n; ++i) {
    asked.push_back(std::make_unique<Asked>(w, wishes[i], out[i], i));
    tokens.insert(tokens.end(), wishes[i].prompt.begin(), wishes[i].prompt.end());
    lengths.push_back(static_cast<uint32_t>(wishes[i].prompt.size()));
    slots.push_back((i + 1) % n);
    samplers.push_back(asked[i]->sampler.get());
    options.push_back(&asked[i]->options);
    results.push_back(&out[i].result);
  }
  auto p = DUET_INIT(duet_prompts);
  p.n_seqs = n;
  p.tokens = tokens.data();
  p.lengths = lengths.data();
  p.slots = slots.data();
  p.samplers = samplers.data();
  p.options = options.data();
  const auto s = state(w.m, n);
  const auto x = session(w.m, mode, max_tokens);
  const duet_status got = duet_generate_batch(x.get(), s.get(), &p, results.data());
  if (status)
    *status = got;
  else
    check(got);
  for (uint32_t i = 0; i < n; ++i) asked[i]->look(w, s, slots[i]);
  return out;
}

std::vector<Wish> many_wishes() {
  const std::vector<duet_sampler_options> samplers = {options(0),
                                                      options(1),
                                                      options(0.7f, 0.8f),
                                                      options(1.3f, 1, 9),
                                                      options(1, 0.95f, 30, 0.05f),
                                                      options(1, 1, 0, 0.1f),
                                                      options(0, 1, 0, 0, 0.6f, 0.4f),
                                                      options(1, 0.9f, 0, 0, 0.3f, 0.2f, 0.5f),
                                                      options(1, 0.5f, 3, 0, 0, 1.5f, 0)};
  std::vector<Wish> out;
  for (uint32_t i = 0; i < samplers.size(); ++i) {
    Wish w{samplers[i], std::vector<int32_t>(1 + 5 * i), 1 + (i * 7) % 45};
    for (size_t t = 0; t < w.prompt.size(); ++t) w.prompt[t] = static_cast<int32_t>((t * 31 + i * 17) % 97);
    out.push_back(w);
  }
  return out;
}

std::vector<const char*> devices() {
  auto out = backends();
  out.push_back("draws");
  return out;
}

// Bits where the device is a CPU; tokens everywhere.
void compare(const Told& got, const Told& want, const std::string& device) {
  CHECK(got.tokens == want.tokens);
  CHECK(got.result.n_new == want.result.n_new);
  CHECK(got.result.n_prompt == want.result.n_prompt);
  CHECK(got.result.finish == want.result.finish);
  CHECK(got.result.status == want.result.status);
  CHECK(got.probs.back() == want.probs.back());
  CHECK(worst(got.probs, want.probs) < 1e-6);
  if (device == "reference" || device == "draws") CHECK(got.state == want.state);
  CHECK(worst(got.state.wkv, want.state.wkv) < 1e-3);
  CHECK(worst(got.state.att_x, want.state.att_x) < 1e-3);
}

}  // namespace

TEST_CASE("each sequence of a batch gets what it gets alone from the reference") {
  const auto wishes = many_wishes();
  const auto want = alone(World("reference"), wishes);
  for (const char* device : devices()) {
    INFO(device);
    const World w(device);
    const auto got = together(w, wishes), single = alone(w, wishes), small = together(w, wishes, nullptr, DUET_MODE_RECURRENT, 4);
    for (size_t i = 0; i < wishes.size(); ++i) {
      INFO("sequence " << i);
      compare(got[i], want[i], device);
      compare(single[i], want[i], device);
      compare(small[i], want[i], "");  // passes of 4 tokens: groups of sequences; where a prompt is cut, its state is rounded
    }
  }
}

TEST_CASE("more sequences than one block of rows has") {
  std::vector<Wish> wishes;
  for (uint32_t i = 0; i < 70; ++i) wishes.push_back({options(1, 0.9f, 0, 0, i % 2 ? 0.2f : 0), {static_cast<int32_t>(i)}, 7});
  const auto want = alone(World("reference"), wishes);
  for (const char* device : devices()) {
    INFO(device);
    const auto got = together(World(device), wishes);
    for (size_t i = 0; i < wishes.size(); ++i) {
      INFO("sequence " << i);
      compare(got[i], want[i], device);
    }
  }
}

TEST_CASE("draws of a batch do not depend on the threads among which they are divided") {
  std::vector<int32_t> every(256);
  for (size_t i = 0; i < every.size(); ++i) every[i] = static_cast<int32_t>(i);
  const std::vector<float> banned(every.size(), -INFINITY);
  const auto some = many_wishes();
  std::vector<Wish> wishes;  // enough for threads to be worth it, already for the first tokens
  for (uint32_t i = 0; i < 100; ++i) {
    Wish w{some[i % some.size()].sampler, {static_cast<int32_t>(i), 3}, 5 + i % 3};
    if (i % 20 == 7) w.sampler.bias_tokens = every.data(), w.sampler.bias = banned.data(), w.sampler.n_bias = 256;  // cannot draw
    if (i % 20 == 9) w.cancels_after = 2;
    wishes.push_back(w);
  }
  for (const char* device : backends()) {
    duet_status status = DUET_OK;
    const auto want = together(World(device, 1), wishes, &status);
    CHECK(status == DUET_E_NUMERIC);
    const std::string sentence = duet_last_error();
    for (const uint32_t n_threads : {2, 5}) {
      INFO(device << ", " << n_threads << " threads");
      const auto got = together(World(device, n_threads), wishes, &status);
      CHECK(status == DUET_E_NUMERIC);
      CHECK(duet_last_error() == sentence);
      for (size_t i = 0; i < wishes.size(); ++i) {
        INFO("sequence " << i);
        CHECK(got[i].result.status == (i % 20 == 7 ? DUET_E_NUMERIC : i % 20 == 9 ? DUET_E_CANCELLED : DUET_OK));
        CHECK(got[i].tokens == want[i].tokens);
        CHECK(got[i].state == want[i].state);
        CHECK(got[i].probs == want[i].probs);
      }
    }
  }
}

TEST_CASE("who ends anywhere in a block of steps has the state and the sampler of single steps") {
  std::vector<Wish> wishes;
  for (uint32_t n = 1; n <= 34; ++n) wishes.push_back({options(1, 0.9f, 0, 0, 0.1f, 0.1f), {1, 2, static_cast<int32_t>(n)}, 40, {}, n});
  for (uint32_t n = 1; n <= 34; n += 3) wishes.push_back({options(1), {3, static_cast<int32_t>(n)}, 40, {}, 1000, n});
  const World reference("reference");
  const auto free = alone(reference, {Wish{options(1), {5, 6}, 40}});
  for (uint32_t n = 1; n < 40; n += 2) wishes.push_back({options(1), {5, 6}, 40, {free[0].tokens[n]}});  // a stop token
  const auto want = alone(reference, wishes);
  for (const char* device : devices()) {
    INFO(device);
    const World w(device);
    const auto got = alone(w, wishes);
    duet_status status = DUET_OK;
    const auto batch = together(w, wishes, &status);
    CHECK(status == DUET_E_CANCELLED);
    for (size_t i = 0; i < wishes.size(); ++i) {
      INFO("sequence " << i);
      CHECK(got[i].status == want[i].status);
      compare(got[i], want[i], device);
      if (wishes[i].stops.empty()) compare(batch[i], want[i], device);  // the others draw as sequences of their own
      CHECK(batch[i].result.n_new >= 1);
    }
  }
}

TEST_CASE("a callback's exception leaves slot and sampler as single steps do") {
  const std::vector<Wish> wishes = {{options(1, 0.9f, 0, 0, 0.1f, 0.1f), {1, 2}, 40, {}, 1000, 1000, 7}};
  const auto want = alone(World("reference"), wishes);
  CHECK(want[0].status == DUET_E_INTERNAL);
  const auto got = alone(World("draws"), wishes);
  CHECK(got[0].status == DUET_E_INTERNAL);
  CHECK(got[0].tokens == want[0].tokens);
  CHECK(got[0].state == want[0].state);
  CHECK(got[0].probs == want[0].probs);
}

TEST_CASE("a state and a sampler go on where a generation on a device ended") {
  std::vector<std::vector<int32_t>> told;
  for (const char* device : {"reference", "draws"}) {
    const World w(device);
    const Wish wish{options(1, 0.9f, 0, 0, 0.4f, 0.2f), {1, 2, 3}, 11};
    Told first;
    Asked a(w, wish, first, 0);
    const auto s = state(w.m);
    const auto x = session(w.m, DUET_MODE_AUTO);
    check(duet_generate(x.get(), s.get(), 0, a.sampler.get(), wish.prompt.data(), 3, &a.options, nullptr));
    for (int i = 0; i < 3; ++i) check(duet_generate(x.get(), s.get(), 0, a.sampler.get(), &first.tokens.back(), 1, &a.options, nullptr));
    CHECK(first.tokens.size() == 44);
    told.push_back(first.tokens);
  }
  CHECK(told[0] == told[1]);
}

TEST_CASE("what is wrong with the prompts of a batch is named") {
  const World w("reference");
  const auto s = state(w.m, 2);
  const auto x = session(w.m, DUET_MODE_AUTO);
  duet_sampler *a = nullptr, *b = nullptr;
  check(duet_sampler_create(nullptr, &a));
  check(duet_sampler_create(nullptr, &b));
  const Sampler own_a(a), own_b(b);
  const int32_t tokens[] = {1, 2, 100000};
  const uint32_t lengths[] = {1, 1}, none[] = {1, 0}, same[] = {1, 1}, beyond[] = {0, 2}, longer[] = {1, 2};
  duet_sampler *samplers[] = {a, b}, *twice[] = {a, a};
  const auto attempt = [&](auto change, duet_status status, const char* word) {
    auto p = DUET_INIT(duet_prompts);
    p.n_seqs = 2, p.tokens = tokens, p.lengths = lengths, p.samplers = samplers;
    change(p);
    CHECK(duet_generate_batch(x.get(), s.get(), &p, nullptr) == status);
    INFO(duet_last_error());
    CHECK(std::string(duet_last_error()).find(word) != std::string::npos);
  };
  attempt([&](duet_prompts& p) { p.tokens = nullptr; }, DUET_E_INVALID, "prompts->tokens is NULL");
  attempt([&](duet_prompts& p) { p.lengths = none; }, DUET_E_INVALID, "the prompt of sequence 1 is empty");
  attempt([&](duet_prompts& p) { p.slots = same; }, DUET_E_INVALID, "slot 1 stands twice");
  attempt([&](duet_prompts& p) { p.slots = beyond; }, DUET_E_INVALID, "slot 2");
  attempt([&](duet_prompts& p) { p.samplers = twice; }, DUET_E_INVALID, "same sampler");
  attempt([&](duet_prompts& p) { p.lengths = longer; }, DUET_E_INVALID, "token 100000");
  attempt([&](duet_prompts& p) { p.size = 8; }, DUET_E_ABI, "prompts->size");
  CHECK(duet_generate_batch(x.get(), s.get(), nullptr, nullptr) == DUET_E_INVALID);
  auto empty = DUET_INIT(duet_prompts);
  check(duet_generate_batch(x.get(), s.get(), &empty, nullptr));
}
