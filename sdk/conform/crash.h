// A plugin that crashes takes the program with it; the last words then name what was running.
#pragma once
#include <string>

namespace conform {

void name_crashes();  // from now on, fatal signals print what now_running() was last told
void now_running(const std::string& what);

}  // namespace conform
