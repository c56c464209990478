#include "cuda/check.hpp"

#include <string>
#include <string_view>

#include "ncollapse/error.hpp"

namespace ncollapse::cuda {
namespace {

std::string place(const std::source_location& at) {
  std::string_view file = at.file_name();
  file.remove_prefix(file.find_last_of('/') + 1);  // npos + 1 is 0
  return " [" + std::string(file) + ":" + std::to_string(at.line()) + "]";
}

}  // namespace

void check(cudaError_t status, std::source_location at) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw DeviceError("CUDA: " + std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")" +
                    place(at));
}

void check(cublasStatus_t status, std::source_location at) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string what = "cuBLAS: " + std::string(cublasGetStatusString(status)) + place(at);
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw DeviceError(what);
  throw Error(ErrorKind::internal, what);
}

void check(cusolverStatus_t status, std::source_location at) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  const std::string what = "cuSOLVER: status " + std::to_string(static_cast<int>(status)) + place(at);
  if (status == CUSOLVER_STATUS_ALLOC_FAILED) throw MemoryError(what);
  throw Error(ErrorKind::internal, what);
}

}  // namespace ncollapse::cuda
