#include "cuda/scene.h"

using namespace api;

namespace scene {

bool lacks_gpus(int wanted) {
  if (gpu::count() < wanted) {
    std::cout << "skipped: " << (wanted > 1 ? "needs " + std::to_string(wanted) + " GPUs" : "no GPU") << ", the driver shows " << gpu::count() << "\n";
    return true;
  }
  const auto lib = library(1);
  uint32_t n = 0;
  check(duet_device_count(lib.get(), &n));
  int found = 0;
  for (uint32_t i = 0; i < n; ++i) {
    auto info = DUET_INIT(duet_device_info);
    check(duet_device_get(lib.get(), i, &info));
    found += std::string(info.spec).starts_with("cuda:");
  }
  size_t size = 0;
  check(duet_library_report(lib.get(), nullptr, 0, &size));
  std::string report(size, '\0');
  check(duet_library_report(lib.get(), report.data(), report.size(), &size));
  INFO(report);
  REQUIRE(found >= wanted);
  return false;
}

std::string model_path() {
  const char* named = std::getenv("DUET_TEST_MODEL");
  return named ? named : DUET_SOURCE "/models/stories-7m/stories-7m.pth";
}

Drawn draw(const Session& x, const State& s, uint32_t slot, const std::vector<int32_t>& prompt, uint32_t n) {
  Drawn out;
  auto how = DUET_INIT(duet_sampler_options);
  duet_sampler* made = nullptr;
  const int32_t no_stop = 0;
  auto o = DUET_INIT(duet_generate_options);
  o.max_tokens = n;
  o.stops = &no_stop;  // and none of them
  o.user = &out.tokens;
  o.on_token = [](void* to, int32_t token) -> duet_status { return static_cast<std::vector<int32_t>*>(to)->push_back(token), DUET_OK; };
  if ((out.status = duet_sampler_options_default(&how)) == DUET_OK) {
    how.seed = 17;
    out.status = duet_sampler_create(&how, &made);
  }
  const Sampler sampler(made);
  if (out.status == DUET_OK) out.status = duet_generate(x.get(), s.get(), slot, sampler.get(), prompt.data(), prompt.size(), &o, nullptr);
  if (out.status != DUET_OK) out.failure = duet_last_error();
  return out;
}

Read read(const Session& x, const State& s, const Form& form) {
  Read out;
  auto batch = DUET_INIT(duet_batch);
  std::vector<int32_t> tokens(size_t{form.n_seqs} * form.length);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 37 % 4001);
  const std::vector<uint32_t> lengths(form.n_seqs, form.length);
  batch.n_seqs = form.n_seqs;
  batch.tokens = tokens.data();
  batch.lengths = lengths.data();
  const float* data = nullptr;
  uint32_t rows = 0, width = 0;
  for (uint32_t i = 0; i < form.n_seqs && out.status == DUET_OK; ++i) out.status = duet_state_reset(s.get(), i);
  if (out.status == DUET_OK) out.status = duet_forward(x.get(), s.get(), &batch);
  if (out.status == DUET_OK) out.status = duet_session_outputs(x.get(), DUET_OUTPUT_LOGITS, &data, &rows, &width);
  if (out.status == DUET_OK)
    out.logits.assign(data, data + size_t{rows} * width);
  else
    out.failure = duet_last_error();
  return out;
}

Runner::Runner(const Library& lib, const std::string& device, duet_dtype weights, uint32_t n_slots)
    : model(load(lib, model_path(), device.c_str(), weights)), session(api::session(model, DUET_MODE_AUTO)), state(api::state(model, n_slots)) {}

Drawn Runner::draw() const {
  Drawn out;
  if ((out.status = duet_state_reset(state.get(), 0)) != DUET_OK) {
    out.failure = duet_last_error();
    return out;
  }
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 70; ++i) prompt.push_back(i * i % 3000);  // long enough for every kernel of prompts
  return scene::draw(session, state, 0, prompt, 40);
}

}  // namespace scene
