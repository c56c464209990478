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
#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "host/cpu/batch_checks.hpp"
#include "host/cpu/cpu_backend.hpp"
#include "host/cpu/elements.hpp"
#include "host/cpu/parallel_blas.hpp"

namespace ncollapse::cpu {

namespace {

constexpr Index kRowTile = 256, kClassTile = 512;  // a tile's rows and scores stay in a core's own cache
constexpr double kUnitRoundoff = 0x1p-24;
constexpr Index kUndecided = -1;
// Outside this range floats overflow, or lose digits as subnormals; then nothing is certified.
constexpr double kSmallest = 1e-18, kLargest = 1e18;

// One set of candidates (centres or classifier rows) prepared for float scoring.
struct Scorer {
  Index count = 0;
  std::vector<float> rows;       // [count x d]
  std::vector<float> constants;  // [count]
  double largest_norm = 0, largest_constant = 0;
  // Rounding in double, of the constant and of the direct formula, at a row of norm |z|:  offset + slope |z| + curve
  // |z|^2.
  double offset = 0, slope = 0, curve = 0;
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

struct Prepared {
  std::vector<double> origin;  // [d]
  Scorer centres, classifier;
  std::vector<Workspace> workspaces;  // one a thread, kept from batch to batch
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
  scorer.largest_norm = std::max(scorer.largest_norm, norm(row, dim));
  scorer.largest_constant = std::max(scorer.largest_constant, std::abs(constant));
}

Scorer make_scorer(Index count, Index dim) {
  Scorer scorer;
  scorer.count = count;
  scorer.rows.resize(static_cast<std::size_t>(count * dim));
  scorer.constants.resize(static_cast<std::size_t>(count));
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
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (Index j = 0; j < dim; ++j) {
    const double value = to_double(x[j]) - origin[j];
    z[j] = static_cast<float>(value);
    squares += value * value;
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

// Float decisions of a tile of rows; kUndecided where they are not certain.
void decide_tile(const Scorer& scorer, Workspace& work, Index rows, Index dim, Index* decisions) {
  std::fill_n(work.leaders.begin(), rows, Leader{});
  for (Index first = 0; first < scorer.count; first += kClassTile) {
    const Index count = std::min(kClassTile, scorer.count - first);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(rows), static_cast<int>(count),
                static_cast<int>(dim), 1.0F, work.z.data(), static_cast<int>(dim), scorer.rows.data() + first * dim,
                static_cast<int>(dim), 0.0F, work.scores.data(), static_cast<int>(count));
    for (Index i = 0; i < rows; ++i)
      scan(work.scores.data() + i * count, scorer.constants.data() + first, first, count, work.leaders[i]);
  }
  const double n = static_cast<double>(dim) + 3,
               factor = n * kUnitRoundoff / (1 - n * kUnitRoundoff) + 2 * kUnitRoundoff;
  for (Index i = 0; i < rows; ++i) {
    const Leader& leader = work.leaders[i];
    const double z = work.norms[i];
    // The last term covers products and operands that underflow.
    const double bound = factor * z * scorer.largest_norm + 2 * kUnitRoundoff * scorer.largest_constant +
                         scorer.offset + (scorer.slope + scorer.curve * z) * z +
                         static_cast<double>(dim + 2) * 0x1p-126 * (2 + z + scorer.largest_norm);
    const double lead = static_cast<double>(leader.best) - static_cast<double>(leader.second);
    const bool certain = factor > 0 && safe(z) && safe(scorer.largest_norm) && scorer.largest_constant < kLargest &&
                         leader.clean && std::isfinite(leader.best) && (scorer.count == 1 || lead > 2.0001 * bound);
    decisions[i] = certain ? leader.index : kUndecided;
  }
}

template <class T>
NCOLLAPSE_VECTORISED double squared_distance(const T* x, const double* centre, Index dim) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < dim; ++j) {
    const double gap = to_double(x[j]) - centre[j];
    sum += gap * gap;
  }
  return sum;
}

template <class T>
NCOLLAPSE_VECTORISED double dot(const T* x, const double* weights, Index dim) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < dim; ++j) sum += to_double(x[j]) * weights[j];
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

}  // namespace

template <class T>
void CpuBackend::decide_rows(DecisionState& state, const T* data, Index stride, Index rows) {
  if (!state.prepared) state.prepared = prepare(state, threads_);
  auto& prepared = *static_cast<Prepared*>(state.prepared.get());
  const Index dim = state.dim, classes = state.classes;
  const bool has_classifier = static_cast<bool>(state.weights);
  const Index* labels = labels_.reserve(rows);
  Index* centre_decisions = decisions_.reserve(2 * rows);
  Index* classifier_decisions = centre_decisions + rows;
  const Index tiles = (rows + kRowTile - 1) / kRowTile;

  // Each thread takes whole tiles, products included: one parallel region, no barrier inside it.
  const int team = static_cast<int>(std::min<Index>(threads_for(rows * dim * classes), tiles));
  const BlasThreads guard(1);
#pragma omp parallel num_threads(team)
  {
    Workspace& work = prepared.workspaces[static_cast<std::size_t>(omp_get_thread_num())];
#pragma omp for schedule(dynamic)
    for (Index tile = 0; tile < tiles; ++tile) {
      const Index begin = tile * kRowTile, count = std::min(kRowTile, rows - begin);
      const T* first = data + begin * stride;
      for (Index i = 0; i < count; ++i)
        work.norms[i] = narrow(first + i * stride, prepared.origin.data(), work.z.data() + i * dim, dim);
      decide_tile(prepared.centres, work, count, dim, centre_decisions + begin);
      if (has_classifier) decide_tile(prepared.classifier, work, count, dim, classifier_decisions + begin);
      for (Index i = 0; i < count; ++i) {
        Index& centre = centre_decisions[begin + i];
        if (centre == kUndecided) centre = nearest_centre(first + i * stride, state.centres, dim);
        centre = state.centre_class.data()[centre];
        if (has_classifier && classifier_decisions[begin + i] == kUndecided)
          classifier_decisions[begin + i] = best_class(first + i * stride, state.weights, state.bias, dim);
      }
    }
  }

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
  BatchFaults faults = check_labels(labels, state.classes, labels_.reserve(features.rows));
  check_features(features, threads_for(features.rows * features.cols), faults);
  if (faults.any() || features.rows == 0) return faults;
  with_elements(features, [&](const auto* data) { decide_rows(state, data, features.row_stride(), features.rows); });
  return faults;
}

}  // namespace ncollapse::cpu
