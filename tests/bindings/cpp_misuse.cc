// duet.hpp under misuse: an exception each, with status and sentence, and objects that work on.
#include <atomic>
#include <filesystem>
#include <limits>
#include <optional>
#include <thread>

#include "duet.hpp"
#include "support/api.h"
#include "support/golden.h"

namespace {

// The call throws Error with this status and a sentence that holds `word`.
template <class F>
void refused(F&& call, duet_status status, const std::string& word) {
  try {
    call();
    FAIL("nothing was thrown; expected " << duet_status_name(status) << " with \"" << word << "\"");
  } catch (const duet::Error& e) {
    INFO(e.name() << ": " << e.what() << " (expected \"" << word << "\")");
    CHECK(e.status() == status);
    CHECK(std::string(e.what()).find(word) != std::string::npos);
  }
}

struct World {
  duet::Library library{{.n_threads = 1}};
  duet::Model model = duet::Model::load(library, golden::path("tiny.pth"), {.device = "reference"});
  duet::State state{model, 2};
  duet::Session session{model};
  duet::Sampler sampler;
};
const std::vector<int32_t> kPrompt = {0, 1};
const std::vector<int32_t> kNoStops = {};

struct Thrown {};

}  // namespace

static_assert(!std::is_copy_constructible_v<duet::Model> && !std::is_copy_assignable_v<duet::Session>);
static_assert(std::is_nothrow_move_constructible_v<duet::Library> && std::is_nothrow_move_assignable_v<duet::State>);

TEST_CASE("C++: objects outlive what they came from, in any order") {
  std::optional<World> w(std::in_place);
  const auto all = w->session.forward(w->state, kPrompt);
  const std::vector<float> want(all.data.begin(), all.data.end());
  w->state.reset();
  duet::Session session = std::move(w->session);
  duet::State state = std::move(w->state);
  w.reset();
  const auto got = session.forward(state, kPrompt);
  CHECK(std::vector<float>(got.data.begin(), got.data.end()) == want);
}

TEST_CASE("C++: an owner that was moved from is an error, and can be used again") {
  World w;
  duet::Session session = std::move(w.session);
  CHECK(w.session.handle() == nullptr);
  refused([&] { w.session.forward(w.state, kPrompt); }, DUET_E_HANDLE, "session");
  const duet::Model model = std::move(w.model);
  refused([&] { duet::State(w.model, 1); }, DUET_E_HANDLE, "model");
  refused([&] { duet::Session s(w.model); }, DUET_E_HANDLE, "model");
  duet::Tokenizer tokenizer(w.library);
  const duet::Tokenizer other = std::move(tokenizer);
  refused([&] { duet::Sampler({.tokenizer = &tokenizer}); }, DUET_E_HANDLE, "tokenizer");
  refused([&] { session.generate(w.state, w.sampler, kPrompt, {.tokenizer = &tokenizer}); }, DUET_E_HANDLE, "tokenizer");
  w.session = std::move(session);
  CHECK(w.session.forward(w.state, kPrompt).n_rows == 1);
  duet::Session& itself = w.session;
  w.session = std::move(itself);
  CHECK(w.session.forward(w.state, kPrompt).n_rows == 1);
}

TEST_CASE("C++: a handle that was freed behind the owner's back is an error, twice freed too") {
  World w;
  duet_session_free(w.session.handle());
  refused([&] { w.session.forward(w.state, kPrompt); }, DUET_E_HANDLE, "not live");
}

TEST_CASE("C++: lengths that do not fit") {
  World w;
  const std::vector<int32_t> tokens = {1, 2, 3};
  const std::vector<uint32_t> short_lengths = {2}, long_lengths = {4}, two = {1, 2}, slot = {0};
  refused([&] { w.session.forward(w.state, duet::Batch{.tokens = tokens, .lengths = short_lengths}); }, DUET_E_INVALID, "tokens has 3 elements; 2");
  refused([&] { w.session.forward(w.state, duet::Batch{.tokens = tokens, .lengths = long_lengths}); }, DUET_E_INVALID, "4 are needed");
  refused([&] { w.session.forward(w.state, duet::Batch{.tokens = tokens, .lengths = two, .slots = slot}); }, DUET_E_INVALID, "slots has 1");
  refused([&] { w.session.forward(w.state, tokens, 7); }, DUET_E_INVALID, "slot 7");
  refused([&] { w.session.logits()[0]; }, DUET_E_INVALID, "row 0");
  std::vector<float> small(5), x(w.state.x_size()), nan = x;
  refused([&] { w.state.set(0, small, {}, {}); }, DUET_E_INVALID, "att_x has 5");
  refused([&] { w.state.get(0, {}, small, {}); }, DUET_E_INVALID, "wkv has 5");
  nan[1] = std::numeric_limits<float>::quiet_NaN();
  refused([&] { w.state.set(0, {}, {}, nan); }, DUET_E_NUMERIC, "ffn_x");
  refused([&] { w.sampler.probs(x, small); }, DUET_E_INVALID, "out has 5");
  refused([&] { w.sampler.pick({}); }, DUET_E_INVALID, "logits");
  refused([&] { (void)w.session.score(w.state, {}); }, DUET_E_LIMIT, "0 tokens");
  refused([&] { (void)w.session.generate(w.state, w.sampler, {}); }, DUET_E_INVALID, "empty");
  refused([&] { w.state.load(0, {}); }, DUET_E_INVALID, "src");
}

TEST_CASE("C++: names that are wrong") {
  World w;
  refused([&] { duet::Model::load(w.library, "no such file"); }, DUET_E_NOT_FOUND, "no such file");
  refused([&] { duet::Model::load(w.library, std::string("tiny.pth\0x", 10)); }, DUET_E_INVALID, "path holds a NUL");
  refused([&] { duet::Model::load(w.library, golden::path("tiny.pth"), {.device = "tpu"}); }, DUET_E_NOT_FOUND, "tpu");
  refused([&] { duet::Model::random(w.library, {.shape = "9b"}); }, DUET_E_INVALID, "9b");
  refused([&] { duet::Sampler({.temperature = -1}); }, DUET_E_INVALID, "temperature");
  refused([&] { w.session.generate(w.state, w.sampler, kPrompt, {.on_text = [](std::string_view) { return true; }}); }, DUET_E_INVALID, "tokenizer");
}

TEST_CASE("C++: what a callback throws comes out of the call, and the callback is not called again") {
  World w;
  int calls = 0;
  refused([&] { duet::Model::load(w.library, golden::path("tiny.pth"), {.progress = [](uint64_t, uint64_t) { return false; }}); }, DUET_E_CANCELLED,
          "progress");
  CHECK_THROWS_AS(duet::Model::load(w.library, golden::path("tiny.pth"), {.progress = [&](uint64_t, uint64_t) -> bool {
                                      ++calls;
                                      throw Thrown();
                                    }}),
                  Thrown);
  CHECK(calls == 1);
  const std::string out = std::string(DUET_BUILD) + "/bindings-thrown.safetensors";
  CHECK_THROWS_AS(w.library.convert(golden::path("tiny.pth"), out, {.progress = [](uint64_t, uint64_t) -> bool { throw Thrown(); }}), Thrown);
  CHECK(!std::filesystem::exists(out));
  calls = 0;
  CHECK_THROWS_AS(w.session.generate(w.state, w.sampler, kPrompt,
                                     {.stops = kNoStops,
                                      .on_token = [&](int32_t) -> bool {
                                        ++calls;
                                        throw Thrown();
                                      }}),
                  Thrown);
  CHECK(calls == 1);
  const duet::Tokenizer world(w.library);
  int texts = 0;  // the library shows the text of the token at which on_token stopped: the binding must not
  CHECK_THROWS_AS(w.session.generate(w.state, w.sampler, kPrompt,
                                     {.tokenizer = &world,
                                      .stops = kNoStops,
                                      .on_token = [](int32_t) -> bool { throw Thrown(); },
                                      .on_text = [&](std::string_view) { return ++texts > 0; }}),
                  Thrown);
  CHECK(texts == 0);
  CHECK(w.session.forward(w.state, kPrompt).n_rows == 1);  // and all work on
}

TEST_CASE("C++: callbacks stop, and cancel from another thread") {
  World w;
  const auto stopped = w.session.generate(w.state, w.sampler, kPrompt, {.stops = kNoStops, .on_token = [](int32_t) { return false; }});
  CHECK(stopped.finish == duet::Finish::callback);
  CHECK(stopped.tokens.size() == 1);
  duet::Cancel cancel;
  std::atomic<int> drawn{0};
  std::thread other([&] {
    while (drawn < 5) std::this_thread::yield();
    cancel.request();
  });
  const auto cancelled = w.session.generate(w.state, w.sampler, kPrompt,
                                            {.max_tokens = 100000000, .stops = kNoStops, .on_token = [&](int32_t) { return ++drawn > 0; }, .cancel = &cancel});
  other.join();
  CHECK(cancelled.finish == duet::Finish::cancelled);
  CHECK(cancelled.n_new >= 5);
  CHECK(cancelled.tokens.size() == cancelled.n_new);
  CHECK(cancel.requested());
  CHECK(w.session.generate(w.state, w.sampler, kPrompt, {.cancel = &cancel}).n_prompt == 0);
  cancel.clear();
  CHECK(w.session.generate(w.state, w.sampler, kPrompt, {.max_tokens = 3, .stops = kNoStops, .cancel = &cancel}).finish == duet::Finish::length);
}

TEST_CASE("C++: calls from inside a callback are refused, frees there are not") {
  World w;
  std::optional<duet::Session> session(w.model);
  std::optional<duet::State> state(w.model);
  int calls = 0;
  const auto result = session->generate(*state, w.sampler, kPrompt, {.max_tokens = 3, .stops = kNoStops, .on_token = [&](int32_t) {
                                                                       if (++calls > 1) return true;
                                                                       refused([&] { session->forward(*state, kPrompt); }, DUET_E_BUSY, "in use");
                                                                       refused([&] { state->get(); }, DUET_E_BUSY, "in use");
                                                                       session.reset();
                                                                       state.reset();
                                                                       return true;
                                                                     }});
  CHECK(result.n_new == 3);
  CHECK(result.tokens.size() == 3);
}

TEST_CASE("C++: what is wrong with a sequence of a batch") {
  World w;
  duet::Sampler other, moved;
  const duet::Sampler kept = std::move(moved);
  duet::Prompt a{.tokens = kPrompt, .sampler = &w.sampler, .options = {.max_tokens = 2}}, b = a;
  const auto refused_batch = [&](auto change, duet_status status, const char* word) {
    b.sampler = &other;
    auto changed = b;
    change(changed);
    refused([&] { w.session.generate_batch(w.state, std::vector{a, changed}); }, status, word);
  };
  refused_batch([](duet::Prompt& p) { p.sampler = nullptr; }, DUET_E_INVALID, "sequence 1 has no sampler");
  refused_batch([&](duet::Prompt& p) { p.sampler = &w.sampler; }, DUET_E_INVALID, "same sampler");
  refused_batch([&](duet::Prompt& p) { p.sampler = &moved; }, DUET_E_HANDLE, "moved from");
  refused_batch([](duet::Prompt& p) { p.tokens = {}; }, DUET_E_INVALID, "sequence 1 is empty");
  refused_batch([](duet::Prompt& p) { p.slot = 0; }, DUET_E_INVALID, "slot 0 stands twice");
  refused_batch([](duet::Prompt& p) { p.slot = 2; }, DUET_E_INVALID, "slot 2");
  refused_batch([](duet::Prompt& p) { p.options.on_text = [](std::string_view) { return true; }; }, DUET_E_INVALID, "tokenizer");
  refused([&] { w.session.generate_batch(w.state, std::vector{duet::Prompt{.sampler = &other}}); }, DUET_E_INVALID, "sequence 0 is empty");
  CHECK(w.session.generate_batch(w.state, {}).empty());
  CHECK(w.session.generate_batch(w.state, std::vector{a, b}).size() == 2);
}

TEST_CASE("C++: what a callback of a batch throws comes out of the call, and its fellows are not called again") {
  World w;
  duet::Sampler other;
  int calls = 0, others = 0;
  const duet::Prompt prompts[] = {{.tokens = kPrompt,
                                   .sampler = &w.sampler,
                                   .options = {.stops = kNoStops,
                                               .on_token = [&](int32_t) -> bool {
                                                 if (++calls == 3) throw Thrown();
                                                 return true;
                                               }}},
                                  {.tokens = kPrompt, .sampler = &other, .options = {.stops = kNoStops, .on_token = [&](int32_t) { return ++others > 0; }}}};
  CHECK_THROWS_AS(w.session.generate_batch(w.state, prompts), Thrown);
  CHECK(calls == 3);
  CHECK(others == 2);
  CHECK(w.session.forward(w.state, kPrompt).n_rows == 1);
}

TEST_CASE("C++: a callback of a batch may destroy its objects") {
  World w;
  std::optional<duet::Session> session(w.model);
  std::optional<duet::State> state(std::in_place, w.model, 2);
  std::optional<duet::Sampler> a(std::in_place), b(std::in_place);
  const duet::Prompt prompts[] = {{.tokens = kPrompt, .sampler = &*a, .options = {.max_tokens = 3, .stops = kNoStops, .on_token = [&](int32_t) {
                                                                                    if (!session) return true;
                                                                                    refused([&] { session->forward(*state, kPrompt); }, DUET_E_BUSY, "in use");
                                                                                    session.reset(), state.reset(), a.reset(), b.reset();
                                                                                    return true;
                                                                                  }}},
                                  {.tokens = kPrompt, .sampler = &*b, .options = {.max_tokens = 4, .stops = kNoStops}}};
  const auto results = session->generate_batch(*state, prompts);
  CHECK(results[0].tokens.size() == 3);
  CHECK(results[1].tokens.size() == 4);
}

TEST_CASE("C++: one session from two threads is busy for one, never a race") {
  World w;
  std::atomic<int> ok{0}, busy{0}, other{0};
  const auto work = [&] {
    for (int i = 0; i < 100; ++i) try {
        (void)w.session.score(w.state, kPrompt);
        ++ok;
      } catch (const duet::Error& e) {
        ++(e.status() == DUET_E_BUSY ? busy : other);
      }
  };
  std::thread a(work), b(work);
  a.join();
  b.join();
  CHECK(ok > 0);
  CHECK(ok + busy == 200);
  CHECK(other == 0);
}

TEST_CASE("C++: the log function lives as long as anything can log, and may throw") {
  auto alive = std::make_shared<int>(0);
  std::weak_ptr<int> watch = alive;
  std::atomic<int> messages{0};
  std::optional<duet::Session> session;
  {
    const duet::Library library({.log =
                                     [alive = std::move(alive), &messages](duet::LogLevel, std::string_view) {
                                       ++messages;
                                       throw Thrown();
                                     },
                                 .log_level = duet::LogLevel::debug});
    CHECK(!library.devices().empty());
    session.emplace(duet::Model::load(library, golden::path("tiny.pth"), {.device = "reference"}));
  }
  CHECK(messages > 0);
  CHECK(!watch.expired());
  session.reset();
  CHECK(watch.expired());
}

TEST_CASE("C++: a layer that does not exist") {
  const duet::Library library({.layers = "nonsense"});
  refused([&] { duet::Model::load(library, golden::path("tiny.pth")); }, DUET_E_NOT_FOUND, "there is no layer nonsense");
}
