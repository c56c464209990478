#include "host/cli/ufm_arguments.hpp"

#include <fmt/core.h>

#include <algorithm>

#include "host/cli/commands.hpp"
#include "host/label_survey.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cli {

namespace {

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(' ');
  return first == text.npos ? "" : text.substr(first, text.find_last_not_of(' ') + 1 - first);
}

// "500,300,100 x 3": three classes of 100 samples behind the others.
std::vector<Index> parse_counts(const std::string& text) {
  std::vector<Index> counts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string word = trimmed(text.substr(begin, end - begin));
    const std::string wrong = "--counts: '" + word + "' is not a number of samples",
                      right = "write --counts 500,300,100, or 100x3 for 100,100,100";
    const std::size_t cross = std::min(word.find('x'), word.size());
    const auto samples = parse_number<Index>(trimmed(word.substr(0, cross)), wrong, right);
    const auto classes = cross < word.size() ? parse_number<Index>(trimmed(word.substr(cross + 1)), wrong, right) : 1;
    if (classes < 1) throw UsageError(wrong, right);
    if (classes > kMaxClasses - static_cast<Index>(counts.size()))
      throw UsageError(fmt::format("--counts has more than {} classes", kMaxClasses));
    counts.insert(counts.end(), static_cast<std::size_t>(classes), samples);
    begin = end + 1;
  }
  return counts;
}

std::vector<Index> count_labels(const std::string& spec) {
  ArrayFile file = ArrayFile::open(spec, ArrayRole::labels);
  LabelSurvey labels;
  labels.add(file, 0, file.rows());
  if (labels.counts.empty()) throw DataError(file.name() + ": holds no labels");
  for (std::size_t k = 0; k < labels.counts.size(); ++k)
    if (labels.counts[k] == 0)
      throw DataError(file.name() + ": class " + std::to_string(k) + " has no samples, the theory needs every class",
                      "number the classes that occur from 0 to K-1");
  return labels.counts;
}

}  // namespace

void add_ufm_arguments(CLI::App& command, UfmArguments& arguments) {
  command
      .add_option("--counts", arguments.counts,
                  "Samples of every class, separated by commas; NxM stands for M classes of N")
      ->type_name("N1,N2,...");
  command.add_option("--counts-from", arguments.counts_from, "Count them in a file of labels")->type_name("FILE[:KEY]");
  command.add_option("--layers", arguments.layers, "L, linear layers above the features")
      ->capture_default_str()
      ->transform(kAtLeastOne)
      ->type_name("L");
  command
      .add_option("--lambda-w", arguments.lambda_w, "Weight decay of the layers: one for all, or one each, W_1 first")
      ->required()
      ->delimiter(',')
      ->type_name("X");
  command.add_option("--lambda-h", arguments.lambda_h, "Weight decay of the features")->required()->type_name("X");
  command.add_flag("--no-bias", arguments.no_bias, "The last layer has no bias");
}

UfmOptions ufm_options(const UfmArguments& arguments) {
  if (arguments.counts.empty() == arguments.counts_from.empty())
    throw UsageError(arguments.counts.empty() ? "neither --counts nor --counts-from is given"
                                              : "both --counts and --counts-from are given, one is needed",
                     "write --counts 500,300,100");
  const auto layers = static_cast<std::size_t>(arguments.layers);
  if (arguments.lambda_w.size() != 1 && arguments.lambda_w.size() != layers)
    throw UsageError(fmt::format("--lambda-w has {} values for {} layer{}", arguments.lambda_w.size(), layers,
                                 layers == 1 ? "" : "s"),
                     "give one for all layers, or one for each, W_1 first");
  UfmOptions model;
  model.counts = arguments.counts.empty() ? count_labels(arguments.counts_from) : parse_counts(arguments.counts);
  model.lambda_w = arguments.lambda_w.size() == layers ? arguments.lambda_w
                                                       : std::vector<double>(layers, arguments.lambda_w.front());
  model.lambda_h = arguments.lambda_h;
  model.bias = !arguments.no_bias;
  return model;
}

nlohmann::ordered_json model_json(const UfmOptions& model, const UfmPrediction& prediction) {
  using Json = nlohmann::ordered_json;
  return {{"K", prediction.classes},
          {"N", prediction.samples},
          {"layers", model.lambda_w.size()},
          {"lambda_w", model.lambda_w},
          {"lambda_h", model.lambda_h},
          {"with_bias", model.bias},
          {"width", model.width > 0 ? Json(model.width) : Json(nullptr)},
          {"counts", model.counts}};
}

}  // namespace ncollapse::cli
