// What a backend is expected not to pass: a list that is kept with it. An entry that no longer holds is a fault as well.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace conform {

// A line of the file: "fail wkv, bf16, parallel: why" or "unsupported *, bf16: why"; # begins a comment. The dtype and the mode
// may be left out, and stand for all then; the subject is that of the report's line, or * for all.
struct Expectation {
  std::string where;   // "FILE:LINE"
  std::string result;  // "fail" or "unsupported"
  std::string subject, dtype, mode, reason;
  bool met = false;  // by some line of this run
};

class Expectations {
 public:
  Expectations() = default;
  // Throws a std::runtime_error that names the line which cannot be read.
  explicit Expectations(const std::string& file);

  bool given() const { return !file_.empty(); }
  const std::string& file() const { return file_; }
  // The first entry that fits, or NULL. It counts as met.
  const Expectation* find(const std::string& subject, const std::string& dtype, const std::string& mode);
  std::vector<const Expectation*> unmet() const;

 private:
  std::string file_;
  std::vector<Expectation> entries_;
};

}  // namespace conform
