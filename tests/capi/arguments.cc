// Pointers, struct sizes, numbers, strings and buffers that are wrong: a code and a sentence each, and nothing has changed.
#include <cstring>
#include <limits>

#include "capi/world.h"

using namespace api;

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

namespace {

// A struct of a later version: zero beyond what we know, unless something is set there.
template <class T>
struct Later {
  T known;
  unsigned char tail[64] = {};
};

enum Direction { in, out };

// Calls with structs of every wrong size and of a later version; `call` gives the status.
template <class T, class Call>
void sizes(Direction direction, T good, Call call) {
  for (const uint32_t size : {0u, 4u, 4097u, 0x7fffffffu, 0xffffffffu}) {
    T wrong = good;
    wrong.size = size;
    refused(call(&wrong), DUET_E_ABI, "size");
  }
  Later<T> later{good};
  later.known.size = sizeof later;
  CHECK(call(&later.known) != DUET_E_ABI);
  later.tail[40] = 1;
  if (direction == in) return refused(call(&later.known), DUET_E_ABI, "does not know");
  CHECK(call(&later.known) == DUET_OK);
  CHECK(later.known.size == sizeof later);  // the library writes what it knows
  CHECK(later.tail[40] == 1);
}

}  // namespace

TEST_CASE("the size of every struct is checked, and a later version's zeros are fine") {
  World w;
  const std::string path = golden::path("tiny.pth"), made = std::string(DUET_BUILD) + "/sizes.safetensors";
  const int32_t token = 1;
  const auto freed = [](duet_status s, auto* object, auto* release) { return release(object), s; };
  sizes(in, DUET_INIT(duet_library_options), [&](auto* o) { duet_library* l = nullptr; const duet_status s = duet_library_create(o, &l); return freed(s, l, duet_library_free); });
  sizes(out, DUET_INIT(duet_device_info), [&](auto* i) { return duet_device_get(w.lib.get(), 0, i); });
  auto convert = DUET_INIT(duet_convert_options);
  convert.overwrite = 1;
  sizes(in, convert, [&](auto* o) { return duet_file_convert(w.lib.get(), path.c_str(), made.c_str(), o); });
  auto init = DUET_INIT(duet_init_options);
  init.n_layer = 1, init.n_embd = 64, init.n_vocab = 16, init.overwrite = 1;
  sizes(in, init, [&](auto* o) { return duet_file_init(w.lib.get(), made.c_str(), o); });
  std::remove(made.c_str());
  auto mo = DUET_INIT(duet_model_options);
  mo.device = "reference";
  sizes(in, mo, [&](auto* o) { duet_model* m = nullptr; const duet_status s = duet_model_load(w.lib.get(), path.c_str(), o, &m); return freed(s, m, duet_model_free); });
  auto random = DUET_INIT(duet_random_options);
  random.shape = "no such shape";
  sizes(in, random, [&](auto* o) { duet_model* m = nullptr; const duet_status s = duet_model_random(w.lib.get(), o, nullptr, &m); return freed(s, m, duet_model_free); });
  sizes(out, DUET_INIT(duet_model_info), [&](auto* i) { return duet_model_get(w.m.get(), i); });
  sizes(in, DUET_INIT(duet_state_options), [&](auto* o) { duet_state* s = nullptr; const duet_status r = duet_state_create(w.m.get(), 1, o, &s); return freed(r, s, duet_state_free); });
  sizes(in, DUET_INIT(duet_session_options), [&](auto* o) { duet_session* x = nullptr; const duet_status s = duet_session_create(w.m.get(), o, &x); return freed(s, x, duet_session_free); });
  sizes(in, DUET_INIT(duet_batch), [&](auto* b) { return duet_forward(w.x.get(), w.s.get(), b); });
  auto so = DUET_INIT(duet_sampler_options);
  check(duet_sampler_options_default(&so));
  sizes(in, so, [&](auto* o) { duet_sampler* p = nullptr; const duet_status s = duet_sampler_create(o, &p); return freed(s, p, duet_sampler_free); });
  sizes(out, so, [&](auto* o) { return duet_sampler_options_default(o); });
  auto go = DUET_INIT(duet_generate_options);
  go.max_tokens = 1;
  sizes(in, go, [&](auto* o) { return duet_generate(w.x.get(), w.s.get(), 0, w.p.get(), &token, 1, o, nullptr); });
  sizes(in, DUET_INIT(duet_generate_result), [&](auto* r) { return duet_generate(w.x.get(), w.s.get(), 0, w.p.get(), &token, 1, &go, r); });
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
  st.wkv = DUET_I8;
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

TEST_CASE("names and versions") {
  CHECK(std::string(duet_status_name(DUET_E_ABI)) == "DUET_E_ABI");
  CHECK(std::string(duet_status_name(-12345)) == "DUET_E_UNKNOWN");
  CHECK(duet_api_version() == DUET_API_VERSION);
  CHECK(std::string(duet_version_string()).find("0.1.0") == 0);
}
