#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "files.h"
#include "memory_speed.h"
#include "progress.h"
#include "runtime.h"
#include "subcommands.h"

namespace duet {
namespace {

constexpr uint32_t kShortPrompt = 16;  // tokens before the first token that is timed

struct Wanted {
  std::string shape;
  StateOptions state;
  float relu2 = 0;
  std::vector<uint32_t> prompt_tokens{512}, batch{1};
  uint32_t gen_tokens = 64, repeat = 3;
  bool json = false;
};

struct PromptSpeed {
  uint32_t tokens;
  double seconds;
};
struct GenerationSpeed {
  uint32_t batch;
  double seconds_per_step;
};
struct Figures {
  double load_s = 0, first_token_s = 0, memory_limit = 0;  // s, s after loading, bytes/s (0: not known)
  bool limit_measured = false;
  uint64_t peak_memory = 0;
  std::vector<PromptSpeed> prompts;
  std::vector<GenerationSpeed> generations;
};

// Tokens that are the same in every run: a linear congruential generator's upper bits.
std::vector<int32_t> random_tokens(size_t n, uint32_t n_vocab) {
  std::vector<int32_t> out(n);
  uint64_t x = 1;
  for (int32_t& token : out) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    token = static_cast<int32_t>((x >> 33) % n_vocab);
  }
  return out;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Session open_session(duet_model* model, duet_mode mode) {
  auto o = DUET_INIT(duet_session_options);
  o.mode = mode;
  return make<Session>(duet_session_create, model, &o);
}

void forward(duet_session* session, duet_state* state, const int32_t* tokens, uint32_t n_seqs, const uint32_t* lengths) {
  auto batch = DUET_INIT(duet_batch);
  batch.n_seqs = n_seqs;
  batch.tokens = tokens;
  batch.lengths = lengths;
  check(duet_forward(session, state, &batch));
  check_interrupted();
}

// One prompt, read in parallel mode from a fresh state; only the last token's logits, as when generating.
double time_prompt(duet_model* model, const Wanted& w, uint32_t n_tokens, uint32_t n_vocab) {
  const std::vector<int32_t> tokens = random_tokens(n_tokens, n_vocab);
  const Session session = open_session(model, DUET_MODE_PARALLEL);
  const State state = w.state.create(model);
  std::vector<double> times;
  for (uint32_t i = 0; i <= w.repeat; ++i) {
    check(duet_state_reset(state.get(), 0));
    const double begin = seconds_now();
    forward(session.get(), state.get(), tokens.data(), 1, &n_tokens);
    if (i > 0) times.push_back(seconds_now() - begin);  // the first pass warms up
  }
  return median(times);
}

// Greedy generation of `batch` sequences: seconds a step, of recurrent mode, from the first token of each on.
double time_generation(duet_model* model, const Wanted& w, uint32_t batch, uint32_t n_vocab) {
  const std::vector<int32_t> tokens = random_tokens(batch, n_vocab);
  const std::vector<uint32_t> lengths(batch, 1);
  const Session session = open_session(model, DUET_MODE_RECURRENT);
  const State state = w.state.create(model, batch);
  auto greedy = DUET_INIT(duet_sampler_options);
  check(duet_sampler_options_default(&greedy));
  greedy.temperature = 0;
  std::vector<Sampler> samplers;
  std::vector<duet_sampler*> handles;
  for (uint32_t i = 0; i < batch; ++i) handles.push_back(samplers.emplace_back(make<Sampler>(duet_sampler_create, &greedy)).get());
  auto options = DUET_INIT(duet_generate_options);
  const int32_t no_stop = 0;
  options.stops = &no_stop;  // of length 0
  const std::vector<const duet_generate_options*> of_each(batch, &options);
  std::vector<duet_generate_result> results(batch, DUET_INIT(duet_generate_result));
  std::vector<duet_generate_result*> out;
  for (duet_generate_result& r : results) out.push_back(&r);
  auto prompts = DUET_INIT(duet_prompts);
  prompts.n_seqs = batch;
  prompts.tokens = tokens.data();
  prompts.lengths = lengths.data();
  prompts.samplers = handles.data();
  prompts.options = of_each.data();
  const auto seconds = [&](uint32_t n_steps) {
    options.max_tokens = n_steps + 1;  // the first comes from the prompt
    check(duet_generate_batch(session.get(), state.get(), &prompts, out.data()));
    check_interrupted();
    return results.back().new_s / n_steps;  // whose prompt was read last
  };
  (void)seconds(1);  // warms up
  std::vector<double> times;
  for (uint32_t i = 0; i < w.repeat; ++i) times.push_back(seconds(w.gen_tokens));
  return median(times);
}

Model open_model(duet_library* library, ModelOptions& options, const Wanted& w, bool quiet) {
  if (w.shape.empty()) return options.load(library, quiet);
  Progress progress("filling weights", quiet);
  auto random = DUET_INIT(duet_random_options);
  random.shape = w.shape.c_str();
  random.relu2 = w.relu2;
  duet_model_options o = options.fields();
  o.progress = Progress::call;
  o.progress_user = &progress;
  return make<Model>(duet_model_random, library, &random, &o);
}

// What bounds generation: measured where this machine's own memory is read, else what the device says of its memory.
void limit_of(duet_library* library, const char* device, uint32_t threads, Figures& f) {
  uint32_t n = 0;
  check(duet_device_count(library, &n));
  for (uint32_t i = 0; i < n; ++i) {
    auto info = DUET_INIT(duet_device_info);
    check(duet_device_get(library, i, &info));
    if (std::string(info.spec) != device) continue;
    f.limit_measured = info.kind == 0;
    f.memory_limit = f.limit_measured ? memory_read_speed(threads) : static_cast<double>(info.bytes_per_s);
  }
}

Figures measure(duet_library* library, duet_model* model, const Wanted& w, uint32_t threads, double load_s, bool quiet) {
  const uint32_t n_vocab = info_of(model).n_vocab;
  Figures f;
  f.load_s = load_s;
  const double begin = seconds_now();
  {
    const Session session = open_session(model, DUET_MODE_AUTO);
    const State state = w.state.create(model);
    forward(session.get(), state.get(), random_tokens(kShortPrompt, n_vocab).data(), 1, &kShortPrompt);
  }
  f.first_token_s = seconds_now() - begin;
  Progress progress("measuring", quiet);
  const size_t n = w.prompt_tokens.size() + w.batch.size();
  for (const uint32_t tokens : w.prompt_tokens) {
    f.prompts.push_back({tokens, time_prompt(model, w, tokens, n_vocab)});
    progress.update(f.prompts.size(), n);
  }
  for (const uint32_t batch : w.batch) {
    f.generations.push_back({batch, time_generation(model, w, batch, n_vocab)});
    progress.update(f.prompts.size() + f.generations.size(), n);
  }
  f.peak_memory = peak_memory();  // before the next line's own buffers
  limit_of(library, info_of(model).device, threads, f);
  return f;
}

std::string as_json(const Figures& f, const duet_model_info& m, const std::string& name, const Wanted& w, uint32_t threads) {
  using Json = nlohmann::ordered_json;
  Json prompts = Json::array(), generations = Json::array();
  for (const PromptSpeed& p : f.prompts) prompts.push_back({{"tokens", p.tokens}, {"seconds", p.seconds}, {"tokens_per_second", p.tokens / p.seconds}});
  for (const GenerationSpeed& g : f.generations) {
    const double read = static_cast<double>(m.bytes_per_token) / g.seconds_per_step;
    generations.push_back({{"batch", g.batch}, {"tokens_per_second", g.batch / g.seconds_per_step}, {"seconds_per_step", g.seconds_per_step}, {"bytes_per_second", read}, {"share_of_memory_limit", f.memory_limit > 0 ? Json(read / f.memory_limit) : Json()}});
  }
  const Json out = {{"version", duet_version_string()}, {"model", name}, {"backend", m.device}, {"dtype", dtype_name(m.weights)}, {"state", dtype_name(w.state.wkv)}, {"threads", threads}, {"repeat", w.repeat},
                    {"relu2", w.relu2 > 0 ? Json(w.relu2) : Json()}, {"parameters", m.n_params}, {"weight_bytes", m.weight_bytes}, {"bytes_per_token", m.bytes_per_token},
                    {"load_seconds", f.load_s}, {"first_token_seconds", f.first_token_s}, {"peak_memory_bytes", f.peak_memory}, {"memory_bytes_per_second", f.memory_limit > 0 ? Json(f.memory_limit) : Json()}, {"memory_measured", f.limit_measured},
                    {"prompt", prompts}, {"generation", generations}};
  return out.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string as_text(const Figures& f, const duet_model_info& m, const std::string& name, const Wanted& w, uint32_t threads) {
  std::string out = fmt::format("model         {}, {:.1f} M parameters, {}, states in {}{}\n", name, static_cast<double>(m.n_params) / 1e6, dtype_name(m.weights), dtype_name(w.state.wkv),
                                w.relu2 > 0 ? fmt::format(", {:.0f} % of relu^2 not zero", 100 * w.relu2) : "");
  out += fmt::format("computed on   {}, {} threads; medians of {}\n", m.device, threads, w.repeat);
  out += fmt::format("loading       {:.3f} s, first token {:.3f} s later ({} tokens of prompt)\n", f.load_s, f.first_token_s, kShortPrompt);
  out += fmt::format("memory        {} at most, {} of weights; {}\n", bytes_text(f.peak_memory), bytes_text(m.weight_bytes),
                     f.limit_measured        ? fmt::format("streams at {:.1f} GB/s", f.memory_limit / 1e9)
                     : f.memory_limit > 0 ? fmt::format("the device's streams at {:.0f} GB/s by its data sheet", f.memory_limit / 1e9)
                                          : "how fast the device's streams is not known");
  out += fmt::format("one token     reads {} of weights\n", bytes_text(m.bytes_per_token));
  out += "\nprompt, parallel mode\n  tokens       tok/s         s\n";
  for (const PromptSpeed& p : f.prompts) out += fmt::format("{:8} {:11.1f} {:9.4f}\n", p.tokens, p.tokens / p.seconds, p.seconds);
  out += "\ngeneration, recurrent mode, greedy\n   batch       tok/s   ms/step      GB/s  of the memory's\n";
  for (const GenerationSpeed& g : f.generations) {
    const double read = static_cast<double>(m.bytes_per_token) / g.seconds_per_step;
    out += fmt::format("{:8} {:11.1f} {:9.3f} {:9.1f} {:>8}\n", g.batch, g.batch / g.seconds_per_step, 1e3 * g.seconds_per_step, read / 1e9,
                       f.memory_limit > 0 ? fmt::format("{:.0f} %", 100 * read / f.memory_limit) : "?");
  }
  return out;
}

}  // namespace

void run_bench(const Arguments& arguments) {
  Wanted w;
  ModelOptions model_options;
  LibraryOptions library_options;
  Options options("bench", "[--model M | --shape SHAPE] [OPTIONS]",
                  "Measures reading prompts (parallel mode, logits of the last token) and generating (recurrent mode, greedy sampling),\n"
                  "loading, the first token, memory, and the memory's streaming speed, which bounds generation.");
  model_options.declare(options);
  w.state.declare(options);
  options.text("shape", "SHAPE", w.shape, "0.1b, 0.4b, 1.5b, 2.9b or 7.2b: random weights in the shape of a released model, no file")
      .number<float>("relu2", "F", w.relu2, 1e-4f, 1, "with --shape: the share of relu^2 activations that are not zero (default: about half)");
  options.section("Measurements")
      .numbers("prompt-tokens", "N,..", w.prompt_tokens, 1, 1u << 24, "lengths of the prompts (default: 512)")
      .numbers("batch", "N,..", w.batch, 1, 1u << 16, "sequences that generate at once (default: 1)")
      .number<uint32_t>("gen-tokens", "N", w.gen_tokens, 1, 1u << 24, "steps of each generation (default: 64)")
      .number<uint32_t>("repeat", "N", w.repeat, 1, 1000, "measure N times and take the median (default: 3)");
  options.section("Run");
  library_options.declare_with_layers(options);
  options.flag("json", w.json, "the figures as JSON");
  if (!options.parse(arguments)) return;
  options.exclude("model", "shape");
  if (options.given("relu2") && w.shape.empty()) throw Usage("--relu2 needs --shape: a file's activations are what they are");

  const uint32_t threads = library_options.threads > 0 ? library_options.threads : physical_cores();
  const double begin = seconds_now();
  const Library library = library_options.open();
  const Model model = open_model(library.get(), model_options, w, library_options.quiet);
  const Figures figures = measure(library.get(), model.get(), w, threads, seconds_now() - begin, library_options.quiet);
  const std::string name = w.shape.empty() ? model_options.path : "random weights, shape " + w.shape;
  write_out((w.json ? as_json : as_text)(figures, info_of(model.get()), name, w, threads));
}

}  // namespace duet
