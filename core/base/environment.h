// The only place that reads environment variables and the program's own location. Under elevated privileges (AT_SECURE)
// every variable reads as unset.
#pragma once
#include <string>

namespace duet {

std::string environment(const char* name);  // "" if unset, empty or not to be trusted
std::string library_folder();               // folder of the file that holds this code (libduet.so, or the program), absolute
// `share/duet/...` of this build or install tree: <library_folder>/../share/duet, or <library_folder>/../../share/duet under multiarch
std::string data_file(const std::string& relative);

}  // namespace duet
