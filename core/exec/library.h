// What all objects of one duet_library share. Objects hold it by shared_ptr, so it outlives them.
#pragma once
#include <cstdint>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/team.h"
#include "plugin/registry.h"

namespace duet {

struct Library {
  Library(Log l, uint32_t n_threads, RegistryOptions options) : log(l), team(n_threads), registry(std::move(options), team, log) {}

  // After fork() the team's threads are gone and the device belongs to the parent.
  void check_process() const {
    if (::getpid() != process) fail(DUET_E_DEVICE, "this library was created in process {}; create a new one after fork()", process);
  }

  Log log;
  Team team;
  Registry registry;
  const pid_t process = ::getpid();
};

}  // namespace duet
