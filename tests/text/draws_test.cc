// The stage `sample` of the reference against the sampler of the host, token by token.
#include <cstdlib>

#include "base/error.h"
#include "duet_stage.h"
#include "exec/draws.h"
#include "support/draw_cases.h"
#include "text/sampler.h"

extern "C" {
#include "reference.h"
}

using namespace duet;

namespace {

// Memory of the host as the stage gets it.
class Scene {
 public:
  Scene(std::span<const Draw> draws, uint32_t n_steps, uint32_t n_vocab) : tables_(draws, n_steps, n_vocab), n_(static_cast<int32_t>(draws.size())) {
    self_.host.alloc = [](void*, size_t bytes, size_t) { return std::malloc(bytes); };
    self_.host.free = [](void*, void* p) { std::free(p); };
    history.assign(draws.size() * n_steps, -99);
    for (int32_t i = 0; i < n_; ++i) rows_.push_back(n_ - 1 - i);  // not in order, to see them used
    tokens.assign(draws.size(), -99);
    layer_.shape.n_vocab = n_vocab;
    frame_.used = ref(used_, n_used_, sizeof n_used_);
    frame_.tokens = ref(tokens_buffer_, tokens.data(), tokens.size() * 4);
    frame_.rows = ref(rows_buffer_, rows_.data(), rows_.size() * 4);
    n_used_[2] = n_;
    stage_.layer = &layer_, stage_.frame = &frame_;
    stage_.out[DUETP_SAMPLE_OUT_ROWS] = ref(row_buffer_, tables_.rows.data(), tables_.rows.size() * sizeof(duetp_sample_row));
    stage_.out[DUETP_SAMPLE_OUT_ENTRIES] = ref(entry_buffer_, tables_.entries.data(), tables_.entries.size() * sizeof(duetp_sample_entry));
    stage_.out[DUETP_SAMPLE_OUT_HISTORY] = ref(history_buffer_, history.data(), history.size() * 4);
  }
  void run(std::vector<float>& logits) {
    stage_.in[DUETP_SAMPLE_IN_LOGITS] = ref(logits_buffer_, logits.data(), logits.size() * 4);
    REQUIRE(duet_reference_ops.sample(&self_, nullptr, &stage_) == DUET_OK);
  }
  int32_t token(size_t row) const { return tokens[static_cast<size_t>(rows_[row])]; }
  std::vector<int32_t> history, tokens;

 private:
  static duetp_ref ref(duetp_buffer& b, void* data, size_t bytes) { return b = {data, bytes}, duetp_ref{&b, 0, 0, 0}; }
  DrawTables tables_;
  int32_t n_, n_used_[3] = {};
  std::vector<int32_t> rows_;
  reference self_{};
  duetp_layer layer_{};
  duetp_frame frame_{};
  duetp_stage stage_{};
  duetp_buffer used_{}, tokens_buffer_{}, rows_buffer_{}, row_buffer_{}, entry_buffer_{}, history_buffer_{}, logits_buffer_{};
};

}  // namespace

TEST_CASE("the reference's sample draws what the sampler draws") {
  const auto tokenizer = std::make_shared<const Tokenizer>(Tokenizer::load(DUET_SOURCE "/models/world/rwkv_vocab_v20230424.txt"));
  constexpr uint32_t kSteps = 5;
  for (const uint32_t V : {1u, 2u, 97u, 700u}) {
    std::vector<Sampler> samplers;
    for (const SamplerOptions& o : draw_cases::samplers(V, tokenizer)) samplers.emplace_back(o).accept(static_cast<int32_t>(V / 3));  // a past
    std::vector<Draw> draws;
    for (const Sampler& s : samplers) draws.push_back({0, 0, &s});
    for (size_t kind = 0; kind < 6; ++kind) {
      std::vector<Sampler> hosts = samplers;
      Scene scene(draws, kSteps, V);
      for (uint32_t step = 0; step < kSteps; ++step) {
        const auto logits = draw_cases::logits(V, 10 * V + step)[kind];
        std::vector<float> all;
        for (size_t i = 0; i < draws.size(); ++i) all.insert(all.end(), logits.begin(), logits.end());
        scene.run(all);
        for (size_t i = 0; i < draws.size(); ++i) {
          INFO("V " << V << ", kind " << kind << ", step " << step << ", sampler " << i);
          const int32_t want = hosts[i].pick(logits);
          CHECK(scene.history[i * kSteps + step] == want);
          CHECK(scene.token(i) == want);
        }
      }
    }
  }
}

TEST_CASE("the reference's sample says why there is nothing to draw") {
  SamplerOptions o;
  o.bias = {{1, -draw_cases::kInf}};
  const Sampler s(o), plain({});
  const std::vector<Draw> draws = {{0, 0, &s}, {0, 0, &plain}, {0, 0, &plain}};
  Scene scene(draws, 1, 3);
  std::vector<float> logits = {-draw_cases::kInf, 5, -draw_cases::kInf, 1, NAN, draw_cases::kInf, 1, 2, 3};
  scene.run(logits);
  CHECK(scene.history[0] == DUETP_SAMPLE_NONE);
  CHECK(scene.history[1] == DUETP_SAMPLE_LOGIT - 1);
  CHECK(scene.history[2] >= 0);
  CHECK(scene.token(0) == 0);
  CHECK(scene.token(1) == 0);
  const auto sentence = [](const auto& draw) -> std::string {
    try {
      draw();
    } catch (const Error& e) {
      CHECK(e.code() == DUET_E_NUMERIC);
      return e.what();
    }
    return "";
  };
  const std::string banned = sentence([&] { fail_draw(scene.history[0], 3); }), no_number = sentence([&] { fail_draw(scene.history[1], 3); });
  CHECK(banned.find("all 3 logits are -inf") != std::string::npos);
  CHECK(no_number.find("the logit of token 1 ") != std::string::npos);
  // as the host's sampler does
  CHECK(sentence([&] { Sampler(o).pick(std::span(logits).first(3)); }) == banned);
  CHECK(sentence([&] { Sampler({}).pick(std::span(logits).subspan(3, 3)); }) == no_number);
}

TEST_CASE("duetp_uniform is counter_uniform") {
  for (uint64_t i = 0; i < 100; ++i) CHECK(duetp_uniform(i * 0x9e3779b97f4a7c15u, ~i, i << 33 | i) == counter_uniform(i * 0x9e3779b97f4a7c15u, ~i, i << 33 | i));
}
