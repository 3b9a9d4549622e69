// Runs the built `duet` program as a user would.
#pragma once
#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace command {

using Words = std::vector<std::string>;

struct Setting {
  std::string in;                  // standard input
  Words variables;                 // NAME=VALUE on top of this process's; NAME alone unsets it
  std::string out_path, folder;    // "" = kept in Result::out; "" = the test's own folder
  std::vector<int> closed;         // descriptors that the program starts without
  std::string error_path = "";     // "" = kept in Result::error
  uint64_t file_limit = 0;         // bytes that a file may grow to, as on a disk that is full; 0 = any
};
struct Result {
  int code = -1;  // exit code; 128 + n if signal n ended it, and `died` is true
  bool died = false;
  std::string out, error;
  double seconds = 0;
  uint64_t peak_memory = 0;  // bytes; not less than this process's own when it began
};
Result run(const Words& arguments, const Setting& setting = {});
Result good(const Words& arguments, const Setting& setting = {});  // requires code 0
nlohmann::json json(const Words& arguments);                       // requires code 0 and JSON on standard output

// A running program whose standard output is a pipe that the test reads.
class Running {
 public:
  explicit Running(const Words& arguments);
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  ~Running();
  std::string read_some();  // waits for output; "" at its end
  void close_out();
  void signal(int number) const;
  Result wait();  // standard error, what is left of standard output, seconds since signal() or close_out()

 private:
  pid_t pid_ = -1;
  int out_ = -1, error_ = -1;
  mutable double since_ = 0;
};

std::string program();
std::string bundled_model();
std::string bundled_vocab();

// A folder of this test's own, removed with everything in it.
class Folder {
 public:
  Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder();
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  std::vector<std::string> names() const;  // sorted

 private:
  std::string path_;
};

void write(const std::string& path, const std::string& content);
// A fresh model of 2 layers, width 64 and `n_vocab` tokens.
std::string small_model(const Folder& folder, const std::string& n_vocab = "300");
// Makes the first element of an f32 tensor NaN, in a file of safetensors.
void spoil(const std::string& path, const std::string& tensor);

}  // namespace command
