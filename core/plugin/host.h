// What the host gives to one plugin (duetp_host), and how it calls it: no exception of a plugin comes through.
#pragma once
#include <exception>
#include <map>
#include <mutex>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "base/team.h"
#include "duet_plugin.h"

namespace duet {

class Host {
 public:
  Host(std::string id, Team& team, const Log& log);
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;
  const duetp_host* table() const { return &table_; }
  // From now on its infos are shown where warnings are: it is there because somebody asked for what it has to say.
  void be_heard() { log_ = log_.with_infos(); }

 private:
  const char* option(const std::string& key);  // DUET_<ID>_<KEY> of the environment

  std::string id_;
  Team& team_;
  Log log_;
  duetp_host table_{};
  std::mutex mutex_;
  std::map<std::string, std::string> options_;
};

// Runs call() of the plugin `who`; an exception becomes DUET_E_DEVICE with a sentence.
template <class Call>
auto call_plugin(const std::string& who, const char* what, Call&& call) {
  try {
    return call();
  } catch (const std::exception& e) {
    fail(DUET_E_DEVICE, "{}: {} threw an exception: {}", who, what, printable(e.what(), 300));
  } catch (...) {
    fail(DUET_E_DEVICE, "{}: {} threw an exception", who, what);
  }
}

}  // namespace duet
