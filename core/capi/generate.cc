// duet.h section 9: generation.
#include <algorithm>

#include "capi/argument.h"
#include "capi/handle.h"

namespace duet {
namespace {

constexpr uint32_t kFirstResult = offsetof(duet_generate_result, status);  // the first version's size

GenerateOptions generate_options(const duet_generate_options* options) {
  const auto given = read_struct(options, "options");
  if (given.n_stops > 0) require(given.stops, "stops");
  if (given.n_stop_texts > 0) require(given.stop_texts, "stop_texts");
  if (given.n_stops > 1024 || given.n_stop_texts > 1024) fail(DUET_E_LIMIT, "more than 1024 stops");
  GenerateOptions o;
  if (given.max_tokens) o.max_tokens = given.max_tokens;
  if (given.tokenizer) o.tokenizer = object(given.tokenizer);
  if (given.stops) o.stops.assign(given.stops, given.stops + given.n_stops);
  for (uint32_t i = 0; i < given.n_stop_texts; ++i) {
    require(given.stop_texts[i], "stop_texts[i]");
    o.stop_texts.push_back(text_argument(given.stop_texts[i], "stop_texts[i]", 4096));
    if (o.stop_texts.back().empty() || !utf8_valid(o.stop_texts.back())) fail(DUET_E_INVALID, "stop_texts[{}] is empty or not UTF-8", i);
  }
  if (!o.tokenizer && (given.on_text || given.n_stop_texts > 0)) fail(DUET_E_INVALID, "on_text and stop_texts need a tokenizer");
  if (given.on_token) o.on_token = [given](int32_t token) { return given.on_token(given.user, token) == DUET_OK; };
  if (given.on_text) o.on_text = [given](std::string_view text) { return given.on_text(given.user, text.data(), text.size()) == DUET_OK; };
  o.cancel = given.cancel;
  return o;
}

}  // namespace
}  // namespace duet

using namespace duet;

duet_status duet_generate(duet_session* session, duet_state* state, uint32_t slot, duet_sampler* sampler, const int32_t* prompt, size_t n,
                          const duet_generate_options* options, duet_generate_result* out_result) {
  return guard([&] {
    const auto x = device_object(session);
    const auto s = object(state);
    const auto p = object(sampler);
    if (out_result) (void)read_struct(out_result, "out_result", kFirstResult);  // its size, before any work
    if (n == 0) fail(DUET_E_INVALID, "the prompt is empty; begin a text with token 0");
    require(prompt, "prompt");
    if (n > kMaxTokens) fail(DUET_E_LIMIT, "a prompt of {} tokens; at most {}", n, kMaxTokens);
    Generation g{slot, &p->sampler, {prompt, n}, generate_options(options)};
    s->check_slot(slot);

    Exclusive lock(x->busy, "session"), lock_state(s->busy, "state"), lock_sampler(p->busy, "sampler");
    generate(*x, s, {&g, 1});
    if (out_result && g.result.status != DUET_E_NUMERIC) write_struct(out_result, g.result, "out_result", kFirstResult);
    if (g.result.status != DUET_OK) throw Error(g.result.status, g.failure);
  });
}

duet_status duet_generate_batch(duet_session* session, duet_state* state, const duet_prompts* prompts, duet_generate_result* const* out_results) {
  return guard([&] {
    const auto x = device_object(session);
    const auto s = object(state);
    require(prompts, "prompts");
    const auto given = read_struct(prompts, "prompts");
    if (given.n_seqs > kMaxTokens) fail(DUET_E_LIMIT, "prompts->n_seqs is {}; at most {}", given.n_seqs, kMaxTokens);
    if (given.n_seqs > 0) require(given.tokens, "prompts->tokens"), require(given.lengths, "prompts->lengths"), require(given.samplers, "prompts->samplers");

    std::vector<std::shared_ptr<SamplerObject>> samplers;
    std::vector<Generation> generations;
    std::vector<uint32_t> slots;
    size_t first = 0;
    for (uint32_t i = 0; i < given.n_seqs; ++i) {
      if (out_results && out_results[i]) (void)read_struct(out_results[i], "out_results[i]", kFirstResult);
      const uint32_t n = given.lengths[i], slot = given.slots ? given.slots[i] : i;
      if (n == 0) fail(DUET_E_INVALID, "the prompt of sequence {} is empty; begin a text with token 0", i);
      samplers.push_back(object(given.samplers[i]));
      s->check_slot(slot);
      slots.push_back(slot);
      generations.push_back({slot, &samplers.back()->sampler, {given.tokens + first, n}, generate_options(given.options ? given.options[i] : nullptr)});
      first += n;
      if (first > kMaxTokens) fail(DUET_E_LIMIT, "prompts of more than {} tokens in all; generate fewer at once", kMaxTokens);
    }
    std::sort(slots.begin(), slots.end());
    if (const auto twice = std::adjacent_find(slots.begin(), slots.end()); twice != slots.end())
      fail(DUET_E_INVALID, "slot {} stands twice among the prompts; two sequences cannot advance one state", *twice);
    auto sorted = samplers;
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
      fail(DUET_E_INVALID, "two sequences have the same sampler; each needs one of its own, for its counts");

    Exclusive lock(x->busy, "session"), lock_state(s->busy, "state");
    std::vector<std::unique_ptr<Exclusive>> locks;
    for (const auto& p : samplers) locks.push_back(std::make_unique<Exclusive>(p->busy, "sampler"));
    generate(*x, s, generations);
    for (uint32_t i = 0; out_results && i < given.n_seqs; ++i)
      if (out_results[i]) write_struct(out_results[i], generations[i].result, "out_results[i]", kFirstResult);
    for (uint32_t i = 0; i < given.n_seqs; ++i)
      if (const Generation& g = generations[i]; g.result.status != DUET_OK) throw Error(g.result.status, duet::format("sequence {}: {}", i, g.failure));
  });
}
