// What weight decays may be.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "host/numbers.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

/// Throws UsageError unless all are positive; lambda_w: one for all layers, or one each.
inline void check_positive(const std::vector<double>& lambda_w, double lambda_h) {
  const auto check = [](double value, const std::string& name) {
    if (value > 0 && std::isfinite(value)) return;
    throw UsageError(name + " is " + text_of(value) + ", must be positive",
                     value == 0 ? "without weight decay the loss has no minimiser: it tends to 0 as the weights grow"
                                : "weight decays are positive numbers");
  };
  for (std::size_t l = 0; l < lambda_w.size(); ++l)
    check(lambda_w[l], lambda_w.size() == 1 ? "lambda_w" : "lambda_w of layer " + std::to_string(l + 1));
  check(lambda_h, "lambda_h");
}

}  // namespace ncollapse
