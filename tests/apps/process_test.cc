// The process: interrupted, without its streams, and when nobody reads.
#include <signal.h>

#include "apps/command.h"
#include "support/catch.h"

using namespace command;

namespace {
const Words kLong = {"generate", "--prompt", "Once", "--max-tokens", "100000000", "--seed", "3"};
}  // namespace

TEST_CASE("an interruption ends the program at once with 130, and what was written stays") {
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    Running program(kLong);
    const std::string begin = program.read_some();
    CHECK_FALSE(begin.empty());
    program.signal(number);
    const Result r = program.wait();
    INFO(r.error);
    CHECK(r.code == 130);
    CHECK_FALSE(r.died);
    CHECK(r.seconds < 1);
  }
}

TEST_CASE("an interruption while loading or measuring ends the program with 130") {
  Running program({"bench", "--repeat", "1000", "--gen-tokens", "100000", "--prompt-tokens", "4096"});
  ::usleep(300'000);
  program.signal(SIGINT);
  const Result r = program.wait();
  CHECK(r.code == 130);
  CHECK_FALSE(r.died);
  CHECK(r.seconds < 1.5);  // a pass that cannot be stopped is given up after 0.8 s
}

TEST_CASE("two interruptions end the program") {
  Running program(kLong);
  CHECK_FALSE(program.read_some().empty());
  program.signal(SIGINT);
  program.signal(SIGINT);
  const Result r = program.wait();
  CHECK(r.code == 130);
  CHECK(r.seconds < 1);
}

TEST_CASE("a reader that goes away ends the program quietly") {
  Running program(kLong);
  CHECK_FALSE(program.read_some().empty());
  program.close_out();
  const Result r = program.wait();
  CHECK(r.code == 130);
  CHECK_FALSE(r.died);
  CHECK(r.error.empty());
  CHECK(r.seconds < 1);
}

TEST_CASE("a full disk behind standard output is an error") {
  Setting s;
  s.out_path = "/dev/full";
  for (const Words& words : {Words{"--help"}, Words{"generate", "--max-tokens", "4"}, Words{"backends"}}) {
    const Result r = run(words, s);
    CHECK(r.code == 1);
    CHECK(r.error.find("standard output: No space left") != r.error.npos);
  }
}

TEST_CASE("closed streams are no trap") {
  Setting s;
  s.closed = {1};
  const Result no_out = run({"generate", "--max-tokens", "4"}, s);
  CHECK(no_out.code == 1);
  CHECK(no_out.error.find("standard output") != no_out.error.npos);
  s.closed = {0};
  CHECK(good({"generate", "--max-tokens", "4", "--quiet"}, s).out == good({"generate", "--max-tokens", "4", "--quiet"}).out);
  const Result no_in = run({"tokenize"}, s);
  CHECK(no_in.code == 1);
  CHECK(no_in.error.find("standard input") != no_in.error.npos);
  s.closed = {0, 1, 2};
  CHECK(run({"generate", "--max-tokens", "4"}, s).code == 1);
  s.closed = {2};
  CHECK(good({"generate", "--max-tokens", "4"}, s).out == good({"generate", "--max-tokens", "4"}).out);
}
