// wkv token by token in f32. The state stays in registers: `lanes` neighbouring threads share a value row, each with sixteen keys of it.
// A block walks one sequence with `rows` value rows of one head; rows do not depend on each other.
// Vectors of several tokens at a time come through registers into shared memory while the tokens before them are computed.
#include "gpu/stored.h"
#include "gpu/wkv.h"

namespace duet_gpu {
namespace {

constexpr int kThreads = 256;  // at most
constexpr int kKeys = 16;      // of a thread, as four times four keys `lanes` pieces apart: neighbours read neighbouring bytes

struct Shape {
  int lanes, rows;  // powers of two; lanes * rows threads, whole warps; rows a multiple of 16
  int slices;       // blocks for the rows of a head
  int tile;         // tokens in shared memory
};

// One token's vectors in shared memory, each padded to the keys of all lanes.
enum Vector { kDecay, kAlpha, kBeta, kKey, kRead, kVectors };

__device__ __forceinline__ float sum_over_lanes(float x, int lanes) {
  for (int m = lanes / 2; m > 0; m /= 2) {
#if defined(__HIP__)
    x += __shfl_xor(x, m);
#else
    x += __shfl_xor_sync(~0u, x, m);
#endif
  }
  return x;
}

__device__ __forceinline__ float dot(const float4& a, const float4& b) { return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, a.x * b.x))); }

__device__ __forceinline__ float step(float s, float w, float u, float beta, float v, float k) { return fmaf(s, w, fmaf(u, beta, v * k)); }

// kWhole: lanes * 16 keys and slices * rows values are exactly the head, and four keys of the state are aligned to their size.
// kItems: for how many tokens of a tile each thread fetches a key; 1 for tiles of one token.
template <class Stored, bool kWhole, int kItems>
__global__ void __launch_bounds__(kThreads, kItems == 1 ? 3 : 2) wkv_sequential_kernel(Wkv a, Shape shape) {
  let_next_start();
  wait_for_inputs();
  extern __shared__ float4 shared[];
  const int tile = kItems == 1 ? 1 : shape.tile;
  const int n = a.head_size, padded = shape.lanes * kKeys, tid = threadIdx.x;
  const uint32_t slice = blockIdx.x % shape.slices, pair = blockIdx.x / shape.slices, head = pair % a.n_head, seq = pair / a.n_head;
  if (seq >= static_cast<uint32_t>(a.used[1])) return;
  const int32_t first = a.starts[seq], length = a.starts[seq + 1] - first, slot = a.slots[seq];
  if (length <= 0) return;

  const int lane = tid % shape.lanes, row = tid / shape.lanes, value = slice * shape.rows + row;
  float4 s[kKeys / 4] = {};
  Stored* const mine = static_cast<Stored*>(a.state) + (slot < 0 ? 0 : slot * a.slot_stride) + (static_cast<uint64_t>(head) * n + value) * n;  // read only where slot >= 0
  if (slot >= 0 && (kWhole || value < n)) {
#pragma unroll
    for (int j = 0; j < kKeys / 4; ++j) {
      const int key = 4 * (lane + shape.lanes * j);
      if constexpr (kWhole) {
        s[j] = load_four(mine + key);
      } else {
        if (key < n) s[j].x = to_f32(mine[key]);
        if (key + 1 < n) s[j].y = to_f32(mine[key + 1]);
        if (key + 2 < n) s[j].z = to_f32(mine[key + 2]);
        if (key + 3 < n) s[j].w = to_f32(mine[key + 3]);
      }
    }
  }

  const uint64_t width = static_cast<uint64_t>(a.n_head) * n, origin = first * width + static_cast<uint64_t>(head) * n;
  float* const vectors = reinterpret_cast<float*>(shared);                                    // [tile][kVectors][padded]
  float* const values = vectors + tile * kVectors * padded;                                   // [tile][rows]
  const int key = tid % padded, key_token = tid / padded, key_step = shape.rows / kKeys;      // what this thread fetches: one key of every key_step-th token,
  const int fetched = slice * shape.rows + tid % shape.rows, value_token = tid / shape.rows;  // one value of every lanes-th
  float raw[kItems][6];
  const auto fetch = [&](int begin) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int t = begin + key_token + i * key_step, tv = begin + value_token + i * shape.lanes;
      const bool here = t < length && key_token + i * key_step < tile && (kWhole || key < n);
      const uint64_t at = origin + t * width + key;
      raw[i][0] = here ? a.w_raw[at] : 0;
      raw[i][1] = here ? a.kk[at] : 0;
      raw[i][2] = here ? a.a[at] : 0;
      raw[i][3] = here ? a.k[at] : 0;
      raw[i][4] = here ? a.r[at] : 0;
      raw[i][5] = tv < length && value_token + i * shape.lanes < tile && (kWhole || fetched < n) ? a.v[origin + tv * width + fetched] : 0;
    }
  };
  fetch(0);
  for (int begin = 0; begin < length; begin += tile) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int t = key_token + i * key_step, tv = value_token + i * shape.lanes;
      if (t < tile) {
        float* const to = vectors + t * kVectors * padded + key;
        constexpr float kScale = 0.60653065971263342f;  // exp(-1/2)
        to[kDecay * padded] = expf(-kScale / (1.0f + expf(-raw[i][0])));
        to[kAlpha * padded] = -raw[i][1];
        to[kBeta * padded] = raw[i][1] * raw[i][2];
        to[kKey * padded] = raw[i][3];
        to[kRead * padded] = raw[i][4];
      }
      if (tv < tile) values[tv * shape.rows + tid % shape.rows] = raw[i][5];
    }
    __syncthreads();
    if (begin + tile < length) fetch(begin + tile);
    const int n_here = min(tile, length - begin);
    for (int t = 0; t < n_here; ++t) {
      const float4* const from = shared + (t * kVectors * padded) / 4 + lane;
      const auto piece = [&](Vector which, int j) { return from[(which * padded) / 4 + shape.lanes * j]; };
      float part[kKeys / 4];
#pragma unroll
      for (int j = 0; j < kKeys / 4; ++j) part[j] = dot(s[j], piece(kAlpha, j));
      const float u = sum_over_lanes((part[0] + part[1]) + (part[2] + part[3]), shape.lanes), v = values[t * shape.rows + row];
#pragma unroll
      for (int j = 0; j < kKeys / 4; ++j) {
        const float4 w = piece(kDecay, j), beta = piece(kBeta, j), k = piece(kKey, j);
        s[j] = {step(s[j].x, w.x, u, beta.x, v, k.x), step(s[j].y, w.y, u, beta.y, v, k.y), step(s[j].z, w.z, u, beta.z, v, k.z),
                step(s[j].w, w.w, u, beta.w, v, k.w)};
        part[j] = dot(s[j], piece(kRead, j));
      }
      const float y = sum_over_lanes((part[0] + part[1]) + (part[2] + part[3]), shape.lanes);
      if (lane == 0 && (kWhole || value < n)) a.y[origin + (begin + t) * width + value] = y;
    }
    __syncthreads();
  }

  if (slot >= 0 && (kWhole || value < n)) {
#pragma unroll
    for (int j = 0; j < kKeys / 4; ++j) {
      const int to = 4 * (lane + shape.lanes * j);
      if constexpr (kWhole) {
        store_four(mine + to, s[j]);
      } else {
        if (to < n) mine[to] = to_stored<Stored>(s[j].x);
        if (to + 1 < n) mine[to + 1] = to_stored<Stored>(s[j].y);
        if (to + 2 < n) mine[to + 2] = to_stored<Stored>(s[j].z);
        if (to + 3 < n) mine[to + 3] = to_stored<Stored>(s[j].w);
      }
    }
  }
}

}  // namespace

Error wkv_sequential(const Wkv& a, Stream stream) {
#if defined(__HIP__)
  constexpr Error kInvalid = hipErrorInvalidValue;
#else
  constexpr Error kInvalid = cudaErrorInvalidValue;
#endif
  if (a.head_size < 1 || a.head_size > 256) return kInvalid;
  const uint64_t pairs = static_cast<uint64_t>(a.n_seqs) * a.n_head;
  if (pairs == 0 || a.max_len == 0) return kSuccess;
  const int n = static_cast<int>(a.head_size);
  Shape shape{};
  shape.lanes = 1;
  while (shape.lanes * kKeys < n) shape.lanes *= 2;
  const int fewest = shape.lanes == 1 ? 32 : 16;  // rows: whole warps, and a thread for every key
  shape.rows = fewest;
  while (shape.rows < n && 2 * shape.rows * shape.lanes <= kThreads) shape.rows *= 2;
  const auto slices = [&] { return (n + shape.rows - 1) / shape.rows; };
  // Few heads: smaller blocks, so that every multiprocessor has one.
  const uint64_t wanted = static_cast<uint64_t>(multiprocessors());
  while (shape.rows > fewest && pairs * slices() < wanted) shape.rows /= 2;
  shape.slices = slices();
  const bool whole = n == shape.lanes * kKeys && n % shape.rows == 0 && a.slot_stride % 4 == 0;
  const bool single = a.max_len == 1;
  const int items = single ? 1 : 4, most = items * (shape.rows / kKeys < shape.lanes ? shape.rows / kKeys : shape.lanes);
  shape.tile = single ? 1 : most;
  const uint64_t blocks = pairs * shape.slices;
  if (blocks > 0x7fffffffu) return kInvalid;
  const size_t bytes = static_cast<size_t>(shape.tile) * (kVectors * shape.lanes * kKeys + shape.rows) * sizeof(float);
  return with_stored(a.stored, [&](auto of) {
    using S = decltype(of);
    const auto kernel = whole ? (single ? wkv_sequential_kernel<S, true, 1> : wkv_sequential_kernel<S, true, 4>)
                              : (single ? wkv_sequential_kernel<S, false, 1> : wkv_sequential_kernel<S, false, 4>);
    return launch(kernel, dim3(static_cast<uint32_t>(blocks)), dim3(static_cast<uint32_t>(shape.lanes * shape.rows)), bytes, stream, a, shape);
  });
}

}  // namespace duet_gpu
