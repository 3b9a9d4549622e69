// One object of each kind on the tiny model, and the check of a refusal, for the tests of misuse.
#pragma once
#include "support/api.h"
#include "support/golden.h"

namespace api {

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
inline void refused(duet_status got, duet_status want, const std::string& word) {
  INFO(duet_status_name(got) << ": " << duet_last_error() << " (expected " << duet_status_name(want) << " with \"" << word << "\")");
  CHECK(got == want);
  CHECK(std::string(duet_last_error()).find(word) != std::string::npos);
}

}  // namespace api
