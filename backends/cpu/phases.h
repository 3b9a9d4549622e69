// The phases that the nine stages are made of. Each divides its output among the threads; see queue.h.
#pragma once
#include <cstdint>

#include "duet_quantised.h"
#include "queue.h"

namespace duet_cpu {

// phases_token.cc
void embed_tokens(const Call& c, Worker& w, uint32_t from, uint32_t to);
void shift_mix_tokens(const Call& c, Worker& w, uint32_t from, uint32_t to);
void shift_mix_keep(const Call& c, Worker& w);    // att_x of the last tokens; recurrent mode keeps at once
void channel_mix_tokens(const Call& c, Worker& w, uint32_t from, uint32_t to);
void channel_mix_keep(const Call& c, Worker& w);  // ffn_x
void head_rows(const Call& c, Worker& w);         // divided evenly

// phases_product.cc: tasks of up to 64 outputs go to whichever thread is free
constexpr uint32_t kLinear[] = {DUETP_T_RECEPTANCE, DUETP_T_KEY, DUETP_T_VALUE, DUETP_T_OUTPUT};  // by DUETP_LINEAR_*
void linear_product(const Call& c, Worker& w);
void lowrank_down(const Call& c, Worker& w);
void lowrank_up(const Call& c, Worker& w);
void lowrank_up_head(const Call& c, Worker& w, uint32_t q, size_t head, size_t t0, size_t t1);  // the same for quantised weights, where up_by_head
void channel_mix_key(const Call& c, Worker& w);
void channel_mix_value(const Call& c, Worker& w);
void channel_mix_sum(const Call& c, Worker& w);  // of the parts that channel_mix_value leaves where it skips; evenly divided
void head_product(const Call& c, Worker& w);

// Where the value matrix lies by inputs, recurrent mode reads the rows whose inputs are not zero. The inputs are cut into parts, of which each is
// summed by one thread; a part's sums are added to x in the order of the parts, whoever computed them.
constexpr size_t kValueParts = 16;
inline size_t sums_apart(const duetp_layer& l) { return (l.shape.n_embd + 15) / 16 * 16; }

// Inputs of products with quantised weights are rounded first. What stays within a stage is rounded where it arises, and not
// stored otherwise. For the rest there are phases, dealt as those that make these inputs.
inline bool heads_are_groups(const duetp_shape& s) { return s.head_size % kGroup == 0; }
// Then the second low-rank product can be dealt as what follows it, but for many short sequences, each of which takes the weights anew.
inline bool up_by_head(const Call& c) {
  return duetp_is_quantised(c.layer->weights) && heads_are_groups(c.layer->shape) && (c.max_seqs == 1 || c.max_tokens / 16 >= c.max_seqs);
}
void linear_round(const Call& c, Worker& w, uint32_t from, uint32_t to);
void linear_round_head(const Call& c, Worker& w, uint32_t q, size_t head, size_t t0, size_t t1);  // of the output, where heads are groups
void lowrank_down_round(const Call& c, Worker& w, uint32_t from, uint32_t to);

// phases_head.cc: one head of one sequence; the queue deals these pairs to the threads
void prepare_heads(const Call& c, Worker& w, uint32_t q, size_t head, size_t t0, size_t t1);
void wkv_heads(const Call& c, Worker& w, uint32_t q, size_t head, size_t t0, size_t t1);
void norm_gate_heads(const Call& c, Worker& w, uint32_t q, size_t head, size_t t0, size_t t1);

}  // namespace duet_cpu
