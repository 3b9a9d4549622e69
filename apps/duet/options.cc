#include "options.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <type_traits>

#include "terminal.h"

namespace duet {

namespace po = boost::program_options;

namespace {

constexpr unsigned kLineLength = 118;
constexpr size_t kLongestText = 4096;  // as of the library's stop texts

bool is_utf8(const std::string& text) {
  try {
    (void)nlohmann::json(text).dump();  // which writes nothing else
    return true;
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

std::string shown(std::string_view value) {
  std::string out = "'";
  for (const char c : value.substr(0, 60)) {
    const auto b = static_cast<unsigned char>(c);
    if (b < 0x20 || b == 0x7f)
      out += fmt::format("\\x{:02x}", b);
    else
      out += c;
  }
  return out + (value.size() > 60 ? "...'" : "'");
}

// number of insertions, deletions and replacements between two words
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const bool extends = word.size() >= 3 && candidate.compare(0, word.size(), word) == 0;
    const size_t distance = extends ? 1 : edit_distance(word, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

template <class T>
T read_number(const std::string& flag, const std::string& text, T lowest, T highest) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  bool good = error == std::errc() && stop == end && !text.empty() && value >= lowest && value <= highest;  // NaN compares false
  if constexpr (std::is_floating_point_v<T>) good = good && std::isfinite(value);
  if (!good) throw Usage(fmt::format("{}: {} is not a {} from {} to {}", flag, shown(text), std::is_integral_v<T> ? "whole number" : "number", lowest, highest));
  return value;
}

template uint32_t read_number(const std::string&, const std::string&, uint32_t, uint32_t);
template uint64_t read_number(const std::string&, const std::string&, uint64_t, uint64_t);
template int32_t read_number(const std::string&, const std::string&, int32_t, int32_t);
template float read_number(const std::string&, const std::string&, float, float);

Options::Options(std::string name, std::string arguments, std::string summary)
    : name_(std::move(name)), arguments_(std::move(arguments)), summary_(std::move(summary)) {}

Options& Options::section(const std::string& title) {
  sections_.emplace_back(title, kLineLength, kLineLength / 2);
  return *this;
}

Options& Options::add(const std::string& name, const std::string& meta, const std::string& help, Reader reader) {
  if (sections_.empty()) section("Options");
  if (meta.empty())
    sections_.back().add_options()(name.c_str(), help.c_str());
  else
    sections_.back().add_options()(name.c_str(), po::value<std::string>()->value_name(meta), help.c_str());
  readers_[name] = std::move(reader);
  return *this;
}

Options& Options::flag(const std::string& name, bool& out, const std::string& help) {
  return add(name, "", help, [&out](const std::string&) { out = true; });
}

Options& Options::text(const std::string& name, const std::string& meta, std::string& out, const std::string& help) {
  return add(name, meta, help, [&out](const std::string& value) { out = value; });
}

Options& Options::texts(const std::string& name, const std::string& meta, std::vector<std::string>& out, const std::string& help) {
  repeatable_.insert(name);
  return add(name, meta, help, [name, &out](const std::string& value) {
    if (value.empty()) throw Usage("--" + name + ": the text is empty");
    if (value.size() > kLongestText) throw Usage(fmt::format("--{}: the text has {} bytes, more than the {} allowed", name, value.size(), kLongestText));
    if (!is_utf8(value)) throw Usage("--" + name + ": the text is not UTF-8");
    out.push_back(value);
  });
}

Options& Options::file(const std::string& name, const std::string& meta, std::string& out, const std::string& help) {
  return add(name, meta, help, [name, &out](const std::string& value) {
    if (value.empty()) throw Usage("--" + name + ": the file name is empty");
    out = value;
  });
}

template <class T>
Options& Options::number(const std::string& name, const std::string& meta, T& out, T lowest, T highest, const std::string& help) {
  return add(name, meta, help, [name, &out, lowest, highest](const std::string& value) { out = read_number<T>("--" + name, value, lowest, highest); });
}

template Options& Options::number(const std::string&, const std::string&, uint32_t&, uint32_t, uint32_t, const std::string&);
template Options& Options::number(const std::string&, const std::string&, uint64_t&, uint64_t, uint64_t, const std::string&);
template Options& Options::number(const std::string&, const std::string&, float&, float, float, const std::string&);

Options& Options::numbers(const std::string& name, const std::string& meta, std::vector<uint32_t>& out, uint32_t lowest, uint32_t highest,
                          const std::string& help) {
  return add(name, meta, help, [name, &out, lowest, highest](const std::string& value) {
    out.clear();
    for (size_t at = 0; at <= value.size();) {
      const size_t comma = std::min(value.find(',', at), value.size());
      out.push_back(read_number<uint32_t>("--" + name, value.substr(at, comma - at), lowest, highest));
      at = comma + 1;
    }
  });
}

Options& Options::choice(const std::string& name, const std::string& meta, int32_t& out, std::vector<std::pair<std::string, int32_t>> choices,
                         const std::string& help) {
  return add(name, meta, help, [name, &out, choices = std::move(choices)](const std::string& value) {
    std::string list;
    for (const auto& [word, code] : choices) {
      if (word == value) {
        out = code;
        return;
      }
      list += (list.empty() ? "" : ", ") + word;
    }
    throw Usage(fmt::format("--{}: {} is none of {}", name, shown(value), list));
  });
}

Options& Options::mode(duet_mode& out, const std::string& help) {
  return choice("mode", "MODE", out, {{"auto", DUET_MODE_AUTO}, {"parallel", DUET_MODE_PARALLEL}, {"recurrent", DUET_MODE_RECURRENT}}, help);
}

Options& Options::dtype(duet_dtype& out, const std::string& help, const std::string& name) {
  return choice(name, "TYPE", out, {{"f32", DUET_F32}, {"bf16", DUET_BF16}, {"f16", DUET_F16}, {"q8", DUET_I8}, {"q4", DUET_I4}}, help);
}

Options& Options::argument(const std::string& meta, std::string& out) {
  positional_.emplace_back(meta, &out);
  return *this;
}

Options& Options::epilogue(std::string text) {
  epilogue_ = std::move(text);
  return *this;
}

std::string Options::help() const {
  std::string out = fmt::format("Usage: duet {}{}{}\n\n{}\n", name_, arguments_.empty() ? "" : " ", arguments_, summary_);
  for (const po::options_description& section : sections_) {
    std::ostringstream text;
    section.print(text);
    out += fmt::format("\n{}", text.str());
  }
  if (!epilogue_.empty()) out += fmt::format("\n{}\n", epilogue_);
  return out;
}

std::string Options::unknown(const std::string& name) const {
  std::vector<std::string> names{"help"};
  for (const auto& [known, reader] : readers_) names.push_back(known);
  const std::string near = nearest(name.substr(std::min(name.find_first_not_of('-'), name.size())), names);
  return fmt::format("unknown option {}{}", name, near.empty() ? "" : fmt::format("; did you mean --{}?", near));
}

bool Options::parse(const std::vector<std::string>& arguments) {
  bool help_wanted = false;
  add("help", "", "show this help", [&help_wanted](const std::string&) { help_wanted = true; });
  po::options_description all;
  for (const po::options_description& section : sections_) all.add(section);
  all.add_options()(",h", "");  // known without a long name: -h

  std::vector<po::option> found;
  try {
    namespace style = po::command_line_style;
    const int strict = style::allow_long | style::long_allow_adjacent | style::long_allow_next | style::allow_short |
                       style::allow_dash_for_short | style::short_allow_next;
    found = po::command_line_parser(arguments).options(all).style(strict).run().options;
  } catch (const po::unknown_option& e) {
    throw Usage(unknown(e.get_option_name()));
  } catch (const po::invalid_command_line_syntax& e) {
    using Kind = po::invalid_syntax;
    const std::string name = e.get_option_name();
    if (e.kind() == Kind::missing_parameter) throw Usage(fmt::format("{}: needs a value", name));
    if (e.kind() == Kind::empty_adjacent_parameter) throw Usage(fmt::format("{}: the value after '=' is empty", name));
    if (e.kind() == Kind::extra_parameter) throw Usage(fmt::format("{}: takes no value", name));
    throw Usage(e.what());
  } catch (const po::error& e) {
    throw Usage(e.what());
  }

  std::vector<std::string> positional;
  for (const po::option& option : found) {
    if (option.string_key.empty()) {
      positional.insert(positional.end(), option.value.begin(), option.value.end());
    } else if (option.string_key == "-h") {
      help_wanted = true;
    } else {
      const bool first = given_.insert(option.string_key).second;
      if (!first && repeatable_.count(option.string_key) == 0) throw Usage(fmt::format("--{}: given twice", option.string_key));
      const std::string* next = option.original_tokens.size() == 2 ? &option.original_tokens[1] : nullptr;  // not joined by '='
      if (next != nullptr && next->compare(0, 2, "--") == 0 && readers_.count(next->substr(2, next->find('=') - 2)) != 0)
        throw Usage(fmt::format("--{0}: needs a value, found the option {1} (--{0}={1} if that is the value)", option.string_key, *next));
      readers_.at(option.string_key)(option.value.empty() ? std::string() : option.value.front());
    }
  }
  if (help_wanted) {
    write_out(help());
    return false;
  }
  for (size_t i = 0; i < positional_.size(); ++i) {
    if (i >= positional.size()) throw Usage(fmt::format("{} is missing", positional_[i].first));
    if (positional[i].empty()) throw Usage(fmt::format("{}: the file name is empty", positional_[i].first));
    *positional_[i].second = positional[i];
  }
  if (positional.size() > positional_.size()) throw Usage(fmt::format("unexpected argument {}", shown(positional[positional_.size()])));
  return true;
}

void Options::require(const std::string& name) const {
  if (!given(name)) throw Usage(fmt::format("--{} is missing", name));
}

void Options::exclude(const std::string& name, const std::string& other) const {
  if (given(name) && given(other)) throw Usage(fmt::format("--{} and --{} exclude each other", name, other));
}

}  // namespace duet
