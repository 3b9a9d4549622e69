// Saving: official names, forms and order; dtypes kept or converted; all or nothing.
#include "model_file.h"

using namespace duet;

TEST_CASE("a saved model has official names, forms and order, and its values") {
  const Folder folder;
  ModelFile file = ModelFile::fresh(2, 32, 20, 16);
  file.convert("blocks.0.ln1.weight", DUET_BF16);
  file.add("blocks.0.att.v0", {32});
  file.add("blocks.1.att.time_state", {2, 16, 16});
  file.set("blocks.1.att.time_state", 17, 3.5f);
  Messages m;
  const auto source = file.open(m.log);
  save_weights(*source, folder.file("out"), false, DUET_F16, {{"note", "x"}}, nullptr, nullptr);
  const Checkpoint saved = Checkpoint::open(folder.file("out"), m.log);
  CHECK(saved.metadata().at("note") == "x");
  CHECK(saved.metadata().count(kGroupNormEps) == 0);
  CHECK(saved.tensors().front().name == "emb.weight");
  CHECK(saved.tensors()[1].name == "blocks.0.ln0.weight");
  CHECK(saved.tensors().back().name == "head.weight");
  CHECK(saved.find("blocks.0.att.v0") == nullptr);
  for (const char* mixed : {"att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g", "att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a", "ffn.x_k"})
    CHECK(saved.find(std::string("blocks.1.") + mixed)->shape == std::vector<uint64_t>{1, 1, 32});
  CHECK(saved.find("blocks.1.ln1.bias")->shape == std::vector<uint64_t>{32});
  CHECK(saved.find("blocks.1.att.r_k")->shape == std::vector<uint64_t>{2, 16});
  CHECK(saved.find("blocks.1.att.r_k")->dtype == DType::f32);
  CHECK(saved.find("blocks.1.att.w1")->dtype == DType::f16);
  CHECK(saved.find("head.weight")->dtype == DType::f16);
  CHECK(saved.find("blocks.0.ln1.weight")->dtype == DType::bf16);
  CHECK(saved.tensors().size() == file.tensors.size() - 1);  // without v0
  const auto again = open_weights(folder.file("out"), m.log, {true, true});
  CHECK(again->fingerprint() == source->fingerprint());
  CHECK(again->time_state(1) == source->time_state(1));
  CHECK(again->time_state(0).empty());
  for (uint32_t layer = 0; layer <= 2; ++layer) {
    const HostLayer a = source->layer(layer, DUET_F16), b = again->layer(layer, DUET_F16);
    REQUIRE(a.storage.size() == b.storage.size());
    for (size_t i = 0; i < a.storage.size(); ++i) CHECK(std::memcmp(a.storage[i].data, b.storage[i].data, a.storage[i].bytes) == 0);
  }
  CHECK(m.all.empty());
}

TEST_CASE("without a dtype every tensor keeps its own") {
  const Folder folder;
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  file.convert("blocks.0.att.key.weight", DUET_F16);
  file.convert("head.weight", DUET_BF16);
  Messages m;
  save_weights(*file.open(m.log), folder.file("out"), false, 0, {}, nullptr, nullptr);
  const Checkpoint saved = Checkpoint::open(folder.file("out"), m.log);
  for (const Tensor& t : saved.tensors()) {
    CHECK(t.dtype == file[t.name].dtype);
    CHECK(as_text(t.data) == file[t.name].data);
  }
}

TEST_CASE("an epsilon of the group norm that is not the official one is kept") {
  const Folder folder;
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  file.metadata[kGroupNormEps] = "0.00016";
  Messages m;
  CHECK(file.open(m.log)->shape().gn_eps == 0.00016f);
  save_weights(*file.open(m.log), folder.file("out"), false, 0, {}, nullptr, nullptr);
  CHECK(open_weights(folder.file("out"), m.log, {})->shape().gn_eps == 0.00016f);
  for (const char* bad : {"", "x", "-1", "0", "nan", "inf", "2"}) {
    std::string text;
    file.metadata[kGroupNormEps] = bad;
    CHECK(error_of([&] { (void)file.open(m.log); }, text) == DUET_E_FORMAT);
  }
}

TEST_CASE("progress counts bytes, a result other than 0 stops and leaves nothing") {
  const Folder folder;
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  Messages m;
  const auto source = file.open(m.log);
  struct Calls {
    uint64_t n = 0, stop_at = UINT64_MAX, done = 0, total = 0;
  };
  const duet_progress_fn count = [](void* user, uint64_t done, uint64_t total) -> duet_status {
    auto* c = static_cast<Calls*>(user);
    CHECK(done > c->done);
    c->done = done;
    c->total = total;
    return c->n++ == c->stop_at ? DUET_E_CANCELLED : DUET_OK;
  };
  Calls all;
  save_weights(*source, folder.file("out"), false, 0, {}, count, &all);
  CHECK(all.done == all.total);
  CHECK(all.n == file.tensors.size());
  std::filesystem::remove(folder.file("out"));
  for (uint64_t i = 0; i < all.n; ++i) {
    Calls some;
    some.stop_at = i;
    std::string text;
    CHECK(error_of([&] { save_weights(*source, folder.file("out"), false, 0, {}, count, &some); }, text) == DUET_E_CANCELLED);
    CHECK(folder.n_files() == 0);
  }
}

TEST_CASE("existing outputs and impossible dtypes") {
  const Folder folder;
  ModelFile file = ModelFile::fresh(1, 32, 20, 16);
  Messages m;
  const auto source = file.open(m.log);
  std::string text;
  CHECK(error_of([&] { save_weights(*source, folder.file("out"), false, 99, {}, nullptr, nullptr); }, text) == DUET_E_UNSUPPORTED);
  save_weights(*source, folder.file("out"), false, 0, {}, nullptr, nullptr);
  CHECK(error_of([&] { save_weights(*source, folder.file("out"), false, 0, {}, nullptr, nullptr); }, text) == DUET_E_EXISTS);
  CHECK_NOTHROW(save_weights(*source, folder.file("out"), true, 0, {}, nullptr, nullptr));
  CHECK(folder.n_files() == 1);
}
