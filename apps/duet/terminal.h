// Standard output and standard error as the command uses them, and how it is interrupted.
#pragma once
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

namespace duet {

// How a command ends other than well; main() turns each into its exit code.
struct Failure : std::exception {  // 1: the work failed
  explicit Failure(std::string t) : text(std::move(t)) {}
  const char* what() const noexcept override { return text.c_str(); }
  std::string text;
};
struct Usage : Failure {  // 2: the command line is wrong
  using Failure::Failure;
};
struct Interrupted : std::exception {};  // 130: SIGINT, SIGTERM, SIGHUP, or nobody reads standard output any more

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

// Opens what is missing of descriptors 0 to 2, so that no file of ours is taken for one of them; ignores SIGPIPE and
// SIGXFSZ; makes SIGINT, SIGTERM and SIGHUP set the flag. A second signal, or 0.8 s without an answer to the first, ends the
// process.
void prepare_process();
const volatile int32_t* interrupt_flag();
void check_interrupted();  // throws Interrupted

// Unbuffered: what was written is out, whatever happens next.
void write_out(std::string_view bytes);        // Failure, Interrupted
void write_error(std::string_view bytes) noexcept;

bool out_is_terminal();
bool error_is_terminal();

enum class Colour { red, green, yellow, dim, bold };
// `text` in a colour when that stream is a terminal and NO_COLOR is unset
std::string on_out(Colour colour, std::string_view text);
std::string on_error(Colour colour, std::string_view text);

}  // namespace duet
