// The cuSOLVER calls that cuda/ uses, over LAPACKE, column-major. Work space sizes are made up, but asked for and
// checked: a caller that forgets one of the two parts fails.
#pragma once

#include "tests/shim/cublas_v2.h"

enum cusolverStatus_t {
  CUSOLVER_STATUS_SUCCESS = 0,
  CUSOLVER_STATUS_ALLOC_FAILED = 2,
  CUSOLVER_STATUS_INVALID_VALUE = 3
};
enum cusolverEigMode_t { CUSOLVER_EIG_MODE_NOVECTOR = 0, CUSOLVER_EIG_MODE_VECTOR = 1 };
enum cusolverDeterministicMode_t { CUSOLVER_DETERMINISTIC_RESULTS = 1 };
struct cusolverDnContext;
struct cusolverDnParams;
using cusolverDnHandle_t = cusolverDnContext*;
using cusolverDnParams_t = cusolverDnParams*;

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle);
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle);
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream);
cusolverStatus_t cusolverDnSetDeterministicMode(cusolverDnHandle_t handle, cusolverDeterministicMode_t mode);
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t* params);
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params);
cusolverStatus_t cusolverDnXsyevd_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                             cusolverEigMode_t mode, cublasFillMode_t fill, std::int64_t n,
                                             cudaDataType type_a, const void* A, std::int64_t lda, cudaDataType type_w,
                                             const void* W, cudaDataType compute, std::size_t* device_bytes,
                                             std::size_t* host_bytes);
cusolverStatus_t cusolverDnXsyevd(cusolverDnHandle_t handle, cusolverDnParams_t params, cusolverEigMode_t mode,
                                  cublasFillMode_t fill, std::int64_t n, cudaDataType type_a, void* A, std::int64_t lda,
                                  cudaDataType type_w, void* W, cudaDataType compute, void* device_space,
                                  std::size_t device_bytes, void* host_space, std::size_t host_bytes, int* info);
cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                             cublasFillMode_t fill, std::int64_t n, cudaDataType type_a, const void* A,
                                             std::int64_t lda, cudaDataType compute, std::size_t* device_bytes,
                                             std::size_t* host_bytes);
cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t handle, cusolverDnParams_t params, cublasFillMode_t fill,
                                  std::int64_t n, cudaDataType type_a, void* A, std::int64_t lda, cudaDataType compute,
                                  void* device_space, std::size_t device_bytes, void* host_space,
                                  std::size_t host_bytes, int* info);
cusolverStatus_t cusolverDnXgeqrf_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params, std::int64_t m,
                                             std::int64_t n, cudaDataType type_a, const void* A, std::int64_t lda,
                                             cudaDataType type_tau, const void* tau, cudaDataType compute,
                                             std::size_t* device_bytes, std::size_t* host_bytes);
cusolverStatus_t cusolverDnXgeqrf(cusolverDnHandle_t handle, cusolverDnParams_t params, std::int64_t m, std::int64_t n,
                                  cudaDataType type_a, void* A, std::int64_t lda, cudaDataType type_tau, void* tau,
                                  cudaDataType compute, void* device_space, std::size_t device_bytes, void* host_space,
                                  std::size_t host_bytes, int* info);
cusolverStatus_t cusolverDnXgesvd_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params, signed char job_u,
                                             signed char job_vt, std::int64_t m, std::int64_t n, cudaDataType type_a,
                                             const void* A, std::int64_t lda, cudaDataType type_s, const void* S,
                                             cudaDataType type_u, const void* U, std::int64_t ldu, cudaDataType type_vt,
                                             const void* VT, std::int64_t ldvt, cudaDataType compute,
                                             std::size_t* device_bytes, std::size_t* host_bytes);
cusolverStatus_t cusolverDnXgesvd(cusolverDnHandle_t handle, cusolverDnParams_t params, signed char job_u,
                                  signed char job_vt, std::int64_t m, std::int64_t n, cudaDataType type_a, void* A,
                                  std::int64_t lda, cudaDataType type_s, void* S, cudaDataType type_u, void* U,
                                  std::int64_t ldu, cudaDataType type_vt, void* VT, std::int64_t ldvt,
                                  cudaDataType compute, void* device_space, std::size_t device_bytes, void* host_space,
                                  std::size_t host_bytes, int* info);

namespace cuda_shim {
/// The next cusolverDnXsyevd returns eigenvectors, or eigenvalues, that are none; the next solver does not converge.
void spoil_next_eigenvectors();
void spoil_next_eigenvalues();
void fail_next_solver();
}  // namespace cuda_shim
