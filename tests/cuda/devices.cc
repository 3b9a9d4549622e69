// Devices side by side: states that move between them, threads that use them at once.
#include <algorithm>
#include <thread>

#include "cuda/scene.h"

using namespace api;
using namespace scene;

namespace {

const std::vector<int32_t> kPrompt = [] {
  std::vector<int32_t> t;
  for (int32_t i = 0; i < 100; ++i) t.push_back(i * 7 % 2000);
  return t;
}();
constexpr int32_t kNext = 5;  // fed after the prompt, by whoever goes on
constexpr uint32_t kDrawn = 40;

void move(const Runner& to, const Runner& from) { check(duet_state_copy(to.state.get(), 0, from.state.get(), 0)); }

void read_prompt(const Runner& r) {
  check(duet_state_reset(r.state.get(), 0));
  Batch b;
  b.add(kPrompt, 0);
  (void)forward(session(r.model, DUET_MODE_PARALLEL), r.state, b, DUET_OUT_LAST_LOGITS);
}

Drawn go_on(const Runner& r) { return draw(r.session, r.state, 0, {kNext}, kDrawn); }

// Everything that `runners` can do to one another's states; the first gives the tokens that all must draw.
void check_moves(const std::vector<const Runner*>& runners, const Runner& host) {
  const Runner& first = *runners[0];
  read_prompt(first);
  const Arrays after_prompt = arrays(first.model, first.state);
  const Drawn want = go_on(first);
  REQUIRE(want.failure == "");
  REQUIRE(want.tokens.size() == kDrawn);
  for (const Runner* from : runners)
    for (const Runner* to : runners) {
      INFO(info(from->model).device << " to " << info(to->model).device);
      read_prompt(*from);
      CHECK(arrays(from->model, from->state) == after_prompt);
      if (from != to) move(*to, *from);
      CHECK(arrays(to->model, to->state) == after_prompt);
      CHECK(go_on(*to) == want);

      read_prompt(*from);  // through the host's memory
      move(host, *from);
      CHECK(arrays(host.model, host.state) == after_prompt);
      move(*to, host);
      CHECK(go_on(*to) == want);

      read_prompt(*from);  // through a file
      size_t n = 0;
      check(duet_state_save(from->state.get(), 0, nullptr, 0, &n));
      std::string file(n, '\0');
      check(duet_state_save(from->state.get(), 0, file.data(), file.size(), &n));
      check(duet_state_load(to->state.get(), 0, file.data(), file.size()));
      CHECK(go_on(*to) == want);
    }

  const auto greedy = [](const std::vector<float>& logits) { return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()); };
  std::vector<int32_t> alone, together;
  read_prompt(first);
  int32_t token = kNext;
  for (uint32_t i = 0; i < 16; ++i) alone.push_back(token = greedy(forward(first.session, first.state, {token})));
  read_prompt(first);  // a token here, a token there
  token = kNext;
  const Runner* at = &first;
  for (uint32_t i = 0; i < 16; ++i) {
    const Runner& to = *runners[(i + 1) % runners.size()];
    move(host, *at);
    move(to, host);
    at = &to;
    together.push_back(token = greedy(forward(at->session, at->state, {token})));
  }
  CHECK(together == alone);
}

// Runs each job in a thread of its own, over and over, and gives what went wrong.
template <class... Job>
std::string at_once(int rounds, const Job&... job) {
  std::string wrong[sizeof...(Job)];
  std::vector<std::thread> threads;
  const auto start = [&](const auto& one, std::string& text) {
    threads.emplace_back([&one, &text, rounds] {
      for (int i = 0; i < rounds && text.empty(); ++i) text = one();
    });
  };
  size_t i = 0;
  (start(job, wrong[i++]), ...);
  for (std::thread& t : threads) t.join();
  std::string all;
  for (const std::string& text : wrong) all += text;
  return all;
}

template <class Result>
std::string compare(const Result& got, const Result& want, const char* who) {
  if (got.status != DUET_OK) return std::string(who) + ": " + got.failure + "\n";
  return got == want ? "" : std::string(who) + ": other numbers\n";
}

}  // namespace

TEST_CASE("a text goes on with the same tokens after its state has been on the CPU") {
  if (lacks_gpus(1)) return;
  const auto lib = library();
  const Runner host(lib, "reference"), one(lib, "cuda:0"), other(lib, "cuda:0");
  check_moves({&one, &other}, host);
}

TEST_CASE("a text goes on with the same tokens on another GPU") {
  if (lacks_gpus(2)) return;
  const auto lib = library();
  const Runner host(lib, "reference"), one(lib, "cuda:0"), other(lib, "cuda:1");
  check_moves({&one, &other}, host);
}

TEST_CASE("threads that run batches of different forms on one GPU get the numbers of one") {
  if (lacks_gpus(1)) return;
  const auto lib = library();
  const Runner a(lib, "cuda:0", 0, 64), b(lib, "cuda:0", 0, 64), c(lib, "cuda:0", DUET_I8);
  const Form one{1, 600}, many{64, 40};  // their recurrences differ in the shared memory that they need
  const Read of_one = read(a.session, a.state, one), of_many = read(b.session, b.state, many);
  const Drawn of_c = c.draw();
  REQUIRE(of_one.failure + of_many.failure + of_c.failure == "");
  CHECK(at_once(
            200, [&] { return compare(read(a.session, a.state, one), of_one, "one sequence"); }, [&] { return compare(read(b.session, b.state, many), of_many, "many sequences"); },
            [&] { return compare(c.draw(), of_c, "q8"); }) == "");
}

TEST_CASE("models come and go in a thread while others run on the same GPU") {
  if (lacks_gpus(1)) return;
  const auto lib = library();
  const Runner a(lib, "cuda:0"), b(lib, "cuda:0", 0, 64);
  const Drawn of_a = a.draw();
  const Form many{64, 1};
  const Read of_b = read(b.session, b.state, many);
  REQUIRE(of_a.failure + of_b.failure == "");
  const std::vector<int32_t> prompt = {1, 2, 3};
  const Drawn of_new = draw(session(a.model, DUET_MODE_AUTO), state(a.model), 0, prompt, 8);
  REQUIRE(of_new.failure == "");
  const auto come_and_go = [&]() -> std::string {
    duet_model* m = nullptr;
    duet_session* x = nullptr;
    duet_state* s = nullptr;
    auto o = DUET_INIT(duet_model_options);
    o.device = "cuda:0";
    const bool made = duet_model_load(lib.get(), model_path().c_str(), &o, &m) == DUET_OK && duet_session_create(m, nullptr, &x) == DUET_OK && duet_state_create(m, 1, nullptr, &s) == DUET_OK;
    const std::string why = made ? "" : std::string("another model: ") + duet_last_error() + "\n";
    const Model model(m);
    const Session session(x);
    const State state(s);
    return made ? compare(draw(session, state, 0, prompt, 8), of_new, "another model") : why;
  };
  CHECK(at_once(20, [&] { return compare(a.draw(), of_a, "one sequence"); }, [&] { return compare(read(b.session, b.state, many), of_b, "recorded steps"); }, come_and_go) == "");
}

TEST_CASE("two GPUs are used by two threads at once, and by one thread in turn") {
  if (lacks_gpus(2)) return;
  const auto lib = library();
  const Runner a(lib, "cuda:0"), b(lib, "cuda:1"), here(lib, "cuda:0", 0, 64), there(lib, "cuda:1", 0, 64);
  const Drawn drawn = a.draw();
  const Form many{64, 40};
  const Read numbers = read(here.session, here.state, many);
  REQUIRE(drawn.failure + numbers.failure == "");
  CHECK(at_once(
            100, [&] { return compare(a.draw(), drawn, "cuda:0"); }, [&] { return compare(b.draw(), drawn, "cuda:1"); },
            [&] { return compare(read(here.session, here.state, many), numbers, "cuda:0 in turn") + compare(read(there.session, there.state, many), numbers, "cuda:1 in turn"); }) == "");
}
