// Times whole steps of one shape on the CPU plugin, straight through its table: step PLUGIN.so DTYPE [LAYERS EMBD VOCAB]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "../../../tests/stages/forward.h"

using namespace stages;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void time_step(Device& d, const Model& m, const Batch& b, duet_mode mode, const char* what) {
  State state(d, m.shape, 64);
  Forward f(d, m, b, mode, state, b.tokens(m.shape.n_vocab));
  double best = 1e9;
  for (int i = 0; i < 12; ++i) {
    const double start = now();
    f.enqueue();
    d.wait();
    best = std::min(best, now() - start);
  }
  std::printf("%-24s %8.2f ms  %8.1f tok/s\n", what, best * 1e3, b.n_tokens() / best);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string dtype = argc > 2 ? argv[2] : "bf16";
  const auto number = [&](int i, uint32_t otherwise) { return argc > i ? static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10)) : otherwise; };
  const uint32_t L = number(3, 12), C = number(4, 768), V = number(5, 65536);
  duetp_shape shape = shape_of(L, C / 64, 64, 4 * C, V);
  shape.rank_w = shape.rank_a = 64, shape.rank_v = 32, shape.rank_g = 128;
  const Model model(shape, dtype == "f32" ? DUET_F32 : dtype == "f16" ? DUET_F16 : DUET_BF16);
  Device d(load_plugin(argv[1]), 0);
  for (const int32_t T : {512, 64, 16}) time_step(d, model, {{T}, {0}, {T - 1}}, DUET_MODE_PARALLEL, ("parallel " + std::to_string(T)).c_str());
  for (const int32_t B : {1, 2, 8, 32}) {
    Batch b;
    for (int32_t i = 0; i < B; ++i) b.lengths.push_back(1), b.slots.push_back(i), b.rows.push_back(i);
    time_step(d, model, b, DUET_MODE_RECURRENT, ("recurrent " + std::to_string(B)).c_str());
  }
}
