// The directory of a zip archive as torch.save writes it: entries stored, not compressed, one after the other from byte 0
// to the central directory. There is exactly one way to read such a file; whatever leaves room for a second reading
// (gaps, overlaps, duplicates, bytes before or after, headers that differ) is refused. Names are keys, never paths.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/reader.h"

namespace duet {

uint32_t crc32(Bytes bytes);  // the one of zip: polynomial 0xedb88320

struct ZipEntry {
  std::string_view name;
  uint64_t header = 0, data = 0, size = 0;  // offsets in the file
  uint32_t crc = 0;
  uint16_t flags = 0;
};

class Zip {
 public:
  Zip(Bytes bytes, std::string_view file);

  const std::vector<ZipEntry>& entries() const { return entries_; }  // by name
  const ZipEntry* find(std::string_view name) const;
  Bytes data(const ZipEntry& e) const { return bytes_.subspan(e.data, e.size); }
  void check_crc(const ZipEntry& e) const;

 private:
  struct Central {
    uint64_t offset, size, count;
  };
  Central end_records() const;
  void read_central(const Central& central);
  void check_cover(const Central& central);
  void check_local(ZipEntry& e, uint64_t next) const;
  void check_descriptor(const ZipEntry& e, uint64_t gap) const;
  void sort_by_name();

  Bytes bytes_;
  std::string file_;
  std::vector<ZipEntry> entries_;
};

}  // namespace duet
