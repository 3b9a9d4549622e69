// duet.h sections 1 and 2: library and device.
#include <cstddef>
#include <cstring>

#include "base/environment.h"
#include "capi/argument.h"
#include "capi/handle.h"

namespace duet {
namespace {

// Fixed size, no allocation: it must work when memory is out.
thread_local char last_error[1024];

}  // namespace

duet_status remember_failure(duet_status code, std::string_view sentence) noexcept {
  size_t n = 0;
  while (n < sentence.size()) {  // whole characters only
    const size_t c = utf8_length(sentence.substr(n));
    const size_t step = c ? c : 1;
    if (n + step >= sizeof last_error) break;
    if (c)
      std::memcpy(last_error + n, sentence.data() + n, c);
    else
      last_error[n] = '?';
    n += step;
  }
  last_error[n] = '\0';
  return code;
}

}  // namespace duet

using namespace duet;

uint32_t duet_api_version(void) { return DUET_API_VERSION; }

const char* duet_version_string(void) { return DUET_VERSION; }

const char* duet_status_name(duet_status s) {
  switch (s) {
#define DUET_NAME(code) \
  case code: return #code
    DUET_NAME(DUET_OK);
    DUET_NAME(DUET_E_INVALID);
    DUET_NAME(DUET_E_NOT_FOUND);
    DUET_NAME(DUET_E_UNSUPPORTED);
    DUET_NAME(DUET_E_MEMORY);
    DUET_NAME(DUET_E_FORMAT);
    DUET_NAME(DUET_E_ABI);
    DUET_NAME(DUET_E_DEVICE);
    DUET_NAME(DUET_E_SMALL);
    DUET_NAME(DUET_E_CANCELLED);
    DUET_NAME(DUET_E_IO);
    DUET_NAME(DUET_E_BUSY);
    DUET_NAME(DUET_E_HANDLE);
    DUET_NAME(DUET_E_LIMIT);
    DUET_NAME(DUET_E_NUMERIC);
    DUET_NAME(DUET_E_EXISTS);
    DUET_NAME(DUET_E_INTERNAL);
#undef DUET_NAME
    default: return "DUET_E_UNKNOWN";
  }
}

const char* duet_last_error(void) { return last_error; }

duet_status duet_library_create(const duet_library_options* options, duet_library** out_library) {
  return guard([&] {
    require(out_library, "out_library");
    const auto o = read_struct(options, "options", offsetof(duet_library_options, layers));
    if (o.n_threads > 256) fail(DUET_E_LIMIT, "n_threads is {}; at most 256", o.n_threads);
    if (o.log_level < 0 || o.log_level > DUET_LOG_OFF) fail(DUET_E_INVALID, "log_level is {}; it is one of DUET_LOG_*, or 0", o.log_level);
    *out_library = new_handle<duet_library>(std::make_shared<Library>(Log(o.log, o.log_user, o.log_level), o.n_threads,
                                                                      RegistryOptions{text_argument(o.plugin_path, "plugin_path"), text_argument(o.layers, "layers", 1024)}));
  });
}

void duet_library_free(duet_library* library) { free_handle(library); }

duet_status duet_library_report(duet_library* library, char* dst, size_t cap, size_t* out_size) {
  return guard([&] {
    const auto lib = object(library);
    lib->check_process();
    give_text(lib->registry.report(), dst, cap, out_size);
  });
}

duet_status duet_device_count(duet_library* library, uint32_t* out_count) {
  return guard([&] {
    require(out_count, "out_count");
    const auto lib = object(library);
    lib->check_process();
    *out_count = static_cast<uint32_t>(lib->registry.devices().size());
  });
}

duet_status duet_device_get(duet_library* library, uint32_t index, duet_device_info* out_info) {
  return guard([&] {
    require(out_info, "out_info");
    const auto lib = object(library);
    lib->check_process();
    const auto& devices = lib->registry.devices();
    if (index >= devices.size()) fail(DUET_E_INVALID, "device {} of {}", index, devices.size());
    const Device& d = *devices[index];
    duet_device_info info{};
    info.kind = d.info.kind;
    info.spec = d.spec.c_str();
    info.name = d.info.name;
    info.plugin = d.plugin.c_str();
    info.mem_total = d.info.mem_total;
    info.mem_free = d.info.mem_free;
    info.bytes_per_s = d.info.bytes_per_s;
    write_struct(out_info, info, "out_info");
  });
}
