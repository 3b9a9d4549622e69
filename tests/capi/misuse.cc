// Every function with NULL, stale, foreign and forged handles, wrong struct sizes, wrong lengths and numbers: a code and a
// sentence each, and never a crash.
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <random>

#include "support/api.h"
#include "support/golden.h"

using namespace api;

namespace {

struct World {
  Library lib = library(2);
  Model m = load(lib, golden::path("tiny.pth"), "reference");
  State s = state(m, 2);
  Session x = session(m, DUET_MODE_AUTO);
  Tokenizer t = [this] {
    duet_tokenizer* p = nullptr;
    check(duet_tokenizer_load(lib.get(), nullptr, &p));
    return Tokenizer(p);
  }();
  Sampler p = [] {
    duet_sampler* q = nullptr;
    check(duet_sampler_create(nullptr, &q));
    return Sampler(q);
  }();
};

// The call failed with this code and left a sentence that holds `word`.
void refused(duet_status got, duet_status want, const std::string& word) {
  INFO(duet_status_name(got) << ": " << duet_last_error() << " (expected " << duet_status_name(want) << " with \"" << word << "\")");
  CHECK(got == want);
  CHECK(std::string(duet_last_error()).find(word) != std::string::npos);
}

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

TEST_CASE("every pointer argument NULL") {
  World w;
  const std::string path = golden::path("tiny.pth");
  int32_t tokens[2] = {1, 2};
  float logits[2] = {};
  duet_sampler_options so = DUET_INIT(duet_sampler_options);
  refused(duet_library_create(nullptr, nullptr), DUET_E_INVALID, "out_library");
  refused(duet_library_report(w.lib.get(), nullptr, 0, nullptr), DUET_E_INVALID, "out_size");
  refused(duet_device_count(w.lib.get(), nullptr), DUET_E_INVALID, "out_count");
  refused(duet_device_get(w.lib.get(), 0, nullptr), DUET_E_INVALID, "out_info");
  size_t n = 0;
  refused(duet_file_info(w.lib.get(), nullptr, 0, nullptr, 0, &n), DUET_E_INVALID, "path");
  refused(duet_file_info(w.lib.get(), path.c_str(), 0, nullptr, 0, nullptr), DUET_E_INVALID, "out_size");
  refused(duet_file_convert(w.lib.get(), nullptr, "x", nullptr), DUET_E_INVALID, "in");
  refused(duet_file_convert(w.lib.get(), "x", nullptr, nullptr), DUET_E_INVALID, "out");
  refused(duet_file_init(w.lib.get(), "x", nullptr), DUET_E_INVALID, "options");
  duet_model* m = nullptr;
  refused(duet_model_load(w.lib.get(), nullptr, nullptr, &m), DUET_E_INVALID, "path");
  refused(duet_model_load(w.lib.get(), path.c_str(), nullptr, nullptr), DUET_E_INVALID, "out_model");
  refused(duet_model_random(w.lib.get(), nullptr, nullptr, &m), DUET_E_INVALID, "random");
  auto random = DUET_INIT(duet_random_options);
  refused(duet_model_random(w.lib.get(), &random, nullptr, &m), DUET_E_INVALID, "shape");
  refused(duet_model_save(w.m.get(), nullptr), DUET_E_INVALID, "path");
  refused(duet_model_get(w.m.get(), nullptr), DUET_E_INVALID, "out_info");
  refused(duet_state_create(w.m.get(), 1, nullptr, nullptr), DUET_E_INVALID, "out_state");
  refused(duet_state_save(w.s.get(), 0, nullptr, 0, nullptr), DUET_E_INVALID, "out_size");
  refused(duet_state_save(w.s.get(), 0, nullptr, 10, &n), DUET_E_INVALID, "dst");
  refused(duet_state_load(w.s.get(), 0, nullptr, 10), DUET_E_INVALID, "src");
  refused(duet_state_save_file(w.s.get(), 0, nullptr), DUET_E_INVALID, "path");
  refused(duet_state_load_file(w.s.get(), 0, nullptr), DUET_E_INVALID, "path");
  refused(duet_session_create(w.m.get(), nullptr, nullptr), DUET_E_INVALID, "out_session");
  refused(duet_forward(w.x.get(), w.s.get(), nullptr), DUET_E_INVALID, "batch");
  auto batch = DUET_INIT(duet_batch);
  batch.n_seqs = 1;
  refused(duet_forward(w.x.get(), w.s.get(), &batch), DUET_E_INVALID, "batch->tokens");
  const float* row = nullptr;
  uint32_t u = 0;
  refused(duet_session_output(w.x.get(), 0, 0, nullptr), DUET_E_INVALID, "out_row");
  refused(duet_session_outputs(w.x.get(), 0, nullptr, &u, &u), DUET_E_INVALID, "out_rows_data");
  refused(duet_session_outputs(w.x.get(), 0, &row, nullptr, &u), DUET_E_INVALID, "out_rows");
  refused(duet_session_outputs(w.x.get(), 0, &row, &u, nullptr), DUET_E_INVALID, "out_width");
  refused(duet_score(w.x.get(), w.s.get(), 0, nullptr, 2, nullptr), DUET_E_INVALID, "tokens");
  refused(duet_score(w.x.get(), w.s.get(), 0, tokens, 2, nullptr), DUET_E_INVALID, "out_nll");
  refused(duet_tokenizer_load(w.lib.get(), nullptr, nullptr), DUET_E_INVALID, "out_tokenizer");
  refused(duet_tokenizer_for_model(w.m.get(), nullptr), DUET_E_INVALID, "out_tokenizer");
  refused(duet_tokenizer_size(w.t.get(), nullptr), DUET_E_INVALID, "out_n");
  refused(duet_tokenizer_encode(w.t.get(), nullptr, 1, nullptr, 0, &n), DUET_E_INVALID, "text");
  refused(duet_tokenizer_encode(w.t.get(), "a", 1, nullptr, 0, nullptr), DUET_E_INVALID, "out_size");
  refused(duet_tokenizer_decode(w.t.get(), nullptr, 1, nullptr, 0, &n), DUET_E_INVALID, "tokens");
  refused(duet_sampler_options_default(nullptr), DUET_E_INVALID, "options");
  refused(duet_sampler_create(&so, nullptr), DUET_E_INVALID, "out_sampler");
  so.n_bias = 1;
  check(duet_sampler_options_default(&so));
  so.n_bias = 1;
  duet_sampler* p = nullptr;
  refused(duet_sampler_create(&so, &p), DUET_E_INVALID, "bias_tokens");
  refused(duet_sampler_probs(w.p.get(), nullptr, 2, logits), DUET_E_INVALID, "logits");
  refused(duet_sampler_probs(w.p.get(), logits, 2, nullptr), DUET_E_INVALID, "out_probs");
  refused(duet_sampler_pick(w.p.get(), logits, 2, nullptr), DUET_E_INVALID, "out_token");
  refused(duet_generate(w.x.get(), w.s.get(), 0, w.p.get(), nullptr, 2, nullptr, nullptr), DUET_E_INVALID, "prompt");
  CHECK(m == nullptr);
  CHECK(p == nullptr);
}

TEST_CASE("struct sizes: 0, too small, larger with zero and with other tail") {
  World w;
  struct Larger {
    duet_session_options o;
    char tail[64];
  } larger{};
  larger.o.size = sizeof larger;
  duet_session* x = nullptr;
  check(duet_session_create(w.m.get(), &larger.o, &x));
  duet_session_free(x);
  larger.tail[40] = 1;
  refused(duet_session_create(w.m.get(), &larger.o, &x), DUET_E_ABI, "does not know");
  for (const uint32_t size : {0u, 4u, 0xffffffffu, 1u << 20}) {
    auto o = DUET_INIT(duet_session_options);
    o.size = size;
    refused(duet_session_create(w.m.get(), &o, &x), DUET_E_ABI, "size");
    auto info = DUET_INIT(duet_model_info);
    info.size = size;
    refused(duet_model_get(w.m.get(), &info), DUET_E_ABI, "size");
  }
}

TEST_CASE("numbers out of range") {
  World w;
  duet_session* x = nullptr;
  auto so = DUET_INIT(duet_session_options);
  so.mode = 3;
  refused(duet_session_create(w.m.get(), &so, &x), DUET_E_INVALID, "mode");
  so.mode = -1;
  refused(duet_session_create(w.m.get(), &so, &x), DUET_E_INVALID, "mode");
  auto lo = DUET_INIT(duet_library_options);
  lo.n_threads = 257;
  duet_library* l = nullptr;
  refused(duet_library_create(&lo, &l), DUET_E_LIMIT, "256");
  duet_state* s = nullptr;
  refused(duet_state_create(w.m.get(), 0, nullptr, &s), DUET_E_LIMIT, "n_slots");
  refused(duet_state_create(w.m.get(), 0xffffffff, nullptr, &s), DUET_E_LIMIT, "n_slots");
  auto st = DUET_INIT(duet_state_options);
  st.wkv = DUET_F16;
  refused(duet_state_create(w.m.get(), 1, &st, &s), DUET_E_UNSUPPORTED, "f32");
  refused(duet_state_reset(w.s.get(), 2), DUET_E_INVALID, "slot 2");
  auto mo = DUET_INIT(duet_model_options);
  mo.weights = 99;
  duet_model* m = nullptr;
  refused(duet_model_load(w.lib.get(), golden::path("tiny.pth").c_str(), &mo, &m), DUET_E_UNSUPPORTED, "99");
  mo.weights = 0;
  mo.device = "tpu";
  refused(duet_model_load(w.lib.get(), golden::path("tiny.pth").c_str(), &mo, &m), DUET_E_NOT_FOUND, "reference");

  int32_t tokens[3] = {1, 256, 2};
  uint32_t lengths[3] = {1, 1, 1}, slots[3] = {0, 0, 1};
  auto b = DUET_INIT(duet_batch);
  b.n_seqs = 1;
  b.tokens = tokens + 1;
  refused(duet_forward(w.x.get(), w.s.get(), &b), DUET_E_INVALID, "token 256 at position 0");
  tokens[1] = -1;
  refused(duet_forward(w.x.get(), w.s.get(), &b), DUET_E_INVALID, "token -1");
  tokens[1] = 3;
  b.n_seqs = 2;
  b.slots = slots;
  refused(duet_forward(w.x.get(), w.s.get(), &b), DUET_E_INVALID, "twice");
  slots[1] = 7;
  refused(duet_forward(w.x.get(), w.s.get(), &b), DUET_E_INVALID, "slot 7");
  slots[1] = 1;
  b.outputs = 1u << 20;
  refused(duet_forward(w.x.get(), w.s.get(), &b), DUET_E_INVALID, "outputs");
  b.outputs = 0;
  lengths[0] = 0xffffffff;
  b.lengths = lengths;
  refused(duet_forward(w.x.get(), w.s.get(), &b), DUET_E_LIMIT, "tokens");
  const float* row = nullptr;
  refused(duet_session_output(w.x.get(), 0, 0, &row), DUET_E_INVALID, "row 0");
  refused(duet_session_output(w.x.get(), 9, 0, &row), DUET_E_INVALID, "output 9");
  refused(duet_generate(w.x.get(), w.s.get(), 0, w.p.get(), tokens, 0, nullptr, nullptr), DUET_E_INVALID, "empty");
  size_t n = 0;
  refused(duet_tokenizer_encode(w.t.get(), "a", SIZE_MAX, nullptr, 0, &n), DUET_E_LIMIT, "bytes");
  tokens[1] = 65530;
  char text[8] = "unchang";
  refused(duet_tokenizer_decode(w.t.get(), tokens, 2, text, sizeof text, &n), DUET_E_INVALID, "position 1");
  CHECK(std::string(text) == "unchang");
  for (const int32_t bad : {-1, 65536, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
    tokens[1] = bad;
    refused(duet_tokenizer_decode(w.t.get(), tokens, 2, text, sizeof text, &n), DUET_E_INVALID, "position 1");
    CHECK(std::string(text) == "unchang");
  }
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -1.0f}) {
    auto o = DUET_INIT(duet_sampler_options);
    check(duet_sampler_options_default(&o));
    o.temperature = bad;
    duet_sampler* p = nullptr;
    refused(duet_sampler_create(&o, &p), DUET_E_INVALID, "temperature");
    check(duet_sampler_options_default(&o));
    o.top_p = bad;
    refused(duet_sampler_create(&o, &p), DUET_E_INVALID, "top_p");
  }
  float logits[2] = {0, std::numeric_limits<float>::quiet_NaN()};
  int32_t token = 0;
  refused(duet_sampler_pick(w.p.get(), logits, 2, &token), DUET_E_NUMERIC, "1");
}

TEST_CASE("strings that are too long, empty or not UTF-8") {
  World w;
  const std::string path = golden::path("tiny.pth"), endless(70000, 'x'), broken = "\xff";
  duet_model* m = nullptr;
  refused(duet_model_load(w.lib.get(), endless.c_str(), nullptr, &m), DUET_E_LIMIT, "path");
  refused(duet_model_load(w.lib.get(), "", nullptr, &m), DUET_E_INVALID, "path is empty");
  auto mo = DUET_INIT(duet_model_options);
  mo.device = endless.c_str();
  refused(duet_model_load(w.lib.get(), path.c_str(), &mo, &m), DUET_E_LIMIT, "device");
  mo.device = broken.c_str();
  refused(duet_model_load(w.lib.get(), path.c_str(), &mo, &m), DUET_E_INVALID, "\\xff");
  auto ro = DUET_INIT(duet_random_options);
  ro.shape = endless.c_str();
  refused(duet_model_random(w.lib.get(), &ro, nullptr, &m), DUET_E_LIMIT, "shape");
  const int32_t prompt = 0;
  for (const auto& [text, code] : {std::pair(endless, DUET_E_LIMIT), std::pair(broken, DUET_E_INVALID), std::pair(std::string(), DUET_E_INVALID)}) {
    const char* stop = text.c_str();
    auto o = DUET_INIT(duet_generate_options);
    o.tokenizer = w.t.get();
    o.stop_texts = &stop;
    o.n_stop_texts = 1;
    refused(duet_generate(w.x.get(), w.s.get(), 0, w.p.get(), &prompt, 1, &o, nullptr), code, "stop_texts");
  }
  CHECK(m == nullptr);
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

TEST_CASE("buffers: too small gives the size and writes nothing past the end") {
  World w;
  const std::string text = "The quick brown fox";
  int32_t ids[64];
  size_t n = 0;
  check(duet_tokenizer_encode(w.t.get(), text.data(), text.size(), nullptr, 0, &n));
  REQUIRE(n > 2);
  ids[n - 1] = -77;
  size_t m = 0;
  refused(duet_tokenizer_encode(w.t.get(), text.data(), text.size(), ids, n - 1, &m), DUET_E_SMALL, "room");
  CHECK(m == n);
  CHECK(ids[n - 1] == -77);
  check(duet_tokenizer_encode(w.t.get(), text.data(), text.size(), ids, n, &m));
  char out[64] = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
  check(duet_tokenizer_decode(w.t.get(), ids, n, out, text.size(), &m));
  CHECK(std::string(out, m) == text);
  CHECK(out[m] == 'x');  // no room for a final NUL, so none
  check(duet_tokenizer_decode(w.t.get(), ids, n, out, sizeof out, &m));
  CHECK(std::string(out) == text);
  std::memset(out, 'x', sizeof out);
  for (const size_t cap : {size_t{0}, size_t{1}, text.size() - 1}) {
    refused(duet_tokenizer_decode(w.t.get(), ids, n, out, cap, &m), DUET_E_SMALL, "room");
    CHECK(m == text.size());
    CHECK(out[0] == 'x');
  }
  refused(duet_tokenizer_encode(w.t.get(), text.data(), text.size(), ids, 0, &m), DUET_E_SMALL, "room");
  CHECK(m == n);
  check(duet_tokenizer_encode(w.t.get(), text.data(), 0, ids, 0, &m));
  CHECK(m == 0);
  refused(duet_library_report(w.lib.get(), out, 5, &m), DUET_E_SMALL, "room");
  CHECK(m > 5);
  refused(duet_file_info(w.lib.get(), golden::path("tiny.pth").c_str(), 0, out, 5, &m), DUET_E_SMALL, "room");
  refused(duet_state_save(w.s.get(), 0, out, sizeof out, &m), DUET_E_SMALL, "room");
  CHECK(m > sizeof out);
  CHECK(out[0] == 'x');
}

TEST_CASE("an error leaves out parameters and the state untouched") {
  World w;
  (void)forward(w.x, w.s, {1, 2, 3});
  const auto before = arrays(w.m, w.s);
  int32_t tokens[2] = {5, 999};
  auto b = DUET_INIT(duet_batch);
  uint32_t lengths[1] = {2};
  b.n_seqs = 1;
  b.tokens = tokens;
  b.lengths = lengths;
  CHECK(duet_forward(w.x.get(), w.s.get(), &b) == DUET_E_INVALID);
  CHECK(arrays(w.m, w.s) == before);
}

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

TEST_CASE("a library that is freed first leaves its objects working") {
  World w;
  w.lib.reset();
  const auto want = forward(w.x, w.s, {1, 2, 3});
  w.m.reset();
  check(duet_state_reset(w.s.get(), 0));
  CHECK(forward(w.x, w.s, {1, 2, 3}) == want);
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

TEST_CASE("names and versions") {
  CHECK(std::string(duet_status_name(DUET_E_ABI)) == "DUET_E_ABI");
  CHECK(std::string(duet_status_name(-12345)) == "DUET_E_UNKNOWN");
  CHECK(duet_api_version() == DUET_API_VERSION);
  CHECK(std::string(duet_version_string()).find("0.1.0") == 0);
}
