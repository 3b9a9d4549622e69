#include "conform/perf.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/format.h"
#include "conform/crash.h"
#include "conform/forward.h"
#include "duet_quantised.h"

namespace conform {
namespace {

constexpr const char* kRungs[] = {"", "network", "layers", "step"};

// Cases that repeat another with fewer outputs or other pointers
bool is_variation(const StageCase& c) { return c.variant == "layer 0" || c.variant == "apart" || c.variant == "hidden only" || c.variant == "logits only"; }

// Layers like those of a released model; of the larger one not all.
struct Scale {
  const char* name;
  duetp_shape shape;
};

// Without embedding and head where nothing that is measured uses them: they take long to fill.
std::vector<Scale> scales(bool quick, bool whole) {
  const auto scale = [&](const char* name, uint32_t n_layer, uint32_t n_head, uint32_t rank_w, uint32_t rank_a, uint32_t rank_v, uint32_t rank_g) {
    duetp_shape s = shape_of(n_layer, n_head, 64, n_head * 256, whole ? 65536 : 256);
    s.rank_w = rank_w, s.rank_a = rank_a, s.rank_v = rank_v, s.rank_g = rank_g;
    return Scale{name, s};
  };
  std::vector<Scale> out{scale("0.1b", 12, 12, 64, 64, 32, 128)};
  if (!quick) out.push_back(scale("1.5b", 4, 32, 96, 96, 64, 256));
  return out;
}

struct Run {
  duet_mode mode;
  int32_t n;  // sequences of one token, or tokens of one sequence
  std::string name() const { return mode == DUET_MODE_RECURRENT ? duet::format("batch {}", n) : duet::format("T {}", n); }
  Batch batch() const {
    if (mode == DUET_MODE_PARALLEL) return {{n}, {0}, {n - 1}};
    Batch b;
    for (int32_t i = 0; i < n; ++i) b.lengths.push_back(1), b.slots.push_back(i), b.rows.push_back(i);
    return b;
  }
};
const Run kRuns[] = {{DUET_MODE_RECURRENT, 1}, {DUET_MODE_RECURRENT, 16}, {DUET_MODE_PARALLEL, 512}};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// A pass over memory that no cache holds: it measures what the memory gives, and empties the caches of all else.
class Sweep {
 public:
  explicit Sweep(Device& d) : device_(d), visible_(d.slots().has(DUETP_CAP_HOST_VISIBLE)) {
    if (visible_) words_.resize(kBytes / sizeof(uint64_t));
    else from_ = d.take_buffer(kBytes), to_ = d.take_buffer(kBytes);
    for (int i = 0; i < 8; ++i) {
      const double begin = now();
      run();
      bytes_per_s_ = std::max(bytes_per_s_, static_cast<double>(visible_ ? kBytes : 2 * kBytes) / (now() - begin));
    }
  }
  ~Sweep() {
    if (!visible_) device_.give_buffer(kBytes, from_), device_.give_buffer(kBytes, to_);
  }
  Sweep(const Sweep&) = delete;
  Sweep& operator=(const Sweep&) = delete;

  double bytes_per_s() const { return bytes_per_s_; }  // of the fastest pass
  const char* name() const { return visible_ ? "streaming read of the host's memory" : "copy within the device's memory"; }
  void run() {
    if (visible_) {
      const duetp_host* host = device_.host().table();
      host->team(host->self, read_share, this);
    } else {
      device_.check(device_->copy(device_.self(), device_.queue(), {to_, 0, DUET_F32, 0}, {from_, 0, DUET_F32, 0}, kBytes));
      device_.wait();
    }
  }

 private:
  static constexpr uint64_t kBytes = uint64_t{256} << 20;
  static void read_share(void* context, uint32_t i, uint32_t n) {
    Sweep& sweep = *static_cast<Sweep*>(context);
    const size_t share = sweep.words_.size() / n;
    const uint64_t *at = sweep.words_.data() + share * i, *end = at + share;
    uint64_t s[8] = {};  // enough independent sums to keep the loads in flight
    for (; at + 8 <= end; at += 8)
      for (size_t j = 0; j < 8; ++j) s[j] += at[j];
    sweep.sum_ += s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];  // kept, or nothing would be read
  }

  Device& device_;
  bool visible_;
  double bytes_per_s_ = 0;
  std::vector<uint64_t> words_;
  std::atomic<uint64_t> sum_{0};
  duetp_buffer *from_ = nullptr, *to_ = nullptr;
};

// The median of several runs, of fewer where they are long, after one that warms up: seconds until what `enqueue` put on the queue is done, begun with empty
// caches. As the host does it, steps of recurrent mode are recorded where the device can.
double seconds_of(Device& d, Sweep& sweep, duet_mode mode, const std::function<void()>& enqueue) {
  constexpr size_t kRunsAtLeast = 5;
  constexpr double kSeconds = 0.1, kSecondsAtMost = 1;
  std::unique_ptr<Recording> record;
  if (mode == DUET_MODE_RECURRENT && d.records()) record = std::make_unique<Recording>(d, enqueue);
  const auto run = [&] {
    record ? record->run() : enqueue();
    d.wait();
  };
  run();
  std::vector<double> times;
  const double first = now();
  while (times.empty() || (now() - first < kSecondsAtMost && (times.size() < kRunsAtLeast || now() - first < kSeconds))) {
    sweep.run();
    const double begin = now();
    run();
    times.push_back(now() - begin);
  }
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

// Of n weights of a matrix: quantised ones with scales and minimums
uint64_t matrix_bytes(duet_dtype dtype, uint64_t n) {
  if (!duetp_is_quantised(dtype)) return n * bytes_of(dtype);
  return n * (dtype == DUET_I8 ? DUETP_QUANTISED_GROUP + 2 : DUETP_QUANTISED_GROUP / 2 + 4) / DUETP_QUANTISED_GROUP;
}

uint64_t weight_bytes(const std::string& stage, uint32_t which, const duetp_shape& s, duet_dtype dtype, uint64_t n_tokens) {
  const uint64_t C = s.n_embd, vector = C * 4;
  const uint64_t rank[] = {s.rank_w, s.rank_a, s.rank_v, s.rank_g};
  if (stage == "embed") return matrix_bytes(dtype, n_tokens * C) + 2 * vector;
  if (stage == "shift_mix") return 8 * vector;
  if (stage == "linear") return matrix_bytes(dtype, C * C);
  if (stage == "lowrank") return matrix_bytes(dtype, 2 * C * rank[which]);
  if (stage == "wkv_prepare") return 5 * vector;
  if (stage == "norm_gate") return 3 * vector;
  if (stage == "channel_mix") return matrix_bytes(dtype, 2 * C * s.n_ffn) + 3 * vector;
  if (stage == "head") return matrix_bytes(dtype, s.n_vocab * C) + 2 * vector;
  return 0;  // wkv
}

// What a sequence's state has of the stage, read and written
uint64_t state_bytes(const std::string& stage, const duetp_shape& s) {
  const uint64_t C = s.n_embd;
  return stage == "shift_mix" || stage == "channel_mix" ? 2 * C * 4 : stage == "wkv" ? 2 * C * s.head_size * 4 : 0;
}

// Of a stage by itself: weights, states, and each argument once where it is read and once where it is written
uint64_t stage_bytes(const StageCase& c, const Model& m, const Batch& b) {
  const auto n_tokens = static_cast<uint64_t>(b.n_tokens());
  uint64_t bytes = weight_bytes(c.stage, c.which, m.shape, m.weights, n_tokens) + b.lengths.size() * state_bytes(c.stage, m.shape);
  for (const Argument& a : c.arguments) {
    const uint64_t rows = c.stage == "head" ? b.rows.size() : n_tokens, columns = a.rows == 'V' ? m.shape.n_vocab : m.shape.n_embd;
    bytes += ((a.out >= 0) + is_input(c, a)) * rows * columns * bytes_of(a.m ? matrix_input(m.weights) : DUET_F32);
  }
  return bytes;
}

// Of a whole step: weights, states and outputs; what lies between stages could stay in caches
uint64_t step_bytes(const Model& m, const Batch& b) {
  uint64_t bytes = b.rows.size() * (m.shape.n_vocab + m.shape.n_embd) * 4;
  for (const StageCase& c : stage_cases()) {
    if (is_variation(c)) continue;
    const uint64_t layers = c.layer == kBlock ? 1 : c.stage == "lowrank" && c.which == DUETP_LOWRANK_V ? m.shape.n_layer - 1 : m.shape.n_layer;
    bytes +=
        layers * (weight_bytes(c.stage, c.which, m.shape, m.weights, static_cast<uint64_t>(b.n_tokens())) + b.lengths.size() * state_bytes(c.stage, m.shape));
  }
  return bytes;
}

// Whether a stage does the same with weights of this dtype as with f32: it has no matrix, and its matrix inputs are f32.
bool same_as_f32(const StageCase& c, duet_dtype dtype) {
  const bool rounds = std::any_of(c.arguments.begin(), c.arguments.end(), [](const Argument& a) { return a.m; });
  return !has_matrix(c) && (!rounds || matrix_input(dtype) == DUET_F32);
}

class Table {
 public:
  Table(const Measure& x, const Sweep& sweep) : x_(x), sweep_(sweep) {
    if (x.json) return;
    std::printf("%s, %s: floor at %.1f GB/s, %s\n", x.device.slots().spec.c_str(), x.device.slots().info.name, sweep.bytes_per_s() * 1e-9, sweep.name());
    std::printf("%-16s%-6s%-6s%-11s%-10s%12s%12s%12s%8s\n", "", "model", "dtype", "mode", "", "time us", "bytes kB", "floor us", "floor %");
  }
  void add(const std::string& subject, const Scale& scale, duet_dtype dtype, const Run& run, uint64_t bytes, double seconds) {
    const double floor = static_cast<double>(bytes) / sweep_.bytes_per_s();
    const char* mode = run.mode == DUET_MODE_RECURRENT ? "recurrent" : "parallel";
    ++n_lines_;
    if (x_.json) {
      lines_.push_back({{"subject", subject},
                        {"model", scale.name},
                        {"dtype", name_of(dtype)},
                        {"mode", mode},
                        {"run", run.name()},
                        {"seconds", seconds},
                        {"bytes", bytes},
                        {"floor_seconds", floor},
                        {"percent_of_floor", 100 * floor / seconds}});
      return;
    }
    std::printf("%-16s%-6s%-6s%-11s%-10s%12.1f%12.1f%12.1f%8.0f\n", subject.c_str(), scale.name, name_of(dtype), mode, run.name().c_str(), 1e6 * seconds,
                static_cast<double>(bytes) * 1e-3, 1e6 * floor, 100 * floor / seconds);
    std::fflush(stdout);
  }
  int finish() {
    if (x_.json) {
      const nlohmann::json all{{"plugin", x_.device.slots().spec},
                               {"device", x_.device.slots().info.name},
                               {"bytes_per_s", sweep_.bytes_per_s()},
                               {"measured", sweep_.name()},
                               {"lines", lines_}};
      std::printf("%s\n", all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    } else if (n_lines_ == 0) {
      std::printf("nothing of what was asked for is the plugin's own\n");
    }
    return n_lines_ == 0;
  }

 private:
  const Measure& x_;
  const Sweep& sweep_;
  size_t n_lines_ = 0;
  nlohmann::json lines_ = nlohmann::json::array();
};

// One layer after the other, as in a step: none finds its weights or its state in a cache. The time is that of one.
double seconds_of_stage(Device& d, Sweep& sweep, const Model& m, const Model::Layers& layers, const StageCase& c, const Run& run) {
  const Batch b = run.batch();
  State state(d, m.shape, static_cast<uint32_t>(b.lengths.size()));
  StageRun stage(d, m, layers, c, b, run.mode, state);
  if (c.layer == kBlock) return seconds_of(d, sweep, run.mode, [&] { stage.enqueue(); });
  const double all = seconds_of(d, sweep, run.mode, [&] {
    for (uint32_t i = 1; i < m.shape.n_layer; ++i) {
      stage.in_layer(i);
      stage.enqueue();
    }
  });
  return all / (m.shape.n_layer - 1);
}

double seconds_of_step(Device& d, Sweep& sweep, const Model& m, uint32_t rung, const Run& run) {
  const Batch b = run.batch();
  State state(d, m.shape, static_cast<uint32_t>(b.lengths.size()));
  Forward forward(d, m, b, run.mode, state, b.tokens(m.shape.n_vocab), rung);
  return seconds_of(d, sweep, run.mode, [&] { forward.enqueue(); });
}

std::vector<StageCase> cases_of(const Measure& x) {
  std::vector<StageCase> out;
  for (const StageCase& c : stage_cases()) {
    const bool asked = x.rung <= 1 && (x.stage.empty() || x.stage == c.stage || x.stage == c.name());
    if (asked && !is_variation(c) && x.device.offers(c.fn)) out.push_back(c);
  }
  return out;
}

std::vector<uint32_t> rungs_of(const Measure& x) {
  std::vector<uint32_t> out;
  for (uint32_t rung = 1; rung <= 3; ++rung) {
    // a network whose other stages are the reference's would show the reference's speed
    const bool own = x.device.offers_rung(rung) && (rung > 1 || x.device.offers_all_stages());
    if (own && (x.rung == 0 || x.rung == rung) && (x.stage.empty() || x.stage == kRungs[rung])) out.push_back(rung);
  }
  return out;
}

}  // namespace

int measure(const Measure& x) {
  Device& d = x.device;
  const std::vector<StageCase> cases = cases_of(x);
  const std::vector<uint32_t> rungs = rungs_of(x);
  const bool whole = !rungs.empty() || std::any_of(cases.begin(), cases.end(), [](const StageCase& c) { return c.layer == kBlock; });
  now_running("measuring the memory");
  Sweep sweep(d);
  Table table(x, sweep);
  for (const Scale& scale : scales(x.quick, whole))
    for (const duet_dtype dtype : kWeights) {
      const auto wanted = [&](uint32_t rung) { return d.refuses(scale.shape, dtype, rung).empty(); };
      if ((cases.empty() || !wanted(1)) && std::none_of(rungs.begin(), rungs.end(), wanted)) continue;
      const Model model(scale.shape, dtype, x.seed);
      if (!cases.empty() && wanted(1)) {
        const Model::Layers layers(d, model);
        for (const StageCase& c : cases)
          for (const Run& run : kRuns) {
            if (dtype != DUET_F32 && same_as_f32(c, dtype)) continue;
            now_running(duet::format("{} {} {} {}, measured", c.name(), scale.name, name_of(dtype), run.name()));
            table.add(c.name(), scale, dtype, run, stage_bytes(c, model, run.batch()), seconds_of_stage(d, sweep, model, layers, c, run));
          }
      }
      for (const uint32_t rung : rungs)
        for (const Run& run : kRuns) {
          if (!wanted(rung)) continue;
          now_running(duet::format("{} {} {} {}, measured", kRungs[rung], scale.name, name_of(dtype), run.name()));
          table.add(kRungs[rung], scale, dtype, run, step_bytes(model, run.batch()), seconds_of_step(d, sweep, model, rung, run));
        }
    }
  return table.finish();
}

}  // namespace conform
