// Cosines between groups of classes of equal size: does the geometry depend on the sizes alone?
#pragma once

#include <optional>
#include <vector>

#include "host/backend.hpp"
#include "ncollapse/metrics.hpp"

namespace ncollapse {

struct BlockStatistics {
  BlockCosines mean;
  /// Root mean square of cos_jk - mean of its block over all pairs; resolves down to about 1e-8. Empty when no two
  /// classes have the same size.
  std::optional<double> error;
};

/// Rows A [K x d] of norms > 0, counts [K]; `sums` is what pair_sums found for A (all pairs have an angle).
/// O(K d + m^2 d) time, no m x m array.
BlockStatistics block_cosines(Backend& backend, const std::vector<Index>& counts, const Matrix& A,
                              const std::vector<double>& norms, const PairSums& sums);

}  // namespace ncollapse
