// The loss needs no second pass over the data:
//   sum_i |W h_i + b - y_i|^2 = tr(W S W^T) + sum_k n_k |W m_k + b - e_k|^2,   sum_i |h_i|^2 = sum_k n_k (v_k +
//   |m_k|^2).
#include "host/theory/imbalance.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "host/decomposition.hpp"
#include "host/moments.hpp"
#include "host/numbers.hpp"
#include "host/theory/decays.hpp"
#include "host/theory/distance.hpp"
#include "host/theory/geometry.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

/// | a / size - b / |b| |; the shorter one goes on with zeros.
double distance(const std::vector<double>& a, double size, const std::vector<double>& b) {
  const double own = norm(b);
  double squares = 0;
  for (std::size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    const double gap = (i < a.size() ? a[i] / size : 0.0) - (i < b.size() ? b[i] / own : 0.0);
    squares += gap * gap;
  }
  return std::sqrt(squares);
}

class Imbalance {
 public:
  Imbalance(Backend& backend, Grams& grams, const ImbalanceInput& input)
      : backend_(backend), grams_(grams), in_(input) {
    for (const Index count : in_.counts) {
      samples_ += static_cast<double>(count);
      roots_.push_back(std::sqrt(static_cast<double>(count)));
    }
    classes_ = static_cast<double>(in_.counts.size());
    const auto [least, most] = std::minmax_element(in_.counts.begin(), in_.counts.end());
    if (*least == *most) return;  // nobody asks for lengths
    mean_lengths_ = centred_norms();
    if (!in_.weights) return;
    weight_lengths_ = backend_.row_dots(in_.weights, in_.weights);
    for (double& value : weight_lengths_) {
      const double rounding = rounding_of_mean(value, 0, 0);
      weight_roundings_.push_back(value > 0 ? rounding / value : 0.0);
      value = std::sqrt(value);
    }
  }

  ImbalanceMeasures run() {
    norms_against_counts();
    minorities();
    // Groups and contrasts depend on the class sizes alone: one sorting pass serves SELI and the minimiser.
    const LabelSpectrum groups(in_.counts, LabelModel::seli);
    // Without a classifier the means stand in on its side, which nobody reads.
    const GroupedPair contrasts =
        group_pair(backend_, groups.structure(), in_.weights ? in_.weights : in_.means, in_.means);
    seli(groups, contrasts);
    if (!in_.lambda_w.empty()) minimiser(contrasts);
    return std::move(out_);
  }

 private:
  void set(const std::string& key, double value) { out_.values[key] = value; }

  std::vector<double> centred_norms();

  void norms_against_counts();
  void minorities();
  void seli(const LabelSpectrum& spectrum, const GroupedPair& pair);
  UfmOptions model() const;
  void minimiser(const GroupedPair& contrasts);
  void singular_values(const UfmPrediction& prediction, const std::string& family);
  void duality_without_bias(const UfmPrediction& prediction, const LabelSpectrum::Structure& s);
  double loss();

  Backend& backend_;
  Grams& grams_;
  const ImbalanceInput& in_;
  double samples_ = 0, classes_ = 0;
  std::vector<double> roots_;                              // sqrt n_k
  std::vector<double> mean_lengths_, weight_lengths_;      // |m_k - mu_s|, |w_k|, where class sizes differ
  std::vector<double> mean_roundings_, weight_roundings_;  // squares of what rounding changes them by, relative
  ImbalanceMeasures out_;
};

// |m_k - mu_s|, 0 where it is rounding alone.
std::vector<double> Imbalance::centred_norms() {
  Matrix centred = backend_.clone(in_.means);
  backend_.centre_rows(centred, in_.sample_mean);
  const RowProducts squares = backend_.row_products(centred, in_.means);
  std::vector<double> lengths;
  for (std::size_t k = 0; k < in_.counts.size(); ++k) {
    const double variance = in_.variances.empty() ? 0.0 : in_.variances[k],
                 rounding = rounding_of_mean(squares.right[k], in_.counts[k], variance);
    const bool is_zero = squares.left[k] <= rounding;
    lengths.push_back(is_zero ? 0.0 : std::sqrt(squares.left[k]));
    mean_roundings_.push_back(is_zero ? 0.0 : rounding / squares.left[k]);
  }
  return lengths;
}

// Least squares of log norm on log n_k.
void Imbalance::norms_against_counts() {
  const auto [least, most] = std::minmax_element(in_.counts.begin(), in_.counts.end());
  std::vector<std::string> sides{"_h"};
  if (in_.weights) sides.emplace_back("_w");
  for (const auto& suffix : sides) {
    const std::string key = "norm_count_slope" + suffix, fit = "norm_count_r2" + suffix;
    std::string why;
    const auto& [lengths, roundings] =
        suffix == "_h" ? std::tie(mean_lengths_, mean_roundings_) : std::tie(weight_lengths_, weight_roundings_);
    if (*least == *most)
      why = "all classes have the same size";
    else if (*std::min_element(lengths.begin(), lengths.end()) == 0)
      why = "a norm is 0";
    if (!why.empty()) {
      out_.undefined[key] = out_.undefined[fit] = why;
      continue;
    }
    std::vector<double> x, y;
    for (std::size_t k = 0; k < lengths.size(); ++k) {
      x.push_back(std::log(static_cast<double>(in_.counts[k])));
      y.push_back(std::log(lengths[k]));
    }
    const double mean_x = sum(x) / classes_, mean_y = sum(y) / classes_;
    double xx = 0, xy = 0, yy = 0;
    for (std::size_t k = 0; k < x.size(); ++k) {
      xx += (x[k] - mean_x) * (x[k] - mean_x);
      xy += (x[k] - mean_x) * (y[k] - mean_y);
      yy += (y[k] - mean_y) * (y[k] - mean_y);
    }
    set(key, xy / xx);
    if (yy > sum(roundings))  // an error of a norm, relative, is one of its logarithm
      set(fit, std::min(1.0, xy * xy / (xx * yy)));
    else
      out_.undefined[fit] = "all norms are equal, to rounding";
  }
}

// Minority: classes smaller than the geometric mean of the largest and the smallest size (Fang et al. 2021 have two
// sizes).
void Imbalance::minorities() {
  const auto [least, most] = std::minmax_element(in_.counts.begin(), in_.counts.end());
  const double product = static_cast<double>(*least) * static_cast<double>(*most);
  std::vector<Index> minority, majority;
  for (std::size_t k = 0; k < in_.counts.size(); ++k)
    (static_cast<double>(in_.counts[k]) * static_cast<double>(in_.counts[k]) < product ? minority : majority)
        .push_back(static_cast<Index>(k));
  const std::string why = minority.empty()      ? "all classes have the same size"
                          : minority.size() < 2 ? "only one class is a minority"
                                                : "";
  const auto cosines = [&](const std::string& side) {
    const std::string mean_key = "mc_cos_" + side, std_key = "mc_cos_std_" + side;
    const auto undefined = [&](const std::string& reason) {
      out_.undefined[mean_key] = reason;
      if (side == "w") out_.undefined[std_key] = reason;
    };
    if (!why.empty()) return undefined(why);
    const bool of_means = side == "h";
    Matrix rows = backend_.select_rows(of_means ? in_.means : in_.weights, minority);
    if (of_means) backend_.centre_rows(rows, in_.sample_mean);
    const std::vector<double>& all_lengths = of_means ? mean_lengths_ : weight_lengths_;
    std::vector<double> lengths, inverse;
    for (const Index k : minority) {
      lengths.push_back(all_lengths[k]);
      inverse.push_back(1 / lengths.back());
    }
    if (*std::min_element(lengths.begin(), lengths.end()) == 0) return undefined("a vector of the minority is 0");
    // Of unit vectors u_j with the mean c, and v_j = u_j - c, s = sum |v_j|^2: |c|^2 = 1 - s/R, so the mean cosine is
    // 1 - s/(R-1); and u_j.u_k = |c|^2 + a_j + a_k + v_j.v_k with a_j = v_j.c. As sum v = 0, the squares of what is
    // behind |c|^2 sum up to 2 R sum a^2 + |V^T V|^2 over all j and k. Where they are nearly one vector nothing is
    // lost.
    const auto count = static_cast<double>(rows.rows), pairs = count * (count - 1) / 2;
    Matrix units = backend_.scaled(inverse, rows);
    const auto centre =
        backend_.weighted_row_sum(units, std::vector<double>(static_cast<std::size_t>(rows.rows), 1 / count));
    backend_.centre_rows(units, centre);
    const std::vector<double> squares = backend_.row_dots(units, units);
    const double s = sum(squares), mean = 1 - s / (count - 1);
    set(mean_key, mean);
    if (of_means) return;
    const bool may_be_simplex = rows.rows <= rows.cols + 1 && s > count / 2;
    double mean_square = 0, deviation = 0;  // of the cosines, from the value they may agree on
    if (may_be_simplex) {
      PairQuery query;
      query.norms = lengths;
      query.gram_norm = query.frame_norm = 1;  // the residuals are not wanted
      const PairSums sums = backend_.pair_sums(rows, query);
      mean_square = sums.cos_square_sum / pairs;
      deviation = sums.cos_sum / pairs;
    } else {
      const Matrix products = backend_.gram(units);
      double total = backend_.inner(products, products);
      const auto along = backend_.times(units, centre);
      for (std::size_t j = 0; j < along.size(); ++j) {
        const double own = 2 * along[j] + squares[j];
        total += 2 * count * along[j] * along[j] - own * own;
      }
      mean_square = total / 2 / pairs;
      deviation = s / count / (count - 1);
    }
    set(std_key, std::sqrt(at_least_zero(mean_square - deviation * deviation)));
  };
  cosines("h");
  if (!in_.weights) return;
  cosines("w");
  const auto mean_norm = [&](const std::vector<Index>& rows) {
    double total = 0;
    for (const Index k : rows) total += weight_lengths_[k];
    return total / static_cast<double>(rows.size());
  };
  if (minority.empty())
    out_.undefined["mc_norm_ratio_w"] = why;
  else
    set("mc_norm_ratio_w", mean_norm(minority) / mean_norm(majority));
}

// (I - 11^T/K) D = P S Q^T. Targets: W W^T ~ P S P^T, M M^T ~ D^-1 Q S Q^T D^-1, W M^T ~ I - 11^T/K. Since Q = D P S^-1
// where S > 0, the second is P S^-1 P^T, and the energies of P^T M are S^2 times those of Q^T D^-1 M.
void Imbalance::seli(const LabelSpectrum& spectrum, const GroupedPair& pair) {
  const auto& spaces = spectrum.eigenspaces();
  std::vector<double> inverse_roots;
  for (const Index size : spectrum.structure().sizes) inverse_roots.push_back(1 / std::sqrt(static_cast<double>(size)));
  const SpectrumEnergies energies =
      spectrum_energies(backend_, spectrum, scaled_right(backend_, spectrum.structure(), pair, inverse_roots, {}));
  std::vector<double> sigma, inverse, means_energies;
  for (std::size_t i = 0; i < spaces.size(); ++i) {
    sigma.push_back(spaces[i].sigma);
    inverse.push_back(spaces[i].sigma > 0 ? 1 / spaces[i].sigma : 0.0);
    means_energies.push_back(spaces[i].sigma * spaces[i].sigma * energies.right[i]);
  }
  if (in_.means_norm > 0)
    set("seli_h", distance_to_diagonal(means_energies, in_.means_norm, inverse, spaces));
  else
    out_.undefined["seli_h"] = "all class means are 0";
  if (!in_.weights) return;
  if (in_.weights_norm == 0) {
    out_.undefined["seli_w"] = out_.undefined["seli_z"] = "the classifier is 0";
    return;
  }
  set("seli_w", distance_to_diagonal(energies.left, in_.weights_norm, sigma, spaces));
  if (!(in_.product_norm > 0)) {
    out_.undefined["seli_z"] = kOrthogonal;
    return;
  }
  const std::vector<double> ones(in_.counts.size(), 1.0);
  const auto sum_w = backend_.weighted_row_sum(in_.weights, ones), sum_m = backend_.weighted_row_sum(in_.means, ones);
  const double diagonal = sum(backend_.row_dots(in_.weights, in_.means)) -
                          std::inner_product(sum_w.begin(), sum_w.end(), sum_m.begin(), 0.0) / classes_;
  set("seli_z", std::sqrt(at_least_zero(2 - 2 * diagonal / (in_.product_norm * std::sqrt(classes_ - 1)))));
}

double Imbalance::loss() {
  const bool bias = !in_.bias.empty();
  // tr(W S W^T) and, over class means, sum n_k |W m_k + b - e_k|^2. With c_k = m_k - mu and W mu + b = a, as sum n_k
  // c_k = 0, that is sum n_k |W c_k|^2 + N |a|^2 + N - 2 sum n_k (w_k.c_k + a_k), where a common mean has cancelled.
  const Matrix spread = backend_.product(in_.weights, Transpose::no, in_.scatter, Transpose::no);
  double fit = backend_.inner(spread, in_.weights);
  Matrix centred = backend_.clone(in_.means);
  backend_.centre_rows(centred, in_.sample_mean);
  const auto diagonal = backend_.row_dots(in_.weights, centred);
  backend_.scale_rows(roots_, centred);  // rows sqrt(n_k) c_k
  const auto mean_logits = backend_.times(in_.weights, in_.sample_mean);
  fit += grams_.product_squares(in_.weights, centred) + samples_;
  for (std::size_t k = 0; k < in_.counts.size(); ++k) {
    const auto count = static_cast<double>(in_.counts[k]);
    const double a = mean_logits[k] + (bias ? in_.bias[k] : 0.0);
    fit += samples_ * a * a - 2 * count * (diagonal[k] + a);
  }
  double decay = 0;
  for (std::size_t l = 0; l < in_.layer_squares.size(); ++l)
    decay += in_.lambda_w[in_.lambda_w.size() == 1 ? 0 : l] * in_.layer_squares[l];
  const auto squares = backend_.row_dots(in_.means, in_.means);
  for (std::size_t k = 0; k < squares.size(); ++k)
    decay += in_.lambda_h * static_cast<double>(in_.counts[k]) * (in_.variances[k] + squares[k]);
  return at_least_zero(fit) / (2 * samples_) + decay / 2;
}

UfmOptions Imbalance::model() const {
  const auto layers = in_.layer_squares.size();
  UfmOptions model;
  model.counts = in_.counts;
  model.lambda_w = in_.lambda_w.size() == layers ? in_.lambda_w : std::vector<double>(layers, in_.lambda_w.front());
  model.lambda_h = in_.lambda_h;
  model.bias = !in_.bias.empty();
  model.width = in_.smallest_width;
  return model;
}

void Imbalance::minimiser(const GroupedPair& contrasts) {
  const UfmOptions ufm = model();
  const UfmPrediction prediction = predict(ufm);
  set("ufm_loss_min", prediction.minimum);
  if (in_.scatter) set("ufm_loss", loss());

  const LabelSpectrum spectrum(in_.counts, ufm.label_model());
  const GeometryDistance distance =
      geometry_distance(backend_, grams_, spectrum, prediction, in_.weights, in_.means, in_.sample_mean,
                        ufm.bias ? contrasts : group_pair(backend_, spectrum.structure(), in_.weights, in_.means));
  out_.spectrum = distance.spectrum;
  const std::string family = ufm.bias ? "ufmb_" : "gof_";
  set(family + "rank_pred", static_cast<double>(prediction.rank()));
  if (prediction.lost_classes && spectrum.structure().groups() <= BlockCosines::kMostSizes)
    out_.cosines = predicted_cosines(ufm, in_.centre);
  const auto report = [&](const std::string& name, double value) {
    const auto why = distance.undefined.find(name);
    if (why == distance.undefined.end())
      set(family + name, value);
    else
      out_.undefined[family + name] = why->second;
  };
  singular_values(prediction, family);
  report("w", distance.w);
  report("h", distance.h);
  report("wh", distance.wh);
  if (!ufm.bias) return duality_without_bias(prediction, spectrum.structure());
  report("row_orth", distance.row_orthogonality);
  report("col_orth", distance.column_orthogonality);
  report("align_mean", distance.align_mean);
  report("align_min", distance.align_min);
  report("vanished_w", distance.vanished_w);
  report("vanished_h", distance.vanished_h);
}

// Of W, of Z = M D and of their product, against the predicted w, z and w z: what no choice of directions enters. Where
// classes outnumber dimensions, W = Q R and Z^T = Q' R' leave the small matrices R, R' and R R'^T.
void Imbalance::singular_values(const UfmPrediction& prediction, const std::string& family) {
  std::vector<double> w, z, wz;
  for (const auto& direction : prediction.directions)
    for (Index i = 0; i < direction.surviving; ++i) {
      w.push_back(direction.w);
      z.push_back(direction.z);
      wz.push_back(direction.w * direction.z);
    }
  const auto undefined = [&](const std::string& why) {
    for (const auto* name : {"rank_obs", "sv_w", "sv_h", "sv"}) out_.undefined[family + name] = why;
  };
  if (w.empty()) return undefined("every direction is predicted to vanish");
  try {
    Matrix features = backend_.clone(in_.means);
    if (!in_.bias.empty()) backend_.centre_rows(features, in_.sample_mean);
    backend_.scale_rows(roots_, features);
    const bool tall = features.rows > features.cols;
    if (tall) features = backend_.triangular_factor(features);
    const Matrix weights = tall ? backend_.triangular_factor(in_.weights) : in_.weights;
    auto left = checked_singular_values(backend_, weights), right = checked_singular_values(backend_, features);
    const auto product =
        checked_singular_values(backend_, backend_.product(weights, Transpose::no, features, Transpose::yes));
    set(family + "sv_w", distance(left, norm(w), w));
    set(family + "sv_h", distance(right, norm(z), z));
    const double rounding =
        static_cast<double>(in_.means.cols) * std::numeric_limits<double>::epsilon() * norm(left) * norm(right);
    if (norm(product) > rounding)
      set(family + "sv", distance(product, norm(product), wz));
    else
      out_.undefined[family + "sv"] = kOrthogonal;
    set(family + "rank_obs", static_cast<double>(std::count_if(left.begin(), left.end(),
                                                               [&](double value) { return value > w.back() / 2; })));
    out_.singular_values_w = std::move(left);
    out_.singular_values_z = std::move(right);
  } catch (const UsageError& error) {  // too large for the solver: the other measures stand
    undefined(error.what());
  } catch (const MemoryError& error) {  // or for the memory
    undefined(error.what());
  }
}

// Dang et al. 2023: w_k = (t_k + N lambda_H) m_k with t_k the predicted |w_k|^2; with one layer |w_k|^2/|m_k|^2 ~ n_k.
// The second holds whichever directions of an eigenspace survive, the first where that is determined.
void Imbalance::duality_without_bias(const UfmPrediction& prediction, const LabelSpectrum::Structure& s) {
  std::vector<double> scale(in_.counts.size());
  for (Index i = 0; i < s.groups(); ++i) {
    const double w = prediction.directions[static_cast<std::size_t>(i)].w;
    for (Index p = s.begin[i]; p < s.begin[i + 1]; ++p) scale[s.order[p]] = w * w + samples_ * in_.lambda_h;
  }
  const Matrix dual = backend_.scaled(scale, in_.means);
  const double weights_size = backend_.norm(in_.weights), dual_size = backend_.norm(dual);
  if (const std::string why = undetermined(prediction); !why.empty()) {
    out_.undefined["gof_w_vs_h"] = why;
  } else if (weights_size > 0 && dual_size > 0) {
    set("gof_w_vs_h", direction_gap(backend_, in_.weights, weights_size, dual, dual_size));
  } else {
    out_.undefined["gof_w_vs_h"] = "the classifier or the means are 0";
  }

  const RowProducts products = backend_.row_products(in_.weights, in_.means);
  const auto &w_squares = products.left, &m_squares = products.right;
  bool a_mean_is_zero = false;
  for (std::size_t k = 0; k < m_squares.size(); ++k)
    a_mean_is_zero |=
        !(m_squares[k] > rounding_of_mean(m_squares[k], in_.counts[k], in_.variances.empty() ? 0 : in_.variances[k]));
  if (in_.layer_squares.size() != 1) {
    out_.undefined["gof_len_ratio"] = "the relation holds for one layer";
  } else if (a_mean_is_zero || weights_size == 0) {
    out_.undefined["gof_len_ratio"] = "a class mean or the classifier is 0";
  } else {
    std::vector<double> ratios;
    for (std::size_t k = 0; k < m_squares.size(); ++k) ratios.push_back(w_squares[k] / m_squares[k]);
    set("gof_len_ratio", distance(ratios, norm(ratios), {in_.counts.begin(), in_.counts.end()}));
  }
}

}  // namespace

void check_decays(const std::vector<double>& lambda_w, double lambda_h, std::size_t layers) {
  if (lambda_w.empty() != (lambda_h == 0))
    throw UsageError("the weight decays of layers and features are given together or not at all");
  if (lambda_w.empty()) return;
  if (layers == 0) throw UsageError("weight decays need the weights that they act on");
  if (lambda_w.size() != 1 && lambda_w.size() != layers)
    throw UsageError("there are " + std::to_string(lambda_w.size()) + " weight decays for " + std::to_string(layers) +
                         (layers == 1 ? " layer" : " layers"),
                     "give one for all layers, or one for each, W_1 first");
  check_positive(lambda_w, lambda_h);
}

ImbalanceMeasures measure_imbalance(Backend& backend, Grams& grams, const ImbalanceInput& input) {
  return Imbalance(backend, grams, input).run();
}

}  // namespace ncollapse
