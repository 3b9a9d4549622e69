// duet_interpose.hpp - an interposing layer (duet_interpose.h) as a C++17 class. Header-only.
//
//   class Mine : public duetp::Interposer {
//    public:
//     using Interposer::Interposer;
//     void stage(const duetp::Call& c) override { run(c); }  // ... around it
//   };
//   static const duetp_plugin plugin = duetp::interposer_plugin<Mine>("mine", "1.0.0", "you");
//   DUETP_DEFINE(plugin);
//
// One object stands around one device. All nine stages come to stage(), from any thread, one at a time for each queue. What
// its functions throw becomes the status of the call; none of it crosses the border.
#ifndef DUET_INTERPOSE_HPP
#define DUET_INTERPOSE_HPP
#include <cstdarg>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "duet_interpose.h"

namespace duetp {

// A stage of rung 1: its name, its slot, what its outputs are called.
struct Stage {
  const char* name;                 // "shift_mix"
  duetp_stage_fn duetp_ops::*slot;  // of duetp_ops
  const char* out[6];               // of out[], by index; NULL after the last
};
// All nine, in the order of the forward pass.
inline constexpr Stage kStages[] = {
    {"embed", &duetp_ops::embed, {"x"}},
    {"shift_mix", &duetp_ops::shift_mix, {"r", "w", "k", "v", "a", "g"}},
    {"linear", &duetp_ops::linear, {"out"}},
    {"lowrank", &duetp_ops::lowrank, {"out"}},
    {"wkv_prepare", &duetp_ops::wkv_prepare, {"k", "v", "w_raw", "a", "kk", "v_first"}},
    {"wkv", &duetp_ops::wkv, {"y"}},
    {"norm_gate", &duetp_ops::norm_gate, {"out"}},
    {"channel_mix", &duetp_ops::channel_mix, {"x"}},
    {"head", &duetp_ops::head, {"hidden", "logits"}},
};

// One call of a stage.
struct Call {
  const Stage& stage;        // which
  duetp_queue* queue;        // where it is enqueued
  const duetp_stage& args;   // as the host gave them; they live for the call
  const duetp_shape& shape;  // of the model

  // Whether it is the stage of this slot: is(&duetp_ops::wkv).
  bool is(duetp_stage_fn duetp_ops::*slot) const { return stage.slot == slot; }
  // "linear output", "wkv"
  std::string name() const {
    static constexpr const char *linear[] = {"r", "k", "v", "output"}, *lowrank[] = {"w", "a", "v", "g"};
    const bool l = is(&duetp_ops::linear), r = is(&duetp_ops::lowrank);
    return std::string(stage.name) + (l || r ? " " : "") + (l ? linear[args.which & 3] : r ? lowrank[args.which & 3] : "");
  }
  // "layer 3, wkv": for messages; embed and head belong to no layer
  std::string place() const {
    return (args.layer_index < shape.n_layer ? "layer " + std::to_string(args.layer_index) + ", " : "") + name();
  }
  // An argument is [rows, columns]. Rows: the head's outputs have one for each entry of frame.rows, all else one a token.
  bool counts_rows(bool output) const { return output && is(&duetp_ops::head); }
  // V for logits, else C.
  uint32_t columns(bool output, int index) const { return output && is(&duetp_ops::head) && index == DUETP_HEAD_OUT_LOGITS ? shape.n_vocab : shape.n_embd; }
  // Of the memory that the stage may write: for the frame's capacity, which is more than `used` rows where `used` is less.
  uint64_t bytes(bool output, int index) const {
    const duetp_ref& r = output ? args.out[index] : args.in[index];
    return uint64_t{counts_rows(output) ? args.frame->n_rows : args.frame->n_tokens} * columns(output, index) * (r.dtype == DUET_F32 ? 4 : 2);
  }
  // An output that the stage reads as well: it is an input too, or what is added to.
  bool updates(int out) const {
    if (is(&duetp_ops::linear)) return args.which == DUETP_LINEAR_OUTPUT;
    for (const duetp_ref& in : args.in)
      if (same(in, args.out[out])) return true;
    return false;
  }
  // Whether both are one piece of memory; none is like none.
  static bool same(const duetp_ref& a, const duetp_ref& b) { return a.buf && a.buf == b.buf && a.off == b.off; }
};

// A call of the host or of the device below that failed; its sentence has been kept by the host.
struct Failure {
  duet_status status;  // DUET_E_*
};

// What a layer is made of: derive from it, and override stage().
class Interposer {
 public:
  // Around the device `below`; all three live longer than the object.
  Interposer(const duetp_host& host, const duetp_device& below, const duetp_device_info& info) : host(host), below(below), info(info) {}
  Interposer(const Interposer&) = delete;
  Interposer& operator=(const Interposer&) = delete;
  virtual ~Interposer() = default;

  // A stage that the host wants computed; run(c) has the device below do it.
  virtual void stage(const Call& c) = 0;
  // The last words, before the destructor: the device is closed.
  virtual void end() {}
  // Weights come and go.
  virtual void layer_added(const duetp_layer*, const duetp_layer_desc&) {}
  virtual void layer_removed(const duetp_layer*) {}  // its address may come again

 protected:
  const duetp_host& host;         // the host's services
  const duetp_device& below;      // with every gap filled
  const duetp_device_info& info;  // of the device below

  // In which dtype a state stores the wkv matrices.
  duet_dtype stored_of(const duetp_state* s) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = stored_.find(s);
    return found == stored_.end() ? duet_dtype{DUET_F32} : found->second;
  }
  // Ends the call with this status, and with `sentence` for the user.
  [[noreturn]] void fail(duet_status status, const std::string& sentence) const { throw Failure{host.fail(host.self, status, sentence.c_str())}; }
  // Ends the call with a status that is not DUET_OK, and the sentence that came with it.
  static void check(duet_status status) {
    if (status != DUET_OK) throw Failure{status};
  }
  // Has the device below do the stage.
  void run(const Call& c) const { run(c, c.args); }
  // The same with other arguments.
  void run(const Call& c, const duetp_stage& args) const { check((below.ops->*c.stage.slot)(below.self, c.queue, &args)); }
  // Until all that was enqueued is done.
  void wait(duetp_queue* q) const { check(below.queue_wait(below.self, q)); }
  // The first n elements at r, once the queue has come so far.
  template <class T>
  std::vector<T> read(duetp_queue* q, duetp_ref r, uint64_t n) const {
    std::vector<T> out(n);
    if (n) check(below.download(below.self, q, out.data(), r, n * sizeof(T)));
    wait(q);
    return out;
  }
  // A line of the log that is shown unless warnings are off.
  __attribute__((format(printf, 2, 3))) void say(const char* format, ...) const {
    char line[512];
    va_list list;
    va_start(list, format);
    std::vsnprintf(line, sizeof line, format, list);
    va_end(list);
    host.log(host.self, DUET_LOG_INFO, line);
  }

 private:
  template <class>
  friend struct InterposerPlugin;

  template <class F>
  duet_status guarded(F&& f) noexcept {
    try {
      f();
      return DUET_OK;
    } catch (const Failure& e) {
      return e.status;
    } catch (const std::bad_alloc&) {
      return host.fail(host.self, DUET_E_MEMORY, "a layer is out of memory");
    } catch (const std::exception& e) {
      return host.fail(host.self, DUET_E_INTERNAL, e.what());
    } catch (...) {
      return host.fail(host.self, DUET_E_INTERNAL, "a layer threw what is no std::exception");
    }
  }
  template <int i>
  static duet_status call_stage(void* self, duetp_queue* q, const duetp_stage* a) {
    auto& me = *static_cast<Interposer*>(self);
    return me.guarded([&] { me.stage({kStages[i], q, *a, me.shape_of(a->layer)}); });
  }
  static duet_status new_layer(void* self, const duetp_layer_desc* d, duetp_layer** out) {
    auto& me = *static_cast<Interposer*>(self);
    duetp_layer* layer = nullptr;
    const duet_status status = me.guarded([&] {
      check(me.below.layer_new(me.below.self, d, &layer));
      const std::lock_guard<std::mutex> lock(me.mutex_);
      me.shapes_[layer] = *d->shape;
    });
    const duet_status added = status != DUET_OK ? status : me.guarded([&] { me.layer_added(layer, *d); });
    if (added == DUET_OK) return *out = layer, DUET_OK;
    if (layer) free_layer(self, layer);
    return added;
  }
  static void free_layer(void* self, duetp_layer* layer) {
    auto& me = *static_cast<Interposer*>(self);
    me.layer_removed(layer);
    {
      const std::lock_guard<std::mutex> lock(me.mutex_);
      me.shapes_.erase(layer);
    }
    me.below.layer_free(me.below.self, layer);
  }
  static duet_status new_state(void* self, const duetp_shape* s, uint32_t n_slots, duet_dtype wkv, duetp_state** out) {
    auto& me = *static_cast<Interposer*>(self);
    duetp_state* state = nullptr;
    const duet_status status = me.guarded([&] {
      check(me.below.state_new(me.below.self, s, n_slots, wkv, &state));
      const std::lock_guard<std::mutex> lock(me.mutex_);
      me.stored_[state] = wkv;
    });
    if (status == DUET_OK) return *out = state, DUET_OK;
    if (state) me.below.state_free(me.below.self, state);
    return status;
  }
  static void free_state(void* self, duetp_state* s) {
    auto& me = *static_cast<Interposer*>(self);
    {
      const std::lock_guard<std::mutex> lock(me.mutex_);
      me.stored_.erase(s);
    }
    me.below.state_free(me.below.self, s);
  }
  const duetp_shape& shape_of(const duetp_layer* layer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return shapes_.at(layer);
  }
  void fill_tables() {
    ops_.size = sizeof ops_;
    ops_.embed = call_stage<0>, ops_.shift_mix = call_stage<1>, ops_.linear = call_stage<2>, ops_.lowrank = call_stage<3>;
    ops_.wkv_prepare = call_stage<4>, ops_.wkv = call_stage<5>, ops_.norm_gate = call_stage<6>, ops_.channel_mix = call_stage<7>;
    ops_.head = call_stage<8>;
    device_.size = sizeof device_;
    device_.self = this;
    device_.ops = &ops_;
    device_.close = [](void* self) {
      auto* me = static_cast<Interposer*>(self);
      (void)me->guarded([me] { me->end(); });
      delete me;
    };
    device_.layer_new = new_layer;
    device_.layer_free = free_layer;
    device_.state_new = new_state;
    device_.state_free = free_state;
  }

  std::mutex mutex_;
  std::map<const duetp_layer*, duetp_shape> shapes_;
  std::map<const duetp_state*, duet_dtype> stored_;
  duetp_ops ops_{};
  duetp_device device_{};
};

// The tables of a plugin whose layer is the class T; the plugin's `self` is the host's table.
template <class T>
struct InterposerPlugin {
  static duet_status wrap(void* self, const duetp_device* below, const duetp_device_info* info, const duetp_device** out) {
    const auto* host = static_cast<const duetp_host*>(self);
    try {
      Interposer* layer = new T(*host, *below, *info);  // its table's `close` deletes it
      layer->fill_tables();
      *out = &layer->device_;
      return DUET_OK;
    } catch (const Failure& e) {
      return e.status;
    } catch (const std::bad_alloc&) {
      return host->fail(host->self, DUET_E_MEMORY, "a layer is out of memory");
    } catch (const std::exception& e) {
      return host->fail(host->self, DUET_E_INTERNAL, e.what());
    }
  }
  static duet_status open(const duetp_host* host, void** self) { return *self = const_cast<duetp_host*>(host), DUET_OK; }
  static void close(void*) {}
  static uint32_t device_count(void*) { return 0; }
  static duet_status device_info(void*, uint32_t, duetp_device_info*) { return DUET_E_NOT_FOUND; }
  static duet_status device_open(void*, uint32_t, const duetp_device**) { return DUET_E_NOT_FOUND; }
  static const void* extension(void*, const char* id) {
    static constexpr duetp_interposer table = {sizeof(duetp_interposer), 0, wrap};
    return std::string(id) == DUETP_EXT_INTERPOSE ? &table : nullptr;
  }
  static const char* no_device_reason(void*) { return "it is an interposing layer, which needs a newer Duet"; }
};

// The plugin's table, for DUETP_DEFINE.
template <class T>
constexpr duetp_plugin interposer_plugin(const char* id, const char* version, const char* vendor) {
  using P = InterposerPlugin<T>;
  return {sizeof(duetp_plugin), DUETP_ABI, id, version, vendor, "C++", DUETP_SANITIZER, 0, P::open, P::close, P::device_count, P::device_info, P::device_open,
          P::extension, P::no_device_reason};
}

}  // namespace duetp
#endif
