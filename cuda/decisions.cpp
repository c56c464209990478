// decide_batch: check everything, then tile by tile: shifted rows as halves, scores by tensor cores against the centres
// and against the classifier, certified decisions, exact evaluation of the rest (decide.hpp), counters. A tile of
// scores stays in the L2 cache; there are two, so that one is made while a second stream takes the leaders out of the
// other.
#include <algorithm>
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

/// Owns what HalfRows points to.
struct HalfBuffers {
  HalfBuffers(Queue& queue, Index count, Index dim)
      : rows(queue, count * padded_columns(dim)), scales(queue, count), norms(queue, count), lost(queue, count) {}
  HalfRows get() const { return {rows.get(), scales.get(), norms.get(), lost.get()}; }

  Buffer<Half> rows;
  Buffer<double> scales, norms, lost;
};

/// What rows are scored against: centres, or the classifier.
struct Candidates {
  Candidates(Queue& queue, const Matrix& shifted) : half(queue, shifted.rows, shifted.cols) {
    launch_half_rows(queue.stream(), {shifted.data(), Dtype::f64, shifted.rows, shifted.cols, shifted.cols}, nullptr,
                     padded_columns(shifted.cols), half.get());
  }

  HalfBuffers half;
  Buffer<double> constants;  ///< [count] -|c_k|^2/2, or w_k.o + b_k
  ScoreBound error;
};

}  // namespace

/// What scores need besides the state; see decide.hpp.
struct CudaBackend::Prepared {
  explicit Prepared(std::shared_ptr<Queue> on) : queue(std::move(on)), side(nullptr) {}

  std::shared_ptr<Queue> queue;  // first: what follows frees its memory there
  Matrix origin;                 ///< [1 x d]
  std::optional<Candidates> centres, weights;
  Stream side;              ///< takes the leaders out of the scores
  Event made[2], taken[2];  ///< of each tile of scores
};

std::shared_ptr<CudaBackend::Prepared> CudaBackend::prepare(const DecisionState& state) {
  if (!half_products_are_exact(*queue_))
    throw DeviceError("cuBLAS does not accumulate products of fp16 numbers in fp32 on this device", "use the CPU");
  auto prepared = std::make_shared<Prepared>(queue_);
  const Index count = state.centres.rows;
  const std::vector<double> share(static_cast<std::size_t>(count), 1.0 / static_cast<double>(count));
  const auto origin = weighted_row_sum(state.centres, share);
  prepared->origin = matrix(1, state.dim);
  from_host(prepared->origin, origin);

  if (count > 0) {
    Matrix shifted = clone(state.centres);
    centre_rows(shifted, origin);
    Candidates& centres = prepared->centres.emplace(*queue_, shifted);
    std::vector<double> squares = row_dots(shifted, shifted);
    centres.error = centre_bound(state.dim, std::sqrt(largest(squares)), largest(centres.half.lost.to_host()));
    for (double& square : squares) square *= -0.5;
    centres.constants = Buffer<double>(*queue_, squares);
  }
  if (!state.weights) return prepared;

  Candidates& weights = prepared->weights.emplace(*queue_, state.weights);
  auto constants = to_host(product(state.weights, Transpose::no, prepared->origin, Transpose::yes));
  const auto bias = to_host(state.bias);
  double largest_bias = 0, origin_square = 0;
  for (std::size_t k = 0; k < constants.size(); ++k) {
    constants[k] += bias[k];
    largest_bias = std::max(largest_bias, std::abs(bias[k]));
  }
  for (const double value : origin) origin_square += value * value;
  weights.error = classifier_bound(state.dim, std::sqrt(largest(row_dots(state.weights, state.weights))),
                                   std::sqrt(origin_square), largest_bias, largest(weights.half.lost.to_host()));
  weights.constants = Buffer<double>(*queue_, constants);
  return prepared;
}

/// Scratch for tiles of a block, made before any counter changes.
struct CudaBackend::DecideBuffers {
  DecideBuffers(Queue& queue, const Limits& limits, const DecisionState& state, Index block_rows)
      : tile(std::min(limits.row_tile, block_rows)),
        z(queue, tile, state.dim),
        leader_scores(queue, tile * kLeaders),
        leader_candidates(queue, tile * kLeaders),
        nearest(queue, tile),
        chosen(queue, tile) {
    const Index width = std::min(limits.candidate_tile, std::max(state.centres.rows, state.weights.rows));
    for (auto& each : products) each = Buffer<float>(queue, tile * width);
  }
  Index tile;
  HalfBuffers z;
  Buffer<float> products[2];
  Buffer<double> leader_scores;
  Buffer<Index> leader_candidates, nearest, chosen;
};

void CudaBackend::decide(DecisionState& state, Prepared& prepared, const FeatureBlock& features,
                         const LabelBlock& labels, const DecideBuffers& buffers) {
  const cudaStream_t stream = queue_->stream();
  const Index size = size_of(features.dtype), tile = buffers.tile, padded = padded_columns(state.dim);
  const HalfRows z = buffers.z.get();
  const Leaders leaders{buffers.leader_scores.get(), buffers.leader_candidates.get()};

  for (Index first = 0; first < features.rows; first += tile) {
    const Index rows = std::min(tile, features.rows - first);
    FeatureBlock x = features;
    x.data = static_cast<const char*>(features.data) + first * features.stride * size;
    x.rows = rows;
    LabelBlock y = labels;
    y.data = static_cast<const char*>(labels.data) + first * size_of(labels.type);
    y.rows = rows;
    launch_half_rows(stream, x, prepared.origin.data(), padded, z);

    const auto choose = [&](const Candidates& candidates, const Matrix& exact, const double* bias, Index* decisions) {
      const HalfRows scored = candidates.half.get();
      int turn = 0;
      for (Index k = 0; k < exact.rows; k += limits_.candidate_tile, turn = 1 - turn) {
        const Index count = std::min(limits_.candidate_tile, exact.rows - k);
        float* products = buffers.products[turn].get();
        prepared.taken[turn].hold(stream);
        multiply_halves(*queue_, z.rows, rows, scored.rows + k * padded, count, padded, products);
        prepared.made[turn].record(stream);
        prepared.made[turn].hold(prepared.side.get());
        launch_merge_leaders(prepared.side.get(), products, z.scales, scored.scales + k, candidates.constants.get() + k,
                             rows, k, count, leaders);
        prepared.taken[turn].record(prepared.side.get());
      }
      for (const Event& taken : prepared.taken) taken.hold(stream);
      launch_certify(stream, leaders, z, rows, candidates.error, decisions);
      launch_decide_exactly(stream, x, exact.data(), bias, exact.rows, leaders, decisions);
    };
    if (prepared.centres) choose(*prepared.centres, state.centres, nullptr, buffers.nearest.get());
    if (prepared.weights) choose(*prepared.weights, state.weights, state.bias.data(), buffers.chosen.get());
    launch_count_decisions(stream, y, prepared.centres ? buffers.nearest.get() : nullptr, state.centre_class.data(),
                           prepared.weights ? buffers.chosen.get() : nullptr, state.classes, state.counters.data());
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
  auto& prepared = *static_cast<Prepared*>(state.prepared.get());
  const DecideBuffers buffers(*queue_, limits_, state, batch.block_rows());
  for (Index b = 0; b < batch.blocks(); ++b) {
    batch.load(b);
    decide(state, prepared, batch.features(), batch.labels(), buffers);
  }
  return {};
}

}  // namespace ncollapse::cuda
