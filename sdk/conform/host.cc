#include "conform/host.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/environment.h"
#include "duet_interpose.h"

extern "C" const duetp_plugin duet_reference_plugin;  // backends/reference

namespace conform {

Host::Host(std::string id, uint32_t n_threads) : id_(std::move(id)), team_(n_threads) {
  table_.size = sizeof table_;
  table_.abi = DUETP_ABI;
  table_.self = this;
  table_.alloc = [](void* self, size_t bytes, size_t align) -> void* {
    Host& h = *static_cast<Host*>(self);
    void* p = nullptr;
    if (bytes > h.memory_limit || ::posix_memalign(&p, align < sizeof p ? sizeof p : align, bytes) != 0) return nullptr;
    ++h.live_;
    return p;
  };
  table_.free = [](void* self, void* p) {
    if (p) --static_cast<Host*>(self)->live_;
    ::free(p);
  };
  table_.log = [](void*, int32_t, const char*) {};
  table_.fail = [](void* self, duet_status code, const char* text) {
    static_cast<Host*>(self)->sentence = text ? text : "";
    return code;
  };
  table_.option = [](void* self, const char* key) -> const char* { return static_cast<Host*>(self)->option(key); };
  table_.team_size = [](void* self) { return static_cast<Host*>(self)->team_.size(); };
  table_.team = [](void* self, void (*fn)(void*, uint32_t, uint32_t), void* ctx) { static_cast<Host*>(self)->team_.run(fn, ctx); };
  table_.barrier = [](void* self) { static_cast<Host*>(self)->team_.barrier(); };
  table_.extension = [](void*, const char* id) -> const void* { return std::strcmp(id, DUETP_EXT_REFERENCE) == 0 ? &duet_reference_plugin : nullptr; };
}

const char* Host::option(const std::string& key) {
  std::string name = "DUET_" + id_ + "_" + key;
  for (char& c : name)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  const std::string& value = options_[key] = duet::environment(name.c_str());
  return value.empty() ? nullptr : value.c_str();
}

}  // namespace conform
