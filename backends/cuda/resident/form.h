// What the weights may be, and what follows: how the ring is cut up, and what is never divided between blocks.
#pragma once
#include "quantised_group.h"

namespace duet_cuda::resident {

constexpr uint32_t kMaxStages = 12;

struct Bf16 {
  static constexpr uint32_t kStages = 12, kStageBytes = 16 << 10;
  static constexpr uint32_t kRows = 1;     // outputs that lie together
  static constexpr uint32_t kColumns = 2;  // of x
  static constexpr uint32_t kFewest = 16;  // of them that a block has
  static constexpr uint32_t kInner = 1;    // rows of key
  static constexpr uint32_t kHidden = 1;   // of what lies between two low-rank matrices
  static constexpr uint32_t kHeard = 5;    // blocks' parts of x's columns that a thread waits for at a time: those of all of an H100's
};

// q8 and q4: tiles of 16 outputs, each of groups of 64 inputs. One of these is a unit: what a warp multiplies by at a time. A block
// has whole groups of x and of the inner vector, and rounds them.
template <int kBits>
struct Quantised {
  static constexpr uint32_t kUnits = 128 / kBits;                             // in a stage: the integers of all, then the scales, then the minimums
  static constexpr uint32_t kIntegers = GroupWeights<kBits>::kBytes, kScales = 2 * kTile;  // bytes of a unit
  static constexpr uint32_t kUnitBytes = kIntegers + (kBits == 4 ? 2 : 1) * kScales;
  static constexpr uint32_t kStageBytes = kUnits * kUnitBytes, kStages = (198 << 10) / kStageBytes;
  static constexpr uint32_t kRows = kTile, kColumns = kGroup, kFewest = kGroup, kInner = kGroup, kHidden = kGroup, kHeard = 9;
};

}  // namespace duet_cuda::resident
