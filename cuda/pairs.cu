#include "cuda/device.hpp"
#include "cuda/pairs.hpp"

namespace ncollapse::cuda {
namespace {

constexpr double kSameDirection = 4 * 0x1p-52;  // unit vectors this close differ only by the rounding of their norms
constexpr int kPatchRows = 8;                   // of a warp
constexpr int kPatchCols = kWarp * 4;           // a packet for every lane
constexpr int kDense = 32;

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
  NCOLLAPSE_ROLLED
  for (Index col = lane_id(); col < dim; col += kWarp) {
    const double gap = a[col] / norm_a - b[col] / norm_b;
    sum += gap * gap;
  }
  return warp_sum(sum);
}

/// Gives every lane that asks for it the exact squared distance of its pair (row j, its own row k); 0 to the others.
__device__ double recompute(bool asked, const PairTask& task, Index j, double norm_j, Index k, double norm_k) {
  double result = 0;
  NCOLLAPSE_ROLLED
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

__device__ double combine(double total, double value, int field, int sums) {
  return field < sums ? total + value : field == sums ? max(total, value) : min(total, value);
}

/// Sums, maximum and minimum of the block's threads, in warp order, to totals, or (`go_on`) combined with what is
/// there. shared: kWarps * fields.
template <int fields, int sums>
__device__ void write_totals(const double (&mine)[fields], bool go_on, double* shared, double* totals) {
  for (int f = 0; f < fields; ++f) {
    const double value = f < sums ? warp_sum(mine[f]) : f == sums ? warp_max(mine[f]) : warp_min(mine[f]);
    if (lane_id() == 0) shared[warp_in_block() * fields + f] = value;
  }
  __syncthreads();
  const int f = static_cast<int>(threadIdx.x);
  if (f >= fields) return;
  double total = shared[f];
  for (int warp = 1; warp < kWarps; ++warp) total = combine(total, shared[warp * fields + f], f, sums);
  totals[f] = go_on ? combine(totals[f], total, f, sums) : total;
}

/// The products of row i with the columns of a packet, those inside the tile.
template <class T>
__device__ Packet<T> read_products(const PairTile<T>& tile, Index i, Index column) {
  const T* from = tile.products + i * tile.pitch + column;
  Packet<T> packet{};
  if (tile.width < column + kPacket<T>) {
    for (int v = 0; v < kPacket<T>; ++v)
      if (column + v < tile.width) packet.value[v] = from[v];
  } else {
    packet = *reinterpret_cast<const Packet<T>*>(from);
  }
  if (tile.pieces == 1) return packet;
  for (int v = 0; v < kPacket<T>; ++v) {
    if (column + v >= tile.width) continue;
    double sum = 0;
    for (Index piece = 0; piece < tile.pieces; ++piece) sum += static_cast<double>(from[piece * tile.apart + v]);
    packet.value[v] = static_cast<T>(sum);
  }
  return packet;
}

/// f(0) .. f(3), written out, so that arrays with an element for each stay in registers.
template <class F>
__device__ void for_each_of_packet(const F& f) {
  f(0);
  f(1);
  f(2);
  f(3);
}

/// A warp takes kPatchRows rows, its lanes a packet of columns each. T is the type of everything that belongs to one
/// pair, but for its distance.
template <class T>
__global__ void __launch_bounds__(kBlock, sizeof(T) == sizeof(float) ? 2 : 1)
    reduce_pairs(PairTask task, PairTile<T> tile, const unsigned char* only, unsigned char* left, double* totals) {
  constexpr bool kExact = sizeof(T) == sizeof(double);
  constexpr int V = 4;
  static_assert(kPacket<T> == V);
  if (only && !only[blockIdx.x]) return;
  double* shared = shared_memory<double>();
  const Index patches = (tile.width + kPatchCols - 1) / kPatchCols, first_column = blockIdx.x % patches * kPatchCols;
  const Index top = blockIdx.x / patches * (kPatchRows * kWarps), column = first_column + lane_id() * V;
  if (tile.first_col + min(first_column + kPatchCols, tile.width) <= tile.first_row + top)
    return;  // below the diagonal
  const Index first = top + warp_in_block() * kPatchRows, end = min(first + kPatchRows, tile.height);

  double nearest[V];
  T inverse[V];
  for_each_of_packet([&](int v) {
    const bool inside = column + v < tile.width;
    const Index k = tile.first_col + column + v;
    inverse[v] = inside ? static_cast<T>(task.inverse[k]) : 0;
    nearest[v] = HUGE_VAL;
  });

  if (left) {
    int near = 0;
    for (Index i = first; i < end; ++i) {
      const Packet<T> products = read_products(tile, i, column);
      const T inverse_j = static_cast<T>(task.inverse[tile.first_row + i]), least = static_cast<T>(1 - task.close);
      for_each_of_packet([&](int v) {
        near += tile.first_col + column + v > tile.first_row + i && products.value[v] * inverse_j * inverse[v] > least;
      });
    }
    if (block_sum(near, shared) * kDense > kPatchRows * kWarps * kPatchCols) {
      if (threadIdx.x == 0) left[blockIdx.x] = 1;
      return;  // the whole block
    }
  }

  const Simplex etf = simplex(task.count);
  const T close = static_cast<T>(2 * task.close);
  double mine[kPairFields];
  for (int f = 0; f < kPairSums; ++f) mine[f] = 0;
  mine[kCosMax] = -2;
  mine[kMinUnitDistance] = 4;
  int counted = 0, same_direction = 0, same_mean = 0;
  for (Index i = first; i < end; ++i) {
    const Index j = tile.first_row + i, k = tile.first_col + column;  // k of the first of the packet
    const Packet<T> products = read_products(tile, i, column);
    const double norm_j = task.norms[j];
    const T inverse_j = static_cast<T>(task.inverse[j]);
    // Bits for the pairs of the packet: there is one; it has an angle; it is too close for its product.
    unsigned pairs = 0, angles = 0, near = 0;
    T cosine[V], unit_squared[V];
    for_each_of_packet([&](int v) {
      const bool pair = column + v < tile.width && k + v > j, angle = pair && inverse_j > 0 && inverse[v] > 0;
      cosine[v] = angle ? max(T{-1}, min(T{1}, products.value[v] * inverse_j * inverse[v])) : 0;
      unit_squared[v] = 2 - 2 * cosine[v];
      pairs |= static_cast<unsigned>(pair) << v;
      angles |= static_cast<unsigned>(angle) << v;
      near |= static_cast<unsigned>(angle && unit_squared[v] < close) << v;
      if (kExact && column + v < tile.width && k + v >= j) {
        const double gram = products.value[v], times = pair ? 2 : 1;
        const double centred = gram * task.gram_scale - (pair ? etf.off : etf.diagonal);
        mine[kEtfResidual] += times * centred * centred;
        const double uncentred = task.offsets ? gram + task.offsets[j] + task.offsets[k + v] : gram;
        const double frame = uncentred * task.frame_scale - (pair ? 0 : etf.frame_diagonal);
        mine[kFrameResidual] += times * frame * frame;
      }
    });
    NCOLLAPSE_ROLLED
    for (int v = 0; v < V; ++v) {
      if (__ballot_sync(kAllLanes, near >> v & 1) == 0) continue;
      const bool asked = near >> v & 1;
      double found = recompute(asked, task, j, norm_j, k + v, asked ? task.norms[k + v] : 1);
      if (found <= kSameDirection * kSameDirection) found = 0;
      for_each_of_packet([&](int u) {
        if (!asked || u != v) return;
        unit_squared[u] = static_cast<T>(found);
        if (!kExact) cosine[u] = static_cast<T>(1 - found / 2);
      });
    }

    T part[kPairSums];  // of the packet
    for (int f = 0; f < kPairSums; ++f) part[f] = 0;
    T largest = -2, smallest = 4;
    for_each_of_packet([&](int v) {
      if (!(angles >> v & 1)) return;
      const T e = cosine[v] - static_cast<T>(etf.cosine), unit = sqrt(unit_squared[v]),
              f = unit - static_cast<T>(etf.distance);
      ++counted;
      part[kCosSum] += e;
      part[kCosSquareSum] += e * e;
      part[kCosAbsSum] += fabs(e);
      largest = max(largest, cosine[v]);
      part[kDistanceSum] += f;
      part[kDistanceSquareSum] += f * f;
      smallest = min(smallest, unit);
      if (unit > 0) {
        const T g = static_cast<T>(etf.log_distance) - log(unit);
        part[kLogSum] += g;
        part[kLogSquareSum] += g * g;
      } else {
        ++same_direction;
      }
    });
    for (int f = kCosSum; f <= kDistanceSquareSum; ++f) mine[f] += static_cast<double>(part[f]);
    for (int f = kLogSum; f <= kLogSquareSum; ++f) mine[f] += static_cast<double>(part[f]);
    mine[kCosMax] = max(mine[kCosMax], static_cast<double>(largest));
    mine[kMinUnitDistance] = min(mine[kMinUnitDistance], static_cast<double>(smallest));
    if (!task.variances) continue;  // the same for all

    double squared[V], nearest_j = HUGE_VAL;
    near = 0;
    for_each_of_packet([&](int v) {
      const double norm_k = column + v < tile.width ? task.norms[k + v] : 0;
      const double size = norm_j * norm_j + norm_k * norm_k;
      squared[v] = size - 2 * (kExact ? static_cast<double>(products.value[v]) : cosine[v] * (norm_j * norm_k));
      near |= static_cast<unsigned>((pairs >> v & 1) && !(squared[v] >= task.close * size)) << v;
    });
    NCOLLAPSE_ROLLED
    for (int v = 0; v < V; ++v) {
      if (__ballot_sync(kAllLanes, near >> v & 1) == 0) continue;
      const bool asked = near >> v & 1;
      const double found = recompute(asked, task, j, 1, k + v, 1);
      for_each_of_packet([&](int u) {
        if (asked && u == v) squared[u] = found;
      });
    }
    const double variance_j = task.variances[j];
    for_each_of_packet([&](int v) {
      if (!(pairs >> v & 1)) return;
      if (squared[v] > 0)
        mine[kCdnvSum] += (variance_j + task.variances[k + v]) / (2 * squared[v]);
      else
        ++same_mean;
      nearest_j = min(nearest_j, squared[v]);
      nearest[v] = min(nearest[v], squared[v]);
    });
    nearest_j = warp_min(nearest_j);
    if (lane_id() == 0)
      atomicMin(&task.nearest[j], static_cast<Count>(__double_as_longlong(nearest_j)));  // >= 0: bits are in order
  }

  mine[kAngles] = counted;
  mine[kCoincidentDirections] = same_direction;
  mine[kCoincidentMeans] = same_mean;

  if (task.variances) {
    for_each_of_packet([&](int v) { shared[warp_in_block() * kPatchCols + lane_id() * V + v] = nearest[v]; });
    __syncthreads();
    if (threadIdx.x < kPatchCols && first_column + threadIdx.x < tile.width) {
      double least = shared[threadIdx.x];
      for (int warp = 1; warp < kWarps; ++warp) least = min(least, shared[warp * kPatchCols + threadIdx.x]);
      atomicMin(&task.nearest[tile.first_col + first_column + threadIdx.x],
                static_cast<Count>(__double_as_longlong(least)));
    }
    __syncthreads();
  }
  write_totals<kPairFields, kPairSums>(mine, true, shared, totals + blockIdx.x * Index{kPairFields});
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
  write_totals<kProductFields, kProductFields>(mine, false, shared_memory<double>(),
                                               partials + blockIdx.x * kProductFields);
}

__global__ void fold(const double* partials, Index blocks, Index fields, Index sums, double* totals) {
  const Index f = thread_id();
  if (f >= fields) return;
  double total = totals[f];
  for (Index block = 0; block < blocks; ++block)
    total = combine(total, partials[block * fields + f], static_cast<int>(f), static_cast<int>(sums));
  totals[f] = total;
}

}  // namespace

Index pair_blocks(Index height, Index width) {
  constexpr Index kRows = kPatchRows * kWarps;
  return (height + kRows - 1) / kRows * ((width + kPatchCols - 1) / kPatchCols);
}

template <class T>
void launch_reduce_pairs(cudaStream_t stream, const PairTask& task, const PairTile<T>& tile, const unsigned char* only,
                         unsigned char* left, double* totals) {
  const Index shared = kWarps * kPatchCols * static_cast<Index>(sizeof(double));
  static_assert(kPatchCols >= kPairFields);
  launch(stream, {pair_blocks(tile.height, tile.width), 1, shared}, reduce_pairs<T>, task, tile, only, left, totals);
}
template void launch_reduce_pairs(cudaStream_t, const PairTask&, const PairTile<float>&, const unsigned char*,
                                  unsigned char*, double*);
template void launch_reduce_pairs(cudaStream_t, const PairTask&, const PairTile<double>&, const unsigned char*,
                                  unsigned char*, double*);

Index product_blocks(Index height) { return (height + kWarps - 1) / kWarps; }

void launch_reduce_product(cudaStream_t stream, const ProductTask& task, const double* tile, Index first_row,
                           Index height, Index first_col, Index width, double* partials) {
  const Index shared = kWarps * kProductFields * static_cast<Index>(sizeof(double));
  launch(stream, {product_blocks(height), 1, shared}, reduce_product, task, tile, first_row, height, first_col, width,
         partials);
}

void launch_fold(cudaStream_t stream, const double* partials, Index blocks, Index fields, Index sums, double* totals) {
  launch(stream, {1}, fold, partials, blocks, fields, sums, totals);
}

}  // namespace ncollapse::cuda
