#include <algorithm>
#include <bit>
#include <cfloat>
#include <type_traits>

#include "cuda/device.hpp"
#include "cuda/few_classes.hpp"

namespace ncollapse::cuda {
namespace {

constexpr int kPairStep = 2 * kWarp;      // columns from one pair of a lane to its next
constexpr Index kNarrow = 2 * kPairStep;  // up to here one pair of columns a lane, beyond it four
constexpr int kMostSteps = 4;             // labels that a thread sorts
constexpr Index kMostChunk = kMostSteps * kBlock;
constexpr std::uint32_t kNone = ~std::uint32_t{0};

constexpr int kOctet = 8;  // rows

/// How a warp has its part of a row. kPaired: the number of columns is even, and rows of every kind start at multiples
/// of a pair. kWithRows: centred rows are written as well.
template <class Element, int pairs, bool paired, bool with_rows>
struct Layout {
  using T = Element;
  static constexpr int kPairs = pairs;        ///< of columns, for a lane
  static constexpr int kValues = 2 * kPairs;  ///< of a row, for a lane
  static constexpr bool kPaired = paired, kWithRows = with_rows;
  /// Of a warp, on their way at any time: 4 KB of wide rows, where registers suffice; a part of an octet.
  static constexpr int kRowsAhead =
      std::clamp<int>((paired ? 64 : 32) / (with_rows ? 2 : 1) / static_cast<int>(sizeof(T)) / kPairs, 1, kOctet);
};

/// A lane's columns in a slab: pair i is of(i) and the one after.
template <class L>
struct Columns {
  static constexpr int kPairs = L::kPairs, kValues = L::kValues;
  int first, dim, left;

  __device__ Columns(Index of_row, Index slab)
      : first(static_cast<int>(slab) * kPairs * kPairStep + 2 * lane_id()),
        dim(static_cast<int>(of_row)),
        left(dim - first) {}

  __device__ int of(int pair) const { return first + pair * kPairStep; }
  __device__ bool has(int pair) const { return pair * kPairStep < left; }
  __device__ bool has_second(int pair) const { return pair * kPairStep + 1 < left; }
  /// `to` := row, zeros beyond the last column.
  __device__ void read(const double* row, double (&to)[kValues]) const {
    row += first;
    for (int i = 0; i < kPairs; ++i) {
      double2 pair{0, 0};
      if constexpr (L::kPaired) {
        if (has(i)) pair = *reinterpret_cast<const double2*>(row + i * kPairStep);
      } else {
        if (has(i)) pair.x = row[i * kPairStep];
        if (has_second(i)) pair.y = row[i * kPairStep + 1];
      }
      to[2 * i] = pair.x;
      to[2 * i + 1] = pair.y;
    }
  }
  /// To a row that has room for an even number of columns.
  __device__ void write(const double (&from)[kValues], double* row) const {
    row += first;
    for (int i = 0; i < kPairs; ++i)
      if (has(i)) *reinterpret_cast<double2*>(row + i * kPairStep) = double2{from[2 * i], from[2 * i + 1]};
  }
};

/// Two columns as they are read.
template <class T>
using Word = std::conditional_t<sizeof(T) == 2, int, std::conditional_t<sizeof(T) == 4, int2, int4>>;

template <class T>
__device__ void take_apart(const Word<T>& word, double& first, double& second) {
  if constexpr (std::is_same_v<T, Bfloat16>) {
    const auto bits = static_cast<std::uint32_t>(word);
    first = float_of_bits(bits << 16);
    second = float_of_bits(bits & 0xffff0000u);
  } else {
    Pair<T> pair;
    memcpy(&pair, &word, sizeof pair);
    first = to_double(pair.first);
    second = to_double(pair.second);
  }
}

/// What a lane has of a row of features; zeros beyond the last column.
template <class L>
struct RowPart {
  using T = typename L::T;
  static_assert(sizeof(Word<T>) == sizeof(Pair<T>));
  Word<T> word[L::kPairs] = {};

  /// `from`: the row at the lane's first column. Past the caches: nobody reads it again.
  __device__ void read(const T* from, const Columns<L>& columns) {
    for (int i = 0; i < L::kPairs; ++i) {
      const T* at = from + i * kPairStep;
      if (!columns.has(i)) continue;
      if constexpr (L::kPaired) {
        word[i] = __ldcs(reinterpret_cast<const Word<T>*>(at));
      } else {
        const Pair<T> pair{at[0], columns.has_second(i) ? at[1] : T{}};
        memcpy(&word[i], &pair, sizeof pair);
      }
    }
  }
  template <class F>
  __device__ void each(const F& f) const {  ///< f(number, value)
    for (int i = 0; i < L::kPairs; ++i) {
      double first, second;
      take_apart<T>(word[i], first, second);
      f(2 * i, first);
      f(2 * i + 1, second);
    }
  }
};

__device__ Index label_at(const LabelBlock& labels, Index i) {
  if (labels.type == LabelType::i64) return static_cast<const std::int64_t*>(labels.data)[i];
  if (labels.type == LabelType::i32) return static_cast<const std::int32_t*>(labels.data)[i];
  return static_cast<const std::uint8_t*>(labels.data)[i];
}
__device__ bool is_class(Index label, Index classes) { return label >= 0 && label < classes; }

/// A fault in this batch or an earlier one, once all of this one was looked at. record->shut would say so of earlier
/// ones only, and changes while this is asked.
__device__ bool has_faults(const BatchRecord* record) { return record->bad_labels > 0 || record->nonfinite > 0; }

/// A block takes kBlock * kMostSteps labels.
__global__ void survey_classes(LabelBlock labels, Index classes, const Index* counts, const BatchRecord* record,
                               std::uint32_t* first) {
  if (record->shut) return;
  auto* found = shared_memory<std::uint32_t>();  // of this block
  std::uint32_t *is_new = found + classes, *news = is_new + classes;
  const int k = static_cast<int>(threadIdx.x);
  if (k == 0) *news = 0;
  __syncthreads();
  if (k < classes) {
    found[k] = kNone;
    is_new[k] = counts[k] == 0 ? 1 : 0;
    if (is_new[k]) atomicAdd(news, 1u);
  }
  __syncthreads();
  if (*news == 0) return;  // the whole block
  for (Index i = blockIdx.x * kMostChunk + k; i < min((blockIdx.x + Index{1}) * kMostChunk, labels.rows); i += kBlock) {
    const Index label = label_at(labels, i), key = is_class(label, classes) ? label : 0;
    if (is_new[key]) atomicMin(&found[key], static_cast<std::uint32_t>(i));
  }
  __syncthreads();
  if (k < classes && found[k] != kNone) atomicMin(&first[k], found[k]);
}

/// Numbers of rows in the chunk.
struct alignas(2 * kOctet) Octet {
  std::uint16_t row[kOctet];
};

/// A chunk's rows by class, in the block's shared memory, and what its warps hand each other.
template <class L>
struct ChunkOrder {
  double* heads;         ///< [warps x kWarp x kValues] sums of what began in a group before
  double* head_squares;  ///< [warps]
  Octet* octets;         ///< [octets]
  int* begin;            ///< [K + 1] the first octet of a class; of K: all
  int* count;            ///< [K] rows
  int* is_new;           ///< [K] 1: the state has no sample of the class
  int* histogram;        ///< [warps x K]
  unsigned *suspect, *unseen;
  std::uint8_t *class_of, *filled;  ///< [octets] rows of an octet

  static __host__ __device__ Index most_octets(const FewPlan& plan) { return plan.chunk / kOctet + plan.classes + 1; }
  static Index bytes(const FewPlan& plan) {
    return 8 * (kBlock * L::kValues + kWarps) + most_octets(plan) * (static_cast<Index>(sizeof(Octet)) + 2) +
           4 * (plan.classes * (kWarps + 3) + 3);
  }
  __device__ explicit ChunkOrder(const FewPlan& plan)
      : heads(shared_memory<double>()),
        head_squares(heads + kBlock * L::kValues),
        octets(reinterpret_cast<Octet*>(head_squares + kWarps)),
        begin(reinterpret_cast<int*>(octets + most_octets(plan))),
        count(begin + plan.classes + 1),
        is_new(count + plan.classes),
        histogram(is_new + plan.classes),
        suspect(reinterpret_cast<unsigned*>(histogram + kWarps * plan.classes)),
        unseen(suspect + 1),
        class_of(reinterpret_cast<std::uint8_t*>(unseen + 1)),
        filled(class_of + most_octets(plan)) {}

  /// The first row of a class that the chunk has.
  __device__ int first_row(int k) const { return octets[begin[k]].row[0]; }

  /// A stable counting sort of the rows from `first` on. faults (or null): where bad labels are counted.
  __device__ void sort(const LabelBlock& labels, const FewPlan& plan, Index first, int rows, const Index* seen,
                       BatchRecord* faults) const {
    const int classes = static_cast<int>(plan.classes), thread = static_cast<int>(threadIdx.x);
    // A warp has neighbouring rows, 32 a step.
    const int steps = (rows + kBlock - 1) / kBlock, warp_first = warp_in_block() * steps * kWarp;
    int key[kMostSteps], rank[kMostSteps];
    Count bad = 0, first_bad = ~Count{0};
    NCOLLAPSE_UNROLLED
    for (int s = 0; s < kMostSteps; ++s) {
      key[s] = classes;  // none
      const int i = warp_first + s * kWarp + lane_id();
      if (s >= steps || i >= rows) continue;
      const Index label = label_at(labels, first + i);
      const bool good = is_class(label, classes);
      key[s] = good ? static_cast<int>(label) : 0;
      if (!good && bad++ == 0) first_bad = static_cast<Count>(first + i);
    }
    for (int i = thread; i < kWarps * classes; i += kBlock) histogram[i] = 0;
    if (thread < classes) is_new[thread] = seen[thread] == 0 ? 1 : 0;
    if (thread == 0) *suspect = *unseen = 0;
    __syncthreads();

    int* mine = histogram + warp_in_block() * classes;
    NCOLLAPSE_UNROLLED
    for (int s = 0; s < kMostSteps; ++s) {
      rank[s] = 0;
      if (s >= steps) continue;
      // Of those of a class the first lane counts.
      const unsigned same = __match_any_sync(kAllLanes, key[s]);
      const int before = __popc(same & ((1u << lane_id()) - 1));
      if (key[s] < classes) rank[s] = mine[key[s]] + before;
      __syncwarp();
      if (key[s] < classes && before == 0) mine[key[s]] += __popc(same);
      __syncwarp();
    }
    if (faults != nullptr && __ballot_sync(kAllLanes, bad > 0) != 0)
      report(bad, first_bad, &faults->bad_labels, &faults->first_bad_label);
    __syncthreads();

    if (thread < classes) {
      int total = 0;
      for (int w = 0; w < kWarps; ++w) {
        const int of_warp = histogram[w * classes + thread];
        histogram[w * classes + thread] = total;
        total += of_warp;
      }
      count[thread] = total;
      if (is_new[thread]) atomicAdd(unseen, 1u);
    }
    __syncthreads();
    if (thread <= classes) {
      int octets_before = 0;
      for (int k = 0; k < thread; ++k) octets_before += (count[k] + kOctet - 1) / kOctet;
      begin[thread] = octets_before;
    }
    __syncthreads();
    NCOLLAPSE_UNROLLED
    for (int s = 0; s < kMostSteps; ++s) {
      if (key[s] >= classes) continue;
      const int place = rank[s] + mine[key[s]], octet = begin[key[s]] + place / kOctet;
      octets[octet].row[place % kOctet] = static_cast<std::uint16_t>(warp_first + s * kWarp + lane_id());
      if (place % kOctet != 0) continue;
      class_of[octet] = static_cast<std::uint8_t>(key[s]);
      filled[octet] = static_cast<std::uint8_t>(min(count[key[s]] - place, kOctet));
    }
    __syncthreads();
  }
};

template <class L>
__global__ void __launch_bounds__(kBlock, 2) sum_chunks(Rows<typename L::T> x, LabelBlock labels, FewPlan plan,
                                                        FewScratch scratch, FewTarget target, double* z) {
  constexpr int kValues = L::kValues, kAhead = L::kRowsAhead;
  constexpr bool kWithRows = L::kWithRows;
  static_assert(kOctet % kAhead == 0);
  const int classes = static_cast<int>(plan.classes), side = static_cast<int>(plan.side), groups = kWarps / side,
            group = warp_in_block() / side;
  const Index chunk = blockIdx.x, first = chunk * plan.chunk, slab = blockIdx.y * plan.side + warp_in_block() % side;
  const int rows = static_cast<int>(min(plan.chunk, x.rows - first));
  const Columns<L> columns(plan.dim, slab);
  using T = typename L::T;
  // The chunk's first row at the lane's first column. The exchange changes nothing; it keeps the compiler from working
  // the address out anew, in two ways, for every row.
  const auto address = static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(x.row(first) + columns.first));
  const auto* at_first =
      reinterpret_cast<const char*>(static_cast<std::uintptr_t>(__shfl_sync(kAllLanes, address, lane_id())));
  const Index stride = x.stride * static_cast<Index>(sizeof(T));
  const auto row_at = [&](int row) { return reinterpret_cast<const T*>(at_first + row * stride); };
  const bool shut = target.record->shut != 0;  // used late: on its way with the labels
  const ChunkOrder<L> order(plan);
  order.sort(labels, plan, first, rows, target.counts, blockIdx.y == 0 && !shut ? target.record : nullptr);
  if (shut) {
    const double nothing[kValues] = {};
    if constexpr (kWithRows)
      for (int i = group; i < rows; i += groups) columns.write(nothing, z + (first + i) * plan.pitch);
    return;  // the whole block
  }

  const int octets = order.begin[classes], from = group * octets / groups, to = (group + 1) * octets / groups;
  double shift[kValues], sum[kValues], squares[2] = {0, 0}, factor = 1;
  for (int v = 0; v < kValues; ++v) shift[v] = sum[v] = 0;
  const auto open_class = [&](int k, int octet) {
    for (int v = 0; v < kValues; ++v) sum[v] = 0;
    squares[0] = squares[1] = 0;
    if (kWithRows && target.scale) factor = target.scale[k];
    if (!order.is_new[k]) {
      columns.read(target.shifts + Index{k} * plan.dim, shift);
      return;
    }
    const Index here = first + order.first_row(k), row = plan.chunks > 1 ? scratch.first[k] : here;
    double* new_shift = scratch.shifts + Index{k} * plan.pitch;
    RowPart<L> part;
    part.read(x.row(row) + columns.first, columns);
    part.each([&](int v, double value) { shift[v] = value; });
    if (row == here && octet == order.begin[k]) columns.write(shift, new_shift);
  };
  const auto write_partial = [&](int k, double square) {
    const Index at = chunk * plan.classes + k;
    columns.write(sum, scratch.partial + at * plan.pitch);
    if (lane_id() == 0) scratch.squares[at * plan.slabs + slab] = square;
  };
  double square = 0;  // of the last piece
  const auto close_class = [&](int k, bool goes_on) {
    square = squares[0] + squares[1];
    if (!(square <= DBL_MAX)) atomicAdd(order.suspect, 1u);
    square = warp_sum(square);
    if (order.begin[k] < from) {
      double* head = order.heads + warp_in_block() * kWarp * kValues + lane_id();
      for (int v = 0; v < kValues; ++v) head[v * kWarp] = sum[v];
      if (lane_id() == 0) order.head_squares[warp_in_block()] = square;
    } else if (!goes_on) {
      write_partial(k, square);
    }
  };

  RowPart<L> ahead[kAhead];
  const auto fetch = [&](int a, int row) { ahead[a].read(row_at(row), columns); };
  Octet now = order.octets[min(from, octets - 1)];
  int filled = from < to ? order.filled[from] : 0, k = -1;
  for (int a = 0; a < kAhead; ++a)
    if (a < filled) fetch(a, now.row[a]);
  NCOLLAPSE_ROLLED
  for (int octet = from; octet < to; ++octet) {
    const int following = min(octet + 1, to - 1);
    const Octet next = order.octets[following];
    const int then = following > octet ? order.filled[following] : 0;
    if (const int here = order.class_of[octet]; here != k) {
      if (k >= 0) close_class(k, false);
      k = here;
      open_class(k, octet);
    }
    NCOLLAPSE_UNROLLED
    for (int a = 0; a < kOctet; ++a) {
      if (a < filled) {
        double scaled[kValues];
        ahead[a % kAhead].each([&](int v, double value) {
          const double centred = value - shift[v];
          sum[v] += centred;
          squares[v % 2] += centred * centred;
          scaled[v] = factor * centred;
        });
        if constexpr (kWithRows) columns.write(scaled, z + (first + now.row[a]) * plan.pitch);
      }
      const int after = a + kAhead;
      if (after < kOctet) {
        if (after < filled) fetch(a % kAhead, now.row[after % kOctet]);
      } else if (after - kOctet < then) {
        fetch(a % kAhead, next.row[after % kOctet]);
      }
    }
    now = next;
    filled = then;
  }
  const bool goes_on = k >= 0 && order.begin[k + 1] > to;
  if (k >= 0) close_class(k, goes_on);
  const double nothing[kValues] = {};
  for (int absent = group; absent < classes; absent += groups) {
    if (order.count[absent] > 0) continue;
    const Index at = chunk * plan.classes + absent;
    columns.write(nothing, scratch.partial + at * plan.pitch);
    if (lane_id() == 0) scratch.squares[at * plan.slabs + slab] = 0;
  }
  if (const int of = static_cast<int>(threadIdx.x); blockIdx.y == 0 && of < classes) {
    scratch.counts[chunk * plan.classes + of] = static_cast<std::uint32_t>(order.count[of]);
    if (chunk == 0)
      scratch.fresh[of] =
          order.is_new[of] && (plan.chunks > 1 ? scratch.first[of] != kNone : order.count[of] > 0) ? 1 : 0;
    if (chunk == 0 && of == 0) target.record->unseen = *order.unseen;
  }
  __syncthreads();

  if (goes_on && order.begin[k] >= from) {
    for (int g = group + 1; g < groups; ++g) {
      const int begins = g * octets / groups;
      if (begins >= order.begin[k + 1]) break;
      if (begins == (g + 1) * octets / groups) continue;  // it had nothing
      const int warp = g * side + warp_in_block() % side;
      const double* head = order.heads + warp * kWarp * kValues + lane_id();
      for (int v = 0; v < kValues; ++v) sum[v] += head[v * kWarp];
      square += order.head_squares[warp];
    }
    write_partial(k, square);
  }
  if (*order.suspect == 0) return;  // the whole block

  Count found = 0, where = ~Count{0};
  NCOLLAPSE_ROLLED
  for (int i = group; i < rows; i += groups) {
    RowPart<L> part;
    part.read(row_at(i), columns);
    part.each([&](int v, double value) {
      if (fabs(value) <= DBL_MAX) return;  // false for NaN
      const Count at = static_cast<Count>((first + i) * plan.dim + columns.of(v / 2) + v % 2);
      where = min(where, at);
      ++found;
    });
  }
  report(found, where, &target.record->nonfinite, &target.record->first_nonfinite);
}

__device__ void add(double2& sum, const double2& part) {
  sum.x += part.x;
  sum.y += part.y;
}

/// Block x: a class. y: kPairStep columns; the last y: counts and squares.
__global__ void fold_chunks(LabelBlock labels, FewPlan plan, FewScratch scratch, FewTarget target) {
  const bool faults = has_faults(target.record);
  const Index k = blockIdx.x, warp = warp_in_block();
  if (blockIdx.y + 1 < gridDim.y) {
    if (faults) return;
    auto* shares = shared_memory<double2>();
    const Index col = static_cast<Index>(blockIdx.y) * kPairStep + 2 * lane_id(), step = plan.classes * plan.pitch;
    double2 sum{0, 0};
    if (col < plan.dim) {
      const double* from = scratch.partial + k * plan.pitch + col;
      NCOLLAPSE_UNROLLED_BY_8
      for (Index chunk = warp * plan.chunks / kWarps; chunk < (warp + 1) * plan.chunks / kWarps; ++chunk)
        add(sum, *reinterpret_cast<const double2*>(from + chunk * step));
    }
    shares[threadIdx.x] = sum;
    __syncthreads();
    if (warp != 0 || col >= plan.dim) return;
    for (int share = 1; share < kWarps; ++share) add(sum, shares[share * kWarp + lane_id()]);
    const bool two = col + 1 < plan.dim;
    double* sums = target.sums + k * plan.dim + col;
    sums[0] += sum.x;
    if (two) sums[1] += sum.y;
    if (!scratch.fresh[k]) return;
    target.shifts[k * plan.dim + col] = scratch.shifts[k * plan.pitch + col];
    if (two) target.shifts[k * plan.dim + col + 1] = scratch.shifts[k * plan.pitch + col + 1];
    return;
  }

  if (!faults) {
    double rows = 0, squares = 0;  // integers below 2^32 are exact
    for (Index chunk = threadIdx.x; chunk < plan.chunks; chunk += kBlock) {
      rows += scratch.counts[chunk * plan.classes + k];
      for (Index slab = 0; slab < plan.slabs; ++slab)
        squares += scratch.squares[(chunk * plan.classes + k) * plan.slabs + slab];
    }
    rows = block_sum(rows, shared_memory<double>());
    squares = block_sum(squares, shared_memory<double>());
    if (threadIdx.x == 0) {
      target.counts[k] += static_cast<Index>(rows);
      if (target.square_sums) target.square_sums[k] += squares;
    }
  }
  if (k != 0 || threadIdx.x != 0 || target.record->shut) return;
  BatchRecord& record = *target.record;
  if (record.bad_labels > 0) record.bad_label = label_at(labels, static_cast<Index>(record.first_bad_label));
  record.rows = plan.rows;
  record.shut = faults ? 1 : 0;
  record.batch += 1 - record.shut;
}

constexpr int kTile = 64, kDepth = 16;  // of a product: a block has kTile x kTile entries, a thread 4 x 4

/// Tile (y, x) of the lower triangle.
__global__ void __launch_bounds__(kBlock, 2)
    add_products(const double* z, Index rows, Index dim, Index pitch, const BatchRecord* record, double* T) {
  if (blockIdx.x > blockIdx.y || has_faults(record)) return;
  auto* left = shared_memory<double2>();  // [kDepth x kTile / 2] pairs of columns
  double2* right = left + kDepth * kTile / 2;
  const Index first_row = static_cast<Index>(blockIdx.y) * kTile, first_col = static_cast<Index>(blockIdx.x) * kTile;
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
  double sum[4][4] = {};
  for (Index depth = 0; depth < rows; depth += kDepth) {
    for (int i = static_cast<int>(threadIdx.x); i < kDepth * kTile / 2; i += kBlock) {
      const Index row = depth + i / (kTile / 2), col = 2 * (i % (kTile / 2));
      const auto pair_at = [&](Index at) {
        return row < rows && at < dim ? *reinterpret_cast<const double2*>(z + row * pitch + at) : double2{0, 0};
      };
      left[i] = pair_at(first_row + col);
      right[i] = pair_at(first_col + col);
    }
    __syncthreads();
    for (int i = 0; i < kDepth; ++i) {
      const double2 *of_row = left + i * (kTile / 2) + 2 * ty, *of_col = right + i * (kTile / 2) + tx;
      const double a[4] = {of_row[0].x, of_row[0].y, of_row[1].x, of_row[1].y};
      const double b[4] = {of_col[0].x, of_col[0].y, of_col[16].x, of_col[16].y};
      NCOLLAPSE_UNROLLED
      for (int m = 0; m < 4; ++m) NCOLLAPSE_UNROLLED
      for (int n = 0; n < 4; ++n) sum[m][n] += a[m] * b[n];
    }
    __syncthreads();  // they may be written again
  }
  NCOLLAPSE_UNROLLED
  for (int m = 0; m < 4; ++m) NCOLLAPSE_UNROLLED
  for (int n = 0; n < 4; ++n) {
    const Index i = first_row + 4 * ty + m, j = first_col + 2 * tx + n / 2 * (kTile / 2) + n % 2;
    if (i < dim && j <= i) T[i * dim + j] += sum[m][n];
  }
}

/// Calls f(rows, layout).
template <bool with_rows, class F>
void with_layout(const FeatureBlock& features, const F& f) {
  with_element(features.dtype, [&]<class T>(T) {
    const Rows<T> x = rows_of<T>(features);
    const bool paired = x.paired && x.cols % 2 == 0;
    if (x.cols <= kNarrow)
      paired ? f(x, Layout<T, 1, true, with_rows>{}) : f(x, Layout<T, 1, false, with_rows>{});
    else
      paired ? f(x, Layout<T, 4, true, with_rows>{}) : f(x, Layout<T, 4, false, with_rows>{});
  });
}

}  // namespace

FewPlan plan_few(Index rows, Index dim, Index classes, Index least_rows, Index blocks) {
  const Index width = dim <= kNarrow ? kPairStep : 4 * kPairStep, slabs = (dim + width - 1) / width;
  FewPlan plan{rows, dim, classes, rows, 1, slabs, 1, (dim + 1) / 2 * 2};
  while (plan.side < kWarps && slabs % (2 * plan.side) == 0) plan.side *= 2;
  least_rows = std::min(least_rows, kMostChunk);
  if (rows <= least_rows) return plan;
  const auto parts = [](Index of, Index size) { return (of + size - 1) / size; };
  constexpr Index kMultiple = 8;
  const Index wanted = parts(parts(rows * (slabs / plan.side), blocks), kMultiple) * kMultiple;
  plan.chunk = std::clamp(wanted, least_rows, kMostChunk);
  plan.chunks = parts(rows, plan.chunk);
  return plan;
}

void launch_survey_classes(cudaStream_t stream, const LabelBlock& labels, const FewPlan& plan, const Index* counts,
                           const BatchRecord* record, std::uint32_t* first) {
  check(cudaMemsetAsync(first, 0xff, static_cast<std::size_t>(plan.classes) * sizeof *first, stream));
  launch(stream, {(labels.rows + kMostChunk - 1) / kMostChunk, 1, 4 * (2 * plan.classes + 1)}, survey_classes, labels,
         plan.classes, counts, record, first);
}

void launch_sum_chunks(cudaStream_t stream, const FeatureBlock& features, const LabelBlock& labels, const FewPlan& plan,
                       const FewScratch& scratch, const FewTarget& target, double* z) {
  const auto start = [&]<class T, class L>(const Rows<T>& x, L) {
    launch(stream, {plan.chunks, plan.slabs / plan.side, ChunkOrder<L>::bytes(plan)}, sum_chunks<L>, x, labels, plan,
           scratch, target, z);
  };
  z ? with_layout<true>(features, start) : with_layout<false>(features, start);
}

void launch_fold_chunks(cudaStream_t stream, const LabelBlock& labels, const FewPlan& plan, const FewScratch& scratch,
                        const FewTarget& target) {
  launch(stream,
         {plan.classes, (plan.dim + kPairStep - 1) / kPairStep + 1, kBlock * static_cast<Index>(sizeof(double2))},
         fold_chunks, labels, plan, scratch, target);
}

void launch_add_products(cudaStream_t stream, const FewPlan& plan, const double* z, const BatchRecord* record,
                         double* T) {
  const Index tiles = (plan.dim + kTile - 1) / kTile;
  launch(stream, {tiles, tiles, 2 * kDepth * kTile * static_cast<Index>(sizeof(double))}, add_products, z, plan.rows,
         plan.dim, plan.pitch, record, T);
}

}  // namespace ncollapse::cuda
