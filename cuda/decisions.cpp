// decide_batch: check everything, then tile by tile: scores by tensor cores against the centres and against the
// classifier, certified decisions, exact evaluation of the rest (decide.hpp), counters. A tile of scores stays in the
// L2 cache; there are two, so that one is made while a second stream takes the leaders out of the other.
//
// Rows of f16 and bf16 start raw: the products read them where they lie, and the only pass over them besides, for their
// norms, runs on the second stream meanwhile. Whether that certifies enough is seen from the evaluations it leaves: the
// count is looked at after 1, 2, 4, .. tiles (so a pass waits a few times in all), and where there were more than one
// for two rows, which costs about what shifting them does, rows are shifted from then on. Decisions are exact either
// way, so nothing depends on it but time.
#include <algorithm>
#include <bit>
#include <cmath>

#include "cuda/backend.hpp"
#include "cuda/decide.hpp"
#include "cuda/dense.hpp"
#include "cuda/scatter.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cuda {
namespace {

Index padded_columns(Index dim) { return (dim + kHalfPadding - 1) / kHalfPadding * kHalfPadding; }

double largest(const std::vector<double>& values) { return *std::max_element(values.begin(), values.end()); }

/// Rounded rows and what belongs to them.
struct NarrowBuffers {
  NarrowBuffers(Queue& queue, Dtype as, Index count, Index dim)
      : type(as),
        padded(padded_columns(dim)),
        rows(queue, count * padded),
        scales(queue, count),
        norms(queue, count),
        lost(queue, count) {}
  void round(cudaStream_t stream, const FeatureBlock& x, const double* origin) const {
    launch_narrow_rows(stream, x, origin, padded, type, rows.get(), scales.get(), norms.get(), lost.get());
  }
  NarrowRows get() const { return {type, rows.get(), padded, scales.get(), norms.get(), lost.get()}; }

  Dtype type;
  Index padded;
  Buffer<std::uint16_t> rows;
  Buffer<double> scales, norms, lost;
};

/// What rows are scored against: centres, or the classifier.
struct Candidates {
  Candidates(Queue& queue, Dtype type, const Matrix& exact) : narrow(queue, type, exact.rows, exact.cols) {
    narrow.round(queue.stream(), {exact.data(), Dtype::f64, exact.rows, exact.cols, exact.cols}, nullptr);
  }

  NarrowBuffers narrow;
  Buffer<double> constants;  ///< [count]
  ScoreBound error;
};

}  // namespace

/// One way to score rows.
struct CudaBackend::Scorer {
  std::optional<Candidates> centres, weights;
};

/// What scores need besides the state; see decide.hpp.
struct CudaBackend::Prepared {
  explicit Prepared(std::shared_ptr<Queue> on)
      : queue(std::move(on)), evaluations(*queue, std::vector<unsigned long long>(1)), side(nullptr, Stream::kBeside) {}

  std::shared_ptr<Queue> queue;                      // first: what follows frees its memory there
  std::vector<double> origin;                        ///< [d]
  Matrix origin_on_device;                           ///< [1 x d]
  std::optional<Scorer> shifted, raw_f16, raw_bf16;  ///< made when the first rows come that want them
  bool has_bf16 = false, raw_pays = true;
  Index raw_rows = 0, raw_tiles = 0;       ///< that were tried
  Buffer<unsigned long long> evaluations;  ///< that these left
  Stream side;                             ///< takes the leaders out of the scores
  Event ready;                             ///< for the norms of the next tile
  Event made[2], taken[2];                 ///< of each tile of scores
};

CudaBackend::Prepared& CudaBackend::prepared(DecisionState& state) {
  if (!state.prepared) {
    if (!narrow_products_are_exact(*queue_, Dtype::f16))
      throw DeviceError("cuBLAS does not accumulate products of fp16 numbers in fp32 on this device", "use the CPU");
    auto made = std::make_shared<Prepared>(queue_);
    made->has_bf16 = narrow_products_are_exact(*queue_, Dtype::bf16);
    const Index count = state.centres.rows;
    const std::vector<double> share(static_cast<std::size_t>(count), 1.0 / static_cast<double>(count));
    made->origin = weighted_row_sum(state.centres, share);
    made->origin_on_device = matrix(1, state.dim);
    from_host(made->origin_on_device, made->origin);
    state.prepared = made;
  }
  return *static_cast<Prepared*>(state.prepared.get());
}

CudaBackend::Scorer CudaBackend::make_scorer(const DecisionState& state, const Prepared& prepared, Dtype type,
                                             bool raw) {
  Scorer scorer;
  const Matrix& origin = prepared.origin_on_device;
  const double origin_norm = std::sqrt(inner(origin, origin));
  const auto rounding_of = [](const Candidates& candidates) { return largest(candidates.narrow.lost.to_host()); };
  if (state.centres.rows > 0) {
    Matrix shifted = clone(state.centres);
    centre_rows(shifted, prepared.origin);
    Candidates& centres = scorer.centres.emplace(*queue_, type, shifted);
    const auto squares = row_dots(shifted, shifted);
    const auto along = raw ? to_host(product(shifted, Transpose::no, origin, Transpose::yes)) : std::vector<double>{};
    std::vector<double> constants;
    for (std::size_t k = 0; k < squares.size(); ++k) constants.push_back(-0.5 * squares[k] - (raw ? along[k] : 0));
    centres.error = centre_bound(state.dim, std::sqrt(largest(squares)), raw ? origin_norm : 0, rounding_of(centres));
    centres.constants = Buffer<double>(*queue_, constants);
  }
  if (state.weights) {
    Candidates& weights = scorer.weights.emplace(*queue_, type, state.weights);
    auto constants = to_host(state.bias);
    double largest_bias = 0;
    for (const double bias : constants) largest_bias = std::max(largest_bias, std::abs(bias));
    if (!raw) {
      const auto along = to_host(product(state.weights, Transpose::no, origin, Transpose::yes));
      for (std::size_t k = 0; k < constants.size(); ++k) constants[k] += along[k];
    }
    weights.error = classifier_bound(state.dim, std::sqrt(largest(row_dots(state.weights, state.weights))),
                                     raw ? 0 : origin_norm, largest_bias, rounding_of(weights));
    weights.constants = Buffer<double>(*queue_, constants);
  }
  if (raw)
    for (auto* candidates : {&scorer.centres, &scorer.weights})
      if (*candidates) allow_for_range((*candidates)->error, type, state.dim);
  return scorer;
}

/// Scratch for tiles of a block, made before any counter changes.
struct CudaBackend::DecideBuffers {
  DecideBuffers(Queue& queue, const Limits& limits, const DecisionState& state, Index block_rows)
      : tile(std::min(limits.row_tile, block_rows)),
        z(queue, Dtype::f16, tile, state.dim),
        leader_scores(queue, tile * kLeaders),
        leader_candidates(queue, tile * kLeaders),
        nearest(queue, tile),
        chosen(queue, tile) {
    const Index width = std::min(limits.candidate_tile, std::max(state.centres.rows, state.weights.rows));
    for (auto& each : products) each = Buffer<float>(queue, tile * width);
  }
  Index tile;
  NarrowBuffers z;
  Buffer<float> products[2];
  Buffer<double> leader_scores;
  Buffer<Index> leader_candidates, nearest, chosen;
};

void CudaBackend::decide(DecisionState& state, Prepared& prepared, const FeatureBlock& features,
                         const LabelBlock& labels, const DecideBuffers& buffers) {
  const cudaStream_t stream = queue_->stream(), side = prepared.side.get();
  const Index size = size_of(features.dtype), tile = buffers.tile;
  const Leaders leaders{buffers.leader_scores.get(), buffers.leader_candidates.get()};

  for (Index first = 0; first < features.rows; first += tile) {
    const Index rows = std::min(tile, features.rows - first);
    FeatureBlock x = features;
    x.data = static_cast<const char*>(features.data) + first * features.stride * size;
    x.rows = rows;
    LabelBlock y = labels;
    y.data = static_cast<const char*>(labels.data) + first * size_of(labels.type);
    y.rows = rows;

    const bool raw = prepared.raw_pays && can_be_raw(x) && (x.dtype == Dtype::f16 || prepared.has_bf16);
    auto& slot = !raw ? prepared.shifted : x.dtype == Dtype::f16 ? prepared.raw_f16 : prepared.raw_bf16;
    if (!slot) slot = make_scorer(state, prepared, raw ? x.dtype : Dtype::f16, raw);
    const Scorer& scorer = *slot;
    NarrowRows z = buffers.z.get();
    if (!scorer.centres && !scorer.weights) {
      // Samples are counted, nothing is scored; work on the second stream would be waited for by nobody.
    } else if (raw) {
      z = {x.dtype, x.data, x.stride, nullptr, buffers.z.norms.get(), nullptr};
      prepared.ready.record(stream);  // the tile before has used its norms
      prepared.ready.hold(side);
      launch_row_norms(side, x, buffers.z.norms.get());
    } else {
      buffers.z.round(stream, x, prepared.origin_on_device.data());
    }

    const auto choose = [&](const Candidates& candidates, const Matrix& exact, const double* bias, Index* decisions) {
      const NarrowRows scored = candidates.narrow.get();
      int turn = 0;
      for (Index k = 0; k < exact.rows; k += limits_.candidate_tile, turn = 1 - turn) {
        const Index count = std::min(limits_.candidate_tile, exact.rows - k);
        float* products = buffers.products[turn].get();
        prepared.taken[turn].hold(stream);
        multiply_narrow(*queue_, z.type, z.rows, z.stride, rows, candidates.narrow.rows.get() + k * scored.stride,
                        scored.stride, count, raw ? x.cols : scored.stride, products, count);
        prepared.made[turn].record(stream);
        prepared.made[turn].hold(side);
        launch_merge_leaders(side, products, z.scales, scored.scales + k, candidates.constants.get() + k, rows, k,
                             count, leaders);
        prepared.taken[turn].record(side);
      }
      for (const Event& taken : prepared.taken) taken.hold(stream);
      launch_certify(stream, leaders, z, rows, candidates.error, exact.rows, decisions,
                     raw ? prepared.evaluations.get() : nullptr);
      launch_decide_exactly(stream, x, exact.data(), bias, exact.rows, leaders, decisions);
    };
    if (scorer.centres) choose(*scorer.centres, state.centres, nullptr, buffers.nearest.get());
    if (scorer.weights) choose(*scorer.weights, state.weights, state.bias.data(), buffers.chosen.get());
    launch_count_decisions(stream, y, scorer.centres ? buffers.nearest.get() : nullptr, state.centre_class.data(),
                           scorer.weights ? buffers.chosen.get() : nullptr, state.classes, state.counters.data());
    if (!raw) continue;
    prepared.raw_rows += rows;
    if (!std::has_single_bit(static_cast<std::uint64_t>(++prepared.raw_tiles))) continue;
    const auto evaluations = static_cast<Index>(prepared.evaluations.to_host().front());
    prepared.raw_pays = 2 * evaluations <= prepared.raw_rows;
    if (!prepared.raw_pays) slot.reset();  // all that used it is queued before
  }
}

BatchFaults CudaBackend::decide_batch(DecisionState& state, const MatrixView& features, const LabelView& labels) {
  if (features.rows == 0) return {};
  const DeviceGuard on(queue_->device());
  if (queue_->capturing())
    throw UsageError("decisions cannot be captured in a CUDA graph: a batch is looked at before it is counted",
                     "count them outside of the capture");
  Batch batch(*queue_, *staging_, limits_, features, labels);
  const Buffer<BatchRecord> record(*queue_, std::vector<BatchRecord>(1));
  batch.check(state.classes, true, record.get());
  BatchFaults faults = faults_of(record.to_host().front(), state.dim);
  faults.batch = -1;
  if (faults.any()) return faults;
  const DecideBuffers buffers(*queue_, limits_, state, batch.block_rows());
  for (Index b = 0; b < batch.blocks(); ++b) {
    batch.load(b);
    decide(state, prepared(state), batch.features(), batch.labels(), buffers);
  }
  return {};
}

}  // namespace ncollapse::cuda
