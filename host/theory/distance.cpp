// With A = W and B = diag(sqrt n) M (centred by the sample mean with a bias):
//   |G_W/|G_W| - T/|T||^2 = 2 - 2 <G_W, T>/(|G_W||T|),  |G_W| = |W^T W|,  <G_W, T> from the energies of eigenspaces,
// likewise for the features and the product; no K x K array.
#include "host/theory/distance.hpp"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <numeric>

#include "host/input.hpp"
#include "host/numbers.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

std::string undetermined(const UfmPrediction& prediction) {
  for (const auto& direction : prediction.directions)
    if (direction.surviving > 0 && direction.surviving < direction.multiplicity)
      return "the width cuts through an eigenspace, the minimiser is not determined there";
  return "";
}

GeometryDistance geometry_distance(Backend& backend, Grams& grams, const LabelSpectrum& spectrum,
                                   const UfmPrediction& prediction, const Matrix& weights, const Matrix& means,
                                   const std::vector<double>& sample_mean, const GroupedPair& pair) {
  const bool bias = spectrum.model() == LabelModel::with_bias;
  const auto& s = spectrum.structure();
  const auto& spaces = spectrum.eigenspaces();
  const auto& directions = prediction.directions;
  std::vector<double> group_roots, class_roots;
  for (const Index size : s.sizes) group_roots.push_back(std::sqrt(static_cast<double>(size)));
  for (const Index count : s.counts) class_roots.push_back(std::sqrt(static_cast<double>(count)));
  const std::vector<double> centre = bias ? sample_mean : std::vector<double>{};
  const SpectrumEnergies energies =
      spectrum_energies(backend, spectrum, scaled_right(backend, s, pair, group_roots, centre));

  GeometryDistance distance;
  // Centring leaves rounding of the size of what it subtracts.
  const double centre_squares = std::inner_product(centre.begin(), centre.end(), centre.begin(), 0.0);
  const double left_total = sum(energies.left), right_total = sum(energies.right),
               right_scale = right_total + static_cast<double>(spectrum.samples()) * centre_squares;
  constexpr double kEps = std::numeric_limits<double>::epsilon(), kRounding = 256 * kEps * kEps;  // of squares
  std::vector<double> w2, z2, wz;
  std::vector<bool> has_both;  // what is left of both is more than rounding
  for (std::size_t i = 0; i < spaces.size(); ++i) {
    const auto& direction = directions[i];
    w2.push_back(direction.w * direction.w);
    z2.push_back(direction.z * direction.z);
    wz.push_back(direction.w * direction.z);
    const auto times = static_cast<double>(spaces[i].multiplicity);
    has_both.push_back(energies.left[i] > kRounding * left_total && energies.right[i] > kRounding * right_scale);
    distance.spectrum.push_back(
        {spaces[i].sigma, spaces[i].multiplicity, direction.w, std::sqrt(energies.left[i] / times), direction.z,
         std::sqrt(energies.right[i] / times),
         has_both[i] ? energies.cross[i] / std::sqrt(energies.left[i] * energies.right[i]) : 0});
  }

  // What a number needs, and why it is not there; nothing where it is.
  const GramNorms norms = gram_norms(backend, grams, weights, means, class_roots, centre);
  const std::string left = left_total > 0 ? "" : "the classifier is 0",
                    right = right_total > kRounding * right_scale ? ""
                            : bias                                ? "all class means are equal"
                                                                  : "all class means are 0",
                    product = norms.product > 0 ? "" : kOrthogonal, cut = undetermined(prediction),
                    none = prediction.rank() > 0 ? "" : "every direction is predicted to vanish";
  std::string lost;
  for (std::size_t i = 0; i < spaces.size(); ++i)
    if (directions[i].surviving > 0 && !has_both[i])
      lost = "the classifier or the means have nothing in a direction that is predicted to survive";
  const auto set = [&](const char* name, double& value, std::initializer_list<std::string> needs, const auto& number) {
    const auto why = std::find_if(needs.begin(), needs.end(), [](const std::string& each) { return !each.empty(); });
    if (why == needs.end()) {
      value = number();
    } else {
      value = std::numeric_limits<double>::quiet_NaN();
      distance.undefined[name] = *why;
    }
  };
  set("w", distance.w, {cut, none, left}, [&] { return distance_to_diagonal(energies.left, norms.left, w2, spaces); });
  set("h", distance.h, {cut, none, right}, [&] {
    if (bias) return distance_to_diagonal(energies.right, norms.right, z2, spaces);
    // Dang et al. compare M M^T itself, so classes are not weighted: m_k^2 is predicted z^2/n.
    std::vector<double> target;
    for (std::size_t i = 0; i < spaces.size(); ++i) target.push_back(z2[i] / (spaces[i].sigma * spaces[i].sigma));
    return distance_to_diagonal(pair.right, grams.norm(means), target, spaces);
  });
  set("wh", distance.wh, {cut, none, left, right, product},
      [&] { return distance_to_diagonal(energies.cross, norms.product, wz, spaces); });
  const auto outside = [](double norm, double blocks) { return std::sqrt(at_least_zero(1 - blocks / (norm * norm))); };
  set("row_orth", distance.row_orthogonality, {left}, [&] { return outside(norms.left, energies.left_blocks); });
  set("col_orth", distance.column_orthogonality, {right}, [&] { return outside(norms.right, energies.right_blocks); });

  double aligned = 0, count = 0, least = 1, vanished_w = 0, vanished_h = 0;
  for (std::size_t i = 0; i < spaces.size(); ++i) {
    if (directions[i].surviving == 0) {
      vanished_w += energies.left[i];
      vanished_h += energies.right[i];
      continue;
    }
    const auto times = static_cast<double>(spaces[i].multiplicity);
    aligned += times * distance.spectrum[i].cosine;
    count += times;
    least = std::min(least, distance.spectrum[i].cosine);
  }
  set("align_mean", distance.align_mean, {cut, none, left, right, lost}, [&] { return aligned / count; });
  set("align_min", distance.align_min, {cut, none, left, right, lost}, [&] { return least; });
  set("vanished_w", distance.vanished_w, {cut, left}, [&] { return vanished_w / left_total; });
  set("vanished_h", distance.vanished_h, {cut, right}, [&] { return vanished_h / right_total; });
  return distance;
}

GeometryDistance geometry_distance(const Context& context, const UfmOptions& model, const MatrixView& classifier,
                                   const MatrixView& means) {
  const UfmPrediction prediction = predict(model);
  const LabelSpectrum spectrum(model.counts, model.label_model());
  const auto shape = [](const MatrixView& view) {
    return std::to_string(view.rows) + " x " + std::to_string(view.cols);
  };
  for (const auto& [name, view] : {std::pair{"classifier", &classifier}, {"means", &means}})
    if (view->rows != spectrum.classes() || view->cols != classifier.cols || view->cols < 1)
      throw UsageError("the " + std::string(name) + " are " + shape(*view) + ", expected one row for each of the " +
                           std::to_string(spectrum.classes()) + " classes and as many columns as the classifier",
                       "classifier and means are both [K x d], class k in row k");
  Backend& backend = *context.backend();
  const Matrix weights = checked_matrix(backend, classifier, "the classifier"),
               centres = checked_matrix(backend, means, "the class means");
  check_lengths(backend, weights, backend.row_dots(weights, weights), "classifier rows", "rescale the classifier");
  check_lengths(backend, centres, backend.row_dots(centres, centres), "class means", "rescale the features");
  std::vector<double> share;
  for (const Index count : model.counts)
    share.push_back(static_cast<double>(count) / static_cast<double>(spectrum.samples()));
  const auto pair = group_pair(backend, spectrum.structure(), weights, centres);
  Grams grams(backend);
  return geometry_distance(backend, grams, spectrum, prediction, weights, centres,
                           backend.weighted_row_sum(centres, share), pair);
}

}  // namespace ncollapse
