// The phases that the nine stages are made of. Each divides its output among the threads; see queue.h.
#pragma once
#include "queue.h"

namespace duet_cpu {

// phases_token.cc: tokens, or rows of the head, are divided evenly
void embed_tokens(const Call& c, Worker& w);
void shift_mix_tokens(const Call& c, Worker& w);
void shift_mix_keep(const Call& c, Worker& w);    // att_x of the last tokens; recurrent mode keeps at once
void channel_mix_tokens(const Call& c, Worker& w);
void channel_mix_keep(const Call& c, Worker& w);  // ffn_x
void head_rows(const Call& c, Worker& w);

// phases_product.cc: tasks of up to 64 outputs go to whichever thread is free
void linear_product(const Call& c, Worker& w);
void lowrank_down(const Call& c, Worker& w);
void lowrank_up(const Call& c, Worker& w);
void channel_mix_key(const Call& c, Worker& w);
void channel_mix_value(const Call& c, Worker& w);
void head_product(const Call& c, Worker& w);

// phases_head.cc: each thread has the same sequences and heads in all three
void prepare_heads(const Call& c, Worker& w);
void wkv_heads(const Call& c, Worker& w);
void norm_gate_heads(const Call& c, Worker& w);

}  // namespace duet_cpu
