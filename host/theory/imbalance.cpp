// How the measures are evaluated, with A = W and B = diag(sqrt n) M (centred by the sample mean with a bias):
//   |G_W/|G_W| - T/|T||^2 = 2 - 2 <G_W, T>/(|G_W||T|),  |G_W| = |W^T W|,  <G_W, T> from the energies of eigenspaces,
// likewise for the features and the product; no K x K array (geometry.cpp). The loss needs no second pass over the
// data:
//   sum_i |W h_i + b - y_i|^2 = tr(W S W^T) + sum_k n_k |W m_k + b - e_k|^2,   sum_i |h_i|^2 = sum_k n_k (v_k +
//   |m_k|^2).
#include "host/theory/imbalance.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "host/theory/geometry.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

class Imbalance {
 public:
  Imbalance(Backend& backend, const ImbalanceInput& input) : backend_(backend), in_(input) {
    for (const Index count : in_.counts) {
      samples_ += static_cast<double>(count);
      roots_.push_back(std::sqrt(static_cast<double>(count)));
    }
    classes_ = static_cast<double>(in_.counts.size());
  }

  ImbalanceMeasures run() {
    norms_against_counts();
    minorities();
    if (in_.weights_norm == 0) {
      for (const auto* key : {"seli_w", "seli_h", "seli_z"}) out_.undefined[key] = "the classifier is 0";
    } else {
      seli();
    }
    if (!in_.lambda_w.empty() && in_.lambda_h > 0) minimiser();
    return std::move(out_);
  }

 private:
  void set(const std::string& key, double value) {
    if (std::isfinite(value))
      out_.values[key] = value;
    else
      out_.undefined[key] = "the value overflows or divides by zero";
  }

  Matrix scaled(const std::vector<double>& scale, const Matrix& A) {
    Matrix result = backend_.matrix(A.rows, A.cols);
    backend_.combine_rows(scale, A, {}, {}, result);
    return result;
  }
  std::vector<double> norms(const Matrix& A) {
    auto squares = backend_.row_dots(A, A);
    for (auto& value : squares) value = std::sqrt(value);
    return squares;
  }

  void norms_against_counts();
  void minorities();
  void seli();
  void minimiser();
  double loss();

  Backend& backend_;
  const ImbalanceInput& in_;
  double samples_ = 0, classes_ = 0;
  std::vector<double> roots_;  // sqrt n_k
  ImbalanceMeasures out_;
};

// Least squares of log norm on log n_k.
void Imbalance::norms_against_counts() {
  Matrix centred = backend_.clone(in_.means);
  backend_.centre_rows(centred, in_.sample_mean);
  for (const auto& [suffix, lengths] :
       {std::pair{std::string("_h"), norms(centred)}, {std::string("_w"), norms(in_.weights)}}) {
    const std::string key = "norm_count_slope" + suffix, fit = "norm_count_r2" + suffix;
    const auto [least, most] = std::minmax_element(in_.counts.begin(), in_.counts.end());
    std::string why;
    if (*least == *most) why = "all classes have the same size";
    if (*std::min_element(lengths.begin(), lengths.end()) == 0) why = "a norm is 0";
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
    if (yy > 0)
      set(fit, xy * xy / (xx * yy));
    else
      out_.undefined[fit] = "all norms are equal";
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
  const auto undefined = [&](std::initializer_list<const char*> keys, const std::string& why) {
    for (const auto* key : keys) out_.undefined[key] = why;
  };
  if (minority.empty())
    return undefined({"mc_cos_w", "mc_cos_std_w", "mc_cos_h", "mc_norm_ratio_w"}, "all classes have the same size");

  const auto mean_norm = [&](const std::vector<Index>& rows) {
    return sum(norms(backend_.select_rows(in_.weights, rows))) / static_cast<double>(rows.size());
  };
  set("mc_norm_ratio_w", mean_norm(minority) / mean_norm(majority));
  if (minority.size() < 2) return undefined({"mc_cos_w", "mc_cos_std_w", "mc_cos_h"}, "only one class is a minority");
  const auto cosines = [&](const Matrix& A, const std::string& mean_key, const std::string& std_key) {
    PairQuery query;
    query.norms = norms(A);
    query.gram_norm = query.frame_norm = backend_.product_norm(A, A);
    const PairSums sums = backend_.pair_sums(A, query);
    const double pairs = static_cast<double>(A.rows) * static_cast<double>(A.rows - 1) / 2;
    if (static_cast<double>(sums.angles) < pairs) return undefined({mean_key.c_str()}, "a vector of the minority is 0");
    const double deviation = sums.cos_sum / pairs;  // from the simplex value
    set(mean_key, deviation - 1 / static_cast<double>(A.rows - 1));
    if (!std_key.empty()) set(std_key, std::sqrt(std::max(0.0, sums.cos_square_sum / pairs - deviation * deviation)));
  };
  Matrix centred = backend_.clone(in_.means);
  backend_.centre_rows(centred, in_.sample_mean);
  cosines(backend_.select_rows(centred, minority), "mc_cos_h", "");
  cosines(backend_.select_rows(in_.weights, minority), "mc_cos_w", "mc_cos_std_w");
}

// (I - 11^T/K) D = P S Q^T. Targets: W W^T ~ P S P^T, M M^T ~ D^-1 Q S Q^T D^-1, W M^T ~ I - 11^T/K.
void Imbalance::seli() {
  const LabelSpectrum spectrum(in_.counts, LabelModel::seli);
  const auto& s = spectrum.structure();
  const auto& spaces = spectrum.eigenspaces();
  std::vector<double> inverse_roots;
  for (const double root : roots_) inverse_roots.push_back(1 / root);
  const auto energies = spectrum_energies(backend_, spectrum, in_.weights, scaled(inverse_roots, in_.means));
  std::vector<double> sigma;
  for (const auto& space : spaces) sigma.push_back(space.sigma);
  set("seli_w", distance_to_diagonal(energies.left, in_.weights_norm, sigma, spaces));

  // |D^-1 Q S Q^T D^-1|: contrasts of a group give (l-1)(sigma/n)^2, the rest is an m x m matrix.
  double target_squares = 0, inner = 0;
  std::vector<double> root_sigma;
  std::size_t space = 0;
  for (Index i = 0; i < s.groups(); ++i) {
    const auto size = static_cast<double>(s.sizes[i]);
    if (s.members(i) > 1) {
      target_squares +=
          static_cast<double>(s.members(i) - 1) * spaces[space].sigma * spaces[space].sigma / (size * size);
      ++space;
    }
    root_sigma.push_back(std::sqrt(spaces[space++].sigma));
  }
  for (std::size_t i = 0; i < spaces.size(); ++i) inner += energies.right[i] * spaces[i].sigma;
  const Index m = s.groups();
  Matrix vectors = backend_.matrix(m, m), by_root = backend_.matrix(m, m);
  backend_.from_host(vectors, s.group_vectors(false, 0, m));
  backend_.combine_rows(root_sigma, vectors, {}, {}, by_root);
  Matrix dense = backend_.product(by_root, Transpose::yes, by_root, Transpose::no);
  std::vector<double> inverse_sizes;
  for (const Index size : s.sizes) inverse_sizes.push_back(1 / static_cast<double>(size));
  const Matrix weighted = scaled(inverse_sizes, dense);  // sum_ij dense_ij^2/(n_i n_j) = <D^-1 dense, (D^-1 dense)^T>
  Matrix column_weighted = backend_.product(
      dense, Transpose::no,
      [&] {
        std::vector<double> diagonal(static_cast<std::size_t>(m * m), 0.0);
        for (Index i = 0; i < m; ++i) diagonal[i * m + i] = inverse_sizes[i];
        Matrix matrix = backend_.matrix(m, m);
        backend_.from_host(matrix, diagonal);
        return matrix;
      }(),
      Transpose::no);
  target_squares += backend_.inner(weighted, column_weighted);
  const double means_norm = in_.means_norm, product = in_.product_norm;
  if (means_norm > 0)
    set("seli_h", std::sqrt(std::max(0.0, 2 - 2 * inner / (means_norm * std::sqrt(target_squares)))));
  else
    out_.undefined["seli_h"] = "all class means are 0";
  if (!(product > 0)) {
    out_.undefined["seli_z"] = "the product of classifier and means is 0";
    return;
  }
  const std::vector<double> ones(in_.counts.size(), 1.0);
  const auto sum_w = backend_.weighted_row_sum(in_.weights, ones), sum_m = backend_.weighted_row_sum(in_.means, ones);
  const double diagonal = sum(backend_.row_dots(in_.weights, in_.means)) -
                          std::inner_product(sum_w.begin(), sum_w.end(), sum_m.begin(), 0.0) / classes_;
  set("seli_z", std::sqrt(std::max(0.0, 2 - 2 * diagonal / (product * std::sqrt(classes_ - 1)))));
}

double Imbalance::loss() {
  const bool bias = !in_.bias.empty();
  // tr(W S W^T) and, over class means, sum n_k |W m_k + b - e_k|^2.
  const Matrix spread = backend_.product(in_.weights, Transpose::no, in_.scatter, Transpose::no);
  double fit = backend_.inner(spread, in_.weights);
  const Matrix weighted = scaled(roots_, in_.means);  // rows sqrt(n_k) m_k
  const double logits_norm = backend_.product_norm(in_.weights, weighted);
  const auto diagonal = backend_.row_dots(in_.weights, in_.means);
  Matrix mean_row = backend_.matrix(1, in_.means.cols);
  backend_.from_host(mean_row, in_.sample_mean);
  const auto mean_logits = backend_.to_host(backend_.product(in_.weights, Transpose::no, mean_row, Transpose::yes));
  fit += logits_norm * logits_norm + samples_;
  for (std::size_t k = 0; k < in_.counts.size(); ++k) {
    const auto count = static_cast<double>(in_.counts[k]);
    const double b = bias ? in_.bias[k] : 0.0;
    fit += samples_ * b * (2 * mean_logits[k] + b) - 2 * count * (diagonal[k] + b);
  }
  double decay = 0;
  for (std::size_t l = 0; l < in_.layer_squares.size(); ++l)
    decay += in_.lambda_w[in_.lambda_w.size() == 1 ? 0 : l] * in_.layer_squares[l];
  const auto squares = backend_.row_dots(in_.means, in_.means);
  for (std::size_t k = 0; k < squares.size(); ++k)
    decay += in_.lambda_h * static_cast<double>(in_.counts[k]) * (in_.variances[k] + squares[k]);
  return std::max(0.0, fit) / (2 * samples_) + decay / 2;
}

void Imbalance::minimiser() {
  const bool bias = !in_.bias.empty();
  const auto layers = in_.layer_squares.size();
  if (in_.lambda_w.size() != 1 && in_.lambda_w.size() != layers)
    throw UsageError(
        "there are " + std::to_string(in_.lambda_w.size()) + " weight decays for " + std::to_string(layers) + " layers",
        "give one for all layers, or one for each, W_1 first");
  UfmOptions model;
  model.counts = in_.counts;
  model.lambda_w = in_.lambda_w.size() == layers ? in_.lambda_w : std::vector<double>(layers, in_.lambda_w.front());
  model.lambda_h = in_.lambda_h;
  model.bias = bias;
  model.width = in_.smallest_width;
  const UfmPrediction prediction = predict(model);
  set("ufm_loss_min", prediction.minimum);
  if (in_.scatter) set("ufm_loss", loss());

  const std::string family = bias ? "ufmb_" : "gof_";
  const LabelSpectrum spectrum(in_.counts, bias ? LabelModel::with_bias : LabelModel::without_bias);
  const auto& spaces = spectrum.eigenspaces();
  Matrix means = backend_.clone(in_.means);
  if (bias) backend_.centre_rows(means, in_.sample_mean);
  const Matrix features = scaled(roots_, means);  // Z^T = D M^T
  const SpectrumEnergies energies = spectrum_energies(backend_, spectrum, in_.weights, features);
  std::vector<double> w2, z2, wz;
  Index alive = 0;
  bool cut = false;
  for (const auto& direction : prediction.directions) {
    w2.push_back(direction.w * direction.w);
    z2.push_back(direction.z * direction.z);
    wz.push_back(direction.w * direction.z);
    alive += direction.surviving;
    cut = cut || (direction.surviving > 0 && direction.surviving < direction.multiplicity);
  }
  for (std::size_t i = 0; i < spaces.size(); ++i) {
    const auto times = static_cast<double>(spaces[i].multiplicity);
    const double lengths = std::sqrt(energies.left[i] * energies.right[i]);
    out_.spectrum.push_back({spaces[i].sigma, spaces[i].multiplicity, prediction.directions[i].w,
                             std::sqrt(energies.left[i] / times), prediction.directions[i].z,
                             std::sqrt(energies.right[i] / times), lengths > 0 ? energies.cross[i] / lengths : 0.0});
  }
  set(family + "rank_pred", static_cast<double>(alive));

  const double features_norm = backend_.product_norm(features, features),
               product = backend_.product_norm(in_.weights, features);
  std::string why;
  if (alive == 0) why = "every direction is predicted to vanish";
  if (cut) why = "the width cuts through an eigenspace, the minimiser is not determined there";
  if (!(product > 0)) why = "the product of classifier and means is 0";
  std::vector<std::string> keys;
  for (const auto* name : {"w", "h", "wh"}) keys.push_back(family + name);
  if (bias)
    for (const auto* name : {"align_mean", "align_min", "vanished_w", "vanished_h"}) keys.push_back(family + name);
  if (!why.empty()) {
    for (const auto& key : keys) out_.undefined[key] = why;
    return;
  }
  set(family + "w", distance_to_diagonal(energies.left, in_.weights_norm, w2, spaces));
  set(family + "wh", distance_to_diagonal(energies.cross, product, wz, spaces));
  if (bias) {
    set(family + "h", distance_to_diagonal(energies.right, features_norm, z2, spaces));
  } else {
    // Dang et al. compare M M^T itself, so classes are not weighted: m_k^2 is predicted z^2/n.
    const SpectrumEnergies plain = spectrum_energies(backend_, spectrum, means, means);
    std::vector<double> target;
    for (std::size_t i = 0; i < spaces.size(); ++i) target.push_back(z2[i] / (spaces[i].sigma * spaces[i].sigma));
    set(family + "h", distance_to_diagonal(plain.left, backend_.product_norm(means, means), target, spaces));
    return;
  }
  double aligned = 0, least = 1, count = 0, vanished_w = 0, vanished_h = 0;
  for (std::size_t i = 0; i < spaces.size(); ++i) {
    if (prediction.directions[i].surviving == 0) {
      vanished_w += energies.left[i];
      vanished_h += energies.right[i];
      continue;
    }
    const auto times = static_cast<double>(spaces[i].multiplicity);
    aligned += times * out_.spectrum[i].cosine;
    count += times;
    least = std::min(least, out_.spectrum[i].cosine);
  }
  set("ufmb_align_mean", aligned / count);
  set("ufmb_align_min", least);
  set("ufmb_vanished_w", vanished_w / sum(energies.left));
  set("ufmb_vanished_h", vanished_h / sum(energies.right));
}

}  // namespace

ImbalanceMeasures measure_imbalance(Backend& backend, const ImbalanceInput& input) {
  return Imbalance(backend, input).run();
}

}  // namespace ncollapse
