// Every logit and state of the golden data, in both modes, on every backend, whole and in pieces.
#include "support/api.h"
#include "support/golden.h"

using namespace api;

namespace {

constexpr double kTolerance = 1e-4;

std::vector<int32_t> tokens_of(const golden::Tensors& g, const std::string& s) { return g.at(s + ".tokens").i32; }

// Feeds tokens in pieces of `chunk` (0: whole) and returns all logits
std::vector<float> feed(const Session& x, const State& s, const std::vector<int32_t>& tokens, size_t chunk) {
  std::vector<float> all;
  for (size_t at = 0; at < tokens.size();) {
    const size_t n = std::min(chunk ? chunk : tokens.size(), tokens.size() - at);
    const auto part = forward(x, s, std::vector<int32_t>(tokens.begin() + static_cast<ptrdiff_t>(at), tokens.begin() + static_cast<ptrdiff_t>(at + n)));
    all.insert(all.end(), part.begin(), part.end());
    at += n;
  }
  return all;
}

void check_sequence(const golden::Tensors& g, const std::string& s, const std::vector<float>& logits, size_t V, const Arrays& state) {
  const auto& rows = g.at(s + ".rows").i32;
  const auto& want = g.at(s + ".logits").f32;
  std::vector<float> got;
  for (int32_t r : rows) got.insert(got.end(), logits.begin() + static_cast<ptrdiff_t>(r * V), logits.begin() + static_cast<ptrdiff_t>((r + 1) * V));
  CHECK(worst(got, want) <= kTolerance);
  if (!g.count(s + ".state.wkv")) return;
  CHECK(worst(state.att_x, g.at(s + ".state.att_x").f32) <= kTolerance);
  CHECK(worst(state.wkv, g.at(s + ".state.wkv").f32) <= kTolerance);
  CHECK(worst(state.ffn_x, g.at(s + ".state.ffn_x").f32) <= kTolerance);
}

double mean_loss(const std::vector<int32_t>& tokens, const std::vector<float>& logits, size_t V) {
  double sum = 0;
  for (size_t t = 0; t + 1 < tokens.size(); ++t) {
    const float* l = logits.data() + t * V;
    double top = l[0], z = 0;
    for (size_t i = 0; i < V; ++i) top = std::max<double>(top, l[i]);
    for (size_t i = 0; i < V; ++i) z += std::exp(l[i] - top);
    sum += top + std::log(z) - l[tokens[t + 1]];
  }
  return sum / static_cast<double>(tokens.size() - 1);
}

struct Case {
  std::string checkpoint, golden;
  bool quick;  // the reference is slow: one chunking only
};

void check_model(const Case& c, const char* backend) {
  const auto lib = library();
  const auto m = load(lib, golden::path(c.checkpoint), backend, DUET_F32);
  const auto g = golden::load(c.golden + ".safetensors");
  const auto json = golden::load_json(c.golden + ".json");
  const size_t V = info(m).n_vocab;
  for (const duet_mode mode : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT})
    for (const size_t chunk : c.quick ? std::vector<size_t>{0} : std::vector<size_t>{0, 1, 7, 64})
      for (const auto& [name, loss] : json["losses"].items()) {
        INFO(c.checkpoint << " on " << backend << ", mode " << mode << ", chunk " << chunk << ", " << name);
        const auto tokens = tokens_of(g, name);
        const auto x = session(m, mode);
        const auto s = state(m);
        const auto logits = feed(x, s, tokens, chunk);
        check_sequence(g, name, logits, V, arrays(m, s));
        if (!loss.is_null()) CHECK(mean_loss(tokens, logits, V) == Approx(loss.get<double>()).margin(1e-5));
      }
}

}  // namespace

TEST_CASE("golden tiny") {
  for (const char* b : backends()) check_model({"tiny.pth", "tiny_golden", false}, b);
}

TEST_CASE("golden tinyf32: weights are not rounded to bf16") {
  for (const char* b : backends()) check_model({"tinyf32_f32.safetensors", "tinyf32_golden", false}, b);
}

TEST_CASE("golden small: ranks that follow no formula") {
  for (const char* b : backends()) check_model({"small_bf16.safetensors", "small_golden", std::string(b) == "reference"}, b);
}

TEST_CASE("golden tiny: one state through two texts, and from one mode into the other") {
  const auto g = golden::load("tiny_golden.safetensors");
  for (const char* backend : backends())
    for (const duet_mode first : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT})
      for (const duet_mode then : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT}) {
        INFO(backend << ", modes " << first << " and " << then);
        const auto lib = library();
        const auto m = load(lib, golden::path("tiny.pth"), backend, DUET_F32);
        const auto s = state(m);
        (void)forward(session(m, first), s, tokens_of(g, "t64"));
        const auto logits = forward(session(m, then), s, tokens_of(g, "t17"));
        check_sequence(g, "t64_then_t17", logits, info(m).n_vocab, arrays(m, s));
      }
}

TEST_CASE("golden tiny: all containers give the same bits") {
  const auto g = golden::load("tiny_golden.safetensors");
  const auto lib = library();
  const auto run = [&](const std::string& path) {
    const auto m = load(lib, path, "reference", DUET_F32);
    const auto s = state(m);
    return forward(session(m, DUET_MODE_PARALLEL), s, tokens_of(g, "t17"));
  };
  const std::string f32 = std::string(DUET_BUILD) + "/tiny_f32.safetensors", bf16 = std::string(DUET_BUILD) + "/tiny_bf16.safetensors";
  auto o = DUET_INIT(duet_convert_options);
  o.overwrite = 1;
  o.weights = DUET_F32;
  check(duet_file_convert(lib.get(), golden::path("tiny.pth").c_str(), f32.c_str(), &o));
  o.weights = DUET_BF16;
  check(duet_file_convert(lib.get(), golden::path("tiny_views.pth").c_str(), bf16.c_str(), &o));
  const auto want = run(golden::path("tiny.pth"));
  for (const std::string& path : {golden::path("tiny_views.pth"), golden::path("tiny_fla"), golden::path("tiny_fla/config.json"), f32, bf16}) {
    INFO(path);
    CHECK(run(path) == want);
  }
}

TEST_CASE("bf16 weights: mean KL against f32 stays small, on every backend alike") {
  const auto g = golden::load("tiny_golden.safetensors");
  const auto tokens = tokens_of(g, "t64");
  const auto lib = library();
  const auto log_softmax = [](const float* l, size_t V) {
    double top = l[0], z = 0;
    for (size_t i = 0; i < V; ++i) top = std::max<double>(top, l[i]);
    for (size_t i = 0; i < V; ++i) z += std::exp(l[i] - top);
    std::vector<double> out(V);
    for (size_t i = 0; i < V; ++i) out[i] = l[i] - top - std::log(z);
    return out;
  };
  const auto exact_model = load(lib, golden::path("tiny.pth"), "reference", DUET_F32);
  const auto exact = forward(session(exact_model, DUET_MODE_PARALLEL), state(exact_model), tokens);
  const size_t V = info(exact_model).n_vocab;
  for (const char* backend : backends())
    for (const duet_dtype weights : {DUET_BF16, DUET_F16})
      for (const duet_mode mode : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT}) {
        INFO(backend << ", dtype " << weights << ", mode " << mode);
        const auto m = load(lib, golden::path("tiny.pth"), backend, weights);
        const auto got = forward(session(m, mode), state(m), tokens);
        double kl = 0;
        for (size_t t = 0; t < tokens.size(); ++t) {
          const auto p = log_softmax(exact.data() + t * V, V), q = log_softmax(got.data() + t * V, V);
          for (size_t i = 0; i < V; ++i) kl += std::exp(p[i]) * (p[i] - q[i]) / static_cast<double>(tokens.size());
        }
        CHECK(kl < 1e-3);
        if (weights == DUET_BF16) CHECK(got != exact);  // the inputs of products are rounded: this is not f32 in disguise
      }
}
