#include "cuda/decide.hpp"

#include "cuda/device.hpp"
#include "cuda/words.hpp"

namespace ncollapse::cuda {
namespace {

constexpr double kNoScore = -HUGE_VAL;
constexpr float kNoFloat = -HUGE_VALF;
constexpr int kInFlight = 4;  // packets that a lane asks for at once

/// 1/x, x = 2^e with |e| <= 1022.
__device__ double inverse_of_power(double x) {
  return power_of_two(1023 - static_cast<int>(__double_as_longlong(x) >> 52));
}

/// Maximum over as many neighbouring lanes as share a row.
__device__ float lanes_max(float value, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) value = max(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

/// Some leaders of a row, descending.
struct LeaderList {
  float scores[kLeaders];
  std::int32_t candidates[kLeaders];

  /// Puts a score in its place, if it has one, behind its equals.
  __device__ void insert(float score, std::int32_t candidate) {
    for (int place = 0; place < kLeaders; ++place) {
      const bool ahead = score > scores[place];
      const float later = ahead ? scores[place] : score;
      const std::int32_t later_one = ahead ? candidates[place] : candidate;
      scores[place] = ahead ? score : scores[place];
      candidates[place] = ahead ? candidate : candidates[place];
      score = later;
      candidate = later_one;
    }
  }
};
struct alignas(16) FourScores {
  float value[kLeaders];
};
struct alignas(16) FourCandidates {
  std::int32_t value[kLeaders];
};

struct TileParts {
  TilePart part[2];
};

/// What is known of a row before its scores.
struct RowLimits {
  float factor = 0;      // q
  double margin = 0;     // 2E in units of the row
  bool certain = false;  // whether there is anything to certify
};
__device__ RowLimits limits_of(const NarrowRows& z, const Candidates& set, const ProductForm& form, Index i) {
  const double norm = z.norms[i], to_row = z.scales ? inverse_of_power(z.scales[i]) : 1, down = to_row * form.scale;
  const double error = set.bound.of(norm, z.lost ? z.lost[i] : 0), scaled = error * set.inverse;
  const double factor = set.factor * down;
  RowLimits limits;
  limits.factor = static_cast<float>(max(factor, 0x1p-126));
  limits.margin = 2 * (scaled * down + 0x1p-125 + form.subnormal);
  // Far from where doubles end. Every comparison is false for NaN.
  limits.certain = error < 1e280 && scaled > 1e-280 && scaled < 1e280 && norm < set.bound.largest_norm &&
                   norm * to_row < form.largest_norm && factor <= 0x1p100 && limits.margin < 0x1p100;
  return limits;
}

constexpr int kOfLane = 32;   // scores of a row that a lane has a look at before the row goes on
constexpr int kFewLanes = 8;  // between a thread for a row and a warp
static_assert(kScoreSlack == kWarp * kOfLane);

/// S: float, or what products are.
template <class S>
__device__ void read_products(const Words<4>& words, float (&products)[16 / sizeof(S)]) {
  if constexpr (std::is_same_v<S, float>) {
    for (int w = 0; w < 4; ++w) products[w] = float_of_bits(words.word[w]);
  } else {
    widen<S>(words, products);
  }
}

/// Block (x, y): rows of part y, kLanes lanes a row. Of kOfLane scores in packets a lane keeps the packets' maxima.
/// Where one of a row is above its threshold, which is seldom, the highest packet of the row is read once more, by all
/// its lanes alike, for the row's leaders; then the threshold is higher, and so on. The first products are asked for
/// before anything else, later ones before the ones at hand are looked at.
template <int kLanes, class S>
__global__ void __launch_bounds__(kBlock, 3)
    merge_leaders(ScoreTile tile, NarrowRows z, const TileParts parts, Count* evaluations) {
  constexpr int V = 16 / sizeof(S), kStep = kLanes * V, kRows = kWarp / kLanes, kPackets = kOfLane / V;
  const TilePart& part = parts.part[blockIdx.y];
  const int lane = lane_id() % kLanes, width = static_cast<int>(part.width);
  const unsigned mates = (kLanes == kWarp ? kAllLanes : (1u << kLanes % kWarp) - 1) << (lane_id() - lane);

  for (Index base = warp_id() * kRows; base < tile.rows; base += warp_count() * kRows) {
    const Index i = base + lane_id() / kLanes;
    const bool present = i < tile.rows;
    const S* products = static_cast<const S*>(tile.products) + (present ? i : 0) * tile.pitch + part.column;
    const float* constants = part.set.constants + part.first;
    Words<4> words[kInFlight];
    const auto ask_from = [&](int begin) {
      NCOLLAPSE_UNROLLED
      for (int u = 0; u < kInFlight; ++u)  // maybe beyond the part, which is cheaper than to ask
        words[u] = *reinterpret_cast<const Words<4>*>(products + begin + lane * V + u * kStep);
    };
    ask_from(0);
    __syncwarp();  // over which the compiler moves no load: what follows waits for others
    RowLimits limits;
    if (present) limits = limits_of(z, part.set, tile.form, i);
    const float factor = limits.factor;
    const bool scored = present && limits.certain;
    LeaderList list;
    for (int place = 0; place < kLeaders; ++place) {
      list.scores[place] = kNoFloat;
      list.candidates[place] = -1;
    }
    if (scored && part.first > 0) {
      const auto scores = reinterpret_cast<const FourScores*>(part.leaders.scores)[i];
      const auto candidates = reinterpret_cast<const FourCandidates*>(part.leaders.candidates)[i];
      for (int place = 0; place < kLeaders; ++place) {
        list.scores[place] = scores.value[place];
        list.candidates[place] = candidates.value[place];
      }
    }
    // A score that is not above it is further than 2E below the best, or no better than the fourth.
    const float reach = static_cast<float>(limits.margin) * (1 + 0x1p-20f);
    const auto threshold_of = [&] {
      const float best = list.scores[0];
      return max(best > kNoFloat ? best - reach - (fabsf(best) + reach) * 0x1p-21f : kNoFloat,
                 list.scores[kLeaders - 1]);
    };
    float threshold = scored ? threshold_of() : HUGE_VALF;

    NCOLLAPSE_ROLLED
    for (int begin = 0; begin < width; begin += kPackets * kStep) {
      const int column = begin + lane * V;
      float best[kPackets], top = kNoFloat;
      for (int p = 0; p < kPackets; ++p) best[p] = kNoFloat;
      NCOLLAPSE_UNROLLED
      for (int part_of = 0; part_of < kPackets; part_of += kInFlight) {
        if (begin + part_of * kStep >= width) continue;  // the same for all
        NCOLLAPSE_UNROLLED
        for (int u = 0; u < kInFlight; ++u) {
          const int at = column + (part_of + u) * kStep;
          float product[V], most = kNoFloat;
          read_products<S>(words[u], product);
          for (int v = 0; v < V; v += 4) {
            const auto constant = *reinterpret_cast<const Packet<float>*>(constants + at + v);
            for (int w = 0; w < 4; ++w) most = max(most, product[v + w] + constant.value[w] * factor);
          }
          best[part_of + u] = at < width ? most : kNoFloat;
        }
        const int next = begin + (part_of + kInFlight) * kStep;
        if (next < width) ask_from(next);
      }
      for (int p = 0; p < kPackets; ++p) top = max(top, best[p]);
      NCOLLAPSE_ROLLED
      while (__ballot_sync(kAllLanes, top > threshold) != 0) {
        const float highest = lanes_max(top, kLanes);
        const bool above = highest > threshold;
        const unsigned holders = __ballot_sync(kAllLanes, above && top == highest) & mates;
        const int holder = __ffs(static_cast<int>(holders)) - 1;  // -1: this row has none
        int packet = 0;
        for (int p = kPackets - 1; p >= 0; --p)
          if (best[p] == top) packet = p;
        const int at = __shfl_sync(kAllLanes, column + packet * kStep, max(holder, 0));
        if (above) {
          float product[V];
          Packet<float> constant[V / 4];
          read_products<S>(*reinterpret_cast<const Words<4>*>(products + at), product);
          for (int v = 0; v < V; v += 4) constant[v / 4] = *reinterpret_cast<const Packet<float>*>(constants + at + v);
          for (int v = 0; v < V; ++v) {
            const float score = product[v] + constant[v / 4].value[v % 4] * factor;
            if (score > threshold) list.insert(score, static_cast<std::int32_t>(part.first) + at + v);
          }
          threshold = threshold_of();
        }
        const int spent = lane_id() == holder ? packet : -1;
        top = kNoFloat;
        for (int p = 0; p < kPackets; ++p) {
          best[p] = p == spent ? kNoFloat : best[p];
          top = max(top, best[p]);
        }
      }
    }

    if (!part.last) {  // the same for the whole part
      if (!scored || lane != 0) continue;
      FourScores scores;
      FourCandidates candidates;
      for (int place = 0; place < kLeaders; ++place) {
        scores.value[place] = list.scores[place];
        candidates.value[place] = list.candidates[place];
      }
      reinterpret_cast<FourScores*>(part.leaders.scores)[i] = scores;
      reinterpret_cast<FourCandidates*>(part.leaders.candidates)[i] = candidates;
      continue;
    }
    const Verdicts& verdicts = part.verdicts;
    int open = 0;  // the first leaders that may win
    if (scored)
      for (int place = kLeaders - 1; place > 0; --place)
        if (static_cast<double>(list.scores[0]) - static_cast<double>(list.scores[place]) > limits.margin) open = place;
    const bool answers = present && lane == 0;
    const auto row = tile.list ? tile.list[present ? i : 0] : static_cast<std::int32_t>(tile.first_row + i);
    if (answers && open == 1) verdicts.decisions[row] = list.candidates[0];
    const unsigned few = __ballot_sync(kAllLanes, answers && open > 1),
                   all = __ballot_sync(kAllLanes, answers && open == 0);
    if ((few | all) == 0) continue;
    const Count from_front = append(few, &verdicts.counts[0]), from_back = append(all, &verdicts.counts[1]);
    if (answers && open > 1)
      verdicts.open[from_front] = {row, {list.candidates[0], list.candidates[1], open > 2 ? list.candidates[2] : -1}};
    if (answers && open == 0) verdicts.open[verdicts.rows - 1 - static_cast<Index>(from_back)] = {row, {-1, -1, -1}};
    if (!evaluations) continue;
    const Index wanted = open > 1 ? open : part.set.count;
    const Count total = warp_sum(static_cast<Count>(answers && open != 1 ? wanted : 0));
    if (lane_id() == 0) atomicAdd(evaluations, total);
  }
}

/// A warp per row.
__global__ void find_leads(ScoreTile tile, NarrowRows z, TilePart part, const Index* own, double* leads) {
  for (Index i = warp_id(); i < tile.rows; i += warp_count()) {
    const RowLimits limits = limits_of(z, part.set, tile.form, i);
    const Index row = tile.first_row + i, mine = own ? own[row] : row;
    float score = kNoFloat, rival = kNoFloat;
    for (Index k = lane_id(); k < part.width; k += kWarp) {
      const float value = static_cast<const float*>(tile.products)[i * tile.pitch + part.column + k] +
                          part.set.constants[part.first + k] * limits.factor;
      if (part.first + k == mine)
        score = value;
      else
        rival = max(rival, value);
    }
    score = lanes_max(score, kWarp);
    rival = lanes_max(rival, kWarp);
    if (lane_id() != 0) continue;
    float* so_far = part.leaders.scores + i * kLeaders;
    if (part.first > 0) {
      score = max(score, so_far[0]);
      rival = max(rival, so_far[1]);
    }
    if (!part.last) {
      so_far[0] = score;
      so_far[1] = rival;
      continue;
    }
    const double lead = static_cast<double>(score) - static_cast<double>(rival) - limits.margin;
    leads[row] = limits.certain && lead > 0 ? lead * (z.scales ? z.scales[i] : 1) / part.set.inverse : 0;
  }
}

/// A warp per row.
__global__ void find_farthest(const float* products, Index rows, Index pitch, const double* norms, Index width,
                              double inverse, bool begun, float* farthest) {
  for (Index i = warp_id(); i < rows; i += warp_count()) {
    float best = begun ? farthest[i] : kNoFloat;
    for (Index k = lane_id(); k < width; k += kWarp) {
      const auto norm = static_cast<float>(norms[k] * inverse);
      best = max(best, norm * norm / 2 - products[i * pitch + k]);
    }
    best = lanes_max(best, kWarp);
    if (lane_id() == 0) farthest[i] = best;
  }
}

__device__ void take(Decision& best, const Decision& other) {
  if (other.score > best.score ||
      (other.score == best.score && best.score > kNoScore && other.candidate < best.candidate))
    best = other;
}

/// Columns col and col + 1 of a row; zeros beyond the last one.
template <class T>
__device__ Pair<T> read_pair(const T* row, bool paired, Index col, Index cols) {
  if (paired && col + 2 <= cols) return *reinterpret_cast<const Pair<T>*>(row + col);
  return {col < cols ? row[col] : T{}, col + 1 < cols ? row[col + 1] : T{}};
}

/// The score of a candidate by the whole warp. A lane takes two neighbouring columns, so that doubles are read in whole
/// lines.
template <class T>
__device__ Decision evaluate(const Rows<T>& x, Index i, const ExactSet& set, Index candidate) {
  constexpr Index step = 2 * kWarp;
  const T* h = x.row(i);
  const double* row = set.rows + candidate * x.cols;
  const bool whole = x.cols % 2 == 0;  // then every candidate starts at a multiple of 16 bytes
  double sum = 0;
  const auto add = [&](double value, double other) {
    const double gap = value - other;
    sum = set.bias ? fma(value, other, sum) : fma(gap, gap, sum);  // said, so that every copy of this does the same
  };
  for (Index first = 2 * lane_id(); first < x.cols; first += kInFlight * step) {
    Pair<T> mine[kInFlight];
    Pair<double> theirs[kInFlight];
    NCOLLAPSE_UNROLLED
    for (int u = 0; u < kInFlight; ++u) {
      mine[u] = read_pair(h, x.paired, first + u * step, x.cols);
      theirs[u] = read_pair(row, whole, first + u * step, x.cols);
    }
    NCOLLAPSE_UNROLLED
    for (int u = 0; u < kInFlight; ++u) {
      add(to_double(mine[u].first), theirs[u].first);
      add(to_double(mine[u].second), theirs[u].second);
    }
  }
  sum = warp_sum(sum);
  return {set.bias ? sum + set.bias[candidate] : -sum, candidate};
}

struct ExactSets {
  ExactSet set[2];
};

constexpr Index kSharedOut = 512;  // candidates from which on a row may be given to several blocks
/// Blocks for each row that is open with all candidates, of which every warp gets one at least.
__device__ Index blocks_of_row(Index count, Index rows) {
  return count < kSharedOut || rows == 0 ? 1 : max(Index{1}, min(kExactBlocks / rows, (count + kWarps - 1) / kWarps));
}

__device__ bool has_fault(const BatchRecord* record) {
  return record && (record->bad_labels > 0 || record->nonfinite > 0);
}

/// Set y. Rows with few candidates take a warp each, the others a block, or several where there are few such rows.
template <class T>
__global__ void decide_exactly(Rows<T> x, const ExactSets sets, const BatchRecord* record) {
  const ExactSet set = blockIdx.y == 0 ? sets.set[0] : sets.set[1];
  if (set.count == 0 || has_fault(record)) return;  // the whole block
  const Verdicts verdicts = set.verdicts;
  const auto few = static_cast<Index>(verdicts.counts[0]), all = static_cast<Index>(verdicts.counts[1]);
  NCOLLAPSE_ROLLED
  for (Index at = warp_id(); at < few; at += warp_count()) {
    const OpenRow open = verdicts.open[at];
    Decision best;
    NCOLLAPSE_ROLLED
    for (int place = 0; place < 3; ++place)
      if (open.candidates[place] >= 0) take(best, evaluate(x, open.row, set, open.candidates[place]));
    if (lane_id() == 0) verdicts.decisions[open.row] = static_cast<std::int32_t>(best.candidate);
  }
  Decision* of_warps = shared_memory<Decision>();
  const Index blocks = blocks_of_row(set.count, all);
  NCOLLAPSE_ROLLED
  for (Index at = blockIdx.x; at < all * blocks; at += gridDim.x) {
    const std::int32_t row = verdicts.open[verdicts.rows - 1 - at / blocks].row;
    Decision best;
    NCOLLAPSE_ROLLED
    for (Index k = at % blocks * kWarps + warp_in_block(); k < set.count; k += blocks * kWarps)
      take(best, evaluate(x, row, set, k));
    if (lane_id() == 0) of_warps[warp_in_block()] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < kWarps; ++warp) take(best, of_warps[warp]);
      if (blocks > 1)
        set.parts[at] = best;
      else
        verdicts.decisions[row] = static_cast<std::int32_t>(best.candidate);
    }
    __syncthreads();  // of_warps may be written again
  }
}

/// Of rows that several blocks have evaluated, a warp each: half as many as there are parts, at most.
__global__ void join_parts(const ExactSets sets, const BatchRecord* record) {
  const ExactSet set = blockIdx.y == 0 ? sets.set[0] : sets.set[1];
  if (set.count == 0 || has_fault(record)) return;
  const auto all = static_cast<Index>(set.verdicts.counts[1]);
  const Index blocks = blocks_of_row(set.count, all);
  if (blocks == 1) return;
  for (Index i = warp_id(); i < all; i += warp_count()) {
    Decision best;
    for (Index at = lane_id(); at < blocks; at += kWarp) take(best, set.parts[i * blocks + at]);
    for (int step = kWarp / 2; step > 0; step /= 2)
      take(best, {__shfl_xor_sync(kAllLanes, best.score, step), __shfl_xor_sync(kAllLanes, best.candidate, step)});
    if (lane_id() == 0)
      set.verdicts.decisions[set.verdicts.open[set.verdicts.rows - 1 - i].row] =
          static_cast<std::int32_t>(best.candidate);
  }
}

/// Counts in shared memory (`in_block`) where there is room for them: few classes would share few addresses.
template <class L>
__global__ void count_decisions(const L* labels, Index rows, const std::int32_t* centre, const Index* centre_class,
                                const std::int32_t* classifier, Index classes, bool in_block, const BatchRecord* record,
                                const Count* undecided, Index* counters) {
  if ((record && record->shut) || (undecided && *undecided > 0)) return;  // the whole grid
  unsigned* mine = shared_memory<unsigned>();
  if (in_block) {
    for (Index at = threadIdx.x; at < 4 * classes; at += kBlock) mine[at] = 0;
    __syncthreads();
  }
  const auto add = [&](Index at, Count count) { atomicAdd(reinterpret_cast<Count*>(counters + at), count); };
  const auto increment = [&](Index at) {
    if (in_block)
      atomicAdd(&mine[at], 1u);
    else
      add(at, 1);
  };
  for (Index i = thread_id(); i < rows; i += thread_count()) {
    const auto label = static_cast<Index>(labels[i]);
    const Index nearest = centre ? centre_class[centre[i]] : -1;
    increment(label);
    if (nearest == label) increment(classes + label);
    if (!classifier) continue;
    if (classifier[i] == label) increment(2 * classes + label);
    if (classifier[i] == nearest) increment(3 * classes + label);
  }
  if (!in_block) return;
  __syncthreads();
  for (Index at = threadIdx.x; at < 4 * classes; at += kBlock)
    if (mine[at] > 0) add(at, mine[at]);
}

/// g_n; infinite where n u >= 1.
double relative_error(Index n) {
  const double nu = static_cast<double>(n) * 0x1p-53;
  return nu < 1 ? nu / (1 - nu) : HUGE_VAL;
}

double product_error(Index dim, double largest, double lost, double rounding) {
  const double sum = static_cast<double>(dim + 65) * 0x1p-23;
  return lost + (sum + rounding + sum * rounding) * (largest + lost);
}

}  // namespace

ProductForm narrow_form(Dtype type) {
  if (type == Dtype::bf16) return {2, 0x1p-8, 1, 0x1p-126, HUGE_VAL};
  return {2, 0x1p-10, 0x1p-4, 0x1p-24, 0x1p12};
}

ScoreBound centre_bound(Index dim, double largest_centre, double origin, double lost, double largest_constant,
                        double rounding) {
  const double g = 3 * relative_error(dim + 32), size = origin + largest_centre;
  return {g * size * size + 0x1p-22 * largest_constant, 2 * g * size, g, largest_centre,
          product_error(dim, largest_centre, lost, rounding)};
}

ScoreBound classifier_bound(Index dim, double largest_weights, double origin, double largest_bias, double lost,
                            double largest_constant, double rounding) {
  const double g = relative_error(2 * dim + 64);
  return {g * (largest_weights * origin + largest_bias) + 0x1p-22 * largest_constant, g * largest_weights, 0,
          largest_weights, product_error(dim, largest_weights, lost, rounding)};
}

void allow_for_range(ScoreBound& bound, Dtype type, Index dim) {
  if (type != Dtype::bf16) return;
  bound.constant += static_cast<double>(dim) * 0x1p-124 * bound.candidate;
  bound.largest_norm = 0x1p119;
}

Index columns_of(Index count) { return (count + kScorePacket - 1) / kScorePacket * kScorePacket; }

void launch_merge_leaders(cudaStream_t stream, const ScoreTile& tile, const NarrowRows& z, const TilePart (&parts)[2],
                          Count* evaluations) {
  TileParts given{};
  Index count = 0, width = 0;
  for (const TilePart& part : parts) {
    if (part.width == 0) continue;
    width = std::max(width, part.width);
    given.part[count++] = part;
  }
  const auto start = [&](Index lanes, auto kernel) {
    launch(stream, {blocks_for(tile.rows * lanes), count}, kernel, tile, z, given, evaluations);
  };
  const auto start_for = [&]<class S>(S) {
    if (width <= kOfLane)
      start(1, merge_leaders<1, S>);
    else if (width <= kOfLane * kFewLanes)
      start(kFewLanes, merge_leaders<kFewLanes, S>);
    else
      start(kWarp, merge_leaders<kWarp, S>);
  };
  if (tile.form.bytes == 4)
    start_for(float{});
  else if (z.type == Dtype::bf16)
    start_for(Bfloat16{});
  else
    start_for(Half{});
}

void launch_find_leads(cudaStream_t stream, const ScoreTile& tile, const NarrowRows& z, const TilePart& part,
                       const Index* own, double* leads) {
  launch(stream, {blocks_for(tile.rows, kWarps)}, find_leads, tile, z, part, own, leads);
}

void launch_find_farthest(cudaStream_t stream, const float* products, Index rows, Index pitch, const double* norms,
                          Index width, double unit, bool begun, float* farthest) {
  launch(stream, {blocks_for(rows, kWarps)}, find_farthest, products, rows, pitch, norms, width, 1 / unit, begun,
         farthest);
}

void launch_decide_exactly(cudaStream_t stream, const FeatureBlock& x, const ExactSet (&sets)[2],
                           const BatchRecord* record) {
  ExactSets given{};
  Index count = 0, most = 0;
  for (const ExactSet& set : sets) {
    if (set.count == 0) continue;
    most = std::max(most, set.count);
    given.set[count++] = set;
  }
  // There may be no open row, or as many as there are rows.
  const bool shared_out = most >= kSharedOut;
  const Index blocks = shared_out ? kExactBlocks : std::min(blocks_for(x.rows, kWarps), kExactBlocks);
  const Index shared = kWarps * static_cast<Index>(sizeof(Decision));
  with_element(x.dtype, [&]<class T>(T) {
    launch(stream, {blocks, count, shared}, decide_exactly<T>, rows_of<T>(x), given, record);
  });
  if (shared_out) launch(stream, {blocks_for(kExactBlocks / 2, kWarps), count}, join_parts, given, record);
}

void launch_count_decisions(cudaStream_t stream, const LabelBlock& labels, const std::int32_t* centre,
                            const Index* centre_class, const std::int32_t* classifier, Index classes,
                            const BatchRecord* record, const Count* undecided, Index* counters) {
  constexpr Index kMostInBlock = 2048, kRowsPerThread = 2;
  const bool in_block = classes <= kMostInBlock;
  const Index shared = in_block ? 4 * classes * static_cast<Index>(sizeof(unsigned)) : 0;
  const Index blocks = blocks_for(labels.rows, in_block ? std::max(kRowsPerThread * kBlock, classes) : kBlock);
  with_label(labels.type, [&]<class L>(L) {
    launch(stream, {blocks, 1, shared}, count_decisions<L>, static_cast<const L*>(labels.data), labels.rows, centre,
           centre_class, classifier, classes, in_block, record, undecided, counters);
  });
}

}  // namespace ncollapse::cuda
