// What was found, one line for each stage or rung, dtype and mode.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "conform/compare.h"

namespace conform {

class Line {
 public:
  Line(std::string subject, std::string dtype, std::string mode) : subject(std::move(subject)), dtype(std::move(dtype)), mode(std::move(mode)) {}

  // Runs one case; what it throws is a fault too. `name` says which case: "H 3, N 64, T 65".
  void run(const std::string& name, const std::function<Verdict()>& check);
  void refuse(const std::string& sentence) { reason = sentence; }

  bool failed() const { return n_faults > 0; }
  // "FAIL" a fault; "pass" every case; "unsupported" the plugin refused all of them; "absent" it has no such slot
  const char* result() const { return failed() ? "FAIL" : n_cases ? "pass" : absent ? "absent" : "unsupported"; }

  std::string subject, dtype, mode;
  bool absent = false;
  std::string reason;  // of a refusal or an absence
  uint32_t n_cases = 0, n_faults = 0;
  Verdict worst;
  std::string worst_case;
  std::vector<std::string> faults;  // the first few
};

class Report {
 public:
  explicit Report(bool json) : json_(json) {}
  void add(const Line& line);                                        // printed at once, unless as JSON
  int finish(const std::string& plugin, const std::string& device);  // the summary; returns the exit code

 private:
  bool json_;
  std::vector<Line> lines_;
};

}  // namespace conform
