#include "conform/report.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/format.h"
#include "conform/crash.h"

namespace conform {
namespace {

constexpr size_t kFaultsShown = 3;

}  // namespace

void Line::run(const std::string& name, const std::function<Verdict()>& check) {
  ++n_cases;
  now_running(duet::format("{} {} {}: {}", subject, dtype, mode, name));
  Verdict v;
  try {
    v = check();
  } catch (const std::exception& e) {
    v.fault = e.what();
  } catch (...) {
    v.fault = "an exception that is not a std::exception left the plugin";
  }
  if (!v.fault.empty() && ++n_faults <= kFaultsShown) faults.push_back(duet::format("{} ({})", v.fault, name));
  if (!v.where.empty() && (worst.where.empty() || v.worst / v.limit > worst.worst / worst.limit)) worst = v, worst_case = name;
}

void Line::judge(Expectations& list) {
  if (!list.given() || absent) return;
  const Expectation* e = list.find(subject, dtype, mode);
  const auto fault = [&](std::string text) {
    ++n_faults;
    faults.push_back(std::move(text));
  };
  const bool unsupported = !failed() && n_cases == 0;
  if (e == nullptr) {
    if (unsupported) fault(duet::format("unsupported, which {} does not say", list.file()));
  } else if (e->result == "fail" && failed()) {
    expected = true;
    reason = duet::format("expected: {}", e->reason);
  } else if (e->result == "fail") {
    fault(duet::format("{} expects a failure ({}), but it {}: the entry must go", e->where, e->reason, unsupported ? "is unsupported" : "passes"));
  } else if (!unsupported) {
    fault(duet::format("{} says it is unsupported ({}), but it is not: the entry must go", e->where, e->reason));
  }
}

void Report::add(Line line) {
  line.judge(expectations_);
  lines_.push_back(line);
  print(line);
}

void Report::print(const Line& line) const {
  if (json_) return;
  std::string text = duet::format("{:<12}{:<24}{:<6}{:<11}", line.result(), line.subject, line.dtype, line.mode);
  if (line.n_cases) text += duet::format("{:>5} cases", line.n_cases);
  if (!line.worst.where.empty()) text += duet::format("  worst {:.1e} of {:.1e}  {}, {}", line.worst.worst, line.worst.limit, line.worst.where, line.worst_case);
  if (!line.reason.empty()) text += duet::format("{}{}", line.n_cases == 0 ? "" : line.expected ? "; " : "; in part refused: ", line.reason);
  std::printf("%s\n", text.c_str());
  for (const std::string& fault : line.faults) std::printf("            %s: %s\n", line.subject.c_str(), fault.c_str());
  if (line.n_faults > line.faults.size()) std::printf("            %s: and %zu more\n", line.subject.c_str(), line.n_faults - line.faults.size());
  std::fflush(stdout);
}

int Report::finish(const std::string& plugin, const std::string& device, bool whole) {
  for (const Expectation* e : expectations_.unmet()) {
    if (!whole) break;
    Line line(e->subject, e->dtype, e->mode);
    line.faults.push_back(duet::format("{} expects something of a line that there is not: the entry must go", e->where));
    line.n_faults = 1;
    lines_.push_back(line);
    print(line);
  }
  const auto count = [&](const char* result) {
    return std::count_if(lines_.begin(), lines_.end(), [&](const Line& l) { return l.result() == std::string_view(result); });
  };
  // that the process is as it was says nothing about a plugin of which nothing ran
  const bool checked =
      std::any_of(lines_.begin(), lines_.end(), [](const Line& l) { return l.result() == std::string_view("pass") && l.subject != "process"; });
  const bool good = count("FAIL") == 0 && checked;
  if (json_) {
    nlohmann::json list = nlohmann::json::array();
    for (const Line& l : lines_) {
      nlohmann::json j{{"subject", l.subject}, {"result", l.result()}, {"cases", l.n_cases}, {"faults", l.n_faults}};
      if (!l.dtype.empty()) j["dtype"] = l.dtype;
      if (!l.mode.empty()) j["mode"] = l.mode;
      if (!l.worst.where.empty()) j["worst"] = {{"error", l.worst.worst}, {"limit", l.worst.limit}, {"output", l.worst.where}, {"case", l.worst_case}};
      if (!l.reason.empty()) j["reason"] = l.reason;
      if (!l.faults.empty()) j["first_faults"] = l.faults;
      list.push_back(std::move(j));
    }
    const nlohmann::json all{{"plugin", plugin}, {"device", device}, {"pass", good}, {"lines", list}};
    std::printf("%s\n", all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    std::printf("%s, %s: %s (%td lines pass, %td fail, %td fail as expected, %td unsupported, %td absent)\n", plugin.c_str(), device.c_str(),
                good            ? "conforms"
                : count("FAIL") ? "DOES NOT CONFORM"
                                : "NOTHING WAS CHECKED",
                count("pass"), count("FAIL"), count("expected"), count("unsupported"), count("absent"));
  }
  return good ? 0 : 1;
}

}  // namespace conform
