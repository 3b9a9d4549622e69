#include "walk.h"

#include <cmath>

// Three copies for wider and wider vectors; the system's loader takes the best one that the machine can run. Sanitizers are
// not ready yet at that time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define WIDE __attribute__((target_clones("avx512f", "fma", "default")))
#else
#define WIDE
#endif

namespace wkv_cpp {

WIDE void walk(const Head& head, float* S, float* scratch) noexcept {
  const size_t N = head.N;
  float *w = scratch, *b = scratch + N;
  for (size_t t = 0; t < head.n_tokens; ++t) {
    const size_t at = t * head.stride;
    const float *r = head.r + at, *k = head.k + at, *v = head.v + at, *kk = head.kk + at, *a = head.a + at;
    for (size_t j = 0; j < N; ++j) {
      w[j] = std::exp(-0.60653065971263342f / (1 + std::exp(-head.w_raw[at + j])));
      b[j] = kk[j] * a[j];
    }
    for (size_t i = 0; i < N; ++i) {
      float *row = S + i * N, held = 0, y = 0;  // what the memory holds under the key kk
#pragma omp simd reduction(+ : held)
      for (size_t j = 0; j < N; ++j) held += row[j] * kk[j];
#pragma omp simd reduction(+ : y)
      for (size_t j = 0; j < N; ++j) {
        row[j] = row[j] * w[j] - held * b[j] + v[i] * k[j];
        y += row[j] * r[j];
      }
      head.y[at + i] = y;
    }
  }
}

}  // namespace wkv_cpp
