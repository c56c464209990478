// Products of row-major matrices on all threads. BLAS itself runs on one: its own thread pool would fight OpenMP's for
// the cores (both wait by spinning), which costs more than it gains. The result is cut into tiles by its size and
// the number of threads, each tile is one BLAS call, so the same number of threads gives the same bits. The program
// around the library may use the same BLAS, LibTorch does, so each call leaves its number of threads as it was.
#pragma once

#include "ncollapse/types.hpp"

namespace ncollapse::cpu {

/// A row-major operand as it lies in memory; `transposed` uses it the other way round.
struct Operand {
  const double* data;
  Index stride;
  bool transposed;
};

/// C [rows x cols] = A B, depth terms each.
void multiply(int threads, const Operand& A, const Operand& B, Index rows, Index cols, Index depth, double* C,
              Index stride);

/// Lower triangle of C [n x n] = alpha A A^T + beta C, A [n x depth] after transposition.
void add_gram_lower(int threads, double alpha, const Operand& A, Index n, Index depth, double beta, double* C);

/// As many threads as a parallel region is about to have. Throws DeviceError where they are more than one and this
/// process was forked from one that had such a region: it has none of OpenMP's threads, which would be waited for for
/// ever.
int team_of(int threads);

/// Side of the tiles into which the two functions above cut a square of side n.
Index tile_of(Index n, int threads);

/// Lower triangle of C [n x n], but for its diagonal, += diag(scale) A^T A diag(scale), A [depth x n] in single
/// precision. Each tile is one product in single precision, added to C in double. tiles: scratch of threads *
/// tile_of(n)^2 floats.
void add_single_gram_lower(int threads, const float* A, Index n, Index depth, const double* scale, float* tiles,
                           double* C);

/// The threads of BLAS and LAPACK themselves, while this lives: one around products that OpenMP spreads. Threads that
/// want the same number go on together, others wait for their turn.
class BlasThreads {
 public:
  explicit BlasThreads(int threads);
  ~BlasThreads();
  BlasThreads(const BlasThreads&) = delete;
  BlasThreads& operator=(const BlasThreads&) = delete;
};

/// For the vendor interface's 32-bit sizes. Throws UsageError.
int blas_int(Index size, const char* what);

}  // namespace ncollapse::cpu
