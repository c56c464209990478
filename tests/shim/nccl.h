// A stand-in for NCCL, as far as ncollapse/nccl.hpp uses it: a rank's communicator is a pair of functions that sum host
// memory, so that a test decides what connects the ranks.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

enum ncclResult_t {
  ncclSuccess = 0,
  ncclUnhandledCudaError = 1,
  ncclInvalidArgument = 4,
  ncclRemoteError = 6,
  ncclInProgress = 7
};
enum ncclDataType_t { ncclInt64 = 4, ncclFloat64 = 8 };
enum ncclRedOp_t { ncclSum = 0 };

struct ncclComm {
  int rank, size, device;
  std::function<void(double*, std::int64_t)> sum_doubles;
  std::function<void(std::int64_t*, std::int64_t)> sum_integers;
  ncclResult_t later = ncclSuccess;  // what the question for asynchronous errors is answered
  int unfinished = 0;                // times that it is answered "in progress" before, as is what began it
};
using ncclComm_t = ncclComm*;

inline const char* ncclGetErrorString(ncclResult_t status) {
  switch (status) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "a CUDA call failed";
    case ncclInvalidArgument: return "invalid argument";
    case ncclRemoteError: return "another rank has failed";
    case ncclInProgress: return "in progress";
  }
  return "unknown";
}
inline ncclResult_t nccl_shim_answer(ncclComm_t comm) {
  return comm->unfinished > 0 ? ncclInvalidArgument : ncclSuccess;
}
inline ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank) {
  return *rank = comm->rank, nccl_shim_answer(comm);
}
inline ncclResult_t ncclCommCount(ncclComm_t comm, int* size) { return *size = comm->size, nccl_shim_answer(comm); }
inline ncclResult_t ncclCommCuDevice(ncclComm_t comm, int* device) {
  return *device = comm->device, nccl_shim_answer(comm);
}
inline ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* status) {
  *status = comm->unfinished > 0 ? ncclInProgress : comm->later;
  if (comm->unfinished > 0) --comm->unfinished;
  return ncclSuccess;
}

template <class T, class Sum>
ncclResult_t nccl_shim_sum(const void* from, void* to, std::size_t count, cudaStream_t stream, const Sum& sum) {
  std::vector<T> values(count);
  const std::size_t bytes = count * sizeof(T);
  if (cudaMemcpyAsync(values.data(), from, bytes, cudaMemcpyDeviceToHost, stream) != cudaSuccess)
    return ncclUnhandledCudaError;
  sum(values.data(), static_cast<std::int64_t>(count));
  return cudaMemcpyAsync(to, values.data(), bytes, cudaMemcpyHostToDevice, stream) == cudaSuccess
             ? ncclSuccess
             : ncclUnhandledCudaError;
}
inline ncclResult_t ncclAllReduce(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t,
                                  ncclComm_t comm, cudaStream_t stream) {
  int device = -1;
  if (cudaGetDevice(&device) != cudaSuccess || device != comm->device) return ncclInvalidArgument;
  const ncclResult_t done = type == ncclFloat64
                                ? nccl_shim_sum<double>(from, to, count, stream, comm->sum_doubles)
                                : nccl_shim_sum<std::int64_t>(from, to, count, stream, comm->sum_integers);
  return done == ncclSuccess && comm->unfinished > 0 ? ncclInProgress : done;
}
