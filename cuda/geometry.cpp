// pair_sums and product_sums: tiles by cuBLAS, each reduced as soon as it is made (pairs.hpp).
#include <algorithm>
#include <bit>
#include <limits>

#include "cuda/backend.hpp"
#include "cuda/decide.hpp"
#include "cuda/dense.hpp"
#include "cuda/pairs.hpp"
#include "cuda/scatter.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cuda {
namespace {

/// Host values on the device, or null for none.
class Optional {
 public:
  Optional(Queue& queue, const std::vector<double>& values) {
    if (!values.empty()) buffer_ = Buffer<double>(queue, values);
  }
  const double* get() const { return buffer_.get(); }

 private:
  Buffer<double> buffer_;
};

struct Rectangle {
  Index number, first_row, height, first_col, width;
};

/// Squares of `side` that cover the upper triangle.
std::vector<Rectangle> upper_tiles(Index count, Index side) {
  std::vector<Rectangle> tiles;
  for (Index i = 0; i < count; i += side)
    for (Index j = i; j < count; j += side)
      tiles.push_back({static_cast<Index>(tiles.size()), i, std::min(side, count - i), j, std::min(side, count - j)});
  return tiles;
}

/// Makes tiles on the queue's stream, by make(tile, pitch, products), and reduces them on another, each while the next
/// is made. only, left: of all tiles, `blocks` each.
template <class T, class Make>
void sweep(Queue& queue, const PairTask& task, const std::vector<Rectangle>& tiles, Index side, Index pieces,
           const Make& make, const unsigned char* only, unsigned char* left, double* totals) {
  const Index pitch = (side + kPacket<T> - 1) / kPacket<T> * kPacket<T>, blocks = pair_blocks(side, side);
  Buffer<T> products[2];
  for (auto& each : products) each = Buffer<T>(queue, pieces * side * pitch);
  const Stream reducing(nullptr, Stream::kBeside);
  Event made[2], taken[2];
  int turn = 0;
  for (const Rectangle& at : tiles) {
    taken[turn].hold(queue.stream());
    make(at, pitch, products[turn].get());
    made[turn].record(queue.stream());
    made[turn].hold(reducing.get());
    const PairTile<T> tile{products[turn].get(), pitch,     pieces,       side * pitch,
                           at.first_row,         at.height, at.first_col, at.width};
    launch_reduce_pairs(reducing.get(), task, tile, only ? only + at.number * blocks : nullptr,
                        left ? left + at.number * blocks : nullptr, totals);
    taken[turn].record(reducing.get());
    turn = 1 - turn;
  }
  for (const Event& each : taken) each.hold(queue.stream());
}

/// 1/|a_k|, times scales_k where there are some; 0 for |a_k| = 0.
std::vector<double> inverse_norms(const std::vector<double>& norms, const std::vector<double>& scales) {
  std::vector<double> inverse;
  for (std::size_t k = 0; k < norms.size(); ++k)
    inverse.push_back(norms[k] > 0 ? (scales.empty() ? 1 : scales[k]) / norms[k] : 0);
  return inverse;
}

}  // namespace

PairSums CudaBackend::pair_sums(const Matrix& A, const PairQuery& query) {
  constexpr double kClose = 1e-4;
  const DeviceGuard on(queue_->device());
  const Index count = A.rows, d = A.cols;
  const Index side = std::min(query.fast ? limits_.half_pair_tile : limits_.pair_tile, count);
  const Index blocks = pair_blocks(side, side);
  const Optional norms(*queue_, query.norms), offsets(*queue_, query.offsets), variances(*queue_, query.variances);
  const Optional inverse(*queue_, inverse_norms(query.norms, {}));
  Buffer<unsigned long long> nearest;
  if (variances.get())
    nearest = Buffer<unsigned long long>(
        *queue_,
        std::vector<unsigned long long>(static_cast<std::size_t>(count),
                                        std::bit_cast<unsigned long long>(std::numeric_limits<double>::infinity())));
  std::vector<double> start(kPairFields, 0.0), starts;
  start[kCosMax] = -2;
  start[kMinUnitDistance] = 4;
  for (Index block = 0; block < blocks; ++block) starts.insert(starts.end(), start.begin(), start.end());
  const Buffer<double> totals(*queue_, start), block_totals(*queue_, starts);
  const PairTask exact{A.data(), norms.get(), inverse.get(),       offsets.get(),        variances.get(), nearest.get(),
                       count,    d,           1 / query.gram_norm, 1 / query.frame_norm, kClose};
  const auto in_double = [&](const Rectangle& at, Index pitch, double* products) {
    gemm(*queue_, Transpose::no, Transpose::yes, at.height, at.width, d, A.data() + at.first_row * d, d,
         A.data() + at.first_col * d, d, products, pitch);
  };
  auto tiles = upper_tiles(count, side);
  PairSums sums;

  if (query.fast) {
    if (!narrow_products_are_exact(*queue_, Dtype::f16))
      throw DeviceError("cuBLAS does not accumulate products of fp16 numbers in fp32 on this device",
                        "use the exact precision");
    sums.cosine_error = half_pair_error(d);
    const Index padded = (d + kHalfPadding - 1) / kHalfPadding * kHalfPadding, terms = limits_.pair_terms;
    const Buffer<Half> rows(*queue_, count * padded);
    const Buffer<double> scales(*queue_, count), own_norms(*queue_, count), lost(*queue_, count);
    launch_narrow_rows(queue_->stream(), {A.data(), Dtype::f64, count, d, d}, nullptr, padded, Dtype::f16, rows.get(),
                       scales.get(), own_norms.get(), lost.get());
    const Optional scaled_inverse(*queue_, inverse_norms(query.norms, scales.to_host()));
    PairTask task = exact;
    task.inverse = scaled_inverse.get();
    task.close = kPairMargin * sums.cosine_error;
    const Buffer<unsigned char> left(
        *queue_, std::vector<unsigned char>(static_cast<std::size_t>(static_cast<Index>(tiles.size()) * blocks), 0));
    sweep<float>(
        *queue_, task, tiles, side, (padded + terms - 1) / terms,
        [&](const Rectangle& at, Index pitch, float* products) {
          for (Index first = 0; first < padded; first += terms, products += side * pitch)
            multiply_narrow(*queue_, Dtype::f16, rows.get() + at.first_row * padded + first, padded, at.height,
                            rows.get() + at.first_col * padded + first, padded, at.width,
                            std::min(terms, padded - first), products, pitch);
        },
        nullptr, left.get(), block_totals.get());

    const auto dense = left.to_host();
    std::erase_if(tiles, [&](const Rectangle& at) {
      const auto first = dense.begin() + at.number * blocks;
      return std::find(first, first + blocks, 1) == first + blocks;
    });
    if (!tiles.empty())
      sweep<double>(*queue_, exact, tiles, side, 1, in_double, left.get(), nullptr, block_totals.get());
  } else {
    sweep<double>(*queue_, exact, tiles, side, 1, in_double, nullptr, nullptr, block_totals.get());
  }
  launch_fold(queue_->stream(), block_totals.get(), blocks, kPairFields, kPairSums, totals.get());

  const auto total = totals.to_host();
  sums.etf_residual = total[kEtfResidual];
  sums.frame_residual = total[kFrameResidual];
  sums.angles = static_cast<Index>(total[kAngles]);
  sums.cos_sum = total[kCosSum];
  sums.cos_square_sum = total[kCosSquareSum];
  sums.cos_abs_sum = total[kCosAbsSum];
  sums.cos_max = total[kCosMax];
  sums.distance_sum = total[kDistanceSum];
  sums.distance_square_sum = total[kDistanceSquareSum];
  sums.min_unit_distance = total[kMinUnitDistance];
  sums.coincident_directions = static_cast<Index>(total[kCoincidentDirections]);
  sums.log_sum = total[kLogSum];
  sums.log_square_sum = total[kLogSquareSum];
  sums.cdnv_sum = total[kCdnvSum];
  sums.coincident_means = static_cast<Index>(total[kCoincidentMeans]);
  if (variances.get())
    for (const auto bits : nearest.to_host()) sums.nearest_squared.push_back(std::bit_cast<double>(bits));
  if (query.fast) set_residuals(A, query, sums);
  return sums;
}

ProductSums CudaBackend::product_sums(const Matrix& A, const Matrix& B, const ProductQuery& query) {
  const DeviceGuard on(queue_->device());
  const Index count = A.rows, d = A.cols, side = std::min(limits_.pair_tile, count);
  const Optional offsets(*queue_, query.row_offsets);
  const Buffer<double> totals(*queue_, std::vector<double>(kProductFields, 0.0)), tile(*queue_, side * side);
  const Buffer<double> partials(*queue_, product_blocks(side) * kProductFields);
  const ProductTask task{offsets.get(), count, 1 / query.product_norm,
                         query.frame_norm > 0 ? 1 / query.frame_norm : 0.0};
  for (Index i = 0; i < count; i += limits_.pair_tile)
    for (Index j = 0; j < count; j += limits_.pair_tile) {
      const Index height = std::min(limits_.pair_tile, count - i), width = std::min(limits_.pair_tile, count - j);
      gemm(*queue_, Transpose::no, Transpose::yes, height, width, d, A.data() + i * d, d, B.data() + j * d, d,
           tile.get(), width);
      launch_reduce_product(queue_->stream(), task, tile.get(), i, height, j, width, partials.get());
      launch_fold(queue_->stream(), partials.get(), product_blocks(height), kProductFields, kProductFields,
                  totals.get());
    }
  const auto total = totals.to_host();
  return {total[0], total[1]};
}

}  // namespace ncollapse::cuda
