// With s_g the sum of group g's unit vectors, the mean cosine between groups is s_g.s_h/(l_g l_h), inside a group
// (|s_g|^2 - l_g)/(l_g (l_g - 1)); the spread is the sum of all squares less that of the blocks' means. Both are taken
// about the simplex value -1/(K-1), as PairSums are.
#include "host/theory/blocks.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "host/numbers.hpp"
#include "host/theory/geometry.hpp"

namespace ncollapse {

namespace {

constexpr Index kTileRows = 256;

}  // namespace

BlockStatistics block_cosines(Backend& backend, const std::vector<Index>& counts, const Matrix& A,
                              const std::vector<double>& norms, const PairSums& sums) {
  const LabelSpectrum groups(counts, LabelModel::without_bias);
  const auto& s = groups.structure();
  const Index m = s.groups();
  BlockStatistics blocks;
  blocks.mean.sizes = s.sizes;
  const bool alone = m == A.rows;
  if (alone && m > BlockCosines::kMostSizes) return blocks;
  std::vector<double> inverse;
  for (const double norm : norms) inverse.push_back(1 / norm);
  const Matrix directions = group_sums(backend, s, A, inverse);
  const double simplex = -1 / static_cast<double>(A.rows - 1);
  double between = 0;  // sum over pairs of (block mean - simplex)^2
  std::vector<Index> tile;
  for (Index first = 0; first < m; first += kTileRows) {
    tile.clear();
    for (Index g = first; g < std::min(first + kTileRows, m); ++g) tile.push_back(g);
    const auto dots = backend.to_host(
        backend.product(backend.select_rows(directions, tile), Transpose::no, directions, Transpose::yes));
    for (const Index g : tile) {
      const auto own = static_cast<double>(s.members(g));
      for (Index h = 0; h < m; ++h) {
        const double dot = dots[(g - first) * m + h], others = static_cast<double>(s.members(h));
        const double pairs = g == h ? own * (own - 1) : own * others;  // ordered
        const double mean = pairs > 0 ? (g == h ? dot - own : dot) / pairs : std::numeric_limits<double>::quiet_NaN();
        if (pairs > 0) between += pairs * (mean - simplex) * (mean - simplex) / 2;
        if (m <= BlockCosines::kMostSizes) blocks.mean.cosines.push_back(mean);
      }
    }
  }
  if (alone) return blocks;
  blocks.error = std::sqrt(at_least_zero(sums.cos_square_sum - between) / static_cast<double>(sums.angles));
  return blocks;
}

}  // namespace ncollapse
