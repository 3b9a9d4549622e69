// The chunked form of docs/mathematics.md, arranged so that little depends on the state. Of a chunk, with rows as tokens and in its symbols:
//   A = strict(Ã B̃ᵀ), T = (I - A)⁻¹, Q = low(R̃ B̃ᵀ) T
//   Ã' = T Ã,  Mu = T strict(Ã K̃ᵀ);   R̃' = R̃ + Q Ã,  My = low(R̃ K̃ᵀ) + Q strict(Ã K̃ᵀ)
// need no state: producer warps compute them, each a chunk of its own, chunks ahead. Walker warps, each with 16 value rows of the state, then do
//   Uᵀ = S Ã'ᵀ + Vᵀ Muᵀ;   Yᵀ = S R̃'ᵀ + Vᵀ Myᵀ;   S = (S + Vᵀ K̃ + Uᵀ B̃) diag(g)
// One step from S to S is two dependent products. U, S and V are used as operands in the layout that products leave their results in: a product
// may take its inner index in any order, if both operands do.
//
// Along time: what a segment does to the state is S -> S M + D. D is its final state from zero, M that from the identity and without values, so
// walkers find them as they find a state. The first launch walks the first segment of each sequence, whose state is known, and finds M and D of those
// between it and the last; in the second every other segment composes its initial state from those before it, in order, and is walked.
#include <algorithm>

#include "cuda/barrier.h"
#include "cuda/wkv_chunked.h"
#include "gpu/stored.h"

namespace duet_cuda {
namespace {

using duet_gpu::Error;
using duet_gpu::Wkv;

constexpr int kChunk = 16;

// Tensor cores cut off all but ten bits of an operand's mantissa. Half a unit of what remains, added before, turns that into rounding. This factor adds
// between 0.36 and 0.72 units, which is as good on average (cvt.rna.tf32 is three instructions), and keeps NaN.
constexpr float kToTf32 = 1.0f + 0.72f / 2048;

// Warps of a block that the registers suffice for.
template <int N>
constexpr int kMostWarps = N > 64 ? 12 : 16;
// Whether there are segments: two states at once need registers.
template <int N>
constexpr bool kTakesSegments = N <= 64;

// ---- instructions -----------------------------------------------------------------------------------------
__device__ __forceinline__ float to_tf32(float x) { return x * kToTf32; }

__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// d += a b of 16 x 8 and 8 x 8 tf32 elements. With g = lane / 4 and t = lane % 4 a thread holds
// a: (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4);  b: (t, g) (t + 4, g);  d: (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1).
__device__ __forceinline__ void multiply(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)), "r"(__float_as_uint(b0)),
        "r"(__float_as_uint(b1)));
}

// Four 8 x 4 pieces of tf32 matrices: lanes 8i to 8i + 7 give the addresses of the rows of piece i, of 16 bytes each; x[i] = (g, t) of it.
__device__ __forceinline__ void load_pieces(float (&x)[4], uint32_t address) {
  uint32_t bits[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(bits[0]), "=r"(bits[1]), "=r"(bits[2]), "=r"(bits[3])
               : "r"(address)
               : "memory");
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(bits[i]);
}

// 16 bytes to shared memory, or zeros, without the source being read.
__device__ __forceinline__ void copy_async(float* to, const float* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  while (!barrier_passed_soon(barrier, parity)) {
  }
}

// ---- shared memory ----------------------------------------------------------------------------------------
// Tiles [16][N] keep each row's 16-byte units in an order of its own, units ^ turn(row). Then a warp meets no bank twice when it reads a unit of
// eight rows (load_pieces), four units of two rows, a word of the units u and u + 4 of the rows 2t or 2t + 1, and one row.
__device__ __forceinline__ int turn(int row) { return (row >> 1 & 3) | (row & 1) << 2; }
template <int N>
__device__ __forceinline__ int tile_at(int row, int key) {
  return row * N + (((key >> 2) ^ turn(row)) << 2 | (key & 3));
}
// Products that run over keys take them eight at a time, the units j + 4 (j / 4) and that + 4, in this order. For the word `key` of the first
// (half 0) or second (half 1); j is known to the compiler.
template <int N>
__device__ __forceinline__ int eight_at(int row, int j, int half, int key) {
  return row * N + (((half << 2 | (j & 3)) ^ turn(row)) << 2) + (j >> 2) * 32 + key;
}
// For keys 16 i + 4 unit, unit < 4.
template <int N>
__device__ __forceinline__ int sixteen_at(int row, int i, int unit) {
  return row * N + ((unit ^ turn(row) ^ ((i & 1) << 2)) << 2) + (i >> 1) * 32;
}

constexpr int kSquareStride = 20;  // of 16 x 16 matrices: a unit of eight rows and a word of the rows 2t meet no bank twice

// One chunk in the ring: offsets in elements. Inputs arrive where the results of the same size will stand.
template <int N>
struct Stage {
  static constexpr int kTile = kChunk * N;
  static constexpr int kAlpha = 0;                                 // [16][N] kk, then Ã, then Ã'
  static constexpr int kRead = kTile;                              // [16][N] r, then R̃, then R̃'
  static constexpr int kKey = 2 * kTile;                           // [16][N] k, then K̃
  static constexpr int kBeta = 3 * kTile;                          // [16][N] a, then B̃
  static constexpr int kDecay = 4 * kTile;                         // [16][N] w_raw, until three [16][kSquareStride] are written over it
  static constexpr int kMixU = kDecay;                             // strict(Ã K̃ᵀ), then Mu
  static constexpr int kMixY = kMixU + kChunk * kSquareStride;     // My
  static constexpr int kInverse = kMixY + kChunk * kSquareStride;  // Aᵀ, then T
  static constexpr int kMixEnd = kInverse + kChunk * kSquareStride;
  static constexpr int kFinal = kDecay + kTile > kMixEnd ? kDecay + kTile : kMixEnd;  // [N] g of the last token, in final_at order
  static constexpr int kValue = kFinal + N;                                           // [16][slice + 4] v
  __host__ __device__ static constexpr int size(int slice) { return kValue + kChunk * (slice + 4); }
};

// Where g of a key stands: 16 bytes have what a thread of a walker multiplies two results of its state by.
__device__ __forceinline__ int final_at(int key) { return (key & ~31) | (key >> 3 & 1) << 4 | (key & 3) << 2 | (key >> 2 & 1) << 1 | (key >> 4 & 1); }

template <int kCount>
struct alignas(kCount * sizeof(float)) Pack {
  float x[kCount];
};
template <int kCount>
__device__ __forceinline__ Pack<kCount> load(const float* p) {
  return *reinterpret_cast<const Pack<kCount>*>(p);
}
template <int kCount>
__device__ __forceinline__ void store(float* p, const Pack<kCount>& x) {
  *reinterpret_cast<Pack<kCount>*>(p) = x;
}

// ---- producers --------------------------------------------------------------------------------------------
// kReads: whether the outputs y are wanted. If not, nothing is done with r.

// Starts copying `valid` <= 16 tokens' vectors from element `at` of the inputs on; zeros stand in for the tokens that are not there.
template <int N, bool kReads>
__device__ __forceinline__ void fetch_chunk(const Wkv& a, float* stage, uint64_t at, int valid, int slice, int slice_begin, int lane) {
  constexpr int kUnits = N / 4;
  const uint64_t width = static_cast<uint64_t>(a.n_head) * N;
#pragma unroll 4
  for (int i = lane; i < kChunk * kUnits; i += 32) {
    const int row = i / kUnits, key = i % kUnits * 4, to = tile_at<N>(row, key);
    const bool real = row < valid;
    const uint64_t from = at + (real ? row * width + key : 0);
    copy_async(stage + Stage<N>::kAlpha + to, a.kk + from, real);
    if constexpr (kReads) copy_async(stage + Stage<N>::kRead + to, a.r + from, real);
    copy_async(stage + Stage<N>::kKey + to, a.k + from, real);
    copy_async(stage + Stage<N>::kBeta + to, a.a + from, real);
    copy_async(stage + Stage<N>::kDecay + to, a.w_raw + from, real);
  }
  const int units = slice / 4, value = lane % units * 4;  // units divides 32
#pragma unroll 1
  for (int row = lane / units; row < kChunk; row += 32 / units) {
    const bool real = row < valid;
    copy_async(stage + Stage<N>::kValue + row * (slice + 4) + value, a.v + at + (real ? row * width + slice_begin + value : 0), real);
  }
  copies_commit();
}

// Ã, R̃, K̃, B̃ and g from the inputs in their places. A lane owns columns, down which the decays multiply up: as sums of their logarithms,
// to which tokens that are not there add nothing. All logarithms come first, for no one waits for another.
template <int N, bool kReads>
__device__ __forceinline__ void scale_rows(float* stage, int valid, int lane) {
  constexpr int kOwn = N / 32, kRows = 2;
  constexpr float kLog2E = 1.4426950408889634f, kScale = 0.60653065971263342f;  // exp(-1/2)
  Pack<kOwn> sum[kChunk];
#pragma unroll
  for (int row = 0; row < kChunk; ++row) sum[row] = load<kOwn>(stage + Stage<N>::kDecay + tile_at<N>(row, kOwn * lane));
#pragma unroll
  for (int row = 0; row < kChunk; ++row) {
#pragma unroll
    for (int e = 0; e < kOwn; ++e) {
      const float gate = reciprocal_approximate(1.0f + exp2_approximate(-kLog2E * sum[row].x[e]));
      sum[row].x[e] = row < valid ? -kScale * kLog2E * gate : 0.0f;
    }
  }
#pragma unroll
  for (int row = 1; row < kChunk; ++row) {
#pragma unroll
    for (int e = 0; e < kOwn; ++e) sum[row].x[e] += sum[row - 1].x[e];
  }
  __syncwarp();  // keeps the compiler from interleaving what is above, row by row, with what is below

  float before[kOwn];  // the decay up to the row before, times kToTf32
#pragma unroll
  for (int e = 0; e < kOwn; ++e) before[e] = kToTf32;
#pragma unroll
  for (int first = 0; first < kChunk; first += kRows) {
    Pack<kOwn> alpha[kRows], read[kRows], k[kRows], beta[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float* const from = stage + tile_at<N>(first + i, kOwn * lane);
      alpha[i] = load<kOwn>(from + Stage<N>::kAlpha);
      if constexpr (kReads) read[i] = load<kOwn>(from + Stage<N>::kRead);
      k[i] = load<kOwn>(from + Stage<N>::kKey);
      beta[i] = load<kOwn>(from + Stage<N>::kBeta);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float* const to = stage + tile_at<N>(first + i, kOwn * lane);
#pragma unroll
      for (int e = 0; e < kOwn; ++e) {
        const float g = exp2_approximate(sum[first + i].x[e]) * kToTf32, inverse = exp2_approximate(-sum[first + i].x[e]) * kToTf32;
        beta[i].x[e] *= alpha[i].x[e] * inverse;
        alpha[i].x[e] *= -before[e];
        if constexpr (kReads) read[i].x[e] *= g;
        k[i].x[e] *= inverse;
        before[e] = g;
      }
      store(to + Stage<N>::kAlpha, alpha[i]);
      if constexpr (kReads) store(to + Stage<N>::kRead, read[i]);
      store(to + Stage<N>::kKey, k[i]);
      store(to + Stage<N>::kBeta, beta[i]);
    }
  }
#pragma unroll
  for (int e = 0; e < kOwn; ++e) stage[Stage<N>::kFinal + final_at(kOwn * lane + e)] = exp2_approximate(sum[kChunk - 1].x[e]);
}

// A 16 x 16 matrix as two results of `multiply`, columns 0-7 and 8-15.
struct Square {
  float part[2][4] = {};
};
// The one product of squares here: d += a b, b in shared memory. From a, a result, to an operand nothing moves: a product may take its inner index
// in any order, and this one takes 0, 2, 4, 6, 1, 3, 5, 7.
__device__ __forceinline__ void multiply_square(Square& d, const Square& a, const float* b, int g, int t) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float* const from = b + (8 * s + 2 * t) * kSquareStride + 8 * n + g;
      multiply(d.part[n], a.part[s][0], a.part[s][2], a.part[s][1], a.part[s][3], from[0], from[kSquareStride]);
    }
  }
}
__device__ __forceinline__ void to_tf32(Square& x) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x.part[n][e] = to_tf32(x.part[n][e]);
  }
}
// Columns in their order, or, if kMixed, each eight in the order above, in which add_mixed reads them.
template <bool kMixed>
__device__ __forceinline__ void store_square(float* to, const Square& x, int g, int t) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = g + (e & 2) * 4, odd = e & 1;
      to[row * kSquareStride + 8 * n + (kMixed ? 4 * odd + t : 2 * t + odd)] = x.part[n][e];
    }
  }
}
// Leaves what is below the diagonal, and, if kDiagonal, on it.
template <bool kDiagonal>
__device__ __forceinline__ void keep_low(Square& x, int g, int t) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = g + (e & 2) * 4, column = 8 * n + 2 * t + (e & 1);
      if (column > row || (!kDiagonal && column == row)) x.part[n][e] = 0.0f;
    }
  }
}

// T over Aᵀ, both [16][kSquareStride] at `p`. Lane j < 16 finds column j of T by forward substitution, in f32; the others do the same for nothing.
__device__ __forceinline__ void invert(float* p, int lane) {
  float column[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) column[i] = i == (lane & 15) ? 1.0f : 0.0f;
#pragma unroll
  for (int k = 0; k + 1 < kChunk; ++k) {
#pragma unroll
    for (int unit = (k + 1) / 4; unit < kChunk / 4; ++unit) {
      const Pack<4> below = load<4>(p + k * kSquareStride + 4 * unit);  // A[4 unit .. +3][k]
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (4 * unit + e > k) column[4 * unit + e] = fmaf(below.x[e], column[k], column[4 * unit + e]);
      }
    }
  }
  __syncwarp();
  if (lane < kChunk) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) p[i * kSquareStride + lane] = to_tf32(column[i]);
  }
  __syncwarp();
}

// Ã', R̃', Mu, My over Ã, R̃.
template <int N, bool kReads>
__device__ __forceinline__ void couple_tokens(float* stage, int lane) {
  const int g = lane / 4, t = lane % 4;
  float *const alpha = stage + Stage<N>::kAlpha, *const read = stage + Stage<N>::kRead;
  float *const mix_u = stage + Stage<N>::kMixU, *const mix_y = stage + Stage<N>::kMixY, *const inverse = stage + Stage<N>::kInverse;
  Square ab, ak, rb, rk;
  const int piece = lane / 8, row = lane % 8;  // of an address that this lane gives
  const uint32_t base = shared_address(stage);
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const uint32_t left = base + sizeof(float) * eight_at<N>(row + (piece & 1) * 8, j, piece / 2, 0);   // operands a: both eights of rows, then keys
    const uint32_t right = base + sizeof(float) * eight_at<N>(row + (piece & 2) * 4, j, piece & 1, 0);  // operands b: both eights of keys, then rows
    float a[4], r[4], b[4], k[4];
    load_pieces(a, left + sizeof(float) * Stage<N>::kAlpha);
    if constexpr (kReads) load_pieces(r, left + sizeof(float) * Stage<N>::kRead);
    load_pieces(b, right + sizeof(float) * Stage<N>::kBeta);
    load_pieces(k, right + sizeof(float) * Stage<N>::kKey);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      multiply(ab.part[n], a[0], a[1], a[2], a[3], b[2 * n], b[2 * n + 1]);
      multiply(ak.part[n], a[0], a[1], a[2], a[3], k[2 * n], k[2 * n + 1]);
      if constexpr (kReads) {
        multiply(rb.part[n], r[0], r[1], r[2], r[3], b[2 * n], b[2 * n + 1]);
        multiply(rk.part[n], r[0], r[1], r[2], r[3], k[2 * n], k[2 * n + 1]);
      }
    }
  }
  keep_low<false>(ab, g, t);
  keep_low<false>(ak, g, t);
  keep_low<true>(rb, g, t);
  keep_low<true>(rk, g, t);

#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) inverse[(8 * n + 2 * t + (e & 1)) * kSquareStride + g + (e & 2) * 4] = ab.part[n][e];
  }
  to_tf32(ak);
  store_square<false>(mix_u, ak, g, t);
  __syncwarp();
  invert(inverse, lane);

  Square solve, q;  // T and Q
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const Pack<2> low = load<2>(inverse + g * kSquareStride + 8 * n + 2 * t), high = load<2>(inverse + (g + 8) * kSquareStride + 8 * n + 2 * t);
    solve.part[n][0] = low.x[0];
    solve.part[n][1] = low.x[1];
    solve.part[n][2] = high.x[0];
    solve.part[n][3] = high.x[1];
  }
  if constexpr (kReads) {
    to_tf32(rb);
    multiply_square(q, rb, inverse, g, t);
    to_tf32(q);
    multiply_square(rk, q, mix_u, g, t);
    to_tf32(rk);
    store_square<true>(mix_y, rk, g, t);
  }
  Square mu;
  multiply_square(mu, solve, mix_u, g, t);
  to_tf32(mu);
  __syncwarp();
  store_square<true>(mix_u, mu, g, t);

  // Two results at a time stand for keys 16i..16i+15: column c for key 2c in the first and 2c + 1 in the second, so that a thread's are neighbours.
#pragma unroll
  for (int i = 0; i < N / 16; ++i) {
    const int low = sixteen_at<N>(g, i, t), high = low + 8 * N;  // rows g and g + 8 turn alike
    float new_a[2][4] = {}, new_r[2][4];
    if constexpr (kReads) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Pack<4> r = load<4>(read + (half ? high : low));
#pragma unroll
        for (int e = 0; e < 4; ++e) new_r[e & 1][2 * half + e / 2] = r.x[e];
      }
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Pack<2> even = load<2>(alpha + sixteen_at<N>(8 * s + 2 * t, i, g / 2) + (g & 1) * 2);
      const Pack<2> odd = load<2>(alpha + sixteen_at<N>(8 * s + 2 * t + 1, i, g / 2) + (g & 1) * 2);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply(new_a[n], solve.part[s][0], solve.part[s][2], solve.part[s][1], solve.part[s][3], even.x[n], odd.x[n]);
        if constexpr (kReads) multiply(new_r[n], q.part[s][0], q.part[s][2], q.part[s][1], q.part[s][3], even.x[n], odd.x[n]);
      }
    }
    __syncwarp();  // these sixteen columns have been read by all
    const auto write = [](float* tile, int low_at, int high_at, const float(&x)[2][4]) {
      store<4>(tile + low_at, {to_tf32(x[0][0]), to_tf32(x[1][0]), to_tf32(x[0][1]), to_tf32(x[1][1])});
      store<4>(tile + high_at, {to_tf32(x[0][2]), to_tf32(x[1][2]), to_tf32(x[0][3]), to_tf32(x[1][3])});
    };
    write(alpha, low, high, new_a);
    if constexpr (kReads) write(read, low, high, new_r);
  }
}

// ---- walkers ----------------------------------------------------------------------------------------------
// 16 value rows of the state, rows g and g + 8 of a thread, as N / 8 results of `multiply`. Columns 2t and 2t + 1 of result j stand for the keys t of
// the two units that eight_at takes for j.
template <int N>
struct State {
  float tile[N / 8][4] = {};

  static __device__ __forceinline__ int key(int j, int half, int t) { return 32 * (j / 4) + 4 * (j % 4) + 16 * half + t; }

  // Calls f(element, its row of the 16, its key) for all elements of this thread.
  template <class F>
  __device__ __forceinline__ void each(int lane, F f) {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) f(tile[j][e], lane / 4 + (e & 2) * 4, key(j, e & 1, lane % 4));
    }
  }
};

// What a segment does to the state, in the order in which threads of walkers hold it: D as N / 16 states, M as operands b of `compose`.
template <int N>
struct Transfer {
  static constexpr int kSize = 2 * N * N, kFactor = N * N;

  // Where a thread finds result j of value rows 16 w to 16 w + 15 of D.
  static __device__ __forceinline__ int rest_at(int w, int j, int lane) { return ((w * (N / 8) + j) * 32 + lane) * 4; }
  // Where a thread finds its operands, of the inner indices that result `inner` of the state is for, for the results 2 i and 2 i + 1.
  static __device__ __forceinline__ int factor_at(int inner, int i, int lane) { return kFactor + ((inner * (N / 16) + i) * 32 + lane) * 4; }
  // Where M of this row and column is: State::key and eight_at, undone.
  static __device__ __forceinline__ int factor_of(int row, int column) {
    const int inner = row / 32 * 4 + row / 4 % 4, t = row % 4, half = row / 16 % 2;
    const int result = column / 32 * 4 + column / 4 % 4, g = column % 4 * 2 + column / 16 % 2;
    return factor_at(inner, result / 2, 4 * g + t) + result % 2 * 2 + half;
  }
};

template <int N>
__device__ __forceinline__ void load_rest(State<N>& state, const float* transfer, int w, int lane) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const Pack<4> d = load<4>(transfer + Transfer<N>::rest_at(w, j, lane));
#pragma unroll
    for (int e = 0; e < 4; ++e) state.tile[j][e] = d.x[e];
  }
}
template <int N>
__device__ __forceinline__ void store_rest(float* transfer, const State<N>& state, int w, int lane) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j)
    store<4>(transfer + Transfer<N>::rest_at(w, j, lane), {state.tile[j][0], state.tile[j][1], state.tile[j][2], state.tile[j][3]});
}

// state = state M + D. Each operand as a tf32 number and the rest of it: composing rounds no more than f32 does, however many segments there are.
template <int N>
__device__ __forceinline__ void compose(State<N>& state, const float* transfer, int w, int lane) {
  const auto rest = [](float x) { return x - __uint_as_float(__float_as_uint(x) & 0xffffe000u); };  // of what tensor cores make of it
  State<N> next;
  load_rest(next, transfer, w, lane);
#pragma unroll
  for (int inner = 0; inner < N / 8; ++inner) {
    const float(&s)[4] = state.tile[inner];
    const float low[4] = {rest(s[0]), rest(s[1]), rest(s[2]), rest(s[3])};
#pragma unroll
    for (int i = 0; i < N / 16; ++i) {
      const Pack<4> m = load<4>(transfer + Transfer<N>::factor_at(inner, i, lane));
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float(&to)[4] = next.tile[2 * i + n];
        multiply(to, low[0], low[2], low[1], low[3], m.x[2 * n], m.x[2 * n + 1]);
        multiply(to, s[0], s[2], s[1], s[3], rest(m.x[2 * n]), rest(m.x[2 * n + 1]));
        multiply(to, s[0], s[2], s[1], s[3], m.x[2 * n], m.x[2 * n + 1]);
      }
    }
  }
  state = next;
}

// state += xᵀ m, x 16 tokens (rows of a result) by 16 values held transposed, m a tile [16][N].
template <int N>
__device__ __forceinline__ void add_outer(State<N>& state, const Square& x, const float* m, int g, int t) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const float even = m[eight_at<N>(8 * s + 2 * t, j, g & 1, g / 2)], odd = m[eight_at<N>(8 * s + 2 * t + 1, j, g & 1, g / 2)];
      multiply(state.tile[j], x.part[s][0], x.part[s][2], x.part[s][1], x.part[s][3], even, odd);
    }
  }
}

// d += x mᵀ, x transposed as above, m lower triangular, at an address in shared memory that store_square<true> wrote to.
__device__ __forceinline__ void add_mixed(Square& d, const Square& x, uint32_t m, int lane) {
  const uint32_t row = m + sizeof(float) * (lane % 8 * kSquareStride + lane / 8 * 4);
  float upper[4], lower[4];  // the columns 8 to 15 of the upper rows are zeros
  load_pieces(upper, row);
  load_pieces(lower, row + sizeof(float) * 8 * kSquareStride);
  multiply(d.part[0], x.part[0][0], x.part[0][2], x.part[0][1], x.part[0][3], upper[0], upper[1]);
  multiply(d.part[1], x.part[0][0], x.part[0][2], x.part[0][1], x.part[0][3], lower[0], lower[1]);
  multiply(d.part[1], x.part[1][0], x.part[1][2], x.part[1][1], x.part[1][3], lower[2], lower[3]);
}

// Walks one chunk, without values if !valued. `stage` is not read any more when it returns. y, transposed: values g and g + 8, tokens 8n + 2t and + 1.
template <int N, bool kReads>
__device__ __forceinline__ Square walk_chunk(State<N>& state, const float* stage, int value_stride, int warp_value, bool valued, int lane) {
  const int g = lane / 4, t = lane % 4;
  Square v, u, y;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const float* const from = stage + Stage<N>::kValue + (8 * s + 2 * t) * value_stride + warp_value + g;
    v.part[s][0] = from[0];
    v.part[s][1] = from[value_stride];
    v.part[s][2] = from[8];
    v.part[s][3] = from[value_stride + 8];
    if constexpr (!kReads) {
#pragma unroll
      for (int e = 0; e < 4; ++e) v.part[s][e] = valued ? v.part[s][e] : 0.0f;
    }
  }
  to_tf32(v);
  const int piece = lane / 8, row = lane % 8;  // of an address that this lane gives
  const uint32_t base = shared_address(stage);
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const uint32_t from = base + sizeof(float) * eight_at<N>(row + (piece & 2) * 4, j, piece & 1, 0);
    float a[4], r[4];
    load_pieces(a, from + sizeof(float) * Stage<N>::kAlpha);
    if constexpr (kReads) load_pieces(r, from + sizeof(float) * Stage<N>::kRead);
    const float(&s)[4] = state.tile[j];
    const float s0 = to_tf32(s[0]), s1 = to_tf32(s[1]), s2 = to_tf32(s[2]), s3 = to_tf32(s[3]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      multiply(u.part[n], s0, s2, s1, s3, a[2 * n], a[2 * n + 1]);
      if constexpr (kReads) multiply(y.part[n], s0, s2, s1, s3, r[2 * n], r[2 * n + 1]);
    }
  }
  add_mixed(u, v, base + sizeof(float) * Stage<N>::kMixU, lane);
  if constexpr (kReads) add_mixed(y, v, base + sizeof(float) * Stage<N>::kMixY, lane);
  add_outer<N>(state, v, stage + Stage<N>::kKey, g, t);
  to_tf32(u);
  add_outer<N>(state, u, stage + Stage<N>::kBeta, g, t);
#pragma unroll
  for (int j = 0; j < N / 8; j += 2) {
    const Pack<4> decay = load<4>(stage + Stage<N>::kFinal + 8 * j + 4 * t);
#pragma unroll
    for (int e = 0; e < 8; ++e) state.tile[j + e / 4][e % 4] *= decay.x[e / 4 * 2 + e % 2];
  }
  return y;
}

// ---- the kernel -------------------------------------------------------------------------------------------
// What a launch does: of each sequence, `segments` of `length` tokens (the last may be shorter) from segment `begin` on. From 0 on: walks segment 0,
// finds the transfers of those between it and the last. From 1 on: walks them.
struct Part {
  uint32_t begin, segments, length;
  float* transfers;  // Transfer<N> of (segment, head); segment i of sequence s is starts[s] / length + s + i
};

// A block's share: a segment of a sequence, a head, a slice of its value rows.
struct Share {
  float* ring;
  uint64_t *full, *empty;  // of a stage: a chunk is ready; all walkers are done with it
  int producers, stages, stage_size, slice, slice_begin;
  uint64_t width, origin;  // elements of a token, and before the first one of this head
  int length;              // tokens, at least 1
};

// Prepares the chunks warp, warp + producers, ...: the copies of the next start before the work on this one if its stage is free by then, else after
// it. As producers <= stages, the walkers are then done with all but the last chunk before it in its stage: one bit of phase is enough.
template <int N, bool kReads>
__device__ __forceinline__ void produce(const Wkv& a, const Share& b, int warp, int lane) {
  const int chunks = (b.length + kChunk - 1) / kChunk;
  const auto fetch = [&](int chunk) {
    fetch_chunk<N, kReads>(a, b.ring + chunk % b.stages * b.stage_size, b.origin + chunk * kChunk * b.width, min(kChunk, b.length - chunk * kChunk), b.slice,
                           b.slice_begin, lane);
  };
  // A stage is free for a chunk when the walkers are done with the chunk before it there.
  const auto freed = [&](int chunk) { return b.empty + chunk % b.stages; };
  const auto freed_parity = [&](int chunk) { return static_cast<uint32_t>(chunk / b.stages & 1) ^ 1; };
  for (int chunk = warp - b.producers; chunk < chunks; chunk += b.producers) {
    asm volatile("" : "+r"(lane));  // addresses are then computed anew: kept over the loop, they leave too few registers for rows to overlap
    const int next = chunk + b.producers;
    bool wanted = next < chunks;
    if (chunk >= 0) {
      const bool ahead = wanted && __all_sync(~0u, barrier_passed(freed(next), freed_parity(next)));
      if (ahead) {
        fetch(next);
        wanted = false;
        copies_wait<1>();
      } else {
        copies_wait<0>();
      }
      __syncwarp();
      float* const stage = b.ring + chunk % b.stages * b.stage_size;
      scale_rows<N, kReads>(stage, min(kChunk, b.length - chunk * kChunk), lane);
      __syncwarp();
      couple_tokens<N, kReads>(stage, lane);
      warp_arrives(b.full + chunk % b.stages);
    }
    if (wanted) {
      barrier_wait(freed(next), freed_parity(next));
      fetch(next);
    }
  }
}

// Walks the segment, and writes y if kReads.
template <int N, bool kReads>
__device__ __forceinline__ void walk(const Wkv& a, const Share& b, State<N>& state, int warp_value, bool valued, int lane) {
  const int chunks = (b.length + kChunk - 1) / kChunk;
  int at = 0, parity = 0;
  float* to = a.y + b.origin + b.slice_begin + warp_value + lane / 4 + lane % 4 * 2 * b.width;
  for (int left = b.length - lane % 4 * 2, chunk = 0; chunk < chunks; ++chunk) {
    barrier_wait(b.full + at, parity);
    const Square y = walk_chunk<N, kReads>(state, b.ring + at * b.stage_size, b.slice + 4, warp_value, valued, lane);
    warp_arrives(b.empty + at);
    if constexpr (kReads) {
      const auto write = [&](int token, float low, float high) {
        if (token < left) {
          to[token * b.width] = low;
          to[token * b.width + 8] = high;
        }
      };
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        write(8 * n, y.part[n][0], y.part[n][2]);
        write(8 * n + 1, y.part[n][1], y.part[n][3]);
      }
      to += kChunk * b.width;
      left -= kChunk;
    }
    if (++at == b.stages) {
      at = 0;
      parity ^= 1;
    }
  }
}

// Grid: (sequence, segment, head, slice), the slice fastest. Warps: producers, then slice / 16 walkers; as many again, for M, if transfers are to be found.
template <class Stored, int N>
__global__ void __maxnreg__(N > 64 ? 168 : 128) wkv_chunked_kernel(Wkv a, WkvPlan plan, Part part) {
  duet_gpu::let_next_start();
  extern __shared__ float4 shared[];
  const int slice = plan.slice, stages = plan.stages, producers = plan.producers, stage_size = Stage<N>::size(slice);
  const uint32_t slices = N / slice, head = blockIdx.x / slices % a.n_head, place = blockIdx.x / slices / a.n_head;
  const uint32_t seq = place / part.segments, segment = part.begin + place % part.segments;
  const int slice_begin = blockIdx.x % slices * slice;
  const bool transfer = kTakesSegments<N> && part.begin == 0 && segment > 0;
  const int walkers = slice / 16 * (transfer ? 2 : 1);
  float* const ring = reinterpret_cast<float*>(shared);
  uint64_t* const full = reinterpret_cast<uint64_t*>(ring + stages * stage_size);
  uint64_t* const empty = full + stages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      barrier_init(full + i, kArrivalsOfWarp);
      barrier_init(empty + i, walkers * kArrivalsOfWarp);
    }
  }
  duet_gpu::wait_for_inputs();
  if (seq >= static_cast<uint32_t>(a.used[1])) return;
  const int first = a.starts[seq], tokens = a.starts[seq + 1] - first, slot = a.slots[seq];
  if (tokens <= 0) return;
  const uint32_t segments = (tokens + part.length - 1) / part.length;  // of this sequence
  if (segment >= segments || (transfer && segment + 1 == segments)) return;
  __syncthreads();

  const uint64_t width = static_cast<uint64_t>(a.n_head) * N;
  const int skipped = static_cast<int>(segment * part.length);
  const Share share{ring,
                    full,
                    empty,
                    producers,
                    stages,
                    stage_size,
                    slice,
                    slice_begin,
                    width,
                    (first + skipped) * width + static_cast<uint64_t>(head) * N,
                    min(static_cast<int>(part.length), tokens - skipped)};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, walker = warp - producers;
  if (warp < producers) {
    transfer ? produce<N, false>(a, share, warp, lane) : produce<N, true>(a, share, warp, lane);
    return;
  }
  if (walker >= walkers) return;

  const int warp_value = walker % (slice / 16) * 16, row_begin = slice_begin + warp_value;
  const bool valued = walker < slice / 16;  // else one that finds M
  Stored* const rows = static_cast<Stored*>(a.state) + (slot < 0 ? 0 : slot * a.slot_stride) + (static_cast<uint64_t>(head) * N + row_begin) * N;
  const auto transfer_of = [&](uint32_t i) {
    return part.transfers + (static_cast<uint64_t>(first / part.length + seq + i) * a.n_head + head) * Transfer<N>::kSize;
  };
  State<N> state;
  if (segment == 0) {
    if (slot >= 0) state.each(lane, [&](float& x, int row, int key) { x = duet_gpu::to_f32(rows[row * N + key]); });
  } else if (kTakesSegments<N> && !transfer) {
    load_rest(state, transfer_of(0), row_begin / 16, lane);
    for (uint32_t i = 1; i < segment; ++i) compose(state, transfer_of(i), row_begin / 16, lane);
  } else if (!valued) {
    state.each(lane, [&](float& x, int row, int key) { x = row_begin + row == key ? 1.0f : 0.0f; });
  }
  transfer ? walk<N, false>(a, share, state, warp_value, valued, lane) : walk<N, true>(a, share, state, warp_value, true, lane);
  if (segment + 1 == segments) {
    if (slot >= 0) state.each(lane, [&](float& x, int row, int key) { rows[row * N + key] = duet_gpu::to_stored<Stored>(x); });
  } else if (kTakesSegments<N> && part.begin == 0) {
    float* const to = transfer_of(segment);
    if (valued) {
      store_rest(to, state, row_begin / 16, lane);
    } else {
      state.each(lane, [&](float& x, int row, int key) { to[Transfer<N>::factor_of(row_begin + row, key)] = x; });
    }
  }
}

// ---- host -------------------------------------------------------------------------------------------------
size_t stage_bytes(uint32_t head_size, uint32_t slice) {
  const int elements = head_size == 32 ? Stage<32>::size(slice) : head_size == 64 ? Stage<64>::size(slice) : Stage<128>::size(slice);
  return elements * sizeof(float) + 2 * sizeof(uint64_t);
}

uint32_t most_warps(uint32_t head_size) { return head_size > 64 ? kMostWarps<128> : kMostWarps<64>; }
uint64_t divide_up(uint64_t x, uint64_t y) { return (x + y - 1) / y; }

// As many producers and stages as fit one block on a multiprocessor.
WkvPlan fill_processor(uint32_t head_size, uint32_t slice, uint32_t walkers, uint32_t segment) {
  const size_t fit = duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) / stage_bytes(head_size, slice);
  WkvPlan plan{slice, 0, static_cast<uint32_t>(std::min<size_t>(fit, 10)), segment};
  plan.producers = std::min(plan.stages, most_warps(head_size) - walkers);
  return plan;
}

// Nanoseconds, as an H200 takes them: a chunk on a multiprocessor with one block; the first chunk on its way to the walkers; compose; a launch.
constexpr uint64_t kChunkTime = 1200, kFillTime = 5000, kComposeTime = 900, kLaunchTime = 3000;

// Tokens of a segment, or 0 if whole sequences are faster.
uint32_t segment_for(uint64_t n_tokens, uint64_t n_seqs, uint64_t n_head) {
  const uint64_t chunks = divide_up(n_tokens, n_seqs * kChunk), blocks = duet_gpu::device_attribute(cudaDevAttrMultiProcessorCount, 0) / (n_seqs * n_head);
  uint64_t best = kFillTime + chunks * kChunkTime, best_length = 0;
  for (uint64_t segments = 3; segments <= blocks + 1 && segments <= chunks; ++segments) {
    const uint64_t length = divide_up(chunks, segments);
    const uint64_t time = 2 * (kFillTime + length * kChunkTime) + kLaunchTime + (segments - 2) * kComposeTime;
    if (time < best) best = time, best_length = length;
  }
  return static_cast<uint32_t>(best_length * kChunk);
}

}  // namespace

bool wkv_chunked_takes(uint32_t head_size) { return head_size == 32 || head_size == 64 || head_size == 128; }

WkvPlan wkv_plan(uint32_t n_tokens, uint32_t n_seqs, uint32_t n_head, uint32_t head_size, bool segments) {
  const uint64_t pairs = std::max<uint64_t>(1, static_cast<uint64_t>(n_seqs) * n_head), processors = duet_gpu::device_attribute(cudaDevAttrMultiProcessorCount, 0);
  const uint32_t segment = segments && head_size <= 64 ? segment_for(n_tokens, std::max(1u, n_seqs), std::max(1u, n_head)) : 0;
  if (segment > 0) return fill_processor(head_size, head_size, head_size / 16 * 2, segment);
  uint32_t slice = std::min(head_size, 64u);
  const auto blocks = [&] { return pairs * (head_size / slice); };
  while (slice > 16 && 2 * blocks() <= processors) slice /= 2;
  if (blocks() > processors) {  // two blocks on a multiprocessor
    const size_t half = duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, 0) / 2 - duet_gpu::device_attribute(cudaDevAttrReservedSharedMemoryPerBlock, 0);
    const uint32_t stages = static_cast<uint32_t>(std::min<size_t>(half / stage_bytes(head_size, slice), 4));
    const uint32_t producers = std::min(stages, most_warps(head_size) / 2 - slice / 16);
    if (stages >= 2) return {slice, producers, stages, 0};
  }
  return fill_processor(head_size, slice, slice / 16, 0);
}

uint64_t wkv_scratch_bytes(const WkvPlan& plan, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_head, uint32_t head_size) {
  if (plan.segment == 0) return 0;
  return (static_cast<uint64_t>(n_tokens / plan.segment) + n_seqs) * n_head * 2 * head_size * head_size * sizeof(float);
}

uint64_t wkv_scratch_bytes(uint32_t n_tokens, uint32_t n_seqs, uint32_t n_head, uint32_t head_size) {
  return wkv_scratch_bytes(wkv_plan(n_tokens, n_seqs, n_head, head_size, true), n_tokens, n_seqs, n_head, head_size);
}

Error wkv_chunked(const Wkv& a, const WkvPlan& plan, void* scratch, duet_gpu::Stream stream) {
  const uint32_t n = a.head_size;
  const bool cut = plan.slice >= 16 && plan.slice <= n && (plan.slice & (plan.slice - 1)) == 0;
  const bool segmented = plan.segment > 0 && a.max_len > plan.segment;
  if (!wkv_chunked_takes(n) || !cut || plan.producers < 1 || plan.stages < plan.producers) return cudaErrorInvalidValue;
  if (segmented && (n > 64 || plan.segment % kChunk != 0 || scratch == nullptr)) return cudaErrorInvalidValue;
  if (a.n_seqs == 0 || a.n_head == 0 || a.n_tokens == 0) return cudaSuccess;

  const size_t bytes = plan.stages * stage_bytes(n, plan.slice);
  const auto kernel = duet_gpu::with_stored(a.stored, [n](auto of) {
    using S = decltype(of);
    return n == 32 ? wkv_chunked_kernel<S, 32> : n == 64 ? wkv_chunked_kernel<S, 64> : wkv_chunked_kernel<S, 128>;
  });
  const auto launch = [&](const Part& part, uint32_t walkers) -> Error {
    const uint32_t warps = plan.producers + walkers;
    const uint64_t blocks = static_cast<uint64_t>(a.n_seqs) * part.segments * a.n_head * (n / plan.slice);
    if (blocks > 0x7fffffffu || warps > most_warps(n)) return cudaErrorInvalidValue;
    return duet_gpu::launch(kernel, dim3(static_cast<uint32_t>(blocks)), dim3(warps * 32), bytes, stream, a, plan, part);
  };
  // all that there is, whatever this plan needs: the limit is shared by all threads of the process, and each one must set the same
  Error error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 48 << 10));
  if (error != cudaSuccess) return error;
  const uint32_t walkers = plan.slice / 16;
  if (!segmented) return launch({0, 1, 0x7fffffff, nullptr}, walkers);
  const uint32_t segments = static_cast<uint32_t>(divide_up(a.max_len, plan.segment));
  float* const transfers = static_cast<float*>(scratch);
  error = launch({0, segments - 1, plan.segment, transfers}, segments > 2 ? 2 * walkers : walkers);
  return error != cudaSuccess ? error : launch({1, segments - 1, plan.segment, transfers}, walkers);
}

Error wkv_chunked(const Wkv& a, void* scratch, duet_gpu::Stream stream) {
  return wkv_chunked(a, wkv_plan(a.n_tokens, a.n_seqs, a.n_head, a.head_size, scratch != nullptr), scratch, stream);
}

}  // namespace duet_cuda
