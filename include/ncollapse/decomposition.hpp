// Dense singular value decompositions by the vendors' solvers (LAPACK's dgesdd, cuSOLVER's Xgesvd), each one checked.
#pragma once

#include <vector>

#include "ncollapse/classifier.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/export.hpp"
#include "ncollapse/theory.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

/// The thin decomposition A = U diag(s) V^T of A [rows x cols], r = min(rows, cols), row-major in host memory. Vectors
/// are unique up to sign; those of a repeated singular value, up to a rotation.
struct SingularValueDecomposition {
  Index rows = 0, cols = 0;
  std::vector<double> values;  ///< s, descending, [r]
  std::vector<double> left;    ///< U [rows x r]
  std::vector<double> right;   ///< V^T [r x cols]
  double residual = 0;         ///< |A - U diag(s) V^T|_F / |A|_F; 0 for A = 0
  double orthogonality = 0;    ///< the larger of |U^T U - I|_F and |V^T V - I|_F, both r x r

  /// Singular values above max(rows, cols) eps s_max.
  NCOLLAPSE_EXPORT Index rank() const;
};

// Both functions work on the context's device in about 10 rows x cols doubles, and wait for it. Deterministic: the same
// input on the same device with the same number of threads gives the same bits. They throw UsageError when sizes do not
// fit (on the CPU also above 23000 singular values, the solver's 32-bit limit), DataError when the matrix is not finite
// or its squares overflow, MemoryError when memory is short, and Error(internal) when the solver fails or its result
// has a residual or a loss of orthogonality above 50 max(rows, cols) eps, the bound of LAPACK's own tests.

/// Of the product of the layers, W = W_L ... W_1 [K x d]. The bias is not used.
NCOLLAPSE_EXPORT SingularValueDecomposition decompose(const Context& context, const Classifier& classifier);

/// Largest K of decompose_label_matrix: above, the K x K matrix alone would need more than 8 GiB.
inline constexpr Index kMaxDenseClasses = 32768;

/// Of the label matrix itself [K x K], see LabelModel for its formula and source: what LabelSpectrum finds by
/// structure, found without it in O(K^3) time. counts: n_k >= 1, [K], at most kMaxDenseClasses.
NCOLLAPSE_EXPORT SingularValueDecomposition decompose_label_matrix(const Context& context,
                                                                   const std::vector<Index>& counts, LabelModel model);

}  // namespace ncollapse
