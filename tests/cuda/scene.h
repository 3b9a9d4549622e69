// What the tests on a GPU share: the model, its tokens, and whether there is a GPU at all.
#pragma once
#include <iostream>
#include <string>
#include <vector>

#include "cuda/driver.h"
#include "support/api.h"

namespace scene {

// True, and said so that ctest counts the test as skipped, where there are fewer GPUs. On a machine with GPUs the library must
// find them.
bool lacks_gpus(int wanted);
std::string model_path();  // DUET_TEST_MODEL, or the bundled model of the repository

inline std::string spec(int device) { return "cuda:" + std::to_string(device); }

struct Drawn {
  duet_status status = DUET_OK;
  std::string failure;
  std::vector<int32_t> tokens;
  bool operator==(const Drawn&) const = default;
  friend std::ostream& operator<<(std::ostream& to, const Drawn& d) { return to << d.tokens.size() << " tokens, " << duet_status_name(d.status) << " " << d.failure; }
};
// Draws n tokens after a prompt, of one seed. From any thread: asserts nothing.
Drawn draw(const api::Session& x, const api::State& s, uint32_t slot, const std::vector<int32_t>& prompt, uint32_t n);

// The last logits of sequences of equal lengths in slots 0, 1, ..., which are reset first. From any thread.
struct Form {
  uint32_t n_seqs, length;
};
struct Read {
  duet_status status = DUET_OK;
  std::string failure;
  std::vector<float> logits;
  bool operator==(const Read&) const = default;
  friend std::ostream& operator<<(std::ostream& to, const Read& r) { return to << r.logits.size() << " logits, " << duet_status_name(r.status) << " " << r.failure; }
};
Read read(const api::Session& x, const api::State& s, const Form& form);

// A model on a device, with a session of both modes and a state, and what it draws.
struct Runner {
  api::Model model;
  api::Session session;
  api::State state;
  Runner(const api::Library& lib, const std::string& device, duet_dtype weights = 0, uint32_t n_slots = 1);
  Drawn draw() const;  // of a fresh slot 0, the same every time
};

}  // namespace scene
