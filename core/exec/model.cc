#include "exec/model.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "exec/memory.h"

namespace duet {
namespace {

uint64_t elements(const duetp_tensor& t) {
  uint64_t n = 1;
  for (uint32_t i = 0; i < t.n_dim; ++i) n *= t.dim[i];
  return n;
}

// Bytes of all weights in memory. Refuses what cannot fit before the first layer. Mapped weights need none of it: where they do
// not fit, the system drops and reads them again, which is slow and not wrong.
uint64_t check_weights(const WeightSource& source, duet_dtype weights, const Device& device, const std::string& path, const Log& log) {
  const bool borrows = device.has(DUETP_CAP_BORROWS_WEIGHTS);
  uint64_t total = 0, need = 0;
  for (uint32_t i = 0; i <= source.shape().n_layer; ++i)
    for (const TensorSpec& spec : tensor_specs()) {
      const duet_dtype dtype = spec.matrix ? weights : duet_dtype{DUET_F32};
      const uint64_t bytes = stored_bytes(spec.id, i, dtype, source.shape());
      if (bytes == 0) continue;
      total += bytes;
      if (!borrows || !source.in_place(spec.id, i, dtype)) need += bytes;
    }
  const uint64_t have = borrows ? free_host_memory() : free_memory(device);
  check_memory((path.empty() ? "a random model" : path) + ": the weights need", need, have, device, "choose a smaller dtype or model");
  if (borrows && have != 0 && total > have)
    log.warn("{}: the weights are {} bytes, but {} are free: {} bytes stay in the file and will be read from it again and again, which is slow", path, total, have,
             total - need);
  return total;
}

bool matrices_in_place(const WeightSource& source, uint32_t layer, duet_dtype weights) {
  return std::ranges::all_of(tensor_specs(), [&](const TensorSpec& spec) {
    return !spec.matrix || stored_bytes(spec.id, layer, weights, source.shape()) == 0 || source.in_place(spec.id, layer, weights);
  });
}

// The pages of a tensor that nobody will read: a mapped file's are read again if somebody does, other memory is lost.
void let_go(const duetp_tensor& t) {
  static const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(t.data), first = (begin + page - 1) / page * page, last = (begin + t.bytes) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);  // refused: they stay
}

}  // namespace

Model::Model(std::shared_ptr<Library> library, std::unique_ptr<WeightSource> source, const std::string& path, const std::string& device, duet_dtype weights,
             duet_progress_fn progress, void* progress_user)
    : library_(std::move(library)), source_(std::move(source)), path_(path) {
  shape_ = source_->shape();
  weights_ = weights ? weights : source_->stored();
  device_ = library_->registry.device(device, &shape_, weights_);
  if (const std::string why = device_->refuses(shape_, weights_); !why.empty())
    fail(DUET_E_UNSUPPORTED, "{} cannot run this model: {}; `duet backends` lists the others", device_->spec, why);

  const uint64_t total = check_weights(*source_, weights_, *device_, path_, library_->log);
  const auto report = [&](uint64_t done) {
    const duet_status s = progress && done > 0 ? progress(progress_user, done, total) : duet_status{DUET_OK};
    if (s != DUET_OK) fail(s, "loading was stopped by the progress callback after {} of {} bytes", done, total);
  };
  const bool borrows = device_->has(DUETP_CAP_BORROWS_WEIGHTS);
  const uint32_t n = shape_.n_layer + 1;
  layers_.reserve(n);
  borrowed_.reserve(borrows ? n : 0);
  try {
    check_plugin(*device_, device_->table.queue_new(device_->memory_self, &queue_));
    for (uint32_t i = 0; i < n; ++i) {
      HostLayer host = source_->layer(i, weights_, [&](uint64_t ready) { report(weight_bytes_ + ready); });
      for (const duetp_tensor& t : host.storage) n_params_ += elements(t);
      weight_bytes_ += host.bytes;
      // the embedding gives one row, all else is read whole
      const duetp_tensor* emb = host.tensors[DUETP_T_EMB];
      const uint64_t table = emb ? emb->bytes + emb->scale_bytes + emb->minimum_bytes : 0;
      bytes_per_token_ += host.bytes - (emb ? table - table / emb->dim[0] : 0);
      duetp_layer_desc d{};
      d.size = sizeof d;
      d.index = i;
      d.shape = &shape_;
      d.tensors = host.tensors.data();
      d.n_tensors = DUETP_T_COUNT;
      d.weights = weights_;
      duetp_layer* layer = nullptr;
      check_plugin(*device_, device_->table.layer_new(device_->memory_self, &d, &layer));
      layers_.push_back(layer);
      if (borrows) borrowed_.push_back(std::move(host));
      prepare_layer(i, DUET_MODE_PARALLEL);
      if (borrows && matrices_in_place(*source_, i, weights_))
        mapped_.push_back(i);
      else
        prepare_layer(i, DUET_MODE_RECURRENT);
    }
    report(weight_bytes_);
    const uint64_t wkv = uint64_t{shape_.n_embd} * shape_.head_size;
    for (uint32_t i = 0; i < shape_.n_layer; ++i) {
      const std::vector<float> s = source_->time_state(i);
      if (s.empty()) continue;
      initial_wkv_.resize(shape_.n_layer * wkv);
      std::copy(s.begin(), s.end(), initial_wkv_.begin() + static_cast<ptrdiff_t>(i * wkv));
    }
    fingerprint_ = source_->fingerprint();
  } catch (...) {
    free_layers();
    throw;
  }
}

Model::~Model() { free_layers(); }

void Model::prepare_layer(uint32_t i, duet_mode mode) const {
  if (device_->table.layer_prepare == nullptr) return;
  uint64_t copied = 0;
  check_plugin(*device_, device_->table.layer_prepare(device_->memory_self, layers_[i], mode, &copied));
  if (borrowed_.empty()) return;
  for (const duetp_tensor& t : borrowed_[i].storage)
    if (copied >> t.id & 1) let_go(t);
}

void Model::prepare_recurrent() const {
  std::call_once(prepared_recurrent_, [&] {
    for (const uint32_t i : mapped_) prepare_layer(i, DUET_MODE_RECURRENT);
  });
}

void Model::free_layers() noexcept {
  for (duetp_layer* l : layers_) device_->table.layer_free(device_->memory_self, l);
  if (queue_) device_->table.queue_free(device_->memory_self, queue_);
}

void Model::save(const std::string& path) const {
  std::lock_guard lock(source_mutex_);
  save_weights(*source_, path, true, weights_, {}, nullptr, nullptr);
}

}  // namespace duet
