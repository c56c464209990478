#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "host/backend.hpp"
#include "host/classifier_product.hpp"
#include "host/numbers.hpp"
#include "host/ufm/minimise.hpp"
#include "ncollapse/accumulator.hpp"
#include "ncollapse/decisions.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/ufm.hpp"

namespace ncollapse {

namespace {

constexpr double kDifference = 1e-3;  // of the largest predicted value

void check(const SimulationOptions& options) {
  if (options.model.counts.size() == 1) throw UsageError("there is 1 class, must be at least 2");
  if (options.iterations < 1)
    throw UsageError("iterations is " + std::to_string(options.iterations) + ", must be at least 1");
  if (options.measure_every < 1)
    throw UsageError("measure_every is " + std::to_string(options.measure_every) + ", must be at least 1");
  if (const auto scale = options.start_scale; scale && (!(*scale > 0) || !std::isfinite(*scale)))
    throw UsageError("the start scale is " + text_of(*scale) + ", must be positive");
  if (!(options.gradient_tolerance >= 0) || !std::isfinite(options.gradient_tolerance))
    throw UsageError("the gradient tolerance is " + text_of(options.gradient_tolerance) +
                     ", must be a number of at least 0");
}

/// Everything a run needs, before any of it is allocated: the system promises memory that it may not have. Counted in
/// floating point, which does not overflow; wrong counts are left to predict().
void check_memory(const Backend& backend, const SimulationOptions& options) {
  double N = 0;
  for (const Index count : options.model.counts) N += static_cast<double>(std::max<Index>(0, count));
  const auto K = static_cast<double>(options.model.counts.size()), d = static_cast<double>(options.dim),
             L = static_cast<double>(options.model.lambda_w.size());
  const double vectors = options.optimizer == Optimizer::lbfgs ? 2 * kLbfgsHistory + 7 : 4;
  const double host = 8 * (vectors * ((L - 1) * d * d + K * d + N * d + K) + N * K);
  const double device = 8 * (2 * N * (K + d) + 2 * L * (K + d) * d + 8 * d * d + 6 * K * d);
  const bool shared = backend.info().device.type == DeviceType::cpu;
  const auto require = [&](double bytes, Index memory, const char* where) {
    if (!(bytes > static_cast<double>(memory))) return;
    char text[128];
    std::snprintf(text, sizeof text, "N = %.0f samples, K = %.0f, d = %.0f need %.3g GB %s, there are %.3g GB", N, K, d,
                  bytes * 1e-9, where, static_cast<double>(memory) * 1e-9);
    throw MemoryError(text,
                      options.optimizer == Optimizer::lbfgs
                          ? "take fewer samples, a smaller dim, or gradient descent, which keeps 4 vectors, not 47"
                          : "take fewer samples or a smaller dim");
  };
  require(shared ? host + device : host, cpu_device(1).memory_bytes, "of memory");
  if (!shared) require(device, backend.info().memory_bytes, "on the device");
}

Report measure_point(const UfmProblem& problem, std::span<const double> x) {
  const MatrixView features = problem.features(x);
  const LabelView labels = problem.labels();
  const Classifier classifier = problem.classifier(x);
  Accumulator accumulator(problem.context(), {.classes = problem.classes(), .dim = problem.dim()});
  accumulator.add(features, labels);
  const ClassMoments moments = accumulator.finish();
  DecisionCounter counter(moments, &classifier);
  counter.add(features, labels);
  const DecisionCounts decisions = counter.finish();
  return measure(moments, {.classifier = &classifier,
                           .train = &decisions,
                           .lambda_w = problem.model().lambda_w,
                           .lambda_h = problem.model().lambda_h});
}

/// How many singular values of A [rows x d], given on the host, exceed `threshold`.
Index singular_values_above(Backend& backend, std::span<const double> values, Index dim, double threshold) {
  Matrix A = backend.matrix(static_cast<Index>(values.size()) / dim, dim);
  backend.upload(A.data(), values.data(), A.bytes());
  Matrix gram = backend.gram(A);
  const std::vector<double> squares = backend.eigenvalues(gram);
  return std::count_if(squares.begin(), squares.end(), [&](double square) { return square > threshold * threshold; });
}

/// The rank of the last point, and where it is not the prediction.
void compare(const UfmProblem& problem, SimulationResult& result) {
  const std::vector<SpectrumRow>& measured = result.last.report->spectrum;
  Backend& backend = *problem.context().backend();
  const UfmOptions& model = problem.model();
  const auto& directions = problem.prediction().directions;
  const Index dim = problem.dim();
  const double decay = std::sqrt(static_cast<double>(problem.samples()) * model.lambda_h);
  // Where all vanishes, the size at which a direction would begin to survive.
  double smallest_w = decay, largest_w = decay, largest_z = directions.front().sigma / (2 * decay);
  if (problem.prediction().rank() > 0) {
    largest_w = largest_z = 0;
    for (const auto& direction : directions) {
      if (direction.surviving > 0) smallest_w = direction.w;  // by descending sigma, and so by descending w
      largest_w = std::max(largest_w, direction.w);
      largest_z = std::max(largest_z, direction.z);
    }
  }
  const LabelSpectrum spectrum(model.counts, model.label_model());
  const std::vector<double> weights =
      backend.to_host(classifier_product(backend, problem.classifier(result.parameters), dim, problem.classes()));
  result.rank_predicted = problem.prediction().rank();
  result.rank_measured = singular_values_above(backend, weights, dim, smallest_w / 2);
  const std::vector<double> rows = spectrum.apply_left(weights, dim);
  std::span<const double> rest = rows;
  for (std::size_t i = 0; i < directions.size(); ++i) {
    const auto& direction = directions[i];
    const auto block = rest.first(static_cast<std::size_t>(direction.multiplicity * dim));
    rest = rest.subspan(block.size());
    const double alive =
        std::sqrt(static_cast<double>(direction.surviving) / static_cast<double>(direction.multiplicity));
    const EigenspaceComparison space{.sigma = direction.sigma,
                                     .multiplicity = direction.multiplicity,
                                     .surviving_predicted = direction.surviving,
                                     .surviving_measured = singular_values_above(
                                         backend, block, dim, (direction.surviving > 0 ? direction.w : smallest_w) / 2),
                                     .w_predicted = alive * direction.w,
                                     .w_measured = measured[i].w_measured,
                                     .z_predicted = alive * direction.z,
                                     .z_measured = measured[i].z_measured};
    const bool differs = space.surviving_measured != space.surviving_predicted ||
                         std::abs(space.w_measured - space.w_predicted) > kDifference * largest_w ||
                         std::abs(space.z_measured - space.z_predicted) > kDifference * largest_z;
    if (differs && !direction.at_threshold) result.differing.push_back(space);
  }
}

}  // namespace

std::string_view to_string(Optimizer optimizer) { return optimizer == Optimizer::lbfgs ? "lbfgs" : "gd"; }

Optimizer parse_optimizer(std::string_view name) {
  for (const auto optimizer : {Optimizer::lbfgs, Optimizer::gd})
    if (name == to_string(optimizer)) return optimizer;
  throw UsageError("unknown optimizer '" + std::string(name) + "'", "one of: lbfgs, gd");
}

std::string_view to_string(SimulationEnd end) {
  switch (end) {
    case SimulationEnd::converged: return "converged";
    case SimulationEnd::no_progress: return "no further progress";
    case SimulationEnd::iterations: return "iterations";
    case SimulationEnd::stopped: return "stopped";
  }
  return "?";
}

double start_scale(const SimulationOptions& options) {
  const auto layers = static_cast<double>(std::max<std::size_t>(3, options.model.lambda_w.size()));
  return options.start_scale.value_or(std::pow(3.0, 3.0 / layers));
}

SimulationResult simulate(const Context& context, const SimulationOptions& options, const SimulationCallback& on_step) {
  check(options);
  check_memory(*context.backend(), options);
  UfmProblem problem(context, options.model, options.dim);
  SimulationResult result;
  const double scale = start_scale(options);
  result.parameters = problem.random_start(options.seed, scale / std::sqrt(static_cast<double>(options.dim)));
  const double smallest_decay =
      std::min(options.model.lambda_h, *std::min_element(options.model.lambda_w.begin(), options.model.lambda_w.end()));

  Index evaluations = 0;
  const Objective objective = [&](std::span<const double> x, std::span<double> gradient) {
    ++evaluations;
    return problem.loss_and_gradient(x, gradient);
  };
  const OnIterate on_iterate = [&](const Iterate& point) {
    if (!std::isfinite(point.loss)) throw UsageError("the loss at the start overflows", "take a smaller start scale");
    SimulationStep& step = result.last;
    step = {.iteration = point.iteration,
            .evaluations = evaluations,
            .loss = point.loss,
            .minimum = problem.prediction().minimum,
            .gap = point.loss - problem.prediction().minimum,
            .gradient_norm = norm(point.gradient),
            .gradient_bound = options.gradient_tolerance * smallest_decay * std::max(1.0, norm(point.x))};
    bool done = true;
    if (step.gradient_norm <= step.gradient_bound)
      result.end = SimulationEnd::converged;
    else if (point.iteration == options.iterations)
      result.end = SimulationEnd::iterations;
    else
      done = false;
    if (done || point.iteration % options.measure_every == 0) step.report = measure_point(problem, point.x);
    if (on_step && !on_step(step) && !done) {
      result.end = SimulationEnd::stopped;
      done = true;
    }
    return !done;
  };
  const auto minimise = options.optimizer == Optimizer::lbfgs ? minimise_lbfgs : minimise_gd;
  if (minimise(objective, result.parameters, on_iterate) == MinimiseEnd::no_progress)
    result.end = SimulationEnd::no_progress;

  result.last.evaluations = evaluations;
  if (!result.last.report) {
    result.last.report = measure_point(problem, result.parameters);
    if (on_step) on_step(result.last);
  }
  compare(problem, result);
  return result;
}

}  // namespace ncollapse
