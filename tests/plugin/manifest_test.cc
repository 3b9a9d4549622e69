#include "plugin/manifest.h"

#include "scene.h"

using namespace duet;

TEST_CASE("a manifest is read, and keys we do not know are ignored") {
  const Scene scene;
  const Manifest m = read_manifest(scene.write("x.duet.json", R"({"format":1,"id":"my_gpu2","library":"libx.so","abi":"1.42","arch":")" DUET_ARCH R"(","requires":["a"],"x":{}})"));
  CHECK(m.id == "my_gpu2");
  CHECK(m.library == scene.path("libx.so"));
  CHECK(m.major == 1);
  CHECK(m.minor == 42);
}

TEST_CASE("manifests that are wrong") {
  struct Row {
    const char *key, *value, *sentence;
    duet_status code = DUET_E_FORMAT;
  };
  const Row rows[] = {
      {"format", nullptr, "\"format\" is missing"}, {"format", "2", "\"format\" must be 1, found 2"}, {"format", "1.0", "must be 1"}, {"format", "\"1\"", "must be 1"}, {"format", "true", "must be 1"},
      {"id", nullptr, "\"id\" is missing"}, {"id", "7", "must be a string, found 7"}, {"id", "\"\"", "it must be 1 to 31"}, {"id", "\"Cpu\"", "it must be 1 to 31"},
      {"id", "\"a/../b\"", "it must be 1 to 31"}, {"id", "\"abcdefghijabcdefghijabcdefghij12\"", "it must be 1 to 31"}, {"id", "\"a\\u0000\"", "it must be 1 to 31"},
      {"library", nullptr, "\"library\" is missing"}, {"library", "[]", "must be a string"}, {"library", "\"\"", "bare name"}, {"library", "\"..\"", "bare name"},
      {"library", "\"/usr/lib/x.so\"", "bare name"}, {"library", "\"../x.so\"", "bare name"}, {"library", "\"a\\u0000b\"", "bare name"},
      {"abi", nullptr, "\"abi\" is missing"}, {"abi", "1.0", "must be a string"}, {"abi", "\"1\"", "must read like \"1.1\""}, {"abi", "\"1.\"", "must read like"}, {"abi", "\"-1.0\"", "must read like"},
      {"abi", "\"1.0x\"", "must read like"}, {"abi", "\"99999999999.0\"", "must read like"},
      {"abi", "\"0.9\"", "made for plugin ABI 0.9, this Duet speaks 1.1", DUET_E_ABI}, {"abi", "\"2.0\"", "made for plugin ABI 2.0", DUET_E_ABI},
      {"arch", nullptr, "\"arch\" is missing"}, {"arch", "\"pdp11\"", "made for pdp11, this machine is " DUET_ARCH, DUET_E_UNSUPPORTED}};
  const Scene scene;
  for (const Row& r : rows) {
    Json m = Json::parse(Scene::manifest("fake", "libduet_fake.so"));
    if (r.value) m[r.key] = Json::parse(r.value); else m.erase(r.key);
    CAPTURE(m.dump());
    const Error e = error_of([&] { read_manifest(scene.write("x.duet.json", m.dump())); });
    CHECK(e.code() == r.code);
    CHECK(says(e.what(), r.sentence));
    CHECK(says(e.what(), scene.path("x.duet.json")));
  }
}

TEST_CASE("manifests that are no manifests") {
  const Scene scene;
  const std::string whole = Scene::manifest("fake", "libduet_fake.so");
  for (size_t n = 0; n < whole.size(); ++n) CHECK(error_of([&] { read_manifest(scene.write("x.duet.json", whole.substr(0, n))); }).code() == DUET_E_FORMAT);
  for (const char* text : {"[]", "1", "null", "\"x\"", "\xef\xbb\xbf{}", "{\"format\":1,\"format\":1}", "\x7f" "ELF"})
    CHECK(error_of([&] { read_manifest(scene.write("x.duet.json", text)); }).code() == DUET_E_FORMAT);
  CHECK(error_of([&] { read_manifest(scene.write("x.duet.json", std::string(100'000, ' '))); }).code() == DUET_E_LIMIT);
  CHECK(error_of([&] { read_manifest(scene.path("none.duet.json")); }).code() == DUET_E_NOT_FOUND);
  CHECK(error_of([&] { read_manifest(scene.folder()); }).code() == DUET_E_IO);
}

TEST_CASE("a manifest whose library is missing, or which misstates it") {
  const Scene scene;
  const std::string path = scene.write("fake.duet.json", Scene::manifest("fake", "libduet_fake.so"));
  CHECK(says(World(path).report()[1]["reason"], "libduet_fake.so: No such file"));
  scene.plugin("good", ".", "1.3");
  CHECK(says(World(path).report()[1]["reason"], "\"abi\" is \"1.3\", but"));
  CHECK(scene.canary().empty());
}
