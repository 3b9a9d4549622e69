// duet.hpp gives the bits that duet.h gives: logits, hidden rows, scores, states, tokens, samples, generated text.
#include <cstring>
#include <limits>

#include "duet.hpp"
#include "support/api.h"
#include "support/golden.h"

namespace {

const std::string kStories = std::string(DUET_SOURCE) + "/models/stories-7m/stories-7m.pth";
constexpr const char* kText = "Once upon a time there was a little fox who lived in the wood.";

// Both at once: the C interface (api::) and the binding (duet::).
struct Both {
  explicit Both(const char* device, const std::string& path = kStories)
      : c_model(api::load(c_library, path, device)), model(duet::Model::load(library, path, {.device = device})) {}
  api::Library c_library = api::library(2);
  api::Model c_model;
  duet::Library library{{.n_threads = 2}};
  duet::Model model;
};

std::vector<int32_t> prompt(const duet::Tokenizer& tokenizer) {
  std::vector<int32_t> tokens = {0};
  for (const int32_t token : tokenizer.encode(kText)) tokens.push_back(token);
  return tokens;
}

bool same_bits(std::span<const float> a, std::span<const float> b) { return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0; }

std::string scratch(const char* name) { return std::string(DUET_BUILD) + "/bindings-" + name; }

}  // namespace

TEST_CASE("C++: logits, hidden rows, v_first and states have the bits of C in every mode") {
  for (const char* device : api::backends()) {
    const Both b(device);
    const auto tokens = prompt(duet::Tokenizer::for_model(b.model));
    for (const auto& [mode, c_mode] : {std::pair(duet::Mode::automatic, DUET_MODE_AUTO), std::pair(duet::Mode::recurrent, DUET_MODE_RECURRENT),
                                       std::pair(duet::Mode::parallel, DUET_MODE_PARALLEL)}) {
      INFO(device << ", mode " << c_mode);
      const auto c_session = api::session(b.c_model, c_mode);
      const auto c_state = api::state(b.c_model);
      api::Batch batch;
      batch.add(tokens, 0);
      const uint32_t all = DUET_OUT_ALL_LOGITS | DUET_OUT_HIDDEN | DUET_OUT_V_FIRST;
      duet::Session session(b.model, {.mode = mode});
      duet::State state(b.model);
      const duet::Rows rows = session.forward(state, tokens, 0, {.all_rows = true, .hidden = true, .v_first = true});
      CHECK(rows.n_rows == tokens.size());
      CHECK(rows.width == b.model.info().n_vocab);
      CHECK(same_bits(rows.data, api::forward(c_session, c_state, batch, all)));
      const auto c_arrays = api::arrays(b.c_model, c_state);
      const auto arrays = state.get();
      CHECK(same_bits(arrays.att_x, c_arrays.att_x));
      CHECK(same_bits(arrays.wkv, c_arrays.wkv));
      CHECK(same_bits(arrays.ffn_x, c_arrays.ffn_x));
      api::check(duet_state_reset(c_state.get(), 0));
      CHECK(same_bits(session.hidden().data, api::forward(c_session, c_state, batch, all, DUET_OUTPUT_HIDDEN)));
      api::check(duet_state_reset(c_state.get(), 0));
      CHECK(same_bits(session.v_first().data, api::forward(c_session, c_state, batch, all, DUET_OUTPUT_V_FIRST)));
    }
  }
}

TEST_CASE("C++: a batch of sequences, one of them empty, has the bits of C") {
  const Both b("reference", golden::path("tiny.pth"));
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5};
  const std::vector<uint32_t> lengths = {2, 0, 3}, slots = {2, 0, 1};
  api::Batch batch{tokens, lengths, slots};
  const auto want = api::forward(api::session(b.c_model, DUET_MODE_PARALLEL), api::state(b.c_model, 3), batch, DUET_OUT_LAST_LOGITS);
  duet::State state(b.model, 3);
  duet::Session session(b.model, {.mode = duet::Mode::parallel});
  const duet::Rows rows = session.forward(state, duet::Batch{.tokens = tokens, .lengths = lengths, .slots = slots});
  REQUIRE(rows.n_rows == 2);
  CHECK(same_bits(rows.data, want));
  CHECK(same_bits(rows[1], std::span(want).subspan(rows.width)));
  duet::State single(b.model, 3);
  const auto by_lengths =
      api::forward(api::session(b.c_model, DUET_MODE_PARALLEL), api::state(b.c_model, 3), {{1, 2, 3}, {1, 1, 1}, {0, 1, 2}}, DUET_OUT_LAST_LOGITS);
  CHECK(same_bits(session.forward(single, duet::Batch{.tokens = std::span(tokens).first(3)}).data, by_lengths));  // no lengths: one token each
}

TEST_CASE("C++: outputs that were not asked for have no rows") {
  const Both b("reference", golden::path("tiny.pth"));
  duet::State state(b.model);
  duet::Session session(b.model);
  CHECK(session.forward(state, std::vector<int32_t>{1, 2}, 0, {.logits = false, .hidden = true}).n_rows == 0);
  CHECK(session.logits().data.empty());
  CHECK(session.v_first().n_rows == 0);
  CHECK(session.hidden().n_rows == 1);
}

TEST_CASE("C++: scores have the bits of C") {
  const Both b(api::backends().back());
  const auto tokens = prompt(duet::Tokenizer::for_model(b.model));
  std::vector<double> want(tokens.size() - 1);
  api::check(duet_score(api::session(b.c_model, DUET_MODE_RECURRENT).get(), api::state(b.c_model).get(), 0, tokens.data(), tokens.size(), want.data()));
  duet::Session session(b.model, {.mode = duet::Mode::recurrent});
  duet::State state(b.model);
  CHECK(session.score(state, tokens) == want);
  CHECK(session.score(state, std::vector<int32_t>{1}).empty());
}

TEST_CASE("C++: generated text, tokens and probabilities are those of C") {
  const Both b(api::backends().back());
  const auto tokenizer = duet::Tokenizer::for_model(b.model);
  const auto tokens = prompt(tokenizer);
  const auto c_tokenizer = api::tokenizer(b.c_model);
  auto so = DUET_INIT(duet_sampler_options);
  api::check(duet_sampler_options_default(&so));
  so.temperature = 0.8f, so.top_p = 0.7f, so.presence = 0.25f, so.seed = 7;
  so.tokenizer = c_tokenizer.get();
  const int32_t banned = tokenizer.encode("fox")[0];
  const float bias = -std::numeric_limits<float>::infinity();
  so.n_bias = 1, so.bias_tokens = &banned, so.bias = &bias;
  duet_sampler* p = nullptr;
  api::check(duet_sampler_create(&so, &p));
  const api::Sampler c_sampler(p);
  struct Story {
    std::string text;
    std::vector<int32_t> tokens;
  } want;
  auto o = DUET_INIT(duet_generate_options);
  o.max_tokens = 50;
  o.tokenizer = c_tokenizer.get();
  o.user = &want;
  o.on_token = [](void* u, int32_t token) -> duet_status { return static_cast<Story*>(u)->tokens.push_back(token), DUET_OK; };
  o.on_text = [](void* u, const char* text, size_t n) -> duet_status { return static_cast<Story*>(u)->text.append(text, n), DUET_OK; };
  auto r = DUET_INIT(duet_generate_result);
  api::check(duet_generate(api::session(b.c_model, DUET_MODE_AUTO).get(), api::state(b.c_model).get(), 0, p, tokens.data(), tokens.size(), &o, &r));

  duet::Sampler sampler({.temperature = 0.8f, .top_p = 0.7f, .presence = 0.25f, .seed = 7, .bias = {{banned, bias}}, .tokenizer = &tokenizer});
  duet::Session session(b.model);
  duet::State state(b.model);
  std::string streamed;
  const auto got = session.generate(state, sampler, tokens, {.max_tokens = 50, .tokenizer = &tokenizer, .on_text = [&](std::string_view text) {
                                                               streamed += text;
                                                               return true;
                                                             }});
  CHECK(got.text == want.text);
  CHECK(streamed == want.text);
  CHECK(got.tokens == want.tokens);
  CHECK(got.text.size() > 50);
  CHECK(got.n_prompt == r.n_prompt);
  CHECK(got.n_new == r.n_new);
  CHECK(static_cast<uint32_t>(got.finish) == r.finish);

  const duet::Rows last = session.forward(state, std::span(got.tokens).last(1));
  std::vector<float> probs(last.width);
  api::check(duet_sampler_probs(p, last.data.data(), last.width, probs.data()));
  CHECK(sampler.probs(last.data) == probs);
  int32_t token = 0;
  api::check(duet_sampler_pick(p, last.data.data(), last.width, &token));
  CHECK(sampler.pick(last.data) == token);
}

TEST_CASE("C++: a batch of generations gives what C gives, each sequence by its own options") {
  const float never = -std::numeric_limits<float>::infinity();
  for (const char* device : api::backends()) {
    INFO(device);
    const Both b(device);
    const auto tokenizer = duet::Tokenizer::for_model(b.model);
    const auto c_tokenizer = api::tokenizer(b.c_model);
    const auto tokens = prompt(tokenizer);
    const uint32_t n = 5, V = b.model.info().n_vocab;
    // 0: text to its length; 1: stopped by its callback; 2: cancelled by its own flag; 3: nothing to draw from; 4: a stop token, of its first draw
    std::vector<std::pair<int32_t, float>> nothing, only;
    for (uint32_t v = 0; v < V; ++v) nothing.emplace_back(v, never);
    only = nothing, only.erase(only.begin() + 9);
    const std::vector<std::pair<int32_t, float>> biases[n] = {{}, {}, {}, nothing, only};
    const uint32_t slots[n] = {4, 0, 3, 1, 2}, max_tokens[n] = {12, 40, 40, 5, 5}, last[n] = {1000, 7, 4, 1000, 1000};
    const int32_t nine = 9, none = 0;

    struct Told {
      std::vector<int32_t> tokens;
      std::string text;
      uint32_t last = 0;
      bool cancels = false;
      volatile int32_t cancel = 0;
    } want[n];
    std::vector<api::Sampler> c_samplers;
    duet_sampler* c_pointers[n];
    duet_generate_options o[n];
    const duet_generate_options* options[n];
    duet_generate_result r[n];
    duet_generate_result* results[n];
    std::vector<int32_t> packed;
    uint32_t lengths[n];
    std::vector<duet::Sampler> samplers;
    samplers.reserve(n);
    for (uint32_t i = 0; i < n; ++i) {
      auto so = DUET_INIT(duet_sampler_options);
      api::check(duet_sampler_options_default(&so));
      so.temperature = 0.8f, so.top_p = 0.7f, so.seed = 7, so.sequence = i;
      std::vector<int32_t> bias_tokens;
      std::vector<float> bias;
      for (const auto& [token, value] : biases[i]) bias_tokens.push_back(token), bias.push_back(value);
      so.n_bias = static_cast<uint32_t>(bias.size()), so.bias_tokens = bias_tokens.data(), so.bias = bias.data();
      api::check(duet_sampler_create(&so, &c_pointers[i]));
      c_samplers.emplace_back(c_pointers[i]);
      samplers.emplace_back(duet::SamplerOptions{.temperature = 0.8f, .top_p = 0.7f, .seed = 7, .sequence = i, .bias = biases[i]});
      lengths[i] = static_cast<uint32_t>(tokens.size()) - i;
      packed.insert(packed.end(), tokens.begin(), tokens.begin() + lengths[i]);
      want[i].last = last[i], want[i].cancels = i == 2;
      o[i] = DUET_INIT(duet_generate_options);
      o[i].max_tokens = max_tokens[i];
      if (i < 2) o[i].tokenizer = c_tokenizer.get();
      o[i].stops = i == 4 ? &nine : &none, o[i].n_stops = i == 4;
      o[i].on_token = [](void* u, int32_t token) -> duet_status {
        auto& told = *static_cast<Told*>(u);
        told.tokens.push_back(token);
        if (told.tokens.size() < told.last) return DUET_OK;
        if (told.cancels) return told.cancel = 1, DUET_OK;
        return DUET_E_CANCELLED;
      };
      if (i < 2) o[i].on_text = [](void* u, const char* text, size_t size) -> duet_status { return static_cast<Told*>(u)->text.append(text, size), DUET_OK; };
      o[i].user = &want[i], o[i].cancel = &want[i].cancel;
      r[i] = DUET_INIT(duet_generate_result);
      options[i] = &o[i], results[i] = &r[i];
    }
    auto p = DUET_INIT(duet_prompts);
    p.n_seqs = n, p.tokens = packed.data(), p.lengths = lengths, p.slots = slots, p.samplers = c_pointers, p.options = options;
    const auto c_state = api::state(b.c_model, n);
    CHECK(duet_generate_batch(api::session(b.c_model, DUET_MODE_AUTO).get(), c_state.get(), &p, results) == DUET_E_CANCELLED);

    duet::Cancel cancel;
    std::vector<int32_t> told[n];
    std::vector<duet::Prompt> prompts;
    for (uint32_t i = 0; i < n; ++i) {
      duet::GenerateOptions own{.max_tokens = max_tokens[i], .stops = {}};
      if (i < 2) own.tokenizer = &tokenizer;
      if (i == 4) own.stops = {nine};
      if (i == 2) own.cancel = &cancel;
      own.on_token = [&, i](int32_t token) {
        told[i].push_back(token);
        if (i == 2 && told[i].size() == last[i]) cancel.request();
        return i == 2 || told[i].size() < last[i];
      };
      prompts.push_back({.tokens = std::span(tokens).first(lengths[i]), .sampler = &samplers[i], .options = std::move(own), .slot = slots[i]});
    }
    duet::Session session(b.model);
    duet::State state(b.model, n);
    const auto got = session.generate_batch(state, prompts);
    REQUIRE(got.size() == n);
    for (uint32_t i = 0; i < n; ++i) {
      INFO("sequence " << i);
      CHECK(got[i].tokens == want[i].tokens);
      CHECK(told[i] == want[i].tokens);
      CHECK(got[i].text == want[i].text);
      CHECK(got[i].n_prompt == r[i].n_prompt);
      CHECK(got[i].n_new == r[i].n_new);
      if (i != 3) CHECK(state.get(slots[i]).wkv == api::arrays(b.c_model, c_state, slots[i]).wkv);
    }
    CHECK(got[0].finish == duet::Finish::length);
    CHECK(got[0].text == tokenizer.decode(got[0].tokens));
    CHECK(got[1].finish == duet::Finish::callback);
    CHECK(got[2].finish == duet::Finish::cancelled);
    CHECK(got[3].finish == duet::Finish::numeric);
    CHECK(got[4].finish == duet::Finish::stop_token);
    CHECK(got[4].tokens.empty());
    CHECK(r[3].status == DUET_E_NUMERIC);
  }
}

TEST_CASE("C++: the sampler's defaults are the library's") {
  auto d = DUET_INIT(duet_sampler_options);
  api::check(duet_sampler_options_default(&d));
  const duet::SamplerOptions o;
  CHECK(o.top_k == d.top_k);
  CHECK(o.temperature == d.temperature);
  CHECK(o.top_p == d.top_p);
  CHECK(o.min_p == d.min_p);
  CHECK(o.presence == d.presence);
  CHECK(o.frequency == d.frequency);
  CHECK(o.decay == d.decay);
}

TEST_CASE("C++: states are forked, set, saved and loaded") {
  const Both b("reference", golden::path("tiny.pth"));
  duet::State state(b.model, 2), other(b.model);
  duet::Session session(b.model);
  (void)session.forward(state, std::vector<int32_t>{1, 2, 3}, 1);
  const auto want = state.get(1);
  CHECK(want.att_x.size() == state.x_size());
  CHECK(want.wkv.size() == state.wkv_size());
  CHECK(state.get(0) != want);
  state.copy_from(state, 1, 0);
  CHECK(state.get(0) == want);
  other.load(0, state.save(1));
  CHECK(other.get() == want);
  other.reset();
  CHECK(other.get() != want);
  state.save_file(1, scratch("state.safetensors"));
  other.load_file(0, scratch("state.safetensors"));
  CHECK(other.get() == want);
  other.reset();
  other.set(0, want);
  CHECK(other.get() == want);
  const std::vector<float> ones(state.x_size(), 1.0f);
  other.set(0, {}, {}, ones);
  CHECK(other.get().ffn_x == ones);
  CHECK(other.get().wkv == want.wkv);  // an empty span keeps its part
}

TEST_CASE("C++: library, files and models tell what C tells") {
  std::vector<uint64_t> seen;
  const duet::Library library({.n_threads = 1});
  CHECK(duet::version() == duet_version_string());
  CHECK(library.report().find("\"plugins\"") != std::string::npos);
  const auto devices = library.devices();
  REQUIRE(!devices.empty());
  CHECK(devices.back().spec == "reference:0");
  CHECK(library.file_info(golden::path("tiny.pth")).find("\"n_embd\"") != std::string::npos);
  const auto progress = [&](uint64_t done, uint64_t total) {
    seen.push_back(done);
    return done <= total;
  };
  const auto model = duet::Model::load(library, golden::path("tiny.pth"), {.weights = duet::Dtype::f32, .device = "reference", .progress = progress});
  CHECK(!seen.empty());
  const auto info = model.info();
  CHECK(info.n_layer == 3);
  CHECK(info.n_embd == 128);
  CHECK(info.n_vocab == 256);
  CHECK(info.weights == duet::Dtype::f32);
  CHECK(info.device == "reference:0");
  model.save(scratch("saved.safetensors"));
  seen.clear();
  library.convert(golden::path("tiny.pth"), scratch("converted.safetensors"), {.weights = duet::Dtype::f32, .overwrite = true, .progress = progress});
  CHECK(!seen.empty());
  for (const auto& [dtype, bits] : {std::pair(duet::Dtype::q8, 8), std::pair(duet::Dtype::q4, 4)}) {
    library.convert(golden::path("tiny.pth"), scratch("quantised.safetensors"), {.weights = dtype, .overwrite = true});
    const auto quantised = duet::Model::load(library, scratch("quantised.safetensors"), {.device = "reference"}).info();
    CHECK(quantised.weights == dtype);
    CHECK(quantised.weight_bytes > info.n_params * static_cast<uint64_t>(bits) / 8);
    CHECK(quantised.weight_bytes < info.n_params * static_cast<uint64_t>(bits + 4) / 8);
  }
  library.init(scratch("fresh.safetensors"), {.n_layer = 2, .n_embd = 64, .n_vocab = 32, .overwrite = true, .seed = 3});
  CHECK(duet::Model::load(library, scratch("fresh.safetensors"), {.device = "reference"}).info().n_vocab == 32);
  const std::vector<int32_t> tokens = {1, 2, 3};
  const auto logits = [&](const duet::Model& m) {
    duet::State state(m);
    duet::Session session(m);
    const auto rows = session.forward(state, tokens);
    return std::vector<float>(rows.data.begin(), rows.data.end());
  };
  CHECK(logits(duet::Model::load(library, scratch("saved.safetensors"), {.device = "reference"})) == logits(model));
  CHECK(logits(duet::Model::load(library, scratch("converted.safetensors"), {.device = "reference"})) == logits(model));
}

TEST_CASE("C++: text becomes tokens and comes back") {
  const duet::Library library;
  const duet::Tokenizer world(library);
  CHECK(world.size() == 65530);
  const std::string text("caf\xc3\xa9 \xff\0 end", 12);
  CHECK(world.decode(world.encode(text)) == text);
  CHECK(world.encode("").empty());
  const duet::Tokenizer stories(library, std::string(DUET_SOURCE) + "/models/stories-7m/vocab.txt");
  CHECK(stories.size() <= 4096);
  CHECK(stories.decode(stories.encode(kText)) == kText);
}
