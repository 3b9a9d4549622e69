// duet.h sections 7 to 9: tokenizer, sampler, generation.
#include <algorithm>

#include "base/environment.h"
#include "base/file.h"
#include "capi/argument.h"
#include "capi/handle.h"

namespace duet {
namespace {

constexpr const char* kWorld = "models/world/rwkv_vocab_v20230424.txt";
constexpr uint32_t kWorldVocab = 65536;

std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& path) { return std::make_shared<const Tokenizer>(Tokenizer::load(path)); }

std::shared_ptr<const Tokenizer> tokenizer_for(const Model& model) {
  const uint32_t V = model.shape().n_vocab;
  if (!model.path().empty()) {
    const std::string beside = (is_folder(model.path()) ? model.path() : folder_of(model.path())) + "/vocab.txt";
    if (is_regular_file(beside)) {
      auto t = load_tokenizer(beside);
      t->check_fits(V, model.path());
      return t;
    }
  }
  if (V != kWorldVocab)
    fail(DUET_E_NOT_FOUND, "{}: no vocab.txt beside the model, and its vocabulary of {} is not the World vocabulary's {}; name the vocabulary file",
         model.path().empty() ? "a random model" : model.path(), V, kWorldVocab);
  return load_tokenizer(data_file(kWorld));
}

constexpr uint32_t kFirstResult = offsetof(duet_generate_result, status);  // the first version's size

GenerateOptions generate_options(const duet_generate_options* options) {
  const auto given = read_struct(options, "options");
  if (given.n_stops > 0) require(given.stops, "stops");
  if (given.n_stop_texts > 0) require(given.stop_texts, "stop_texts");
  if (given.n_stops > 1024 || given.n_stop_texts > 1024) fail(DUET_E_LIMIT, "more than 1024 stops");
  GenerateOptions o;
  if (given.max_tokens) o.max_tokens = given.max_tokens;
  if (given.tokenizer) o.tokenizer = object(given.tokenizer);
  if (given.stops) o.stops.assign(given.stops, given.stops + given.n_stops);
  for (uint32_t i = 0; i < given.n_stop_texts; ++i) {
    require(given.stop_texts[i], "stop_texts[i]");
    o.stop_texts.push_back(text_argument(given.stop_texts[i], "stop_texts[i]", 4096));
    if (o.stop_texts.back().empty() || !utf8_valid(o.stop_texts.back())) fail(DUET_E_INVALID, "stop_texts[{}] is empty or not UTF-8", i);
  }
  if (!o.tokenizer && (given.on_text || given.n_stop_texts > 0)) fail(DUET_E_INVALID, "on_text and stop_texts need a tokenizer");
  if (given.on_token) o.on_token = [given](int32_t token) { return given.on_token(given.user, token) == DUET_OK; };
  if (given.on_text) o.on_text = [given](std::string_view text) { return given.on_text(given.user, text.data(), text.size()) == DUET_OK; };
  o.cancel = given.cancel;
  return o;
}

float literal(float v, const char* name) {
  if (v != v) fail(DUET_E_INVALID, "{} is not a number", name);
  return v;
}

}  // namespace
}  // namespace duet

using namespace duet;

duet_status duet_tokenizer_load(duet_library* library, const char* path, duet_tokenizer** out_tokenizer) {
  return guard([&] {
    require(out_tokenizer, "out_tokenizer");
    (void)object(library);
    *out_tokenizer = new_handle<duet_tokenizer>(load_tokenizer(path ? path_argument(path, "path") : data_file(kWorld)));
  });
}

duet_status duet_tokenizer_for_model(duet_model* model, duet_tokenizer** out_tokenizer) {
  return guard([&] {
    require(out_tokenizer, "out_tokenizer");
    *out_tokenizer = new_handle<duet_tokenizer>(tokenizer_for(*object(model)));
  });
}

duet_status duet_tokenizer_size(duet_tokenizer* tokenizer, uint32_t* out_n) {
  return guard([&] {
    require(out_n, "out_n");
    *out_n = object(tokenizer)->size();
  });
}

duet_status duet_tokenizer_encode(duet_tokenizer* tokenizer, const char* text, size_t n, int32_t* dst, size_t cap, size_t* out_size) {
  return guard([&] {
    const auto t = object(tokenizer);
    if (n > 0) require(text, "text");
    if (n > size_t{1} << 40) fail(DUET_E_LIMIT, "a text of {} bytes; at most 1 TiB", n);
    require(out_size, "out_size");
    size_t size = 0;
    if (!dst || cap < n) {  // else there is room whatever the tokens are: each has a byte at least
      t->encode({text, n}, [&](int32_t) { ++size; });
      if (!give_size(size, dst, cap, out_size)) return;
    }
    size = 0;
    t->encode({text, n}, [&](int32_t token) { dst[size++] = token; });
    *out_size = size;
  });
}

duet_status duet_tokenizer_decode(duet_tokenizer* tokenizer, const int32_t* tokens, size_t n, char* dst, size_t cap, size_t* out_size) {
  return guard([&] {
    const auto t = object(tokenizer);
    if (n > 0) require(tokens, "tokens");
    if (n > size_t{1} << 40) fail(DUET_E_LIMIT, "{} tokens; at most 2^40", n);
    size_t size = 0;  // all tokens are checked before the first is written
    for (size_t i = 0; i < n; ++i) {
      if (tokens[i] < 0 || static_cast<uint32_t>(tokens[i]) >= t->size()) fail(DUET_E_INVALID, "token {} at position {} is outside [0, {})", tokens[i], i, t->size());
      size += t->bytes(tokens[i]).size();
    }
    if (!give_size(size, dst, cap, out_size)) return;
    for (size_t i = 0; i < n; ++i) dst = std::ranges::copy(t->bytes(tokens[i]), dst).out;
    if (cap > size) *dst = '\0';
  });
}

void duet_tokenizer_free(duet_tokenizer* tokenizer) { free_handle(tokenizer); }

duet_status duet_sampler_options_default(duet_sampler_options* options) {
  return guard([&] {
    duet_sampler_options o{};
    const SamplerOptions d;
    o.temperature = d.temperature, o.top_p = d.top_p, o.top_k = d.top_k, o.min_p = d.min_p;
    o.presence = d.presence, o.frequency = d.frequency, o.decay = d.decay;
    write_struct(options, o, "options");
  });
}

duet_status duet_sampler_create(const duet_sampler_options* options, duet_sampler** out_sampler) {
  return guard([&] {
    require(out_sampler, "out_sampler");
    SamplerOptions o;
    if (options) {
      const auto given = read_struct(options, "options");
      o.top_k = given.top_k;
      o.temperature = literal(given.temperature, "temperature");
      o.top_p = literal(given.top_p, "top_p");
      o.min_p = literal(given.min_p, "min_p");
      o.presence = literal(given.presence, "presence");
      o.frequency = literal(given.frequency, "frequency");
      o.decay = literal(given.decay, "decay");
      o.seed = given.seed;
      o.sequence = given.sequence;
      if (given.n_bias > 0) require(given.bias_tokens, "bias_tokens"), require(given.bias, "bias");
      if (given.n_bias > 1u << 20) fail(DUET_E_LIMIT, "n_bias is {}; at most {}", given.n_bias, 1u << 20);
      for (uint32_t i = 0; i < given.n_bias; ++i) o.bias.emplace_back(given.bias_tokens[i], literal(given.bias[i], "bias"));
      if (given.tokenizer) o.tokenizer = object(given.tokenizer);
    }
    *out_sampler = new_handle<duet_sampler>(std::make_shared<SamplerObject>(std::move(o)));
  });
}

duet_status duet_sampler_probs(duet_sampler* sampler, const float* logits, uint32_t n, float* out_probs) {
  return guard([&] {
    require(logits, "logits");
    require(out_probs, "out_probs");
    const auto s = object(sampler);
    Exclusive lock(s->busy, "sampler");
    std::vector<float> probs(n);
    s->sampler.probs({logits, n}, probs);
    std::copy(probs.begin(), probs.end(), out_probs);
  });
}

duet_status duet_sampler_pick(duet_sampler* sampler, const float* logits, uint32_t n, int32_t* out_token) {
  return guard([&] {
    require(logits, "logits");
    require(out_token, "out_token");
    const auto s = object(sampler);
    Exclusive lock(s->busy, "sampler");
    *out_token = s->sampler.pick({logits, n});
  });
}

duet_status duet_sampler_accept(duet_sampler* sampler, int32_t token) {
  return guard([&] {
    const auto s = object(sampler);
    if (token < 0) fail(DUET_E_INVALID, "token {} is negative", token);
    Exclusive lock(s->busy, "sampler");
    s->sampler.accept(token);
  });
}

duet_status duet_sampler_reset(duet_sampler* sampler) {
  return guard([&] {
    const auto s = object(sampler);
    Exclusive lock(s->busy, "sampler");
    s->sampler.reset();
  });
}

void duet_sampler_free(duet_sampler* sampler) { free_handle(sampler); }

duet_status duet_generate(duet_session* session, duet_state* state, uint32_t slot, duet_sampler* sampler, const int32_t* prompt, size_t n,
                          const duet_generate_options* options, duet_generate_result* out_result) {
  return guard([&] {
    const auto x = device_object(session);
    const auto s = object(state);
    const auto p = object(sampler);
    if (out_result) (void)read_struct(out_result, "out_result", kFirstResult);  // its size, before any work
    if (n == 0) fail(DUET_E_INVALID, "the prompt is empty; begin a text with token 0");
    require(prompt, "prompt");
    if (n > kMaxTokens) fail(DUET_E_LIMIT, "a prompt of {} tokens; at most {}", n, kMaxTokens);
    Generation g{slot, &p->sampler, {prompt, n}, generate_options(options)};
    s->check_slot(slot);

    Exclusive lock(x->busy, "session"), lock_state(s->busy, "state"), lock_sampler(p->busy, "sampler");
    generate(*x, s, {&g, 1});
    if (out_result && g.result.status != DUET_E_NUMERIC) write_struct(out_result, g.result, "out_result", kFirstResult);
    if (g.result.status != DUET_OK) throw Error(g.result.status, g.failure);
  });
}

duet_status duet_generate_batch(duet_session* session, duet_state* state, const duet_prompts* prompts, duet_generate_result* const* out_results) {
  return guard([&] {
    const auto x = device_object(session);
    const auto s = object(state);
    require(prompts, "prompts");
    const auto given = read_struct(prompts, "prompts");
    if (given.n_seqs > kMaxTokens) fail(DUET_E_LIMIT, "prompts->n_seqs is {}; at most {}", given.n_seqs, kMaxTokens);
    if (given.n_seqs > 0) require(given.tokens, "prompts->tokens"), require(given.lengths, "prompts->lengths"), require(given.samplers, "prompts->samplers");

    std::vector<std::shared_ptr<SamplerObject>> samplers;
    std::vector<Generation> generations;
    std::vector<uint32_t> slots;
    size_t first = 0;
    for (uint32_t i = 0; i < given.n_seqs; ++i) {
      if (out_results && out_results[i]) (void)read_struct(out_results[i], "out_results[i]", kFirstResult);
      const uint32_t n = given.lengths[i], slot = given.slots ? given.slots[i] : i;
      if (n == 0) fail(DUET_E_INVALID, "the prompt of sequence {} is empty; begin a text with token 0", i);
      samplers.push_back(object(given.samplers[i]));
      s->check_slot(slot);
      slots.push_back(slot);
      generations.push_back({slot, &samplers.back()->sampler, {given.tokens + first, n}, generate_options(given.options ? given.options[i] : nullptr)});
      first += n;
      if (first > kMaxTokens) fail(DUET_E_LIMIT, "prompts of more than {} tokens in all; generate fewer at once", kMaxTokens);
    }
    std::sort(slots.begin(), slots.end());
    if (const auto twice = std::adjacent_find(slots.begin(), slots.end()); twice != slots.end())
      fail(DUET_E_INVALID, "slot {} stands twice among the prompts; two sequences cannot advance one state", *twice);
    auto sorted = samplers;
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
      fail(DUET_E_INVALID, "two sequences have the same sampler; each needs one of its own, for its counts");

    Exclusive lock(x->busy, "session"), lock_state(s->busy, "state");
    std::vector<std::unique_ptr<Exclusive>> locks;
    for (const auto& p : samplers) locks.push_back(std::make_unique<Exclusive>(p->busy, "sampler"));
    generate(*x, s, generations);
    for (uint32_t i = 0; out_results && i < given.n_seqs; ++i)
      if (out_results[i]) write_struct(out_results[i], generations[i].result, "out_results[i]", kFirstResult);
    for (uint32_t i = 0; i < given.n_seqs; ++i)
      if (const Generation& g = generations[i]; g.result.status != DUET_OK) throw Error(g.result.status, duet::format("sequence {}: {}", i, g.failure));
  });
}
