#include "compare.h"

#include <algorithm>
#include <cmath>

namespace duet {
namespace {

constexpr size_t kRows = 64;  // tokens at once

struct Rows {
  const float* data = nullptr;
  uint32_t n = 0, width = 0;
};

Rows read(const Reader& reader, const int32_t* tokens, uint32_t n) {
  auto batch = DUET_INIT(duet_batch);
  batch.n_seqs = 1;
  batch.tokens = tokens;
  batch.lengths = &n;
  batch.outputs = DUET_OUT_ALL_LOGITS;
  check(duet_forward(reader.session.get(), reader.state.get(), &batch));
  Rows rows;
  check(duet_session_outputs(reader.session.get(), DUET_OUTPUT_LOGITS, &rows.data, &rows.n, &rows.width));
  return rows;
}

// log of the sum of e^x
double log_sum(const float* x, uint32_t n) {
  const double largest = *std::max_element(x, x + n);
  double sum = 0;
  for (uint32_t i = 0; i < n; ++i) sum += std::exp(x[i] - largest);
  return largest + std::log(sum);
}

// sum of p (log p - log q), p the reference's probabilities
double divergence(const float* reference, double reference_log_sum, const float* model, double model_log_sum, uint32_t n) {
  double sum = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const double log_p = reference[i] - reference_log_sum, log_q = model[i] - model_log_sum;
    sum += std::exp(log_p) * (log_p - log_q);
  }
  return std::max(sum, 0.0);  // below zero by rounding only
}

}  // namespace

Reader::Reader(duet_model* model, const StateOptions& state_options, duet_mode mode) {
  auto options = DUET_INIT(duet_session_options);
  options.mode = mode;
  session = make<Session>(duet_session_create, model, &options);
  state = state_options.create(model);
}

void compare(const Reader& model, const Reader& reference, const std::vector<int32_t>& tokens, Comparison& sum) {
  for (const Reader* reader : {&model, &reference}) check(duet_state_reset(reader->state.get(), 0));
  for (size_t at = 0; at + 1 < tokens.size(); at += kRows) {
    const auto n = static_cast<uint32_t>(std::min(kRows, tokens.size() - 1 - at));
    const Rows m = read(model, tokens.data() + at, n), r = read(reference, tokens.data() + at, n);
    for (uint32_t i = 0; i < n; ++i) {
      const float *x = m.data + size_t{i} * m.width, *y = r.data + size_t{i} * r.width;
      const double x_sum = log_sum(x, m.width), y_sum = log_sum(y, r.width), kl = divergence(y, y_sum, x, x_sum, m.width);
      const int32_t next = tokens[at + i + 1];
      sum.nll += x_sum - x[next];
      sum.reference_nll += y_sum - y[next];
      sum.kl += kl;
      sum.kl_max = std::max(sum.kl_max, kl);
      sum.agree += std::max_element(x, x + m.width) - x == std::max_element(y, y + r.width) - y;
      sum.positions += 1;
    }
    check_interrupted();
  }
}

}  // namespace duet
