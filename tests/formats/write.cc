// Files that we write.
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"
#include "zip_builder.h"

namespace duet {
namespace {

TensorToWrite tensor(const std::string& name, const std::string& data) {
  return {name, DType::u8, {data.size()}, [data](const auto& sink) { sink(as_bytes(data)); }};
}

std::string written(const std::vector<TensorToWrite>& tensors, const std::map<std::string, std::string>& metadata = {}) {
  std::string out;
  write_safetensors(tensors, metadata, [&](Bytes b) { out += as_text(b); });
  return out;
}

}  // namespace

TEST_CASE("write: data begin at a multiple of 64, order and metadata are kept") {
  for (size_t n = 0; n < 70; ++n) {
    const std::string file = written({tensor(std::string(n, 'n') + "x", "data"), tensor("second", "more")}, {{"k", std::string(n / 2, 'v')}});
    CHECK((file.size() - 8) % 64 == 0);
    const Checkpoint c = parse(file, {.strict = true});
    CHECK(as_text(c.tensors()[0].data) == "data");
    CHECK(c.tensors()[1].name == "second");
    CHECK(c.metadata().at("k").size() == n / 2);
  }
  CHECK(parse(written({})).tensors().empty());
  CHECK(parse(written({{"scalar", DType::f64, {}, [](const auto& sink) { sink(as_bytes("12345678")); }}, {"none", DType::f32, {3, 0}, [](const auto&) {}}}))
            .find("none")
            ->shape == std::vector<uint64_t>{3, 0});
}

TEST_CASE("write: what no reader could take back is refused") {
  for (const std::string& name : {std::string(), std::string("__metadata__"), std::string("\xff"), std::string(257, 'n')})
    expect_error(DUET_E_INVALID, {"name"}, [&] { written({tensor(name, "x")}); });
  expect_error(DUET_E_INVALID, {"\"a\""}, [] { written({tensor("a", "x"), tensor("a", "y")}); });
  expect_error(DUET_E_INVALID, {"tensor a"}, [] { written({{"a", DType::f32, {uint64_t{1} << 62}, nullptr}}); });
  expect_error(DUET_E_INTERNAL, {"tensor a", "1 bytes", "size of 2"}, [] { written({{"a", DType::u8, {2}, [](const auto& sink) { sink(as_bytes("x")); }}}); });
}

TEST_CASE("write: a file appears whole or not at all") {
  const Folder f;
  save_safetensors(f / "m.safetensors", false, {tensor("a", "first")}, {});
  expect_error(DUET_E_EXISTS, {"m.safetensors"}, [&] { save_safetensors(f / "m.safetensors", false, {tensor("a", "second")}, {}); });
  expect_error(DUET_E_INTERNAL, {}, [&] {
    save_safetensors(f / "m.safetensors", true, {{"a", DType::u8, {2}, [](const auto& sink) { sink(as_bytes("x")); }}}, {});
  });
  CHECK(as_text(Checkpoint::open(f / "m.safetensors", Log()).find("a")->data) == "first");
  save_safetensors(f / "m.safetensors", true, {tensor("a", "second")}, {});
  CHECK(as_text(Checkpoint::open(f / "m.safetensors", Log()).find("a")->data) == "second");
  CHECK(std::distance(std::filesystem::directory_iterator(f.path()), {}) == 1);
  expect_error(DUET_E_NOT_FOUND, {"nowhere"}, [&] { save_safetensors(f / "nowhere/m", false, {}, {}); });
}

TEST_CASE("write: a process that is killed at any byte leaves the old file as it was") {
  const Folder f;
  const std::string path = f / "m.safetensors";
  save_safetensors(path, false, {tensor("a", "first")}, {});
  const std::string second(1000, 's'), whole = written({tensor("a", second)});
  for (size_t n = 0; n < whole.size(); n += 37) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      const rlimit no_core{0, 0}, few{n, n};
      ::setrlimit(RLIMIT_CORE, &no_core);
      ::setrlimit(RLIMIT_FSIZE, &few);
      ::signal(SIGXFSZ, SIG_DFL);  // the write that crosses the limit ends the process
      save_safetensors(path, true, {tensor("a", second)}, {});
      ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    CHECK(as_text(Checkpoint::open(path, Log()).find("a")->data) == "first");
  }
  save_safetensors(path, true, {tensor("a", second)}, {});
  CHECK(as_text(Checkpoint::open(path, Log()).find("a")->data) == second);
}

}  // namespace duet
