// The loop that everybody writes, written once: read prompts, draw tokens, stream whole characters, stop.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "exec/session.h"
#include "text/sampler.h"

namespace duet {

struct GenerateOptions {
  uint32_t max_tokens = 256;
  std::shared_ptr<const Tokenizer> tokenizer;  // needed for on_text and stop_texts
  std::vector<int32_t> stops = {0};
  std::vector<std::string> stop_texts;
  std::function<bool(int32_t)> on_token;          // false stops
  std::function<bool(std::string_view)> on_text;  // false stops
  const volatile int32_t* cancel = nullptr;
};

// One text that is generated, beside others.
struct Generation {
  uint32_t slot;
  Sampler* sampler;
  std::span<const int32_t> prompt;  // at least one token
  GenerateOptions options;
  duet_generate_result result{};  // result.status: how it ended, where that is no finish
  std::string failure{};          // the sentence of result.status
};

// Slots and samplers are distinct. A generation that ends leaves the others as they are; one that is cancelled, or whose logits
// are no numbers, has it in its status. Throws what ends all of them: then results are as far as they came.
void generate(Session& session, const std::shared_ptr<State>& state, std::span<Generation> generations);

}  // namespace duet
