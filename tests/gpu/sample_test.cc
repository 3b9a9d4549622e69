// The kernels of backends/gpu/sample.cu, run on the CPU, against the sampler of the host.
#include "../../backends/gpu/sample.cu"  // with emulated/gpu/port.h

#include "support/draw_cases.h"
#include "text/sampler.h"

using namespace duet;

namespace {

struct Scene {
  std::vector<duetp_sample_row> rows;
  std::vector<duetp_sample_entry> entries;
  std::vector<int32_t> history, tokens, token_of_row, used;
  std::vector<char> scratch;
  std::vector<float> logits;
  uint32_t n_vocab;

  Scene(std::span<const Draw> draws, uint32_t n_steps, uint32_t V) : n_vocab(V) {
    DrawTables t(draws, n_steps, V);
    rows = t.rows, entries = t.entries;
    entries.resize(entries.size() + 1, {0, 0, -5, 0});  // not to be touched
    const auto n = static_cast<int32_t>(draws.size());
    history.assign(draws.size() * n_steps, -99);
    tokens.assign(draws.size(), -99);
    for (int32_t i = 0; i < n; ++i) token_of_row.push_back(n - 1 - i);
    used = {-1, -1, n};
    scratch.assign(duet_gpu::sample_scratch_bytes(static_cast<uint32_t>(n) + 1, V), '\x55');
  }
  void run() {
    const auto n = static_cast<uint32_t>(rows.size());
    const uint64_t of_rows = duet_gpu::sample_scratch_bytes(n, n_vocab);
    const duet_gpu::Sample a{logits.data(), rows.data(), entries.data(), history.data(), tokens.data(), token_of_row.data(), used.data(), n + 2, n_vocab, scratch.data()};
    REQUIRE(duet_gpu::sample(a, 0) == duet_gpu::kSuccess);
    CHECK(std::all_of(scratch.begin() + static_cast<ptrdiff_t>(of_rows), scratch.end(), [](char c) { return c == '\x55'; }));
  }
};

void compare(uint32_t V, uint32_t n_steps, size_t stride, std::shared_ptr<const Tokenizer> tokenizer) {
  std::vector<Sampler> samplers;
  const auto all = draw_cases::samplers(V, tokenizer);
  for (size_t i = 0; i < all.size(); i += stride) samplers.emplace_back(all[i]).accept(static_cast<int32_t>(V / 3));
  std::vector<Draw> draws;
  for (const Sampler& s : samplers) draws.push_back({0, 0, &s});
  for (size_t kind = 0; kind < 6; ++kind) {
    std::vector<Sampler> hosts = samplers;
    Scene scene(draws, n_steps, V);
    for (uint32_t step = 0; step < n_steps; ++step) {
      const auto logits = draw_cases::logits(V, 10 * V + step)[kind];
      scene.logits.clear();
      for (size_t i = 0; i < draws.size(); ++i) scene.logits.insert(scene.logits.end(), logits.begin(), logits.end());
      scene.run();
      for (size_t i = 0; i < draws.size(); ++i) {
        INFO("V " << V << ", kind " << kind << ", step " << step << ", sampler " << i * stride);
        const int32_t want = hosts[i].pick(logits);
        CHECK(scene.history[i * n_steps + step] == want);
        CHECK(scene.tokens[static_cast<size_t>(scene.token_of_row[i])] == want);
        CHECK(scene.rows[i].position == hosts[i].position());
        if (!hosts[i].keeps_counts()) continue;
        const auto& counts = hosts[i].counts();
        size_t n_counts = 0;
        for (uint32_t e = 0; e < scene.rows[i].n_entries; ++e) {
          const duetp_sample_entry& entry = scene.entries[scene.rows[i].first_entry + e];
          if (entry.count < 0) continue;
          ++n_counts;
          REQUIRE(counts.count(entry.token) == 1);
          CHECK(entry.count == counts.at(entry.token));
        }
        CHECK(n_counts == counts.size());
      }
    }
    CHECK(scene.entries.back().token == -5);
  }
}

}  // namespace

TEST_CASE("the kernels draw what the sampler draws") {
  const auto tokenizer = std::make_shared<const Tokenizer>(Tokenizer::load(DUET_SOURCE "/models/world/rwkv_vocab_v20230424.txt"));
  compare(1, 1, 7, tokenizer);
  compare(97, 2, 7, tokenizer);
  compare(5000, 1, 11, tokenizer);  // three blocks a row, the last not full
}

TEST_CASE("the kernels on a whole vocabulary", "[.]") {  // minutes
  const auto tokenizer = std::make_shared<const Tokenizer>(Tokenizer::load(DUET_SOURCE "/models/world/rwkv_vocab_v20230424.txt"));
  compare(2049, 2, 1, tokenizer);
  compare(65536, 1, 9, tokenizer);
}

TEST_CASE("the kernels say why there is nothing to draw") {
  SamplerOptions o;
  o.bias = {{1, -draw_cases::kInf}};
  const Sampler s(o), plain({});
  const std::vector<Draw> draws = {{0, 0, &s}, {0, 0, &plain}, {0, 0, &plain}};
  Scene scene(draws, 1, 3);
  scene.logits = {-draw_cases::kInf, 5, -draw_cases::kInf, 1, NAN, draw_cases::kInf, 1, 2, 3};
  scene.run();
  CHECK(scene.history[0] == DUETP_SAMPLE_NONE);
  CHECK(scene.history[1] == DUETP_SAMPLE_LOGIT - 1);
  CHECK(scene.history[2] >= 0);
  CHECK(scene.tokens == std::vector<int32_t>{scene.history[2], 0, 0});
}
