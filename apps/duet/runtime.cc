#include "runtime.h"

#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "files.h"
#include "progress.h"

namespace duet {
namespace {

// The library goes on with what there is. Who names plugins here does not want the reference in their place.
void check_plugins(duet_library* library, const std::string& plugin_path) {
  const nlohmann::json report = nlohmann::json::parse(get_text(duet_library_report, library));
  std::string reasons;
  for (const auto& plugin : report.at("plugins")) {
    if (plugin.at("path") == "built in") continue;
    if (plugin.at("taken")) return;
    reasons += (reasons.empty() ? "" : "; ") + plugin.at("reason").get<std::string>();
  }
  throw Failure(fmt::format("--plugin-path {}: gives no plugin: {}", plugin_path, reasons.empty() ? "there are no manifests" : reasons));
}

}  // namespace

void LibraryOptions::declare(Options& options) {
  options.number<uint32_t>("threads", "N", threads, 1, 256, "threads to compute with (default: the physical cores this process may use)")
      .file("plugin-path", "LIST", plugin_path, "plugin files or folders, separated by ':'; replaces the default search")
      .flag("quiet", quiet, "no progress, statistics or warnings on standard error");
}

void LibraryOptions::declare_with_layers(Options& options) {
  declare(options);
  runs_a_model_ = true;
  options.text("layers", "NAME,..", layers, "interposing layers around the backend, the first outermost: validate, trace, canary (default: DUET_LAYERS)");
}

Library LibraryOptions::open() const {
  auto o = DUET_INIT(duet_library_options);
  o.n_threads = threads;
  o.plugin_path = plugin_path.empty() ? nullptr : plugin_path.c_str();
  o.layers = layers.empty() ? nullptr : layers.c_str();
  o.log_level = quiet ? DUET_LOG_ERROR : DUET_LOG_WARNING;
  Library library = make<Library>(duet_library_create, &o);
  if (runs_a_model_ && !plugin_path.empty()) check_plugins(library.get(), plugin_path);
  return library;
}

void FileOptions::declare(Options& options) {
  options.flag("strict", strict, "unknown tensors and weights that are not finite are errors, not warnings")
      .flag("verify", verify, "read every byte first: checksums, finite weights");
}

void ModelOptions::declare(Options& options) {
  options.section("Model").file("model", "FILE|DIR", path,
                                "official .pth, .safetensors, or a folder with config.json; told apart by content (default: the bundled stories-7m)");
  declare_device(options);
}

void ModelOptions::declare_device(Options& options) {
  options.text("backend", "NAME[:INDEX]", backend, "where to compute, see 'duet backends' (default: DUET_BACKEND, else the best there is)")
      .dtype(dtype, "f32, bf16, f16, q8 or q4: the matrices in memory (default: as stored)");
  file.declare(options);
}

const std::string& ModelOptions::choose() {
  if (path.empty()) {
    path = default_model();
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) throw Failure("the bundled model is not at " + path + "; give --model");
  }
  return path;
}

duet_model_options ModelOptions::fields() const {
  auto o = DUET_INIT(duet_model_options);
  o.weights = dtype;
  o.device = backend.empty() ? nullptr : backend.c_str();
  o.flags = file.flags();
  return o;
}

Model ModelOptions::load(duet_library* library, bool quiet) {
  Progress progress("loading " + std::filesystem::path(choose()).filename().string(), quiet);
  duet_model_options o = fields();
  o.progress = Progress::call;
  o.progress_user = &progress;
  Model model = make<Model>(duet_model_load, library, path.c_str(), &o);
  check_interrupted();
  return model;
}

void StateOptions::declare(Options& options) {
  options.choice("state", "TYPE", wkv, {{"f32", DUET_F32}, {"f16", DUET_F16}, {"bf16", DUET_BF16}}, "f32, f16 or bf16: the state's matrices in memory (default: f32)");
}

State StateOptions::create(duet_model* model, uint32_t n_slots) const {
  auto o = DUET_INIT(duet_state_options);
  o.wkv = wkv;
  return make<State>(duet_state_create, model, n_slots, &o);
}

Tokenizer open_tokenizer(duet_library* library, const std::string& vocab, duet_model* model) {
  if (vocab.empty()) {
    duet_tokenizer* own = nullptr;
    const duet_status status = duet_tokenizer_for_model(model, &own);
    if (status == DUET_E_NOT_FOUND) throw Failure(fmt::format("{}; --vocab FILE names a vocabulary", duet_last_error()));
    check(status);
    return Tokenizer(own);
  }
  Tokenizer tokenizer = make<Tokenizer>(duet_tokenizer_load, library, vocab.c_str());
  uint32_t n_vocab = 0;
  check(duet_tokenizer_size(tokenizer.get(), &n_vocab));
  const duet_model_info info = info_of(model);
  if (n_vocab > info.n_vocab) throw Failure(fmt::format("{}: has ids up to {}, the model's vocabulary ends at {}; it belongs to another model", vocab, n_vocab - 1, info.n_vocab - 1));
  constexpr uint32_t kMaxUnused = 64;  // rows that pad a model's vocabulary, as for the one beside a model
  if (info.n_vocab - n_vocab > kMaxUnused)
    throw Failure(fmt::format("{}: has ids up to {}, but the model has {} rows (at most {} more than tokens are expected); it belongs to another model", vocab, n_vocab - 1, info.n_vocab, kMaxUnused));
  return tokenizer;
}

std::vector<int32_t> encode(duet_tokenizer* tokenizer, std::string_view text, std::vector<int32_t> before) {
  const size_t begin = before.size();
  before.resize(begin + text.size());  // a token has at least one byte
  size_t n = 0;
  check(duet_tokenizer_encode(tokenizer, text.data(), text.size(), before.data() + begin, text.size(), &n));
  before.resize(begin + n);
  return before;
}

duet_model_info info_of(duet_model* model) {
  auto info = DUET_INIT(duet_model_info);
  check(duet_model_get(model, &info));
  return info;
}

std::string not_finite_hint(const std::string& model) { return fmt::format("'duet info --verify {}' names weights that are not finite", model); }

const char* dtype_name(duet_dtype dtype) {
  switch (dtype) {
    case DUET_F32: return "f32";
    case DUET_F16: return "f16";
    case DUET_BF16: return "bf16";
    case DUET_I8: return "q8";
    case DUET_I4: return "q4";
    default: return "mixed";
  }
}

std::string bytes_text(uint64_t bytes) {
  constexpr const char* units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  auto value = static_cast<double>(bytes);
  while (value >= 1024 && unit + 1 < std::size(units)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} {}", value, units[unit]);
}

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace duet
