// Spectral verbs. The results of a vendor solver are not believed unseen: eigenpairs are checked by their residual.
// svd uses Xgesvd: Xgesvdp is faster on large matrices, but perturbs singular ones, and ours mostly are (label matrices
// have sigma = 0, the rows of a classifier sum to 0). Its callers check it by host/decomposition.hpp.
//
// pinv_trace. tr(B A^+ B^T) needs no eigenvectors when A is safely positive definite: with A = L L^T it is
// |B L^-T|_F^2. The rank rule of the seam counts eigenvalues above t = n eps lambda_max. Cholesky's factor belongs
// exactly to A + E, |E|_2 <= n (n+1) eps max A_ii (Higham 2002, theorem 10.3), and the smallest eigenvalue of L L^T is
// at least 1/|L^-1|_F^2. So when 1/|L^-1|_F^2 > 4 n (n+1) eps max A_ii, every eigenvalue of A is above t and the rank
// is n. A cheap first look at the factor's diagonal (its smallest square bounds that eigenvalue from above) spares
// hopeless cases the triangular inverse. Everything else goes through the eigenvalues themselves.
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

double largest(const std::vector<double>& values) { return *std::max_element(values.begin(), values.end()); }

}  // namespace

std::vector<double> CudaBackend::eigh(Matrix& A) {
  const Index n = A.rows;
  if (n == 0) return {};
  const DeviceGuard on(queue_->device());
  Matrix original = clone(A);
  mirror_lower(original);
  const Buffer<double> values(*queue_, n);
  symmetric_eigen(*queue_, A.data(), n, values.get());
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

PinvTrace CudaBackend::pinv_trace(Matrix& A, Matrix& B) {
  const Index n = A.rows;
  if (n == 0) return {};
  const DeviceGuard on(queue_->device());
  const double n_eps = static_cast<double>(n) * kEps, scale = largest(diagonal(*queue_, A));
  if (!(scale > 0)) return {};

  Matrix L = clone(A);
  // And well enough conditioned (lambda_max <= n scale) for the solve to be right to 1e-8, as on the CPU.
  const double safe = static_cast<double>(n) * scale * std::max(4 * static_cast<double>(n + 1) * kEps, 1e-8);
  if (cholesky(*queue_, L.data(), n)) {
    const auto roots = diagonal(*queue_, L);
    const double smallest = *std::min_element(roots.begin(), roots.end());
    if (smallest * smallest > safe) {
      Matrix inverse = matrix(n, n);
      launch_identity(queue_->stream(), inverse.data(), n);
      solve_lower(*queue_, L.data(), n, inverse.data(), n);
      if (1 / inner(inverse, inverse) > safe) {
        solve_lower(*queue_, L.data(), n, B.data(), B.rows);
        return {inner(B, B), n};
      }
    }
  }
  L = {};

  const auto values = eigh(A);
  const Matrix along = product(A, Transpose::no, B, Transpose::yes);  // row i: the rows of B along eigenvector i
  const auto squares = row_dots(along, along);
  PinvTrace trace;
  for (Index i = 0; i < n; ++i) {
    if (!(values[i] > n_eps * values.back())) continue;
    trace.value += squares[i] / values[i];
    ++trace.rank;
  }
  return trace;
}

}  // namespace ncollapse::cuda
