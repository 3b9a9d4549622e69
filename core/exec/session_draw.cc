// Tokens that the device draws by itself: blocks of recorded steps, and how what was drawn too much is taken back.
#include <algorithm>
#include <bit>

#include "exec/session_parts.h"

namespace duet {

void Session::reserve_draws(uint32_t n_rows, uint32_t n_tokens, uint32_t n_entries) {
  auto& c = draw_capacity_;
  if (n_rows <= c.rows && n_tokens <= c.tokens && n_entries <= c.entries) return;
  drop_recordings();
  free_buffer(draws_);
  const auto grown = [](uint32_t have, uint32_t wanted) { return std::max(have, std::bit_ceil(std::max(wanted, 16u))); };  // so that all parts begin at multiples of 64 bytes
  const uint32_t rows = grown(c.rows, n_rows), tokens = grown(c.tokens, n_tokens), entries = grown(c.entries, n_entries);
  c = {};
  const uint64_t history_at = uint64_t{rows} * sizeof(duetp_sample_row), entries_at = history_at + uint64_t{tokens} * sizeof(int32_t);
  draws_ = new_buffer(entries_at + uint64_t{entries} * sizeof(duetp_sample_entry));
  draw_rows_ = {draws_, 0, 0, 0}, history_ = {draws_, history_at, 0, 0}, entries_ = {draws_, entries_at, 0, 0};
  c = {rows, tokens, entries};
}

void Session::draw_pass(const std::shared_ptr<State>& state, std::span<const Draw> draws, uint32_t n_steps, int32_t* out) {
  model_->prepare_recurrent();
  const auto n = static_cast<uint32_t>(draws.size());
  const DrawTables tables(draws, n_steps, model_->shape().n_vocab);
  std::vector<Run> runs;
  for (uint32_t i = 0; i < n; ++i) runs.push_back({&draws[i].token, 1, draws[i].slot, i, i, false});
  reserve(n, n, {});
  reserve_draws(n, n * n_steps, static_cast<uint32_t>(tables.entries.size()));
  const Packed p = pack(runs);
  upload(draw_rows_, tables.rows.data(), n * sizeof(duetp_sample_row));
  upload(entries_, tables.entries.data(), tables.entries.size() * sizeof(duetp_sample_entry));

  Rows rows;
  rows.logits = true;
  const Pass pass{*model_, queue_, p.frame, state->device_state(), DUET_MODE_RECURRENT, act_};
  const auto step = [&] {
    for (uint32_t b = 0; b < p.blocks.size(); ++b) {
      if (b == 0) enqueue(pass, p.blocks[0], rows);
      if (b > 0) forward_head(pass, p.blocks[b], kNone, logits_);
      duetp_ref of_block = draw_rows_;
      of_block.off += uint64_t{b} * kRowBlock * sizeof(duetp_sample_row);
      forward_sample(pass, p.blocks[b], logits_, of_block, entries_, history_);
    }
  };
  for (uint32_t i = 0; i < n_steps; ++i) {
    if (device_.records())
      replay({state, n, n, true, false, true}, step);
    else
      step();
  }
  check_plugin(device_, device_.table.download(device_.memory_self, queue_, out, history_, uint64_t{n} * n_steps * sizeof(int32_t)));
  wait();
}

bool Session::reserve_undo(const State& state, uint32_t n_rows) {
  if (kept_ && kept_->n_slots() >= n_rows && kept_->wkv() == state.wkv()) return true;
  if (n_rows >= too_many_to_keep_) return false;
  kept_.reset();
  try {
    kept_ = std::make_unique<State>(model_, n_rows, state.wkv());
  } catch (const Error& e) {
    if (e.code() != DUET_E_MEMORY) throw;
    too_many_to_keep_ = n_rows;
  }
  return kept_ != nullptr;
}

std::vector<int32_t> Session::draw(const std::shared_ptr<State>& state, std::span<const Draw> rows, uint32_t n_steps, bool keep) {
  const auto n = static_cast<uint32_t>(rows.size());
  std::vector<int32_t> out(size_t{n} * n_steps);
  keep_outputs();
  try {
    for (uint32_t i = 0; keep && i < n; ++i)
      check_plugin(device_, device_.table.state_copy(device_.memory_self, queue_, kept_->device_state(), i, state->device_state(), rows[i].slot));
    for (uint32_t first = 0; first < n; first += max_tokens_)
      draw_pass(state, rows.subspan(first, std::min(max_tokens_, n - first)), n_steps, out.data() + size_t{first} * n_steps);
  } catch (...) {  // nothing half-enqueued may run with the next batch
    (void)device_.table.queue_wait(device_.memory_self, queue_);
    throw;
  }
  return out;
}

void Session::undo(const std::shared_ptr<State>& state, uint32_t row, uint32_t slot) {
  check_plugin(device_, device_.table.state_copy(device_.memory_self, queue_, state->device_state(), slot, kept_->device_state(), row));
}

}  // namespace duet
