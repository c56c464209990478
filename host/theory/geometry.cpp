// Energies of eigenspaces. In a group of equal class sizes the contrasts' share of A is what is left when the group's
// mean row is subtracted, whatever basis of contrasts is chosen; the group sums carry the rest, through the m x m
// vectors of the secular equation, tile by tile.
#include "host/theory/geometry.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ncollapse {

namespace {

constexpr Index kTileRows = 256;

/// The rows of a matrix sorted into groups: their sums in the orthonormal basis 1_group/sqrt(l), and what deviates.
struct Grouped {
  Matrix sums;        // [m x d]
  Matrix deviations;  // [K x d]
};

Grouped group(Backend& backend, const LabelSpectrum::Structure& s, const Matrix& A) {
  Grouped result;
  result.deviations = backend.select_rows(A, s.order);
  result.sums = backend.sum_groups(result.deviations, s.begin);
  std::vector<double> to_mean, to_basis;
  std::vector<Index> group_of;
  for (Index i = 0; i < s.groups(); ++i) {
    const auto members = static_cast<double>(s.members(i));
    to_mean.push_back(1 / members);
    to_basis.push_back(1 / std::sqrt(members));
    group_of.insert(group_of.end(), static_cast<std::size_t>(s.members(i)), i);
  }
  Matrix means = backend.matrix(s.groups(), A.cols);
  backend.combine_rows(to_mean, result.sums, {}, {}, means);
  const Matrix spread = backend.select_rows(means, group_of);
  const std::vector<double> plus(group_of.size(), 1.0), minus(group_of.size(), -1.0);
  backend.combine_rows(plus, result.deviations, minus, spread, result.deviations);
  backend.combine_rows(to_basis, result.sums, {}, {}, result.sums);
  return result;
}

// Sums of a value per sorted row, over each group.
std::vector<double> by_group(const LabelSpectrum::Structure& s, const std::vector<double>& values) {
  std::vector<double> sums;
  for (Index i = 0; i < s.groups(); ++i)
    sums.push_back(std::accumulate(values.begin() + s.begin[i], values.begin() + s.begin[i + 1], 0.0));
  return sums;
}

}  // namespace

SpectrumEnergies spectrum_energies(Backend& backend, const LabelSpectrum& spectrum, const Matrix& A, const Matrix& B) {
  const auto& s = spectrum.structure();
  const Index m = s.groups();
  SpectrumEnergies energies;
  if (s.model == LabelModel::without_bias) {  // U = V = I
    const auto sorted = [&](const Matrix& left, const Matrix& right) {
      const auto dots = backend.row_dots(left, right);
      std::vector<double> ordered;
      for (const Index k : s.order) ordered.push_back(dots[k]);
      return by_group(s, ordered);
    };
    return {sorted(A, A), sorted(B, B), sorted(A, B)};
  }
  const Grouped a = group(backend, s, A), b = group(backend, s, B);
  const auto inside_left = by_group(s, backend.row_dots(a.deviations, a.deviations));
  const auto inside_right = by_group(s, backend.row_dots(b.deviations, b.deviations));
  const auto inside_cross = by_group(s, backend.row_dots(a.deviations, b.deviations));
  for (Index first = 0; first < m; first += kTileRows) {
    const Index count = std::min(kTileRows, m - first);
    const auto rows = [&](bool left, const Matrix& sums) {
      Matrix vectors = backend.matrix(count, m);
      backend.from_host(vectors, s.group_vectors(left, first, count));
      return backend.product(vectors, Transpose::no, sums, Transpose::no);
    };
    const Matrix left = rows(true, a.sums), right = rows(false, b.sums);
    const auto left_squares = backend.row_dots(left, left), right_squares = backend.row_dots(right, right),
               products = backend.row_dots(left, right);
    for (Index r = 0; r < count; ++r) {
      const Index i = first + r;
      if (s.members(i) > 1) {
        energies.left.push_back(inside_left[i]);
        energies.right.push_back(inside_right[i]);
        energies.cross.push_back(inside_cross[i]);
      }
      energies.left.push_back(left_squares[r]);
      energies.right.push_back(right_squares[r]);
      energies.cross.push_back(products[r]);
    }
  }
  return energies;
}

double distance_to_diagonal(const std::vector<double>& energies, double norm, const std::vector<double>& target,
                            const std::vector<Eigenspace>& spaces) {
  double inner = 0, squares = 0;
  for (std::size_t i = 0; i < spaces.size(); ++i) {
    inner += energies[i] * target[i];
    squares += static_cast<double>(spaces[i].multiplicity) * target[i] * target[i];
  }
  return std::sqrt(std::max(0.0, 2 - 2 * inner / (norm * std::sqrt(squares))));
}

}  // namespace ncollapse
