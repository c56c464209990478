// pair_sums and product_sums: tiles by DGEMM, each reduced as soon as it is made (pairs.hpp).
#include <algorithm>
#include <bit>
#include <limits>

#include "cuda/backend.hpp"
#include "cuda/dense.hpp"
#include "cuda/pairs.hpp"

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

}  // namespace

PairSums CudaBackend::pair_sums(const Matrix& A, const PairQuery& query) {
  const DeviceGuard on(queue_->device());
  const Index count = A.rows, d = A.cols, side = std::min(limits_.pair_tile, count);
  const Optional norms(*queue_, query.norms), offsets(*queue_, query.offsets), variances(*queue_, query.variances);
  Buffer<unsigned long long> nearest;
  if (variances.get())
    nearest = Buffer<unsigned long long>(
        *queue_,
        std::vector<unsigned long long>(static_cast<std::size_t>(count),
                                        std::bit_cast<unsigned long long>(std::numeric_limits<double>::infinity())));
  std::vector<double> start(kPairFields, 0.0);
  start[kCosMax] = -2;
  start[kMinUnitDistance] = 4;
  const Buffer<double> totals(*queue_, start), tile(*queue_, side * side);
  const Buffer<double> partials(*queue_, pair_blocks(side) * kPairFields);
  const PairTask task{A.data(), norms.get(), offsets.get(),       variances.get(),     nearest.get(),
                      count,    d,           1 / query.gram_norm, 1 / query.frame_norm};

  for (Index i = 0; i < count; i += limits_.pair_tile)
    for (Index j = i; j < count; j += limits_.pair_tile) {
      const Index height = std::min(limits_.pair_tile, count - i), width = std::min(limits_.pair_tile, count - j);
      gemm(*queue_, Transpose::no, Transpose::yes, height, width, d, A.data() + i * d, d, A.data() + j * d, d,
           tile.get(), width);
      launch_reduce_pairs(queue_->stream(), task, tile.get(), i, height, j, width, partials.get());
      launch_fold(queue_->stream(), partials.get(), pair_blocks(height), kPairFields, kPairSums, totals.get());
    }

  const auto total = totals.to_host();
  PairSums sums;
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
  return sums;
}

ProductSums CudaBackend::product_sums(const Matrix& A, const Matrix& B, const ProductQuery& query) {
  const DeviceGuard on(queue_->device());
  const Index count = A.rows, d = A.cols, side = std::min(limits_.pair_tile, count);
  const Optional offsets(*queue_, query.row_offsets);
  const Buffer<double> totals(*queue_, std::vector<double>(kProductFields, 0.0)), tile(*queue_, side * side);
  const Buffer<double> partials(*queue_, pair_blocks(side) * kProductFields);
  const ProductTask task{offsets.get(), count, 1 / query.product_norm,
                         query.frame_norm > 0 ? 1 / query.frame_norm : 0.0};
  for (Index i = 0; i < count; i += limits_.pair_tile)
    for (Index j = 0; j < count; j += limits_.pair_tile) {
      const Index height = std::min(limits_.pair_tile, count - i), width = std::min(limits_.pair_tile, count - j);
      gemm(*queue_, Transpose::no, Transpose::yes, height, width, d, A.data() + i * d, d, B.data() + j * d, d,
           tile.get(), width);
      launch_reduce_product(queue_->stream(), task, tile.get(), i, height, j, width, partials.get());
      launch_fold(queue_->stream(), partials.get(), pair_blocks(height), kProductFields, kProductFields, totals.get());
    }
  const auto total = totals.to_host();
  return {total[0], total[1]};
}

}  // namespace ncollapse::cuda
