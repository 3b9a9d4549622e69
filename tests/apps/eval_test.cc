#include "apps/command.h"
#include "support/catch.h"
#include "support/golden.h"

using namespace command;

namespace {

// -log softmax(row)[token], in nats
double nll(const float* row, size_t n, int token) {
  double largest = -1e300, sum = 0;
  for (size_t i = 0; i < n; ++i) largest = std::max(largest, double{row[i]});
  for (size_t i = 0; i < n; ++i) sum += std::exp(row[i] - largest);
  return largest + std::log(sum) - row[token];
}

}  // namespace

TEST_CASE("eval scores each document from a fresh state, trimmed and cut") {
  const Folder folder;
  const Words documents = {"The fox ran into the wood.", "A king had three daughters, and the youngest was kind.\n\nShe sang."};
  write(folder / "text", "<|endoftext|>\n\n  " + documents[0] + "\n<|endoftext|>\n \n<|endoftext|>\n" + documents[1] + " \n\n");
  constexpr size_t kMaxTokens = 12;
  double total = 0;
  size_t predicted = 0, bytes = 0;
  for (const std::string& document : documents) {
    Setting s;
    s.in = document;
    auto tokens = nlohmann::json::parse(good({"tokenize", "--vocab", bundled_vocab()}, s).out).get<std::vector<int>>();
    tokens.insert(tokens.begin(), 0);
    tokens.resize(std::min(tokens.size(), kMaxTokens));
    good({"logits", "--dtype", "f32", "--tokens", nlohmann::json(tokens).dump(), "--output", folder / "logits"});
    const auto logits = golden::parse(golden::slurp(folder / "logits")).at("logits");
    for (size_t t = 0; t + 1 < tokens.size(); ++t) total += nll(logits.f32.data() + t * logits.shape[1], logits.shape[1], tokens[t + 1]);
    predicted += tokens.size() - 1;
    s.in = nlohmann::json(std::vector<int>(tokens.begin() + 1, tokens.end())).dump();
    bytes += good({"tokenize", "--vocab", bundled_vocab(), "--decode"}, s).out.size();
  }
  for (const char* mode : {"parallel", "recurrent"}) {
    const auto score = json({"eval", "--text", folder / "text", "--dtype", "f32", "--mode", mode, "--max-tokens", std::to_string(kMaxTokens), "--json"});
    CHECK(score.at("documents") == 2);
    CHECK(score.at("predicted_tokens") == predicted);
    CHECK(score.at("bytes") == bytes);
    const double loss = total / static_cast<double>(predicted);
    CHECK(score.at("loss").get<double>() == Approx(loss).margin(1e-5));
    CHECK(score.at("bits_per_byte").get<double>() == Approx(total / std::log(2.0) / static_cast<double>(bytes)).margin(1e-5));
    CHECK(score.at("perplexity").get<double>() == Approx(std::exp(loss)).epsilon(1e-4));
    CHECK(score.at("tokens_per_second").get<double>() > 0);
  }
}

TEST_CASE("eval of the held-out text is as good as the model") {
  const Folder folder;
  const std::string heldout = golden::slurp(std::string(DUET_SOURCE) + "/models/stories-7m/heldout.txt");
  size_t end = 0;
  for (int document = 0; document < 2; ++document) end = heldout.find("\n<|endoftext|>\n", end) + 1;
  write(folder / "text", heldout.substr(0, end));
  const auto score = json({"eval", "--text", folder / "text", "--max-tokens", "96", "--json"});
  CHECK(score.at("documents") == 2);
  CHECK(score.at("loss").get<double>() < 4);  // 2.9 over all of it; an untrained model has 8.3
  const Result human = good({"eval", "--text", folder / "text", "--max-tokens", "16"});
  for (const char* part : {"loss", "bits per byte", "perplexity", "tok/s"}) CHECK(human.out.find(part) != human.out.npos);
}

TEST_CASE("eval refuses a text without documents") {
  const Folder folder;
  write(folder / "empty", "\n <|endoftext|>\n\n");
  for (const std::string& path : {folder / "empty", folder / "missing"}) {
    const Result r = run({"eval", "--text", path});
    CHECK(r.code == 1);
    CHECK(r.error.find(path) != r.error.npos);
  }
}
