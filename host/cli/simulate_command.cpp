#include <fmt/core.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <optional>

#include "host/cli/commands.hpp"
#include "host/cli/interrupt.hpp"
#include "host/cli/measuring_options.hpp"
#include "host/cli/output.hpp"
#include "host/cli/progress.hpp"
#include "host/cli/ufm_arguments.hpp"
#include "host/io/report_json.hpp"
#include "ncollapse/ufm.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse::cli {

namespace {

constexpr std::size_t kMaxTableRows = 40;

const CLI::Validator kSeed([](std::string& text) { return whole_number<std::uint64_t>(text, 0); }, "");

struct SimulateOptions {
  UfmArguments ufm;
  SimulationOptions simulation;
  std::string optimizer = "lbfgs";
  DeviceOptions device;
};

std::string header_line(const SimulationOptions& options, const DeviceInfo& device) {
  UfmOptions model = options.model;
  model.width = options.dim;
  const UfmPrediction prediction = predict(model);
  Json json;
  json["schema"] = "ncollapse.simulation/1";
  json["tool"] = {{"name", "ncollapse"}, {"version", version()}};
  json["device"] = device_json(device);
  json["model"] = model_json(model, prediction);
  json["optimizer"] = {{"name", std::string(to_string(options.optimizer))},
                       {"iterations", options.iterations},
                       {"seed", options.seed},
                       {"start_scale", start_scale(options)},
                       {"tolerance", options.gradient_tolerance},
                       {"measure_every", options.measure_every}};
  json["prediction"] = {{"minimum", prediction.minimum}, {"rank", prediction.rank()}};
  return json.dump();
}

std::string step_line(const SimulationStep& step) {
  Json json;
  json["type"] = "step";
  json["iteration"] = step.iteration;
  json["evaluations"] = step.evaluations;
  json["loss"] = step.loss;
  json["minimum"] = step.minimum;
  json["gap"] = step.gap;
  json["gradient_norm"] = step.gradient_norm;
  json["gradient_bound"] = step.gradient_bound;
  json["metrics"] = metrics_json(*step.report);
  json["status"] = status_json(*step.report);
  json["spectrum"] = spectrum_json(*step.report);
  return json.dump();
}

std::string end_line(const SimulationResult& result, const std::string& reason, double seconds) {
  Json json;
  json["type"] = "end";
  json["reason"] = reason;
  json["iterations"] = result.last.iteration;
  json["evaluations"] = result.last.evaluations;
  json["loss"] = result.last.loss;
  json["gap"] = result.last.gap;
  json["rank"] = result.rank_measured;
  json["differing"] = Json::array();
  for (const auto& space : result.differing)
    json["differing"].push_back({{"sigma", space.sigma},
                                 {"multiplicity", space.multiplicity},
                                 {"surviving_predicted", space.surviving_predicted},
                                 {"surviving_measured", space.surviving_measured},
                                 {"w_predicted", space.w_predicted},
                                 {"w_measured", space.w_measured},
                                 {"z_predicted", space.z_predicted},
                                 {"z_measured", space.z_measured}});
  add_blocks(json, *result.last.report);
  json["seconds"] = seconds;
  return json.dump();
}

// What the reached point is, in one sentence, and what may lead further.
std::string verdict(const SimulationResult& result) {
  const bool unfinished = result.end == SimulationEnd::iterations || result.end == SimulationEnd::stopped;
  if (result.differing.empty())
    return fmt::format("{} the predicted global minimiser, of rank {}\n",
                       unfinished ? "not converged, but no direction differs from" : "reached", result.rank_predicted);
  const auto directions = [&](const std::string& text, const std::string& hint) {
    std::string table = text + "\n\n" +
                        fmt::format("{:>14} {:>6} {:>20} {:>26} {:>26}\n", "", "", "survive", "w", "z") +
                        fmt::format("{:>14} {:>6} {:>10} {:>9} {:>13} {:>12} {:>13} {:>12}\n", "sigma", "times",
                                    "predicted", "reached", "predicted", "reached", "predicted", "reached");
    for (std::size_t i = 0; i < std::min(result.differing.size(), kMaxTableRows); ++i) {
      const auto& space = result.differing[i];
      table += fmt::format("{:>14.9g} {:>6} {:>10} {:>9} {:>13.6g} {:>12.6g} {:>13.6g} {:>12.6g}\n", space.sigma,
                           space.multiplicity, space.surviving_predicted, space.surviving_measured, space.w_predicted,
                           space.w_measured, space.z_predicted, space.z_measured);
    }
    if (result.differing.size() > kMaxTableRows)
      table += fmt::format("  ... {} more, see --json\n", result.differing.size() - kMaxTableRows);
    return table + "\n" + hint + "\n";
  };
  const Index reached = result.rank_measured, predicted = result.rank_predicted;
  if (unfinished)
    return directions(
        fmt::format("not converged: at rank {}, the global minimiser has rank {}; directions that differ:", reached,
                    predicted),
        "More --iterations may lead further.");
  if (result.end == SimulationEnd::no_progress)
    return directions(
        fmt::format("no step lowers the loss any more: at rank {}, the global minimiser has rank {}; directions that "
                    "differ:",
                    reached, predicted),
        fmt::format(
            "The gradient is {:.3g}, {:.3g} would count as converged. Far above it the start was too large: try a "
            "smaller\n--start-scale; near it another --seed may reach the minimiser.",
            result.last.gradient_norm, result.last.gradient_bound));
  return directions(
      fmt::format("stopped in a stationary point of rank {}, the global minimiser has rank {}; directions that differ:",
                  reached, predicted),
      fmt::format("Another start may reach the minimiser: try another --seed, or a {} --start-scale.",
                  reached > predicted ? "smaller" : "larger"));
}

std::string to_table(const SimulationOptions& options, const SimulationResult& result, const std::string& reason) {
  const SimulationStep& last = result.last;
  const Report& report = *last.report;
  std::string text = fmt::format(
      "unconstrained feature model {} bias, K = {} classes, N = {} samples, L = {}, d = {}\n\n"
      "ended               {}\n"
      "iterations          {} ({} evaluations)\n"
      "loss reached        {:.10g}\n"
      "predicted minimum   {:.10g}\n"
      "gap                 {:.3g}\n"
      "gradient norm       {:.3g} (converged: {:.3g})\n\n",
      options.model.bias ? "with" : "without", report.classes, report.samples, options.model.lambda_w.size(),
      options.dim, reason, last.iteration, last.evaluations, last.loss, last.minimum, last.gap, last.gradient_norm,
      last.gradient_bound);
  const std::string_view family = options.model.bias ? "ufmb_" : "gof_";
  for (const auto& info : metric_catalogue()) {
    if (!info.key.starts_with(family)) continue;
    const std::string key(info.key);
    if (const auto value = report.find(key))
      text += fmt::format("{:<19} {:<12.5g} {}\n", key, *value, info.meaning);
    else if (const auto status = report.status.find(key); status != report.status.end())
      text += fmt::format("{:<19} {}: {}\n", key, status->second.code, status->second.why);
  }
  return text + "\n" + verdict(result);
}

void run(SimulateOptions& options, const Common& common) {
  check_output(common.json);
  spare_inputs({FileList(options.ufm.counts_from)}, "--json", common.json);
  SimulationOptions& simulation = options.simulation;
  simulation.model = ufm_options(options.ufm);
  simulation.optimizer = parse_optimizer(options.optimizer);
  const Context context = options.device.open();

  catch_interrupts();
  const auto start = std::chrono::steady_clock::now();
  std::optional<LineWriter> lines;  // opened at the first step: wrong input leaves no file behind
  ProgressBar bar(!common.quiet && isatty(STDERR_FILENO) == 1);
  const SimulationResult result = simulate(context, simulation, [&](const SimulationStep& step) {
    if (!common.json.empty() && step.report) {
      if (!lines) lines.emplace(common.json).write(header_line(simulation, context.info()));
      lines->write(step_line(step));
    }
    bar.update(step, simulation.iterations);
    return !interrupted();
  });
  bar.clear();
  const bool stopped = result.end == SimulationEnd::stopped;
  const std::string reason = stopped ? "interrupted" : std::string(to_string(result.end));
  if (lines)
    lines->write(
        end_line(result, reason, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()));
  if (!common.quiet && common.json != "-") {
    write_output("-", to_table(simulation, result, reason));
    if (lines) write_output("-", fmt::format("\nJSON lines written to {}\n", common.json));
  }
  if (stopped) throw Interrupted(fmt::format("interrupted after iteration {}", result.last.iteration));
}

}  // namespace

void add_simulate(CLI::App& app, Common& common) {
  auto options = std::make_shared<SimulateOptions>();
  auto& simulation = options->simulation;
  CLI::App* command = app.add_subcommand(
      "simulate", "Watch collapse happen: optimise the unconstrained feature model and measure on the way");
  add_ufm_arguments(*command, options->ufm);
  command->add_option("--dim", simulation.dim, "d, width of the features and of every layer")
      ->required()
      ->transform(kAtLeastOne)
      ->type_name("D");
  command->add_option("--optimizer", options->optimizer, "lbfgs or gd (gradient descent)")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--iterations", simulation.iterations, "Iterations at most")
      ->capture_default_str()
      ->transform(kAtLeastOne)
      ->type_name("N");
  command->add_option("--seed", simulation.seed, "Of the random start")
      ->capture_default_str()
      ->transform(kSeed)
      ->type_name("S");
  command
      ->add_option(
          "--start-scale", simulation.start_scale,
          "Standard deviation of the random start, in units of 1/sqrt(d); default: 3, with L > 3 layers 3^(3/L)")
      ->type_name("X");
  command
      ->add_option(
          "--tolerance", simulation.gradient_tolerance,
          "Converged where |gradient| is at most this times the smallest weight decay times max(1, |parameters|)")
      ->capture_default_str()
      ->type_name("G");
  command->add_option("--measure-every", simulation.measure_every, "Iterations between measurements")
      ->capture_default_str()
      ->transform(kAtLeastOne)
      ->type_name("N");
  options->device.add_to(*command);
  command
      ->add_option("--json", common.json,
                   "Write JSON lines, one for the run, one per measurement, one for its end; - is standard output")
      ->type_name("FILE");
  command->add_flag("--quiet", common.quiet, "No table and no progress bar");
  command->footer(
      "Examples:\n"
      "  ncollapse simulate --counts 20,12,12,5,3 --layers 3 --dim 8 --lambda-w 2e-3 --lambda-h 1e-3\n"
      "  ncollapse simulate --counts 20,12,12,5,3 --layers 2 --dim 8 --lambda-w 2e-3 --lambda-h 1e-3 \\\n"
      "      --measure-every 10 --json - | jq 'select(.type == \"step\") | [.iteration, .metrics.ufmb_w]'\n");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace ncollapse::cli
