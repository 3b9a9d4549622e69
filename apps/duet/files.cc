#include "files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "terminal.h"

namespace duet {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxText = size_t{1} << 30;

[[noreturn]] void fail_file(const std::string& path, const std::string& reason) { throw Failure(path + ": " + reason); }

struct Descriptor {
  explicit Descriptor(int n) : fd(n) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd > STDERR_FILENO) ::close(fd);
  }
  const int fd;
};

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

}  // namespace

std::string read_text(const std::string& path) {
  const std::string name = path.empty() ? "standard input" : path;
  const Descriptor file(path.empty() ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
  if (file.fd < 0) {
    const int e = errno;
    check_interrupted();
    fail_file(name, std::strerror(e));
  }
  std::string out;
  struct stat s {};
  if (::fstat(file.fd, &s) == 0 && S_ISREG(s.st_mode) && static_cast<uint64_t>(s.st_size) <= kMaxText) out.reserve(static_cast<size_t>(s.st_size) + 1);
  std::vector<char> piece(size_t{1} << 16);
  for (;;) {
    const ssize_t n = ::read(file.fd, piece.data(), piece.size());
    const int e = errno;
    check_interrupted();
    if (n == 0) return out;
    if (n < 0 && e == EINTR) continue;
    if (n < 0) fail_file(name, std::strerror(e));
    out.append(piece.data(), static_cast<size_t>(n));
    if (out.size() > kMaxText) fail_file(name, "longer than 1 GiB; split it");
  }
}

std::vector<int32_t> parse_tokens(std::string_view text, const std::string& source) {
  const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  size_t at = 0;
  const auto skip_blanks = [&] {
    while (at < text.size() && blank(text[at])) ++at;
  };
  const auto found = [&]() -> std::string {  // a number, if one is there
    if (at == text.size()) return "the end";
    const size_t digits = at + (text[at] == '-'), end = std::min(text.find_first_not_of("0123456789", digits), text.size());
    if (end > digits) return std::string(text.substr(at, std::min<size_t>(end - at, 24)));
    return fmt::format("byte 0x{:02x}", static_cast<unsigned char>(text[at]));
  };
  const auto refuse = [&](const std::string& expected) { fail_file(source, fmt::format("byte {}: expected {}, found {}", at, expected, found())); };
  std::vector<int32_t> out;
  skip_blanks();
  const bool array = at < text.size() && text[at] == '[';
  if (array) ++at;
  bool after_comma = false;
  for (;;) {
    skip_blanks();
    if (at == text.size() || text[at] == ']') break;
    int32_t token = 0;
    const auto [stop, error] = std::from_chars(text.data() + at, text.data() + text.size(), token);
    if (error != std::errc() || token < 0) refuse("a token id from 0 to 2147483647");
    at = static_cast<size_t>(stop - text.data());
    out.push_back(token);
    const size_t end = at;
    skip_blanks();
    after_comma = at < text.size() && text[at] == ',';
    if (after_comma)
      ++at;
    else if (at < text.size() && text[at] != ']' && (array || at == end))
      refuse(array ? "',' or ']'" : "a blank or ','");
  }
  if (after_comma) refuse("a token id after ','");
  if (array) {
    if (at == text.size()) refuse("']'");
    ++at;
    skip_blanks();
  }
  if (at < text.size()) refuse("the end");
  return out;
}

void check_output(const std::string& path, const std::vector<std::string>& inputs) {
  std::error_code ignored;
  const fs::path out = fs::weakly_canonical(path, ignored);
  for (const std::string& input : inputs) {
    if (input.empty()) continue;
    const fs::path in = fs::weakly_canonical(input, ignored);
    const bool same = in == out || fs::equivalent(path, input, ignored);
    const bool inside = fs::is_directory(in, ignored) && fs::exists(out, ignored) && out.parent_path() == in;
    if (same || inside) throw Usage(fmt::format("the output {} would replace the input {}; choose another name", path, input));
  }
  const fs::path folder = folder_of(path);
  if (!fs::is_directory(folder, ignored)) fail_file(path, fmt::format("there is no folder {}; make it first", folder.string()));
  if (::access(folder.c_str(), W_OK | X_OK) != 0) fail_file(path, fmt::format("cannot write in the folder {}: {}", folder.string(), std::strerror(errno)));
  if (fs::exists(path, ignored) && !fs::is_regular_file(path, ignored)) fail_file(path, "is not a regular file, so it is not replaced");
}

void check_absent(const std::string& path) {
  std::error_code ignored;
  if (fs::exists(fs::symlink_status(path, ignored))) fail_file(path, "exists; choose another name, or --force to replace it");
}

std::string default_model() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) throw Failure("cannot tell where this program lies (/proc/self/exe): " + error.message() + "; give --model");
  return (program.parent_path().parent_path() / "share/duet/models/stories-7m/stories-7m.pth").string();
}

uint64_t peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    uint64_t kib = 0;
    if (std::sscanf(line.c_str(), "VmHWM: %lu kB", &kib) == 1) return kib * 1024;
  }
  return 0;
}

}  // namespace duet
