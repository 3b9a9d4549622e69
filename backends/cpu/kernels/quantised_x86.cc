// The best integer product that this CPU has and may use.
#include "kernels/quantised_x86.h"

namespace duet_cpu {
namespace {

Integers most = Integers::kVnni;

}  // namespace

void limit_integers(Integers to) { most = to; }

IntegerProduct integer_product() {
#if defined(__x86_64__)
  if (most >= Integers::kVnni && has_vnni()) return multiply_vnni;
  if (most >= Integers::kAvxVnni && has_avx_vnni()) return multiply_avx_vnni;
  if (most >= Integers::kAvx2 && has_avx2()) return multiply_avx2;
#endif
  return nullptr;
}

}  // namespace duet_cpu
