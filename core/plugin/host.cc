#include "plugin/host.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/environment.h"
#include "duet_interpose.h"
#include "plugin/manifest.h"
#include "plugin/registry.h"

extern "C" const duetp_plugin duet_reference_plugin;  // backends/reference: compiled in

namespace duet {
namespace {

constexpr size_t kMaxSentence = 1024;

// The sentence of this thread's last duetp_host.fail, until the failed call has come back.
struct Sentence {
  duet_status code = DUET_OK;
  std::string text;
};
thread_local Sentence sentence;

std::string bounded(const char* text) {
  if (text == nullptr) return "";
  return printable({text, ::strnlen(text, kMaxSentence)}, kMaxSentence - 8);  // valid UTF-8, an ellipsis where it was cut
}

}  // namespace

Host::Host(std::string id, Team& team, const Log& log) : id_(std::move(id)), team_(team), log_(log) {
  table_.size = sizeof table_;
  table_.abi = DUETP_ABI;
  table_.self = this;
  table_.alloc = [](void*, size_t bytes, size_t align) -> void* {
    if (align == 0 || (align & (align - 1)) != 0) return nullptr;
    void* p = nullptr;
    return ::posix_memalign(&p, align < sizeof(void*) ? sizeof(void*) : align, bytes) == 0 ? p : nullptr;
  };
  table_.free = [](void*, void* p) { ::free(p); };
  table_.log = [](void* self, int32_t level, const char* text) {
    const Host& h = *static_cast<Host*>(self);
    try {
      h.log_.message(level, duet::format("{}: {}", h.id_, bounded(text)).c_str());
    } catch (...) {  // out of memory: a log must never be the reason for a failure
    }
  };
  table_.fail = [](void*, duet_status code, const char* text) {
    try {
      sentence = {code, bounded(text)};
    } catch (...) {
      sentence.code = DUET_OK;
    }
    return code;
  };
  table_.option = [](void* self, const char* key) -> const char* {
    try {
      return key ? static_cast<Host*>(self)->option(key) : nullptr;
    } catch (...) {
      return nullptr;
    }
  };
  table_.team_size = [](void* self) { return static_cast<Host*>(self)->team_.size(); };
  table_.team = [](void* self, void (*fn)(void*, uint32_t, uint32_t), void* ctx) { static_cast<Host*>(self)->team_.run(fn, ctx); };
  table_.barrier = [](void* self) { static_cast<Host*>(self)->team_.barrier(); };
  table_.extension = [](void*, const char* id) -> const void* {
    return id && std::strcmp(id, DUETP_EXT_REFERENCE) == 0 ? &duet_reference_plugin : nullptr;
  };
}

const char* Host::option(const std::string& key) {
  if (!is_plugin_id(key)) return nullptr;
  const std::lock_guard lock(mutex_);
  auto at = options_.find(key);
  if (at == options_.end()) {
    std::string name = "DUET_" + id_ + "_" + key;
    for (char& c : name)
      if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    at = options_.emplace(key, environment(name.c_str())).first;
  }
  return at->second.empty() ? nullptr : at->second.c_str();
}

void fail_plugin(const std::string& who, duet_status code) {
  const Sentence said = std::exchange(sentence, {});
  if (code > DUET_OK) fail(DUET_E_DEVICE, "{}: the plugin returned {}, which is no status", who, code);
  if (said.code == code && !said.text.empty()) fail(code, "{}: {}", who, said.text);
  fail(code, "{}: the plugin failed with status {} and gave no reason", who, code);
}

}  // namespace duet
