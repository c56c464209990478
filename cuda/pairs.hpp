// Reduction of tiles of a Gram or product matrix. A tile comes from cuBLAS, lives in a buffer that fits the L2 cache,
// and is reduced while the next one is made; no K x K array exists. A block takes a patch of the tile and adds to
// totals of its own, from tile to tile; `fold` adds up the blocks' totals in order. Counts are carried as doubles
// (exact to 2^53).
//
// Close pairs. |a_j - a_k|^2 = |a_j|^2 + |a_k|^2 - 2 a_j.a_k loses digits: relative error about E (|a_j|^2 + |a_k|^2)
// / |a_j - a_k|^2, with E the error of a product relative to |a_j||a_k|. Where that squared distance is below
// PairTask::close of the sum of squared norms the pair is recomputed from its two rows, by the warp that found it; the
// same for unit vectors, whose sum of squared norms is 2. Distances that are exactly zero are thereby found as such.
//
// exact. Products in double, close = 1e-4: at most 1e-12 is lost above it.
//
// fast. Products of halves (decide.hpp: row k is 2^f_k z_k with |z_k| in [64, 128)), of at most Limits::pair_terms
// columns each, whose sums are added in double. From there on single precision does for a pair, and double for what is
// added up and for distances of rows. E, relative to |a_j||a_k|, with n = min(d, 4096): 2^-10 for rounding both rows,
// to single and then to half precision (2^-11 (1 + 2^-12) each); n 2^-23 for sums that truncate (host/moments.hpp);
// 1.5 2^-20 for the products of these (2^-22 + 2^-21), the second rounding (2^-23), and a cosine made of a product in
// single precision (6 2^-24); sqrt(d) 2^-30 for elements below 2^-14, which keep no more than 2^-25 absolutely, of
// norms of 64. No more than kFastError up to d = 2^18. close = 64 E, so that a squared distance above it is good to
// 1/64.
//
// What a warp does to recompute a pair takes far longer than a product. A patch of which more than one pair in 32 is
// close is therefore left for the exact tier (`left`), which then makes those tiles in double, for those patches
// (`only`).
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "ncollapse/types.hpp"

namespace ncollapse::cuda {

/// Fields of a block's totals and of the whole.
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
  const double* inverse;           ///< [R] product inverse_j inverse_k is a cosine; 0 where the norm is 0
  const double* offsets;           ///< [R]
  const double* variances;         ///< [R]
  unsigned long long* nearest;     ///< [R] bits of the smallest squared distance so far
  Index count, dim;                ///< R, d
  double gram_scale, frame_scale;  ///< 1/|G|_F, 1/|uncentred G|_F
  double close;
};

/// Rows first_row .. of A times rows first_col .. of A, first_col >= first_row: [height x width], the sum of `pieces`
/// arrays, each `pitch` from row to row (a multiple of 4) and `apart` from the one before.
template <class T>
struct PairTile {
  const T* products;
  Index pitch, pieces, apart;
  Index first_row, height, first_col, width;
};

/// E of the fast tier.
inline double half_pair_error(Index dim) {
  return 0x1p-10 + static_cast<double>(std::min<Index>(dim, 4096)) * 0x1p-23 + 0x1.8p-20 +
         std::sqrt(static_cast<double>(dim)) * 0x1p-30;
}

/// Blocks that a tile takes, at most as many as a larger one.
Index pair_blocks(Index height, Index width);
/// totals [blocks x kPairFields] take the pairs of the tile that lie above the diagonal of the whole matrix; in double
/// also the residuals, diagonal included. left [blocks], or null: becomes 1 for a patch that is left; only [blocks], or
/// null: nothing is done where it is 0.
template <class T>
void launch_reduce_pairs(cudaStream_t stream, const PairTask& task, const PairTile<T>& tile, const unsigned char* only,
                         unsigned char* left, double* totals);

struct ProductTask {
  const double* offsets;  ///< [R] of the rows; may be null
  Index count;            ///< R
  double product_scale;   ///< 1/|P|_F
  double frame_scale;     ///< 0: the frame residual is not wanted
};
inline constexpr Index kProductFields = 2;  ///< etf residual, frame residual
/// tile [height x width]; partials [product_blocks(height) x kProductFields].
Index product_blocks(Index height);
void launch_reduce_product(cudaStream_t stream, const ProductTask& task, const double* tile, Index first_row,
                           Index height, Index first_col, Index width, double* partials);

/// totals[f] = totals[f] combined with partials[0][f], partials[1][f], ...: sums, then (max, min) as the last two
/// fields where fields > sums.
void launch_fold(cudaStream_t stream, const double* partials, Index blocks, Index fields, Index sums, double* totals);

}  // namespace ncollapse::cuda
