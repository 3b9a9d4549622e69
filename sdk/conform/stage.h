// One stage, run on any device: its arguments by name, filled with numbers, and what it leaves in them.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
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

// Whether the stage multiplies by weights, or reads rows of them.
bool has_matrix(const StageCase& c);

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

// A stage with its arguments in the memory of a device. State and layers must outlive it.
class StageRun {
 public:
  StageRun(Device& d, const Model& m, const Model::Layers& layers, const StageCase& c, const Batch& b, duet_mode mode, State& state, const Input& input = {});
  void enqueue();
  void in_layer(uint32_t layer);  // instead of the case's own
  // What has run after a wait. Throws that a canary or an argument that is only read was written to.
  Outcome outcome();

 private:
  struct Place {
    std::unique_ptr<Memory> memory;
    std::vector<unsigned char> data;  // of an input
    uint32_t columns;
  };
  Device& device_;
  const Model::Layers& layers_;
  StageCase case_;
  std::unique_ptr<Frame> frame_;
  std::map<std::string, Place> places_;
  duetp_stage table_{};
};

// linear's output x is added to, so it is an input too
bool is_input(const StageCase& c, const Argument& a);

// Once, at once or through a recording. Throws what the device said, too.
Outcome run_stage(Device& d, const Model& m, const Model::Layers& layers, const StageCase& c, const Batch& b, duet_mode mode, State& state,
                  const Input& input = {});

}  // namespace conform
