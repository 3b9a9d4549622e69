#include "exec/draws.h"

#include <map>

#include "base/error.h"

namespace duet {
namespace {

// One entry for each token that has a bias or a count, or is free.
std::map<int32_t, duetp_sample_entry> entries_of(const Sampler& s, uint32_t n_vocab) {
  std::map<int32_t, duetp_sample_entry> out;
  const auto at = [&](int32_t token) -> duetp_sample_entry& { return out.try_emplace(token, duetp_sample_entry{0, -1, token, 0}).first->second; };
  for (const auto& [token, bias] : s.options().bias) at(token).bias += bias;
  for (const auto& [token, count] : s.counts()) at(token).count = count;
  for (const int32_t token : s.free_tokens())
    if (static_cast<uint32_t>(token) < n_vocab) at(token).is_free = 1;  // a tokenizer may know more tokens than the model
  return out;
}

}  // namespace

DrawTables::DrawTables(std::span<const Draw> draws, uint32_t n_steps, uint32_t n_vocab) {
  for (const Draw& d : draws) {
    const SamplerOptions& o = d.sampler->options();
    duetp_sample_row& r = rows.emplace_back();
    r.temperature = o.temperature, r.top_p = o.top_p, r.min_p = o.min_p;
    r.presence = o.presence, r.frequency = o.frequency, r.decay = o.decay;
    r.top_k = o.top_k;
    r.first_entry = static_cast<uint32_t>(entries.size());
    for (const auto& [token, entry] : entries_of(*d.sampler, n_vocab)) entries.push_back(entry);
    r.n_entries = static_cast<uint32_t>(entries.size()) - r.first_entry;
    if (d.sampler->keeps_counts()) entries.resize(entries.size() + n_steps);
    r.next = static_cast<uint32_t>(rows.size() - 1) * n_steps;
    r.seed = o.seed, r.sequence = o.sequence, r.position = d.sampler->position();
  }
}

void fail_draw(int32_t history, uint32_t n_vocab) {
  if (history > DUETP_SAMPLE_LOGIT) fail(DUET_E_NUMERIC, kNothingToDraw, n_vocab);
  fail(DUET_E_NUMERIC, kLogitIsNoNumber, DUETP_SAMPLE_LOGIT - history);
}

}  // namespace duet
