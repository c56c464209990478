#include "cuda/decide.hpp"
#include "cuda/device.hpp"

namespace ncollapse::cuda {
namespace {

constexpr double kNoScore = -HUGE_VAL;
constexpr int kNormExponent = 6;  // of a row of halves: norms in [64, 128)

/// A warp per row, which is read once for its norm and once more, from the cache, to be rounded.
template <class T>
__global__ void half_rows(Rows<T> x, const double* origin, Index padded, HalfRows half) {
  constexpr int V = kPacket<T>;
  for (Index i = warp_id(); i < x.rows; i += warp_count()) {
    double square = 0;
    for (Index col = Index{lane_id()} * V; col < x.cols; col += kWarp * V) {
      const Packet<T> packet = x.read(x.row(i), col);
      for (int v = 0; v < V; ++v) {
        if (col + v >= x.cols) continue;
        const double shifted = to_double(packet.value[v]) - (origin ? origin[col + v] : 0);
        square += shifted * shifted;
      }
    }
    const double norm = sqrt(warp_sum(square));
    int exponent = norm > 0 && norm < HUGE_VAL ? ilogb(norm) - kNormExponent : 0;
    exponent = max(-1000, min(exponent, 1000));
    const double up = power_of_two(exponent), down = power_of_two(-exponent);

    square = 0;
    for (Index col = Index{lane_id()} * V; col < padded; col += kWarp * V) {
      const Packet<T> packet = x.read(x.row(i), col);
      for (int v = 0; v < V; ++v) {
        if (col + v >= padded) continue;
        double shifted = 0;
        if (col + v < x.cols) shifted = to_double(packet.value[v]) - (origin ? origin[col + v] : 0);
        const Half rounded = to_half(static_cast<float>(shifted * down));
        half.rows[i * padded + col + v] = rounded;
        const double gap = shifted - up * to_double(rounded);
        square += gap * gap;
      }
    }
    square = warp_sum(square);
    if (lane_id() != 0) continue;
    half.scales[i] = up;
    half.norms[i] = norm;
    half.lost[i] = sqrt(square);
  }
}

struct Leader {
  double score;
  Index candidate;

  __device__ bool beats(const Leader& other) const {
    return score > other.score || (score == other.score && candidate < other.candidate);
  }
};

/// Puts a leader in its place of a descending list, if it has one. False for NaN: such scores never lead.
__device__ void insert(Leader (&list)[kLeaders], Leader next) {
  for (int place = 0; place < kLeaders; ++place) {
    if (!next.beats(list[place])) continue;
    const Leader moved = list[place];
    list[place] = next;
    next = moved;
  }
}

/// One warp per row.
__global__ void merge_leaders(const float* products, const double* row_scales, const double* candidate_scales,
                              const double* constants, Index rows, Index first, Index count, Leaders leaders) {
  constexpr Index kNobody = Index{1} << 62;
  for (Index i = warp_id(); i < rows; i += warp_count()) {
    Leader mine[kLeaders];
    for (int place = 0; place < kLeaders; ++place) mine[place] = {kNoScore, kNobody};
    const double scale = row_scales[i];
    for (Index k = lane_id(); k < count; k += kWarp)
      insert(mine,
             {static_cast<double>(products[i * count + k]) * (scale * candidate_scales[k]) + constants[k], first + k});
    for (int step = kWarp / 2; step > 0; step /= 2) {
      Leader other[kLeaders];
      for (int place = 0; place < kLeaders; ++place)
        other[place] = {__shfl_xor_sync(kAllLanes, mine[place].score, step),
                        __shfl_xor_sync(kAllLanes, mine[place].candidate, step)};
      for (int place = 0; place < kLeaders; ++place) insert(mine, other[place]);
    }
    if (lane_id() != 0) continue;
    if (first > 0)
      for (int place = 0; place < kLeaders; ++place)
        insert(mine, {leaders.scores[i * kLeaders + place], leaders.candidates[i * kLeaders + place]});
    for (int place = 0; place < kLeaders; ++place) {
      leaders.scores[i * kLeaders + place] = mine[place].score;
      leaders.candidates[i * kLeaders + place] = mine[place].candidate;
    }
  }
}

__global__ void certify(Leaders leaders, const double* norms, const double* lost, Index rows, ScoreBound bound,
                        Index* decisions) {
  for (Index i = thread_id(); i < rows; i += thread_count()) {
    const double* scores = leaders.scores + i * kLeaders;
    const double error = bound.of(norms[i], lost[i]);
    // Scores are at most error/u, so below 1e280 nothing has overflowed; every comparison is false for NaN.
    int open = 0;  // the first leaders that may win
    if (error < 1e280)
      for (int place = kLeaders - 1; place > 0; --place)
        if (scores[0] - scores[place] > 2 * error) open = place;
    decisions[i] = open == 1 ? leaders.candidates[i * kLeaders] : open > 1 ? -open : -1;
  }
}

/// A block per row, most of which have nothing to do; a warp per candidate.
template <class T>
__global__ void decide_exactly(Rows<T> x, const double* A, const double* bias, Index count, Leaders leaders,
                               Index* decisions) {
  const Index i = blockIdx.x, open = -decisions[i];
  if (open <= 0) return;  // the whole block
  const Index* listed = open > 1 ? leaders.candidates + i * kLeaders : nullptr;
  Leader* warp_best = shared_memory<Leader>();
  const T* h = x.row(i);
  Leader best{kNoScore, 0};
  for (Index at = warp_in_block(); at < (listed ? open : count); at += kWarps) {
    const Index k = listed ? listed[at] : at;
    const double* row = A + k * x.cols;
    double sum = 0;
    for (Index col = lane_id(); col < x.cols; col += kWarp) {
      const double value = to_double(h[col]), gap = value - row[col];
      sum += bias ? value * row[col] : gap * gap;
    }
    sum = warp_sum(sum);
    const Leader next{bias ? sum + bias[k] : -sum, k};
    if (next.score > kNoScore && (best.score == kNoScore || next.beats(best))) best = next;
  }
  if (lane_id() == 0) warp_best[warp_in_block()] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kWarps; ++warp)
    if (warp_best[warp].score > kNoScore && (best.score == kNoScore || warp_best[warp].beats(best)))
      best = warp_best[warp];
  decisions[i] = best.candidate;
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

double product_error(Index dim, double largest, double lost) {
  return lost + static_cast<double>(dim + 64) * 0x1p-23 * (largest + lost);
}

}  // namespace

ScoreBound centre_bound(Index dim, double largest_centre, double lost) {
  const double g = relative_error(dim + 32);
  return {g * largest_centre * largest_centre, 2 * g * largest_centre, g, largest_centre,
          product_error(dim, largest_centre, lost)};
}

ScoreBound classifier_bound(Index dim, double largest_weights, double origin, double largest_bias, double lost) {
  const double g = relative_error(2 * dim + 64);
  return {g * (largest_weights * origin + largest_bias), g * largest_weights, 0, largest_weights,
          product_error(dim, largest_weights, lost)};
}

void launch_half_rows(cudaStream_t stream, const FeatureBlock& x, const double* origin, Index padded,
                      const HalfRows& half) {
  with_element(x.dtype, [&]<class T>(T) {
    launch(stream, {blocks_for(x.rows, kWarps)}, half_rows<T>, rows_of<T>(x), origin, padded, half);
  });
}

void launch_merge_leaders(cudaStream_t stream, const float* products, const double* row_scales,
                          const double* candidate_scales, const double* constants, Index rows, Index first, Index count,
                          const Leaders& leaders) {
  launch(stream, {blocks_for(rows, kWarps)}, merge_leaders, products, row_scales, candidate_scales, constants, rows,
         first, count, leaders);
}

void launch_certify(cudaStream_t stream, const Leaders& leaders, const HalfRows& z, Index rows, const ScoreBound& bound,
                    Index* decisions) {
  launch(stream, {blocks_for(rows)}, certify, leaders, z.norms, z.lost, rows, bound, decisions);
}

void launch_decide_exactly(cudaStream_t stream, const FeatureBlock& x, const double* A, const double* bias, Index count,
                           const Leaders& leaders, Index* decisions) {
  const Index shared = kWarps * static_cast<Index>(sizeof(Leader));
  with_element(x.dtype, [&]<class T>(T) {
    launch(stream, {x.rows, 1, shared}, decide_exactly<T>, rows_of<T>(x), A, bias, count, leaders, decisions);
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
