// How far the probabilities that one model gives are from those of another, on one text.
#pragma once
#include <cstdint>
#include <vector>

#include "runtime.h"

namespace duet {

// A model that reads one sequence.
struct Reader {
  Session session;
  State state;
  Reader(duet_model* model, const StateOptions& state_options, duet_mode mode);
};

// Sums over the positions that have a token after them, in nats.
struct Comparison {
  uint64_t positions = 0, agree = 0;  // agree: both find the same token the most probable
  double nll = 0, reference_nll = 0, kl = 0, kl_max = 0;
};

// Adds a text, read by both from fresh states. A few rows of logits at a time are in memory.
void compare(const Reader& model, const Reader& reference, const std::vector<int32_t>& tokens, Comparison& sum);

}  // namespace duet
