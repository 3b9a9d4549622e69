// duet.h sections 7 and 8: tokenizer, sampler.
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
