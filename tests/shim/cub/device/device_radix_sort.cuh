// cub::DeviceRadixSort::SortPairs as cuda/ uses it: size query, then a stable sort by the bits [begin_bit, end_bit).
#pragma once

#include <numeric>
#include <vector>

#include "tests/shim/cuda_runtime.h"

namespace cub {

struct DeviceRadixSort {
  template <class Key, class Value>
  static cudaError_t SortPairs(void* space, std::size_t& space_bytes, const Key* keys_in, Key* keys_out,
                               const Value* values_in, Value* values_out, std::int64_t count, int begin_bit,
                               int end_bit, cudaStream_t stream) {
    const auto wanted = static_cast<std::size_t>(16 + count);
    if (space == nullptr) {
      space_bytes = wanted;
      return cudaSuccess;
    }
    if (space_bytes < wanted) return cudaErrorInvalidValue;
    cuda_shim::submit(stream, [=] {
      std::memset(space, 0xff, wanted);
      std::vector<std::int64_t> order(static_cast<std::size_t>(count));
      std::iota(order.begin(), order.end(), 0);
      const auto bits = [&](std::int64_t i) {
        const auto shifted = static_cast<std::uint64_t>(keys_in[i]) >> begin_bit;
        return shifted & ((std::uint64_t{1} << (end_bit - begin_bit)) - 1);
      };
      std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return bits(a) < bits(b); });
      for (std::int64_t p = 0; p < count; ++p) {
        keys_out[p] = keys_in[order[p]];
        values_out[p] = values_in[order[p]];
      }
    });
    return cudaSuccess;
  }
};

}  // namespace cub
