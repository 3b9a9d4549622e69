// Holds the kernels back to an older instruction set than the CPU has, so that one machine can test and compare all of them.
#include <dnnl.hpp>
#include <hwy/targets.h>

#include "kernels.h"

namespace duet_cpu {

bool limit_instruction_set(std::string_view name) {
  struct Level {
    std::string_view name;
    int64_t target;
    dnnl::cpu_isa products;  // oneDNN's
    Integers integers;
  };
  static constexpr Level kLevels[] = {{"avx3", HWY_AVX3, dnnl::cpu_isa::avx512_core, Integers::kAvx2},  // AVX-512 without products of bf16 and of bytes
                                      {"avxvnni", HWY_AVX2, dnnl::cpu_isa::avx2, Integers::kAvxVnni},
                                      {"avx2", HWY_AVX2, dnnl::cpu_isa::avx2, Integers::kAvx2},
                                      {"sse4", HWY_SSE4, dnnl::cpu_isa::sse41, Integers::kNone},
                                      {"baseline", 0, dnnl::cpu_isa::sse41, Integers::kNone}};  // what the compiler was told to take for granted
  for (const Level& l : kLevels) {
    if (l.name != name) continue;
    hwy::DisableTargets(l.target ? l.target - 1 : ~int64_t{0});  // a better target is a lower bit; the baseline cannot be disabled
    hwy::GetChosenTarget().DeInit();
    forbid_bf16_dot();
    limit_integers(l.integers);
    (void)dnnl::set_max_cpu_isa(l.products);  // refused once a product has been made: then it keeps the best, which is as right
    return true;
  }
  return false;
}

}  // namespace duet_cpu
