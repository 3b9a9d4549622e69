// One stage, run on any device: its arguments by name, filled with numbers, and what it leaves in them.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "conform/frame.h"

namespace conform {

// Which numbers the arguments hold. All but `random` are where kernels break: factors that vanish, sums that do not.
enum class Pattern {
  random,
  fast_decay,  // w_raw large: w = exp(-exp(-1/2)), the smallest factor there is
  slow_decay,  // w_raw very negative: w = 1, the state forgets nothing
  saturated    // gates at 0 and at 1, some keys all zero
};
const char* name_of(Pattern p);

struct Argument {
  enum Range { plain, unit_interval, unit_head };  // around 0; in (0,1); each head of length 1
  const char* name;
  int in, out;      // index in duetp_stage, -1 = not that
  bool m;           // a matrix input: bf16 beside bf16 weights
  char rows = 'T';  // T: [T,C]; R: [rows,C]; V: [rows,V]
  float spread = 1;
  Range range = plain;
};

struct StageCase {
  std::string stage, variant;  // "linear", "r"
  Stage fn;
  uint32_t which, layer;  // the layer counts from 0; kBlock is the block of embedding and head
  std::vector<Argument> arguments;
  std::vector<Pattern> patterns = {Pattern::random};
  std::string name() const { return variant.empty() ? stage : stage + " " + variant; }
};
constexpr uint32_t kBlock = ~0u;

// Every stage in every variant.
std::vector<StageCase> stage_cases();

struct Outcome {
  struct Output {
    std::vector<unsigned char> bytes;  // of the rows in use: what the stage did not write has all bits set
    duet_dtype dtype;
    uint32_t columns;
    Output() = default;
    Output(std::vector<unsigned char> capacity, duet_dtype t, uint32_t n) : bytes(std::move(capacity)), dtype(t), columns(n) {
      bytes.resize(bytes.size() - size_t{Frame::kSpare} * columns * bytes_of(t));  // what rows beyond hold says nothing
    }
    bool operator==(const Output& o) const { return bytes == o.bytes; }
  };
  std::map<std::string, Output> outputs;  // by argument
  bool operator==(const Outcome& o) const { return outputs == o.outputs; }
};

struct Input {
  int32_t first = 0;  // the place of the batch's first token in the whole text: a split or another batch sees the same numbers
  Pattern pattern = Pattern::random;
  uint64_t seed = 1;
  bool recorded = false;  // through a recording
};

// Throws what the device said, or that a canary or an argument that is only read was written to.
Outcome run_stage(Device& d, const Model& m, const Model::Layers& layers, const StageCase& c, const Batch& b, duet_mode mode, State& state,
                  const Input& input = {});

}  // namespace conform
