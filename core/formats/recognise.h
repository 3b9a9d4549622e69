// What a file is, by its bytes. A suffix is only worth a warning.
#pragma once
#include <string_view>

#include "formats/view.h"

namespace duet {

enum class Content { zip, safetensors, json, other };

Content recognise(Bytes bytes);
// For Content::other: fails, saying what the file looks like instead of weights.
[[noreturn]] void refuse(Bytes bytes, std::string_view file);
void note_suffix(std::string_view path, Content content, const Notes& notes);

}  // namespace duet
