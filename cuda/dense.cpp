// cholesky's estimate: lambda_max <= tr A, and 1/lambda_min <= |L^-1|_F^2, so 1/(tr A |L^-1|_F^2) is at most 1/cond(A)
// and at least 1/n^2 of it, 1/n where one eigenvalue is far below the others.
#include "cuda/dense.hpp"

#include <algorithm>
#include <string>

#include "cuda/rows.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cuda {
namespace {

cublasOperation_t operation(Transpose transpose) { return transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N; }

cudaDataType data_type(Dtype narrow) { return narrow == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_16F; }

cublasStatus_t product_of_narrow(Queue& queue, Dtype type, const void* A, Index lda, Index m, const void* B, Index ldb,
                                 Index n, Index k, void* C, Index ldc, cudaDataType result = CUDA_R_32F,
                                 float scale = 1) {
  const float zero = 0;
  const cudaDataType operand = data_type(type);
  return cublasGemmStridedBatchedEx_64(queue.blas(), CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &scale, B, operand, ldb, 0, A,
                                       operand, lda, 0, &zero, C, result, ldc, 0, 1, CUBLAS_COMPUTE_32F,
                                       CUBLAS_GEMM_DEFAULT);
}

/// Calls multiply(first row, rows, slices, first column, columns) for what products Z^T Z of slices of rows consist of:
/// panels of columns, each from its own diagonal block downwards. That is less than the full product, and wide enough
/// to run at its speed.
template <class Multiply>
void for_each_panel(Index rows, Index d, Index slice, Index least_width, const Multiply& multiply) {
  constexpr Index kMostPanels = 4, kMultiple = 8;
  const Index panels = std::clamp<Index>(d / least_width, 1, kMostPanels);
  const Index width = (d / panels + kMultiple - 1) / kMultiple * kMultiple;
  for (const bool last : {false, true}) {
    const Index whole = rows / slice, depth = last ? rows % slice : slice, count = last ? 1 : whole;
    if (count == 0 || depth == 0) continue;
    for (Index col = 0; col < d; col += width)
      multiply(last ? whole * slice : 0, depth, count, col, std::min(width, d - col));
  }
}

/// Work space of a cuSOLVER call: one part on the device, one on the host.
struct SolverSpace {
  SolverSpace(Queue& queue, std::size_t device_bytes, std::size_t host_bytes)
      : device(queue, static_cast<Index>(device_bytes)), host(host_bytes), info(queue, 1), guard(queue.stream()) {}
  Buffer<unsigned char> device;
  std::vector<unsigned char> host;
  Buffer<int> info;
  WaitOnException guard;  // last: the host's part must not go while the solver has it

  /// The solver's verdict: 0, or what cuSOLVER documents. Waits, as it must before the space goes.
  int verdict(const char* solver) const {
    const int value = info.to_host().front();
    if (value < 0)
      throw Error(ErrorKind::internal, std::string(solver) + ": argument " + std::to_string(-value) + " is wrong");
    return value;
  }
  /// Where any other verdict than 0 is a failure.
  void require_convergence(const char* solver) const {
    if (const int value = verdict(solver); value > 0)
      throw Error(ErrorKind::internal, std::string(solver) + " did not converge (info " + std::to_string(value) + ")");
  }
};

}  // namespace

Fetch<double> inner(Queue& queue, const double* A, const double* B, Index size) {
  const Buffer<double> parts(queue, inner_parts(size));
  launch_inner(queue.stream(), A, B, size, parts.get());
  return parts.fetch();
}

void gemm(Queue& queue, Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, const double* A,
          Index lda, const double* B, Index ldb, double* C, Index ldc) {
  if (m == 0 || n == 0) return;
  const double one = 1, zero = 0;
  check(cublasDgemm_64(queue.blas(), operation(transpose_b), operation(transpose_a), n, m, k, &one, B, ldb, A, lda,
                       &zero, C, ldc));
}

void add_gram(Queue& queue, double alpha, const double* A, Index lda, Index rows, Index d, double* T) {
  if (rows == 0 || d == 0) return;
  const double one = 1;
  check(cublasDsyrk_64(queue.blas(), CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N, d, rows, &alpha, A, lda, &one, T, d));
}

void gram_slices(Queue& queue, const double* Z, Index rows, Index d, Index slice, double* partial) {
  const double one = 1, zero = 0;
  for_each_panel(rows, d, slice, 256, [&](Index first_row, Index depth, Index count, Index col, Index width) {
    const double* z = Z + first_row * d + col;
    check(cublasDgemmStridedBatched_64(queue.blas(), CUBLAS_OP_N, CUBLAS_OP_T, width, d - col, depth, &one, z, d,
                                       slice * d, z, d, slice * d, &zero,
                                       partial + (first_row / slice * d + col) * d + col, d, d * d, count));
  });
}

void gram_slices(Queue& queue, const Half* Z, Index rows, Index d, Index slice, float* partial) {
  const float one = 1, zero = 0;
  for_each_panel(rows, d, slice, 1024, [&](Index first_row, Index depth, Index count, Index col, Index width) {
    const Half* z = Z + first_row * d + col;
    check(cublasGemmStridedBatchedEx_64(queue.blas(), CUBLAS_OP_N, CUBLAS_OP_T, width, d - col, depth, &one, z,
                                        CUDA_R_16F, d, slice * d, z, CUDA_R_16F, d, slice * d, &zero,
                                        partial + (first_row / slice * d + col) * d + col, CUDA_R_32F, d, d * d, count,
                                        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  });
}

void multiply_narrow(Queue& queue, Dtype type, const void* A, Index lda, Index m, const void* B, Index ldb, Index n,
                     Index k, float* C, Index ldc) {
  if (m > 0 && n > 0) check(product_of_narrow(queue, type, A, lda, m, B, ldb, n, k, C, ldc));
}

void multiply_narrow(Queue& queue, Dtype type, const void* A, Index lda, Index m, const void* B, Index ldb, Index n,
                     Index k, float scale, std::uint16_t* C, Index ldc) {
  if (m > 0 && n > 0) check(product_of_narrow(queue, type, A, lda, m, B, ldb, n, k, C, ldc, data_type(type), scale));
}

namespace {

/// Whether cuBLAS has such a product on this GPU. Any other failure says nothing of that, and is thrown.
bool there_is(cublasStatus_t status) {
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_ARCH_MISMATCH) return false;
  check(status);
  return true;
}

bool test_narrow_products(Queue& queue, Dtype type) {
  // With e = 2^-10 (f16) or 2^-7 (bf16), (1 + e)^2 = 1 + 2e + e^2 takes 21 or 15 bits, 1024 ((1 + e)^2 + 1) 22 or 16:
  // neither survives f16, bf16 or TF32 on the way.
  constexpr Index kSide = 8;
  const float e = type == Dtype::f16 ? 0x1p-10f : 0x1p-7f, square = (1 + e) * (1 + e);
  std::vector<std::uint16_t> rows(2 * kSide * kSide);
  const auto fill = [&](Index row, float value) {
    std::fill_n(rows.begin() + row * kSide, kSide, type == Dtype::f16 ? to_half(value).bits : to_bfloat16(value).bits);
  };
  fill(0, 1 + e);
  fill(kSide, 32 * (1 + e));
  fill(kSide + 1, 32);
  const auto right = [&](const std::vector<float>& products, float first) {
    return products.front() == first && products.back() == 1024 * square + 1024;
  };
  const Buffer<std::uint16_t> z(queue, rows);
  const Buffer<float> products(queue, 2 * kSide * kSide);
  if (type == Dtype::f16) {
    gram_slices(queue, reinterpret_cast<const Half*>(z.get()), 2 * kSide, kSide, kSide, products.get());
    if (!right(products.to_host(), square)) return false;
  }
  // Rows against rows: the first of them by itself, the last ones' columns are the same numbers again.
  std::vector<std::uint16_t> columns(2 * kSide * kSide);
  for (Index i = 0; i < 2 * kSide; ++i)
    for (Index j = 0; j < kSide; ++j) columns[i * kSide + j] = rows[(i / kSide * kSide + j) * kSide];
  const Buffer<std::uint16_t> transposed(queue, columns);
  for (const Index slice : {Index{0}, kSide}) {
    const std::uint16_t* operand = transposed.get() + slice * kSide;
    if (!there_is(product_of_narrow(queue, type, operand, kSide, kSide, operand, kSide, kSide, kSide,
                                    products.get() + slice * kSide, kSide)))
      return false;
  }
  return right(products.to_host(), square);
}

// 2^13 (1 + 15 e / 8), with both signs: sums of as many halves would not go beyond 2^11, those of bf16 numbers not
// beyond 2^8, and the nearest of such numbers, 2^13 (1 + 2 e), is not the one that truncation makes of it, though it is
// still the nearest where sums lose 3 e / 8 of their size.
bool test_narrow_results(Queue& queue, Dtype type) {
  constexpr Index kSide = 8, kTerms = 1 << 13;
  const bool half = type == Dtype::f16;
  const float e = half ? 0x1p-10f : 0x1p-7f;
  const auto bits = [half](float x) { return half ? to_half(x).bits : to_bfloat16(x).bits; };
  std::vector<std::uint16_t> terms(kSide * kTerms);
  for (Index i = 0; i < kSide; ++i)
    for (Index j = 0; j < kTerms; ++j)
      terms[i * kTerms + j] = bits((i < kSide / 2 ? 1 : -1) * (1 + (j % 8 ? 2 : 1) * e));
  const Buffer<std::uint16_t> ones(queue, std::vector<std::uint16_t>(kSide * kTerms, bits(1))), rows(queue, terms),
      products(queue, kSide * kSide);
  if (!there_is(product_of_narrow(queue, type, rows.get(), kTerms, kSide, ones.get(), kTerms, kSide, kTerms,
                                  products.get(), kSide, data_type(type), 0.5f)))
    return false;
  const std::vector<std::uint16_t> found = products.to_host();
  const std::uint16_t above = bits(kTerms / 2 * (1 + 2 * e)), below = bits(-kTerms / 2 * (1 + 2 * e));
  return std::all_of(found.begin(), found.begin() + kSide * kSide / 2,
                     [&](std::uint16_t each) { return each == above; }) &&
         std::all_of(found.begin() + kSide * kSide / 2, found.end(), [&](std::uint16_t each) { return each == below; });
}

}  // namespace

bool narrow_products_are_exact(Queue& queue, Dtype type) {
  std::optional<bool>& exact = type == Dtype::f16 ? queue.exact_halves : queue.exact_bfloats;
  if (!exact) exact = test_narrow_products(queue, type);
  return *exact;
}

bool narrow_results_are_rounded_once(Queue& queue, Dtype type) {
  std::optional<bool>& fine = type == Dtype::f16 ? queue.rounded_halves : queue.rounded_bfloats;
  if (!fine) fine = test_narrow_results(queue, type);
  return *fine;
}

void require_exact_halves(Queue& queue, const char* hint) {
  if (!narrow_products_are_exact(queue, Dtype::f16))
    throw DeviceError("cuBLAS does not accumulate products of fp16 numbers in fp32 on this device", hint);
}

std::vector<double> symmetric_eigen(Queue& queue, cusolverEigMode_t mode, double* A, Index n, double* values) {
  const auto fill = CUBLAS_FILL_MODE_UPPER;
  std::size_t device_bytes = 0, host_bytes = 0;
  check(cusolverDnXsyevd_bufferSize(queue.solver(), queue.solver_params(), mode, fill, n, CUDA_R_64F, A, n, CUDA_R_64F,
                                    values, CUDA_R_64F, &device_bytes, &host_bytes));
  SolverSpace space(queue, device_bytes, host_bytes);
  check(cusolverDnXsyevd(queue.solver(), queue.solver_params(), mode, fill, n, CUDA_R_64F, A, n, CUDA_R_64F, values,
                         CUDA_R_64F, space.device.get(), device_bytes, space.host.data(), host_bytes,
                         space.info.get()));
  Fetch<double> found(queue, values, n);
  space.require_convergence("cusolverDnXsyevd");
  return found.take();
}

void transpose(Queue& queue, const double* A, Index rows, Index cols, double* B) {
  if (rows == 0 || cols == 0) return;
  const double one = 1, zero = 0;  // zero: the second summand is not read
  check(cublasDgeam_64(queue.blas(), CUBLAS_OP_T, CUBLAS_OP_N, rows, cols, &one, A, cols, &zero, B, rows, B, rows));
}

std::vector<double> wide_svd(Queue& queue, double* A, Index m, Index n, double* left, double* right) {
  // Column-major A^T [n x m] = right^T diag(values) left^T: their U [n x m] is our right, their V^T [m x m] our left.
  const signed char job = left != nullptr ? 'S' : 'N';
  const Buffer<double> values(queue, m);
  std::size_t device_bytes = 0, host_bytes = 0;
  check(cusolverDnXgesvd_bufferSize(queue.solver(), queue.solver_params(), job, job, n, m, CUDA_R_64F, A, n, CUDA_R_64F,
                                    values.get(), CUDA_R_64F, right, n, CUDA_R_64F, left, m, CUDA_R_64F, &device_bytes,
                                    &host_bytes));
  SolverSpace space(queue, device_bytes, host_bytes);
  check(cusolverDnXgesvd(queue.solver(), queue.solver_params(), job, job, n, m, CUDA_R_64F, A, n, CUDA_R_64F,
                         values.get(), CUDA_R_64F, right, n, CUDA_R_64F, left, m, CUDA_R_64F, space.device.get(),
                         device_bytes, space.host.data(), host_bytes, space.info.get()));
  Fetch<double> found = values.fetch();
  space.require_convergence("cusolverDnXgesvd");
  return found.take();
}

void triangular_factor(Queue& queue, double* transposed, Index m, Index n, double* R) {
  const Buffer<double> reflectors(queue, n), identity(queue, n * n);
  std::size_t device_bytes = 0, host_bytes = 0;
  check(cusolverDnXgeqrf_bufferSize(queue.solver(), queue.solver_params(), m, n, CUDA_R_64F, transposed, m, CUDA_R_64F,
                                    reflectors.get(), CUDA_R_64F, &device_bytes, &host_bytes));
  SolverSpace space(queue, device_bytes, host_bytes);
  check(cusolverDnXgeqrf(queue.solver(), queue.solver_params(), m, n, CUDA_R_64F, transposed, m, CUDA_R_64F,
                         reflectors.get(), CUDA_R_64F, space.device.get(), device_bytes, space.host.data(), host_bytes,
                         space.info.get()));
  space.verdict("cusolverDnXgeqrf");
  // Below R stand the reflectors; R^T I leaves them out, and column-major R^T is R here.
  launch_identity(queue.stream(), identity.get(), n);
  const double one = 1;
  check(cublasDtrmm_64(queue.blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_T, CUBLAS_DIAG_NON_UNIT, n, n,
                       &one, transposed, m, identity.get(), n, R, n));
}

double cholesky(Queue& queue, double* A, Index n, double* inverse) {
  const auto fill = CUBLAS_FILL_MODE_UPPER;
  const Buffer<double> diagonal(queue, n);
  launch_diagonal(queue.stream(), A, n, diagonal.get());
  Fetch<double> terms = diagonal.fetch();
  std::size_t device_bytes = 0, host_bytes = 0;
  check(cusolverDnXpotrf_bufferSize(queue.solver(), queue.solver_params(), fill, n, CUDA_R_64F, A, n, CUDA_R_64F,
                                    &device_bytes, &host_bytes));
  SolverSpace space(queue, device_bytes, host_bytes);
  check(cusolverDnXpotrf(queue.solver(), queue.solver_params(), fill, n, CUDA_R_64F, A, n, CUDA_R_64F,
                         space.device.get(), device_bytes, space.host.data(), host_bytes, space.info.get()));
  // Before the verdict is known: one wait for all.
  launch_identity(queue.stream(), inverse, n);
  solve_lower(queue, A, Transpose::no, n, inverse, n);
  Fetch<double> squares = inner(queue, inverse, inverse, n * n);
  if (space.verdict("cusolverDnXpotrf") != 0) return 0;
  const double estimate = 1 / (terms.sum() * squares.sum());
  return estimate > 0 ? estimate : 0.0;  // 0 for NaN
}

void solve_lower(Queue& queue, const double* L, Transpose transpose, Index n, double* B, Index rows) {
  if (rows == 0) return;
  const double one = 1;  // column-major: L is U = L^T, and B^T := U^-T B^T or U^-1 B^T
  const auto op = transpose == Transpose::yes ? CUBLAS_OP_N : CUBLAS_OP_T;
  check(cublasDtrsm_64(queue.blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, op, CUBLAS_DIAG_NON_UNIT, n, rows, &one,
                       L, n, B, n));
}

}  // namespace ncollapse::cuda
