// A library with layers, its log, and plugins beside those of the build.
#pragma once
#include <mutex>
#include <string>
#include <vector>

#include "support/api.h"
#include "support/golden.h"

namespace layers {

using namespace api;

struct Lines {
  std::mutex mutex;
  std::vector<std::string> all;
};

// The log must outlive the library.
inline Library library(const std::string& names, Lines& log, const std::string& more_plugins = "", int32_t log_level = 0) {
  static const auto sink = [](void* user, int32_t, const char* text) {
    auto& lines = *static_cast<Lines*>(user);
    const std::lock_guard<std::mutex> lock(lines.mutex);
    lines.all.emplace_back(text);
  };
  const std::string path = DUET_PLUGINS + (more_plugins.empty() ? "" : ":" + more_plugins);
  auto o = DUET_INIT(duet_library_options);
  o.n_threads = 2;
  o.plugin_path = path.c_str();
  o.layers = names.empty() ? nullptr : names.c_str();
  o.log = sink;
  o.log_user = &log;
  o.log_level = log_level;
  duet_library* l = nullptr;
  check(duet_library_create(&o, &l));
  return Library(l);
}

inline std::string fixture(const std::string& name) { return DUET_FIXTURES "/liblayers_" + name + ".so"; }
inline std::string broken(const std::string& name) { return DUET_BROKEN "/libbroken_" + name + ".so"; }

// "" or the sentence of what failed
inline std::string fault_of_load(const Library& lib, const char* device, duet_status expected) {
  auto o = DUET_INIT(duet_model_options);
  o.device = device;
  duet_model* m = nullptr;
  const duet_status status = duet_model_load(lib.get(), golden::path("tiny.pth").c_str(), &o, &m);
  duet_model_free(m);
  CHECK(status == expected);
  return status == DUET_OK ? "" : duet_last_error();
}

inline bool says(const std::string& text, const std::string& part) {
  if (text.find(part) != text.npos) return true;
  WARN("\"" << text << "\" does not say \"" << part << "\"");
  return false;
}

// Two sequences, one token of a third, and one without tokens
inline Batch ragged() {
  const auto tokens = golden::load("tiny_golden.safetensors").at("t300.tokens").i32;
  Batch b;
  b.add({tokens.begin(), tokens.begin() + 9}, 1);
  b.add({tokens.begin() + 9, tokens.begin() + 14}, 0);
  b.add({}, 3);
  b.add({tokens.begin() + 14, tokens.begin() + 15}, 2);
  return b;
}

struct Result {
  std::vector<float> logits, hidden, v_first;
  std::vector<Arrays> states;
  bool operator==(const Result&) const = default;
};

// The batch twice, so that the second run meets the states that the first left
inline Result run(const Library& lib, const char* device, duet_dtype dtype, duet_mode mode) {
  const auto m = load(lib, golden::path("tiny.pth"), device, dtype);
  const auto s = state(m, 4);
  const auto x = session(m, mode);
  const uint32_t outputs = DUET_OUT_ALL_LOGITS | DUET_OUT_HIDDEN | DUET_OUT_V_FIRST;
  Result r;
  for (int i = 0; i < 2; ++i) r.logits = forward(x, s, ragged(), outputs);
  const auto output = [&](uint32_t which) {
    const float* data = nullptr;
    uint32_t rows = 0, width = 0;
    check(duet_session_outputs(x.get(), which, &data, &rows, &width));
    return std::vector<float>(data, data + size_t{rows} * width);
  };
  r.hidden = output(DUET_OUTPUT_HIDDEN);
  r.v_first = output(DUET_OUTPUT_V_FIRST);
  for (uint32_t slot = 0; slot < 4; ++slot) r.states.push_back(arrays(m, s, slot));
  return r;
}

}  // namespace layers
