// logits -> next tokens (sample of duet_plugin.h). All pointers are device memory.
#pragma once
#include "duet_plugin.h"
#include "gpu/port.h"

namespace duet_gpu {

struct Sample {
  const float* logits;          // [n_rows, n_vocab]
  duetp_sample_row* rows;       // [n_rows]
  duetp_sample_entry* entries;  // of row i from rows[i].first_entry
  int32_t* history;             // by rows[i].next
  int32_t* tokens;              // written at token_of_row[i]
  const int32_t *token_of_row, *used;
  uint32_t n_rows, n_vocab;     // n_vocab at most 2^24
  char* scratch;                // sample_scratch_bytes, aligned to 256
};
uint64_t sample_scratch_bytes(uint32_t n_rows, uint32_t n_vocab);
Error sample(const Sample& a, Stream stream);

}  // namespace duet_gpu
