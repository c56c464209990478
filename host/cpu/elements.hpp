// Element types of features, and how they become doubles. f16 and bf16 are kept as bit patterns: every conversion here
// is exact and compiles to a few integer operations that vectorise.
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

inline double to_double(double x) { return x; }
inline double to_double(float x) { return x; }
inline double to_double(BFloat16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }
// Finite values only: the exponent field is moved to the float's place, then the bias is mended by 2^(127-15).
inline double to_double(Half x) {
  const float magnitude = std::bit_cast<float>(std::uint32_t{x.bits & 0x7fffU} << 13) * 0x1p112F;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | (std::uint32_t{x.bits & 0x8000U} << 16));
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

/// Whether to_double keeps NaN and infinite values what they are.
inline bool keeps_nonfinite(Dtype type) { return type != Dtype::f16; }

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
