// The safetensors container: 8 bytes of length, a JSON header, the tensors' bytes. The tensors must cover the bytes exactly.
#pragma once
#include <string_view>

#include "formats/view.h"

namespace duet {

Directory read_safetensors(Bytes bytes, std::string_view file);

}  // namespace duet
