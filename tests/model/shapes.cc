// Models of unusual shape: one layer, three heads, head sizes other than 64, vocabularies of any size.
#include "support/api.h"

using namespace api;

TEST_CASE("every shape runs, and backends and modes agree on it") {
  struct Shape {
    uint32_t n_layer, n_embd, n_vocab, head_size;
  };
  const auto lib = library();
  const std::string path = std::string(DUET_BUILD) + "/shape.safetensors";
  for (const Shape shape : {Shape{1, 48, 300, 16}, Shape{2, 192, 77, 64}, Shape{3, 256, 501, 128}, Shape{1, 64, 1, 32}, Shape{2, 40, 65, 8}}) {
    INFO(shape.n_layer << " layers, width " << shape.n_embd << ", vocabulary " << shape.n_vocab << ", head size " << shape.head_size);
    auto o = DUET_INIT(duet_init_options);
    o.n_layer = shape.n_layer, o.n_embd = shape.n_embd, o.n_vocab = shape.n_vocab, o.head_size = shape.head_size;
    o.overwrite = 1;
    o.seed = 11;
    check(duet_file_init(lib.get(), path.c_str(), &o));
    std::vector<int32_t> tokens;
    for (uint32_t t = 0; t < 37; ++t) tokens.push_back(static_cast<int32_t>(t * 31 % shape.n_vocab));
    std::vector<float> want;
    for (const char* backend : backends())
      for (const duet_mode mode : {DUET_MODE_PARALLEL, DUET_MODE_RECURRENT}) {
        const auto m = load(lib, path, backend);
        CHECK(info(m).n_head == shape.n_embd / shape.head_size);
        const auto got = forward(session(m, mode), state(m), tokens);
        if (want.empty()) want = got;
        CHECK(worst(got, want) < 1e-5);
      }
  }
}
