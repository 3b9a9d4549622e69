#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "files.h"
#include "runtime.h"
#include "subcommands.h"

namespace duet {
namespace {

using Json = nlohmann::ordered_json;

std::string field(const Json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end() || it->is_null()) return "";
  return it->is_string() ? it->get<std::string>() : it->dump();
}

Json environment() {
  Json out = Json::object();
  for (const char* name : {"DUET_BACKEND", "DUET_PLUGIN_PATH", "DUET_PLUGIN_ADD", "DUET_PLUGIN_SELECT", "DUET_PLUGIN_DISABLE", "DUET_LAYERS"}) {
    const char* value = std::getenv(name);
    out[name] = value == nullptr ? Json() : Json(value);
  }
  return out;
}

std::string as_text(const Json& report, const Json& variables, const std::string& model, bool model_found) {
  std::string out = fmt::format("duet {}\n", duet_version_string());
  for (const auto& [name, value] : variables.items()) out += fmt::format("{:<20} {}\n", name, value.is_null() ? on_out(Colour::dim, "not set") : value.get<std::string>());
  out += fmt::format("{:<20} {}{}\n\nPlugins, in the order in which they were considered:\n", "bundled model", model, model_found ? "" : on_out(Colour::yellow, " (missing)"));
  for (const Json& plugin : report.at("plugins")) {
    const bool taken = plugin.value("taken", false);
    out += fmt::format("\n{}  {}  {}\n", taken ? on_out(Colour::green, "taken    ") : on_out(Colour::yellow, "not taken"), on_out(Colour::bold, field(plugin, "id")), field(plugin, "path"));
    for (const char* name : {"reason", "version", "abi"}) {
      if (const std::string value = field(plugin, name); !value.empty()) out += fmt::format("           {:<8} {}\n", name, value);
    }
    if (plugin.value("layer", false)) out += fmt::format("           {:<8} --layers {}\n", "layer", field(plugin, "id"));
    for (const Json& device : plugin.value("devices", Json::array())) out += fmt::format("           {:<8} {}  {}\n", "device", field(device, "spec"), field(device, "name"));
  }
  return out;
}

}  // namespace

void run_doctor(const Arguments& arguments) {
  LibraryOptions library_options;
  bool json = false;
  Options options("doctor", "[OPTIONS]", "Tells what there is to compute on: every plugin that was considered and why it was or was not taken, the variables\nthat matter, and the bundled model.");
  library_options.declare(options);
  options.flag("json", json, "as JSON");
  if (!options.parse(arguments)) return;

  const Library library = library_options.open();
  Json report = Json::parse(get_text(duet_library_report, library.get()));
  const std::string model = default_model();
  std::error_code ignored;
  const bool model_found = std::filesystem::exists(model, ignored);
  if (json) {
    report["version"] = duet_version_string();
    report["environment"] = environment();
    report["bundled_model"] = {{"path", model}, {"found", model_found}};
    write_out(report.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  } else {
    write_out(as_text(report, environment(), model, model_found));
  }
}

}  // namespace duet
