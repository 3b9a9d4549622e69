// The recurrence of one head of one sequence.
#pragma once
#include <cstddef>
#include <cstdint>

namespace wkv_cpp {

struct Head {
  const float *r, *w_raw, *k, *v, *kk, *a;  // of the first token; the next one's stand `stride` floats on
  float* y;
  size_t stride;
  uint32_t N, n_tokens;
};

// S = S diag(w) + (S (-kk)) (kk a)^T + v k^T;  y = S r, token after token. S is [N,N], value row, key column; `scratch` holds 2 N floats.
void walk(const Head& head, float* S, float* scratch) noexcept;

}  // namespace wkv_cpp
