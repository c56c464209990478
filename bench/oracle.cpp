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
    Real squares = 0, length = 0;
    for (Index i = 0; i < m; ++i) {
      Real sum = -static_cast<Real>(values[v]) * left(i, v);
      for (Index j = 0; j < n; ++j) sum += static_cast<Real>(A[i * n + j]) * right[v * n + j];
      squares += sum * sum;
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
    std::vector<Real> mean(static_cast<std::size_t>(dim));
    for (const Index i : list)
      for (Index j = 0; j < dim; ++j) mean[j] += samples.value(i, j) / count;
    Real trace = 0, norm = 0, gap = 0;
    for (const Index i : list)
      for (Index j = 0; j < dim; ++j)
        trace += (samples.value(i, j) - mean[j]) * (samples.value(i, j) - mean[j]) / count;
    for (Index j = 0; j < dim; ++j) {
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
  std::vector<std::vector<Real>> centred;
  std::vector<Index> columns;
  for (Index c = 0; c < std::min(kColumns, dim); ++c) {
    const Index j = c * (dim - 1) / std::max<Index>(std::min(kColumns, dim) - 1, 1);
    std::vector<Real> column(static_cast<std::size_t>(rows)), means(static_cast<std::size_t>(classes));
    for (Index i = 0; i < rows; ++i) {
      column[i] = samples.value(i, j);
      means[samples.labels()[i]] += column[i] / static_cast<Real>(moments.counts()[samples.labels()[i]]);
    }
    for (Index i = 0; i < rows; ++i) column[i] -= means[samples.labels()[i]];
    centred.push_back(std::move(column));
    columns.push_back(j);
  }
  const auto entry = [&](std::size_t a, std::size_t b) {
    Real sum = 0;
    for (Index i = 0; i < rows; ++i) sum += centred[a][i] * centred[b][i];
    return sum;
  };
  const std::vector<double> scatter = moments.within_scatter();
  double largest = 0;
  for (std::size_t a = 0; a < columns.size(); ++a)
    for (std::size_t b = 0; b <= a; ++b)
      grow(largest,
           relative(scatter[columns[a] * dim + columns[b]], entry(a, b), std::sqrt(entry(a, a) * entry(b, b))));
  return largest;
}

double error_of_decisions(const Samples& samples, Index rows, const std::vector<double>& means,
                          const std::vector<Index>& counts, const std::vector<float>& weights,
                          const DecisionCounts& decisions) {
  const Index dim = samples.shape().dim, classes = samples.shape().classes;
  std::vector<Index> centre(static_cast<std::size_t>(classes)), classifier(centre), agree(centre);
  std::vector<double> x(static_cast<std::size_t>(dim));
  for (Index i = 0; i < rows; ++i) {
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
    const Index label = samples.labels()[i];
    centre[label] += nearest == label ? 1 : 0;
    classifier[label] += best == label ? 1 : 0;
    agree[label] += best == nearest ? 1 : 0;
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
  Real cosines = 0, cosine_squares = 0, distances = 0, cdnv = 0, pairs = 0, cosine_sizes = 0, distance_sizes = 0;
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
      cosines += e;
      cosine_squares += e * e;
      distances += f;
      cosine_sizes += std::abs(e);
      distance_sizes += std::abs(f);
      cdnv += (static_cast<Real>(variances[a]) + variances[b]) / (2 * gap);
      ++pairs;
    }
  double largest = sums.angles == static_cast<Index>(pairs) ? 0 : 1;
  grow(largest, relative(sums.cos_sum, cosines, cosine_sizes));
  grow(largest, relative(sums.cos_square_sum, cosine_squares, cosine_squares));
  grow(largest, relative(sums.distance_sum, distances, distance_sizes));
  grow(largest, relative(sums.cdnv_sum, cdnv, cdnv));
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
      counts(static_cast<std::size_t>(classes));
  std::vector<Real> row(static_cast<std::size_t>(dim));
  const auto load = [&](Index i) {
    for (Index j = 0; j < dim; ++j) row[j] = samples.value(i, j);
  };
  for (Index i = 0; i < rows; ++i) counts[samples.labels()[i]] += 1;
  for (Index i = 0; i < rows; ++i) {
    load(i);
    const Index k = samples.labels()[i];
    for (Index j = 0; j < dim; ++j) {
      means[k * dim + j] += row[j] / counts[k];
      centre[j] += row[j] / static_cast<Real>(rows);
    }
  }
  Real within = 0, between = 0, seen = 0, norm_sum = 0, norm_squares = 0;
  for (Index i = 0; i < rows; ++i) {
    load(i);
    for (Index j = 0; j < dim; ++j) {
      const Real gap = row[j] - means[samples.labels()[i] * dim + j];
      within += gap * gap;
    }
  }
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
