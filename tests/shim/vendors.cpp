#include <cblas.h>
#include <lapacke.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "tests/shim/cusolverDn.h"

struct cublasContext {
  int device = 0;
  cudaStream_t stream = nullptr;
  bool workspace = false;
};
struct cusolverDnContext {
  int device = 0;
  cudaStream_t stream = nullptr;
  bool deterministic = false;
};
struct cusolverDnParams {};

namespace {

bool spoil_vectors = false, spoil_values = false, fails = false, half_sums = false, truncated = false;
cublasStatus_t narrow_status = CUBLAS_STATUS_SUCCESS, product_status = CUBLAS_STATUS_SUCCESS;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "cuda shim: %s\n", what);
  std::abort();
}

/// Last element of a column-major matrix exists, first one as well.
void require_matrix(const void* A, std::int64_t rows, std::int64_t cols, std::int64_t ld,
                    std::size_t element = sizeof(double)) {
  if (rows <= 0 || cols <= 0) return;
  if (ld < rows) fail("a leading dimension smaller than the column");
  cuda_shim::require_device(A, element * static_cast<std::size_t>(ld * (cols - 1) + rows));
}
int current_device() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}
void require_ready(cublasHandle_t handle) {
  cuda_shim::count_vendor_call();
  if (handle->device != current_device()) fail("cuBLAS while another device is current");
  if (handle->stream == nullptr) fail("cuBLAS on the default stream");
  if (!handle->workspace) fail("cuBLAS without its own workspace (set after the stream)");
}
void require_ready(cusolverDnHandle_t handle) {
  cuda_shim::count_vendor_call();
  if (handle->device != current_device()) fail("cuSOLVER while another device is current");
  if (handle->stream == nullptr) fail("cuSOLVER on the default stream");
  if (!handle->deterministic) fail("cuSOLVER not in deterministic mode");
}
void require_space(const void* device, std::size_t device_bytes, const void* host, std::size_t host_bytes,
                   std::int64_t n, const int* info) {
  if (device_bytes != static_cast<std::size_t>(8 * n) || host_bytes != static_cast<std::size_t>(4 * n))
    fail("a work space that is not the one asked for");
  cuda_shim::require_device(device, device_bytes);
  cuda_shim::require_device(info, sizeof(int));
  if (host == nullptr) fail("no host work space");
}
/// Work spaces are written to when the solver's turn has come: they have to be there still.
void use_up(void* device, std::size_t device_bytes, void* host, std::size_t host_bytes) {
  std::memset(device, 0xff, device_bytes);
  std::memset(host, 0xff, host_bytes);
}

/// What a call reads or writes of a column-major matrix, when its turn has come: all of it, or a triangle.
enum class Part { all, upper, lower };
template <class Touch>
void touch(Part part, std::int64_t rows, std::int64_t cols, const Touch& column) {
  for (std::int64_t j = 0; j < cols; ++j) {
    const std::int64_t first = part == Part::lower ? std::min(j, rows) : 0,
                       last = part == Part::upper ? std::min(j + 1, rows) : rows;
    if (first < last) column(j, first, static_cast<std::size_t>(last - first));
  }
}
template <class T>
void reads(const T* A, std::int64_t rows, std::int64_t cols, std::int64_t ld, Part part = Part::all) {
  touch(part, rows, cols,
        [&](auto j, auto first, auto count) { cuda_shim::reads(A + j * ld + first, count * sizeof(T)); });
}
template <class T>
void writes(T* A, std::int64_t rows, std::int64_t cols, std::int64_t ld, Part part = Part::all) {
  touch(part, rows, cols,
        [&](auto j, auto first, auto count) { cuda_shim::writes(A + j * ld + first, count * sizeof(T)); });
}
Part triangle(cublasFillMode_t fill) { return fill == CUBLAS_FILL_MODE_UPPER ? Part::upper : Part::lower; }

CBLAS_TRANSPOSE transpose(cublasOperation_t op) { return op == CUBLAS_OP_T ? CblasTrans : CblasNoTrans; }
CBLAS_UPLO uplo(cublasFillMode_t fill) { return fill == CUBLAS_FILL_MODE_UPPER ? CblasUpper : CblasLower; }
char uplo_letter(cublasFillMode_t fill) { return fill == CUBLAS_FILL_MODE_UPPER ? 'U' : 'L'; }
int narrow(std::int64_t size) { return static_cast<int>(size); }

}  // namespace

namespace cuda_shim {
void spoil_next_eigenvectors() { spoil_vectors = true; }
void spoil_next_eigenvalues() { spoil_values = true; }
void fail_next_solver() { fails = true; }
void set_half_sums(bool on) { half_sums = on; }
void set_narrow_status(cublasStatus_t status) { narrow_status = status; }
void set_product_status(cublasStatus_t status) { product_status = status; }
void set_truncated_results(bool on) { truncated = on; }
}  // namespace cuda_shim

const char* cublasGetStatusString(cublasStatus_t) { return "a cuBLAS status"; }
cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  openblas_set_num_threads(1);  // its threads are unknown to the sanitizers
  *handle = new cublasContext{current_device()};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  handle->workspace = false;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetAtomicsMode(cublasHandle_t, cublasAtomicsMode_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void* workspace, std::size_t bytes) {
  cuda_shim::require_device(workspace, bytes);
  handle->workspace = true;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDgemm_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m,
                              std::int64_t n, std::int64_t k, const double* alpha, const double* A, std::int64_t lda,
                              const double* B, std::int64_t ldb, const double* beta, double* C, std::int64_t ldc) {
  require_ready(handle);
  if (product_status != CUBLAS_STATUS_SUCCESS) return product_status;
  require_matrix(A, op_a == CUBLAS_OP_N ? m : k, op_a == CUBLAS_OP_N ? k : m, lda);
  require_matrix(B, op_b == CUBLAS_OP_N ? k : n, op_b == CUBLAS_OP_N ? n : k, ldb);
  require_matrix(C, m, n, ldc);
  cuda_shim::submit(handle->stream, [=, by = *alpha, keep = *beta] {
    reads(A, op_a == CUBLAS_OP_N ? m : k, op_a == CUBLAS_OP_N ? k : m, lda);
    reads(B, op_b == CUBLAS_OP_N ? k : n, op_b == CUBLAS_OP_N ? n : k, ldb);
    if (keep != 0) reads(C, m, n, ldc);
    writes(C, m, n, ldc);
    cblas_dgemm(CblasColMajor, transpose(op_a), transpose(op_b), narrow(m), narrow(n), narrow(k), by, A, narrow(lda), B,
                narrow(ldb), keep, C, narrow(ldc));
  });
  return CUBLAS_STATUS_SUCCESS;
}

// Operands in single precision, or in half precision widened first; the result in single precision.
cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m,
                               std::int64_t n, std::int64_t k, const void* alpha, const void* A, cudaDataType type_a,
                               std::int64_t lda, const void* B, cudaDataType type_b, std::int64_t ldb, const void* beta,
                               void* C, cudaDataType type_c, std::int64_t ldc, cublasComputeType_t, cublasGemmAlgo_t) {
  require_ready(handle);
  if (type_a != type_b || (type_a != CUDA_R_32F && type_a != CUDA_R_16F) || type_c != CUDA_R_32F)
    fail("cublasGemmEx: types");
  const auto floats_of = [](const void* data, cudaDataType type, std::int64_t rows, std::int64_t cols,
                            std::int64_t ld) {
    const std::size_t count = static_cast<std::size_t>(ld * (cols - 1) + rows);
    if (ld < rows) fail("a leading dimension smaller than the column");
    cuda_shim::require_device(data, count * (type == CUDA_R_32F ? sizeof(float) : sizeof(_Float16)));
    std::vector<float> floats(count);
    for (std::size_t i = 0; i < count; ++i)
      floats[i] = type == CUDA_R_32F ? static_cast<const float*>(data)[i]
                                     : static_cast<float>(static_cast<const _Float16*>(data)[i]);
    return floats;
  };
  cuda_shim::require_device(C, sizeof(float) * static_cast<std::size_t>(ldc * (n - 1) + m));
  const float by = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  cuda_shim::submit(handle->stream, [=] {
    const auto a = floats_of(A, type_a, op_a == CUBLAS_OP_N ? m : k, op_a == CUBLAS_OP_N ? k : m, lda);
    const auto b = floats_of(B, type_b, op_b == CUBLAS_OP_N ? k : n, op_b == CUBLAS_OP_N ? n : k, ldb);
    writes(static_cast<float*>(C), m, n, ldc);
    cblas_sgemm(CblasColMajor, transpose(op_a), transpose(op_b), narrow(m), narrow(n), narrow(k), by, a.data(),
                narrow(lda), b.data(), narrow(ldb), keep, static_cast<float*>(C), narrow(ldc));
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDgemmStridedBatched_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                            std::int64_t m, std::int64_t n, std::int64_t k, const double* alpha,
                                            const double* A, std::int64_t lda, long long stride_a, const double* B,
                                            std::int64_t ldb, long long stride_b, const double* beta, double* C,
                                            std::int64_t ldc, long long stride_c, std::int64_t count) {
  for (std::int64_t i = 0; i < count && product_status == CUBLAS_STATUS_SUCCESS; ++i)
    cublasDgemm_64(handle, op_a, op_b, m, n, k, alpha, A + i * stride_a, lda, B + i * stride_b, ldb, beta,
                   C + i * stride_c, ldc);
  return product_status;
}

// Products of 16-bit numbers are exact in fp32; their sum is made in fp32, in the order of the rows.
namespace {
std::uint16_t narrowed(float x, cudaDataType type) {
  std::uint16_t bits;
  if (type == CUDA_R_16F) {
    const auto half = static_cast<_Float16>(x);
    std::memcpy(&bits, &half, sizeof bits);
    if (truncated && std::abs(static_cast<float>(half)) > std::abs(x)) --bits;
  } else {  // to nearest, ties to even
    std::uint32_t wide;
    std::memcpy(&wide, &x, sizeof wide);
    const std::uint32_t up = truncated ? 0 : 0x7fffu + (wide >> 16 & 1u);
    bits = x != x ? 0x7fc0 : static_cast<std::uint16_t>((wide + up) >> 16);
  }
  return bits;
}
}  // namespace

cublasStatus_t cublasGemmStridedBatchedEx_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                             std::int64_t m, std::int64_t n, std::int64_t k, const void* alpha,
                                             const void* A, cudaDataType type_a, std::int64_t lda, long long stride_a,
                                             const void* B, cudaDataType type_b, std::int64_t ldb, long long stride_b,
                                             const void* beta, void* C, cudaDataType type_c, std::int64_t ldc,
                                             long long stride_c, std::int64_t count, cublasComputeType_t compute,
                                             cublasGemmAlgo_t) {
  require_ready(handle);
  if (narrow_status != CUBLAS_STATUS_SUCCESS) return narrow_status;
  if ((type_a != CUDA_R_16F && type_a != CUDA_R_16BF) || type_b != type_a ||
      (type_c != CUDA_R_32F && type_c != type_a) || compute != CUBLAS_COMPUTE_32F)
    return CUBLAS_STATUS_INVALID_VALUE;
  const auto misaligned = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 != 0; };
  if (lda % 8 != 0 || ldb % 8 != 0 || misaligned(A) || misaligned(B))
    fail("16-bit operands whose rows do not start at multiples of 16 bytes");
  const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  const bool narrow_result = type_c != CUDA_R_32F;
  const std::int64_t result_bytes = narrow_result ? 2 : 4;
  if (narrow_result && (keep != 0 || count != 1 || ldc % 8 != 0 || misaligned(C)))
    fail("a 16-bit result that is added to, of several products, or with rows that are not at multiples of 16 bytes");
  const auto value = [type_a](const void* data, std::int64_t at) {
    const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[at];
    if (type_a == CUDA_R_16BF) {
      const std::uint32_t wide = std::uint32_t{bits} << 16;
      float number;
      std::memcpy(&number, &wide, sizeof number);
      return number;
    }
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return static_cast<float>(half);
  };
  for (std::int64_t slice = 0; slice < count; ++slice) {
    require_matrix(static_cast<const std::uint16_t*>(A) + slice * stride_a, op_a == CUBLAS_OP_N ? m : k,
                   op_a == CUBLAS_OP_N ? k : m, lda, 2);
    require_matrix(static_cast<const std::uint16_t*>(B) + slice * stride_b, op_b == CUBLAS_OP_N ? k : n,
                   op_b == CUBLAS_OP_N ? n : k, ldb, 2);
    require_matrix(static_cast<char*>(C) + slice * stride_c * result_bytes, m, n, ldc,
                   static_cast<std::size_t>(result_bytes));
  }
  cuda_shim::submit(handle->stream, [=] {
    std::vector<float> a(static_cast<std::size_t>(m * k)), b(static_cast<std::size_t>(n * k));
    for (std::int64_t slice = 0; slice < count; ++slice) {
      const std::int64_t a0 = slice * stride_a, b0 = slice * stride_b;
      float* c = static_cast<float*>(C) + slice * stride_c;
      std::vector<float> sums(narrow_result ? static_cast<std::size_t>(m * n) : 0);
      const std::int64_t ld = narrow_result ? m : ldc;
      reads(static_cast<const std::uint16_t*>(A) + a0, op_a == CUBLAS_OP_N ? m : k, op_a == CUBLAS_OP_N ? k : m, lda);
      reads(static_cast<const std::uint16_t*>(B) + b0, op_b == CUBLAS_OP_N ? k : n, op_b == CUBLAS_OP_N ? n : k, ldb);
      if (keep != 0) reads(c, m, n, ldc);
      if (narrow_result)
        writes(static_cast<std::uint16_t*>(C), m, n, ldc);
      else
        writes(c, m, n, ldc);
      if (narrow_result) c = sums.data();
      for (std::int64_t l = 0; l < k; ++l) {
        for (std::int64_t i = 0; i < m; ++i)
          a[l * m + i] = value(A, a0 + (op_a == CUBLAS_OP_N ? i + l * lda : l + i * lda));
        for (std::int64_t j = 0; j < n; ++j)
          b[l * n + j] = value(B, b0 + (op_b == CUBLAS_OP_N ? l + j * ldb : j + l * ldb));
      }
      for (std::int64_t j = 0; j < n; ++j)
        for (std::int64_t i = 0; i < m; ++i) c[i + j * ld] = keep == 0 ? 0 : keep * c[i + j * ld];
      for (std::int64_t l = 0; l < k; ++l)
        for (std::int64_t j = 0; j < n; ++j)
          for (std::int64_t i = 0; i < m; ++i) {
            float& sum = c[i + j * ld];
            sum += scale * a[l * m + i] * b[l * n + j];
            if (half_sums) sum = static_cast<float>(static_cast<_Float16>(sum));
          }
      for (std::int64_t j = 0; narrow_result && j < n; ++j)
        for (std::int64_t i = 0; i < m; ++i)
          static_cast<std::uint16_t*>(C)[i + j * ldc] = narrowed(c[i + j * ld], type_c);
    }
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDsyrk_64(cublasHandle_t handle, cublasFillMode_t fill, cublasOperation_t op, std::int64_t n,
                              std::int64_t k, const double* alpha, const double* A, std::int64_t lda,
                              const double* beta, double* C, std::int64_t ldc) {
  require_ready(handle);
  require_matrix(A, op == CUBLAS_OP_N ? n : k, op == CUBLAS_OP_N ? k : n, lda);
  require_matrix(C, n, n, ldc);
  cuda_shim::submit(handle->stream, [=, by = *alpha, keep = *beta] {
    reads(A, op == CUBLAS_OP_N ? n : k, op == CUBLAS_OP_N ? k : n, lda);
    if (keep != 0) reads(C, n, n, ldc, triangle(fill));
    writes(C, n, n, ldc, triangle(fill));
    cblas_dsyrk(CblasColMajor, uplo(fill), transpose(op), narrow(n), narrow(k), by, A, narrow(lda), keep, C,
                narrow(ldc));
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDgeam_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m,
                              std::int64_t n, const double* alpha, const double* A, std::int64_t lda,
                              const double* beta, const double* B, std::int64_t ldb, double* C, std::int64_t ldc) {
  require_ready(handle);
  const auto side = [](cublasOperation_t op, std::int64_t rows, std::int64_t cols) {
    return op == CUBLAS_OP_N ? rows : cols;
  };
  require_matrix(A, side(op_a, m, n), side(op_a, n, m), lda);
  if (*beta != 0) require_matrix(B, side(op_b, m, n), side(op_b, n, m), ldb);
  require_matrix(C, m, n, ldc);
  // In place only untransposed; a smaller leading dimension of B is refused even where B is not read.
  if ((C == A && (op_a != CUBLAS_OP_N || lda != ldc)) || (C == B && (op_b != CUBLAS_OP_N || ldb != ldc)) ||
      ldb < side(op_b, m, n))
    return CUBLAS_STATUS_INVALID_VALUE;
  const auto at = [](const double* M, cublasOperation_t op, std::int64_t ld, std::int64_t i, std::int64_t j) {
    return op == CUBLAS_OP_N ? M[i + j * ld] : M[j + i * ld];
  };
  cuda_shim::submit(handle->stream, [=, by = *alpha, keep = *beta] {
    reads(A, side(op_a, m, n), side(op_a, n, m), lda);
    if (keep != 0) reads(B, side(op_b, m, n), side(op_b, n, m), ldb);
    writes(C, m, n, ldc);
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t i = 0; i < m; ++i) {
        const double added = keep == 0 ? 0.0 : keep * at(B, op_b, ldb, i, j);
        C[i + j * ldc] = by * at(A, op_a, lda, i, j) + added;
      }
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDtrsm_64(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t fill, cublasOperation_t op,
                              cublasDiagType_t diag, std::int64_t m, std::int64_t n, const double* alpha,
                              const double* A, std::int64_t lda, double* B, std::int64_t ldb) {
  require_ready(handle);
  const std::int64_t order = side == CUBLAS_SIDE_LEFT ? m : n;
  require_matrix(A, order, order, lda);
  require_matrix(B, m, n, ldb);
  cuda_shim::submit(handle->stream, [=, by = *alpha] {
    reads(A, order, order, lda, triangle(fill));
    reads(B, m, n, ldb);
    cblas_dtrsm(CblasColMajor, side == CUBLAS_SIDE_LEFT ? CblasLeft : CblasRight, uplo(fill), transpose(op),
                diag == CUBLAS_DIAG_UNIT ? CblasUnit : CblasNonUnit, narrow(m), narrow(n), by, A, narrow(lda), B,
                narrow(ldb));
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDtrmm_64(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t fill, cublasOperation_t op,
                              cublasDiagType_t diag, std::int64_t m, std::int64_t n, const double* alpha,
                              const double* A, std::int64_t lda, const double* B, std::int64_t ldb, double* C,
                              std::int64_t ldc) {
  require_ready(handle);
  const std::int64_t order = side == CUBLAS_SIDE_LEFT ? m : n;
  require_matrix(A, order, order, lda);
  require_matrix(B, m, n, ldb);
  require_matrix(C, m, n, ldc);
  cuda_shim::submit(handle->stream, [=, by = *alpha] {
    reads(A, order, order, lda, triangle(fill));
    reads(B, m, n, ldb);
    writes(C, m, n, ldc);
    for (std::int64_t j = 0; j < n; ++j) std::copy_n(B + j * ldb, m, C + j * ldc);
    cblas_dtrmm(CblasColMajor, side == CUBLAS_SIDE_LEFT ? CblasLeft : CblasRight, uplo(fill), transpose(op),
                diag == CUBLAS_DIAG_UNIT ? CblasUnit : CblasNonUnit, narrow(m), narrow(n), by, A, narrow(lda), C,
                narrow(ldc));
  });
  return CUBLAS_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle) {
  *handle = new cusolverDnContext{current_device()};
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) {
  delete handle;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSetDeterministicMode(cusolverDnHandle_t handle, cusolverDeterministicMode_t mode) {
  handle->deterministic = mode == CUSOLVER_DETERMINISTIC_RESULTS;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t* params) {
  *params = new cusolverDnParams;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params) {
  delete params;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevd_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t, cusolverEigMode_t,
                                             cublasFillMode_t, std::int64_t n, cudaDataType, const void*, std::int64_t,
                                             cudaDataType, const void*, cudaDataType, std::size_t* device_bytes,
                                             std::size_t* host_bytes) {
  require_ready(handle);
  *device_bytes = static_cast<std::size_t>(8 * n);
  *host_bytes = static_cast<std::size_t>(4 * n);
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevd(cusolverDnHandle_t handle, cusolverDnParams_t, cusolverEigMode_t mode,
                                  cublasFillMode_t fill, std::int64_t n, cudaDataType, void* A, std::int64_t lda,
                                  cudaDataType, void* W, cudaDataType, void* device_space, std::size_t device_bytes,
                                  void* host_space, std::size_t host_bytes, int* info) {
  require_ready(handle);
  require_space(device_space, device_bytes, host_space, host_bytes, n, info);
  require_matrix(A, n, n, lda);
  require_matrix(W, n, 1, n);
  cuda_shim::submit(
      handle->stream, [=, no_vectors = std::exchange(spoil_vectors, false),
                       no_values = std::exchange(spoil_values, false), failed = std::exchange(fails, false)] {
        use_up(device_space, device_bytes, host_space, host_bytes);
        reads(static_cast<double*>(A), n, n, lda, triangle(fill));
        writes(static_cast<double*>(A), n, n, lda);
        writes(static_cast<double*>(W), n, 1, n);
        writes(info, 1, 1, 1);
        *info = LAPACKE_dsyevd(LAPACK_COL_MAJOR, mode == CUSOLVER_EIG_MODE_VECTOR ? 'V' : 'N', uplo_letter(fill),
                               narrow(n), static_cast<double*>(A), narrow(lda), static_cast<double*>(W));
        if (no_vectors) static_cast<double*>(A)[0] += 0.5;
        if (no_values) static_cast<double*>(W)[0] += 0.5;
        if (failed) *info = 1;
      });
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t, cublasFillMode_t,
                                             std::int64_t n, cudaDataType, const void*, std::int64_t, cudaDataType,
                                             std::size_t* device_bytes, std::size_t* host_bytes) {
  return cusolverDnXsyevd_bufferSize(handle, nullptr, {}, {}, n, {}, nullptr, n, {}, nullptr, {}, device_bytes,
                                     host_bytes);
}

cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t handle, cusolverDnParams_t, cublasFillMode_t fill, std::int64_t n,
                                  cudaDataType, void* A, std::int64_t lda, cudaDataType, void* device_space,
                                  std::size_t device_bytes, void* host_space, std::size_t host_bytes, int* info) {
  require_ready(handle);
  require_space(device_space, device_bytes, host_space, host_bytes, n, info);
  require_matrix(A, n, n, lda);
  cuda_shim::submit(handle->stream, [=] {
    use_up(device_space, device_bytes, host_space, host_bytes);
    reads(static_cast<double*>(A), n, n, lda, triangle(fill));
    writes(info, 1, 1, 1);
    *info = LAPACKE_dpotrf(LAPACK_COL_MAJOR, uplo_letter(fill), narrow(n), static_cast<double*>(A), narrow(lda));
  });
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXgeqrf_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t, std::int64_t,
                                             std::int64_t n, cudaDataType, const void*, std::int64_t, cudaDataType,
                                             const void*, cudaDataType, std::size_t* device_bytes,
                                             std::size_t* host_bytes) {
  return cusolverDnXsyevd_bufferSize(handle, nullptr, {}, {}, n, {}, nullptr, n, {}, nullptr, {}, device_bytes,
                                     host_bytes);
}

cusolverStatus_t cusolverDnXgeqrf(cusolverDnHandle_t handle, cusolverDnParams_t, std::int64_t m, std::int64_t n,
                                  cudaDataType, void* A, std::int64_t lda, cudaDataType, void* tau, cudaDataType,
                                  void* device_space, std::size_t device_bytes, void* host_space,
                                  std::size_t host_bytes, int* info) {
  require_ready(handle);
  require_space(device_space, device_bytes, host_space, host_bytes, n, info);
  require_matrix(A, m, n, lda);
  require_matrix(tau, std::min(m, n), 1, std::min(m, n));
  cuda_shim::submit(handle->stream, [=] {
    use_up(device_space, device_bytes, host_space, host_bytes);
    reads(static_cast<double*>(A), m, n, lda);
    writes(static_cast<double*>(tau), std::min(m, n), 1, m);
    writes(info, 1, 1, 1);
    *info = LAPACKE_dgeqrf(LAPACK_COL_MAJOR, narrow(m), narrow(n), static_cast<double*>(A), narrow(lda),
                           static_cast<double*>(tau));
  });
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXgesvd_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t, signed char, signed char,
                                             std::int64_t m, std::int64_t n, cudaDataType, const void*,
                                             std::int64_t lda, cudaDataType, const void*, cudaDataType, const void*,
                                             std::int64_t ldu, cudaDataType, const void*, std::int64_t ldvt,
                                             cudaDataType, std::size_t* device_bytes, std::size_t* host_bytes) {
  require_ready(handle);
  if (m < n || lda < m || ldu < m || ldvt < n) return CUSOLVER_STATUS_INVALID_VALUE;  // no wide matrices
  *device_bytes = static_cast<std::size_t>(8 * m);
  *host_bytes = static_cast<std::size_t>(4 * m);
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXgesvd(cusolverDnHandle_t handle, cusolverDnParams_t, signed char job_u, signed char job_vt,
                                  std::int64_t m, std::int64_t n, cudaDataType, void* A, std::int64_t lda, cudaDataType,
                                  void* S, cudaDataType, void* U, std::int64_t ldu, cudaDataType, void* VT,
                                  std::int64_t ldvt, cudaDataType, void* device_space, std::size_t device_bytes,
                                  void* host_space, std::size_t host_bytes, int* info) {
  require_ready(handle);
  if (m < n || lda < m || ldu < m || ldvt < n) return CUSOLVER_STATUS_INVALID_VALUE;
  require_space(device_space, device_bytes, host_space, host_bytes, m, info);
  require_matrix(A, m, n, lda);
  require_matrix(S, n, 1, n);
  if (job_u != 'N') require_matrix(U, m, job_u == 'A' ? m : n, ldu);
  if (job_vt != 'N') require_matrix(VT, n, n, ldvt);
  cuda_shim::submit(handle->stream, [=, failed = std::exchange(fails, false)] {
    use_up(device_space, device_bytes, host_space, host_bytes);
    reads(static_cast<double*>(A), m, n, lda);
    writes(static_cast<double*>(S), n, 1, n);
    if (job_u != 'N') writes(static_cast<double*>(U), m, job_u == 'A' ? m : n, ldu);
    if (job_vt != 'N') writes(static_cast<double*>(VT), n, n, ldvt);
    writes(info, 1, 1, 1);
    std::vector<double> unconverged(static_cast<std::size_t>(n));
    *info = LAPACKE_dgesvd(LAPACK_COL_MAJOR, static_cast<char>(job_u), static_cast<char>(job_vt), narrow(m), narrow(n),
                           static_cast<double*>(A), narrow(lda), static_cast<double*>(S), static_cast<double*>(U),
                           narrow(ldu), static_cast<double*>(VT), narrow(ldvt), unconverged.data());
    if (failed) *info = 1;
  });
  return CUSOLVER_STATUS_SUCCESS;
}
