#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <random>
#include <utility>

namespace duet {
namespace {

int64_t changed_ns(const struct stat& s) { return int64_t{s.st_mtim.tv_sec} * 1'000'000'000 + s.st_mtim.tv_nsec; }

// O_NONBLOCK: opening a FIFO must not wait for a writer. `path` of any length and content is the system's to judge.
int open_regular(const std::string& path, struct stat& s) {
  if (path.find('\0') != std::string::npos) fail(DUET_E_IO, "{}: a file name cannot hold a NUL byte", printable(path));
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) {
    const int e = errno;
    fail(e == ENOENT || e == ENOTDIR ? DUET_E_NOT_FOUND : DUET_E_IO, "{}: {}", printable(path, 300), os_reason(e));
  }
  if (::fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
    ::close(fd);
    fail(DUET_E_IO, "{}: not a regular file", printable(path, 300));
  }
  return fd;
}

// Fills `to` from byte `at` of a file that had `size` bytes when it was opened.
void read_at(int fd, const std::string& path, uint64_t at, std::span<char> to, uint64_t size) {
  while (!to.empty()) {
    const ssize_t n = ::pread(fd, to.data(), to.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(DUET_E_IO, "{}: reading at byte {}: {}", path, at, os_reason(errno));
    if (n == 0) fail(DUET_E_FORMAT, "{}: changed while it was read (had {} bytes, ends at {})", path, size, at);
    to = to.subspan(static_cast<size_t>(n));
    at += static_cast<uint64_t>(n);
  }
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  struct stat s {};
  fd_ = open_regular(path, s);
  changed_ns_ = changed_ns(s);
  const auto size = static_cast<size_t>(s.st_size);
  if (size == 0) return;
  void* p = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd_, 0);
  if (p == MAP_FAILED) {
    const int e = errno;
    ::close(std::exchange(fd_, -1));
    fail(e == ENOMEM ? DUET_E_MEMORY : DUET_E_IO, "{}: cannot map {} bytes: {}", path, size, os_reason(e));
  }
  bytes_ = {static_cast<const std::byte*>(p), size};
}

MappedFile::MappedFile(MappedFile&& o) noexcept
    : path_(std::move(o.path_)), bytes_(std::exchange(o.bytes_, {})), changed_ns_(o.changed_ns_), fd_(std::exchange(o.fd_, -1)) {}

MappedFile& MappedFile::operator=(MappedFile&& o) noexcept {
  std::swap(path_, o.path_);
  std::swap(bytes_, o.bytes_);
  std::swap(changed_ns_, o.changed_ns_);
  std::swap(fd_, o.fd_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  if (fd_ >= 0) ::close(fd_);
}

void MappedFile::check_readable() const {
  std::string piece(std::min(bytes_.size(), size_t{1} << 20), '\0');
  for (size_t at = 0; at < bytes_.size(); at += piece.size())
    read_at(fd_, path_, at, std::span(piece).first(std::min(piece.size(), bytes_.size() - at)), bytes_.size());
}

void MappedFile::check_unchanged() const {
  struct stat s {};
  if (fd_ < 0 || ::fstat(fd_, &s) != 0) return;
  if (static_cast<size_t>(s.st_size) != bytes_.size() || changed_ns(s) != changed_ns_)
    fail(DUET_E_FORMAT, "{}: changed while it was read (had {} bytes, has {})", path_, bytes_.size(), s.st_size);
}

std::string read_file(const std::string& path, uint64_t limit) {
  struct stat s {};
  const int fd = open_regular(path, s);
  std::string out;
  try {
    if (static_cast<uint64_t>(s.st_size) > limit) fail(DUET_E_LIMIT, "{}: {} bytes, more than the {} allowed", path, s.st_size, limit);
    out.resize(static_cast<size_t>(s.st_size));
    read_at(fd, path, 0, out, out.size());
  } catch (...) {
    ::close(fd);
    throw;
  }
  ::close(fd);
  return out;
}

AtomicFile::AtomicFile(std::string path, bool overwrite) : path_(std::move(path)), overwrite_(overwrite) {
  struct stat s {};
  const bool exists = ::lstat(path_.c_str(), &s) == 0;
  if (exists && !overwrite_) fail(DUET_E_EXISTS, "{}: exists; choose another name or ask to overwrite it", path_);
  if (exists && S_ISLNK(s.st_mode)) {  // replace what the link points to, not the link
    std::string real = real_path(path_);
    if (real.empty()) fail(DUET_E_IO, "{}: {}", path_, os_reason(errno));
    path_ = std::move(real);
    if (::stat(path_.c_str(), &s) != 0) fail(DUET_E_IO, "{}: {}", path_, os_reason(errno));
  }
  if (exists && !S_ISREG(s.st_mode)) fail(DUET_E_IO, "{}: is not a regular file, so it is not replaced", path_);
  const mode_t mode = exists ? s.st_mode & 07777 : 0666;
  std::random_device random;
  for (int attempt = 0; attempt < 16 && fd_ < 0; ++attempt) {
    temp_ = duet::format("{}.tmp.{}.{:08x}", path_, ::getpid(), random());
    fd_ = ::open(temp_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd_ < 0 && errno != EEXIST) {
      const int e = errno;
      fail(e == ENOENT || e == ENOTDIR ? DUET_E_NOT_FOUND : DUET_E_IO, "{}: cannot write in the folder {}: {}", path_, folder_of(path_), os_reason(e));
    }
  }
  if (fd_ < 0) fail(DUET_E_IO, "{}: no free name for a temporary file", path_);
  if (exists) (void)!::fchmod(fd_, mode);  // the umask may have taken bits
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temp_.empty()) ::unlink(temp_.c_str());
}

void AtomicFile::write(Bytes bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), std::min<size_t>(bytes.size(), size_t{1} << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(DUET_E_IO, "{}: writing at byte {}: {}", path_, written_, os_reason(errno));
    bytes = bytes.subspan(static_cast<size_t>(n));
    written_ += static_cast<uint64_t>(n);
  }
}

void AtomicFile::commit() {
  const auto check = [&](int rc, const char* what) {
    if (rc != 0) fail(DUET_E_IO, "{}: {}: {}", path_, what, os_reason(errno));
  };
  check(::fsync(fd_), "writing to the disk");
  check(::close(std::exchange(fd_, -1)), "closing");
  if (overwrite_) {
    check(::rename(temp_.c_str(), path_.c_str()), "renaming into place");
  } else {
    if (::link(temp_.c_str(), path_.c_str()) != 0) {  // unlike rename, never replaces a file that came meanwhile
      if (errno == EEXIST) fail(DUET_E_EXISTS, "{}: exists; choose another name or ask to overwrite it", path_);
      check(::rename(temp_.c_str(), path_.c_str()), "renaming into place");  // a file system without hard links
    } else {
      ::unlink(temp_.c_str());
    }
  }
  temp_.clear();
  const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;  // the file is in place; a folder that cannot be opened cannot be synced
  const int rc = ::fsync(folder);
  const int e = errno;
  ::close(folder);
  if (rc != 0 && e != EINVAL && e != EROFS) fail(DUET_E_IO, "{}: writing its folder to the disk: {}", path_, os_reason(e));
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

std::string real_path(const std::string& path) {
  const std::unique_ptr<char, decltype(&::free)> real(::realpath(path.c_str(), nullptr), ::free);
  return real ? std::string(real.get()) : std::string();
}

bool is_regular_file(const std::string& path) {
  struct stat s {};
  return ::stat(path.c_str(), &s) == 0 && S_ISREG(s.st_mode);
}

bool is_folder(const std::string& path) {
  struct stat s {};
  return ::stat(path.c_str(), &s) == 0 && S_ISDIR(s.st_mode);
}

}  // namespace duet
