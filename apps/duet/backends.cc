#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "runtime.h"
#include "subcommands.h"

namespace duet {

void run_backends(const Arguments& arguments) {
  LibraryOptions library_options;
  bool json = false;
  Options options("backends", "[OPTIONS]", "Lists the devices that can be computed on, best first. 'duet doctor' tells why others are missing.");
  library_options.declare(options);
  options.flag("json", json, "as JSON");
  if (!options.parse(arguments)) return;

  const Library library = library_options.open();
  uint32_t n = 0;
  check(duet_device_count(library.get(), &n));
  constexpr const char* kinds[] = {"cpu", "integrated gpu", "gpu", "other"};
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  std::string table;
  for (uint32_t i = 0; i < n; ++i) {
    auto d = DUET_INIT(duet_device_info);
    check(duet_device_get(library.get(), i, &d));
    const char* kind = kinds[std::min<uint32_t>(d.kind, 3)];
    list.push_back({{"spec", d.spec}, {"name", d.name}, {"kind", kind}, {"plugin", d.plugin}, {"memory_bytes", d.mem_total}, {"memory_free_bytes", d.mem_free}, {"bytes_per_second", d.bytes_per_s}});
    table += fmt::format("{:<14} {:<14} {} {}\n", d.spec, kind, d.name, on_out(Colour::dim, fmt::format("({}{})", d.plugin, d.mem_total > 0 ? ", " + bytes_text(d.mem_total) : "")));
  }
  write_out(json ? list.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n" : table);
}

}  // namespace duet
