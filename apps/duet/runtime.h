// The options that several subcommands share, and the library, model and tokenizer made from them.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api.h"
#include "options.h"

namespace duet {

struct LibraryOptions {
  uint32_t threads = 0;
  std::string plugin_path, layers;
  bool quiet = false;
  void declare(Options& options);  // --threads --plugin-path --quiet
  void declare_with_layers(Options& options);  // and --layers, where a model runs
  Library open() const;                        // Failure where a model runs and --plugin-path gives no plugin
 private:
  bool runs_a_model_ = false;
};

struct FileOptions {
  bool strict = false, verify = false;
  void declare(Options& options);  // --strict --verify
  uint32_t flags() const { return strict * uint32_t{DUET_FILE_STRICT} | verify * uint32_t{DUET_FILE_VERIFY}; }
};

struct ModelOptions {
  std::string path, backend;
  duet_dtype dtype = 0;
  FileOptions file;
  void declare(Options& options);          // --model and declare_device
  void declare_device(Options& options);   // --backend --dtype --strict --verify
  const std::string& choose();             // path, after the default has been filled in
  Model load(duet_library* library, bool quiet);
  duet_model_options fields() const;
};

struct StateOptions {
  duet_dtype wkv = DUET_F32;
  void declare(Options& options);  // --state
  State create(duet_model* model, uint32_t n_slots = 1) const;
};

Tokenizer open_tokenizer(duet_library* library, const std::string& vocab, duet_model* model);  // the model's own without `vocab`
std::vector<int32_t> encode(duet_tokenizer* tokenizer, std::string_view text, std::vector<int32_t> before = {});  // `before`, then the text's tokens
duet_model_info info_of(duet_model* model);
// What to do about logits that are no numbers, as the end of a sentence.
std::string not_finite_hint(const std::string& model);
const char* dtype_name(duet_dtype dtype);
std::string bytes_text(uint64_t bytes);  // "14.2 MiB"

double seconds_now();  // of a steady clock

}  // namespace duet
