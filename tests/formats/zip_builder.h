// Builds zip archives byte by byte, right by default; a test then changes single fields to be wrong.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

inline std::string little(uint64_t v, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(v >> 8 * i & 0xff);
  return out;
}

// Bit by bit, once for each byte there is, and nothing of the library's
inline uint32_t builder_crc(std::string_view data) {
  static const std::array<uint32_t, 256> of_byte = [] {
    std::array<uint32_t, 256> out;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t& crc = out[byte] = byte;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return out;
  }();
  uint32_t crc = ~0u;
  for (const char c : data) crc = crc >> 8 ^ of_byte[(crc ^ static_cast<unsigned char>(c)) & 255];
  return ~crc;
}

inline void patch(std::string& s, size_t at, uint64_t v, int bytes) { s.replace(at, static_cast<size_t>(bytes), little(v, bytes)); }

class ZipBuilder {
 public:
  bool descriptors = true, zip64_end = true;  // as torch.save writes; Python's zipfile does neither
  uint64_t alignment = 64;

  struct Entry {
    std::string name;
    size_t header, data, size, central;  // offsets in the archive; central is known after finish()
  };
  std::vector<Entry> entries;

  void add(const std::string& name, const std::string& data) {
    const uint32_t crc = builder_crc(data);
    Entry e{name, out_.size(), 0, data.size(), 0};
    out_ += little(0x04034b50, 4) + little(0, 2) + little(flags(), 2) + little(0, 2) + little(0, 4);
    const uint64_t size = descriptors ? 0 : data.size();
    out_ += little(descriptors ? 0 : crc, 4) + little(size, 4) + little(size, 4);
    const size_t unpadded = out_.size() + 4 + name.size() + 4;
    const size_t padding = alignment > 1 ? (alignment - unpadded % alignment) % alignment : 0;
    out_ += little(name.size(), 2) + little(alignment > 1 ? padding + 4 : 0, 2) + name;
    if (alignment > 1) out_ += "FB" + little(padding, 2) + std::string(padding, 'Z');
    e.data = out_.size();
    out_ += data;
    if (descriptors && !data.empty()) out_ += little(0x08074b50, 4) + little(crc, 4) + little(data.size(), 4) + little(data.size(), 4);
    entries.push_back(e);
  }

  std::string finish() {
    central = out_.size();
    for (Entry& e : entries) {
      const uint32_t crc = builder_crc(std::string_view(out_).substr(e.data, e.size));
      e.central = out_.size();
      out_ += little(0x02014b50, 4) + little(0, 4) + little(flags(), 2) + little(0, 2) + little(0, 4) + little(crc, 4) + little(e.size, 4) + little(e.size, 4);
      out_ += little(e.name.size(), 2) + little(0, 2) + little(0, 2) + little(0, 2) + little(0, 2) + little(0, 4) + little(e.header, 4) + e.name;
    }
    const size_t size = out_.size() - central, n = entries.size();
    if (zip64_end) {
      end64 = out_.size();
      out_ += little(0x06064b50, 4) + little(44, 8) + little(0, 4) + little(0, 8) + little(n, 8) + little(n, 8) + little(size, 8) + little(central, 8);
      locator = out_.size();
      out_ += little(0x07064b50, 4) + little(0, 4) + little(end64, 8) + little(1, 4);
    }
    end = out_.size();
    out_ += little(0x06054b50, 4) + little(0, 4) + little(n, 2) + little(n, 2) + little(size, 4) + little(central, 4) + little(0, 2);
    return out_;
  }

  size_t central = 0, end64 = 0, locator = 0, end = 0;  // after finish()

 private:
  uint16_t flags() const { return static_cast<uint16_t>(0x800 | (descriptors ? 8 : 0)); }
  std::string out_;
};

}  // namespace duet
