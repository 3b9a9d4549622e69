#include "model/weights.h"

#include <sys/mman.h>

#include <new>
#include <set>
#include <utility>

#include "base/error.h"
#include "model/fingerprint.h"
#include "model/quantised_file.h"

namespace duet {
namespace {

constexpr uint64_t kPiece = 1 << 20;  // floats of a matrix that is rounded or restored, at a time

template <class Bits>
struct Counts {
  uint64_t bad = 0, nonzero = 0;
};

// `largest`: bits of the largest magnitude that passes
template <class Bits>
Counts<Bits> count_values(const void* data, uint64_t n, Bits largest) {
  Counts<Bits> c;
  const auto* p = static_cast<const unsigned char*>(data);
  constexpr Bits kMagnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  for (uint64_t i = 0; i < n; ++i) {
    Bits b;
    std::memcpy(&b, p + i * sizeof b, sizeof b);
    b &= kMagnitude;
    c.bad += b > largest;
    c.nonzero += b != 0;
  }
  return c;
}

template <class Bits>
void report(Counts<Bits> c, uint64_t n, const std::string& file, const std::string& name, const Log& log, bool strict) {
  if (c.bad != 0) {
    if (strict) fail(DUET_E_NUMERIC, "{}: {} of the {} values of {} are not finite or beyond 1e30 (refused by strict loading)", file, c.bad, n, name);
    log.warn("{}: {} of the {} values of {} are not finite or beyond 1e30", file, c.bad, n, name);
  }
  // What is zero in no working model: embedding, head, the products that everything passes through, and the norms' weights.
  if (c.nonzero != 0 || n == 0) return;
  std::string_view matrix = name;
  if (matrix.ends_with(".scale")) matrix.remove_suffix(6);
  for (const char* needed : {"emb.weight", "head.weight", "ln0.weight", "ln1.weight", "ln2.weight", "ln_x.weight", "ln_out.weight", "key.weight", "receptance.weight", "att.value.weight"})
    if (matrix.ends_with(needed)) return log.warn("{}: all {} values of {} are zero", file, n, name);
}

class CheckpointWeights final : public WeightSource {
 public:
  CheckpointWeights(Checkpoint checkpoint, const Log& log, const OpenOptions& options)
      : file_(std::make_shared<const Checkpoint>(std::move(checkpoint))), model_(check_schema(*file_, log, options.strict)), log_(log), options_(options) {}

  const duetp_shape& shape() const override { return model_.shape; }
  duet_dtype dtype(uint32_t id, uint32_t layer) const override {
    if (is_quantised(id)) return model_.quantised;
    const DType t = model_.layers.at(layer)[id]->dtype;
    return t == DType::f64 ? DUET_F32 : to_duet(t);
  }

  bool in_place(uint32_t id, uint32_t layer, duet_dtype want) const override {
    const Tensor& t = *model_.layers.at(layer)[id];
    if (is_quantised(id)) return want == model_.quantised && lies_aligned(id, layer);
    const DType target = from_duet(want);
    return !duetp_is_quantised(want) && t.dtype == target && reinterpret_cast<uintptr_t>(t.data.data()) % dtype_bytes(target) == 0;
  }

  std::shared_ptr<const void> tensor(uint32_t id, uint32_t layer, duet_dtype want) const override {
    const Tensor& t = *model_.layers.at(layer)[id];
    const DType target = from_duet(want);
    file_->check_unchanged();
    if (in_place(id, layer, want)) {
      if (options_.strict || options_.verify || !tensor_specs()[id].matrix) check(t, t.data.data(), target);
      return {file_, t.data.data()};
    }
    const uint64_t n = tensor_count(id, layer, shape());
    const std::shared_ptr<void> converted = memory_.take(n * dtype_bytes(target), t.name);
    if (is_quantised(id))
      dequantise_to(id, layer, want, converted.get());
    else
      convert_floats(t.data.data(), t.dtype, converted.get(), want, n);
    check(t, converted.get(), target, n);
    return converted;
  }

  void floats(uint32_t id, uint32_t layer, uint64_t first, uint64_t n, float* out) const override {
    const Tensor& t = *model_.layers.at(layer)[id];
    file_->check_unchanged();
    if (is_quantised(id)) {
      dequantise(id, model_.quantised, parts(id, layer), first, n, out);
      if (first + n == tensor_count(id, layer, shape())) check_parts(id, layer);
      return;
    }
    convert_floats(t.data.data() + first * dtype_bytes(t.dtype), t.dtype, out, DUET_F32, n);
    if (first + n == t.count()) check(t, t.data.data(), t.dtype);  // once, when all has been read
  }

  QuantisedMatrix quantised(uint32_t id, uint32_t layer, duet_dtype want, std::shared_ptr<const void>& owner) const override {
    if (want != model_.quantised) return WeightSource::quantised(id, layer, want, owner);
    file_->check_unchanged();
    const QuantisedMatrix m = parts(id, layer);
    if (in_place(id, layer, want)) {
      if (options_.strict || options_.verify) check_parts(id, layer);
      owner = file_;
      return m;
    }
    check_parts(id, layer);
    const std::shared_ptr<void> block = memory_.take(quantised_block_bytes(m.form, want), tensor_name(id, layer));
    const QuantisedMatrix copy = quantised_parts(m.form, want, block.get());
    std::memcpy(const_cast<void*>(copy.data), m.data, m.form.bytes);
    std::memcpy(const_cast<void*>(copy.scale), m.scale, m.form.scales * 2);
    if (m.minimum != nullptr) std::memcpy(const_cast<void*>(copy.minimum), m.minimum, m.form.scales * 2);
    owner = block;
    return copy;
  }

  std::vector<float> time_state(uint32_t layer) const override {
    if (model_.time_state.empty() || model_.time_state.at(layer) == nullptr) return {};
    const Tensor& t = *model_.time_state[layer];
    std::vector<float> out(t.count());
    convert_floats(t.data.data(), t.dtype, out.data(), DUET_F32, t.count());
    check(t, out.data(), DType::f32);
    return out;
  }

 private:
  bool is_quantised(uint32_t id) const { return model_.quantised != 0 && tensor_specs()[id].matrix; }

  QuantisedMatrix parts(uint32_t id, uint32_t layer) const {
    const Tensor* minimum = model_.minimums.at(layer)[id];
    return {quantised_form(id, layer, model_.quantised, shape()), model_.layers.at(layer)[id]->data.data(), model_.scales.at(layer)[id]->data.data(),
            minimum != nullptr ? minimum->data.data() : nullptr};
  }
  bool lies_aligned(uint32_t id, uint32_t layer) const {
    const QuantisedMatrix m = parts(id, layer);
    const auto expected = quantised_parts_in_file(model_.quantised, m.form);
    const void* const at[] = {m.data, m.scale, m.minimum};
    for (size_t i = 0; i < expected.size(); ++i)
      if (reinterpret_cast<uintptr_t>(at[i]) % expected[i].align != 0) return false;
    return true;
  }

  // The whole matrix in a float type, by pieces of bounded size.
  void dequantise_to(uint32_t id, uint32_t layer, duet_dtype want, void* out) const {
    const QuantisedMatrix m = parts(id, layer);
    const uint64_t all = tensor_count(id, layer, shape()), bytes = dtype_bytes(from_duet(want));
    std::vector<float> piece(std::min(all, kPiece));
    for (uint64_t first = 0; first < all; first += kPiece) {
      const uint64_t n = std::min(kPiece, all - first);
      dequantise(id, model_.quantised, m, first, n, piece.data());
      convert_floats(piece.data(), DType::f32, static_cast<std::byte*>(out) + first * bytes, want, n);
    }
  }

  // Once for each tensor: a warning is not repeated.
  void check(const Tensor& t, const void* data, DType dtype, uint64_t n) const {
    if (checked_.insert(&t).second) check_values(data, dtype, n, file_->path(), t.name, log_, options_.strict);
  }
  void check(const Tensor& t, const void* data, DType dtype) const { check(t, data, dtype, t.count()); }
  void check_parts(uint32_t id, uint32_t layer) const {
    const Tensor* t = model_.layers.at(layer)[id];
    if (checked_.insert(t).second) check_quantised(parts(id, layer), model_.quantised, file_->path(), t->name, log_, options_.strict);
  }

  std::shared_ptr<const Checkpoint> file_;
  ModelTensors model_;
  Log log_;
  OpenOptions options_;
  mutable std::set<const Tensor*> checked_;
};

}  // namespace

std::shared_ptr<void> WeightMemory::take(uint64_t bytes, const std::string& what) {
  constexpr uint64_t kHuge = 2 << 20, kBlock = 16 * kHuge, kLine = 64;
  constexpr std::align_val_t kAlign{kHuge};
  if (bytes > UINT64_MAX - kBlock) fail(DUET_E_MEMORY, "{} needs {} bytes, which could not be had", what, bytes);
  const uint64_t rounded = (bytes + kLine - 1) / kLine * kLine;
  if (rounded > size_ - used_) {
    const uint64_t size = std::max(kBlock, (rounded + kHuge - 1) / kHuge * kHuge);
    void* p = ::operator new(size, kAlign, std::nothrow);
    if (p == nullptr) fail(DUET_E_MEMORY, "{} needs {} bytes, which could not be had", what, bytes);
    block_ = {static_cast<std::byte*>(p), [](std::byte* q) { ::operator delete(q, kAlign); }};
    ::madvise(p, size, MADV_HUGEPAGE);  // refused: small pages, which are slower and as right
    used_ = 0;
    size_ = size;
  }
  const uint64_t at = std::exchange(used_, used_ + rounded);
  return {block_, block_.get() + at};
}

void check_values(const void* data, DType dtype, uint64_t n, const std::string& file, const std::string& name, const Log& log, bool strict) {
  switch (dtype) {
    case DType::f64: return report(count_values<uint64_t>(data, n, 0x4629'3e59'39a0'8cea), n, file, name, log, strict);
    case DType::f32: return report(count_values<uint32_t>(data, n, 0x7149'f2ca), n, file, name, log, strict);
    case DType::bf16: return report(count_values<uint16_t>(data, n, 0x7149), n, file, name, log, strict);
    case DType::f16: return report(count_values<uint16_t>(data, n, 0x7bff), n, file, name, log, strict);
    default: return;  // integers are finite
  }
}

duetp_quantised_form quantised_form(uint32_t id, uint32_t layer, duet_dtype dtype, const duetp_shape& shape) {
  const std::vector<uint32_t> dims = tensor_shape(id, layer, shape);
  const bool in_major = duetp_is_in_major(id);
  return duetp_form_of(id, dtype, dims.at(in_major), dims.at(!in_major));
}

uint64_t stored_bytes(uint32_t id, uint32_t layer, duet_dtype dtype, const duetp_shape& shape) {
  const uint64_t n = tensor_count(id, layer, shape);
  if (n == 0 || !duetp_is_quantised(dtype)) return n * dtype_bytes(from_duet(dtype));
  const duetp_quantised_form f = quantised_form(id, layer, dtype, shape);
  return f.bytes + f.scales * 2 * (dtype == DUET_I4 ? 2 : 1);
}

void WeightSource::floats(uint32_t id, uint32_t layer, uint64_t first, uint64_t n, float* out) const {
  const std::shared_ptr<const void> all = tensor(id, layer, DUET_F32);
  std::memcpy(out, static_cast<const float*>(all.get()) + first, n * sizeof *out);
}

QuantisedMatrix WeightSource::quantised(uint32_t id, uint32_t layer, duet_dtype want, std::shared_ptr<const void>& owner) const {
  const duetp_quantised_form f = quantised_form(id, layer, want, shape());
  const std::shared_ptr<void> block = memory_.take(quantised_block_bytes(f, want), tensor_name(id, layer));
  const uint64_t row = uint64_t{f.width} * f.in, step = duetp_is_in_major(id) ? f.tiles : std::max<uint64_t>(1, kPiece / row);
  const uint64_t all = uint64_t{f.out} * f.in;
  std::vector<float> slice;
  for (uint64_t tile = 0; tile < f.tiles; tile += step) {
    const uint64_t last = std::min(tile + step, f.tiles), first = tile * row, n = std::min(last * row, all) - first;
    slice.resize(n);
    floats(id, layer, first, n, slice.data());
    quantise(id, want, f, tile, last, slice.data(), block.get());
  }
  owner = block;
  return quantised_parts(f, want, block.get());
}

HostLayer WeightSource::layer(uint32_t index, duet_dtype weights, const std::function<void(uint64_t)>& next) const {
  HostLayer out;
  out.storage.reserve(DUETP_T_COUNT);  // so that pointers into it stay
  out.names.reserve(DUETP_T_COUNT);
  for (const TensorSpec& spec : tensor_specs()) {
    const std::vector<uint32_t> dims = tensor_shape(spec.id, index, shape());
    if (dims.empty()) continue;
    if (next) next(out.bytes);
    duetp_tensor t{};
    t.size = sizeof t;
    t.id = spec.id;
    t.dtype = spec.matrix ? weights : DUET_F32;
    t.name = out.names.emplace_back(tensor_name(spec.id, index)).c_str();
    if (duetp_is_quantised(t.dtype)) {
      const QuantisedMatrix m = quantised(spec.id, index, t.dtype, out.owners.emplace_back());
      t.data = m.data;
      t.bytes = m.form.bytes;
      t.scale = m.scale;
      t.scale_bytes = m.form.scales * 2;
      t.minimum = m.minimum;
      t.minimum_bytes = m.minimum != nullptr ? m.form.scales * 2 : 0;
      t.group = DUETP_QUANTISED_GROUP;
      t.scale_dtype = DUET_BF16;
    } else {
      t.data = out.owners.emplace_back(tensor(spec.id, index, t.dtype)).get();
      t.bytes = stored_bytes(spec.id, index, t.dtype, shape());
    }
    t.n_dim = static_cast<uint32_t>(dims.size());
    std::copy(dims.begin(), dims.end(), t.dim);
    out.bytes += t.bytes + t.scale_bytes + t.minimum_bytes;
    out.tensors[spec.id] = &out.storage.emplace_back(t);
  }
  return out;
}

duet_dtype WeightSource::stored() const {
  duet_dtype widest = 0;
  for (uint32_t i = 0; i <= shape().n_layer; ++i)
    for (const TensorSpec& spec : tensor_specs())
      if (spec.matrix && tensor_count(spec.id, i, shape()) != 0) {
        const duet_dtype d = dtype(spec.id, i);
        widest = widest == 0 || widest == d ? d : DUET_F32;  // neither 16-bit type holds the other
      }
  return widest;
}

std::string WeightSource::fingerprint() const {
  Fingerprint hash;
  const duetp_shape& s = shape();
  for (const uint32_t d : {s.n_layer, s.n_embd, s.n_head, s.head_size, s.n_ffn, s.n_vocab, s.rank_w, s.rank_a, s.rank_v, s.rank_g}) hash.add(d);
  for (uint32_t i = 0; i <= s.n_layer; ++i)
    for (const TensorSpec& spec : tensor_specs()) {
      const uint64_t n = spec.matrix ? 0 : tensor_count(spec.id, i, s);
      if (n != 0) hash.add(static_cast<const float*>(tensor(spec.id, i, DUET_F32).get()), n);
    }
  return hash.text();
}

std::unique_ptr<WeightSource> checkpoint_weights(Checkpoint checkpoint, const Log& log, const OpenOptions& options) {
  return std::make_unique<CheckpointWeights>(std::move(checkpoint), log, options);
}

std::unique_ptr<WeightSource> open_weights(const std::string& path, const Log& log, const OpenOptions& options) {
  return checkpoint_weights(Checkpoint::open(path, log, options), log, options);
}

}  // namespace duet
