#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "files.h"
#include "runtime.h"
#include "subcommands.h"

namespace duet {
namespace {

struct Wanted {
  std::string vocab, prompt, prompt_file, state_in, state_out;
  uint32_t max_tokens = 256, top_k = 0;
  float temperature = 1, top_p = 0.7f, min_p = 0, presence = 0, frequency = 0, decay = 0.996f;
  uint64_t seed = 0;
  std::vector<std::string> stop;
  duet_mode mode = DUET_MODE_AUTO;
  bool json = false;
};

// What the callbacks of duet_generate share.
struct Stream {
  Callback callback;
  int32_t last_token = 0;
  char last_byte = '\n';
};

duet_status on_token(void* user, int32_t token) {
  static_cast<Stream*>(user)->last_token = token;
  return DUET_OK;
}

duet_status on_text(void* user, const char* text, size_t n) {
  auto& stream = *static_cast<Stream*>(user);
  return stream.callback.run([&] {
    if (n == 0) return;
    write_out({text, n});
    stream.last_byte = text[n - 1];
  });
}

Sampler make_sampler(const Wanted& wanted, duet_tokenizer* tokenizer) {
  auto o = DUET_INIT(duet_sampler_options);
  check(duet_sampler_options_default(&o));
  o.temperature = wanted.temperature;
  o.top_p = wanted.top_p;
  o.top_k = wanted.top_k;
  o.min_p = wanted.min_p;
  o.presence = wanted.presence;
  o.frequency = wanted.frequency;
  o.decay = wanted.decay;
  o.seed = wanted.seed;
  o.tokenizer = tokenizer;
  return make<Sampler>(duet_sampler_create, &o);
}

double rate(uint64_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }

const char* finish_name(uint32_t finish) {
  switch (finish) {
    case DUET_FINISH_LENGTH: return "length";
    case DUET_FINISH_STOP_TOKEN: return "stop token";
    case DUET_FINISH_STOP_TEXT: return "stop text";
    default: return "callback";
  }
}

void write_statistics(const duet_generate_result& result, const char* finish, const duet_model_info& model, double load_s, const Wanted& wanted) {
  if (wanted.json) {
    const nlohmann::ordered_json json = {{"backend", model.device},
                                         {"dtype", dtype_name(model.weights)},
                                         {"seed", wanted.seed},
                                         {"load_seconds", load_s},
                                         {"prompt", {{"tokens", result.n_prompt}, {"seconds", result.prompt_s}, {"tokens_per_second", rate(result.n_prompt, result.prompt_s)}}},
                                         {"generation", {{"tokens", result.n_new}, {"seconds", result.new_s}, {"tokens_per_second", rate(result.n_new, result.new_s)}}},
                                         {"finish", finish},
                                         {"peak_memory_bytes", peak_memory()}};
    write_error(json.dump() + "\n");
    return;
  }
  write_error(on_error(Colour::dim, fmt::format("prompt      {:6} tokens {:8.2f} s {:9.1f} tok/s\n"
                                                "generation  {:6} tokens {:8.2f} s {:9.1f} tok/s, ended by {}\n"
                                                "peak memory {} ({}, {}, loaded in {:.2f} s)",
                                                result.n_prompt, result.prompt_s, rate(result.n_prompt, result.prompt_s), result.n_new, result.new_s,
                                                rate(result.n_new, result.new_s), finish, bytes_text(peak_memory()), model.device, dtype_name(model.weights), load_s)) +
              "\n");
}

// The state after the last token drawn, a stop text's included: that token has not been read yet, and token 0 never is.
void save_state(duet_session* session, duet_state* state, int32_t last_token, const std::string& path) {
  if (last_token != 0) {
    auto batch = DUET_INIT(duet_batch);
    batch.n_seqs = 1;
    batch.tokens = &last_token;
    batch.outputs = DUET_OUT_NO_LOGITS;
    check(duet_forward(session, state, &batch));
  }
  check(duet_state_save_file(state, 0, path.c_str()));
}

}  // namespace

void run_generate(const Arguments& arguments) {
  Wanted w;
  ModelOptions model_options;
  StateOptions state_options;
  LibraryOptions library_options;
  Options options("generate", "[OPTIONS]",
                  "Continues a text. The new text goes to standard output as it is drawn (the prompt is not repeated), statistics go to\n"
                  "standard error. A text begins with token 0, and ends when token 0 is drawn or --max-tokens is reached.");
  model_options.declare(options);
  state_options.declare(options);
  options.file("vocab", "FILE", w.vocab, "vocabulary in World format (default: vocab.txt beside the model, else World where it fits)");
  options.section("Text")
      .text("prompt", "TEXT", w.prompt, "the text to continue (default: none, a fresh text)")
      .file("prompt-file", "FILE", w.prompt_file, "the text to continue, from a file, byte for byte")
      .number<uint32_t>("max-tokens", "N", w.max_tokens, 1, 1'000'000'000, "tokens to draw at most (default: 256)")
      .texts("stop", "TEXT", w.stop, "stop before this text would appear; may be repeated")
      .mode(w.mode, "how the prompt is read: auto, parallel or recurrent (default: auto); drawing is always recurrent")
      .file("state-in", "FILE", w.state_in, "continue from a saved state; needs a prompt, and no token 0 is put before it")
      .file("state-out", "FILE", w.state_out, "save the state after the last token (a stop text is in it, a final token 0 is not), unless interrupted");
  options.section("Sampling")
      .number<float>("temperature", "T", w.temperature, 0, 100, "0 to 100; 0 takes the most probable token (default: 1)")
      .number<float>("top-p", "P", w.top_p, 0, 1, "0 to 1; keep the most probable tokens up to this sum (default: 0.7; 1: all)")
      .number<uint32_t>("top-k", "K", w.top_k, 0, 1u << 20, "keep the K most probable tokens (default: 0, all)")
      .number<float>("min-p", "P", w.min_p, 0, 1, "drop tokens below P times the largest probability (default: 0, none)")
      .number<float>("presence-penalty", "X", w.presence, -100, 100, "subtracted from the logit of a token that was drawn (default: 0)")
      .number<float>("frequency-penalty", "X", w.frequency, -100, 100, "subtracted for each time that it was drawn (default: 0)")
      .number<float>("penalty-decay", "X", w.decay, 0, 1, "the counts shrink by this factor at each token (default: 0.996)")
      .number<uint64_t>("seed", "S", w.seed, 0, UINT64_MAX, "the same seed gives the same text (default: 0)");
  options.section("Run");
  library_options.declare_with_layers(options);
  options.flag("json", w.json, "the statistics as one line of JSON");
  if (!options.parse(arguments)) return;
  options.exclude("prompt", "prompt-file");
  options.exclude("json", "quiet");

  if (!w.prompt_file.empty()) w.prompt = read_text(w.prompt_file);
  if (!w.state_in.empty() && w.prompt.empty()) throw Usage("--state-in continues a text: give the next piece of it with --prompt or --prompt-file");
  if (!w.state_out.empty()) check_output(w.state_out, {model_options.choose(), w.vocab, w.prompt_file, w.state_in});

  const double begin = seconds_now();
  const Library library = library_options.open();
  const Model model = model_options.load(library.get(), library_options.quiet);
  const Tokenizer tokenizer = open_tokenizer(library.get(), w.vocab, model.get());
  const double load_s = seconds_now() - begin;

  auto session_options = DUET_INIT(duet_session_options);
  session_options.mode = w.mode;
  const Session session = make<Session>(duet_session_create, model.get(), &session_options);
  const State state = state_options.create(model.get());
  const bool fresh = w.state_in.empty();
  if (!fresh) check(duet_state_load_file(state.get(), 0, w.state_in.c_str()));
  const std::vector<int32_t> prompt = encode(tokenizer.get(), w.prompt, fresh ? std::vector<int32_t>{0} : std::vector<int32_t>{});
  const Sampler sampler = make_sampler(w, tokenizer.get());

  Stream stream;
  std::vector<const char*> stop_texts;
  for (const std::string& text : w.stop) stop_texts.push_back(text.c_str());
  auto o = DUET_INIT(duet_generate_options);
  o.max_tokens = w.max_tokens;
  o.tokenizer = tokenizer.get();
  o.stop_texts = stop_texts.data();
  o.n_stop_texts = static_cast<uint32_t>(stop_texts.size());
  o.on_token = on_token;
  o.on_text = on_text;
  o.user = &stream;
  o.cancel = interrupt_flag();
  auto result = DUET_INIT(duet_generate_result);
  const duet_status status = duet_generate(session.get(), state.get(), 0, sampler.get(), prompt.data(), prompt.size(), &o, &result);
  stream.callback.rethrow();
  const bool cancelled = status == DUET_E_CANCELLED;
  if (status == DUET_E_NUMERIC) throw Failure(fmt::format("{}: its logits are no numbers to draw from; {}", model_options.path, not_finite_hint(model_options.path)));
  if (!cancelled) check(status);
  if (out_is_terminal() && stream.last_byte != '\n') write_error("\n");  // the terminal's line, not the text's
  if (!library_options.quiet) write_statistics(result, cancelled ? "interrupt" : finish_name(result.finish), info_of(model.get()), load_s, w);
  if (cancelled) throw Interrupted();
  if (!w.state_out.empty()) save_state(session.get(), state.get(), stream.last_token, w.state_out);
}

}  // namespace duet
