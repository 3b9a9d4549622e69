#include "formats/recognise.h"

#include <algorithm>
#include <string>

namespace duet {
namespace {

constexpr std::string_view kZipEntry{"PK\x03\x04", 4}, kZipEnd{"PK\x05\x06", 4};
constexpr size_t kZipEndBytes = 22, kSmallest = 10;  // 8 bytes of length and "{}"

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string_view without_space(std::string_view s) {
  const size_t n = s.find_first_not_of(" \t\r\n");
  return n == s.npos ? std::string_view() : s.substr(n);
}

bool begins_any_case(std::string_view s, std::string_view prefix) {
  return s.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), s.begin(), [](char a, char b) { return a == lower(b); });
}

bool ends_any_case(std::string_view s, std::string_view suffix) {
  return s.size() >= suffix.size() && begins_any_case(s.substr(s.size() - suffix.size()), suffix);
}

}  // namespace

Content recognise(Bytes bytes) {
  const std::string_view s = as_text(bytes);
  const bool zip_at_end = s.size() >= kZipEndBytes && s.substr(s.size() - kZipEndBytes).starts_with(kZipEnd);
  if (s.starts_with(kZipEntry)) return Content::zip;
  if (s.size() >= 9 && s[8] == '{' && (s[0] != '{' || s[7] == '\0')) return Content::safetensors;
  if (without_space(s.substr(0, 64)).starts_with('{')) return Content::json;
  return zip_at_end ? Content::zip : Content::other;
}

void refuse(Bytes bytes, std::string_view file) {
  const std::string_view s = as_text(bytes), text = without_space(s.substr(0, 512));
  if (s.size() < kSmallest) fail(DUET_E_FORMAT, "{}: {} bytes; the smallest valid file of weights has {}", file, s.size(), kSmallest);
  if (text.starts_with("version https://git-lfs"))
    fail(DUET_E_FORMAT, "{}: looks like a Git LFS pointer, not weights; fetch the file itself with git lfs pull", file);
  if (begins_any_case(text, "<!doctype html") || begins_any_case(text, "<html") || begins_any_case(text, "<?xml") || begins_any_case(text, "<head"))
    fail(DUET_E_FORMAT, "{}: looks like an HTML page, not weights; download the file itself", file);
  if (s.starts_with("GGUF")) fail(DUET_E_UNSUPPORTED, "{}: a GGUF file; use the model's .pth or .safetensors instead", file);
  if (s.starts_with("fmgg")) fail(DUET_E_UNSUPPORTED, "{}: an rwkv.cpp (ggmf) file; use the model's .pth or .safetensors instead", file);
  if (s[0] == '\x80' && s[1] >= 1 && s[1] <= 5)
    fail(DUET_E_UNSUPPORTED, "{}: a bare pickle, as PyTorch before 1.6 wrote; load and save it again with a newer PyTorch", file);
  if (s.substr(0, 262).substr(std::min<size_t>(s.size(), 257)) == "ustar")
    fail(DUET_E_UNSUPPORTED, "{}: a tar archive, as the first versions of PyTorch wrote; unpack it, or load and save it again with a newer PyTorch", file);
  fail(DUET_E_FORMAT, "{}: neither .pth (a zip archive) nor safetensors nor a model's config.json; it begins with \"{}\"", file, printable(s.substr(0, 8)));
}

void note_suffix(std::string_view path, Content content, const Notes& notes) {
  const bool says_zip = ends_any_case(path, ".pth") || ends_any_case(path, ".pt"),
             says_safetensors = ends_any_case(path, ".safetensors") || ends_any_case(path, ".st");
  if (content == Content::zip && says_safetensors) notes.warn("{}: is a .pth by its content; its name says safetensors", path);
  if (content == Content::safetensors && says_zip) notes.warn("{}: is safetensors by its content; its name says .pth", path);
}

}  // namespace duet
