// The packings that are tried.
#pragma once
#include <cstdint>
#include <vector>

#include "conform/frame.h"

namespace conform {

// T tokens as one sequence, and ragged: with an empty sequence, and one that starts from zero and is dropped. Slots below 5.
inline std::vector<Batch> parallel_batches(int32_t T) {
  if (T == 0) return {{{0, 0}, {3, 1}, {}}};
  std::vector<Batch> out{{{T}, {3}, {T - 1}}};
  if (T > 2) out.push_back({{T / 2, 0, 1, T - T / 2 - 1}, {4, 2, -1, 0}, {T - 1, 0, T / 2}});
  return out;
}

// n sequences of one token; the second is empty, the fourth is dropped. Slots up to n.
inline Batch recurrent_batch(int32_t n) {
  Batch b;
  for (int32_t i = 0; i < n; ++i) {
    b.lengths.push_back(i == 1 ? 0 : 1);
    b.slots.push_back(i == 3 ? -1 : n - i);
    if (i < b.n_tokens()) b.rows.push_back(i);
  }
  return b;
}

}  // namespace conform
