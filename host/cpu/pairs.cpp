// Statistics over all pairs of rows: Gram tiles, each reduced as soon as it is made, row by row and in row
// order. Cosines and distances come from the tile, except where a distance is small against the norms: there
// |a|^2 + |b|^2 - 2ab would lose digits (relative error eps (|a|^2+|b|^2)/distance^2), so it is recomputed from the
// rows.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "host/cpu/cpu_backend.hpp"
#include "host/cpu/elements.hpp"
#include "host/cpu/parallel_blas.hpp"

namespace ncollapse::cpu {

namespace {

constexpr Index kTile = 512;
constexpr double kSameDirection = 4 * std::numeric_limits<double>::epsilon();  // closer is only rounding of the norms
constexpr double kClose = 1e-4;  // of a squared distance against the squared norms: at most 1e-12 is lost above it

// |a/na - b/nb|^2
NCOLLAPSE_VECTORISED double squared_distance(const double* a, double na, const double* b, double nb, Index dim) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < dim; ++j) {
    const double gap = a[j] / na - b[j] / nb;
    sum += gap * gap;
  }
  return sum;
}

void add(PairSums& total, const PairSums& part) {
  total.etf_residual += part.etf_residual;
  total.frame_residual += part.frame_residual;
  total.angles += part.angles;
  total.cos_sum += part.cos_sum;
  total.cos_square_sum += part.cos_square_sum;
  total.cos_abs_sum += part.cos_abs_sum;
  total.cos_max = std::max(total.cos_max, part.cos_max);
  total.distance_sum += part.distance_sum;
  total.distance_square_sum += part.distance_square_sum;
  total.min_unit_distance = std::min(total.min_unit_distance, part.min_unit_distance);
  total.coincident_directions += part.coincident_directions;
  total.log_sum += part.log_sum;
  total.log_square_sum += part.log_square_sum;
  total.cdnv_sum += part.cdnv_sum;
  total.coincident_means += part.coincident_means;
}

// What one tile needs to know about the whole.
struct PairConstants {
  const double* rows;
  Index dim, count;
  const PairQuery& query;
  double etf_diagonal, etf_off, frame_diagonal, mean_cosine, distance, log_distance;

  PairConstants(const Matrix& A, const PairQuery& q) : rows(A.data()), dim(A.cols), count(A.rows), query(q) {
    const auto r = static_cast<double>(count);
    const double root = std::sqrt(r - 1);
    etf_diagonal = (1 - 1 / r) / root;
    etf_off = -1 / r / root;
    frame_diagonal = 1 / std::sqrt(r);
    mean_cosine = -1 / (r - 1);
    distance = std::sqrt(2 * r / (r - 1));
    log_distance = std::log(distance);
  }

  void residuals(Index j, Index k, double gram, double times, PairSums& sums) const {
    const double etf = gram / query.gram_norm - (j == k ? etf_diagonal : etf_off);
    sums.etf_residual += times * etf * etf;
    const double uncentred = query.offsets.empty() ? gram : gram + query.offsets[j] + query.offsets[k];
    const double frame = uncentred / query.frame_norm - (j == k ? frame_diagonal : 0.0);
    sums.frame_residual += times * frame * frame;
  }

  // Everything about the pair j < k; returns |a_j - a_k|^2.
  double pair(Index j, Index k, double gram, PairSums& sums) const {
    residuals(j, k, gram, 2.0, sums);
    const double nj = query.norms[j], nk = query.norms[k];
    const double* aj = rows + j * dim;
    const double* ak = rows + k * dim;
    if (nj > 0 && nk > 0) {
      const double cosine = std::clamp(gram / (nj * nk), -1.0, 1.0);
      double squared = 2 - 2 * cosine;
      if (squared < 2 * kClose) squared = squared_distance(aj, nj, ak, nk, dim);
      if (squared <= kSameDirection * kSameDirection) squared = 0;
      const double e = cosine - mean_cosine, unit = std::sqrt(squared), f = unit - distance;
      ++sums.angles;
      sums.cos_sum += e;
      sums.cos_square_sum += e * e;
      sums.cos_abs_sum += std::abs(e);
      sums.cos_max = std::max(sums.cos_max, cosine);
      sums.distance_sum += f;
      sums.distance_square_sum += f * f;
      sums.min_unit_distance = std::min(sums.min_unit_distance, unit);
      if (unit > 0) {
        const double g = log_distance - std::log(unit);
        sums.log_sum += g;
        sums.log_square_sum += g * g;
      } else {
        ++sums.coincident_directions;
      }
    }
    if (query.variances.empty()) return 0;
    const double size = nj * nj + nk * nk;
    double squared = size - 2 * gram;
    if (!(squared >= kClose * size)) squared = squared_distance(aj, 1, ak, 1, dim);
    if (squared > 0)
      sums.cdnv_sum += (query.variances[j] + query.variances[k]) / (2 * squared);
    else
      ++sums.coincident_means;
    return squared;
  }
};

void tile_product(int threads, const Matrix& A, Index i0, Index height, const Matrix& B, Index j0, Index width,
                  double* tile) {
  multiply(threads, {A.data() + i0 * A.cols, A.cols, false}, {B.data() + j0 * B.cols, B.cols, true}, height, width,
           A.cols, tile, width);
}

}  // namespace

PairSums CpuBackend::pair_sums(const Matrix& A, const PairQuery& query) {
  const PairConstants constants(A, query);
  const Index count = A.rows;
  const bool distances = !query.variances.empty();
  PairSums total;
  if (distances) total.nearest_squared.assign(static_cast<std::size_t>(count), std::numeric_limits<double>::infinity());
  const Index side = std::min(kTile, count);
  double* tile = centred_.reserve(side * side);
  std::vector<PairSums> parts(static_cast<std::size_t>(side));

  for (Index i0 = 0; i0 < count; i0 += kTile) {
    for (Index j0 = i0; j0 < count; j0 += kTile) {
      const Index height = std::min(kTile, count - i0), width = std::min(kTile, count - j0);
      tile_product(threads_, A, i0, height, A, j0, width, tile);
#pragma omp parallel for num_threads(threads_for(height* width)) schedule(dynamic, 8)
      for (Index i = 0; i < height; ++i) {
        PairSums sums;
        double* row = tile + i * width;
        double nearest = std::numeric_limits<double>::infinity();
        Index j = i0 == j0 ? i : 0;
        if (i0 == j0) constants.residuals(i0 + i, i0 + i, row[j++], 1.0, sums);
        for (; j < width; ++j) {
          row[j] = constants.pair(i0 + i, j0 + j, row[j], sums);
          nearest = std::min(nearest, row[j]);
        }
        if (distances) total.nearest_squared[i0 + i] = std::min(total.nearest_squared[i0 + i], nearest);
        parts[i] = sums;
      }
      for (Index i = 0; i < height; ++i) add(total, parts[i]);
      if (!distances) continue;
      for (Index i = 0; i < height; ++i)  // the same distances seen from the other row
        for (Index j = i0 == j0 ? i + 1 : 0; j < width; ++j)
          total.nearest_squared[j0 + j] = std::min(total.nearest_squared[j0 + j], tile[i * width + j]);
    }
  }
  return total;
}

ProductSums CpuBackend::product_sums(const Matrix& A, const Matrix& B, const ProductQuery& query) {
  const Index count = A.rows;
  const auto r = static_cast<double>(count);
  const double off = -1 / r / std::sqrt(r - 1), diagonal = (1 - 1 / r) / std::sqrt(r - 1), frame = 1 / std::sqrt(r);
  const Index side = std::min(kTile, count);
  double* tile = centred_.reserve(side * side);
  std::vector<ProductSums> parts(static_cast<std::size_t>(side));
  ProductSums total;
  for (Index i0 = 0; i0 < count; i0 += kTile) {
    for (Index j0 = 0; j0 < count; j0 += kTile) {
      const Index height = std::min(kTile, count - i0), width = std::min(kTile, count - j0);
      tile_product(threads_, A, i0, height, B, j0, width, tile);
#pragma omp parallel for num_threads(threads_for(height* width)) schedule(static)
      for (Index i = 0; i < height; ++i) {
        ProductSums sums;
        const double offset = query.row_offsets.empty() ? 0.0 : query.row_offsets[i0 + i];
        for (Index j = 0; j < width; ++j) {
          const bool on_diagonal = i0 + i == j0 + j;
          const double value = tile[i * width + j];
          const double etf = value / query.product_norm - (on_diagonal ? diagonal : off);
          sums.etf_residual += etf * etf;
          if (query.frame_norm > 0) {
            const double gap = (value + offset) / query.frame_norm - (on_diagonal ? frame : 0.0);
            sums.frame_residual += gap * gap;
          }
        }
        parts[i] = sums;
      }
      for (Index i = 0; i < height; ++i) {
        total.etf_residual += parts[i].etf_residual;
        total.frame_residual += parts[i].frame_residual;
      }
    }
  }
  return total;
}

}  // namespace ncollapse::cpu
