// Reduction of tiles of a Gram or product matrix. A tile comes from cuBLAS, so large that this is fast, and is reduced
// while the next one is made; no K x K array exists. A block takes a patch of the tile and
// adds to totals of its own, from tile to tile; `fold` adds up the blocks' totals in order. Counts are carried as
// doubles (exact to 2^53).
//
// Of a pair this takes w = |a_j^ - a_k^|^2 / s^2 - 1 = -2 e / s^2, with s^2 = 2R/(R-1) the squared distance of unit
// vectors of the simplex: near collapse nothing is lost to a difference of numbers of size 1. min |a_j^ - a_k^|^2 = 2 -
// 2 max cos, so one of them is enough.
//
// Close pairs. |a_j - a_k|^2 = |a_j|^2 + |a_k|^2 - 2 a_j.a_k loses digits: relative error about E (|a_j|^2 + |a_k|^2)
// / |a_j - a_k|^2, with E the error of a product relative to |a_j||a_k|. With c >= 0 the cosine it is at least
// (|a_j|^2 + |a_k|^2)(1 - c), so rows are close only where their unit vectors are: where |a_j^ - a_k^|^2 is below 2
// `close`. All of such a pair comes from its two rows, in double, by a warp of the block that found it, once the other
// pairs are done: a bit marks it until then. Distances that are exactly zero are thereby found as such. The same for
// pairs of rows so short that their squared norms have lost digits to underflow (kShortest).
//
// Squared distances of rows are taken in unit^2, `unit` a power of two above the largest norm: what underflows is of no
// weight beside squared norms of kShortest.
//
// exact. Products in double, close = 1e-4: at most 1e-12 is lost above it. Roots, logarithms and quotients start from
// rough ones of single precision, which refining makes right to a few 2^-53. Where no cosine is above 1/2, one quotient
// gives the root and the logarithm.
//
// fast. Products of halves (decide.hpp: row k is 2^f_k z_k with |z_k| in [64, 128)), of at most Limits::pair_terms
// columns each, whose sums are added in double. From there on single precision does. u = 2^-24. E, relative to
// |a_j||a_k|, with n = min(d, 4096): 2^-10 for rounding both rows, to single and then to half precision (2^-11 (1 +
// 2^-12) each); n 2^-23 for sums that truncate (host/moments.hpp); 1.5 2^-20 for the products of these (2^-22 + 2^-21),
// the second rounding (2^-23), and 6 u for what follows; sqrt(d) 2^-30 for elements below 2^-14, which keep no more
// than 2^-25 absolutely, of norms of 64. No more than kFastError up to d = 2^18. close = 64 E, so that a squared
// distance above it is good to 1/64. What follows:
//   cosine         3 u for two inverse norms and a product; another u, and a rounded 1/R, for w and 1 + w.
//   squared        |a_j - a_k|^2: 4 u of the squared norms for these, their sum and the difference; a_j.a_k takes
//                  powers of two alone. Numbers below 2^-126 count as 0: 2^-46 of kShortest = 2^-80.
//   |a_j^ - a_k^|  over s: a root of 1 + w to 2^-22, then one step for f^2 + 2 f = w, what it is above 1, along the
//                  slope at f = 0: that leaves 6 u |f|, and rounding some more: f is exact to 9 u (|f| + 2^-21), as far
//                  as w.
//   logarithm      |g| off by 2^-22 (1 + |g|), g that of a distance over s.
//   quotient       (v_j + v_k) / |a_j - a_k|^2 to 2^-21; variances in a power of two above the largest one, where
//                  numbers below 2^-126 count as 0: 2^-20 of the sum for up to 2^18 rows, whose largest variance alone
//                  makes (R-1)/8 of it in these units.
//   sums           of 32 pairs of a lane, of 4 of these and of 8 lanes in single precision, the rest in double: each
//                  off by at most 44 u of the sum of the terms' sizes, usually by about u.
//
// What a warp does to take a pair from its rows takes far longer than a product. A patch of which more than one pair in
// 32 is close is therefore left for the exact tier (`left`), which then makes those tiles in double, for those patches
// (`only`).
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "ncollapse/types.hpp"

namespace ncollapse::cuda {

/// Fields of a block's totals and of the whole, in the units of PairSums. Every pair adds to those up to kCdnvSum, in
/// double up to kFrameResidual.
enum PairField {
  kCosSum,
  kCosSquareSum,
  kCosAbsSum,
  kDistanceSum,
  kDistanceSquareSum,
  kLogSum,
  kLogSquareSum,
  kCdnvSum,
  kEtfResidual,
  kFrameResidual,
  kAngles,
  kCoincidentDirections,
  kCoincidentMeans,
  kPairSums,                   ///< number of the fields above, which are sums
  kMinUnitSquare = kPairSums,  ///< a minimum
  kPairFields
};

/// The unit in which the sums up to kFrameResidual are added up: of w and f = |a_j^ - a_k^| / s - 1, with `distance` s,
/// of log(|a_j^ - a_k^|^2 / s^2) / log_unit, of quotients (v_j + v_k) / |a_j - a_k|^2 in some unit.
inline constexpr int kPairUnits = kFrameResidual + 1;
__host__ __device__ constexpr double pair_unit(int field, double distance, double log_unit, double cdnv_unit) {
  const double square = distance * distance;
  switch (field) {
    case kCosSum: return -0.5 * square;
    case kCosSquareSum: return 0.25 * square * square;
    case kCosAbsSum: return 0.5 * square;
    case kDistanceSum: return distance;
    case kDistanceSquareSum: return square;
    case kLogSum: return -0.5 * log_unit;
    case kLogSquareSum: return 0.25 * log_unit * log_unit;
    case kCdnvSum: return cdnv_unit;
    case kEtfResidual:
    case kFrameResidual: return 2;  // both orders
    default: return 1;
  }
}
/// log_unit of a tier.
template <class T>
inline constexpr double kPairLogUnit = sizeof(T) == sizeof(double) ? 4 : 0.69314718055994530942;

/// What a pair takes from each of its rows.
template <class T>
struct PairRow;
template <>
struct alignas(16) PairRow<double> {
  double inverse;   ///< product inverse_j inverse_k is a cosine / s^2; 0 where the norm is 0
  double offset;    ///< of the uncentred Gram, times PairTask::frame_scale
  double square;    ///< |a|^2 / unit^2
  double variance;  ///< / variance_unit; 0 without
};
template <>
struct alignas(16) PairRow<float> {
  float inverse;  ///< as above
  float factor;   ///< product factor_j factor_k is a_j.a_k / unit^2; a power of two
  float square;   ///< |a|^2 / unit^2
  float variance;
};

/// Where PairRows come from; [count] device arrays but for the units.
struct PairInput {
  const double *norms, *scales, *variances, *offsets;  ///< all but norms may be null; row k is scales_k times what was
                                                       ///< multiplied
  double distance;                                     ///< s
  double frame_scale;                                  ///< 1/|uncentred G|_F
  double unit, variance_unit;                          ///< powers of two
};

/// The simplex ETF of R vectors. Its Gram matrices have norm 1.
struct Simplex {
  double square, distance;  ///< s^2, s of two of its unit vectors
  double off, diagonal, frame_diagonal;
};
inline Simplex simplex(Index count) {
  const double r = static_cast<double>(count), root = std::sqrt(r - 1), square = 2 * r / (r - 1);
  return {square, std::sqrt(square), -1 / r / root, (1 - 1 / r) / root, 1 / std::sqrt(r)};
}

/// Device pointers and constants of one query.
template <class T>
struct PairTask {
  const PairRow<T>* rows;       ///< [R]
  const double* vectors;        ///< A [R x d]
  const double* norms;          ///< [R]
  const double* variances;      ///< [R], or null: no distances of rows
  unsigned long long* nearest;  ///< [R] bits of the smallest squared distance so far; null where variances are
  Index dim;                    ///< d
  T close;                      ///< of |a_j^ - a_k^|^2 / s^2
  T below, above;               ///< 1/R, 1 - 1/R: w = -2 cos / s^2 - below, 1 + w = -2 cos / s^2 + above
  Simplex etf;
  double gram_scale, frame_scale;  ///< 1/|G|_F, 1/|uncentred G|_F
  double unit, gram_unit;          ///< that of PairInput, and 2 / unit^2
  double units[kPairUnits];        ///< what sums over pairs are multiplied by, see pair_unit
};

/// Rows first_row .. of A times rows first_col .. of A, first_col >= first_row: [height x width], the sum of `pieces`
/// arrays, each `pitch` from row to row (a multiple of 4) and `apart` from the one before. What lies below the diagonal
/// of the whole matrix is not read. A warp takes warp_rows rows: a multiple of 8, at most kMostWarpRows.
inline constexpr Index kMostWarpRows = 32;
template <class T>
struct PairTile {
  const T* products;
  Index pitch, pieces, apart;
  Index first_row, height, first_col, width;
  Index warp_rows;
};

/// E of the fast tier.
inline double half_pair_error(Index dim) {
  return 0x1p-10 + static_cast<double>(std::min<Index>(dim, 4096)) * 0x1p-23 + 0x1.8p-20 +
         std::sqrt(static_cast<double>(dim)) * 0x1p-30;
}

/// Blocks that a tile takes, at most as many as a larger one.
template <class T>
Index pair_blocks(Index height, Index width, Index warp_rows);
/// Patches of the fast tier in a tile, each with a byte in `left` and `only`.
inline Index pair_patches(Index height, Index width, Index warp_rows) {
  return pair_blocks<float>(height, width, warp_rows);
}

/// rows [count] from the input, all of nearest [count] (null: none) infinite, totals [blocks x kPairFields] (0 blocks:
/// none) before anything is added to them: zeros, and infinite minima.
template <class T>
void launch_pair_rows(cudaStream_t stream, const PairInput& input, Index count, PairRow<T>* rows,
                      unsigned long long* nearest, Index blocks, double* totals);
/// totals [pair_blocks x kPairFields] take the pairs of the tile that lie above the diagonal of the whole matrix; in
/// double also the residuals, diagonal included. left [pair_patches], or null: becomes 1 for a patch that is left; only
/// [pair_patches], or null: nothing is done where it is 0.
template <class T>
void launch_reduce_pairs(cudaStream_t stream, const PairTask<T>& task, const PairTile<T>& tile,
                         const unsigned char* only, unsigned char* left, double* totals);

struct ProductTask {
  const double* offsets;  ///< [R] of the rows; may be null
  double product_scale;   ///< 1/|P|_F
  double frame_scale;     ///< 0: the frame residual is not wanted
  Simplex etf;
};
inline constexpr Index kProductFields = 2;  ///< etf residual, frame residual
/// Adds the tile [height x width], `pitch` from row to row, to totals [product_blocks(height) x kProductFields].
Index product_blocks(Index height);
void launch_reduce_product(cudaStream_t stream, const ProductTask& task, const double* tile, Index pitch,
                           Index first_row, Index height, Index first_col, Index width, double* totals);

/// Totals [blocks x fields] before anything is added to them: `sums` zeros, and infinite minima.
void launch_start_totals(cudaStream_t stream, Index blocks, Index fields, Index sums, double* totals);
/// total [fields] of the blocks' totals, added up, or minimised, in a fixed order.
void launch_fold(cudaStream_t stream, const double* totals, Index blocks, Index fields, Index sums, double* total);

}  // namespace ncollapse::cuda
