#include <set>

#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"
#include "formats/view.h"

namespace duet {
namespace {

constexpr size_t kAlign = 64;

uint64_t bytes_of(const TensorToWrite& t) {
  uint64_t n = dtype_bytes(t.dtype);
  for (const uint64_t d : t.shape)
    if (!checked_mul(n, d, n)) fail(DUET_E_INVALID, "tensor {}: more bytes than can be counted", printable(t.name));
  return n;
}

std::string header_of(const std::vector<TensorToWrite>& tensors, const std::map<std::string, std::string>& metadata) {
  std::string out = "{";
  const auto comma = [&] { return out.size() > 1 ? "," : ""; };
  if (!metadata.empty()) {
    out += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) out += duet::format("{}{}:{}", out.back() == '{' ? "" : ",", json_quote(key), json_quote(value));
    out += "}";
  }
  std::set<std::string_view> names;
  uint64_t offset = 0;
  for (const TensorToWrite& t : tensors) {
    if (t.name.empty() || t.name.size() > kMaxName || t.name == "__metadata__" || !utf8_valid(t.name) || !names.insert(t.name).second)
      fail(DUET_E_INVALID, "\"{}\" cannot be the name of another tensor in a safetensors file", printable(t.name));
    std::string shape;
    for (const uint64_t d : t.shape) shape += duet::format("{}{}", shape.empty() ? "" : ",", d);
    uint64_t end = 0;
    if (!checked_add(offset, bytes_of(t), end)) fail(DUET_E_INVALID, "tensor {}: more bytes than can be counted", printable(t.name));
    out +=
        duet::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", comma(), json_quote(t.name), dtype_name(t.dtype), shape, offset, end);
    offset = end;
  }
  out += "}";
  out.append((kAlign - (8 + out.size()) % kAlign) % kAlign, ' ');
  return out;
}

}  // namespace

void write_safetensors(const std::vector<TensorToWrite>& tensors, const std::map<std::string, std::string>& metadata, const std::function<void(Bytes)>& sink) {
  const std::string header = header_of(tensors, metadata);
  std::array<std::byte, 8> length{};
  for (size_t i = 0; i < length.size(); ++i) length[i] = static_cast<std::byte>(header.size() >> 8 * i & 0xff);
  sink(length);
  sink(as_bytes(header));
  for (const TensorToWrite& t : tensors) {
    uint64_t written = 0;
    t.produce([&](Bytes b) {
      written += b.size();
      sink(b);
    });
    if (written != bytes_of(t)) fail(DUET_E_INTERNAL, "tensor {}: {} bytes were produced for a size of {}", printable(t.name), written, bytes_of(t));
  }
}

void save_safetensors(const std::string& path, bool overwrite, const std::vector<TensorToWrite>& tensors, const std::map<std::string, std::string>& metadata) {
  AtomicFile file(path, overwrite);
  write_safetensors(tensors, metadata, [&](Bytes b) { file.write(b); });
  file.commit();
}

}  // namespace duet
