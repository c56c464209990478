// The unconstrained feature model on the command line: what `predict` and `simulate` share.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ncollapse/theory.hpp"

namespace ncollapse::cli {

struct UfmArguments {
  std::string counts, counts_from;
  Index layers = 1;
  std::vector<double> lambda_w;
  double lambda_h = 0;
  bool no_bias = false;
};

/// --counts, --counts-from, --layers, --lambda-w, --lambda-h and --no-bias.
void add_ufm_arguments(CLI::App& command, UfmArguments& arguments);

/// The model they describe, without a width. Reads the labels of --counts-from. Throws UsageError and DataError.
UfmOptions ufm_options(const UfmArguments& arguments);

nlohmann::ordered_json model_json(const UfmOptions& model, const UfmPrediction& prediction);

}  // namespace ncollapse::cli
