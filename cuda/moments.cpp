// add_batch: per block of rows, put the rows together by class, centre and sum (class_sums.hpp), and add Z^T Z to the
// scatter chunk by chunk (scatter.hpp). Chunks are whole groups of runs, so the sums do not depend on them. Where there
// are several, a second stream gathers one into Z while the first multiplies the one before, with two Z taken in turn.
// Both do the same work in the same order as one stream would: no bit depends on it.
//
// Nothing here waits for the device, and after the first batch of a shape nothing is allocated: the scratch stays with
// the state, as does the record of what is wrong (validate.hpp), whose copy to the host is looked at by later calls. So
// a batch in device memory can be captured in a CUDA graph.
//
// A batch must be in the state as a whole or not at all, yet should be read once only. Labels are always checked first.
// Features are checked in a reading of their own, or (is_watched) the pass that adds them up also watches for what is
// not finite, and in the end the state is restored if there was any. The sums that it needs then are still there: a
// class has them in one of two arrays, and the batch writes the new ones to the other (buckets.hpp). They are gathered
// in the state's own array before anybody reads it (pending_faults); and, as what a graph does and when is not seen
// here, at the end of each batch once there is one. Neither way changes a bit of the result.
//
// Batches of few classes, and of few rows, need none of that (few_classes.hpp): add_few.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "cuda/backend.hpp"
#include "cuda/class_sums.hpp"
#include "cuda/dense.hpp"
#include "cuda/few_classes.hpp"
#include "cuda/narrow.hpp"
#include "cuda/scatter.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cuda {
namespace {

ScatterPlan plan_scatter(const SumPlan& sums, Precision precision, const Limits& limits) {
  constexpr Index kMostSlices = 64, kMostRows = Index{1} << 18;
  // Of the exact product: cuBLAS is fastest with short slices. Where dimensions are few, adding up so many takes longer
  // than that saves, if tiles and long slices together fill a GPU.
  constexpr Index kShortSlice = 1024, kFewColumns = 512, kTile = 128, kEnoughTiles = 192;
  ScatterPlan plan{};
  plan.fast = precision == Precision::fast;
  plan.dim = sums.dim;
  plan.padded = plan.fast ? padded_columns(sums.dim) : sums.pitch;
  Index rows = limits.centred_bytes / (plan.padded * (plan.fast ? 2 : 8));
  if (plan.fast || sums.dim <= limits.wide_dim) {
    plan.slice_rows = limits.slice_rows;
    const Index across = (sums.dim + kTile - 1) / kTile;
    const Index slices = std::min(std::min(rows, sums.rows) / plan.slice_rows, kMostSlices);
    if (!plan.fast && (sums.dim > kFewColumns || across * across * slices < kEnoughTiles))
      plan.slice_rows = std::min(plan.slice_rows, kShortSlice);
    // T itself is read and written once a chunk, so several slices are worth their memory where it is large.
    const Index partial_bytes = Index{plan.fast ? 512 : 256} << 20;
    const Index square = plan.padded * plan.padded * (plan.fast ? 4 : 8);
    const Index most = std::clamp<Index>(partial_bytes / square, 1, kMostSlices);
    rows = std::clamp<Index>(rows, 1, most * plan.slice_rows);
  }
  const Index groups = std::max<Index>(std::min(rows, kMostRows) / sums.group, 1);
  plan.runs_per_chunk = std::min(groups * (sums.group / sums.run), sums.runs);
  if (plan.slice_rows > 0) plan.slices = (plan.chunk_rows(sums) + plan.slice_rows - 1) / plan.slice_rows;
  return plan;
}

}  // namespace

/// How a batch of few classes or rows is added; what is not, has no chunks.
struct FewBatch {
  FewPlan sums{};
  bool few_rows = false;  ///< one chunk: its products are added to the scatter at once
  ScatterPlan scatter{};  ///< else: slices for promote

  explicit operator bool() const { return sums.chunks > 0; }
};

namespace {

/// Depends on the shape and the limits only. Not taken: batches so large that the partial sums could be, those of
/// several blocks of rows, scatters of halves, and those that go through several chunks of Z or one DSYRK.
FewBatch plan_few_batch(const MomentState& state, const Batch& batch, const MatrixView& features,
                        const Limits& limits) {
  const Index K = state.classes, d = state.dim;
  if (limits.few_classes == 0 || K > kMostFewClasses || d > kMostFewColumns || batch.blocks() > 1) return {};
  const bool full = static_cast<bool>(state.scatter);
  if (full && state.precision == Precision::fast) return {};
  const Index rows = features.rows;
  FewBatch few{plan_few(rows, d, K, limits.few_rows, limits.few_blocks)};
  few.few_rows = few.sums.chunks == 1;
  if (few.few_rows) return few;
  if (K > limits.few_classes || rows * d * size_of(features.dtype) > limits.few_bytes) return {};
  if (!full) return few;
  const SumPlan plan = plan_sums(rows, d, limits.sum_warps, limits.group_runs, limits.fold, limits.centred_bytes);
  few.scatter = plan_scatter(plan, state.precision, limits);
  if (few.scatter.slices == 0 || few.scatter.runs_per_chunk < plan.runs) return {};
  return few;
}

/// Elements of every scratch array for batches like this one.
struct ScratchSizes {
  Index few_classes = 0, few_shifts = 0, few_counts = 0, few_partial = 0, few_squares = 0;
  Index rows = 0, classes = 0, carry = 0, squares = 0, columns = 0, z_bytes = 0, partial_bytes = 0, dim = 0;
  Index other_z_bytes = 0;                     ///< of the second Z; 0: one chunk is all
  Index saved_classes = 0, saved_scatter = 0;  ///< 0: nothing is saved

  void take(const ScratchSizes& other) {
    for (const auto size : {&ScratchSizes::rows, &ScratchSizes::classes, &ScratchSizes::carry, &ScratchSizes::squares,
                            &ScratchSizes::columns, &ScratchSizes::z_bytes, &ScratchSizes::partial_bytes,
                            &ScratchSizes::dim, &ScratchSizes::other_z_bytes, &ScratchSizes::saved_classes,
                            &ScratchSizes::saved_scatter, &ScratchSizes::few_classes, &ScratchSizes::few_shifts,
                            &ScratchSizes::few_counts, &ScratchSizes::few_partial, &ScratchSizes::few_squares})
      this->*size = std::max(this->*size, other.*size);
  }
  bool operator==(const ScratchSizes&) const = default;
};

ScratchSizes sizes_of(const FewBatch& few, bool full) {
  const FewPlan& plan = few.sums;
  ScratchSizes sizes;
  sizes.rows = 1;  // of a sorter that is not asked
  sizes.classes = sizes.few_classes = plan.classes;
  sizes.few_shifts = plan.classes * plan.pitch;
  sizes.few_counts = plan.chunks * plan.classes;
  sizes.few_partial = plan.chunks * plan.classes * plan.pitch;
  sizes.few_squares = plan.chunks * plan.classes * plan.slabs;
  if (!full) return sizes;
  sizes.z_bytes = 8 * plan.rows * plan.pitch;
  sizes.partial_bytes = few.scatter.partial_bytes();
  return sizes;
}

/// What a chunk's product needs of its gathering.
struct Chunk {
  Chunk(Queue& queue, Index dim, Index z_bytes)
      : squares(queue, dim), exponents(queue, dim), misfit(queue, 1), z(queue, z_bytes) {}
  Buffer<double> squares;
  Buffer<int> exponents, misfit;
  Buffer<unsigned char> z;
};

struct Scratch {
  Scratch(Queue& queue, const ScratchSizes& wanted)
      : sizes(wanted),
        sorter(queue, wanted.rows, wanted.classes),
        carry(queue, wanted.carry),
        piece_squares(queue, wanted.squares),
        column_squares(queue, wanted.columns),
        expected_exponents(queue, wanted.dim),
        chunks{{queue, wanted.dim, wanted.z_bytes}, {queue, wanted.dim, wanted.other_z_bytes}},
        partial(queue, wanted.partial_bytes),
        counts(queue, wanted.saved_classes),
        square_sums(queue, wanted.saved_classes),
        scatter(queue, wanted.saved_scatter),
        few_first(queue, wanted.few_classes),
        few_fresh(queue, wanted.few_classes),
        few_counts(queue, wanted.few_counts),
        few_shifts(queue, wanted.few_shifts),
        few_partial(queue, wanted.few_partial),
        few_squares(queue, wanted.few_squares) {}

  FewScratch few() const {
    return {few_first.get(), few_fresh.get(), few_counts.get(), few_shifts.get(), few_partial.get(), few_squares.get()};
  }

  ScratchSizes sizes;
  BucketSorter sorter;
  Buffer<double> carry, piece_squares, column_squares;
  Buffer<int> expected_exponents;
  Chunk chunks[2];
  Buffer<unsigned char> partial;
  Buffer<Index> counts;  // saved, as the next two
  Buffer<double> square_sums, scatter;
  Buffer<std::uint32_t> few_first, few_fresh, few_counts;
  Buffer<double> few_shifts, few_partial, few_squares;
};

StateArrays arrays_of(const MomentState& state) {
  return {state.counts.data(), state.square_sums.data(), state.scatter.data()};
}

/// Whether a batch is watched while it is added: where to save the state, and to gather its sums if that comes after
/// each batch, moves fewer bytes than to look through the features before, and a second array is not too large.
bool is_watched(const MomentState& state, const MatrixView& features, const Limits& limits, bool gathered) {
  const Index K = state.classes, d = state.dim;
  const Index moved = 2 * (16 * K + (state.scatter ? 8 * d * d : 0) + (gathered ? 8 * K * d : 0));
  return moved <= features.rows * d * size_of(features.dtype) && 8 * K * d <= limits.second_sums_bytes;
}

}  // namespace

/// What a state has beside its arrays.
struct CudaBackend::Workspace {
  Workspace(std::shared_ptr<Queue> on, Index classes)
      : queue(std::move(on)),
        record(*queue, 1),
        places(*queue, std::vector<std::uint32_t>(static_cast<std::size_t>(classes))),
        seen(1),
        gathering(nullptr, Stream::kBeside) {
    reset(0);
  }
  ~Workspace() {
    if (on_its_way) cudaStreamSynchronize(queue->stream());  // `seen` goes
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// Of watched batches. False if there is no room, from then on: it does without, and more slowly.
  bool make_second_sums(Index size) {
    if (has_room && second_sums.size() == 0) try {
        second_sums = Buffer<double>(*queue, size);
      } catch (const MemoryError&) {
        has_room = false;
      }
    return has_room;
  }
  TwoArrays sums_of(const MomentState& state) const { return {state.sums.data(), second_sums.get(), places.get()}; }
  /// All sums of the state are in its own array.
  void gather_sums(const MomentState& state) {
    if (!some_in_second) return;
    launch_gather_sums(queue->stream(), state.classes, state.dim, sums_of(state));
    some_in_second = queue->capturing();  // in a capture nothing was done yet
  }
  /// The record is open again after `batches` good ones.
  void reset(Index batches) {
    BatchRecord fresh;
    fresh.batch = batches;
    queue->upload(record.get(), &fresh, record.bytes());
    queue->wait();
    on_its_way = false;
  }

  std::shared_ptr<Queue> queue;  // first: what follows frees its memory there
  Buffer<BatchRecord> record;
  Buffer<std::uint32_t> places;  ///< of sums, see TwoArrays
  Buffer<double> second_sums;    ///< [K x d], made for the first watched batch
  bool has_room = true;          ///< for these
  bool some_in_second = false;   ///< some classes may have their sums there
  Pinned<BatchRecord> seen;      ///< the last copy of the record
  Event arrived;                 ///< of that copy
  bool on_its_way = false;
  bool all_seen = false;  ///< every class has samples, and will have: none needs a shift
  Stream gathering;
  Event begun;                       ///< the block may be gathered
  Event gathered[2], multiplied[2];  ///< of the chunks in turn
  std::shared_ptr<Scratch> scratch;
  /// A captured graph goes on using the scratch that it was captured with.
  std::vector<std::shared_ptr<Scratch>> captured;
};

CudaBackend::Workspace& CudaBackend::workspace(MomentState& state) {
  if (!state.workspace) {
    if (queue_->capturing())
      throw UsageError("the first batch of an accumulator cannot be captured in a CUDA graph",
                       "add a batch of the same shape once before");
    if (state.precision == Precision::fast) require_exact_halves(*queue_, "use the exact precision");
    state.workspace = std::make_shared<Workspace>(queue_, state.classes);
  }
  return *static_cast<Workspace*>(state.workspace.get());
}

void CudaBackend::add_block(MomentState& state, const Batch& batch, Index first_row, bool watch, Workspace& space) {
  const cudaStream_t stream = queue_->stream();
  const FeatureBlock& features = batch.features();
  Scratch& scratch = *space.scratch;
  BatchRecord* record = space.record.get();
  const Index d = state.dim;
  const SumPlan plan =
      plan_sums(features.rows, d, limits_.sum_warps, limits_.group_runs, limits_.fold, limits_.centred_bytes);
  const bool full = static_cast<bool>(state.scatter);
  const ScatterPlan scatter =
      full ? plan_scatter(plan, state.precision, limits_) : ScatterPlan{false, d, plan.pitch, 0, 0, plan.runs};
  const SumScratch sums{scratch.carry.get(), scratch.piece_squares.get(),
                        scatter.fast ? scratch.column_squares.get() : nullptr};
  if (batch.blocks() > 1)  // else that was done when they were checked
    launch_find_bad_labels(stream, batch.labels(), first_row, state.classes, record, scratch.sorter.keys(),
                           scratch.sorter.rows());
  const Buckets buckets = scratch.sorter.sort(
      features.rows, {state.counts.data(), watch ? scratch.counts.get() : nullptr, space.places.get()});
  // Only events of this block are waited for: a captured stream must not wait for what was recorded before the capture.
  if (scatter.fast)
    launch_expect_exponents(stream, state.scatter.data(), state.counts.data(), state.classes, d,
                            scratch.expected_exponents.get());
  const bool two_streams = scatter.runs_per_chunk < plan.runs;
  const cudaStream_t gathering = two_streams ? space.gathering.get() : stream;
  const WaitOnException guard(space.gathering.get());
  if (two_streams) {
    space.begun.record(stream);
    space.begun.hold(gathering);
  }
  for (Index run = 0, number = 0; run < plan.runs; run += scatter.runs_per_chunk, ++number) {
    const Index last = std::min(run + scatter.runs_per_chunk, plan.runs), first = run * plan.run;
    const Index rows = std::min(last * plan.run, plan.rows) - first, turn = number % 2;
    const Chunk& chunk = scratch.chunks[turn];
    auto* z = full && !scatter.fast ? reinterpret_cast<double*>(chunk.z.get()) : nullptr;
    auto* half = scatter.fast ? reinterpret_cast<Half*>(chunk.z.get()) : nullptr;
    if (number >= 2) space.multiplied[turn].hold(gathering);
    launch_centre_and_sum(gathering, features, buckets, plan, run, last, sums,
                          {state.shifts.data(),
                           state.scatter_scale.data(),
                           space.sums_of(state),
                           z,
                           {half, scatter.padded, scratch.expected_exponents.get()},
                           record,
                           watch});
    if (scatter.fast) {
      launch_fold_columns(gathering, sums.column_squares, last - run, d, rows, chunk.squares.get(),
                          chunk.exponents.get());
      launch_choose_exponents(gathering, chunk.squares.get(), d, record, chunk.exponents.get(),
                              scratch.expected_exponents.get(), chunk.misfit.get());
      launch_write_halves(gathering, features, buckets, plan, run, last, state.shifts.data(),
                          state.scatter_scale.data(), {half, scatter.padded, chunk.exponents.get()},
                          chunk.misfit.get());
    }
    if (two_streams) {
      space.gathered[turn].record(gathering);
      space.gathered[turn].hold(stream);
    }
    if (!full) continue;
    const Index slices = scatter.slices > 0 ? (rows + scatter.slice_rows - 1) / scatter.slice_rows : 0;
    if (scatter.fast) {
      auto* partial = reinterpret_cast<float*>(scratch.partial.get());
      gram_slices(*queue_, half, rows, scatter.padded, scatter.slice_rows, partial);
      launch_promote(stream, partial, slices, d, scatter.padded, chunk.exponents.get(), chunk.squares.get(), record,
                     state.scatter.data());
    } else if (slices > 0) {
      auto* partial = reinterpret_cast<double*>(scratch.partial.get());
      gram_slices(*queue_, z, rows, scatter.padded, scatter.slice_rows, partial);
      launch_promote(stream, partial, slices, d, scatter.padded, nullptr, nullptr, record, state.scatter.data());
    } else {
      cuda::add_gram(*queue_, 1.0, z, scatter.padded, rows, d, state.scatter.data());  // 0 where the gate is shut
    }
    if (two_streams) space.multiplied[turn].record(stream);
  }
  launch_close_classes(stream, buckets, plan, sums, record, state.counts.data(), space.sums_of(state),
                       state.square_sums.data());
  if (watch) launch_find_nonfinite(stream, features, first_row, record, true);
}

void CudaBackend::add_few(MomentState& state, Batch& batch, const FewBatch& few, Workspace& space) {
  const cudaStream_t stream = queue_->stream();
  Scratch& memory = *space.scratch;
  const FewScratch scratch = memory.few();
  BatchRecord* record = space.record.get();
  const FewTarget target{state.counts.data(), state.shifts.data(),      state.scatter_scale.data(),
                         state.sums.data(),   state.square_sums.data(), record};
  auto* z = state.scatter ? reinterpret_cast<double*>(memory.chunks[0].z.get()) : nullptr;
  batch.load(0);
  if (!few.few_rows && !space.all_seen)
    launch_survey_classes(stream, batch.labels(), few.sums, target.counts, record, scratch.first);
  launch_sum_chunks(stream, batch.features(), batch.labels(), few.sums, scratch, target, z);
  launch_fold_chunks(stream, batch.labels(), few.sums, scratch, target);
  if (z == nullptr) return;
  if (few.few_rows) return launch_add_products(stream, few.sums, z, record, state.scatter.data());
  auto* partial = reinterpret_cast<double*>(memory.partial.get());
  const Index rows = few.sums.rows, slices = (rows + few.scatter.slice_rows - 1) / few.scatter.slice_rows;
  gram_slices(*queue_, z, rows, few.sums.pitch, few.scatter.slice_rows, partial);
  launch_promote(stream, partial, slices, state.dim, few.sums.pitch, nullptr, nullptr, record, state.scatter.data());
}

BatchFaults CudaBackend::add_batch(MomentState& state, const MatrixView& features, const LabelView& labels) {
  if (features.rows == 0) return {};
  const Turn turn(*queue_);
  const bool capturing = queue_->capturing();
  Workspace& space = workspace(state);
  if (!capturing && space.on_its_way && space.arrived.happened()) {
    space.on_its_way = false;
    space.all_seen = space.all_seen || space.seen.get()->unseen == 0;
    if (space.seen.get()->shut) return pending_faults(state);
  }

  Batch batch(*queue_, *staging_, limits_, features, labels);
  const Index K = state.classes, d = state.dim, full = state.scatter ? 1 : 0;
  const FewBatch few = plan_few_batch(state, batch, features, limits_);
  const bool graphs = capturing || !space.captured.empty();
  bool watch = !few && space.has_room && is_watched(state, features, limits_, graphs);
  ScratchSizes sizes;
  if (few) {
    sizes = sizes_of(few, full != 0);
  } else {
    for (const Index rows : {batch.block_rows(), features.rows - (batch.blocks() - 1) * batch.block_rows()}) {
      const SumPlan plan =
          plan_sums(rows, d, limits_.sum_warps, limits_.group_runs, limits_.fold, limits_.centred_bytes);
      ScratchSizes wanted;
      wanted.rows = rows;
      wanted.classes = K;
      wanted.dim = d;
      wanted.carry = plan.runs * 2 * plan.pitch;
      wanted.squares = plan.slabs * rows;
      wanted.saved_classes = watch ? K : 0;
      wanted.saved_scatter = watch ? full * d * d : 0;
      if (full) {
        const ScatterPlan scatter = plan_scatter(plan, state.precision, limits_);
        wanted.columns = scatter.fast ? scatter.runs_per_chunk * d : 0;
        wanted.z_bytes = scatter.z_bytes(plan);
        if (scatter.runs_per_chunk < plan.runs) wanted.other_z_bytes = wanted.z_bytes;
        wanted.partial_bytes = scatter.partial_bytes();
      }
      sizes.take(wanted);
    }
  }
  if (space.scratch) sizes.take(space.scratch->sizes);
  const bool more = !space.scratch || sizes != space.scratch->sizes;
  if (capturing && (more || (watch && space.second_sums.size() == 0)))
    throw UsageError("a batch of " + std::to_string(features.rows) +
                         " rows needs more scratch memory than the ones "
                         "before, which cannot be had while a CUDA graph is captured",
                     "add a batch of the same shape once before");
  if (more) {
    space.scratch.reset();  // before the new one, or both would be held
    space.scratch = std::make_shared<Scratch>(*queue_, sizes);
  }
  watch = watch && space.make_second_sums(K * d);
  Scratch& scratch = *space.scratch;
  if (capturing && (space.captured.empty() || space.captured.back() != space.scratch))
    space.captured.push_back(space.scratch);

  BatchRecord* record = space.record.get();
  space.some_in_second = space.some_in_second || watch;
  if (few) {
    space.gather_sums(state);
    add_few(state, batch, few, space);
  } else {
    const StateArrays arrays = arrays_of(state);
    const StateArrays saved{scratch.counts.get(), arrays.square_sums ? scratch.square_sums.get() : nullptr,
                            full ? scratch.scatter.get() : nullptr};
    const bool one = batch.blocks() == 1;
    batch.check(K, !watch, record, one ? scratch.sorter.keys() : nullptr, one ? scratch.sorter.rows() : nullptr);
    if (watch) launch_save_state(queue_->stream(), arrays, K, d, saved);
    for (Index b = 0; b < batch.blocks(); ++b) {
      batch.load(b);
      add_block(state, batch, batch.first_row(b), watch, space);
    }
    if (watch) {
      launch_settle(queue_->stream(), batch.labels(), batch.first_row(batch.blocks() - 1), features.rows, true, record);
      launch_restore_state(queue_->stream(), saved, K, d, record, arrays, space.places.get(), state.shifts.data());
      if (graphs) space.gather_sums(state);
    }
  }
  if (!capturing && !space.on_its_way) {
    const WaitOnException guard(queue_->stream());  // `seen` may go
    check(cudaMemcpyAsync(space.seen.get(), record, sizeof(BatchRecord), cudaMemcpyDeviceToHost, queue_->stream()));
    space.arrived.record(queue_->stream());
    space.on_its_way = true;
  }
  return {};
}

BatchFaults CudaBackend::pending_faults(MomentState& state) {
  if (!state.workspace) return {};
  const Turn turn(*queue_);
  Workspace& space = workspace(state);
  space.gather_sums(state);
  BatchRecord record;
  queue_->download(&record, space.record.get(), space.record.bytes());
  if (!record.shut) return {};
  BatchFaults faults = faults_of(record, state.dim);
  const std::vector<Index> counts = to_host(state.counts);
  faults.samples = std::accumulate(counts.begin(), counts.end(), Index{0});
  space.reset(record.batch);  // last: a fault that could not be told is told by the next call
  return faults;
}

}  // namespace ncollapse::cuda
