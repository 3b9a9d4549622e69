// How the host names, finds and stacks layers.
#include <stdlib.h>

#include "layers/scene.h"

using namespace layers;

namespace {

nlohmann::json report(const Library& lib) {
  size_t n = 0;
  check(duet_library_report(lib.get(), nullptr, 0, &n));
  std::string text(n, ' ');
  check(duet_library_report(lib.get(), text.data(), n, &n));
  return nlohmann::json::parse(text).at("plugins");
}

uint64_t bytes_of_wkv(const Model& m) { return uint64_t{info(m).n_layer} * info(m).n_embd * info(m).head_size * sizeof(float); }

}  // namespace

TEST_CASE("a layer is no backend, and the report says what it is") {
  Lines log;
  const auto lib = layers::library("", log);
  size_t found = 0;
  for (const auto& p : report(lib)) {
    const bool layer = p.at("id") == "validate" || p.at("id") == "trace" || p.at("id") == "canary";
    CHECK(p.at("layer") == layer);
    const bool taken = p.at("taken");  // a backend may find no device here
    CHECK((taken || !layer));
    CHECK(p.at("devices").empty() == (layer || !taken));
    found += layer;
  }
  CHECK(found == 3);
  CHECK(says(fault_of_load(lib, "trace", DUET_E_NOT_FOUND), "there is no backend trace:0; devices: "));
}

TEST_CASE("an unknown layer is an error that lists those there are, and a list that is none is one too") {
  Lines log;
  CHECK(says(fault_of_load(layers::library("nonsense", log), "reference", DUET_E_NOT_FOUND), "there is no layer nonsense; layers: canary trace validate"));
  CHECK(says(fault_of_load(layers::library("trace,cpu", log), nullptr, DUET_E_NOT_FOUND), "there is no layer cpu; layers: "));
  for (const char* list : {",", "trace,", ",trace", "trace,,canary", "Trace", "a b", "trace:0"})
    CHECK(says(fault_of_load(layers::library(list, log), "reference", DUET_E_INVALID), "expected NAME or NAME,NAME..., such as validate,trace"));
  CHECK(says(fault_of_load(layers::library("trace,canary,trace", log), "reference", DUET_E_INVALID), "trace stands twice"));
}

TEST_CASE("DUET_LAYERS holds where a program names none") {
  ::setenv("DUET_LAYERS", "nonsense", 1);
  Lines log;
  CHECK(says(fault_of_load(layers::library("", log), "reference", DUET_E_NOT_FOUND), "there is no layer nonsense"));
  CHECK(fault_of_load(layers::library("canary", log), "reference", DUET_OK).empty());
  CHECK(report(layers::library("", log)).size() > 3);  // who asks what there is gets an answer
  ::unsetenv("DUET_LAYERS");
}

TEST_CASE("what a layer says is heard where warnings are") {
  for (const int32_t level : {DUET_LOG_INFO, DUET_LOG_WARNING, DUET_LOG_ERROR}) {
    Lines log;
    (void)run(layers::library("validate", log, "", level), "reference", DUET_F32, DUET_MODE_PARALLEL);
    size_t said = 0;
    for (const std::string& line : log.all) said += line.rfind("validate: ", 0) == 0 && says(line, " stages of reference (plain C, one thread) agree with the reference");
    CHECK(said == (level == DUET_LOG_ERROR ? 0u : 1u));
  }
}

TEST_CASE("a device that offers wider rungs alone has no stages to see") {
  Lines log;
  for (const char* layer : {"validate", "trace", "canary"}) {
    const std::string who = std::string("the layer ") + layer + " sees stages, and ";
    CHECK(says(fault_of_load(layers::library(layer, log, DUET_RUNGS "/librung2.so"), "rung2", DUET_E_UNSUPPORTED), who + "rung2:0 offers only runs of layers"));
    CHECK(says(fault_of_load(layers::library(layer, log, DUET_RUNGS "/librung3.so"), "rung3", DUET_E_UNSUPPORTED), who + "rung3:0 offers only whole steps"));
  }
}

TEST_CASE("a layer that sees memory alone leaves the rungs as they are") {
  Lines log;
  const std::string plugins = fixture("memory") + ":" DUET_RUNGS "/librung2.so:" DUET_RUNGS "/librung3.so";
  for (const char* device : {"reference", "rung2", "rung3"}) {
    log.all.clear();
    const Result want = run(layers::library("", log, plugins), device, DUET_F32, DUET_MODE_PARALLEL);
    CHECK(log.all.empty());
    CHECK(run(layers::library("odd", log, plugins), device, DUET_F32, DUET_MODE_PARALLEL) == want);
    REQUIRE(log.all.size() == 1);
    CHECK(log.all[0] == "odd: 3 buffers");  // activations, frame, rows
  }
  // around it, a layer that sees stages
  CHECK(run(layers::library("trace,odd", log, plugins), "reference", DUET_F32, DUET_MODE_PARALLEL) ==
        run(layers::library("", log, plugins), "reference", DUET_F32, DUET_MODE_PARALLEL));
  CHECK(says(fault_of_load(layers::library("trace,odd", log, plugins), "rung2", DUET_E_UNSUPPORTED), "offers only runs of layers"));
}

TEST_CASE("a layer that is wrong gives a sentence") {
  Lines log;
  const auto fault = [&](const char* way, duet_status code) { return fault_of_load(layers::library("odd", log, fixture(way)), "reference", code); };
  CHECK(says(fault("no_wrap", DUET_E_NOT_FOUND), "there is no layer odd; layers: canary trace validate; not taken: "));
  CHECK(says(fault("no_wrap", DUET_E_NOT_FOUND), "its interposer has no device_wrap"));
  CHECK(says(fault("fails", DUET_E_UNSUPPORTED), "the layer odd: not on a Thursday"));
  CHECK(says(fault("mute", DUET_E_ABI), "the layer odd: device_wrap gave no table"));
  CHECK(says(fault("small", DUET_E_ABI), "the layer odd: device_wrap gave no table, or one smaller"));
}

TEST_CASE("a model is measured against the memory that its device has left when it is loaded, not when the library began") {
  Lines log;
  ::setenv("DUET_FAR_FREE", "100000", 1);
  for (const char* stack : {"", "validate"}) {
    const auto lib = layers::library(stack, log, fixture("far"));
    CHECK(says(fault_of_load(lib, "far", DUET_E_MEMORY), "bytes of memory on far:0, but 100000 are free"));
    ::setenv("DUET_FAR_FREE", "1000000000", 1);
    CHECK(fault_of_load(lib, "far", DUET_OK) == "");
    ::setenv("DUET_FAR_FREE", "100001", 1);
    CHECK(says(fault_of_load(lib, "far", DUET_E_MEMORY), "but 100001 are free"));
    ::setenv("DUET_FAR_FREE", "100000", 1);
  }
  ::unsetenv("DUET_FAR_FREE");
}

TEST_CASE("a state is measured against the memory that its device has left when it is created") {
  Lines log;
  for (const char* stack : {"", "validate"}) {
    ::setenv("DUET_FAR_FREE", "1000000000", 1);
    const auto m = load(layers::library(stack, log, fixture("far")), golden::path("tiny.pth"), "far");
    const uint64_t bytes = info(m).state_bytes;
    for (const auto& [wkv, slot] : {std::pair(DUET_F32, bytes), std::pair(DUET_F16, bytes - bytes_of_wkv(m) / 2)}) {
      auto o = DUET_INIT(duet_state_options);
      o.wkv = wkv;
      duet_state* s = nullptr;
      ::setenv("DUET_FAR_FREE", std::to_string(7 * slot).c_str(), 1);
      CHECK(duet_state_create(m.get(), 8, &o, &s) == DUET_E_MEMORY);
      CHECK(says(duet_last_error(), "a state of 8 slots needs " + std::to_string(8 * slot) + " bytes of memory on far:0, but " + std::to_string(7 * slot) + " are free"));
      CHECK(s == nullptr);
      check(duet_state_create(m.get(), 7, &o, &s));
      duet_state_free(s);
    }
  }
  ::unsetenv("DUET_FAR_FREE");
}
