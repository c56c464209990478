// 16-bit numbers by twos, in the words that they are loaded in: a number by itself would take a register of its own,
// and instructions to put it there.
#pragma once

#include <type_traits>

#include "cuda/element.hpp"

namespace ncollapse::cuda {

template <int kWords>
struct alignas(4 * kWords) Words {
  std::uint32_t word[kWords];
};

/// Of type N: Half or Bfloat16.
template <class N, int kWords, class S>
__device__ void widen(const Words<kWords>& words, S (&z)[2 * kWords]) {
  for (int w = 0; w < kWords; ++w) {
    const std::uint32_t word = words.word[w];
    if constexpr (std::is_same_v<N, Bfloat16>) {
      z[2 * w] = static_cast<S>(float_of_bits(word << 16));
      z[2 * w + 1] = static_cast<S>(float_of_bits(word & 0xffff0000u));
    } else {
      z[2 * w] = static_cast<S>(to_float(N{static_cast<std::uint16_t>(word)}));
      z[2 * w + 1] = static_cast<S>(to_float(N{static_cast<std::uint16_t>(word >> 16)}));
    }
  }
}

}  // namespace ncollapse::cuda
