// duet.h section 6: session.
#include "capi/argument.h"
#include "capi/handle.h"

namespace duet {
namespace {

constexpr uint32_t kMaxPass = 65536;  // tokens computed at once

Batch read_batch(const duet_batch* given) {
  require(given, "batch");
  const auto b = read_struct(given, "batch");
  constexpr uint32_t known = DUET_OUT_ALL_LOGITS | DUET_OUT_NO_LOGITS | DUET_OUT_V_FIRST | DUET_OUT_HIDDEN;
  if (b.outputs & ~known) fail(DUET_E_INVALID, "batch->outputs {:#x} has unknown bits", b.outputs);
  if (b.n_seqs > kMaxTokens) fail(DUET_E_LIMIT, "batch->n_seqs is {}; at most {}", b.n_seqs, kMaxTokens);
  Batch out;
  out.outputs = b.outputs;
  uint64_t total = 0;
  for (uint32_t i = 0; i < b.n_seqs; ++i) {
    out.lengths.push_back(b.lengths ? b.lengths[i] : 1);
    out.slots.push_back(b.slots ? b.slots[i] : i);
    total += out.lengths.back();
  }
  if (total > kMaxTokens) fail(DUET_E_LIMIT, "a batch of {} tokens; at most {}: feed longer texts in pieces", total, kMaxTokens);
  if (total > 0) require(b.tokens, "batch->tokens");
  out.tokens = {b.tokens, static_cast<size_t>(total)};
  return out;
}

}  // namespace
}  // namespace duet

using namespace duet;

duet_status duet_session_create(duet_model* model, const duet_session_options* options, duet_session** out_session) {
  return guard([&] {
    require(out_session, "out_session");
    const auto m = device_object(model);
    const auto o = read_struct(options, "options");
    if (o.mode < DUET_MODE_AUTO || o.mode > DUET_MODE_PARALLEL) fail(DUET_E_INVALID, "mode is {}; it is one of DUET_MODE_*", o.mode);
    if (o.max_tokens > kMaxPass) fail(DUET_E_LIMIT, "max_tokens is {}; at most {}", o.max_tokens, kMaxPass);
    *out_session = new_handle<duet_session>(std::make_shared<Session>(m, o.mode, o.max_tokens));
  });
}

duet_status duet_forward(duet_session* session, duet_state* state, const duet_batch* batch) {
  return guard([&] {
    const auto x = device_object(session);
    const auto s = object(state);
    const Batch b = read_batch(batch);
    Exclusive lock(x->busy, "session"), lock_state(s->busy, "state");
    x->forward(s, b);
  });
}

duet_status duet_session_output(duet_session* session, uint32_t output, uint32_t row, const float** out_row) {
  return guard([&] {
    require(out_row, "out_row");
    const auto x = object(session);
    Exclusive lock(x->busy, "session");
    if (output > DUET_OUTPUT_V_FIRST) fail(DUET_E_INVALID, "output {}: it is one of DUET_OUTPUT_*", output);
    const Output& o = x->output(output);
    if (row >= o.rows) fail(DUET_E_INVALID, "row {} of an output with {} rows in the last forward", row, o.rows);
    *out_row = o.data + size_t{row} * o.width;
  });
}

duet_status duet_session_outputs(duet_session* session, uint32_t output, const float** out_rows_data, uint32_t* out_rows, uint32_t* out_width) {
  return guard([&] {
    require(out_rows_data, "out_rows_data");
    require(out_rows, "out_rows");
    require(out_width, "out_width");
    const auto x = object(session);
    Exclusive lock(x->busy, "session");
    if (output > DUET_OUTPUT_V_FIRST) fail(DUET_E_INVALID, "output {}: it is one of DUET_OUTPUT_*", output);
    const Output& o = x->output(output);
    *out_rows_data = o.data;
    *out_rows = o.rows;
    *out_width = o.width;
  });
}

duet_status duet_score(duet_session* session, duet_state* state, uint32_t slot, const int32_t* tokens, size_t n, double* out_nll) {
  return guard([&] {
    require(tokens, "tokens");
    const auto x = device_object(session);
    const auto s = object(state);
    if (n == 0 || n > kMaxTokens) fail(DUET_E_LIMIT, "a text of {} tokens; 1 to {} can be scored in one call", n, kMaxTokens);
    if (n > 1) require(out_nll, "out_nll");
    Exclusive lock(x->busy, "session"), lock_state(s->busy, "state");
    std::vector<double> nll(n);  // so that out_nll is untouched on failure
    x->score(s, slot, {tokens, n}, nll.data());
    std::copy_n(nll.begin(), n - 1, out_nll);
  });
}

void duet_session_free(duet_session* session) { free_handle(session); }
