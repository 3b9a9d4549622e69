// Products of some dozens to some hundreds of rows in bf16 on compute capability 9.0, where reading the weights still takes most of
// the time, but the sums are too many for product.h. f32 sums in a fixed order: the same bits every time.
#pragma once
#include "product.h"

namespace duet_cuda {

// As products() does it. in_major: the weights of all of them are [n_in, n_out].
struct TallProducts {
  Products products;
  bool in_major;
};
// Other than what is best by its own reckoning, for measurements: 64 or 128 outputs for each half of a block, and so many bytes of
// shared memory for what is on its way. 0: its own.
struct TallTuning {
  uint32_t outputs = 0, ring = 0;
};
// Whether this device and these shapes and addresses will do: rows of x and w are multiples of 16 bytes.
bool tall_takes(const TallProducts& p);
SkippingScratch tall_scratch(const TallProducts& p, const TallTuning& tuning = {});
Error tall_products(const TallProducts& p, void* tickets, void* parts, Stream stream, const TallTuning& tuning = {});

}  // namespace duet_cuda
