// add_batch: check everything, then per block of rows: put the rows together by class, give new classes their shift,
// centre and sum (class_sums.hpp), and add Z^T Z to the scatter chunk by chunk. Z is bounded; its
// chunks are whole runs, so the sums do not depend on them.
#include <algorithm>

#include "cuda/backend.hpp"
#include "cuda/class_sums.hpp"
#include "cuda/dense.hpp"

namespace ncollapse::cuda {
void CudaBackend::accumulate(MomentState& state, const FeatureBlock& features, const LabelBlock& labels,
                             BucketSorter& sorter) {
  const cudaStream_t stream = queue_->stream();
  const Index d = state.dim;
  const SumPlan plan = plan_sums(features.rows, d, features.dtype);
  const Buffer<double> carry(*queue_, plan.runs * 2 * d), piece_squares(*queue_, plan.slabs * plan.rows);
  const SumScratch scratch{carry.get(), piece_squares.get()};

  Index runs_per_chunk = plan.runs;
  Buffer<double> centred;
  if (state.scatter) {
    const Index chunk_rows = limits_.centred_bytes / (d * static_cast<Index>(sizeof(double)));
    runs_per_chunk = std::clamp<Index>(chunk_rows / plan.run, 1, plan.runs);
    centred = Buffer<double>(*queue_, std::min(runs_per_chunk * plan.run, plan.rows) * d);
  }

  const Buckets buckets = sorter.sort(labels);
  launch_take_shifts(stream, features, buckets, state.counts.data(), state.shifts.data());
  for (Index run = 0; run < plan.runs; run += runs_per_chunk) {
    const Index last = std::min(run + runs_per_chunk, plan.runs);
    launch_centre_and_sum(stream, features, buckets, plan, run, last, state.shifts.data(), state.scatter_scale.data(),
                          scratch, state.sums.data(), centred.get());
    const Index rows = std::min(last * plan.run, plan.rows) - run * plan.run;
    if (state.scatter) cuda::add_gram(*queue_, 1.0, centred.get(), rows, d, state.scatter.data());
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
  for (Index b = 0; b < batch.blocks(); ++b) {
    batch.load(b);
    accumulate(state, batch.features(), batch.labels(), sorter);
  }
  if (batch.from_host() && batch.blocks() > 1) queue_->wait();  // copies after the check may still be reading
  return {};
}

}  // namespace ncollapse::cuda
