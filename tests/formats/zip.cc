// Hostile and damaged zip archives. All are .pth files that would load if the one field were right.
#include "expect.h"
#include "formats/zip.h"
#include "pickle_builder.h"

namespace duet {
namespace {

struct Archive {
  ZipBuilder z;
  std::string file;
  explicit Archive(bool like_torch = true) {
    z.descriptors = z.zip64_end = like_torch;
    z.add("m/data.pkl", pickle_of({{.name = "a", .key = "0", .elements = 2, .shape = {2}, .stride = {1}}}));
    z.add("m/data/0", "abcdefgh");
    file = z.finish();
  }
  const ZipBuilder::Entry& data() const { return z.entries[1]; }
  // The archive with one number changed.
  std::string with(size_t at, uint64_t v, int bytes) const {
    std::string out = file;
    patch(out, at, v, bytes);
    return out;
  }
};

// Positions of fields in a local header and in a central entry.
enum Local { kLocalFlags = 6, kLocalMethod = 8, kLocalCrc = 14, kLocalStored = 18, kLocalSize = 22, kLocalName = 30 };
enum Central { kFlags = 8, kMethod = 10, kCrc = 16, kStored = 20, kSize = 24, kNameLength = 28, kExtraLength = 30, kDisk = 34, kOffset = 42, kName = 46 };

}  // namespace

TEST_CASE("crc32 has the published check value") {
  CHECK(crc32(as_bytes("123456789")) == 0xcbf43926);
  CHECK(crc32({}) == 0);
  CHECK(crc32(as_bytes(std::string(1000, 'x'))) != crc32(as_bytes(std::string(999, 'x') + "y")));
}

TEST_CASE("zip: written as torch.save does, and as zipfile does, it loads in place") {
  for (const bool like_torch : {true, false}) {
    const Archive a(like_torch);
    const Checkpoint c = parse(a.file);
    CHECK(as_text(c.find("a")->data) == "abcdefgh");
    CHECK(as_text(c.find("a")->data).data() == a.file.data() + a.data().data);
  }
}

TEST_CASE("zip: end records (B-W6, B-W11, B-W12)") {
  const Archive a;
  refused(a.file + "x", DUET_E_FORMAT, {"no zip end record", "byte"});
  refused(a.file.substr(0, a.z.end), DUET_E_FORMAT, {"no zip end record"});
  refused(a.file + a.file.substr(a.z.end), DUET_E_FORMAT, {"byte"});  // two end records, the first where a comment could be
  refused(std::string(1024, '\0') + a.file, DUET_E_FORMAT, {"byte"});
  refused(a.with(a.z.end + 20, 5, 2), DUET_E_FORMAT, {"comment of 5 bytes", std::to_string(a.z.end)});
  refused(a.with(a.z.end + 4, 1, 2), DUET_E_UNSUPPORTED, {"several parts"});
  refused(a.with(a.z.end + 6, 1, 2), DUET_E_UNSUPPORTED, {"several parts"});
  refused(a.with(a.z.end + 8, 1, 2), DUET_E_UNSUPPORTED, {"several parts"});
  refused(a.with(a.z.end + 10, 9, 2), DUET_E_FORMAT, {"differ", "2 and 9 entries"});
  refused(a.with(a.z.end + 12, 9, 4), DUET_E_FORMAT, {"differ"});
  refused(a.with(a.z.end + 16, 9, 4), DUET_E_FORMAT, {"differ"});
  for (const uint64_t offset : {~uint64_t{0} - 39, ~uint64_t{0}, uint64_t{a.file.size()}, uint64_t{0}, a.z.end64 + 1})
    refused(a.with(a.z.locator + 8, offset, 8), DUET_E_FORMAT, {"locator", std::to_string(offset)});
  refused(a.with(a.z.locator + 16, 2, 4), DUET_E_UNSUPPORTED, {"several parts"});
  refused(a.with(a.z.end64 + 4, 45, 8), DUET_E_FORMAT, {"zip64 end record", std::to_string(a.z.end64)});
  refused(a.with(a.z.end64 + 4, ~uint64_t{0}, 8), DUET_E_FORMAT, {"zip64 end record"});
  refused(a.with(a.z.end64, 0, 4), DUET_E_FORMAT, {"zip64 end record"});
  std::string many = a.with(a.z.end64 + 24, 10'000'000, 8);
  patch(many, a.z.end64 + 32, 10'000'000, 8);
  patch(many, a.z.end + 8, 0xffff, 2);
  patch(many, a.z.end + 10, 0xffff, 2);
  refused(many, DUET_E_LIMIT, {"10000000", "65536"});
  patch(many, a.z.end64 + 24, 60'000, 8);
  patch(many, a.z.end64 + 32, 60'000, 8);
  refused(many, DUET_E_FORMAT, {"60000"});
  std::string wrap = a.with(a.z.end64 + 40, ~uint64_t{0} - 7, 8);  // size + offset wraps
  patch(wrap, a.z.end + 12, 0xffffffff, 4);
  refused(wrap, DUET_E_FORMAT, {"directory"});

  const Archive plain(false);
  refused(plain.with(plain.z.end + 16, 0xffffffff, 4), DUET_E_FORMAT, {"zip64"});
  refused(plain.with(plain.z.end + 12, 1, 4), DUET_E_FORMAT, {"directory"});
  refused(plain.with(plain.z.end + 10, 1, 2), DUET_E_UNSUPPORTED, {});
  std::string fewer = plain.with(plain.z.end + 10, 1, 2);
  patch(fewer, plain.z.end + 8, 1, 2);
  refused(fewer, DUET_E_FORMAT, {"after the last zip directory entry"});
}

TEST_CASE("zip: the 106-byte archive whose zip64 offset wraps around (P9)") {
  const std::string file = std::string("PK\x03\x04", 4) + std::string(60, '\0') + little(0x07064b50, 4) + little(0, 4) + little(~uint64_t{0} - 39, 8) +
                           little(1, 4) + little(0x06054b50, 4) + little(0, 4) + little(0xffff, 2) + little(0xffff, 2) + little(0xffffffff, 4) +
                           little(0xffffffff, 4) + little(0, 2);
  CHECK(file.size() == 106);
  refused(file, DUET_E_FORMAT, {"locator", "18446744073709551576"});
}

TEST_CASE("zip: the directory against the entries' own headers (B-W13)") {
  const Archive torch, plain(false);
  for (const Archive* a : {&torch, &plain}) {
    const size_t local = a->data().header, central = a->data().central;
    refused(a->with(local + kLocalMethod, 8, 2), DUET_E_FORMAT, {"m/data/0", "method is 8", "0 in the directory"});
    refused(a->with(local + kLocalFlags, 0, 2), DUET_E_FORMAT, {"m/data/0", "flags"});
    refused(a->with(local + kLocalStored, 7, 4), DUET_E_FORMAT, {"m/data/0", "stored size is 7", "8 in the directory"});
    refused(a->with(local + kLocalSize, 7, 4), DUET_E_FORMAT, {"m/data/0", "size is 7"});
    refused(a->with(local + kLocalCrc, 7, 4), DUET_E_FORMAT, {"m/data/0", "checksum is 7"});
    refused(a->with(local + kLocalName, 'n', 1), DUET_E_FORMAT, {"m/data/0", "n/data/0"});
    refused(a->with(local, 0, 4), DUET_E_FORMAT, {"m/data/0", std::to_string(local)});
    refused(a->with(central + kSize, 7, 4), DUET_E_FORMAT, {"m/data/0", "8 and 7"});
    refused(a->with(central + kCrc, 7, 4), DUET_E_FORMAT, {"m/data/0"});
    refused(a->with(central + kName, 'n', 1), DUET_E_FORMAT, {"n/data/0", "m/data/0"});
    refused(a->with(central, 0, 4), DUET_E_FORMAT, {"entry 1", std::to_string(central)});
  }
  const size_t descriptor = torch.data().data + 8;
  for (const size_t field : {0, 4, 8, 12})
    refused(torch.with(descriptor + field, 7, 4), DUET_E_FORMAT, {"m/data/0", "descriptor at byte " + std::to_string(descriptor)});
}

TEST_CASE("zip: what is not stored plainly in one part (B-W15)") {
  const Archive a;
  const size_t central = a.data().central;
  refused(a.with(central + kMethod, 8, 2), DUET_E_UNSUPPORTED, {"m/data/0", "deflate", "method 8"});
  refused(a.with(central + kMethod, 14, 2), DUET_E_UNSUPPORTED, {"m/data/0", "method 14"});
  for (const int bit : {0, 6, 13}) refused(a.with(central + kFlags, 0x808u | 1u << bit, 2), DUET_E_UNSUPPORTED, {"m/data/0", "encrypted"});
  refused(a.with(central + kFlags, 0x80a, 2), DUET_E_UNSUPPORTED, {"m/data/0", "0x080a"});
  refused(a.with(central + kDisk, 1, 2), DUET_E_UNSUPPORTED, {"m/data/0", "part 1"});
}

TEST_CASE("zip: extra fields (B-W12)") {
  const Archive a;
  refused(a.with(a.data().central + kSize, 0xffffffff, 4), DUET_E_FORMAT, {"m/data/0", "zip64 field of 8 bytes"});
  refused(a.with(a.data().central + kOffset, 0xffffffff, 4), DUET_E_FORMAT, {"m/data/0", "zip64 field of 8 bytes"});
  refused(a.with(a.data().central + kExtraLength, 0xffff, 2), DUET_E_FORMAT, {"extra fields"});
  refused(a.with(a.data().central + kNameLength, 0xffff, 2), DUET_E_FORMAT, {"name"});
  refused(a.with(a.data().header + 28, 0xffff, 2), DUET_E_FORMAT, {"byte"});
  refused(a.with(a.data().header + 26, 0xffff, 2), DUET_E_FORMAT, {"byte"});
  const size_t extra = a.data().header + 30 + a.data().name.size();
  refused(a.with(extra + 2, 0xfff0, 2), DUET_E_FORMAT, {"extra field"});

  // zip64 fields where they are allowed: sizes written long although they are short
  const auto long_form = [](const std::string& field) {
    const std::string pickle = pickle_of({{.name = "a", .key = "0", .elements = 2, .shape = {2}, .stride = {1}}});
    ZipBuilder z;
    z.descriptors = z.zip64_end = false;
    z.alignment = 1;
    z.add("m/data/0", "abcdefgh");
    z.add("m/data.pkl", pickle);
    std::string out = z.finish();
    const size_t central = z.entries[0].central;
    patch(out, central + kSize, 0xffffffff, 4);
    patch(out, central + kStored, 0xffffffff, 4);
    patch(out, central + kExtraLength, field.size(), 2);
    out.insert(central + kName + z.entries[0].name.size(), field);
    patch(out, out.size() - 10, z.end - z.central + field.size(), 4);
    return out;
  };
  CHECK(as_text(parse(long_form(little(1, 2) + little(16, 2) + little(8, 8) + little(8, 8))).find("a")->data) == "abcdefgh");
  refused(long_form(little(1, 2) + little(8, 2) + little(8, 8)), DUET_E_FORMAT, {"m/data/0", "16 bytes and has 8"});
  refused(long_form(little(1, 2) + little(24, 2) + little(8, 8) + little(8, 8) + little(0, 8)), DUET_E_FORMAT, {"16 bytes and has 24"});
  refused(long_form(little(1, 2) + little(16, 2) + little(~uint64_t{0}, 8) + little(~uint64_t{0}, 8)), DUET_E_FORMAT, {"m/data/0", "18446744073709551615"});
  refused(long_form(little(1, 2) + little(4, 2) + little(8, 4) + little(1, 2) + little(8, 2) + little(8, 8)), DUET_E_FORMAT, {"two zip64 fields"});
}

TEST_CASE("zip: gaps, overlaps and duplicates (B-W6, B-W14)") {
  const Archive a;
  refused(a.with(a.data().central + kOffset, 0, 4), DUET_E_FORMAT, {"m/data", "byte"});  // two entries in one place
  refused(a.with(a.data().central + kOffset, a.data().header + 1, 4), DUET_E_FORMAT, {"byte"});
  refused(a.with(a.data().central + kOffset, 0xfffffff0, 4), DUET_E_FORMAT, {"m/data/0", "beyond"});
  refused(a.with(a.z.entries[0].central + kOffset, a.data().header, 4), DUET_E_FORMAT, {"byte 0", "belong to no zip entry"});

  ZipBuilder twice;
  twice.add("m/data.pkl", "N.");
  twice.add("m/data.pkl", "}.");
  refused(twice.finish(), DUET_E_FORMAT, {"m/data.pkl", "two zip entries"});

  ZipBuilder gap;  // the first entry shrinks, its last bytes belong to nobody
  gap.descriptors = false;
  gap.add("m/data.pkl", "}.1234");
  gap.add("m/version", "3\n");
  std::string shrunk = gap.finish();
  const uint32_t crc = crc32(as_bytes("}."));
  for (const size_t at :
       {gap.entries[0].header + kLocalSize, gap.entries[0].header + kLocalStored, gap.entries[0].central + kSize, gap.entries[0].central + kStored})
    patch(shrunk, at, 2, 4);
  patch(shrunk, gap.entries[0].header + kLocalCrc, crc, 4);
  patch(shrunk, gap.entries[0].central + kCrc, crc, 4);
  refused(shrunk, DUET_E_FORMAT, {"4 bytes at byte", "m/data.pkl"});
}

TEST_CASE("zip: names are keys, never paths (B-W16)") {
  for (const std::string& name :
       {std::string("../../x"), std::string("/etc/x"), std::string("m\\data.pkl"), std::string("m/data.pkl\0", 11), std::string("data.pkl"), std::string()}) {
    ZipBuilder z;
    z.add(name, "}.");
    refused(z.finish(), DUET_E_FORMAT, {});
  }
  ZipBuilder mixed;
  mixed.add("m/data.pkl", "}.");
  mixed.add("n/data/0", "");
  refused(mixed.finish(), DUET_E_FORMAT, {"n/data/0", "m/"});
  refused(ZipBuilder().finish(), DUET_E_FORMAT, {"empty zip archive"});
}

TEST_CASE("zip: damaged data (B-W9)") {
  const Archive a;
  const size_t data = a.data().data;
  std::string flipped = a.file;
  flipped[data] ^= 1;
  CHECK(parse(flipped).find("a"));  // mapped files are not read through
  expect_error(DUET_E_FORMAT, {"m/data/0", "damaged", std::to_string(data)}, [&] { parse(flipped, {.verify = true}); });
  parse(a.file, {.verify = true});

  std::string pickle = a.file;
  pickle[a.z.entries[0].data + 5] ^= 1;
  refused(pickle, DUET_E_FORMAT, {"m/data.pkl", "damaged"});
}

}  // namespace duet
