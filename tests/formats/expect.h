// What a test says about an input that must be refused.
#pragma once
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"
#include "formats/checkpoint.h"
#include "support/catch.h"

namespace duet {

inline bool clean(std::string_view message) {
  for (const char c : message)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return false;
  return !message.empty() && message.size() <= 1024 && utf8_valid(message);
}

// f() fails with this code, and the sentence holds all of these words.
template <class F>
void expect_error(duet_status code, const std::vector<std::string>& words, F&& f) {
  try {
    f();
  } catch (const Error& e) {
    INFO(e.what());
    CHECK(e.code() == code);
    CHECK(clean(e.what()));
    for (const std::string& w : words) {
      INFO("expected in the message: " << w);
      CHECK(std::string(e.what()).find(w) != std::string::npos);
    }
    return;
  }
  FAIL_CHECK("no error was raised");
}

inline Checkpoint parse(std::string_view file, const OpenOptions& options = {}) {
  return Checkpoint::parse(as_bytes(file), "file", Log(nullptr, nullptr, DUET_LOG_OFF), options);
}

inline void refused(std::string_view file, duet_status code, const std::vector<std::string>& words) {
  std::vector<std::string> all = words;
  all.push_back("file");
  expect_error(code, all, [&] { parse(file); });
}

// A folder of its own, removed at the end.
class Folder {
 public:
  Folder() {
    std::random_device random;
    path_ = (std::filesystem::temp_directory_path() / fmt::format("duet-test-{:08x}{:08x}", random(), random())).string();
    std::filesystem::create_directory(path_);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code e;
    std::filesystem::remove_all(path_, e);
  }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
  const std::string& path() const { return path_; }
  std::string write(std::string_view name, std::string_view content) const {
    std::ofstream(*this / name, std::ios::binary) << content;
    return *this / name;
  }

 private:
  std::string path_;
};

// The warnings of a load.
struct Warnings {
  std::vector<std::string> texts;
  Log log{[](void* user, int32_t, const char* text) { static_cast<Warnings*>(user)->texts.emplace_back(text); }, this, DUET_LOG_WARNING};
};

}  // namespace duet
