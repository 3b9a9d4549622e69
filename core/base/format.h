// fmt::format, of whose insides only format.cc is made: fmt is large where it is compiled as headers alone (sdk/conform).
#pragma once
#include <fmt/core.h>

#include <string>

namespace duet {

std::string vformat(fmt::string_view format, fmt::format_args args);

template <class... A>
std::string format(fmt::format_string<A...> f, A&&... a) {
  return duet::vformat(f, fmt::make_format_args(a...));
}

}  // namespace duet
