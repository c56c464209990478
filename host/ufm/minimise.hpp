// The optimisers behind simulate(). They know nothing of the model.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "ncollapse/types.hpp"

namespace ncollapse {

/// f(x), and its gradient into the second argument.
using Objective = std::function<double(std::span<const double>, std::span<double>)>;

/// A point that an optimiser has accepted.
struct Iterate {
  Index iteration = 0;  ///< 0: the start
  double loss = 0;
  std::span<const double> x, gradient;
};

/// False ends the run at this point. May throw.
using OnIterate = std::function<bool(const Iterate&)>;

constexpr int kLbfgsHistory = 20;  // pairs of vectors

enum class MinimiseEnd { asked, no_progress };

/// Both start from x, call `on_iterate` with the start and with every point they accept, and leave the last of these in
/// x.
MinimiseEnd minimise_lbfgs(const Objective& objective, std::vector<double>& x, const OnIterate& on_iterate);
MinimiseEnd minimise_gd(const Objective& objective, std::vector<double>& x, const OnIterate& on_iterate);

}  // namespace ncollapse
