// Runs batches of tokens through a model in one of the two modes: scratch memory, a queue, recordings.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "exec/draws.h"
#include "exec/forward.h"
#include "exec/state.h"

namespace duet {

struct Batch {
  std::span<const int32_t> tokens;  // packed
  std::vector<uint32_t> lengths;    // [n_seqs]
  std::vector<uint32_t> slots;      // [n_seqs]
  uint32_t outputs = DUET_OUT_LAST_LOGITS;
};

// Rows of one output of the last forward: where the session's pass has left them, or, if they came in several blocks, copied.
struct Output {
  const float* data = nullptr;  // [rows, width]
  uint32_t rows = 0, width = 0;
  std::vector<float> copies;
};

class Session {
 public:
  Session(std::shared_ptr<Model> model, duet_mode mode, uint32_t max_tokens);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const std::shared_ptr<Model>& model() const { return model_; }
  duet_mode mode() const { return mode_; }
  uint32_t max_tokens() const { return max_tokens_; }  // of one pass
  // In the session's mode unless another is asked for.
  void forward(const std::shared_ptr<State>& state, const Batch& batch, std::optional<duet_mode> mode = std::nullopt);
  const Output& output(uint32_t which) const { return outputs_[which]; }
  // nll[t] = -log p(tokens[t+1] | state, tokens[0..t])
  void score(const std::shared_ptr<State>& state, uint32_t slot, std::span<const int32_t> tokens, double* out_nll);
  // Whether tokens can be drawn on the device, and need not come through logits that the host reads.
  bool draws() const { return device_.sample.fn && !device_.has(DUETP_CAP_HOST_VISIBLE) && model_->shape().n_vocab <= 1u << 24; }
  // Room for undo() after a draw of n rows; false where there is no memory for it.
  bool reserve_undo(const State& state, uint32_t n_rows);
  // Recurrent steps, each of which feeds a token to every row's slot and draws the next, with one wait at the end: tokens
  // [rows, n_steps], or DUETP_SAMPLE_* from where a row had none to draw. `keep`: undo() may follow, for which there is room.
  std::vector<int32_t> draw(const std::shared_ptr<State>& state, std::span<const Draw> rows, uint32_t n_steps, bool keep);
  // Puts the slot of a row of the last draw back to where it was before.
  void undo(const std::shared_ptr<State>& state, uint32_t row, uint32_t slot);

  std::atomic<bool> busy{false};  // see Exclusive in capi/handle.h

 private:
  struct Run;       // consecutive tokens of one sequence within a pass
  struct Packed;    // the frame of a pass
  struct Recording;
  struct Rows {     // what a pass hands back, in pieces of at most kRowBlock rows
    // a block of rows, which stay until the next one; index[i]: of row i in the batch's output
    std::function<void(std::span<const uint32_t> index, const float* hidden, const float* logits)> take;
    std::function<void(uint32_t index, const float* v_first)> take_v_first;              // index: of the token in the batch
    bool all = false, logits = false, hidden = false;
  };
  void check(const State& state, const Batch& batch) const;
  void run(const std::shared_ptr<State>& state, const Batch& batch, const Rows& rows, duet_mode mode);
  void run_parallel(const std::shared_ptr<State>& state, const Batch& batch, const Rows& rows);
  void run_recurrent(const std::shared_ptr<State>& state, const Batch& batch, const Rows& rows);
  void run_pass(const std::shared_ptr<State>& state, std::span<const Run> runs, duet_mode mode, const Rows& rows);
  void draw_pass(const std::shared_ptr<State>& state, std::span<const Draw> rows, uint32_t n_steps, int32_t* out);
  Packed pack(std::span<const Run> runs);
  void replay(const Recording& wanted, const std::function<void()>& enqueue);
  void enqueue(const Pass& pass, const duetp_frame& block, const Rows& rows);
  void take_rows(std::span<const uint32_t> index, const Rows& rows);
  void reserve(uint32_t n_tokens, uint32_t n_rows, const Rows& rows);
  void reserve_draws(uint32_t n_rows, uint32_t n_tokens, uint32_t n_entries);
  void keep_outputs();  // where no pass writes
  void upload(duetp_ref to, const void* from, uint64_t bytes);
  void wait();
  void drop_recordings() noexcept;
  duetp_buffer* new_buffer(uint64_t bytes);
  void free_buffer(duetp_buffer*& buffer) noexcept;

  std::shared_ptr<Model> model_;
  const Device& device_;
  duet_mode mode_;
  uint32_t max_tokens_;
  duetp_queue* queue_ = nullptr;
  uint32_t token_capacity_ = 0, row_capacity_ = 0;
  duetp_buffer *arena_ = nullptr, *frame_ = nullptr, *head_ = nullptr;  // activations; frame; [hidden | logits] of a block of rows
  duetp_buffer* draws_ = nullptr;  // [rows | history | entries] of draws
  struct {
    uint32_t rows = 0, tokens = 0, entries = 0;
  } draw_capacity_;
  duetp_ref draw_rows_{}, history_{}, entries_{};
  std::unique_ptr<State> kept_;    // the slots as they were before the last draw
  uint32_t too_many_to_keep_ = UINT32_MAX;
  Activations act_;
  duetp_ref hidden_{}, logits_{};
  std::vector<int32_t> staging_;           // the frame, as it is uploaded
  std::vector<float> row_block_, v_first_;  // downloaded: [rows, C + V], [tokens, C]
  std::vector<Recording> recordings_;
  Output outputs_[3];                      // by DUET_OUTPUT_*
};

}  // namespace duet
