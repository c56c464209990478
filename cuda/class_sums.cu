#include <bit>
#include <cfloat>

#include "cuda/class_sums.hpp"
#include "cuda/device.hpp"

namespace ncollapse::cuda {
namespace {

constexpr int kRowsAhead = 4;         // loads of a lane in flight
constexpr int kCarryColumns = kWarp;  // columns of a block of add_carries; its kWarps warps share the runs

/// A warp looks at 32 positions and copies, one after the other, the rows that begin a new class.
template <class T>
__global__ void take_shifts(Rows<T> x, Buckets b, const Index* counts, const BatchRecord* record, double* shifts) {
  if (record->shut) return;
  for (Index base = warp_id() * kWarp; base < b.size; base += warp_count() * kWarp) {
    const Index p = base + lane_id();
    const bool begins = p < b.size && b.begin[b.keys[p]] == p && counts[b.keys[p]] == 0;
    for (unsigned found = __ballot_sync(kAllLanes, begins); found != 0; found &= found - 1) {
      const Index head = base + __ffs(static_cast<int>(found)) - 1;
      const T* row = x.row(b.rows[head]);
      double* shift = shifts + static_cast<Index>(b.keys[head]) * x.cols;
      for (Index col = lane_id(); col < x.cols; col += kWarp) shift[col] = to_double(row[col]);
    }
  }
}

/// Counts the NaN and infinite values of positions first .. last - 1 in this lane's columns.
template <class T>
__device__ void report_nonfinite(const Rows<T>& x, const Buckets& b, Index first, Index last, Index col,
                                 const SumTarget& target) {
  Count found = 0, minimum = ~Count{0};
  for (Index q = first; q < last; ++q)
    for (Index j = col; j < min(col + kPacket<T>, x.cols); ++j) {
      if (fabs(to_double(x.row(b.rows[q])[j])) <= DBL_MAX) continue;
      ++found;
      minimum = min(minimum, static_cast<Count>((target.first_row + b.rows[q]) * x.cols + j));
    }
  if (found == 0) return;  // finite values, whose squares are too large for a double
  atomicAdd(&target.record->nonfinite, found);
  atomicMin(&target.record->first_nonfinite, minimum);
}

/// What is made beside the sums.
enum class Beside { nothing, rows, columns };

/// Where only sums are made, memory is the limit: two blocks a multiprocessor then keep enough bytes in flight.
template <class T, Beside kBeside>
__global__ void __launch_bounds__(kBlock, kBeside == Beside::nothing ? 2 : 1)
    centre_and_sum(Rows<T> x, Buckets b, SumPlan plan, Index first_run, Index last_run, SumScratch scratch,
                   SumTarget target) {
  constexpr int V = kPacket<T>;
  const Index run = first_run + warp_id() / plan.slabs, slab = warp_id() % plan.slabs;
  if (run >= last_run) return;  // the whole warp
  const bool shut = target.record->shut != 0;
  const Index d = plan.dim, col = (slab * kWarp + lane_id()) * V;
  const Index start = run * plan.run, stop = min(start + plan.run, plan.rows);
  // Of position p: z + (p - start) d.
  double* z = kBeside == Beside::rows ? target.z + (start - first_run * plan.run) * d + col : nullptr;

  double columns[V];
  if constexpr (kBeside == Beside::columns)
    for (int v = 0; v < V; ++v) columns[v] = 0;
  for (Index p = start; p < stop;) {
    const Index k = b.keys[p], begin = b.begin[k], end = b.end[k], piece_end = min(end, stop);
    double shift[V], sum[V], square = 0;
    for (int v = 0; v < V; ++v) {
      shift[v] = col + v < d ? target.shifts[k * d + col + v] : 0;
      sum[v] = 0;
    }
    const double factor = target.scale ? target.scale[k] : 1;
    for (Index q = p; q < piece_end; q += kWarp) {
      const int rows = static_cast<int>(min(piece_end - q, Index{kWarp}));
      const std::uint32_t mine = lane_id() < rows ? b.rows[q + lane_id()] : 0;  // one load for 32 row numbers
      for (int i = 0; i < rows; i += kRowsAhead) {
        Packet<T> packet[kRowsAhead];
        for (int a = 0; a < kRowsAhead; ++a) {
          const Index row = __shfl_sync(kAllLanes, mine, min(i + a, rows - 1));
          packet[a] = read_once(x, x.row(row), col);
        }
        for (int a = 0; a < kRowsAhead; ++a) {
          if (i + a >= rows) continue;
          for (int v = 0; v < V; ++v) {
            if (col + v >= d) continue;
            const double centred = to_double(packet[a].value[v]) - shift[v], scaled = factor * centred;
            sum[v] += centred;
            square += centred * centred;
            if constexpr (kBeside == Beside::columns) columns[v] += scaled * scaled;
            if constexpr (kBeside == Beside::rows) z[(q - start + i + a) * d + v] = shut ? 0 : scaled;
          }
        }
      }
    }
    if (target.watch && !shut && !(square <= DBL_MAX)) report_nonfinite(x, b, p, piece_end, col, target);

    const bool from_before = begin<start, goes_on = end> stop;
    double* carried = scratch.carry + (run * 2 + (from_before ? 0 : 1)) * d;
    for (int v = 0; v < V; ++v) {
      if (col + v >= d) continue;
      if (from_before || goes_on)
        carried[col + v] = sum[v];
      else if (!shut)
        target.sums[k * d + col + v] += sum[v];
    }
    square = warp_sum(square);
    if (lane_id() == 0) scratch.piece_squares[slab * plan.rows + p] = square;
    p = piece_end;
  }
  if constexpr (kBeside == Beside::columns)
    for (int v = 0; v < V; ++v)
      if (col + v < d) scratch.column_squares[(run - first_run) * d + col + v] = columns[v];
}

/// Block x = the run in which a class begins that does not end there; y = columns, the last y = the squares.
/// Each warp adds a contiguous share of the pieces, then the shares are added in order: both depend on the number of
/// pieces only.
__global__ void add_carries(Buckets b, SumPlan plan, SumScratch scratch, const BatchRecord* record, double* sums,
                            double* square_sums) {
  if (record->shut) return;
  const Index run = blockIdx.x, stop = (run + 1) * plan.run, d = plan.dim;
  if (stop >= plan.rows) return;
  const Index k = b.keys[stop - 1], begin = b.begin[k], end = b.end[k];
  if (end <= stop || begin < run * plan.run) return;  // the whole block
  const Index pieces = (end - 1) / plan.run - run + 1;
  double* shared = shared_memory<double>();

  if (blockIdx.y + 1 < gridDim.y) {
    const Index col = static_cast<Index>(blockIdx.y) * kCarryColumns + lane_id();
    double sum = 0;
    if (col < d) {
      const Index share = warp_in_block();
      for (Index i = share * pieces / kWarps; i < (share + 1) * pieces / kWarps; ++i)
        sum += scratch.carry[((run + i) * 2 + (i == 0 ? 1 : 0)) * d + col];
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (warp_in_block() == 0 && col < d) {
      double total = 0;
      for (int share = 0; share < kWarps; ++share) total += shared[share * kWarp + lane_id()];
      sums[k * d + col] += total;
    }
  } else if (square_sums) {
    double sum = 0;
    for (Index i = threadIdx.x; i < pieces * plan.slabs; i += kBlock) {
      const Index piece = i / plan.slabs, slab = i % plan.slabs;
      const Index position = piece == 0 ? begin : (run + piece) * plan.run;
      sum += scratch.piece_squares[slab * plan.rows + position];
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) square_sums[k] += sum;
  }
}

__global__ void close_classes(Buckets b, SumPlan plan, SumScratch scratch, const BatchRecord* record, Index* counts,
                              double* square_sums) {
  if (record->shut) return;
  for (Index base = warp_id() * kWarp; base < b.size; base += warp_count() * kWarp) {
    const Index p = base + lane_id();
    bool inside = false;
    if (p < b.size && b.begin[b.keys[p]] == p) {
      const Index k = b.keys[p], end = b.end[k];
      counts[k] += end - p;
      inside = p / plan.run == (end - 1) / plan.run;
    }
    if (!square_sums) continue;  // the same for all
    for (unsigned found = __ballot_sync(kAllLanes, inside); found != 0; found &= found - 1) {
      const Index head = base + __ffs(static_cast<int>(found)) - 1;
      double sum = 0;
      for (Index slab = lane_id(); slab < plan.slabs; slab += kWarp)
        sum += scratch.piece_squares[slab * plan.rows + head];
      sum = warp_sum(sum);
      if (lane_id() == 0) square_sums[b.keys[head]] += sum;
    }
  }
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

}  // namespace

SumPlan plan_sums(Index rows, Index dim, Dtype dtype) {
  const Index packet = with_element(dtype, []<class T>(T) { return Index{kPacket<T>}; });
  SumPlan plan{rows, dim, 0, 0, (dim + packet * kWarp - 1) / (packet * kWarp)};
  plan.run = std::clamp<Index>(static_cast<Index>(std::bit_floor(static_cast<std::uint64_t>(rows / 4096))), 32, 512);
  plan.runs = (rows + plan.run - 1) / plan.run;
  return plan;
}

void launch_take_shifts(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets, const Index* counts,
                        const BatchRecord* record, double* shifts) {
  with_element(features.dtype, [&]<class T>(T) {
    launch(stream, {blocks_for(features.rows)}, take_shifts<T>, rows_of<T>(features), buckets, counts, record, shifts);
  });
}

void launch_centre_and_sum(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets,
                           const SumPlan& plan, Index first_run, Index last_run, const SumScratch& scratch,
                           const SumTarget& target) {
  const Index warps = (last_run - first_run) * plan.slabs;
  with_element(features.dtype, [&]<class T>(T) {
    auto* kernel = centre_and_sum<T, Beside::nothing>;
    if (target.z) kernel = centre_and_sum<T, Beside::rows>;
    if (scratch.column_squares) kernel = centre_and_sum<T, Beside::columns>;
    launch(stream, {(warps + kWarps - 1) / kWarps}, kernel, rows_of<T>(features), buckets, plan, first_run, last_run,
           scratch, target);
  });
}

void launch_add_carries(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                        const BatchRecord* record, double* sums, double* square_sums) {
  const Index column_blocks = (plan.dim + kCarryColumns - 1) / kCarryColumns;
  launch(stream, {plan.runs - 1, column_blocks + 1, kBlock * sizeof(double)}, add_carries, buckets, plan, scratch,
         record, sums, square_sums);
}

void launch_close_classes(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                          const BatchRecord* record, Index* counts, double* square_sums) {
  launch(stream, {blocks_for(buckets.size)}, close_classes, buckets, plan, scratch, record, counts, square_sums);
}

void launch_copy_state(cudaStream_t stream, const StateArrays& from, Index classes, Index dim, const StateArrays& to) {
  launch(stream, {copy_blocks(classes, dim)}, copy_state, from, classes, dim, to, nullptr, nullptr);
}

void launch_restore_state(cudaStream_t stream, const StateArrays& snapshot, Index classes, Index dim,
                          const BatchRecord* record, const StateArrays& state, double* shifts) {
  launch(stream, {copy_blocks(classes, dim)}, copy_state, snapshot, classes, dim, state, record, shifts);
}

}  // namespace ncollapse::cuda
