#include "apps/command.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "support/catch.h"
#include "support/golden.h"

namespace command {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Runs in the child only.
[[noreturn]] void become(const Words& arguments, const Setting& setting, int in, int out, int error) {
  ::dup2(in, 0);
  ::dup2(out, 1);
  ::dup2(error, 2);
  for (const int fd : setting.closed) ::close(fd);
  for (const std::string& v : setting.variables) {
    const size_t equal = v.find('=');
    if (equal == v.npos)
      ::unsetenv(v.c_str());
    else
      ::setenv(v.substr(0, equal).c_str(), v.substr(equal + 1).c_str(), 1);
  }
  if (setting.file_limit > 0) {
    const rlimit limit{setting.file_limit, setting.file_limit};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ}) ::signal(number, SIG_DFL);
  std::vector<char*> argv;
  const std::string name = program();
  argv.push_back(const_cast<char*>(name.c_str()));
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  if (::chdir(setting.folder.c_str()) == 0) ::execv(name.c_str(), argv.data());
  ::_exit(127);
}

int open_or_fail(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY, 0600);
  if (fd < 0) FAIL("cannot open " << path);
  return fd;
}

void take_status(int status, Result& result) {
  result.died = WIFSIGNALED(status);
  result.code = result.died ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

std::string program() { return std::string(DUET_BUILD) + "/bin/duet"; }
std::string bundled_model() { return std::string(DUET_SOURCE) + "/models/stories-7m/stories-7m.pth"; }
std::string bundled_vocab() { return std::string(DUET_SOURCE) + "/models/stories-7m/vocab.txt"; }

Result run(const Words& arguments, const Setting& setting) {
  const Folder folder;
  Setting s = setting;
  if (s.folder.empty()) s.folder = folder.path();
  const std::string in_path = folder / "in", out_path = s.out_path.empty() ? folder / "out" : s.out_path, error_path = s.error_path.empty() ? folder / "error" : s.error_path;
  write(in_path, s.in);
  const int in = open_or_fail(in_path, O_RDONLY), out = open_or_fail(out_path, O_WRONLY | O_CREAT), error = open_or_fail(error_path, O_WRONLY | O_CREAT);
  const double begin = now();
  const pid_t pid = ::fork();
  if (pid == 0) become(arguments, s, in, out, error);
  int status = 0;
  rusage used{};
  REQUIRE(::wait4(pid, &status, 0, &used) == pid);
  for (const int fd : {in, out, error}) ::close(fd);
  Result result;
  result.seconds = now() - begin;
  take_status(status, result);
  if (s.out_path.empty()) result.out = golden::slurp(out_path);
  if (s.error_path.empty()) result.error = golden::slurp(error_path);
  result.peak_memory = static_cast<uint64_t>(used.ru_maxrss) * 1024;
  return result;
}

Result good(const Words& arguments, const Setting& setting) {
  const Result result = run(arguments, setting);
  INFO(result.error);
  REQUIRE(result.code == 0);
  return result;
}

nlohmann::json json(const Words& arguments) { return nlohmann::json::parse(good(arguments).out); }

Running::Running(const Words& arguments) {
  int out[2], error[2];
  REQUIRE(::pipe2(out, O_CLOEXEC) == 0);
  REQUIRE(::pipe2(error, O_CLOEXEC) == 0);
  Setting setting;
  setting.folder = "/";
  const int in = open_or_fail("/dev/null", O_RDONLY);
  pid_ = ::fork();
  if (pid_ == 0) become(arguments, setting, in, out[1], error[1]);
  ::close(in);
  ::close(out[1]);
  ::close(error[1]);
  out_ = out[0];
  error_ = error[0];
}

Running::~Running() {
  close_out();
  if (error_ >= 0) ::close(error_);
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
}

std::string Running::read_some() {
  char bytes[4096];
  const ssize_t n = ::read(out_, bytes, sizeof bytes);
  return n > 0 ? std::string(bytes, static_cast<size_t>(n)) : std::string();
}

void Running::close_out() {
  if (out_ >= 0) ::close(std::exchange(out_, -1));
  since_ = now();
}

void Running::signal(int number) const {
  ::kill(pid_, number);
  since_ = now();
}

Result Running::wait() {
  Result result;
  while (out_ >= 0) {
    const std::string more = read_some();
    if (more.empty()) break;
    result.out += more;
  }
  char bytes[4096];
  for (ssize_t n; (n = ::read(error_, bytes, sizeof bytes)) > 0;) result.error.append(bytes, static_cast<size_t>(n));
  int status = 0;
  REQUIRE(::waitpid(pid_, &status, 0) == pid_);
  pid_ = -1;
  result.seconds = now() - since_;
  take_status(status, result);
  return result;
}

Folder::Folder() {
  std::string path = (std::filesystem::temp_directory_path() / "duet-apps-XXXXXX").string();
  REQUIRE(::mkdtemp(path.data()) != nullptr);
  path_ = path;
}

Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> Folder::names() const {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(path_)) out.push_back(entry.path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}

void write(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file << content;
  REQUIRE(file.flush());
}

std::string small_model(const Folder& folder, const std::string& n_vocab) {
  const std::string path = folder / "small.safetensors";
  good({"init", "--layers", "2", "--embd", "64", "--vocab-size", n_vocab, "--head-size", "32", "--seed", "7", path});
  return path;
}

void spoil(const std::string& path, const std::string& tensor) {
  std::string bytes = golden::slurp(path);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const auto entry = nlohmann::json::parse(bytes.substr(8, header)).at(tensor);
  REQUIRE(entry.at("dtype") == "F32");
  bytes.replace(8 + header + entry.at("data_offsets").at(0).get<size_t>(), 4, "\0\0\xc0\x7f", 4);
  write(path, bytes);
}

}  // namespace command
