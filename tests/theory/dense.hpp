// Dense linear algebra as it stands in the textbook, for tests of the structured one.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ncollapse/theory.hpp"

namespace ncollapse {

using Vector = std::vector<double>;

/// A dense matrix with the few operations the tests need.
struct Dense {
  Index rows, cols;
  Vector values;
  Dense(Index r, Index c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c), 0.0) {}
  double& operator()(Index i, Index j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  double operator()(Index i, Index j) const { return values[static_cast<std::size_t>(i * cols + j)]; }
  double squares() const { return std::inner_product(values.begin(), values.end(), values.begin(), 0.0); }
};
inline Dense times(const Dense& a, const Dense& b) {
  Dense c(a.rows, b.cols);
  for (Index i = 0; i < a.rows; ++i)
    for (Index k = 0; k < a.cols; ++k)
      for (Index j = 0; j < b.cols; ++j) c(i, j) += a(i, k) * b(k, j);
  return c;
}
inline Dense transposed(const Dense& a) {
  Dense t(a.cols, a.rows);
  for (Index i = 0; i < a.rows; ++i)
    for (Index j = 0; j < a.cols; ++j) t(j, i) = a(i, j);
  return t;
}
inline Dense identity(Index n) {
  Dense unit(n, n);
  for (Index i = 0; i < n; ++i) unit(i, i) = 1;
  return unit;
}
inline double largest_gap(const Dense& a, const Dense& b) {
  double gap = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) gap = std::max(gap, std::abs(a.values[i] - b.values[i]));
  return gap;
}

inline Dense label_matrix(const std::vector<Index>& counts, LabelModel model) {
  const auto classes = static_cast<Index>(counts.size());
  const auto samples = static_cast<double>(std::accumulate(counts.begin(), counts.end(), Index{0}));
  Dense matrix(classes, classes);
  for (Index j = 0; j < classes; ++j)
    for (Index k = 0; k < classes; ++k) {
      const double mean = model == LabelModel::with_bias ? static_cast<double>(counts[j]) / samples
                          : model == LabelModel::seli    ? 1 / static_cast<double>(classes)
                                                         : 0.0;
      matrix(j, k) = ((j == k ? 1.0 : 0.0) - mean) * std::sqrt(static_cast<double>(counts[k]));
    }
  return matrix;
}

/// U^T or V^T as a matrix.
inline Dense basis(const LabelSpectrum& spectrum, bool left) {
  const Dense unit = identity(spectrum.classes());
  Dense result = unit;
  result.values = left ? spectrum.apply_left(unit.values, unit.cols) : spectrum.apply_right(unit.values, unit.cols);
  return result;
}

}  // namespace ncollapse
