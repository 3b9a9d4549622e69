#include "formats/pth.h"

#include <memory>
#include <utility>
#include <vector>

#include "formats/pickle.h"
#include "formats/zip.h"

namespace duet {
namespace {

// While rejecting, everything together stays below the file's size + 16 MiB: the views (at most kMaxTensors) take up to 13.
constexpr uint64_t kPickleMemory = uint64_t{5} << 19;

using Kind = Pickle::Kind;

class PthReader {
 public:
  PthReader(Bytes bytes, std::string_view file, const Notes& notes)
      : file_(file), notes_(notes), zip_(std::make_shared<Zip>(bytes, file)), memory_(kPickleMemory + bytes.size()) {
    directory_.format = "pth";
  }

  Directory read(bool verify) {
    find_root();
    check_byte_order();
    if (verify)
      for (const ZipEntry& e : zip_->entries()) zip_->check_crc(e);
    const ZipEntry& pickle = *zip_->find(root_ + "data.pkl");
    zip_->check_crc(pickle);
    const Pickle p(zip_->data(pickle), duet::format("{}: pickle {}", file_, printable(pickle.name)), pickle.data, memory_);
    read_tensors(p);
    directory_.check_storage = [zip = zip_, checked = std::vector<bool>(zip_->entries().size(), verify)](const View& v) mutable {
      if (checked[v.record]) return;
      zip->check_crc(zip->entries()[v.record]);
      checked[v.record] = true;
    };
    return std::move(directory_);
  }

 private:
  // Every entry lies in one folder, whatever its name.
  void find_root() {
    if (zip_->entries().empty()) fail(DUET_E_FORMAT, "{}: an empty zip archive", file_);
    const std::string_view any = zip_->entries().front().name;
    root_ = any.substr(0, any.find('/') + 1);
    for (const ZipEntry& e : zip_->entries())
      if (!e.name.starts_with(root_) || root_.empty())
        fail(DUET_E_FORMAT, "{}: zip entry {} at byte {} is not in the folder {} of the others", file_, printable(e.name), e.header,
             root_.empty() ? "<name>/" : printable(root_));
    if (zip_->find(root_ + "constants.pkl")) fail(DUET_E_UNSUPPORTED, "{}: a TorchScript program, not weights; save its state_dict() instead", file_);
    if (!zip_->find(root_ + "data.pkl")) fail(DUET_E_FORMAT, "{}: a zip archive without {}data.pkl, so not one that torch.save wrote", file_, printable(root_));
  }

  void check_byte_order() {
    const ZipEntry* e = zip_->find(root_ + "byteorder");
    if (e == nullptr) return;
    const std::string_view order = as_text(zip_->data(*e));
    if (order == "big") fail(DUET_E_UNSUPPORTED, "{}: saved on a big-endian machine (byteorder at byte {})", file_, e->data);
    if (order != "little") fail(DUET_E_FORMAT, "{}: byteorder {} at byte {} is neither little nor big", file_, printable(order), e->data);
  }

  void read_tensors(const Pickle& p) {
    Pickle::Ref dict = p.top();
    if (p.kind(dict) == Kind::dict)
      each_item(p, p.top(), [&](Pickle::Ref key, Pickle::Ref value) {
        if (p.kind(key) == Kind::text && p.text(key) == "state_dict" && p.kind(value) == Kind::dict) dict = value;
      });
    if (p.kind(dict) != Kind::dict) fail(DUET_E_FORMAT, "{}: its pickle holds {}, where a dict of named tensors belongs", file_, kind_name(p.kind(dict)));
    size_t ignored = 0;
    std::string example;
    each_item(p, dict, [&](Pickle::Ref key, Pickle::Ref value) {
      if (p.kind(key) == Kind::text && p.kind(value) == Kind::tensor) return add(p, p.text(key), p.arguments(value));
      if (ignored++ == 0)
        example = duet::format("{}, which is {}", p.kind(key) == Kind::text ? printable(p.text(key)) : kind_name(p.kind(key)), kind_name(p.kind(value)));
    });
    if (ignored > 0) notes_.warn("{}: {} values that are no named tensors are ignored, the first is {}", file_, ignored, example);
  }

  template <class F>
  static void each_item(const Pickle& p, Pickle::Ref dict, F&& f) {
    Pickle::Ref key = 0;
    bool is_key = true;
    p.each(dict, [&](Pickle::Ref r) {
      if (is_key) key = r;
      else f(key, r);
      is_key = !is_key;
    });
  }

  void add(const Pickle& p, std::string_view name, Pickle::Ref arguments) {
    check_name(name, file_);
    const auto bad = [&]<class... A>(fmt::format_string<A...> format, A&&... args) {
      fail(DUET_E_FORMAT, "{}: tensor {}: {}", file_, printable(name), duet::format(format, std::forward<A>(args)...));
    };
    const auto size = [&](Pickle::Ref r, const char* what) {
      if (p.integer(r) < 0) bad("{} {} is negative", what, p.integer(r));
      return static_cast<uint64_t>(p.integer(r));
    };
    if (directory_.views.size() == kMaxTensors) fail(DUET_E_LIMIT, "{}: more than {} tensors", file_, kMaxTensors);
    View v;
    v.name = name;

    const Pickle::Ref storage = p.item(arguments, 0);
    v.dtype = p.storage_dtype(storage);
    const std::string_view key = p.text(p.item(p.arguments(storage), 2));
    const uint64_t elements = size(p.item(p.arguments(storage), 4), "storage length");
    const ZipEntry* entry = key.size() > kMaxName ? nullptr : zip_->find(duet::format("{}data/{}", root_, key));
    if (entry == nullptr) bad("its storage, zip entry {}data/{}, is missing", printable(root_), printable(key));
    uint64_t bytes = 0;
    if (!checked_mul(elements, dtype_bytes(v.dtype), bytes) || bytes != entry->size)
      bad("its storage of {} {} elements does not have the {} bytes of zip entry {} at byte {}", elements, dtype_name(v.dtype), entry->size,
          printable(entry->name), entry->data);
    v.storage = zip_->data(*entry);
    v.record = static_cast<uint32_t>(entry - zip_->entries().data());

    v.first = size(p.item(arguments, 1), "offset");
    const Pickle::Ref shape = p.item(arguments, 2), step = p.item(arguments, 3);
    if (p.count(shape) > kMaxRank)
      fail(DUET_E_LIMIT, "{}: tensor {} has {} dimensions, more than the {} allowed", file_, printable(name), p.count(shape), kMaxRank);
    p.each(shape, [&](Pickle::Ref r) { v.shape[v.rank++] = size(r, "dimension"); });
    size_t i = 0;
    p.each(step, [&](Pickle::Ref r) { v.step[i++] = size(r, "stride"); });

    // The window must lie in the storage, and a window that repeats elements is no weight.
    uint64_t count = 1, last = v.first;
    bool fits = true;
    for (i = 0; i < v.rank; ++i) fits = fits && checked_mul(count, v.shape[i], count);
    for (i = 0; i < v.rank && count > 0 && fits; ++i) {
      uint64_t reach = 0;
      if (v.shape[i] > 1 && v.step[i] == 0) bad("dimension {} of {} has stride 0", i, v.shape_text());
      fits = v.shape[i] == 1 || (checked_mul(v.shape[i] - 1, v.step[i], reach) && checked_add(last, reach, last));
    }
    if (!fits || count > elements || (count > 0 ? last >= elements : last > elements))
      bad("{} from element {} on reaches beyond its storage of {} elements", v.shape_text(), v.first, elements);
    directory_.views.push_back(std::move(v));
  }

  std::string file_, root_;
  const Notes& notes_;
  std::shared_ptr<Zip> zip_;
  uint64_t memory_;
  Directory directory_;
};

}  // namespace

Directory read_pth(Bytes bytes, std::string_view file, const Notes& notes, bool verify) { return PthReader(bytes, file, notes).read(verify); }

}  // namespace duet
