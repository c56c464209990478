#include "cuda/decide.hpp"
#include "cuda/device.hpp"

namespace ncollapse::cuda {
namespace {

constexpr double kNoScore = -HUGE_VAL;
constexpr int kNormExponent = 6;  // of a rounded row: norms in [64, 128)

__device__ Half narrow(float x, Half) { return to_half(x); }
__device__ Bfloat16 narrow(float x, Bfloat16) { return to_bfloat16(x); }

/// |row - origin|, the same in every lane.
template <class T>
__device__ double row_norm(const Rows<T>& x, Index i, const double* origin) {
  constexpr int V = kPacket<T>;
  double square = 0;
  for (Index col = Index{lane_id()} * V; col < x.cols; col += kWarp * V) {
    const Packet<T> packet = x.read(x.row(i), col);
    for (int v = 0; v < V; ++v) {
      if (col + v >= x.cols) continue;
      const double shifted = to_double(packet.value[v]) - (origin ? origin[col + v] : 0);
      square += shifted * shifted;
    }
  }
  return sqrt(warp_sum(square));
}

template <class T>
__global__ void row_norms(Rows<T> x, double* norms) {
  for (Index i = warp_id(); i < x.rows; i += warp_count()) {
    const double norm = row_norm(x, i, nullptr);
    if (lane_id() == 0) norms[i] = norm;
  }
}

/// A warp per row, which is read once for its norm and once more, from the cache, to be rounded.
template <class T, class N>
__global__ void narrow_rows(Rows<T> x, const double* origin, Index padded, N* rows, double* scales, double* norms,
                            double* lost) {
  constexpr int V = kPacket<T>;
  for (Index i = warp_id(); i < x.rows; i += warp_count()) {
    const double norm = row_norm(x, i, origin);
    int exponent = norm > 0 && norm < HUGE_VAL ? ilogb(norm) - kNormExponent : 0;
    exponent = max(-1000, min(exponent, 1000));
    const double up = power_of_two(exponent), down = power_of_two(-exponent);

    double square = 0;
    for (Index col = Index{lane_id()} * V; col < padded; col += kWarp * V) {
      const Packet<T> packet = x.read(x.row(i), col);
      for (int v = 0; v < V; ++v) {
        if (col + v >= padded) continue;
        double shifted = 0;
        if (col + v < x.cols) shifted = to_double(packet.value[v]) - (origin ? origin[col + v] : 0);
        const N rounded = narrow(static_cast<float>(shifted * down), N{});
        rows[i * padded + col + v] = rounded;
        const double gap = shifted - up * to_double(rounded);
        square += gap * gap;
      }
    }
    square = warp_sum(square);
    if (lane_id() != 0) continue;
    scales[i] = up;
    norms[i] = norm;
    lost[i] = sqrt(square);
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
    const double scale = row_scales ? row_scales[i] : 1;
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
                        Index count, Index* decisions, Count* evaluations) {
  Count wanted = 0;
  for (Index i = thread_id(); i < rows; i += thread_count()) {
    const double* scores = leaders.scores + i * kLeaders;
    const double error = bound.of(norms[i], lost ? lost[i] : 0);
    // Scores are at most error/u, so below 1e280 nothing has overflowed; every comparison is false for NaN.
    int open = 0;  // the first leaders that may win
    if (error < 1e280 && norms[i] < bound.largest_norm)
      for (int place = kLeaders - 1; place > 0; --place)
        if (scores[0] - scores[place] > 2 * error) open = place;
    decisions[i] = open == 1 ? leaders.candidates[i * kLeaders] : open > 1 ? -open : -1;
    if (open != 1) wanted += static_cast<Count>(open > 1 ? open : count);
  }
  if (!evaluations) return;  // the same for all
  wanted = warp_sum(wanted);
  if (lane_id() == 0 && wanted > 0) atomicAdd(evaluations, wanted);
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

ScoreBound centre_bound(Index dim, double largest_centre, double origin, double lost) {
  const double g = relative_error(dim + 32), size = origin + largest_centre;
  return {g * size * size, 2 * g * size, g, largest_centre, product_error(dim, largest_centre, lost)};
}

ScoreBound classifier_bound(Index dim, double largest_weights, double origin, double largest_bias, double lost) {
  const double g = relative_error(2 * dim + 64);
  return {g * (largest_weights * origin + largest_bias), g * largest_weights, 0, largest_weights,
          product_error(dim, largest_weights, lost)};
}

void allow_for_range(ScoreBound& bound, Dtype type, Index dim) {
  if (type != Dtype::bf16) return;
  bound.constant += static_cast<double>(dim) * 0x1p-124 * bound.candidate;
  bound.largest_norm = 0x1p119;
}

bool can_be_raw(const FeatureBlock& x) {
  return (x.dtype == Dtype::f16 && rows_of<Half>(x).aligned) ||
         (x.dtype == Dtype::bf16 && rows_of<Bfloat16>(x).aligned);
}

void launch_narrow_rows(cudaStream_t stream, const FeatureBlock& x, const double* origin, Index padded, Dtype type,
                        void* rows, double* scales, double* norms, double* lost) {
  const Grid grid{blocks_for(x.rows, kWarps)};
  if (type == Dtype::bf16)
    return launch(stream, grid, narrow_rows<double, Bfloat16>, rows_of<double>(x), origin, padded,
                  static_cast<Bfloat16*>(rows), scales, norms, lost);
  with_element(x.dtype, [&]<class T>(T) {
    launch(stream, grid, narrow_rows<T, Half>, rows_of<T>(x), origin, padded, static_cast<Half*>(rows), scales, norms,
           lost);
  });
}

void launch_row_norms(cudaStream_t stream, const FeatureBlock& x, double* norms) {
  with_element(x.dtype,
               [&]<class T>(T) { launch(stream, {blocks_for(x.rows, kWarps)}, row_norms<T>, rows_of<T>(x), norms); });
}

void launch_merge_leaders(cudaStream_t stream, const float* products, const double* row_scales,
                          const double* candidate_scales, const double* constants, Index rows, Index first, Index count,
                          const Leaders& leaders) {
  launch(stream, {blocks_for(rows, kWarps)}, merge_leaders, products, row_scales, candidate_scales, constants, rows,
         first, count, leaders);
}

void launch_certify(cudaStream_t stream, const Leaders& leaders, const NarrowRows& z, Index rows,
                    const ScoreBound& bound, Index count, Index* decisions, Count* evaluations) {
  launch(stream, {blocks_for(rows)}, certify, leaders, z.norms, z.lost, rows, bound, count, decisions, evaluations);
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
