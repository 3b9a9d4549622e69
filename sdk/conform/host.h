// What the kit gives to a plugin as its host: a thread team of its own, memory that is counted, the last sentence of a failure.
#pragma once
#include <atomic>
#include <cstddef>
#include <map>
#include <string>

#include "base/team.h"
#include "duet_plugin.h"

namespace conform {

class Host {
 public:
  Host(std::string id, uint32_t n_threads);
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  const duetp_host* table() const { return &table_; }
  long live() const { return live_; }  // allocations that the plugin has not given back

  std::string sentence;            // of the last failure
  size_t memory_limit = SIZE_MAX;  // of one allocation

 private:
  const char* option(const std::string& key);  // DUET_<ID>_<KEY> of the environment

  std::string id_;
  duet::Team team_;
  std::atomic<long> live_{0};
  std::map<std::string, std::string> options_;
  duetp_host table_{};
};

}  // namespace conform
