// What was found, one line for each stage or rung, dtype and mode.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "conform/compare.h"
#include "conform/expect.h"

namespace conform {

class Line {
 public:
  Line(std::string subject, std::string dtype, std::string mode) : subject(std::move(subject)), dtype(std::move(dtype)), mode(std::move(mode)) {}

  // Runs one case; what it throws is a fault too. `name` says which case: "H 3, N 64, T 65".
  void run(const std::string& name, const std::function<Verdict()>& check);
  void refuse(const std::string& sentence) { reason = sentence; }

  bool failed() const { return n_faults > 0; }
  // "FAIL" a fault; "expected" a fault that the list of expected ones names; "pass" every case; "unsupported" the plugin
  // refused all of them; "absent" it has no such slot
  const char* result() const { return failed() ? (expected ? "expected" : "FAIL") : n_cases ? "pass" : absent ? "absent" : "unsupported"; }
  // Holds the line against the list: what is not as the list says becomes a fault.
  void judge(Expectations& list);

  std::string subject, dtype, mode;
  bool absent = false, expected = false;
  std::string reason;  // of a refusal or an absence
  uint32_t n_cases = 0, n_faults = 0;
  Verdict worst;
  std::string worst_case;
  std::vector<std::string> faults;  // the first few
};

class Report {
 public:
  Report(bool json, Expectations expectations) : json_(json), expectations_(std::move(expectations)) {}
  void add(Line line);  // printed at once, unless as JSON
  // The summary; returns the exit code. `whole`: every line was asked for, so that an entry of the list without one is a fault.
  int finish(const std::string& plugin, const std::string& device, bool whole);

 private:
  void print(const Line& line) const;

  bool json_;
  Expectations expectations_;
  std::vector<Line> lines_;
};

}  // namespace conform
