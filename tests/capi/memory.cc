// Memory that runs out at any allocation, once or for good: an error, nothing lost, and the next attempt works. A program of
// its own, because it replaces operator new, for the library too.
#include <cstring>

#include "support/api.h"
#include "support/failing_new.h"
#include "support/golden.h"

using namespace api;

namespace {

struct Objects {
  duet_library* library = nullptr;
  duet_model* model = nullptr;
  duet_state* state = nullptr;
  duet_session* session = nullptr;
  duet_tokenizer* tokenizer = nullptr;
  duet_sampler* sampler = nullptr;
  void free() {
    duet_sampler_free(sampler);
    duet_tokenizer_free(tokenizer);
    duet_session_free(session);
    duet_state_free(state);
    duet_model_free(model);
    duet_library_free(library);
    *this = {};
  }
};

// From a fresh library to text; allocates nothing itself. The first failure ends it.
duet_status everything(const char* device, const char* model, const char* vocabulary, char* buffer, size_t cap) {
  static const int32_t tokens[3] = {1, 2, 3};
  static const uint32_t length = 3;
  Objects o;
  duet_status s = DUET_OK;
  const auto all = [&] {
    auto lo = DUET_INIT(duet_library_options);
    lo.n_threads = 1;
    lo.log_level = DUET_LOG_OFF;
    lo.plugin_path = std::strcmp(device, "cpu") == 0 ? DUET_PLUGINS : "/nonexistent";
    auto mo = DUET_INIT(duet_model_options);
    mo.device = device;
    auto b = DUET_INIT(duet_batch);
    b.n_seqs = 1;
    b.tokens = tokens;
    b.lengths = &length;
    auto go = DUET_INIT(duet_generate_options);
    go.max_tokens = 3;
    size_t n = 0;
    int32_t ids[16];
    if ((s = duet_library_create(&lo, &o.library)) != DUET_OK) return;
    if ((s = duet_model_load(o.library, model, &mo, &o.model)) != DUET_OK) return;
    if ((s = duet_tokenizer_load(o.library, vocabulary, &o.tokenizer)) != DUET_OK) return;
    if ((s = duet_state_create(o.model, 2, nullptr, &o.state)) != DUET_OK) return;
    if ((s = duet_session_create(o.model, nullptr, &o.session)) != DUET_OK) return;
    if ((s = duet_sampler_create(nullptr, &o.sampler)) != DUET_OK) return;
    if ((s = duet_forward(o.session, o.state, &b)) != DUET_OK) return;
    if ((s = duet_state_copy(o.state, 1, o.state, 0)) != DUET_OK) return;
    if ((s = duet_state_save(o.state, 0, buffer, cap, &n)) != DUET_OK) return;
    if ((s = duet_state_load(o.state, 1, buffer, n)) != DUET_OK) return;
    if ((s = duet_tokenizer_encode(o.tokenizer, "Once", 4, ids, 16, &n)) != DUET_OK) return;
    s = duet_generate(o.session, o.state, 0, o.sampler, tokens, 3, &go, nullptr);
  };
  all();
  o.free();
  return s;
}

// Each call to operator new fails once, then for good. `may_lose`: blocks that are none of ours
void sweep(const char* device, int64_t may_lose) {
  const std::string model = golden::path("tiny.pth"), vocabulary = std::string(DUET_SOURCE) + "/models/stories-7m/vocab.txt";
  std::string buffer(size_t{1} << 20, '\0');
  const auto run = [&] { return everything(device, model.c_str(), vocabulary.c_str(), buffer.data(), buffer.size()); };
  for (int i = 0; i < 2; ++i) check(run());  // what is made once and kept
  int64_t wrong = 0, lost = 0, failures = 0, optional = 0;
  bool done = false;
  for (int64_t k = 0; !done; k += 1 + k / 60) {
    for (const bool for_good : {false, true}) {
      const int64_t live = g_live;
      g_failed = 0;
      g_for_good = for_good;
      g_until = k;
      const duet_status s = run();
      g_until = -1;
      done = g_failed == 0;
      failures += !done;
      const bool unnoticed = !done && s == DUET_OK && !for_good;  // one that nobody needs: of a log message, say
      optional += unnoticed;
      const bool ok = unnoticed || s == (done ? DUET_OK : DUET_E_MEMORY);
      wrong += !ok;
      lost += g_live - live;
      if (!ok || g_live - live > may_lose) WARN("allocation " << k << (for_good ? " and all after it: " : ": ") << duet_status_name(s) << ", " << duet_last_error() << ", " << g_live - live << " blocks lost");
    }
    if (k % 7 == 0) check(run());
  }
  CHECK(failures > 200);  // the library does use our operator new
  CHECK(wrong == 0);
  CHECK(optional * 20 < failures);
  CHECK(lost <= may_lose);
  check(run());
}

}  // namespace

TEST_CASE("memory that runs out at any allocation is an error, loses nothing, and the next attempt works") { sweep("reference", 0); }

#ifdef DUET_HAS_CPU
// oneDNN 2.6 loses two blocks each time that it cannot make an iterator of its own; the leak checker would count them too. It
// looks for this name among what the program exports.
extern "C" [[gnu::visibility("default")]] const char* __lsan_default_suppressions() { return "leak:libdnnl"; }
TEST_CASE("memory that runs out at any allocation of the CPU plugin too") { sweep("cpu", 16); }
#endif
