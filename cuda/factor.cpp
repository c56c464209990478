// Spectral verbs. The results of a vendor solver are not believed unseen: eigenpairs are checked by their residual.
// svd uses Xgesvd: Xgesvdp is faster on large matrices, but perturbs singular ones, and ours mostly are (label matrices
// have sigma = 0, the rows of a classifier sum to 0). Its callers check it by host/decomposition.hpp.
//
// Values without vectors have no residual; the sum of their squares is checked instead, that of singular values by the
// callers (host/decomposition.hpp).
//
// cholesky's estimate: lambda_max <= tr A, and 1/lambda_min <= |L^-1|_F^2, so 1/(tr A |L^-1|_F^2) is at most 1/cond(A)
// and at least 1/n^2 of it, 1/n where one eigenvalue is far below the others.
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

std::vector<double> diagonal(Queue& queue, const Matrix& A) {
  const Buffer<double> values(queue, A.rows);
  launch_diagonal(queue.stream(), A.data(), A.rows, values.get());
  return values.to_host();
}

}  // namespace

std::vector<double> CudaBackend::eigh(Matrix& A) {
  const Index n = A.rows;
  if (n == 0) return {};
  const DeviceGuard on(queue_->device());
  Matrix original = clone(A);
  mirror_lower(original);
  const Buffer<double> values(*queue_, n);
  symmetric_eigen(*queue_, CUSOLVER_EIG_MODE_VECTOR, A.data(), n, values.get());
  std::vector<double> eigenvalues = values.to_host();

  // |V A - diag(w) V|_F against n eps |A|_F, generously; false for NaN.
  Matrix residual = product(A, Transpose::no, original, Transpose::no);
  std::vector<double> minus(eigenvalues);
  for (double& value : minus) value = -value;
  combine_rows(std::vector<double>(eigenvalues.size(), 1.0), residual, minus, A, residual);
  const double error = std::sqrt(inner(residual, residual)), size = std::sqrt(inner(original, original));
  if (!(error <= 100 * static_cast<double>(n) * kEps * size))
    throw Error(ErrorKind::internal, "cusolverDnXsyevd returned vectors that are not eigenvectors: residual " +
                                         std::to_string(error) + " for a matrix of norm " + std::to_string(size));
  return eigenvalues;
}

std::vector<double> CudaBackend::eigenvalues(Matrix& A) {
  const Index n = A.rows;
  if (n == 0) return {};
  const DeviceGuard on(queue_->device());
  mirror_lower(A);
  const double size = std::sqrt(inner(A, A));
  const Buffer<double> values(*queue_, n);
  symmetric_eigen(*queue_, CUSOLVER_EIG_MODE_NOVECTOR, A.data(), n, values.get());
  std::vector<double> eigenvalues = values.to_host();
  double squares = 0;
  for (const double value : eigenvalues) squares += value * value;
  if (!(std::abs(std::sqrt(squares) - size) <= 100 * static_cast<double>(n) * kEps * size))
    throw Error(ErrorKind::internal, "cusolverDnXsyevd returned values that are not eigenvalues: of norm " +
                                         std::to_string(std::sqrt(squares)) + " for a matrix of norm " +
                                         std::to_string(size));
  return eigenvalues;
}

std::vector<double> CudaBackend::singular_values(const Matrix& A) {
  const DeviceGuard on(queue_->device());
  const Index m = A.rows, n = A.cols, r = std::min(m, n);
  if (r == 0) return {};
  const Buffer<double> values(*queue_, r);
  Matrix used_up = m <= n ? clone(A) : matrix(n, m);
  if (m > n) transpose(*queue_, A.data(), m, n, used_up.data());
  wide_svd(*queue_, used_up.data(), used_up.rows, used_up.cols, values.get(), nullptr, nullptr);
  return values.to_host();
}

Matrix CudaBackend::triangular_factor(const Matrix& A) {
  const DeviceGuard on(queue_->device());
  Matrix R = matrix(A.cols, A.cols);
  if (A.cols == 0) return R;
  const Matrix used_up = matrix(A.cols, A.rows);
  transpose(*queue_, A.data(), A.rows, A.cols, used_up.data());
  ncollapse::cuda::triangular_factor(*queue_, used_up.data(), A.rows, A.cols, R.data());
  return R;
}

Svd CudaBackend::svd(const Matrix& A) {
  const DeviceGuard on(queue_->device());
  const Index m = A.rows, n = A.cols, r = std::min(m, n);
  Svd result{{}, matrix(m, r), matrix(r, n)};
  if (r == 0) return result;
  const Buffer<double> values(*queue_, r);
  if (m <= n) {
    const Matrix used_up = clone(A);
    wide_svd(*queue_, used_up.data(), m, n, values.get(), result.left.data(), result.right.data());
  } else {  // A^T = V diag(s) U^T is wide
    const Matrix transposed = matrix(n, m), V = matrix(n, n), U_transposed = matrix(n, m);
    transpose(*queue_, A.data(), m, n, transposed.data());
    wide_svd(*queue_, transposed.data(), n, m, values.get(), V.data(), U_transposed.data());
    transpose(*queue_, U_transposed.data(), n, m, result.left.data());
    transpose(*queue_, V.data(), n, n, result.right.data());
  }
  result.values = values.to_host();
  return result;
}

double CudaBackend::cholesky(Matrix& A) {
  const Index n = A.rows;
  if (n == 0) return 1;
  const DeviceGuard on(queue_->device());
  double trace = 0;
  for (const double value : diagonal(*queue_, A)) trace += value;
  if (!ncollapse::cuda::cholesky(*queue_, A.data(), n)) return 0;
  Matrix inverse = identity(n);
  solve_lower(A, Transpose::no, inverse);
  const double estimate = 1 / (trace * inner(inverse, inverse));
  return estimate > 0 ? estimate : 0.0;  // 0 for NaN
}

void CudaBackend::solve_lower(const Matrix& L, Transpose transpose, Matrix& B) {
  if (L.rows == 0) return;
  const DeviceGuard on(queue_->device());
  ncollapse::cuda::solve_lower(*queue_, L.data(), transpose, L.rows, B.data(), B.rows);
}

}  // namespace ncollapse::cuda
