// The files of torch.save since PyTorch 1.6: a zip archive of a pickle that describes the tensors and one entry for each storage.
#pragma once
#include <string_view>

#include "formats/view.h"

namespace duet {

Directory read_pth(Bytes bytes, std::string_view file, const Notes& notes, bool verify);

}  // namespace duet
