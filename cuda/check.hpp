// CUDA, cuBLAS and cuSOLVER report errors by status; here they become the library's exceptions. Functions, not macros:
// the place of the call comes from std::source_location. Never call these in a destructor.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include <source_location>

namespace ncollapse::cuda {

/// Throws DeviceError; clears the runtime's last error first, or the next caller would be blamed for it.
void check(cudaError_t status, std::source_location at = std::source_location::current());
/// Throws DeviceError when the library could not get memory (cuSOLVER: MemoryError; a product may have been the second
/// of several that change one array), Error(internal) otherwise.
void check(cublasStatus_t status, std::source_location at = std::source_location::current());
void check(cusolverStatus_t status, std::source_location at = std::source_location::current());

}  // namespace ncollapse::cuda
