// Loading a plugin runs it with all our rights, so nobody but root and this user may be able to replace it.
#pragma once
#include <string>

namespace duet {

// The file behind `path` (links followed), and the folders of the link and of the file: owned by root or this user, not
// writable by group or others. Otherwise DUET_E_INVALID, and the sentence says what to change.
void check_permissions(const std::string& path);

}  // namespace duet
