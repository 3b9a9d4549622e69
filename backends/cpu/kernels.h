// The SIMD kernels. Each is compiled for several instruction sets and picks the best one of this CPU at run time (Highway).
// A row's bits depend on the CPU only: never on the number of rows, on their place, or on which thread computes them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "duet_quantised.h"

namespace duet_cpu {

// Activations marked (m) in duet_plugin.h: matrix inputs, bf16 beside bf16 weights and f32 otherwise.
inline size_t m_bytes(bool bf16) { return bf16 ? 2 : 4; }

// ---- norm.cc: one token ----
void layer_norm(const float* x, const float* w, const float* b, size_t C, float eps, float* y);  // y may be x
void widen(const void* src, duet_dtype dtype, size_t n, float* y);
void round_row(const float* x, size_t n, bool bf16, void* y);
// out[i] = y + (prev - y) * mix[i] for n mixes
void mix(const float* y, const float* prev, const float* const* mix, size_t n, size_t C, bool bf16, void* const* out);

// ---- gate.cc, wkv.cc: the tokens [t0, t1) of one head ----
struct Prepare {
  const float *k, *v, *lw, *la, *lv, *v_first;           // [T,C]; layer 0: lv and v_first NULL
  float *out_k, *out_v, *w_raw, *a, *kk, *out_v_first;   // [T,C]; out_v_first in layer 0 only
  const float *w0, *a0, *v0, *k_k, *k_a;                 // [C]
  size_t C, N;
};
void prepare(const Prepare& p, size_t head, size_t t0, size_t t1);

struct NormGate {
  const float *y, *r, *k, *v, *g;    // [T,C]
  const float *ln_w, *ln_b, *r_k;    // [C]
  void* out;                         // (m) [T,C]
  size_t C, N;
  float eps;
  bool bf16;
};
void norm_gate(const NormGate& p, size_t head, size_t t0, size_t t1);

// S is transposed, [key][value], each row padded to wkv_stride(N) values, so that no sum runs across lanes.
struct Wkv {
  const float *r, *w_raw, *k, *v, *kk, *a;  // [T,C]
  float* y;                                 // [T,C]
  size_t C, N;
};
inline size_t wkv_stride(size_t N) { return (N + 15) / 16 * 16; }
size_t wkv_scratch_bytes(size_t N);
void wkv(const Wkv& p, size_t head, size_t t0, size_t t1, float* S, void* scratch);

// ---- product.cc: y = W x for a tile of outputs ----
constexpr size_t kTileColumns = 64, kTileRows = 32, kMaxTileRows = 36;  // the latter: see gemm.h
struct Matrix {
  const void* data = nullptr;  // aligned to its element only
  duet_dtype dtype = DUET_F32;
  uint32_t in = 0, out = 0;
  bool in_major = false;  // [in,out], as the low-rank pairs are, and the value matrix of channel mix here; else [out,in]; neither for q8 and q4 (duet_quantised.h)
  const void *scale = nullptr, *minimum = nullptr;  // bf16; q8 has the first, q4 both
  bool quantised() const { return scale != nullptr; }
};
// tile[row][0..count) = outputs first .. first+count of `rows` inputs; count <= kTileColumns, rows <= kTileRows. `next`: outputs that
// this thread will probably be asked for next, to be fetched meanwhile.
void multiply_tile(const Matrix& w, size_t first, size_t count, const void* x, size_t rows, float* tile, size_t next);

enum class Finish { kStore, kAdd, kRelu2, kTanh, kSigmoid };
// out[row * ld + i] = finish(tile[row][i]); kAdd adds to the f32 already there
void finish_tile(const float* tile, size_t rows, size_t count, Finish finish, bool bf16, void* out, size_t ld);

// ---- skipping.cc: sums over a part of the inputs of W [in,out], float and in_major; a row of W whose inputs are all zero is not read ----
// Rows are taken in steps, of which each has one row of each of kSkipStreams stretches of the part: rows that are read at once
// should lie in different pages, where prefetchers follow them one by one.
struct Skipping {
  const Matrix& w;
  size_t from, to;    // inputs of the part
  size_t begin, end;  // steps of skip_steps
  void* scratch;      // of skip_scratch_bytes
};
constexpr size_t kSkipRows = 4, kSkipStreams = 16;
constexpr size_t skip_steps(size_t inputs) { return (inputs + kSkipStreams - 1) / kSkipStreams; }
constexpr size_t skip_scratch_bytes(size_t in, size_t out) { return (in + kSkipStreams) * sizeof(uint32_t) + in * sizeof(uint16_t) + 64 + out * sizeof(uint16_t); }
// sum[row][0..w.out) += inputs times their rows, in the order of the steps; x (m) [rows, w.in], rows <= kSkipRows; sums are ld apart
void add_rows(const Skipping& s, const void* x, size_t rows, float* sum, size_t ld);
// y += n parts, ld apart, one after the other
void add_parts(const float* parts, size_t n, size_t ld, size_t count, float* y);

// ---- transpose.cc: rows [from, to) of [rows,columns] to their columns of [columns,rows]; elements of 2 or 4 bytes ----
void transpose(const void* in, size_t element, size_t rows, size_t columns, size_t from, size_t to, void* out);

// ---- quantised*.cc: the same for q8 and q4 weights, whose inputs are rounded first ----
constexpr size_t kGroup = DUETP_QUANTISED_GROUP, kTile = DUETP_QUANTISED_TILE;
struct RoundedRows {  // [rows][groups]; see duetp_round_input
  size_t groups;
  int8_t* q;       // [64] for each group
  float* scale;
  int32_t* bias;   // -128 times the sum of q
  float* offset;   // scale times the sum of q
};
constexpr size_t rounded_bytes(size_t in, size_t rows) { return rows * ((in + kGroup - 1) / kGroup) * (kGroup + 12); }
RoundedRows rounded_rows(size_t in, size_t rows, void* memory);  // of rounded_bytes, for up to `rows` rows
RoundedRows rounded_from(const RoundedRows& x, size_t row);      // without the rows before `row`
void round_rows(const float* x, size_t in, size_t rows, const RoundedRows& out);
// One group of each row: n <= kGroup inputs from x, rows ld apart.
void round_groups(const float* x, size_t ld, size_t n, size_t rows, const RoundedRows& out, size_t group);
struct Slice {  // some outputs of a matrix
  const Matrix* w = nullptr;  // NULL = none
  size_t first = 0, count = 0;
};
struct Place {  // of what a product gives: rows, ld apart, in whole tiles
  float* y;
  size_t ld;
  bool add;  // to the f32 already there
  Place at(size_t row, size_t output) const { return {y + row * ld + output, ld, add}; }
};
// `first` is a multiple of kTile. A row's bits are the same in both modes; on x86-64 also whichever integer product computes them. `next`: what
// this thread will probably be asked for next, to be fetched meanwhile. With one row, the more outputs at once, the longer the
// streams in which their weights are read.
void multiply_tile(const Matrix& w, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice next);
using IntegerProduct = void (*)(const Matrix& w, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice next);
IntegerProduct integer_product();  // NULL: the CPU has none that we know
enum class Integers { kNone, kAvx2, kAvxVnni, kVnni };  // products of bytes: on eight lanes, the same by vpdpbusd, on sixteen
void limit_integers(Integers most);
// y = row `row` of an embedding, in any dtype
void widen_row(const Matrix& w, size_t row, float* y);

// ---- pack.cc: outputs first .. first+count of W as the right-hand side of a matrix product ----
// f32: [in][64]; bf16: pairs [in/2][64][2], `in` padded to a multiple of 32. Missing columns are zero.
inline size_t padded_depth(size_t in, bool bf16) { return bf16 ? (in + 31) / 32 * 32 : in; }
void pack_panel(const Matrix& w, size_t first, size_t count, bool bf16, void* panel);

// ---- bf16_dot.cc: vdpbf16ps, which Highway 1.0.3 lacks ----
bool has_bf16_dot();
void forbid_bf16_dot();
// "avx3", "avxvnni", "avx2", "sse4" or "baseline": nothing newer is used from now on, in the whole process. False for another name.
bool limit_instruction_set(std::string_view name);
// as multiply_tile, for bf16 weights [out,in]
void multiply_tile_bf16_dot(const Matrix& w, size_t first, size_t count, const void* x, size_t rows, float* tile, size_t next);

// ---- bf16_tokens.cc: what a product of panels gives, without panels; bf16 weights [out,in], an even number of inputs ----
constexpr size_t kTokens = 32;
bool takes_tokens(const Matrix& w);
constexpr size_t spread_bytes(size_t depth) { return depth * kTokens * sizeof(uint16_t); }
void spread_tokens(const void* x, size_t rows, size_t depth, void* spread);  // x bf16 [rows,depth], rows <= kTokens; `spread`: of spread_bytes
// tile[row][0..count) from what spread_tokens left; writes kTokens rows. Each `block` of inputs, an even number, is summed by itself. `next`: see multiply_tile of quantised weights
void multiply_tokens(const Matrix& w, size_t first, size_t count, const void* spread, size_t rows, size_t block, float* tile, Slice next);

// ---- bf16_columns.cc: as multiply_tile, for bf16 weights [in,out]; each `block` of inputs, an even number, is summed by itself ----
void multiply_columns_bf16_dot(const Matrix& w, size_t first, size_t count, const void* x, size_t rows, size_t block, float* tile);

// ---- bf16_skipping.cc: the same instruction, and two rows of W at a time, those of two neighbouring stretches ----
// as add_rows, for bf16 weights
void add_rows_bf16_dot(const Skipping& s, const void* x, size_t rows, float* sum, size_t ld);
// The same sums for many rows of x, by blocks of steps: the rows of W that a block wants stay in cache for all of x, while those of
// the block after it are fetched from memory. The first block of a part sets the sums.
constexpr size_t kBlockPairs = 128, kBlockSteps = 2 * kBlockPairs / kSkipStreams;
struct WantedRows {
  size_t n, n_rows;
  const uint16_t* rows[kBlockPairs][2];  // in the order of the sums; zeros in the place of a row that is not wanted
  uint32_t inputs[kBlockPairs];          // where a pair of inputs lies
  const uint16_t* by_address[2 * kBlockPairs];
};
// s.end - s.begin <= kBlockSteps; s.scratch holds w.out zeros
void want_rows_bf16_dot(const Skipping& s, const void* x, size_t rows, WantedRows& out);
// from memory, before the first block
void fetch_wanted(const WantedRows& wanted, size_t count);
// `next`: NULL = there is no block after this one
void add_wanted_bf16_dot(const Skipping& s, const WantedRows& now, const WantedRows* next, const void* x, size_t rows, float* sum, size_t ld);

const char* instruction_set();  // the one that the kernels run with, for people

}  // namespace duet_cpu
