// Element types of features, and how they become doubles. f16 and bf16 are kept as bit patterns: every conversion here
// is exact, keeps NaN and infinite values, and compiles to a few operations that vectorise.
#pragma once

#include <bit>
#include <cstdint>

#include "ncollapse/types.hpp"

// Hot loops are compiled for three instruction sets and chosen at run time. Sanitizers instrument the chooser itself,
// which runs before they are ready, so they get the plain version.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define NCOLLAPSE_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NCOLLAPSE_VECTORISED
#endif

namespace ncollapse::cpu {

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

inline float to_float(BFloat16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }
// The exponent field is moved to the float's place and gets its bias, 127 instead of 15. Subnormals m 2^-24 are made as
// (1 + m 2^-10) 2^-14 - 2^-14, so that no float is subnormal on the way, of which some programs have the processor make
// 0.
inline float to_float(Half x) {
  const std::uint32_t magnitude = x.bits & 0x7fffU, moved = magnitude << 13;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(std::bit_cast<float>(moved + (113U << 23)) - 0x1p-14F);
  const std::uint32_t finite = magnitude < 0x400U ? subnormal : moved + (112U << 23);
  return std::bit_cast<float>((magnitude < 0x7c00U ? finite : moved | 0x7f800000U) | std::uint32_t{x.bits & 0x8000U}
                                                                                         << 16);
}

inline double to_double(double x) { return x; }
inline double to_double(float x) { return x; }
inline double to_double(Half x) { return to_float(x); }
inline double to_double(BFloat16 x) { return to_float(x); }

constexpr Index kBlock = 256;  // columns that a loop takes at a time

/// The columns of a row from `begin` to `end` - 1, kBlock of them at most, as numbers of which a processor makes
/// doubles as it loads them. Those of 16 bits become floats in `buffer` first: a loop that took them all the way at
/// once would spend as long on taking vectors to pieces.
inline const double* widen(const double* row, Index begin, Index /*end*/, float* /*buffer*/) { return row + begin; }
inline const float* widen(const float* row, Index begin, Index /*end*/, float* /*buffer*/) { return row + begin; }
template <class T>
inline const float* widen(const T* row, Index begin, Index end, float* buffer) {
  const T* from = row + begin;
#pragma omp simd
  for (Index j = 0; j < end - begin; ++j) buffer[j] = to_float(from[j]);
  return buffer;
}

/// Asks for the columns of a row that is read soon.
template <class T>
inline void fetch(const T* row, Index begin, Index end) {
  constexpr Index kLine = 64 / sizeof(T);
  for (Index j = begin; j < end; j += kLine) __builtin_prefetch(row + j, 0, 2);
}

// The bits of the exponent, in their place. NaN and infinite values have all of them.
inline std::uint64_t exponent_bits(double x) { return std::bit_cast<std::uint64_t>(x) & 0x7ff0000000000000U; }
inline std::uint32_t exponent_bits(float x) { return std::bit_cast<std::uint32_t>(x) & 0x7f800000U; }
inline std::uint16_t exponent_bits(Half x) { return x.bits & 0x7c00U; }
inline std::uint16_t exponent_bits(BFloat16 x) { return x.bits & 0x7f80U; }

template <class T>
inline auto nonfinite_exponent() {
  using Bits = decltype(exponent_bits(T{}));
  return exponent_bits(std::bit_cast<T>(static_cast<Bits>(~Bits{0})));
}
template <class T>
inline bool is_finite(T x) {
  return exponent_bits(x) != nonfinite_exponent<T>();
}

/// Calls body with the data as a typed pointer.
template <class Body>
void with_elements(const MatrixView& view, const Body& body) {
  switch (view.dtype) {
    case Dtype::f64: return body(static_cast<const double*>(view.data));
    case Dtype::f32: return body(static_cast<const float*>(view.data));
    case Dtype::f16: return body(static_cast<const Half*>(view.data));
    case Dtype::bf16: return body(static_cast<const BFloat16*>(view.data));
  }
}

}  // namespace ncollapse::cpu
