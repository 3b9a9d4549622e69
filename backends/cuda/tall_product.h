// Products of more rows than product.h is for, in bf16 on compute capability 9.0, where reading the weights still takes most of the
// time: some dozens to some hundreds. f32 sums in a fixed order: the same bits every time.
#pragma once
#include "product.h"

namespace duet_cuda {

// As products() does it. in_major: the weights of all of them are [n_in, n_out].
struct TallProducts {
  Products products;
  bool in_major;
};
// Whether this build, this device and these shapes and addresses will do: rows of x and w are multiples of 16 bytes.
bool tall_takes(const TallProducts& t);
// Scratch as for skipping_product: tickets are zero at first and again after each launch
SkippingScratch tall_scratch(const TallProducts& t);
Error tall_products(const TallProducts& t, void* tickets, void* parts, Stream stream);

}  // namespace duet_cuda
