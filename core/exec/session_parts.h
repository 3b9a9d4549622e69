// What a pass of a session is made of, for session.cc and session_draw.cc.
#pragma once
#include "exec/session.h"

namespace duet {

constexpr uint32_t kRowBlock = 64;  // rows of logits in device memory at once
constexpr duetp_ref kNone{nullptr, 0, 0, 0};

struct Session::Run {
  const int32_t* tokens;
  uint32_t n, slot;
  uint32_t token_index;               // of the first token in the batch
  std::optional<uint32_t> row_index;  // of the first row in the batch's output; none: no rows wanted here
  bool all_rows;                      // one row per token, else one for the last token
};

// A pass of single tokens whose work the device has recorded; valid while the buffers and the state live.
struct Session::Recording {
  std::weak_ptr<State> state;
  uint32_t n_tokens, n_rows;
  bool logits, hidden, draws;
  duetp_record* record = nullptr;
};

struct Session::Packed {
  duetp_frame frame;                // of the layers: no rows
  std::vector<duetp_frame> blocks;  // of at most kRowBlock rows each
  std::vector<uint32_t> row_index, token_index;  // in the batch's output; in the batch
};

}  // namespace duet
