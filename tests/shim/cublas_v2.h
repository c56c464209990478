// The cuBLAS calls that cuda/ uses, with cuBLAS's own meaning (column-major), over CBLAS.
#pragma once

#include "tests/shim/cuda_runtime.h"

enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_ALLOC_FAILED = 3,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_ARCH_MISMATCH = 8,
  CUBLAS_STATUS_EXECUTION_FAILED = 13,
  CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasFillMode_t { CUBLAS_FILL_MODE_LOWER = 0, CUBLAS_FILL_MODE_UPPER = 1 };
enum cublasSideMode_t { CUBLAS_SIDE_LEFT = 0, CUBLAS_SIDE_RIGHT = 1 };
enum cublasDiagType_t { CUBLAS_DIAG_NON_UNIT = 0, CUBLAS_DIAG_UNIT = 1 };
enum cublasMath_t { CUBLAS_DEFAULT_MATH = 0, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16 };
enum cublasAtomicsMode_t { CUBLAS_ATOMICS_NOT_ALLOWED = 0 };
enum cudaDataType { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };
struct cublasContext;
using cublasHandle_t = cublasContext*;

const char* cublasGetStatusString(cublasStatus_t status);
cublasStatus_t cublasCreate(cublasHandle_t* handle);
cublasStatus_t cublasDestroy(cublasHandle_t handle);
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream);
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode);
cublasStatus_t cublasSetAtomicsMode(cublasHandle_t handle, cublasAtomicsMode_t mode);
cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void* workspace, std::size_t bytes);
cublasStatus_t cublasDgemm_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m,
                              std::int64_t n, std::int64_t k, const double* alpha, const double* A, std::int64_t lda,
                              const double* B, std::int64_t ldb, const double* beta, double* C, std::int64_t ldc);
cublasStatus_t cublasDgemmStridedBatched_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                            std::int64_t m, std::int64_t n, std::int64_t k, const double* alpha,
                                            const double* A, std::int64_t lda, long long stride_a, const double* B,
                                            std::int64_t ldb, long long stride_b, const double* beta, double* C,
                                            std::int64_t ldc, long long stride_c, std::int64_t count);
cublasStatus_t cublasGemmStridedBatchedEx_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                             std::int64_t m, std::int64_t n, std::int64_t k, const void* alpha,
                                             const void* A, cudaDataType type_a, std::int64_t lda, long long stride_a,
                                             const void* B, cudaDataType type_b, std::int64_t ldb, long long stride_b,
                                             const void* beta, void* C, cudaDataType type_c, std::int64_t ldc,
                                             long long stride_c, std::int64_t count, cublasComputeType_t compute,
                                             cublasGemmAlgo_t algorithm);
cublasStatus_t cublasDsyrk_64(cublasHandle_t handle, cublasFillMode_t fill, cublasOperation_t op, std::int64_t n,
                              std::int64_t k, const double* alpha, const double* A, std::int64_t lda,
                              const double* beta, double* C, std::int64_t ldc);
cublasStatus_t cublasDgeam_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m,
                              std::int64_t n, const double* alpha, const double* A, std::int64_t lda,
                              const double* beta, const double* B, std::int64_t ldb, double* C, std::int64_t ldc);
cublasStatus_t cublasDtrsm_64(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t fill, cublasOperation_t op,
                              cublasDiagType_t diag, std::int64_t m, std::int64_t n, const double* alpha,
                              const double* A, std::int64_t lda, double* B, std::int64_t ldb);
cublasStatus_t cublasDtrmm_64(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t fill, cublasOperation_t op,
                              cublasDiagType_t diag, std::int64_t m, std::int64_t n, const double* alpha,
                              const double* A, std::int64_t lda, const double* B, std::int64_t ldb, double* C,
                              std::int64_t ldc);
cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m,
                               std::int64_t n, std::int64_t k, const void* alpha, const void* A, cudaDataType type_a,
                               std::int64_t lda, const void* B, cudaDataType type_b, std::int64_t ldb, const void* beta,
                               void* C, cudaDataType type_c, std::int64_t ldc, cublasComputeType_t compute,
                               cublasGemmAlgo_t algorithm);

namespace cuda_shim {
/// Products of 16-bit numbers are added up in fp16, as some library, flag or driver might.
void set_half_sums(bool on);
/// What products of 16-bit numbers return instead of being done; success: they are done.
void set_narrow_status(cublasStatus_t status);
/// What products in double return instead of being done; success: they are done.
void set_product_status(cublasStatus_t status);
/// Results of 16 bits are truncated, not rounded to nearest.
void set_truncated_results(bool on);
}  // namespace cuda_shim
