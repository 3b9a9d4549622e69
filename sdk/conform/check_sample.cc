#include <cmath>
#include <cstring>

#include "base/format.h"
#include "conform/checks.h"
#include "conform/record.h"

namespace conform {
namespace {

constexpr uint32_t kSteps = 4;
constexpr int32_t kUntouched = -77;

struct Size {
  uint32_t n_vocab, n_rows;
};

// What one run left: tokens of the frame and the history; rows and entries as they are afterwards.
struct Drawn {
  std::vector<int32_t> tokens, history;
  std::vector<duetp_sample_row> rows;
  std::vector<duetp_sample_entry> entries;
};

enum class Shape { spread, ties, flat, equal, banned, faulty };
constexpr const char* kShapes[] = {"spread", "ties", "flat", "all equal", "mostly -inf", "not finite"};

std::vector<float> logits(Shape shape, uint32_t n, uint64_t seed) {
  Random random(seed);
  std::vector<float> out(n);
  for (uint32_t i = 0; i < n; ++i) {
    const float u = (random.next() + random.next() + random.next()) * 4;
    out[i] = shape == Shape::flat ? u * 1e-3f : shape == Shape::equal ? 1.5f : shape == Shape::ties ? std::round(u * 2) / 2 : u;
    if (shape == Shape::banned && i % 9) out[i] = -INFINITY;
    if (shape == Shape::faulty && i == n / 2) out[i] = seed % 2 ? INFINITY : NAN;
  }
  return out;
}

// Every row draws in another way.
struct Wishes {
  std::vector<duetp_sample_row> rows;
  std::vector<duetp_sample_entry> entries;
  Wishes(const Size& s, uint64_t seed) {
    constexpr float temperatures[] = {0, 1, 0.4f, 1.6f, 1}, tops[] = {1, 0.9f, 0.5f, 1, 0, 0.9999f};
    constexpr uint32_t ks[] = {0, 0, 3, 40, 2000, 1};
    const auto V = static_cast<int32_t>(s.n_vocab);
    for (uint32_t i = 0; i < s.n_rows; ++i) {
      const uint64_t n = i + 3 * seed;
      duetp_sample_row& r = rows.emplace_back();
      r.temperature = temperatures[n % 5], r.top_p = tops[n % 6], r.top_k = ks[n / 2 % 6], r.min_p = n % 4 == 1 ? 0.03f : 0;
      if (n % 3 != 1) r.presence = 0.5f, r.frequency = 0.25f;
      r.decay = 0.9f;
      r.seed = n * 0x9e3779b97f4a7c15u, r.sequence = ~n, r.position = n % 2 ? n << 32 : n;
      r.first_entry = static_cast<uint32_t>(entries.size());
      if (n % 4) {
        entries.push_back({2.5, -1, V - 1, 0});
        if (V > 4) entries.push_back({-INFINITY, -1, V / 3, 0}), entries.push_back({0, 1.75, 0, 0}), entries.push_back({0.5, 0, V - 2, 1});
      }
      r.n_entries = static_cast<uint32_t>(entries.size()) - r.first_entry;
      entries.resize(entries.size() + kSteps);
      r.next = i * kSteps;
    }
  }
};

template <class T>
std::vector<T> as(const std::vector<unsigned char>& bytes) {
  std::vector<T> out(bytes.size() / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
  return out;
}

Drawn draw(Device& d, const Model& m, const Size& s, Shape shape, uint64_t seed, bool recorded) {
  const Model::Layers layers(d, m);
  const Wishes wishes(s, seed);
  Batch b;
  for (uint32_t i = 0; i < s.n_rows; ++i) b.lengths.push_back(1), b.slots.push_back(-1), b.rows.push_back(static_cast<int32_t>(s.n_rows - 1 - i));
  const Frame frame(d, b, std::vector<int32_t>(s.n_rows, 0));
  const size_t V = s.n_vocab, R = s.n_rows;
  Memory logit_rows(d, "logits", (R + Frame::kSpare) * V * 4, DUET_F32), rows(d, "rows", R * sizeof(duetp_sample_row), 0),
      entries(d, "entries", wishes.entries.size() * sizeof(duetp_sample_entry), 0), history(d, "history", R * kSteps * 4, 0);
  const std::vector<int32_t> untouched(R * kSteps, kUntouched);
  rows.write(wishes.rows.data(), R * sizeof(duetp_sample_row));
  entries.write(wishes.entries.data(), wishes.entries.size() * sizeof(duetp_sample_entry));
  history.write(untouched.data(), untouched.size() * 4);
  duetp_stage a{};
  a.size = sizeof a;
  a.layer_index = m.shape.n_layer;
  a.mode = DUET_MODE_RECURRENT;
  a.layer = layers[m.shape.n_layer];
  a.frame = frame.table();
  a.in[DUETP_SAMPLE_IN_LOGITS] = logit_rows.ref();
  a.out[DUETP_SAMPLE_OUT_ROWS] = rows.ref(), a.out[DUETP_SAMPLE_OUT_ENTRIES] = entries.ref(), a.out[DUETP_SAMPLE_OUT_HISTORY] = history.ref();
  const auto steps = [&](auto&& run) {
    for (uint32_t step = 0; step < kSteps; ++step) {
      std::vector<float> all;
      for (uint32_t i = 0; i < R; ++i) {
        const std::vector<float> row = logits(shape == Shape::faulty && i % 2 ? Shape::spread : shape, s.n_vocab, seed * 1000 + step * 100 + i);
        all.insert(all.end(), row.begin(), row.end());
      }
      logit_rows.write(all.data(), all.size() * 4);
      run();
      d.wait();
    }
  };
  if (recorded) {
    Recording record(d, [&] { d.run(&duet::Device::sample, a); });
    steps([&] { record.run(); });
  } else {
    steps([&] { d.run(&duet::Device::sample, a); });
  }
  (void)logit_rows.read();  // its canaries
  Drawn out;
  out.rows = as<duetp_sample_row>(rows.read());
  out.entries = as<duetp_sample_entry>(entries.read());
  out.history = as<int32_t>(history.read());
  std::vector<int32_t> tokens(R);
  d.check(d->download(d.self(), d.queue(), tokens.data(), frame.table()->tokens, R * 4));
  d.wait();
  for (const int32_t row : b.rows) out.tokens.push_back(tokens[static_cast<size_t>(row)]);
  return out;
}

// The counts of a row by token, of the tokens that have one.
std::string counts_differ(const Drawn& got, const Drawn& want, size_t row) {
  const auto find = [](const Drawn& d, size_t r, int32_t token) {
    for (uint32_t i = 0; i < d.rows[r].n_entries; ++i)
      if (const duetp_sample_entry& e = d.entries[d.rows[r].first_entry + i]; e.token == token) return e.count;
    return -1.0;
  };
  for (uint32_t i = 0; i < want.rows[row].n_entries; ++i) {
    const duetp_sample_entry& e = want.entries[want.rows[row].first_entry + i];
    const double count = find(got, row, e.token);
    if ((e.count < 0) != (count < 0) || std::abs(count - e.count) > 1e-12) return duet::format("row {}: the count of token {} is {}, not {}", row, e.token, count, e.count);
  }
  return got.rows[row].n_entries == want.rows[row].n_entries ? "" : duet::format("row {}: {} entries, not {}", row, got.rows[row].n_entries, want.rows[row].n_entries);
}

std::string differ(const Drawn& got, const Drawn& want) {
  for (size_t i = 0; i < want.rows.size(); ++i) {
    bool drawn = true;
    for (uint32_t step = 0; drawn && step < kSteps; ++step) {
      const int32_t g = got.history[i * kSteps + step], w = want.history[i * kSteps + step];
      if (g != w) return duet::format("row {}, step {}: {}, not {} as the reference", i, step, g, w);
      drawn = w >= 0;
    }
    if (!drawn) continue;  // not specified from there on
    if (got.tokens[i] != want.tokens[i]) return duet::format("row {}: the frame's token is {}, not {}", i, got.tokens[i], want.tokens[i]);
    if (got.rows[i].position != want.rows[i].position || got.rows[i].next != want.rows[i].next) return duet::format("row {}: its position or its place in the history is wrong", i);
    if (const std::string text = counts_differ(got, want, i); !text.empty()) return text;
  }
  return "";
}

Verdict compare_case(Context& x, const Model& m, const Size& s, Shape shape, uint64_t seed) {
  const Drawn want = draw(x.reference, m, s, shape, seed, false), got = draw(x.device, m, s, shape, seed, false);
  Verdict v;
  v.fault = differ(got, want);
  if (!v.fault.empty() || shape == Shape::faulty) return v;
  const auto repeats = [&](bool recorded, const char* fault) {
    const Drawn again = draw(x.device, m, s, shape, seed, recorded);
    if (v.fault.empty() && (again.history != got.history || !differ(again, got).empty())) v.fault = fault;
  };
  repeats(false, "not deterministic: the same run twice drew other tokens");
  if (x.device.records()) repeats(true, "a recorded run drew other tokens than one at once");
  return v;
}

}  // namespace

void check_sample(Context& x) {
  if (!x.stage.empty() && x.stage != "sample") return;
  Line line("sample", "", "");
  if (!x.device.slots().sample.fn) {
    line.absent = true;
    line.reason = "not offered";
    return x.report.add(line);
  }
  std::vector<Size> sizes{{1, 2}, {37, 9}, {2049, 12}};
  if (!x.quick)
    for (const Size& s : {Size{2, 5}, Size{256, 64}, Size{2048, 7}, Size{5000, 30}, Size{65536, 13}}) sizes.push_back(s);
  for (const Size& s : sizes) {
    const duetp_shape shape = shape_of(1, 1, 16, 32, s.n_vocab);
    if (const std::string why = x.device.refuses(shape, DUET_F32, 1); !why.empty()) {
      line.refuse(why);
      continue;
    }
    const Model model(shape, DUET_F32, x.seed);
    for (const Shape form : {Shape::spread, Shape::ties, Shape::flat, Shape::equal, Shape::banned, Shape::faulty})
      line.run(duet::format("V {}, rows {}, {}", s.n_vocab, s.n_rows, kShapes[static_cast<int>(form)]), [&] { return compare_case(x, model, s, form, x.seed + static_cast<uint64_t>(form)); });
  }
  x.report.add(line);
}

}  // namespace conform
