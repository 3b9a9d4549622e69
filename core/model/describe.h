// What a file holds, for people and programs: the JSON of duet_file_info.
#pragma once
#include <cstdint>
#include <string>

#include "formats/checkpoint.h"

namespace duet {

// flags: DUET_FILE_*. VERIFY reads every value. Throws where the file is neither a valid model nor a file of states.
std::string describe_checkpoint(const Checkpoint& checkpoint, const Log& log, uint32_t flags);

}  // namespace duet
