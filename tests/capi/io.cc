// A disk that fails: EIO and a full disk at any call while something is saved or read, short reads and writes, interruptions,
// and a process that dies in the middle. A program of its own, because it stands between the library and the system's calls.
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <tuple>

#include "support/api.h"
#include "support/golden.h"

using namespace api;

namespace {

enum class Call { none, write, sync, close, rename, read };
enum class Way { fail, once, little, die };  // with `error`; with `error`, but only once; half of what was asked for at a time; the process ends

struct Fault {
  Call call = Call::none;
  Way way = Way::fail;
  int error = 0;
  int64_t until = 0;  // calls of this kind that go well before
  int64_t met = 0;
} fault;

// Whether this call is the one that goes wrong; errno is set.
bool goes_wrong(Call call) {
  if (call != fault.call || fault.until-- > 0) return false;
  ++fault.met;
  if (fault.way == Way::die) ::_exit(9);
  if (fault.way == Way::once) fault.call = Call::none;
  errno = fault.error;
  return fault.way != Way::little;
}

size_t share(Call call, size_t n) { return fault.call == call && fault.way == Way::little && n > 1 ? n / 2 : n; }

}  // namespace

// The library's calls come here first: a program's symbols stand before those of the libraries that it is linked with.
#define TO_LIBRARY extern "C" __attribute__((visibility("default")))

TO_LIBRARY ssize_t write(int fd, const void* from, size_t n) { return goes_wrong(Call::write) ? -1 : ::syscall(SYS_write, fd, from, share(Call::write, n)); }
TO_LIBRARY ssize_t pread(int fd, void* to, size_t n, off_t at) { return goes_wrong(Call::read) ? -1 : ::syscall(SYS_pread64, fd, to, share(Call::read, n), at); }
TO_LIBRARY int fsync(int fd) { return goes_wrong(Call::sync) ? -1 : static_cast<int>(::syscall(SYS_fsync, fd)); }
TO_LIBRARY int rename(const char* from, const char* to) noexcept { return goes_wrong(Call::rename) ? -1 : static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0)); }
TO_LIBRARY int close(int fd) {
  const bool wrong = goes_wrong(Call::close);  // closed all the same, as the system does it
  const int error = errno, rc = static_cast<int>(::syscall(SYS_close, fd));
  return wrong ? (errno = error, -1) : rc;
}

namespace {

namespace fs = std::filesystem;

struct Folder {
  fs::path path = fs::temp_directory_path() / ("duet_io_" + std::to_string(::getpid()));
  Folder() { fs::create_directory(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const char* name) const { return path / name; }
  size_t n_files() const { return static_cast<size_t>(std::distance(fs::directory_iterator(path), fs::directory_iterator())); }
};

// Everything that the library writes, over a file that exists.
struct Writers {
  Library lib = library(1);
  Model m = load(lib, golden::path("tiny.pth"), "reference");
  State s = state(m);
  static constexpr int kN = 4;
  duet_status operator()(int which, const std::string& path) const {
    auto convert = DUET_INIT(duet_convert_options);
    convert.overwrite = 1;
    auto init = DUET_INIT(duet_init_options);
    init.n_layer = 1;
    init.n_embd = init.n_vocab = 64;
    init.overwrite = 1;
    switch (which) {
      case 0: return duet_state_save_file(s.get(), 0, path.c_str());
      case 1: return duet_model_save(m.get(), path.c_str());
      case 2: return duet_file_convert(lib.get(), golden::path("tiny.pth").c_str(), path.c_str(), &convert);
      default: return duet_file_init(lib.get(), path.c_str(), &init);
    }
  }
};

void put(const std::string& path, const std::string& content) { std::ofstream(path, std::ios::binary) << content; }

}  // namespace

TEST_CASE("an error of the disk at any call while a file is saved leaves the old one, or the new one whole") {
  const Folder folder;
  const Writers write_file;
  const std::string path = folder / "out";
  for (int which = 0; which < Writers::kN; ++which) {
    check(write_file(which, path));
    const std::string fresh = golden::slurp(path);
    int64_t n_faults = 0;
    for (const Call call : {Call::write, Call::sync, Call::close, Call::rename})
      for (const int error : {EIO, ENOSPC, EDQUOT}) {
        for (int64_t k = 0;; k += 1 + k / 8) {
          put(path, "old");
          fault = {call, Way::fail, error, k};
          const duet_status status = write_file(which, path);
          const bool met = fault.met > 0;
          fault = {};
          if (!met) break;
          ++n_faults;
          const std::string sentence = duet_last_error(), left = golden::slurp(path);
          INFO("writer " << which << ", call " << static_cast<int>(call) << " number " << k << ": " << sentence);
          const bool in_place = left == fresh;  // the last calls only make sure that its name lasts
          const bool after_rename = (call == Call::sync && k == 1) || (call == Call::close && k > 0);
          CHECK(in_place == after_rename);
          CHECK((in_place || left == "old"));
          CHECK(folder.n_files() == 1);
          if (call == Call::close && status == DUET_OK) continue;  // of the folder, or of a file that was read
          CHECK(status == DUET_E_IO);
          CHECK(sentence.find(path) == 0);
          CHECK(sentence.find(std::strerror(error)) != std::string::npos);
        }
      }
    CHECK(n_faults > 3 * 4);
  }
}

TEST_CASE("interrupted and short writes are no errors") {
  const Folder folder;
  const Writers write_file;
  const std::string path = folder / "out";
  for (int which = 0; which < Writers::kN; ++which) {
    check(write_file(which, path));
    const std::string fresh = golden::slurp(path);
    for (const Fault& f : {Fault{Call::write, Way::once, EINTR}, Fault{Call::write, Way::little}}) {
      put(path, "old");
      fault = f;
      const duet_status status = write_file(which, path);
      const int64_t met = fault.met;
      fault = {};
      check(status);
      CHECK(met > 0);
      CHECK(golden::slurp(path) == fresh);
    }
  }
}

TEST_CASE("a process that dies at any call while it saves leaves the old file or the new one, whole") {
  const Folder folder;
  const std::string path = folder / "out";
  for (int which = 0; which < 2; ++which) {
    check(Writers()(which, path));
    const std::string fresh = golden::slurp(path);
    int n_old = 0, n_new = 0;
    for (const Call call : {Call::write, Call::sync, Call::close, Call::rename})
      for (int64_t k = 0;; k += 1 + k / 4) {
        put(path, "old");
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
          const Writers write_file;  // a library of the child's own
          fault = {call, Way::die, 0, k};
          const duet_status status = write_file(which, path);
          ::_exit(status == DUET_OK ? 0 : 1);
        }
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        REQUIRE(WIFEXITED(status));
        if (WEXITSTATUS(status) != 9) {  // it did not come to this call, and saved
          CHECK(WEXITSTATUS(status) == 0);
          CHECK(golden::slurp(path) == fresh);
          break;
        }
        const std::string left = golden::slurp(path);
        n_old += left == "old";
        n_new += left == fresh;
        CHECK((left == "old" || left == fresh));
      }
    CHECK(n_old >= 4);
    CHECK(n_new >= 1);
  }
}

TEST_CASE("an error of the disk while a file is read names the file and the byte") {
  const auto lib = library(1);
  size_t n = 0;
  const auto info_of = [&](const std::string& path, uint32_t flags) { return duet_file_info(lib.get(), path.c_str(), flags, nullptr, 0, &n); };
  const std::string model = golden::path("tiny.pth"), config = golden::path("tiny_fla") + "/config.json";
  for (const auto& [path, flags, named, k, byte] : {std::tuple(model, uint32_t{DUET_FILE_VERIFY}, model, int64_t{0}, "byte 0"),
                                                    std::tuple(model, uint32_t{DUET_FILE_VERIFY}, model, int64_t{1}, "byte 1048576"),
                                                    std::tuple(golden::path("tiny_fla"), uint32_t{0}, config, int64_t{0}, "byte 0")}) {
    check(info_of(path, flags));
    fault = {Call::read, Way::fail, EIO, k};
    const duet_status status = info_of(path, flags);
    fault = {};
    INFO(duet_last_error());
    CHECK(status == DUET_E_IO);
    CHECK(std::string(duet_last_error()) == named + ": reading at " + byte + ": " + std::strerror(EIO));
    for (const Fault& f : {Fault{Call::read, Way::once, EINTR}, Fault{Call::read, Way::little}}) {
      fault = f;
      const duet_status interrupted = info_of(path, flags);
      const int64_t met = fault.met;
      fault = {};
      check(interrupted);
      CHECK(met > 0);
    }
  }
}
