#include "cuda/device.hpp"
#include "cuda/pairs.hpp"

namespace ncollapse::cuda {
namespace {

constexpr double kSameDirection = 4 * 0x1p-52;  // unit vectors this close differ only by the rounding of their norms
constexpr int kMarkedRows = 8;                  // whose pairs a lane marks in one word
constexpr int kAtOnce = 2;                      // rows that a warp takes together
constexpr int kDense = 32;
static_assert(kMostWarpRows == kWarp && kMarkedRows % kAtOnce == 0);

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
// library's take a branch each for arguments that do not occur here, and so the next pair waits for this one's. 20 bits
// are kept on the way to single precision and back, which takes an integer operation each; conversions are slow.

/// x (1 - e) with 0 <= e < 2^-20; x > 0 within the range of single precision.
__device__ float rough(double x) {
  std::uint64_t bits = 0;
  memcpy(&bits, &x, sizeof bits);
  return float_of_bits(static_cast<std::uint32_t>(bits >> 32) * 8 + 0x40000000u);  // exponent bias 1023 -> 127
}
__device__ double rough(float x) {
  std::uint32_t bits = 0;
  memcpy(&bits, &x, sizeof bits);
  const std::uint64_t wide = static_cast<std::uint64_t>((bits >> 3) + 0x38000000u) << 32;
  double value = 0;
  memcpy(&value, &wide, sizeof value);
  return value;
}

/// 1/x to a few units in the last place.
__device__ double reciprocal(double x) {
  const double start = rough(__fdividef(1.0f, rough(x))), e = fma(-x, start, 1.0);  // |e| < 2^-19
  return fma(start, fma(e, e, e), start);
}
__device__ float quotient(float a, float b) { return __fdividef(a, b); }
__device__ double quotient(double a, double b) { return a * reciprocal(b); }

/// artanh(a) = a + a z Q(z), z = a^2 <= (sqrt(2) - 1)^4 = 0.0295, where the polynomial of degree 6 that comes nearest
/// to Q (by Chebyshev's interpolation) takes 2^-57 of the sum.
__device__ double artanh(double a) {
  constexpr double kQ[] = {0.3333333333333335,  0.19999999999949722, 0.14285714313001635, 0.11111105565129939,
                           0.09091444727837474, 0.07665855309105386, 0.07308292712444311};
  const double z = a * a;
  double sum = kQ[6];
  for (int n = 5; n >= 0; --n) sum = fma(sum, z, kQ[n]);
  return fma(a * z, sum, a);
}
/// log x = k log 2 + 2 artanh((m-1)/(m+1)), x = 2^k m with m from 1/sqrt(2) to sqrt(2). Normal x > 0.
__device__ double log_of(double x) {
  std::uint64_t bits = 0;
  memcpy(&bits, &x, sizeof bits);
  constexpr int kRootHalf = 0x3fe6a09e;  // the upper half of 1/sqrt(2)
  const int k = (static_cast<int>(bits >> 32) - kRootHalf) >> 20;
  bits -= static_cast<std::uint64_t>(static_cast<std::int64_t>(k)) << 52;
  double m = 0;
  memcpy(&m, &bits, sizeof m);
  return fma(static_cast<double>(k), 0.69314718055994530942, 2 * artanh((m - 1) * reciprocal(m + 1)));
}

/// f = |a_j^ - a_k^| / s - 1 and g = log(|a_j^ - a_k^|^2 / s^2) / log_unit of a pair.
template <class T>
struct Gaps {
  T f, g;
};
/// A rough root, and a step for f^2 + 2 f = w along the slope at 0, which leaves f relatively exact.
template <bool /*ordinary*/>
__device__ Gaps<float> gaps_of(float square, float w) {
  const float f = fmaf(square, rsqrtf(square), -1);
  return {fmaf(fmaf(f, f + 2, -w), -0.5f, f), __log2f(square)};
}
/// y = 1 / (|a_j^ - a_k^| / s + 1) from two steps of Newton's for w y^2 + 2 y = 1, of which each leaves less than 2^-18
/// of the error; f = w y, and g = log_unit artanh(f y) where `square` is from 1/2 to 2, for `ordinary` pairs.
template <bool ordinary>
__device__ Gaps<double> gaps_of(double square, double w) {
  const float rough_square = rough(square), inverse = rsqrtf(rough_square);
  const double half_inverse = rough(0.5f * inverse);
  double y = rough(__fdividef(1, fmaf(rough_square, inverse, 1)));
  y = fma(fma(-fma(w, y, 2.0), y, 1.0), half_inverse, y);
  y = fma(fma(-fma(w, y, 2.0), y, 1.0), half_inverse, y);
  const double f = w * y;
  if constexpr (ordinary)
    return {f, artanh(f * y)};
  else
    return {f, log_of(square) / kPairLogUnit<double>};
}

/// Takes the angle of a pair: square = |a_j^ - a_k^|^2 / s^2, and w = square - 1.
template <bool ordinary, class T>
__device__ void add_angle(T* sums, T square, T w) {
  sums[kCosSum] += w;
  sums[kCosSquareSum] += w * w;
  sums[kCosAbsSum] += fabs(w);
  const auto [f, g] = gaps_of<ordinary>(square, w);
  sums[kDistanceSum] += f;
  sums[kDistanceSquareSum] += f * f;
  sums[kLogSum] += g;
  sums[kLogSquareSum] += g * g;
}

__device__ double combine(double total, double value, Index field, Index sums) {
  return field < sums ? total + value : min(total, value);
}

template <class T>
__global__ void pair_rows(PairInput input, Index count, PairRow<T>* rows, Count* nearest, Index blocks,
                          double* totals) {
  const Index k = thread_id();
  if (k < blocks * kPairFields) totals[k] = k % kPairFields < kPairSums ? 0 : HUGE_VAL;
  if (k >= count) return;
  const double norm = input.norms[k], scale = input.scales ? input.scales[k] : 1;
  const double in_units = norm / input.unit;
  PairRow<T> row;
  row.inverse = static_cast<T>(norm > 0 ? scale / (norm * input.distance) : 0);
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

/// A lane's products with a row, those of columns `begin` to `end` - 1.
template <class T>
__device__ Products<T> read_products(const PairTile<T>& tile, const T* from, int begin, int end) {
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
    const double w = unit - task.etf.square, f = sqrt(unit) - task.etf.distance;
    sums[kCosSum] += w;
    sums[kCosSquareSum] += w * w;
    sums[kCosAbsSum] += fabs(w);
    sums[kDistanceSum] += f;
    sums[kDistanceSquareSum] += f * f;
    if (same) {
      sums[kCoincidentDirections] += 1;
    } else {
      const double g = log(unit / task.etf.square);
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

/// What a block keeps in shared memory. The first array is used once more when the others are done.
template <class T>
struct PairScratch {
  T sums[kFields<T>][kBlock];
  T columns[kWarps][kPatchCols<T>];  // nearest
  PairRow<T> rows[kWarps][kMostWarpRows];
  T least[kWarps];
  int near[kWarps], angles[kWarps];
  unsigned marks[kMostWarpRows / kMarkedRows][kBlock];
};

/// A warp takes `warp_rows` rows, kAtOnce at a time, its lanes kColumns columns each. T is the type of everything that
/// belongs to one pair. Where all pairs of these rows are ordinary ones no more than their statistics is done; others
/// are looked at one by one. Those that need their rows are marked, one bit each, and taken at the end.
template <class T>
__global__ void __launch_bounds__(kBlock, 2)
    reduce_pairs(PairTask<T> task, PairTile<T> tile, const unsigned char* only, unsigned char* left, double* totals) {
  constexpr int V = kColumns<T>;
  static_assert(kMarkedRows * V <= 32);
  constexpr T kFar = static_cast<T>(0x1p100);  // farther than any two rows, in units
  const int width = static_cast<int>(tile.width), height = static_cast<int>(tile.height);
  const int warp_rows = static_cast<int>(tile.warp_rows);
  const int first_column = static_cast<int>(blockIdx.x) * kPatchCols<T>,
            top = static_cast<int>(blockIdx.y) * (kWarps * warp_rows);
  const Index last_column = tile.first_col + min(first_column + kPatchCols<T>, width) - 1;
  if (last_column < tile.first_row + top) return;  // below the diagonal
  constexpr unsigned kNarrower = kPatchCols<float> / kPatchCols<T>;
  const auto flag = [] {
    return Index{blockIdx.y} * ((gridDim.x + kNarrower - 1) / kNarrower) + blockIdx.x / kNarrower;
  };
  if (only && !only[flag()]) return;

  const int warp = warp_in_block(), lane = lane_id(), thread = static_cast<int>(threadIdx.x);
  const int first = top + warp * warp_rows, column = first_column + lane * V;
  const Index j0 = tile.first_row + first, k0 = tile.first_col + column;
  // Of the warp's rows those that are in the tile and not all below the diagonal.
  const int rows =
      max(0, static_cast<int>(min(last_column - j0 + 1, static_cast<Index>(min(warp_rows, height - first)))));
  // Of the lane's columns v those below `end` are in the tile; with row i that of v = i - ahead is the diagonal.
  const int end = max(0, min(V, width - column)), ahead = static_cast<int>(min(k0 - j0, Index{kMostWarpRows}));
  const bool filled = width - column >= V;  // not end == V, of which ptxas 13.0 makes a predicate of its own for sm_90
  const bool distances = task.variances != nullptr;

  PairScratch<T>& scratch = *shared_memory<PairScratch<T>>();
  const T* const from = tile.products + first * tile.pitch + column;
  // Those of the next rows, on their way while others are taken; where nothing is special.
  Products<T> next[kAtOnce];
  const T* next_from = from;
  const auto fetch = [&] {
    for (int n = 0; n < kAtOnce; ++n) next[n] = *reinterpret_cast<const Products<T>*>(next_from + n * tile.pitch);
  };
  if (filled && rows >= kAtOnce) fetch();

  T inverse[V], other[V], square[V], variance[V], nearest[V];
  bool plain = filled && ahead >= rows && rows % kAtOnce == 0 && tile.pieces == 1;
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
    variance[v] = at.variance;
    nearest[v] = kFar;
  }
  if (lane < rows) {
    PairRow<T> row = task.rows[j0 + lane];
    plain = plain && is_plain(row);
    row.inverse *= -2;
    scratch.rows[warp][lane] = row;
  }
  const bool whole = __ballot_sync(kAllLanes, !plain) == 0;  // nothing special about the rows

  T sums[kFields<T>] = {}, least = kNoDistance, nearest_row = kFar;  // the last of row `lane`
  T parts[kFields<T>] = {};                                          // of the sums of marked rows before
  unsigned near = 0;
  int excluded = 0;
  const auto squared_of = [&](const PairRow<T>& row, T product, int v) {
    if constexpr (kExact<T>)
      return row.square + square[v] - task.gram_unit * product;
    else
      return row.square + square[v] - 2 * row.factor * (product * other[v]);
  };
  const auto take_nearest_row = [&](int i, T value) {
    value = warp_least(value);
    if (lane == i) nearest_row = value;
  };
  const T least_ordinary = kExact<T> ? T{1} / 2 : task.close;
  const auto all_are_ordinary = [&](int i) {
    T w[kAtOnce][V], unit_square[kAtOnce][V], squared[kAtOnce][V], closest = kNoDistance;
    for (int n = 0; n < kAtOnce; ++n) {
      const T minus_two_inverse = scratch.rows[warp][i + n].inverse;
      for (int v = 0; v < V; ++v) {
        const T scaled = next[n].value[v] * inverse[v];
        w[n][v] = fma(scaled, minus_two_inverse, -task.below);
        unit_square[n][v] = fma(scaled, minus_two_inverse, task.above);
        closest = lesser(closest, unit_square[n][v]);
      }
    }
    const bool ordinary = __ballot_sync(kAllLanes, closest < least_ordinary) == 0;
    if (ordinary)
      for (int n = 0; n < kAtOnce; ++n) {
        const PairRow<T> row = scratch.rows[warp][i + n];
        for (int v = 0; v < V; ++v) {
          squared[n][v] = squared_of(row, next[n].value[v], v);
          if constexpr (kExact<T>) {
            const T centred = next[n].value[v] * task.gram_scale - task.etf.off;
            const T frame = next[n].value[v] * task.frame_scale + (row.offset + other[v]);
            sums[kEtfResidual] += centred * centred;
            sums[kFrameResidual] += frame * frame;
          }
        }
      }
    if (i + kAtOnce < rows) next_from += kAtOnce * tile.pitch;
    fetch();  // the last ones again, which costs less than not to
    if (!ordinary) return false;
    least = lesser(least, closest);
    for (int n = 0; n < kAtOnce; ++n)
      for (int v = 0; v < V; ++v) add_angle<true>(sums, unit_square[n][v], w[n][v]);
    if (!distances) return true;
    for (int n = 0; n < kAtOnce; ++n) {
      T nearest_here = squared[n][0];
      for (int v = 0; v < V; ++v) {
        sums[kCdnvSum] += quotient(scratch.rows[warp][i + n].variance + variance[v], squared[n][v]);
        nearest[v] = lesser(nearest[v], squared[n][v]);
        if (v > 0) nearest_here = lesser(nearest_here, squared[n][v]);
      }
      take_nearest_row(i + n, nearest_here);
    }
    return true;
  };
  const auto take_one_by_one = [&](int i) {
    const Products<T> products = read_products(tile, from + i * tile.pitch, i - ahead, end);
    const PairRow<T> row = scratch.rows[warp][i];
    T nearest_here = kFar;
    for (int v = 0; v < V; ++v) {
      const T product = products.value[v], scaled = product * inverse[v];
      const T w = fma(scaled, row.inverse, -task.below), unit_square = fma(scaled, row.inverse, task.above);
      const bool pair = v < end && v > i - ahead, angle = pair && row.inverse < 0 && inverse[v] > 0;
      const bool open =
          pair && ((angle && unit_square < task.close) || (distances && row.square + square[v] < kShortest<T>));
      near |= static_cast<unsigned>(open) << (i % kMarkedRows * V + v);
      if (angle && !open) {
        least = lesser(least, unit_square);
        add_angle<false>(sums, unit_square, w);
      } else {
        ++excluded;
      }
      if constexpr (kExact<T>) {
        const bool diagonal = v == i - ahead;
        const T weight = v < i - ahead || v >= end ? T{0} : diagonal ? T{1} / 2 : T{1};
        const T centred = product * task.gram_scale - (diagonal ? task.etf.diagonal : task.etf.off);
        const T frame =
            product * task.frame_scale + (row.offset + other[v]) - (diagonal ? task.etf.frame_diagonal : T{0});
        sums[kEtfResidual] += weight * centred * centred;
        sums[kFrameResidual] += weight * frame * frame;
      }
      if (!distances) continue;
      const T squared = pair && !open ? squared_of(row, product, v) : kFar;  // which adds 2^-100
      sums[kCdnvSum] += quotient(row.variance + variance[v], squared);
      nearest[v] = lesser(nearest[v], squared);
      nearest_here = lesser(nearest_here, squared);
    }
    if (distances) take_nearest_row(i, nearest_here);
  };

  __syncwarp();  // scratch.rows
  NCOLLAPSE_ROLLED
  for (int i = 0; i < rows; i += kAtOnce) {
    const int stop = min(rows, i + kAtOnce);
    if (!whole || !all_are_ordinary(i)) {
      NCOLLAPSE_ROLLED
      for (int row = i; row < stop; ++row) take_one_by_one(row);
    }
    if (stop % kMarkedRows != 0 && stop < rows) continue;
    scratch.marks[i / kMarkedRows][thread] = near;
    near = 0;
    if constexpr (!kExact<T>)
      for (int f = 0; f < kFields<T>; ++f) {
        parts[f] += sums[f];
        sums[f] = 0;
      }
  }

  for (int f = 0; f < kFields<T>; ++f) scratch.sums[f][thread] = kExact<T> ? sums[f] : parts[f];
  for (int v = 0; v < V; ++v) scratch.columns[warp][lane * V + v] = nearest[v];
  least = warp_least(least);
  int warp_near = 0;
  if (__ballot_sync(kAllLanes, excluded != 0) != 0) {
    NCOLLAPSE_ROLLED
    for (int part = 0; part * kMarkedRows < rows; ++part) warp_near += __popc(scratch.marks[part][thread]);
    warp_near = warp_sum(warp_near);
    excluded = warp_sum(excluded);
  }
  if (lane == 0) {
    scratch.least[warp] = least;
    scratch.near[warp] = warp_near;
    scratch.angles[warp] = rows * kPatchCols<T> - excluded;
  }
  __syncthreads();
  int block_near = 0;
  for (int each = 0; each < kWarps; ++each) block_near += scratch.near[each];
  if (left && block_near * kDense > kWarps * warp_rows * kPatchCols<T>) {
    if (thread == 0) left[flag()] = 1;
    return;  // the whole block
  }

  double* total = totals + (Index{blockIdx.y} * gridDim.x + blockIdx.x) * kPairFields;
  for (int round = 0; round * kWarps < kFields<T>; ++round) {
    const int f = round * kWarps + warp;
    if (f >= kFields<T>) break;
    T sum = 0;
    for (int part = 0; part < kWarps; ++part) sum += scratch.sums[f][part * kWarp + lane];
    const double all = warp_sum(static_cast<double>(sum));
    if (lane == 0) total[f] += task.units[f] * all;
  }
  if (thread == 0) {
    int angles = 0;
    for (int each = 0; each < kWarps; ++each) {
      angles += scratch.angles[each];
      least = lesser(least, scratch.least[each]);
    }
    total[kAngles] += angles;
    total[kMinUnitSquare] = lesser(total[kMinUnitSquare], static_cast<double>(least) * task.etf.square);
  }
  if (distances) {
    const auto real = [&](T squared) {
      return squared < kFar ? static_cast<double>(squared) * task.unit * task.unit : HUGE_VAL;
    };
    if (lane < rows) take_nearest(task, j0 + lane, real(nearest_row));
    if (thread < kPatchCols<T> && first_column + thread < width) {
      T nearest_column = scratch.columns[0][thread];
      for (int each = 1; each < kWarps; ++each) nearest_column = lesser(nearest_column, scratch.columns[each][thread]);
      take_nearest(task, tile.first_col + first_column + thread, real(nearest_column));
    }
  }
  if (block_near == 0) return;  // the whole block

  double found[kPairSums] = {}, found_least = kNoDistance;
  NCOLLAPSE_ROLLED
  for (int part = 0; part * kMarkedRows < rows; ++part) {
    const unsigned marks = scratch.marks[part][thread];
    NCOLLAPSE_ROLLED
    for (unsigned lanes = __ballot_sync(kAllLanes, marks != 0); lanes != 0; lanes &= lanes - 1) {
      const int from_lane = __ffs(static_cast<int>(lanes)) - 1;
      NCOLLAPSE_ROLLED
      for (unsigned bits = __shfl_sync(kAllLanes, marks, from_lane); bits != 0; bits &= bits - 1) {
        const int at = __ffs(static_cast<int>(bits)) - 1;
        add_close_pair(task, j0 + part * kMarkedRows + at / V, tile.first_col + first_column + from_lane * V + at % V,
                       found, found_least);
      }
    }
  }
  double* warps_found = shared_memory<double>();  // [kWarps][kPairFields]
  static_assert(kWarps * kPairFields * sizeof(double) <= sizeof scratch.sums);
  __syncthreads();  // totals and shared memory are written again
  if (lane == 0) {
    for (int f = 0; f < kPairSums; ++f) warps_found[warp * kPairFields + f] = found[f];
    warps_found[warp * kPairFields + kMinUnitSquare] = found_least;
  }
  __syncthreads();
  if (thread >= kPairFields) return;
  double all = warps_found[thread];
  for (int each = 1; each < kWarps; ++each)
    all = combine(all, warps_found[each * kPairFields + thread], thread, kPairSums);
  total[thread] = combine(total[thread], pair_unit(thread, 1, 1, 0.5) * all, thread, kPairSums);
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
Index pair_blocks(Index height, Index width, Index warp_rows) {
  return (height + kWarps * warp_rows - 1) / (kWarps * warp_rows) * ((width + kPatchCols<T> - 1) / kPatchCols<T>);
}
template Index pair_blocks<float>(Index, Index, Index);
template Index pair_blocks<double>(Index, Index, Index);

template <class T>
void launch_pair_rows(cudaStream_t stream, const PairInput& input, Index count, PairRow<T>* rows, Count* nearest,
                      Index blocks, double* totals) {
  const Index threads = std::max(count, blocks * kPairFields);
  launch(stream, {(threads + kBlock - 1) / kBlock}, pair_rows<T>, input, count, rows, nearest, blocks, totals);
}
template void launch_pair_rows(cudaStream_t, const PairInput&, Index, PairRow<float>*, Count*, Index, double*);
template void launch_pair_rows(cudaStream_t, const PairInput&, Index, PairRow<double>*, Count*, Index, double*);

template <class T>
void launch_reduce_pairs(cudaStream_t stream, const PairTask<T>& task, const PairTile<T>& tile,
                         const unsigned char* only, unsigned char* left, double* totals) {
  const Index across = (tile.width + kPatchCols<T> - 1) / kPatchCols<T>, block_rows = kWarps * tile.warp_rows;
  launch(stream, {across, (tile.height + block_rows - 1) / block_rows, sizeof(PairScratch<T>)}, reduce_pairs<T>, task,
         tile, only, left, totals);
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
