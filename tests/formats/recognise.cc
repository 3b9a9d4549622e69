// What is no file of weights at all, and what has the wrong name.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "expect.h"
#include "pickle_builder.h"

namespace duet {
namespace {

const std::string kSafetensors = little(56, 8) + R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   )" + "x";

std::string pth() { return pth_of(pickle_of({{.type = "ByteStorage", .elements = 1, .shape = {1}, .stride = {1}}}), {"x"}); }

void unopenable(const std::string& path, duet_status code, const std::vector<std::string>& words) {
  expect_error(code, words, [&] { Checkpoint::open(path, Log()); });
}

}  // namespace

TEST_CASE("files too small to be anything (B-W1)") {
  for (const size_t n : {0, 1, 7, 9}) {
    const std::string bytes(n, 'P');
    refused(bytes, DUET_E_FORMAT, {fmt::format("{} bytes", n), "smallest valid", "10"});
    const Folder f;
    unopenable(f.write("m.pth", bytes), DUET_E_FORMAT, {"m.pth", fmt::format("{} bytes", n)});
  }
}

TEST_CASE("paths that are no regular files (B-W2)") {
  const Folder f;
  const std::string fifo = f / "fifo", sock = f / "socket";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  const int s = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(sock.size() < sizeof address.sun_path);
  sock.copy(address.sun_path, sock.size());
  REQUIRE(::bind(s, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  unopenable(fifo, DUET_E_IO, {fifo, "not a regular file"});
  unopenable(sock, DUET_E_IO, {sock});
  unopenable("/dev/zero", DUET_E_IO, {"/dev/zero", "not a regular file"});
  ::close(s);
}

TEST_CASE("paths that cannot be opened (B-W3)") {
  const Folder f;
  unopenable(f / "missing.pth", DUET_E_NOT_FOUND, {"missing.pth", "No such file"});
  std::filesystem::create_symlink("nowhere", f / "link.pth");
  unopenable(f / "link.pth", DUET_E_NOT_FOUND, {"link.pth"});
  unopenable(std::string("a\0b", 3), DUET_E_IO, {"a\\x00b", "NUL"});
  unopenable(std::string(5000, 'x'), DUET_E_IO, {"xxx", "too long"});
  unopenable("", DUET_E_NOT_FOUND, {"No such file"});
  unopenable(f / "m\x1b[31m\xff", DUET_E_NOT_FOUND, {"m\\x1b[31m\\xff"});
  const std::string secret = f.write("secret.pth", kSafetensors);
  REQUIRE(::chmod(secret.c_str(), 0) == 0);
  if (::geteuid() != 0) unopenable(secret, DUET_E_IO, {"secret.pth", "Permission denied"});
}

TEST_CASE("other content is named for what it is (B-W4)") {
  refused("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n", DUET_E_FORMAT, {"Git LFS pointer"});
  refused("\n  <!DOCTYPE html><html><head></head></html>", DUET_E_FORMAT, {"HTML"});
  refused("<HTML><body>404</body></HTML>", DUET_E_FORMAT, {"HTML"});
  refused("GGUF\x03" + std::string(20, '\0'), DUET_E_UNSUPPORTED, {"GGUF"});
  refused(little(0x67676d66, 4) + little(101, 4) + std::string(20, '\0'), DUET_E_UNSUPPORTED, {"ggmf"});
  refused(std::string("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15), DUET_E_UNSUPPORTED, {"pickle", "PyTorch before 1.6"});
  refused("file.bin" + std::string(249, '\0') + "ustar  " + std::string(300, '\0'), DUET_E_UNSUPPORTED, {"tar archive"});
  refused(
      "\x7f"
      "ELF\x1b\n\xff\xfe 1234",
      DUET_E_FORMAT, {"neither", "\\x7fELF\\x1b\\x0a\\xff\\xfe"});
  refused(std::string(400, '\0'), DUET_E_FORMAT, {"neither"});
  refused("{\"not\": \"a configuration\"}", DUET_E_FORMAT, {"neither"});
  const Folder f;
  unopenable(f.write("x.json", "{\"not\": \"a configuration\"}"), DUET_E_UNSUPPORTED, {"x.json", "model_type"});
  unopenable(f.write("y.json", "{\"not\": "), DUET_E_FORMAT, {"y.json", "JSON"});
}

TEST_CASE("content decides, a wrong suffix is worth a warning (B-W5)") {
  const Folder f;
  const std::string zip = pth();
  for (const auto& [name, content, format] : {std::tuple("a.safetensors", zip, "pth"), std::tuple("b.SafeTensors", zip, "pth"),
                                              std::tuple("c.PTH", kSafetensors, "safetensors"), std::tuple("d.pt", kSafetensors, "safetensors")}) {
    Warnings w;
    CHECK(Checkpoint::open(f.write(name, content), w.log).format() == format);
    REQUIRE(w.texts.size() == 1);
    CHECK(w.texts[0].find(name) != std::string::npos);
    expect_error(DUET_E_FORMAT, {name, "strict"}, [&, path = f / name] { Checkpoint::open(path, w.log, {.strict = true}); });
  }
  for (const auto& [name, content] : {std::pair("a.bin", zip), std::pair("b", kSafetensors), std::pair("c.pth", zip), std::pair("d.st", kSafetensors)}) {
    Warnings w;
    Checkpoint::open(f.write(name, content), w.log, {.strict = true});
    CHECK(w.texts.empty());
  }
}

TEST_CASE("a folder without config.json is its only file of weights") {
  const Folder f;
  unopenable(f.path(), DUET_E_NOT_FOUND, {f.path(), "neither config.json nor"});
  f.write("README", "text");
  f.write("m.pth", pth());
  CHECK(Checkpoint::open(f.path(), Log()).format() == "pth");
  f.write("n.safetensors", kSafetensors);
  unopenable(f.path(), DUET_E_NOT_FOUND, {"more than one", "m.pth", "n.safetensors"});
}

TEST_CASE("a file that changes after it was opened is noticed (B-W10)") {
  const Folder f;
  const std::string path = f.write("m.pth", pth());
  const Checkpoint c = Checkpoint::open(path, Log());
  c.check_unchanged();
  std::ofstream(path, std::ios::app | std::ios::binary) << "more";
  expect_error(DUET_E_FORMAT, {"m.pth", "changed"}, [&] { c.check_unchanged(); });
}

TEST_CASE("a large sparse file costs only its directory (B-W36)") {
  const Folder f;
  const uint64_t elements = uint64_t{100} << 30;
  std::string header = fmt::format(R"({{"a":{{"dtype":"BF16","shape":[{}],"data_offsets":[0,{}]}}}})", elements, 2 * elements);
  header.resize(120, ' ');
  const std::string path = f.write("big.safetensors", little(header.size(), 8) + header);
  std::error_code e;
  std::filesystem::resize_file(path, 8 + header.size() + 2 * elements, e);
  if (e) return;  // a file system without sparse files
  CHECK(Checkpoint::open(path, Log()).find("a")->data.size() == 2 * elements);
}

}  // namespace duet
