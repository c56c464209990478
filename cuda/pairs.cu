#include "cuda/device.hpp"
#include "cuda/pairs.hpp"

namespace ncollapse::cuda {
namespace {

constexpr double kClose = 1e-4;
constexpr double kSameDirection = 4 * 0x1p-52;  // unit vectors this close differ only by the rounding of their norms

/// The simplex ETF of R vectors: Gram entries on and off the diagonal (unit Frobenius norm), cosine, distance.
struct Simplex {
  double diagonal, off, cosine, distance, log_distance, frame_diagonal;
};
__device__ Simplex simplex(Index count) {
  const double r = static_cast<double>(count), root = sqrt(r - 1), distance = sqrt(2 * r / (r - 1));
  return {(1 - 1 / r) / root, -1 / r / root, -1 / (r - 1), distance, log(distance), 1 / sqrt(r)};
}

/// |a/norm_a - b/norm_b|^2 by the whole warp.
__device__ double squared_distance(const double* a, double norm_a, const double* b, double norm_b, Index dim) {
  double sum = 0;
  for (Index col = lane_id(); col < dim; col += kWarp) {
    const double gap = a[col] / norm_a - b[col] / norm_b;
    sum += gap * gap;
  }
  return warp_sum(sum);
}

/// Gives every lane that asks for it the exact squared distance of its pair (row j, its own row k).
__device__ double recompute(bool asked, double otherwise, const PairTask& task, Index j, double norm_j, Index k,
                            double norm_k) {
  double result = otherwise;
  for (unsigned open = __ballot_sync(kAllLanes, asked); open != 0; open &= open - 1) {
    const int lane = __ffs(static_cast<int>(open)) - 1;
    const Index other = __shfl_sync(kAllLanes, k, lane);
    const double norm = __shfl_sync(kAllLanes, norm_k, lane);
    const double exact =
        squared_distance(task.rows + j * task.dim, norm_j, task.rows + other * task.dim, norm, task.dim);
    if (lane_id() == lane) result = exact;
  }
  return result;
}

/// Sums, maximum and minimum of the block's threads, in warp order. shared: kWarps * fields.
__device__ void write_partial(const double* mine, int fields, int sums, double* shared, double* partial) {
  for (int f = 0; f < fields; ++f) {
    const double value = f < sums ? warp_sum(mine[f]) : f == sums ? warp_max(mine[f]) : warp_min(mine[f]);
    if (lane_id() == 0) shared[warp_in_block() * fields + f] = value;
  }
  __syncthreads();
  const int f = static_cast<int>(threadIdx.x);
  if (f >= fields) return;
  double total = shared[f];
  for (int warp = 1; warp < kWarps; ++warp) {
    const double value = shared[warp * fields + f];
    total = f < sums ? total + value : f == sums ? max(total, value) : min(total, value);
  }
  partial[f] = total;
}

/// A warp takes one row of the tile, its lanes neighbouring columns.
__global__ void reduce_pairs(PairTask task, const double* tile, Index first_row, Index height, Index first_col,
                             Index width, double* partials) {
  const Simplex etf = simplex(task.count);
  double mine[kPairFields];
  for (int f = 0; f < kPairSums; ++f) mine[f] = 0;
  mine[kCosMax] = -2;
  mine[kMinUnitDistance] = 4;

  const Index i = warp_id();  // one row per warp: the grid covers the tile
  if (i < height) {           // the whole warp
    const Index j = first_row + i;
    const double norm_j = task.norms[j];
    double nearest = HUGE_VAL;
    for (Index base = 0; base < width; base += kWarp) {
      const Index column = base + lane_id(), k = first_col + column;
      const bool valid = column < width && k >= j, pair = valid && k > j;
      const double gram = valid ? tile[i * width + column] : 0, norm_k = valid ? task.norms[k] : 0;
      if (valid) {
        const double times = pair ? 2 : 1;
        const double centred = gram * task.gram_scale - (pair ? etf.off : etf.diagonal);
        mine[kEtfResidual] += times * centred * centred;
        const double uncentred = task.offsets ? gram + task.offsets[j] + task.offsets[k] : gram;
        const double frame = uncentred * task.frame_scale - (pair ? 0 : etf.frame_diagonal);
        mine[kFrameResidual] += times * frame * frame;
      }

      const bool angle = pair && norm_j > 0 && norm_k > 0;
      const double cosine = angle ? max(-1.0, min(1.0, gram / (norm_j * norm_k))) : 0;
      double unit_squared = 2 - 2 * cosine;
      unit_squared = recompute(angle && unit_squared < 2 * kClose, unit_squared, task, j, norm_j, k, norm_k);
      if (unit_squared <= kSameDirection * kSameDirection) unit_squared = 0;
      if (angle) {
        const double e = cosine - etf.cosine, unit = sqrt(unit_squared), f = unit - etf.distance;
        mine[kAngles] += 1;
        mine[kCosSum] += e;
        mine[kCosSquareSum] += e * e;
        mine[kCosAbsSum] += fabs(e);
        mine[kCosMax] = max(mine[kCosMax], cosine);
        mine[kDistanceSum] += f;
        mine[kDistanceSquareSum] += f * f;
        mine[kMinUnitDistance] = min(mine[kMinUnitDistance], unit);
        if (unit > 0) {
          const double g = etf.log_distance - log(unit);
          mine[kLogSum] += g;
          mine[kLogSquareSum] += g * g;
        } else {
          mine[kCoincidentDirections] += 1;
        }
      }

      if (!task.variances) continue;  // the same for all
      const double size = norm_j * norm_j + norm_k * norm_k;
      double squared = size - 2 * gram;
      squared = recompute(pair && !(squared >= kClose * size), squared, task, j, 1, k, 1);
      if (pair) {
        if (squared > 0)
          mine[kCdnvSum] += (task.variances[j] + task.variances[k]) / (2 * squared);
        else
          mine[kCoincidentMeans] += 1;
        nearest = min(nearest, squared);
        atomicMin(&task.nearest[k], static_cast<Count>(__double_as_longlong(squared)));  // >= 0: bits are in order
      }
    }
    nearest = warp_min(nearest);
    if (task.variances && lane_id() == 0)
      atomicMin(&task.nearest[j], static_cast<Count>(__double_as_longlong(nearest)));
  }
  write_partial(mine, kPairFields, kPairSums, shared_memory<double>(), partials + blockIdx.x * Index{kPairFields});
}

__global__ void reduce_product(ProductTask task, const double* tile, Index first_row, Index height, Index first_col,
                               Index width, double* partials) {
  const Simplex etf = simplex(task.count);
  double mine[kProductFields] = {0, 0};
  const Index i = warp_id();
  if (i < height) {
    const double offset = task.offsets ? task.offsets[first_row + i] : 0;
    for (Index column = lane_id(); column < width; column += kWarp) {
      const bool diagonal = first_row + i == first_col + column;
      const double value = tile[i * width + column];
      const double centred = value * task.product_scale - (diagonal ? etf.diagonal : etf.off);
      mine[0] += centred * centred;
      if (!(task.frame_scale > 0)) continue;
      const double frame = (value + offset) * task.frame_scale - (diagonal ? etf.frame_diagonal : 0);
      mine[1] += frame * frame;
    }
  }
  write_partial(mine, kProductFields, kProductFields, shared_memory<double>(), partials + blockIdx.x * kProductFields);
}

__global__ void fold(const double* partials, Index blocks, Index fields, Index sums, double* totals) {
  const Index f = thread_id();
  if (f >= fields) return;
  double total = totals[f];
  for (Index block = 0; block < blocks; ++block) {
    const double value = partials[block * fields + f];
    total = f < sums ? total + value : f == sums ? max(total, value) : min(total, value);
  }
  totals[f] = total;
}

}  // namespace

Index pair_blocks(Index height) { return (height + kWarps - 1) / kWarps; }

void launch_reduce_pairs(cudaStream_t stream, const PairTask& task, const double* tile, Index first_row, Index height,
                         Index first_col, Index width, double* partials) {
  const Index shared = kWarps * kPairFields * static_cast<Index>(sizeof(double));
  launch(stream, {pair_blocks(height), 1, shared}, reduce_pairs, task, tile, first_row, height, first_col, width,
         partials);
}

void launch_reduce_product(cudaStream_t stream, const ProductTask& task, const double* tile, Index first_row,
                           Index height, Index first_col, Index width, double* partials) {
  const Index shared = kWarps * kProductFields * static_cast<Index>(sizeof(double));
  launch(stream, {pair_blocks(height), 1, shared}, reduce_product, task, tile, first_row, height, first_col, width,
         partials);
}

void launch_fold(cudaStream_t stream, const double* partials, Index blocks, Index fields, Index sums, double* totals) {
  launch(stream, {1}, fold, partials, blocks, fields, sums, totals);
}

}  // namespace ncollapse::cuda
