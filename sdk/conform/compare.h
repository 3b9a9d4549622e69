// How far what a device left in memory is from what the reference left.
#pragma once
#include <string>
#include <vector>

#include "conform/stage.h"

namespace conform {

// The largest difference as a share of max(|reference|, rms of the output). Infinite where only one of both is NaN.
double distance(const std::vector<float>& got, const std::vector<float>& want);

// How far a device may be from the reference in one place, as such a share. f32: sums of a few hundred terms in another
// order, exp and tanh to a few units in the last place. bf16 outputs: one unit, where a value falls on the other side of a
// tie. Inside lowrank, channel_mix and head a vector is rounded to bf16 before a product: there such a unit goes on into
// every sum, and weighs most where the sum is short.
double tolerance(const StageCase& c, duet_dtype weights, duet_mode mode, const std::string& output, duet_dtype dtype);
// The same for the whole network: logits, hidden rows, x, state. With bf16 weights units of bf16 travel through all layers.
double network_tolerance(duet_dtype weights);

struct Verdict {
  double worst = 0, limit = 1;  // the largest distance, as a share of what is allowed there
  std::string where;            // the output with that distance
  std::string fault;            // "" or what is wrong, as a sentence
  void join(const Verdict& o) {
    if (fault.empty()) fault = o.fault;
    if (where.empty() || o.worst / o.limit > worst / limit) worst = o.worst, limit = o.limit, where = o.where;
  }
};

// One output: within `limit` of the reference, finite, and written exactly where the reference wrote.
Verdict compare(const Outcome::Output& got, const Outcome::Output& want, const std::string& name, double limit);

// Every output by itself, within limit(name, dtype).
template <class Limit>
Verdict compare(const Outcome& got, const Outcome& want, Limit&& limit) {
  Verdict v;
  for (const auto& [name, output] : want.outputs) v.join(compare(got.outputs.at(name), output, name, limit(name, output.dtype)));
  return v;
}

// Every slot; those to which no token of the batch belongs, to the last bit as they were.
Verdict compare_states(State& got, State& want, const Batch& b, double limit);

}  // namespace conform
