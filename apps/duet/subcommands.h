// One function per subcommand, each in the file of its name. They throw Usage, Failure or Interrupted (terminal.h).
#pragma once
#include <string>
#include <vector>

namespace duet {

using Arguments = std::vector<std::string>;  // what follows the subcommand's name

void run_generate(const Arguments& arguments);
void run_logits(const Arguments& arguments);
void run_tokenize(const Arguments& arguments);
void run_eval(const Arguments& arguments);
void run_info(const Arguments& arguments);
void run_convert(const Arguments& arguments);
void run_init(const Arguments& arguments);
void run_backends(const Arguments& arguments);
void run_doctor(const Arguments& arguments);
void run_bench(const Arguments& arguments);

}  // namespace duet
