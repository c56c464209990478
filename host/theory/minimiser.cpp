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
#include <numeric>

#include "host/numbers.hpp"
#include "host/theory/decays.hpp"
#include "host/theory/structure.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

// log(e^u + 1)
double softplus(double u) { return u > 0 ? u + std::log1p(std::exp(-u)) : std::log1p(std::exp(u)); }

struct Model {
  double samples, layers, log_product;  // N, L, log(lambda_H prod lambda_l)

  Model(Index of_samples, const UfmOptions& options)
      : samples(static_cast<double>(of_samples)),
        layers(static_cast<double>(options.lambda_w.size())),
        log_product(std::log(options.lambda_h)) {
    for (const double lambda : options.lambda_w) log_product += std::log(lambda);
  }
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
  check_positive(options.lambda_w, options.lambda_h);
  if (options.width < 0)
    throw UsageError("the width is " + std::to_string(options.width) + ", must be at least 1 (0: no limit)");
}

std::vector<DirectionPrediction> directions_of(const LabelSpectrum& spectrum, const UfmOptions& options,
                                               const Model& model) {
  const double layers = model.layers;
  std::vector<DirectionPrediction> directions;
  Index room = options.width > 0 ? options.width : std::numeric_limits<Index>::max();
  for (const auto& space : spectrum.eigenspaces()) {
    DirectionPrediction direction;
    direction.sigma = space.sigma;
    direction.multiplicity = space.multiplicity;
    direction.layer_singular_values.assign(options.lambda_w.size(), 0.0);
    direction.log10_critical_lambda_product = -std::numeric_limits<double>::infinity();
    if (space.sigma > 0) {
      const double log_alpha = model.log_alpha(space.sigma), margin = model.log_threshold() - log_alpha;
      // critical A: alpha = threshold  <=>  log A = L (log threshold + 2 log sigma - log L - log N) - log N
      const double log_critical =
          layers * (model.log_threshold() + 2 * std::log(space.sigma) - std::log(layers) - std::log(model.samples)) -
          std::log(model.samples);
      direction.critical_lambda_product = std::exp(log_critical);
      direction.log10_critical_lambda_product = log_critical / std::log(10.0);
      direction.at_threshold = layers > 1 && std::abs(margin) <= 64 * kEps * (1 + std::abs(log_alpha));
      if (margin > 0) direction.surviving = std::min(space.multiplicity, room);
      if (direction.surviving > 0) {
        direction.x = surviving_root(layers, log_alpha);
        direction.w = std::sqrt(model.samples * options.lambda_h * std::pow(direction.x, layers));
        direction.z = direction.w * space.sigma / (direction.w * direction.w + model.samples * options.lambda_h);
        const double log_shared = std::log(direction.x) + model.log_scale();
        for (std::size_t l = 0; l < options.lambda_w.size(); ++l)
          direction.layer_singular_values[l] = std::exp((log_shared - std::log(options.lambda_w[l])) / 2);
        room -= direction.surviving;
      }
    }
    directions.push_back(std::move(direction));
  }
  return directions;
}

/// Those of the model's decays, all within the range of double.
std::vector<DirectionPrediction> directions_of(const LabelSpectrum& spectrum, const UfmOptions& options) {
  auto directions = directions_of(spectrum, options, Model(spectrum.samples(), options));
  for (const auto& direction : directions) {
    const bool positive = direction.w > 0 && direction.z > 0;
    if (direction.surviving > 0 && !(positive && std::isfinite(direction.w * direction.z)))
      throw UsageError("with these weight decays a singular value of the minimiser leaves the range of double",
                       "take weight decays above 1e-300");
  }
  return directions;
}

bool cuts_through(const std::vector<DirectionPrediction>& directions) {
  return std::any_of(directions.begin(), directions.end(),
                     [](const auto& d) { return d.surviving > 0 && d.surviving < d.multiplicity; });
}

std::vector<DirectionPrediction> determined_directions(const LabelSpectrum& spectrum, const UfmOptions& options,
                                                       const std::string& wanted) {
  auto directions = directions_of(spectrum, options);
  if (cuts_through(directions))
    throw UsageError("the width " + std::to_string(options.width) +
                     " cuts through an eigenspace, so the minimiser does not determine the " + wanted);
  return directions;
}

// Predicted logits W M + b 1^T = U diag(w z) V^T D^-1 + (n/N) 1^T; classes of equal size share theirs. Contrasts of
// group i add (w z)_i (I - 11^T/l_i)/sqrt(s_i). Between groups, with a_i/(s_i - x_r) and b_j/(s_j - x_r) the components
// of the normalised vectors of root r (structure.hpp) and c_r = (w z)_r, partial fractions give
//   sum_r c_r a_i b_j / ((s_i - x_r)(s_j - x_r)) = a_i b_j (F_i - F_j)/(s_j - s_i),   F_i = sum_r c_r/(s_i - x_r).
// F_i and F_j may agree in most digits. So the quotient is made of those of neighbours, whose sums are taken as they
// stand, D_t = sum_r c_r/((s_t - x_r)(s_{t+1} - x_r)): it is the mean of D_i .. D_{j-1} weighted by the steps of s.
// O(m^2) time in all and O(m) memory.
class GroupLogits {
 public:
  GroupLogits(const LabelSpectrum::Structure& s, const std::vector<DirectionPrediction>& directions, bool bias)
      : s_(s), bias_(bias) {
    std::vector<double> strengths;  // of the roots
    Index space = 0;
    for (Index i = 0; i < s.groups(); ++i) {
      const auto strength = [&] {
        const auto& direction = directions[static_cast<std::size_t>(space++)];
        return direction.w * direction.z;
      };
      own_.push_back(!bias || s.members(i) > 1 ? strength() / std::sqrt(static_cast<double>(s.sizes[i])) : 0.0);
      if (bias) strengths.push_back(strength());
    }
    if (!bias || s.roots.empty()) return;  // U = V = I, or all classes have one size
    left_ = s.numerators(true);
    right_ = s.numerators(false);
    const Index m = s.groups(), roots = m - 1;
    for (Index r = 0; r < roots; ++r) {
      double left_squares = 0, right_squares = 0;
      for (Index i = 0; i < m; ++i) {
        const double gap = s.gap(i, r);
        left_squares += left_[i] / gap * (left_[i] / gap);
        right_squares += right_[i] / gap * (right_[i] / gap);
      }
      strengths[r] /= std::sqrt(left_squares) * std::sqrt(right_squares);
    }
    for (Index i = 0; i < m; ++i) {
      double same = 0, next = 0;
      for (Index r = 0; r < roots; ++r) {
        const double term = strengths[r] / s.gap(i, r);
        same += term / s.gap(i, r);
        if (i + 1 < m) next += term / s.gap(i + 1, r);
      }
      same_.push_back(same);
      next_.push_back(next);
    }
  }

  /// For every group i the logit of one of its classes at the mean of ANOTHER class of group j.
  std::vector<double> between(Index j) const {
    const Index m = s_.groups();
    std::vector<double> logits(static_cast<std::size_t>(m), 0.0);
    if (!bias_) return logits;
    if (!left_.empty()) {
      const auto set = [&](Index i, double quotient) {
        logits[i] = left_[i] * right_[j] * quotient /
                    std::sqrt(static_cast<double>(s_.members(i)) * static_cast<double>(s_.members(j)) *
                              static_cast<double>(s_.sizes[j]));
      };
      set(j, same_[j]);
      const auto steps = [&](Index step) {  // away from j, +1 or -1
        double sum = 0;
        for (Index i = j + step; i >= 0 && i < m; i += step) {
          const Index upper = step > 0 ? i - 1 : i;
          sum += next_[upper] * static_cast<double>(s_.sizes[upper] - s_.sizes[upper + 1]);
          set(i, sum / static_cast<double>(std::abs(s_.sizes[j] - s_.sizes[i])));
        }
      };
      steps(1);
      steps(-1);
    }
    logits[j] -= own_[j] / static_cast<double>(s_.members(j));
    for (Index i = 0; i < m; ++i) logits[i] += static_cast<double>(s_.sizes[i]) / static_cast<double>(s_.samples);
    return logits;
  }
  /// What a class of group j adds at its own mean.
  double own(Index j) const { return own_[j]; }

 private:
  const LabelSpectrum::Structure& s_;
  bool bias_;
  std::vector<double> own_;           // contrasts' share of a class's own logit, [m]
  std::vector<double> left_, right_;  // a, b; empty when there is no root
  std::vector<double> same_, next_;   // sum_r c_r/(s_i - x_r)^2 and D_i
};

/// Of every group of equal sizes, whether its classes are lost.
std::vector<bool> lost_groups(const LabelSpectrum::Structure& s, const std::vector<DirectionPrediction>& directions,
                              bool bias) {
  const GroupLogits logits(s, directions, bias);
  const Index m = s.groups();
  std::vector<bool> lost(static_cast<std::size_t>(m));
  for (Index j = 0; j < m; ++j) {
    const std::vector<double> others = logits.between(j);
    const double own = others[j] + logits.own(j);
    double rival = -std::numeric_limits<double>::infinity();
    for (Index i = 0; i < m; ++i)
      if (i != j || s.members(i) > 1) rival = std::max(rival, others[i]);
    if (std::isinf(rival)) continue;  // the only class
    const double rounding = 64 * kEps * (std::abs(own) + std::abs(rival));
    lost[j] = !(own > rival + rounding);
  }
  return lost;
}

// The columns of diag(v) U^T (left), or of diag(v) V^T, v the singular values `value` of the directions, up to a
// common factor. A class's column is what its group shares, and its own part: the group's contrasts, a part in which
// two of its l classes have the product -own^2/l.
struct GroupColumns {
  std::vector<double> shared;  ///< of a class of group i along the directions between groups, [m x m]
  std::vector<double> own;     ///< v of the group's contrasts, [m]

  GroupColumns(const LabelSpectrum::Structure& s, const std::vector<DirectionPrediction>& directions, bool left,
               double DirectionPrediction::*value) {
    const Index m = s.groups();
    const bool bias = s.model == LabelModel::with_bias;
    double largest = std::numeric_limits<double>::min();
    for (const auto& direction : directions) largest = std::max(largest, direction.*value);
    shared.resize(static_cast<std::size_t>(m * m));
    own.resize(static_cast<std::size_t>(m));
    const std::vector<double> vectors = bias ? s.group_vectors(left, 0, m) : std::vector<double>{};
    Index space = 0;
    for (Index r = 0; r < m; ++r) {  // group r and root r
      const auto next = [&] { return directions[static_cast<std::size_t>(space++)].*value / largest; };
      if (!bias || s.members(r) > 1) own[r] = next();
      if (!bias) {
        shared[r * m + r] = own[r] / std::sqrt(static_cast<double>(s.members(r)));
        continue;
      }
      const double between = next();
      for (Index i = 0; i < m; ++i)
        shared[i * m + r] = between * vectors[r * m + i] / std::sqrt(static_cast<double>(s.members(i)));
    }
  }

  /// Every class of group i times factors[i].
  void scale(const std::vector<double>& factors) {
    const auto m = static_cast<Index>(own.size());
    for (Index i = 0; i < m; ++i) {
      own[i] *= factors[i];
      for (Index r = 0; r < m; ++r) shared[i * m + r] *= factors[i];
    }
  }
  /// Less their mean, in which group i has the weight weights[i]: contrasts have no part in it. Differences are taken
  /// first, or nothing would be left of a group with nearly all of the weight.
  void centre(const std::vector<double>& weights) {
    const auto m = static_cast<Index>(own.size());
    const std::vector<double> from = shared;
    for (Index i = 0; i < m; ++i)
      for (Index r = 0; r < m; ++r) {
        shared[i * m + r] = 0;
        for (Index j = 0; j < m; ++j) shared[i * m + r] += weights[j] * (from[i * m + r] - from[j * m + r]);
      }
  }
  /// Of two classes, by group.
  std::vector<double> cosines(const LabelSpectrum::Structure& s) const {
    const auto m = static_cast<Index>(own.size());
    const auto dot = [&](Index i, Index j) {
      return std::inner_product(&shared[i * m], &shared[i * m] + m, &shared[j * m], 0.0);
    };
    std::vector<double> norms;
    for (Index i = 0; i < m; ++i) {
      const auto classes = static_cast<double>(s.members(i));
      norms.push_back(std::sqrt(dot(i, i) + own[i] * own[i] * (1 - 1 / classes)));
    }
    std::vector<double> all;
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < m; ++j) {
        const double inside = i == j ? own[i] * own[i] / static_cast<double>(s.members(i)) : 0.0;
        const bool defined = (i != j || s.members(i) > 1) && norms[i] > 0 && norms[j] > 0;
        all.push_back(defined ? std::clamp((dot(i, j) - inside) / (norms[i] * norms[j]), -1.0, 1.0)
                              : std::numeric_limits<double>::quiet_NaN());
      }
    return all;
  }
};

// Halves an interval of the products' logarithm as long as a group is lost at its upper end and not at its lower one.
// All groups share their evaluations.
class LossOfGroups {
 public:
  LossOfGroups(const LabelSpectrum& spectrum, const UfmOptions& options)
      : spectrum_(spectrum), options_(options), from_(spectrum.structure().groups(), kNever) {
    // w z depends on the product alone; with decays of 1 nothing overflows on the way to it.
    std::fill(options_.lambda_w.begin(), options_.lambda_w.end(), 1.0);
    options_.lambda_h = 1;
    double low = std::numeric_limits<double>::infinity(), high = -low;  // beyond all critical products nothing changes
    for (const auto& direction : directions_of(spectrum_, options_, Model(spectrum_.samples(), options_)))
      if (direction.sigma > 0) {
        low = std::min(low, direction.log10_critical_lambda_product * std::log(10.0));
        high = std::max(high, direction.log10_critical_lambda_product * std::log(10.0));
      }
    if (std::isinf(low)) return;                                      // one class
    low -= 30 * (static_cast<double>(options_.lambda_w.size()) + 1);  // there w z is sigma to 1e-13
    high += 1;
    const std::vector<bool> first = lost_at(low), last = lost_at(high);
    for (std::size_t j = 0; j < first.size(); ++j)
      if (first[j]) from_[j] = -kNever;
    halve(low, first, high, last);
  }
  const std::vector<double>& from() const { return from_; }

 private:
  static constexpr double kNever = std::numeric_limits<double>::infinity();

  std::vector<bool> lost_at(double log_product) const {
    Model model(spectrum_.samples(), options_);
    model.log_product = log_product;
    return lost_groups(spectrum_.structure(), directions_of(spectrum_, options_, model), options_.bias);
  }
  void halve(double low, const std::vector<bool>& lost_low, double high, const std::vector<bool>& lost_high) {
    if (lost_low == lost_high) return;
    const double middle = low + (high - low) / 2;
    if (high - low < 1e-13 || !(middle > low) || !(middle < high)) {
      for (std::size_t j = 0; j < from_.size(); ++j)
        if (lost_high[j] && !lost_low[j]) from_[j] = high;
      return;
    }
    const std::vector<bool> lost = lost_at(middle);
    halve(low, lost_low, middle, lost);
    halve(middle, lost, high, lost_high);
  }

  const LabelSpectrum& spectrum_;
  UfmOptions options_;
  std::vector<double> from_;
};

}  // namespace

Index UfmPrediction::rank() const {
  return std::accumulate(directions.begin(), directions.end(), Index{0},
                         [](Index sum, const auto& direction) { return sum + direction.surviving; });
}

UfmPrediction predict(const UfmOptions& options) {
  check(options);
  const LabelSpectrum spectrum(options.counts, options.label_model());
  const auto& s = spectrum.structure();
  UfmPrediction prediction;
  prediction.classes = spectrum.classes();
  prediction.samples = spectrum.samples();
  const Model model(spectrum.samples(), options);
  prediction.directions = directions_of(spectrum, options);
  for (const auto& direction : prediction.directions) {
    if (direction.sigma == 0) continue;
    const double share = direction.sigma * direction.sigma / (2 * model.samples);
    const auto alive = static_cast<double>(direction.surviving);
    prediction.minimum += share * (static_cast<double>(direction.multiplicity) - alive);
    if (alive > 0)
      prediction.minimum += share * alive * value_at(model.layers, model.log_alpha(direction.sigma), direction.x);
  }
  if (!std::isfinite(prediction.minimum)) throw UsageError("with these weight decays the minimum is not a number");
  if (options.bias)
    for (const Index count : spectrum.counts()) prediction.bias.push_back(static_cast<double>(count) / model.samples);

  if (cuts_through(prediction.directions)) return prediction;
  prediction.lost_classes.emplace();
  const std::vector<bool> lost = lost_groups(s, prediction.directions, options.bias);
  for (Index j = 0; j < s.groups(); ++j)
    if (lost[j])
      prediction.lost_classes->insert(prediction.lost_classes->end(), s.order.begin() + s.begin[j],
                                      s.order.begin() + s.begin[j + 1]);
  std::sort(prediction.lost_classes->begin(), prediction.lost_classes->end());
  return prediction;
}

std::vector<double> class_critical_lambda_products_log10(const UfmOptions& options) {
  check(options);
  if (options.width > 0)
    throw UsageError("critical products of classes are known without a limit of the width only", "leave the width 0");
  const LabelSpectrum spectrum(options.counts, options.label_model());
  const LossOfGroups loss(spectrum, options);
  const auto& s = spectrum.structure();
  std::vector<double> products(static_cast<std::size_t>(spectrum.classes()));
  for (Index j = 0; j < s.groups(); ++j)
    for (Index p = s.begin[j]; p < s.begin[j + 1]; ++p) products[s.order[p]] = loss.from()[j] / std::log(10.0);
  return products;
}

std::vector<double> predicted_logits(const UfmOptions& options) {
  check(options);
  const LabelSpectrum spectrum(options.counts, options.label_model());
  const auto directions = determined_directions(spectrum, options, "logits");
  const auto& s = spectrum.structure();
  const GroupLogits logits(s, directions, options.bias);
  const Index classes = spectrum.classes(), m = s.groups();
  std::vector<double> full(static_cast<std::size_t>(classes * classes));
  for (Index j = 0; j < m; ++j) {
    const std::vector<double> others = logits.between(j);
    for (Index q = s.begin[j]; q < s.begin[j + 1]; ++q)
      for (Index i = 0; i < m; ++i)
        for (Index p = s.begin[i]; p < s.begin[i + 1]; ++p)
          full[s.order[p] * classes + s.order[q]] = others[i] + (p == q ? logits.own(j) : 0.0);
  }
  return full;
}

PredictedCosines predicted_cosines(const UfmOptions& options, MeanCentre centre) {
  check(options);
  const LabelSpectrum spectrum(options.counts, options.label_model());
  const auto directions = determined_directions(spectrum, options, "cosines");
  const auto& s = spectrum.structure();
  GroupColumns means(s, directions, false, &DirectionPrediction::z);
  std::vector<double> inverse_roots, weights;
  for (Index i = 0; i < s.groups(); ++i) {
    const auto size = static_cast<double>(s.sizes[i]), classes = static_cast<double>(s.members(i));
    inverse_roots.push_back(1 / std::sqrt(size));
    weights.push_back(centre == MeanCentre::samples ? classes * size / static_cast<double>(spectrum.samples())
                                                    : classes / static_cast<double>(spectrum.classes()));
  }
  means.scale(inverse_roots);
  if (!options.bias || centre == MeanCentre::classes) means.centre(weights);  // else their mean is 0
  return {s.sizes, means.cosines(s), GroupColumns(s, directions, true, &DirectionPrediction::w).cosines(s)};
}

}  // namespace ncollapse
