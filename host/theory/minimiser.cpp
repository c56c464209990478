// The global minimiser of the UFM. Directions decouple: with A = lambda_H prod lambda_l and alpha = L N (N
// A)^(1/L)/sigma^2, x* minimises g(x) = 1/(x^L + 1) + alpha x over x >= 0.
//  L = 1: x* = max(0, 1/sqrt(alpha) - 1).
//  L >= 2: a nonzero minimiser exists iff alpha < (L-1)^((L-1)/L)/L; it is the root of L x^(L-1)/(x^L+1)^2 = alpha
//  right of
//  ((L-1)/(L+1))^(1/L), where the left side decreases. There it is below L x^(-L-1), so (L/alpha)^(1/(L+1)) bounds the
//  root from above: a bracket, no guess. It is halved in u = log x, where powers cannot overflow.
#include <algorithm>
#include <cmath>
#include <limits>

#include "host/backend.hpp"
#include "host/theory/structure.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

void check_decay(double value, const std::string& name) {
  if (value > 0 && std::isfinite(value)) return;
  throw UsageError(name + " is " + std::to_string(value) + ", must be positive",
                   value == 0 ? "without weight decay the loss has no minimiser: it tends to 0 as the weights grow"
                              : "weight decays are positive numbers");
}

// log(e^u + 1)
double softplus(double u) { return u > 0 ? u + std::log1p(std::exp(-u)) : std::log1p(std::exp(u)); }

struct Model {
  double samples, layers, log_product;  // N, L, log(lambda_H prod lambda_l)

  double log_scale() const { return (std::log(samples) + log_product) / layers; }  // log (N A)^(1/L)
  double log_alpha(double sigma) const {
    return std::log(layers) + std::log(samples) + log_scale() - 2 * std::log(sigma);
  }
  double log_threshold() const {
    return layers > 1 ? (layers - 1) / layers * std::log(layers - 1) - std::log(layers) : 0.0;
  }
};

double surviving_root(double layers, double log_alpha) {
  if (layers == 1) return std::expm1(-log_alpha / 2);
  double low = std::log((layers - 1) / (layers + 1)) / layers;
  double high = std::max(low, (std::log(layers) - log_alpha) / (layers + 1));
  while (true) {
    const double middle = low + (high - low) / 2;
    if (!(middle > low) || !(middle < high)) return std::exp(low + (high - low) / 2);
    const double slope = std::log(layers) + (layers - 1) * middle - 2 * softplus(layers * middle);
    (slope > log_alpha ? low : high) = middle;
  }
}

// g(x*) in units of its value at 0.
double value_at(double layers, double log_alpha, double x) {
  if (x == 0) return 1;
  return 1 / (std::pow(x, layers) + 1) + std::exp(log_alpha) * x;
}

void check(const UfmOptions& options) {
  if (options.lambda_w.empty()) throw UsageError("there are 0 layers, must be at least 1");
  for (std::size_t l = 0; l < options.lambda_w.size(); ++l)
    check_decay(options.lambda_w[l],
                options.lambda_w.size() == 1 ? "lambda_w" : "lambda_w of layer " + std::to_string(l + 1));
  check_decay(options.lambda_h, "lambda_h");
  if (options.width < 0)
    throw UsageError("the width is " + std::to_string(options.width) + ", must be at least 1 (0: no limit)");
}

std::vector<DirectionPrediction> directions_of(const LabelSpectrum& spectrum, const UfmOptions& options) {
  Model model{static_cast<double>(spectrum.samples()), static_cast<double>(options.lambda_w.size()),
              std::log(options.lambda_h)};
  for (const double lambda : options.lambda_w) model.log_product += std::log(lambda);
  const double layers = model.layers;

  std::vector<DirectionPrediction> directions;
  Index room = options.width > 0 ? options.width : std::numeric_limits<Index>::max();
  for (const auto& space : spectrum.eigenspaces()) {
    DirectionPrediction direction;
    direction.sigma = space.sigma;
    direction.multiplicity = space.multiplicity;
    direction.layer_singular_values.assign(options.lambda_w.size(), 0.0);
    if (space.sigma > 0) {
      const double log_alpha = model.log_alpha(space.sigma), margin = model.log_threshold() - log_alpha;
      // critical A: alpha = threshold  <=>  log A = L (log threshold + 2 log sigma - log L - log N) - log N
      direction.critical_lambda_product = std::exp(
          layers * (model.log_threshold() + 2 * std::log(space.sigma) - std::log(layers) - std::log(model.samples)) -
          std::log(model.samples));
      direction.at_threshold = layers > 1 && std::abs(margin) <= 64 * kEps * (1 + std::abs(log_alpha));
      if (margin > 0) direction.surviving = std::min(space.multiplicity, room);
      if (direction.surviving > 0) {
        direction.x = surviving_root(layers, log_alpha);
        direction.w = std::sqrt(model.samples * options.lambda_h * std::pow(direction.x, layers));
        direction.z = direction.w * space.sigma / (direction.w * direction.w + model.samples * options.lambda_h);
        const double shared = direction.x * std::exp(model.log_scale());
        for (std::size_t l = 0; l < options.lambda_w.size(); ++l)
          direction.layer_singular_values[l] = std::sqrt(shared / options.lambda_w[l]);
        room -= direction.surviving;
      }
    }
    directions.push_back(std::move(direction));
  }
  return directions;
}

// Logits between groups: entry (i, j) is the logit of a class of group i at the mean of ANOTHER class of group j;
// `own` adds to it where the two classes are the same.
struct GroupLogits {
  Matrix between;           // [m x m]
  std::vector<double> own;  // [m]
};

bool cuts_through(const std::vector<DirectionPrediction>& directions) {
  return std::any_of(directions.begin(), directions.end(),
                     [](const auto& d) { return d.surviving > 0 && d.surviving < d.multiplicity; });
}

GroupLogits group_logits(Backend& backend, const LabelSpectrum::Structure& s,
                         const std::vector<DirectionPrediction>& directions, bool bias) {
  const Index m = s.groups();
  GroupLogits logits{backend.matrix(m, m), std::vector<double>(static_cast<std::size_t>(m), 0.0)};
  const auto root_of = [&](Index i) { return std::sqrt(static_cast<double>(s.sizes[i])); };
  if (!bias) {  // U = V = I
    for (Index i = 0; i < m; ++i) logits.own[i] = directions[i].w * directions[i].z / root_of(i);
    return logits;
  }
  // The group-constant part, sum_r (w z)_r u_r v_r^T, and the contrasts' part (w z)_i (I - 11^T/l_i) inside group i.
  std::vector<double> strengths;
  Index space = 0;
  for (Index i = 0; i < m; ++i) {
    if (s.members(i) > 1) {
      logits.own[i] = directions[space].w * directions[space].z / root_of(i);
      ++space;
    }
    strengths.push_back(directions[space].w * directions[space].z);
    ++space;
  }
  Matrix left = backend.matrix(m, m), right = backend.matrix(m, m);
  backend.from_host(left, s.group_vectors(true, 0, m));
  backend.from_host(right, s.group_vectors(false, 0, m));
  backend.combine_rows(strengths, left, {}, {}, left);
  logits.between = backend.product(left, Transpose::yes, right, Transpose::no);
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < m; ++j) {
      double& entry = logits.between.data()[i * m + j];
      entry /= std::sqrt(static_cast<double>(s.members(i)) * static_cast<double>(s.members(j))) * root_of(j);
      if (i == j) entry -= logits.own[i] / static_cast<double>(s.members(i));
      entry += static_cast<double>(s.sizes[i]) / static_cast<double>(s.samples);
    }
  return logits;
}

}  // namespace

UfmPrediction predict(const UfmOptions& options) {
  check(options);
  const LabelSpectrum spectrum(options.counts, options.bias ? LabelModel::with_bias : LabelModel::without_bias);
  const auto& s = spectrum.structure();
  UfmPrediction prediction;
  prediction.classes = spectrum.classes();
  prediction.samples = spectrum.samples();
  prediction.directions = directions_of(spectrum, options);

  const auto samples = static_cast<double>(spectrum.samples()), layers = static_cast<double>(options.lambda_w.size());
  Model model{samples, layers, std::log(options.lambda_h)};
  for (const double lambda : options.lambda_w) model.log_product += std::log(lambda);
  for (const auto& direction : prediction.directions) {
    if (direction.sigma == 0) continue;
    const double share = direction.sigma * direction.sigma / (2 * samples);
    const auto alive = static_cast<double>(direction.surviving);
    prediction.minimum += share * (static_cast<double>(direction.multiplicity) - alive);
    if (alive > 0)
      prediction.minimum += share * alive * value_at(layers, model.log_alpha(direction.sigma), direction.x);
  }
  if (options.bias)
    for (const Index count : spectrum.counts()) prediction.bias.push_back(static_cast<double>(count) / samples);

  if (cuts_through(prediction.directions)) return prediction;
  const auto backend = open_cpu_backend({});
  const GroupLogits logits = group_logits(*backend, s, prediction.directions, options.bias);
  prediction.lost_classes.emplace();
  const Index m = s.groups();
  for (Index j = 0; j < m; ++j) {
    const double own = logits.between.data()[j * m + j] + logits.own[j];
    double rival = -std::numeric_limits<double>::infinity();
    for (Index i = 0; i < m; ++i)
      if (i != j || s.members(i) > 1) rival = std::max(rival, logits.between.data()[i * m + j]);
    const double rounding = 1e-12 * (std::abs(own) + std::abs(rival));
    if (own > rival + rounding) continue;
    prediction.lost_classes->insert(prediction.lost_classes->end(), s.order.begin() + s.begin[j],
                                    s.order.begin() + s.begin[j + 1]);
  }
  std::sort(prediction.lost_classes->begin(), prediction.lost_classes->end());
  return prediction;
}

std::vector<double> predicted_logits(const UfmOptions& options) {
  check(options);
  const LabelSpectrum spectrum(options.counts, options.bias ? LabelModel::with_bias : LabelModel::without_bias);
  const auto directions = directions_of(spectrum, options);
  if (cuts_through(directions))
    throw UsageError("the width " + std::to_string(options.width) +
                     " cuts through an eigenspace, so the minimiser does not determine the logits");
  const auto backend = open_cpu_backend({});
  const auto& s = spectrum.structure();
  const GroupLogits logits = group_logits(*backend, s, directions, options.bias);
  const Index classes = spectrum.classes(), m = s.groups();
  std::vector<double> full(static_cast<std::size_t>(classes * classes));
  for (Index i = 0; i < m; ++i)
    for (Index p = s.begin[i]; p < s.begin[i + 1]; ++p)
      for (Index j = 0; j < m; ++j)
        for (Index q = s.begin[j]; q < s.begin[j + 1]; ++q)
          full[s.order[p] * classes + s.order[q]] = logits.between.data()[i * m + j] + (p == q ? logits.own[i] : 0.0);
  return full;
}

}  // namespace ncollapse
