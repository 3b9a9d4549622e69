// What the command itself reads and writes: texts, token lists, and checks of outputs before the work begins.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

// The whole of a file or pipe; "" reads standard input. Failure names the file and the reason; at most 1 GiB.
std::string read_text(const std::string& path);

// Whole numbers between blanks and commas, or a JSON array of them. Failure names `source` and the offset.
std::vector<int32_t> parse_tokens(std::string_view text, const std::string& source);

// Refuses an output that cannot be written, or that would replace one of `inputs` (files, or folders of models), before any work.
void check_output(const std::string& path, const std::vector<std::string>& inputs);
void check_absent(const std::string& path);  // convert, init without --force

std::string default_model();      // the bundled model, relative to this program
uint64_t peak_memory();           // bytes; 0 if the system does not tell

}  // namespace duet
