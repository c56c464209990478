#include <cuda_pipeline_primitives.h>

#include <bit>
#include <cfloat>
#include <string>
#include <type_traits>

#include "cuda/class_sums.hpp"
#include "cuda/device.hpp"
#include "cuda/scatter.hpp"

namespace ncollapse::cuda {
namespace {

constexpr int kPairStep = 2 * kWarp;      // columns from one pair of a lane to its next
constexpr Index kNarrow = 2 * kPairStep;  // up to here one pair of columns a lane, beyond it four

/// Of a warp: rows on their way. A block has all the shared memory that it may have without asking for more.
constexpr int kRingBytes = (48 << 10) / kWarps;
constexpr int kStepBytes = 1 << 10;  // that are waited for at once, if that is a row or more
constexpr int kMostSteps = 10;       // that __pipeline_wait_prior tells apart

/// How a warp has its part of a row. kAligned: rows of features are whole packets of 16 bytes; those of doubles are,
/// too.
template <class Element, int pairs, bool aligned>
struct Layout {
  using T = Element;
  static constexpr int kPairs = pairs;        ///< of columns, for a lane
  static constexpr int kValues = 2 * kPairs;  ///< of a row, for a lane
  static constexpr bool kAligned = aligned;
  static constexpr int kSlab = kPairs * kPairStep;                               ///< columns of a warp
  static constexpr int kChunk = aligned ? 16 / static_cast<int>(sizeof(T)) : 1;  ///< columns copied at once
  static constexpr int kSlabBytes = kSlab * static_cast<int>(sizeof(T));
  static constexpr int kStepRows = aligned ? std::max(kStepBytes / kSlabBytes, 1) : 1;
  static constexpr int kSteps = std::min(kRingBytes / (kStepRows * kSlabBytes), kMostSteps);
  static constexpr int kRingRows = kSteps * kStepRows;
  static_assert(kSteps >= 2 && kWarp % kStepRows == 0);
};

/// A lane's columns in a slab: pair i is of(i) and the one after.
template <class L>
struct Columns {
  static constexpr int kPairs = L::kPairs, kValues = L::kValues;
  int slab;  ///< its first column
  int first, dim;

  __device__ Columns(const SumPlan& plan, Index number)
      : slab(static_cast<int>(number) * L::kSlab), first(slab + 2 * lane_id()), dim(static_cast<int>(plan.dim)) {}

  __device__ int of(int pair) const { return first + pair * kPairStep; }
  __device__ bool has(int pair) const { return of(pair) < dim; }
  /// `to` := row, zeros beyond the last column.
  __device__ void read(const double* row, double (&to)[kValues]) const {
    row += first;
    for (int i = 0; i < kPairs; ++i) {
      double2 pair{0, 0};
      if constexpr (L::kAligned) {
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
    if constexpr (L::kAligned) return write_padded(from, row);
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

  /// Of the slab's columns of a row where it lies.
  __device__ void read(const Rows<T>& x, Index row, const Columns<L>& columns) {
    const T* from = x.row(row) + columns.first;
    for (int i = 0; i < L::kPairs; ++i, from += kPairStep)
      if (columns.has(i)) pair[i] = {from[0], columns.of(i) + 1 < columns.dim ? from[1] : T{}};
  }
  /// Of all columns of a slab in a ring.
  __device__ void read(const T* slab) {
    for (int i = 0; i < L::kPairs; ++i) {
      const Word word = *reinterpret_cast<const Word*>(slab + 2 * lane_id() + i * kPairStep);
      static_assert(sizeof word == sizeof pair[i]);
      memcpy(&pair[i], &word, sizeof word);
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

/// A warp's slab of the rows at positions first .. last - 1, one after the other, through a ring of the block's shared
/// memory: while one is at hand, as many as the ring has room for are on their way, whatever the warp waits for
/// meanwhile. Lanes copy what is copied fastest, 16 bytes at a time, not what they will have of the row. All lanes take
/// part in everything.
template <class L>
class RowStream {
 public:
  using T = typename L::T;

  __device__ RowStream(const Rows<T>& x, const Buckets& b, std::uint32_t first, std::uint32_t last,
                       const Columns<L>& columns)
      : x_(x),
        b_(b),
        columns_(columns),
        ring_(shared_memory<T>() + warp_in_block() * (kRingBytes / static_cast<int>(sizeof(T)))),
        at_(ring_),
        to_(ring_),
        asked_(first),
        last_(last) {
    for (int col = columns.dim - columns.slab + lane_id(); col < L::kSlab; col += kWarp)  // no copy goes there
      for (int row = 0; row < L::kRingRows; ++row) ring_[row * L::kSlab + col] = T{};
    read_numbers();
    NCOLLAPSE_ROLLED
    for (int step = 0; step < L::kSteps; ++step) ask();
    __pipeline_wait_prior(L::kSteps - 1);
    __syncwarp();
  }

  /// The row at hand.
  __device__ RowPart<L> front() const {
    RowPart<L> part;
    part.read(at_);
    return part;
  }
  /// The next one is at hand.
  __device__ void pop() {
    at_ += L::kSlab;
    if (++popped_ < L::kStepRows) return;
    popped_ = 0;
    if (at_ == ring_ + L::kRingRows * L::kSlab) at_ = ring_;
    __pipeline_wait_prior(L::kSteps - 2);
    __syncwarp();  // the other lanes' copies are there, and nobody reads any more of the step before
    ask();
  }

 private:
  /// Of the rows of the next step, long before they are asked for.
  __device__ void read_numbers() {
    for (int n = 0; n < kNumbers; ++n) {
      const std::uint32_t position = asked_ + n * kRowsOfCopy + lane_id() / kLanes;
      numbers_[n] = position < last_ ? b_.rows[position] : 0;
    }
  }
  /// Calls f(copy, to, from) for what this lane is to copy of the next step.
  template <class F>
  __device__ void each_copy(const F& f) const {
    for (int n = 0; n < kNumbers; ++n) {
      const int row = n * kRowsOfCopy + lane_id() / kLanes;
      const T* from = x_.row(numbers_[n]) + columns_.slab;
      T* to = to_ + row * L::kSlab;
      for (int c = 0; c < kCopiesOfRow; ++c) {
        const int col = (c * kLanes + lane_id() % kLanes) * L::kChunk;
        if (asked_ + row < last_ && columns_.slab + col < columns_.dim) f(n * kCopiesOfRow + c, to + col, from + col);
      }
    }
  }
  /// Sends for a step of rows, or for nothing where there are none left: steps are counted.
  __device__ void ask() {
    if constexpr (kBytes >= 4) {
      each_copy([](int, T* to, const T* from) { __pipeline_memcpy_async(to, from, kBytes); });
    } else {  // too small for that
      T held[kNumbers * kCopiesOfRow] = {};
      each_copy([&](int copy, T*, const T* from) { held[copy] = *from; });
      each_copy([&](int copy, T* to, const T*) { *to = held[copy]; });
    }
    __pipeline_commit();
    to_ += L::kStepRows * L::kSlab;
    if (to_ == ring_ + L::kRingRows * L::kSlab) to_ = ring_;
    asked_ += L::kStepRows;
    read_numbers();
  }

  static constexpr int kBytes = L::kChunk * static_cast<int>(sizeof(T));
  static constexpr int kLanes = std::min(L::kSlab / L::kChunk, kWarp);  ///< for a row
  static constexpr int kRowsOfCopy = kWarp / kLanes, kCopiesOfRow = L::kSlab / L::kChunk / kLanes;
  static constexpr int kNumbers = L::kStepRows / kRowsOfCopy;  ///< of rows that a lane copies from, in a step
  static_assert(L::kStepRows % kRowsOfCopy == 0);

  const Rows<T>& x_;
  const Buckets& b_;
  const Columns<L>& columns_;
  T *ring_, *at_, *to_;         ///< the ring, in it the row at hand, and where the next step goes
  std::uint32_t asked_, last_;  ///< positions: of the next step, of the end
  std::uint32_t numbers_[kNumbers];
  int popped_ = 0;  ///< rows of the step at hand
};

/// What a run has of a class.
struct Piece {
  std::uint32_t k, first;  ///< the class, the first position
  bool begins, whole;      ///< the class begins with it; it is all of the class
};

/// The pieces of a run: the positions first() .. last() - 1, cut where the class changes. Which class a position has is
/// read 32 positions ahead, and, where there are marks, those of that class: nothing is waited for between one piece
/// and the next.
template <bool kMarks>
class Pieces {
 public:
  __device__ Pieces(const Buckets& b, const SumPlan& plan, Index run) : b_(b) {
    const auto start = static_cast<std::uint32_t>(run * plan.run);
    const auto stop = static_cast<std::uint32_t>(min((run + 1) * plan.run, plan.rows));
    const std::uint32_t k = b.keys[start], l = b.keys[stop - 1];
    const std::uint32_t begin = b.begin[k], end = b.end[k], begin_last = b.begin[l], end_last = b.end[l];
    const bool of_a_run_before = begin < start && plan.whole(begin, end);
    at_ = of_a_run_before ? end : start;
    last_ = begin_last >= start && plan.whole(begin_last, end_last) ? end_last : stop;
    begins_ = begin >= start || of_a_run_before;
    goes_on_ = end_last > last_;
    base_ = at_;
    key_ahead_ = key(base_);
    key_later_ = key(base_ + kWarp);
    ask();
    take();
  }

  __device__ std::uint32_t first() const { return at_; }  ///< before the first pop
  __device__ std::uint32_t last() const { return last_; }

  __device__ bool any() const { return at_ < last_; }
  /// The piece that begins at the position at hand.
  __device__ Piece front() const {
    return {__shfl_sync(kAllLanes, key_, static_cast<int>(at_ - base_)), at_, begins_, false};
  }
  /// Of its class.
  __device__ std::uint32_t marks() const { return __shfl_sync(kAllLanes, marks_, static_cast<int>(at_ - base_)); }

  /// Calls f(position) for all positions of the piece; then the next piece is at hand.
  template <class F>
  __device__ void walk(Piece& piece, const F& f) {
    for (;;) {
      const unsigned ends = ends_ >> (at_ - base_);
      const std::uint32_t until =
          ends != 0 ? at_ + static_cast<std::uint32_t>(__ffs(static_cast<int>(ends))) : base_ + kWarp;
      NCOLLAPSE_ROLLED
      for (; at_ < until; ++at_) f(at_);
      if (at_ - base_ == kWarp) {
        base_ += kWarp;
        take();
      }
      if (ends != 0) break;
    }
    piece.whole = piece.begins && !(at_ == last_ && goes_on_);
    begins_ = true;
  }

 private:
  /// Of the lane's of 32 positions; behind the end that of the last one, whose marks are set.
  __device__ std::uint32_t key(std::uint32_t base) const { return b_.keys[min(base + lane_id(), last_ - 1)]; }
  /// For the marks of the classes ahead.
  __device__ void ask() {
    if constexpr (kMarks) marks_ahead_ = b_.marks[key_ahead_];
  }
  /// What was ahead is at hand.
  __device__ void take() {
    key_ = key_ahead_;
    key_ahead_ = key_later_;
    marks_ = marks_ahead_;
    ask();
    key_later_ = key(base_ + 2 * kWarp);
    const std::uint32_t below = __shfl_down_sync(kAllLanes, key_, 1), behind = __shfl_sync(kAllLanes, key_ahead_, 0);
    const bool last = base_ + lane_id() + 1 == last_;
    ends_ = __ballot_sync(kAllLanes, last || (lane_id() + 1 < kWarp ? below : behind) != key_);
  }

  const Buckets& b_;
  std::uint32_t at_, last_;                    ///< positions: at hand, the end
  std::uint32_t base_;                         ///< of the 32 positions that are known
  std::uint32_t key_, key_ahead_, key_later_;  ///< of a lane's position, and of 32 and 64 positions behind
  std::uint32_t marks_ = 0, marks_ahead_ = 0;
  unsigned ends_;          ///< bits of positions behind which another class begins, or nothing
  bool begins_, goes_on_;  ///< the class at hand begins there, the last one goes on behind the end
};

__device__ const double* sums_from(const TwoArrays& sums, std::uint32_t marks) {
  return (marks & kFromSecond) != 0 ? sums.second : sums.first;
}
__device__ double* sums_to(const TwoArrays& sums, std::uint32_t marks) {
  return (marks & kToSecond) != 0 ? sums.second : sums.first;
}

/// What is made beside the sums.
enum class Beside { nothing, rows, halves };

/// Blocks of a multiprocessor: as many as spill nothing.
template <class L, Beside kBeside>
constexpr int kBlocksAtOnce = [] {
  if (kBeside == Beside::halves || !L::kAligned) return 1;
  return kBeside == Beside::nothing || sizeof(typename L::T) < 8 ? 2 : 1;
}();

/// What a lane has of a row of halves.
template <class L>
struct HalfRow {
  Pair<Half> pair[L::kPairs] = {};

  __device__ void set(int v, double value) {
    const Half half = to_half(static_cast<float>(value));
    (v % 2 == 0 ? pair[v / 2].first : pair[v / 2].second) = half;
  }
  __device__ void write(Half* row, Index padded, const Columns<L>& columns) const {
    for (int i = 0; i < L::kPairs; ++i)
      if (columns.of(i) < padded) *reinterpret_cast<Pair<Half>*>(row + columns.of(i)) = pair[i];
  }
};
/// 2^-e_j of a lane's columns, 0 beyond the last one.
template <class L>
__device__ void read_scaling(const int* exponents, const Columns<L>& columns, double (&down)[L::kValues]) {
  for (int v = 0; v < L::kValues; ++v) {
    const int col = columns.of(v / 2) + v % 2;
    down[v] = col < columns.dim ? power_of_two(-exponents[col]) : 0;
  }
}

template <class L, Beside kBeside>
__global__ void __launch_bounds__(kBlock, (kBlocksAtOnce<L, kBeside>))
    centre_and_sum(Rows<typename L::T> x, Buckets b, SumPlan plan, Index first_run, Index last_run, SumScratch scratch,
                   SumTarget target) {
  constexpr int kValues = L::kValues;
  constexpr bool kEarly = kBeside == Beside::nothing;  // else there are too few registers to open a piece early
  const Index run = first_run + warp_id() / plan.slabs, slab = warp_id() % plan.slabs;
  if (run >= last_run) return;  // the whole warp
  const Columns<L> columns(plan, slab);
  double* z = kBeside == Beside::rows ? target.z - first_run * plan.run * plan.pitch : nullptr;  // of position 0
  if (target.record->shut) {
    const double nothing[kValues] = {};
    if constexpr (kBeside == Beside::rows)
      for (Index p = run * plan.run; p < min((run + 1) * plan.run, plan.rows); ++p)
        columns.write_padded(nothing, z + p * plan.pitch);
    if constexpr (kBeside == Beside::halves)
      columns.write(nothing, scratch.column_squares + (run - first_run) * plan.dim);
    return;
  }

  double column_squares[kValues], down[kValues];
  bool known = false;
  if constexpr (kBeside == Beside::halves) {
    for (int v = 0; v < kValues; ++v) column_squares[v] = down[v] = 0;
    known = target.halves.exponents[0] != kUnknownExponent;
    if (known) read_scaling(target.halves.exponents, columns, down);
  }
  Half* halves = kBeside == Beside::halves ? target.halves.z - first_run * plan.run * target.halves.padded : nullptr;
  Pieces<true> pieces(b, plan, run);
  RowStream<L> rows(x, b, pieces.first(), pieces.last(), columns);
  Piece piece{};
  std::uint32_t marks = 0;
  double factor = 1, shift[kValues];
  const auto open = [&] {
    piece = pieces.front();
    marks = pieces.marks();
    if (target.scale) factor = target.scale[piece.k];
    if (marks & kSeen) columns.read(target.shifts + Index{piece.k} * plan.dim, shift);
  };
  if (kEarly && pieces.any()) open();
  while (pieces.any()) {
    if (!kEarly) open();
    if (!(marks & kSeen)) {
      RowPart<L> row = rows.front();
      if (!piece.begins) row.read(x, b.rows[b.begin[piece.k]], columns);
      row.each([&](int v, double value) { shift[v] = value; });
      if (piece.begins) columns.write(shift, target.shifts + Index{piece.k} * plan.dim);
    }

    double sum[kValues], squares[2] = {0, 0};
    for (int v = 0; v < kValues; ++v) sum[v] = 0;
    pieces.walk(piece, [&](std::uint32_t position) {
      const RowPart<L> row = rows.front();
      double scaled[kValues];
      row.each([&](int v, double value) {
        const double centred = value - shift[v];
        sum[v] += centred;
        squares[v % 2] += centred * centred;
        scaled[v] = factor * centred;
        if constexpr (kBeside == Beside::halves) column_squares[v] += scaled[v] * scaled[v];
      });
      if constexpr (kBeside == Beside::rows) columns.write_padded(scaled, z + Index{position} * plan.pitch);
      if (kBeside == Beside::halves && known) {
        HalfRow<L> half;
        for (int v = 0; v < kValues; ++v) half.set(v, scaled[v] * down[v]);
        half.write(halves + Index{position} * target.halves.padded, target.halves.padded, columns);
      }
      rows.pop();
    });

    // What has to be waited for, for the next piece as well, is asked for first.
    const Piece done = piece;
    double* to = sums_to(target.sums, marks) + Index{done.k} * plan.dim;
    double before[kValues];
    if (done.whole) columns.read(sums_from(target.sums, marks) + Index{done.k} * plan.dim, before);
    if (kEarly && pieces.any()) open();

    double square = squares[0] + squares[1];
    if (target.watch && !(square <= DBL_MAX)) atomicAdd(&target.record->suspect, Count{1});
    square = warp_sum(square);
    if (lane_id() == 0) scratch.piece_squares[slab * plan.rows + done.first] = square;
    if (done.whole) {
      for (int v = 0; v < kValues; ++v) sum[v] += before[v];
      columns.write(sum, to);
    } else {
      columns.write_padded(sum, scratch.carry + (2 * run + (done.begins ? 1 : 0)) * plan.pitch);
    }
  }
  if constexpr (kBeside == Beside::halves)
    columns.write(column_squares, scratch.column_squares + (run - first_run) * plan.dim);
}

template <class L>
__global__ void __launch_bounds__(kBlock, 2)
    write_halves(Rows<typename L::T> x, Buckets b, SumPlan plan, Index first_run, Index last_run, const double* shifts,
                 const double* scale, Halves halves, const int* misfit) {
  constexpr int kValues = L::kValues;
  const Index run = first_run + warp_id() / plan.slabs, slab = warp_id() % plan.slabs;
  if (run >= last_run || *misfit == 0) return;  // the whole warp
  const Columns<L> columns(plan, slab);
  Pieces<false> pieces(b, plan, run);
  RowStream<L> rows(x, b, pieces.first(), pieces.last(), columns);
  double down[kValues];
  read_scaling(halves.exponents, columns, down);
  while (pieces.any()) {
    Piece piece = pieces.front();
    double shift[kValues], scaling[kValues];
    columns.read(shifts + Index{piece.k} * plan.dim, shift);
    for (int v = 0; v < kValues; ++v) scaling[v] = scale ? scale[piece.k] * down[v] : down[v];
    pieces.walk(piece, [&](std::uint32_t position) {
      const RowPart<L> row = rows.front();
      HalfRow<L> half;
      row.each([&](int v, double value) { half.set(v, (value - shift[v]) * scaling[v]); });
      half.write(halves.z + (Index{position} - first_run * plan.run) * halves.padded, halves.padded, columns);
      rows.pop();
    });
  }
}

/// Two neighbouring columns of a carry; there is room for an even number of them.
__device__ double2& pair_of(double* carry) { return *reinterpret_cast<double2*>(carry); }
/// sum += carries of the runs from, from + step, .. below `to`, in order; several are on their way at a time.
/// carry: slot 0 of run 0, at the columns.
__device__ void add_carries(double2& sum, double* carry, const SumPlan& plan, std::uint32_t from, std::uint32_t to,
                            std::uint32_t step) {
  constexpr std::uint32_t kAtOnce = 4;
  const Index stride = Index{2} * step * plan.pitch;
  double* at = carry + Index{2} * from * plan.pitch;
  const auto add = [&](const double2& part) {
    sum.x += part.x;
    sum.y += part.y;
  };
  std::uint32_t left = from < to ? (to - from + step - 1) / step : 0;
  NCOLLAPSE_ROLLED
  for (; left >= kAtOnce; left -= kAtOnce, at += kAtOnce * stride) {
    const double2 parts[kAtOnce] = {pair_of(at), pair_of(at + stride), pair_of(at + 2 * stride),
                                    pair_of(at + 3 * stride)};
    for (const double2& part : parts) add(part);
  }
  NCOLLAPSE_ROLLED
  for (; left > 0; --left, at += stride) add(pair_of(at));
}
/// The first of a thread's two columns; y: columns.
__device__ Index first_column() { return 2 * (static_cast<Index>(blockIdx.y) * kBlock + threadIdx.x); }
constexpr Index kMostColumns = Index{65534} * 2 * kBlock;  // of as many blocks as a grid has in y, but one
Index column_blocks(const SumPlan& plan) { return (plan.pitch / 2 + kBlock - 1) / kBlock; }

/// Block x: plan.fold runs; if they all go on with one class that began before, and end inside it, the first one's
/// carry becomes the sum of all. y: columns.
__global__ void fold_carries(Buckets b, SumPlan plan, const BatchRecord* record, double* carry) {
  const auto length = static_cast<std::uint32_t>(plan.run), fold = static_cast<std::uint32_t>(plan.fold);
  const std::uint32_t run = blockIdx.x * fold, start = run * length, k = b.keys[start];
  const Index stop = Index{start} + fold * length;
  const Index col = first_column();
  if (record->shut || col >= plan.dim || stop > plan.rows) return;
  if (b.begin[k] >= start || b.end[k] < stop) return;
  double2 sum{0, 0};
  add_carries(sum, carry + col, plan, run, run + fold, 1);
  pair_of(carry + Index{2} * run * plan.pitch + col) = sum;
}

/// Block x: the classes that begin in a run. y: columns; the last y: counts and squares. What tells whether there is
/// anything to do is read at once, before the gate is asked: most blocks do nothing but that.
__global__ void close_classes(Buckets b, SumPlan plan, SumScratch scratch, const BatchRecord* record, Index* counts,
                              TwoArrays sums, double* square_sums) {
  const auto length = static_cast<std::uint32_t>(plan.run), fold = static_cast<std::uint32_t>(plan.fold);
  const std::uint32_t run = blockIdx.x, start = run * length;
  const auto stop = static_cast<std::uint32_t>(min(Index{start} + length, plan.rows));
  // Of those that begin here only the last one can go on; if it does, it was cut.
  const std::uint32_t k = b.keys[stop - 1], begin = b.begin[k], end = b.end[k];
  const bool cut = begin >= start && !plan.whole(begin, end);
  if (record->shut) return;

  if (blockIdx.y + 1 < gridDim.y) {
    const Index col = first_column();
    if (!cut || col >= plan.dim) return;
    const Index at = Index{k} * plan.dim + col;
    const double* from = sums_from(sums, b.marks[k]) + at;
    double* to = sums_to(sums, b.marks[k]) + at;
    const double before[2] = {from[0], col + 1 < plan.dim ? from[1] : 0};
    double* carry = scratch.carry + col;
    double2 sum = pair_of(carry + (Index{2} * run + 1) * plan.pitch);
    // Single runs, folded groups of them, single runs again.
    const std::uint32_t runs = (end - 1) / length + 1;
    const std::uint32_t groups = (run + fold) / fold * fold, left = end / length / fold * fold;
    if (groups < left) {
      add_carries(sum, carry, plan, run + 1, groups, 1);
      add_carries(sum, carry, plan, groups, left, fold);
      add_carries(sum, carry, plan, left, runs, 1);
    } else {
      add_carries(sum, carry, plan, run + 1, runs, 1);
    }
    to[0] = before[0] + sum.x;
    if (col + 1 < plan.dim) to[1] = before[1] + sum.y;
    return;
  }

  const auto slabs = static_cast<std::uint32_t>(plan.slabs);
  for (std::uint32_t p = start + threadIdx.x; p < stop; p += kBlock) {
    const std::uint32_t key = b.keys[p];
    if (b.begin[key] != p) continue;
    counts[key] += b.end[key] - p;
    sums.places[key] = (b.marks[key] & kToSecond) != 0 ? 1 : 0;
    if (!square_sums || (cut && key == k)) continue;
    double sum = 0;
    for (std::uint32_t slab = 0; slab < slabs; ++slab) sum += scratch.piece_squares[slab * plan.rows + p];
    square_sums[key] += sum;
  }
  if (!square_sums || !cut) return;  // the whole block
  const std::uint32_t pieces = (end - 1) / length - run + 1;
  double sum = 0;
  for (std::uint32_t i = threadIdx.x; i < pieces * slabs; i += kBlock) {
    const std::uint32_t piece = i / slabs, slab = i % slabs;
    sum += scratch.piece_squares[slab * plan.rows + (piece == 0 ? begin : (run + piece) * length)];
  }
  sum = block_sum(sum, shared_memory<double>());
  if (threadIdx.x == 0) square_sums[k] += sum;
}

__device__ void copy_values(const double* from, Index size, double* to) {
  if (!from) return;
  for (Index i = thread_id(); i < size; i += thread_count()) to[i] = from[i];
}

__global__ void save_state(StateArrays from, Index classes, Index dim, StateArrays to) {
  for (Index k = thread_id(); k < classes; k += thread_count()) to.counts[k] = from.counts[k];
  copy_values(from.square_sums, classes, to.square_sums);
  copy_values(from.scatter, dim * dim, to.scatter);
}

/// A block has whole classes: it reads their counts before it changes them.
__global__ void restore_state(StateArrays saved, Index classes, Index dim, const BatchRecord* record, StateArrays state,
                              std::uint32_t* places, double* shifts) {
  if (!record->shut) return;
  copy_values(saved.square_sums, classes, state.square_sums);
  copy_values(saved.scatter, dim * dim, state.scatter);
  for (Index k = blockIdx.x; k < classes; k += gridDim.x) {
    const Index count = saved.counts[k];
    if (state.counts[k] == count) continue;  // the whole block
    for (Index i = k * dim + threadIdx.x; count == 0 && i < (k + 1) * dim; i += kBlock) shifts[i] = 0;
    __syncthreads();
    if (threadIdx.x != 0) continue;
    state.counts[k] = count;
    places[k] ^= 1;
  }
}

constexpr int kGathered = 16;  // columns a lane: as many blocks in y as others have, see kMostColumns

/// Block (x, y): columns kWarp * kGathered y and on of a class each warp. Places stay as they are. Reads are on their
/// way before the first write: the compiler can't tell the arrays apart.
__global__ void gather_sums(Index classes, Index dim, TwoArrays sums) {
  const Index col = static_cast<Index>(blockIdx.y) * kWarp * kGathered + lane_id();
  for (Index k = static_cast<Index>(blockIdx.x) * kWarps + warp_in_block(); k < classes;
       k += static_cast<Index>(gridDim.x) * kWarps) {
    if (sums.places[k] == 0) continue;
    const double* from = sums.second + k * dim + col;
    double* to = sums.first + k * dim + col;
    double value[kGathered];
    for (int n = 0; n < kGathered; ++n)
      if (col + n * kWarp < dim) value[n] = from[n * kWarp];
    for (int n = 0; n < kGathered; ++n)
      if (col + n * kWarp < dim) to[n * kWarp] = value[n];
  }
}

/// Calls f(rows, layout).
template <class F>
void with_layout(const FeatureBlock& features, const F& f) {
  with_element(features.dtype, [&]<class T>(T) {
    const Rows<T> x = rows_of<T>(features);
    const bool aligned = x.aligned && x.cols % (16 / static_cast<Index>(sizeof(T))) == 0;
    if (x.cols <= kNarrow)
      aligned ? f(x, Layout<T, 1, true>{}) : f(x, Layout<T, 1, false>{});
    else
      aligned ? f(x, Layout<T, 4, true>{}) : f(x, Layout<T, 4, false>{});
  });
}

Grid grid_of(const SumPlan& plan, Index runs) {
  return {(runs * plan.slabs + kWarps - 1) / kWarps, 1, Index{kWarps} * kRingBytes};
}

}  // namespace

SumPlan plan_sums(Index rows, Index dim, Index warps, Index group_runs, Index fold, Index centred_bytes) {
  if (dim > kMostColumns)
    throw UsageError("class sums on CUDA take up to " + std::to_string(kMostColumns) + " dimensions, not " +
                     std::to_string(dim));
  const Index slab = dim <= kNarrow ? kPairStep : 4 * kPairStep;
  SumPlan plan{rows, dim, 0, 0, fold, 0, (dim + slab - 1) / slab, (dim + 1) / 2 * 2};
  const auto wanted = static_cast<std::uint64_t>(rows * plan.slabs / warps);
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
    if (target.halves.z) kernel = centre_and_sum<L, Beside::halves>;
    launch(stream, grid_of(plan, last_run - first_run), kernel, x, buckets, plan, first_run, last_run, scratch, target);
  });
}

void launch_write_halves(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets, const SumPlan& plan,
                         Index first_run, Index last_run, const double* shifts, const double* scale,
                         const Halves& halves, const int* misfit) {
  with_layout(features, [&]<class T, class L>(const Rows<T>& x, L) {
    launch(stream, grid_of(plan, last_run - first_run), write_halves<L>, x, buckets, plan, first_run, last_run, shifts,
           scale, halves, misfit);
  });
}

void launch_close_classes(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                          const BatchRecord* record, Index* counts, const TwoArrays& sums, double* square_sums) {
  launch(stream, {plan.runs / plan.fold, column_blocks(plan)}, fold_carries, buckets, plan, record, scratch.carry);
  launch(stream, {plan.runs, column_blocks(plan) + 1, kWarps * sizeof(double)}, close_classes, buckets, plan, scratch,
         record, counts, sums, square_sums);
}

void launch_save_state(cudaStream_t stream, const StateArrays& state, Index classes, Index dim,
                       const StateArrays& saved) {
  launch(stream, {blocks_for(std::max(classes, state.scatter ? dim * dim : 0), 4 * kBlock)}, save_state, state, classes,
         dim, saved);
}

void launch_restore_state(cudaStream_t stream, const StateArrays& saved, Index classes, Index dim,
                          const BatchRecord* record, const StateArrays& state, std::uint32_t* places, double* shifts) {
  launch(stream, {std::min(classes, kMaxIdleBlocks)}, restore_state, saved, classes, dim, record, state, places,
         shifts);
}

void launch_gather_sums(cudaStream_t stream, Index classes, Index dim, const TwoArrays& sums) {
  constexpr Index kColumns = Index{kWarp} * kGathered;
  launch(stream, {blocks_for(classes, kWarps), (dim + kColumns - 1) / kColumns}, gather_sums, classes, dim, sums);
  check(cudaMemsetAsync(sums.places, 0, static_cast<std::size_t>(classes) * sizeof *sums.places, stream));
}

}  // namespace ncollapse::cuda
