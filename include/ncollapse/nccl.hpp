// A Communicator from an ncclComm_t and a stream. Needs the caller's own NCCL; the library itself knows none. In CMake:
// find_package(ncollapse COMPONENTS nccl) and target_link_libraries(app ncollapse::nccl).
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>

#include "ncollapse/communicator.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace nccl_detail {

inline void check(ncclResult_t status, const char* call) {
  if (status != ncclSuccess) throw DeviceError(std::string(call) + ": " + ncclGetErrorString(status));
}

inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clear it, or the next caller is blamed
  throw DeviceError(std::string(call) + ": " + cudaGetErrorString(status));
}

// Makes the communicator's GPU the current one, as NCCL expects, and puts the caller's back.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

// A communicator that does not block answers before it is done.
inline void finish(ncclComm_t comm, ncclResult_t status, const char* call) {
  while (status == ncclInProgress) {
    std::this_thread::yield();
    check(ncclCommGetAsyncError(comm, &status), "ncclCommGetAsyncError");
  }
  check(status, call);
}

inline void sum(ncclComm_t comm, int device, cudaStream_t stream, void* values, Index count, ncclDataType_t type) {
  const OnDevice here(device);
  finish(comm, ncclAllReduce(values, values, static_cast<std::size_t>(count), type, ncclSum, comm, stream),
         "ncclAllReduce");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  ncclResult_t later = ncclSuccess;
  check(ncclCommGetAsyncError(comm, &later), "ncclCommGetAsyncError");
  finish(comm, later, "ncclAllReduce");
}

}  // namespace nccl_detail

/// The ranks of `comm`, which has to stay valid as has `stream`. Values stay on the GPU: it has to be the one of the
/// Context that is used with it, and all ranks need one. Every sum waits for the stream; if a rank is lost meanwhile,
/// ncclCommAbort from another thread ends the wait. All ranks get the same bits; for the same bits in every run fix
/// NCCL's algorithm (NCCL_ALGO, NCCL_NVLS_ENABLE=0). Throws DeviceError for what NCCL or CUDA return, UsageError for a
/// null communicator. One that does not block (ncclConfig_t::blocking = 0) is waited for.
inline Communicator nccl_communicator(ncclComm_t comm, cudaStream_t stream) {
  if (comm == nullptr) throw UsageError("the NCCL communicator is null");
  int rank = 0, size = 1, device = 0;
  ncclResult_t begun = ncclSuccess;
  nccl_detail::check(ncclCommGetAsyncError(comm, &begun), "ncclCommGetAsyncError");
  nccl_detail::finish(comm, begun, "ncclCommInit");
  nccl_detail::check(ncclCommUserRank(comm, &rank), "ncclCommUserRank");
  nccl_detail::check(ncclCommCount(comm, &size), "ncclCommCount");
  nccl_detail::check(ncclCommCuDevice(comm, &device), "ncclCommCuDevice");
  CommunicatorCallbacks callbacks;
  callbacks.sum_doubles = [=](double* values, Index count) {
    nccl_detail::sum(comm, device, stream, values, count, ncclFloat64);
  };
  callbacks.sum_integers = [=](std::int64_t* values, Index count) {
    nccl_detail::sum(comm, device, stream, values, count, ncclInt64);
  };
  callbacks.space = MemorySpace::device;
  return {rank, size, std::move(callbacks)};
}

}  // namespace ncollapse
