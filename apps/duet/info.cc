#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "runtime.h"
#include "subcommands.h"

namespace duet {
namespace {

using Json = nlohmann::ordered_json;

std::string scalar(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, Json::error_handler_t::replace); }

// Every entry as a line "name   value"; the entries of an object are indented below its name. The library decides what there
// is to tell, so that a new fact needs no change here.
void add_table(std::string& out, const Json& object, const std::string& indent) {
  size_t width = 0;
  for (const auto& [name, value] : object.items()) width = std::max(width, name.size());
  for (const auto& [name, value] : object.items()) {
    if (value.is_object() && !value.empty()) {
      out += fmt::format("{}{}\n", indent, name);
      add_table(out, value, indent + "  ");
    } else {
      out += fmt::format("{}{:<{}}  {}\n", indent, name, width, scalar(value));
    }
  }
}

}  // namespace

void run_info(const Arguments& arguments) {
  FileOptions file;
  std::string path;
  bool json = false, tensors = false;
  Options options("info", "FILE [OPTIONS]", "Tells what a model file (or folder) holds: format, shapes, dtypes, parameters, size of the state.");
  options.argument("FILE", path).flag("tensors", tensors, "list every tensor too");
  file.declare(options);
  options.flag("json", json, "all of it as JSON");
  if (!options.parse(arguments)) return;

  const Library library = LibraryOptions().open();
  const std::string text = get_text(duet_file_info, library.get(), path.c_str(), file.flags());
  if (json) {
    write_out(text + "\n");
    return;
  }
  Json info = Json::parse(text);
  if (!tensors && info.contains("tensors") && info["tensors"].is_structured()) info["tensors"] = info["tensors"].size();
  std::string out;
  add_table(out, info, "");
  write_out(out);
}

}  // namespace duet
