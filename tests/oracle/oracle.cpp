#include "tests/oracle/oracle.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace oracle {

using ncollapse::Convention;

// --- linear algebra

Matrix product(const Matrix& A, const Matrix& B) {
  Matrix P(A.rows, B.cols);
  for (Index i = 0; i < A.rows; ++i)
    for (Index l = 0; l < A.cols; ++l)
      for (Index j = 0; j < B.cols; ++j) P(i, j) += A(i, l) * B(l, j);
  return P;
}

Matrix transpose(const Matrix& A) {
  Matrix T(A.cols, A.rows);
  for (Index i = 0; i < A.rows; ++i)
    for (Index j = 0; j < A.cols; ++j) T(j, i) = A(i, j);
  return T;
}

Eigen eigen(Matrix A) {
  const Index n = A.rows;
  Matrix V(n, n);  // rows are the vectors until the end, so that a rotation touches contiguous memory
  for (Index i = 0; i < n; ++i) V(i, i) = 1;
  const Real epsilon = std::numeric_limits<Real>::epsilon();
  Real size = 0;
  for (Real a : A.values) size = std::max(size, std::abs(a));
  bool rotated = true;
  for (int sweep = 0; rotated; ++sweep) {
    if (sweep == 60) throw std::runtime_error("Jacobi rotations did not converge");
    rotated = false;
    for (Index p = 0; p < n; ++p)
      for (Index q = p + 1; q < n; ++q) {
        const Real apq = A(p, q);
        // Small against both diagonal entries: this keeps small eigenvalues of graded matrices accurate.
        if (std::abs(apq) <= epsilon * std::sqrt(std::abs(A(p, p) * A(q, q))) ||
            std::abs(apq) <= epsilon * epsilon * size)
          continue;
        rotated = true;
        const Real theta = (A(q, q) - A(p, p)) / (2 * apq);
        const Real t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const Real c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (Index k = 0; k < n; ++k) {  // rows p and q of A and V
          const Real apk = A(p, k), aqk = A(q, k), vpk = V(p, k), vqk = V(q, k);
          A(p, k) = c * apk - s * aqk;
          A(q, k) = s * apk + c * aqk;
          V(p, k) = c * vpk - s * vqk;
          V(q, k) = s * vpk + c * vqk;
        }
        for (Index k = 0; k < n; ++k) {  // columns p and q of A
          const Real akp = A(k, p), akq = A(k, q);
          A(k, p) = c * akp - s * akq;
          A(k, q) = s * akp + c * akq;
        }
        A(p, q) = A(q, p) = 0;
      }
  }
  Eigen result{Vector(static_cast<std::size_t>(n)), transpose(V)};
  for (Index i = 0; i < n; ++i) result.values[static_cast<std::size_t>(i)] = A(i, i);
  return result;
}

Matrix pseudo_inverse(const Matrix& A, Real cut) {
  const Eigen e = eigen(A);
  const Real largest = e.values.empty() ? 0 : *std::max_element(e.values.begin(), e.values.end());
  Matrix scaled = e.vectors;  // columns divided by their eigenvalue, or 0
  for (Index j = 0; j < A.cols; ++j) {
    const Real value = e.values[static_cast<std::size_t>(j)];
    for (Index i = 0; i < A.rows; ++i) scaled(i, j) = value > cut * largest ? scaled(i, j) / value : 0;
  }
  return product(scaled, transpose(e.vectors));
}

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

Real dot(const Matrix& A, Index i, const Matrix& B, Index j) {
  Real sum = 0;
  for (Index c = 0; c < A.cols; ++c) sum += A(i, c) * B(j, c);
  return sum;
}

Real norm(const Vector& v) {
  Real sum = 0;
  for (Real x : v) sum += x * x;
  return std::sqrt(sum);
}
Real norm(const Matrix& A) { return norm(A.values); }
Real norm(const Matrix& A, Index row) { return std::sqrt(dot(A, row, A, row)); }

Real trace_of_product(const Matrix& A, const Matrix& B) {
  Real sum = 0;
  for (Index i = 0; i < A.rows; ++i)
    for (Index j = 0; j < A.cols; ++j) sum += A(i, j) * B(j, i);
  return sum;
}

Real mean(const Vector& v) { return std::accumulate(v.begin(), v.end(), Real(0)) / static_cast<Real>(v.size()); }

Real variance(const Vector& v, int ddof = 0) {
  const Real m = mean(v);
  Real sum = 0;
  for (Real x : v) sum += (x - m) * (x - m);
  return sum / static_cast<Real>(static_cast<int>(v.size()) - ddof);
}

/// (I - 11^T/K)/sqrt(K-1)
Matrix simplex(Index K) {
  Matrix E(K, K);
  for (Index i = 0; i < K; ++i)
    for (Index j = 0; j < K; ++j) E(i, j) = ((i == j ? 1 : 0) - Real(1) / K) / std::sqrt(Real(K - 1));
  return E;
}

/// I/sqrt(K)
Matrix frame(Index K) {
  Matrix F(K, K);
  for (Index i = 0; i < K; ++i) F(i, i) = 1 / std::sqrt(Real(K));
  return F;
}

/// |A/|A| - B/|B||
Real distance_of_directions(const Matrix& A, const Matrix& B) {
  const Real a = norm(A), b = norm(B);
  Vector difference(A.values.size());
  for (std::size_t i = 0; i < difference.size(); ++i) difference[i] = A.values[i] / a - B.values[i] / b;
  return norm(difference);
}

Matrix select_rows(const Matrix& A, const std::vector<Index>& rows) {
  Matrix S(static_cast<Index>(rows.size()), A.cols);
  for (Index i = 0; i < S.rows; ++i)
    for (Index j = 0; j < A.cols; ++j) S(i, j) = A(rows[at(i)], j);
  return S;
}

/// sum_k weights_k A_k
Vector weighted_sum(const Matrix& A, const Vector& weights) {
  Vector sum(at(A.cols), 0);
  for (Index k = 0; k < A.rows; ++k)
    for (Index j = 0; j < A.cols; ++j) sum[at(j)] += weights[at(k)] * A(k, j);
  return sum;
}

/// Means and shares of the classes that have samples, and the centre and the weights that the convention asks for.
struct Between {
  Index K, d;
  Matrix means, centred;               // M and C [K x d]
  Vector shares, sample_mean, centre;  // n_k/N, mu_s, mu
  Vector weights;                      // of Sigma_B
  Matrix root;                         // rows sqrt(weights_k) c_k, so that Sigma_B = root^T root
};

Between between(const Moments& m, Convention convention) {
  Between b;
  b.K = static_cast<Index>(m.seen.size());
  b.d = m.means.cols;
  b.means = select_rows(m.means, m.seen);
  const Real N = static_cast<Real>(std::accumulate(m.counts.begin(), m.counts.end(), Index(0)));
  for (Index k : m.seen) b.shares.push_back(static_cast<Real>(m.counts[at(k)]) / N);
  const Vector equal(at(b.K), 1 / static_cast<Real>(b.K));
  b.sample_mean = weighted_sum(b.means, b.shares);
  const bool mean_of_means = convention == Convention::papyan || convention == Convention::peer;
  b.centre = mean_of_means ? weighted_sum(b.means, equal) : b.sample_mean;
  b.weights = convention == Convention::anova ? b.shares : equal;
  b.centred = b.root = b.means;
  for (Index k = 0; k < b.K; ++k)
    for (Index j = 0; j < b.d; ++j) {
      b.centred(k, j) = b.means(k, j) - b.centre[at(j)];
      b.root(k, j) = std::sqrt(b.weights[at(k)]) * b.centred(k, j);
    }
  return b;
}

Matrix scaled(Matrix A, Real factor) {
  for (Real& a : A.values) a *= factor;
  return A;
}

/// Norms, angles and distances among the rows of A; keys end in `suffix`.
void add_geometry(std::map<std::string, Real>& out, const Matrix& A, const std::string& suffix) {
  const Index K = A.rows;
  if (norm(A) == 0) return;
  Vector norms;
  for (Index k = 0; k < K; ++k) norms.push_back(norm(A, k));
  out["nc2_equinorm" + suffix] = std::sqrt(variance(norms)) / mean(norms);
  out["nc2_etf" + suffix] = distance_of_directions(product(A, transpose(A)), simplex(K));
  if (suffix == "_w") out["nc2_of_w"] = distance_of_directions(product(A, transpose(A)), frame(K));
  if (*std::min_element(norms.begin(), norms.end()) == 0) return;

  Vector cosines, deviations, angles, distances, logs;
  for (Index j = 0; j < K; ++j)
    for (Index k = j + 1; k < K; ++k) {
      cosines.push_back(dot(A, j, A, k) / (norms[at(j)] * norms[at(k)]));
      deviations.push_back(std::abs(cosines.back() + 1 / Real(K - 1)));
      Real apart = 0, together = 0;  // |a^_j - a^_k|^2, |a^_j + a^_k|^2
      for (Index c = 0; c < A.cols; ++c) {
        const Real a = A(j, c) / norms[at(j)], b = A(k, c) / norms[at(k)];
        apart += (a - b) * (a - b);
        together += (a + b) * (a + b);
      }
      angles.push_back(2 * std::atan2(std::sqrt(apart), std::sqrt(together)));
      distances.push_back(std::sqrt(apart));
      logs.push_back(-std::log(distances.back()));
    }
  out["nc2_equiang" + suffix] = mean(deviations);
  out["nc2_cos_mean" + suffix] = mean(cosines);
  out["nc2_cos_std" + suffix] = std::sqrt(variance(cosines));
  out["nc2_cos_max" + suffix] = *std::max_element(cosines.begin(), cosines.end());
  if (suffix != "_h") return;
  const Real closest = *std::min_element(distances.begin(), distances.end());
  out["nc2_min_angle_deg"] = *std::min_element(angles.begin(), angles.end()) * 180 / std::acos(Real(-1));
  out["nc2_gnc_dist_mean"] = mean(distances);
  out["nc2_gnc_dist_var"] = variance(distances);
  if (closest == 0) return;
  out["nc2_gnc_log_mean"] = mean(logs);
  out["nc2_gnc_log_var"] = variance(logs);
}

void add_within(std::map<std::string, Real>& out, const Moments& m, const Between& b, Convention convention) {
  const Real N = static_cast<Real>(std::accumulate(m.counts.begin(), m.counts.end(), Index(0)));
  const bool classavg = convention == Convention::classavg;
  const Matrix within = classavg ? scaled(m.scatter_classavg, 1 / Real(b.K)) : scaled(m.scatter, 1 / N);
  Real trace_within = 0, trace_between = 0;
  for (Index j = 0; j < b.d; ++j) trace_within += within(j, j);
  for (Real x : b.root.values) trace_between += x * x;
  if (trace_within + trace_between > 0) out["nc1_within_frac"] = trace_within / (trace_within + trace_between);
  if (trace_between == 0) return;
  out["nc1_trace_ratio"] = trace_within / trace_between;

  // tr(Sigma_W Sigma_B^+) from the smaller of Sigma_B = R^T R and the Gram matrix G = R R^T: Sigma_B^+ = R^T G^+ G^+ R.
  const Matrix R = b.root, Rt = transpose(R);
  Real trace;
  if (b.d <= b.K) {
    trace = trace_of_product(within, pseudo_inverse(product(Rt, R)));
  } else {
    const Matrix inverse = pseudo_inverse(product(R, Rt));
    trace = trace_of_product(product(product(R, within), Rt), product(inverse, inverse));
  }
  out["nc1_pinv_sum"] = trace;
  out["nc1_pinv"] = convention == Convention::papyan ? trace : trace / static_cast<Real>(b.K);
}

void add_cdnv(std::map<std::string, Real>& out, const Moments& m) {
  Vector terms;
  for (Index j : m.seen)
    for (Index k : m.seen) {
      if (k <= j) continue;
      Real square = 0;
      for (Index c = 0; c < m.means.cols; ++c)
        square += (m.means(j, c) - m.means(k, c)) * (m.means(j, c) - m.means(k, c));
      if (square == 0) return;
      terms.push_back((m.variances[at(j)] + m.variances[at(k)]) / (2 * square));
    }
  out["nc1_cdnv"] = mean(terms);
}

void add_classifier(std::map<std::string, Real>& out, const Moments& m, const Between& b, const Head& head) {
  const Matrix W = select_rows(head.weights, m.seen);
  add_geometry(out, W, "_w");
  const Vector ones(at(b.K), 1);
  out["nc0_rowsum"] = norm(weighted_sum(W, ones));
  if (!head.bias.empty()) {
    Vector at_mean, prior;
    for (Index k = 0; k < b.K; ++k) {
      const Real bias = head.bias[at(m.seen[at(k)])];
      Real logit = bias;
      for (Index j = 0; j < b.d; ++j) logit += W(k, j) * b.sample_mean[at(j)];
      at_mean.push_back(logit);
      prior.push_back(bias - b.shares[at(k)]);
    }
    out["nc_bias"] = norm(at_mean);
    out["nc_bias_prior"] = norm(prior);
  }
  const Matrix centred_product = product(W, transpose(b.centred)), raw_product = product(W, transpose(b.means));
  if (norm(W) > 0 && norm(b.centred) > 0) out["nc3_dual"] = distance_of_directions(W, b.centred);
  if (norm(centred_product) > 0) out["nc3_wh_etf"] = distance_of_directions(centred_product, simplex(b.K));
  if (norm(raw_product) > 0) out["nc3_wh_of"] = distance_of_directions(raw_product, frame(b.K));
  Vector dots, cosines;
  for (Index k = 0; k < b.K; ++k) {
    dots.push_back(dot(W, k, b.centred, k));
    const Real norms = norm(W, k) * norm(b.centred, k);
    if (norms > 0) cosines.push_back(dots.back() / norms);
  }
  out["nc3_uni_dot_var"] = variance(dots, 1);
  if (static_cast<Index>(cosines.size()) == b.K) {
    out["nc3_cos_mean"] = mean(cosines);
    out["nc3_cos_min"] = *std::min_element(cosines.begin(), cosines.end());
  }
}

void add_decisions(std::map<std::string, Real>& out, const Decisions& d, bool has_head, const std::string& suffix) {
  const auto total = [](const std::vector<Index>& v) {
    return static_cast<Real>(std::accumulate(v.begin(), v.end(), Index(0)));
  };
  const Real N = total(d.samples);
  if (N == 0) return;
  out["ncc_acc" + suffix] = total(d.correct_centre) / N;
  if (!has_head) return;
  out["nc4_agree" + suffix] = total(d.agree) / N;
  out["acc_top1" + suffix] = total(d.correct_classifier) / N;
  Vector recalls;
  for (std::size_t k = 0; k < d.samples.size(); ++k)
    if (d.samples[k] > 0)
      recalls.push_back(static_cast<Real>(d.correct_classifier[k]) / static_cast<Real>(d.samples[k]));
  out["acc_balanced" + suffix] = mean(recalls);
}

}  // namespace

// --- moments and decisions

Moments moments(const Data& data) {
  const Index N = data.features.rows, d = data.features.cols, K = data.classes;
  Moments m;
  m.counts.assign(at(K), 0);
  m.means = Matrix(K, d);
  for (Index i = 0; i < N; ++i) {
    ++m.counts[at(data.labels[at(i)])];
    for (Index j = 0; j < d; ++j) m.means(data.labels[at(i)], j) += data.features(i, j);
  }
  for (Index k = 0; k < K; ++k) {
    if (m.counts[at(k)] == 0) continue;
    m.seen.push_back(k);
    for (Index j = 0; j < d; ++j) m.means(k, j) /= static_cast<Real>(m.counts[at(k)]);
  }

  m.variances.assign(at(K), 0);
  m.scatter = Matrix(d, d);
  m.scatter_classavg = Matrix(d, d);
  Matrix of_class(d, d);
  Vector r(at(d));
  for (Index k : m.seen) {
    const Real n = static_cast<Real>(m.counts[at(k)]);
    std::fill(of_class.values.begin(), of_class.values.end(), 0);
    for (Index i = 0; i < N; ++i) {
      if (data.labels[at(i)] != k) continue;
      for (Index j = 0; j < d; ++j) r[at(j)] = data.features(i, j) - m.means(k, j);
      for (Index p = 0; p < d; ++p)
        for (Index q = 0; q <= p; ++q) of_class(p, q) += r[at(p)] * r[at(q)];
    }
    for (Index p = 0; p < d; ++p) {
      m.variances[at(k)] += of_class(p, p) / n;
      for (Index q = 0; q < d; ++q) {
        const Real value = q <= p ? of_class(p, q) : of_class(q, p);
        m.scatter(p, q) += value;
        m.scatter_classavg(p, q) += value / n;
      }
    }
  }
  return m;
}

Decisions decide(const Moments& centres, const Head& head, const Data& data) {
  const Index K = data.classes, d = data.features.cols;
  const bool has_head = head.weights.rows > 0;
  const std::vector<Index> zeros(at(K), 0);
  Decisions out{zeros, zeros, zeros, zeros};

  // The first class with the best score; notes the gap to the best score that differs from it, relative to the sizes of
  // the terms that make up the two scores.
  const auto best = [&](const std::vector<Index>& classes, const Vector& scores, const Vector& sizes) {
    std::size_t winner = 0;
    for (std::size_t c = 1; c < scores.size(); ++c)
      if (scores[c] > scores[winner]) winner = c;
    for (std::size_t c = 0; c < scores.size(); ++c)
      if (scores[c] != scores[winner])
        out.margin = std::min(out.margin, (scores[winner] - scores[c]) / (sizes[winner] + sizes[c]));
    return classes[winner];
  };
  std::vector<Index> all(at(K));
  std::iota(all.begin(), all.end(), Index(0));

  for (Index i = 0; i < data.features.rows; ++i) {
    const Index label = data.labels[at(i)];
    ++out.samples[at(label)];
    Vector scores, sizes;
    for (Index k : centres.seen) {
      Real square = 0;
      for (Index j = 0; j < d; ++j) {
        const Real difference = data.features(i, j) - centres.means(k, j);
        square += difference * difference;
      }
      scores.push_back(-square);
      sizes.push_back(square);
    }
    const Index nearest = best(centres.seen, scores, sizes);
    out.correct_centre[at(label)] += nearest == label;
    if (!has_head) continue;

    scores.clear();
    sizes.clear();
    for (Index k = 0; k < K; ++k) {
      Real score = head.bias.empty() ? 0 : head.bias[at(k)], absolute = std::abs(score);
      for (Index j = 0; j < d; ++j) {
        score += head.weights(k, j) * data.features(i, j);
        absolute += std::abs(head.weights(k, j) * data.features(i, j));
      }
      scores.push_back(score);
      sizes.push_back(absolute);
    }
    const Index chosen = best(all, scores, sizes);
    out.correct_classifier[at(label)] += chosen == label;
    out.agree[at(label)] += chosen == nearest;
  }
  return out;
}

// --- metrics

std::map<std::string, Real> metrics(const Moments& m, const Evidence& evidence, Convention convention) {
  std::map<std::string, Real> out;
  const Between b = between(m, convention);
  add_within(out, m, b, convention);
  add_cdnv(out, m);
  add_geometry(out, b.centred, "_h");
  if (norm(b.means) > 0) out["nc2_of_h"] = distance_of_directions(product(b.means, transpose(b.means)), frame(b.K));
  if (norm(b.centred) > 0 && b.d >= b.K - 1) {
    const Matrix simplex = between(m, Convention::peer).centred;
    const bool wide = b.K <= b.d;
    const Eigen e = eigen(wide ? product(simplex, transpose(simplex)) : product(transpose(simplex), simplex));
    const Real largest = *std::max_element(e.values.begin(), e.values.end());
    Real nuclear = 0;
    for (Real value : e.values) nuclear += value > 1e-17L * largest ? std::sqrt(value) : 0;
    out["nc2_nearest_etf"] = 2 - 2 * nuclear / (std::sqrt(Real(b.K - 1)) * norm(simplex));
  }
  out["nc_drift"] = norm(b.sample_mean);
  const bool has_head = evidence.head != nullptr;
  if (has_head) add_classifier(out, m, b, *evidence.head);
  if (evidence.train) add_decisions(out, *evidence.train, has_head, "_train");
  if (evidence.test) add_decisions(out, *evidence.test, has_head, "_test");
  if (evidence.ood_mean && norm(*evidence.ood_mean) > 0) {
    Vector cosines;
    for (Index k = 0; k < b.K; ++k) {
      Real inner = 0;
      for (Index j = 0; j < b.d; ++j) inner += b.means(k, j) * (*evidence.ood_mean)[at(j)];
      const Real norms = norm(b.means, k) * norm(*evidence.ood_mean);
      if (norms > 0) cosines.push_back(std::abs(inner) / norms);
    }
    if (static_cast<Index>(cosines.size()) == b.K) out["nc5_ortho"] = mean(cosines);
  }
  return out;
}

Real vci(const Moments& m, Real cut) {
  const Between b = between(m, Convention::anova);
  const Real N = static_cast<Real>(std::accumulate(m.counts.begin(), m.counts.end(), Index(0)));
  const Matrix sigma_b = product(transpose(b.root), b.root);
  Matrix sigma_t = sigma_b;
  for (std::size_t i = 0; i < sigma_t.values.size(); ++i) sigma_t.values[i] += m.scatter.values[i] / N;
  const Index limit = std::min(b.d, b.K - 1);
  // Near collapse the difference has few digits even in Real. With the eigenvalues a of B Sigma_W^-1 B^T it is the mean
  // of 1/(1+a) over all but those that are 0 by the dependency of the centred means.
  Matrix sigma_w = m.scatter;
  for (Real& value : sigma_w.values) value /= N;
  const Eigen within = eigen(sigma_w);
  const auto [least, most] = std::minmax_element(within.values.begin(), within.values.end());
  if (*least > 1e-6L * *most) {
    Eigen ratios = eigen(product(product(b.root, pseudo_inverse(sigma_w, 0)), transpose(b.root)));
    std::sort(ratios.values.rbegin(), ratios.values.rend());
    Real sum = 0;
    for (Index i = 0; i < limit; ++i) sum += 1 / (1 + ratios.values[at(i)]);
    return sum / static_cast<Real>(limit);
  }
  return 1 - trace_of_product(pseudo_inverse(sigma_t, cut), sigma_b) / static_cast<Real>(limit);
}

std::map<std::string, Vector> per_class(const Moments& m, const Evidence& evidence, Convention convention) {
  const Between b = between(m, convention);
  const Real none = std::numeric_limits<Real>::quiet_NaN();
  Vector centre(m.counts.size(), none), nearest(m.counts.size(), none);
  for (Index k = 0; k < b.K; ++k) {
    const Index label = m.seen[at(k)];
    const Real variance_k = m.variances[at(label)];
    const Real to_centre = dot(b.centred, k, b.centred, k);
    Real to_nearest = std::numeric_limits<Real>::infinity();
    for (Index j = 0; j < b.K; ++j) {
      Real square = 0;
      for (Index c = 0; c < b.d; ++c) square += (b.means(k, c) - b.means(j, c)) * (b.means(k, c) - b.means(j, c));
      if (j != k) to_nearest = std::min(to_nearest, square);
    }
    if (to_centre > 0) centre[at(label)] = variance_k / to_centre;
    if (to_nearest > 0) nearest[at(label)] = variance_k / to_nearest;
  }
  std::map<std::string, Vector> out = {{"nc1_per_class", centre}, {"nc1_per_class_nearest", nearest}};
  const auto add_recalls = [&](const std::string& key, const std::vector<Index>& correct, const Decisions& split) {
    for (std::size_t k = 0; k < correct.size(); ++k)
      out[key].push_back(split.samples[k] > 0 ? static_cast<Real>(correct[k]) / static_cast<Real>(split.samples[k])
                                              : none);
  };
  for (const auto& [split, suffix] : {std::pair(evidence.train, "_train"), std::pair(evidence.test, "_test")}) {
    if (!split) continue;
    add_recalls(std::string("ncc_acc_per_class") + suffix, split->correct_centre, *split);
    if (evidence.head) add_recalls(std::string("acc_per_class") + suffix, split->correct_classifier, *split);
  }
  return out;
}

// --- files

Matrix read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[8];
  std::uint16_t header_bytes = 0;
  file.read(magic, 8);
  file.read(reinterpret_cast<char*>(&header_bytes), 2);
  std::string header(header_bytes, ' ');
  file.read(header.data(), header_bytes);
  if (!file || std::memcmp(magic, "\x93NUMPY\x01\x00", 8) != 0 ||
      header.find("'fortran_order': False") == std::string::npos)
    throw std::runtime_error(path + ": not a .npy file of version 1 in C order");
  const std::string shape = header.substr(header.find('(') + 1);
  const auto comma = shape.find(',');
  const Index rows = std::stoll(shape);
  const bool is_vector = shape.find_first_not_of(" ", comma + 1) == shape.find(')');
  Matrix result(rows, is_vector ? 1 : std::stoll(shape.substr(comma + 1)));
  const auto fill = [&](auto zero) {
    std::vector<decltype(zero)> raw(result.values.size());
    file.read(reinterpret_cast<char*>(raw.data()), static_cast<std::streamsize>(raw.size() * sizeof(zero)));
    std::copy(raw.begin(), raw.end(), result.values.begin());
  };
  if (header.find("<f4") != std::string::npos)
    fill(float(0));
  else if (header.find("<f8") != std::string::npos)
    fill(double(0));
  else if (header.find("<i8") != std::string::npos)
    fill(std::int64_t(0));
  else
    throw std::runtime_error(path + ": neither float32, float64 nor int64");
  if (!file) throw std::runtime_error(path + ": too short");
  return result;
}

}  // namespace oracle
