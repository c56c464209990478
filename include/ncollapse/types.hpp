// Views on the caller's memory: the only shapes in which data enters the library.
#pragma once

#include <cstdint>
#include <string_view>

namespace ncollapse {

/// Every size, count and row number in the library is a signed 64-bit integer.
using Index = std::int64_t;

/// Element type of features and classifier weights.
enum class Dtype { f64, f32, f16, bf16 };  // from the finest to the coarsest

/// Element type of labels.
enum class LabelType { i64, i32, u8 };

/// Where a pointer can be dereferenced. `device` memory belongs to the GPU of the Context it is given to.
enum class MemorySpace { host, device };

/// A row-major matrix in the caller's memory: row i is the `cols` contiguous elements that start at element i * stride.
/// For features a row is one sample; for a classifier layer a row is one output unit.
struct MatrixView {
  const void* data = nullptr;  ///< [rows x cols]; may be null when rows is 0
  Dtype dtype = Dtype::f32;    ///< element type of data
  Index rows = 0;              ///< 0 is allowed
  Index cols = 0;              ///< d
  Index stride = 0;            ///< elements from one row to the next, >= cols; 0 stands for cols
  MemorySpace space = MemorySpace::host;

  Index row_stride() const { return stride == 0 ? cols : stride; }
};

/// Labels in the caller's memory, contiguous; label i belongs to feature row i.
struct LabelView {
  const void* data = nullptr;  ///< [size]
  LabelType type = LabelType::i64;
  Index size = 0;
  MemorySpace space = MemorySpace::host;
};

/// Label i of a view in host memory.
inline Index label_at(const LabelView& labels, Index i) {
  switch (labels.type) {
    case LabelType::i64: return static_cast<const std::int64_t*>(labels.data)[i];
    case LabelType::i32: return static_cast<const std::int32_t*>(labels.data)[i];
    case LabelType::u8: return static_cast<const std::uint8_t*>(labels.data)[i];
  }
  return -1;
}

/// Views on host memory: [rows x cols] with `stride` elements from row to row (0: cols), or [size] labels.
inline MatrixView view(const double* data, Index rows, Index cols, Index stride = 0) {
  return {data, Dtype::f64, rows, cols, stride, MemorySpace::host};
}
inline MatrixView view(const float* data, Index rows, Index cols, Index stride = 0) {
  return {data, Dtype::f32, rows, cols, stride, MemorySpace::host};
}
inline LabelView view(const std::int64_t* labels, Index size) {
  return {labels, LabelType::i64, size, MemorySpace::host};
}
inline LabelView view(const std::int32_t* labels, Index size) {
  return {labels, LabelType::i32, size, MemorySpace::host};
}
inline LabelView view(const std::uint8_t* labels, Index size) {
  return {labels, LabelType::u8, size, MemorySpace::host};
}

/// Views of any element type and memory, given by name: f16 and bf16, which C++20 has no types for, or device memory.
inline MatrixView view(const void* data, Dtype dtype, Index rows, Index cols, Index stride = 0,
                       MemorySpace space = MemorySpace::host) {
  return {data, dtype, rows, cols, stride, space};
}
inline LabelView view(const void* labels, LabelType type, Index size, MemorySpace space = MemorySpace::host) {
  return {labels, type, size, space};
}

/// Bytes of one element.
constexpr Index size_of(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }
constexpr Index size_of(LabelType type) { return type == LabelType::i64 ? 8 : type == LabelType::i32 ? 4 : 1; }

/// "f64", "f32", "f16", "bf16".
constexpr std::string_view to_string(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64: return "f64";
    case Dtype::f32: return "f32";
    case Dtype::f16: return "f16";
    case Dtype::bf16: return "bf16";
  }
  return "?";
}

}  // namespace ncollapse
