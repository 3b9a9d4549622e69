// A GPU whose memory runs out: who asked is told what was needed and what is free, and all others go on.
#include <optional>
#include <regex>

#include "cuda/scene.h"

using namespace api;
using namespace scene;

namespace {

constexpr uint64_t kMiB = 1 << 20;

// "... needs 5 bytes, and 3 of 8 bytes are free"
struct Shortage {
  uint64_t needed, free;
};
Shortage shortage(const std::string& sentence) {
  INFO(sentence);
  std::smatch m;
  REQUIRE(std::regex_search(sentence, m, std::regex("^cuda:0: out of memory: .+ needs ([0-9]+) bytes, and ([0-9]+) of [0-9]+ bytes are free$")));
  return {std::stoull(m[1]), std::stoull(m[2])};
}

// Another program that takes the memory while a model is being loaded.
struct Rival {
  std::optional<gpu::Filler> filler;
  static duet_status progress(void* self, uint64_t done, uint64_t total) {
    auto& filler = static_cast<Rival*>(self)->filler;
    if (!filler && done > total / 3) filler.emplace(0, 2 * kMiB);
    return DUET_OK;
  }
};

duet_status load_large(const Library& lib, Model& out, Rival* rival = nullptr) {
  auto random = DUET_INIT(duet_random_options);
  random.shape = "0.1b";
  random.seed = 3;
  auto o = DUET_INIT(duet_model_options);
  o.device = "cuda:0";
  o.progress = rival ? Rival::progress : nullptr;
  o.progress_user = rival;
  duet_model* m = nullptr;
  const duet_status s = duet_model_random(lib.get(), &random, &o, &m);
  out.reset(m);
  return s;
}

}  // namespace

TEST_CASE("a state larger than the GPU is refused with what it needs and what is free, and the model goes on") {
  if (lacks_gpus(1)) return;
  const auto lib = library();
  const Runner runner(lib, "cuda:0");
  const Drawn before = runner.draw();
  REQUIRE(before.failure == "");
  REQUIRE(before.tokens.size() == 40);
  constexpr uint32_t kSlots = 1 << 20;
  duet_state* s = nullptr;
  for (int i = 0; i < 3; ++i) {
    CHECK(duet_state_create(runner.model.get(), kSlots, nullptr, &s) == DUET_E_MEMORY);
    const std::string sentence = duet_last_error();
    INFO(sentence);
    std::smatch m;
    REQUIRE(std::regex_search(sentence, m, std::regex("^a state of 1048576 slots needs ([0-9]+) bytes of memory on cuda:0, but ([0-9]+) are free; ")));
    const uint64_t needed = std::stoull(m[1]), free = std::stoull(m[2]), room = gpu::room(0).free;
    CHECK(needed == info(runner.model).state_bytes * kSlots);
    CHECK(free < needed);
    CHECK(std::max(free, room) - std::min(free, room) < 64 * kMiB);
    CHECK(s == nullptr);
    CHECK(runner.draw() == before);
  }
}

TEST_CASE("a model that does not fit leaves nothing behind, and loads once there is room") {
  if (lacks_gpus(1)) return;
  const auto lib = library();
  const Runner runner(lib, "cuda:0");
  const Drawn before = runner.draw();
  REQUIRE(before.failure == "");
  Library late;
  const Library* const both[] = {&lib, &late};
  Model large;
  {
    const gpu::Filler filler(0, 64 * kMiB);
    late = library();
    for (const Library* l : both) {
      CHECK(load_large(*l, large) == DUET_E_MEMORY);  // before its first layer
      const std::string sentence = duet_last_error();
      INFO(sentence);
      std::smatch m;
      REQUIRE(std::regex_search(sentence, m, std::regex("the weights need ([0-9]+) bytes of memory on cuda:0, but ([0-9]+) are free")));
      CHECK(std::stoull(m[1]) > 300'000'000);
      CHECK(std::stoull(m[2]) <= 66 * kMiB);
      CHECK(runner.draw() == before);
    }
  }
  const uint64_t free = gpu::room(0).free;
  {
    Rival rival;
    CHECK(load_large(lib, large, &rival) == DUET_E_MEMORY);  // when some of its layers are there
    const Shortage said = shortage(duet_last_error());
    CHECK(said.free < said.needed + 2 * kMiB);  // the driver gives whole pages
    CHECK(runner.draw() == before);
  }
  CHECK(gpu::room(0).free + 4 * kMiB >= free);
  for (const Library* l : both) {
    check(load_large(*l, large));
    const Drawn drawn = draw(session(large, DUET_MODE_AUTO), state(large), 0, {1, 2, 3}, 4);
    CHECK(drawn.failure == "");
    CHECK(drawn.tokens.size() == 4);
    CHECK(runner.draw() == before);
  }
}

TEST_CASE("memory that runs out anywhere in a pass, recorded or not, costs that pass alone") {
  if (lacks_gpus(1)) return;
  const auto lib = library();
  const Runner runner(lib, "cuda:0", 0, 192);
  const Drawn before = runner.draw();
  REQUIRE(before.failure == "");
  const Form forms[] = {{1, 2000}, {192, 1}};  // a prompt, and recorded steps of many
  for (const Form& form : forms) {
    const Read want = read(session(runner.model, DUET_MODE_AUTO), runner.state, form);
    REQUIRE(want.failure == "");
    int failed = 0, done = 0;
    for (const uint64_t left : {0, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512}) {
      INFO(form.n_seqs << " sequences of " << form.length << ", " << left << " MiB left");
      const auto x = session(runner.model, DUET_MODE_AUTO);
      {
        const gpu::Filler filler(0, left * kMiB);
        const Read got = read(x, runner.state, form);
        INFO(got.failure);
        if (got.status == DUET_OK) {
          ++done;
          CHECK(got == want);
        } else {
          ++failed;
          CHECK(got.status == DUET_E_MEMORY);
          CHECK(std::regex_search(got.failure, std::regex("^cuda:0: .*[0-9]+ of [0-9]+ bytes are free$")));
        }
        CHECK(runner.draw() == before);
      }
      CHECK(read(x, runner.state, form) == want);  // the session has kept nothing half-made
    }
    CHECK(failed > 0);
    CHECK(done > 0);
  }
}
