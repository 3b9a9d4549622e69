#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace duet {
namespace {

// Not registered with spdlog: the application may have loggers of its own. Colours only on a terminal.
spdlog::logger& default_sink() {
  static spdlog::logger logger = [] {
    spdlog::logger l("duet", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    l.set_level(spdlog::level::debug);
    l.set_pattern("%^duet: %l:%$ %v");
    return l;
  }();
  return logger;
}

}  // namespace

void Log::message(int32_t level, const char* text) const noexcept {
  if (level < level_) return;
  try {
    if (sink_) return sink_(user_, level, text);
    const auto l = level >= DUET_LOG_ERROR ? spdlog::level::err : level == DUET_LOG_WARNING ? spdlog::level::warn : level == DUET_LOG_INFO ? spdlog::level::info : spdlog::level::debug;
    default_sink().log(l, spdlog::string_view_t(text));
  } catch (...) {  // a log must never be the reason for a failure
  }
}

}  // namespace duet
