// decide_batch: tile by tile, rows are scored by tensor cores against the centres and the classifier at once, as one
// matrix of candidates; then, block by block, what the scores do not certify is evaluated exactly (decide.hpp). Faults
// are noticed on the way; in the end counters grow, unless one has shut the gate (validate.hpp). The features come
// once. The host waits in the end, and seldom before.
//
// A row tile's scores, of all candidates where they are few, stay in the L2 cache; there are two such tiles, so that
// one is made while a second stream takes the leaders out of the other.
//
// Rows start the quick way: those of f16 and bf16 raw (the products read them where they lie, after a look for faults
// that takes their norms), and scores in 16 bits. Whether that certifies enough is seen from the evaluations it leaves:
// the count is looked at after 1, 2, 4, .. tiles (so a pass waits a few times in all), and where there were more than
// one for two rows, which costs about what shifting them does, rows go the fine way from then on: shifted, which finds
// the faults as well, and scores in single precision. Decisions are exact either way, so nothing depends on it but
// time.
//
// Rows within the safe radius of their class need no scores: the look for faults measures how far they are from its
// mean, too, and late in training that is all that happens to nearly all rows. The host then waits for how many are
// left, which are gathered for scores; where the last batch left none, and this one is a single block, it is counted as
// if none was left here either, unless the device finds that some are, which the host sees in the end. The radii come
// from scores of the means themselves, once that is little beside what has been decided.
//
// All that is needed is allocated before the first block is counted: scratch for the larger of the two ways, and
// candidates in place, which are rounded anew in the same memory for the other way.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>

#include "cuda/backend.hpp"
#include "cuda/decide.hpp"
#include "cuda/dense.hpp"
#include "host/safe_radius.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cuda {
namespace {

constexpr int kCentres = 0, kWeights = 1;
constexpr double kSmallestNorm = 1e-140;  // whose squares are far above the least double

Index rounded_up(Index value, Index to) { return (value + to - 1) / to * to; }

double largest(const std::vector<double>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

/// Rounded rows and what belongs to them.
struct NarrowBuffers {
  NarrowBuffers(Queue& queue, Index count, Index dim)
      : padded(padded_columns(dim)),
        rows(queue, count * padded),
        scales(queue, count),
        norms(queue, count),
        lost(queue, count) {}
  /// Rows `first` on.
  void round(cudaStream_t stream, const FeatureBlock& x, const float* origin, Dtype type, Index first,
             Exponents exponents, BatchRecord* record = nullptr, const std::int32_t* list = nullptr,
             Index count = 0) const {
    launch_narrow_rows(stream, x, origin, padded, type, rows.get() + first * padded, scales.get() + first,
                       norms.get() + first, lost.get() + first, exponents, record, list, count);
  }

  Index padded;
  Buffer<std::uint16_t> rows;
  Buffer<double> scales, norms, lost;
};

/// How rows are scored: Dtype::f16 and bf16 as they lie, or shifted; scores in 16 bits or in single precision.
struct Way {
  Dtype type = Dtype::f16;
  bool raw = false, narrow_scores = false;
  bool operator==(const Way&) const = default;
  ProductForm form() const { return narrow_scores ? narrow_form(type) : ProductForm{}; }
};
constexpr Way kFineWay{};

/// On the device. A batch starts with a fresh record, a block with nothing open.
struct Status {
  BatchRecord record;
  unsigned long long open[2][2] = {};
  unsigned long long far = 0;          ///< rows of the block that are not near their mean
  unsigned long long evaluations = 0;  ///< that the quick way left
};

/// Scratch for tiles and blocks, and the decisions of a batch.
struct Space {
  Space(Queue& queue, const Limits& limits, Index dim, Index columns, Index batch, Index block)
      : batch_rows(batch), block_rows(block) {
    const Index scores = limits.row_tile * limits.candidate_tile;  // of a tile, in single precision
    const auto tile = [&](Index row, Index room) {
      const Index fitting = room / std::max<Index>(row, 1) / limits.row_tile * limits.row_tile;
      return std::min(std::max(fitting, limits.row_tile), block);
    };
    const Index tiles = std::max<Index>((columns + limits.candidate_tile - 1) / limits.candidate_tile, 1);
    width = std::min(rounded_up((columns + tiles - 1) / tiles, kScorePacket), columns);
    score_tile = tile(width, scores);
    narrow_score_tile = tile(width, limits.narrow_scores ? 2 * scores : scores);
    shifted_tile = tile(padded_columns(dim), 4 * scores);  // halves: twice the bytes of the scores
    z.emplace(queue, std::min(shifted_tile, narrow_score_tile), dim);
    for (int each = 0; each < limits.score_buffers; ++each) {
      products[each] = Buffer<float>(queue, std::max(score_tile, (narrow_score_tile + 1) / 2) * width + kScoreSlack);
      check(cudaMemsetAsync(products[each].get(), 0, static_cast<std::size_t>(products[each].bytes()), queue.stream()));
    }
    norms = Buffer<double>(queue, block);
    labels = Buffer<std::uint32_t>(queue, block);
    far = Buffer<std::int32_t>(queue, block);
    for (int set = 0; set < 2; ++set) {
      if (width < columns) {
        leader_scores[set] = Buffer<float>(queue, narrow_score_tile * kLeaders);
        leader_candidates[set] = Buffer<std::int32_t>(queue, narrow_score_tile * kLeaders);
      }
      decisions[set] = Buffer<std::int32_t>(queue, batch);
      open[set] = Buffer<OpenRow>(queue, block);
      parts[set] = Buffer<Decision>(queue, kExactBlocks);
    }
  }

  Index batch_rows, block_rows, width;
  Index score_tile, narrow_score_tile, shifted_tile;  ///< rows at once, of either kind of scores and of those in z
  std::optional<NarrowBuffers> z;                     ///< of a shifted tile
  Buffer<float> products[2];                          ///< [tile x width], and kScoreSlack
  Buffer<double> norms;                               ///< of a block's raw rows
  Buffer<std::uint32_t> labels;                       ///< of a block
  Buffer<std::int32_t> far;                           ///< its rows that are not near their mean
  Buffer<float> leader_scores[2];
  Buffer<std::int32_t> leader_candidates[2], decisions[2];
  Buffer<OpenRow> open[2];
  Buffer<Decision> parts[2];
};

/// Rows of a block that are scored together: from `first` on, of the list or as they lie.
struct RowRange {
  Index first = 0, count = 0;
  const std::int32_t* list = nullptr;
};

/// The centres, or the rows of the classifier.
struct CandidateSet {
  Index count = 0, column = 0;  ///< the first one among the columns of all
  const double* exact = nullptr;
  std::vector<double> norms;  ///< |c_k| or |w_k|
  std::vector<double> lost;   ///< what rounding took from each
  std::vector<double> along;  ///< o.c_k or o.w_k
  std::vector<double> bias;
  Candidates scored;

  Index end() const { return column + columns_of(count); }
  std::vector<double> values_of(Queue& queue, const Buffer<double>& of_columns) const {
    std::vector<double> values(static_cast<std::size_t>(count));
    queue.download(values.data(), of_columns.get() + column, count * static_cast<Index>(sizeof(double)));
    return values;
  }
};

}  // namespace

/// What scores need besides the state; see decide.hpp.
struct CudaBackend::Prepared {
  Prepared(std::shared_ptr<Queue> on, const Limits& given)
      : queue(std::move(on)),
        limits(given),
        fresh(*queue, std::vector<Status>(1)),
        status(*queue, std::vector<Status>(1)),
        side(nullptr, Stream::kBeside) {}

  void round_candidates(int which, Dtype type, Exponents exponents) const;
  void make_candidates(Way wanted);
  void score(const FeatureBlock& features, const RowRange& range, const Verdicts (&verdicts)[2]);
  void make_radii(const DecisionState& state);
  std::vector<double> leads(const DecisionState& state, int which);
  std::vector<double> slopes();
  void place_balls(const std::vector<double>& of_centres);
  void find_near(const FeatureBlock& features, const Verdicts (&verdicts)[2]);
  void decide(const DecisionState& state, const FeatureBlock& features, Index first_row, bool more);
  void decide_far(const DecisionState& state, const FeatureBlock& features, Index first_row, Index rows, bool looked,
                  bool more);
  void found_far(Index far, Index rows) {
    look.found(rows - far, rows);
    none_was_far = far == 0;
  }
  void count(DecisionState& state, const LabelBlock& labels, Index first_row);
  Verdicts verdicts_of(int which, Index first_row) const {
    return {space->decisions[which].get() + first_row, space->open[which].get(), status.get()->open[which],
            space->block_rows};
  }
  BatchRecord* record() const { return &status.get()->record; }
  Way quick_way(const FeatureBlock& features) const;
  void judge_quick_way(Index evaluations) { quick_pays = 2 * evaluations <= quick_rows; }
  Index tile_rows(bool in_place) const {
    const Index scored = way->narrow_scores ? space->narrow_score_tile : space->score_tile;
    return in_place ? scored : std::min(scored, space->shifted_tile);
  }
  const std::int32_t* decisions_of(int which, Index first_row) const {
    return sets[which].count == 0 ? nullptr : space->decisions[which].get() + first_row;
  }
  void wait_for_leaders() const {
    for (const Event& each : taken) each.hold(queue->stream());
  }

  std::shared_ptr<Queue> queue;  // first: what follows frees its memory there
  Limits limits;
  Index dim = 0;
  CandidateSet sets[2];  ///< kCentres, kWeights
  Index columns = 0;     ///< of both, those of each in multiples of kScorePacket
  Buffer<float> origin;  ///< [padded]
  double origin_norm = 0;
  int least_exponent = -1000;  ///< of shifted rows: far below the centres nothing needs its digits
  std::optional<NarrowBuffers> candidates;
  Buffer<float> constants;  ///< [columns + kScoreSlack]
  std::optional<Way> way;   ///< for which these and the balls are made
  bool has_bf16 = false, quick_pays = true;
  Index quick_rows = 0, quick_tiles = 0;  ///< that were tried
  Index rows_seen = 0;                    ///< of all batches
  std::vector<double> radii;              ///< [S] of the centres; empty until they pay
  std::vector<Index> centre_class;        ///< [S]
  Buffer<Ball> balls;                     ///< [K] for the way
  Buffer<double> own_leads;               ///< [S]
  Buffer<float> farthest;                 ///< [rows of the classifier]
  LookForNearRows look;
  bool none_was_far = false;  ///< when it looked for the last time
  bool none_is_far = false;   ///< of the batch, if the device agrees
  Buffer<Status> fresh, status;
  std::optional<Space> space;  ///< kept from batch to batch
  Stream side;                 ///< takes the leaders out of the scores, where there are two tiles of them
  Event made[2], taken[2];     ///< of each tile of scores
  int turn = 0;                ///< the one that comes next
};

CudaBackend::Prepared& CudaBackend::prepared(DecisionState& state) {
  if (state.prepared) return *static_cast<Prepared*>(state.prepared.get());
  require_exact_halves(*queue_, "use the CPU");
  auto made = std::make_shared<Prepared>(queue_, limits_);
  made->has_bf16 = narrow_products_are_exact(*queue_, Dtype::bf16);
  made->dim = state.dim;
  const Index d = state.dim, padded = padded_columns(d);

  // Any origin will do: the mean of the centres, rounded to floats where it is one.
  std::vector<double> origin(static_cast<std::size_t>(d), 0.0);
  const Index count = state.centres.rows;
  if (count > 0) {
    const std::vector<double> share(static_cast<std::size_t>(count), 1.0 / static_cast<double>(count));
    origin = weighted_row_sum(state.centres, share);
  }
  std::vector<float> narrow(static_cast<std::size_t>(padded), 0.0f);
  for (std::size_t j = 0; j < origin.size(); ++j) {
    const auto rounded = std::abs(origin[j]) < std::numeric_limits<float>::max() ? static_cast<float>(origin[j]) : 0.0f;
    narrow[j] = rounded;
    origin[j] = rounded;
  }
  made->origin = Buffer<float>(*queue_, narrow);
  const Matrix exact_origin = from_host(origin, 1, d);
  const double origin_square = inner(exact_origin, exact_origin);
  made->origin_norm = std::sqrt(origin_square);

  auto& [centres, weights] = made->sets;
  centres.count = count;
  centres.exact = state.centres.data();
  weights.column = columns_of(count);
  if (state.weights) {
    weights.count = state.weights.rows;
    weights.exact = state.weights.data();
    weights.bias = to_host(state.bias);
  }
  made->columns = weights.column + columns_of(weights.count);
  if (made->columns > std::numeric_limits<std::int32_t>::max())
    throw DeviceError("decisions among more than 2^31 candidates are not possible on a GPU", "use the CPU");
  if (made->columns > 0) {
    made->candidates.emplace(*queue_, made->columns, d);
    check(cudaMemsetAsync(made->candidates->rows.get(), 0, static_cast<std::size_t>(made->candidates->rows.bytes()),
                          queue_->stream()));
    made->constants = Buffer<float>(*queue_, made->columns + kScoreSlack);
  }
  made->centre_class = to_host(state.centre_class);
  made->balls = Buffer<Ball>(*queue_, state.classes);
  made->own_leads = Buffer<double>(*queue_, count);
  made->farthest = Buffer<float>(*queue_, weights.count);
  for (const int which : {kCentres, kWeights}) {
    CandidateSet& set = made->sets[which];
    if (set.count == 0) continue;
    const Matrix& exact = which == kCentres ? state.centres : state.weights;
    set.along = to_host(product(exact, Transpose::no, exact_origin, Transpose::yes));
    if (which == kCentres)
      for (double& value : set.along) value -= origin_square;
    made->round_candidates(which, Dtype::f16, {});
    set.norms = set.values_of(*queue_, made->candidates->norms);
  }
  if (const double size = largest(centres.norms); size > 0 && std::isfinite(size))
    made->least_exponent = std::max(std::ilogb(size) - 66, -1000);
  state.prepared = made;
  return *made;
}

Way CudaBackend::Prepared::quick_way(const FeatureBlock& features) const {
  const bool raw = can_be_raw(features) && (features.dtype == Dtype::f16 || has_bf16);
  const Dtype type = raw ? features.dtype : Dtype::f16;
  return {type, raw, limits.narrow_scores && narrow_results_are_rounded_once(*queue, type)};
}

void CudaBackend::Prepared::round_candidates(int which, Dtype type, Exponents exponents) const {
  const CandidateSet& set = sets[which];
  candidates->round(queue->stream(), {set.exact, Dtype::f64, set.count, dim, dim},
                    which == kCentres ? origin.get() : nullptr, type, set.column, exponents);
}

/// In the memory that they have; waits.
void CudaBackend::Prepared::make_candidates(Way wanted) {
  if (columns == 0 || way == wanted) return;
  way.reset();
  std::vector<float> narrow(static_cast<std::size_t>(constants.size()), -std::numeric_limits<float>::infinity());
  for (const int which : {kCentres, kWeights}) {
    CandidateSet& set = sets[which];
    if (set.count == 0) continue;
    const double size = largest(set.norms);
    // One power of two for all. The norms of this rounding may differ from those in their last bits.
    const int exponent =
        size > 0 && std::isfinite(size) ? std::clamp(std::ilogb(size * (1 + 1e-9)) - 6, -1000, 1000) : 0;
    round_candidates(which, wanted.type, {exponent, exponent});
    set.lost = set.values_of(*queue, candidates->lost);
    const double lost = largest(set.lost);

    std::vector<double> exact;
    double most = 0;
    for (std::size_t k = 0; k < set.norms.size(); ++k) {
      if (which == kCentres)
        exact.push_back(-0.5 * set.norms[k] * set.norms[k] - (wanted.raw ? set.along[k] : 0));
      else
        exact.push_back(set.bias[k] + (wanted.raw ? 0 : set.along[k]));
      if (!(std::abs(exact.back()) <= most)) most = std::abs(exact.back());  // NaN as well
    }
    const int unit = most > 0 && std::isfinite(most) ? std::max(std::ilogb(most) + 1, -1000) : 0;
    set.scored = {set.count,
                  constants.get() + set.column,
                  most > 0 ? std::ldexp(1.0, unit - exponent) : 0,
                  std::ldexp(1.0, -exponent),
                  {}};
    ScoreBound& bound = set.scored.bound;
    if (which == kCentres) {
      bound = centre_bound(dim, size, wanted.raw ? origin_norm : 0, lost, most, wanted.form().rounding);
    } else {
      double bias = 0;
      for (const double value : set.bias) bias = std::max(bias, std::abs(value));
      bound = classifier_bound(dim, size, wanted.raw ? 0 : origin_norm, bias, lost, most, wanted.form().rounding);
    }
    if (wanted.raw) allow_for_range(bound, wanted.type, dim);
    // Near the ends of the doubles nothing is certified: there constants overflow, and norms lose squares.
    const bool held =
        std::isfinite(most) && (most == 0 || std::isnormal(set.scored.factor)) && (size == 0 || size > kSmallestNorm);
    if (!held) bound.constant = HUGE_VAL;
    for (std::size_t k = 0; k < exact.size(); ++k)
      narrow[static_cast<std::size_t>(set.column) + k] = held ? static_cast<float>(std::ldexp(exact[k], -unit)) : 0.0f;
  }
  queue->upload(constants.get(), narrow.data(), constants.bytes());
  if (!radii.empty()) place_balls(radii);
  queue->wait();
  way = wanted;
}

/// By how much the score of each mean's own class leads at the mean.
std::vector<double> CudaBackend::Prepared::leads(const DecisionState& state, int which) {
  const CandidateSet& set = sets[which];
  const NarrowBuffers& z = *space->z;
  float* products = space->products[0].get();
  const Index tile = tile_rows(false);
  for (Index first = 0; first < state.centres.rows; first += tile) {
    const Index rows = std::min(tile, state.centres.rows - first);
    const FeatureBlock means{state.centres.data() + first * dim, Dtype::f64, rows, dim, dim};
    z.round(queue->stream(), means, origin.get(), Dtype::f16, 0, {least_exponent, 1000});
    for (Index column = set.column; column < set.end(); column += space->width) {
      const Index width = std::min(space->width, set.end() - column);
      multiply_narrow(*queue, Dtype::f16, z.rows.get(), z.padded, rows, candidates->rows.get() + column * z.padded,
                      z.padded, width, z.padded, products, width);
      launch_find_leads(queue->stream(), {products, rows, width, first},
                        {Dtype::f16, z.rows.get(), z.padded, z.scales.get(), z.norms.get(), z.lost.get()},
                        {set.scored,
                         0,
                         width,
                         column - set.column,
                         column + width == set.end(),
                         {space->leader_scores[which].get(), nullptr},
                         {}},
                        which == kCentres ? nullptr : state.centre_class.data(), own_leads.get());
    }
  }
  std::vector<double> values(static_cast<std::size_t>(state.centres.rows));
  queue->download(values.data(), own_leads.get(), own_leads.bytes());
  return values;
}

/// At least max_j |w_k - w_j|, from |w_k|^2 + 2 max_j (|w_j|^2/2 - w_k.w_j), in units of the candidates' power of two:
/// with W the largest norm and R what rounding took, at most, products of rounded rows are off by 2 R W + R^2 and
/// (d + 65) 2^-23 (W + R)^2, what is made of them in single precision by 2^-22 (W + R)^2.
std::vector<double> CudaBackend::Prepared::slopes() {
  const CandidateSet& set = sets[kWeights];
  const Index padded = candidates->padded;
  const auto rows_at = [&](Index column) { return candidates->rows.get() + column * padded; };
  float* products = space->products[0].get();
  const double unit = 1 / set.scored.inverse;
  for (Index first = 0; first < set.count; first += space->score_tile) {
    const Index rows = std::min(space->score_tile, set.count - first);
    for (Index column = set.column; column < set.end(); column += space->width) {
      const Index width = std::min(space->width, set.end() - column), begin = column - set.column;
      multiply_narrow(*queue, Dtype::f16, rows_at(set.column + first), padded, rows, rows_at(column), padded, width,
                      padded, products, width);
      launch_find_farthest(queue->stream(), products, rows, width, candidates->norms.get() + column,
                           std::min(width, set.count - begin), unit, begin > 0, farthest.get() + first);
    }
  }
  std::vector<float> found(static_cast<std::size_t>(set.count));
  queue->download(found.data(), farthest.get(), farthest.bytes());
  const double most = largest(set.norms), W = most / unit, R = largest(set.lost) / unit;
  const double error = 2 * R * W + R * R + static_cast<double>(dim + 67) * 0x1p-23 * (W + R) * (W + R);
  std::vector<double> slope;
  for (std::size_t k = 0; k < found.size(); ++k) {
    const double own = set.norms[k] / unit;
    const double steepest = unit * std::sqrt(own * own + 2 * (static_cast<double>(found[k]) + 1.001 * error));
    slope.push_back(steepest < set.norms[k] + most ? steepest : set.norms[k] + most);  // not NaN
  }
  return slope;
}

void CudaBackend::Prepared::make_radii(const DecisionState& state) {
  make_candidates(kFineWay);
  const auto rounding_of = [&](int which) {
    const ScoreBound& bound = sets[which].scored.bound;
    return [&bound](double size) { return bound.constant + size * (bound.linear + size * bound.quadratic); };
  };
  const CandidateSet &centres = sets[kCentres], &weights = sets[kWeights];
  std::vector<double> found = leads(state, kCentres);
  for (std::size_t s = 0; s < found.size(); ++s)
    found[s] = safe_centre_radius(found[s], centres.norms[s], rounding_of(kCentres));
  if (weights.count > 0) {
    const std::vector<double> classifier = leads(state, kWeights), slope = slopes();
    for (std::size_t s = 0; s < found.size(); ++s)
      found[s] =
          std::min(found[s], safe_classifier_radius(classifier[s], slope[static_cast<std::size_t>(centre_class[s])],
                                                    centres.norms[s], rounding_of(kWeights)));
  }
  place_balls(found);
  radii = std::move(found);  // now that they can be used
}

/// As the candidates are rounded now.
void CudaBackend::Prepared::place_balls(const std::vector<double>& of_centres) {
  const CandidateSet& set = sets[kCentres];
  std::vector<Ball> of_class(static_cast<std::size_t>(balls.size()));
  const double unit = 1 / set.scored.inverse;
  const bool held = static_cast<double>(static_cast<float>(unit)) == unit && std::isnormal(static_cast<float>(unit));
  for (std::size_t s = 0; s < of_centres.size() && held; ++s) {
    const double near = near_radius(of_centres[s], set.norms[s], set.lost[s], dim);
    of_class[static_cast<std::size_t>(centre_class[s])] = {near * near, static_cast<std::int32_t>(s)};
  }
  queue->upload(balls.get(), of_class.data(), balls.bytes());
}

/// Looks for faults in a block, and decides what is near its mean. The others are listed in space->far.
void CudaBackend::Prepared::find_near(const FeatureBlock& features, const Verdicts (&verdicts)[2]) {
  const CandidateSet& set = sets[kCentres];
  const NearRows near{space->labels.get(),
                      balls.get(),
                      way->type,
                      candidates->rows.get() + set.column * candidates->padded,
                      candidates->padded,
                      static_cast<float>(1 / set.scored.inverse),
                      origin.get(),
                      verdicts[kCentres].decisions,
                      sets[kWeights].count > 0 ? verdicts[kWeights].decisions : nullptr,
                      space->far.get(),
                      &status.get()->far};
  launch_find_near_rows(queue->stream(), features, near, record());
}

/// Scores a row tile of a block, and certifies or opens its rows.
void CudaBackend::Prepared::score(const FeatureBlock& features, const RowRange& range, const Verdicts (&verdicts)[2]) {
  const cudaStream_t stream = queue->stream();
  const NarrowBuffers& copied = *space->z;
  const std::int32_t* list = range.list ? range.list + range.first : nullptr;
  FeatureBlock x = features;
  if (!list) {
    x.data = static_cast<const char*>(x.data) + range.first * x.stride * size_of(x.dtype);
    x.rows = range.count;
  }
  NarrowRows z;
  if (!way->raw) {
    copied.round(stream, x, origin.get(), Dtype::f16, 0, {least_exponent, 1000}, record(), list, range.count);
    z = {Dtype::f16, copied.rows.get(), copied.padded, copied.scales.get(), copied.norms.get(), copied.lost.get()};
  } else if (list) {
    launch_gather_rows(stream, x, list, range.count, copied.padded, copied.rows.get(), copied.norms.get());
    z = {x.dtype, copied.rows.get(), copied.padded, nullptr, copied.norms.get(), nullptr};
  } else {
    z = {x.dtype, x.data, x.stride, nullptr, space->norms.get() + range.first, nullptr};
  }
  const ProductForm form = way->form();
  // Rows that are copied have to wait for what their copies are taken from: with one product a row tile, beside
  // nothing.
  const bool two_tiles = limits.score_buffers > 1 && (z.rows == x.data || space->width < columns);
  for (Index column = 0; column < columns; column += space->width) {
    const Index width = std::min(space->width, columns - column);
    float* products = space->products[turn].get();
    if (two_tiles) taken[turn].hold(stream);
    const std::uint16_t* theirs = candidates->rows.get() + column * candidates->padded;
    const Index terms = way->raw ? x.cols : candidates->padded;
    if (form.bytes == 2)
      multiply_narrow(*queue, z.type, z.rows, z.stride, range.count, theirs, candidates->padded, width, terms,
                      static_cast<float>(form.scale), reinterpret_cast<std::uint16_t*>(products), width);
    else
      multiply_narrow(*queue, z.type, z.rows, z.stride, range.count, theirs, candidates->padded, width, terms, products,
                      width);
    if (two_tiles) {
      made[turn].record(stream);
      made[turn].hold(side.get());
    }
    TilePart parts[2];
    for (const int which : {kCentres, kWeights}) {
      const CandidateSet& set = sets[which];
      const Index begin = std::max(column, set.column), end = std::min(column + width, set.end());
      if (begin >= end) continue;
      parts[which] = {set.scored,       begin - column,
                      end - begin,      begin - set.column,
                      end == set.end(), {space->leader_scores[which].get(), space->leader_candidates[which].get()},
                      verdicts[which]};
    }
    launch_merge_leaders(two_tiles ? side.get() : stream, {products, range.count, width, range.first, list, form}, z,
                         parts, *way == kFineWay ? nullptr : &status.get()->evaluations);
    if (!two_tiles) continue;
    taken[turn].record(side.get());
    turn = 1 - turn;
  }
  if (two_tiles && z.rows != x.data) wait_for_leaders();  // they read what belongs to z
}

/// Looks for faults in a block, from row first_row of the batch on, and decides it. more: there is another.
void CudaBackend::Prepared::decide(const DecisionState& state, const FeatureBlock& features, Index first_row,
                                   bool more) {
  check(cudaMemsetAsync(status.get()->open, 0, sizeof(Status::open) + sizeof(Status::far), queue->stream()));
  if (radii.empty() || !look.pays()) return decide_far(state, features, first_row, features.rows, false, more);
  find_near(features, {verdicts_of(kCentres, first_row), verdicts_of(kWeights, first_row)});
  none_is_far = none_was_far && first_row == 0 && !more;
  if (none_is_far) return;
  unsigned long long far = 0;
  queue->download(&far, &status.get()->far, sizeof far);
  found_far(static_cast<Index>(far), features.rows);
  decide_far(state, features, first_row, static_cast<Index>(far), true, more);
}

/// Decides what is left of a block, so many rows. looked: those in space->far, else all.
void CudaBackend::Prepared::decide_far(const DecisionState& state, const FeatureBlock& features, Index first_row,
                                       Index rows, bool looked, bool more) {
  const cudaStream_t stream = queue->stream();
  const WaitOnException guard(side.get());
  const Verdicts verdicts[2] = {verdicts_of(kCentres, first_row), verdicts_of(kWeights, first_row)};
  const std::int32_t* list = looked ? space->far.get() : nullptr;
  if (looked && way->raw && 2 * rows >= features.rows) {  // to gather them is to read, write, and read them again
    list = nullptr;
    rows = features.rows;
  }
  if (columns == 0 || (way->raw && !list)) launch_check_rows(stream, features, space->norms.get(), record());
  for (Index first = 0; columns > 0 && first < rows;) {
    const Index count = std::min(tile_rows(way->raw && !list), rows - first);
    score(features, {first, count, list}, verdicts);
    first += count;
    if (*way == kFineWay) continue;
    quick_rows += count;
    if (!std::has_single_bit(static_cast<std::uint64_t>(++quick_tiles))) continue;
    if (first == rows && !more) continue;  // the end of the batch is looked at anyway
    wait_for_leaders();
    Status so_far;
    queue->download(&so_far, status.get(), sizeof so_far);
    if (so_far.record.nonfinite == 0) judge_quick_way(static_cast<Index>(so_far.evaluations));
    if (!quick_pays) make_candidates(kFineWay);
  }
  wait_for_leaders();
  ExactSet exact[2];
  for (const int which : {kCentres, kWeights}) {
    if (sets[which].count == 0) continue;
    exact[which] = {sets[which].count, sets[which].exact, which == kCentres ? nullptr : state.bias.data(),
                    verdicts[which], space->parts[which].get()};
  }
  if (rows > 0 && columns > 0) launch_decide_exactly(stream, features, exact, record());
}

void CudaBackend::Prepared::count(DecisionState& state, const LabelBlock& labels, Index first_row) {
  launch_count_decisions(queue->stream(), labels, decisions_of(kCentres, first_row), state.centre_class.data(),
                         decisions_of(kWeights, first_row), state.classes, record(),
                         none_is_far ? &status.get()->far : nullptr, state.counters.data());
}

BatchFaults CudaBackend::decide_batch(DecisionState& state, const MatrixView& features, const LabelView& labels) {
  if (features.rows == 0) return {};
  const Turn turn(*queue_);
  if (queue_->capturing())
    throw UsageError("decisions cannot be captured in a CUDA graph: the host waits for what is wrong with a batch",
                     "count them outside of the capture");
  const cudaStream_t stream = queue_->stream();
  Batch batch(*queue_, *staging_, limits_, features, labels);
  Prepared& prepared = this->prepared(state);
  Status* status = prepared.status.get();
  queue_->copy(status, prepared.fresh.get(), offsetof(Status, evaluations));
  prepared.none_is_far = false;

  batch.load(0);  // every block lies as the first one does
  Index batch_rows = features.rows, block_rows = batch.block_rows();
  if (auto& space = prepared.space; !space || batch_rows > space->batch_rows || block_rows > space->block_rows) {
    if (space) {  // room for batches as before, too: they may come again
      batch_rows = std::max(batch_rows, space->batch_rows);
      block_rows = std::max(block_rows, space->block_rows);
    }
    space.reset();
    space.emplace(*queue_, limits_, state.dim, prepared.columns, batch_rows, block_rows);
  }
  prepared.rows_seen += features.rows;
  if (prepared.radii.empty() && state.centres.rows > 0 && prepared.rows_seen / kRowsPerRadius >= state.centres.rows)
    prepared.make_radii(state);
  prepared.make_candidates(prepared.quick_pays ? prepared.quick_way(batch.features()) : kFineWay);

  for (Index b = 0; b < batch.blocks(); ++b) {
    const bool last = b + 1 == batch.blocks();
    batch.load(b);
    launch_find_bad_labels(stream, batch.labels(), batch.first_row(b), state.classes, prepared.record(),
                           prepared.space->labels.get());
    prepared.decide(state, batch.features(), batch.first_row(b), !last);
    launch_settle(stream, batch.labels(), batch.first_row(b), last ? features.rows : 0, true, prepared.record());
  }
  for (Index b = 0; b < batch.blocks(); ++b) {
    batch.load(b, false);
    prepared.count(state, batch.labels(), batch.first_row(b));
  }

  Status found;
  queue_->download(&found, status, sizeof found);
  if (prepared.none_is_far) {
    prepared.none_is_far = false;
    prepared.found_far(static_cast<Index>(found.far), features.rows);
    if (found.far > 0 && found.record.nonfinite == 0 && found.record.bad_labels == 0) {  // nothing is counted yet
      batch.load(0);
      prepared.decide_far(state, batch.features(), 0, static_cast<Index>(found.far), true, false);
      prepared.count(state, batch.labels(), 0);
      queue_->download(&found, status, sizeof found);
    }
  }
  if (found.record.nonfinite > 0) {  // how many, and where the first one is
    queue_->copy(status, prepared.fresh.get(), offsetof(Status, evaluations));
    batch.check(state.classes, true, prepared.record());
    queue_->download(&found, status, sizeof found);
  }
  BatchFaults faults = faults_of(found.record, state.dim);
  faults.batch = -1;
  if (faults.any()) return faults;
  prepared.judge_quick_way(static_cast<Index>(found.evaluations));
  return {};
}

}  // namespace ncollapse::cuda
