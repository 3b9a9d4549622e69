#include <fmt/format.h>

#include <algorithm>

#include "files.h"
#include "progress.h"
#include "runtime.h"
#include "safetensors_out.h"
#include "subcommands.h"

namespace duet {
namespace {

struct Outputs {
  std::vector<float> logits, hidden, v_first;  // [T,V], [T,C], [T,C]
};

void append(std::vector<float>& out, duet_session* session, uint32_t output) {
  const float* rows = nullptr;
  uint32_t n_rows = 0, width = 0;
  check(duet_session_outputs(session, output, &rows, &n_rows, &width));
  out.insert(out.end(), rows, rows + size_t{n_rows} * width);
}

// Feeds the tokens in pieces of `chunk` through one state and keeps every row.
Outputs feed(duet_session* session, duet_state* state, const std::vector<int32_t>& tokens, uint32_t chunk, uint32_t which, bool quiet) {
  Outputs out;
  Progress progress("computing", quiet);
  for (size_t at = 0; at < tokens.size();) {
    const auto n = static_cast<uint32_t>(std::min<size_t>(chunk, tokens.size() - at));
    auto batch = DUET_INIT(duet_batch);
    batch.n_seqs = 1;
    batch.tokens = tokens.data() + at;
    batch.lengths = &n;
    batch.outputs = which;
    check(duet_forward(session, state, &batch));
    append(out.logits, session, DUET_OUTPUT_LOGITS);
    if (which & DUET_OUT_HIDDEN) append(out.hidden, session, DUET_OUTPUT_HIDDEN);
    if (which & DUET_OUT_V_FIRST) append(out.v_first, session, DUET_OUTPUT_V_FIRST);
    at += n;
    check_interrupted();
    progress.update(at, tokens.size());
  }
  return out;
}

}  // namespace

void run_logits(const Arguments& arguments) {
  ModelOptions model_options;
  StateOptions state_options;
  LibraryOptions library_options;
  std::string list, list_file, state_in, output;
  duet_mode mode = DUET_MODE_AUTO;
  uint32_t chunk = UINT32_MAX;
  bool hidden = false, v_first = false;
  Options options("logits", "[--model M] (--tokens LIST | --tokens-file F) --output OUT [OPTIONS]",
                  "Computes the logits after every token and the state after the last one, and writes them as safetensors, all F32:\n"
                  "logits [T,V], state.att_x [L,C], state.wkv [L,H,N,N] (value row, key column), state.ffn_x [L,C].");
  model_options.declare(options);
  state_options.declare(options);
  options.section("Input and output")
      .text("tokens", "LIST", list, "token ids, separated by commas or blanks")
      .file("tokens-file", "FILE", list_file, "token ids from a file: separated by commas or blanks, or a JSON array")
      .file("state-in", "FILE", state_in, "begin from this state: any safetensors file with the three state tensors")
      .file("output", "FILE", output, "the safetensors file to write; it appears whole or not at all")
      .flag("hidden", hidden, "also write hidden [T,C], the last hidden state after ln_out")
      .flag("v-first", v_first, "also write v_first [T,C], the value vector of layer 0");
  options.section("Run")
      .mode(mode, "auto, parallel or recurrent (default: auto)")
      .number<uint32_t>("chunk", "N", chunk, 1, 1u << 30, "feed the tokens in pieces of N through one state (default: all at once)");
  library_options.declare_with_layers(options);
  if (!options.parse(arguments)) return;
  options.exclude("tokens", "tokens-file");
  if (!options.given("tokens") && !options.given("tokens-file")) throw Usage("--tokens or --tokens-file is missing");
  options.require("output");

  check_output(output, {model_options.choose(), list_file, state_in});
  const bool from_file = !list_file.empty();
  const std::vector<int32_t> tokens = from_file ? parse_tokens(read_text(list_file), list_file) : parse_tokens(list, "--tokens");
  if (tokens.empty()) throw Usage((from_file ? list_file : "--tokens") + ": there are no tokens");

  const Library library = library_options.open();
  const Model model = model_options.load(library.get(), library_options.quiet);
  const State state = state_options.create(model.get());
  if (!state_in.empty()) check(duet_state_load_file(state.get(), 0, state_in.c_str()));
  auto session_options = DUET_INIT(duet_session_options);
  session_options.mode = mode;
  const Session session = make<Session>(duet_session_create, model.get(), &session_options);

  const uint32_t which = DUET_OUT_ALL_LOGITS | hidden * uint32_t{DUET_OUT_HIDDEN} | v_first * uint32_t{DUET_OUT_V_FIRST};
  const Outputs out = feed(session.get(), state.get(), tokens, chunk, which, library_options.quiet);

  const duet_model_info m = info_of(model.get());
  const uint64_t T = tokens.size(), L = m.n_layer, C = m.n_embd, H = m.n_head, N = m.head_size;
  std::vector<float> att_x(L * C), wkv(L * H * N * N), ffn_x(L * C);
  check(duet_state_get(state.get(), 0, att_x.data(), wkv.data(), ffn_x.data()));
  std::vector<OutTensor> tensors = {{"logits", {T, m.n_vocab}, out.logits}, {"state.att_x", {L, C}, att_x}, {"state.wkv", {L, H, N, N}, wkv}, {"state.ffn_x", {L, C}, ffn_x}};
  if (hidden) tensors.push_back({"hidden", {T, C}, out.hidden});
  if (v_first) tensors.push_back({"v_first", {T, C}, out.v_first});
  write_safetensors(output, tensors);
}

}  // namespace duet
