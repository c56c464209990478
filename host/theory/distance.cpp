// With A = W and B = diag(sqrt n) M (centred by the sample mean with a bias):
//   |G_W/|G_W| - T/|T||^2 = 2 - 2 <G_W, T>/(|G_W||T|),  |G_W| = |W^T W|,  <G_W, T> from the energies of eigenspaces,
// likewise for the features and the product; no K x K array.
#include "host/theory/distance.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "host/classifier_product.hpp"
#include "host/numbers.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

// Why the minimiser's geometry is not determined; empty when it is.
std::string undetermined(const UfmPrediction& prediction) {
  for (const auto& direction : prediction.directions)
    if (direction.surviving > 0 && direction.surviving < direction.multiplicity)
      return "the width cuts through an eigenspace, the minimiser is not determined there";
  return prediction.rank() == 0 ? "every direction is predicted to vanish" : "";
}

}  // namespace

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
  for (std::size_t i = 0; i < spaces.size(); ++i) {
    const auto& direction = directions[i];
    w2.push_back(direction.w * direction.w);
    z2.push_back(direction.z * direction.z);
    wz.push_back(direction.w * direction.z);
    const auto times = static_cast<double>(spaces[i].multiplicity);
    const bool vanishes =
        !(energies.left[i] > kRounding * left_total) || !(energies.right[i] > kRounding * right_scale);
    distance.spectrum.push_back({spaces[i].sigma, spaces[i].multiplicity, direction.w,
                                 std::sqrt(energies.left[i] / times), direction.z, std::sqrt(energies.right[i] / times),
                                 vanishes ? 0.0 : energies.cross[i] / std::sqrt(energies.left[i] * energies.right[i])});
  }

  const GramNorms norms = gram_norms(backend, grams, weights, means, class_roots, centre);
  distance.undefined = undetermined(prediction);
  if (!(norms.product > 0)) distance.undefined = "the product of classifier and means is 0";
  if (!distance.undefined.empty()) {
    for (auto* value :
         {&distance.w, &distance.h, &distance.wh, &distance.row_orthogonality, &distance.column_orthogonality,
          &distance.align_mean, &distance.align_min, &distance.vanished_w, &distance.vanished_h})
      *value = std::numeric_limits<double>::quiet_NaN();
    return distance;
  }

  distance.w = distance_to_diagonal(energies.left, norms.left, w2, spaces);
  distance.wh = distance_to_diagonal(energies.cross, norms.product, wz, spaces);
  if (bias) {
    distance.h = distance_to_diagonal(energies.right, norms.right, z2, spaces);
  } else {
    // Dang et al. compare M M^T itself, so classes are not weighted: m_k^2 is predicted z^2/n.
    std::vector<double> target;
    for (std::size_t i = 0; i < spaces.size(); ++i) target.push_back(z2[i] / (spaces[i].sigma * spaces[i].sigma));
    distance.h = distance_to_diagonal(pair.right, grams.product_norm(means, means), target, spaces);
  }
  const auto outside = [](double norm, double blocks) { return std::sqrt(at_least_zero(1 - blocks / (norm * norm))); };
  distance.row_orthogonality = outside(norms.left, energies.left_blocks);
  distance.column_orthogonality = outside(norms.right, energies.right_blocks);

  double aligned = 0, count = 0, vanished_w = 0, vanished_h = 0;
  distance.align_min = 1;
  for (std::size_t i = 0; i < spaces.size(); ++i) {
    if (directions[i].surviving == 0) {
      vanished_w += energies.left[i];
      vanished_h += energies.right[i];
      continue;
    }
    const auto times = static_cast<double>(spaces[i].multiplicity);
    aligned += times * distance.spectrum[i].cosine;
    count += times;
    distance.align_min = std::min(distance.align_min, distance.spectrum[i].cosine);
  }
  distance.align_mean = aligned / count;
  distance.vanished_w = vanished_w / left_total;
  distance.vanished_h = vanished_h / right_total;
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
  std::vector<double> share;
  for (const Index count : model.counts)
    share.push_back(static_cast<double>(count) / static_cast<double>(spectrum.samples()));
  const auto pair = group_pair(backend, spectrum.structure(), weights, centres);
  Grams grams(backend);
  return geometry_distance(backend, grams, spectrum, prediction, weights, centres,
                           backend.weighted_row_sum(centres, share), pair);
}

}  // namespace ncollapse
