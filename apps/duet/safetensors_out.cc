#include "safetensors_out.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "terminal.h"

namespace duet {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

// A file beside the target that takes its name on commit().
class Replacement {
 public:
  explicit Replacement(const std::string& path) : path_(std::filesystem::weakly_canonical(path).string()) {
    std::random_device random;  // a killed process may have left a file, and had this one's number, as in containers
    for (int attempt = 0; attempt < 16 && fd_ < 0; ++attempt) {
      temp_ = fmt::format("{}.tmp.{}.{:08x}", path_, ::getpid(), random());
      fd_ = ::open(temp_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
      if (fd_ < 0 && errno != EEXIST) break;
    }
    if (fd_ < 0) fail("creating " + temp_);
    struct stat s {};
    if (::stat(path_.c_str(), &s) == 0) (void)!::fchmod(fd_, s.st_mode & 07777);
  }
  Replacement(const Replacement&) = delete;
  Replacement& operator=(const Replacement&) = delete;
  ~Replacement() {
    if (fd_ >= 0) {
      ::close(fd_);
      ::unlink(temp_.c_str());
    }
  }

  void write(const void* data, size_t n) {
    const char* bytes = static_cast<const char*>(data);
    while (n > 0) {
      check_interrupted();
      const ssize_t done = ::write(fd_, bytes, std::min<size_t>(n, size_t{1} << 26));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail("writing");
      bytes += done;
      n -= static_cast<size_t>(done);
    }
  }

  void commit() {
    if (::fsync(fd_) != 0) fail("writing to the disk");
    if (::rename(temp_.c_str(), path_.c_str()) != 0) fail("renaming into place");
    ::close(std::exchange(fd_, -1));
    const int folder = ::open(std::filesystem::path(path_).parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return;  // the file is in place; a folder that cannot be opened cannot be synced
    (void)::fsync(folder);
    ::close(folder);
  }

 private:
  [[noreturn]] void fail(const std::string& doing) { throw Failure(fmt::format("{}: {}: {}", path_, doing, std::strerror(errno))); }

  const std::string path_;
  std::string temp_;
  int fd_ = -1;
};

}  // namespace

void write_safetensors(const std::string& path, const std::vector<OutTensor>& tensors) {
  nlohmann::ordered_json header;
  uint64_t end = 0;
  for (const OutTensor& t : tensors) {
    const uint64_t begin = end;
    end += t.data.size_bytes();
    header[t.name] = {{"dtype", "F32"}, {"shape", t.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');
  const uint64_t text_size = text.size();

  Replacement file(path);
  file.write(&text_size, sizeof text_size);
  file.write(text.data(), text.size());
  for (const OutTensor& t : tensors) file.write(t.data.data(), t.data.size_bytes());
  file.commit();
}

}  // namespace duet
