#include "conform/device.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "plugin/absorb.h"
#include "plugin/load.h"

extern "C" const duetp_plugin duet_reference_plugin;  // backends/reference

namespace conform {
namespace {

constexpr Stage kStages[] = {&duet::Device::embed, &duet::Device::shift_mix, &duet::Device::linear,      &duet::Device::lowrank, &duet::Device::wkv_prepare,
                             &duet::Device::wkv,   &duet::Device::norm_gate, &duet::Device::channel_mix, &duet::Device::head};

}  // namespace

const duetp_plugin& reference_plugin() { return duet_reference_plugin; }

Device::Device(const duetp_plugin& plugin, uint32_t n_threads, uint32_t index)
    : host_(plugin.id, n_threads), plugin_(duet::checked_plugin_table(&plugin, plugin.id)) {
  const bool is_reference = &plugin == &duet_reference_plugin;
  if (!is_reference) filler_ = std::make_unique<Device>(duet_reference_plugin, 1);
  check(plugin_.open(host_.table(), &plugin_self_));
  const uint32_t n = plugin_.device_count(plugin_self_);
  if (index >= n) throw std::runtime_error("there is no device " + std::to_string(index) + "; the plugin reports " + std::to_string(n));
  duetp_device_info info{};
  info.size = sizeof info;
  check(plugin_.device_info(plugin_self_, index, &info));
  const duetp_device* table = nullptr;
  check(plugin_.device_open(plugin_self_, index, &table));
  if (table == nullptr) throw std::runtime_error("device_open succeeded but gave no device");
  device_ = duet::absorb(*table, info, plugin.id, is_reference ? nullptr : &filler_->device_);
  device_.spec = std::string(plugin.id) + ":" + std::to_string(index);
  check(device_.table.queue_new(self(), &queue_));
}

long Device::close() {
  if (queue_ == nullptr) return 0;
  for (const auto& [bytes, buffers] : free_buffers_)
    for (duetp_buffer* b : buffers) device_.table.buffer_free(self(), b);
  free_buffers_.clear();
  device_.table.queue_free(self(), queue_);
  queue_ = nullptr;
  if (device_.table.close) device_.table.close(device_.table.self);
  plugin_.close(plugin_self_);
  return host_.live();
}

void Device::check(duet_status status) {
  if (status == DUET_OK) return;
  throw std::runtime_error("status " + std::to_string(status) + ": " + said());
}

std::string Device::said() {
  std::string sentence = std::exchange(host_.sentence, "");
  if (sentence.empty() && filler_) sentence = std::exchange(filler_->host_.sentence, "");  // a memory slot that the plugin left to the reference
  return sentence.empty() ? "no reason given" : sentence;
}

bool Device::offers(Stage stage) const {
  const duet::Device::Stage& mine = device_.*stage;
  return mine.fn != nullptr && (!filler_ || mine.self != filler_->device_.memory_self);
}

bool Device::offers_all_stages() const {
  return std::all_of(std::begin(kStages), std::end(kStages), [&](Stage s) { return offers(s); });
}

bool Device::offers_rung(uint32_t rung) const {
  if (rung == 3) return device_.step != nullptr;
  if (rung == 2) return device_.layers != nullptr && device_.embed.fn != nullptr && device_.head.fn != nullptr;
  return std::all_of(std::begin(kStages), std::end(kStages), [&](Stage s) { return (device_.*s).fn != nullptr; }) &&
         std::any_of(std::begin(kStages), std::end(kStages), [&](Stage s) { return offers(s); });
}

std::string Device::refuses(const duetp_shape& shape, duet_dtype weights, uint32_t rung) const {
  if (device_.table.refuses == nullptr) return "";
  const char* why = device_.table.refuses(device_.table.self, &shape, weights, rung);
  return why == nullptr ? "" : *why ? why : "no reason given";
}

duetp_buffer* Device::take_buffer(uint64_t bytes) {
  std::vector<duetp_buffer*>& kept = free_buffers_[bytes];
  duetp_buffer* b = nullptr;
  if (kept.empty()) {
    check(device_.table.buffer_new(self(), bytes, &b));
  } else {
    b = kept.back();
    kept.pop_back();
  }
  return b;
}

Memory::Memory(Device& d, std::string name, size_t bytes, duet_dtype dtype)
    : device_(d), name_(std::move(name)), bytes_(bytes), dtype_(dtype), buffer_(d.take_buffer(total())) {
  const std::vector<unsigned char> fill(total(), 0xff);
  d.check(d->upload(d.self(), d.queue(), {buffer_, 0, dtype, 0}, fill.data(), fill.size()));
}

std::vector<unsigned char> Memory::read() {
  std::vector<unsigned char> all(total());
  device_.check(device_->download(device_.self(), device_.queue(), all.data(), {buffer_, 0, dtype_, 0}, all.size()));
  device_.wait();
  const auto touched = [](unsigned char c) { return c != 0xff; };
  const auto begin = all.begin() + kCanary, end = begin + static_cast<std::ptrdiff_t>(bytes_);
  if (std::any_of(all.begin(), begin, touched)) throw std::runtime_error(name_ + ": written before its beginning");
  if (std::any_of(end, all.end(), touched)) throw std::runtime_error(name_ + ": written past its end");
  return {begin, end};
}

}  // namespace conform
