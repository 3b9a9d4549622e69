// Writes pickles opcode by opcode, as torch.save does, and whole .pth files of small tensors.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "formats/zip_builder.h"

namespace duet {

class PickleBuilder {
 public:
  std::string bytes = std::string("\x80\x02", 2);

  PickleBuilder& raw(std::string_view s) { return bytes.append(s), *this; }
  PickleBuilder& text(std::string_view s) { return raw("X").raw(little(s.size(), 4)).raw(s); }
  PickleBuilder& global(std::string_view module, std::string_view name) { return raw("c").raw(module).raw("\n").raw(name).raw("\n"); }
  PickleBuilder& integer(int64_t v) { return raw("\x8a\x08").raw(little(static_cast<uint64_t>(v), 8)); }
  PickleBuilder& tuple(const std::vector<int64_t>& v) {
    raw("(");
    for (const int64_t i : v) integer(i);
    return raw("t");
  }
  PickleBuilder& storage(std::string_view type, std::string_view key, int64_t elements, std::string_view location = "cpu") {
    return raw("(").text("storage").global("torch", type).text(key).text(location).integer(elements).raw("tQ");
  }
  PickleBuilder& ordered_dict() { return global("collections", "OrderedDict").raw(")R"); }
  // The call of _rebuild_tensor_v2 around a storage
  PickleBuilder& tensor(std::string_view type, std::string_view key, int64_t elements, int64_t offset, const std::vector<int64_t>& shape,
                        const std::vector<int64_t>& stride) {
    return global("torch._utils", "_rebuild_tensor_v2")
        .raw("(")
        .storage(type, key, elements)
        .integer(offset)
        .tuple(shape)
        .tuple(stride)
        .raw("\x89")
        .ordered_dict()
        .raw("tR");
  }
};

struct PthTensor {
  std::string name = "a", type = "FloatStorage", key = "0";
  int64_t elements = 0, offset = 0;
  std::vector<int64_t> shape = {}, stride = {};
};

inline std::string pickle_of(const std::vector<PthTensor>& tensors) {
  PickleBuilder p;
  p.raw("}(");
  for (const PthTensor& t : tensors) p.text(t.name).tensor(t.type, t.key, t.elements, t.offset, t.shape, t.stride);
  return p.raw("u.").bytes;
}

// A .pth with this pickle and these storages ("0", "1", ...)
inline std::string pth_of(const std::string& pickle, const std::vector<std::string>& storages, ZipBuilder z = {}) {
  z.add("archive/data.pkl", pickle);
  for (size_t i = 0; i < storages.size(); ++i) z.add("archive/data/" + std::to_string(i), storages[i]);
  z.add("archive/version", "3\n");
  return z.finish();
}

}  // namespace duet
