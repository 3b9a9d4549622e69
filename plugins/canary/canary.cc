// canary: what a stage writes. Each output of a stage goes to memory of the canary's own, between guard zones and filled with
// NaN; afterwards the zones must be whole, every row in use written, and inputs and frame unchanged. The first stage that
// breaks this ends the run by its name. What was computed is then copied to where it belongs, so results stay what they are.
#include <algorithm>
#include <iterator>

#include <duet_interpose.hpp>

namespace {

constexpr uint64_t kGuard = 4096;  // bytes on each side: further away another allocation may lie
constexpr unsigned char kGuardByte = 0xa5, kPoison = 0xff;  // all bits set is NaN in every float type

class Canary : public duetp::Interposer {
 public:
  using Interposer::Interposer;

  void stage(const duetp::Call& c) override {
    const std::vector<int32_t> used = read<int32_t>(c.queue, c.args.frame->used, 3);
    const std::vector<Fixed> fixed = what_must_not_change(c, used);
    duetp_stage args = c.args;
    std::vector<Guarded> outputs;
    outputs.reserve(std::size(args.out));
    for (int i = 0; i < static_cast<int>(std::size(args.out)); ++i) {
      const duetp_ref real = c.args.out[i];
      if (real.buf == nullptr) continue;
      const Guarded& g = outputs.emplace_back(*this, c, i);
      args.out[i] = g.ref();
      for (duetp_ref& in : args.in)
        if (duetp::Call::same(in, real)) in = g.ref();
    }
    run(c, args);
    wait(c.queue);
    for (const Guarded& g : outputs) g.inspect(used);
    for (const Fixed& f : fixed)
      if (read<unsigned char>(c.queue, f.ref, f.bytes.size()) != f.bytes) fail(DUET_E_DEVICE, "canary: " + c.place() + ": wrote to " + f.name + ", which it may only read");
    for (const Guarded& g : outputs) g.give_back();
    wait(c.queue);
  }

 private:
  struct Free {
    const duetp_device* device;
    void operator()(duetp_buffer* b) const { device->buffer_free(device->self, b); }
  };
  // An output in the canary's memory.
  class Guarded {
   public:
    Guarded(Canary& canary, const duetp::Call& c, int out) : canary_(canary), call_(c), out_(out), bytes_(c.bytes(true, out)) {
      const duetp_device& d = canary_.below;
      duetp_buffer* buffer = nullptr;
      check(d.buffer_new(d.self, bytes_ + 2 * kGuard, &buffer));
      buffer_ = {buffer, {&d}};
      std::vector<unsigned char> fill(bytes_ + 2 * kGuard, kGuardByte);
      std::fill_n(fill.begin() + kGuard, bytes_, kPoison);
      check(d.upload(d.self, c.queue, {buffer, 0, real().dtype, 0}, fill.data(), fill.size()));
      if (c.updates(out) && bytes_) check(d.copy(d.self, c.queue, ref(), real(), bytes_));
    }
    const duetp_ref& real() const { return call_.args.out[out_]; }
    duetp_ref ref() const { return {buffer_.get(), kGuard, real().dtype, 0}; }

    void inspect(const std::vector<int32_t>& used) const {
      const auto all = canary_.read<unsigned char>(call_.queue, {buffer_.get(), 0, real().dtype, 0}, bytes_ + 2 * kGuard);
      const auto begin = all.begin() + kGuard, end = begin + static_cast<ptrdiff_t>(bytes_);
      const auto touched = [](unsigned char b) { return b != kGuardByte; };
      if (const auto at = std::find_if(end, all.end(), touched); at != all.end()) fault("wrote past the end of", "byte " + std::to_string(at - end) + " after it");
      if (const auto at = std::find_if(all.begin(), begin, touched); at != begin) fault("wrote before the beginning of", "byte " + std::to_string(begin - at) + " before it");
      if (call_.updates(out_)) return;  // what was there is not to be told from what is new
      const uint64_t size = real().dtype == DUET_F32 ? 4 : 2, columns = call_.columns(true, out_);
      const uint64_t n = static_cast<uint64_t>(used[call_.counts_rows(true) ? 2 : 0]) * columns;
      for (uint64_t i = 0; i < n; ++i) {
        const auto element = begin + static_cast<ptrdiff_t>(i * size);
        if (std::all_of(element, element + static_cast<ptrdiff_t>(size), [](unsigned char b) { return b == kPoison; }))
          fault("left unwritten a part of", "row " + std::to_string(i / columns) + ", column " + std::to_string(i % columns));
      }
    }
    void give_back() const {
      if (bytes_) check(canary_.below.copy(canary_.below.self, call_.queue, real(), ref(), bytes_));
    }

   private:
    [[noreturn]] void fault(const char* what, const std::string& where) const {
      canary_.fail(DUET_E_DEVICE, "canary: " + call_.place() + ": " + what + " its output " + call_.stage.out[out_] + ", " + where);
    }
    Canary& canary_;
    const duetp::Call& call_;
    int out_;
    uint64_t bytes_;
    std::unique_ptr<duetp_buffer, Free> buffer_{nullptr, Free{}};
  };

  // Memory that a stage may read alone, as it was.
  struct Fixed {
    std::string name;
    duetp_ref ref;
    std::vector<unsigned char> bytes;
  };
  std::vector<Fixed> what_must_not_change(const duetp::Call& c, const std::vector<int32_t>& used) const {
    std::vector<Fixed> out;
    const auto add = [&](const std::string& name, const duetp_ref& ref, uint64_t n) { out.push_back({name, ref, read<unsigned char>(c.queue, ref, n)}); };
    const duetp_frame& f = *c.args.frame;
    const auto words = [](int32_t n) { return static_cast<uint64_t>(n) * sizeof(int32_t); };
    add("frame.used", f.used, words(3));
    add("frame.tokens", f.tokens, words(used[0]));
    add("frame.starts", f.starts, words(used[1] + 1));
    add("frame.slots", f.slots, words(used[1]));
    add("frame.rows", f.rows, words(used[2]));
    for (int i = 0; i < static_cast<int>(std::size(c.args.in)); ++i) {
      const duetp_ref& in = c.args.in[i];
      const bool written = std::any_of(std::begin(c.args.out), std::end(c.args.out), [&](const duetp_ref& o) { return duetp::Call::same(in, o); });
      if (in.buf && !written) add("its input " + std::to_string(i), in, static_cast<uint64_t>(used[0]) * c.columns(false, i) * (in.dtype == DUET_F32 ? 4 : 2));
    }
    return out;
  }
};

constexpr duetp_plugin plugin = duetp::interposer_plugin<Canary>("canary", "0.1.0", "Duet");

}  // namespace

DUETP_DEFINE(plugin);
