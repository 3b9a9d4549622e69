// Where messages of one library go: the user's callback, or standard error through spdlog.
#pragma once
#include <string>
#include <utility>

#include "base/format.h"
#include "duet.h"

namespace duet {

class Log {
 public:
  Log() : Log(nullptr, nullptr, DUET_LOG_WARNING) {}
  Log(duet_log_fn sink, void* user, int32_t level) : sink_(sink), user_(user), level_(level ? level : DUET_LOG_WARNING) {}

  template <class... A>
  void debug(fmt::format_string<A...> f, A&&... a) const { write(DUET_LOG_DEBUG, f, std::forward<A>(a)...); }
  template <class... A>
  void info(fmt::format_string<A...> f, A&&... a) const { write(DUET_LOG_INFO, f, std::forward<A>(a)...); }
  template <class... A>
  void warn(fmt::format_string<A...> f, A&&... a) const { write(DUET_LOG_WARNING, f, std::forward<A>(a)...); }
  template <class... A>
  void error(fmt::format_string<A...> f, A&&... a) const { write(DUET_LOG_ERROR, f, std::forward<A>(a)...); }

  // The same sink, with infos too if it shows warnings.
  Log with_infos() const { return {sink_, user_, level_ == DUET_LOG_WARNING ? int32_t{DUET_LOG_INFO} : level_}; }
  void message(int32_t level, const char* text) const noexcept;  // [any-thread]

 private:
  template <class... A>
  void write(int32_t level, fmt::format_string<A...> f, A&&... a) const {
    if (level >= level_) message(level, duet::format(f, std::forward<A>(a)...).c_str());
  }

  duet_log_fn sink_;
  void* user_;
  int32_t level_;
};

}  // namespace duet
