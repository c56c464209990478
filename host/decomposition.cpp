// A vendor's decomposition is not believed unseen. A backward stable solver leaves a residual and a loss of
// orthogonality of a small multiple of max(m, n) eps; LAPACK's own tests of its solvers (ddrvbd) allow 50 of it. That
// is far above what rounding in this check can add, and far below what a wrong vector costs. The identity is subtracted
// entry by entry: |G - I|^2 = |G|^2 - 2 tr G + r would resolve no better than sqrt(eps).
#include "host/decomposition.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "host/classifier_product.hpp"
#include "host/numbers.hpp"
#include "ncollapse/decomposition.hpp"

namespace ncollapse {

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

double finite_norm(Backend& backend, const Matrix& A) {
  const double size = backend.norm(A);
  if (!std::isfinite(size)) throw DataError("the matrix holds NaN or infinite values, or its squares overflow");
  return size;
}

// |G - I|_F
double distance_to_identity(Backend& backend, Matrix gram) {
  backend.combine(1, gram, -1, backend.identity(gram.rows), gram);
  return backend.norm(gram);
}

SingularValueDecomposition to_host(Backend& backend, const Matrix& A) {
  const CheckedSvd checked = checked_svd(backend, A);
  return {A.rows,
          A.cols,
          checked.svd.values,
          backend.to_host(checked.svd.left),
          backend.to_host(checked.svd.right),
          checked.residual,
          checked.orthogonality};
}

}  // namespace

std::vector<double> checked_singular_values(Backend& backend, const Matrix& A) {
  const double size = finite_norm(backend, A);
  auto values = backend.singular_values(A);
  double squares = 0;
  for (const double value : values) squares += (value / size) * (value / size);
  const double bound = 50 * static_cast<double>(std::max(A.rows, A.cols)) * kEps;
  if (size > 0 && !(std::abs(squares - 1) <= bound && values.back() >= 0))
    throw Error(ErrorKind::internal, "the singular values of a " + std::to_string(A.rows) + " x " +
                                         std::to_string(A.cols) + " matrix are wrong: their squares add up to " +
                                         text_of(squares, 3) + " of its own");
  return values;
}

CheckedSvd checked_svd(Backend& backend, const Matrix& A) {
  const double size = finite_norm(backend, A);
  CheckedSvd result;
  result.svd = backend.svd(A);
  const Svd& svd = result.svd;
  {
    Matrix error = backend.product(svd.left, Transpose::no, backend.scaled(svd.values, svd.right), Transpose::no);
    backend.combine(-1, error, 1, A, error);
    result.residual = backend.norm(error) / (size > 0 ? size : 1);
  }
  const double left = distance_to_identity(backend, backend.product(svd.left, Transpose::yes, svd.left, Transpose::no));
  const double right =
      distance_to_identity(backend, backend.product(svd.right, Transpose::no, svd.right, Transpose::yes));
  result.orthogonality = std::max(left, right);
  const double bound = 50 * static_cast<double>(std::max(A.rows, A.cols)) * kEps;
  if (!(result.residual <= bound && left <= bound && right <= bound))
    throw Error(ErrorKind::internal, "the singular value decomposition of a " + std::to_string(A.rows) + " x " +
                                         std::to_string(A.cols) + " matrix is wrong: relative residual " +
                                         text_of(result.residual, 3) + ", orthogonality " + text_of(left, 3) +
                                         " (left) and " + text_of(right, 3) + " (right), allowed " + text_of(bound, 3));
  return result;
}

Index SingularValueDecomposition::rank() const {
  if (values.empty()) return 0;
  const double cut = static_cast<double>(std::max(rows, cols)) * kEps * values.front();
  return std::count_if(values.begin(), values.end(), [&](double value) { return value > cut; });
}

SingularValueDecomposition decompose(const Context& context, const Classifier& classifier) {
  if (classifier.layers.empty()) throw UsageError("the classifier has no layers");
  Backend& backend = *context.backend();
  return to_host(
      backend, classifier_product(backend, classifier, classifier.layers.front().cols, classifier.layers.back().rows));
}

SingularValueDecomposition decompose_label_matrix(const Context& context, const std::vector<Index>& counts,
                                                  LabelModel model) {
  const auto classes = static_cast<Index>(counts.size());
  if (classes > kMaxDenseClasses)
    throw UsageError("the dense label matrix of " + std::to_string(classes) + " classes is too large, at most " +
                         std::to_string(kMaxDenseClasses) + " are decomposed",
                     "LabelSpectrum needs no dense matrix");
  const auto samples = static_cast<double>(LabelSpectrum(counts, model).samples());  // checks the counts
  std::vector<double> entries(static_cast<std::size_t>(classes * classes));
  for (Index j = 0; j < classes; ++j) {
    const double mean = model == LabelModel::with_bias ? static_cast<double>(counts[j]) / samples
                        : model == LabelModel::seli    ? 1 / static_cast<double>(classes)
                                                       : 0.0;
    for (Index k = 0; k < classes; ++k)
      entries[j * classes + k] = ((j == k ? 1.0 : 0.0) - mean) * std::sqrt(static_cast<double>(counts[k]));
  }
  Backend& backend = *context.backend();
  const Matrix matrix = backend.from_host(entries, classes, classes);
  std::vector<double>().swap(entries);
  return to_host(backend, matrix);
}

}  // namespace ncollapse
