// Spectral verbs. The results of a vendor solver are not believed unseen: eigenpairs are checked by their residual.
// svd uses Xgesvd: Xgesvdp is faster on large matrices, but perturbs singular ones, and ours mostly are (label matrices
// have sigma = 0, the rows of a classifier sum to 0). Its callers check it by host/decomposition.hpp.
//
// Values without vectors have no residual; the sum of their squares is checked instead, that of singular values by the
// callers (host/decomposition.hpp).
#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/backend.hpp"
#include "cuda/dense.hpp"
#include "cuda/rows.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cuda {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

}  // namespace

std::vector<double> CudaBackend::eigh(Matrix& A) {
  const Index n = A.rows;
  if (n == 0) return {};
  const Turn turn(*queue_);
  Matrix original = clone(A);
  mirror_lower(original);
  const Matrix values = matrix(n, 1);
  const Buffer<double> minus_ones(*queue_, std::vector<double>(static_cast<std::size_t>(n), -1.0));
  std::vector<double> eigenvalues = symmetric_eigen(*queue_, CUSOLVER_EIG_MODE_VECTOR, A.data(), n, values.data());

  // |diag(w) V - V A|_F against n eps |A|_F, generously; false for NaN.
  const Matrix residual = product(A, Transpose::no, original, Transpose::no);
  launch_combine_rows(queue_->stream(), values.data(), A.data(), minus_ones.get(), residual.data(), n, n,
                      residual.data());
  Fetch<double> error_squares = cuda::inner(*queue_, residual.data(), residual.data(), n * n),
                squares = cuda::inner(*queue_, original.data(), original.data(), n * n);
  const double error = std::sqrt(error_squares.sum()), size = std::sqrt(squares.sum());
  if (!(error <= 100 * static_cast<double>(n) * kEps * size))
    throw Error(ErrorKind::internal, "cusolverDnXsyevd returned vectors that are not eigenvectors: residual " +
                                         std::to_string(error) + " for a matrix of norm " + std::to_string(size));
  return eigenvalues;
}

std::vector<double> CudaBackend::eigenvalues(Matrix& A) {
  const Index n = A.rows;
  if (n == 0) return {};
  const Turn turn(*queue_);
  mirror_lower(A);
  Fetch<double> size_squares = cuda::inner(*queue_, A.data(), A.data(), n * n);
  const Buffer<double> values(*queue_, n);
  std::vector<double> eigenvalues = symmetric_eigen(*queue_, CUSOLVER_EIG_MODE_NOVECTOR, A.data(), n, values.get());
  const double size = std::sqrt(size_squares.sum());
  double squares = 0;
  for (const double value : eigenvalues) squares += value * value;
  if (!(std::abs(std::sqrt(squares) - size) <= 100 * static_cast<double>(n) * kEps * size))
    throw Error(ErrorKind::internal, "cusolverDnXsyevd returned values that are not eigenvalues: of norm " +
                                         std::to_string(std::sqrt(squares)) + " for a matrix of norm " +
                                         std::to_string(size));
  return eigenvalues;
}

std::vector<double> CudaBackend::singular_values(const Matrix& A) {
  const Turn turn(*queue_);
  const Index m = A.rows, n = A.cols, r = std::min(m, n);
  if (r == 0) return {};
  const Matrix used_up = m <= n ? clone(A) : matrix(n, m);
  if (m > n) transpose(*queue_, A.data(), m, n, used_up.data());
  return wide_svd(*queue_, used_up.data(), used_up.rows, used_up.cols, nullptr, nullptr);
}

Matrix CudaBackend::triangular_factor(const Matrix& A) {
  const Turn turn(*queue_);
  Matrix R = matrix(A.cols, A.cols);
  if (A.cols == 0) return R;
  const Matrix used_up = matrix(A.cols, A.rows);
  transpose(*queue_, A.data(), A.rows, A.cols, used_up.data());
  ncollapse::cuda::triangular_factor(*queue_, used_up.data(), A.rows, A.cols, R.data());
  return R;
}

Svd CudaBackend::svd(const Matrix& A) {
  const Turn turn(*queue_);
  const Index m = A.rows, n = A.cols, r = std::min(m, n);
  Svd result{{}, matrix(m, r), matrix(r, n)};
  if (r == 0) return result;
  if (m <= n) {
    const Matrix used_up = clone(A);
    result.values = wide_svd(*queue_, used_up.data(), m, n, result.left.data(), result.right.data());
  } else {  // A^T = V diag(s) U^T is wide
    const Matrix transposed = matrix(n, m), V = matrix(n, n), U_transposed = matrix(n, m);
    transpose(*queue_, A.data(), m, n, transposed.data());
    result.values = wide_svd(*queue_, transposed.data(), n, m, V.data(), U_transposed.data());
    transpose(*queue_, U_transposed.data(), n, m, result.left.data());
    transpose(*queue_, V.data(), n, n, result.right.data());
  }
  return result;
}

double CudaBackend::cholesky(Matrix& A, Matrix* inverse) {
  const Index n = A.rows;
  const Turn turn(*queue_);
  if (n == 0) return 1;
  const Matrix own = matrix(n, n);
  const double estimate = ncollapse::cuda::cholesky(*queue_, A.data(), n, own.data());
  if (inverse && estimate > 0) *inverse = own;  // else its memory is not held for nothing
  return estimate;
}

void CudaBackend::solve_lower(const Matrix& L, Transpose transpose, Matrix& B) {
  if (L.rows == 0) return;
  const Turn turn(*queue_);
  ncollapse::cuda::solve_lower(*queue_, L.data(), transpose, L.rows, B.data(), B.rows);
}

}  // namespace ncollapse::cuda
