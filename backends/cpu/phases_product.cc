#include <algorithm>
#include <cstring>

#include "phases.h"

namespace duet_cpu {
namespace {

// out = finish(W in) for `rows` rows
struct Product {
  const Matrix& w;
  const Gemm* gemm;  // oneDNN; NULL = our own kernels, which read W where it is
  const void* in;    // (m) [rows, w.in]; for quantised W rounded
  bool in_bf16;
  void* out;         // [rows, w.out]
  bool out_bf16;
  Finish finish;
  size_t rows, max_rows;
  RoundedRows passed;  // instead of `out`, where the next product has quantised weights
};

// The inputs of a block as oneDNN wants them: whole, and of its type.
const void* block_rows(const Product& p, size_t row, size_t rows, Worker& w) {
  const size_t depth = p.w.in;
  const char* in = static_cast<const char*>(p.in) + row * depth * m_bytes(p.in_bf16);
  const bool widened = p.in_bf16 && !p.gemm->bf16;
  if (rows == p.gemm->rows && !widened) return in;
  const size_t row_bytes = depth * m_bytes(p.gemm->bf16);
  if (widened)
    widen(in, DUET_BF16, rows * depth, static_cast<float*>(w.rows));
  else
    std::memcpy(w.rows, in, rows * row_bytes);
  std::memset(static_cast<char*>(w.rows) + rows * row_bytes, 0, (p.gemm->rows - rows) * row_bytes);
  return w.rows;
}

// Asks for rows [from, to) of a slice of W that this thread will probably pack next, while the product keeps it busy.
void fetch_ahead(const Matrix& w, size_t slice, size_t from, size_t to) {
  if (w.in_major || (slice + 1) * kTileColumns > w.out) return;
  const size_t row = w.in * (w.dtype == DUET_F32 ? 4 : 2);
  const char* base = static_cast<const char*>(w.data) + slice * kTileColumns * row;
  for (size_t at = from * row; at < to * row; at += 64) __builtin_prefetch(base + at, 0, 2);
}

// Outputs of a slice: kTileColumns, and some times as many where one row of inputs meets quantised weights. That waits for memory, and
// the kernel reads a slice as four streams, which should be long. But where slices are few, threads should get equally many.
size_t slice_columns(const Matrix& w, size_t rows, const Worker& worker) {
  constexpr size_t kStream = 64 << 10, kMost = 4;  // bytes; times kTileColumns
  if (!w.quantised() || rows != 1) return kTileColumns;
  const size_t all = (w.out + kTileColumns - 1) / kTileColumns, stream = w.in * kTile / (w.dtype == DUET_I4 ? 2 : 1);
  size_t n = std::clamp<size_t>((kStream + stream - 1) / stream, 1, kMost);
  const auto even = [&] { return all >= 8 * worker.n * n || (all >= 2 * worker.n * n && all % (worker.n * n) == 0); };
  while (n > 1 && !even()) --n;
  return n * kTileColumns;
}

// The slice of outputs that is `ahead` of the first one of this phase, in this phase or in those that follow.
Slice slice_ahead(const Worker& w, size_t ahead, size_t rows) {
  for (const Matrix* const* m = w.weights; *m; ++m) {
    const size_t columns = slice_columns(**m, rows, w), slices = ((*m)->out + columns - 1) / columns;
    if (ahead < slices) return {*m, ahead * columns, std::min<size_t>(columns, (*m)->out - ahead * columns)};
    ahead -= slices;
  }
  return {};
}

// A task is a slice of outputs for a block of tokens, which each thread spreads for itself.
void multiply_tokens(const Product& p, Worker& w) {
  const size_t slices = (p.w.out + kTileColumns - 1) / kTileColumns, blocks = (p.rows + kTokens - 1) / kTokens;
  size_t spread = blocks;  // none
  for (size_t task; (task = w.next->fetch_add(1, std::memory_order_relaxed)) < slices * blocks;) {
    const size_t slice = task % slices, block = task / slices, row = block * kTokens, rows = std::min(kTokens, p.rows - row);
    const size_t first = slice * kTileColumns, count = std::min<size_t>(kTileColumns, p.w.out - first), next = slice + w.n;
    if (spread != block) spread_tokens(static_cast<const uint16_t*>(p.in) + row * p.w.in, rows, p.w.in, w.rows), spread = block;
    const bool again = next >= slices && block + 1 < blocks;
    multiply_tokens(p.w, first, count, w.rows, rows, p.gemm->token_block, w.tile, again ? Slice{&p.w, next % slices * kTileColumns, kTileColumns} : slice_ahead(w, next, p.rows));
    finish_tile(w.tile, rows, count, p.finish, p.out_bf16, static_cast<char*>(p.out) + (row * p.w.out + first) * m_bytes(p.out_bf16), p.w.out);
  }
}

// The same for few tokens and weights [in,out], read where they are as often as there are four tokens.
void multiply_columns(const Product& p, Worker& w) {
  const size_t slices = (p.w.out + kTileColumns - 1) / kTileColumns;
  for (size_t slice; (slice = w.next->fetch_add(1, std::memory_order_relaxed)) < slices;) {
    const size_t first = slice * kTileColumns, count = std::min<size_t>(kTileColumns, p.w.out - first);
    multiply_columns_bf16_dot(p.w, first, count, p.in, p.rows, p.gemm->token_block, w.tile);
    finish_tile(w.tile, p.rows, count, p.finish, p.out_bf16, static_cast<char*>(p.out) + first * m_bytes(p.out_bf16), p.w.out);
  }
}

// A task is a slice of outputs for a group of row blocks. Slices are few in small models and parallel mode, so there rows are
// divided too, as long as packing the slice again costs little beside the product.
void multiply(const Product& p, Worker& w) {
  if (p.rows == 0) return;
  if (p.gemm && p.gemm->token_block && takes_tokens(p.w)) return multiply_tokens(p, w);
  if (p.gemm && p.gemm->token_block && p.w.in_major && p.rows <= kTokens) return multiply_columns(p, w);
  constexpr size_t kGroupBlocks = 4;
  const size_t columns = slice_columns(p.w, p.rows, w);
  const size_t block_size = p.w.quantised() ? kMaxTileRows : kTileRows;  // a multiple of six, which the integer products take at a time
  const size_t slices = (p.w.out + columns - 1) / columns, blocks = (p.rows + block_size - 1) / block_size;
  const size_t groups = p.gemm || p.w.quantised() ? std::clamp<size_t>((4 * w.n + slices - 1) / slices, 1, (blocks + kGroupBlocks - 1) / kGroupBlocks) : 1;
  const RoundedRows rounded = p.w.quantised() ? rounded_rows(p.w.in, p.max_rows, const_cast<void*>(p.in)) : RoundedRows();
  size_t packed = slices;  // none
  // What the integer products give may go where it belongs at once.
  const bool direct = p.w.quantised() && p.passed.groups == 0 && (p.finish == Finish::kStore || p.finish == Finish::kAdd) && !p.out_bf16 && p.w.out % kTile == 0;
  const Place out = direct ? Place{static_cast<float*>(p.out), p.w.out, p.finish == Finish::kAdd} : Place{w.tile, columns, false};
  for (size_t task; (task = w.next->fetch_add(1, std::memory_order_relaxed)) < slices * groups;) {
    const size_t slice = task / groups, group = task % groups;
    const size_t first = slice * columns, count = std::min<size_t>(columns, p.w.out - first);
    if (p.gemm && packed != slice) pack_panel(p.w, first, count, p.gemm->bf16, w.panel), packed = slice;
    const size_t from = blocks * group / groups, to = blocks * (group + 1) / groups;
    for (size_t b = from; b < to; ++b) {
      if (p.gemm) fetch_ahead(p.w, slice + w.n, (b - from) * kTileColumns / (to - from), (b + 1 - from) * kTileColumns / (to - from));
      const size_t row = b * block_size, rows = std::min(block_size, p.rows - row);
      if (p.gemm)
        w.gemm->run(*p.gemm, block_rows(p, row, rows, w), w.panel, w.tile, w.product);
      else if (p.w.quantised())
        multiply_tile(p.w, first, count, rounded_from(rounded, row), rows, direct ? out.at(row, first) : out, slice_ahead(w, slice + w.n, p.rows));
      else
        multiply_tile(p.w, first, count, static_cast<const char*>(p.in) + row * p.w.in * m_bytes(p.in_bf16), rows, w.tile, first + w.n * columns);
      if (p.passed.groups > 0) {
        finish_tile(w.tile, rows, count, p.finish, false, w.tile, columns);
        for (size_t i = 0; i < count; i += kGroup) round_groups(w.tile + i, columns, std::min(kGroup, count - i), rows, rounded_from(p.passed, row), (first + i) / kGroup);
        continue;
      }
      if (!direct) finish_tile(w.tile, rows, count, p.finish, p.out_bf16, static_cast<char*>(p.out) + (row * p.w.out + first) * m_bytes(p.out_bf16), p.w.out);
    }
  }
}

// Where a part of the inputs begins
size_t value_part(const Matrix& m, size_t part) { return std::min<size_t>(m.in, part * ((m.in + kValueParts - 1) / kValueParts)); }

Product token_product(const Call& c, uint32_t id, const void* in, void* out, bool out_bf16, Finish finish) {
  return {c.layer->weights_of(id), c.recurrent ? nullptr : c.layer->gemm[id], in, c.layer->bf16, out, out_bf16, finish, c.n_tokens(), c.max_tokens, {}};
}
// where the inputs of a product are: quantised weights want the rounded ones
const void* inputs(const Call& c, Worker& w, const void* in, Region rounded) { return duetp_is_quantised(c.layer->weights) ? w.region[rounded] : in; }
// into `region`, for the product with matrix `next`
void multiply_into(const Call& c, Worker& w, Product p, Region region, uint32_t next) {
  p.out = w.region[region];
  if (p.w.quantised()) p.passed = rounded_rows(c.layer->matrix[next].in, c.max_tokens, w.region[region]);
  multiply(p, w);
}

void round_tokens(const Call& c, Worker& w, const void* in, Region rounded, uint32_t from, uint32_t to) {
  const size_t C = c.layer->shape.n_embd;
  round_rows(static_cast<const float*>(in) + from * C, C, to - from, rounded_from(rounded_rows(C, c.max_tokens, w.region[rounded]), from));
}

// Sums of the rows of the value matrix whose inputs are not zero, a part of the inputs a task: [parts][tokens][sums_apart]
void sum_parts(const Call& c, Worker& w) {
  constexpr size_t kCached = 256 << 10;  // bytes of weights that stay in cache for all tokens
  const Matrix& m = c.layer->value_by_inputs;
  const size_t ld = sums_apart(*c.layer), T = c.n_tokens(), step_bytes = kSkipStreams * m.out * (m.dtype == DUET_F32 ? 4 : 2);
  const char* x = static_cast<const char*>(w.region[kKey]);
  for (size_t part; (part = w.next->fetch_add(1, std::memory_order_relaxed)) < kValueParts;) {
    float* sums = static_cast<float*>(w.region[kSums]) + part * T * ld;
    std::fill(sums, sums + T * ld, 0.0f);
    const size_t from = value_part(m, part), to = value_part(m, part + 1), all = skip_steps(to - from);
    const size_t steps = T <= kSkipRows ? all : std::max<size_t>(1, kCached / step_bytes);
    for (size_t begin = 0; begin < all; begin += steps)
      for (size_t t = 0; t < T; t += kSkipRows)
        add_rows({m, from, to, begin, std::min(begin + steps, all), w.rows}, x + t * m.in * m_bytes(c.layer->bf16), std::min(kSkipRows, T - t), sums + t * ld, ld);
  }
}

// The same for many tokens in bf16. A thread takes its next part early, to fetch from memory what that wants.
void sum_parts_of_many(const Call& c, Worker& w) {
  constexpr size_t kCached = 512 << 10;  // bytes of weights that stay in cache for all tokens
  const Matrix& m = c.layer->value_by_inputs;
  const size_t ld = sums_apart(*c.layer), T = c.n_tokens(), steps = std::clamp<size_t>(kCached / (kSkipStreams * m.out * 2), 1, kBlockSteps);
  const void* x = w.region[kKey];
  std::memset(w.rows, 0, m.out * sizeof(uint16_t));
  struct Block {
    size_t part, begin;
  };
  const auto take = [&] { return Block{w.next->fetch_add(1, std::memory_order_relaxed), 0}; };
  const auto skipping = [&](Block b) {
    const size_t from = value_part(m, b.part), to = value_part(m, b.part + 1);
    return Skipping{m, from, to, b.begin, std::min(b.begin + steps, skip_steps(to - from)), w.rows};
  };
  WantedRows wanted[2];
  Block now = take();
  if (now.part < kValueParts) want_rows_bf16_dot(skipping(now), x, T, wanted[0]), fetch_wanted(wanted[0], m.out);
  for (size_t i = 0; now.part < kValueParts; i = 1 - i) {
    const Skipping s = skipping(now);
    const Block next = s.end < skip_steps(s.to - s.from) ? Block{now.part, s.end} : take();
    const bool last = next.part >= kValueParts;
    if (!last) want_rows_bf16_dot(skipping(next), x, T, wanted[1 - i]);
    add_wanted_bf16_dot(s, wanted[i], last ? nullptr : &wanted[1 - i], x, T, static_cast<float*>(w.region[kSums]) + now.part * T * ld, ld);
    now = next;
  }
}

Region by_which(Region first, uint32_t which) { return static_cast<Region>(first + which); }

constexpr Finish kHidden[] = {Finish::kTanh, Finish::kStore, Finish::kStore, Finish::kSigmoid};

}  // namespace

void linear_product(const Call& c, Worker& w) {
  const Finish finish = c.which == DUETP_LINEAR_OUTPUT ? Finish::kAdd : Finish::kStore;
  multiply(token_product(c, kLinear[c.which], inputs(c, w, c.in[DUETP_LINEAR_IN], by_which(kRoundedR, c.which)), c.out[DUETP_LINEAR_OUT], false, finish), w);
}
void lowrank_down(const Call& c, Worker& w) {
  const void* in = inputs(c, w, c.in[DUETP_LOWRANK_IN], by_which(kRoundedDownW, c.which));
  multiply_into(c, w, token_product(c, DUETP_T_W1 + c.which, in, nullptr, c.layer->bf16, kHidden[c.which]), by_which(kHiddenW, c.which), DUETP_T_W2 + c.which);
}
void lowrank_up(const Call& c, Worker& w) {
  multiply(token_product(c, DUETP_T_W2 + c.which, w.region[by_which(kHiddenW, c.which)], c.out[DUETP_LOWRANK_OUT], false, Finish::kStore), w);
}
void lowrank_up_head(const Call& c, Worker& w, uint32_t, size_t head, size_t t0, size_t t1) {
  const Matrix& up = c.layer->matrix[DUETP_T_W2 + c.which];
  const RoundedRows x = rounded_from(rounded_rows(up.in, c.max_tokens, w.region[by_which(kHiddenW, c.which)]), t0);
  const size_t N = c.layer->shape.head_size;
  const Place out = {static_cast<float*>(c.out[DUETP_LOWRANK_OUT]), up.out, false};
  multiply_tile(up, head * N, N, x, t1 - t0, out.at(t0, head * N), {&up, (head + 1) * N, N});
}
void channel_mix_key(const Call& c, Worker& w) {
  multiply_into(c, w, token_product(c, DUETP_T_FFN_KEY, w.region[kMixed], nullptr, c.layer->bf16, Finish::kRelu2), kKey, DUETP_T_FFN_VALUE);
}
void channel_mix_value(const Call& c, Worker& w) {
  if (c.skips) return c.n_tokens() > kSkipRows && c.layer->bf16 && has_bf16_dot() ? sum_parts_of_many(c, w) : sum_parts(c, w);
  multiply(token_product(c, DUETP_T_FFN_VALUE, w.region[kKey], c.out[DUETP_CHANNEL_MIX_X], false, Finish::kAdd), w);
}
void channel_mix_sum(const Call& c, Worker& w) {
  const size_t C = c.layer->shape.n_embd, ld = sums_apart(*c.layer), units = ld / 16, from = units * w.i / w.n * 16, to = std::min<size_t>(units * (w.i + 1) / w.n * 16, C);
  const size_t T = c.n_tokens();
  for (size_t t = 0; from < to && t < T; ++t)
    add_parts(static_cast<const float*>(w.region[kSums]) + t * ld + from, kValueParts, T * ld, to - from, static_cast<float*>(c.out[DUETP_CHANNEL_MIX_X]) + t * C + from);
}

// Always our own kernel: mostly one row is wanted, and then nothing may be packed or padded; so its bits do not depend on mode.
void head_product(const Call& c, Worker& w) {
  multiply({c.layer->matrix[DUETP_T_HEAD], nullptr, w.region[kMixed], c.layer->bf16, c.out[DUETP_HEAD_OUT_LOGITS], false, Finish::kStore, c.n_rows(), c.max_rows, {}}, w);
}

void linear_round(const Call& c, Worker& w, uint32_t from, uint32_t to) { round_tokens(c, w, c.in[DUETP_LINEAR_IN], by_which(kRoundedR, c.which), from, to); }
void linear_round_head(const Call& c, Worker& w, uint32_t, size_t head, size_t t0, size_t t1) {
  const size_t C = c.layer->shape.n_embd, groups = c.layer->shape.head_size / kGroup;
  const RoundedRows out = rounded_from(rounded_rows(C, c.max_tokens, w.region[by_which(kRoundedR, c.which)]), t0);
  for (size_t g = head * groups; g < (head + 1) * groups; ++g) round_groups(static_cast<const float*>(c.in[DUETP_LINEAR_IN]) + t0 * C + g * kGroup, C, kGroup, t1 - t0, out, g);
}
void lowrank_down_round(const Call& c, Worker& w, uint32_t from, uint32_t to) { round_tokens(c, w, c.in[DUETP_LOWRANK_IN], by_which(kRoundedDownW, c.which), from, to); }

}  // namespace duet_cpu
