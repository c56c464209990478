// The measures of imbalanced collapse (theory: ncollapse/theory.hpp): distance to the UFM's global minimiser, to SELI,
// and what becomes of minorities.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "host/backend.hpp"
#include "host/grams.hpp"
#include "ncollapse/metrics.hpp"

namespace ncollapse {

/// What is known; every class has samples.
struct ImbalanceInput {
  std::vector<Index> counts;                                  ///< n_k [K]
  Matrix means;                                               ///< M [K x d], not centred
  std::vector<double> sample_mean;                            ///< [d]
  std::vector<double> variances;                              ///< v_k [K]; empty: not accumulated
  Matrix scatter;                                             ///< [d x d], weights 1; null: not accumulated
  Matrix weights;                                             ///< W [K x d]; null: features alone
  double means_norm = 0, weights_norm = 0, product_norm = 0;  ///< |M M^T|, |W W^T|, |W M^T|
  std::vector<double> layer_squares;                          ///< |W_l|^2, [L]
  Index smallest_width = 0;                                   ///< of d and the inner layers
  std::vector<double> bias;                                   ///< b [K]; empty without bias
  std::vector<double> lambda_w;                               ///< one for all layers or one each; empty: not given
  double lambda_h = 0;                                        ///< 0: not given
  MeanCentre centre = MeanCentre::samples;                    ///< of means where they have cosines
};

struct ImbalanceMeasures {
  std::map<std::string, double> values;                      ///< may overflow
  std::map<std::string, std::string> undefined;              ///< key -> why
  std::vector<SpectrumRow> spectrum;                         ///< only with weight decays
  std::vector<double> singular_values_w, singular_values_z;  ///< of W and of Z = M D; only with weight decays
  PredictedCosines cosines;  ///< only with weight decays, of at most BlockCosines::kMostSizes sizes, if determined
};

/// Throws UsageError for the weight decays of the layers without those of the features or the other way round, for
/// decays without weights (layers = 0), and for decays that are not positive or do not fit the layers.
void check_decays(const std::vector<double>& lambda_w, double lambda_h, std::size_t layers);

/// Without weights there are no weight decays, and only what class means and sizes tell is measured. grams: of the
/// input's matrices, among others. Weight decays are as check_decays takes them.
ImbalanceMeasures measure_imbalance(Backend& backend, Grams& grams, const ImbalanceInput& input);

}  // namespace ncollapse
