// From the names and orientations that are in use to the official ones, by changing views only.
#pragma once
#include <string_view>

#include "formats/view.h"

namespace duet {

// Names of Hugging Face / flash-linear-attention files and their older variants, wrappers' prefixes, low-rank pairs that
// were stored transposed, fused token-shift vectors, squeezed vectors. Official files come out as they went in.
// DUET_E_FORMAT if two tensors end up with one name.
void use_official_names(Directory& directory, std::string_view file);

}  // namespace duet
