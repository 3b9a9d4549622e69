#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "compare.h"
#include "files.h"
#include "progress.h"
#include "runtime.h"
#include "subcommands.h"

namespace duet {
namespace {

std::string_view trim(std::string_view text) {
  constexpr std::string_view blanks = " \t\n\r\v\f";
  const size_t begin = text.find_first_not_of(blanks);
  return begin == text.npos ? std::string_view() : text.substr(begin, text.find_last_not_of(blanks) - begin + 1);
}

// The documents between lines `<|endoftext|>`, trimmed; empty ones are left out.
std::vector<std::string_view> split_documents(std::string_view text) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  const auto add = [&](size_t end) {
    const std::string_view document = trim(text.substr(begin, end - begin));
    if (!document.empty()) out.push_back(document);
  };
  for (size_t line = 0; line < text.size();) {
    const size_t end = std::min(text.find('\n', line), text.size());
    if (trim(text.substr(line, end - line)) == "<|endoftext|>") {
      add(line);
      begin = end;
    }
    line = end + 1;
  }
  add(text.size());
  return out;
}

struct Score {
  uint64_t documents = 0, tokens = 0, predicted = 0, bytes = 0;
  double nll = 0, seconds = 0;  // nats
  double loss() const { return nll / static_cast<double>(predicted); }
  double bits_per_byte() const { return nll / std::log(2.0) / static_cast<double>(bytes); }
};

// Each document from a fresh state: token 0 and its first max_tokens - 1 tokens. Without a reference to compare with, `comparison`
// stays as it is.
Score score(const Reader& model, const Reader* reference, duet_tokenizer* tokenizer, const std::vector<std::string_view>& documents, uint32_t max_tokens, bool quiet,
            Comparison& comparison) {
  Score out;
  Progress progress("scoring", quiet);
  const double begin = seconds_now();
  for (const std::string_view document : documents) {
    // a token has at most 4096 bytes, so a longer piece than this cannot matter
    std::vector<int32_t> tokens = encode(tokenizer, document.substr(0, size_t{max_tokens} * 4096), {0});
    tokens.resize(std::min<size_t>(tokens.size(), max_tokens));
    if (reference != nullptr) {
      compare(model, *reference, tokens, comparison);
      out.nll = comparison.nll;
    } else {
      std::vector<double> nll(tokens.size() - 1);
      check(duet_state_reset(model.state.get(), 0));
      check(duet_score(model.session.get(), model.state.get(), 0, tokens.data(), tokens.size(), nll.data()));
      out.nll += std::accumulate(nll.begin(), nll.end(), 0.0);
    }
    size_t bytes = 0;
    check(duet_tokenizer_decode(tokenizer, tokens.data(), tokens.size(), nullptr, 0, &bytes));
    out.documents += 1;
    out.tokens += tokens.size();
    out.predicted += tokens.size() - 1;
    out.bytes += bytes;
    check_interrupted();
    progress.update(out.documents, documents.size());
    if (!std::isfinite(out.nll + comparison.reference_nll)) break;  // no further document makes it a number
  }
  out.seconds = seconds_now() - begin;
  return out;
}

}  // namespace

void run_eval(const Arguments& arguments) {
  ModelOptions model_options, reference_options;
  StateOptions state_options;  // the reference's is f32
  LibraryOptions library_options;
  std::string text_file, vocab;
  duet_mode mode = DUET_MODE_AUTO;
  uint32_t max_tokens = 1024;
  bool json = false;
  Options options("eval", "[--model M] --text F [OPTIONS]",
                  "Scores documents. They stand between lines '<|endoftext|>' and are trimmed of surrounding white space; each is scored\n"
                  "from a fresh state as token 0 and its first 1023 tokens. Gives the loss per predicted token in nats, the bits per byte of\n"
                  "those tokens, the perplexity per token, and the speed. Beside a reference also its loss, the divergence KL(reference ||\n"
                  "model) per token and at most, and how often both find the same token the most probable; the speed is then that of both.");
  model_options.declare(options);
  state_options.declare(options);
  options.file("vocab", "FILE", vocab, "vocabulary in World format (default: vocab.txt beside the model, else World where it fits)");
  options.section("Text")
      .file("text", "FILE", text_file, "the documents")
      .number<uint32_t>("max-tokens", "N", max_tokens, 2, 1u << 24, "tokens of a document that are read, token 0 included (default: 1024)");
  options.section("Reference")
      .file("compare-to", "FILE|DIR", reference_options.path, "a model of the same vocabulary to compare with, its state in f32; may be the same file")
      .dtype(reference_options.dtype, "as --dtype, of the reference (default: as stored)", "compare-dtype")
      .text("compare-backend", "NAME[:INDEX]", reference_options.backend, "as --backend, of the reference (default: the same as --backend)");
  options.section("Run").mode(mode, "auto, parallel or recurrent (default: auto)");
  library_options.declare_with_layers(options);
  options.flag("json", json, "the result as JSON");
  if (!options.parse(arguments)) return;
  options.require("text");
  const bool comparing = options.given("compare-to");
  for (const char* name : {"compare-dtype", "compare-backend"})
    if (options.given(name) && !comparing) throw Usage(fmt::format("--{} is of no use without --compare-to", name));

  const std::string text = read_text(text_file);
  const std::vector<std::string_view> documents = split_documents(text);
  if (documents.empty()) throw Failure(text_file + ": holds no text");
  const Library library = library_options.open();
  const Model model = model_options.load(library.get(), library_options.quiet);
  const Tokenizer tokenizer = open_tokenizer(library.get(), vocab, model.get());
  const Reader reader(model.get(), state_options, mode);
  Model reference;
  std::optional<Reader> reference_reader;
  if (comparing) {
    reference_options.file = model_options.file;
    if (!options.given("compare-backend")) reference_options.backend = model_options.backend;
    reference = reference_options.load(library.get(), library_options.quiet);
    const uint32_t ours = info_of(model.get()).n_vocab, theirs = info_of(reference.get()).n_vocab;
    if (ours != theirs) throw Failure(fmt::format("{}: has a vocabulary of {}, the model one of {}; they cannot be compared", reference_options.path, theirs, ours));
    reference_reader.emplace(reference.get(), StateOptions(), mode);
  }
  Comparison comparison;
  const Score s = score(reader, comparing ? &*reference_reader : nullptr, tokenizer.get(), documents, max_tokens, library_options.quiet, comparison);

  const auto require_finite = [](double nll, const std::string& model) {
    if (!std::isfinite(nll)) throw Failure(fmt::format("{}: its loss is {}; {}", model, nll, not_finite_hint(model)));
  };
  require_finite(s.nll, model_options.path);
  require_finite(comparison.reference_nll, reference_options.path);

  const double rate = static_cast<double>(s.tokens) / s.seconds;
  const auto share = [&](double sum) { return sum / static_cast<double>(comparison.positions); };
  if (json) {
    nlohmann::ordered_json out = {{"documents", s.documents}, {"predicted_tokens", s.predicted}, {"bytes", s.bytes},
                                  {"loss", s.loss()},         {"bits_per_byte", s.bits_per_byte()}, {"perplexity", std::exp(s.loss())},
                                  {"seconds", s.seconds},     {"tokens_per_second", rate}, {"peak_memory_bytes", peak_memory()}};
    if (comparing)
      out["reference"] = {{"loss", share(comparison.reference_nll)}, {"kl", share(comparison.kl)}, {"kl_max", comparison.kl_max},
                          {"agreement", share(static_cast<double>(comparison.agree))}};
    write_out(out.dump() + "\n");
    return;
  }
  write_out(fmt::format("documents      {}\npredicted      {} tokens, {} bytes\nloss           {:.4f} nats per token\nbits per byte  {:.4f}\nperplexity     {:.3f}\nspeed          {:.1f} tok/s\n",
                        s.documents, s.predicted, s.bytes, s.loss(), s.bits_per_byte(), std::exp(s.loss()), rate));
  if (comparing)
    write_out(fmt::format("reference      {:.4f} nats per token\nKL             {:.6f} nats per token, at most {:.4f}\nagreement      {:.2f} % on the most probable token\n",
                          share(comparison.reference_nll), share(comparison.kl), comparison.kl_max, 100 * share(static_cast<double>(comparison.agree))));
}

}  // namespace duet
