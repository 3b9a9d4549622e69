// Quantised matrices in files (docs/quantisation.md): what __metadata__ says of them, and the tensors that make up one.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "model/quantise.h"

namespace duet {

// __metadata__ of a file of such matrices. The shape stands there because padding hides ranks and widths.
std::map<std::string, std::string> quantised_metadata(duet_dtype dtype, const duetp_shape& shape);
// DUET_I8, DUET_I4, or 0 for a file of floats. DUET_E_UNSUPPORTED names another dtype or version.
duet_dtype quantised_dtype(const Checkpoint& file);
// The shape that __metadata__ gives; the epsilons are left zero. DUET_E_FORMAT names what is missing or no number.
duetp_shape quantised_shape(const Checkpoint& file);

// A tensor of the file.
struct QuantisedPart {
  const char* suffix;  // of the matrix's name
  DType dtype;
  std::vector<uint32_t> shape;
  uint64_t bytes, align;  // backends read it in place at such addresses
};
// Integers, scales and with DUET_I4 minimums, in this order.
std::vector<QuantisedPart> quantised_parts_in_file(duet_dtype dtype, const duetp_quantised_form& form);

// Warns, or fails if strict, of scales and minimums that are not finite or beyond 1e30, of integers of -128 and of padding that is
// not zero. Reads every byte.
void check_quantised(const QuantisedMatrix& matrix, duet_dtype dtype, const std::string& file, const std::string& name, const Log& log, bool strict);

}  // namespace duet
