// Products of few rows, where what takes the time is reading the weights: recurrent mode, and where neither tall_product.h
// nor cuBLAS serves, more of them. Of q8 and q4 weights those of many rows too (quantised_product.h). Sums are f32 and their order is fixed: the same bits every time.
#pragma once
#include "duet_types.h"
#include "gpu/port.h"

namespace duet_cuda {

using duet_gpu::Error;
using duet_gpu::Stream;

// What becomes of a sum p. *_input: stored as the next product's matrix input, bf16 with bf16 weights and f32 otherwise.
enum class Finish { store, add, tanh_input, input, sigmoid_input, relu_squared_input };

// y[row, o] = finish(sum over i of x[row, i] w[o, i]).  x [rows, n_in] matrix input; w [n_out, n_in], q8 and q4 in their stored
// form; y [rows, n_out], f32 for store and add. w, x, scale and minimum are aligned to 16 bytes.
struct Product {
  const void *w, *x;
  void* y;
  uint32_t n_out, n_in;
  Finish finish;
  const void *scale = nullptr, *minimum = nullptr;  // of q8 and q4; minimum of q4
  bool by_groups = false;                           // these and w lie group after group, in a group tile after tile, and not the other way round
};

// Up to eight independent products over the same rows in one launch.
struct Products {
  Product item[8];
  uint32_t n;
  const int32_t* used;   // device memory: used[count_index] rows of this run
  uint32_t count_index;
  uint32_t n_rows;       // capacity
  duet_dtype weights;
  void* rounded;         // device memory of products_scratch() bytes, which the products of one stream may share
};
uint64_t products_scratch(const Products& p);
Error products(const Products& p, Stream stream);

// x[row, c] += sum over f of u[row, f] w[f, c], without reading the rows of w whose u is zero in all rows (of a slab of at most
// 16): what relu^2 leaves of the channel mix. Some shapes need scratch memory to add up their parts. u [rows, n_in] matrix input; w [n_in, n_out]; x f32 [rows, n_out].
struct SkippingProduct {
  const void *w, *u;
  float* x;
  uint32_t n_in, n_out;
  const int32_t* used;
  uint32_t count_index, n_rows;
  duet_dtype weights;
};
// Device memory for it, bytes: tickets, which are zero at first and again after each product, and parts of sums.
struct SkippingScratch {
  uint64_t tickets, parts;
};
SkippingScratch skipping_scratch(const SkippingProduct& p);
// The largest n_in on the current device
uint32_t most_skipped_inputs(duet_dtype weights);
Error skipping_product(const SkippingProduct& p, void* tickets, void* parts, Stream stream);

}  // namespace duet_cuda
