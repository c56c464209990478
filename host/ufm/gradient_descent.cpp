// Gradient descent. A step t is accepted when f(x - t g) <= f(x) - c t |g|^2 (Armijo 1966), else halved; after it, t
// grows by a fifth, so that it follows the curvature along the way. Where c t |g|^2 has come below the rounding of f
// without being accepted, or the step no longer changes x, the loss cannot be lowered any further.
#include <limits>
#include <numeric>

#include "host/ufm/minimise.hpp"

namespace ncollapse {

namespace {

constexpr double kSufficientDecrease = 1e-4, kShrink = 0.5, kGrow = 1.2;

}  // namespace

MinimiseEnd minimise_gd(const Objective& objective, std::vector<double>& x, const OnIterate& on_iterate) {
  std::vector<double> gradient(x.size()), trial(x.size()), trial_gradient(x.size());
  double loss = objective(x, gradient);
  double step = 1;
  for (Index iteration = 0;; ++iteration) {
    if (!on_iterate({iteration, loss, x, gradient})) return MinimiseEnd::asked;
    const double slope = std::inner_product(gradient.begin(), gradient.end(), gradient.begin(), 0.0);
    for (;; step *= kShrink) {
      bool moves = false;
      for (std::size_t i = 0; i < x.size(); ++i) {
        trial[i] = x[i] - step * gradient[i];
        moves = moves || trial[i] != x[i];
      }
      if (!moves) return MinimiseEnd::no_progress;
      const double trial_loss = objective(trial, trial_gradient);
      if (trial_loss <= loss - kSufficientDecrease * step * slope && trial_loss < loss) {
        loss = trial_loss;
        break;
      }
      if (step * slope <= std::numeric_limits<double>::epsilon() * loss) return MinimiseEnd::no_progress;
    }
    x.swap(trial);
    gradient.swap(trial_gradient);
    step *= kGrow;
  }
}

}  // namespace ncollapse
