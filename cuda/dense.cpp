#include "cuda/dense.hpp"

#include <string>

#include "ncollapse/error.hpp"

namespace ncollapse::cuda {
namespace {

cublasOperation_t operation(Transpose transpose) { return transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N; }

/// Work space of a cuSOLVER call: one part on the device, one on the host.
struct SolverSpace {
  SolverSpace(Queue& queue, std::size_t device_bytes, std::size_t host_bytes)
      : device(queue, static_cast<Index>(device_bytes)), host(host_bytes), info(queue, 1) {}
  Buffer<unsigned char> device;
  std::vector<unsigned char> host;
  Buffer<int> info;

  /// The solver's verdict: 0, or what cuSOLVER documents. Waits.
  int verdict(const char* solver) const {
    const int value = info.to_host().front();
    if (value < 0)
      throw Error(ErrorKind::internal, std::string(solver) + ": argument " + std::to_string(-value) + " is wrong");
    return value;
  }
};

}  // namespace

void gemm(Queue& queue, Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, const double* A,
          Index lda, const double* B, Index ldb, double* C, Index ldc) {
  if (m == 0 || n == 0) return;
  const double one = 1, zero = 0;
  check(cublasDgemm_64(queue.blas(), operation(transpose_b), operation(transpose_a), n, m, k, &one, B, ldb, A, lda,
                       &zero, C, ldc));
}

void add_gram(Queue& queue, double alpha, const double* A, Index rows, Index d, double* T) {
  if (rows == 0 || d == 0) return;
  const double one = 1;
  check(cublasDsyrk_64(queue.blas(), CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N, d, rows, &alpha, A, d, &one, T, d));
}

void symmetric_eigen(Queue& queue, double* A, Index n, double* values) {
  const auto mode = CUSOLVER_EIG_MODE_VECTOR;
  const auto fill = CUBLAS_FILL_MODE_UPPER;
  std::size_t device_bytes = 0, host_bytes = 0;
  check(cusolverDnXsyevd_bufferSize(queue.solver(), queue.solver_params(), mode, fill, n, CUDA_R_64F, A, n, CUDA_R_64F,
                                    values, CUDA_R_64F, &device_bytes, &host_bytes));
  SolverSpace space(queue, device_bytes, host_bytes);
  check(cusolverDnXsyevd(queue.solver(), queue.solver_params(), mode, fill, n, CUDA_R_64F, A, n, CUDA_R_64F, values,
                         CUDA_R_64F, space.device.get(), device_bytes, space.host.data(), host_bytes,
                         space.info.get()));
  const int verdict = space.verdict("cusolverDnXsyevd");
  if (verdict > 0)
    throw Error(ErrorKind::internal, "cusolverDnXsyevd did not converge (info " + std::to_string(verdict) + ")");
}

void transpose(Queue& queue, const double* A, Index rows, Index cols, double* B) {
  if (rows == 0 || cols == 0) return;
  const double one = 1, zero = 0;  // zero: the second summand is not read
  check(cublasDgeam_64(queue.blas(), CUBLAS_OP_T, CUBLAS_OP_N, rows, cols, &one, A, cols, &zero, B, rows, B, rows));
}

void wide_svd(Queue& queue, double* A, Index m, Index n, double* values, double* left, double* right) {
  // Column-major A^T [n x m] = right^T diag(values) left^T: their U [n x m] is our right, their V^T [m x m] our left.
  std::size_t device_bytes = 0, host_bytes = 0;
  check(cusolverDnXgesvd_bufferSize(queue.solver(), queue.solver_params(), 'S', 'S', n, m, CUDA_R_64F, A, n, CUDA_R_64F,
                                    values, CUDA_R_64F, right, n, CUDA_R_64F, left, m, CUDA_R_64F, &device_bytes,
                                    &host_bytes));
  SolverSpace space(queue, device_bytes, host_bytes);
  check(cusolverDnXgesvd(queue.solver(), queue.solver_params(), 'S', 'S', n, m, CUDA_R_64F, A, n, CUDA_R_64F, values,
                         CUDA_R_64F, right, n, CUDA_R_64F, left, m, CUDA_R_64F, space.device.get(), device_bytes,
                         space.host.data(), host_bytes, space.info.get()));
  const int verdict = space.verdict("cusolverDnXgesvd");
  if (verdict > 0)
    throw Error(ErrorKind::internal, "cusolverDnXgesvd did not converge (info " + std::to_string(verdict) + ")");
}

bool cholesky(Queue& queue, double* A, Index n) {
  const auto fill = CUBLAS_FILL_MODE_UPPER;
  std::size_t device_bytes = 0, host_bytes = 0;
  check(cusolverDnXpotrf_bufferSize(queue.solver(), queue.solver_params(), fill, n, CUDA_R_64F, A, n, CUDA_R_64F,
                                    &device_bytes, &host_bytes));
  SolverSpace space(queue, device_bytes, host_bytes);
  check(cusolverDnXpotrf(queue.solver(), queue.solver_params(), fill, n, CUDA_R_64F, A, n, CUDA_R_64F,
                         space.device.get(), device_bytes, space.host.data(), host_bytes, space.info.get()));
  return space.verdict("cusolverDnXpotrf") == 0;
}

void solve_lower(Queue& queue, const double* L, Index n, double* B, Index rows) {
  if (rows == 0) return;
  const double one = 1;  // column-major: A = U^T U with U = L^T, and B^T := U^-T B^T
  check(cublasDtrsm_64(queue.blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_T, CUBLAS_DIAG_NON_UNIT, n,
                       rows, &one, L, n, B, n));
}

}  // namespace ncollapse::cuda
