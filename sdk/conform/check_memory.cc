#include <signal.h>

#include <algorithm>
#include <cfenv>
#include <clocale>
#include <cstring>
#include <stdexcept>

#include "base/format.h"
#include "conform/checks.h"

namespace conform {
namespace {

void expect(bool holds, const std::string& fault) {
  if (!holds) throw std::runtime_error(fault);
}

std::vector<unsigned char> pattern(size_t n, uint64_t seed) {
  std::vector<unsigned char> out(n);
  uint64_t z = seed;
  for (unsigned char& c : out) c = static_cast<unsigned char>((z = z * 6364136223846793005u + 1442695040888963407u) >> 56);
  return out;
}

// A buffer that is freed with the scope
struct Buffer {
  Buffer(Device& d, uint64_t bytes) : device(d) { d.check(d->buffer_new(d.self(), bytes, &buffer)); }
  ~Buffer() { device->buffer_free(device.self(), buffer); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  duetp_ref at(uint64_t off) const { return {buffer, off, DUET_F32, 0}; }
  void write(uint64_t off, const std::vector<unsigned char>& data) {
    device.check(device->upload(device.self(), device.queue(), at(off), data.data(), data.size()));
  }
  std::vector<unsigned char> read(uint64_t off, uint64_t n) {
    std::vector<unsigned char> out(n, 0xee);
    device.check(device->download(device.self(), device.queue(), out.data(), at(off), n));
    device.wait();
    return out;
  }

  Device& device;
  duetp_buffer* buffer = nullptr;
};

Verdict fresh_buffers_are_zero(Device& d) {
  for (const uint64_t n : {1u, 63u, 4096u, 100003u}) {
    { Buffer(d, n).write(0, pattern(n, n)); }  // so that memory which is used again is seen
    const std::vector<unsigned char> bytes = Buffer(d, n).read(0, n);
    expect(std::all_of(bytes.begin(), bytes.end(), [](unsigned char c) { return c == 0; }), duet::format("a fresh buffer of {} bytes is not zero", n));
  }
  return {};
}

Verdict transfers_keep_every_byte(Device& d) {
  Buffer a(d, 300032), b(d, 300032);
  const std::vector<unsigned char> whole = pattern(300032, 1), other = pattern(300032, 2);
  a.write(0, whole);
  b.write(0, other);
  expect(a.read(0, 300032) == whole && b.read(0, 300032) == other, "what was uploaded is not what is downloaded");
  for (const uint64_t n : {1u, 2u, 63u, 65u, 100001u}) {
    std::vector<unsigned char> part = pattern(n, n), want = other;
    b.write(0, other);
    b.write(640, part);
    std::copy(part.begin(), part.end(), want.begin() + 640);
    std::fill(part.begin(), part.end(), 0);  // src may be reused on return
    expect(b.read(0, want.size()) == want, duet::format("an upload of {} bytes at 640 changed something else, or not all of them", n));
    d.check(d->copy(d.self(), d.queue(), b.at(128), a.at(64), n));
    std::copy(whole.begin() + 64, whole.begin() + 64 + static_cast<std::ptrdiff_t>(n), want.begin() + 128);
    expect(b.read(0, want.size()) == want, duet::format("a copy of {} bytes changed something else, or not all of them", n));
    expect(b.read(128, n) == std::vector<unsigned char>(want.begin() + 128, want.begin() + 128 + static_cast<std::ptrdiff_t>(n)),
           duet::format("a download of {} bytes at 128 is wrong", n));
  }
  return {};
}

Verdict states_keep_every_bit(Device& d) {
  const duetp_shape shape = shape_of(3, 2, 16, 64, 67);
  const size_t LC = size_t{3} * 32;
  State s(d, shape, 4);
  for (uint32_t i = 0; i < 4; ++i) expect(s.slot(i) == s.initial(i), duet::format("slot {}: what is exported is not what was imported", i));
  // parts: a NULL array is skipped
  std::vector<float> want = s.initial(1), ones(LC * 16, 1);
  d.check(d->state_import(d.self(), d.queue(), s.get(), 1, nullptr, ones.data(), nullptr));
  std::copy(ones.begin(), ones.end(), want.begin() + static_cast<std::ptrdiff_t>(LC));
  expect(s.slot(1) == want, "an import of wkv alone changed something else, or not all of it");
  std::vector<float> att(LC);
  d.check(d->state_export(d.self(), d.queue(), s.get(), 2, att.data(), nullptr, nullptr));
  d.wait();
  expect(std::equal(att.begin(), att.end(), s.initial(2).begin()), "an export of att_x alone is wrong");
  // copies within a state and to another, and the NULL source
  State t(d, shape, 2);
  d.check(d->state_copy(d.self(), d.queue(), s.get(), 3, s.get(), 1));
  d.check(d->state_copy(d.self(), d.queue(), t.get(), 0, s.get(), 2));
  d.check(d->state_copy(d.self(), d.queue(), s.get(), 0, nullptr, 0));
  expect(s.slot(3) == want, "state_copy within a state is wrong");
  expect(t.slot(0) == s.initial(2) && t.slot(1) == t.initial(1), "state_copy to another state is wrong");
  const std::vector<float> zero(want.size());
  expect(s.slot(0) == zero, "state_copy from NULL does not give zeros");
  expect(s.slot(1) == want && s.slot(2) == s.initial(2), "state_copy changed a slot that it does not name");
  return {};
}

Verdict fresh_states_are_zero(Device& d) {
  const duetp_shape shape = shape_of(2, 2, 16, 64, 67);
  { State used(d, shape, 3); }
  duetp_state* state = nullptr;
  d.check(d->state_new(d.self(), &shape, 3, DUET_F32, &state));
  const size_t LC = size_t{2} * 32;
  std::vector<float> v(LC * 18, 1);
  d.check(d->state_export(d.self(), d.queue(), state, 2, v.data(), v.data() + LC, v.data() + 17 * LC));
  d.wait();
  d->state_free(d.self(), state);
  expect(std::all_of(v.begin(), v.end(), [](float f) { return f == 0; }), "a fresh state is not zero");
  return {};
}

Verdict process_is_unchanged() {
  volatile float tiny = 1e-40f;
  expect(tiny * 1.0f != 0, "the plugin makes this thread flush small numbers to zero");
  expect(std::fegetround() == FE_TONEAREST, "the plugin changed the rounding mode of this thread");
  expect(std::string_view(std::setlocale(LC_ALL, nullptr)) == "C", "the plugin changed the locale");
  sigset_t mask;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  for (int s : {SIGINT, SIGTERM, SIGCHLD}) expect(!::sigismember(&mask, s), "the plugin blocked signals of this thread");
  return {};
}

}  // namespace

void check_memory(Context& x) {
  if (x.stage.empty() || x.stage == "memory") {
    Line line("memory", "", "");
    line.run("fresh buffers", [&] { return fresh_buffers_are_zero(x.device); });
    line.run("transfers", [&] { return transfers_keep_every_byte(x.device); });
    x.report.add(line);
  }
  if (x.stage.empty() || x.stage == "state") {
    Line line("state", "", "");
    line.run("fresh states", [&] { return fresh_states_are_zero(x.device); });
    line.run("import, export, copy", [&] { return states_keep_every_bit(x.device); });
    x.report.add(line);
  }
}

void check_process(Context& x) {
  Line line("process", "", "");
  line.run("after all that", [] { return process_is_unchanged(); });
  line.run("memory of the host", [&] {
    const long kept = x.device.close();
    expect(kept == 0, duet::format("the plugin kept {} allocations of the host after it was closed", kept));
    return Verdict{};
  });
  x.report.add(line);
}

}  // namespace conform
