#include <bit>
#include <cfloat>
#include <string>
#include <type_traits>

#include "cuda/class_sums.hpp"
#include "cuda/device.hpp"

namespace ncollapse::cuda {
namespace {

constexpr int kPairStep = 2 * kWarp;            // columns from one pair of a lane to its next
constexpr Index kNarrow = 2 * kPairStep;        // up to here one pair of columns a lane, beyond it four
constexpr Index kWarpsWanted = Index{1} << 14;  // for a block of rows: several times what any GPU holds at once

/// How a warp has its part of a row. kPaired: the number of columns is even, and rows of every kind start at multiples
/// of a pair.
template <class Element, int pairs, bool paired>
struct Layout {
  using T = Element;
  static constexpr int kPairs = pairs;        ///< of columns, for a lane
  static constexpr int kValues = 2 * kPairs;  ///< of a row, for a lane
  static constexpr bool kPaired = paired;
  /// Of a lane, on their way at any time: 2 KB a warp, where reading takes no more instructions than that.
  static constexpr int kRowsAhead = std::max<int>((paired ? 32 : 16) / static_cast<int>(sizeof(T)) / kPairs, 1);
};

/// A lane's columns in a slab: pair i is of(i) and the one after.
template <class L>
struct Columns {
  static constexpr int kPairs = L::kPairs, kValues = L::kValues;
  int first, dim;

  __device__ Columns(const SumPlan& plan, Index slab)
      : first(static_cast<int>(slab) * kPairs * kPairStep + 2 * lane_id()), dim(static_cast<int>(plan.dim)) {}

  __device__ int of(int pair) const { return first + pair * kPairStep; }
  __device__ bool has(int pair) const { return of(pair) < dim; }
  /// `to` := row, zeros beyond the last column.
  __device__ void read(const double* row, double (&to)[kValues]) const {
    row += first;
    for (int i = 0; i < kPairs; ++i) {
      double2 pair{0, 0};
      if constexpr (L::kPaired) {
        if (has(i)) pair = *reinterpret_cast<const double2*>(row + i * kPairStep);
      } else {
        if (has(i)) pair.x = row[i * kPairStep];
        if (of(i) + 1 < dim) pair.y = row[i * kPairStep + 1];
      }
      to[2 * i] = pair.x;
      to[2 * i + 1] = pair.y;
    }
  }
  __device__ void write(const double (&from)[kValues], double* row) const {
    if constexpr (L::kPaired) return write_padded(from, row);
    row += first;
    for (int i = 0; i < kPairs; ++i) {
      if (has(i)) row[i * kPairStep] = from[2 * i];
      if (of(i) + 1 < dim) row[i * kPairStep + 1] = from[2 * i + 1];
    }
  }
  /// To a row that has room for an even number of columns.
  __device__ void write_padded(const double (&from)[kValues], double* row) const {
    row += first;
    for (int i = 0; i < kPairs; ++i)
      if (has(i)) *reinterpret_cast<double2*>(row + i * kPairStep) = double2{from[2 * i], from[2 * i + 1]};
  }
};

/// What a lane has of a row of features; zeros beyond the last column.
template <class L>
struct RowPart {
  using T = typename L::T;
  using Word = std::conditional_t<sizeof(T) == 2, int, std::conditional_t<sizeof(T) == 4, int2, int4>>;
  Pair<T> pair[L::kPairs] = {};

  /// Past the caches: nobody reads it again.
  __device__ void read(const Rows<T>& x, Index row, const Columns<L>& columns) {
    const T* from = x.row(row) + columns.first;
    for (int i = 0; i < L::kPairs; ++i, from += kPairStep) {
      if (!columns.has(i)) continue;
      if constexpr (L::kPaired) {
        const Word word = __ldcs(reinterpret_cast<const Word*>(from));
        static_assert(sizeof word == sizeof pair[i]);
        memcpy(&pair[i], &word, sizeof word);
      } else {
        pair[i] = {from[0], columns.of(i) + 1 < columns.dim ? from[1] : T{}};
      }
    }
  }
  template <class F>
  __device__ void each(const F& f) const {  ///< f(number, value)
    for (int i = 0; i < L::kPairs; ++i) {
      f(2 * i, to_double(pair[i].first));
      f(2 * i + 1, to_double(pair[i].second));
    }
  }
};

/// What a run has of a class.
struct Piece {
  std::uint32_t k, begin;     ///< the class and its first position
  std::uint32_t first, last;  ///< positions of the piece
  bool whole;                 ///< it is all of the class
};

/// Calls f(piece) for every piece of a run, in order.
template <class F>
__device__ void for_each_piece(const Buckets& b, const SumPlan& plan, Index run, const F& f) {
  const auto start = static_cast<std::uint32_t>(run * plan.run);
  const auto stop = static_cast<std::uint32_t>(min((run + 1) * plan.run, plan.rows));
  std::uint32_t k = b.keys[start];
  for (std::uint32_t p = start; p < stop;) {
    const std::uint32_t begin = b.begin[k], end = b.end[k];
    const bool whole = plan.whole(begin, end);
    const std::uint32_t last = whole ? end : min(end, stop);
    const std::uint32_t next = last < stop ? b.keys[last] : 0;     // on its way meanwhile
    if (!whole || p == begin) f(Piece{k, begin, p, last, whole});  // else it is of a run before
    p = last;
    k = next;
  }
}

/// Calls f(position, row) for the rows of a piece, in order, while the next ones are read.
template <class L, class F>
__device__ void for_each_row(const Rows<typename L::T>& x, const Buckets& b, const Piece& piece,
                             const Columns<L>& columns, const F& f) {
  constexpr int kAhead = L::kRowsAhead;
  static_assert(kWarp % kAhead == 0);
  const int rows = static_cast<int>(piece.last - piece.first);  // two runs at most
  const std::uint32_t* numbers = b.rows + piece.first;
  // The numbers of 32 rows, one a lane, and of the 32 after them.
  const auto take = [&](int i) { return i + lane_id() < rows ? numbers[i + lane_id()] : 0; };
  std::uint32_t now = take(0), later = take(kWarp);
  RowPart<L> ahead[kAhead];
  for (int a = 0; a < kAhead; ++a)
    if (a < rows) ahead[a].read(x, __shfl_sync(kAllLanes, now, a), columns);
  NCOLLAPSE_ROLLED
  for (int i = 0; i < rows; i += kAhead) {
    const int at = i % kWarp;
    for (int a = 0; a < kAhead; ++a) {
      if (i + a >= rows) continue;  // the whole warp
      f(Index{piece.first} + i + a, ahead[a]);
      if (i + a + kAhead >= rows) continue;
      const int next = at + a + kAhead;
      ahead[a].read(x, __shfl_sync(kAllLanes, next < kWarp ? now : later, next % kWarp), columns);
    }
    if (at + kAhead < kWarp) continue;
    now = later;
    later = take(i + kAhead + kWarp);
  }
}

/// What is made beside the sums.
enum class Beside { nothing, rows, columns };

template <class L, Beside kBeside>
__global__ void __launch_bounds__(kBlock, kBeside == Beside::nothing || sizeof(typename L::T) < 8 ? 2 : 1)
    centre_and_sum(Rows<typename L::T> x, Buckets b, SumPlan plan, Index first_run, Index last_run, SumScratch scratch,
                   SumTarget target) {
  constexpr int kValues = L::kValues;
  const Index run = first_run + warp_id() / plan.slabs, slab = warp_id() % plan.slabs;
  if (run >= last_run) return;  // the whole warp
  const Columns<L> columns(plan, slab);
  double* z = kBeside == Beside::rows ? target.z - first_run * plan.run * plan.pitch : nullptr;  // of position 0
  if (target.record->shut) {
    const double nothing[kValues] = {};
    if constexpr (kBeside == Beside::rows)
      for (Index p = run * plan.run; p < min((run + 1) * plan.run, plan.rows); ++p)
        columns.write_padded(nothing, z + p * plan.pitch);
    if constexpr (kBeside == Beside::columns)
      columns.write(nothing, scratch.column_squares + (run - first_run) * plan.dim);
    return;
  }

  double column_squares[kValues];
  if constexpr (kBeside == Beside::columns)
    for (int v = 0; v < kValues; ++v) column_squares[v] = 0;
  for_each_piece(b, plan, run, [&](const Piece& piece) {
    double shift[kValues], sum[kValues], squares[2] = {0, 0};
    for (int v = 0; v < kValues; ++v) shift[v] = sum[v] = 0;
    if (target.counts[piece.k] > 0) {
      columns.read(target.shifts + Index{piece.k} * plan.dim, shift);
    } else {
      RowPart<L> row;
      row.read(x, b.rows[piece.begin], columns);
      row.each([&](int v, double value) { shift[v] = value; });
      if (piece.first == piece.begin) columns.write(shift, target.shifts + Index{piece.k} * plan.dim);
    }
    const double factor = target.scale ? target.scale[piece.k] : 1;

    for_each_row(x, b, piece, columns, [&](Index position, const RowPart<L>& row) {
      double scaled[kValues];
      row.each([&](int v, double value) {
        const double centred = value - shift[v];
        sum[v] += centred;
        squares[v % 2] += centred * centred;
        scaled[v] = factor * centred;
        if constexpr (kBeside == Beside::columns) column_squares[v] += scaled[v] * scaled[v];
      });
      if constexpr (kBeside == Beside::rows) columns.write_padded(scaled, z + position * plan.pitch);
    });

    double square = squares[0] + squares[1];
    if (target.watch && !(square <= DBL_MAX)) atomicAdd(&target.record->suspect, Count{1});
    if (!piece.whole) {
      columns.write_padded(sum, scratch.carry + (2 * run + (piece.first == piece.begin ? 1 : 0)) * plan.pitch);
    } else {
      double* sums = target.sums + Index{piece.k} * plan.dim;
      double before[kValues];
      columns.read(sums, before);
      for (int v = 0; v < kValues; ++v) sum[v] += before[v];
      columns.write(sum, sums);
    }
    square = warp_sum(square);
    if (lane_id() == 0) scratch.piece_squares[slab * plan.rows + piece.first] = square;
  });
  if constexpr (kBeside == Beside::columns)
    columns.write(column_squares, scratch.column_squares + (run - first_run) * plan.dim);
}

template <class L>
__global__ void __launch_bounds__(kBlock, 2)
    write_halves(Rows<typename L::T> x, Buckets b, SumPlan plan, Index first_run, Index last_run, const double* shifts,
                 const double* scale, const int* exponents, Index padded, Half* z) {
  constexpr int kPairs = L::kPairs, kValues = L::kValues;
  const Index run = first_run + warp_id() / plan.slabs, slab = warp_id() % plan.slabs;
  if (run >= last_run) return;
  const Columns<L> columns(plan, slab);
  double down[kValues];
  for (int v = 0; v < kValues; ++v) {
    const int col = columns.of(v / 2) + v % 2;
    down[v] = col < columns.dim ? power_of_two(-exponents[col]) : 0;
  }
  for_each_piece(b, plan, run, [&](const Piece& piece) {
    double shift[kValues], scaling[kValues];
    columns.read(shifts + Index{piece.k} * plan.dim, shift);
    for (int v = 0; v < kValues; ++v) scaling[v] = scale ? scale[piece.k] * down[v] : down[v];
    for_each_row(x, b, piece, columns, [&](Index position, const RowPart<L>& row) {
      Half* to = z + (position - first_run * plan.run) * padded;
      Pair<Half> halves[kPairs] = {};
      row.each([&](int v, double value) {
        const Half half = to_half(static_cast<float>((value - shift[v]) * scaling[v]));
        (v % 2 == 0 ? halves[v / 2].first : halves[v / 2].second) = half;
      });
      for (int i = 0; i < kPairs; ++i)
        if (columns.of(i) < padded) *reinterpret_cast<Pair<Half>*>(to + columns.of(i)) = halves[i];
    });
  });
}

/// Two neighbouring columns of a carry; there is room for an even number of them.
__device__ double2& pair_of(double* carry) { return *reinterpret_cast<double2*>(carry); }
__device__ void add(double2& sum, const double2& part) {
  sum.x += part.x;
  sum.y += part.y;
}
/// The first of a thread's two columns; y: columns.
__device__ Index first_column() { return 2 * (static_cast<Index>(blockIdx.y) * kBlock + threadIdx.x); }
constexpr Index kMostColumns = Index{65534} * 2 * kBlock;  // of as many blocks as a grid has in y, but one
Index column_blocks(const SumPlan& plan) { return (plan.pitch / 2 + kBlock - 1) / kBlock; }

/// Block x: plan.fold runs; if they all go on with one class that began before, and end inside it, the first one's
/// carry becomes the sum of all. y: columns.
__global__ void fold_carries(Buckets b, SumPlan plan, const BatchRecord* record, double* carry) {
  if (record->shut) return;
  const Index first = blockIdx.x * plan.fold, col = first_column();
  if (col >= plan.dim || (first + plan.fold) * plan.run > plan.rows) return;
  const Index k = b.keys[first * plan.run];
  if (b.begin[k] >= first * plan.run || b.end[k] < (first + plan.fold) * plan.run) return;
  double2 sum{0, 0};
  for (Index run = first; run < first + plan.fold; ++run) add(sum, pair_of(carry + 2 * run * plan.pitch + col));
  pair_of(carry + 2 * first * plan.pitch + col) = sum;
}

/// Block x: the classes that begin in a run. y: columns; the last y: counts and squares.
__global__ void close_classes(Buckets b, SumPlan plan, SumScratch scratch, const BatchRecord* record, Index* counts,
                              double* sums, double* square_sums) {
  if (record->shut) return;
  const Index run = blockIdx.x, start = run * plan.run, stop = min(start + plan.run, plan.rows);
  // Of those that begin here only the last one can go on; if it does, it was cut.
  const Index k = b.keys[stop - 1], begin = b.begin[k], end = b.end[k];
  const bool cut = begin >= start && !plan.whole(begin, end);
  const Index last = (end - 1) / plan.run;  // run of its last piece

  if (blockIdx.y + 1 < gridDim.y) {
    const Index col = first_column();
    if (!cut || col >= plan.dim) return;
    double* carry = scratch.carry + col;
    double2 sum = pair_of(carry + (2 * run + 1) * plan.pitch);
    const auto add_runs = [&](Index from, Index to, Index step) {
      for (Index r = from; r < to; r += step) add(sum, pair_of(carry + 2 * r * plan.pitch));
    };
    // Single runs, folded groups of them, single runs again.
    const Index groups = (run + plan.fold) / plan.fold * plan.fold, left = end / plan.run / plan.fold * plan.fold;
    if (groups < left) {
      add_runs(run + 1, groups, 1);
      add_runs(groups, left, plan.fold);
      add_runs(left, last + 1, 1);
    } else {
      add_runs(run + 1, last + 1, 1);
    }
    sums[k * plan.dim + col] += sum.x;
    if (col + 1 < plan.dim) sums[k * plan.dim + col + 1] += sum.y;
    return;
  }

  for (Index p = start + threadIdx.x; p < stop; p += kBlock) {
    const Index key = b.keys[p];
    if (b.begin[key] != p) continue;
    counts[key] += b.end[key] - p;
    if (!square_sums || (cut && key == k)) continue;
    double sum = 0;
    for (Index slab = 0; slab < plan.slabs; ++slab) sum += scratch.piece_squares[slab * plan.rows + p];
    square_sums[key] += sum;
  }
  if (!square_sums || !cut) return;  // the whole block
  double sum = 0;
  for (Index i = threadIdx.x; i < (last - run + 1) * plan.slabs; i += kBlock) {
    const Index piece = i / plan.slabs, slab = i % plan.slabs;
    sum += scratch.piece_squares[slab * plan.rows + (piece == 0 ? begin : (run + piece) * plan.run)];
  }
  sum = block_sum(sum, shared_memory<double>());
  if (threadIdx.x == 0) square_sums[k] += sum;
}

__device__ void copy_values(const double* from, Index size, double* to) {
  if (!from) return;
  for (Index i = thread_id(); i < size; i += thread_count()) to[i] = from[i];
}

/// gate null: always; else where it is shut, with the shifts.
__global__ void copy_state(StateArrays from, Index classes, Index dim, StateArrays to, const BatchRecord* gate,
                           double* shifts) {
  if (gate && !gate->shut) return;
  for (Index k = thread_id(); k < classes; k += thread_count()) to.counts[k] = from.counts[k];
  copy_values(from.sums, classes * dim, to.sums);
  copy_values(from.square_sums, classes, to.square_sums);
  copy_values(from.scatter, dim * dim, to.scatter);
  if (!gate) return;
  for (Index i = thread_id(); i < classes * dim; i += thread_count())
    if (from.counts[i / dim] == 0) shifts[i] = 0;
}

Index copy_blocks(Index classes, Index dim) { return blocks_for(std::max(classes, dim) * dim, 4 * kBlock); }

/// Calls f(rows, layout).
template <class F>
void with_layout(const FeatureBlock& features, const F& f) {
  with_element(features.dtype, [&]<class T>(T) {
    const Rows<T> x = rows_of<T>(features);
    const bool paired = x.paired && x.cols % 2 == 0;
    if (x.cols <= kNarrow)
      paired ? f(x, Layout<T, 1, true>{}) : f(x, Layout<T, 1, false>{});
    else
      paired ? f(x, Layout<T, 4, true>{}) : f(x, Layout<T, 4, false>{});
  });
}

Index blocks_of(const SumPlan& plan, Index runs) { return (runs * plan.slabs + kWarps - 1) / kWarps; }

}  // namespace

SumPlan plan_sums(Index rows, Index dim, Index group_runs, Index fold, Index centred_bytes) {
  if (dim > kMostColumns)
    throw UsageError("class sums on CUDA take up to " + std::to_string(kMostColumns) + " dimensions, not " +
                     std::to_string(dim));
  const Index slab = dim <= kNarrow ? kPairStep : 4 * kPairStep;
  SumPlan plan{rows, dim, 0, 0, fold, 0, (dim + slab - 1) / slab, (dim + 1) / 2 * 2};
  const auto wanted = static_cast<std::uint64_t>(rows * plan.slabs / kWarpsWanted);
  plan.run = std::clamp<Index>(static_cast<Index>(std::bit_floor(wanted)), 32, 512);
  const auto fitting = static_cast<std::uint64_t>(std::max<Index>(centred_bytes / (8 * plan.pitch), 1));
  plan.group = std::max(plan.run, std::min(plan.run * group_runs, static_cast<Index>(std::bit_floor(fitting))));
  plan.runs = (rows + plan.run - 1) / plan.run;
  return plan;
}

void launch_centre_and_sum(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets,
                           const SumPlan& plan, Index first_run, Index last_run, const SumScratch& scratch,
                           const SumTarget& target) {
  with_layout(features, [&]<class T, class L>(const Rows<T>& x, L) {
    auto* kernel = centre_and_sum<L, Beside::nothing>;
    if (target.z) kernel = centre_and_sum<L, Beside::rows>;
    if (scratch.column_squares) kernel = centre_and_sum<L, Beside::columns>;
    launch(stream, {blocks_of(plan, last_run - first_run)}, kernel, x, buckets, plan, first_run, last_run, scratch,
           target);
  });
}

void launch_write_halves(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets, const SumPlan& plan,
                         Index first_run, Index last_run, const double* shifts, const double* scale,
                         const int* exponents, Index padded, Half* z) {
  with_layout(features, [&]<class T, class L>(const Rows<T>& x, L) {
    launch(stream, {blocks_of(plan, last_run - first_run)}, write_halves<L>, x, buckets, plan, first_run, last_run,
           shifts, scale, exponents, padded, z);
  });
}

void launch_close_classes(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                          const BatchRecord* record, Index* counts, double* sums, double* square_sums) {
  launch(stream, {plan.runs / plan.fold, column_blocks(plan)}, fold_carries, buckets, plan, record, scratch.carry);
  launch(stream, {plan.runs, column_blocks(plan) + 1, kWarps * sizeof(double)}, close_classes, buckets, plan, scratch,
         record, counts, sums, square_sums);
}

void launch_copy_state(cudaStream_t stream, const StateArrays& from, Index classes, Index dim, const StateArrays& to) {
  launch(stream, {copy_blocks(classes, dim)}, copy_state, from, classes, dim, to, nullptr, nullptr);
}

void launch_restore_state(cudaStream_t stream, const StateArrays& snapshot, Index classes, Index dim,
                          const BatchRecord* record, const StateArrays& state, double* shifts) {
  launch(stream, {std::min(copy_blocks(classes, dim), kMaxIdleBlocks)}, copy_state, snapshot, classes, dim, state,
         record, shifts);
}

}  // namespace ncollapse::cuda
