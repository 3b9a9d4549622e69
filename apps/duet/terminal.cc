#include "terminal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

namespace duet {
namespace {

volatile int32_t interrupted = 0;

extern "C" void on_signal(int) {
  if (interrupted != 0) _exit(EXIT_INTERRUPTED);
  interrupted = 1;
  const itimerval soon{{0, 0}, {0, 800'000}};
  ::setitimer(ITIMER_REAL, &soon, nullptr);
}

extern "C" void on_alarm(int) { _exit(EXIT_INTERRUPTED); }

void handle(int signal, void (*handler)(int)) {
  struct sigaction old {};
  if (::sigaction(signal, nullptr, &old) == 0 && old.sa_handler == SIG_IGN) return;  // nohup, or in the background of a script
  struct sigaction action {};
  action.sa_handler = handler;  // no SA_RESTART: blocking reads and writes must see the flag
  sigemptyset(&action.sa_mask);
  ::sigaction(signal, &action, nullptr);
}

// 0, or errno
int write_all(int fd, std::string_view bytes, bool stop_when_interrupted) noexcept {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n >= 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      pollfd p{fd, POLLOUT, 0};
      ::poll(&p, 1, 100);
    } else if (errno != EINTR) {
      return errno;
    }
    if (n < 0 && stop_when_interrupted && interrupted != 0) return EINTR;
  }
  return 0;
}

std::string coloured(bool wanted, Colour colour, std::string_view text) {
  if (!wanted) return std::string(text);
  constexpr const char* codes[] = {"31", "32", "33", "2", "1"};
  return fmt::format("\x1b[{}m{}\x1b[0m", codes[static_cast<int>(colour)], text);
}

bool colours_wanted() {
  const char* no = std::getenv("NO_COLOR");
  return no == nullptr || *no == '\0';
}

}  // namespace

void prepare_process() {
  for (int fd = 0; fd <= 2; ++fd) {
    // The wrong direction on purpose: using a closed stream stays an error instead of vanishing silently.
    if (::fcntl(fd, F_GETFD) == -1 && errno == EBADF) (void)::open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
  }
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may grow no further is an error of write()
  std::signal(SIGALRM, on_alarm);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) handle(signal, on_signal);
}

const volatile int32_t* interrupt_flag() { return &interrupted; }

void check_interrupted() {
  if (interrupted != 0) throw Interrupted();
}

void write_out(std::string_view bytes) {
  const int e = write_all(STDOUT_FILENO, bytes, true);
  if (e == EPIPE || e == EINTR) throw Interrupted();
  if (e != 0) throw Failure(fmt::format("standard output: {}", std::strerror(e)));
}

void write_error(std::string_view bytes) noexcept { (void)write_all(STDERR_FILENO, bytes, false); }

bool out_is_terminal() { return ::isatty(STDOUT_FILENO) == 1; }
bool error_is_terminal() { return ::isatty(STDERR_FILENO) == 1; }

std::string on_out(Colour colour, std::string_view text) { return coloured(out_is_terminal() && colours_wanted(), colour, text); }
std::string on_error(Colour colour, std::string_view text) { return coloured(error_is_terminal() && colours_wanted(), colour, text); }

}  // namespace duet
