// What the stage `sample` reads and writes in device memory, made from samplers.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "duet_plugin.h"
#include "text/sampler.h"

namespace duet {

// A row of a block of steps: each step feeds the token before to the slot, and draws the next.
struct Draw {
  uint32_t slot;
  int32_t token;           // the first that is fed
  const Sampler* sampler;  // as it is before the first draw; stays as it is
};

// Rows and entries for `n_steps` draws of each row. Biases and counts must name tokens below n_vocab, as a pick has checked.
struct DrawTables {
  std::vector<duetp_sample_row> rows;
  std::vector<duetp_sample_entry> entries;  // with room for what the draws will append
  DrawTables(std::span<const Draw> draws, uint32_t n_steps, uint32_t n_vocab);
};

// DUET_E_NUMERIC for what a device puts in place of a token that it could not draw.
[[noreturn]] void fail_draw(int32_t history, uint32_t n_vocab);

}  // namespace duet
