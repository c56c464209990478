// How far class means and a classifier are from a reference geometry that is diagonal in the label spectrum's basis.
#pragma once

#include <vector>

#include "host/backend.hpp"
#include "host/theory/structure.hpp"

namespace ncollapse {

/// What each eigenspace holds, in the order of LabelSpectrum::eigenspaces(). None of it depends on the basis chosen
/// inside an eigenspace.
struct SpectrumEnergies {
  std::vector<double> left;   ///< sum of |row|^2 of U^T A
  std::vector<double> right;  ///< sum of |row|^2 of V^T B
  std::vector<double> cross;  ///< sum of <row of U^T A, row of V^T B>
};

/// A, B [K x d] in the backend's memory, rows in the order of spectrum.counts(). O(K d + m^2 d) time, no K x K array.
SpectrumEnergies spectrum_energies(Backend& backend, const LabelSpectrum& spectrum, const Matrix& A, const Matrix& B);

/// | G/|G| - T/|T| | for a Gram matrix G of Frobenius norm `norm` and T = diag(target) in the same basis, target
/// constant in every eigenspace; `energies` are G's traces over the eigenspaces. Resolves down to about 1e-8.
double distance_to_diagonal(const std::vector<double>& energies, double norm, const std::vector<double>& target,
                            const std::vector<Eigenspace>& spaces);

}  // namespace ncollapse
