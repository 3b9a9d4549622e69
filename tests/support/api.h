// The C API with owners, for tests.
#pragma once
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "duet.h"
#include "support/catch.h"

namespace api {

#define DUET_TEST_OWNER(Name, type)                                        \
  struct Name##Free {                                                      \
    void operator()(type* p) const { type##_free(p); }                     \
  };                                                                       \
  using Name = std::unique_ptr<type, Name##Free>
DUET_TEST_OWNER(Library, duet_library);
DUET_TEST_OWNER(Model, duet_model);
DUET_TEST_OWNER(State, duet_state);
DUET_TEST_OWNER(Session, duet_session);
DUET_TEST_OWNER(Tokenizer, duet_tokenizer);
DUET_TEST_OWNER(Sampler, duet_sampler);
#undef DUET_TEST_OWNER

inline void check(duet_status s) {
  INFO(duet_status_name(s) << ": " << duet_last_error());
  REQUIRE(s == DUET_OK);
}

inline Library library(uint32_t n_threads = 0) {
  auto o = DUET_INIT(duet_library_options);
  o.n_threads = n_threads;
  duet_library* l = nullptr;
  check(duet_library_create(&o, &l));
  return Library(l);
}
inline Model load(const Library& l, const std::string& path, const char* device, duet_dtype weights = 0) {
  auto o = DUET_INIT(duet_model_options);
  o.device = device;
  o.weights = weights;
  duet_model* m = nullptr;
  check(duet_model_load(l.get(), path.c_str(), &o, &m));
  return Model(m);
}
inline State state(const Model& m, uint32_t n_slots = 1, duet_dtype wkv = 0) {
  auto o = DUET_INIT(duet_state_options);
  o.wkv = wkv;
  duet_state* s = nullptr;
  check(duet_state_create(m.get(), n_slots, &o, &s));
  return State(s);
}
inline Session session(const Model& m, duet_mode mode, uint32_t max_tokens = 0) {
  auto o = DUET_INIT(duet_session_options);
  o.mode = mode;
  o.max_tokens = max_tokens;
  duet_session* s = nullptr;
  check(duet_session_create(m.get(), &o, &s));
  return Session(s);
}
inline duet_model_info info(const Model& m) {
  auto i = DUET_INIT(duet_model_info);
  check(duet_model_get(m.get(), &i));
  return i;
}
inline Tokenizer tokenizer(const Model& m) {
  duet_tokenizer* t = nullptr;
  check(duet_tokenizer_for_model(m.get(), &t));
  return Tokenizer(t);
}

// The backends that tests run on: what this build always has, or the words of DUET_TEST_BACKENDS ("reference,cuda"), as on a
// machine with a device of its own.
inline const std::vector<const char*>& backends() {
  static const std::vector<const char*> list = [] {
    const char* asked = std::getenv("DUET_TEST_BACKENDS");
#ifdef DUET_HAS_CPU
    static std::string words = asked ? asked : "reference,cpu";
#else
    static std::string words = asked ? asked : "reference";
#endif
    std::vector<const char*> out;
    for (char* word = std::strtok(words.data(), ","); word; word = std::strtok(nullptr, ",")) out.push_back(word);
    return out;
  }();
  return list;
}

// On a CPU bits depend on less: docs/modes.md.
inline bool on_cpu(const std::string& backend) { return backend == "reference" || backend == "cpu"; }

struct Batch {
  std::vector<int32_t> tokens;
  std::vector<uint32_t> lengths, slots;
  void add(const std::vector<int32_t>& t, uint32_t slot) {
    tokens.insert(tokens.end(), t.begin(), t.end());
    lengths.push_back(static_cast<uint32_t>(t.size()));
    slots.push_back(slot);
  }
};

// Runs the batch and returns the whole output asked for.
inline std::vector<float> forward(const Session& x, const State& s, const Batch& b, uint32_t outputs = DUET_OUT_ALL_LOGITS, uint32_t which = DUET_OUTPUT_LOGITS) {
  auto batch = DUET_INIT(duet_batch);
  batch.n_seqs = static_cast<uint32_t>(b.lengths.size());
  batch.tokens = b.tokens.data();
  batch.lengths = b.lengths.data();
  batch.slots = b.slots.data();
  batch.outputs = outputs;
  check(duet_forward(x.get(), s.get(), &batch));
  const float* data = nullptr;
  uint32_t rows = 0, width = 0;
  check(duet_session_outputs(x.get(), which, &data, &rows, &width));
  return {data, data + size_t{rows} * width};
}
inline std::vector<float> forward(const Session& x, const State& s, const std::vector<int32_t>& tokens, uint32_t slot = 0) {
  Batch b;
  b.add(tokens, slot);
  return forward(x, s, b);
}

struct Arrays {
  std::vector<float> att_x, wkv, ffn_x;
  bool operator==(const Arrays&) const = default;
};
inline Arrays arrays(const Model& m, const State& s, uint32_t slot = 0) {
  const auto i = info(m);
  const size_t c = size_t{i.n_layer} * i.n_embd;
  Arrays a{std::vector<float>(c), std::vector<float>(c * i.head_size), std::vector<float>(c)};
  check(duet_state_get(s.get(), slot, a.att_x.data(), a.wkv.data(), a.ffn_x.data()));
  return a;
}

inline double worst(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double w = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(a[i] == a[i])) return 1e30;  // NaN
    w = std::max(w, std::abs(double{a[i]} - b[i]));
  }
  return w;
}

}  // namespace api
