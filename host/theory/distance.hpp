// Distance of a classifier and class means to the predicted minimiser, on matrices of the backend.
#pragma once

#include "host/grams.hpp"
#include "host/theory/geometry.hpp"
#include "ncollapse/theory.hpp"

namespace ncollapse {

/// Why the minimiser is not determined; empty when it is.
std::string undetermined(const UfmPrediction& prediction);

/// As the public geometry_distance; `pair` is group_pair(spectrum.structure(), weights, means), or that of any other
/// label model with group constants (they share it). grams: of weights and means, among others. `sample_mean` [d] is
/// used with a bias only.
GeometryDistance geometry_distance(Backend& backend, Grams& grams, const LabelSpectrum& spectrum,
                                   const UfmPrediction& prediction, const Matrix& weights, const Matrix& means,
                                   const std::vector<double>& sample_mean, const GroupedPair& pair);

}  // namespace ncollapse
