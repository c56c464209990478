// Singular value decompositions that were checked.
#pragma once

#include "host/backend.hpp"

namespace ncollapse {

struct CheckedSvd {
  Svd svd;
  double residual = 0;       ///< |A - U diag(s) V^T|_F / |A|_F; 0 for A = 0
  double orthogonality = 0;  ///< the larger of |U^T U - I|_F and |V^T V - I|_F
};

/// Throws like Backend::svd; DataError when |A|_F is not finite, Error(internal) with the numbers when the residual or
/// the loss of orthogonality exceeds 50 max(m, n) eps.
CheckedSvd checked_svd(Backend& backend, const Matrix& A);

/// Singular values alone, descending. Throws like Backend::singular_values and, as checked_svd, DataError and
/// Error(internal): the latter when their squares do not add up to |A|_F^2.
std::vector<double> checked_singular_values(Backend& backend, const Matrix& A);

}  // namespace ncollapse
