// Inputs for the tests of the CUDA backend, and plain long-double answers to compare with. Nothing here is shared with
// the code under test: f16 goes through the compiler's own _Float16, sums are written out.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "host/backend.hpp"

namespace ncollapse::test {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSmall = true;  // slow: keep sizes low
#else
inline constexpr bool kSmall = false;
#endif

using Real = long double;
inline constexpr Real kUnit = 0x1p-53L;  ///< unit roundoff of double

/// False for NaN.
inline bool within(Real got, Real want, Real bound) { return std::fabs(got - want) <= bound; }

inline std::uint16_t encode(Dtype dtype, float value) {
  std::uint16_t bits = 0;
  if (dtype == Dtype::f16) {
    const auto half = static_cast<_Float16>(value);
    std::memcpy(&bits, &half, 2);
  } else {
    std::uint32_t wide = 0;
    std::memcpy(&wide, &value, 4);
    bits = static_cast<std::uint16_t>(wide >> 16);  // truncated: any bf16 number will do
  }
  return bits;
}

inline double decode(Dtype dtype, const unsigned char* at) {
  switch (dtype) {
    case Dtype::f64: {
      double value;
      std::memcpy(&value, at, 8);
      return value;
    }
    case Dtype::f32: {
      float value;
      std::memcpy(&value, at, 4);
      return value;
    }
    case Dtype::f16: {
      _Float16 value;
      std::memcpy(&value, at, 2);
      return static_cast<double>(value);
    }
    case Dtype::bf16: {
      const unsigned char bytes[4] = {0, 0, at[0], at[1]};
      float value;
      std::memcpy(&value, bytes, 4);
      return value;
    }
  }
  return 0;
}

/// A [rows x cols] array of any element type, row stride and misalignment; everything around the elements is NaN.
class Samples {
 public:
  Samples(Dtype dtype, Index rows, Index cols, Index padding = 0, Index offset = 0)
      : dtype_(dtype), rows_(rows), cols_(cols), stride_(cols + padding), offset_(offset) {
    bytes_.assign(static_cast<std::size_t>((offset + rows * stride_ + 16) * size_of(dtype)), 0xff);
  }

  void set(Index i, Index j, double value) {
    unsigned char* at = element(i, j);
    if (dtype_ == Dtype::f64) {
      std::memcpy(at, &value, 8);
    } else if (const auto narrow = static_cast<float>(value); dtype_ == Dtype::f32) {
      std::memcpy(at, &narrow, 4);
    } else {
      const auto bits = encode(dtype_, narrow);
      std::memcpy(at, &bits, 2);
    }
  }
  void set_bits(Index i, Index j, std::uint16_t bits) { std::memcpy(element(i, j), &bits, 2); }
  double at(Index i, Index j) const { return decode(dtype_, const_cast<Samples*>(this)->element(i, j)); }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Dtype dtype() const { return dtype_; }
  /// Rows first .. first + count - 1 in host memory.
  MatrixView host(Index first, Index count) const {
    return {bytes_.data() + (offset_ + first * stride_) * size_of(dtype_),
            dtype_,
            count,
            cols_,
            stride_,
            MemorySpace::host};
  }
  MatrixView host() const { return host(0, rows_); }
  /// The same in device memory, with the same stride and misalignment; `keep` owns it.
  MatrixView device(Backend& backend, std::shared_ptr<void>& keep) const {
    const auto size = static_cast<Index>(bytes_.size());
    keep = backend.allocate(size);
    backend.upload(keep.get(), bytes_.data(), size);
    MatrixView view = host();
    view.data = static_cast<unsigned char*>(keep.get()) + offset_ * size_of(dtype_);
    view.space = MemorySpace::device;
    return view;
  }

 private:
  unsigned char* element(Index i, Index j) { return bytes_.data() + (offset_ + i * stride_ + j) * size_of(dtype_); }

  Dtype dtype_;
  Index rows_, cols_, stride_, offset_;
  std::vector<unsigned char> bytes_;
};

/// Labels in one of the label types.
class Labels {
 public:
  Labels(LabelType type, const std::vector<Index>& values) : type_(type), values_(values) {
    for (const Index value : values) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(&value);  // little-endian: the low bytes come first
      for (Index i = 0; i < size_of(type); ++i) bytes_.push_back(bytes[i]);
    }
  }
  Index operator[](Index i) const { return values_[static_cast<std::size_t>(i)]; }
  LabelView host(Index first, Index count) const {
    return {bytes_.data() + first * size_of(type_), type_, count, MemorySpace::host};
  }
  LabelView host() const { return host(0, static_cast<Index>(values_.size())); }
  LabelView device(Backend& backend, std::shared_ptr<void>& keep) const {
    keep = backend.allocate(static_cast<Index>(bytes_.size()));
    backend.upload(keep.get(), bytes_.data(), static_cast<Index>(bytes_.size()));
    LabelView view = host();
    view.data = keep.get();
    view.space = MemorySpace::device;
    return view;
  }

 private:
  LabelType type_;
  std::vector<Index> values_;
  std::vector<unsigned char> bytes_;
};

enum class Classes { uniform, absent, mostly_one, singletons, sorted };

inline std::vector<Index> make_labels(Classes kind, Index rows, Index classes, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Index> labels(static_cast<std::size_t>(rows));
  for (Index i = 0; i < rows; ++i) {
    Index label = static_cast<Index>(random() % static_cast<unsigned>(classes));
    if (kind == Classes::absent) label = label / 2 * 2;  // odd classes have no sample
    if (kind == Classes::mostly_one && random() % 100 != 0) label = classes / 2;
    if (kind == Classes::singletons) label = i % classes;
    if (kind == Classes::sorted) label = i * classes / rows;
    labels[static_cast<std::size_t>(i)] = label;
  }
  return labels;
}

/// Class means of size about 3, samples around them with deviation `spread`.
inline void fill(Samples& samples, const std::vector<Index>& labels, double spread, unsigned seed) {
  std::normal_distribution<double> normal;
  std::mt19937 noise(seed);
  for (Index i = 0; i < samples.rows(); ++i) {
    std::mt19937 mean(static_cast<unsigned>(labels[static_cast<std::size_t>(i)]) + 1000u * seed);
    normal.reset();
    for (Index j = 0; j < samples.cols(); ++j) {
      const double centre = static_cast<double>(mean() % 2000) / 333.0 - 3;
      samples.set(i, j, centre + spread * normal(noise));
    }
  }
}

/// Row-major doubles with a few handy ways to fill and to move them.
struct Grid {
  Index rows = 0, cols = 0;
  std::vector<double> values;

  Grid(Index r, Index c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c)) {}
  static Grid random(Index rows, Index cols, unsigned seed) {
    Grid grid(rows, cols);
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (double& value : grid.values) value = normal(random);
    return grid;
  }
  double& at(Index i, Index j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  double at(Index i, Index j) const { return values[static_cast<std::size_t>(i * cols + j)]; }
  Matrix on(Backend& backend) const {
    Matrix matrix = backend.matrix(rows, cols);
    backend.upload(matrix.data(), values.data(), matrix.bytes());
    return matrix;
  }
  static Grid from(Backend& backend, const Matrix& matrix) {
    Grid grid(matrix.rows, matrix.cols);
    grid.values = backend.to_host(matrix);
    return grid;
  }
};

inline Real dot(const Grid& A, Index i, const Grid& B, Index k) {
  Real sum = 0;
  for (Index j = 0; j < A.cols; ++j) sum += static_cast<Real>(A.at(i, j)) * B.at(k, j);
  return sum;
}
inline Real size(const Grid& A, Index i) { return std::sqrt(dot(A, i, A, i)); }

}  // namespace ncollapse::test
