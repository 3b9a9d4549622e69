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

void check(duet_status s);  // DUET_OK, or the test ends with the library's sentence
Library library(uint32_t n_threads = 0);
Model load(const Library& l, const std::string& path, const char* device, duet_dtype weights = 0);
State state(const Model& m, uint32_t n_slots = 1, duet_dtype wkv = 0);
Session session(const Model& m, duet_mode mode, uint32_t max_tokens = 0);
duet_model_info info(const Model& m);
Tokenizer tokenizer(const Model& m);

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
  void add(const std::vector<int32_t>& t, uint32_t slot);
};

// Runs the batch and returns the whole output asked for.
std::vector<float> forward(const Session& x, const State& s, const Batch& b, uint32_t outputs = DUET_OUT_ALL_LOGITS, uint32_t which = DUET_OUTPUT_LOGITS);
std::vector<float> forward(const Session& x, const State& s, const std::vector<int32_t>& tokens, uint32_t slot = 0);
// All logits of tokens in slot 0, in threads, which must not assert: nothing where a call fails. The second with a session and a state of its own.
std::vector<float> try_forward(duet_session* x, duet_state* s, const std::vector<int32_t>& tokens);
std::vector<float> try_forward(const Model& m, duet_mode mode, const std::vector<int32_t>& tokens);

struct Arrays {
  std::vector<float> att_x, wkv, ffn_x;
  bool operator==(const Arrays&) const = default;
};
Arrays arrays(const Model& m, const State& s, uint32_t slot = 0);

// The largest difference; 1e30 for NaN
double worst(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace api
