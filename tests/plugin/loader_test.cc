// Every wrong plugin is refused with a sentence, none harms the others, and those that can be judged by their file never run.
#include <unistd.h>

#include <stdexcept>

#include "plugin/load.h"
#include "scene.h"

using namespace duet;

// Under the address sanitizer, too, an allocation that is too large gives NULL.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options();
const char* __asan_default_options() { return "allocator_may_return_null=1"; }

namespace {

struct Case {
  const char* way;
  bool ran;            // its constructor did
  const char* reason;  // "" = taken
  const char* abi = "1.1";
};

const Case kCases[] = {
    {"good", true, ""},
    {"older_minor", true, ""},
    {"newer_minor", true, "", "1.8"},
    {"step_only", true, ""},
    {"refuses", true, ""},
    {"stage_fails", true, ""},
    {"stage_throws", true, ""},
    {"stage_aborts", true, ""},

    {"no_note", false, "no plugin of Duet"},
    {"wrong_major", false, "made for plugin ABI 2.0, this Duet speaks 1.1"},
    {"small_note", false, "less than the"},
    {"sanitizer", false, "sanitizer"},
    {"missing_dependency", false, "libfake_dependency.so"},

    {"no_symbol", true, "does not export duetp_query"},
    {"query_null", true, "gave no table for plugin ABI 1.1"},
    {"query_throws", true, "duetp_query threw an exception: ask someone else"},
    {"table_major", true, "made for plugin ABI 2.0"},
    {"small_table", true, "16 bytes, less than"},
    {"null_slot", true, "its table has no device_info"},
    {"bad_id", true, "its id is not 1 to 31 of a-z, 0-9 and _"},
    {"other_id", true, "calls itself \"someone_else\""},
    {"open_fails", true, "the driver is \\xff too old"},
    {"open_mute", true, "failed with status -7 and gave no reason"},
    {"open_throws", true, "open threw an exception: no such luck"},
    {"open_odd", true, "returned 7, which is no status"},
    {"zero_devices", true, "finds no device: no card is plugged in"},
    {"zero_silent", true, "finds no device"},
    {"many_devices", true, "4000000000 devices"},
    {"info_throws", true, "device_info threw an exception"},
    {"no_device", true, "gave no device"},
    {"small_device", true, "device table has 8 bytes"},
    {"no_ops", true, "no table of stages"},
    {"no_stage", true, "implements no stage"},
    {"not_visible", true, "without DUETP_CAP_HOST_VISIBLE"},
    {"partial_memory", true, "buffer_new but not state_free; the memory slots come all together"},
    {"no_rung", true, "implements no rung of the ladder"},
    {"misaligned", true, "must be aligned to 64 bytes"},
    {"partial_record", true, "1 of the four record_* slots"},
    {"record_claim", true, "contradict each other"},
};

}  // namespace

TEST_CASE("each fake plugin is taken, or refused with its sentence") {
  for (const Case& c : kCases) {
    CAPTURE(c.way);
    const Scene scene;
    const std::string path = scene.plugin(c.way, ".", std::string(c.way) == "wrong_major" ? "1.1" : c.abi);
    World world(path);
    const Json report = world.report();
    REQUIRE(report.size() == 2);
    CHECK(report[0]["id"] == "reference");
    CHECK(report[0]["taken"] == true);
    CHECK(report[1]["path"] == path);
    CHECK(report[1]["id"] == "fake");
    CHECK(report[1]["taken"] == (*c.reason == '\0'));
    CHECK(says(report[1]["reason"], c.reason));
    CHECK(report[1]["reason"].get<std::string>().empty() == (*c.reason == '\0'));
    CHECK(scene.canary() == (c.ran ? c.way + std::string("\n") : ""));
    CHECK(world.registry.devices().size() == (*c.reason ? 1 : 2));
    CHECK(world.registry.device("reference", nullptr, DUET_F32)->spec == "reference:0");
    if (*c.reason) {
      const Error e = error_of([&] { world.registry.device("fake", nullptr, DUET_F32); });
      CHECK(e.code() == DUET_E_NOT_FOUND);
      CHECK(says(e.what(), "reference:0"));
      CHECK(says(e.what(), c.reason));
    }
  }
}

TEST_CASE("a good plugin in full: what the report says of it, and what its device is made of") {
  const Scene scene;
  World world(scene.plugin("good"));
  const Json good = world.report()[1];
  CHECK(good["version"] == "1.2.3");
  CHECK(good["abi"] == "1.1");
  CHECK(good["devices"] == Json::parse(R"([{"spec": "fake:0", "name": ")" + std::string(63, 'n') + "\"}]"));

  const auto device = world.registry.device("fake:0", nullptr, DUET_F32), reference = world.registry.device("reference", nullptr, DUET_F32);
  CHECK(device->norm_gate.fn != reference->norm_gate.fn);  // its own
  CHECK(device->norm_gate.self != reference->norm_gate.self);
  CHECK(device->wkv.fn == reference->wkv.fn);  // the host's
  CHECK(device->wkv.self == reference->wkv.self);
  CHECK(device->memory_self == reference->memory_self);
  CHECK(device->table.state_new == reference->table.state_new);
  CHECK(!device->records());
}

TEST_CASE("codes of what the loader refuses") {
  const Scene scene;
  const auto code = [&](const char* way) { return error_of([&] { load_plugin_table(scene.library(way, std::string(way) + ".so")); }).code(); };
  CHECK(code("missing_dependency") == DUET_E_FORMAT);
  CHECK(code("no_symbol") == DUET_E_FORMAT);
  CHECK(code("query_null") == DUET_E_ABI);
  CHECK(code("query_throws") == DUET_E_DEVICE);
  CHECK(code("null_slot") == DUET_E_ABI);
  CHECK(code("table_major") == DUET_E_ABI);
  CHECK(load_plugin_table(scene.library("newer_minor", "n.so")).abi == DUETP_ABI + 7);
  CHECK(load_plugin_table(scene.library("older_minor", "o.so")).extension == nullptr);
}

TEST_CASE("a library of Duet's stays loaded, and loads again") {
  const Scene scene;
  const std::string path = scene.plugin("good");
  for (int i = 0; i < 3; ++i) CHECK(World(path).report()[1]["taken"] == true);
  CHECK(scene.canary() == "good\n");  // constructed once: it was never unloaded
}

TEST_CASE("one device of two that fails leaves the other") {
  const Scene scene;
  World world(scene.plugin("two_devices"));
  const Json p = world.report()[1];
  CHECK(p["taken"] == true);
  CHECK(says(p["reason"], "device 0: "));
  CHECK(says(p["reason"], "in use by another process"));
  CHECK(world.registry.device("fake:1", nullptr, DUET_F32)->spec == "fake:1");
  CHECK(says(error_of([&] { world.registry.device("fake", nullptr, DUET_F32); }).what(), "in use by another process"));
}

TEST_CASE("a device that refuses the model is passed over, or the reason when it was named") {
  const Scene scene;
  World world(scene.plugin("refuses"));
  duetp_shape shape{};
  shape.size = sizeof shape;
  CHECK(world.registry.device("", &shape, DUET_F32)->spec == "reference:0");
  CHECK(world.registry.device("", nullptr, DUET_F32)->spec == "fake:0");
  const Error e = error_of([&] { world.registry.device("fake", &shape, DUET_F32); });
  CHECK(e.code() == DUET_E_UNSUPPORTED);
  CHECK(says(e.what(), "only models of the colour blue"));
}

TEST_CASE("an exception of a stage passes through the core as an exception, for the guard of the C API to stop") {
  const Scene scene;
  World world(scene.plugin("stage_throws"));
  const auto device = world.registry.device("fake", nullptr, DUET_F32);
  CHECK_THROWS_AS(device->norm_gate(nullptr, duetp_stage{}), std::runtime_error);
}

TEST_CASE("the backend's name: argument, environment, malformed, unknown") {
  const Scene scene;
  World world(scene.plugin("good"));
  CHECK(world.registry.device("", nullptr, DUET_F32)->spec == "fake:0");
  ::setenv("DUET_BACKEND", "reference", 1);
  CHECK(world.registry.device("", nullptr, DUET_F32)->spec == "reference:0");
  CHECK(world.registry.device("fake", nullptr, DUET_F32)->spec == "fake:0");
  ::unsetenv("DUET_BACKEND");
  for (const char* spec : {":", "cpu:", "cpu:x", "cpu:-1", "cpu:1x", "cpu:99999999999", "CPU", "a b", "cpu:0:0", " cpu"})
    CHECK(error_of([&] { world.registry.device(spec, nullptr, DUET_F32); }).code() == DUET_E_INVALID);
  const Error e = error_of([&] { world.registry.device("fake:1", nullptr, DUET_F32); });
  CHECK(e.code() == DUET_E_NOT_FOUND);
  CHECK(says(e.what(), "fake:0"));
}

TEST_CASE("the host's services as a plugin sees them") {
  Team team(1);
  std::string logged;
  const Log log([](void* to, int32_t, const char* text) { *static_cast<std::string*>(to) += text; }, &logged, DUET_LOG_INFO);
  Host host("cpu", team, log);
  const duetp_host& h = *host.table();
  for (const size_t align : {1, 8, 64, 4096}) {
    void* p = h.alloc(h.self, 100, align);
    CHECK(reinterpret_cast<uintptr_t>(p) % align == 0);
    h.free(h.self, p);
  }
  h.free(h.self, nullptr);
  CHECK(h.alloc(h.self, 100, 3) == nullptr);
  CHECK(h.alloc(h.self, SIZE_MAX / 2, 64) == nullptr);

  h.log(h.self, DUET_LOG_INFO, "hello \xc3");
  CHECK(logged == "cpu: hello \\xc3");
  h.log(h.self, DUET_LOG_INFO, nullptr);

  CHECK(h.option(h.self, "isa") == nullptr);
  ::setenv("DUET_CPU_SPEED", "fast", 1);
  CHECK(std::string(h.option(h.self, "speed")) == "fast");
  CHECK(h.option(h.self, "speed") == h.option(h.self, "speed"));
  CHECK(h.option(h.self, "../x") == nullptr);
  CHECK(h.option(h.self, nullptr) == nullptr);

  CHECK(h.fail(h.self, DUET_E_MEMORY, std::string(5000, 'x').c_str()) == DUET_E_MEMORY);
  const Error e = error_of([] { fail_plugin("cpu:0", DUET_E_MEMORY); });
  CHECK(e.code() == DUET_E_MEMORY);
  CHECK(std::string(e.what()).size() < 1100);
  h.fail(h.self, DUET_E_MEMORY, "an old sentence");
  CHECK(std::string(error_of([] { fail_plugin("cpu:0", DUET_E_DEVICE); }).what()).find("old") == std::string::npos);

  CHECK(h.team_size(h.self) == 1);
  int ran = 0;
  h.team(h.self, [](void* ctx, uint32_t, uint32_t) { ++*static_cast<int*>(ctx); }, &ran);
  CHECK(ran == 1);
  CHECK(h.extension(h.self, "duet.ext.events/1") == nullptr);
}
