// The one way to start a kernel: empty case, launch, check. cudaLaunchKernelEx instead of <<<>>>, so that the same
// source is plain C++ for the host shim of the tests.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <source_location>

#include "cuda/check.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse::cuda {

inline constexpr int kBlock = 256;  ///< threads of a block, everywhere
/// Blocks of a kernel that strides over its work; fixed, so that no result depends on the size of the GPU.
inline constexpr Index kMaxBlocks = Index{1} << 20;
/// The same for a kernel that seldom has anything to do: blocks that only look cost time, too.
inline constexpr Index kMaxIdleBlocks = Index{1} << 11;

/// Blocks for `items` pieces of work, `per_block` at a time.
inline Index blocks_for(Index items, Index per_block = kBlock) {
  return std::min((items + per_block - 1) / per_block, kMaxBlocks);
}

/// A stream, and who launches on it (for the error message).
struct LaunchOn {
  LaunchOn(cudaStream_t on, std::source_location where = std::source_location::current()) : stream(on), at(where) {}
  cudaStream_t stream;
  std::source_location at;
};

struct Grid {
  Index x = 0, y = 1;
  Index shared_bytes = 0;
};

template <class... Params, class... Args>
void launch(LaunchOn on, Grid grid, void (*kernel)(Params...), const Args&... args) {
  if (grid.x == 0 || grid.y == 0) return;  // a grid of 0 blocks is an error
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
  config.blockDim = dim3(kBlock);
  config.dynamicSmemBytes = static_cast<std::size_t>(grid.shared_bytes);
  config.stream = on.stream;
  check(cudaLaunchKernelEx(&config, kernel, args...), on.at);
}

}  // namespace ncollapse::cuda
