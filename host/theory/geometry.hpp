// How far class means and a classifier are from a reference geometry that is diagonal in the label spectrum's basis.
#pragma once

#include <vector>

#include "host/backend.hpp"
#include "host/grams.hpp"
#include "host/theory/structure.hpp"

namespace ncollapse {

/// Two matrices A, B [K x d], rows sorted into the groups of equal class size. In each group the contrasts carry what
/// is left when the group's mean row is subtracted, whatever basis of contrasts is chosen; the mean carries the rest.
struct GroupedPair {
  Matrix left_sums, right_sums;  ///< [m x d] of A, B: sum over the group / sqrt(l)
  /// Of the contrasts in group i, [m]: sums of |a|^2, |b|^2, <a, b>, and |G|^2 of their Gram matrices G.
  std::vector<double> left, right, cross, left_gram, right_gram;
};

/// One pass over A and B, which may be one matrix: then the pair's sides share memory. Uses memory of some m d doubles
/// beside a few MiB.
GroupedPair group_pair(Backend& backend, const LabelSpectrum::Structure& structure, const Matrix& A, const Matrix& B);
/// The pair (A, diag(scale) (B - 1 centre^T)); scale one number a group, [m]; centre [d], or empty (as it must be
/// without bias).
GroupedPair scaled_right(Backend& backend, const LabelSpectrum::Structure& structure, const GroupedPair& pair,
                         const std::vector<double>& scale, const std::vector<double>& centre);

/// sum over group i of scale_k A_k, [m x d]; scale [K].
Matrix group_sums(Backend& backend, const LabelSpectrum::Structure& structure, const Matrix& A,
                  const std::vector<double>& scale);

/// What each eigenspace holds, in the order of LabelSpectrum::eigenspaces(). None of it depends on the basis chosen
/// inside an eigenspace.
struct SpectrumEnergies {
  std::vector<double> left;   ///< sum of |row|^2 of U^T A
  std::vector<double> right;  ///< sum of |row|^2 of V^T B
  std::vector<double> cross;  ///< sum of <row of U^T A, row of V^T B>
  double left_blocks = 0;     ///< sum over the eigenspaces of |G|^2, G the Gram matrix of their rows of U^T A
  double right_blocks = 0;    ///< the same of V^T B
};

/// O(m^2 d) time; the m x m vectors are made tile by tile.
SpectrumEnergies spectrum_energies(Backend& backend, const LabelSpectrum& spectrum, const GroupedPair& pair);

/// | G/|G| - T/|T| | for a Gram matrix G of Frobenius norm `norm` and T = diag(target) in the same basis, target
/// constant in every eigenspace; `energies` are G's traces over the eigenspaces. Resolves down to about 1e-8.
double distance_to_diagonal(const std::vector<double>& energies, double norm, const std::vector<double>& target,
                            const std::vector<Eigenspace>& spaces);

/// Frobenius norms of A A^T, X X^T and A X^T for X = diag(scale) (B - 1 centre^T); A, B [R x d], scale [R], centre [d]
/// or empty. On the smaller side; where that is d x d, X is made chunk by chunk. grams: of A, among others.
struct GramNorms {
  double left = 0, right = 0, product = 0;
};
GramNorms gram_norms(Backend& backend, Grams& grams, const Matrix& A, const Matrix& B, const std::vector<double>& scale,
                     const std::vector<double>& centre);

}  // namespace ncollapse
