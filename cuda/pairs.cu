#include "cuda/device.hpp"
#include "cuda/pairs.hpp"

namespace ncollapse::cuda {
namespace {

constexpr double kSameDirection = 4 * 0x1p-52;  // unit vectors this close differ only by the rounding of their norms
constexpr int kPatchRows = 8;                   // of a warp
constexpr int kBlockRows = kPatchRows * kWarps;
constexpr int kDense = 32;

template <class T>
constexpr int kColumns = 16 / sizeof(T);  // of a lane: 16 bytes, so that a warp reads whole lines
template <class T>
constexpr int kPatchCols = kColumns<T>* kWarp;  // of a block
template <class T>
constexpr bool kExact = sizeof(T) == sizeof(double);
/// Squared norms (of pairs: their sum) below this have lost digits to underflow.
template <class T>
constexpr T kShortest = static_cast<T>(kExact<T> ? 0x1p-100 : 0x1p-80);
template <class T>
constexpr int kFields = kExact<T> ? kFrameResidual + 1 : kCdnvSum + 1;  // that every pair adds to
constexpr int kNoDistance = 16;                                         // above every squared distance of unit vectors

template <class T>
struct alignas(16) Products {
  T value[kColumns<T>];
};

template <class T>
__device__ T lesser(T a, T b) {
  return b < a ? b : a;
}
__device__ inline float lesser(float a, float b) { return min(a, b); }

__device__ unsigned warp_least_bits(unsigned value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return warp_min(value);
#else
  return __reduce_min_sync(kAllLanes, value);
#endif
}
/// The least value of the warp. Numbers >= 0 are in the order of their bits.
__device__ float warp_least(float value) {
  std::uint32_t bits = 0;
  memcpy(&bits, &value, sizeof bits);
  return float_of_bits(warp_least_bits(bits));
}
__device__ double warp_least(double value) {
  std::uint64_t bits = 0;
  memcpy(&bits, &value, sizeof bits);
  const auto high = static_cast<unsigned>(bits >> 32), least_high = warp_least_bits(high);
  const std::uint64_t low = warp_least_bits(high == least_high ? static_cast<unsigned>(bits) : ~0u);
  bits = static_cast<std::uint64_t>(least_high) << 32 | low;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Root, logarithm and quotient of a pair. In double each starts from single precision's rough one and refines it: the
// library's take a branch each for arguments that do not occur here, and so the next pair waits for this one's.

/// 1/x to a few units in the last place; x within the range of single precision.
__device__ double reciprocal(double x) {
  double inverse = __fdividef(1.0f, static_cast<float>(x));  // to 2^-22
  inverse = fma(inverse, fma(-x, inverse, 1.0), inverse);
  return fma(inverse, fma(-x, inverse, 1.0), inverse);
}
__device__ float quotient(float a, float b) { return __fdividef(a, b); }
__device__ double quotient(double a, double b) { return a * reciprocal(b); }

__device__ float inverse_root(float x) { return rsqrtf(x); }
__device__ double inverse_root(double x) {
  const double rough = rsqrtf(static_cast<float>(x));
  return rough * fma(-0.5 * x * rough, rough, 1.5);  // to 2^-42
}
/// sqrt(square) - distance, w = square - distance^2: a rough root, and one step of Newton's for f^2 + 2 distance f = w,
/// which leaves f relatively exact.
template <class T>
__device__ T distance_gap(T square, T w, T distance) {
  const T inverse = inverse_root(square), rough = fma(square, inverse, -distance);
  return fma(fma(rough, rough + 2 * distance, -w) * inverse, T{-1} / 2, rough);
}

__device__ float log_of(float x) { return __log2f(x); }  // in units of kPairLogUnit
/// log x = k log 2 + 2 artanh s, x = 2^k m with m from 1/sqrt(2) to sqrt(2), s = (m-1)/(m+1): s^2 < 0.0295, so the
/// first term that is left out, 2 s s^20 / 21, is below 2^-55 of the sum. Normal x > 0.
__device__ double log_of(double x) {
  std::uint64_t bits = 0;
  memcpy(&bits, &x, sizeof bits);
  constexpr int kRootHalf = 0x3fe6a09e;  // the upper half of 1/sqrt(2)
  const int k = (static_cast<int>(bits >> 32) - kRootHalf) >> 20;
  bits -= static_cast<std::uint64_t>(static_cast<std::int64_t>(k)) << 52;
  double m = 0;
  memcpy(&m, &bits, sizeof m);
  const double s = (m - 1) * reciprocal(m + 1), z = s * s;
  double sum = 1.0 / 19;
  for (int n = 17; n >= 3; n -= 2) sum = fma(sum, z, 1.0 / n);
  return fma(static_cast<double>(k), 0.69314718055994530942, fma(2 * s * z, sum, 2 * s));
}

/// Takes the angle of a pair: its squared distance of unit vectors, and what that is above the simplex's.
template <class T>
__device__ void add_angle(T* sums, T square, T w, const PairTarget<T>& target) {
  sums[kCosSum] += w;
  sums[kCosSquareSum] += w * w;
  sums[kCosAbsSum] += fabs(w);
  const T f = distance_gap(square, w, target.distance);
  sums[kDistanceSum] += f;
  sums[kDistanceSquareSum] += f * f;
  const T g = log_of(square * target.inverse_square);
  sums[kLogSum] += g;
  sums[kLogSquareSum] += g * g;
}

__device__ double combine(double total, double value, Index field, Index sums) {
  return field < sums ? total + value : min(total, value);
}

template <class T>
__global__ void pair_rows(PairInput input, Index count, PairRow<T>* rows, Count* nearest) {
  const Index k = thread_id();
  if (k >= count) return;
  const double norm = input.norms[k], scale = input.scales ? input.scales[k] : 1;
  const double in_units = norm / input.unit;
  PairRow<T> row;
  row.inverse = static_cast<T>(norm > 0 ? scale / norm : 0);
  if constexpr (kExact<T>)
    row.offset = input.offsets ? input.offsets[k] * input.frame_scale : 0;
  else
    row.factor = static_cast<float>(norm > 0 ? scale / input.unit : 0);
  row.square = static_cast<T>(in_units * in_units);
  row.variance = static_cast<T>(input.variances ? input.variances[k] / input.variance_unit : 0);
  rows[k] = row;
  if (nearest) nearest[k] = static_cast<Count>(__double_as_longlong(HUGE_VAL));
}

/// Whether there is nothing special about the pairs of such rows.
template <class T>
__device__ bool is_plain(const PairRow<T>& row) {
  return row.inverse > 0 && row.square >= kShortest<T>;
}

/// A lane's products with a row: all, where they lie in one piece (`direct`), or those of columns `begin` to `end` - 1.
template <class T>
__device__ Products<T> read_products(const PairTile<T>& tile, const T* from, bool direct, int begin, int end) {
  if (direct) return *reinterpret_cast<const Products<T>*>(from);
  double sum[kColumns<T>] = {};
  NCOLLAPSE_ROLLED
  for (Index piece = 0; piece < tile.pieces; ++piece)
    for (int v = 0; v < kColumns<T>; ++v)
      if (v >= begin && v < end) sum[v] += static_cast<double>(from[piece * tile.apart + v]);
  Products<T> products;
  for (int v = 0; v < kColumns<T>; ++v) products.value[v] = static_cast<T>(sum[v]);
  return products;
}

template <class T>
__device__ void take_nearest(const PairTask<T>& task, Index k, double squared) {
  atomicMin(&task.nearest[k], static_cast<Count>(__double_as_longlong(squared)));  // >= 0: bits are in order
}

/// Takes a pair whose product says too little, from its rows; by the whole warp.
template <class T>
__device__ void add_close_pair(const PairTask<T>& task, Index j, Index k, double (&sums)[kPairSums], double& least) {
  const double *a = task.vectors + j * task.dim, *b = task.vectors + k * task.dim;
  const double norm_a = task.norms[j], norm_b = task.norms[k];
  const bool angle = norm_a > 0 && norm_b > 0;
  double squared = 0, unit = 0;
  NCOLLAPSE_ROLLED
  for (Index col = lane_id(); col < task.dim; col += kWarp) {
    const double gap = a[col] - b[col];
    squared += gap * gap;
    if (!angle) continue;
    const double unit_gap = a[col] / norm_a - b[col] / norm_b;
    unit += unit_gap * unit_gap;
  }
  unit = warp_sum(unit);
  if (angle) {
    const bool same = unit <= kSameDirection * kSameDirection;
    if (same) unit = 0;
    const double w = unit - task.etf.square, f = sqrt(unit) - task.exact_target.distance;
    sums[kCosSum] += w;
    sums[kCosSquareSum] += w * w;
    sums[kCosAbsSum] += fabs(w);
    sums[kDistanceSum] += f;
    sums[kDistanceSquareSum] += f * f;
    if (same) {
      sums[kCoincidentDirections] += 1;
    } else {
      const double g = log(unit * task.exact_target.inverse_square);
      sums[kLogSum] += g;
      sums[kLogSquareSum] += g * g;
    }
    sums[kAngles] += 1;
    least = lesser(least, unit);
  }
  if (!task.variances) return;
  squared = warp_sum(squared);
  if (squared > 0)
    sums[kCdnvSum] += (task.variances[j] + task.variances[k]) / squared;
  else
    sums[kCoincidentMeans] += 1;
  if (lane_id() < 2) take_nearest(task, lane_id() == 0 ? j : k, squared);
}

/// A warp takes kPatchRows rows, its lanes kColumns columns each. T is the type of everything that belongs to one pair.
/// Pairs that need their rows are marked, one bit each, and taken when all others are done.
template <class T>
__global__ void __launch_bounds__(kBlock, kExact<T> ? 2 : 3)
    reduce_pairs(PairTask<T> task, PairTile<T> tile, const unsigned char* only, unsigned char* left, double* totals) {
  constexpr int V = kColumns<T>;
  static_assert(kPatchRows * V <= 32);
  constexpr T kFar = static_cast<T>(0x1p100);  // farther than any two rows, in units
  const int width = static_cast<int>(tile.width), height = static_cast<int>(tile.height);
  const int first_column = static_cast<int>(blockIdx.x) * kPatchCols<T>,
            top = static_cast<int>(blockIdx.y) * kBlockRows;
  if (tile.first_col + min(first_column + kPatchCols<T>, width) <= tile.first_row + top) return;  // below the diagonal
  constexpr unsigned kNarrower = kPatchCols<float> / kPatchCols<T>;
  const Index flag = Index{blockIdx.y} * ((gridDim.x + kNarrower - 1) / kNarrower) + blockIdx.x / kNarrower;
  if (only && !only[flag]) return;

  const int first = top + warp_in_block() * kPatchRows, column = first_column + lane_id() * V;
  const int rows = max(0, min(kPatchRows, height - first));
  const Index j0 = tile.first_row + first, k0 = tile.first_col + column;
  // Of the lane's columns v those below `end` are in the tile; with row i that of v = i - ahead is the diagonal.
  const int end = max(0, min(V, width - column)), ahead = static_cast<int>(min(k0 - j0, Index{kPatchRows}));
  const bool distances = task.variances != nullptr;

  T inverse[V], other[V], square[V], nearest[V];
  T* field_sums = shared_memory<T>();                              // [kFields][kBlock]
  T* column_values = field_sums + kFields<T> * kBlock;             // [kWarps][kPatchCols]: a variance, then the nearest
  T* warps_least = column_values + kWarps * kPatchCols<T>;         // [kWarps]
  int* warps_near = reinterpret_cast<int*>(warps_least + kWarps);  // [kWarps]
  int* warps_angles = warps_near + kWarps;                         // [kWarps]
  T* my_values = column_values + warp_in_block() * kPatchCols<T> + lane_id() * V;
  bool plain = end == V && ahead == kPatchRows;
  for (int v = 0; v < V; ++v) {
    PairRow<T> at{};
    if (v < end) at = task.rows[k0 + v];
    plain = plain && is_plain(at);
    inverse[v] = at.inverse;
    if constexpr (kExact<T>)
      other[v] = at.offset;
    else
      other[v] = at.factor;
    square[v] = at.square;
    my_values[v] = at.variance;  // needed seldom enough, and it takes no registers there
    nearest[v] = kFar;
  }
  if (lane_id() < rows) plain = plain && is_plain(task.rows[j0 + lane_id()]);
  const bool whole = __ballot_sync(kAllLanes, !plain) == 0;

  const PairTarget<T>& target = task.target;
  T sums[kFields<T>] = {}, least = kNoDistance, nearest_row = kFar;  // the last of row lane_id()
  unsigned near = 0;
  int excluded = 0;
  const bool direct = whole && tile.pieces == 1;
  const T* from = tile.products + first * tile.pitch + column;
  const PairRow<T>* row_from = task.rows + j0;
  NCOLLAPSE_ROLLED
  for (int i = 0; i < rows; ++i) {
    const Products<T> products = read_products(tile, from, direct, i - ahead, end);
    const PairRow<T> row = *row_from;
    from += tile.pitch;
    ++row_from;

    T unit_square[V], w[V], squared[V], closest = kNoDistance;
    for (int v = 0; v < V; ++v) {
      const T minus_two_cosines = lesser(T{2}, products.value[v] * inverse[v] * (-2 * row.inverse));
      w[v] = minus_two_cosines - target.shift;
      unit_square[v] = minus_two_cosines + 2;
      closest = lesser(closest, unit_square[v]);
    }
    if (distances)
      for (int v = 0; v < V; ++v) {
        if constexpr (kExact<T>)
          squared[v] = row.square + square[v] - task.gram_unit * products.value[v];
        else
          squared[v] = row.square + square[v] - 2 * row.factor * (products.value[v] * other[v]);
      }
    if constexpr (kExact<T>)
      for (int v = 0; v < V; ++v) {
        T centred = products.value[v] * task.gram_scale - task.etf.off;
        T frame = products.value[v] * task.frame_scale + (row.offset + other[v]), weight = 1;
        if (!whole) {
          if (v == i - ahead) {
            centred += task.etf.off - task.etf.diagonal;
            frame -= task.etf.frame_diagonal;
            weight = T{1} / 2;
          }
          if (v < i - ahead || v >= end) weight = 0;
        }
        sums[kEtfResidual] += weight * centred * centred;
        sums[kFrameResidual] += weight * frame * frame;
      }

    if (__ballot_sync(kAllLanes, !whole || closest < task.close) == 0) {
      for (int v = 0; v < V; ++v) add_angle(sums, unit_square[v], w[v], target);
    } else {
      closest = kNoDistance;
      for (int v = 0; v < V; ++v) {
        const bool pair = v < end && v > i - ahead, angle = pair && row.inverse > 0 && inverse[v] > 0;
        const bool open =
            pair && ((angle && unit_square[v] < task.close) || (distances && row.square + square[v] < kShortest<T>));
        near |= static_cast<unsigned>(open) << (i * V + v);
        if (!pair || open) squared[v] = kFar;  // adds nothing
        if (angle && !open) {
          closest = lesser(closest, unit_square[v]);
          add_angle(sums, unit_square[v], w[v], target);
        } else {
          ++excluded;
        }
      }
    }
    least = lesser(least, closest);
    if (!distances) continue;
    const Products<T> variance = *reinterpret_cast<const Products<T>*>(my_values);
    T nearest_here = kFar;
    for (int v = 0; v < V; ++v) {
      sums[kCdnvSum] += quotient(row.variance + variance.value[v], squared[v]);
      nearest[v] = lesser(nearest[v], squared[v]);
      nearest_here = lesser(nearest_here, squared[v]);
    }
    nearest_here = warp_least(nearest_here);
    if (lane_id() == i) nearest_row = nearest_here;
  }

  for (int f = 0; f < kFields<T>; ++f) field_sums[f * kBlock + static_cast<int>(threadIdx.x)] = sums[f];
  for (int v = 0; v < V; ++v) my_values[v] = nearest[v];
  least = warp_least(least);
  int warp_near = 0;
  if (__ballot_sync(kAllLanes, excluded != 0) != 0) {
    warp_near = warp_sum(__popc(near));
    excluded = warp_sum(excluded);
  }
  if (lane_id() == 0) {
    warps_least[warp_in_block()] = least;
    warps_near[warp_in_block()] = warp_near;
    warps_angles[warp_in_block()] = rows * kPatchCols<T> - excluded;
  }
  __syncthreads();
  int block_near = 0;
  for (int warp = 0; warp < kWarps; ++warp) block_near += warps_near[warp];
  if (left && block_near * kDense > kBlockRows * kPatchCols<T>) {
    if (threadIdx.x == 0) left[flag] = 1;
    return;  // the whole block
  }

  double* total = totals + (Index{blockIdx.y} * gridDim.x + blockIdx.x) * kPairFields;
  for (int round = 0; round * kWarps < kFields<T>; ++round) {
    const int f = round * kWarps + warp_in_block();
    if (f >= kFields<T>) break;
    T sum = 0;
    for (int part = 0; part < kWarps; ++part) sum += field_sums[f * kBlock + part * kWarp + lane_id()];
    const double all = warp_sum(static_cast<double>(sum));
    if (lane_id() == 0) total[f] += task.units[f] * all;
  }
  if (threadIdx.x == 0) {
    int angles = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      angles += warps_angles[warp];
      least = lesser(least, warps_least[warp]);
    }
    total[kAngles] += angles;
    total[kMinUnitSquare] = lesser(total[kMinUnitSquare], static_cast<double>(least));
  }
  if (distances) {
    const auto real = [&](T squared) {
      return squared < kFar ? static_cast<double>(squared) * task.unit * task.unit : HUGE_VAL;
    };
    if (lane_id() < rows) take_nearest(task, j0 + lane_id(), real(nearest_row));
    const int c = static_cast<int>(threadIdx.x);
    if (c < kPatchCols<T> && first_column + c < width) {
      T nearest_column = column_values[c];
      for (int warp = 1; warp < kWarps; ++warp)
        nearest_column = lesser(nearest_column, column_values[warp * kPatchCols<T> + c]);
      take_nearest(task, tile.first_col + first_column + c, real(nearest_column));
    }
  }
  if (block_near == 0) return;  // the whole block

  double found[kPairSums] = {}, found_least = kNoDistance;
  NCOLLAPSE_ROLLED
  for (unsigned lanes = __ballot_sync(kAllLanes, near != 0); lanes != 0; lanes &= lanes - 1) {
    const int lane = __ffs(static_cast<int>(lanes)) - 1;
    NCOLLAPSE_ROLLED
    for (unsigned bits = __shfl_sync(kAllLanes, near, lane); bits != 0; bits &= bits - 1) {
      const int at = __ffs(static_cast<int>(bits)) - 1;
      add_close_pair(task, j0 + at / V, tile.first_col + first_column + lane * V + at % V, found, found_least);
    }
  }
  double* warps_found = shared_memory<double>();  // [kWarps][kPairFields]
  __syncthreads();                                // totals and shared memory are written again
  if (lane_id() == 0) {
    for (int f = 0; f < kPairSums; ++f) warps_found[warp_in_block() * kPairFields + f] = found[f];
    warps_found[warp_in_block() * kPairFields + kMinUnitSquare] = found_least;
  }
  __syncthreads();
  const int f = static_cast<int>(threadIdx.x);
  if (f >= kPairFields) return;
  double all = warps_found[f];
  for (int warp = 1; warp < kWarps; ++warp) all = combine(all, warps_found[warp * kPairFields + f], f, kPairSums);
  total[f] = combine(total[f], pair_unit(f, 1, 0.5) * all, f, kPairSums);
}

/// A warp per row.
__global__ void reduce_product(ProductTask task, const double* tile, Index pitch, Index first_row, Index height,
                               Index first_col, Index width, double* totals) {
  constexpr int V = kColumns<double>;
  double etf_sum = 0, frame_sum = 0;
  const Index i = warp_id();
  if (i < height) {
    const double offset = task.offsets ? task.offsets[first_row + i] : 0;
    for (Index column = lane_id() * V; column < width; column += kWarp * V) {
      Products<double> products{};
      if (column + V <= width)
        products = *reinterpret_cast<const Products<double>*>(tile + i * pitch + column);
      else
        products.value[0] = tile[i * pitch + column];
      for (int v = 0; v < V; ++v) {
        const bool diagonal = first_row + i == first_col + column + v;
        const double value = products.value[v];
        const double centred = value * task.product_scale - (diagonal ? task.etf.diagonal : task.etf.off);
        const double frame = (value + offset) * task.frame_scale - (diagonal ? task.etf.frame_diagonal : 0);
        if (column + v >= width) continue;
        etf_sum += centred * centred;
        frame_sum += frame * frame;
      }
    }
  }
  double* scratch = shared_memory<double>();
  etf_sum = block_sum(etf_sum, scratch);
  frame_sum = block_sum(frame_sum, scratch);
  if (threadIdx.x != 0) return;
  totals[blockIdx.x * kProductFields] += etf_sum;
  totals[blockIdx.x * kProductFields + 1] += frame_sum;
}

__global__ void start_totals(Index blocks, Index fields, Index sums, double* totals) {
  const Index i = thread_id();
  if (i < blocks * fields) totals[i] = i % fields < sums ? 0 : HUGE_VAL;
}

/// A warp per field, whose lanes share the blocks.
__global__ void fold(const double* totals, Index blocks, Index fields, Index sums, double* total) {
  const Index f = warp_id();
  if (f >= fields) return;
  double mine = f < sums ? 0 : HUGE_VAL;
  for (Index block = lane_id(); block < blocks; block += kWarp)
    mine = combine(mine, totals[block * fields + f], f, sums);
  mine = f < sums ? warp_sum(mine) : warp_min(mine);
  if (lane_id() == 0) total[f] = mine;
}

}  // namespace

template <class T>
Index pair_blocks(Index height, Index width) {
  return (height + kBlockRows - 1) / kBlockRows * ((width + kPatchCols<T> - 1) / kPatchCols<T>);
}
template Index pair_blocks<float>(Index, Index);
template Index pair_blocks<double>(Index, Index);

template <class T>
void launch_pair_rows(cudaStream_t stream, const PairInput& input, Index count, PairRow<T>* rows, Count* nearest) {
  launch(stream, {(count + kBlock - 1) / kBlock}, pair_rows<T>, input, count, rows, nearest);
}
template void launch_pair_rows(cudaStream_t, const PairInput&, Index, PairRow<float>*, Count*);
template void launch_pair_rows(cudaStream_t, const PairInput&, Index, PairRow<double>*, Count*);

template <class T>
void launch_reduce_pairs(cudaStream_t stream, const PairTask<T>& task, const PairTile<T>& tile,
                         const unsigned char* only, unsigned char* left, double* totals) {
  const Index shared = (kFields<T> * kBlock + kWarps * (kPatchCols<T> + 1)) * static_cast<Index>(sizeof(T)) +
                       2 * kWarps * static_cast<Index>(sizeof(int));
  const Index across = (tile.width + kPatchCols<T> - 1) / kPatchCols<T>;
  launch(stream, {across, (tile.height + kBlockRows - 1) / kBlockRows, shared}, reduce_pairs<T>, task, tile, only, left,
         totals);
}
template void launch_reduce_pairs(cudaStream_t, const PairTask<float>&, const PairTile<float>&, const unsigned char*,
                                  unsigned char*, double*);
template void launch_reduce_pairs(cudaStream_t, const PairTask<double>&, const PairTile<double>&, const unsigned char*,
                                  unsigned char*, double*);

Index product_blocks(Index height) { return (height + kWarps - 1) / kWarps; }

void launch_reduce_product(cudaStream_t stream, const ProductTask& task, const double* tile, Index pitch,
                           Index first_row, Index height, Index first_col, Index width, double* totals) {
  launch(stream, {product_blocks(height), 1, kWarps * static_cast<Index>(sizeof(double))}, reduce_product, task, tile,
         pitch, first_row, height, first_col, width, totals);
}

void launch_start_totals(cudaStream_t stream, Index blocks, Index fields, Index sums, double* totals) {
  launch(stream, {(blocks * fields + kBlock - 1) / kBlock}, start_totals, blocks, fields, sums, totals);
}

void launch_fold(cudaStream_t stream, const double* totals, Index blocks, Index fields, Index sums, double* total) {
  launch(stream, {(fields + kWarps - 1) / kWarps}, fold, totals, blocks, fields, sums, total);
}

}  // namespace ncollapse::cuda
