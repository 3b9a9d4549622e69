#include "progress.h"

#include <fmt/format.h>

#include "terminal.h"

namespace duet {

Progress::Progress(std::string what, bool quiet) : what_(std::move(what)), wanted_(!quiet && error_is_terminal()) {}

void Progress::update(uint64_t done, uint64_t total) {
  const Clock::time_point now = Clock::now();
  if (!wanted_ || total == 0 || now - shown_ < std::chrono::milliseconds(200)) return;
  shown_ = now;
  visible_ = true;
  const double share = static_cast<double>(done) / static_cast<double>(total);
  const double elapsed = std::chrono::duration<double>(now - begin_).count();
  const std::string left = done > 0 ? fmt::format(", {:.0f} s left", elapsed * (1 - share) / share) : "";
  write_error(fmt::format("\r\x1b[K{} {:3.0f} %{}", what_, 100 * share, left));
}

void Progress::clear() {
  if (visible_) write_error("\r\x1b[K");
  visible_ = false;
}

duet_status Progress::call(void* progress, uint64_t done, uint64_t total) {
  static_cast<Progress*>(progress)->update(done, total);
  return *interrupt_flag() != 0 ? DUET_E_CANCELLED : DUET_OK;
}

}  // namespace duet
