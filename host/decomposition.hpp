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

}  // namespace ncollapse
