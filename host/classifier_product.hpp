// The product of the linear layers, W = W_L ... W_1.
#pragma once

#include "host/backend.hpp"
#include "ncollapse/classifier.hpp"

namespace ncollapse {

/// Whether a classifier is given. Throws UsageError for a bias alone.
bool has_layers(const Classifier* classifier);

/// W [classes x dim] in the backend's memory. Throws UsageError when the layers do not chain from `dim` to `classes`,
/// DataError when W is not finite. May share the memory of a single layer: not to be written to.
Matrix classifier_product(Backend& backend, const Classifier& classifier, Index dim, Index classes);

/// b [classes] on the host; empty when the classifier has none. Throws like classifier_product.
std::vector<double> classifier_bias(Backend& backend, const Classifier& classifier, Index classes);

}  // namespace ncollapse
