// Statistics over all pairs of rows: tiles of the Gram matrix, each reduced by the thread that made it. Cosines and
// distances come from the tile, except where a distance is small against the norms: there |a|^2 + |b|^2 - 2ab would
// lose digits (relative error E (|a|^2+|b|^2)/distance^2, with E that of a product), so it is recomputed from the rows.
//
// Exact: products in double, E of some eps. PairQuery::fast: row k is z_k = 2^-e_k a_k rounded to single precision, e_k
// such that 1 <= |z_k| < 2; products of at most kSingleRows terms are made in single precision, and longer ones of such
// pieces, added in double. With u = 2^-24 and n = min(d, kSingleRows), relative to |a_j||a_k|: rounding both rows 2u +
// u^2 (what falls below the smallest float is of no weight), a piece g_n = n u/(1 - n u) in whatever order its terms
// are added, by Cauchy and Schwarz sum |z_ji z_ki| <= |z_j||z_k| over the pieces together. With n u <= 2^-12:
//   E <= 2u + u^2 + (1 + u)^2 (n u + n^2 u^2/(1 - n u)) <= (n + 3.1) u,
// and a cosine adds a few (d + 8) 2^-53 of the norms in double: E = (n + 4) u.
//
// Evaluating a pair from its rows costs some ten times what it takes in a double tile. A tile of which more than one in
// kDense is so close is therefore left, and made in double instead: classes that have collapsed onto each other cost
// about twice what `exact` does, and no more.
#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "host/cpu/batch_shape.hpp"
#include "host/cpu/cpu_backend.hpp"
#include "host/cpu/elements.hpp"
#include "host/cpu/parallel_blas.hpp"

// glibc's logarithms of whole vectors (libmvec, within 4 units in the last place), which its own header offers only to
// programs that give up NaN and infinity everywhere.
#if defined(__GLIBC__) && defined(__x86_64__) && !defined(__clang__)
#pragma omp declare simd notinbranch
extern "C" double log(double) noexcept;
#endif

namespace ncollapse::cpu {

namespace {

constexpr Index kTile = 512;      // side of a square tile of product_sums
constexpr Index kPairRows = 512;  // of a tile of pairs, which has twice as many columns; fewer where there are few rows
constexpr double kSameDirection = 4 * std::numeric_limits<double>::epsilon();  // closer is only rounding of the norms
constexpr double kClose = 1e-4;  // of a squared distance against the squared norms: at most 1e-12 is lost above it
constexpr Index kDense = 32;

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

// The simplex of R vectors.
struct Simplex {
  double diagonal, off, frame_diagonal;  // of the Gram matrices, whose Frobenius norm is 1
  double cosine, distance, log_distance;

  explicit Simplex(Index count) {
    const auto r = static_cast<double>(count);
    const double root = std::sqrt(r - 1);
    diagonal = (1 - 1 / r) / root;
    off = -1 / r / root;
    frame_diagonal = 1 / std::sqrt(r);
    cosine = -1 / (r - 1);
    distance = std::sqrt(2 * r / (r - 1));
    log_distance = std::log(distance);
  }
};

// What the rows of a tile, or its columns, are, from the first of them on.
struct Ends {
  const double *norms, *inverse, *offsets, *variances;  // the last two may be null

  Ends from(Index k) const {
    return {norms + k, inverse + k, offsets == nullptr ? nullptr : offsets + k,
            variances == nullptr ? nullptr : variances + k};
  }
};

// A row of a tile while it is worked on, [width] each.
struct PairRow {
  double* gram;     // a_j.a_k
  double* cosine;   // 0 where a norm is 0
  double* unit;     // |a^_j - a^_k|^2; 2 where a norm is 0
  double* squared;  // |a_j - a_k|^2
};

// gram [count] from the products of the row with `count` others, in `pieces` that lie `apart`; `exact`: the products
// are those of the rows themselves. How many pairs are too close for this is returned.
template <class T>
NCOLLAPSE_VECTORISED Index read_products(const T* products, Index pieces, Index apart, bool exact, const Ends& row,
                                         const Ends& of, Index count, double close, const PairRow& out) {
  double *gram = out.gram, *cosine = out.cosine, *unit = out.unit, *squared = out.squared;
  const double *norms = of.norms, *inverse = of.inverse;
  const double norm = *row.norms, inverse_norm = *row.inverse;
  for (Index j = 0; j < count; ++j) gram[j] = static_cast<double>(products[j]);
  for (Index piece = 1; piece < pieces; ++piece)
    for (Index j = 0; j < count; ++j) gram[j] += static_cast<double>(products[piece * apart + j]);
  double near = 0;
#pragma omp simd reduction(+ : near)
  for (Index j = 0; j < count; ++j) {
    double c = gram[j] * inverse_norm * inverse[j];
    c = c < -1 ? -1 : c;
    c = c > 1 ? 1 : c;
    cosine[j] = c;
    unit[j] = 2 - 2 * c;
    near += unit[j] < 2 * close ? 1 : 0;
    gram[j] = exact ? gram[j] : c * (norm * norms[j]);
  }
  if (row.variances != nullptr) {
#pragma omp simd reduction(+ : near)
    for (Index j = 0; j < count; ++j) {
      const double size = norm * norm + norms[j] * norms[j];
      squared[j] = size - 2 * gram[j];
      near += squared[j] >= close * size ? 0 : 1;
    }
  }
  return static_cast<Index>(near);
}

// residuals of the Gram matrices over the ordered pairs of a row and others
NCOLLAPSE_VECTORISED void add_residuals(const PairRow& found, const Ends& row, const Ends& of, Index count,
                                        double gram_norm, double frame_norm, const Simplex& simplex, PairSums& sums) {
  const double* gram = found.gram;
  double etf_sum = 0, frame_sum = 0;
#pragma omp simd reduction(+ : etf_sum, frame_sum)
  for (Index j = 0; j < count; ++j) {
    const double etf = gram[j] / gram_norm - simplex.off;
    etf_sum += etf * etf;
    const double uncentred = of.offsets == nullptr ? gram[j] : gram[j] + *row.offsets + of.offsets[j];
    const double frame = uncentred / frame_norm;
    frame_sum += frame * frame;
  }
  sums.etf_residual += 2 * etf_sum;
  sums.frame_residual += 2 * frame_sum;
}

NCOLLAPSE_VECTORISED void add_angles(const PairRow& found, const Ends& of, Index count, const Simplex& simplex,
                                     PairSums& sums) {
  const double *cosine = found.cosine, *unit = found.unit, *inverse = of.inverse;
  double angles = 0, sum = 0, squares = 0, sizes = 0, largest = -2;
#pragma omp simd reduction(+ : angles, sum, squares, sizes) reduction(max : largest)
  for (Index j = 0; j < count; ++j) {
    const double angle = inverse[j] > 0 ? 1 : 0, e = angle * (cosine[j] - simplex.cosine);
    const double c = cosine[j] - 4 * (1 - angle);
    angles += angle;
    sum += e;
    squares += e * e;
    sizes += std::fabs(e);
    largest = c > largest ? c : largest;
  }
  double gaps = 0, gap_squares = 0, smallest = 16, logs = 0, log_squares = 0, coincident = 0;
#pragma omp simd reduction(+ : gaps, gap_squares, logs, log_squares, coincident) reduction(min : smallest)
  for (Index j = 0; j < count; ++j) {
    const double angle = inverse[j] > 0 ? 1 : 0, together = unit[j] > 0 ? 0 : 1;  // never together without an angle
    const double f = angle * (std::sqrt(unit[j]) - simplex.distance);
    const double g = angle * (simplex.log_distance - 0.5 * ::log(unit[j] + together));
    const double u = unit[j] + 16 * (1 - angle);
    gaps += f;
    gap_squares += f * f;
    smallest = u < smallest ? u : smallest;
    coincident += together;
    logs += (1 - together) * g;
    log_squares += (1 - together) * (g * g);
  }
  sums.angles += static_cast<Index>(angles);
  sums.cos_sum += sum;
  sums.cos_square_sum += squares;
  sums.cos_abs_sum += sizes;
  sums.cos_max = std::max(sums.cos_max, largest);
  sums.distance_sum += gaps;
  sums.distance_square_sum += gap_squares;
  sums.min_unit_distance = std::min(sums.min_unit_distance, std::sqrt(smallest));
  sums.coincident_directions += static_cast<Index>(coincident);
  sums.log_sum += logs;
  sums.log_square_sum += log_squares;
}

// nearest_row, nearest [count]: of the row and of the others, the smallest squared distance so far
NCOLLAPSE_VECTORISED void add_distances(const PairRow& found, const Ends& row, const Ends& of, Index count,
                                        double& nearest_row, double* nearest, PairSums& sums) {
  const double *squared = found.squared, *variances = of.variances;
  const double variance = *row.variances;
  double cdnv = 0, coincident = 0, smallest = nearest_row;
#pragma omp simd reduction(+ : cdnv, coincident) reduction(min : smallest)
  for (Index j = 0; j < count; ++j) {
    const bool apart = squared[j] > 0;
    cdnv += apart ? (variance + variances[j]) / (2 * squared[j]) : 0;
    coincident += apart ? 0 : 1;
    smallest = squared[j] < smallest ? squared[j] : smallest;
    nearest[j] = squared[j] < nearest[j] ? squared[j] : nearest[j];
  }
  nearest_row = smallest;
  sums.cdnv_sum += cdnv;
  sums.coincident_means += static_cast<Index>(coincident);
}

// 2^-e_k a_k in single precision and 2^e_k, whose norm is 1 to 2 (0: 0).
NCOLLAPSE_VECTORISED double narrow_row(const double* row, Index dim, float* out) {
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (Index j = 0; j < dim; ++j) square += row[j] * row[j];
  const double norm = std::sqrt(square);
  const int e = norm > 0 && std::isfinite(norm) ? std::clamp(std::ilogb(norm), -1000, 1000) : 0;
  const double down = std::ldexp(1.0, -e);
  for (Index j = 0; j < dim; ++j) out[j] = static_cast<float>(row[j] * down);
  return std::ldexp(1.0, e);
}

double single_error(Index dim) { return static_cast<double>(std::min(dim, kSingleRows) + 4) * 0x1p-24; }

// All pairs of rows i .. i + height - 1 with rows j .. j + width - 1, j >= i, that are in the upper triangle.
struct PairTile {
  Index i, j, height, width;
};

// Rectangles start at their first row's diagonal: half of their height is all that is computed twice. Few rows make
// small ones, so that threads have enough to share.
std::vector<PairTile> pair_tiles(Index count, Index height, Index width) {
  std::vector<PairTile> tiles;
  for (Index i = 0; i < count; i += height)
    for (Index j = i; j < count; j += width)
      tiles.push_back({i, j, std::min(height, count - i), std::min(width, count - j)});
  return tiles;
}

void tile_product(const Matrix& A, const PairTile& at, double* tile) {
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(at.height), static_cast<int>(at.width),
              static_cast<int>(A.cols), 1.0, A.data() + at.i * A.cols, static_cast<int>(A.cols),
              A.data() + at.j * A.cols, static_cast<int>(A.cols), 0.0, tile, static_cast<int>(at.width));
}

// The pieces of the product, of kSingleRows terms each, one after the other.
void tile_product(const Array<float>& A, const PairTile& at, float* tiles) {
  for (Index first = 0; first < A.cols; first += kSingleRows, tiles += at.height * at.width)
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(at.height), static_cast<int>(at.width),
                static_cast<int>(std::min(kSingleRows, A.cols - first)), 1.0f, A.data() + at.i * A.cols + first,
                static_cast<int>(A.cols), A.data() + at.j * A.cols + first, static_cast<int>(A.cols), 0.0f, tiles,
                static_cast<int>(at.width));
}

// The reduction of tiles by one thread.
class PairReducer {
 public:
  PairReducer(const Matrix& A, const PairQuery& query, Index height, Index width)
      : A_(A),
        query_(query),
        simplex_(A.rows),
        rows_(static_cast<std::size_t>(4 * width)),
        nearest_row_(static_cast<std::size_t>(height)),
        nearest_col_(static_cast<std::size_t>(width)) {
    double* row = rows_.data();
    row_ = {row, row + width, row + 2 * width, row + 3 * width};
  }

  // Sums over the tile's pairs; inverse [R]: what makes cosines of products. False when more than `most` pairs had to
  // be evaluated from their rows: then the tile is not finished.
  template <class T>
  bool reduce(const PairTile& at, const T* products, Index pieces, const double* inverse, bool exact, double close,
              Index most, PairSums& sums) {
    const double* variances = query_.variances.empty() ? nullptr : query_.variances.data();
    const Ends all{query_.norms.data(), inverse, query_.offsets.empty() ? nullptr : query_.offsets.data(), variances};
    std::fill(nearest_row_.begin(), nearest_row_.end(), std::numeric_limits<double>::infinity());
    std::fill(nearest_col_.begin(), nearest_col_.end(), std::numeric_limits<double>::infinity());
    Index open = 0;
    for (Index i = 0; i < at.height; ++i) {
      const Index diagonal = at.i + i - at.j, skip = std::max(Index{0}, diagonal + 1), count = at.width - skip;
      const T* from = products + i * at.width;
      const Ends row = all.from(at.i + i), of = all.from(at.j + skip);
      if (exact && diagonal >= 0 && diagonal < at.width) add_diagonal(static_cast<double>(from[diagonal]), row, sums);
      if (count <= 0) continue;
      const Index near = read_products(from + skip, pieces, at.height * at.width, exact, row, of, count, close, row_);
      if (near > 0) {
        open += near;
        if (open > most) return false;
        evaluate_close(at.i + i, at.j + skip, count, exact, close, row, of);
      }
      if (exact) add_residuals(row_, row, of, count, query_.gram_norm, query_.frame_norm, simplex_, sums);
      if (*row.inverse > 0) add_angles(row_, of, count, simplex_, sums);
      if (variances != nullptr) add_distances(row_, row, of, count, nearest_row_[i], &nearest_col_[skip], sums);
    }
    return true;
  }

  // After reduce: nearest [R] takes the tile's.
  void merge_nearest(const PairTile& at, std::vector<double>& nearest) const {
    for (Index i = 0; i < at.height; ++i) nearest[at.i + i] = std::min(nearest[at.i + i], nearest_row_[i]);
    for (Index j = 0; j < at.width; ++j) nearest[at.j + j] = std::min(nearest[at.j + j], nearest_col_[j]);
  }

 private:
  void add_diagonal(double gram, const Ends& row, PairSums& sums) const {
    const double etf = gram / query_.gram_norm - simplex_.diagonal;
    const double uncentred = row.offsets == nullptr ? gram : gram + 2 * *row.offsets;
    const double frame = uncentred / query_.frame_norm - simplex_.frame_diagonal;
    sums.etf_residual += etf * etf;
    sums.frame_residual += frame * frame;
  }

  void evaluate_close(Index j, Index first, Index count, bool exact, double close, const Ends& row, const Ends& of) {
    const double norm = *row.norms;
    const double* a = A_.data() + j * A_.cols;
    for (Index k = 0; k < count; ++k) {
      const double* b = A_.data() + (first + k) * A_.cols;
      if (row_.unit[k] < 2 * close) {
        double& unit = row_.unit[k];
        unit = squared_distance(a, norm, b, of.norms[k], A_.cols);
        if (unit <= kSameDirection * kSameDirection) unit = 0;
        if (!exact) row_.cosine[k] = 1 - unit / 2;
      }
      if (row.variances == nullptr) continue;
      const double size = norm * norm + of.norms[k] * of.norms[k];
      if (!(row_.squared[k] >= close * size)) row_.squared[k] = squared_distance(a, 1, b, 1, A_.cols);
    }
  }

  const Matrix& A_;
  const PairQuery& query_;
  Simplex simplex_;
  std::vector<double> rows_, nearest_row_, nearest_col_;
  PairRow row_;
};

}  // namespace

PairSums CpuBackend::pair_sums(const Matrix& A, const PairQuery& query) {
  const std::lock_guard turn(turn_);
  const Index count = A.rows, dim = A.cols;
  blas_int(dim, "a matrix's side");
  const Index height = std::clamp((count / 8 + 15) / 16 * 16, Index{16}, kPairRows), width = 2 * height;
  const auto tiles = pair_tiles(count, height, width);
  const int team = threads_for(count * count / 2 * dim);
  const Index area = height * width, pieces = (dim + kSingleRows - 1) / kSingleRows;

  std::vector<double> inverse, narrow_inverse;
  for (const double norm : query.norms) inverse.push_back(norm > 0 ? 1 / norm : 0);
  Array<float> narrow;
  if (query.fast) {
    narrow = array<float>(count, dim);
    narrow_inverse = inverse;
#pragma omp parallel for num_threads(team) schedule(static)
    for (Index k = 0; k < count; ++k) narrow_inverse[k] *= narrow_row(A.data() + k * dim, dim, narrow.data() + k * dim);
  }
  PairSums total;
  if (query.fast) total.cosine_error = single_error(dim);
  if (!query.variances.empty())
    total.nearest_squared.assign(static_cast<std::size_t>(count), std::numeric_limits<double>::infinity());

  // All memory before the parallel region, which no exception may leave.
  double* products = centred_.reserve(team * area);
  float* narrow_products = query.fast ? tiles_.reserve(team * area * pieces) : nullptr;
  std::vector<PairReducer> reducers;
  reducers.reserve(static_cast<std::size_t>(team));
  for (int thread = 0; thread < team; ++thread) reducers.emplace_back(A, query, height, width);
  std::vector<PairSums> parts(tiles.size());
  const double close = std::max(kClose, kPairMargin * total.cosine_error);
  const BlasThreads guard(1);
#pragma omp parallel for num_threads(team) schedule(dynamic)
  for (Index t = 0; t < static_cast<Index>(tiles.size()); ++t) {
    const PairTile& at = tiles[t];
    const int thread = omp_get_thread_num();
    PairReducer& reducer = reducers[thread];
    bool done = false;
    if (query.fast) {
      float* tile = narrow_products + thread * area * pieces;
      tile_product(narrow, at, tile);
      done = reducer.reduce(at, tile, pieces, narrow_inverse.data(), false, close, at.height * at.width / kDense,
                            parts[t]);
    }
    if (!done) {
      parts[t] = {};
      double* tile = products + thread * area;
      tile_product(A, at, tile);
      reducer.reduce(at, tile, 1, inverse.data(), true, kClose, std::numeric_limits<Index>::max(), parts[t]);
    }
    if (query.variances.empty()) continue;
#pragma omp critical
    reducer.merge_nearest(at, total.nearest_squared);
  }
  for (const PairSums& part : parts) add(total, part);
  if (query.fast)
    take_residuals(query, weighted_row_sum(A, std::vector<double>(static_cast<std::size_t>(count), 1.0)), total);
  return total;
}

ProductSums CpuBackend::product_sums(const Matrix& A, const Matrix& B, const ProductQuery& query) {
  const std::lock_guard turn(turn_);
  const Index count = A.rows;
  const Simplex simplex(count);
  const Index side = std::min(kTile, count);
  double* tile = centred_.reserve(side * side);
  std::vector<ProductSums> parts(static_cast<std::size_t>(side));
  ProductSums total;
  for (Index i0 = 0; i0 < count; i0 += kTile) {
    for (Index j0 = 0; j0 < count; j0 += kTile) {
      const Index height = std::min(kTile, count - i0), width = std::min(kTile, count - j0);
      multiply(threads(), {A.data() + i0 * A.cols, A.cols, false}, {B.data() + j0 * B.cols, B.cols, true}, height,
               width, A.cols, tile, width);
#pragma omp parallel for num_threads(threads_for(height* width)) schedule(static)
      for (Index i = 0; i < height; ++i) {
        ProductSums sums;
        const double offset = query.row_offsets.empty() ? 0.0 : query.row_offsets[i0 + i];
        for (Index j = 0; j < width; ++j) {
          const bool on_diagonal = i0 + i == j0 + j;
          const double value = tile[i * width + j];
          const double etf = value / query.product_norm - (on_diagonal ? simplex.diagonal : simplex.off);
          sums.etf_residual += etf * etf;
          if (query.frame_norm > 0) {
            const double gap = (value + offset) / query.frame_norm - (on_diagonal ? simplex.frame_diagonal : 0.0);
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
