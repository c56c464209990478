// Reduction of one tile of a Gram or product matrix. A tile comes from DGEMM, lives in a buffer that fits the L2 cache,
// and is reduced before the next one is made; no K x K array exists. Each block of the reduction owns some rows of the
// tile and writes one partial; `fold` adds the partials in block order to the running totals. Counts are carried as
// doubles (exact to 2^53).
//
// Close pairs. |a_j - a_k|^2 = |a_j|^2 + |a_k|^2 - 2 a_j.a_k loses digits: relative error about eps (|a_j|^2 + |a_k|^2)
// / |a_j - a_k|^2. Where that squared distance is below 1e-4 of the sum of squared norms (so at most 1e-12 is lost
// above it) the pair is recomputed from its two rows, by the warp that found it; the same for unit vectors, whose sum
// of squared norms is 2. Distances that are exactly zero are thereby found as such.
#pragma once

#include <cuda_runtime.h>

#include "ncollapse/types.hpp"

namespace ncollapse::cuda {

/// Fields of a partial and of the totals.
enum PairField {
  kEtfResidual,
  kFrameResidual,
  kAngles,
  kCosSum,
  kCosSquareSum,
  kCosAbsSum,
  kDistanceSum,
  kDistanceSquareSum,
  kCoincidentDirections,
  kLogSum,
  kLogSquareSum,
  kCdnvSum,
  kCoincidentMeans,
  kPairSums,            ///< number of the fields above, which are sums
  kCosMax = kPairSums,  ///< a maximum
  kMinUnitDistance,     ///< a minimum
  kPairFields
};

/// Device pointers and constants of one query; offsets, variances, nearest may be null.
struct PairTask {
  const double* rows;              ///< A [R x d]
  const double* norms;             ///< [R]
  const double* offsets;           ///< [R]
  const double* variances;         ///< [R]
  unsigned long long* nearest;     ///< [R] bits of the smallest squared distance so far
  Index count, dim;                ///< R, d
  double gram_scale, frame_scale;  ///< 1/|G|_F, 1/|uncentred G|_F
};

/// tile [height x width] = rows first_row .. of A times rows first_col .. of A, transposed; first_col >= first_row.
/// Only entries on or above the diagonal of the whole matrix are used. partials [pair_blocks(height) x kPairFields].
Index pair_blocks(Index height);
void launch_reduce_pairs(cudaStream_t stream, const PairTask& task, const double* tile, Index first_row, Index height,
                         Index first_col, Index width, double* partials);

struct ProductTask {
  const double* offsets;  ///< [R] of the rows; may be null
  Index count;            ///< R
  double product_scale;   ///< 1/|P|_F
  double frame_scale;     ///< 0: the frame residual is not wanted
};
inline constexpr Index kProductFields = 2;  ///< etf residual, frame residual
void launch_reduce_product(cudaStream_t stream, const ProductTask& task, const double* tile, Index first_row,
                           Index height, Index first_col, Index width, double* partials);

/// totals[f] = totals[f] combined with partials[0][f], partials[1][f], ...: sums, then (max, min) as the last two
/// fields where fields > sums.
void launch_fold(cudaStream_t stream, const double* partials, Index blocks, Index fields, Index sums, double* totals);

}  // namespace ncollapse::cuda
