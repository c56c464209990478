// The metrics. Formulas stand in metric_catalogue.cpp; here is how they are evaluated, from the class means M [K x d],
// the scatter S [d x d], traces v and the classifier W [K x d] of the K classes that have samples.
//
// - Every Frobenius norm of a Gram matrix is taken on the smaller side, |A A^T| = |A^T A|.
// - tr(Sigma_W Sigma_B^+) = sum_i y_i^T Sigma_W y_i over the rows y_i of any Y with Y^T Y = Sigma_B^+. With
//   B = diag(sqrt w) C, Sigma_B = B^T B, and G the smaller of B B^T and B^T B. Kept are the largest min(K-1, d)
//   eigenvalues of G that exceed max(K, d) eps lambda_max: K-1 because the centred means always have one linear
//   dependency B^T v = 0, whose eigenvalue is only rounding. If all of those are kept and the smallest is above 1e-6 of
//   the largest, no eigenvectors are needed: Y = L^-1 for B^T B = L L^T, and Y = (G + a v v^T)^-1 B for B B^T, where
//   the dependency has been given an eigenvalue a among the others. Otherwise y_i = v_i / s_i from the singular values
//   and right vectors of B itself: in G the smaller ones, which count most, have lost half of their digits.
// - 1 - tr(Sigma_T^+ Sigma_B) / r, r = min(K-1, d), would cancel near collapse. With Sigma_W = L L^T and X = B L^-T it
//   is tr((I + X X^T)^-1) / r without the dependency, whose share is known; or tr((I + X^T X)^-1) / r. An error of
//   Cholesky's moves each term by at most n eps cond(Sigma_W) of itself.
// - The distances to a reference frame (ETF, orthogonal frame) are summed as residuals, tile by tile: the identity
//   |G/|G| - E|^2 = 2 - 2<G, E>/|G| would not resolve below 1e-8.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>

#include "host/backend.hpp"
#include "host/classifier_product.hpp"
#include "host/grams.hpp"
#include "host/input.hpp"
#include "host/moments.hpp"
#include "host/numbers.hpp"
#include "host/theory/blocks.hpp"
#include "host/theory/imbalance.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/metrics.hpp"

namespace ncollapse {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr const char* kFlat = "all class means are equal";

struct ConventionRules {
  Convention preset;
  std::string_view name;
  bool scatter_over_classes;  // Sigma_W = (1/K) sum S_k instead of (1/N) sum n_k S_k
  bool sample_mean;           // centre mu_s instead of mu_c
  bool weigh_by_count;        // Sigma_B weights n_k/N instead of 1/K
  bool divide_by_classes;     // nc1_pinv
};
constexpr ConventionRules kConventions[] = {
    {Convention::zhu, "zhu", false, true, false, true},
    {Convention::papyan, "papyan", false, false, false, false},
    {Convention::peer, "peer", false, false, false, true},
    {Convention::anova, "anova", false, true, true, true},
    {Convention::classavg, "classavg", true, true, false, true},
};

const ConventionRules& rules_of(Convention convention) {
  for (const auto& rules : kConventions)
    if (rules.preset == convention) return rules;
  throw UsageError("unknown convention");
}

double mean(const std::vector<double>& values) { return sum(values) / static_cast<double>(values.size()); }

/// Whether the word is one of the metric's inputs.
bool needs(const MetricInfo& info, std::string_view word) {
  const std::string padded = " " + std::string(info.needs) + " ";
  return padded.find(" " + std::string(word) + " ") != std::string::npos;
}

// sum (x - mean)^2 / (count - ddof)
double variance(const std::vector<double>& values, int ddof = 0) {
  const double centre = mean(values);
  double sum = 0;
  for (const double value : values) sum += (value - centre) * (value - centre);
  return sum / static_cast<double>(static_cast<Index>(values.size()) - ddof);
}

template <class T>
std::vector<T> pick(const std::vector<T>& values, const std::vector<Index>& index) {
  std::vector<T> picked;
  picked.reserve(index.size());
  for (const Index k : index) picked.push_back(values[k]);
  return picked;
}

std::vector<double> roots_of(std::vector<double> values) {
  for (double& value : values) value = std::sqrt(value);
  return values;
}

/// The measurement in progress: what every step needs, and the report it fills.
class Measurement {
 public:
  Measurement(const ClassMoments& moments, const Evidence& evidence, Convention convention)
      : moments_(moments),
        evidence_(evidence),
        rules_(rules_of(convention)),
        backend_(*moments.context().backend()),
        grams_(backend_) {}

  Report run();

 private:
  void set(std::string_view key, double value) {
    if (std::isfinite(value))
      values_[std::string(key)] = value;
    else
      undefined(key, "the value overflows or divides by zero");
  }
  void undefined(std::string_view key, const std::string& why) {
    report_.status[std::string(key)] = {"undefined", why};
  }
  void skip(std::string_view key, const std::string& why) { report_.status[std::string(key)] = {"skipped", why}; }
  // A per-class metric of the seen classes; NaN elsewhere.
  void set_per_class(std::string_view key, const std::vector<double>& seen_values);

  void centre();
  void make_means_equal();
  void variability();
  void input_rounding();
  void pseudo_inverse();
  void collapse_index();
  void geometry(const Matrix& rows, const std::vector<double>& norms, const std::string& suffix, PairQuery query);
  void blocks(const Matrix& rows, const std::vector<double>& norms, const PairSums& sums, const std::string& suffix);
  void duality(const Matrix& weights, const std::vector<double>& bias);
  void imbalance(const Matrix& weights, const std::vector<double>& bias);
  void decisions(const DecisionCounts* counts, const std::string& split);
  void out_of_distribution();
  void explain_missing();

  /// Whether pairs of classes are taken by narrow products.
  bool fast_pairs() const { return report_.precision == Precision::fast && report_.classes_seen > kFastPairRows; }
  double rounding_of_mean(std::size_t i) const {
    return ncollapse::rounding_of_mean(mean_squares_[i], moments_.counts()[seen_[i]],
                                       variances_.empty() ? 0.0 : variances_[i]);
  }
  double weight_within(std::size_t i) const { return rules_.scatter_over_classes ? 1 / k_ : share_[i]; }
  double scatter_scale() const;  // Sigma_W = scale * S; NaN when this scatter does not fit the convention

  /// Of A^T A, A [K x d].
  struct Spectrum {
    std::vector<double> values;  ///< the kept eigenvalues, descending
    double tolerance = 0;
    Index kept = 0, limit = 0;
    Matrix whitening;  ///< Y [* x d] with Y^T Y = (A^T A)^+ on the kept directions; null where it was not wanted

    /// Whether the squares hold all digits of the singular values that count.
    bool resolved() const { return kept == limit && values.back() > kWellConditioned * values.front(); }
    static constexpr double kWellConditioned = 1e-6;
  };
  void nearest_simplex(const Spectrum& own);
  /// dependency: unit vector v [K] with A^T v = 0.
  Spectrum spectrum(const Matrix& A, const std::vector<double>& dependency, bool whiten);
  double index_without_cancelling(Matrix& within, Matrix X);

  const ClassMoments& moments_;
  const Evidence& evidence_;
  const ConventionRules& rules_;
  Backend& backend_;
  Grams grams_;
  Report report_;
  std::map<std::string, double> values_;

  std::vector<Index> seen_;
  std::vector<Index> counts_;            // n_k of these
  double k_ = 0;                         // number of seen classes
  std::vector<double> share_;            // n_k / N
  std::vector<double> between_weights_;  // w_k of Sigma_B
  std::vector<double> variances_;        // v_k; empty when not accumulated
  Matrix means_, centred_;               // M, C
  std::vector<double> sample_mean_, centre_;
  std::vector<double> centred_norms_, nearest_squared_;
  std::vector<double> mean_squares_;  // |m_k|^2
  double trace_between_ = 0;
  double means_gram_ = 0, weights_gram_ = 0, product_gram_ = 0;  // |M M^T|, |W W^T|, |W M^T|
};

void Measurement::set_per_class(std::string_view key, const std::vector<double>& seen_values) {
  PerClassMetric metric{std::string(key), std::vector<double>(static_cast<std::size_t>(moments_.classes()), kNaN)};
  for (std::size_t i = 0; i < seen_.size(); ++i) metric.values[seen_[i]] = seen_values[i];
  report_.per_class.push_back(std::move(metric));
}

Measurement::Spectrum Measurement::spectrum(const Matrix& A, const std::vector<double>& dependency, bool whiten) {
  Spectrum result;
  const bool rows_side = A.rows <= A.cols;
  const Matrix gram = grams_.of(A);
  Matrix used_up = backend_.clone(gram);
  const auto ascending = backend_.eigenvalues(used_up);
  const auto size = static_cast<Index>(ascending.size());
  const double largest = ascending.back();
  result.limit = std::min(A.rows - 1, A.cols);
  result.tolerance =
      static_cast<double>(std::max(A.rows, A.cols)) * std::numeric_limits<double>::epsilon() * std::max(largest, 0.0);
  while (result.kept < result.limit && ascending[size - 1 - result.kept] > result.tolerance)
    result.values.push_back(ascending[size - 1 - result.kept++]);
  if (!whiten || result.kept == 0) return result;

  backend_.copy(used_up.data(), gram.data(), gram.bytes());
  if (result.resolved()) {
    if (rows_side) {
      const double mean = sum(result.values) / static_cast<double>(size);
      backend_.add_gram(mean, backend_.from_host(dependency, 1, size), used_up);
    }
    Matrix inverse;
    if (backend_.cholesky(used_up, rows_side ? &inverse : nullptr) > 0) {
      if (rows_side) {
        result.whitening = backend_.product(backend_.product(inverse, Transpose::no, inverse, Transpose::yes),
                                            Transpose::no, A, Transpose::no);
      } else {
        result.whitening = backend_.identity(size);
        backend_.solve_lower(used_up, Transpose::yes, result.whitening);
      }
      return result;
    }
  }
  const Svd found = backend_.svd(rows_side ? A : backend_.triangular_factor(A));
  result.values.clear();
  std::vector<Index> order;
  std::vector<double> scale;
  for (Index i = 0; i < result.limit && found.values[i] * found.values[i] > result.tolerance; ++i) {
    result.values.push_back(found.values[i] * found.values[i]);
    order.push_back(i);
    scale.push_back(1 / found.values[i]);
  }
  result.kept = static_cast<Index>(order.size());
  result.whitening = backend_.select_rows(found.right, order);
  backend_.scale_rows(scale, result.whitening);
  return result;
}

void Measurement::centre() {
  const auto& data = moments_.data();
  report_.samples = moments_.samples();
  report_.classes = moments_.classes();
  report_.dim = moments_.dim();
  report_.counts = moments_.counts();
  report_.lambda_w = evidence_.lambda_w;
  report_.lambda_h = evidence_.lambda_h;
  if (const auto dtype = moments_.dtype()) report_.dtype = to_string(*dtype);
  report_.device = backend_.info();
  Index singles = 0;
  for (Index k = 0; k < moments_.classes(); ++k) {
    if (data.counts[k] > 0) seen_.push_back(k);
    singles += data.counts[k] == 1 ? 1 : 0;
  }
  report_.classes_seen = static_cast<Index>(seen_.size());
  if (report_.classes_seen < 2)
    throw DataError(std::string(report_.classes_seen == 1 ? "only one" : "none") + " of " +
                        std::to_string(moments_.classes()) + " classes has samples",
                    "the geometry of class means needs at least two classes");
  report_.precision = data.options.precision;
  report_.scatter_error = moments_.scatter_error();
  if (const Index absent = moments_.classes() - report_.classes_seen; absent > 0)
    report_.notes.push_back(std::to_string(absent) + " of " + std::to_string(moments_.classes()) +
                            " classes have no samples and are left out");
  if (singles > 0)
    report_.notes.push_back(std::to_string(singles) + " of " + std::to_string(moments_.classes()) +
                            " classes have a single sample: their within-class variance is 0 by definition");

  k_ = static_cast<double>(seen_.size());
  counts_ = pick(data.counts, seen_);
  for (const Index n : counts_) share_.push_back(static_cast<double>(n) / static_cast<double>(data.samples));
  if (moments_.statistics() >= Statistics::traces) variances_ = pick(data.variances, seen_);
  const std::vector<double> equal(seen_.size(), 1 / k_);
  between_weights_ = rules_.weigh_by_count ? share_ : equal;

  const bool all_seen = report_.classes_seen == moments_.classes();
  means_ = all_seen ? data.means : backend_.select_rows(data.means, seen_);
  sample_mean_ = backend_.weighted_row_sum(means_, share_);
  centre_ = rules_.sample_mean ? sample_mean_ : backend_.weighted_row_sum(means_, equal);
  centred_ = backend_.clone(means_);
  backend_.centre_rows(centred_, centre_);

  RowProducts products = backend_.row_products(centred_, means_);
  mean_squares_ = std::move(products.right);
  const auto& squares = products.left;
  const std::string rescale = "rescale the features: the metrics do not depend on their unit";
  check_lengths(backend_, means_, mean_squares_, "class means", rescale);
  check_lengths(backend_, centred_, squares, "centred class means", rescale);
  // Equal means may differ from their centre by rounding; that is 0, not a geometry.
  for (std::size_t i = 0; i < squares.size(); ++i) {
    centred_norms_.push_back(squares[i] <= rounding_of_mean(i) ? 0.0 : std::sqrt(squares[i]));
    trace_between_ += between_weights_[i] * centred_norms_.back() * centred_norms_.back();
  }
  if (norm(centred_norms_) == 0) make_means_equal();
  set("nc_drift", norm(sample_mean_));

  auto& block = report_.convention;
  block.preset = rules_.preset;
  block.sigma_w = rules_.scatter_over_classes ? "mean over classes of S_k" : "mean over samples";
  block.centre = rules_.sample_mean ? "sample mean" : "mean of class means";
  block.sigma_b = rules_.weigh_by_count ? "n_k/N" : "1/K";
  block.divided_by_classes = rules_.divide_by_classes;
}

// They differ by rounding alone: from here on not at all. Where they are nothing but rounding, they are 0.
void Measurement::make_means_equal() {
  bool zero = true;
  for (std::size_t i = 0; i < seen_.size(); ++i) zero = zero && mean_squares_[i] <= rounding_of_mean(i);
  if (zero) std::fill(sample_mean_.begin(), sample_mean_.end(), 0.0);
  centre_ = sample_mean_;
  const std::vector<double> ones(seen_.size(), 1.0);
  means_ = backend_.product(backend_.from_host(ones, report_.classes_seen, 1), Transpose::no,
                            backend_.from_host(centre_, 1, report_.dim), Transpose::no);
  centred_ = backend_.matrix(report_.classes_seen, report_.dim);
  mean_squares_ = backend_.row_dots(means_, means_);
}

double Measurement::scatter_scale() const {
  const auto& weights = moments_.data().options.scatter_weights;
  if (!rules_.scatter_over_classes) return weights.empty() ? 1 / static_cast<double>(moments_.samples()) : kNaN;
  for (const Index k : seen_) {
    const double weight = weight_of(weights, static_cast<std::size_t>(k));
    if (!(std::abs(weight * static_cast<double>(moments_.counts()[k]) - 1) < 1e-12)) return kNaN;
  }
  return 1 / k_;
}

/// What rounding adds where the samples of a class spread over a few spacings of their type (closer ones are rounded
/// alike, which adds less): a number between 2^e and 2^(e+1) is off by (2^e eps)^2/12 in the mean square, which is
/// eps^2/12 of its own square over that of its mantissa; the inverse square of mantissas whose logarithms are spread
/// evenly is 3/(8 log 2) in the mean.
void Measurement::input_rounding() {
  const auto dtype = moments_.dtype();
  if (!dtype) return;
  if (!(trace_between_ > 0)) return undefined("nc1_input_floor", kFlat);
  const double eps = *dtype == Dtype::f64   ? 0x1p-52  // the spacing of numbers in [1, 2)
                     : *dtype == Dtype::f32 ? 0x1p-23
                     : *dtype == Dtype::f16 ? 0x1p-10
                                            : 0x1p-7;
  double square = 0;
  for (std::size_t i = 0; i < mean_squares_.size(); ++i) square += mean_squares_[i] * weight_within(i);
  const double floor = eps * eps / (32 * std::numbers::ln2) * square / trace_between_;
  set("nc1_input_floor", floor);
  constexpr double kNear = 10;
  if (const auto ratio = values_.find("nc1_trace_ratio"); ratio != values_.end() && ratio->second < kNear * floor)
    report_.notes.push_back("rounding of the features to " + report_.dtype + " adds up to some " + text_of(floor, 3) +
                            " to nc1_trace_ratio, which is " + text_of(ratio->second, 3) +
                            ": some of NC1 is that type's, not the network's");
}

void Measurement::variability() {
  if (variances_.empty()) return;
  double within = 0;
  for (std::size_t i = 0; i < variances_.size(); ++i) within += variances_[i] * weight_within(i);
  if (trace_between_ > 0) {
    set("nc1_trace_ratio", within / trace_between_);
    set("nc1_within_frac", within / (within + trace_between_));
  } else {
    undefined("nc1_trace_ratio", kFlat);
    within > 0 ? set("nc1_within_frac", 1.0) : undefined("nc1_within_frac", "all samples are equal");
  }
  std::vector<double> per_class;
  for (std::size_t i = 0; i < variances_.size(); ++i)
    per_class.push_back(centred_norms_[i] > 0 ? variances_[i] / (centred_norms_[i] * centred_norms_[i]) : kNaN);
  set_per_class("nc1_per_class", per_class);
}

// The nearest E P^T with P^T P = I, E the simplex of size 1: centred by the mean of its own vertices, whatever the
// convention, and of K-1 dimensions. own: of C.
void Measurement::nearest_simplex(const Spectrum& own) {
  if (trace_between_ == 0) return undefined("nc2_nearest_etf", kFlat);
  if (report_.dim < report_.classes_seen - 1)
    return undefined("nc2_nearest_etf", "a simplex of K classes needs K - 1 dimensions");
  Matrix simplex = centred_;
  double size = norm(centred_norms_);
  const Spectrum* squares = &own;
  std::optional<Spectrum> other;
  const auto [least, most] = std::minmax_element(share_.begin(), share_.end());
  if (rules_.sample_mean && *least != *most) {
    const std::vector<double> equal(seen_.size(), 1 / k_);
    simplex = backend_.clone(means_);
    backend_.centre_rows(simplex, backend_.weighted_row_sum(means_, equal));
    size = backend_.norm(simplex);
    squares = &other.emplace(spectrum(simplex, {}, false));
  }
  std::vector<double> values = roots_of(squares->values);
  if (!squares->resolved())
    values = backend_.singular_values(simplex.rows <= simplex.cols ? simplex : backend_.triangular_factor(simplex));
  const double nuclear = sum(values);
  set("nc2_nearest_etf", at_least_zero(2 - 2 * nuclear / (std::sqrt(k_ - 1) * size)));
}

void Measurement::pseudo_inverse() {
  const double scale = scatter_scale();
  const bool full = moments_.statistics() >= Statistics::full, equal = !rules_.weigh_by_count,
             whiten = full && !std::isnan(scale) && trace_between_ > 0;
  // The centre is a weighted mean of the class means, so the centred ones are dependent with the same weights.
  std::vector<double> dependency = rules_.sample_mean ? share_ : std::vector<double>(seen_.size(), 1.0);
  const double length = norm(dependency);
  for (double& value : dependency) value /= length;
  const Spectrum own = spectrum(centred_, dependency, whiten && equal);
  nearest_simplex(own);
  const Spectrum between = equal ? own : [&] {
    const std::vector<double> roots = roots_of(between_weights_);
    return spectrum(backend_.scaled(roots, centred_), roots, whiten);
  }();
  const double common = equal ? 1 / k_ : 1;  // Sigma_B = common * the matrix of `between`

  auto& block = report_.convention;
  block.rank_limit = between.limit;
  block.rank_used = trace_between_ > 0 ? between.kept : 0;
  block.rank_tolerance = common * between.tolerance;
  if (!full) return;
  for (const auto* key : {"nc1_pinv", "nc1_pinv_sum"}) {
    if (std::isnan(scale))
      skip(key, rules_.scatter_over_classes
                    ? "classavg needs the scatter accumulated with scatter_weights 1/n_k, as analyze does"
                    : "the scatter was accumulated with class weights, this convention needs weights 1");
    else if (block.rank_used == 0)
      undefined(key, kFlat);
  }
  if (std::isnan(scale) || block.rank_used == 0) return;
  const Matrix spread = backend_.product(between.whitening, Transpose::no, moments_.data().scatter, Transpose::no);
  const double sum = at_least_zero(backend_.inner(spread, between.whitening) / common * scale);
  // The scatter is known to some eps of its trace.
  constexpr double kExact = 1e-10;
  const double error = static_cast<double>(moments_.dim()) * std::numeric_limits<double>::epsilon() *
                       moments_.data().scatter_trace * backend_.inner(between.whitening, between.whitening) / common *
                       scale;
  if (error > kExact && sum < error) {
    for (const auto* key : {"nc1_pinv", "nc1_pinv_sum"})
      undefined(key, "features vary so much more in other directions than between classes that rounding hides it");
    return;
  }
  set("nc1_pinv_sum", sum);
  set("nc1_pinv", rules_.divide_by_classes ? sum / k_ : sum);
}

// NaN where Sigma_W is not well enough conditioned. within: Sigma_W, used up. X: B, used up.
double Measurement::index_without_cancelling(Matrix& within, Matrix X) {
  constexpr double kWellConditioned = 1e-8;  // then the index is right to about 1e-8 of itself at worst
  if (!(backend_.cholesky(within) > kWellConditioned)) return kNaN;
  backend_.solve_lower(within, Transpose::no, X);
  const bool rows_side = X.rows <= X.cols;
  const Index size = std::min(X.rows, X.cols);
  Matrix total = backend_.identity(size);
  double dependent = 0;  // what the dependency adds to the trace
  if (rows_side) {
    backend_.combine(1, total, 1, backend_.product(X, Transpose::no, X, Transpose::yes), total);
    const double mean = backend_.inner(X, X) / (k_ - 1);
    backend_.add_gram(mean, backend_.from_host(roots_of(share_), 1, size), total);
    dependent = 1 / (1 + mean);
  } else {
    backend_.add_gram(1.0, X, total);
  }
  Matrix inverse;
  if (!(backend_.cholesky(total, &inverse) > kWellConditioned)) {
    // The means differ far more in some directions than in others: the squares in X X^T have lost the smaller ones.
    const auto values = backend_.singular_values(rows_side ? X : backend_.triangular_factor(X));
    const Index terms = rows_side ? size - 1 : size;  // without the dependency
    double sum = 0;
    for (Index i = 0; i < terms; ++i) sum += 1 / (1 + values[i] * values[i]);
    return sum / static_cast<double>(terms);
  }
  return (backend_.inner(inverse, inverse) - dependent) / static_cast<double>(rows_side ? size - 1 : size);
}

void Measurement::collapse_index() {
  if (moments_.statistics() < Statistics::full) return;
  if (!moments_.data().options.scatter_weights.empty())
    return skip("nc1_vci", "the scatter was accumulated with class weights, the index needs weights 1");
  // The index inverts Sigma_W, an error of which counts d cond(Sigma_W)-fold.
  if (moments_.data().scatter_error > 0)
    return skip("nc1_vci", "precision fast does not resolve the small eigenvalues that the index depends on");
  if (trace_between_ == 0) return undefined("nc1_vci", kFlat);
  const auto weighted_means = [&] {
    Matrix result = backend_.clone(means_);
    backend_.centre_rows(result, sample_mean_);
    backend_.scale_rows(roots_of(share_), result);
    return result;
  };
  const auto& scatter = moments_.data().scatter;
  const auto within = [&] {
    return backend_.scaled(
        std::vector<double>(static_cast<std::size_t>(scatter.rows), 1 / static_cast<double>(moments_.samples())),
        scatter);
  };
  const double most = std::min(k_ - 1, static_cast<double>(moments_.dim()));
  Matrix total = within();
  double index = index_without_cancelling(total, weighted_means());
  if (std::isnan(index)) {  // by the eigenvectors of Sigma_T, which alone say which directions count
    const Matrix between = weighted_means();
    total = within();
    backend_.add_gram(1.0, between, total);
    const auto values = backend_.eigh(total);
    const double eps = std::numeric_limits<double>::epsilon(), largest = std::max(values.back(), 0.0),
                 cut = static_cast<double>(total.rows) * eps * largest;
    const Matrix along = backend_.product(total, Transpose::no, between, Transpose::yes);
    const auto squares = backend_.row_dots(along, along);
    // Sigma_T is known to some eps of its largest eigenvalue, which moves the trace by `error`. What a direction below
    // the cut holds is not known: nothing where the means hardly differ in it.
    double trace = 0, error = 0, hidden = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] > cut) {
        trace += squares[i] / values[i];
        error += squares[i] / values[i] * (4 * eps * largest / values[i]);
      } else {
        hidden = std::max(hidden, squares[i]);
      }
    }
    index = 1 - trace / most;
    constexpr double kExact = 1e-7, kShare = 1e-2;
    if (hidden > eps * sum(squares) || (error / most > kExact && error / most > kShare * index))
      return undefined("nc1_vci",
                       "features vary so much more in some directions than in others that rounding hides it");
  }
  // Rounding may carry a collapsed index below 0 by some 1e-13; nothing else can.
  set("nc1_vci", at_least_zero(index));
}

void Measurement::geometry(const Matrix& rows, const std::vector<double>& norms, const std::string& suffix,
                           PairQuery query) {
  const bool of_means = suffix == "_h";
  const auto no_angles = [&](const std::string& why) {
    for (const auto* key : {"nc2_equiang", "nc2_cos_mean", "nc2_cos_std", "nc2_cos_max", "block_err"})
      undefined(key + suffix, why);
    if (!of_means) return;
    for (const auto* key :
         {"nc2_gnc_dist_mean", "nc2_gnc_dist_var", "nc2_gnc_log_mean", "nc2_gnc_log_var", "nc2_min_angle_deg"})
      undefined(key, why);
  };
  query.norms = norms;
  query.fast = fast_pairs();
  query.gram_norm = grams_.norm(rows);
  if (!of_means) query.frame_norm = weights_gram_ = query.gram_norm;
  const PairSums sums = backend_.pair_sums(rows, query);
  report_.cosine_error = std::max(report_.cosine_error, sums.cosine_error);
  Index coincident = 0;  // means that another one equals
  if (of_means) {
    nearest_squared_ = sums.nearest_squared;
    for (std::size_t i = 0; i < nearest_squared_.size(); ++i) {
      if (nearest_squared_[i] > rounding_of_mean(i)) continue;
      nearest_squared_[i] = 0;
      ++coincident;
    }
  }

  if (query.frame_norm > 0)
    set("nc2_of" + suffix, std::sqrt(sums.frame_residual));
  else
    undefined("nc2_of" + suffix, of_means ? "all class means are 0" : "the classifier is 0");
  const double pairs = k_ * (k_ - 1) / 2;
  if (of_means && !variances_.empty()) {
    if (coincident == 0)
      set("nc1_cdnv", sums.cdnv_sum / pairs);
    else
      undefined("nc1_cdnv", std::to_string(coincident) + " class means coincide with others");
  }
  if (norm(norms) == 0) {
    const std::string why = of_means ? kFlat : "the classifier is 0";
    undefined("nc2_etf" + suffix, why);
    undefined("nc2_equinorm" + suffix, why);
    return no_angles(why);
  }
  set("nc2_etf" + suffix, std::sqrt(sums.etf_residual));
  set("nc2_equinorm" + suffix, std::sqrt(variance(norms)) / mean(norms));
  const auto zero = std::find(norms.begin(), norms.end(), 0.0);
  if (zero != norms.end())
    return no_angles(std::string(of_means ? "the centred mean" : "the classifier") + " of class " +
                     std::to_string(seen_[zero - norms.begin()]) + " is 0 and has no direction");
  // Moments about the simplex value; the variance is 0 where rounding would make it negative.
  const auto spread = [&](double sum, double squares) {
    return at_least_zero(squares / pairs - (sum / pairs) * (sum / pairs));
  };
  set("nc2_cos_mean" + suffix, sums.cos_sum / pairs - 1 / (k_ - 1));
  set("nc2_cos_std" + suffix, std::sqrt(spread(sums.cos_sum, sums.cos_square_sum)));
  set("nc2_cos_max" + suffix, sums.cos_max);
  set("nc2_equiang" + suffix, sums.cos_abs_sum / pairs);
  blocks(rows, norms, sums, suffix);
  if (!of_means) return;
  const double simplex = std::sqrt(2 * k_ / (k_ - 1));
  set("nc2_gnc_dist_mean", simplex + sums.distance_sum / pairs);
  set("nc2_gnc_dist_var", spread(sums.distance_sum, sums.distance_square_sum));
  if (coincident == 0 && sums.coincident_directions == 0) {
    set("nc2_gnc_log_mean", -std::log(simplex) + sums.log_sum / pairs);
    set("nc2_gnc_log_var", spread(sums.log_sum, sums.log_square_sum));
  } else {
    const std::string why =
        coincident > 0 ? std::to_string(coincident) + " class means coincide with others"
                       : std::to_string(sums.coincident_directions) + " pairs of centred means have one direction";
    for (const auto* key : {"nc2_gnc_log_mean", "nc2_gnc_log_var"}) undefined(key, why);
  }
  // Two means lie on opposite sides of their centre; an arc sine would leave half of the digits there.
  constexpr double kDegrees = 180 / std::numbers::pi;
  set("nc2_min_angle_deg",
      seen_.size() == 2 ? 180 : 2 * std::asin(std::min(1.0, sums.min_unit_distance / 2)) * kDegrees);
}

void Measurement::blocks(const Matrix& rows, const std::vector<double>& norms, const PairSums& sums,
                         const std::string& suffix) {
  BlockStatistics found = block_cosines(backend_, counts_, rows, norms, sums);
  if (found.error)
    set("block_err" + suffix, *found.error);
  else
    undefined("block_err" + suffix, "no two classes have the same size");
  if (found.mean.cosines.empty() && suffix == "_h")
    report_.notes.push_back("block_cos_h and block_cos_w are not listed: there are " +
                            std::to_string(found.mean.sizes.size()) + " class sizes");
  (suffix == "_h" ? report_.block_cos_h : report_.block_cos_w) = std::move(found.mean);
}

void Measurement::duality(const Matrix& weights, const std::vector<double>& bias) {
  const auto squares = backend_.row_dots(weights, weights);
  check_lengths(backend_, weights, squares, "classifier rows", "rescale the classifier");
  const std::vector<double> norms = roots_of(squares);
  geometry(weights, norms, "_w", {});

  const std::vector<double> ones(seen_.size(), 1.0);
  set("nc0_rowsum", norm(backend_.weighted_row_sum(weights, ones)));
  auto logits = backend_.times(weights, sample_mean_);
  for (std::size_t i = 0; i < bias.size(); ++i) logits[i] += bias[i];
  set("nc_bias", norm(logits));
  if (!bias.empty()) {
    std::vector<double> gap(bias);
    for (std::size_t i = 0; i < gap.size(); ++i) gap[i] -= share_[i];
    set("nc_bias_prior", norm(gap));
  }

  const double weights_norm = norm(norms), centred_norm = norm(centred_norms_);
  const std::string why = weights_norm == 0 ? "the classifier is 0" : kFlat;
  const auto dots = backend_.row_dots(weights, centred_);
  set("nc3_uni_dot_var", variance(dots, 1));
  if (weights_norm == 0 || centred_norm == 0) {
    for (const auto* key : {"nc3_dual", "nc3_wh_etf", "nc3_cos_mean", "nc3_cos_min"}) undefined(key, why);
  } else {
    set("nc3_dual", direction_gap(backend_, weights, weights_norm, centred_, centred_norm));
    std::vector<double> cosines;
    for (std::size_t i = 0; i < dots.size(); ++i) {
      if (!(norms[i] > 0) || !(centred_norms_[i] > 0)) break;
      cosines.push_back(dots[i] / (norms[i] * centred_norms_[i]));
    }
    if (cosines.size() == dots.size()) {
      set("nc3_cos_mean", mean(cosines));
      set("nc3_cos_min", *std::min_element(cosines.begin(), cosines.end()));
    } else {
      for (const auto* key : {"nc3_cos_mean", "nc3_cos_min"})
        undefined(key, "the centred mean or the classifier of class " + std::to_string(seen_[cosines.size()]) +
                           " is 0 and has no direction");
    }
  }

  ProductQuery query;
  query.product_norm = grams_.product_norm(weights, centred_);
  query.frame_norm = product_gram_ = grams_.product_norm(weights, means_);
  query.row_offsets = backend_.times(weights, centre_);
  // The product has rank d at most. Of so many classes the simplex and the frame are of higher rank: their distances,
  // |P/|P| - E|^2 >= 2 - 2 sqrt(d/(K-1)) > 1/K, are so far from 0 that the identity loses 1e-15 K of them, no more.
  const bool never_near = weights.rows > weights.cols + 1;
  const ProductSums sums = never_near || fast_pairs() ? backend_.product_residuals(weights, centred_, query)
                                                      : backend_.product_sums(weights, centred_, query);
  if (weights_norm > 0 && centred_norm > 0)
    query.product_norm > 0 ? set("nc3_wh_etf", std::sqrt(sums.etf_residual)) : undefined("nc3_wh_etf", kOrthogonal);
  query.frame_norm > 0 ? set("nc3_wh_of", std::sqrt(sums.frame_residual)) : undefined("nc3_wh_of", kOrthogonal);
}

// weights: null without a classifier, and then there are no weight decays.
void Measurement::imbalance(const Matrix& weights, const std::vector<double>& bias) {
  ImbalanceInput input;
  input.counts = counts_;
  input.means = means_;
  input.sample_mean = sample_mean_;
  input.variances = variances_;
  if (moments_.data().options.scatter_weights.empty()) input.scatter = moments_.data().scatter;
  input.weights = weights;
  input.bias = bias;
  input.means_norm = means_gram_;
  input.weights_norm = weights_gram_;
  input.product_norm = product_gram_;
  const bool decays = !evidence_.lambda_w.empty();
  if (decays && report_.classes_seen == report_.classes) {
    const auto& layers = evidence_.classifier->layers;
    input.smallest_width = moments_.dim();
    for (std::size_t l = 0; l + 1 < layers.size(); ++l)
      input.smallest_width = std::min(input.smallest_width, layers[l].rows);
    for (const auto& layer : layers) {
      const Matrix entries = backend_.import(layer);
      input.layer_squares.push_back(backend_.inner(entries, entries));
    }
    input.lambda_w = evidence_.lambda_w;
    input.lambda_h = evidence_.lambda_h;
    input.centre = rules_.sample_mean ? MeanCentre::samples : MeanCentre::classes;
  }
  ImbalanceMeasures measures = measure_imbalance(backend_, grams_, input);
  for (const auto& [key, value] : measures.values) set(key, value);
  for (const auto& [key, why] : measures.undefined) undefined(key, why);
  report_.spectrum = std::move(measures.spectrum);
  report_.singular_values_w = std::move(measures.singular_values_w);
  report_.singular_values_z = std::move(measures.singular_values_z);
  if (!report_.block_cos_h.cosines.empty()) report_.block_cos_h.predicted = std::move(measures.cosines.h);
  if (!report_.block_cos_w.cosines.empty()) report_.block_cos_w.predicted = std::move(measures.cosines.w);
  if (decays && !moments_.data().options.scatter_weights.empty() && moments_.statistics() >= Statistics::full)
    skip("ufm_loss", "the scatter was accumulated with class weights, the loss needs weights 1");
  if (!decays || report_.classes_seen == report_.classes) return;
  for (const auto& info : metric_catalogue())
    if (needs(info, "lambda")) skip(info.key, "the minimiser is known only where every class has samples");
}

void Measurement::decisions(const DecisionCounts* counts, const std::string& split) {
  if (counts == nullptr) return;
  check_decisions(*counts, moments_.classes(), split);
  const auto classes = static_cast<std::size_t>(moments_.classes());
  const auto total = [](const std::vector<Index>& values) {
    Index sum = 0;
    for (const Index value : values) sum += value;
    return static_cast<double>(sum);
  };
  const double samples = total(counts->samples);
  if (split == "train" && counts->samples != moments_.counts())
    report_.notes.push_back("decisions on the training set were counted on " + text_of(samples, 17) +
                            " samples, in other classes or numbers than the " + std::to_string(moments_.samples()) +
                            " that the moments are of");
  std::vector<std::string> keys{"ncc_acc_" + split};
  if (counts->has_classifier)
    for (const auto* key : {"nc4_agree_", "acc_top1_", "acc_balanced_"}) keys.push_back(key + split);
  if (samples == 0) {
    for (const auto& key : keys) undefined(key, "the " + split + " set has no samples");
    return;
  }
  const auto per_class = [&](const std::string& key, const std::vector<Index>& hits) {
    PerClassMetric metric{key, std::vector<double>(classes, kNaN)};
    double sum = 0, present = 0;
    for (std::size_t k = 0; k < classes; ++k) {
      if (counts->samples[k] == 0) continue;
      metric.values[k] = static_cast<double>(hits[k]) / static_cast<double>(counts->samples[k]);
      sum += metric.values[k];
      ++present;
    }
    report_.per_class.push_back(std::move(metric));
    return sum / present;
  };
  set("ncc_acc_" + split, total(counts->correct_centre) / samples);
  if (counts->has_classifier) {
    set("nc4_agree_" + split, total(counts->agree) / samples);
    set("acc_top1_" + split, total(counts->correct_classifier) / samples);
    set("acc_balanced_" + split, per_class("acc_per_class_" + split, counts->correct_classifier));
  }
  per_class("ncc_acc_per_class_" + split, counts->correct_centre);
}

void Measurement::out_of_distribution() {
  if (evidence_.ood_mean == nullptr) return;
  std::vector<double> ood = *evidence_.ood_mean;
  if (static_cast<Index>(ood.size()) != moments_.dim())
    throw UsageError("the out-of-distribution mean has " + std::to_string(ood.size()) + " entries, the features " +
                     std::to_string(moments_.dim()));
  double largest = 0;  // only the direction counts
  for (const double value : ood) {
    if (!std::isfinite(value)) throw DataError("the out-of-distribution mean is not finite");
    largest = std::max(largest, std::abs(value));
  }
  if (largest > 0)
    for (double& value : ood) value /= largest;
  const double ood_norm = norm(ood);
  const auto dots = backend_.times(means_, ood);
  double sum = 0;
  for (std::size_t i = 0; i < dots.size(); ++i) {
    if (!(mean_squares_[i] > rounding_of_mean(i)) || !(ood_norm > 0))
      return undefined("nc5_ortho", "a class mean or the out-of-distribution mean is 0 and has no direction");
    sum += std::abs(dots[i]) / (std::sqrt(mean_squares_[i]) * ood_norm);
  }
  set("nc5_ortho", sum / k_);
}

void Measurement::explain_missing() {
  const bool classifier = has_layers(evidence_.classifier);
  struct Input {
    std::string_view word;
    bool given;
    const char* why;
  };
  const Input inputs[] = {
      {"scatter", moments_.statistics() >= Statistics::full, "the within-class scatter was not accumulated"},
      {"variances", moments_.statistics() >= Statistics::traces, "within-class variances were not accumulated"},
      {"classifier", classifier, "no classifier weights were given"},
      {"nobias", !classifier || evidence_.classifier->bias.rows == 0, "the classifier has a bias (see ufmb_*)"},
      {"bias", classifier && evidence_.classifier->bias.rows > 0, "no bias was given"},
      {"lambda", !evidence_.lambda_w.empty(), "no weight decays were given"},
      {"train", evidence_.train != nullptr, "decisions on the training set were not counted"},
      {"test", evidence_.test != nullptr, "no test set was given"},
      {"dtype", moments_.dtype().has_value(), "the features' type is not known"},
      {"ood", evidence_.ood_mean != nullptr, "no out-of-distribution features were given"},
  };
  for (const auto& info : metric_catalogue()) {
    const std::string key(info.key);
    const bool present =
        values_.contains(key) || report_.status.contains(key) ||
        std::any_of(report_.per_class.begin(), report_.per_class.end(), [&](const auto& m) { return m.key == key; });
    if (present) continue;
    std::string why = "its inputs were not given";
    for (const auto& input : inputs)
      if (!input.given && needs(info, input.word)) why = input.why;
    skip(key, why);
  }
}

Report Measurement::run() {
  const auto start = std::chrono::steady_clock::now();
  centre();
  variability();
  input_rounding();
  pseudo_inverse();
  collapse_index();

  PairQuery query;
  query.variances = variances_;
  query.offsets = backend_.times(centred_, centre_);  // m_j.m_k = c_j.c_k + mu.c_j + mu.c_k + |mu|^2
  const double half = norm(centre_) * norm(centre_) / 2;
  for (auto& offset : query.offsets) offset += half;
  query.frame_norm = means_gram_ = grams_.norm(means_);
  geometry(centred_, centred_norms_, "_h", std::move(query));
  if (!variances_.empty()) {
    std::vector<double> nearest;
    for (std::size_t i = 0; i < variances_.size(); ++i)
      nearest.push_back(nearest_squared_[i] > 0 ? variances_[i] / nearest_squared_[i] : kNaN);
    set_per_class("nc1_per_class_nearest", nearest);
  }
  Matrix weights;
  std::vector<double> bias;
  if (has_layers(evidence_.classifier)) {
    weights = classifier_product(backend_, *evidence_.classifier, moments_.dim(), moments_.classes());
    if (report_.classes_seen < report_.classes) weights = backend_.select_rows(weights, seen_);
    bias = classifier_bias(backend_, *evidence_.classifier, moments_.classes());
    if (!bias.empty()) bias = pick(bias, seen_);
    duality(weights, bias);
  }
  imbalance(weights, bias);
  if (report_.cosine_error > 0)
    report_.notes.push_back(
        "statistics of pairs are by fast products: no cosine is off by more than " + text_of(report_.cosine_error, 3) +
        ", no squared distance by more than that times the sum of both squared norms, 1/64 of itself at most");
  decisions(evidence_.train, "train");
  decisions(evidence_.test, "test");
  out_of_distribution();
  explain_missing();

  for (const auto& info : metric_catalogue())
    if (const auto found = values_.find(std::string(info.key)); found != values_.end())
      report_.metrics.push_back({found->first, found->second});
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  report_.timing.emplace_back("measure_s", elapsed.count());
  return std::move(report_);
}

}  // namespace

std::string_view to_string(Convention convention) { return rules_of(convention).name; }

Convention parse_convention(std::string_view name) {
  for (const auto& rules : kConventions)
    if (rules.name == name) return rules.preset;
  throw UsageError("unknown convention '" + std::string(name) + "'",
                   "conventions are zhu, papyan, peer, anova and classavg");
}

const std::vector<Convention>& all_conventions() {
  static const auto& all = []() -> const std::vector<Convention>& {
    auto& list = *new std::vector<Convention>;  // never destroyed: a program may measure while it ends
    for (const auto& rules : kConventions) list.push_back(rules.preset);
    return list;
  }();
  return all;
}

namespace {

const MetricInfo& info_of(std::string_view key) {
  for (const auto& info : metric_catalogue())
    if (info.key == key) return info;
  throw UsageError("there is no metric '" + std::string(key) + "'",
                   "ncollapse metrics, or metric_catalogue(), lists them");
}

}  // namespace

std::optional<double> Report::find(std::string_view key) const {
  info_of(key);
  for (const auto& metric : metrics)
    if (metric.key == key) return metric.value;
  return std::nullopt;
}

double Report::at(std::string_view key) const {
  if (info_of(key).scope != "scalar")
    throw UsageError(std::string(key) + " has a value for every class", "ask Report::find_per_class for it");
  if (const auto value = find(key)) return *value;
  const auto why = status.find(std::string(key));
  throw DataError(std::string(key) + " has no value" +
                  (why == status.end() ? "" : " (" + why->second.code + "): " + why->second.why));
}

const std::vector<double>* Report::find_per_class(std::string_view key) const& {
  if (info_of(key).scope == "scalar")
    throw UsageError(std::string(key) + " is one number, not one for every class", "ask Report::find for it");
  for (const auto& metric : per_class)
    if (metric.key == key) return &metric.values;
  return nullptr;
}

Report measure(const ClassMoments& moments, const Evidence& evidence, Convention convention) {
  check_decays(evidence.lambda_w, evidence.lambda_h,
               has_layers(evidence.classifier) ? evidence.classifier->layers.size() : 0);
  return Measurement(moments, evidence, convention).run();
}

}  // namespace ncollapse
