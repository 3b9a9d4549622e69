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

// Tensor cores cut off all but ten bits of an operand's mantissa. Half a unit of what remains, added before, turns that into rounding. This adds
// between 0.36 and 0.72 units in one multiplication, which is as good on average (cvt.rna.tf32 is three instructions), and keeps NaN.
__device__ __forceinline__ float to_tf32(float x) { return x * (1.0f + 0.72f / 2048); }

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
#pragma unroll 8
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
#pragma unroll
  for (int e = 0; e < kOwn; ++e) stage[Stage<N>::kFinal + final_at(kOwn * lane + e)] = before[e];
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
template <int N>
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
    load_pieces(r, left + sizeof(float) * Stage<N>::kRead);
    load_pieces(b, right + sizeof(float) * Stage<N>::kBeta);
    load_pieces(k, right + sizeof(float) * Stage<N>::kKey);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      multiply(ab.part[n], a[0], a[1], a[2], a[3], b[2 * n], b[2 * n + 1]);
      multiply(ak.part[n], a[0], a[1], a[2], a[3], k[2 * n], k[2 * n + 1]);
      multiply(rb.part[n], r[0], r[1], r[2], r[3], b[2 * n], b[2 * n + 1]);
      multiply(rk.part[n], r[0], r[1], r[2], r[3], k[2 * n], k[2 * n + 1]);
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
  to_tf32(rb);
  multiply_square(q, rb, inverse, g, t);
  to_tf32(q);

  Square mu;
  multiply_square(mu, solve, mix_u, g, t);
  multiply_square(rk, q, mix_u, g, t);
  to_tf32(mu);
  to_tf32(rk);
  __syncwarp();
  store_square<true>(mix_u, mu, g, t);
  store_square<true>(mix_y, rk, g, t);

  // Two results at a time stand for keys 16i..16i+15: column c for key 2c in the first and 2c + 1 in the second, so that a thread's are neighbours.
#pragma unroll
  for (int i = 0; i < N / 16; ++i) {
    const int low = sixteen_at<N>(g, i, t), high = low + 8 * N;  // rows g and g + 8 turn alike
    const Pack<4> r0 = load<4>(read + low), r1 = load<4>(read + high);
    float new_a[2][4] = {}, new_r[2][4] = {{r0.x[0], r0.x[2], r1.x[0], r1.x[2]}, {r0.x[1], r0.x[3], r1.x[1], r1.x[3]}};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Pack<2> even = load<2>(alpha + sixteen_at<N>(8 * s + 2 * t, i, g / 2) + (g & 1) * 2);
      const Pack<2> odd = load<2>(alpha + sixteen_at<N>(8 * s + 2 * t + 1, i, g / 2) + (g & 1) * 2);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply(new_a[n], solve.part[s][0], solve.part[s][2], solve.part[s][1], solve.part[s][3], even.x[n], odd.x[n]);
        multiply(new_r[n], q.part[s][0], q.part[s][2], q.part[s][1], q.part[s][3], even.x[n], odd.x[n]);
      }
    }
    __syncwarp();  // these sixteen columns have been read by all
    const auto write = [](float* tile, int low_at, int high_at, const float(&x)[2][4]) {
      store<4>(tile + low_at, {to_tf32(x[0][0]), to_tf32(x[1][0]), to_tf32(x[0][1]), to_tf32(x[1][1])});
      store<4>(tile + high_at, {to_tf32(x[0][2]), to_tf32(x[1][2]), to_tf32(x[0][3]), to_tf32(x[1][3])});
    };
    write(alpha, low, high, new_a);
    write(read, low, high, new_r);
  }
}

// ---- walkers ----------------------------------------------------------------------------------------------
// 16 value rows of the state, rows g and g + 8 of a thread, as N / 8 results of `multiply`. Columns 2t and 2t + 1 of result j stand for the keys t of
// the two units that eight_at takes for j.
template <int N>
struct State {
  float tile[N / 8][4] = {};

  static __device__ __forceinline__ int key(int j, int half, int t) { return 32 * (j / 4) + 4 * (j % 4) + 16 * half + t; }
  __device__ __forceinline__ void read(const float* rows, int g, int t) {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) tile[j][e] = rows[(g + (e & 2) * 4) * N + key(j, e & 1, t)];
    }
  }
  __device__ __forceinline__ void write(float* rows, int g, int t) const {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) rows[(g + (e & 2) * 4) * N + key(j, e & 1, t)] = tile[j][e];
    }
  }
};

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

// Walks one chunk. `stage` is not read any more when it returns. y, transposed: values g and g + 8, tokens 8n + 2t and + 1.
template <int N>
__device__ __forceinline__ Square walk_chunk(State<N>& state, const float* stage, int value_stride, int warp_value, int lane) {
  const int g = lane / 4, t = lane % 4;
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
  const int piece = lane / 8, row = lane % 8;  // of an address that this lane gives
  const uint32_t base = shared_address(stage);
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const uint32_t from = base + sizeof(float) * eight_at<N>(row + (piece & 2) * 4, j, piece & 1, 0);
    float a[4], r[4];
    load_pieces(a, from + sizeof(float) * Stage<N>::kAlpha);
    load_pieces(r, from + sizeof(float) * Stage<N>::kRead);
    const float(&s)[4] = state.tile[j];
    const float s0 = to_tf32(s[0]), s1 = to_tf32(s[1]), s2 = to_tf32(s[2]), s3 = to_tf32(s[3]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      multiply(u.part[n], s0, s2, s1, s3, a[2 * n], a[2 * n + 1]);
      multiply(y.part[n], s0, s2, s1, s3, r[2 * n], r[2 * n + 1]);
    }
  }
  add_mixed(u, v, base + sizeof(float) * Stage<N>::kMixU, lane);
  add_mixed(y, v, base + sizeof(float) * Stage<N>::kMixY, lane);
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
      fetch_chunk<N>(a, ring + chunk % stages * stage_size, origin + chunk * kChunk * width, min(kChunk, length - chunk * kChunk), slice, slice_begin, lane);
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
    const Square y = walk_chunk<N>(state, ring + at * stage_size, slice + 4, warp_value, lane);
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
