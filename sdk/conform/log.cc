// The core's messages, on standard error without spdlog.
#include "base/log.h"

#include <cstdio>

namespace duet {

void Log::message(int32_t level, const char* text) const noexcept {
  if (level < level_) return;
  if (sink_) sink_(user_, level, text);
  else std::fprintf(stderr, "duet-conform: %s\n", text);
}

}  // namespace duet
