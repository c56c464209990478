// The structured decomposition behind LabelSpectrum.
//
// Group the classes by size: sizes s_0 > ... > s_{m-1}, l_i classes each. In a group the contrasts (vectors supported
// on it, orthogonal to 1) are singular vectors, left = right, with sigma^2 = s_i. What remains lives on vectors that
// are constant in each group, an m-dimensional problem. With g_i = l_i s_i (bias) or g_i = l_i (SELI), its m - 1
// nonzero values sigma^2 = x_r are the roots of  sum_i g_i/(s_i - x) = 0,  one in each (s_{r+1}, s_r), and its singular
// vectors have the components (in the orthonormal basis 1_group/sqrt(l_i))
//   p_ri = sqrt(g_i)/(s_i - x_r)   and   h_ri = sqrt(g_i s_i)/(s_i - x_r),   each normalised over i:
// with bias h is left and p right, for SELI p is left and h right. Vectors are orthogonal to working precision because
// g is recomputed from the roots (Gu & Eisenstat 1994), g_i = prod_r (s_i - x_r) / prod_{j!=i} (s_i - s_j), and because
// s_i - x_r is taken from the root's offset to its nearest pole: sizes are integers, so their differences are exact.
#pragma once

#include "ncollapse/theory.hpp"

namespace ncollapse {

/// A root of the secular equation, x = sizes[pole] + offset.
struct SecularRoot {
  Index pole = 0;
  double offset = 0;
};

struct LabelSpectrum::Structure {
  LabelModel model = LabelModel::with_bias;
  std::vector<Index> counts;
  Index samples = 0;
  std::vector<Index> order;        ///< class numbers by descending size, ties ascending, [K]
  std::vector<Index> sizes;        ///< s_i, [m]
  std::vector<Index> begin;        ///< group i is order[begin[i] .. begin[i+1]), [m + 1]
  std::vector<SecularRoot> roots;  ///< [m - 1]; empty without bias
  std::vector<Eigenspace> eigenspaces;

  Index groups() const { return static_cast<Index>(sizes.size()); }
  Index members(Index i) const { return begin[i + 1] - begin[i]; }
  double gap(Index i, Index r) const {  ///< s_i - x_r, to full relative precision
    return static_cast<double>(sizes[i] - sizes[roots[r].pole]) - roots[r].offset;
  }
  double root(Index r) const { return static_cast<double>(sizes[roots[r].pole]) + roots[r].offset; }

  /// Rows first .. first + count - 1 of the m x m orthogonal matrix of group components, row-major: row r < m - 1
  /// belongs to root r, row m - 1 to sigma = 0. `left`: of U, else of V. Only where there are roots or m = 1 with a
  /// null vector.
  std::vector<double> group_vectors(bool left, Index first, Index count) const;
  /// c_i of the components c_i/(s_i - x_r) of the vectors above, before they are normalised, [m].
  std::vector<double> numerators(bool left) const;

 private:
  friend class LabelSpectrum;
  std::vector<double> weights_;  // g_i recomputed from the roots, relative to the true g_i; empty when there is none
  void make_weights();
};

/// Roots of sum_i g_i / (s_i - x) = 0 for sizes s descending and weights g > 0 (LAPACK's dlaed4). m - 1 roots.
std::vector<SecularRoot> secular_roots(const std::vector<Index>& sizes, const std::vector<double>& weights);

}  // namespace ncollapse
