#include "apps/command.h"
#include "support/catch.h"
#include "support/golden.h"

using namespace command;

namespace {

// log softmax(row), in nats
std::vector<double> log_softmax(const float* row, size_t n) {
  double largest = -1e300, sum = 0;
  for (size_t i = 0; i < n; ++i) largest = std::max(largest, double{row[i]});
  for (size_t i = 0; i < n; ++i) sum += std::exp(row[i] - largest);
  std::vector<double> out;
  for (size_t i = 0; i < n; ++i) out.push_back(row[i] - largest - std::log(sum));
  return out;
}

std::vector<int> tokens_of(const std::string& document, size_t max_tokens) {
  Setting s;
  s.in = document;
  auto tokens = nlohmann::json::parse(good({"tokenize", "--vocab", bundled_vocab()}, s).out).get<std::vector<int>>();
  tokens.insert(tokens.begin(), 0);
  tokens.resize(std::min(tokens.size(), max_tokens));
  return tokens;
}

std::string heldout(int documents) {
  const std::string text = golden::slurp(std::string(DUET_SOURCE) + "/models/stories-7m/heldout.txt");
  size_t end = 0;
  for (int document = 0; document < documents; ++document) end = text.find("\n<|endoftext|>\n", end) + 1;
  return text.substr(0, end);
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
    const std::vector<int> tokens = tokens_of(document, kMaxTokens);
    good({"logits", "--dtype", "f32", "--tokens", nlohmann::json(tokens).dump(), "--output", folder / "logits"});
    const auto logits = golden::parse(golden::slurp(folder / "logits")).at("logits");
    for (size_t t = 0; t + 1 < tokens.size(); ++t) total -= log_softmax(logits.f32.data() + t * logits.shape[1], logits.shape[1])[static_cast<size_t>(tokens[t + 1])];
    predicted += tokens.size() - 1;
    Setting s;
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
  write(folder / "text", heldout(2));
  const auto score = json({"eval", "--text", folder / "text", "--max-tokens", "96", "--json"});
  CHECK(score.at("documents") == 2);
  CHECK(score.at("loss").get<double>() < 4);  // 2.9 over all of it; an untrained model has 8.3
  const Result human = good({"eval", "--text", folder / "text", "--max-tokens", "16"});
  for (const char* part : {"loss", "bits per byte", "perplexity", "tok/s"}) CHECK(human.out.find(part) != human.out.npos);
}

TEST_CASE("eval compares with another model") {
  const Folder folder;
  write(folder / "text", heldout(2));
  constexpr size_t kMaxTokens = 70;  // more than are read at once
  const std::string text = golden::slurp(folder / "text"), mark = "\n<|endoftext|>\n";
  const size_t middle = text.find(mark);
  double loss = 0, reference_loss = 0, kl = 0, kl_max = 0, agree = 0, positions = 0;
  for (std::string document : {text.substr(0, middle), text.substr(middle + mark.size())}) {
    document.erase(0, document.find_first_not_of(" \n"));
    const std::vector<int> tokens = tokens_of(document, kMaxTokens);
    REQUIRE(tokens.size() == kMaxTokens);
    golden::Tensor rows[2];
    for (int i = 0; i < 2; ++i) {
      good({"logits", "--backend", "reference", "--dtype", i == 0 ? "f32" : "q4", "--tokens", nlohmann::json(tokens).dump(), "--output", folder / "logits"});
      rows[i] = golden::parse(golden::slurp(folder / "logits")).at("logits");
    }
    const size_t n = rows[0].shape[1];
    for (size_t t = 0; t + 1 < tokens.size(); ++t) {
      const auto p = log_softmax(rows[0].f32.data() + t * n, n), q = log_softmax(rows[1].f32.data() + t * n, n);
      double sum = 0;
      for (size_t i = 0; i < n; ++i) sum += std::exp(p[i]) * (p[i] - q[i]);
      kl += sum;
      kl_max = std::max(kl_max, sum);
      agree += std::max_element(p.begin(), p.end()) - p.begin() == std::max_element(q.begin(), q.end()) - q.begin();
      reference_loss -= p[static_cast<size_t>(tokens[t + 1])];
      loss -= q[static_cast<size_t>(tokens[t + 1])];
      positions += 1;
    }
  }
  const Words common = {"eval", "--text", folder / "text", "--max-tokens", std::to_string(kMaxTokens), "--backend", "reference", "--compare-to", bundled_model()};
  const auto with = [&](Words words) {
    words.insert(words.begin(), common.begin(), common.end());
    return words;
  };
  const auto score = json(with({"--dtype", "q4", "--compare-dtype", "f32", "--json"})), reference = score.at("reference");
  CHECK(score.at("predicted_tokens") == positions);
  CHECK(score.at("loss").get<double>() == Approx(loss / positions).margin(1e-5));
  CHECK(reference.at("loss").get<double>() == Approx(reference_loss / positions).margin(1e-5));
  CHECK(reference.at("kl").get<double>() == Approx(kl / positions).epsilon(1e-3));
  CHECK(reference.at("kl_max").get<double>() == Approx(kl_max).epsilon(1e-3));
  CHECK(reference.at("agreement").get<double>() == Approx(agree / positions).margin(1e-9));
  CHECK((agree < positions && kl > 0));
  const auto same = json({"eval", "--text", folder / "text", "--max-tokens", "40", "--compare-to", bundled_model(), "--compare-backend", "reference", "--backend", "reference", "--json"});
  CHECK(same.at("reference").at("kl") == 0);
  CHECK(same.at("reference").at("agreement") == 1);
  CHECK(same.at("reference").at("loss") == same.at("loss"));
  const Result human = good({"eval", "--text", folder / "text", "--max-tokens", "16", "--compare-to", bundled_model()});
  for (const char* part : {"reference", "KL", "agreement"}) CHECK(human.out.find(part) != human.out.npos);
}

TEST_CASE("eval refuses a reference that does not fit") {
  const Folder folder;
  write(folder / "text", heldout(1));
  const Words eval = {"eval", "--text", folder / "text"};
  const auto with = [&](Words words) {
    words.insert(words.begin(), eval.begin(), eval.end());
    return run(words);
  };
  CHECK(with({"--compare-dtype", "f32"}).code == 2);
  CHECK(with({"--compare-backend", "cpu"}).code == 2);
  CHECK(with({"--compare-to", ""}).code == 2);
  const std::string small = small_model(folder);
  for (const std::string& other : {small, folder / "missing"}) {
    const Result r = with({"--compare-to", other});
    CHECK(r.code == 1);
    CHECK(r.error.find(other) != r.error.npos);
  }
  CHECK(with({"--compare-to", small}).error.find("vocabulary of 300") != std::string::npos);
}

TEST_CASE("a loss that is no number is an error that names the model and the way out") {
  const Folder folder;
  write(folder / "text", heldout(2));
  const std::string model = folder / "model";
  good({"convert", bundled_model(), model, "--dtype", "f32"});
  spoil(model, "head.weight");
  const auto refused = [&](const Words& words) {
    const Result r = run(words);
    INFO(Catch::Detail::stringify(words) << r.error);
    CHECK(r.code == 1);
    CHECK(r.error.find("'duet info --verify " + model + "'") != r.error.npos);
    CHECK(r.out.empty());
  };
  const Words eval = {"eval", "--text", folder / "text", "--max-tokens", "16", "--vocab", bundled_vocab()};
  const auto with = [](Words words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  refused(with(eval, {"--model", model}));
  refused(with(eval, {"--model", model, "--json"}));
  refused(with(eval, {"--compare-to", model}));
  refused({"generate", "--model", model, "--vocab", bundled_vocab(), "--prompt", "a"});
  CHECK(run({"info", model, "--verify"}).error.find("head.weight") != std::string::npos);
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
