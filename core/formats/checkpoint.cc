#include "formats/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <new>
#include <utility>

#include "base/file.h"
#include "formats/hugging_face.h"
#include "formats/names.h"
#include "formats/pth.h"
#include "formats/recognise.h"
#include "formats/safetensors.h"

namespace duet {
namespace {

constexpr size_t kAlign = 64;

bool must_move(const View& v) { return !v.dense() || reinterpret_cast<uintptr_t>(v.data()) % dtype_bytes(v.dtype) != 0; }

uint64_t padded(uint64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

// Row-major copy of a window; `E` bytes per element. Walks like an odometer, the last dimension fastest.
template <size_t E>
void gather(const View& v, std::byte* out) {
  std::array<uint64_t, kMaxRank> index{};
  const size_t inner = v.rank - 1;
  const std::byte* row = v.data();
  for (uint64_t left = v.count() / v.shape[inner]; left > 0; --left) {
    for (uint64_t i = 0; i < v.shape[inner]; ++i, out += E) std::memcpy(out, row + i * v.step[inner] * E, E);
    for (size_t d = inner; d-- > 0;) {
      row += v.step[d] * E;
      if (++index[d] < v.shape[d]) break;
      row -= index[d] * v.step[d] * E;
      index[d] = 0;
    }
  }
}

void copy(const View& v, std::byte* out) {
  if (v.dense()) return void(std::memcpy(out, v.data(), v.bytes()));
  switch (dtype_bytes(v.dtype)) {
    case 1: return gather<1>(v, out);
    case 2: return gather<2>(v, out);
    case 4: return gather<4>(v, out);
    default: return gather<8>(v, out);
  }
}

}  // namespace

struct CheckpointBuilder {
  Checkpoint out;

  // Maps a file for as long as the checkpoint lives.
  Bytes map(const std::string& path) {
    auto file = std::make_shared<MappedFile>(path);
    if (verify) file->check_readable();
    out.unchanged_.push_back([file] { file->check_unchanged(); });
    out.owners_.push_back(file);
    file_bytes += file->bytes().size();
    return file->bytes();
  }

  Checkpoint finish(std::string path, Directory d) {
    out.path_ = std::move(path);
    out.format_ = std::move(d.format);
    out.metadata_ = std::move(d.metadata);
    out.gn_eps_ = d.gn_eps;
    std::byte* block = allocate(d);
    out.tensors_.reserve(d.views.size());
    for (const View& v : d.views) {
      Tensor t{v.name, v.dtype, {v.shape.begin(), v.shape.begin() + v.rank}, v.count() == 0 ? Bytes() : Bytes(v.data(), v.bytes())};
      if (v.count() > 0 && must_move(v)) {
        copy(v, block);
        t.data = {block, v.bytes()};
        block += padded(v.bytes());
      }
      out.index_.emplace(v.name, out.tensors_.size());
      out.tensors_.push_back(std::move(t));
    }
    out.check_unchanged();
    return std::move(out);
  }

  // One block for all tensors that cannot be used where they are.
  std::byte* allocate(const Directory& d) {
    uint64_t moved = 0, n = 0, bytes = 0;
    for (const View& v : d.views) {
      if (v.count() == 0 || !must_move(v)) continue;
      if (d.check_storage) d.check_storage(v);
      moved += v.bytes();
      bytes += padded(v.bytes());
      ++n;
      if (moved > file_bytes)
        fail(DUET_E_LIMIT, "{}: tensor {}: the tensors to be rearranged up to here are {} bytes, more than the file's {}", out.path_, printable(v.name), moved,
             file_bytes);
    }
    if (n == 0) return nullptr;
    auto* block = static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kAlign}, std::nothrow));
    if (block == nullptr) fail(DUET_E_MEMORY, "{}: no memory for {} bytes of tensors that must be rearranged", out.path_, bytes);
    out.owners_.push_back(std::shared_ptr<const void>(block, [](const void* p) { ::operator delete (const_cast<void*>(p), std::align_val_t{kAlign}); }));
    return block;
  }

  bool verify = false;
  uint64_t file_bytes = 0;  // of all files: no honest file needs more memory for rearranged tensors
};

namespace {

Directory read_bytes(Bytes bytes, const std::string& name, Content content, const Notes& notes, bool verify) {
  if (content != Content::zip && content != Content::safetensors) refuse(bytes, name);
  Directory d = content == Content::zip ? read_pth(bytes, name, notes, verify) : read_safetensors(bytes, name);
  use_official_names(d, name);
  return d;
}

// A folder without config.json: its only file of weights.
std::string only_weights(const std::string& folder) {
  std::error_code e;
  std::string found;
  for (std::filesystem::directory_iterator it(folder, e), end; !e && it != end; it.increment(e)) {
    const std::string path = it->path().string();
    if (!is_regular_file(path)) continue;
    const Content content = recognise(MappedFile(path).bytes());
    if (content != Content::zip && content != Content::safetensors) continue;
    if (!found.empty())
      fail(DUET_E_NOT_FOUND, "{}: no config.json, and more than one file of weights: {} and {}; name one", printable(folder, 300), printable(found, 300),
           printable(path, 300));
    found = path;
  }
  if (e) fail(DUET_E_IO, "{}: {}", printable(folder, 300), e.message());
  if (found.empty()) fail(DUET_E_NOT_FOUND, "{}: neither config.json nor a file of weights in this folder", printable(folder, 300));
  return found;
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& path, const Log& log, const OpenOptions& options) {
  const Notes notes(log, options.strict);
  std::string file = path;
  if (is_folder(path)) file = is_regular_file(path + "/config.json") ? path + "/config.json" : only_weights(path);
  const std::string name = printable(file, 300);
  CheckpointBuilder builder;
  builder.verify = options.verify;
  const Bytes bytes = builder.map(file);
  const Content content = recognise(bytes);
  if (content == Content::json) return builder.finish(path, read_hugging_face(file, [&](const std::string& p) { return builder.map(p); }));
  note_suffix(name, content, notes);
  return builder.finish(path, read_bytes(bytes, name, content, notes, options.verify));
}

Checkpoint Checkpoint::parse(Bytes bytes, std::string_view name, const Log& log, const OpenOptions& options) {
  CheckpointBuilder builder;
  builder.file_bytes = bytes.size();
  return builder.finish(std::string(name), read_bytes(bytes, printable(name, 300), recognise(bytes), Notes(log, options.strict), options.verify));
}

const Tensor* Checkpoint::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

void Checkpoint::check_unchanged() const {
  for (const auto& check : unchanged_) check();
}

}  // namespace duet
