// Libraries are judged by their bytes: whatever is wrong with them, none of their code runs.
#include "plugin/elf_note.h"

#include <algorithm>

#include "duet_plugin.h"
#include "scene.h"

using namespace duet;

namespace {

duet_status code_of(const Scene& scene, const std::string& bytes) {
  const std::string path = scene.write("x.so", bytes);
  return error_of([&] { read_plugin_note(path); }).code();
}

}  // namespace

TEST_CASE("the note of a plugin") {
  const PluginNote note = read_plugin_note(fake_library("good"));
  CHECK(note.abi == DUETP_ABI);
  CHECK(note.plugin_size == sizeof(duetp_plugin));
  CHECK(note.device_size == sizeof(duetp_device));
  CHECK(note.sanitizer == DUETP_SANITIZER);
  CHECK_NOTHROW(check_plugin_note(note, "x"));
  CHECK(error_of([] { read_plugin_note(fake_library("no_note")); }).code() == DUET_E_FORMAT);
}

TEST_CASE("codes of notes that do not fit") {
  const auto code = [](PluginNote n) { return error_of([&] { check_plugin_note(n, "x"); }).code(); };
  const PluginNote good{DUETP_ABI, sizeof(duetp_plugin), sizeof(duetp_device), DUETP_SANITIZER};
  CHECK(code({0, good.plugin_size, good.device_size, good.sanitizer}) == DUET_E_ABI);
  CHECK(code({2 << 16, good.plugin_size, good.device_size, good.sanitizer}) == DUET_E_ABI);
  CHECK(code({good.abi, kMinPluginSize - 1, good.device_size, good.sanitizer}) == DUET_E_ABI);
  CHECK(code({good.abi, good.plugin_size, kMinDeviceSize - 1, good.sanitizer}) == DUET_E_ABI);
  CHECK(code({good.abi, good.plugin_size, good.device_size, good.sanitizer + 1}) == DUET_E_ABI);
  CHECK_NOTHROW(check_plugin_note({DUETP_ABI + 9, 1 << 20, 1 << 20, DUETP_SANITIZER}, "x"));
}

TEST_CASE("a library that was cut short anywhere") {
  const Scene scene;
  const std::string whole = slurp(fake_library("good"));
  for (size_t n = 0; n < whole.size(); n += n < 1024 || n + 64 > whole.size() ? 1 : whole.size() / 97) CHECK(code_of(scene, whole.substr(0, n)) == DUET_E_FORMAT);
  const std::string path = scene.plugin("good");
  scene.write("libduet_fake.so", whole.substr(0, whole.size() / 2));
  CHECK(says(World(path).report()[1]["reason"], "beyond the"));
  CHECK(scene.canary().empty());
}

TEST_CASE("no library at all") {
  const Scene scene;
  CHECK(code_of(scene, "") == DUET_E_FORMAT);
  CHECK(code_of(scene, "#!/bin/sh\necho hello\n") == DUET_E_FORMAT);
  CHECK(code_of(scene, std::string(4096, '\0')) == DUET_E_FORMAT);
  CHECK(code_of(scene, "\177ELF" + std::string(4096, '\377')) == DUET_E_UNSUPPORTED);
  CHECK(error_of([&] { read_plugin_note("/dev/zero"); }).code() == DUET_E_IO);
  CHECK(error_of([&] { read_plugin_note(scene.folder()); }).code() == DUET_E_IO);
  CHECK(error_of([&] { read_plugin_note(scene.path("none.so")); }).code() == DUET_E_NOT_FOUND);
}

TEST_CASE("headers that lie") {
  const Scene scene;
  const std::string good = slurp(fake_library("good"));
  const auto with = [&](size_t at, std::string bytes) { return std::string(good).replace(at, bytes.size(), bytes); };
  CHECK(code_of(scene, with(4, "\1")) == DUET_E_UNSUPPORTED);                  // 32 bits
  CHECK(code_of(scene, with(5, "\2")) == DUET_E_UNSUPPORTED);                  // big-endian
  CHECK(code_of(scene, with(18, "\xf3")) == DUET_E_UNSUPPORTED);               // RISC-V
  CHECK(code_of(scene, with(16, "\2")) == DUET_E_FORMAT);                      // a program
  CHECK(code_of(scene, with(32, std::string(8, '\xff'))) == DUET_E_FORMAT);    // program headers far away
  CHECK(code_of(scene, with(40, std::string(8, '\xff'))) == DUET_E_FORMAT);    // section headers far away
  CHECK(code_of(scene, with(54, "\x37")) == DUET_E_FORMAT);                    // size of a program header
  CHECK(code_of(scene, with(56, "\xff\xff")) == DUET_E_FORMAT);                // number of program headers
  CHECK(code_of(scene, with(56, std::string(2, '\0'))) == DUET_E_FORMAT);      // none
  const size_t note = good.find(std::string("\5\0\0\0\x10\0\0\0\1\0\0\0Duet", 16));
  REQUIRE(note != std::string::npos);
  CHECK(code_of(scene, with(note, "\xff\xff\xff\xff")) == DUET_E_FORMAT);      // length of the name
  CHECK(code_of(scene, with(note + 4, "\xff\xff\xff\xff")) == DUET_E_FORMAT);  // length of the note
  CHECK(code_of(scene, with(note + 4, "\x08")) == DUET_E_FORMAT);              // shorter than it must be
  CHECK(code_of(scene, with(note + 8, "\2")) == DUET_E_FORMAT);                // another type
  CHECK(code_of(scene, with(note + 12, "duet")) == DUET_E_FORMAT);             // another name
}

TEST_CASE("any single byte of the headers may be wrong") {
  const Scene scene;
  const std::string good = slurp(fake_library("good"));
  for (size_t at = 0; at < 64 + 56 * 16; ++at)
    for (const char value : {'\0', '\x7f', '\xff'}) {
      std::string bytes = good;
      bytes[at] = value;
      const std::string path = scene.write("x.so", bytes);
      try {
        check_plugin_note(read_plugin_note(path), path);  // what it does not need may change
      } catch (const Error& e) {
        CHECK(says(e.what(), path));
      }
    }
}
