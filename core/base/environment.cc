#include "base/environment.h"

#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>

#include <cerrno>

#include "base/error.h"
#include "base/file.h"

namespace duet {
namespace {

// The file that this code was linked into. The program itself has no name in the link map (and argv[0] proves nothing).
std::string own_file() {
  Dl_info info;
  void* map = nullptr;
  const void* here = reinterpret_cast<const void*>(&own_file);
  const bool found = ::dladdr1(here, &info, &map, RTLD_DL_LINKMAP) != 0 && map != nullptr;
  const char* name = found ? static_cast<const link_map*>(map)->l_name : "";
  if (*name == '\0') name = "/proc/self/exe";
  std::string real = real_path(name);
  if (real.empty()) fail(DUET_E_IO, "{}: cannot find the folder of Duet's library: {}", name, os_reason(errno));
  return real;
}

}  // namespace

std::string environment(const char* name) {
  const char* value = ::secure_getenv(name);
  return value ? value : "";
}

std::string library_folder() {
  static const std::string folder = folder_of(own_file());  // once: a relative name would change its meaning with the working directory
  return folder;
}

std::string data_file(const std::string& relative) {
  const std::string near = library_folder() + "/../share/duet/" + relative, far = library_folder() + "/../../share/duet/" + relative;
  if (is_regular_file(near) || is_folder(near)) return near;
  if (is_regular_file(far) || is_folder(far)) return far;
  fail(DUET_E_NOT_FOUND, "{} is missing: it is neither at {} nor at {}; install Duet with its data", relative, near, far);
}

}  // namespace duet
