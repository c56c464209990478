#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "host/cli/commands.hpp"
#include "host/cli/output.hpp"
#include "host/cli/ufm_arguments.hpp"
#include "host/io/report_json.hpp"
#include "ncollapse/decomposition.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/metrics.hpp"
#include "ncollapse/theory.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse::cli {

namespace {

constexpr Index kMaxLogitClasses = 1000;  // K x K numbers above that help nobody
constexpr std::size_t kMaxTableRows = 40;
constexpr std::size_t kMaxLayerColumns = 3;
constexpr Index kMaxCriticalSizes = 100;  // of classes; the cube of their number is the time that it takes
constexpr Index kMaxTableCosines = 8;
constexpr double kDenseTolerance = 1e-9;

struct PredictOptions {
  UfmArguments ufm;
  Index dim = 0;
  bool dense = false;
  std::string device = "auto";
  int threads = 0;
};

/// The structured singular values beside those of the dense label matrix.
struct DenseComparison {
  std::string device;
  double max_relative_difference = 0;  ///< relative to sigma itself; where sigma = 0, to the largest
  double residual = 0, orthogonality = 0;
  double seconds = 0, structured_seconds = 0;
};

DenseComparison compare_with_dense(const UfmOptions& model, const PredictOptions& options) {
  using Clock = std::chrono::steady_clock;
  const Context context(Device::parse(options.device), {.threads = options.threads});
  const auto start = Clock::now();
  const std::vector<double> sigma = LabelSpectrum(model.counts, model.label_model()).sigma();
  const auto structured = Clock::now();
  const SingularValueDecomposition dense = decompose_label_matrix(context, model.counts, model.label_model());
  const auto end = Clock::now();

  DenseComparison result{to_string(context.info().device),
                         0,
                         dense.residual,
                         dense.orthogonality,
                         std::chrono::duration<double>(end - structured).count(),
                         std::chrono::duration<double>(structured - start).count()};
  // A dense solver knows small singular values only to within rounding of the largest.
  const double rounding = static_cast<double>(sigma.size()) * std::numeric_limits<double>::epsilon() * sigma.front();
  bool agree = true;
  for (std::size_t i = 0; i < sigma.size(); ++i) {
    const double difference = std::abs(dense.values[i] - sigma[i]), scale = sigma[i] > 0 ? sigma[i] : sigma.front();
    agree = agree && difference <= kDenseTolerance * scale + rounding;
    if (difference > 0) result.max_relative_difference = std::max(result.max_relative_difference, difference / scale);
  }
  if (!agree)
    throw Error(
        ErrorKind::internal,
        fmt::format("the singular values of the label matrix differ from its dense decomposition on {} by {:.3g} "
                    "relative, allowed {:.0e}",
                    result.device, result.max_relative_difference, kDenseTolerance));
  return result;
}

Index distinct_sizes(const UfmOptions& model) {
  return static_cast<Index>(std::set<Index>(model.counts.begin(), model.counts.end()).size());
}

/// Logarithms of the products from which classes are lost, [K]; empty where that is left out.
std::vector<double> class_critical(const UfmOptions& model) {
  if (model.width > 0 || distinct_sizes(model) > kMaxCriticalSizes) return {};
  return class_critical_lambda_products_log10(model);
}

// A product of weight decays, which may be too small for a double.
std::string product_text(double log10_product) {
  if (std::isinf(log10_product)) return log10_product > 0 ? "never" : "0";
  const double product = std::pow(10.0, log10_product);
  return product < std::numeric_limits<double>::min() ? fmt::format("1e{:.2f}", log10_product)
                                                      : fmt::format("{:.6g}", product);
}

Json to_json(const UfmOptions& model, const UfmPrediction& prediction, const std::optional<DenseComparison>& dense) {
  Json sigma = Json::array(), w = Json::array(), z = Json::array(), survives = Json::array(), critical = Json::array(),
       critical_log10 = Json::array(), threshold = Json::array();
  std::vector<Json> layers(model.lambda_w.size(), Json::array());
  for (const auto& direction : prediction.directions)
    for (Index i = 0; i < direction.multiplicity; ++i) {
      const bool alive = i < direction.surviving;
      sigma.push_back(direction.sigma);
      w.push_back(alive ? direction.w : 0.0);
      z.push_back(alive ? direction.z : 0.0);
      survives.push_back(alive);
      critical.push_back(direction.critical_lambda_product);
      critical_log10.push_back(direction.sigma > 0 ? Json(direction.log10_critical_lambda_product) : Json(nullptr));
      threshold.push_back(direction.at_threshold);
      for (std::size_t l = 0; l < layers.size(); ++l)
        layers[l].push_back(alive ? direction.layer_singular_values[l] : 0.0);
    }
  Json json;
  json["schema"] = "ncollapse.prediction/1";
  json["tool"] = {{"name", "ncollapse"}, {"version", version()}};
  json["model"] = model_json(model, prediction);
  json["minimum"] = prediction.minimum;
  json["sigma"] = std::move(sigma);
  json["survives"] = std::move(survives);
  json["at_threshold"] = std::move(threshold);
  json["w"] = std::move(w);
  json["z"] = std::move(z);
  json["layer_singular_values"] = std::move(layers);
  json["critical_lambda_product"] = std::move(critical);
  json["critical_lambda_product_log10"] = std::move(critical_log10);
  json["bias"] = model.bias ? Json(prediction.bias) : Json(nullptr);
  json["lost_classes"] = prediction.lost_classes ? Json(*prediction.lost_classes) : Json(nullptr);
  const std::vector<double> class_products = class_critical(model);
  json["class_critical_lambda_product_log10"] = nullptr;
  if (class_products.empty())
    json["status"]["class_critical_lambda_product_log10"] =
        fmt::format("computed without --dim, for at most {} distinct class sizes", kMaxCriticalSizes);
  else
    json["class_critical_lambda_product_log10"] = Json::array();
  for (const double product : class_products)  // null: never lost
    json["class_critical_lambda_product_log10"].push_back(std::isfinite(product) ? Json(product) : Json(nullptr));
  if (dense)
    json["dense"] = {{"device", dense->device},     {"max_relative_difference", dense->max_relative_difference},
                     {"residual", dense->residual}, {"orthogonality", dense->orthogonality},
                     {"seconds", dense->seconds},   {"structured_seconds", dense->structured_seconds}};
  json["cosines"] = nullptr;
  json["class_mean_logits"] = nullptr;
  if (!prediction.lost_classes) {
    for (const auto* key : {"lost_classes", "cosines", "class_mean_logits"})
      json["status"][key] = "the width cuts through an eigenspace, so the minimiser does not determine it";
    return json;
  }
  if (distinct_sizes(model) <= BlockCosines::kMostSizes) {
    const PredictedCosines cosines = predicted_cosines(model);
    json["cosines"] = {{"sizes", cosines.sizes},
                       {"h", square_json(cosines.h, cosines.sizes.size())},
                       {"w", square_json(cosines.w, cosines.sizes.size())}};
  } else {
    json["status"]["cosines"] = fmt::format("left out above {} distinct class sizes", BlockCosines::kMostSizes);
  }
  if (prediction.classes <= kMaxLogitClasses)
    json["class_mean_logits"] = square_json(predicted_logits(model), static_cast<std::size_t>(prediction.classes));
  else
    json["status"]["class_mean_logits"] = fmt::format("left out above {} classes", kMaxLogitClasses);
  return json;
}

std::string list(const std::vector<Index>& values, std::size_t most) {
  std::string text;
  for (std::size_t i = 0; i < std::min(values.size(), most); ++i)
    text += (i > 0 ? ", " : "") + std::to_string(values[i]);
  if (values.size() > most) text += fmt::format(", ... ({} in all)", values.size());
  return text;
}

/// Logits at the predicted class means, by class size: classes of equal size have the same.
std::string logits_table(const UfmOptions& model, const UfmPrediction& prediction) {
  const auto logits = predicted_logits(model);
  std::map<Index, std::vector<Index>, std::greater<>> classes_of;
  for (Index k = 0; k < prediction.classes; ++k) classes_of[model.counts[static_cast<std::size_t>(k)]].push_back(k);
  const std::vector<double> critical = class_critical(model);
  std::string text = fmt::format("\n{:>14} {:>6} {:>13} {:>13} {:>13} {:>5} {:>13}\n", "class size", "times", "bias",
                                 "own logit", "largest other", "lost", critical.empty() ? "" : "lost from");
  std::size_t rows = 0;
  for (const auto& [size, members] : classes_of) {
    if (rows++ == kMaxTableRows) {
      text += fmt::format("  ... {} more, see --json\n", classes_of.size() - kMaxTableRows);
      break;
    }
    const Index k = members.front();
    double other = -std::numeric_limits<double>::infinity();
    for (Index j = 0; j < prediction.classes; ++j)
      if (j != k) other = std::max(other, logits[j * prediction.classes + k]);
    const bool lost = std::binary_search(prediction.lost_classes->begin(), prediction.lost_classes->end(), k);
    text +=
        fmt::format("{:>14} {:>6} {:>13.6g} {:>13.6g} {:>13} {:>5} {:>13}\n", size, members.size(),
                    model.bias ? prediction.bias[static_cast<std::size_t>(k)] : 0.0, logits[k * prediction.classes + k],
                    prediction.classes > 1 ? fmt::format("{:.6g}", other) : "-", lost ? "yes" : "no",
                    critical.empty() ? "" : product_text(critical[static_cast<std::size_t>(k)]));
  }
  text += "logits at the class's own predicted mean; a class is lost when another one's reaches its own";
  return text + (critical.empty() ? "\n" : ";\nlost from: the lambda_h times all lambda_w at which that begins\n");
}

std::string cosines_table(const UfmOptions& model) {
  const PredictedCosines cosines = predicted_cosines(model);
  const std::size_t groups = cosines.sizes.size();
  const std::size_t width = std::max<std::size_t>(9, std::to_string(cosines.sizes.front()).size());
  const auto text_of = [](double cosine) {
    return std::isnan(cosine) ? "-" : fmt::format("{:.4f}", std::round(cosine * 1e4) / 1e4 + 0.0);  // no -0.0000
  };
  std::string text;
  for (const auto& [title, values] : {std::pair{"of class means", &cosines.h}, {"of classifiers", &cosines.w}}) {
    text += fmt::format("\n{:>14}", title);
    for (const Index size : cosines.sizes) text += fmt::format(" {:>{}}", size, width);
    for (std::size_t i = 0; i < values->size(); ++i) {
      if (i % groups == 0) text += fmt::format("\n{:>14}", cosines.sizes[i / groups]);
      text += fmt::format(" {:>{}}", text_of((*values)[i]), width);
    }
    text += "\n";
  }
  return text + "cosines of two classes of these sizes; class means less the mean of all samples\n";
}

std::string to_table(const UfmOptions& model, const UfmPrediction& prediction,
                     const std::optional<DenseComparison>& dense) {
  const auto layers = model.lambda_w.size();
  const bool equal = std::all_of(model.lambda_w.begin(), model.lambda_w.end(),
                                 [&](double lambda) { return lambda == model.lambda_w.front(); });
  std::string text = fmt::format(
      "global minimiser of the unconstrained feature model, {} bias\n"
      "K = {} classes, N = {} samples, L = {}, lambda_w = {}, lambda_h = {}{}\n\n"
      "predicted minimum of the loss   {:.10g}\n",
      model.bias ? "with" : "without", prediction.classes, prediction.samples, layers,
      equal ? fmt::format("{}", model.lambda_w.front()) : fmt::format("{}", fmt::join(model.lambda_w, ", ")),
      model.lambda_h, model.width > 0 ? fmt::format(", width {}", model.width) : "", prediction.minimum);
  text += fmt::format("surviving directions            {} of {}\n", prediction.rank(), prediction.classes);
  if (!prediction.lost_classes)
    text += "lost classes                    not determined: the width cuts through an eigenspace\n";
  else if (prediction.lost_classes->empty())
    text += "lost classes                    none\n";
  else
    text += fmt::format("lost classes                    {}\n", list(*prediction.lost_classes, 20));
  if (dense)
    text += fmt::format(
        "dense decomposition on {:<8} sigma differs by {:.1e} relative (the zero one: to the largest)\n"
        "                                residual {:.1e}, orthogonality {:.1e}, {:.3g} s (structured: {:.3g} s)\n",
        dense->device, dense->max_relative_difference, dense->residual, dense->orthogonality, dense->seconds,
        dense->structured_seconds);
  const std::size_t columns = equal ? 1 : std::min(layers, kMaxLayerColumns);
  text += fmt::format("\n{:>14} {:>6} {:>9} {:>13} {:>13}", "sigma", "times", "survives", "w", "z");
  for (std::size_t l = 0; l < columns; ++l)
    text += fmt::format(" {:>13}", equal ? "each layer" : fmt::format("layer {}", l + 1));
  text += fmt::format(" {:>16}\n", "critical lambdas");
  double log10_product = std::log10(model.lambda_h);
  for (const double lambda : model.lambda_w) log10_product += std::log10(lambda);
  const bool full = model.width > 0 && prediction.rank() == model.width;
  std::size_t rows = 0;
  for (const auto& direction : prediction.directions) {
    if (rows++ == kMaxTableRows) {
      text += fmt::format("  ... {} more, see --json\n", prediction.directions.size() - kMaxTableRows);
      break;
    }
    const std::string survives = direction.at_threshold                          ? "threshold"
                                 : direction.surviving == direction.multiplicity ? "yes"
                                 : direction.surviving > 0 ? fmt::format("{}", direction.surviving)
                                 : full && log10_product < direction.log10_critical_lambda_product ? "no room"
                                                                                                   : "no";
    text += fmt::format("{:>14.9g} {:>6} {:>9} {:>13.6g} {:>13.6g}", direction.sigma, direction.multiplicity, survives,
                        direction.w, direction.z);
    for (std::size_t l = 0; l < columns; ++l) text += fmt::format(" {:>13.6g}", direction.layer_singular_values[l]);
    text += fmt::format(" {:>16}\n", product_text(direction.log10_critical_lambda_product));
  }
  text +=
      "sigma: of the label matrix; w, z: predicted singular values of W_L...W_1 and of class means times sqrt(n);\n"
      "critical lambdas: largest lambda_h times all lambda_w at which the direction survives, if the width has room\n";
  if (columns + 1 == layers && !equal)
    text += fmt::format("layer {} is in the JSON output\n", layers);
  else if (columns < layers && !equal)
    text += fmt::format("layers {} to {} are in the JSON output\n", columns + 1, layers);
  if (prediction.lost_classes && prediction.classes <= kMaxLogitClasses) text += logits_table(model, prediction);
  if (prediction.lost_classes && distinct_sizes(model) <= kMaxTableCosines) text += cosines_table(model);
  return text;
}

void run(const PredictOptions& options, const Common& common) {
  check_output(common.json);
  spare_inputs({FileList(options.ufm.counts_from)}, "--json", common.json);
  UfmOptions model = ufm_options(options.ufm);
  model.width = options.dim;
  const UfmPrediction prediction = predict(model);
  std::optional<DenseComparison> dense;
  if (options.dense) dense = compare_with_dense(model, options);
  if (!common.json.empty()) write_output(common.json, to_json(model, prediction, dense).dump(2) + "\n");
  if (common.json == "-") return;
  write_output("-", to_table(model, prediction, dense));
  if (!common.json.empty()) write_output("-", fmt::format("\nJSON written to {}\n", common.json));
}

}  // namespace

void add_predict(CLI::App& app, Common& common) {
  auto options = std::make_shared<PredictOptions>();
  CLI::App* command = app.add_subcommand(
      "predict", "What collapse should look like: the global minimiser of the unconstrained feature model");
  add_ufm_arguments(*command, options->ufm);
  command->add_option("--dim", options->dim, "Smallest width of features and layers; default: no limit")
      ->transform(kAtLeastOne)
      ->type_name("D");
  CLI::Option* dense = command->add_flag(
      "--dense", options->dense, "Also decompose the dense label matrix and fail where its singular values differ");
  command->add_option("--device", options->device, "Where --dense computes: auto, cpu, cuda or cuda:N")
      ->capture_default_str()
      ->needs(dense)
      ->type_name("NAME");
  command->add_option("--threads", options->threads, "CPU threads of --dense; default: all cores")
      ->transform(kAtLeastOne)
      ->needs(dense)
      ->type_name("T");
  command->add_option("--json", common.json, "Write the prediction as JSON; - is standard output")->type_name("FILE");
  command->footer(
      "Example:\n"
      "  ncollapse predict --counts 500,500,400,400,300,300,200,200,100,100 --layers 3 \\\n"
      "      --lambda-w 1e-5 --lambda-h 1e-5\n");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace ncollapse::cli
