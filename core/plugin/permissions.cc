#include "plugin/permissions.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/error.h"
#include "base/file.h"

namespace duet {
namespace {

void check_one(const std::string& path, const char* what) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0) fail(errno == ENOENT || errno == ENOTDIR ? DUET_E_NOT_FOUND : DUET_E_IO, "{}: {}", path, os_reason(errno));
  if (s.st_uid != 0 && s.st_uid != ::geteuid())
    fail(DUET_E_INVALID, "{}: {} belongs to user {}; plugins are taken only from root and from this user ({})", path, what, s.st_uid, ::geteuid());
  if (s.st_mode & (S_IWGRP | S_IWOTH))
    fail(DUET_E_INVALID, "{}: {} can be changed by others (mode {:04o}), so it is not taken; run: chmod go-w '{}'", path, what, s.st_mode & 07777, path);
}

}  // namespace

void check_permissions(const std::string& path) {
  const std::string real = real_path(path);
  if (real.empty()) fail(errno == ENOENT || errno == ENOTDIR ? DUET_E_NOT_FOUND : DUET_E_IO, "{}: {}", path, os_reason(errno));
  check_one(real, "the file");
  check_one(folder_of(real), "the folder");
  if (folder_of(path) != folder_of(real)) check_one(folder_of(path), "the folder");
}

}  // namespace duet
