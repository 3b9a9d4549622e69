#include "support/api.h"

#include <algorithm>
#include <cmath>

namespace api {

void check(duet_status s) {
  INFO(duet_status_name(s) << ": " << duet_last_error());
  REQUIRE(s == DUET_OK);
}

Library library(uint32_t n_threads) {
  auto o = DUET_INIT(duet_library_options);
  o.n_threads = n_threads;
  duet_library* l = nullptr;
  check(duet_library_create(&o, &l));
  return Library(l);
}

Model load(const Library& l, const std::string& path, const char* device, duet_dtype weights) {
  auto o = DUET_INIT(duet_model_options);
  o.device = device;
  o.weights = weights;
  duet_model* m = nullptr;
  check(duet_model_load(l.get(), path.c_str(), &o, &m));
  return Model(m);
}

State state(const Model& m, uint32_t n_slots, duet_dtype wkv) {
  auto o = DUET_INIT(duet_state_options);
  o.wkv = wkv;
  duet_state* s = nullptr;
  check(duet_state_create(m.get(), n_slots, &o, &s));
  return State(s);
}

Session session(const Model& m, duet_mode mode, uint32_t max_tokens) {
  auto o = DUET_INIT(duet_session_options);
  o.mode = mode;
  o.max_tokens = max_tokens;
  duet_session* s = nullptr;
  check(duet_session_create(m.get(), &o, &s));
  return Session(s);
}

duet_model_info info(const Model& m) {
  auto i = DUET_INIT(duet_model_info);
  check(duet_model_get(m.get(), &i));
  return i;
}

Tokenizer tokenizer(const Model& m) {
  duet_tokenizer* t = nullptr;
  check(duet_tokenizer_for_model(m.get(), &t));
  return Tokenizer(t);
}

void Batch::add(const std::vector<int32_t>& t, uint32_t slot) {
  tokens.insert(tokens.end(), t.begin(), t.end());
  lengths.push_back(static_cast<uint32_t>(t.size()));
  slots.push_back(slot);
}

std::vector<float> forward(const Session& x, const State& s, const Batch& b, uint32_t outputs, uint32_t which) {
  auto batch = DUET_INIT(duet_batch);
  batch.n_seqs = static_cast<uint32_t>(b.lengths.size());
  batch.tokens = b.tokens.data();
  batch.lengths = b.lengths.data();
  batch.slots = b.slots.data();
  batch.outputs = outputs;
  check(duet_forward(x.get(), s.get(), &batch));
  const float* data = nullptr;
  uint32_t rows = 0, width = 0;
  check(duet_session_outputs(x.get(), which, &data, &rows, &width));
  return {data, data + size_t{rows} * width};
}

std::vector<float> forward(const Session& x, const State& s, const std::vector<int32_t>& tokens, uint32_t slot) {
  Batch b;
  b.add(tokens, slot);
  return forward(x, s, b);
}

std::vector<float> try_forward(duet_session* x, duet_state* s, const std::vector<int32_t>& tokens) {
  const auto length = static_cast<uint32_t>(tokens.size());
  auto b = DUET_INIT(duet_batch);
  b.n_seqs = 1;
  b.tokens = tokens.data();
  b.lengths = &length;
  b.outputs = DUET_OUT_ALL_LOGITS;
  const float* data = nullptr;
  uint32_t rows = 0, width = 0;
  if (duet_forward(x, s, &b) != DUET_OK || duet_session_outputs(x, DUET_OUTPUT_LOGITS, &data, &rows, &width) != DUET_OK) return {};
  return {data, data + size_t{rows} * width};
}

std::vector<float> try_forward(const Model& m, duet_mode mode, const std::vector<int32_t>& tokens) {
  duet_session* x = nullptr;
  duet_state* s = nullptr;
  auto o = DUET_INIT(duet_session_options);
  o.mode = mode;
  const bool made = duet_session_create(m.get(), &o, &x) == DUET_OK && duet_state_create(m.get(), 1, nullptr, &s) == DUET_OK;
  const Session session(x);
  const State state(s);
  return made ? try_forward(x, s, tokens) : std::vector<float>();
}

Arrays arrays(const Model& m, const State& s, uint32_t slot) {
  const auto i = info(m);
  const size_t c = size_t{i.n_layer} * i.n_embd;
  Arrays a{std::vector<float>(c), std::vector<float>(c * i.head_size), std::vector<float>(c)};
  check(duet_state_get(s.get(), slot, a.att_x.data(), a.wkv.data(), a.ffn_x.data()));
  return a;
}

double worst(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double w = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(a[i] == a[i])) return 1e30;  // NaN
    w = std::max(w, std::abs(double{a[i]} - b[i]));
  }
  return w;
}

}  // namespace api
