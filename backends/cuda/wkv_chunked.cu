// The chunked form of docs/mathematics.md, arranged so that little depends on the state. Of a chunk, with rows as tokens and in its symbols:
//   A = strict(Ã B̃ᵀ), T = (I - A)⁻¹, Q = low(R̃ B̃ᵀ) T
//   Ã' = T Ã,  Mu = T strict(Ã K̃ᵀ);   R̃' = R̃ + Q Ã,  My = low(R̃ K̃ᵀ) + Q strict(Ã K̃ᵀ)
// need no state: producer warps compute them, each a chunk of its own, chunks ahead. Walker warps, each with 16 value rows of the state, then do
//   Uᵀ = S Ã'ᵀ + Vᵀ Muᵀ;   Yᵀ = S R̃'ᵀ + Vᵀ Myᵀ;   S = (S + Vᵀ K̃ + Uᵀ B̃) diag(g)
// One step from S to S is two dependent products. U, S and V are used as operands in the layout that products leave their results in: a product
// may take its inner index in any order, if both operands do.
#include "cuda/wkv_chunked.h"

namespace duet_cuda {
namespace {

using duet_gpu::Error;
using duet_gpu::Wkv;

constexpr int kChunk = 16;
constexpr int kMostWarps = 16;

// ---- instructions -----------------------------------------------------------------------------------------
__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// To the nearest tf32. Tensor cores would cut the low bits off, which triples the error.
__device__ __forceinline__ float to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

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

// 16 bytes to shared memory, or zeros, without the source being read.
__device__ __forceinline__ void copy_async(float* to, const float* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier)) : "memory");
}
// Whether the phase of this parity is over, as it is for parity 1 before the first phase. Returns at once.
__device__ __forceinline__ bool barrier_passed(uint64_t* barrier, uint32_t parity) {
  uint32_t passed;
  asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(passed)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return passed != 0;
}
// The same, but the warp may sleep for a while first.
__device__ __forceinline__ bool barrier_passed_soon(uint64_t* barrier, uint32_t parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t passed;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(passed)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return passed != 0;
#else
  return barrier_passed(barrier, parity);
#endif
}
// ---- end of instructions ----------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  while (!barrier_passed_soon(barrier, parity)) {
  }
}

// ---- shared memory ----------------------------------------------------------------------------------------
// Tiles [16][N] keep each row's 16-byte units in an order of its own, units ^ turn(row): then the three ways in which a warp reads a tile
// (units 4i..4i+3 of rows g as 16-byte words, keys 16i..16i+15 of the rows 2t or 2t + 1 as 8-byte words, and one row) meet no bank twice.
__device__ __forceinline__ int turn(int row) { return (row & 6) ^ ((row & 1) << 2); }
template <int N>
__device__ __forceinline__ int tile_at(int row, int key) {
  return row * N + (((key >> 2) ^ turn(row)) << 2 | (key & 3));
}
// The same for key 16 i + 4 unit, with i known to the compiler and unit < 4.
template <int N>
__device__ __forceinline__ int piece_at(int row, int i, int unit) {
  return row * N + ((unit ^ turn(row) ^ ((i & 1) << 2)) << 2) + (i >> 1) * 32;
}

constexpr int kMixStride = 24;      // of Mu, My: reads of 8 bytes, rows g, meet no bank twice
constexpr int kInverseStride = 20;  // of T: neither do reads of 4 bytes, rows 2t

// One chunk in the ring: offsets in elements. Inputs arrive where the results of the same size will stand.
template <int N>
struct Stage {
  static constexpr int kTile = kChunk * N;
  static constexpr int kAlpha = 0;            // [16][N] kk, then Ã, then Ã'
  static constexpr int kRead = kTile;         // [16][N] r, then R̃, then R̃'
  static constexpr int kKey = 2 * kTile;      // [16][N] k, then K̃
  static constexpr int kBeta = 3 * kTile;     // [16][N] a, then B̃
  static constexpr int kDecay = 4 * kTile;    // [16][N] w_raw, until the following three are written over it
  static constexpr int kMixU = kDecay;        // [16][kMixStride] strict(Ã K̃ᵀ), then Mu
  static constexpr int kMixY = kMixU + kChunk * kMixStride;       // [16][kMixStride] My
  static constexpr int kInverse = kMixY + kChunk * kMixStride;    // [16][kInverseStride] Aᵀ, then T
  static constexpr int kMixEnd = kInverse + kChunk * kInverseStride;
  static constexpr int kFinal = kDecay + kTile > kMixEnd ? kDecay + kTile : kMixEnd;  // [N] g of the last token
  static constexpr int kValue = kFinal + N;                                            // [16][slice + 4] v
  __host__ __device__ static constexpr int size(int slice) { return kValue + kChunk * (slice + 4); }
};

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
// Starts copying `valid` <= 16 tokens' vectors from element `at` of the inputs on; zeros stand in for the tokens that are not there.
template <int N>
__device__ __forceinline__ void fetch_chunk(const Wkv& a, float* stage, uint64_t at, int valid, int slice, int slice_begin, int lane) {
  constexpr int kUnits = N / 4;
  const uint64_t width = static_cast<uint64_t>(a.n_head) * N;
#pragma unroll 4
  for (int i = lane; i < kChunk * kUnits; i += 32) {
    const int row = i / kUnits, key = i % kUnits * 4, to = tile_at<N>(row, key);
    const bool real = row < valid;
    const uint64_t from = at + (real ? row * width + key : 0);
    copy_async(stage + Stage<N>::kAlpha + to, a.kk + from, real);
    copy_async(stage + Stage<N>::kRead + to, a.r + from, real);
    copy_async(stage + Stage<N>::kKey + to, a.k + from, real);
    copy_async(stage + Stage<N>::kBeta + to, a.a + from, real);
    copy_async(stage + Stage<N>::kDecay + to, a.w_raw + from, real);
  }
  const int units = slice / 4;
  for (int i = lane; i < kChunk * units; i += 32) {
    const int row = i / units, value = i % units * 4;
    const bool real = row < valid;
    copy_async(stage + Stage<N>::kValue + row * (slice + 4) + value, a.v + at + (real ? row * width + slice_begin + value : 0), real);
  }
  copies_commit();
}

// Ã, R̃, K̃, B̃ and g from the inputs in their places. A lane owns columns, down which the decays multiply up: as sums of their logarithms,
// to which tokens that are not there add nothing.
template <int N>
__device__ __forceinline__ void scale_rows(float* stage, int valid, int lane) {
  constexpr int kOwn = N / 32;
  constexpr float kLog2E = 1.4426950408889634f, kScale = 0.60653065971263342f;  // exp(-1/2)
  float sum[kOwn] = {}, before[kOwn];
#pragma unroll
  for (int e = 0; e < kOwn; ++e) before[e] = 1.0f;
#pragma unroll 4
  for (int row = 0; row < kChunk; ++row) {
    const int at = tile_at<N>(row, kOwn * lane);
    const Pack<kOwn> w_raw = load<kOwn>(stage + Stage<N>::kDecay + at);
    Pack<kOwn> alpha = load<kOwn>(stage + Stage<N>::kAlpha + at), read = load<kOwn>(stage + Stage<N>::kRead + at);
    Pack<kOwn> k = load<kOwn>(stage + Stage<N>::kKey + at), beta = load<kOwn>(stage + Stage<N>::kBeta + at);
#pragma unroll
    for (int e = 0; e < kOwn; ++e) {
      const float gate = reciprocal_approximate(1.0f + exp2_approximate(-kLog2E * w_raw.x[e]));
      if (row < valid) sum[e] -= kScale * kLog2E * gate;
      const float g = exp2_approximate(sum[e]), inverse = exp2_approximate(-sum[e]), kk = alpha.x[e];
      alpha.x[e] = to_tf32(-kk * before[e]);
      read.x[e] = to_tf32(read.x[e] * g);
      k.x[e] = to_tf32(k.x[e] * inverse);
      beta.x[e] = to_tf32(kk * beta.x[e] * inverse);
      before[e] = g;
    }
    store(stage + Stage<N>::kAlpha + at, alpha);
    store(stage + Stage<N>::kRead + at, read);
    store(stage + Stage<N>::kKey + at, k);
    store(stage + Stage<N>::kBeta + at, beta);
  }
  Pack<kOwn> g;
#pragma unroll
  for (int e = 0; e < kOwn; ++e) g.x[e] = before[e];
  store(stage + Stage<N>::kFinal + kOwn * lane, g);
}

// A 16 x 16 matrix as two results of `multiply`, columns 0-7 and 8-15.
struct Square {
  float part[2][4] = {};
};
// The one product of squares here: d += a b, b in shared memory, row-major. From a, a result, to an operand nothing moves.
template <int kStride>
__device__ __forceinline__ void multiply_square(Square& d, const Square& a, const float* b, int g, int t) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float* const from = b + (8 * s + 2 * t) * kStride + 8 * n + g;
      multiply(d.part[n], a.part[s][0], a.part[s][2], a.part[s][1], a.part[s][3], from[0], from[kStride]);
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
template <int kStride>
__device__ __forceinline__ void store_square(float* to, const Square& x, int g, int t) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    store<2>(to + g * kStride + 8 * n + 2 * t, {x.part[n][0], x.part[n][1]});
    store<2>(to + (g + 8) * kStride + 8 * n + 2 * t, {x.part[n][2], x.part[n][3]});
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

// T over Aᵀ, both [16][kInverseStride] at `p`. Lane j < 16 finds column j of T by forward substitution, in f32; the others do the same for nothing.
__device__ __forceinline__ void invert(float* p, int lane) {
  float column[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) column[i] = i == (lane & 15) ? 1.0f : 0.0f;
#pragma unroll
  for (int k = 0; k + 1 < kChunk; ++k) {
#pragma unroll
    for (int unit = (k + 1) / 4; unit < kChunk / 4; ++unit) {
      const Pack<4> below = load<4>(p + k * kInverseStride + 4 * unit);  // A[4 unit .. +3][k]
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (4 * unit + e > k) column[4 * unit + e] = fmaf(below.x[e], column[k], column[4 * unit + e]);
      }
    }
  }
  __syncwarp();
  if (lane < kChunk) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) p[i * kInverseStride + lane] = to_tf32(column[i]);
  }
  __syncwarp();
}

// Ã', R̃', Mu, My over Ã, R̃.
template <int N>
__device__ __forceinline__ void couple_tokens(float* stage, int lane) {
  const int g = lane / 4, t = lane % 4;
  float *const alpha = stage + Stage<N>::kAlpha, *const read = stage + Stage<N>::kRead;
  float *const mix_u = stage + Stage<N>::kMixU, *const mix_y = stage + Stage<N>::kMixY, *const inverse = stage + Stage<N>::kInverse;
  Square ab, ak, rb, rk;
#pragma unroll
  for (int i = 0; i < N / 16; ++i) {
    const int low = piece_at<N>(g, i, t), high = low + 8 * N;  // rows g and g + 8 turn alike
    const Pack<4> a0 = load<4>(alpha + low), a1 = load<4>(alpha + high), r0 = load<4>(read + low), r1 = load<4>(read + high);
    const Pack<4> b[2] = {load<4>(stage + Stage<N>::kBeta + low), load<4>(stage + Stage<N>::kBeta + high)};
    const Pack<4> k[2] = {load<4>(stage + Stage<N>::kKey + low), load<4>(stage + Stage<N>::kKey + high)};
#pragma unroll
    for (int s = 0; s < 4; s += 2) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply(ab.part[n], a0.x[s], a1.x[s], a0.x[s + 1], a1.x[s + 1], b[n].x[s], b[n].x[s + 1]);
        multiply(ak.part[n], a0.x[s], a1.x[s], a0.x[s + 1], a1.x[s + 1], k[n].x[s], k[n].x[s + 1]);
        multiply(rb.part[n], r0.x[s], r1.x[s], r0.x[s + 1], r1.x[s + 1], b[n].x[s], b[n].x[s + 1]);
        multiply(rk.part[n], r0.x[s], r1.x[s], r0.x[s + 1], r1.x[s + 1], k[n].x[s], k[n].x[s + 1]);
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
    for (int e = 0; e < 4; ++e) inverse[(8 * n + 2 * t + (e & 1)) * kInverseStride + g + (e & 2) * 4] = ab.part[n][e];
  }
  to_tf32(ak);
  store_square<kMixStride>(mix_u, ak, g, t);
  __syncwarp();
  invert(inverse, lane);

  Square solve, q;  // T and Q
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const Pack<2> low = load<2>(inverse + g * kInverseStride + 8 * n + 2 * t), high = load<2>(inverse + (g + 8) * kInverseStride + 8 * n + 2 * t);
    solve.part[n][0] = low.x[0];
    solve.part[n][1] = low.x[1];
    solve.part[n][2] = high.x[0];
    solve.part[n][3] = high.x[1];
  }
  to_tf32(rb);
  multiply_square<kInverseStride>(q, rb, inverse, g, t);
  to_tf32(q);

  Square mu;
  multiply_square<kMixStride>(mu, solve, mix_u, g, t);
  multiply_square<kMixStride>(rk, q, mix_u, g, t);
  to_tf32(mu);
  to_tf32(rk);
  __syncwarp();
  store_square<kMixStride>(mix_u, mu, g, t);
  store_square<kMixStride>(mix_y, rk, g, t);

  // Two results at a time stand for keys 16i..16i+15: column c for key 2c in the first and 2c + 1 in the second, so that a thread's are neighbours.
#pragma unroll
  for (int i = 0; i < N / 16; ++i) {
    const int low = piece_at<N>(g, i, t), high = low + 8 * N;
    const Pack<4> r0 = load<4>(read + low), r1 = load<4>(read + high);
    float new_a[2][4] = {}, new_r[2][4] = {{r0.x[0], r0.x[2], r1.x[0], r1.x[2]}, {r0.x[1], r0.x[3], r1.x[1], r1.x[3]}};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Pack<2> even = load<2>(alpha + piece_at<N>(8 * s + 2 * t, i, g / 2) + (g & 1) * 2);
      const Pack<2> odd = load<2>(alpha + piece_at<N>(8 * s + 2 * t + 1, i, g / 2) + (g & 1) * 2);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply(new_a[n], solve.part[s][0], solve.part[s][2], solve.part[s][1], solve.part[s][3], even.x[n], odd.x[n]);
        multiply(new_r[n], q.part[s][0], q.part[s][2], q.part[s][1], q.part[s][3], even.x[n], odd.x[n]);
      }
    }
    __syncwarp();  // these sixteen columns have been read by all
    const auto write = [](float* tile, int low_at, int high_at, const float (&x)[2][4]) {
      store<4>(tile + low_at, {to_tf32(x[0][0]), to_tf32(x[1][0]), to_tf32(x[0][1]), to_tf32(x[1][1])});
      store<4>(tile + high_at, {to_tf32(x[0][2]), to_tf32(x[1][2]), to_tf32(x[0][3]), to_tf32(x[1][3])});
    };
    write(alpha, low, high, new_a);
    write(read, low, high, new_r);
  }
}

// ---- walkers ----------------------------------------------------------------------------------------------
// 16 value rows of the state, rows g and g + 8 of a thread, as N / 8 results of `multiply` whose columns stand for keys as in couple_tokens:
// tiles 2i and 2i + 1 hold the thread's keys 16i + 4t .. + 3, the first the even ones.
template <int N>
struct State {
  float tile[N / 8][4] = {};

  __device__ __forceinline__ void read(const float* rows, int g, int t) {
#pragma unroll
    for (int i = 0; i < N / 16; ++i) {
      const Pack<4> low = load<4>(rows + g * N + 16 * i + 4 * t), high = load<4>(rows + (g + 8) * N + 16 * i + 4 * t);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        tile[2 * i + (e & 1)][e / 2] = low.x[e];
        tile[2 * i + (e & 1)][2 + e / 2] = high.x[e];
      }
    }
  }
  __device__ __forceinline__ void write(float* rows, int g, int t) const {
#pragma unroll
    for (int i = 0; i < N / 16; ++i) {
      Pack<4> low, high;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        low.x[e] = tile[2 * i + (e & 1)][e / 2];
        high.x[e] = tile[2 * i + (e & 1)][2 + e / 2];
      }
      store(rows + g * N + 16 * i + 4 * t, low);
      store(rows + (g + 8) * N + 16 * i + 4 * t, high);
    }
  }
};

// state += xᵀ m, x 16 tokens (rows of a result) by 16 values held transposed, m a tile [16][N].
template <int N>
__device__ __forceinline__ void add_outer(State<N>& state, const Square& x, const float* m, int g, int t) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
#pragma unroll
    for (int i = 0; i < N / 16; ++i) {
      const Pack<2> even = load<2>(m + piece_at<N>(8 * s + 2 * t, i, g / 2) + (g & 1) * 2);
      const Pack<2> odd = load<2>(m + piece_at<N>(8 * s + 2 * t + 1, i, g / 2) + (g & 1) * 2);
#pragma unroll
      for (int n = 0; n < 2; ++n) multiply(state.tile[2 * i + n], x.part[s][0], x.part[s][2], x.part[s][1], x.part[s][3], even.x[n], odd.x[n]);
    }
  }
}

// d += x mᵀ, x transposed as above, m lower triangular in shared memory.
__device__ __forceinline__ void add_mixed(Square& d, const Square& x, const float* m, int g, int t) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int s = 0; s <= n; ++s) {
      const Pack<2> from = load<2>(m + (8 * n + g) * kMixStride + 8 * s + 2 * t);
      multiply(d.part[n], x.part[s][0], x.part[s][2], x.part[s][1], x.part[s][3], from.x[0], from.x[1]);
    }
  }
}

// Walks one chunk. `stage` is not read any more when it returns. y, transposed: values g and g + 8, tokens 8n + 2t and + 1.
template <int N>
__device__ __forceinline__ Square walk_chunk(State<N>& state, const float* stage, int value_stride, int warp_value, int g, int t) {
  Square v, u, y;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const float* const from = stage + Stage<N>::kValue + (8 * s + 2 * t) * value_stride + warp_value + g;
    v.part[s][0] = from[0];
    v.part[s][1] = from[value_stride];
    v.part[s][2] = from[8];
    v.part[s][3] = from[value_stride + 8];
  }
  to_tf32(v);
#pragma unroll
  for (int i = 0; i < N / 16; ++i) {
    const int low = piece_at<N>(g, i, t), high = low + 8 * N;
    const Pack<4> a[2] = {load<4>(stage + Stage<N>::kAlpha + low), load<4>(stage + Stage<N>::kAlpha + high)};
    const Pack<4> r[2] = {load<4>(stage + Stage<N>::kRead + low), load<4>(stage + Stage<N>::kRead + high)};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float(&s)[4] = state.tile[2 * i + e];
      const float s0 = to_tf32(s[0]), s1 = to_tf32(s[1]), s2 = to_tf32(s[2]), s3 = to_tf32(s[3]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply(u.part[n], s0, s2, s1, s3, a[n].x[e], a[n].x[e + 2]);
        multiply(y.part[n], s0, s2, s1, s3, r[n].x[e], r[n].x[e + 2]);
      }
    }
  }
  add_mixed(u, v, stage + Stage<N>::kMixU, g, t);
  add_mixed(y, v, stage + Stage<N>::kMixY, g, t);
  add_outer<N>(state, v, stage + Stage<N>::kKey, g, t);
  to_tf32(u);
  add_outer<N>(state, u, stage + Stage<N>::kBeta, g, t);
#pragma unroll
  for (int i = 0; i < N / 16; ++i) {
    const Pack<4> decay = load<4>(stage + Stage<N>::kFinal + 16 * i + 4 * t);
#pragma unroll
    for (int e = 0; e < 4; ++e) state.tile[2 * i + (e & 1)][e / 2] *= decay.x[e];
#pragma unroll
    for (int e = 0; e < 4; ++e) state.tile[2 * i + (e & 1)][2 + e / 2] *= decay.x[e];
  }
  return y;
}

// ---- the kernel -------------------------------------------------------------------------------------------
// Grid: (sequence, head, slice), the slice fastest. Warps: producers, then walkers.
template <int N>
__global__ void __maxnreg__(N > 64 ? 168 : 128) wkv_chunked_kernel(Wkv a, WkvPlan plan) {
  duet_gpu::let_next_start();
  extern __shared__ float4 shared[];
  float* const ring = reinterpret_cast<float*>(shared);
  const int slice = plan.slice, stages = plan.stages, producers = plan.producers, walkers = slice / 16, stage_size = Stage<N>::size(slice);
  uint64_t* const full = reinterpret_cast<uint64_t*>(ring + stages * stage_size);  // a chunk is ready
  uint64_t* const empty = full + stages;                                           // all walkers are done with it
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, walkers);
    }
  }
  duet_gpu::wait_for_inputs();
  const uint32_t slices = N / slice, pair = blockIdx.x / slices, head = pair % a.n_head, seq = pair / a.n_head;
  const int slice_begin = blockIdx.x % slices * slice;
  if (seq >= static_cast<uint32_t>(a.used[1])) return;
  const int first = a.starts[seq], length = a.starts[seq + 1] - first, slot = a.slots[seq];
  if (length <= 0) return;
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunks = (length + kChunk - 1) / kChunk;
  const uint64_t width = static_cast<uint64_t>(a.n_head) * N, origin = first * width + static_cast<uint64_t>(head) * N;
  if (warp < producers) {
    // Chunks warp, warp + producers, ...: the copies of the next start before the work on this one if its stage is free by then, else after it.
    // As producers <= stages, the walkers are then done with all but the last chunk before it in its stage: one bit of phase is enough.
    const auto fetch = [&](int chunk) {
      fetch_chunk<N>(a, ring + chunk % stages * stage_size, origin + chunk * kChunk * width, min(kChunk, length - chunk * kChunk), slice, slice_begin,
                     lane);
    };
    // A stage is free for a chunk when the walkers are done with the chunk before it there.
    const auto freed = [&](int chunk) { return empty + chunk % stages; };
    const auto freed_parity = [&](int chunk) { return static_cast<uint32_t>(chunk / stages & 1) ^ 1; };
    if (warp < chunks) {
      barrier_wait(freed(warp), freed_parity(warp));
      fetch(warp);
    }
    for (int chunk = warp; chunk < chunks; chunk += producers) {
      const int next = chunk + producers;
      const bool ahead = next < chunks && __all_sync(~0u, barrier_passed(freed(next), freed_parity(next)));
      if (ahead) {
        fetch(next);
        copies_wait<1>();
      } else {
        copies_wait<0>();
      }
      __syncwarp();
      float* const stage = ring + chunk % stages * stage_size;
      scale_rows<N>(stage, min(kChunk, length - chunk * kChunk), lane);
      __syncwarp();
      couple_tokens<N>(stage, lane);
      __syncwarp();
      if (lane == 0) barrier_arrive(full + chunk % stages);
      if (!ahead && next < chunks) {
        barrier_wait(freed(next), freed_parity(next));
        fetch(next);
      }
    }
    return;
  }

  const int g = lane / 4, t = lane % 4, warp_value = (warp - producers) * 16;
  State<N> state;
  float* const rows = a.state + (slot < 0 ? 0 : slot * a.slot_stride) + (static_cast<uint64_t>(head) * N + slice_begin + warp_value) * N;
  if (slot >= 0) state.read(rows, g, t);
  int at = 0, parity = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    barrier_wait(full + at, parity);
    const Square y = walk_chunk<N>(state, ring + at * stage_size, slice + 4, warp_value, g, t);
    __syncwarp();
    if (lane == 0) barrier_arrive(empty + at);
    float* const to = a.y + origin + chunk * kChunk * width + slice_begin + warp_value + g;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int token = 8 * n + 2 * t + e;
        if (chunk * kChunk + token < length) {
          to[token * width] = y.part[n][e];
          to[token * width + 8] = y.part[n][2 + e];
        }
      }
    }
    if (++at == stages) {
      at = 0;
      parity ^= 1;
    }
  }
  if (slot >= 0) state.write(rows, g, t);
}

// ---- host -------------------------------------------------------------------------------------------------
int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&value, which, device) != cudaSuccess) return 0;
  return value;
}

size_t stage_bytes(uint32_t head_size, uint32_t slice) {
  const int elements = head_size == 32 ? Stage<32>::size(slice) : head_size == 64 ? Stage<64>::size(slice) : Stage<128>::size(slice);
  return elements * sizeof(float) + 2 * sizeof(uint64_t);
}

}  // namespace

bool wkv_chunked_takes(uint32_t head_size) { return head_size == 32 || head_size == 64 || head_size == 128; }

WkvPlan wkv_plan(uint32_t n_seqs, uint32_t n_head, uint32_t head_size) {
  const uint64_t pairs = static_cast<uint64_t>(n_seqs) * n_head, processors = attribute(cudaDevAttrMultiProcessorCount);
  const size_t block_most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), processor_most = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  const size_t reserved = attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  WkvPlan plan{head_size < 64 ? head_size : 64, 4, 4};
  const auto blocks = [&] { return pairs * (head_size / plan.slice); };
  while (plan.slice > 16 && 2 * blocks() <= processors) plan.slice /= 2;
  const size_t one = stage_bytes(head_size, plan.slice);
  if (blocks() > processors) {  // two blocks on a multiprocessor
    const uint32_t fit = static_cast<uint32_t>((processor_most / 2 - reserved) / one);
    plan.producers = 8 - plan.slice / 16 < 4 ? 8 - plan.slice / 16 : 4;
    plan.stages = fit < 4 ? fit : 4;
    if (plan.stages >= 2) return plan;
  }
  const uint32_t fit = static_cast<uint32_t>(block_most / one);
  plan.stages = fit < 10 ? fit : 10;
  plan.producers = plan.stages < 10 ? plan.stages : 10;
  return plan;
}

Error wkv_chunked(const Wkv& a, const WkvPlan& plan, duet_gpu::Stream stream) {
  const uint32_t n = a.head_size;
  const bool cut = plan.slice >= 16 && plan.slice <= n && (plan.slice & (plan.slice - 1)) == 0;
  if (!wkv_chunked_takes(n) || !cut || plan.producers < 1 || plan.stages < plan.producers || a.slot_stride % 4 != 0) return cudaErrorInvalidValue;
  const uint32_t warps = plan.producers + plan.slice / 16;
  const uint64_t blocks = static_cast<uint64_t>(a.n_seqs) * a.n_head * (n / plan.slice);
  if (blocks == 0 || a.n_tokens == 0) return cudaSuccess;
  if (blocks > 0x7fffffffu || warps > kMostWarps) return cudaErrorInvalidValue;
  const size_t bytes = plan.stages * stage_bytes(n, plan.slice);
  const auto kernel = n == 32 ? wkv_chunked_kernel<32> : n == 64 ? wkv_chunked_kernel<64> : wkv_chunked_kernel<128>;
  const Error error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) {
    cudaGetLastError();
    return error;
  }
  return duet_gpu::launch(kernel, dim3(static_cast<uint32_t>(blocks)), dim3(warps * 32), bytes, stream, a, plan);
}

Error wkv_chunked(const Wkv& a, duet_gpu::Stream stream) { return wkv_chunked(a, wkv_plan(a.n_seqs, a.n_head, a.head_size), stream); }

}  // namespace duet_cuda
