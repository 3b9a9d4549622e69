// The thread team: everyone runs once, barriers hold, callers take turns, the caller's own affinity survives.
#include "base/team.h"

#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

#include "base/error.h"
#include "support/catch.h"

using duet::Team;

namespace {

struct Sum {
  Team* team;
  std::vector<uint64_t> part;  // [n]
  uint64_t wrong = 0;
};

// Each round: everyone writes its part, all wait, everyone reads all parts, all wait.
void rounds(void* ctx, uint32_t i, uint32_t n) {
  Sum& s = *static_cast<Sum*>(ctx);
  uint64_t wrong = 0;
  for (uint64_t round = 1; round <= 200; ++round) {
    s.part[i] = round * (i + 1);
    s.team->barrier();
    uint64_t sum = 0;
    for (uint64_t p : s.part) sum += p;
    wrong += sum != round * n * (n + 1) / 2;
    s.team->barrier();
  }
  if (i == 0) s.wrong = wrong;
}

}  // namespace

TEST_CASE("each thread runs once, and barriers order what they do") {
  for (const uint32_t n : {1u, 2u, 3u, 7u}) {  // more than there are cores as well
    Team team(n);
    REQUIRE(team.size() == n);
    Sum s{&team, std::vector<uint64_t>(n)};
    for (int again = 0; again < 3; ++again) {
      s.wrong = 1;
      team.run(rounds, &s);
      CHECK(s.wrong == 0);
    }
  }
}

TEST_CASE("callers take turns") {
  Team team(2);
  struct Count {
    std::atomic<int> inside{0};
    std::atomic<int> wrong{0};
    std::atomic<int> runs{0};
  } count;
  const auto once = [](void* ctx, uint32_t i, uint32_t) {
    Count& c = *static_cast<Count*>(ctx);
    if (i != 0) return;
    if (c.inside.fetch_add(1) != 0) c.wrong.fetch_add(1);
    c.runs.fetch_add(1);
    c.inside.fetch_sub(1);
  };
  std::vector<std::thread> callers;
  for (int k = 0; k < 4; ++k)
    callers.emplace_back([&] {
      for (int j = 0; j < 50; ++j) team.run(once, &count);
    });
  for (std::thread& t : callers) t.join();
  CHECK(count.runs == 200);
  CHECK(count.wrong == 0);
}

TEST_CASE("workers that fell asleep wake up") {
  Team team(2);
  std::atomic<int> ran{0};
  for (int k = 0; k < 5; ++k) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    team.run([](void* ctx, uint32_t, uint32_t) { static_cast<std::atomic<int>*>(ctx)->fetch_add(1); }, &ran);
  }
  CHECK(ran == 10);
}

TEST_CASE("the caller's affinity mask is restored") {
  cpu_set_t before, after;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  Team team;
  team.run([](void*, uint32_t, uint32_t) {}, nullptr);
  REQUIRE(sched_getaffinity(0, sizeof after, &after) == 0);
  CHECK(CPU_EQUAL(&before, &after));
  CHECK(team.size() >= 1);
  CHECK(team.size() <= static_cast<uint32_t>(CPU_COUNT(&before)));
}

TEST_CASE("too many threads are refused") {
  try {
    Team team(257);
    FAIL("no error");
  } catch (const duet::Error& e) {
    CHECK(e.code() == DUET_E_LIMIT);
    CHECK(std::string(e.what()).find("256") != std::string::npos);
  }
}
