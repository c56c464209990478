// The metric catalogue and the measurement itself.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ncollapse/accumulator.hpp"
#include "ncollapse/classifier.hpp"
#include "ncollapse/decisions.hpp"
#include "ncollapse/export.hpp"
#include "ncollapse/theory.hpp"

namespace ncollapse {

// clang-format off
/// Which of the published definitions is used; on balanced data they agree up to the factor K of `papyan`.
///   name      Sigma_W          centre of means       weights of Sigma_B   nc1_pinv divided by K
///   zhu       over samples     sample mean           1/K                  yes   (Zhu et al. 2021)
///   papyan    over samples     mean of class means   1/K                  no    (Papyan et al. 2020)
///   peer      over samples     mean of class means   1/K                  yes
///   anova     over samples     sample mean           n_k/N                yes   (additive: Sigma_T = Sigma_W + Sigma_B)
///   classavg  mean of S_k      sample mean           1/K                  yes
// clang-format on
enum class Convention { zhu, papyan, peer, anova, classavg };

NCOLLAPSE_EXPORT std::string_view to_string(Convention convention);
/// Throws UsageError for an unknown name.
NCOLLAPSE_EXPORT Convention parse_convention(std::string_view name);
NCOLLAPSE_EXPORT const std::vector<Convention>& all_conventions();

/// One entry of the catalogue: the only place where a key is spelt.
struct MetricInfo {
  std::string_view key;
  std::string_view meaning;  ///< a few words, for the table
  std::string_view formula;
  /// Words: means variances scatter classifier bias nobias lambda train test ood, and dtype (that of the features)
  std::string_view needs;
  std::string_view source;
  std::string_view direction;  ///< "down": lower is more collapsed; "up"; "none"
  std::string_view scope;      ///< "scalar" or "per_class"
};

NCOLLAPSE_EXPORT const std::vector<MetricInfo>& metric_catalogue();

/// Why a key has no number: code is "skipped" (an input was not given) or "undefined" (the formula has no value here).
struct MetricStatus {
  std::string code;
  std::string why;
};

struct Metric {
  std::string key;
  double value;
};

/// Per-class values; NaN where the class is absent or the value is undefined (null in JSON).
struct PerClassMetric {
  std::string key;
  std::vector<double> values;  ///< [K]
};

/// Mean cosines between groups of classes of equal size (Hong & Ling 2023).
struct BlockCosines {
  static constexpr Index kMostSizes = 64;  ///< of so many a matrix is listed
  std::vector<Index> sizes;                ///< n of each group, descending, [m]
  std::vector<double>
      cosines;  ///< [m x m]; inside a group over its pairs: NaN for a group of one. Empty above kMostSizes
  /// The same at the global minimiser (PredictedCosines). Empty without weight decays, where not all classes have
  /// samples, where the width cuts through an eigenspace, and where `cosines` is.
  std::vector<double> predicted;
};

/// How numbers were made, beyond the metric's own formula.
struct ConventionBlock {
  Convention preset = Convention::zhu;
  std::string sigma_w, centre, sigma_b;
  bool divided_by_classes = true;
  Index rank_used = 0;        ///< directions of Sigma_B kept by its pseudo-inverse
  Index rank_limit = 0;       ///< min(K_seen - 1, d)
  double rank_tolerance = 0;  ///< eigenvalues at or below this are taken as zero
};

struct Report {
  Index samples = 0, classes = 0, classes_seen = 0, dim = 0;
  std::string dtype;  ///< ClassMoments::dtype; empty when unknown
  DeviceInfo device;
  ConventionBlock convention;
  Precision precision = Precision::exact;  ///< of the within-class scatter, and of pairs of many classes
  double scatter_error = 0;                ///< ClassMoments::scatter_error
  /// Precision::fast and more than 16384 classes: no cosine between classes is off by more than this, before they are
  /// summed up, no squared distance between class means or their directions by more than this times the sum of both
  /// squared norms, or 1/64 of itself. nc2_etf_*, nc2_of_*, nc3_wh_* come from an identity then, whose squares are off
  /// by some 1e-14. Else 0: all are as exact as double is.
  double cosine_error = 0;
  std::vector<Metric> metrics;  ///< in catalogue order
  std::map<std::string, MetricStatus> status;
  std::vector<Index> counts;  ///< n_k, [K]
  std::vector<PerClassMetric> per_class;
  std::vector<double> lambda_w;  ///< weight decays as given; empty when not
  double lambda_h = 0;
  std::vector<SpectrumRow> spectrum;  ///< with weight decays: by descending sigma
  /// With weight decays: singular values of W and of Z = M D (as in spectrum), descending, [min(K, d)].
  std::vector<double> singular_values_w, singular_values_z;
  BlockCosines block_cos_h, block_cos_w;  ///< of c_k and of w_k; empty where undefined
  std::vector<std::string> notes;         ///< remarks a reader should know (absent classes, single samples)
  std::vector<std::pair<std::string, double>> timing;       ///< name, seconds
  std::vector<std::pair<std::string, std::string>> source;  ///< what was read: name, file

  /// The value of a scalar key, if it has one. This and the next two throw UsageError for a key that the catalogue
  /// has not.
  NCOLLAPSE_EXPORT std::optional<double> find(std::string_view key) const;
  /// The same. Throws DataError, with the reason, where it has none; UsageError for a per-class key.
  NCOLLAPSE_EXPORT double at(std::string_view key) const;
  /// The values of a per-class key, [K], or null where there are none. Throws UsageError for a scalar key.
  NCOLLAPSE_EXPORT const std::vector<double>* find_per_class(std::string_view key) const&;
  const std::vector<double>* find_per_class(std::string_view key) const&& = delete;  // it would dangle
};

/// Everything that may be known beside the moments.
struct Evidence {
  const Classifier* classifier = nullptr;
  const DecisionCounts* train = nullptr;
  const DecisionCounts* test = nullptr;
  /// Mean feature of out-of-distribution samples, [d]: ClassMoments::means of all of them as one class, say.
  const std::vector<double>* ood_mean = nullptr;
  /// Weight decays, to compare with the minimiser of the unconstrained feature model: of the layers (one for all, or
  /// one each, W_1 first; empty: not given) and of the features (0: not given). Both or none, and with a classifier.
  std::vector<double> lambda_w = {};
  double lambda_h = 0;
};

/// All metrics that the evidence allows; what it does not allow is in Report::status with a reason.
/// Formulas: metric_catalogue(). Absent classes are left out. Uses memory of a few d^2 and K d doubles on the device
/// and no K x K array. Deterministic. Waits for the device.
/// Throws UsageError when shapes do not fit, for a bias without layers, an unknown element type, device memory on a CPU
/// context, decisions of another number of classes or with more hits than samples, weight decays that are not positive,
/// not given together or do not fit the layers, DataError when fewer than two classes have samples, for class means
/// beyond 1e70, all below 1e-70 or all within that of their centre, unless those are exactly 0, for classifier rows
/// beyond 1e70 or all below 1e-70 without being 0, and for layers that, or whose product, hold NaN, infinite values or
/// values whose squares overflow,
/// and an OOD mean that is not finite.
NCOLLAPSE_EXPORT Report measure(const ClassMoments& moments, const Evidence& evidence = {},
                                Convention convention = Convention::zhu);

/// One JSON object, schema "ncollapse.metrics/1"; NaN never appears (null and a status instead).
NCOLLAPSE_EXPORT std::string to_json(const Report& report);
/// A table for a terminal of 100 columns.
NCOLLAPSE_EXPORT std::string to_table(const Report& report, bool colour = false);
/// Long-format CSV with the header "key,class,value,status"; n_k are the rows with the key "count".
NCOLLAPSE_EXPORT std::string to_csv(const Report& report);

}  // namespace ncollapse
