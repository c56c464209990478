// Dense algebra by cuBLAS and cuSOLVER. Everything of ours is row-major, everything of theirs column-major; a row-major
// matrix is the column-major transpose of itself, so nothing is transposed in memory (but by transpose()):
//   C = op(A) op(B) row-major  is  C^T = op(B)^T op(A)^T column-major: the operands change places and keep their ops;
//   lower triangle row-major   is  upper triangle column-major;
//   A^T A of row-major A [R x d]  is  Z Z^T of the column-major Z [d x R], no transposition asked.
#pragma once

#include "cuda/element.hpp"
#include "cuda/queue.hpp"
#include "host/backend.hpp"

namespace ncollapse::cuda {

/// Parts of sum_i A_i B_i, to be added up in order.
Fetch<double> inner(Queue& queue, const double* A, const double* B, Index size);

/// C [m x n] = op(A) op(B), inner dimension k; lda, ldb, ldc: elements from row to row.
void gemm(Queue& queue, Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, const double* A,
          Index lda, const double* B, Index ldb, double* C, Index ldc);

/// Lower triangle of T [d x d] += alpha A^T A, A [rows x d], lda elements from row to row.
void add_gram(Queue& queue, double alpha, const double* A, Index lda, Index rows, Index d, double* T);

/// Z^T Z of every `slice` rows (the last one may be shorter) of Z [rows x d] to partial [slices x d x d]. Entries far
/// above the diagonal may be left as they are.
void gram_slices(Queue& queue, const double* Z, Index rows, Index d, Index slice, double* partial);
/// The same for fp16 rows, products accumulated in fp32; d is a multiple of 8.
void gram_slices(Queue& queue, const Half* Z, Index rows, Index d, Index slice, float* partial);
/// C [m x n] = A B^T of rows of that 16-bit type, A [m x k], B [n x k], products accumulated in fp32. Rows start at
/// multiples of 16 bytes.
void multiply_narrow(Queue& queue, Dtype type, const void* A, Index lda, Index m, const void* B, Index ldb, Index n,
                     Index k, float* C, Index ldc);
/// The same times scale, a power of two, as numbers of the rows' type: rounded to nearest once, in the end.
void multiply_narrow(Queue& queue, Dtype type, const void* A, Index lda, Index m, const void* B, Index ldb, Index n,
                     Index k, float scale, std::uint16_t* C, Index ldc);
/// Whether cuBLAS has products of that 16-bit type here, and does with them what these need: exact products,
/// accumulated in fp32. Found out once for a queue.
bool narrow_products_are_exact(Queue& queue, Dtype type);
/// Whether it does that where the result is of that type as well, and rounds it to nearest.
bool narrow_results_are_rounded_once(Queue& queue, Dtype type);
/// Throws DeviceError unless those of fp16 are.
void require_exact_halves(Queue& queue, const char* hint);

/// Eigenvalues, ascending, to `values` [n] and returned; row i of A [n x n] (lower triangle read) becomes eigenvector
/// i, or with CUSOLVER_EIG_MODE_NOVECTOR nothing of use. Throws Error(internal) when the solver reports a failure. n
/// >= 1.
std::vector<double> symmetric_eigen(Queue& queue, cusolverEigMode_t mode, double* A, Index n, double* values);

/// B [cols x rows] = A^T, A [rows x cols].
void transpose(Queue& queue, const double* A, Index rows, Index cols, double* B);

/// A [m x n] = left diag(values) right with left [m x m], right [m x n] and values [m], descending, which are returned;
/// A is used up. With left and right null: the values alone. 1 <= m <= n: cuSOLVER takes column-major matrices that are
/// tall, row-major that is wide. Throws Error(internal) when the solver reports a failure.
std::vector<double> wide_svd(Queue& queue, double* A, Index m, Index n, double* left, double* right);

/// R [n x n], upper triangular, of A = Q R. transposed [n x m] = A^T, used up; 1 <= n <= m. Throws Error(internal) when
/// the solver reports a failure.
void triangular_factor(Queue& queue, double* transposed, Index m, Index n, double* R);

/// A [n x n], lower triangle: A = L L^T with L in the lower triangle; inverse [n x n] becomes L^-T. Returns an estimate
/// of 1 / cond(A), 0 when A is not positive definite. n >= 1.
double cholesky(Queue& queue, double* A, Index n, double* inverse);

/// B [rows x n] := B L^-T, or B L^-1 with Transpose::yes; L [n x n] lower.
void solve_lower(Queue& queue, const double* L, Transpose transpose, Index n, double* B, Index rows);

}  // namespace ncollapse::cuda
