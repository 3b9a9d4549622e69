#include "plugin/elf_note.h"

#include <algorithm>
#include <cstddef>
#include <optional>

#include "base/file.h"
#include "base/reader.h"
#include "duet_plugin.h"

namespace duet {

const uint32_t kMinPluginSize = offsetof(duetp_plugin, device_open) + sizeof(duetp_plugin::device_open);
const uint32_t kMinDeviceSize = offsetof(duetp_device, close) + sizeof(duetp_device::close);

namespace {

constexpr uint32_t kLoad = 1, kNote = 4;   // p_type
constexpr uint16_t kSharedObject = 3;      // e_type
constexpr uint64_t kProgramHeader = 56, kSectionHeader = 64;

// Notes follow one another: sizes, type, name, description, the last two padded to the segment's alignment.
std::optional<PluginNote> find_note(Bytes segment, uint64_t align, const std::string& path, uint64_t offset) {
  ByteReader in(segment, path, offset);
  const auto padded = [&](uint64_t n) { return std::min<uint64_t>((n + align - 1) / align * align, in.left()); };
  while (in.left() >= 12) {
    const uint32_t name_size = in.u32("a note"), size = in.u32("a note"), type = in.u32("a note");
    if (name_size > in.left()) fail(DUET_E_FORMAT, "{}: the name of a note at byte {} ends beyond its segment", path, in.offset());
    const std::string_view name = in.text(padded(name_size), "the name of a note").substr(0, name_size);
    if (size > in.left()) fail(DUET_E_FORMAT, "{}: a note at byte {} ends beyond its segment", path, in.offset());
    const uint64_t at = in.offset();
    ByteReader d(in.take(padded(size), "a note").first(size), path, at);
    if (name == std::string_view("Duet\0", 5) && type == 1)
      return PluginNote{d.u32("the ABI of Duet's note"), d.u32("a size in Duet's note"), d.u32("a size in Duet's note"), d.u32("the sanitizer of Duet's note")};
  }
  return std::nullopt;
}

}  // namespace

PluginNote read_plugin_note(const std::string& path) {
  const MappedFile file(path);
  ByteReader in(file.bytes(), path);
  if (in.left() < 4 || in.text(4, "ELF magic") != "\177ELF") fail(DUET_E_FORMAT, "{}: not an ELF library", path);
  const uint8_t elf_class = in.u8("ELF class"), order = in.u8("ELF byte order");
  in.skip(10, "ELF identification");
  const uint16_t type = in.u16("ELF type"), machine = in.u16("ELF machine");
  if (elf_class != 2 || order != 1 || machine != kHostMachine)
    fail(DUET_E_UNSUPPORTED, "{}: made for another machine (ELF class {}, byte order {}, machine {}; this one is 2, 1, {}: {})", path, elf_class, order, machine,
         kHostMachine, kHostArch);
  if (type != kSharedObject) fail(DUET_E_FORMAT, "{}: not a shared library (ELF type {})", path, type);
  in.skip(12, "ELF version and entry");
  const uint64_t program_at = in.u64("ELF header"), section_at = in.u64("ELF header");
  in.skip(6, "ELF header");
  const uint16_t program_size = in.u16("ELF header"), n_program = in.u16("ELF header");
  const uint16_t section_size = in.u16("ELF header"), n_section = in.u16("ELF header");
  if (program_size != kProgramHeader) fail(DUET_E_FORMAT, "{}: program headers of {} bytes, expected {}", path, program_size, kProgramHeader);
  if (n_section && section_size != kSectionHeader) fail(DUET_E_FORMAT, "{}: section headers of {} bytes, expected {}", path, section_size, kSectionHeader);
  // The sections come last in a file: one that was cut short shows here, before the loader maps what is not there.
  (void)sub_bytes(file.bytes(), section_at, n_section * kSectionHeader, path, "the section header table");

  std::optional<PluginNote> note;
  ByteReader headers(sub_bytes(file.bytes(), program_at, n_program * kProgramHeader, path, "the program header table"), path, program_at);
  for (uint32_t i = 0; i < n_program; ++i) {
    const uint32_t kind = headers.u32("a program header");
    headers.skip(4, "a program header");
    const uint64_t offset = headers.u64("a program header");
    headers.skip(16, "a program header");
    const uint64_t size = headers.u64("a program header");
    headers.skip(8, "a program header");
    const uint64_t align = headers.u64("a program header");
    if (kind != kLoad && kind != kNote) continue;
    const Bytes segment = sub_bytes(file.bytes(), offset, size, path, "a segment");
    if (kind == kNote && !note) note = find_note(segment, align == 8 ? 8 : 4, path, offset);
  }
  if (!note) fail(DUET_E_FORMAT, "{}: no plugin of Duet: it has no note of DUETP_DEFINE (duet_plugin.h)", path);
  return *note;
}

const char* sanitizer_name(uint32_t sanitizer) { return sanitizer == 0 ? "no sanitizer" : sanitizer == 1 ? "the address sanitizer" : sanitizer == 2 ? "the thread sanitizer" : "an unknown sanitizer"; }

void check_plugin_note(const PluginNote& note, const std::string& path) {
  const uint32_t major = note.abi >> 16, minor = note.abi & 0xffff;
  if (major != DUETP_MAJOR) fail(DUET_E_ABI, "{}: made for plugin ABI {}.{}, this Duet speaks {}.{}; get the plugin for this version", path, major, minor, DUETP_MAJOR, DUETP_MINOR);
  if (note.plugin_size < kMinPluginSize || note.device_size < kMinDeviceSize)
    fail(DUET_E_ABI, "{}: tables of {} and {} bytes, less than the {} and {} of the first version", path, note.plugin_size, note.device_size, kMinPluginSize, kMinDeviceSize);
  if (note.sanitizer != DUETP_SANITIZER)
    fail(DUET_E_ABI, "{}: built with {}, this Duet with {}; build both alike", path, sanitizer_name(note.sanitizer), sanitizer_name(DUETP_SANITIZER));
}

}  // namespace duet
