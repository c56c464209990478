// What collapse looks like when the classes are imbalanced: the spectrum of the label matrix and the global minimiser
// of the L-extended unconstrained feature model (UFM),
//
//   f(W_1..W_L, H, b) = 1/(2N) |W_L...W_1 H + b 1^T - Y|^2 + sum_l lambda_l/2 |W_l|^2 + lambda_H/2 |H|^2.
//
// Sources: H. Liu, arXiv 2411.17278 (with bias); H. Dang et al., ICML 2023 (without); C. Thrampoulidis et al.,
// NeurIPS 2022 (SELI, cross-entropy). Symbols: K classes of n_k samples, N = sum n_k, D = diag(sqrt n_k), m distinct
// sizes.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ncollapse/context.hpp"
#include "ncollapse/export.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

/// The matrix whose singular value decomposition U diag(sigma) V^T governs the geometry.
enum class LabelModel {
  with_bias,     ///< Yhat = (I - n 1^T/N) D
  without_bias,  ///< D
  seli,          ///< (I - 1 1^T/K) D, the class-mean form of the SELI matrix
};

/// Directions of one singular value. Inside an eigenspace the basis is arbitrary; nothing measured may depend on it.
struct Eigenspace {
  double sigma = 0;
  Index multiplicity = 0;
};

/// The singular value decomposition of a label matrix without a dense decomposition: classes of equal size share a
/// singular value (contrasts inside the group), and the m - 1 values between them are roots of a secular equation
/// (LAPACK's dlaed4). Takes O(K log K + m^2) time and O(K) memory. Deterministic; host only.
class NCOLLAPSE_EXPORT LabelSpectrum {
 public:
  /// Throws UsageError when there is no class, a count is below 1, or there are more than 2^53 samples.
  LabelSpectrum(std::vector<Index> counts, LabelModel model);
  ~LabelSpectrum();
  LabelSpectrum(LabelSpectrum&&) noexcept;
  LabelSpectrum& operator=(LabelSpectrum&&) noexcept;

  Index classes() const;  ///< K
  Index samples() const;  ///< N
  LabelModel model() const;
  const std::vector<Index>& counts() const;  ///< n_k in the caller's order, [K]
  /// Eigenspaces by descending sigma; with a bias and for SELI the last one is sigma = 0.
  const std::vector<Eigenspace>& eigenspaces() const;
  /// The K singular values, descending.
  std::vector<double> sigma() const;
  /// U^T X and V^T X for X [K x columns] row-major; row i belongs to sigma()[i]. O((K + m^2) columns) time. Throw
  /// UsageError for another number of values.
  std::vector<double> apply_left(const std::vector<double>& X, Index columns) const;
  std::vector<double> apply_right(const std::vector<double>& X, Index columns) const;

  struct Structure;
  const Structure& structure() const { return *structure_; }  ///< for code inside the library

 private:
  std::unique_ptr<Structure> structure_;
};

struct UfmOptions {
  std::vector<Index> counts = {};     ///< n_k >= 1, [K]
  std::vector<double> lambda_w = {};  ///< one weight decay for each of the L layers, W_1 first; all > 0
  double lambda_h = 0;                ///< weight decay of the features, > 0
  bool bias = true;                   ///< the last layer has an (unregularised) bias
  Index width = 0;                    ///< smallest of the layers' widths and d; 0: no limit

  LabelModel label_model() const { return bias ? LabelModel::with_bias : LabelModel::without_bias; }
};

/// The global minimiser in the directions of one eigenspace.
struct DirectionPrediction {
  double sigma = 0;
  Index multiplicity = 0;
  Index surviving = 0;  ///< how many of them survive; fewer than the multiplicity only when the width cuts through
  bool at_threshold = false;  ///< exactly at the threshold for L >= 2: vanishing is as good as surviving
  double x = 0;               ///< the root x* of theory; 0 when the direction vanishes
  double w = 0;               ///< singular value of W = W_L...W_1
  double z = 0;               ///< singular value of Z = M D, M the class means as columns
  std::vector<double> layer_singular_values;  ///< of W_1..W_L, [L]
  /// Largest lambda_H prod_l lambda_l at which the direction survives, where the width leaves room for it; its decimal
  /// logarithm serves where it underflows. 0 and -infinity for sigma = 0.
  double critical_lambda_product = 0, log10_critical_lambda_product = 0;
};

struct UfmPrediction {
  Index classes = 0, samples = 0;
  std::vector<DirectionPrediction> directions;  ///< one entry an eigenspace, by descending sigma
  double minimum = 0;                           ///< predicted minimum of f
  std::vector<double> bias;                     ///< n/N [K]; empty without bias
  /// Classes whose mean's largest logit is not their own alone (minority collapse), ascending. Empty optional when the
  /// width cuts through an eigenspace, so that the minimiser does not determine it.
  std::optional<std::vector<Index>> lost_classes;

  /// Surviving directions in all.
  NCOLLAPSE_EXPORT Index rank() const;
};

/// The global minimiser of the UFM, for any L >= 1: every direction's x* minimises g(x) = 1/(x^L + 1) + alpha x, with
/// alpha = L N (N lambda_H prod lambda_l)^(1/L) / sigma^2. O(K log K + m^2) time, O(K + m) memory. Deterministic.
/// Throws UsageError for counts as LabelSpectrum does, no layer, a weight decay that is not positive and finite (at 0
/// the minimum is not attained), decays so far apart from the counts that a result would leave the range of double, a
/// negative width.
NCOLLAPSE_EXPORT UfmPrediction predict(const UfmOptions& options);

/// For every class the decimal logarithm of the smallest lambda_H prod_l lambda_l at which it is lost (UfmPrediction),
/// [K]; infinity for one that never is. It depends on class sizes, the number of layers and the bias alone: the values
/// of weight decays do not matter. Without bias it is the critical product of the class's direction, with one it may be
/// less. Found by halving, until an interval is 1e-13 of the product, or one unit of its logarithm's last digit, where
/// loss beyond it is taken for granted: so it is in each of thousands of random cases, a proof is not known. O(m^2)
/// time for each of some 50 halvings of each of m distinct sizes. Throws UsageError as predict, and for a width other
/// than 0.
NCOLLAPSE_EXPORT std::vector<double> class_critical_lambda_products_log10(const UfmOptions& options);

/// Predicted logits of the class means, W M + b 1^T = U diag(w z) V^T D^-1 + (n/N) 1^T [K x K] row-major (column k: the
/// mean of class k). Needs K x K memory. Throws UsageError as predict and when the width cuts through an
/// eigenspace.
NCOLLAPSE_EXPORT std::vector<double> predicted_logits(const UfmOptions& options);

/// What class means are centred by: the mean of all samples, or the mean of the class means.
enum class MeanCentre { samples, classes };

/// Cosines of two classes at the global minimiser, by their sizes: classes of equal size have the same.
struct PredictedCosines {
  std::vector<Index> sizes;  ///< the distinct n_k, descending, [m]
  /// [m x m], of centred class means and of rows of W. NaN for a group of one class with itself and where one of the
  /// two vectors is 0.
  std::vector<double> h, w;
};

/// W W^T = U diag(w^2) U^T and M M^T = D^-1 V diag(z^2) V^T D^-1, of which the rows are normalised (Liu 2024, Dang et
/// al. 2023). With a bias the mean of all samples is 0 at the minimiser. O(K log K + m^3) time, O(K + m^2) memory.
/// Deterministic. Throws UsageError as predict and when the width cuts through an eigenspace.
NCOLLAPSE_EXPORT PredictedCosines predicted_cosines(const UfmOptions& options, MeanCentre centre = MeanCentre::samples);

/// One eigenspace of the label matrix, predicted beside measured. Measured values are
/// root mean squares over the eigenspace, so no choice of basis enters.
struct SpectrumRow {
  double sigma = 0;
  Index multiplicity = 0;
  double w_predicted = 0, w_measured = 0;  ///< norm of a row of U^T W
  double z_predicted = 0, z_measured = 0;  ///< norm of a column of M D V, M centred by the sample mean with a bias
  double cosine = 0;                       ///< between the two; 0 where one vanishes
};

/// How far a classifier W and class means M are from the global minimiser's geometry; all distances are 0 at it.
/// A = U^T W, B = V^T D M with the label matrix's vectors, M centred by the sample mean with a bias. Source: Liu 2024
/// (with bias); Dang et al. 2023 (without).
struct GeometryDistance {
  double w = 0;   ///< | G/|G| - w^2/|w^2| |, G = A A^T
  double h = 0;   ///< | G/|G| - z^2/|z^2| |, G = B B^T; without bias of M M^T against z^2/n, as Dang et al. have it
  double wh = 0;  ///< | P/|P| - w z/|w z| |, P = A B^T
  double row_orthogonality = 0;           ///< |A A^T outside its eigenspaces' blocks| / |A A^T|
  double column_orthogonality = 0;        ///< the same of B B^T
  double align_mean = 0, align_min = 0;   ///< cosine of row i of A and of B, over surviving directions
  double vanished_w = 0, vanished_h = 0;  ///< share of |A|^2, |B|^2 in directions predicted to vanish
  std::vector<SpectrumRow> spectrum;      ///< always there
  /// Why a number above is NaN, by the end of its key: "w", "h", "wh", "row_orth", "col_orth", "align_mean",
  /// "align_min", "vanished_w", "vanished_h". Empty when none is.
  std::map<std::string, std::string> undefined;
};

/// `classifier` W = W_L...W_1 and `means` M (class k in row k, not centred) are [K x d] views in host or device memory,
/// K the number of model.counts; model.width limits the directions that can survive. O(K d^2 + m^2 d) time, memory of a
/// few K d and d^2 doubles, no K x K array where K > d. Distances resolve down to about 1e-8. Deterministic. Throws
/// UsageError for a wrong model (as predict) or shapes that do not fit, DataError for a value that is not finite and
/// for rows beyond 1e70 or all below 1e-70 without being 0, MemoryError when memory is short.
NCOLLAPSE_EXPORT GeometryDistance geometry_distance(const Context& context, const UfmOptions& model,
                                                    const MatrixView& classifier, const MatrixView& means);

}  // namespace ncollapse
