// pair_sums and product_sums: tiles by cuBLAS, each reduced as soon as it is made (pairs.hpp).
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "cuda/backend.hpp"
#include "cuda/dense.hpp"
#include "cuda/narrow.hpp"
#include "cuda/pairs.hpp"
#include "cuda/rows.hpp"

namespace ncollapse::cuda {
namespace {

constexpr Index kColumnMultiple = 8;  // of products of halves, which are slow else

/// Arrays of doubles as one, for one copy to the device.
class Packed {
 public:
  /// Where they will be, from the beginning of the array on.
  Index add(const std::vector<double>& values) {
    const Index at = size();
    values_.insert(values_.end(), values.begin(), values.end());
    return at;
  }
  Index size() const { return static_cast<Index>(values_.size()); }
  void upload(Queue& queue, const Buffer<double>& to) const { queue.upload(to.get(), values_.data(), to.bytes()); }

 private:
  std::vector<double> values_;
};

struct Rectangle {
  Index first_row, height, first_col, width;
  Index number;  ///< in the list
};

/// Rectangles of height x width, or less, that cover a square.
std::vector<Rectangle> cut_square(Index count, Index height, Index width) {
  std::vector<Rectangle> tiles;
  for (Index i = 0; i < count; i += height)
    for (Index j = 0; j < count; j += width)
      tiles.push_back(
          {i, std::min(height, count - i), j, std::min(width, count - j), static_cast<Index>(tiles.size())});
  return tiles;
}

/// Rectangles of an area of up to height x width that cover the upper triangle of a square: for memory, and for
/// products that keep the whole device busy, the area is what counts. Strips of rows, from the diagonal on, are of that
/// height and cut into pieces of about the same width, or higher where they need not be cut; the last one is a square,
/// of up to a quarter more.
std::vector<Rectangle> cut_triangle(Index count, Index height, Index width) {
  constexpr Index kMultiple = 128;
  const Index area = height * width;
  std::vector<Rectangle> tiles;
  for (Index i = 0, rows = 0; i < count; i += rows) {
    const Index across = count - i;
    rows = 4 * across * across <= 5 * area ? across : std::max(height, area / across / kMultiple * kMultiple);
    rows = std::min(rows, across);
    const Index pieces = rows > height ? 1 : (across + width - 1) / width, each = (across + pieces - 1) / pieces;
    const Index step = pieces == 1 ? across : std::min(width, (each + kMultiple - 1) / kMultiple * kMultiple);
    for (Index j = i; j < count; j += step)
      tiles.push_back({i, rows, j, std::min(step, count - j), static_cast<Index>(tiles.size())});
  }
  return tiles;
}

/// The most that `measure` of height and width says of a tile.
template <class Measure>
Index largest(const std::vector<Rectangle>& tiles, const Measure& measure) {
  Index most = 0;
  for (const Rectangle& at : tiles) most = std::max(most, measure(at.height, at.width));
  return most;
}

/// Rows of a warp: `most`, or as few as it takes for the first tile to give `enough` blocks.
template <class T>
Index rows_of_a_warp(const Rectangle& tile, Index most, Index enough) {
  constexpr Index kLeast = 8;
  while (most > kLeast && pair_blocks<T>(tile.height, tile.width, most) < enough) most /= 2;
  return most;
}

/// Tiles of products. One, where there are no more or `beside` is not wanted: made and reduced in turn. Or two: those
/// of even number are made on the queue's stream while others are reduced on a second one, and the other way round.
template <class T>
class Sweep {
 public:
  Sweep(Queue& queue, const std::vector<Rectangle>& tiles, Index pieces, bool beside)
      : queue_(queue),
        pieces_(pieces),
        apart_(largest(tiles, [](Index height, Index width) { return height * pitch(width); })),
        two_(beside && tiles.size() > 1) {
    products_[0] = Buffer<T>(queue, pieces * apart_);
    if (two_) products_[1] = Buffer<T>(queue, pieces * apart_);
  }
  /// From row to row of a product; the reduction reads whole packets.
  static Index pitch(Index width) { return (width + kColumnMultiple - 1) / kColumnMultiple * kColumnMultiple; }
  Index apart() const { return apart_; }
  PairTile<T> tile(const Rectangle& at, const T* products, Index warp_rows) const {
    return {products, pitch(at.width), pieces_, apart_, at.first_row, at.height, at.first_col, at.width, warp_rows};
  }

  /// make(tile, products) queues on the queue's stream, reduce(stream, tile, products) on what it is given. prepare()
  /// queues what reductions need on the queue's stream: after the first product, so that the host does it meanwhile.
  /// What is queued afterwards comes after all of it. Once.
  template <class Make, class Prepare, class Reduce>
  void run(const std::vector<Rectangle>& tiles, const Make& make, const Prepare& prepare, const Reduce& reduce) {
    std::optional<WaitOnException> guard;
    int turn = 0;
    bool prepared = false;
    for (const Rectangle& at : tiles) {
      if (beside_) beside_->taken[turn].hold(queue_.stream());
      make(at, products_[turn].get());
      if (!std::exchange(prepared, true)) {
        prepare();
        if (two_) guard.emplace(beside_.emplace().stream.get());
      }
      if (!beside_) {
        reduce(queue_.stream(), at, products_[turn].get());
        continue;
      }
      beside_->made[turn].record(queue_.stream());
      beside_->made[turn].hold(beside_->stream.get());
      reduce(beside_->stream.get(), at, products_[turn].get());
      beside_->taken[turn].record(beside_->stream.get());
      turn = 1 - turn;
    }
    if (beside_)
      for (const Event& each : beside_->taken) each.hold(queue_.stream());
  }

 private:
  struct Beside {
    Stream stream{nullptr, Stream::kBeside};
    Event made[2], taken[2];
  };

  Queue& queue_;
  Index pieces_, apart_;
  bool two_;
  Buffer<T> products_[2];
  std::optional<Beside> beside_;
};

/// The power of two above the largest value; 1 where there is none above 0.
double unit_of(const std::vector<double>& values) {
  double largest = 0;
  for (const double value : values) largest = std::max(largest, value);
  return largest > 0 && std::isfinite(largest) ? std::ldexp(1.0, std::clamp(std::ilogb(largest) + 1, -500, 500)) : 1;
}

template <class T>
PairTask<T> make_task(const Matrix& A, const PairQuery& query, const PairInput& input, const PairRow<T>* rows,
                      double close, unsigned long long* nearest) {
  const Simplex etf = simplex(A.rows);
  PairTask<T> task{.rows = rows,
                   .vectors = A.data(),
                   .norms = input.norms,
                   .variances = input.variances,
                   .nearest = nearest,
                   .dim = A.cols,
                   .close = static_cast<T>(2 * close / etf.square),
                   .below = static_cast<T>(1 / static_cast<double>(A.rows)),
                   .above = static_cast<T>(1 - 1 / static_cast<double>(A.rows)),
                   .etf = etf,
                   .gram_scale = 1 / query.gram_norm,
                   .frame_scale = input.frame_scale,
                   .unit = input.unit,
                   .gram_unit = 2 / input.unit / input.unit,
                   .units = {}};
  for (int f = 0; f < kPairUnits; ++f)
    task.units[f] = pair_unit(f, etf.distance, kPairLogUnit<T>, input.variance_unit / input.unit / input.unit / 2);
  return task;
}

}  // namespace

PairSums CudaBackend::pair_sums(const Matrix& A, const PairQuery& query) {
  constexpr double kClose = 1e-4;
  const Turn turn(*queue_);
  const Index count = A.rows, d = A.cols;
  const bool distances = !query.variances.empty();
  auto tiles = query.fast ? cut_triangle(count, limits_.half_pair_rows, limits_.half_pair_columns)
                          : cut_triangle(count, limits_.pair_rows, limits_.pair_columns);
  const Index warp_rows = query.fast
                              ? rows_of_a_warp<float>(tiles.front(), limits_.half_pair_warp_rows, limits_.pair_blocks)
                              : rows_of_a_warp<double>(tiles.front(), limits_.pair_warp_rows, limits_.pair_blocks);

  Packed packed;
  const Index norms_at = packed.add(query.norms), variances_at = packed.add(query.variances),
              offsets_at = packed.add(query.offsets);
  const Buffer<double> input(*queue_, packed.size());
  const auto input_in_units = [&](const double* scales, double unit, double variance_unit) {
    return PairInput{.norms = input.get() + norms_at,
                     .scales = scales,
                     .variances = distances ? input.get() + variances_at : nullptr,
                     .offsets = query.offsets.empty() ? nullptr : input.get() + offsets_at,
                     .distance = simplex(count).distance,
                     .frame_scale = 1 / query.frame_norm,
                     .unit = unit,
                     .variance_unit = variance_unit};
  };
  // The total's fields, the bits of the smallest squared distances, the sum of the rows: one copy to the host.
  const Index nearest_at = kPairFields, sum_at = nearest_at + (distances ? count : 0);
  const Buffer<double> result(*queue_, sum_at + (query.fast ? d : 0));
  const auto nearest = distances ? reinterpret_cast<unsigned long long*>(result.get() + nearest_at) : nullptr;
  const Index blocks =
      largest(tiles, [&](Index height, Index width) { return pair_blocks<double>(height, width, warp_rows); });
  const Buffer<double> totals(*queue_, blocks * kPairFields);
  const Buffer<PairRow<double>> exact_rows(*queue_, count);
  const double unit = unit_of(query.norms);
  const PairInput exact_input = input_in_units(nullptr, unit, 1);
  const auto exact_task = make_task<double>(A, query, exact_input, exact_rows.get(), kClose, nearest);
  const auto sweep_exact = [&](Sweep<double>& sweep, const unsigned char* only, Index patches, const auto& prepare) {
    sweep.run(
        tiles,
        [&](const Rectangle& at, double* products) {
          gemm(*queue_, Transpose::no, Transpose::yes, at.height, at.width, d, A.data() + at.first_row * d, d,
               A.data() + at.first_col * d, d, products, sweep.pitch(at.width));
        },
        prepare,
        [&](cudaStream_t stream, const Rectangle& at, const double* products) {
          launch_reduce_pairs(stream, exact_task, sweep.tile(at, products, warp_rows),
                              only ? only + at.number * patches : nullptr, nullptr, totals.get());
        });
  };
  const auto fold = [&] { launch_fold(queue_->stream(), totals.get(), blocks, kPairFields, kPairSums, result.get()); };
  std::vector<double> total;
  PairSums sums;

  if (query.fast) {
    require_exact_halves(*queue_, "use the exact precision");
    sums.cosine_error = half_pair_error(d);
    const Index padded = padded_columns(d), terms = limits_.pair_terms;
    const Index patches =
        largest(tiles, [&](Index height, Index width) { return pair_patches(height, width, warp_rows); });
    const Buffer<Half> rows(*queue_, (count + kColumnMultiple) * padded);  // the last ones are zeros
    check(cudaMemsetAsync(rows.get() + count * padded, 0,
                          static_cast<std::size_t>(kColumnMultiple * padded) * sizeof(Half), queue_->stream()));
    const Buffer<double> scales(*queue_, count), own_norms(*queue_, count), lost(*queue_, count);
    const Buffer<double> chunk_sums(*queue_, row_chunks(count) * d);
    const Buffer<PairRow<float>> pair_rows(*queue_, count);
    const Buffer<unsigned char> left(*queue_, static_cast<Index>(tiles.size()) * patches);
    const PairInput narrow_input = input_in_units(scales.get(), unit, unit_of(query.variances));
    const auto task =
        make_task<float>(A, query, narrow_input, pair_rows.get(), kPairMargin * sums.cosine_error, nearest);
    std::optional<Sweep<float>> sweep;
    sweep.emplace(*queue_, tiles, (padded + terms - 1) / terms, limits_.half_pairs_beside);
    launch_narrow_rows(queue_->stream(), {A.data(), Dtype::f64, count, d, d}, nullptr, padded, Dtype::f16, rows.get(),
                       scales.get(), own_norms.get(), lost.get());
    sweep->run(
        tiles,
        [&](const Rectangle& at, float* products) {
          for (Index first = 0; first < padded; first += terms, products += sweep->apart())
            multiply_narrow(*queue_, Dtype::f16, rows.get() + at.first_row * padded + first, padded, at.height,
                            rows.get() + at.first_col * padded + first, padded, sweep->pitch(at.width),
                            std::min(terms, padded - first), products, sweep->pitch(at.width));
        },
        [&] {
          packed.upload(*queue_, input);
          check(cudaMemsetAsync(left.get(), 0, static_cast<std::size_t>(left.bytes()), queue_->stream()));
          launch_pair_rows(queue_->stream(), narrow_input, count, pair_rows.get(), nearest, blocks, totals.get());
          launch_weighted_row_sum(queue_->stream(), A.data(), nullptr, count, d, chunk_sums.get(),
                                  result.get() + sum_at);
        },
        [&](cudaStream_t stream, const Rectangle& at, const float* products) {
          launch_reduce_pairs(stream, task, sweep->tile(at, products, warp_rows), nullptr,
                              left.get() + at.number * patches, totals.get());
        });

    fold();
    auto dense = left.fetch();
    total = result.to_host();
    std::erase_if(tiles, [&, flags = dense.take()](const Rectangle& at) {
      const auto first = flags.begin() + at.number * patches;
      return std::find(first, first + patches, 1) == first + patches;
    });
    if (!tiles.empty()) {
      sweep.reset();  // or its tiles would be held beside those in double
      Sweep<double> again(*queue_, tiles, 1, limits_.pairs_beside);
      sweep_exact(again, left.get(), patches, [&] {
        launch_pair_rows(queue_->stream(), exact_input, count, exact_rows.get(), nullptr, 0, nullptr);
      });
      fold();
      total = result.to_host();
    }
  } else {
    Sweep<double> sweep(*queue_, tiles, 1, limits_.pairs_beside);
    sweep_exact(sweep, nullptr, 0, [&] {
      packed.upload(*queue_, input);
      launch_pair_rows(queue_->stream(), exact_input, count, exact_rows.get(), nearest, blocks, totals.get());
    });
    fold();
    total = result.to_host();
  }
  sums.etf_residual = total[kEtfResidual];
  sums.frame_residual = total[kFrameResidual];
  sums.angles = static_cast<Index>(total[kAngles]);
  sums.cos_sum = total[kCosSum];
  sums.cos_square_sum = total[kCosSquareSum];
  sums.cos_abs_sum = total[kCosAbsSum];
  sums.distance_sum = total[kDistanceSum];
  sums.distance_square_sum = total[kDistanceSquareSum];
  if (sums.angles > 0) {
    const double least = std::min(total[kMinUnitSquare], 4.0);  // more by rounding
    sums.cos_max = 1 - least / 2;
    sums.min_unit_distance = std::sqrt(least);
  }
  sums.coincident_directions = static_cast<Index>(total[kCoincidentDirections]);
  sums.log_sum = total[kLogSum];
  sums.log_square_sum = total[kLogSquareSum];
  sums.cdnv_sum = total[kCdnvSum];
  sums.coincident_means = static_cast<Index>(total[kCoincidentMeans]);
  sums.nearest_squared.assign(total.begin() + nearest_at, total.begin() + sum_at);
  if (query.fast) take_residuals(query, {total.begin() + sum_at, total.end()}, sums);
  return sums;
}

ProductSums CudaBackend::product_sums(const Matrix& A, const Matrix& B, const ProductQuery& query) {
  const Turn turn(*queue_);
  const Index count = A.rows, d = A.cols, side = std::min(limits_.product_tile, count), blocks = product_blocks(side);
  const auto tiles = cut_square(count, side, side);
  const Buffer<double> offsets(*queue_, static_cast<Index>(query.row_offsets.size()));
  const Buffer<double> totals(*queue_, blocks * kProductFields), total(*queue_, kProductFields);
  Sweep<double> sweep(*queue_, tiles, 1, limits_.pairs_beside);
  const ProductTask task{query.row_offsets.empty() ? nullptr : offsets.get(), 1 / query.product_norm,
                         query.frame_norm > 0 ? 1 / query.frame_norm : 0.0, simplex(count)};
  sweep.run(
      tiles,
      [&](const Rectangle& at, double* products) {
        gemm(*queue_, Transpose::no, Transpose::yes, at.height, at.width, d, A.data() + at.first_row * d, d,
             B.data() + at.first_col * d, d, products, sweep.pitch(at.width));
      },
      [&] {
        queue_->upload(offsets.get(), query.row_offsets.data(), offsets.bytes());
        launch_start_totals(queue_->stream(), blocks, kProductFields, kProductFields, totals.get());
      },
      [&](cudaStream_t stream, const Rectangle& at, const double* products) {
        launch_reduce_product(stream, task, products, sweep.pitch(at.width), at.first_row, at.height, at.first_col,
                              at.width, totals.get());
      });
  launch_fold(queue_->stream(), totals.get(), blocks, kProductFields, kProductFields, total.get());
  const auto sums = total.to_host();
  return {sums[0], query.frame_norm > 0 ? sums[1] : 0};
}

}  // namespace ncollapse::cuda
