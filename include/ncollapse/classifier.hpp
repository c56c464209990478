// The linear head on top of the features.
#pragma once

#include <vector>

#include "ncollapse/types.hpp"

namespace ncollapse {

/// The linear layers between the features and the logits, in the order in which the features meet them: layers[0] is
/// W_1 [d_1 x d], layers.back() is W_L [K x d_{L-1}]; the classifier is W = W_L ... W_1 [K x d]. Only views: the
/// memory has to live as long as the Classifier is used.
struct Classifier {
  std::vector<MatrixView> layers = {};
  MatrixView bias = {};  ///< b as a [1 x K] row; rows = 0 when there is no bias
};

}  // namespace ncollapse
