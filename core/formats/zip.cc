#include "formats/zip.h"

#include <algorithm>
#include <array>
#include <optional>

namespace duet {
namespace {

constexpr uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50, kLocator64 = 0x07064b50, kDescriptor = 0x08074b50;
constexpr uint64_t kEndBytes = 22, kEnd64Bytes = 56, kLocator64Bytes = 20, kCentralBytes = 46, kMaxEntries = 65536;
constexpr uint32_t kFull32 = 0xffffffff;  // "the value stands in the zip64 field"
constexpr uint16_t kFull16 = 0xffff, kEncrypted = 0x2041, kHasDescriptor = 0x0008, kUtf8 = 0x0800, kZip64 = 0x0001;

constexpr auto kCrcTables = [] {
  std::array<std::array<uint32_t, 256>, 8> t{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (c & 1 ? 0xedb88320u : 0u);
    t[0][i] = c;
  }
  for (size_t k = 1; k < 8; ++k)
    for (uint32_t i = 0; i < 256; ++i) t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 0xff];
  return t;
}();

// The body of the zip64 field among the extra fields, if there is one.
std::optional<ByteReader> zip64_field(ByteReader extra, std::string_view file, std::string_view name) {
  std::optional<ByteReader> found;
  while (extra.left() > 0) {
    const uint16_t id = extra.u16("extra field");
    const uint16_t n = extra.u16("extra field");
    const uint64_t at = extra.offset();
    const Bytes body = extra.take(n, "extra field");
    if (id != kZip64) continue;
    if (found) fail(DUET_E_FORMAT, "{}: entry {} has two zip64 fields, the second at byte {}", file, printable(name), at);
    found.emplace(body, file, at);
  }
  return found;
}

const char* method_name(uint16_t method) { return method == 8 ? "deflate" : method == 9 ? "deflate64" : method == 93 ? "zstd" : "a compression"; }

}  // namespace

uint32_t crc32(Bytes bytes) {
  const auto& t = kCrcTables;
  const auto* p = reinterpret_cast<const unsigned char*>(bytes.data());
  size_t n = bytes.size();
  uint32_t c = ~0u;
  for (; n >= 8; n -= 8, p += 8) {
    c ^= uint32_t{p[0]} | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24;
    c = t[7][c & 0xff] ^ t[6][c >> 8 & 0xff] ^ t[5][c >> 16 & 0xff] ^ t[4][c >> 24] ^ t[3][p[4]] ^ t[2][p[5]] ^ t[1][p[6]] ^ t[0][p[7]];
  }
  for (; n > 0; --n, ++p) c = (c >> 8) ^ t[0][(c ^ *p) & 0xff];
  return ~c;
}

Zip::Zip(Bytes bytes, std::string_view file) : bytes_(bytes), file_(file) {
  const Central central = end_records();
  read_central(central);
  check_cover(central);
  sort_by_name();
}

// The end record must be the last 22 bytes: an archive with a comment could hide a second end record in it.
Zip::Central Zip::end_records() const {
  if (bytes_.size() < kEndBytes) fail(DUET_E_FORMAT, "{}: {} bytes; the smallest zip archive has {}", file_, bytes_.size(), kEndBytes);
  const uint64_t end = bytes_.size() - kEndBytes;
  ByteReader r(bytes_.subspan(end), file_, end);
  if (r.u32("zip end record") != kEnd)
    fail(DUET_E_FORMAT, "{}: no zip end record at byte {}; the archive is cut short or bytes were added after it", file_, end);
  const uint16_t disk = r.u16("disk"), central_disk = r.u16("disk"), count_here = r.u16("entry count"), count16 = r.u16("entry count");
  const uint32_t size32 = r.u32("directory size"), offset32 = r.u32("directory offset");
  if (const uint16_t comment = r.u16("comment length"); comment != 0)
    fail(DUET_E_FORMAT, "{}: the zip end record at byte {} announces a comment of {} bytes, but the file ends there", file_, end, comment);

  Central c{offset32, size32, count16};
  uint64_t directory_end = end;
  uint64_t disks = uint64_t{disk} | central_disk | (count_here ^ count16);
  const bool zip64 = end >= kLocator64Bytes && ByteReader(bytes_.subspan(end - kLocator64Bytes), file_).u32("zip64 locator") == kLocator64;
  if (zip64) {
    const uint64_t locator = end - kLocator64Bytes;
    ByteReader l(bytes_.subspan(locator), file_, locator);
    l.skip(4, "zip64 locator");
    disks |= l.u32("disk");
    const uint64_t end64 = l.u64("zip64 end record's offset");
    if (locator < kEnd64Bytes || end64 != locator - kEnd64Bytes)
      fail(DUET_E_FORMAT, "{}: the zip64 locator at byte {} points to byte {}, not to the {} bytes before itself", file_, locator, end64, kEnd64Bytes);
    if (const uint32_t total = l.u32("number of disks"); total > 1) disks |= total;
    ByteReader e(bytes_.subspan(end64), file_, end64);
    if (e.u32("zip64 end record") != kEnd64 || e.u64("zip64 end record's size") != kEnd64Bytes - 12)
      fail(DUET_E_FORMAT, "{}: no zip64 end record of {} bytes at byte {}", file_, kEnd64Bytes, end64);
    e.skip(4, "versions");
    disks |= e.u32("disk") | e.u32("disk");
    const uint64_t count_here64 = e.u64("entry count");
    c.count = e.u64("entry count");
    c.size = e.u64("directory size");
    c.offset = e.u64("directory offset");
    disks |= count_here64 ^ c.count;
    if ((count16 != kFull16 && count16 != c.count) || (size32 != kFull32 && size32 != c.size) || (offset32 != kFull32 && offset32 != c.offset))
      fail(DUET_E_FORMAT, "{}: the zip end records at bytes {} and {} differ ({} and {} entries, directory at {} and {})", file_, end64, end, c.count, count16,
           c.offset, offset32);
    directory_end = end64;
  } else if (count16 == kFull16 || size32 == kFull32 || offset32 == kFull32) {
    fail(DUET_E_FORMAT, "{}: the zip end record at byte {} refers to a zip64 record, but there is none", file_, end);
  }
  if (disks != 0) fail(DUET_E_UNSUPPORTED, "{}: the zip end record at byte {} is of an archive in several parts; join them first", file_, end);
  uint64_t stop = 0;
  if (!checked_add(c.offset, c.size, stop) || stop != directory_end)
    fail(DUET_E_FORMAT, "{}: the zip directory lies at bytes {} to {}+{}, but must end at byte {}", file_, c.offset, c.offset, c.size, directory_end);
  if (c.count > kMaxEntries) fail(DUET_E_LIMIT, "{}: {} zip entries, more than the {} allowed", file_, c.count, kMaxEntries);
  if (c.count > c.size / kCentralBytes)
    fail(DUET_E_FORMAT, "{}: {} zip entries cannot stand in a directory of {} bytes at byte {}", file_, c.count, c.size, c.offset);
  return c;
}

void Zip::read_central(const Central& central) {
  entries_.reserve(central.count);
  ByteReader r(bytes_.subspan(central.offset, central.size), file_, central.offset);
  for (uint64_t i = 0; i < central.count; ++i) {
    const uint64_t at = r.offset();
    if (r.u32("zip directory entry") != kCentral) fail(DUET_E_FORMAT, "{}: zip entry {} does not begin at byte {}", file_, i, at);
    ZipEntry e;
    r.skip(4, "versions");
    e.flags = r.u16("flags");
    const uint16_t method = r.u16("method");
    r.skip(4, "time");
    e.crc = r.u32("checksum");
    uint64_t stored = r.u32("stored size");
    e.size = r.u32("size");
    const uint16_t name_bytes = r.u16("name length"), extra_bytes = r.u16("extra length"), comment_bytes = r.u16("comment length"), disk = r.u16("disk");
    r.skip(6, "attributes");
    e.header = r.u32("offset");
    e.name = r.text(name_bytes, "name");
    const uint64_t extra_at = r.offset();
    const Bytes extra = r.take(extra_bytes, "extra fields");
    r.skip(comment_bytes, "comment");
    const std::string name = printable(e.name);

    const size_t wide = (e.size == kFull32) + (stored == kFull32) + (e.header == kFull32);
    auto z = zip64_field(ByteReader(extra, file_, extra_at), file_, e.name);
    if (wide * 8 != (z ? z->left() : 0))
      fail(DUET_E_FORMAT, "{}: entry {} at byte {} needs a zip64 field of {} bytes and has {}", file_, name, at, wide * 8, z ? z->left() : 0);
    if (e.size == kFull32) e.size = z->u64("size");
    if (stored == kFull32) stored = z->u64("stored size");
    if (e.header == kFull32) e.header = z->u64("offset");
    if (e.header >= central.offset)
      fail(DUET_E_FORMAT, "{}: entry {} at byte {} would begin at byte {}, beyond the {} bytes of entries", file_, name, at, e.header, central.offset);

    if (e.flags & kEncrypted) fail(DUET_E_UNSUPPORTED, "{}: entry {} at byte {} is encrypted", file_, name, at);
    if (method != 0)
      fail(DUET_E_UNSUPPORTED, "{}: entry {} at byte {} is compressed ({}, method {}); weights are read in place, so repack it stored", file_, name, at,
           method_name(method), method);
    if (e.flags & ~(kHasDescriptor | kUtf8))
      fail(DUET_E_UNSUPPORTED, "{}: entry {} at byte {} has flags {:#06x}, of which only {:#06x} are known", file_, name, at, e.flags, kHasDescriptor | kUtf8);
    if (disk != 0) fail(DUET_E_UNSUPPORTED, "{}: entry {} at byte {} lies in part {} of an archive in several parts", file_, name, at, disk);
    if (stored != e.size) fail(DUET_E_FORMAT, "{}: entry {} at byte {} is stored, yet its sizes {} and {} differ", file_, name, at, stored, e.size);
    entries_.push_back(e);
  }
  if (r.left() != 0) fail(DUET_E_FORMAT, "{}: {} bytes after the last zip directory entry, at byte {}", file_, r.left(), r.offset());
}

void Zip::check_cover(const Central& central) {
  std::sort(entries_.begin(), entries_.end(), [](const ZipEntry& a, const ZipEntry& b) { return a.header < b.header; });
  const uint64_t first = entries_.empty() ? central.offset : entries_.front().header;
  if (first != 0) fail(DUET_E_FORMAT, "{}: the {} bytes from byte 0 on belong to no zip entry", file_, first);
  for (size_t i = 0; i < entries_.size(); ++i) check_local(entries_[i], i + 1 < entries_.size() ? entries_[i + 1].header : central.offset);
}

// The entry occupies [header, next) exactly and its own header says what the directory says.
void Zip::check_local(ZipEntry& e, uint64_t next) const {
  const std::string name = printable(e.name);
  ByteReader r(bytes_.subspan(e.header), file_, e.header);
  if (r.u32("zip entry") != kLocal) fail(DUET_E_FORMAT, "{}: entry {} does not begin at byte {}", file_, name, e.header);
  const auto same = [&](const char* what, uint64_t local, uint64_t central) {
    if (local != central)
      fail(DUET_E_FORMAT, "{}: entry {} at byte {}: {} is {} in its header but {} in the directory", file_, name, e.header, what, local, central);
  };
  r.skip(2, "version");
  same("flags", r.u16("flags"), e.flags);
  same("method", r.u16("method"), 0);
  r.skip(4, "time");
  const uint32_t crc = r.u32("checksum");
  uint64_t stored = r.u32("stored size"), size = r.u32("size");
  const uint16_t name_bytes = r.u16("name length"), extra_bytes = r.u16("extra length");
  const std::string_view local_name = r.text(name_bytes, "name");
  if (local_name != e.name) fail(DUET_E_FORMAT, "{}: entry {} at byte {} is named {} in its header", file_, name, e.header, printable(local_name));
  const uint64_t extra_at = r.offset();
  auto z = zip64_field(ByteReader(r.take(extra_bytes, "extra fields"), file_, extra_at), file_, e.name);
  if (size == kFull32 && z) size = z->u64("size");
  if (stored == kFull32 && z) stored = z->u64("stored size");
  const bool late = e.flags & kHasDescriptor;  // then the header may leave the numbers to the descriptor
  if (!late || crc != 0) same("checksum", crc, e.crc);
  if (!late || size != 0) same("size", size, e.size);
  if (!late || stored != 0) same("stored size", stored, e.size);

  e.data = r.offset();
  if (next < e.data || next - e.data < e.size)
    fail(DUET_E_FORMAT, "{}: entry {} at byte {} has {} bytes from byte {} on and overlaps what begins at byte {}", file_, name, e.header, e.size, e.data,
         next);
  check_descriptor(e, next - e.data - e.size);
}

// Behind the data: nothing, or (after a stream was written) a descriptor of 16 bytes, 24 in zip64.
void Zip::check_descriptor(const ZipEntry& e, uint64_t gap) const {
  const uint64_t at = e.data + e.size;
  if (gap == 0 && (!(e.flags & kHasDescriptor) || e.size == 0)) return;
  if (!(e.flags & kHasDescriptor) || (gap != 16 && gap != 24))
    fail(DUET_E_FORMAT, "{}: {} bytes at byte {}, after entry {}, belong to no zip entry", file_, gap, at, printable(e.name));
  ByteReader r(bytes_.subspan(at, gap), file_, at);
  const bool ok = r.u32("descriptor") == kDescriptor && r.u32("checksum") == e.crc && (gap == 24 ? r.u64("size") : r.u32("size")) == e.size &&
                  (gap == 24 ? r.u64("size") : r.u32("size")) == e.size;
  if (!ok)
    fail(DUET_E_FORMAT, "{}: the descriptor at byte {} of entry {} differs from the directory (checksum {:08x}, {} bytes)", file_, at, printable(e.name), e.crc,
         e.size);
}

void Zip::sort_by_name() {
  std::sort(entries_.begin(), entries_.end(), [](const ZipEntry& a, const ZipEntry& b) { return a.name < b.name; });
  const auto twice = std::adjacent_find(entries_.begin(), entries_.end(), [](const ZipEntry& a, const ZipEntry& b) { return a.name == b.name; });
  if (twice != entries_.end())
    fail(DUET_E_FORMAT, "{}: two zip entries are named {}, at bytes {} and {}", file_, printable(twice->name), twice->header, twice[1].header);
}

const ZipEntry* Zip::find(std::string_view name) const {
  const auto it = std::lower_bound(entries_.begin(), entries_.end(), name, [](const ZipEntry& e, std::string_view n) { return e.name < n; });
  return it != entries_.end() && it->name == name ? &*it : nullptr;
}

void Zip::check_crc(const ZipEntry& e) const {
  const uint32_t found = crc32(data(e));
  if (found != e.crc)
    fail(DUET_E_FORMAT, "{}: entry {} at byte {} is damaged: checksum {:08x}, expected {:08x}", file_, printable(e.name), e.data, found, e.crc);
}

}  // namespace duet
