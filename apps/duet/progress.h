// One line on a terminal about work that takes long; nothing where standard error is a file or pipe.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

#include "duet.h"

namespace duet {

class Progress {
 public:
  Progress(std::string what, bool quiet);  // "loading"
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }
  void update(uint64_t done, uint64_t total);
  void clear();
  // For duet's progress callbacks, with `this` as their user; an interruption stops the call.
  static duet_status call(void* progress, uint64_t done, uint64_t total);

 private:
  using Clock = std::chrono::steady_clock;
  const std::string what_;
  const bool wanted_;
  const Clock::time_point begin_ = Clock::now();
  Clock::time_point shown_ = begin_;
  bool visible_ = false;
};

}  // namespace duet
