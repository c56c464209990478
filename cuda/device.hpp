// What kernels share: thread numbers, the block's shared memory, and sums in a fixed order. All shared memory is
// dynamic, taken through shared_memory(): the test shim can then poison it and guard its end.
#pragma once

#include <cuda_runtime.h>

#include "cuda/element.hpp"
#include "cuda/launch.hpp"
#include "ncollapse/types.hpp"

/// Before a loop that seldom runs: it is not unrolled, which would take registers from the ones that do.
#ifdef __CUDACC__
#define NCOLLAPSE_ROLLED _Pragma("unroll 1")
#else
#define NCOLLAPSE_ROLLED
#endif
/// Before a loop over an array that is to stay in registers.
#ifdef __CUDACC__
#define NCOLLAPSE_UNROLLED _Pragma("unroll")
#else
#define NCOLLAPSE_UNROLLED
#endif
/// Before a loop whose loads should be on their way together.
#ifdef __CUDACC__
#define NCOLLAPSE_UNROLLED_BY_8 _Pragma("unroll 8")
#else
#define NCOLLAPSE_UNROLLED_BY_8
#endif

namespace ncollapse::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kWarps = kBlock / kWarp;  ///< warps of a block
inline constexpr unsigned kAllLanes = 0xffffffffu;

using Count = unsigned long long;  ///< what the integer atomics take

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_in_block() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline Index thread_id() { return static_cast<Index>(blockIdx.x) * kBlock + threadIdx.x; }
__device__ inline Index thread_count() { return static_cast<Index>(gridDim.x) * kBlock; }
__device__ inline Index warp_id() { return thread_id() / kWarp; }
__device__ inline Index warp_count() { return thread_count() / kWarp; }

/// The block's dynamic shared memory.
template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char block_shared_bytes[];
  return reinterpret_cast<T*>(block_shared_bytes);
}

/// Sum over the warp, the same in every lane (a butterfly adds the same pairs in every lane).
template <class T>
__device__ T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <class T>
__device__ T warp_min(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    if (other < value) value = other;
  }
  return value;
}

/// Sum over the block in warp order, the same in every thread. scratch: kWarps values of shared memory.
__device__ inline double block_sum(double value, double* scratch) {
  value = warp_sum(value);
  if (lane_id() == 0) scratch[warp_in_block()] = value;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += scratch[warp];
  __syncthreads();  // scratch may be written again
  return total;
}

/// count += what the warp found, minimum := the first of it, if it found any. All lanes of the warp take part; one
/// atomic per warp that found something, on good data there are none.
__device__ inline void report(Count found, Count first, Count* count, Count* minimum) {
  found = warp_sum(found);
  first = warp_min(first);
  if (lane_id() == 0 && found > 0) {
    atomicAdd(count, found);
    atomicMin(minimum, first);
  }
}

/// Where the lanes that ask for it append to what `count` counts, in lane order. All lanes of the warp take part.
__device__ inline Count append(unsigned asked, Count* count) {
  Count at = 0;
  if (asked != 0 && lane_id() == 0) at = atomicAdd(count, static_cast<Count>(__popc(asked)));
  return __shfl_sync(kAllLanes, at, 0) + static_cast<Count>(__popc(asked & ((1u << lane_id()) - 1)));
}

}  // namespace ncollapse::cuda
