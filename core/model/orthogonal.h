#pragma once
#include <cstdint>

namespace duet {

// Replaces the tall matrix a [rows,cols], rows >= cols, by the Q of its QR factorisation with a positive diagonal of R: for
// a normal random matrix that is the official orthogonal initialisation. DUET_E_NUMERIC: a has not full rank.
void orthogonalise(float* a, uint64_t rows, uint64_t cols);

}  // namespace duet
