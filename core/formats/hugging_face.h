// A folder as Hugging Face's libraries save models: config.json beside model.safetensors, or beside shards and their index.
#pragma once
#include <functional>
#include <string>

#include "formats/view.h"

namespace duet {

// `open` maps a file and keeps it alive as long as the views. The directory comes with official names.
Directory read_hugging_face(const std::string& config, const std::function<Bytes(const std::string& path)>& open);

}  // namespace duet
