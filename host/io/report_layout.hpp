// What every report for readers has in common, on a terminal or on a page: groups of metrics, per-class columns,
// numbers.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>

namespace ncollapse {

/// Metrics whose key begins with the prefix stand together.
struct MetricGroup {
  std::string_view prefix, name, title;
  std::string_view explanation;  ///< for a reader who does not know the literature
};

inline constexpr MetricGroup kMetricGroups[] = {
    {"nc1_", "NC1", "variability within classes",
     "How far the samples of a class scatter around their mean, against the distances between classes: 0 when every "
     "class has become a point."},
    {"nc2_", "NC2", "geometry of class means and classifiers",
     "How the class means (_h) and the classifier's rows (_w) lie to each other. Of balanced classes they become "
     "equally long and equally far apart: a simplex. Of imbalanced classes they do not."},
    {"nc3_", "NC3", "duality of classifier and means",
     "Whether the classifier's row of each class points where the mean of that class points."},
    {"nc4_", "NC4", "nearest-centre decisions", "How often the classifier decides as the nearest class mean would."},
    {"acc_", "", "accuracy of the classifier", "How often the classifier is right."},
    {"ncc_", "", "accuracy of the nearest class centre", "How often the class of the nearest mean is right."},
    {"nc5_", "NC5", "out of distribution", "Whether foreign samples lie at right angles to the class means."},
    {"nc_", "", "drift and bias", "Whether the sample mean has gone to 0 and the bias to the class frequencies."},
    {"nc0_", "NC0", "classifier rows", "Whether the rows of the classifier add up to 0."},
    {"ufm", "UFM", "distance to the predicted global minimiser",
     "How far the network is from the optimum that theory predicts for these class sizes and weight decays, with a "
     "bias: 0 when it is reached."},
    {"gof_", "GOF", "distance to the predicted global minimiser, without bias",
     "How far the network is from the optimum that theory predicts for these class sizes and weight decays, without a "
     "bias: 0 when it is reached."},
    {"seli_", "SELI", "reference geometry of cross-entropy",
     "How far the network is from where cross-entropy leads imbalanced classes when hardly regularised."},
    {"mc_", "", "minority collapse", "Whether the classifier's rows of small classes have merged, cosine 1."},
    {"block_", "", "blocks of classes of equal size", "Whether classes of equal size lie at equal angles."},
    {"norm_count_", "", "norms against class sizes",
     "How means and classifier rows grow with the number of samples of their class."},
};

/// Per-class columns in this order, as far as they exist.
struct ClassColumn {
  std::string_view key, head;
};

inline constexpr ClassColumn kClassColumns[] = {{"nc1_per_class", "nc1"},
                                                {"nc1_per_class_nearest", "nc1 nearest"},
                                                {"acc_per_class_train", "acc train"},
                                                {"ncc_acc_per_class_train", "ncc train"},
                                                {"acc_per_class_test", "acc test"},
                                                {"ncc_acc_per_class_test", "ncc test"}};

/// Six digits; "-" where undefined.
inline std::string readable(double value) {
  if (!std::isfinite(value)) return "-";
  if (value == 0) return "0";
  char text[32];
  const double size = std::abs(value);
  std::snprintf(text, sizeof text, size >= 1e-3 && size < 1e5 ? "%.6f" : "%.5e", value);
  return text;
}

/// The value of a metric: ranks are counts and have no decimals.
inline std::string readable(std::string_view key, double value) {
  const bool count = key.ends_with("_rank_obs") || key.ends_with("_rank_pred");
  return count && std::isfinite(value) ? std::to_string(std::llround(value)) : readable(value);
}

}  // namespace ncollapse
