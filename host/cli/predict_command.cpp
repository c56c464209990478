#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "host/cli/commands.hpp"
#include "host/cli/output.hpp"
#include "ncollapse/array_file.hpp"
#include "ncollapse/decomposition.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/theory.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr Index kMaxLogitClasses = 1000;  // K x K numbers above that help nobody
constexpr std::size_t kMaxTableRows = 40;
constexpr double kDenseTolerance = 1e-9;

struct PredictOptions {
  std::string counts, counts_from;
  Index layers = 1;
  std::vector<double> lambda_w;
  double lambda_h = 0;
  bool no_bias = false;
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

std::vector<Index> parse_counts(const std::string& text) {
  std::vector<Index> counts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    Index value = 0;
    const auto [stop, status] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (status != std::errc{} || stop != word.data() + word.size())
      throw UsageError("--counts: '" + word + "' is not a number of samples", "write --counts 500,300,100");
    counts.push_back(value);
    begin = end + 1;
  }
  return counts;
}

std::vector<Index> count_labels(const std::string& spec) {
  ArrayFile file = ArrayFile::open(spec, ArrayRole::labels);
  constexpr Index kBlock = Index{1} << 20, kMaxClasses = Index{1} << 28;
  std::vector<Index> counts;
  for (Index first = 0; first < file.rows(); first += kBlock) {
    const LabelView labels = file.read_labels(first, std::min(kBlock, file.rows() - first));
    for (Index i = 0; i < labels.size; ++i) {
      const Index label = label_at(labels, i);
      if (label < 0 || label >= kMaxClasses)
        throw DataError(
            file.name() + ": the label at row " + std::to_string(first + i) + " is " + std::to_string(label),
            "labels are class numbers from 0 to K-1");
      if (label >= static_cast<Index>(counts.size())) counts.resize(static_cast<std::size_t>(label) + 1);
      ++counts[label];
    }
  }
  if (counts.empty()) throw DataError(file.name() + ": holds no labels");
  for (std::size_t k = 0; k < counts.size(); ++k)
    if (counts[k] == 0)
      throw DataError(file.name() + ": class " + std::to_string(k) + " has no samples, the theory needs every class",
                      "number the classes that occur from 0 to K-1");
  return counts;
}

UfmOptions model_of(const PredictOptions& options) {
  if (options.counts.empty() == options.counts_from.empty())
    throw UsageError("give either --counts or --counts-from", "write --counts 500,300,100");
  const auto layers = static_cast<std::size_t>(options.layers);
  if (options.lambda_w.size() != 1 && options.lambda_w.size() != layers)
    throw UsageError(fmt::format("--lambda-w has {} values for {} layers", options.lambda_w.size(), layers),
                     "give one for all layers, or one for each, W_1 first");
  UfmOptions model;
  model.counts = options.counts.empty() ? count_labels(options.counts_from) : parse_counts(options.counts);
  model.lambda_w =
      options.lambda_w.size() == layers ? options.lambda_w : std::vector<double>(layers, options.lambda_w.front());
  model.lambda_h = options.lambda_h;
  model.bias = !options.no_bias;
  model.width = options.dim;
  return model;
}

DenseComparison compare_with_dense(const UfmOptions& model, const PredictOptions& options) {
  using Clock = std::chrono::steady_clock;
  const Context context(Device::parse(options.device), {.threads = options.threads});
  const auto matrix = model.bias ? LabelModel::with_bias : LabelModel::without_bias;
  const auto start = Clock::now();
  const std::vector<double> sigma = LabelSpectrum(model.counts, matrix).sigma();
  const auto structured = Clock::now();
  const SingularValueDecomposition dense = decompose_label_matrix(context, model.counts, matrix);
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

std::string to_json(const UfmOptions& model, const UfmPrediction& prediction,
                    const std::optional<DenseComparison>& dense) {
  Json sigma = Json::array(), w = Json::array(), z = Json::array(), survives = Json::array(), critical = Json::array(),
       threshold = Json::array();
  std::vector<Json> layers(model.lambda_w.size(), Json::array());
  for (const auto& direction : prediction.directions)
    for (Index i = 0; i < direction.multiplicity; ++i) {
      const bool alive = i < direction.surviving;
      sigma.push_back(direction.sigma);
      w.push_back(alive ? direction.w : 0.0);
      z.push_back(alive ? direction.z : 0.0);
      survives.push_back(alive);
      critical.push_back(direction.critical_lambda_product);
      threshold.push_back(direction.at_threshold);
      for (std::size_t l = 0; l < layers.size(); ++l)
        layers[l].push_back(alive ? direction.layer_singular_values[l] : 0.0);
    }
  Json json;
  json["schema"] = "ncollapse.prediction/1";
  json["tool"] = {{"name", "ncollapse"}, {"version", version()}};
  json["model"] = {{"K", prediction.classes},
                   {"N", prediction.samples},
                   {"layers", model.lambda_w.size()},
                   {"lambda_w", model.lambda_w},
                   {"lambda_h", model.lambda_h},
                   {"with_bias", model.bias},
                   {"width", model.width > 0 ? Json(model.width) : Json(nullptr)},
                   {"counts", model.counts}};
  json["minimum"] = prediction.minimum;
  json["sigma"] = std::move(sigma);
  json["survives"] = std::move(survives);
  json["at_threshold"] = std::move(threshold);
  json["w"] = std::move(w);
  json["z"] = std::move(z);
  json["layer_singular_values"] = std::move(layers);
  json["critical_lambda_product"] = std::move(critical);
  json["bias"] = model.bias ? Json(prediction.bias) : Json(nullptr);
  json["lost_classes"] = prediction.lost_classes ? Json(*prediction.lost_classes) : Json(nullptr);
  json["class_mean_logits"] = nullptr;
  if (!prediction.lost_classes) {
    json["status"]["lost_classes"] = "the width cuts through an eigenspace, so the minimiser does not determine it";
    json["status"]["class_mean_logits"] = json["status"]["lost_classes"];
  } else if (prediction.classes > kMaxLogitClasses) {
    json["status"]["class_mean_logits"] = fmt::format("left out above {} classes", kMaxLogitClasses);
  } else {
    const auto logits = predicted_logits(model);
    Json rows = Json::array();
    for (Index k = 0; k < prediction.classes; ++k)
      rows.push_back(
          std::vector<double>(logits.begin() + k * prediction.classes, logits.begin() + (k + 1) * prediction.classes));
    json["class_mean_logits"] = std::move(rows);
  }
  if (dense)
    json["dense"] = {{"device", dense->device},     {"max_relative_difference", dense->max_relative_difference},
                     {"residual", dense->residual}, {"orthogonality", dense->orthogonality},
                     {"seconds", dense->seconds},   {"structured_seconds", dense->structured_seconds}};
  return json.dump(2) + "\n";
}

std::string list(const std::vector<Index>& values, std::size_t most) {
  std::string text;
  for (std::size_t i = 0; i < std::min(values.size(), most); ++i)
    text += (i > 0 ? ", " : "") + std::to_string(values[i]);
  if (values.size() > most) text += fmt::format(", ... ({} in all)", values.size());
  return text;
}

std::string to_table(const UfmOptions& model, const UfmPrediction& prediction,
                     const std::optional<DenseComparison>& dense) {
  const auto layers = model.lambda_w.size();
  const bool equal = std::all_of(model.lambda_w.begin(), model.lambda_w.end(),
                                 [&](double lambda) { return lambda == model.lambda_w.front(); });
  std::string text = fmt::format(
      "global minimiser of the unconstrained feature model, {} bias\n"
      "K = {} classes, N = {} samples, L = {} layer(s), lambda_w = {}, lambda_h = {}{}\n\n"
      "predicted minimum of the loss   {:.10g}\n",
      model.bias ? "with" : "without", prediction.classes, prediction.samples, layers,
      equal ? fmt::format("{}", model.lambda_w.front()) : "one per layer", model.lambda_h,
      model.width > 0 ? fmt::format(", width {}", model.width) : "", prediction.minimum);
  Index alive = 0;
  for (const auto& direction : prediction.directions) alive += direction.surviving;
  text += fmt::format("surviving directions            {} of {}\n", alive, prediction.classes);
  if (!prediction.lost_classes)
    text += "lost classes                    not determined: the width cuts through an eigenspace\n";
  else if (prediction.lost_classes->empty())
    text += "lost classes                    none\n";
  else
    text += fmt::format("lost classes                    {}\n", list(*prediction.lost_classes, 20));
  if (model.bias) {
    const auto [low, high] = std::minmax_element(prediction.bias.begin(), prediction.bias.end());
    text += fmt::format("bias                            n_k/N, from {:.6g} to {:.6g}\n", *low, *high);
  }
  if (dense)
    text += fmt::format(
        "dense decomposition on {:<8} sigma differs by {:.1e} relative (the zero one: to the largest)\n"
        "                                residual {:.1e}, orthogonality {:.1e}, {:.3g} s (structured: {:.3g} s)\n",
        dense->device, dense->max_relative_difference, dense->residual, dense->orthogonality, dense->seconds,
        dense->structured_seconds);
  text += fmt::format("\n{:>14} {:>6} {:>9} {:>13} {:>13} {:>13} {:>16}\n", "sigma", "times", "survives", "w", "z",
                      equal ? "each layer" : "first layer", "critical lambdas");
  std::size_t rows = 0;
  for (const auto& direction : prediction.directions) {
    if (rows++ == kMaxTableRows) {
      text += fmt::format("  ... {} more, see --json\n", prediction.directions.size() - kMaxTableRows);
      break;
    }
    const std::string survives = direction.at_threshold     ? "threshold"
                                 : direction.surviving == 0 ? "no"
                                 : direction.surviving == direction.multiplicity
                                     ? "yes"
                                     : fmt::format("{}", direction.surviving);
    text += fmt::format("{:>14.9g} {:>6} {:>9} {:>13.6g} {:>13.6g} {:>13.6g} {:>16.6g}\n", direction.sigma,
                        direction.multiplicity, survives, direction.w, direction.z,
                        direction.layer_singular_values.front(), direction.critical_lambda_product);
  }
  return text +
         "\nsigma: of the label matrix; w, z: predicted singular values of W_L...W_1 and of class means times "
         "sqrt(n);\n"
         "critical lambdas: largest lambda_h times all lambda_w at which the direction survives\n";
}

void run(const PredictOptions& options, const Common& common) {
  check_output(common.json);
  const UfmOptions model = model_of(options);
  const UfmPrediction prediction = predict(model);
  std::optional<DenseComparison> dense;
  if (options.dense) dense = compare_with_dense(model, options);
  if (!common.json.empty()) write_output(common.json, to_json(model, prediction, dense));
  if (common.json == "-") return;
  write_output("-", to_table(model, prediction, dense));
  if (!common.json.empty()) write_output("-", fmt::format("\nJSON written to {}\n", common.json));
}

}  // namespace

void add_predict(CLI::App& app, Common& common) {
  auto options = std::make_shared<PredictOptions>();
  CLI::App* command = app.add_subcommand(
      "predict", "What collapse should look like: the global minimiser of the unconstrained feature model");
  command->add_option("--counts", options->counts, "Samples of every class, separated by commas")
      ->type_name("N1,N2,...");
  command->add_option("--counts-from", options->counts_from, "Count them in a file of labels")->type_name("FILE[:KEY]");
  command->add_option("--layers", options->layers, "L, linear layers above the features")
      ->capture_default_str()
      ->check(kAtLeastOne)
      ->type_name("L");
  command
      ->add_option("--lambda-w", options->lambda_w, "Weight decay of the layers: one for all, or one each, W_1 first")
      ->required()
      ->type_name("X");
  command->add_option("--lambda-h", options->lambda_h, "Weight decay of the features")->required()->type_name("X");
  command->add_flag("--no-bias", options->no_bias, "The last layer has no bias");
  command->add_option("--dim", options->dim, "Smallest width of features and layers; default: no limit")
      ->check(kAtLeastOne)
      ->type_name("D");
  CLI::Option* dense = command->add_flag(
      "--dense", options->dense, "Also decompose the dense label matrix and fail where its singular values differ");
  command->add_option("--device", options->device, "Where --dense computes: auto, cpu, cuda or cuda:N")
      ->capture_default_str()
      ->needs(dense)
      ->type_name("NAME");
  command->add_option("--threads", options->threads, "CPU threads of --dense; default: all cores")
      ->check(kAtLeastOne)
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
