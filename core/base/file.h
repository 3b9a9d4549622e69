// Files as the library uses them: whole, read-only mappings of regular files, and outputs that appear whole or not at all.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "base/reader.h"

namespace duet {

// A regular file mapped read-only. The size is pinned when it is opened; another process that truncates the file while it
// is mapped kills this one with SIGBUS, as documented in docs/architecture.md (replace files by renaming).
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path);  // DUET_E_NOT_FOUND, DUET_E_IO: not a regular file, unreadable ...
  MappedFile(MappedFile&& o) noexcept;
  MappedFile& operator=(MappedFile&& o) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  Bytes bytes() const { return bytes_; }
  // Reads every byte, so that a disk that cannot is DUET_E_IO with the byte, and not a SIGBUS when the mapping is used.
  void check_readable() const;
  void check_unchanged() const;  // size or time of change differ: DUET_E_FORMAT "changed while it was read"

 private:
  std::string path_;
  Bytes bytes_;
  int64_t changed_ns_ = 0;
  int fd_ = -1;
};

// The whole of a small file. DUET_E_LIMIT above `limit` bytes; same errors as MappedFile.
std::string read_file(const std::string& path, uint64_t limit);

// Writes beside the target, then renames over it. Until commit() returns, the target is untouched; without commit() the
// destructor removes the temporary file. The mode of an existing target is kept.
class AtomicFile {
 public:
  AtomicFile(std::string path, bool overwrite);  // DUET_E_EXISTS, DUET_E_IO (folder missing, not writable, target no regular file)
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();
  void write(Bytes bytes);  // DUET_E_IO: disk full names the bytes written so far
  void commit();            // fsync, rename (or link, when not overwriting), fsync of the folder

 private:
  std::string path_, temp_;
  bool overwrite_;
  int fd_ = -1;
  uint64_t written_ = 0;
};

// "dir/name" -> "dir"; "name" -> "."
std::string folder_of(const std::string& path);
// Without links, `.` and `..`; "" and errno if there is no such file.
std::string real_path(const std::string& path);
bool is_regular_file(const std::string& path);
bool is_folder(const std::string& path);

}  // namespace duet
