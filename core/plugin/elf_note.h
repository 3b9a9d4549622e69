// The ELF note that DUETP_DEFINE writes (duet_plugin.h), read from the file itself: a library that does not fit is
// refused before any of its code has run.
#pragma once
#include <cstdint>
#include <string>

namespace duet {

struct PluginNote {
  uint32_t abi, plugin_size, device_size, sanitizer;
};

#if defined(__x86_64__)
constexpr const char* kHostArch = "x86_64";
constexpr uint16_t kHostMachine = 62;  // EM_X86_64
#elif defined(__aarch64__)
constexpr const char* kHostArch = "aarch64";
constexpr uint16_t kHostMachine = 183;  // EM_AARCH64
#else
#error "name this machine and its ELF number here"
#endif

// DUET_E_FORMAT: no ELF library, cut short, or without a note; DUET_E_UNSUPPORTED: for another machine.
PluginNote read_plugin_note(const std::string& path);
// DUET_E_ABI: another major version, tables below the first version's size, another sanitizer than the host's.
void check_plugin_note(const PluginNote& note, const std::string& path);

// The smallest tables this host reads: up to the last slot that every plugin must fill.
extern const uint32_t kMinPluginSize, kMinDeviceSize;
const char* sanitizer_name(uint32_t sanitizer);

}  // namespace duet
