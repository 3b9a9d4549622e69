// QR by Cholesky: A^T A = R^T R with a positive diagonal of R gives Q = A R^-1, in two large products that threads share.
// It squares the condition number, so it is repeated until R is balanced: one pass for tall normal matrices, two for square
// ones. All arithmetic is f64; a tiny shift keeps the first factorisation of an almost singular matrix possible.
#include "model/orthogonal.h"

#include <cmath>

#include "base/error.h"
#include "model/generator.h"

namespace duet {
namespace {

constexpr uint64_t kStrip = 4, kPanel = 128;  // a tile of results is 4 by 4; rows of A that are packed at once
constexpr uint64_t kBlock = 16;                // rows that stay in the cache together
constexpr uint64_t kFactorBlock = 32;          // rows of R that are found before the rows below are brought up to them
constexpr double kShift = 1e-10, kBalanced = 8;

using Matrix = std::vector<double>;  // row-major

// out[4][4] = sum over k of x[k][i] y[k][j]
void multiply_strips(const double* x, const double* y, uint64_t n_k, double out[kStrip * kStrip]) {
  double sum[kStrip * kStrip] = {};
  for (uint64_t k = 0; k < n_k; ++k, x += kStrip, y += kStrip)
    for (uint64_t i = 0; i < kStrip; ++i)
      for (uint64_t j = 0; j < kStrip; ++j) sum[i * kStrip + j] += x[i] * y[j];
  std::copy(sum, sum + kStrip * kStrip, out);
}

// A^T A [n,n] of a [rows,n]; the upper triangle is right
Matrix gram(const float* a, uint64_t rows, uint64_t n) {
  Matrix g(n * n);
  const uint64_t n_strips = (n + kStrip - 1) / kStrip;
  in_slices((n_strips + 1) / 2, 1, [&](uint64_t begin, uint64_t end) {
    Matrix packed(n_strips * kStrip * kPanel);  // [strip][row][4]
    for (uint64_t row = 0; row < rows; row += kPanel) {
      const uint64_t n_rows = std::min(kPanel, rows - row);
      for (uint64_t r = 0; r < n_rows; ++r)
        for (uint64_t c = 0; c < n; ++c) packed[(c / kStrip * kPanel + r) * kStrip + c % kStrip] = a[(row + r) * n + c];
      const auto add_row_of_tiles = [&](uint64_t s) {
        for (uint64_t t = s; t < n_strips; ++t) {
          double tile[kStrip * kStrip];
          multiply_strips(&packed[s * kPanel * kStrip], &packed[t * kPanel * kStrip], n_rows, tile);
          for (uint64_t i = s * kStrip; i < std::min(n, (s + 1) * kStrip); ++i)
            for (uint64_t j = t * kStrip; j < std::min(n, (t + 1) * kStrip); ++j) g[i * n + j] += tile[i % kStrip * kStrip + j % kStrip];
        }
      };
      for (uint64_t s = begin; s < end; ++s) {  // a long row of tiles and a short one: equal work for all
        add_row_of_tiles(s);
        if (s != n_strips - 1 - s) add_row_of_tiles(n_strips - 1 - s);
      }
    }
  });
  return g;
}

// row[j] of row i of g loses R[k][i] R[k][j] for the rows k in [first, last) of R, from the diagonal on. Every element loses
// them in the order of k: the bits do not depend on which rows are taken at once, nor on the threads.
void eliminate(Matrix& g, uint64_t n, uint64_t first, uint64_t last, uint64_t i) {
  double* row = &g[i * n];
  uint64_t k = first;
  for (; k + 4 <= last; k += 4) {
    const double *a = &g[k * n], *b = a + n, *c = b + n, *d = c + n;
    const double at_a = a[i], at_b = b[i], at_c = c[i], at_d = d[i];
    for (uint64_t j = i; j < n; ++j) row[j] = row[j] - at_a * a[j] - at_b * b[j] - at_c * c[j] - at_d * d[j];
  }
  for (; k < last; ++k) {
    const double* above = &g[k * n];
    const double factor = above[i];
    for (uint64_t j = i; j < n; ++j) row[j] -= factor * above[j];
  }
}

// g = R^T R in place, upper triangle: a block of rows at a time, which the threads then take out of all rows below. Gives the
// ratio of R's largest to its smallest diagonal element.
double factorise(Matrix& g, uint64_t n) {
  double scale = 0, largest = 0, smallest = HUGE_VAL;
  for (uint64_t i = 0; i < n; ++i) scale = std::max(scale, g[i * n + i]);
  for (uint64_t block = 0; block < n; block += kFactorBlock) {
    const uint64_t end = std::min(n, block + kFactorBlock);
    for (uint64_t i = block; i < end; ++i) {
      eliminate(g, n, block, i, i);
      double* row = &g[i * n];
      const double pivot = std::sqrt(row[i] + kShift * scale);
      if (!(pivot > 0 && pivot < HUGE_VAL)) fail(DUET_E_NUMERIC, "orthogonal initialisation: the random matrix has no full rank; choose another seed");
      largest = std::max(largest, pivot);
      smallest = std::min(smallest, pivot);
      row[i] = pivot;
      for (uint64_t j = i + 1; j < n; ++j) row[j] /= pivot;
    }
    const uint64_t below = n - end;
    in_slices((below + 1) / 2, kBlock, [&](uint64_t first, uint64_t last) {
      for (uint64_t s = first; s < last; ++s) {  // a long row and a short one: equal work for all
        eliminate(g, n, block, end, end + s);
        if (s != below - 1 - s) eliminate(g, n, block, end, n - 1 - s);
      }
    });
  }
  return largest / smallest;
}

// R^-1 of the upper triangle, zeros below: rows u of u R = 1
Matrix inverse(const Matrix& r, uint64_t n) {
  Matrix out(n * n);
  in_slices(n, kBlock, [&](uint64_t begin, uint64_t end) {
    for (uint64_t block = begin; block < end; block += kBlock)
      for (uint64_t k = block; k < n; ++k)
        for (uint64_t i = block; i < std::min({k + 1, end, block + kBlock}); ++i) {
          double* row = &out[i * n];
          const double* below = &r[k * n];
          const double factor = row[k] = (row[k] + (i == k)) / below[k];
          for (uint64_t j = k + 1; j < n; ++j) row[j] -= factor * below[j];
        }
  });
  return out;
}

// a [rows,n] = a u, u [n,n] upper triangular
void multiply_in_place(float* a, uint64_t rows, uint64_t n, const Matrix& u) {
  const uint64_t n_strips = (n + kStrip - 1) / kStrip;
  Matrix columns(n_strips * kStrip * n);  // [strip][k][4]
  for (uint64_t k = 0; k < n; ++k)
    for (uint64_t j = 0; j < n; ++j) columns[(j / kStrip * n + k) * kStrip + j % kStrip] = u[k * n + j];
  in_slices(rows, kPanel, [&](uint64_t begin, uint64_t end) {
    Matrix packed(kPanel * n);  // [strip of rows][k][4]
    for (uint64_t row = begin; row < end; row += kPanel) {
      const uint64_t n_rows = std::min(kPanel, end - row);
      for (uint64_t r = 0; r < n_rows; ++r)
        for (uint64_t k = 0; k < n; ++k) packed[(r / kStrip * n + k) * kStrip + r % kStrip] = a[(row + r) * n + k];
      for (uint64_t t = 0; t < n_strips; ++t) {
        const uint64_t n_k = std::min(n, (t + 1) * kStrip);  // below is nothing
        for (uint64_t s = 0; s * kStrip < n_rows; ++s) {
          double tile[kStrip * kStrip];
          multiply_strips(&packed[s * n * kStrip], &columns[t * n * kStrip], n_k, tile);
          for (uint64_t r = s * kStrip; r < std::min(n_rows, (s + 1) * kStrip); ++r)
            for (uint64_t j = t * kStrip; j < std::min(n, (t + 1) * kStrip); ++j) a[(row + r) * n + j] = static_cast<float>(tile[r % kStrip * kStrip + j % kStrip]);
        }
      }
    }
  });
}

}  // namespace

void orthogonalise(float* a, uint64_t rows, uint64_t cols) {
  for (double ratio = HUGE_VAL; ratio > kBalanced;) {
    Matrix r = gram(a, rows, cols);
    ratio = factorise(r, cols);
    multiply_in_place(a, rows, cols, inverse(r, cols));
  }
}

}  // namespace duet
