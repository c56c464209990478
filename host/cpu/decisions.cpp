// Decisions of the classifier and of the nearest class centre, exactly, at the speed of single precision.
//
// With an origin o (the mean of the centres), z = h - o, c_k = m_k - o:
//   argmin |h - m_k|^2 = argmax  z.c_k - |c_k|^2/2,      argmax w_k.h + b_k = argmax  z.w_k + (w_k.o + b_k).
// Scores of both are made by sgemm from z, c, w rounded to float (unit roundoff u = 2^-24). Rounding the two factors
// and summing d products in any order errs by at most ((1+u)^2 (1 + g_d) - 1) |z||c_k| <= (d+3) u/(1-(d+3)u) |z||c_k|,
// g_n = n u/(1-n u) (Higham 2002, section 3); adding the constant in float adds 2u of the two terms. A row
// is decided by floats only if its best score leads by more than twice the largest such bound, with the (far smaller)
// rounding of the constants and of the double formulas added; every other row
// (and any row whose scores overflow: a NaN certifies nothing) is evaluated in double by the formulas themselves, each
// class by the same sequence of operations, so that equal centres tie exactly and the lowest class wins.
//
// Rows within the safe radius of their class need no scores (host/safe_radius.hpp), only their distance from its mean.
// Late in training these are nearly all rows. The radii cost as much as scores of two rows a class, so they are made
// once that is little beside what has been decided.
#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>

#include "host/cpu/batch_checks.hpp"
#include "host/cpu/cpu_backend.hpp"
#include "host/cpu/elements.hpp"
#include "host/cpu/parallel_blas.hpp"
#include "host/safe_radius.hpp"

namespace ncollapse::cpu {

namespace {

constexpr Index kRowTile = 256, kClassTile = 512;  // a tile's rows and scores stay in a core's own cache
constexpr Index kCachedDoubles = Index{1} << 16;   // of means, which then stay there as well
constexpr double kUnitRoundoff = 0x1p-24;
constexpr Index kUndecided = -1;
// Outside this range floats overflow, or lose digits as subnormals; then nothing is certified.
constexpr double kSmallest = 1e-18, kLargest = 1e18;

// One set of candidates (centres or classifier rows) prepared for float scoring.
struct Scorer {
  Index count = 0;
  std::vector<float> rows;       // [count x d]
  std::vector<float> constants;  // [count]
  std::vector<double> norms;     // [count], of exact rows
  double largest_norm = 0, largest_constant = 0;
  // Rounding in double, of the constant and of the direct formula, at a row of norm |z|:  offset + slope |z| + curve
  // |z|^2.
  double offset = 0, slope = 0, curve = 0;

  double rounding(double z) const { return offset + (slope + curve * z) * z; }
};

// Best and second-best score of a row over the class tiles seen so far.
struct Leader {
  float best = -std::numeric_limits<float>::infinity(), second = -std::numeric_limits<float>::infinity();
  Index index = kUndecided;
  bool clean = true;  // no NaN was seen
};

// What one thread works with.
struct Workspace {
  explicit Workspace(Index dim)
      : z(static_cast<std::size_t>(kRowTile * dim)),
        scores(kRowTile * kClassTile),
        norms(kRowTile),
        leaders(kRowTile) {}
  std::vector<float> z, scores;
  std::vector<double> norms;
  std::vector<Leader> leaders;
};

// Rows of the class that lie in it are decided for the class. No row lies in that of a class without a centre.
struct Ball {
  const double* centre;
  double radius_squared = 0;
};

struct Prepared {
  std::vector<double> origin;  // [d]
  Scorer centres, classifier;
  std::vector<Workspace> workspaces;  // one a thread, kept from batch to batch
  Index rows_seen = 0;                // of all batches
  std::vector<Ball> balls;            // [classes]; empty until they pay
  LookForNearRows look;
  std::vector<Index> far;  // rows of a batch that need scores
};

// Squares and products of such lengths are floats.
bool safe(double length) { return length == 0 || (length > kSmallest && length < kLargest); }

double norm(const double* row, Index dim) {
  double sum = 0;
  for (Index j = 0; j < dim; ++j) sum += row[j] * row[j];
  return std::sqrt(sum);
}

void finish(Scorer& scorer, Index k, const double* row, double constant, Index dim) {
  for (Index j = 0; j < dim; ++j) scorer.rows[k * dim + j] = static_cast<float>(row[j]);
  scorer.constants[k] = static_cast<float>(constant);
  scorer.norms[k] = norm(row, dim);
  scorer.largest_norm = std::max(scorer.largest_norm, scorer.norms[k]);
  scorer.largest_constant = std::max(scorer.largest_constant, std::abs(constant));
}

Scorer make_scorer(Index count, Index dim) {
  Scorer scorer;
  scorer.count = count;
  scorer.rows.resize(static_cast<std::size_t>(count * dim));
  scorer.constants.resize(static_cast<std::size_t>(count));
  scorer.norms.resize(static_cast<std::size_t>(count));
  return scorer;
}

std::shared_ptr<Prepared> prepare(const DecisionState& state, int threads) {
  const Index dim = state.dim, count = state.centres.rows;
  auto prepared = std::make_shared<Prepared>();
  prepared->workspaces.assign(static_cast<std::size_t>(threads), Workspace(dim));
  auto& origin = prepared->origin;
  origin.assign(static_cast<std::size_t>(dim), 0.0);
  for (Index k = 0; k < count; ++k)
    for (Index j = 0; j < dim; ++j) origin[j] += state.centres.data()[k * dim + j] / static_cast<double>(count);

  std::vector<double> row(static_cast<std::size_t>(dim));
  prepared->centres = make_scorer(count, dim);
  for (Index k = 0; k < count; ++k) {
    double squares = 0;
    for (Index j = 0; j < dim; ++j) {
      row[j] = state.centres.data()[k * dim + j] - origin[j];
      squares += row[j] * row[j];
    }
    finish(prepared->centres, k, row.data(), -squares / 2, dim);
  }
  // Direct: |h - m|^2/2 of size (|z| + |c|)^2/2, a sum of d terms; o and c are themselves rounded.
  const double g = 2 * (static_cast<double>(dim) + 8) * 0x1p-53, reach = norm(origin.data(), dim);
  Scorer& centres = prepared->centres;
  centres.offset = g * centres.largest_norm * (centres.largest_norm + reach);
  centres.slope = g * (2 * centres.largest_norm + reach);
  centres.curve = g;
  if (!state.weights) return prepared;
  prepared->classifier = make_scorer(state.classes, dim);
  double largest_bias = 0;
  for (Index k = 0; k < state.classes; ++k) {
    const double* weights = state.weights.data() + k * dim;
    double constant = state.bias.data()[k];
    for (Index j = 0; j < dim; ++j) constant += weights[j] * origin[j];
    finish(prepared->classifier, k, weights, constant, dim);
    largest_bias = std::max(largest_bias, std::abs(state.bias.data()[k]));
  }
  // Direct: w.h + b, a sum of d + 1 terms, |h| <= |z| + |o|; the constant w.o + b likewise.
  prepared->classifier.offset = g * (2 * prepared->classifier.largest_norm * reach + 2 * largest_bias);
  prepared->classifier.slope = g * prepared->classifier.largest_norm;
  return prepared;
}

// z = x - origin, rounded to float; returns |z|.
template <class T>
NCOLLAPSE_VECTORISED double narrow(const T* x, const double* origin, float* z, Index dim) {
  alignas(64) float wide[kBlock];
  double squares = 0;
  for (Index block = 0; block < dim; block += kBlock) {
    const Index end = std::min(block + kBlock, dim);
    const auto* row = widen(x, block, end, wide);
    const double* from = origin + block;
    float* to = z + block;
#pragma omp simd reduction(+ : squares)
    for (Index j = 0; j < end - block; ++j) {
      const double value = row[j] - from[j];
      to[j] = static_cast<float>(value);
      squares += value * value;
    }
  }
  return std::sqrt(squares);
}

NCOLLAPSE_VECTORISED float add_and_max(float* scores, const float* constants, Index count, bool& clean) {
  float largest = -std::numeric_limits<float>::infinity();
  int bad = 0;
#pragma omp simd reduction(max : largest) reduction(+ : bad)
  for (Index k = 0; k < count; ++k) {
    const float score = scores[k] + constants[k];
    scores[k] = score;
    bad += score != score;
    largest = score > largest ? score : largest;
  }
  clean = bad == 0;
  return largest;
}

NCOLLAPSE_VECTORISED float largest_of(const float* scores, Index count) {
  float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
  for (Index k = 0; k < count; ++k) largest = scores[k] > largest ? scores[k] : largest;
  return largest;
}

void scan(float* scores, const float* constants, Index first, Index count, Leader& leader) {
  bool clean = true;
  const float best = add_and_max(scores, constants, count, clean);
  leader.clean = leader.clean && clean;
  if (!clean) return;
  if (best <= leader.best) {  // later classes win nothing from a tie
    leader.second = std::max(leader.second, best);
    return;
  }
  Index at = 0;
  while (scores[at] != best) ++at;
  const float second = std::max(largest_of(scores, at), largest_of(scores + at + 1, count - at - 1));
  leader.second = std::max(leader.best, second);
  leader.best = best;
  leader.index = first + at;
}

// Leaders of a tile of rows.
void score_tile(const Scorer& scorer, const std::vector<float>& constants, Workspace& work, Index rows, Index dim) {
  std::fill_n(work.leaders.begin(), rows, Leader{});
  for (Index first = 0; first < scorer.count; first += kClassTile) {
    const Index count = std::min(kClassTile, scorer.count - first);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(rows), static_cast<int>(count),
                static_cast<int>(dim), 1.0F, work.z.data(), static_cast<int>(dim), scorer.rows.data() + first * dim,
                static_cast<int>(dim), 0.0F, work.scores.data(), static_cast<int>(count));
    for (Index i = 0; i < rows; ++i)
      scan(work.scores.data() + i * count, constants.data() + first, first, count, work.leaders[i]);
  }
}

// Of a product in floats and the constant added to it, relative to the norms' product.
double product_error(Index dim) {
  const double n = static_cast<double>(dim) + 3;
  return n * kUnitRoundoff / (1 - n * kUnitRoundoff) + 2 * kUnitRoundoff;
}

// Covers products and operands that underflow; `norms`: the sum of both.
double underflow(Index dim, double norms) { return static_cast<double>(dim + 2) * 0x1p-126 * (2 + norms); }

// By how much the best score of a row of norm z leads for certain, in exact numbers and in those of the direct formula;
// 0 where that is nothing.
double certain_lead(const Scorer& scorer, const Leader& leader, double z, Index dim) {
  if (!(safe(z) && safe(scorer.largest_norm) && scorer.largest_constant < kLargest)) return 0;
  if (!leader.clean || !std::isfinite(leader.best)) return 0;
  const double factor = product_error(dim);
  if (!(factor > 0)) return 0;
  if (scorer.count == 1) return std::numeric_limits<double>::infinity();
  const double bound = factor * z * scorer.largest_norm + 2 * kUnitRoundoff * scorer.largest_constant +
                       scorer.rounding(z) + underflow(dim, z + scorer.largest_norm);
  const double lead = static_cast<double>(leader.best) - static_cast<double>(leader.second) - 2.0001 * bound;
  return lead > 0 ? lead : 0;  // not NaN
}

// Float decisions of a tile of rows; kUndecided where they are not certain.
void decide_tile(const Scorer& scorer, Workspace& work, Index rows, Index dim) {
  score_tile(scorer, scorer.constants, work, rows, dim);
  for (Index i = 0; i < rows; ++i)
    if (certain_lead(scorer, work.leaders[i], work.norms[i], dim) == 0) work.leaders[i].index = kUndecided;
}

template <class T>
NCOLLAPSE_VECTORISED double squared_distance(const T* x, const double* centre, Index dim) {
  alignas(64) float wide[kBlock];
  double sum = 0;
  for (Index block = 0; block < dim; block += kBlock) {
    const Index end = std::min(block + kBlock, dim);
    const auto* row = widen(x, block, end, wide);
    const double* from = centre + block;
#pragma omp simd reduction(+ : sum)
    for (Index j = 0; j < end - block; ++j) {
      const double gap = row[j] - from[j];
      sum += gap * gap;
    }
  }
  return sum;
}

/// Four rows, each with the ball of its class. Four at a time, so that more of them are on their way from memory.
template <class T>
struct Rows {
  const T* x[4];
  const Ball* balls[4];
};

/// Adds what the columns from `begin` to `end` - 1, kBlock at most, contribute to |x - centre|^2.
template <class T>
NCOLLAPSE_VECTORISED void add_squared_distances(const Rows<T>& rows, Index begin, Index end, double squared[4]) {
  alignas(64) float wide[4][kBlock];
  const auto *x0 = widen(rows.x[0], begin, end, wide[0]), *x1 = widen(rows.x[1], begin, end, wide[1]),
             *x2 = widen(rows.x[2], begin, end, wide[2]), *x3 = widen(rows.x[3], begin, end, wide[3]);
  const double *c0 = rows.balls[0]->centre + begin, *c1 = rows.balls[1]->centre + begin,
               *c2 = rows.balls[2]->centre + begin, *c3 = rows.balls[3]->centre + begin;
  double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (Index j = 0; j < end - begin; ++j) {
    const double a = x0[j] - c0[j], b = x1[j] - c1[j], c = x2[j] - c2[j], d = x3[j] - c3[j];
    s0 += a * a;
    s1 += b * b;
    s2 += c * c;
    s3 += d * d;
  }
  squared[0] += s0;
  squared[1] += s1;
  squared[2] += s2;
  squared[3] += s3;
}

/// Bit r: row r lies in its ball. `next`: what is asked next. Only its rows are fetched: centres come in the order of
/// classes, which the processor sees by itself, and asking for them as well takes longer.
template <class T>
unsigned held(const Rows<T>& rows, Index dim, const Rows<T>& next) {
  double squared[4] = {};
  unsigned inside = 0xf;
  for (Index block = 0; block < dim && inside != 0; block += kBlock) {
    const Index end = std::min(block + kBlock, dim);
    for (const T* row : next.x) fetch(row, block, end);
    add_squared_distances(rows, block, end, squared);
    for (unsigned r = 0; r < 4; ++r)
      if (!(squared[r] < rows.balls[r]->radius_squared)) inside &= ~(1U << r);  // or NaN
  }
  return inside;
}

template <class T>
NCOLLAPSE_VECTORISED double dot(const T* x, const double* weights, Index dim) {
  alignas(64) float wide[kBlock];
  double sum = 0;
  for (Index block = 0; block < dim; block += kBlock) {
    const Index end = std::min(block + kBlock, dim);
    const auto* row = widen(x, block, end, wide);
    const double* by = weights + block;
#pragma omp simd reduction(+ : sum)
    for (Index j = 0; j < end - block; ++j) sum += row[j] * by[j];
  }
  return sum;
}

template <class T>
Index nearest_centre(const T* x, const Matrix& centres, Index dim) {
  Index best = 0;
  double smallest = std::numeric_limits<double>::infinity();
  for (Index k = 0; k < centres.rows; ++k) {
    const double squared = squared_distance(x, centres.data() + k * dim, dim);
    if (squared < smallest) {
      smallest = squared;
      best = k;
    }
  }
  return best;
}

template <class T>
Index best_class(const T* x, const Matrix& weights, const Matrix& bias, Index dim) {
  Index best = 0;
  double largest = -std::numeric_limits<double>::infinity();
  for (Index k = 0; k < weights.rows; ++k) {
    const double score = dot(x, weights.data() + k * dim, dim) + bias.data()[k];
    if (score > largest) {
      largest = score;
      best = k;
    }
  }
  return best;
}

// body(workspace, first, count) for tiles of kRowTile rows. Each thread takes whole tiles, products included: one
// parallel region, no barrier inside it.
template <class Body>
void for_each_tile(Prepared& prepared, Index rows, int threads, Body body) {
  const Index tiles = (rows + kRowTile - 1) / kRowTile;
  const BlasThreads guard(1);
#pragma omp parallel num_threads(static_cast <int>(std::clamp <Index>(tiles, 1, threads)))
  {
    Workspace& work = prepared.workspaces[static_cast<std::size_t>(omp_get_thread_num())];
#pragma omp for schedule(dynamic)
    for (Index tile = 0; tile < tiles; ++tile) body(work, tile * kRowTile, std::min(kRowTile, rows - tile * kRowTile));
  }
}

// At least max_j |w_k - w_j|, from `farthest`, the leader of max_j |w_j|^2/2 - w_k.w_j.
double steepest(const Scorer& classifier, Index k, const Leader& farthest, Index dim) {
  const double own = classifier.norms[k], largest = classifier.largest_norm;
  if (!farthest.clean || !std::isfinite(farthest.best)) return own + largest;
  const double error = (product_error(dim) + 2 * kUnitRoundoff) * largest * largest + underflow(dim, 2 * largest);
  return std::min(own + largest, std::sqrt(own * own + 2 * static_cast<double>(farthest.best) + 2.0001 * error));
}

void make_balls(Prepared& prepared, const DecisionState& state, int threads) {
  const Index dim = state.dim;
  const Scorer &centres = prepared.centres, &classifier = prepared.classifier;
  prepared.balls.assign(static_cast<std::size_t>(state.classes), Ball{state.centres.data()});
  std::vector<float> half_squares;
  for (const double norm : classifier.norms) half_squares.push_back(static_cast<float>(norm * norm / 2));
  for_each_tile(prepared, centres.count, threads, [&](Workspace& work, Index first, Index count) {
    // The means as rows: z is c_k.
    std::copy_n(centres.rows.data() + first * dim, count * dim, work.z.data());
    std::copy_n(centres.norms.data() + first, count, work.norms.data());
    const auto lead_of = [&](const Scorer& scorer, Index i, Index candidate) {
      const Leader& leader = work.leaders[i];
      return leader.index == candidate ? certain_lead(scorer, leader, work.norms[i], dim) : 0;
    };
    double radii[kRowTile], leads[kRowTile];
    score_tile(centres, centres.constants, work, count, dim);
    for (Index i = 0; i < count; ++i)
      radii[i] = safe_centre_radius(lead_of(centres, i, first + i), work.norms[i],
                                    [&](double size) { return centres.rounding(size); });
    const Index* labels = state.centre_class.data() + first;
    if (state.weights) {
      score_tile(classifier, classifier.constants, work, count, dim);
      for (Index i = 0; i < count; ++i) leads[i] = lead_of(classifier, i, labels[i]);
      for (Index i = 0; i < count; ++i)
        std::transform(classifier.rows.data() + labels[i] * dim, classifier.rows.data() + (labels[i] + 1) * dim,
                       work.z.data() + i * dim, std::negate<>());
      score_tile(classifier, half_squares, work, count, dim);
      for (Index i = 0; i < count; ++i)
        radii[i] = std::min(
            radii[i], safe_classifier_radius(leads[i], steepest(classifier, labels[i], work.leaders[i], dim),
                                             work.norms[i], [&](double size) { return classifier.rounding(size); }));
    }
    for (Index i = 0; i < count; ++i)
      prepared.balls[labels[i]] = {state.centres.data() + (first + i) * dim, radii[i] * radii[i]};
  });
}

}  // namespace

template <class T>
bool CpuBackend::decide_rows(DecisionState& state, const T* data, Index stride, Index rows) {
  if (!state.prepared) state.prepared = prepare(state, threads());
  auto& prepared = *static_cast<Prepared*>(state.prepared.get());
  const Index dim = state.dim, classes = state.classes, centres = state.centres.rows;
  const bool has_classifier = static_cast<bool>(state.weights);
  const Index* labels = labels_.reserve(rows);
  Index* centre_decisions = decisions_.reserve(2 * rows);
  Index* classifier_decisions = centre_decisions + rows;

  prepared.rows_seen += rows;
  if (prepared.balls.empty() && prepared.rows_seen / kRowsPerRadius >= centres)
    make_balls(prepared, state, threads_for(centres * dim * classes));
  std::fill_n(centre_decisions, rows, kUndecided);
  const bool look = !prepared.balls.empty() && prepared.look.pays();
  if (look) {
    // In the order of labels a mean stays in the cache for all rows compared with it. Few means stay in any order.
    const bool cached = centres * dim <= kCachedDoubles;
    Index* order = order_.reserve(rows);
    if (!cached) sort_by_label(labels, rows, classes, order, sorted_.reserve(rows));
    const auto row = [&](Index i) { return cached ? i : order[i]; };
    const auto four = [&](Index first) {
      Rows<T> result;
      for (Index r = 0; r < 4; ++r) {
        const Index at = row(std::min(first + r, rows - 1));
        result.x[r] = data + at * stride;
        result.balls[r] = &prepared.balls[labels[at]];
      }
      return result;
    };
#pragma omp parallel for num_threads(threads_for(rows* dim))
    for (Index i = 0; i < rows; i += 4) {
      const unsigned inside = held(four(i), dim, four(i + 4));
      for (Index r = 0; r < 4 && i + r < rows; ++r)
        if (inside >> r & 1) centre_decisions[row(i + r)] = classifier_decisions[row(i + r)] = labels[row(i + r)];
    }
  }
  prepared.far.clear();
  for (Index i = 0; i < rows; ++i)
    if (centre_decisions[i] == kUndecided) prepared.far.push_back(i);

  const auto far = static_cast<Index>(prepared.far.size());
  if (look) prepared.look.found(rows - far, rows);
  std::atomic<bool> all_finite = true;  // near rows are
  for_each_tile(prepared, far, threads_for(far * dim * classes), [&](Workspace& work, Index first, Index count) {
    const Index* tile = prepared.far.data() + first;
    for (Index i = 0; i < count; ++i) {
      work.norms[i] = narrow(data + tile[i] * stride, prepared.origin.data(), work.z.data() + i * dim, dim);
      if (!std::isfinite(work.norms[i])) all_finite = false;
    }
    decide_tile(prepared.centres, work, count, dim);
    for (Index i = 0; i < count; ++i) {
      Index centre = work.leaders[i].index;
      if (centre == kUndecided) centre = nearest_centre(data + tile[i] * stride, state.centres, dim);
      centre_decisions[tile[i]] = state.centre_class.data()[centre];
    }
    if (!has_classifier) return;
    decide_tile(prepared.classifier, work, count, dim);
    for (Index i = 0; i < count; ++i) {
      const Index best = work.leaders[i].index;
      classifier_decisions[tile[i]] =
          best == kUndecided ? best_class(data + tile[i] * stride, state.weights, state.bias, dim) : best;
    }
  });
  return all_finite;
}

void CpuBackend::count_decisions(DecisionState& state, Index rows) {
  const Index *labels = labels_.reserve(rows), *centre_decisions = decisions_.reserve(2 * rows),
              *classifier_decisions = centre_decisions + rows;
  const Index classes = state.classes;
  const bool has_classifier = static_cast<bool>(state.weights);
  Index* counters = state.counters.data();
  for (Index i = 0; i < rows; ++i) {
    const Index label = labels[i];
    ++counters[label];
    counters[classes + label] += centre_decisions[i] == label ? 1 : 0;
    if (!has_classifier) continue;
    counters[2 * classes + label] += classifier_decisions[i] == label ? 1 : 0;
    counters[3 * classes + label] += classifier_decisions[i] == centre_decisions[i] ? 1 : 0;
  }
}

BatchFaults CpuBackend::decide_batch(DecisionState& state, const MatrixView& features, const LabelView& labels) {
  const std::lock_guard turn(turn_);
  BatchFaults faults = check_labels(labels, state.classes, labels_.reserve(features.rows));
  const auto look_for_faults = [&] { check_features(features, threads_for(features.rows * features.cols), faults); };
  if (faults.any()) look_for_faults();
  if (faults.any() || features.rows == 0) return faults;
  bool all_finite = true;
  with_elements(features,
                [&](const auto* data) { all_finite = decide_rows(state, data, features.row_stride(), features.rows); });
  if (!all_finite) look_for_faults();  // or squares overflow
  if (!faults.any()) count_decisions(state, features.rows);
  return faults;
}

}  // namespace ncollapse::cpu
