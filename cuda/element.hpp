// Feature elements and rows of them on the device. f16 and bf16 are turned into floats exactly; the device has
// instructions for halves, the host does it from their bits. A lane reads a packet of kPacket<T> neighbouring columns,
// one or two 16-byte loads, or a pair of columns, one load, where the rows are aligned for it, and single elements
// elsewhere. Which columns a lane holds does not depend on that, so neither do the bits of any sum.
#pragma once

#include <cuda_runtime.h>
#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

#include <bit>
#include <cstdint>
#include <cstring>

#include "ncollapse/error.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse::cuda {

struct Half {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

__host__ __device__ inline float float_of_bits(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/// The same number; infinite and NaN stay so.
__host__ __device__ inline float to_float(float x) { return x; }
__host__ __device__ inline float to_float(Bfloat16 x) {
  return float_of_bits(static_cast<std::uint32_t>(x.bits) << 16);
}
__host__ __device__ inline float to_float(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  const std::uint32_t magnitude = x.bits & 0x7fffu, sign = (x.bits & 0x8000u) << 16;
  if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // infinite, NaN
  const float value = float_of_bits(magnitude << 13) * 0x1p112f;                                    // rebias 15 -> 127
  return sign ? -value : value;
#endif
}

__host__ __device__ inline double to_double(double x) { return x; }
template <class T>
__host__ __device__ double to_double(T x) {
  return to_float(x);
}

/// 2^e for |e| <= 1022.
__host__ __device__ inline double power_of_two(int e) {
  const std::uint64_t bits = static_cast<std::uint64_t>(1023 + e) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/// The nearest half, ties to even. What is too large for a half becomes infinite.
__host__ __device__ inline Half to_half(float x) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(x))};
#else
  std::uint32_t bits = 0;
  memcpy(&bits, &x, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;                       // NaN
  } else if (magnitude >= 0x38800000u) {  // at least 2^-14, the smallest normal half
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;  // exponent bias 127 -> 15
    if (half > 0x7c00u) half = 0x7c00u;
  } else {  // the float's own addition rounds to multiples of 2^-24
    const float sum = float_of_bits(magnitude) + 0.5f;
    memcpy(&half, &sum, sizeof half);
    half -= 0x3f000000u;
  }
  return {static_cast<std::uint16_t>(sign | half)};
#endif
}

/// The nearest bf16 number, ties to even; what is below 2^-126, the smallest normal one, becomes 0. Large enough values
/// become infinite.
__host__ __device__ inline Bfloat16 to_bfloat16(float x) {
  std::uint32_t bits = 0;
  memcpy(&bits, &x, sizeof bits);
  const std::uint32_t sign = bits & 0x80000000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fc0u};  // NaN
  if (magnitude < 0x00800000u) return {static_cast<std::uint16_t>(sign >> 16)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

/// Calls f with a value of the element type.
template <class F>
decltype(auto) with_element(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f64: return f(double{});
    case Dtype::f32: return f(float{});
    case Dtype::f16: return f(Half{});
    case Dtype::bf16: return f(Bfloat16{});
  }
  throw UsageError("unknown element type");
}
template <class F>
decltype(auto) with_label(LabelType type, F&& f) {
  switch (type) {
    case LabelType::i64: return f(std::int64_t{});
    case LabelType::i32: return f(std::int32_t{});
    case LabelType::u8: return f(std::uint8_t{});
  }
  throw UsageError("unknown label type");
}

/// Rows of a batch in device memory, the type not yet known.
struct FeatureBlock {
  const void* data = nullptr;  ///< [rows x cols], row i at element i * stride
  Dtype dtype = Dtype::f64;
  Index rows = 0, cols = 0, stride = 0;
};
struct LabelBlock {
  const void* data = nullptr;  ///< [rows]
  LabelType type = LabelType::i64;
  Index rows = 0;
};

template <class T>
inline constexpr int kPacket = sizeof(T) == 2 ? 8 : 4;

template <class T>
struct alignas(16) Packet {
  T value[kPacket<T>];
};

/// Two neighbouring columns.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

template <class T>
struct Rows {
  const T* data;
  Index rows, cols, stride;
  bool aligned;  ///< every row starts at a multiple of 16 bytes
  bool paired;   ///< every row starts at a multiple of a pair

  __device__ const T* row(Index i) const { return data + i * stride; }
  /// Columns col .. col + kPacket - 1 of a row; zeros beyond the last column.
  __device__ Packet<T> read(const T* row, Index col) const {
    if (aligned && col + kPacket<T> <= cols) return *reinterpret_cast<const Packet<T>*>(row + col);
    Packet<T> packet{};
    for (int v = 0; v < kPacket<T>; ++v)
      if (col + v < cols) packet.value[v] = row[col + v];
    return packet;
  }
};

template <class T>
Rows<T> rows_of(const FeatureBlock& block) {
  const auto address = reinterpret_cast<std::uintptr_t>(block.data);
  const auto at_multiples_of = [&](std::size_t bytes) {
    return address % bytes == 0 && static_cast<std::size_t>(block.stride) * sizeof(T) % bytes == 0;
  };
  return {static_cast<const T*>(block.data), block.rows, block.cols, block.stride, at_multiples_of(16),
          at_multiples_of(sizeof(Pair<T>))};
}

/// log2 of the lanes that share a row: as many as it has packets, at most a warp.
template <class T>
int lanes_log2(Index cols) {
  const Index packets = (cols + kPacket<T> - 1) / kPacket<T>;
  return packets >= 32 ? 5 : std::bit_width(static_cast<std::uint64_t>(packets > 0 ? packets - 1 : 0));
}

}  // namespace ncollapse::cuda
