#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "formats/json_reader.h"

namespace duet {
namespace {

constexpr uint64_t kMaxHeader = uint64_t{64} << 20;
constexpr size_t kMaxMetadata = 4096;

constexpr std::array kDTypes{DType::f64, DType::f32, DType::f16, DType::bf16, DType::i64, DType::i32, DType::i16, DType::i8, DType::u8, DType::boolean};

class SafetensorsReader {
 public:
  SafetensorsReader(Bytes bytes, std::string_view file) : file_(file), json_(header(bytes, file), file, 8) {
    data_ = bytes.subspan(8 + json_.size());
    directory_.format = "safetensors";
  }

  Directory read() {
    bool metadata = false;
    json_.object([&] {
      std::string name = json_.text(kMaxName);
      json_.colon();
      if (name != "__metadata__") return tensor(std::move(name));
      if (std::exchange(metadata, true)) json_.bad("a second __metadata__");
      read_metadata();
    });
    json_.end();
    check_names();
    check_cover();
    return std::move(directory_);
  }

 private:
  static Bytes header(Bytes bytes, std::string_view file) {
    ByteReader r(bytes, file);
    const uint64_t n = r.u64("header length");
    if (n > r.left()) fail(DUET_E_FORMAT, "{}: the header length at byte 0 is {}, but only {} bytes follow; cut short, or not safetensors", file, n, r.left());
    if (n > kMaxHeader) fail(DUET_E_LIMIT, "{}: a header of {} bytes, more than the {} allowed", file, n, kMaxHeader);
    return r.take(n, "header");
  }

  void read_metadata() {
    json_.object([&] {
      if (directory_.metadata.size() == kMaxMetadata)
        fail(DUET_E_LIMIT, "{}: more than {} entries of __metadata__ at byte {}", file_, kMaxMetadata, json_.offset());
      std::string key = json_.text();
      json_.colon();
      if (!directory_.metadata.emplace(std::move(key), json_.text()).second) json_.bad("a key of __metadata__ that stands twice");
    });
  }

  void tensor(std::string name) {
    check_name(name, file_);
    if (directory_.views.size() == kMaxTensors) fail(DUET_E_LIMIT, "{}: more than {} tensors", file_, kMaxTensors);
    View v;
    v.name = std::move(name);
    const std::string quoted = printable(v.name);
    json_.subject("tensor " + quoted);
    std::vector<uint64_t> offsets;
    bool dtype = false, shape = false;
    json_.object([&] {
      const std::string key = json_.text(kMaxName);
      json_.colon();
      if (key == "dtype" && !std::exchange(dtype, true)) {
        const std::string text = json_.text(kMaxName);
        const auto* t = std::find_if(kDTypes.begin(), kDTypes.end(), [&](DType d) { return text == dtype_name(d); });
        if (t == kDTypes.end()) fail(DUET_E_UNSUPPORTED, "{}: tensor {} has the dtype {}, which is not supported", file_, quoted, printable(text));
        v.dtype = *t;
      } else if (key == "shape" && !std::exchange(shape, true)) {
        json_.array([&] {
          if (v.rank == kMaxRank) fail(DUET_E_LIMIT, "{}: tensor {} has more than {} dimensions", file_, quoted, kMaxRank);
          v.shape[v.rank++] = json_.integer();
        });
      } else if (key == "data_offsets" && offsets.empty()) {
        json_.array([&] {
          if (offsets.size() == 2) json_.bad("more than two data_offsets");
          offsets.push_back(json_.integer());
        });
        if (offsets.size() != 2) json_.bad("fewer than two data_offsets");
      } else {
        json_.bad(duet::format("\"{}\", which is unknown or stands twice", printable(key)));
      }
    });
    if (!dtype || !shape || offsets.empty()) json_.bad("no dtype, shape or data_offsets");
    const auto [begin, end] = std::pair(offsets[0], offsets[1]);
    if (begin > end || end > data_.size())
      fail(DUET_E_FORMAT, "{}: tensor {} has the data_offsets {} to {}, but there are {} bytes of data", file_, quoted, begin, end, data_.size());
    uint64_t bytes = dtype_bytes(v.dtype);
    bool fits = true;
    for (size_t i = 0; i < v.rank; ++i) fits = fits && checked_mul(bytes, v.shape[i], bytes);
    if (!fits || bytes != end - begin)
      fail(DUET_E_FORMAT, "{}: tensor {} of {} {} does not take the {} bytes of its data_offsets {} to {}", file_, quoted, dtype_name(v.dtype), v.shape_text(),
           end - begin, begin, end);
    v.storage = data_.subspan(begin, bytes);
    v.set_row_major();
    directory_.views.push_back(std::move(v));
    json_.subject("");
  }

  template <class Less>
  std::vector<uint32_t> order(Less less) const {
    std::vector<uint32_t> out(directory_.views.size());
    for (uint32_t i = 0; i < out.size(); ++i) out[i] = i;
    std::sort(out.begin(), out.end(), [&](uint32_t a, uint32_t b) { return less(directory_.views[a], directory_.views[b]); });
    return out;
  }

  void check_names() const {
    const auto by_name = order([](const View& a, const View& b) { return a.name < b.name; });
    for (size_t i = 1; i < by_name.size(); ++i)
      if (const View& v = directory_.views[by_name[i]]; v.name == directory_.views[by_name[i - 1]].name)
        fail(DUET_E_FORMAT, "{}: tensor {} stands twice in the header", file_, printable(v.name));
  }

  void check_cover() const {
    const uint64_t base = 8 + json_.size();
    uint64_t expected = 0;
    for (const uint32_t i :
         order([](const View&a, const View&b) { return std::pair(a.storage.data(), a.storage.size()) < std::pair(b.storage.data(), b.storage.size()); })) {
      const View& v = directory_.views[i];
      const auto begin = static_cast<uint64_t>(v.storage.data() - data_.data());
      if (begin < expected)
        fail(DUET_E_FORMAT, "{}: tensor {} at byte {} overlaps the one before it, which ends at byte {}", file_, printable(v.name), base + begin,
             base + expected);
      if (begin > expected)
        fail(DUET_E_FORMAT, "{}: the {} bytes at byte {}, before tensor {}, belong to no tensor", file_, begin - expected, base + expected, printable(v.name));
      expected = begin + v.storage.size();
    }
    if (expected != data_.size())
      fail(DUET_E_FORMAT, "{}: the {} bytes at byte {}, after the last tensor, belong to no tensor", file_, data_.size() - expected, base + expected);
  }

  Bytes data_;
  std::string file_;
  JsonReader json_;
  Directory directory_;
};

}  // namespace

Directory read_safetensors(Bytes bytes, std::string_view file) { return SafetensorsReader(bytes, file).read(); }

}  // namespace duet
