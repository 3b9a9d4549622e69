// A GPU that fails under the library. A program of its own, with one test: the process cannot use the GPU afterwards.
#include <optional>

#include "cuda/scene.h"

using namespace api;
using namespace scene;

namespace {

// Says which device is lost and what to do.
bool says_lost(const std::string& sentence) { return sentence.find("cuda:0") != sentence.npos && sentence.find("the device is lost to this process: end it and start again") != sentence.npos; }

void check_lost(const char* what, duet_status s) {
  INFO(what << ": " << duet_status_name(s) << ", " << duet_last_error());
  CHECK(s == DUET_E_DEVICE);
  CHECK(says_lost(duet_last_error()));
}

void check_lost(const char* what, const Drawn& d) {
  INFO(what << ": " << d);
  CHECK(d.status == DUET_E_DEVICE);
  CHECK(d.tokens.empty());
  CHECK(says_lost(d.failure));
}

duet_status load_model(const Library& lib, const char* device, Model& out) {
  auto o = DUET_INIT(duet_model_options);
  o.device = device;
  duet_model* m = nullptr;
  const duet_status s = duet_model_load(lib.get(), model_path().c_str(), &o, &m);
  out.reset(m);
  return s;
}

}  // namespace

TEST_CASE("after a fault of the GPU every call on it says so and what to do, and all else goes on") {
  if (lacks_gpus(1)) return;
  std::optional<Library> lib = library(2), second = library(2);
  std::optional<Runner> used(std::in_place, *lib, "cuda:0"), other(std::in_place, *lib, "cuda:0", DUET_I8), host(std::in_place, *lib, "reference");
  std::optional<Runner> of_second(std::in_place, *second, "cuda:0");  // another device object, which has run nothing
  std::optional<Runner> elsewhere;
  if (gpu::count() > 1) elsewhere.emplace(*lib, "cuda:1");
  const Drawn before = used->draw(), on_host = host->draw(), on_other = other->draw(), on_elsewhere = elsewhere ? elsewhere->draw() : Drawn{};
  REQUIRE(before.failure + on_host.failure + on_other.failure + on_elsewhere.failure == "");

  if (const std::string why = gpu::trap(0); !why.empty()) {
    std::cout << "skipped: " << why << "\n";
    return;
  }
  const Drawn first = draw(used->session, used->state, 0, {1, 2, 3}, 4);
  check_lost("the model that was running", first);
  CHECK(draw(used->session, used->state, 0, {1, 2, 3}, 4) == first);
  CHECK(draw(other->session, other->state, 0, {1, 2, 3}, 4) == first);
  check_lost("the same GPU, opened by another library", draw(of_second->session, of_second->state, 0, {1, 2, 3}, 4));

  duet_state* s = nullptr;
  duet_session* x = nullptr;
  Model m;
  size_t size = 0;
  std::string file(1 << 20, '\0');
  double nll = 0;
  const int32_t two[] = {1, 2};
  check_lost("duet_state_create", duet_state_create(used->model.get(), 1, nullptr, &s));
  check_lost("duet_state_reset", duet_state_reset(used->state.get(), 0));
  check_lost("duet_state_save", duet_state_save(used->state.get(), 0, file.data(), file.size(), &size));
  check_lost("duet_state_copy", duet_state_copy(used->state.get(), 0, other->state.get(), 0));
  check_lost("duet_state_copy to the host", duet_state_copy(host->state.get(), 0, used->state.get(), 0));
  check_lost("duet_state_copy from the host", duet_state_copy(used->state.get(), 0, host->state.get(), 0));
  check_lost("duet_session_create", duet_session_create(used->model.get(), nullptr, &x));
  check_lost("duet_score", duet_score(used->session.get(), used->state.get(), 0, two, 2, &nll));
  check_lost("duet_forward", read(used->session, used->state, {1, 1}).status);
  check_lost("duet_model_load", load_model(*lib, "cuda:0", m));
  CHECK(s == nullptr);
  CHECK(x == nullptr);
  CHECK(m == nullptr);

  {
    const auto late = library(1);  // finds the GPU lost
    const duet_status status = load_model(late, "cuda:0", m);
    INFO(duet_status_name(status) << ": " << duet_last_error());
    CHECK((status == DUET_E_DEVICE || status == DUET_E_NOT_FOUND));
    CHECK(says_lost(duet_last_error()));
    const Runner new_host(late, "reference");
    CHECK(new_host.draw() == on_host);
  }
  CHECK(host->draw() == on_host);
  if (elsewhere) {  // another context: NVIDIA promises nothing
    const Drawn now = elsewhere->draw();
    std::cout << "cuda:1 after the fault of cuda:0: " << now << "\n";
    CHECK((now == on_elsewhere || now.status == DUET_E_DEVICE));
  }

  elsewhere.reset(), other.reset(), of_second.reset(), used.reset();  // none of it hangs
  second.reset(), lib.reset();
  CHECK(host->draw() == on_host);
}
