// Benchmark inputs, made by a counter-based generator: every label and every element is a function of its place alone,
// so that any of them can be made again, by any number of threads, for a check.
#pragma once

#include <memory>
#include <vector>

#include "bench/matrix.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse::bench {

/// A standard normal number, a function of its three arguments. Source: Box and Muller 1958.
float normal(std::uint64_t stream, Index row, Index col);

/// N samples of a shape: x = m_y + sigma e, with entries of class means m and of noise e standard normal (so that sigma
/// is the ratio of the noise to a mean's norm), rounded to the shape's element type.
class Samples {
 public:
  Samples(const Shape& shape, int threads);

  const Shape& shape() const { return shape_; }
  const std::vector<std::int64_t>& labels() const { return labels_; }  ///< [N]
  /// Element j of sample i, as stored.
  double value(Index i, Index j) const;
  /// Rows first .. first + count - 1 as stored, into `to` [count x d].
  void fill(void* to, Index first, Index count) const;
  /// A head that is the class means and as much noise again, over d: nothing is degenerate. [K x d]
  std::vector<float> weights() const;

 private:
  void fill_row(float* row, Index i) const;

  Shape shape_;
  int threads_;
  std::vector<std::int64_t> labels_;
  std::vector<float> means_;  // [K x d]; empty where making them again is cheaper than keeping them
};

/// Samples in the memory of a device.
struct Placed {
  std::shared_ptr<void> features, labels;
  Shape shape;
  MemorySpace space = MemorySpace::host;

  Placed(const Context& context, const Samples& samples, MemorySpace where);
  MatrixView features_at(Index first, Index rows) const;
  LabelView labels_at(Index first, Index rows) const;
};

}  // namespace ncollapse::bench
