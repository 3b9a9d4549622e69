#include "conform/expect.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "base/format.h"

namespace conform {
namespace {

std::string trimmed(const std::string& s) {
  const size_t from = s.find_first_not_of(" \t\r"), to = s.find_last_not_of(" \t\r");
  return from == std::string::npos ? "" : s.substr(from, to - from + 1);
}

Expectation parse(const std::string& line, const std::string& where) {
  const auto wrong = [&](const char* what) {
    throw std::runtime_error(duet::format("{}: {}; an entry reads \"fail|unsupported SUBJECT[, DTYPE[, MODE]]: REASON\", not \"{}\"", where, what, line));
  };
  const size_t space = line.find_first_of(" \t"), colon = line.find(':');
  Expectation e{where, line.substr(0, space), "", "", "", ""};
  if (e.result != "fail" && e.result != "unsupported") wrong("it begins with another word");
  if (colon == std::string::npos || colon < space) wrong("there is no reason");
  e.reason = trimmed(line.substr(colon + 1));
  if (e.reason.empty()) wrong("the reason is empty");
  std::string left = line.substr(space, colon - space);
  for (std::string* field : {&e.subject, &e.dtype, &e.mode}) {
    const size_t comma = left.find(',');
    *field = trimmed(left.substr(0, comma));
    left = comma == std::string::npos ? "" : left.substr(comma + 1);
  }
  if (e.subject.empty() || !trimmed(left).empty()) wrong("it does not name one to three things");
  return e;
}

}  // namespace

Expectations::Expectations(const std::string& file) : file_(file) {
  std::ifstream in(file);
  std::string line;
  for (uint32_t n = 1; std::getline(in, line); ++n) {
    line = trimmed(line.substr(0, line.find('#')));
    if (!line.empty()) entries_.push_back(parse(line, duet::format("{}:{}", file, n)));
  }
  if (!in.eof()) throw std::runtime_error(duet::format("{}: {}", file, std::strerror(errno)));
}

const Expectation* Expectations::find(const std::string& subject, const std::string& dtype, const std::string& mode) {
  for (Expectation& e : entries_) {
    if ((e.subject != "*" && e.subject != subject) || (!e.dtype.empty() && e.dtype != dtype) || (!e.mode.empty() && e.mode != mode)) continue;
    e.met = true;
    return &e;
  }
  return nullptr;
}

std::vector<const Expectation*> Expectations::unmet() const {
  std::vector<const Expectation*> out;
  for (const Expectation& e : entries_)
    if (!e.met) out.push_back(&e);
  return out;
}

}  // namespace conform
