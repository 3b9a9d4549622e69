// Products with q8 and q4 weights, which lie as duet_quantised.h describes. Inputs are rounded to 8 bits in groups of 64; sums of
// a group are integers and exact, sums over groups are f32 in a fixed order.
#pragma once
#include "duet_quantised.h"
#include "product.h"

namespace duet_cuda {

constexpr uint32_t kGroup = DUETP_QUANTISED_GROUP, kTile = DUETP_QUANTISED_TILE;

inline __host__ __device__ uint32_t groups_in(uint32_t inputs) { return (inputs + kGroup - 1) / kGroup; }
inline __host__ __device__ uint32_t groups_of(const Product& p) { return groups_in(p.n_in); }
inline __host__ __device__ uint32_t tiles_of(const Product& p) { return (p.n_out + kTile - 1) / kTile; }

// Which in memory a tile's group is, of its integers, its scales, its minimums
struct Places {
  uint64_t of_tile, of_group;  // from one to the next
  __device__ explicit Places(const Product& p) : of_tile(p.by_groups ? 1 : groups_of(p)), of_group(p.by_groups ? tiles_of(p) : 1) {}
  __device__ uint64_t at(uint32_t tile, uint32_t group) const { return tile * of_tile + group * of_group; }
};

// Inputs rounded beforehand, in device memory. Rows are counted up to a multiple of kRowsOfTile; what the added ones hold is
// never defined and meets only itself: a row is a column of the tensor core's products.
constexpr uint32_t kRowsOfTile = 128;
inline __host__ __device__ uint32_t counted_rows(const Products& p) { return (p.n_rows + kRowsOfTile - 1) / kRowsOfTile * kRowsOfTile; }
struct Rounded {
  char* q;       // i8 [rows, groups, 64], the words of a group in the order of word_place()
  float* scale;  // [groups, rows]
  float* sum;    // [groups, rows]: scale times the sum of the group's integers; for q4
};
struct RoundedInputs {
  Rounded of[8];  // of each product's x
};

Error quantised_products(const Products& p, Stream stream);  // products() of product.h

// Enqueues the rounding of all inputs of p, each distinct one once, into p.rounded, rounded_bytes() long; says where.
uint64_t rounded_bytes(const Products& p);
Error round_inputs(const Products& p, RoundedInputs& out, Stream stream);
// Products of many rows, in tiles of 128 rows by 128 outputs, from rounded inputs.
Error tile_products(const Products& p, const RoundedInputs& inputs, Stream stream);

}  // namespace duet_cuda
