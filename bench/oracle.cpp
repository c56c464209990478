#include "bench/oracle.hpp"

#include <algorithm>
#include <cmath>
#include <map>

namespace ncollapse::bench {

namespace {

using Real = long double;

double relative(Real got, Real want, Real scale) {
  const Real error = std::abs(got - want);
  return scale > 0 ? static_cast<double>(error / scale) : error == 0 ? 0.0 : std::numeric_limits<double>::infinity();
}

// NaN is the largest error.
void grow(double& largest, double error) {
  if (!(error <= largest)) largest = error;
}

// |A v - s u| / |A|_F and | |u|^2 - 1 | of three triplets; entry i of u is left(i, number), v a row of `right`.
template <class Left>
double error_of_triplets(const std::vector<double>& A, Index m, Index n, const std::vector<double>& values,
                         const Left& left, const std::vector<double>& right) {
  Real norm = 0;
  for (const double a : A) norm += static_cast<Real>(a) * a;
  const Index r = std::min(m, n);
  double largest = 0;
  for (const Index v : {Index{0}, r / 2, r - 1}) {
    std::vector<Real> sums(static_cast<std::size_t>(m));
#pragma omp parallel for
    for (Index i = 0; i < m; ++i) {
      Real sum = -static_cast<Real>(values[v]) * left(i, v);
      for (Index j = 0; j < n; ++j) sum += static_cast<Real>(A[i * n + j]) * right[v * n + j];
      sums[i] = sum;
    }
    Real squares = 0, length = 0;
    for (Index i = 0; i < m; ++i) {
      squares += sums[i] * sums[i];
      length += static_cast<Real>(left(i, v)) * left(i, v);
    }
    grow(largest, static_cast<double>(std::sqrt(squares / norm)));
    grow(largest, static_cast<double>(std::abs(length - 1)));
  }
  return largest;
}

}  // namespace

double error_of_sums(const Samples& samples, Index rows, const ClassMoments& moments) {
  constexpr Index kElements = 10'000'000, kClasses = 16;
  const Index dim = samples.shape().dim, classes = samples.shape().classes;
  // Some of the classes that came, evenly over their numbers, as long as making their samples again is quick.
  std::vector<Index> present, chosen;
  for (Index k = 0; k < classes; ++k)
    if (moments.counts()[k] > 0) present.push_back(k);
  const auto seen = static_cast<Index>(present.size()), step = std::max<Index>(seen / kClasses, 1);
  Index left = kElements / dim;
  std::sort(present.begin(), present.end(),
            [&](Index a, Index b) { return moments.counts()[a] < moments.counts()[b]; });
  for (Index at = 0; at < seen; at += step)
    if (chosen.empty() || moments.counts()[present[at]] <= left) {
      chosen.push_back(present[at]);
      left -= moments.counts()[present[at]];
    }
  std::map<Index, std::vector<Index>> members;
  for (const Index k : chosen) members[k];
  for (Index i = 0; i < rows; ++i)
    if (const auto found = members.find(samples.labels()[i]); found != members.end()) found->second.push_back(i);

  const std::vector<double> means = moments.means();
  const auto& variances = moments.within_variances();
  double largest = 0;
  for (const auto& [k, list] : members) {
    const auto count = static_cast<Real>(list.size());
    std::vector<Real> mean(static_cast<std::size_t>(dim)), spread(static_cast<std::size_t>(dim));
#pragma omp parallel for
    for (Index j = 0; j < dim; ++j) {
      std::vector<double> column;
      for (const Index i : list) column.push_back(samples.value(i, j));
      for (const double x : column) mean[j] += x / count;
      for (const double x : column) spread[j] += (x - mean[j]) * (x - mean[j]) / count;
    }
    Real trace = 0, norm = 0, gap = 0;
    for (Index j = 0; j < dim; ++j) {
      trace += spread[j];
      norm += mean[j] * mean[j];
      gap += (mean[j] - means[k * dim + j]) * (mean[j] - means[k * dim + j]);
    }
    grow(largest, static_cast<double>(std::sqrt(gap / norm)));
    grow(largest, relative(variances[k], trace, trace));
    grow(largest, moments.counts()[k] == static_cast<Index>(list.size()) ? 0 : 1);
  }
  return largest;
}

double error_of_scatter(const Samples& samples, Index rows, const ClassMoments& moments) {
  constexpr Index kColumns = 5;
  const Index dim = samples.shape().dim, classes = samples.shape().classes;
  const auto count = std::min(kColumns, dim);
  std::vector<std::vector<Real>> centred(static_cast<std::size_t>(count));
  std::vector<Index> columns(static_cast<std::size_t>(count));
#pragma omp parallel for
  for (Index c = 0; c < count; ++c) {
    const Index j = c * (dim - 1) / std::max<Index>(count - 1, 1);
    std::vector<Real> column(static_cast<std::size_t>(rows)), means(static_cast<std::size_t>(classes));
    for (Index i = 0; i < rows; ++i) {
      column[i] = samples.value(i, j);
      means[samples.labels()[i]] += column[i] / static_cast<Real>(moments.counts()[samples.labels()[i]]);
    }
    for (Index i = 0; i < rows; ++i) column[i] -= means[samples.labels()[i]];
    centred[c] = std::move(column);
    columns[c] = j;
  }
  std::vector<Real> entries(static_cast<std::size_t>(count * count));  // on and below the diagonal
#pragma omp parallel for schedule(dynamic)
  for (Index at = 0; at < count * count; ++at)
    if (const Index a = at / count, b = at % count; b <= a)
      for (Index i = 0; i < rows; ++i) entries[at] += centred[a][i] * centred[b][i];
  const std::vector<double> scatter = moments.within_scatter();
  double largest = 0;
  for (Index a = 0; a < count; ++a)
    for (Index b = 0; b <= a; ++b)
      grow(largest, relative(scatter[columns[a] * dim + columns[b]], entries[a * count + b],
                             std::sqrt(entries[a * count + a] * entries[b * count + b])));
  return largest;
}

double error_of_decisions(const Samples& samples, Index rows, const std::vector<double>& means,
                          const std::vector<Index>& counts, const std::vector<float>& weights,
                          const DecisionCounts& decisions) {
  const Index dim = samples.shape().dim, classes = samples.shape().classes;
  std::vector<Index> highest_of(static_cast<std::size_t>(rows)), nearest_of(highest_of);
#pragma omp parallel for
  for (Index i = 0; i < rows; ++i) {
    std::vector<double> x(static_cast<std::size_t>(dim));
    for (Index j = 0; j < dim; ++j) x[j] = samples.value(i, j);
    Index best = -1, nearest = -1;
    Real highest = 0, smallest = 0;
    for (Index k = 0; k < classes; ++k) {
      Real score = 0, squared = 0;
      for (Index j = 0; j < dim; ++j) {
        const Real gap = static_cast<Real>(x[j]) - means[k * dim + j];
        score += static_cast<Real>(x[j]) * weights[k * dim + j];
        squared += gap * gap;
      }
      if (best < 0 || score > highest) {
        best = k;
        highest = score;
      }
      if (counts[k] > 0 && (nearest < 0 || squared < smallest)) {
        nearest = k;
        smallest = squared;
      }
    }
    highest_of[i] = best;
    nearest_of[i] = nearest;
  }
  std::vector<Index> centre(static_cast<std::size_t>(classes)), classifier(centre), agree(centre);
  for (Index i = 0; i < rows; ++i) {
    const Index label = samples.labels()[i];
    centre[label] += nearest_of[i] == label ? 1 : 0;
    classifier[label] += highest_of[i] == label ? 1 : 0;
    agree[label] += highest_of[i] == nearest_of[i] ? 1 : 0;
  }
  Index wrong = 0;
  for (Index k = 0; k < classes; ++k)
    wrong += std::abs(centre[k] - decisions.correct_centre[k]) +
             std::abs(classifier[k] - decisions.correct_classifier[k]) + std::abs(agree[k] - decisions.agree[k]);
  return static_cast<double>(wrong) / static_cast<double>(rows);
}

double error_of_pairs(const std::vector<double>& A, Index rows, Index dim, const std::vector<double>& variances,
                      const PairSums& sums) {
  const auto count = static_cast<Real>(rows);
  const Real expected = -1 / (count - 1), scale = std::sqrt(2 * count / (count - 1));
  struct Sums {
    Real cosines = 0, cosine_squares = 0, distances = 0, cdnv = 0, cosine_sizes = 0, distance_sizes = 0;
  };
  std::vector<Sums> of_row(static_cast<std::size_t>(rows));  // over the rows after it
#pragma omp parallel for schedule(dynamic)
  for (Index a = 0; a < rows; ++a)
    for (Index b = a + 1; b < rows; ++b) {
      Real aa = 0, bb = 0, ab = 0, gap = 0;
      for (Index j = 0; j < dim; ++j) {
        const Real x = A[a * dim + j], y = A[b * dim + j];
        aa += x * x;
        bb += y * y;
        ab += x * y;
        gap += (x - y) * (x - y);
      }
      const Real e = ab / std::sqrt(aa * bb) - expected, f = std::sqrt(2 - 2 * ab / std::sqrt(aa * bb)) - scale;
      Sums& own = of_row[a];
      own.cosines += e;
      own.cosine_squares += e * e;
      own.distances += f;
      own.cosine_sizes += std::abs(e);
      own.distance_sizes += std::abs(f);
      own.cdnv += (static_cast<Real>(variances[a]) + variances[b]) / (2 * gap);
    }
  Sums all;
  for (const Sums& own : of_row)
    for (const auto field : {&Sums::cosines, &Sums::cosine_squares, &Sums::distances, &Sums::cdnv, &Sums::cosine_sizes,
                             &Sums::distance_sizes})
      all.*field += own.*field;
  double largest = sums.angles == rows * (rows - 1) / 2 ? 0 : 1;
  grow(largest, relative(sums.cos_sum, all.cosines, all.cosine_sizes));
  grow(largest, relative(sums.cos_square_sum, all.cosine_squares, all.cosine_squares));
  grow(largest, relative(sums.distance_sum, all.distances, all.distance_sizes));
  grow(largest, relative(sums.cdnv_sum, all.cdnv, all.cdnv));
  return largest;
}

double error_of_eigen(const std::vector<double>& A, Index n, const std::vector<double>& values,
                      const std::vector<double>& V) {
  return error_of_triplets(
      A, n, n, values, [&](Index i, Index v) { return V[v * n + i]; }, V);
}

double error_of_svd(const std::vector<double>& A, Index m, Index n, const std::vector<double>& values,
                    const std::vector<double>& left, const std::vector<double>& right) {
  const Index r = std::min(m, n);
  return error_of_triplets(
      A, m, n, values, [&](Index i, Index v) { return left[i * r + v]; }, right);
}

double error_of_report(const Samples& samples, Index rows, const Report& report) {
  const Index dim = samples.shape().dim, classes = samples.shape().classes;
  std::vector<Real> means(static_cast<std::size_t>(classes * dim)), centre(static_cast<std::size_t>(dim)),
      spread(static_cast<std::size_t>(dim)), counts(static_cast<std::size_t>(classes));
  for (Index i = 0; i < rows; ++i) counts[samples.labels()[i]] += 1;
#pragma omp parallel for
  for (Index j = 0; j < dim; ++j) {
    std::vector<double> column;
    for (Index i = 0; i < rows; ++i) column.push_back(samples.value(i, j));
    for (Index i = 0; i < rows; ++i) {
      const Index k = samples.labels()[i];
      means[k * dim + j] += column[i] / counts[k];
      centre[j] += column[i] / static_cast<Real>(rows);
    }
    for (Index i = 0; i < rows; ++i) {
      const Real gap = column[i] - means[samples.labels()[i] * dim + j];
      spread[j] += gap * gap;
    }
  }
  Real within = 0, between = 0, seen = 0, norm_sum = 0, norm_squares = 0;
  for (const Real squares : spread) within += squares;
  for (Index k = 0; k < classes; ++k) {
    if (counts[k] == 0) continue;
    Real squares = 0;
    for (Index j = 0; j < dim; ++j) squares += (means[k * dim + j] - centre[j]) * (means[k * dim + j] - centre[j]);
    between += squares;
    norm_sum += std::sqrt(squares);
    norm_squares += squares;
    seen += 1;
  }
  const Real mean_norm = norm_sum / seen, ratio = within / static_cast<Real>(rows) / (between / seen);
  const Real equinorm = std::sqrt(std::max<Real>(norm_squares / seen - mean_norm * mean_norm, 0)) / mean_norm;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  double largest = 0;
  grow(largest, relative(report.find("nc1_trace_ratio").value_or(nan), ratio, ratio));
  grow(largest, relative(report.find("nc2_equinorm_h").value_or(nan), equinorm, 1));
  return largest;
}

}  // namespace ncollapse::bench
