// Writing a model: safetensors with official names, official forms and official order.
#include <algorithm>

#include "base/error.h"
#include "model/quantised_file.h"
#include "model/weights.h"

namespace duet {
namespace {

constexpr uint64_t kPiece = 4 << 20;  // between two reports of progress

std::vector<uint64_t> official_form(uint32_t id, uint32_t layer, const duetp_shape& shape) {
  const std::vector<uint32_t> dims = tensor_shape(id, layer, shape);
  std::vector<uint64_t> form(dims.begin(), dims.end());
  const bool mix = (id >= DUETP_T_X_R && id <= DUETP_T_V0) || id == DUETP_T_K_K || id == DUETP_T_K_A || id == DUETP_T_FFN_X_K;
  if (mix) form.insert(form.begin(), {1, 1});
  return form;
}

class Writer {
 public:
  Writer(const WeightSource& source, duet_dtype weights, duet_progress_fn progress, void* user)
      : source_(source), weights_(weights), progress_(progress), user_(user) {}

  std::vector<TensorToWrite> plan() {
    const uint32_t n_layer = source_.shape().n_layer;
    add(DUETP_T_EMB, n_layer);
    add(DUETP_T_LN0_W, n_layer);
    add(DUETP_T_LN0_B, n_layer);
    for (uint32_t layer = 0; layer < n_layer; ++layer) {
      for (uint32_t id = 0; id < DUETP_T_EMB; ++id) add(id, layer);
      add_time_state(layer);
    }
    add(DUETP_T_LN_OUT_W, n_layer);
    add(DUETP_T_LN_OUT_B, n_layer);
    add(DUETP_T_HEAD, n_layer);
    if (duetp_is_quantised(stored())) align();
    return std::move(tensors_);
  }

  // Of the matrices
  duet_dtype stored() const { return weights_ != 0 ? weights_ : source_.stored(); }

 private:
  void add(uint32_t id, uint32_t layer) {
    const uint64_t n = tensor_count(id, layer, source_.shape());
    if (n == 0) return;
    const duet_dtype dtype = tensor_specs()[id].matrix && weights_ != 0 ? weights_ : source_.dtype(id, layer);
    if (duetp_is_quantised(dtype)) return add_quantised(id, layer, dtype);
    const uint64_t bytes = n * dtype_bytes(from_duet(dtype));
    total_ += bytes;
    tensors_.push_back({tensor_name(id, layer), from_duet(dtype), official_form(id, layer, source_.shape()),
                        [this, id, layer, dtype, bytes](const auto& sink) { send(source_.tensor(id, layer, dtype).get(), bytes, sink); }});
  }

  void add_quantised(uint32_t id, uint32_t layer, duet_dtype dtype) {
    const auto parts = quantised_parts_in_file(dtype, quantised_form(id, layer, dtype, source_.shape()));
    for (size_t i = 0; i < parts.size(); ++i) {
      total_ += parts[i].bytes;
      tensors_.push_back({tensor_name(id, layer) + parts[i].suffix, parts[i].dtype, {parts[i].shape.begin(), parts[i].shape.end()},
                          [this, id, layer, dtype, i, bytes = parts[i].bytes](const auto& sink) {
                            const QuantisedMatrix& m = quantised(id, layer, dtype);
                            const void* const data[] = {m.data, m.scale, m.minimum};
                            send(data[i], bytes, sink);
                          }});
    }
  }

  // Its parts are written one after another, or nearly always.
  const QuantisedMatrix& quantised(uint32_t id, uint32_t layer, duet_dtype dtype) {
    if (id != id_ || layer != layer_ || owner_ == nullptr) {
      owner_.reset();
      matrix_ = source_.quantised(id, layer, dtype, owner_);
      id_ = id;
      layer_ = layer;
    }
    return matrix_;
  }

  // So that every part lies where backends can read it: behind those whose size is a multiple of a larger power of two, up to
  // 64. Usually all are multiples of 64, and this changes nothing.
  void align() {
    const auto power = [](const TensorToWrite& t) {
      uint64_t bytes = dtype_bytes(t.dtype);
      for (const uint64_t d : t.shape) bytes *= d;
      return std::min<uint64_t>(bytes & (~bytes + 1), 64);
    };
    std::stable_sort(tensors_.begin(), tensors_.end(), [&](const TensorToWrite& a, const TensorToWrite& b) { return power(a) > power(b); });
  }

  void add_time_state(uint32_t layer) {
    const uint64_t bytes = source_.time_state(layer).size() * sizeof(float);
    if (bytes == 0) return;
    const duetp_shape& s = source_.shape();
    total_ += bytes;
    tensors_.push_back({duet::format("blocks.{}.att.time_state", layer), DType::f32, {s.n_head, s.head_size, s.head_size},
                        [this, layer, bytes](const auto& sink) { send(source_.time_state(layer).data(), bytes, sink); }});
  }

  void send(const void* data, uint64_t bytes, const std::function<void(Bytes)>& sink) {
    const Bytes all{static_cast<const std::byte*>(data), bytes};
    for (uint64_t at = 0; at < bytes; at += kPiece) {
      const Bytes piece = all.subspan(at, std::min(kPiece, bytes - at));
      sink(piece);
      done_ += piece.size();
      const duet_status stop = progress_ == nullptr ? DUET_OK : progress_(user_, done_, total_);
      if (stop != DUET_OK) fail(stop, "stopped by the progress callback after {} of {} bytes", done_, total_);
    }
  }

  const WeightSource& source_;
  duet_dtype weights_;
  duet_progress_fn progress_;
  void* user_;
  uint64_t done_ = 0, total_ = 0;
  uint32_t id_ = 0, layer_ = 0;  // of matrix_
  QuantisedMatrix matrix_{};
  std::shared_ptr<const void> owner_;
  std::vector<TensorToWrite> tensors_;
};

}  // namespace

void save_weights(const WeightSource& source, const std::string& path, bool overwrite, duet_dtype weights, const std::map<std::string, std::string>& metadata, duet_progress_fn progress, void* user) {
  if (weights != 0 && weights != DUET_F32 && weights != DUET_F16 && weights != DUET_BF16 && !duetp_is_quantised(weights))
    fail(DUET_E_UNSUPPORTED, "{}: cannot write matrices of dtype {}; choose f32, f16, bf16, q8 or q4", path, weights);
  Writer writer(source, weights, progress, user);
  auto all_metadata = metadata;
  if (source.shape().gn_eps != 64e-5f) all_metadata[kGroupNormEps] = duet::format("{}", source.shape().gn_eps);
  if (duetp_is_quantised(writer.stored())) all_metadata.merge(quantised_metadata(writer.stored(), source.shape()));
  save_safetensors(path, overwrite, writer.plan(), all_metadata);
}

}  // namespace duet
