// The reference for the tests: every metric by its definition, in long double, with no thought for speed or memory.
// Written from the formulas of the papers, independently of the library.
//
// Symbols: N samples h_i with labels y_i, K classes, d dimensions, n_k counts, m_k class means, mu the centre of the
// means, c_k = m_k - mu, v_k = tr S_k the variance of class k with denominator n_k, W classifier, b its bias.
// Classes without samples are left out of everything; K in a formula is the number of classes that have samples.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ncollapse/metrics.hpp"
#include "ncollapse/types.hpp"

namespace oracle {

using ncollapse::Index;
using Real = long double;
using Vector = std::vector<Real>;

/// Dense, row-major.
struct Matrix {
  Index rows = 0, cols = 0;
  Vector values;

  Matrix() = default;
  Matrix(Index r, Index c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c), 0) {}
  Real& operator()(Index i, Index j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  Real operator()(Index i, Index j) const { return values[static_cast<std::size_t>(i * cols + j)]; }
};

Matrix product(const Matrix& A, const Matrix& B);
Matrix transpose(const Matrix& A);

/// Eigenvalues of a symmetric matrix and, as columns, its unit eigenvectors: cyclic Jacobi rotations.
struct Eigen {
  Vector values;
  Matrix vectors;
};
Eigen eigen(Matrix A);

/// Pseudo-inverse of a symmetric positive semi-definite matrix: eigenvalues up to `cut` times the largest count as 0.
Matrix pseudo_inverse(const Matrix& A, Real cut = 1e-16L);

struct Data {
  Matrix features;  ///< [N x d]
  std::vector<Index> labels;
  Index classes = 0;
};

/// W [K x d] and b [K]; no rows: no classifier; an empty b: no bias.
struct Head {
  Matrix weights;
  Vector bias;
};

/// Two passes: the means first, then everything around them.
struct Moments {
  std::vector<Index> counts;  ///< n_k [K]
  std::vector<Index> seen;    ///< classes that have samples
  Matrix means;               ///< [K x d]; zeros for an absent class
  Vector variances;           ///< v_k [K]
  Matrix scatter;             ///< [d x d] sum over all samples of (h - m_y)(h - m_y)^T
  Matrix scatter_classavg;    ///< the same with weight 1/n_y for each sample: sum_k S_k
};
Moments moments(const Data& data);

/// [K] each: argmin_k |h - m_k| over the classes seen and argmax_k (W h + b)_k over all, ties to the lowest class.
struct Decisions {
  std::vector<Index> samples, correct_centre, correct_classifier, agree;
  /// Smallest gap between the best score and one that differs from it, relative to the terms of the two: a count
  /// computed in double is only well defined when this is far above the rounding of double.
  Real margin = 1;
};
Decisions decide(const Moments& centres, const Head& head, const Data& data);

struct Evidence {
  const Head* head = nullptr;
  const Decisions* train = nullptr;
  const Decisions* test = nullptr;
  const Vector* ood_mean = nullptr;
};

/// Scalar metrics by key; a key whose formula has no value here, or whose input is missing, is absent.
std::map<std::string, Real> metrics(const Moments& moments, const Evidence& evidence, ncollapse::Convention convention);

/// 1 - tr(Sigma_T^+ Sigma_B)/min(d, K-1) with the matrices of `anova`. Apart from metrics(): an eigenproblem of size d.
/// The cut lies above the rounding of double (d eps), which a library working in double cannot tell from 0.
Real vci(const Moments& moments, Real cut = 1e-13L);

/// Per-class metrics by key, [K]; NaN for classes without samples (of the split, for accuracies) and where a
/// denominator is 0.
std::map<std::string, Vector> per_class(const Moments& moments, const Evidence& evidence,
                                        ncollapse::Convention convention);

/// A .npy file of version 1 with float32, float64 or int64 entries in C order; a vector has one column.
Matrix read_npy(const std::string& path);

}  // namespace oracle
