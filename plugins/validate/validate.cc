// validate: does each stage give what the reference gives? Whatever goes into a stage (inputs, frame, state) goes into the
// host's reference too; afterwards the outputs and the state must agree within the tolerances of duet-conform. The first
// stage that does not ends the run by its name. The results are the device's own.
#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include <duet_interpose.hpp>
#include <duet_quantised.h>

namespace {

// The reference, as the host has it built in: memory that the CPU can read, work that is done when a call returns.
struct Reference {
  explicit Reference(const duetp_host& h) : plugin(static_cast<const duetp_plugin*>(h.extension(h.self, DUETP_EXT_REFERENCE))) {
    if (plugin == nullptr) throw duetp::Failure{h.fail(h.self, DUET_E_UNSUPPORTED, "validate: this host gives no reference")};
    const duet_status opened = plugin->open(&h, &self);
    const duet_status status = opened == DUET_OK ? plugin->device_open(self, 0, &device) : opened;
    if (status != DUET_OK) throw duetp::Failure{status};
  }
  ~Reference() { plugin->close(self); }
  Reference(const Reference&) = delete;
  Reference& operator=(const Reference&) = delete;
  const duetp_device* operator->() const { return device; }
  void* of() const { return device->self; }

  const duetp_plugin* plugin;
  void* self = nullptr;
  const duetp_device* device = nullptr;
};

void check(duet_status status) {
  if (status != DUET_OK) throw duetp::Failure{status};
}

// Memory of the reference's, with these bytes.
class Buffer {
 public:
  Buffer(const Reference& r, const std::vector<unsigned char>& bytes, duet_dtype dtype) : r_(r), dtype_(dtype) {
    check(r->buffer_new(r.of(), bytes.size(), &buffer_));
    if (!bytes.empty()) std::memcpy(r->buffer_ptr(r.of(), buffer_), bytes.data(), bytes.size());
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { r_->buffer_free(r_.of(), buffer_); }
  duetp_ref ref() const { return {buffer_, 0, dtype_, 0}; }
  const unsigned char* data() const { return static_cast<const unsigned char*>(r_->buffer_ptr(r_.of(), buffer_)); }

 private:
  const Reference& r_;
  duet_dtype dtype_;
  duetp_buffer* buffer_ = nullptr;
};

// A state of the reference's.
struct State {
  State(const Reference& r, const duetp_shape& s, uint32_t n_slots, duet_dtype stored) : reference(r) { check(r->state_new(r.of(), &s, n_slots, stored, &state)); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() { reference->state_free(reference.of(), state); }

  const Reference& reference;
  duetp_state* state = nullptr;
};

// The reference's weights of one layer of the network, and copies of tensors that their owner does not keep.
struct Layer {
  Layer(const Reference& r, const duetp_layer_desc& d, bool kept) : reference(r) {
    std::vector<duetp_tensor> tensors;
    std::vector<const duetp_tensor*> by_id(d.n_tensors);
    tensors.reserve(d.n_tensors);
    for (uint32_t i = 0; i < d.n_tensors; ++i) {
      if (d.tensors[i] == nullptr) continue;
      duetp_tensor& t = tensors.emplace_back(*d.tensors[i]);
      if (!kept) t.data = copy(t.data, t.bytes), t.scale = copy(t.scale, t.scale_bytes), t.minimum = copy(t.minimum, t.minimum_bytes);
      by_id[i] = &t;
    }
    duetp_layer_desc mine = d;
    mine.tensors = by_id.data();
    check(r->layer_new(r.of(), &mine, &layer));
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  ~Layer() { reference->layer_free(reference.of(), layer); }

  const void* copy(const void* from, uint64_t bytes) {
    const auto* p = static_cast<const unsigned char*>(from);
    return p ? copies.emplace_back(p, p + bytes).data() : nullptr;
  }
  const Reference& reference;
  std::vector<std::vector<unsigned char>> copies;
  duetp_layer* layer = nullptr;
};

float f32(const unsigned char* p, duet_dtype dtype, uint64_t i) {
  float f;
  if (dtype == DUET_F32) return std::memcpy(&f, p + 4 * i, 4), f;
  uint16_t h;
  std::memcpy(&h, p + 2 * i, 2);
  const uint32_t bits = static_cast<uint32_t>(h) << 16;  // bf16
  return std::memcpy(&f, &bits, 4), f;
}

// The largest difference, as a share of max(|reference|, rms of the output).
struct Difference {
  double error = 0;
  uint64_t at = 0;
  float got = 0, want = 0;
};
Difference compare(const unsigned char* got, const unsigned char* want, duet_dtype dtype, uint64_t n) {
  double square = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const double w = f32(want, dtype, i);
    if (std::isfinite(w)) square += w * w;
  }
  const double rms = std::sqrt(square / static_cast<double>(std::max<uint64_t>(n, 1))) + 1e-30;
  Difference worst;
  for (uint64_t i = 0; i < n; ++i) {
    const float g = f32(got, dtype, i), w = f32(want, dtype, i);
    if (g == w || (std::isnan(g) && std::isnan(w))) continue;
    const double error = std::fabs(double{g} - w) / std::max(std::fabs(double{w}), rms);
    if (!(error <= worst.error)) worst = {std::isnan(error) ? HUGE_VAL : error, i, g, w};
  }
  return worst;
}

// docs/plugins.md says why.
double tolerance(const duetp::Call& c, duet_dtype weights, duet_dtype dtype, const char* output) {
  if (dtype == DUET_BF16) return 0x1p-7;
  if (weights == DUET_BF16 && c.is(&duetp_ops::wkv) && c.args.mode == DUET_MODE_PARALLEL) return 0x1p-8;
  const bool rounds_inside = c.is(&duetp_ops::lowrank) || c.is(&duetp_ops::channel_mix) || std::strcmp(output, "logits") == 0;
  if (!rounds_inside || std::strcmp(output, "the state") == 0) return 2e-5;
  return weights == DUET_BF16 ? 0x1p-6 : duetp_is_quantised(weights) ? 0x1p-5 : 2e-5;
}

class Validate : public duetp::Interposer {
 public:
  Validate(const duetp_host& host, const duetp_device& below, const duetp_device_info& info) : Interposer(host, below, info), reference_(host) {}
  void end() override {
    if (calls_ > 0) say("%" PRIu64 " stages of %s agree with the reference; the closest call was %s: %.2g of %.2g", calls_, info.name, where_.c_str(), worst_, limit_);
  }

  void layer_added(const duetp_layer* l, const duetp_layer_desc& d) override {
    auto shadow = std::make_unique<Layer>(reference_, d, (info.caps & DUETP_CAP_BORROWS_WEIGHTS) != 0);
    const std::lock_guard<std::mutex> lock(mutex_);
    layers_[l] = {std::move(shadow), d.weights};
  }
  void layer_removed(const duetp_layer* l) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    layers_.erase(l);
  }

  void stage(const duetp::Call& c) override {
    Shadow shadow(*this, c);
    run(c);
    shadow.run();
    shadow.compare_outputs();
    shadow.compare_state();
    const std::lock_guard<std::mutex> lock(mutex_);
    ++calls_;
  }

 private:
  // The same call on the reference, of everything as it is before the call.
  class Shadow {
   public:
    Shadow(Validate& v, const duetp::Call& c) : v_(v), call_(c), args_(c.args), frame_(*c.args.frame) {
      {
        const std::lock_guard<std::mutex> lock(v.mutex_);
        const auto& [layer, weights] = v.layers_.at(c.args.layer);
        args_.layer = layer->layer;
        weights_ = weights;
      }
      stored_ = v.stored_of(c.args.state);
      used_ = v.read<int32_t>(c.queue, frame_.used, 3);
      frame_.n_tokens = static_cast<uint32_t>(used_[0]), frame_.n_seqs = static_cast<uint32_t>(used_[1]), frame_.n_rows = static_cast<uint32_t>(used_[2]);
      starts_ = v.read<int32_t>(c.queue, frame_.starts, frame_.n_seqs + uint64_t{1});
      slots_ = v.read<int32_t>(c.queue, frame_.slots, frame_.n_seqs);
      frame_.used = put(used_), frame_.starts = put(starts_);
      frame_.tokens = put(v.read<int32_t>(c.queue, frame_.tokens, frame_.n_tokens));
      frame_.rows = put(v.read<int32_t>(c.queue, frame_.rows, frame_.n_rows));
      std::vector<int32_t> slots(slots_);  // the reference's state has just these, one after another
      for (size_t s = 0; s < slots.size(); ++s) slots[s] = slots[s] < 0 ? -1 : static_cast<int32_t>(s);
      frame_.slots = put(slots);
      args_.frame = &frame_;
      for (int i = 0; i < 16; ++i) {
        if (args_.in[i].buf) args_.in[i] = copy(c.args.in[i], size(false, i));
        if (args_.out[i].buf) args_.out[i] = copy(c.args.out[i], size(true, i));
      }
      take_state();
    }
    Shadow(const Shadow&) = delete;
    Shadow& operator=(const Shadow&) = delete;

    void run() {
      const Reference& r = v_.reference_;
      check((r->ops->*call_.stage.slot)(r.of(), nullptr, &args_));
    }

    void compare_outputs() {
      for (int i = 0; i < 16; ++i) {
        const duetp_ref& o = call_.args.out[i];
        if (o.buf == nullptr) continue;
        const uint64_t bytes = size(true, i), columns = call_.columns(true, i);
        const auto got = v_.read<unsigned char>(call_.queue, o, bytes);
        const char* name = call_.stage.out[i];
        judge(compare(got.data(), copies_.at({o.buf, o.off})->data(), o.dtype, bytes / (o.dtype == DUET_F32 ? 4 : 2)), tolerance(call_, weights_, o.dtype, name), name,
              [&](uint64_t at) { return std::string(call_.counts_rows(true) ? "row " : "token ") + std::to_string(at / columns) + ", column " + std::to_string(at % columns); });
      }
    }

    // All layers' parts of the state that the stage replaces: its own layer's as the reference left it, the others as they were.
    void compare_state() {
      if (!state_) return;
      for (size_t s = 0; s < slots_.size(); ++s) {
        if (slots_[s] < 0) continue;
        const std::vector<float> got = part(v_.below, call_.queue, call_.args.state, static_cast<uint32_t>(slots_[s]));
        const std::vector<float> want = part(*v_.reference_.device, nullptr, state_->state, static_cast<uint32_t>(s));
        for (uint32_t l = 0; l < call_.shape.n_layer; ++l) {
          const auto at = [&](const std::vector<float>& p) { return reinterpret_cast<const unsigned char*>(p.data() + l * part_floats()); };
          const bool own = l == call_.args.layer_index && starts_[s] < starts_[s + 1];
          judge(compare(at(got), at(want), DUET_F32, part_floats()), own ? state_tolerance() : 0, "the state", [&](uint64_t i) {
            return "slot " + std::to_string(slots_[s]) + (l == call_.args.layer_index ? "" : " of layer " + std::to_string(l)) + ", element " + std::to_string(i);
          });
        }
      }
    }

   private:
    uint64_t size(bool output, int i) const {
      const duetp_ref& r = output ? call_.args.out[i] : call_.args.in[i];
      return uint64_t{call_.counts_rows(output) ? frame_.n_rows : frame_.n_tokens} * call_.columns(output, i) * (r.dtype == DUET_F32 ? 4 : 2);
    }
    // Two arguments in the same memory stay so.
    duetp_ref copy(const duetp_ref& r, uint64_t bytes) {
      std::unique_ptr<Buffer>& b = copies_[{r.buf, r.off}];
      if (!b) b = std::make_unique<Buffer>(v_.reference_, v_.read<unsigned char>(call_.queue, r, bytes), r.dtype);
      return b->ref();
    }
    duetp_ref put(const std::vector<int32_t>& words) {
      const auto* p = reinterpret_cast<const unsigned char*>(words.data());
      return frames_.emplace_back(std::make_unique<Buffer>(v_.reference_, std::vector<unsigned char>(p, p + words.size() * sizeof(int32_t)), 0))->ref();
    }

    // Stored in two bytes, a number beside a tie may be one unit away.
    double state_tolerance() const {
      const double unit = !wkv() || stored_ == DUET_F32 ? 0 : stored_ == DUET_F16 ? 0x1p-10 : 0x1p-7;
      return unit + tolerance(call_, weights_, DUET_F32, "the state");
    }
    // Which part of the state the stage reads and replaces
    bool att_x() const { return call_.is(&duetp_ops::shift_mix); }
    bool wkv() const { return call_.is(&duetp_ops::wkv); }
    bool ffn_x() const { return call_.is(&duetp_ops::channel_mix); }
    uint64_t part_floats() const { return uint64_t{call_.shape.n_embd} * (wkv() ? call_.shape.head_size : 1); }
    std::vector<float> part(const duetp_device& d, duetp_queue* q, const duetp_state* state, uint32_t slot) const {
      std::vector<float> p(call_.shape.n_layer * part_floats());
      check(d.state_export(d.self, q, state, slot, att_x() ? p.data() : nullptr, wkv() ? p.data() : nullptr, ffn_x() ? p.data() : nullptr));
      check(d.queue_wait(d.self, q));
      return p;
    }
    void take_state() {
      if (!att_x() && !wkv() && !ffn_x()) return;
      const Reference& r = v_.reference_;
      state_.emplace(r, call_.shape, frame_.n_seqs, stored_);
      args_.state = state_->state;
      for (size_t s = 0; s < slots_.size(); ++s) {
        if (slots_[s] < 0) continue;
        const std::vector<float> p = part(v_.below, call_.queue, call_.args.state, static_cast<uint32_t>(slots_[s]));
        check(r->state_import(r.of(), nullptr, state_->state, static_cast<uint32_t>(s), att_x() ? p.data() : nullptr, wkv() ? p.data() : nullptr, ffn_x() ? p.data() : nullptr));
      }
    }

    template <class Where>
    void judge(const Difference& d, double limit, const char* output, Where&& where) {
      if (!(d.error <= limit)) {
        char text[400];
        std::snprintf(text, sizeof text, "validate: %s: %s is %.9g where the reference has %.9g, at %s: a difference of %.2g, more than %.2g", call_.place().c_str(), output,
                      static_cast<double>(d.got), static_cast<double>(d.want), where(d.at).c_str(), d.error, limit);
        v_.fail(DUET_E_DEVICE, text);
      }
      const std::lock_guard<std::mutex> lock(v_.mutex_);
      if (limit > 0 && (v_.where_.empty() || d.error / limit > v_.worst_ / v_.limit_)) v_.worst_ = d.error, v_.limit_ = limit, v_.where_ = call_.place() + ", " + output;
    }

    Validate& v_;
    const duetp::Call& call_;
    duetp_stage args_;
    duetp_frame frame_;
    duet_dtype weights_ = 0;
    std::vector<int32_t> used_, starts_, slots_;
    duet_dtype stored_ = DUET_F32;  // of the wkv matrices of the state
    std::map<std::pair<const duetp_buffer*, uint64_t>, std::unique_ptr<Buffer>> copies_;
    std::vector<std::unique_ptr<Buffer>> frames_;
    std::optional<State> state_;
  };

  struct Weights {
    std::unique_ptr<Layer> layer;
    duet_dtype dtype;
  };
  const Reference reference_;
  std::mutex mutex_;
  std::map<const duetp_layer*, Weights> layers_;
  uint64_t calls_ = 0;
  double worst_ = 0, limit_ = 1;  // the largest error, as a share of what is allowed there
  std::string where_;
};

constexpr duetp_plugin plugin = duetp::interposer_plugin<Validate>("validate", "0.1.0", "Duet");

}  // namespace

DUETP_DEFINE(plugin);
