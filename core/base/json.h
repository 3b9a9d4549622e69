// Reading JSON that may be hostile: strict, no duplicate keys, depth at most 64, integers stay integers.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace duet {

using Json = nlohmann::json;

// `file` for messages. DUET_E_FORMAT with the byte offset; DUET_E_LIMIT above 1 MiB (these are configurations, not data).
Json parse_json(std::string_view text, std::string_view file);

// A JSON string literal, quotes included; bytes that are not UTF-8 become U+FFFD.
std::string json_quote(std::string_view text);

}  // namespace duet
