// Work that was recorded on a device's queue, to be run any number of times.
#pragma once
#include "conform/device.h"

namespace conform {

class Recording {
 public:
  // Records what enqueue() puts on the queue; nothing of it runs.
  template <class F>
  Recording(Device& d, F&& enqueue) : device_(d) {
    d.check(d->record_begin(d.self(), d.queue()));
    try {
      enqueue();
    } catch (...) {  // the queue must not stay in the recording
      if (d->record_end(d.self(), d.queue(), &record_) == DUET_OK) d->record_free(d.self(), record_);
      throw;
    }
    d.check(d->record_end(d.self(), d.queue(), &record_));
  }
  ~Recording() {
    device_->queue_wait(device_.self(), device_.queue());  // a run may still be under way when an error was thrown
    device_->record_free(device_.self(), record_);
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void run() { device_.check(device_->record_run(device_.self(), device_.queue(), record_)); }

 private:
  Device& device_;
  duetp_record* record_ = nullptr;
};

}  // namespace conform
