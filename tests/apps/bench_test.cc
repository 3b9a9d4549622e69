#include "apps/command.h"
#include "support/catch.h"

using namespace command;

TEST_CASE("bench gives a figure for every length and batch that was asked for") {
  const Folder folder;
  const std::string model = small_model(folder);
  const auto figures = json({"bench", "--model", model, "--prompt-tokens", "8,33", "--batch", "1,3", "--gen-tokens", "2", "--repeat", "1", "--threads", "2", "--json"});
  REQUIRE(figures.at("prompt").size() == 2);
  CHECK(figures.at("prompt")[1].at("tokens") == 33);
  REQUIRE(figures.at("generation").size() == 2);
  CHECK(figures.at("generation")[1].at("batch") == 3);
  for (const auto& p : figures.at("prompt")) CHECK(p.at("tokens_per_second").get<double>() > 0);
  for (const auto& g : figures.at("generation")) {
    CHECK(g.at("tokens_per_second").get<double>() == Approx(g.at("batch").get<double>() / g.at("seconds_per_step").get<double>()));
    CHECK(g.at("bytes_per_second").get<double>() == Approx(figures.at("bytes_per_token").get<double>() / g.at("seconds_per_step").get<double>()));
  }
  CHECK(figures.at("memory_bytes_per_second").get<double>() > 1e8);
  CHECK(figures.at("threads") == 2);
  CHECK(figures.at("load_seconds").get<double>() > 0);
  CHECK(figures.at("first_token_seconds").get<double>() > 0);
  CHECK(figures.at("peak_memory_bytes").get<double>() > figures.at("weight_bytes").get<double>());

  const Result table = good({"bench", "--model", model, "--prompt-tokens", "8", "--gen-tokens", "2", "--repeat", "1"});
  for (const char* part : {"prompt, parallel mode", "generation, recurrent mode", "tok/s", "GB/s", "first token"}) CHECK(table.out.find(part) != table.out.npos);
}

TEST_CASE("bench refuses a shape that it does not know") {
  const Result r = run({"bench", "--shape", "13b"});
  CHECK(r.code == 1);
  CHECK(r.error.find("0.1b") != r.error.npos);
}
