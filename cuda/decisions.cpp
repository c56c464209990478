// decide_batch: check everything, then tile by tile: shifted rows, scores by DGEMM against the centres and against the
// classifier, certified decisions, exact evaluation of the rest (decide.hpp), counters.
#include <algorithm>
#include <cmath>

#include "cuda/backend.hpp"
#include "cuda/decide.hpp"
#include "cuda/dense.hpp"

namespace ncollapse::cuda {
namespace {

double largest_root(const std::vector<double>& squares) {
  double largest = 0;
  for (const double square : squares) largest = std::max(largest, square);
  return std::sqrt(largest);
}

}  // namespace

/// What scores need besides the state; see decide.hpp.
struct CudaBackend::Prepared {
  Matrix origin;            ///< [1 x d]
  Matrix shifted_centres;   ///< [S x d] c_k
  Matrix centre_constants;  ///< [1 x S] -|c_k|^2/2
  ScoreBound centre_error;
  Matrix weights_constants;  ///< [1 x K] w_k.o + b_k; null without a classifier
  ScoreBound weights_error;
};

std::shared_ptr<CudaBackend::Prepared> CudaBackend::prepare(const DecisionState& state) {
  auto prepared = std::make_shared<Prepared>();
  const Index count = state.centres.rows;
  const auto on_device = [&](const std::vector<double>& row) {
    Matrix array = matrix(1, static_cast<Index>(row.size()));
    from_host(array, row);
    return array;
  };
  const std::vector<double> share(static_cast<std::size_t>(count), 1.0 / static_cast<double>(count));
  const auto origin = weighted_row_sum(state.centres, share);
  prepared->origin = on_device(origin);

  prepared->shifted_centres = clone(state.centres);
  centre_rows(prepared->shifted_centres, origin);
  std::vector<double> squares = row_dots(prepared->shifted_centres, prepared->shifted_centres);
  prepared->centre_error = centre_bound(state.dim, largest_root(squares));
  for (double& square : squares) square *= -0.5;
  prepared->centre_constants = on_device(squares);
  if (!state.weights) return prepared;

  auto constants = to_host(product(state.weights, Transpose::no, prepared->origin, Transpose::yes));
  const auto bias = to_host(state.bias);
  double largest_bias = 0, origin_square = 0;
  for (std::size_t k = 0; k < constants.size(); ++k) {
    constants[k] += bias[k];
    largest_bias = std::max(largest_bias, std::abs(bias[k]));
  }
  for (const double value : origin) origin_square += value * value;
  prepared->weights_constants = on_device(constants);
  prepared->weights_error = classifier_bound(state.dim, largest_root(row_dots(state.weights, state.weights)),
                                             std::sqrt(origin_square), largest_bias);
  return prepared;
}

/// Scratch for tiles of a block, made before any counter changes.
struct CudaBackend::DecideBuffers {
  DecideBuffers(Queue& queue, const Limits& limits, const DecisionState& state, Index block_rows)
      : tile(std::min(std::clamp<Index>(limits.shifted_bytes / (state.dim * static_cast<Index>(sizeof(double))), 1,
                                        limits.row_tile),
                      block_rows)),
        shifted(queue, tile * state.dim),
        norms(queue, tile),
        scores(queue, tile * std::min(limits.candidate_tile, std::max(state.centres.rows, state.weights.rows))),
        best(queue, tile),
        second(queue, tile),
        candidate(queue, tile),
        nearest(queue, tile),
        chosen(queue, tile) {}
  Index tile;
  Buffer<double> shifted, norms, scores, best, second;
  Buffer<Index> candidate, nearest, chosen;
};

void CudaBackend::decide(DecisionState& state, const Prepared& prepared, const FeatureBlock& features,
                         const LabelBlock& labels, const DecideBuffers& buffers) {
  const cudaStream_t stream = queue_->stream();
  const Index d = state.dim, size = size_of(features.dtype), tile = buffers.tile;
  const auto& [unused, shifted, norms, scores, best, second, candidate, nearest, chosen] = buffers;
  const Leaders leaders{best.get(), second.get(), candidate.get()};

  for (Index first = 0; first < features.rows; first += tile) {
    const Index rows = std::min(tile, features.rows - first);
    FeatureBlock x = features;
    x.data = static_cast<const char*>(features.data) + first * features.stride * size;
    x.rows = rows;
    LabelBlock y = labels;
    y.data = static_cast<const char*>(labels.data) + first * size_of(labels.type);
    y.rows = rows;
    launch_shift_rows(stream, x, prepared.origin.data(), shifted.get(), norms.get());

    const auto choose = [&](const Matrix& scored, const double* constants, const ScoreBound& error, const Matrix& exact,
                            const double* bias, Index* decisions) {
      for (Index k = 0; k < scored.rows; k += limits_.candidate_tile) {
        const Index count = std::min(limits_.candidate_tile, scored.rows - k);
        gemm(*queue_, Transpose::no, Transpose::yes, rows, count, d, shifted.get(), d, scored.data() + k * d, d,
             scores.get(), count);
        launch_merge_leaders(stream, scores.get(), constants + k, rows, k, count, leaders);
      }
      launch_certify(stream, leaders, norms.get(), rows, error, decisions);
      launch_decide_exactly(stream, x, exact.data(), bias, exact.rows, decisions);
    };
    const bool has_centres = state.centres.rows > 0, has_classifier = static_cast<bool>(state.weights);
    if (has_centres)
      choose(prepared.shifted_centres, prepared.centre_constants.data(), prepared.centre_error, state.centres, nullptr,
             nearest.get());
    if (has_classifier)
      choose(state.weights, prepared.weights_constants.data(), prepared.weights_error, state.weights, state.bias.data(),
             chosen.get());
    launch_count_decisions(stream, y, has_centres ? nearest.get() : nullptr, state.centre_class.data(),
                           has_classifier ? chosen.get() : nullptr, state.classes, state.counters.data());
  }
}

BatchFaults CudaBackend::decide_batch(DecisionState& state, const MatrixView& features, const LabelView& labels) {
  if (features.rows == 0) return {};
  const DeviceGuard on(queue_->device());
  Batch batch(*queue_, *staging_, limits_, features, labels);
  const Buffer<BatchRecord> record(*queue_, std::vector<BatchRecord>(1));
  batch.check(state.classes, true, record.get());
  BatchFaults faults = faults_of(record.to_host().front(), state.dim);
  faults.batch = -1;
  if (faults.any()) return faults;
  if (!state.prepared) state.prepared = prepare(state);
  const auto& prepared = *static_cast<const Prepared*>(state.prepared.get());
  const DecideBuffers buffers(*queue_, limits_, state, batch.block_rows());
  for (Index b = 0; b < batch.blocks(); ++b) {
    batch.load(b);
    decide(state, prepared, batch.features(), batch.labels(), buffers);
  }
  return {};
}

}  // namespace ncollapse::cuda
