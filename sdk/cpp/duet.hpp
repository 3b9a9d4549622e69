// duet.hpp - RWKV-7 in two modes, for C++20: duet.h with owners, exceptions, spans and functions. Header-only.
//
// Contents: errors and enumerations, Library, Model, Tokenizer, State, Session, Sampler, generation
//
// Rules that hold for every function, so that they are not repeated below
//  - A failed call throws duet::Error, with the status and the library's sentence. Nothing has changed then, unless duet.h says so.
//  - Owners (Library, Model, ...) can be moved, not copied. They may be destroyed in any order: what is still needed stays alive.
//    A call on an owner that was moved from throws Error with DUET_E_HANDLE.
//  - Threads: const members may be called from any threads at once. State, Session and Sampler: one call at a time; a second
//    caller, or a call from inside the object's own callback, gets Error with DUET_E_BUSY. To move or destroy an owner while
//    another thread uses it is a data race, as with any C++ object.
//  - Functions that the library calls run on the calling thread (but for the log). An exception in one stops the call and
//    is thrown again by it; no exception crosses the C interface, and the function is not called again.
//  - Spans are borrowed for the call when they go in. Lengths are checked before the library sees them.
//  - Text is UTF-8. Shapes are row-major: V vocabulary, C width, L layers, H heads of N channels.
//
// duet.h says what each option means; the names are the same. Since 0.1.
#ifndef DUET_HPP
#define DUET_HPP
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "duet.h"

namespace duet {

// ---- errors and enumerations ----------------------------------------------------------------------------------------

// A call of the library failed. what() is its sentence.
class Error : public std::runtime_error {
 public:
  // For what this header itself refuses, with the same statuses.
  Error(duet_status status, const std::string& sentence) : std::runtime_error(sentence), status_(status) {}
  duet_status status() const noexcept { return status_; }  // DUET_E_*
  const char* name() const noexcept { return duet_status_name(status_); }  // "DUET_E_ABI"

 private:
  duet_status status_;
};

// Of a model's matrices; as_stored leaves them as in the file.
enum class Dtype : duet_dtype { as_stored = 0, f32 = DUET_F32, f16 = DUET_F16, bf16 = DUET_BF16, q8 = DUET_I8, q4 = DUET_I4 };
// How a session computes.
enum class Mode : duet_mode { automatic = DUET_MODE_AUTO, recurrent = DUET_MODE_RECURRENT, parallel = DUET_MODE_PARALLEL };
// The least that is logged; standard = warnings and errors.
enum class LogLevel : int32_t {
  standard = 0,
  debug = DUET_LOG_DEBUG,
  info = DUET_LOG_INFO,
  warning = DUET_LOG_WARNING,
  error = DUET_LOG_ERROR,
  off = DUET_LOG_OFF
};
// Of a device.
enum class DeviceKind : uint32_t { cpu = 0, integrated_gpu = 1, gpu = 2, other = 3 };
// Why a generation ended.
enum class Finish : uint32_t {
  length = DUET_FINISH_LENGTH,
  stop_token = DUET_FINISH_STOP_TOKEN,
  stop_text = DUET_FINISH_STOP_TEXT,
  callback = DUET_FINISH_CALLBACK,
  cancelled = std::numeric_limits<uint32_t>::max(),  // DUET_E_CANCELLED: somebody asked for it, so it is no error here
  numeric = cancelled - 1  // DUET_E_NUMERIC, of generate_batch: no logits to draw from, and the slot is undefined. The others went on
};

using LogFunction = std::function<void(LogLevel level, std::string_view message)>;  // [any-thread]; what it throws is dropped
using Progress = std::function<bool(uint64_t done, uint64_t total)>;                // bytes; false stops: Error with DUET_E_CANCELLED

// Of the library that the program runs against, which may be newer than this header: "0.1.0 (GNU 12.2.0, x86_64)".
inline std::string version() { return duet_version_string(); }

namespace detail {

inline void check(duet_status status) {
  if (status == DUET_OK) return;
  const char* sentence = duet_last_error();
  throw Error(status, *sentence ? sentence : duet_status_name(status));
}
[[noreturn]] inline void invalid(const std::string& sentence) { throw Error(DUET_E_INVALID, sentence); }

// For the C interface, where a string ends at its first NUL: no other may be in it.
inline const char* c_string(const std::string& text, const char* name) {
  if (text.find('\0') != std::string::npos) invalid(std::string(name) + " holds a NUL character; take it out");
  return text.c_str();
}
inline const char* c_string_or_null(const std::string& text, const char* name) { return text.empty() ? nullptr : c_string(text, name); }

inline uint32_t count(size_t n, const char* name) {
  if (n > std::numeric_limits<uint32_t>::max()) throw Error(DUET_E_LIMIT, std::string(name) + ": " + std::to_string(n) + " are more than 32 bits can count");
  return static_cast<uint32_t>(n);
}
inline void same_length(size_t got, size_t want, const char* name) {
  if (got != want) invalid(std::string(name) + " has " + std::to_string(got) + " elements; " + std::to_string(want) + " are needed");
}

// What `get(dst, cap, &size)` gives, by the two calls of duet.h.
template <class Container, class Get>
Container sized(Get get) {
  Container out;
  size_t size = 0;
  check(get(nullptr, size_t{0}, &size));
  do {  // it may have grown in between
    out.resize(size);
    if (const duet_status status = get(out.data(), out.size(), &size); status != DUET_E_SMALL) check(status);
  } while (size > out.size());
  out.resize(size);
  return out;
}

// Runs users' functions inside a C callback, which no exception may leave.
class Callbacks {
 public:
  // `function` returns whether to go on. After it threw, it and its fellows are not called again.
  template <class F>
  duet_status run(F&& function) noexcept {
    if (thrown_) return DUET_E_CANCELLED;
    try {
      return function() ? DUET_OK : DUET_E_CANCELLED;
    } catch (...) {
      thrown_ = std::current_exception();
      return DUET_E_CANCELLED;
    }
  }
  // After the C call: first what a function threw, then what the call says.
  void check(duet_status status) const {
    if (thrown_) std::rethrow_exception(thrown_);
    detail::check(status);
  }

 private:
  std::exception_ptr thrown_;
};

class ProgressCallback : public Callbacks {
 public:
  explicit ProgressCallback(const Progress& progress) : progress_(progress) {}
  template <class Options>
  void set(Options& options) {
    if (!progress_) return;
    options.progress = [](void* user, uint64_t done, uint64_t total) -> duet_status {
      auto& self = *static_cast<ProgressCallback*>(user);
      return self.run([&] { return self.progress_(done, total); });
    };
    options.progress_user = this;
  }

 private:
  const Progress& progress_;
};

// A library lives until the last object made from it is gone, and may log until then: each of them shares its log function.
using LogOwner = std::shared_ptr<const LogFunction>;

// Owns one handle. The log function goes after the handle.
template <class T, void (*Free)(T*)>
class Owner {
 public:
  T* handle() const noexcept { return handle_.get(); }  // borrowed, for calls of duet.h; NULL after a move

 protected:
  struct Freed {
    void operator()(T* handle) const noexcept { Free(handle); }
  };
  // create(&handle) makes it.
  template <class Create>
  Owner(LogOwner log, Create create) : log_(std::move(log)) {
    T* made = nullptr;
    detail::check(create(&made));
    handle_.reset(made);
  }
  Owner(Owner&&) noexcept = default;
  Owner& operator=(Owner&& other) noexcept {
    handle_ = std::move(other.handle_);
    log_ = std::move(other.log_);
    return *this;
  }
  ~Owner() = default;

  LogOwner log_;
  std::unique_ptr<T, Freed> handle_;
};

// For options in which NULL would mean "none".
template <class Object>
auto* live(const Object& object, const char* what) {
  if (!object.handle()) throw Error(DUET_E_HANDLE, std::string(what) + " was moved from");
  return object.handle();
}

}  // namespace detail

// ---- library --------------------------------------------------------------------------------------------------------

// Options of Library.
struct LibraryOptions {
  uint32_t n_threads = 0;        // 0 = the physical cores that the process may use
  std::string plugin_path = {};  // empty = the default search
  LogFunction log = {};          // empty = standard error
  LogLevel log_level = LogLevel::standard;  // the least that is logged
  std::string layers = {};                  // "validate,trace": interposing layers around the devices of models
};
// What a plugin says of one of its devices.
struct Device {
  DeviceKind kind{};                                      // CPU, GPU, ...
  std::string spec, name, plugin;                         // "cpu:0", "AMD EPYC", path or "built in"
  uint64_t mem_total = 0, mem_free = 0, bytes_per_s = 0;  // bytes; 0 = unknown
};
// Options of Library::convert.
struct ConvertOptions {
  Dtype weights = Dtype::as_stored;  // of the matrices
  bool overwrite = false;            // false: an existing output is DUET_E_EXISTS
  uint32_t flags = 0;                // DUET_FILE_*
  Progress progress = {};            // empty = none
};
// Options of Library::init.
struct InitOptions {
  uint32_t n_layer = 0, n_embd = 0, n_vocab = 0;  // required
  uint32_t head_size = 0;                         // 0 = 64
  Dtype weights = Dtype::f32;                     // of the matrices
  bool overwrite = false;                         // false: an existing output is DUET_E_EXISTS
  uint64_t seed = 0;                              // the same seed gives the same file
};

// Finds plugins, owns the threads and the log.
class Library : public detail::Owner<duet_library, duet_library_free> {
 public:
  // Starts the threads; looks for no plugin yet.
  explicit Library(const LibraryOptions& options = {}) : Library(options, options.log ? std::make_shared<const LogFunction>(options.log) : nullptr) {}

  // Every plugin that was considered, and why it was or was not taken: JSON. Opens all plugins.
  std::string report() const {
    return detail::sized<std::string>([this](char* dst, size_t cap, size_t* size) { return duet_library_report(handle(), dst, cap, size); });
  }
  // Ranked, the best first.
  std::vector<Device> devices() const {
    uint32_t n = 0;
    detail::check(duet_device_count(handle(), &n));
    std::vector<Device> out;
    for (uint32_t i = 0; i < n; ++i) {
      auto d = DUET_INIT(duet_device_info);
      detail::check(duet_device_get(handle(), i, &d));
      out.push_back({static_cast<DeviceKind>(d.kind), d.spec, d.name, d.plugin, d.mem_total, d.mem_free, d.bytes_per_s});
    }
    return out;
  }
  // What a model or state file holds: JSON. `flags` are DUET_FILE_*.
  std::string file_info(const std::filesystem::path& path, uint32_t flags = 0) const {
    const char* name = detail::c_string(path.native(), "path");
    return detail::sized<std::string>([&](char* dst, size_t cap, size_t* size) { return duet_file_info(handle(), name, flags, dst, cap, size); });
  }
  // Rewrites a model as safetensors.
  void convert(const std::filesystem::path& in, const std::filesystem::path& out, const ConvertOptions& options = {}) const {
    detail::ProgressCallback progress(options.progress);
    auto o = DUET_INIT(duet_convert_options);
    o.weights = static_cast<duet_dtype>(options.weights);
    o.overwrite = options.overwrite;
    o.flags = options.flags;
    progress.set(o);
    progress.check(duet_file_convert(handle(), detail::c_string(in.native(), "in"), detail::c_string(out.native(), "out"), &o));
  }
  // Writes a fresh model with the official initialisation.
  void init(const std::filesystem::path& out, const InitOptions& options) const {
    auto o = DUET_INIT(duet_init_options);
    o.n_layer = options.n_layer, o.n_embd = options.n_embd, o.n_vocab = options.n_vocab, o.head_size = options.head_size;
    o.weights = static_cast<duet_dtype>(options.weights);
    o.overwrite = options.overwrite;
    o.seed = options.seed;
    detail::check(duet_file_init(handle(), detail::c_string(out.native(), "out"), &o));
  }

 private:
  friend class Model;
  friend class Tokenizer;
  Library(const LibraryOptions& options, const detail::LogOwner& log)
      : Owner(log, [&](duet_library** out) {
          auto o = DUET_INIT(duet_library_options);
          o.n_threads = options.n_threads;
          o.plugin_path = detail::c_string_or_null(options.plugin_path, "plugin_path");
          o.log_level = static_cast<int32_t>(options.log_level);
          o.layers = detail::c_string_or_null(options.layers, "layers");
          if (log) {
            o.log_user = const_cast<LogFunction*>(log.get());
            o.log = [](void* user, int32_t level, const char* message) {
              try {
                (*static_cast<const LogFunction*>(user))(static_cast<LogLevel>(level), message);
              } catch (...) {  // on whichever thread: there is no call of the user's that could throw it again
              }
            };
          }
          return duet_library_create(&o, out);
        }) {}
};

// ---- model ----------------------------------------------------------------------------------------------------------

// Options of Model::load and Model::random.
struct ModelOptions {
  Dtype weights = Dtype::as_stored;  // of the matrices on the device
  std::string device = {};           // "cpu", "cuda:1"; empty = DUET_BACKEND, else the best device that can run the model
  uint32_t flags = 0;                // DUET_FILE_*
  Progress progress = {};            // empty = none
};
// Options of Model::random.
struct RandomOptions {
  std::string shape = "0.1b";  // "0.1b" "0.4b" "1.5b" "2.9b" "7.2b"
  float relu2 = 0;              // share of relu^2 activations that are not zero; 0 = about half
  uint64_t seed = 0;            // the same seed gives the same weights
};
// What Model::info tells.
struct ModelInfo {
  uint32_t n_layer = 0, n_embd = 0, n_head = 0, head_size = 0, n_ffn = 0, n_vocab = 0;  // L, C, H, N, width of the channel mix, V
  uint32_t rank_w = 0, rank_a = 0, rank_v = 0, rank_g = 0;  // of the low-rank pairs
  Dtype weights{};                                          // of the matrices on the device
  uint64_t n_params = 0;                                    // numbers in all tensors
  uint64_t weight_bytes = 0, bytes_per_token = 0, state_bytes = 0;  // in memory; read for one token; of one sequence's state, f32
  std::string device;  // "cpu:0"
};

// Immutable weights on one device.
class Model : public detail::Owner<duet_model, duet_model_free> {
 public:
  // From a .pth, a .safetensors or a folder.
  static Model load(const Library& library, const std::filesystem::path& path, const ModelOptions& options = {}) {
    return Model(library, options, [&](const duet_model_options* o, duet_model** out) {
      return duet_model_load(library.handle(), detail::c_string(path.native(), "path"), o, out);
    });
  }
  // Random weights at trained-like scale, for measuring speed without a file.
  static Model random(const Library& library, const RandomOptions& random, const ModelOptions& options = {}) {
    auto r = DUET_INIT(duet_random_options);
    r.shape = detail::c_string(random.shape, "shape");
    r.relu2 = random.relu2;
    r.seed = random.seed;
    return Model(library, options, [&](const duet_model_options* o, duet_model** out) { return duet_model_random(library.handle(), &r, o, out); });
  }
  // As safetensors, atomically, over an existing file.
  void save(const std::filesystem::path& path) const { detail::check(duet_model_save(handle(), detail::c_string(path.native(), "path"))); }

  // Shape, dtype and sizes.
  ModelInfo info() const {
    auto i = DUET_INIT(duet_model_info);
    detail::check(duet_model_get(handle(), &i));
    return {
        i.n_layer,  i.n_embd,       i.n_head,          i.head_size,   i.n_ffn, i.n_vocab, i.rank_w, i.rank_a, i.rank_v, i.rank_g, static_cast<Dtype>(i.weights),
        i.n_params, i.weight_bytes, i.bytes_per_token, i.state_bytes, i.device};
  }

 private:
  friend class State;
  friend class Session;
  template <class Make>
  Model(const Library& library, const ModelOptions& options, Make make)
      : Owner(library.log_, [&](duet_model** out) {
          detail::ProgressCallback progress(options.progress);
          auto o = DUET_INIT(duet_model_options);
          o.weights = static_cast<duet_dtype>(options.weights);
          o.device = detail::c_string_or_null(options.device, "device");
          o.flags = options.flags;
          progress.set(o);
          const duet_status status = make(&o, out);
          progress.check(status);
          return status;
        }) {}
};

// ---- tokenizer ------------------------------------------------------------------------------------------------------

// Token 0 ends a text, and begins one; text never becomes token 0.
class Tokenizer : public detail::Owner<duet_tokenizer, duet_tokenizer_free> {
 public:
  // The World vocabulary that ships with Duet.
  explicit Tokenizer(const Library& library) : Owner(library.log_, [&](duet_tokenizer** out) { return duet_tokenizer_load(library.handle(), nullptr, out); }) {}
  // A vocabulary in World format.
  Tokenizer(const Library& library, const std::filesystem::path& path)
      : Owner(library.log_, [&](duet_tokenizer** out) { return duet_tokenizer_load(library.handle(), detail::c_string(path.native(), "path"), out); }) {}
  // vocab.txt beside the model, else the World vocabulary where V = 65536.
  static Tokenizer for_model(const Model& model) { return Tokenizer(model); }

  uint32_t size() const {  // largest id + 1
    uint32_t n = 0;
    detail::check(duet_tokenizer_size(handle(), &n));
    return n;
  }
  std::vector<int32_t> encode(std::string_view text) const {
    std::vector<int32_t> out(text.size());  // a token has at least one byte
    size_t n = 0;
    detail::check(duet_tokenizer_encode(handle(), text.data(), text.size(), out.data(), out.size(), &n));
    out.resize(n);
    return out;
  }
  // The bytes: single tokens may hold parts of a character.
  std::string decode(std::span<const int32_t> tokens) const {
    return detail::sized<std::string>(
        [&](char* dst, size_t cap, size_t* size) { return duet_tokenizer_decode(handle(), tokens.data(), tokens.size(), dst, cap, size); });
  }

 private:
  explicit Tokenizer(const Model& model) : Owner(nullptr, [&](duet_tokenizer** out) { return duet_tokenizer_for_model(model.handle(), out); }) {}
};

// ---- state ----------------------------------------------------------------------------------------------------------

// One sequence in the canonical form: att_x [L,C], wkv [L,H,N,N], ffn_x [L,C].
struct StateArrays {
  std::vector<float> att_x, wkv, ffn_x;                 // [L,C], [L,H,N,N] (value row, key column), [L,C]
  bool operator==(const StateArrays&) const = default;  // bit for bit, but for the sign of zero
};

// The whole memory of n sequences, one in each slot.
class State : public detail::Owner<duet_state, duet_state_free> {
 public:
  // Fresh slots, zero or the model's tuned state.
  explicit State(const Model& model, uint32_t n_slots = 1, Dtype wkv = Dtype::f32)
      : Owner(model.log_,
              [&](duet_state** out) {
                auto o = DUET_INIT(duet_state_options);
                o.wkv = static_cast<duet_dtype>(wkv);
                return duet_state_create(model.handle(), n_slots, &o, out);
              }),
        n_slots_(n_slots) {
    const ModelInfo i = model.info();
    n_x_ = size_t{i.n_layer} * i.n_embd;
    n_wkv_ = n_x_ * i.head_size;
  }

  uint32_t n_slots() const noexcept { return n_slots_; }  // slots are 0 .. n_slots - 1
  size_t x_size() const noexcept { return n_x_; }      // elements of att_x and of ffn_x: L*C
  size_t wkv_size() const noexcept { return n_wkv_; }  // elements of wkv: L*H*N*N

  void reset(uint32_t slot = 0) { detail::check(duet_state_reset(handle(), slot)); }  // as fresh
  // Fork or move: also from a state of another model object, device or dtype of one shape.
  void copy_from(State& source, uint32_t source_slot = 0, uint32_t slot = 0) { detail::check(duet_state_copy(handle(), slot, source.handle(), source_slot)); }

  // A copy.
  StateArrays get(uint32_t slot = 0) {
    StateArrays out{std::vector<float>(n_x_), std::vector<float>(n_wkv_), std::vector<float>(n_x_)};
    get(slot, out.att_x, out.wkv, out.ffn_x);
    return out;
  }
  // Into caller's memory; an empty span skips its part.
  void get(uint32_t slot, std::span<float> att_x, std::span<float> wkv, std::span<float> ffn_x) {
    detail::check(duet_state_get(handle(), slot, part(att_x, n_x_, "att_x"), part(wkv, n_wkv_, "wkv"), part(ffn_x, n_x_, "ffn_x")));
  }
  // Refuses numbers that are not finite. An empty span keeps its part.
  void set(uint32_t slot, std::span<const float> att_x, std::span<const float> wkv, std::span<const float> ffn_x) {
    detail::check(duet_state_set(handle(), slot, part(att_x, n_x_, "att_x"), part(wkv, n_wkv_, "wkv"), part(ffn_x, n_x_, "ffn_x")));
  }
  // All three parts at once.
  void set(uint32_t slot, const StateArrays& arrays) { set(slot, arrays.att_x, arrays.wkv, arrays.ffn_x); }

  // A safetensors file, in memory.
  std::vector<std::byte> save(uint32_t slot = 0) {
    return detail::sized<std::vector<std::byte>>([&](std::byte* dst, size_t cap, size_t* size) { return duet_state_save(handle(), slot, dst, cap, size); });
  }
  // From one in memory, or an official state file's bytes. A failed load leaves the slot as it was.
  void load(uint32_t slot, std::span<const std::byte> file) { detail::check(duet_state_load(handle(), slot, file.data(), file.size())); }
  // On disk, atomically, over an existing file.
  void save_file(uint32_t slot, const std::filesystem::path& path) {
    detail::check(duet_state_save_file(handle(), slot, detail::c_string(path.native(), "path")));
  }
  // From disk; as load().
  void load_file(uint32_t slot, const std::filesystem::path& path) {
    detail::check(duet_state_load_file(handle(), slot, detail::c_string(path.native(), "path")));
  }

 private:
  template <class T>
  static T* part(std::span<T> given, size_t want, const char* name) {
    if (given.empty()) return nullptr;
    detail::same_length(given.size(), want, name);
    return given.data();
  }
  uint32_t n_slots_;
  size_t n_x_ = 0, n_wkv_ = 0;
};

// ---- sampler --------------------------------------------------------------------------------------------------------

// The defaults are those of duet_sampler_options_default; every value is literal.
struct SamplerOptions {
  uint32_t top_k = 0;     // 0 = no cut
  float temperature = 1;  // 0 = greedy
  float top_p = 1, min_p = 0;                         // 1 and 0 = no cut
  float presence = 0, frequency = 0, decay = 0.996f;  // logit -= presence + count * frequency for tokens drawn before; counts *= decay each step
  uint64_t seed = 0, sequence = 0;                    // the draws depend on them and on the number of tokens drawn alone
  std::vector<std::pair<int32_t, float>> bias = {};  // token, and what is added to its logit; -infinity bans it
  const Tokenizer* tokenizer = nullptr;              // digits and blanks then count 0; needed for the constructor only
};

// Draws tokens, and counts those drawn for its penalties.
class Sampler : public detail::Owner<duet_sampler, duet_sampler_free> {
 public:
  // As freshly reset.
  explicit Sampler(const SamplerOptions& options = {})
      : Owner(nullptr, [&](duet_sampler** out) {
          std::vector<int32_t> tokens;
          std::vector<float> bias;
          for (const auto& [token, value] : options.bias) tokens.push_back(token), bias.push_back(value);
          auto o = DUET_INIT(duet_sampler_options);
          o.top_k = options.top_k;
          o.temperature = options.temperature;
          o.top_p = options.top_p, o.min_p = options.min_p;
          o.presence = options.presence, o.frequency = options.frequency, o.decay = options.decay;
          o.seed = options.seed, o.sequence = options.sequence;
          o.n_bias = detail::count(tokens.size(), "bias");
          o.bias_tokens = tokens.data(), o.bias = bias.data();
          if (options.tokenizer) o.tokenizer = detail::live(*options.tokenizer, "the tokenizer of the sampler's options");
          return duet_sampler_create(&o, out);
        }) {}

  // [V] -> [V]: what pick() would draw from.
  std::vector<float> probs(std::span<const float> logits) {
    std::vector<float> out(logits.size());
    probs(logits, out);
    return out;
  }
  // Into caller's memory of the same length.
  void probs(std::span<const float> logits, std::span<float> out) {
    detail::same_length(out.size(), logits.size(), "out");
    detail::check(duet_sampler_probs(handle(), logits.data(), detail::count(logits.size(), "logits"), out.data()));
  }
  int32_t pick(std::span<const float> logits) {  // draws and accepts
    int32_t token = 0;
    detail::check(duet_sampler_pick(handle(), logits.data(), detail::count(logits.size(), "logits"), &token));
    return token;
  }
  void accept(int32_t token) { detail::check(duet_sampler_accept(handle(), token)); }  // counts a token that was chosen elsewhere
  void reset() { detail::check(duet_sampler_reset(handle())); }                        // as freshly created
};

// ---- session and generation -----------------------------------------------------------------------------------------

// Options of Session.
struct SessionOptions {
  Mode mode = Mode::automatic;  // fixed
  uint32_t max_tokens = 0;      // of one pass; 0 = 512 on a CPU, 2048 on a GPU
};
// Tokens of several sequences.
struct Batch {
  std::span<const int32_t> tokens = {};    // packed: those of sequence 0, then of sequence 1, ...
  std::span<const uint32_t> lengths = {};  // [n_seqs], their sum is the number of tokens; empty = one token each
  std::span<const uint32_t> slots = {};    // [n_seqs], distinct; empty = 0, 1, 2, ...
};
// What a forward computes besides the state.
struct Outputs {
  bool all_rows = false;  // a row per token; else one per sequence that has tokens
  bool logits = true;    // [rows,V]
  bool hidden = false;   // the last hidden state, after ln_out
  bool v_first = false;  // layer 0's value vector, always a row per token
};
// [n_rows, width], borrowed from the session until its next call that computes, or its end.
struct Rows {
  std::span<const float> data;     // n_rows * width
  uint32_t n_rows = 0, width = 0;  // width: V for logits, else C
  // One row; Error with DUET_E_INVALID if there is no such.
  std::span<const float> operator[](uint32_t row) const {
    if (row >= n_rows) detail::invalid("row " + std::to_string(row) + " of an output with " + std::to_string(n_rows) + " rows");
    return data.subspan(size_t{row} * width, width);
  }
};

// Stops generations: from any thread, from a callback, from a signal handler. It must outlive the calls that it is given to.
class Cancel {
 public:
  Cancel() = default;
  Cancel(const Cancel&) = delete;
  Cancel& operator=(const Cancel&) = delete;
  void request() noexcept { std::atomic_ref(flag_).store(1, std::memory_order_relaxed); }           // stop
  void clear() noexcept { std::atomic_ref(flag_).store(0, std::memory_order_relaxed); }             // go on, for the next call
  bool requested() noexcept { return std::atomic_ref(flag_).load(std::memory_order_relaxed) != 0; }  // since the last clear()

 private:
  friend class Session;
  static_assert(std::atomic_ref<int32_t>::is_always_lock_free, "a signal handler may store it");
  alignas(std::atomic_ref<int32_t>::required_alignment) int32_t flag_ = 0;
};

// Options of Session::generate, and of a sequence of generate_batch.
struct GenerateOptions {
  uint32_t max_tokens = 256;             // new tokens; 0 = 256
  const Tokenizer* tokenizer = nullptr;  // needed for text
  std::vector<int32_t> stops = {0};      // tokens that end the text
  std::vector<std::string> stop_texts = {};                 // texts that end it; UTF-8, not empty
  std::function<bool(int32_t token)> on_token = {};         // false stops
  std::function<bool(std::string_view text)> on_text = {};  // whole characters, never part of a stop text; false stops
  const Cancel* cancel = nullptr;                           // needed for the call only
};
// What Session::generate did, and generate_batch for one sequence.
struct GenerateResult {
  Finish finish{};                   // why it ended
  uint64_t n_prompt = 0, n_new = 0;  // tokens read, tokens drawn (a stop token included)
  double prompt_s = 0, new_s = 0;    // seconds; of prompts that are read together, until this one was
  std::vector<int32_t> tokens;       // drawn, without a stop token. The slot has read all of them but the last, if no stop token came
  std::string text;                  // of these tokens, up to a stop text; empty without a tokenizer
};

// A sequence of Session::generate_batch.
struct Prompt {
  std::span<const int32_t> tokens = {};  // 1 or more
  Sampler* sampler = nullptr;            // its own: no two sequences share one
  GenerateOptions options = {};          // its own, callbacks and cancel too
  std::optional<uint32_t> slot = {};     // its own; empty = its place in the batch
};

// Scratch memory, a queue and a mode. A state goes through sessions of both modes.
class Session : public detail::Owner<duet_session, duet_session_free> {
 public:
  // Scratch memory grows with the passes.
  explicit Session(const Model& model, const SessionOptions& options = {})
      : Owner(model.log_, [&](duet_session** out) {
          auto o = DUET_INIT(duet_session_options);
          o.mode = static_cast<duet_mode>(options.mode);
          o.max_tokens = options.max_tokens;
          return duet_session_create(model.handle(), &o, out);
        }) {}

  // Runs one sequence and advances its slot. Returns the logits, if wanted: [1,V], or [tokens,V] for all_rows.
  Rows forward(State& state, std::span<const int32_t> tokens, uint32_t slot = 0, const Outputs& outputs = {}) {
    const uint32_t length = detail::count(tokens.size(), "tokens");
    return forward(state, Batch{tokens, {&length, 1}, {&slot, 1}}, outputs);
  }
  // Runs a batch, and returns its logits in the order of the batch.
  Rows forward(State& state, const Batch& batch, const Outputs& outputs = {}) {
    auto b = DUET_INIT(duet_batch);
    b.n_seqs = detail::count(batch.lengths.empty() ? batch.tokens.size() : batch.lengths.size(), "lengths");
    size_t n_tokens = batch.lengths.empty() ? batch.tokens.size() : 0;
    for (const uint32_t length : batch.lengths) n_tokens += length;
    detail::same_length(batch.tokens.size(), n_tokens, "tokens");
    if (!batch.slots.empty()) detail::same_length(batch.slots.size(), b.n_seqs, "slots");
    b.tokens = batch.tokens.data();
    b.lengths = batch.lengths.empty() ? nullptr : batch.lengths.data();
    b.slots = batch.slots.empty() ? nullptr : batch.slots.data();
    if (outputs.all_rows) b.outputs |= DUET_OUT_ALL_LOGITS;
    if (!outputs.logits) b.outputs |= DUET_OUT_NO_LOGITS;
    if (outputs.hidden) b.outputs |= DUET_OUT_HIDDEN;
    if (outputs.v_first) b.outputs |= DUET_OUT_V_FIRST;
    detail::check(duet_forward(handle(), state.handle(), &b));
    return logits();
  }
  // Outputs of the last forward; no rows where they were not asked for.
  Rows logits() { return rows(DUET_OUTPUT_LOGITS); }
  Rows hidden() { return rows(DUET_OUTPUT_HIDDEN); }    // as logits()
  Rows v_first() { return rows(DUET_OUTPUT_V_FIRST); }  // as logits()

  // [n-1]: -log p(tokens[t+1] | state, tokens[0..t]), natural log. Advances the slot by all n tokens.
  std::vector<double> score(State& state, std::span<const int32_t> tokens, uint32_t slot = 0) {
    std::vector<double> nll(tokens.empty() ? 0 : tokens.size() - 1);
    static const int32_t none = 0;
    detail::check(duet_score(handle(), state.handle(), slot, tokens.empty() ? &none : tokens.data(), tokens.size(), nll.data()));
    return nll;
  }

  // Reads the prompt in the session's mode, then draws tokens recurrently.
  GenerateResult generate(State& state, Sampler& sampler, std::span<const int32_t> prompt, const GenerateOptions& options = {}, uint32_t slot = 0) {
    detail::Callbacks callbacks;
    Generation g(options, callbacks);
    const detail::LogOwner log = log_;  // a callback may destroy this session
    auto r = DUET_INIT(duet_generate_result);
    const duet_status status = duet_generate(handle(), state.handle(), slot, sampler.handle(), prompt.data(), prompt.size(), &g.c_options, &r);
    callbacks.check(status == DUET_E_CANCELLED ? DUET_OK : status);
    return g.take(status, r);
  }
  // generate() for many sequences at once: prompts are read together, then a token of every sequence is drawn in each step. One that
  // ends drops out, and the others go on; so does one that is cancelled or has no logits to draw from: its result says so, and
  // nothing is thrown. Callbacks of one sequence come in order; those of several are mixed; what one throws stops all.
  std::vector<GenerateResult> generate_batch(State& state, std::span<const Prompt> prompts) {
    detail::Callbacks callbacks;
    std::deque<Generation> generations;  // they stay where they are
    std::vector<int32_t> tokens;
    std::vector<uint32_t> lengths, slots;
    std::vector<duet_sampler*> samplers;
    std::vector<const duet_generate_options*> options;
    std::vector<duet_generate_result> results(prompts.size(), DUET_INIT(duet_generate_result));
    std::vector<duet_generate_result*> out;
    auto p = DUET_INIT(duet_prompts);
    p.n_seqs = detail::count(prompts.size(), "prompts");
    for (const Prompt& prompt : prompts) {
      const auto i = static_cast<uint32_t>(lengths.size());
      if (!prompt.sampler) detail::invalid("sequence " + std::to_string(i) + " has no sampler; each needs one of its own");
      tokens.insert(tokens.end(), prompt.tokens.begin(), prompt.tokens.end());
      lengths.push_back(detail::count(prompt.tokens.size(), "tokens"));
      slots.push_back(prompt.slot.value_or(i));
      samplers.push_back(detail::live(*prompt.sampler, "a sampler of the prompts"));
      options.push_back(&generations.emplace_back(prompt.options, callbacks).c_options);
      out.push_back(&results[i]);
    }
    static const int32_t none = 0;  // prompts that are all empty have no memory, but a better sentence
    p.tokens = tokens.empty() ? &none : tokens.data();
    p.lengths = lengths.data(), p.slots = slots.data();
    p.samplers = samplers.data(), p.options = options.data();
    const detail::LogOwner log = log_;  // as in generate()
    const duet_status status = duet_generate_batch(handle(), state.handle(), &p, out.data());
    bool of_sequences = false;  // then the others have results
    for (const duet_generate_result& r : results) of_sequences |= r.status == DUET_E_CANCELLED || r.status == DUET_E_NUMERIC;
    callbacks.check(of_sequences ? DUET_OK : status);
    std::vector<GenerateResult> taken;
    for (size_t i = 0; i < results.size(); ++i) taken.push_back(generations[i].take(results[i].status, results[i]));
    return taken;
  }

 private:
  // One sequence: its options in C, and what its callbacks collect.
  class Generation {
   public:
    Generation(const GenerateOptions& options, detail::Callbacks& callbacks) : options_(options), callbacks_(callbacks) {
      if (options.on_text && !options.tokenizer) detail::invalid("on_text needs a tokenizer: set it in the options");
      auto& o = c_options;
      o.max_tokens = options.max_tokens;
      if (options.tokenizer) o.tokenizer = detail::live(*options.tokenizer, "the tokenizer of the options");
      static const int32_t none = 0;  // NULL would mean token 0
      o.stops = options.stops.empty() ? &none : options.stops.data();
      o.n_stops = detail::count(options.stops.size(), "stops");
      for (const std::string& text : options.stop_texts) stop_texts_.push_back(detail::c_string(text, "a stop text"));
      o.stop_texts = stop_texts_.data();
      o.n_stop_texts = detail::count(stop_texts_.size(), "stop_texts");
      o.on_token = on_token;
      if (options.tokenizer) o.on_text = on_text;
      o.user = this;
      o.cancel = options.cancel ? &options.cancel->flag_ : nullptr;
    }
    Generation(const Generation&) = delete;
    Generation& operator=(const Generation&) = delete;

    GenerateResult take(duet_status status, const duet_generate_result& r) {
      result_.finish = status == DUET_E_CANCELLED ? Finish::cancelled : status == DUET_E_NUMERIC ? Finish::numeric : static_cast<Finish>(r.finish);
      result_.n_prompt = r.n_prompt, result_.n_new = r.n_new;
      result_.prompt_s = r.prompt_s, result_.new_s = r.new_s;
      return std::move(result_);
    }

    duet_generate_options c_options = DUET_INIT(duet_generate_options);

   private:
    static duet_status on_token(void* user, int32_t token) {
      auto& self = *static_cast<Generation*>(user);
      return self.callbacks_.run([&] {
        self.result_.tokens.push_back(token);
        return !self.options_.on_token || self.options_.on_token(token);
      });
    }
    static duet_status on_text(void* user, const char* text, size_t n) {
      auto& self = *static_cast<Generation*>(user);
      return self.callbacks_.run([&] {
        self.result_.text.append(text, n);
        return !self.options_.on_text || self.options_.on_text({text, n});
      });
    }
    const GenerateOptions& options_;
    detail::Callbacks& callbacks_;
    std::vector<const char*> stop_texts_;
    GenerateResult result_;
  };
  Rows rows(uint32_t output) {
    const float* data = nullptr;
    Rows out;
    detail::check(duet_session_outputs(handle(), output, &data, &out.n_rows, &out.width));
    out.data = {data, size_t{out.n_rows} * out.width};
    return out;
  }
};

}  // namespace duet
#endif
