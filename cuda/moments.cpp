// add_batch: check everything, then per block of rows: put the rows together by class, give new classes their shift,
// centre and sum (class_sums.hpp), and add Z^T Z to the scatter chunk by chunk. Z is bounded; its
// chunks are whole runs, so the sums do not depend on them.
#include <algorithm>

#include "cuda/backend.hpp"
#include "cuda/class_sums.hpp"
#include "cuda/dense.hpp"

namespace ncollapse::cuda {
namespace {

/// Runs whose centred rows fit `bytes`, one at least.
Index runs_in(Index bytes, const SumPlan& plan) {
  const Index rows = bytes / (plan.dim * static_cast<Index>(sizeof(double)));
  return std::clamp<Index>(rows / plan.run, 1, plan.runs);
}

}  // namespace

/// Scratch for any of the plans. Made before the state is touched: where memory runs out, the state is as it was.
struct CudaBackend::SumBuffers {
  SumBuffers(Queue& queue, std::initializer_list<SumPlan> plans, Index centred_bytes, bool wants_centred) {
    Index carries = 0, pieces = 0, rows = 0, dim = 0;
    for (const SumPlan& plan : plans) {
      dim = plan.dim;
      carries = std::max(carries, plan.runs * 2 * dim);
      pieces = std::max(pieces, plan.slabs * plan.rows);
      rows = std::max(rows, std::min(runs_in(centred_bytes, plan) * plan.run, plan.rows));
    }
    carry = Buffer<double>(queue, carries);
    piece_squares = Buffer<double>(queue, pieces);
    if (wants_centred) centred = Buffer<double>(queue, rows * dim);
  }
  Buffer<double> carry, piece_squares, centred;
};

void CudaBackend::accumulate(MomentState& state, const FeatureBlock& features, const LabelBlock& labels,
                             BucketSorter& sorter, const SumBuffers& buffers) {
  const cudaStream_t stream = queue_->stream();
  const Index d = state.dim;
  const SumPlan plan = plan_sums(features.rows, d, features.dtype);
  const SumScratch scratch{buffers.carry.get(), buffers.piece_squares.get()};
  const Index runs_per_chunk = state.scatter ? runs_in(limits_.centred_bytes, plan) : plan.runs;
  double* centred = buffers.centred.get();

  const Buckets buckets = sorter.sort(labels);
  launch_take_shifts(stream, features, buckets, state.counts.data(), state.shifts.data());
  for (Index run = 0; run < plan.runs; run += runs_per_chunk) {
    const Index last = std::min(run + runs_per_chunk, plan.runs);
    launch_centre_and_sum(stream, features, buckets, plan, run, last, state.shifts.data(), state.scatter_scale.data(),
                          scratch, state.sums.data(), centred);
    const Index rows = std::min(last * plan.run, plan.rows) - run * plan.run;
    if (state.scatter) cuda::add_gram(*queue_, 1.0, centred, rows, d, state.scatter.data());
  }
  launch_add_carries(stream, buckets, plan, scratch, state.sums.data(), state.square_sums.data());
  launch_close_classes(stream, buckets, plan, scratch, state.counts.data(), state.square_sums.data());
}

BatchFaults CudaBackend::add_batch(MomentState& state, const MatrixView& features, const LabelView& labels) {
  if (features.rows == 0) return {};
  const DeviceGuard on(queue_->device());
  Batch batch(*queue_, limits_, features, labels);
  if (const BatchFaults faults = batch.find_faults(state.classes); faults.any()) return faults;
  BucketSorter sorter(*queue_, batch.block_rows(), state.classes);
  const Index last_rows = features.rows - (batch.blocks() - 1) * batch.block_rows();
  const SumBuffers buffers(
      *queue_,
      {plan_sums(batch.block_rows(), state.dim, features.dtype), plan_sums(last_rows, state.dim, features.dtype)},
      limits_.centred_bytes, static_cast<bool>(state.scatter));
  for (Index b = 0; b < batch.blocks(); ++b) {
    batch.load(b);
    accumulate(state, batch.features(), batch.labels(), sorter, buffers);
  }
  if (batch.from_host() && batch.blocks() > 1) queue_->wait();  // copies after the check may still be reading
  return {};
}

}  // namespace ncollapse::cuda
