#include <bit>

#include "cuda/class_sums.hpp"
#include "cuda/device.hpp"

namespace ncollapse::cuda {
namespace {

constexpr int kCarryColumns = kWarp;  // columns of a block of add_carries; its kWarps warps share the runs

/// A warp looks at 32 positions and copies, one after the other, the rows that begin a new class.
template <class T>
__global__ void take_shifts(Rows<T> x, Buckets b, const Index* counts, double* shifts) {
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

template <class T>
__global__ void centre_and_sum(Rows<T> x, Buckets b, SumPlan plan, Index first_run, Index last_run,
                               const double* shifts, const double* scale, SumScratch scratch, double* sums, double* z) {
  constexpr int V = kPacket<T>;
  const Index run = first_run + warp_id() / plan.slabs, slab = warp_id() % plan.slabs;
  if (run >= last_run) return;  // the whole warp
  const Index d = plan.dim, col = (slab * kWarp + lane_id()) * V;
  const Index start = run * plan.run, stop = min(start + plan.run, plan.rows);
  const Index z_start = first_run * plan.run;

  for (Index p = start; p < stop;) {
    const Index k = b.keys[p], begin = b.begin[k], end = b.end[k], piece_end = min(end, stop);
    double shift[V], sum[V], square = 0;
    for (int v = 0; v < V; ++v) {
      shift[v] = col + v < d ? shifts[k * d + col + v] : 0;
      sum[v] = 0;
    }
    const double factor = scale ? scale[k] : 1;
    for (Index q = p; q < piece_end; ++q) {
      const Packet<T> packet = x.read(x.row(b.rows[q]), col);
      for (int v = 0; v < V; ++v) {
        if (col + v >= d) continue;
        const double centred = to_double(packet.value[v]) - shift[v];
        sum[v] += centred;
        square += centred * centred;
        if (z) z[(q - z_start) * d + col + v] = factor * centred;
      }
    }

    const bool from_before = begin<start, goes_on = end> stop;
    double* carried = scratch.carry + (run * 2 + (from_before ? 0 : 1)) * d;
    for (int v = 0; v < V; ++v) {
      if (col + v >= d) continue;
      if (from_before || goes_on)
        carried[col + v] = sum[v];
      else
        sums[k * d + col + v] += sum[v];
    }
    square = warp_sum(square);
    if (lane_id() == 0) scratch.piece_squares[slab * plan.rows + p] = square;
    p = piece_end;
  }
}

/// Block x = the run in which a class begins that does not end there; y = columns, the last y = the squares.
/// Each warp adds a contiguous share of the pieces, then the shares are added in order: both depend on the number of
/// pieces only.
__global__ void add_carries(Buckets b, SumPlan plan, SumScratch scratch, double* sums, double* square_sums) {
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

__global__ void close_classes(Buckets b, SumPlan plan, SumScratch scratch, Index* counts, double* square_sums) {
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

}  // namespace

SumPlan plan_sums(Index rows, Index dim, Dtype dtype) {
  constexpr Index kWarpsWanted = 16384;  // two rounds of warps on the largest GPUs
  const Index packet = with_element(dtype, []<class T>(T) { return Index{kPacket<T>}; });
  SumPlan plan{rows, dim, 0, 0, (dim + packet * kWarp - 1) / (packet * kWarp)};
  const auto share = static_cast<std::uint64_t>(rows * plan.slabs / kWarpsWanted);
  plan.run = std::clamp<Index>(static_cast<Index>(std::bit_floor(share)), 32, 512);
  plan.runs = (rows + plan.run - 1) / plan.run;
  return plan;
}

void launch_take_shifts(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets, const Index* counts,
                        double* shifts) {
  with_element(features.dtype, [&]<class T>(T) {
    launch(stream, {blocks_for(features.rows)}, take_shifts<T>, rows_of<T>(features), buckets, counts, shifts);
  });
}

void launch_centre_and_sum(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets,
                           const SumPlan& plan, Index first_run, Index last_run, const double* shifts,
                           const double* scale, const SumScratch& scratch, double* sums, double* z) {
  const Index warps = (last_run - first_run) * plan.slabs;
  with_element(features.dtype, [&]<class T>(T) {
    launch(stream, {(warps + kWarps - 1) / kWarps}, centre_and_sum<T>, rows_of<T>(features), buckets, plan, first_run,
           last_run, shifts, scale, scratch, sums, z);
  });
}

void launch_add_carries(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                        double* sums, double* square_sums) {
  const Index column_blocks = (plan.dim + kCarryColumns - 1) / kCarryColumns;
  launch(stream, {plan.runs - 1, column_blocks + 1, kBlock * sizeof(double)}, add_carries, buckets, plan, scratch, sums,
         square_sums);
}

void launch_close_classes(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                          Index* counts, double* square_sums) {
  launch(stream, {blocks_for(buckets.size)}, close_classes, buckets, plan, scratch, counts, square_sums);
}

}  // namespace ncollapse::cuda
