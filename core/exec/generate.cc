#include "exec/generate.h"

#include <algorithm>
#include <chrono>

#include "text/stream.h"

namespace duet {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }

// A prompt is fed in pieces, so that a cancel is seen soon: a full pass, or a few single tokens.
size_t prompt_piece(const Session& session) { return session.mode() == DUET_MODE_RECURRENT ? 16 : session.max_tokens(); }

}  // namespace

void generate(Session& session, const std::shared_ptr<State>& state, uint32_t slot, Sampler& sampler, std::span<const int32_t> prompt,
              const GenerateOptions& options, duet_generate_result& result) {
  const auto check_cancel = [&] {
    if (options.cancel && __atomic_load_n(options.cancel, __ATOMIC_RELAXED) != 0) fail(DUET_E_CANCELLED, "generation was cancelled after {} tokens", result.n_new);
  };
  const auto feed = [&](std::span<const int32_t> tokens, uint32_t outputs, std::optional<duet_mode> mode = std::nullopt) {
    session.forward(state, {tokens, {static_cast<uint32_t>(tokens.size())}, {slot}, outputs}, mode);
  };

  auto start = std::chrono::steady_clock::now();
  while (!prompt.empty()) {
    check_cancel();
    const auto piece = prompt.first(std::min(prompt.size(), prompt_piece(session)));
    prompt = prompt.subspan(piece.size());
    feed(piece, prompt.empty() ? DUET_OUT_LAST_LOGITS : DUET_OUT_NO_LOGITS);
    result.n_prompt += piece.size();
    result.prompt_s = seconds_since(start);
  }

  start = std::chrono::steady_clock::now();
  TextStream stream(options.stop_texts);
  const auto show = [&](const std::string& text) { return text.empty() || !options.on_text || options.on_text(text); };
  result.finish = DUET_FINISH_LENGTH;
  while (true) {
    const int32_t token = sampler.pick(session.output(DUET_OUTPUT_LOGITS).data);
    ++result.n_new;
    result.new_s = seconds_since(start);
    if (std::find(options.stops.begin(), options.stops.end(), token) != options.stops.end()) {
      result.finish = DUET_FINISH_STOP_TOKEN;
      break;
    }
    bool go_on = !options.on_token || options.on_token(token);
    // a model's vocabulary may have rows that no token uses: they have no text
    if (options.tokenizer && static_cast<uint32_t>(token) < options.tokenizer->size()) go_on = show(stream.push(options.tokenizer->bytes(token))) && go_on;
    if (stream.stopped()) {
      result.finish = DUET_FINISH_STOP_TEXT;
      break;
    }
    if (!go_on) {
      result.finish = DUET_FINISH_CALLBACK;
      return;
    }
    if (result.n_new == options.max_tokens) break;
    check_cancel();  // before the token is fed: the slot ends after the last but one
    feed({&token, 1}, DUET_OUT_LAST_LOGITS, DUET_MODE_RECURRENT);
  }
  if (!stream.stopped() && options.tokenizer && !show(stream.finish())) result.finish = DUET_FINISH_CALLBACK;
}

}  // namespace duet
