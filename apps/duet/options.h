// The options of one subcommand: declared once, parsed strictly (no abbreviations, no repeats, whole numbers are whole, every
// range is checked) and documented by the same declaration. Boost.Program_options splits the command line and prints the help.
#pragma once
#include <boost/program_options.hpp>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "duet_types.h"

namespace duet {

class Options {
 public:
  // duet <name> <arguments>: <summary>
  Options(std::string name, std::string arguments, std::string summary);

  Options& section(const std::string& title);  // the options declared next are listed under it
  Options& flag(const std::string& name, bool& out, const std::string& help);
  Options& text(const std::string& name, const std::string& meta, std::string& out, const std::string& help);
  Options& texts(const std::string& name, const std::string& meta, std::vector<std::string>& out, const std::string& help);  // may be repeated; UTF-8
  Options& file(const std::string& name, const std::string& meta, std::string& out, const std::string& help);                // not empty
  template <class T>  // uint32_t, uint64_t, float; lowest <= value <= highest
  Options& number(const std::string& name, const std::string& meta, T& out, T lowest, T highest, const std::string& help);
  Options& numbers(const std::string& name, const std::string& meta, std::vector<uint32_t>& out, uint32_t lowest, uint32_t highest, const std::string& help);
  Options& choice(const std::string& name, const std::string& meta, int32_t& out, std::vector<std::pair<std::string, int32_t>> choices, const std::string& help);
  Options& mode(duet_mode& out, const std::string& help);
  Options& dtype(duet_dtype& out, const std::string& help, const std::string& name = "dtype");
  Options& argument(const std::string& meta, std::string& out);  // a required positional argument
  Options& epilogue(std::string text);                           // printed below the options

  // Throws Usage. False: --help was given, and the help has been written to standard output.
  bool parse(const std::vector<std::string>& arguments);
  bool given(const std::string& name) const { return given_.count(name) != 0; }
  void require(const std::string& name) const;                            // Usage unless it was given
  void exclude(const std::string& name, const std::string& other) const;  // Usage if both were given
  std::string help() const;

 private:
  using Reader = std::function<void(const std::string&)>;
  Options& add(const std::string& name, const std::string& meta, const std::string& help, Reader reader);
  std::string unknown(const std::string& name) const;

  std::string name_, arguments_, summary_, epilogue_;
  std::deque<boost::program_options::options_description> sections_;
  std::map<std::string, Reader> readers_;
  std::set<std::string> given_, repeatable_;
  std::vector<std::pair<std::string, std::string*>> positional_;
};

// Strict reading of one value; Usage names `flag` and the range.
template <class T>
T read_number(const std::string& flag, const std::string& text, T lowest, T highest);

// The candidate nearest to `word`, "" if none is near.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace duet
