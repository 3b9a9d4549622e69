// trace: how long each stage takes. At the end a table, through the log; with DUET_TRACE_FILE=file.json every call as well,
// for chrome://tracing or Perfetto. It waits for the queue before and after each stage: what a device would do at once or
// hide behind other work is done one after another, so the sum is more than a run without it takes.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <utility>

#include <duet_interpose.hpp>

namespace {

double now() { return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The events of a process in Chrome's format. All devices share it; it appears whole when the last of them ends.
class EventFile {
 public:
  explicit EventFile(const char* path) : path_(path) {
    struct stat s {};
    if (const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path, nullptr), std::free); real) path_ = real.get();  // what a link points to is replaced, not the link
    if (::stat(path_.c_str(), &s) == 0 && !S_ISREG(s.st_mode)) {
      problem_ = "is not a regular file, so it is not replaced";
      return;
    }
    std::random_device random;  // a killed process may have left a file, and had this one's number, as in containers
    for (int attempt = 0; attempt < 16 && !file_; ++attempt) {
      temporary_ = path_ + ".tmp." + std::to_string(::getpid()) + "." + std::to_string(random());
      file_ = std::fopen(temporary_.c_str(), "wx");
      if (!file_ && errno != EEXIST) break;
    }
    if (file_)
      std::fputs("{\"traceEvents\": [", file_);
    else
      problem_ = std::string("cannot be written: ") + std::strerror(errno);
  }
  ~EventFile() {
    if (file_) std::fclose(file_), ::unlink(temporary_.c_str());
  }
  const std::string& problem() const { return problem_; }  // "" if there is none

  void add(const duetp::Call& c, double begin, double end, unsigned device, size_t queue) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::fprintf(file_, "%s\n{\"name\": \"%s\", \"ph\": \"X\", \"ts\": %.3f, \"dur\": %.3f, \"pid\": %u, \"tid\": %zu, ", n_++ ? "," : "", c.name().c_str(), begin - start_,
                 end - begin, device, queue);
    std::fprintf(file_, "\"args\": {\"layer\": %u, \"tokens\": %u, \"mode\": \"%s\"}}", c.args.layer_index, c.args.frame->n_tokens,
                 c.args.mode == DUET_MODE_PARALLEL ? "parallel" : "recurrent");
  }
  bool finish() {
    std::fputs("\n]}\n", file_);
    const bool written = !std::ferror(file_);
    const bool whole = std::fclose(std::exchange(file_, nullptr)) == 0 && written && ::rename(temporary_.c_str(), path_.c_str()) == 0;
    if (!whole) ::unlink(temporary_.c_str());
    return whole;
  }
  uint64_t size() const { return n_; }
  unsigned next_device() { return ++devices_; }

 private:
  const double start_ = now();
  std::mutex mutex_;
  std::string path_, temporary_, problem_;
  std::FILE* file_ = nullptr;
  uint64_t n_ = 0;
  unsigned devices_ = 0;
};

std::mutex sharing;
std::weak_ptr<EventFile> shared;

class Trace : public duetp::Interposer {
 public:
  Trace(const duetp_host& host, const duetp_device& below, const duetp_device_info& info) : Interposer(host, below, info) {
    const char* path = host.option(host.self, "file");
    if (path == nullptr) return;
    const std::lock_guard<std::mutex> lock(sharing);
    file_ = shared.lock();
    if (!file_) shared = file_ = std::make_shared<EventFile>(path);
    if (!file_->problem().empty()) fail(DUET_E_IO, std::string(path) + ": " + file_->problem());
    device_ = file_->next_device();
  }

  void stage(const duetp::Call& c) override {
    wait(c.queue);
    const double begin = now();
    run(c);
    wait(c.queue);
    const double done = now();
    const std::lock_guard<std::mutex> lock(mutex_);
    Sum& s = sums_[c.name()];
    ++s.calls;
    s.us += done - begin;
    if (file_) file_->add(c, begin, done, device_, queues_.try_emplace(c.queue, queues_.size() + 1).first->second);
  }

  void end() override {
    print();
    const std::lock_guard<std::mutex> lock(sharing);
    const std::shared_ptr<EventFile> file = std::move(file_);
    if (!file || file.use_count() > 1 || file->size() == 0) return;
    const char* path = host.option(host.self, "file");
    if (file->finish())
      say("%" PRIu64 " calls are in %s", file->size(), path);
    else
      say("%s: could not be written: %s", path, std::strerror(errno));
  }

 private:
  struct Sum {
    uint64_t calls = 0;
    double us = 0;
  };
  void print() const {
    std::vector<std::pair<std::string, Sum>> rows(sums_.begin(), sums_.end());
    std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.us > b.second.us; });
    Sum all;
    for (const auto& [name, s] : rows) all.calls += s.calls, all.us += s.us;
    if (all.calls == 0) return;
    say("%s, one stage at a time:", info.name);
    say("%-14s %9s %12s %10s %7s", "stage", "calls", "total ms", "each us", "share");
    for (const auto& [name, s] : rows)
      say("%-14s %9" PRIu64 " %12.3f %10.2f %6.1f%%", name.c_str(), s.calls, s.us / 1e3, s.us / static_cast<double>(s.calls), 100 * s.us / all.us);
    say("%-14s %9" PRIu64 " %12.3f", "all", all.calls, all.us / 1e3);
  }

  std::mutex mutex_;
  std::map<std::string, Sum> sums_;
  std::map<const duetp_queue*, size_t> queues_;  // each is a line of the trace
  std::shared_ptr<EventFile> file_;
  unsigned device_ = 0;
};

constexpr duetp_plugin plugin = duetp::interposer_plugin<Trace>("trace", "0.1.0", "Duet");

}  // namespace

DUETP_DEFINE(plugin);
