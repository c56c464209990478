#include "cuda/decide.hpp"
#include "cuda/device.hpp"

namespace ncollapse::cuda {
namespace {

template <class T>
__global__ void shift_rows(Rows<T> x, const double* origin, double* z, double* norms) {
  constexpr int V = kPacket<T>;
  for (Index i = warp_id(); i < x.rows; i += warp_count()) {
    double square = 0;
    for (Index col = Index{lane_id()} * V; col < x.cols; col += kWarp * V) {
      const Packet<T> packet = x.read(x.row(i), col);
      for (int v = 0; v < V; ++v) {
        if (col + v >= x.cols) continue;
        const double shifted = to_double(packet.value[v]) - origin[col + v];
        z[i * x.cols + col + v] = shifted;
        square += shifted * shifted;
      }
    }
    square = warp_sum(square);
    if (lane_id() == 0) norms[i] = sqrt(square);
  }
}

struct Leader {
  double best, second;
  Index candidate;
};
constexpr double kNoScore = -HUGE_VAL;

/// Both saw different candidates.
__device__ Leader merge(const Leader& a, const Leader& b) {
  const bool b_wins = b.best > a.best || (b.best == a.best && b.candidate < a.candidate);
  const Leader &winner = b_wins ? b : a, &loser = b_wins ? a : b;
  return {winner.best, max(winner.second, loser.best), winner.candidate};
}

/// One warp per row.
__global__ void merge_leaders(const double* scores, const double* constants, Index rows, Index first, Index count,
                              Leaders leaders) {
  for (Index i = warp_id(); i < rows; i += warp_count()) {
    Leader mine{kNoScore, kNoScore, first};
    for (Index k = lane_id(); k < count; k += kWarp) {
      const double score = scores[i * count + k] + constants[k];
      if (score > mine.best) {  // later candidates win nothing from a tie
        mine = {score, mine.best, first + k};
      } else if (score > mine.second) {
        mine.second = score;
      }
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const Leader other{__shfl_xor_sync(kAllLanes, mine.best, step), __shfl_xor_sync(kAllLanes, mine.second, step),
                         __shfl_xor_sync(kAllLanes, mine.candidate, step)};
      mine = merge(mine, other);
    }
    if (lane_id() != 0) continue;
    if (first > 0) mine = merge({leaders.best[i], leaders.second[i], leaders.candidate[i]}, mine);
    leaders.best[i] = mine.best;
    leaders.second[i] = mine.second;
    leaders.candidate[i] = mine.candidate;
  }
}

__global__ void certify(Leaders leaders, const double* norms, Index rows, ScoreBound bound, Index* decisions) {
  for (Index i = thread_id(); i < rows; i += thread_count()) {
    const double a = norms[i];
    const double error = bound.constant + a * (bound.linear + a * bound.quadratic) + 1e-300;
    // Scores are at most error/u, so below 1e280 nothing has overflowed; every comparison is false for NaN.
    const bool certain = error < 1e280 && leaders.best[i] - leaders.second[i] > 2 * error;
    decisions[i] = certain ? leaders.candidate[i] : -1;
  }
}

/// A block per row, most of which have nothing to do; a warp per candidate.
template <class T>
__global__ void decide_exactly(Rows<T> x, const double* A, const double* bias, Index count, Index* decisions) {
  const Index i = blockIdx.x;
  if (decisions[i] >= 0) return;  // the whole block
  double* warp_best = shared_memory<double>();
  Index* warp_candidate = reinterpret_cast<Index*>(warp_best + kWarps);
  const T* h = x.row(i);
  double best = kNoScore;
  Index candidate = 0;
  for (Index k = warp_in_block(); k < count; k += kWarps) {
    const double* row = A + k * x.cols;
    double sum = 0;
    for (Index col = lane_id(); col < x.cols; col += kWarp) {
      const double value = to_double(h[col]), gap = value - row[col];
      sum += bias ? value * row[col] : gap * gap;
    }
    sum = warp_sum(sum);
    const double score = bias ? sum + bias[k] : -sum;
    if (score > best) {
      best = score;
      candidate = k;
    }
  }
  if (lane_id() == 0) {
    warp_best[warp_in_block()] = best;
    warp_candidate[warp_in_block()] = candidate;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  Leader leader{kNoScore, kNoScore, 0};
  for (int warp = 0; warp < kWarps; ++warp)
    if (warp_best[warp] > kNoScore) leader = merge(leader, {warp_best[warp], kNoScore, warp_candidate[warp]});
  decisions[i] = leader.candidate;
}

__device__ void increment(Index* counter) { atomicAdd(reinterpret_cast<Count*>(counter), Count{1}); }

template <class L>
__global__ void count_decisions(const L* labels, Index rows, const Index* centre, const Index* centre_class,
                                const Index* classifier, Index classes, Index* counters) {
  for (Index i = thread_id(); i < rows; i += thread_count()) {
    const auto label = static_cast<Index>(labels[i]);
    const Index nearest = centre ? centre_class[centre[i]] : -1;
    increment(&counters[label]);
    if (nearest == label) increment(&counters[classes + label]);
    if (!classifier) continue;
    if (classifier[i] == label) increment(&counters[2 * classes + label]);
    if (classifier[i] == nearest) increment(&counters[3 * classes + label]);
  }
}

/// g_n; infinite where n u >= 1.
double relative_error(Index n) {
  const double nu = static_cast<double>(n) * 0x1p-53;
  return nu < 1 ? nu / (1 - nu) : HUGE_VAL;
}

}  // namespace

ScoreBound centre_bound(Index dim, double largest_centre) {
  const double g = relative_error(dim + 32);
  return {g * largest_centre * largest_centre, 2 * g * largest_centre, g};
}

ScoreBound classifier_bound(Index dim, double largest_weights, double origin, double largest_bias) {
  const double g = relative_error(2 * dim + 64);
  return {g * (largest_weights * origin + largest_bias), g * largest_weights, 0};
}

void launch_shift_rows(cudaStream_t stream, const FeatureBlock& x, const double* origin, double* z, double* norms) {
  with_element(x.dtype, [&]<class T>(T) {
    launch(stream, {blocks_for(x.rows, kWarps)}, shift_rows<T>, rows_of<T>(x), origin, z, norms);
  });
}

void launch_merge_leaders(cudaStream_t stream, const double* scores, const double* constants, Index rows, Index first,
                          Index count, const Leaders& leaders) {
  launch(stream, {blocks_for(rows, kWarps)}, merge_leaders, scores, constants, rows, first, count, leaders);
}

void launch_certify(cudaStream_t stream, const Leaders& leaders, const double* norms, Index rows,
                    const ScoreBound& bound, Index* decisions) {
  launch(stream, {blocks_for(rows)}, certify, leaders, norms, rows, bound, decisions);
}

void launch_decide_exactly(cudaStream_t stream, const FeatureBlock& x, const double* A, const double* bias, Index count,
                           Index* decisions) {
  const Index shared = kWarps * static_cast<Index>(sizeof(double) + sizeof(Index));
  with_element(x.dtype, [&]<class T>(T) {
    launch(stream, {x.rows, 1, shared}, decide_exactly<T>, rows_of<T>(x), A, bias, count, decisions);
  });
}

void launch_count_decisions(cudaStream_t stream, const LabelBlock& labels, const Index* centre,
                            const Index* centre_class, const Index* classifier, Index classes, Index* counters) {
  with_label(labels.type, [&]<class L>(L) {
    launch(stream, {blocks_for(labels.rows)}, count_decisions<L>, static_cast<const L*>(labels.data), labels.rows,
           centre, centre_class, classifier, classes, counters);
  });
}

}  // namespace ncollapse::cuda
