// The loop that everybody writes, written once: read a prompt, draw tokens, stream whole characters, stop.
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

// Fills `result` as far as it came, also when it throws DUET_E_CANCELLED.
void generate(Session& session, const std::shared_ptr<State>& state, uint32_t slot, Sampler& sampler, std::span<const int32_t> prompt,
              const GenerateOptions& options, duet_generate_result& result);

}  // namespace duet
