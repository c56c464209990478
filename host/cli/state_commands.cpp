// `accumulate`, `merge`, `finalize`: a measurement in parts.
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "host/cli/commands.hpp"
#include "host/cli/interrupt.hpp"
#include "host/cli/measuring_options.hpp"
#include "host/cli/output.hpp"
#include "host/cli/progress.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/state.hpp"

namespace ncollapse::cli {

namespace {

/// "100000" rows or "60s".
void parse_interval(const std::string& text, AccumulationRequest& request) {
  const std::string wrong = fmt::format("--save-every: '{}' is neither rows nor seconds", text),
                    right = "write --save-every 100000 for rows, --save-every 60s for seconds";
  request.save_every_rows = 0;
  request.save_every_seconds = 0;
  if (text.ends_with('s')) {
    request.save_every_seconds = parse_number<double>(std::string_view(text).substr(0, text.size() - 1), wrong, right);
    if (!(request.save_every_seconds > 0)) throw UsageError(wrong, right);
  } else {
    request.save_every_rows = parse_number<Index>(text, wrong, right);
    if (request.save_every_rows < 1) throw UsageError(wrong, right);
  }
}

// --- accumulate

struct AccumulateOptions {
  AccumulationRequest request;
  DeviceOptions device;
  std::string statistics = "full", precision = "exact", rows, save_every;
};

void run(AccumulateOptions& options, const Common& common) {
  auto& request = options.request;
  check_output(request.state);
  request.statistics = parse_statistics(options.statistics);
  request.precision = parse_precision(options.precision);
  request.rows = parse_rows(options.rows);
  if (!options.save_every.empty()) parse_interval(options.save_every, request);
  const Context context = options.device.open();

  catch_interrupts();
  ProgressBar bar(!common.quiet && isatty(STDERR_FILENO) == 1);
  const std::string stopped = fmt::format("interrupted; {} holds what was done, go on with --resume", request.state);
  request.on_progress = [&](const Progress& progress) {
    if (interrupted() && progress.rows_done < progress.rows_total) throw Interrupted(stopped);
    bar.update(progress);
  };
  const Accumulator moments = accumulate_files(context, request);
  bar.clear();
  if (!common.quiet)
    write_output("-", fmt::format("{} samples, K = {}, d = {}, statistics {}: saved in {}\n", moments.samples(),
                                  moments.options().classes, moments.options().dim,
                                  to_string(moments.options().statistics), request.state));
}

// --- merge

struct MergeOptions {
  FileList states;
  std::string output;
  DeviceOptions device;
};

void run(const MergeOptions& options, const Common& common) {
  check_output(options.output);
  std::vector<std::string> overlaps;
  const Accumulator sum = merge_states(options.device.open(), options.states, options.output, &overlaps);
  constexpr std::size_t kMostWarnings = 20;
  for (std::size_t i = 0; i < std::min(overlaps.size(), kMostWarnings); ++i)
    fmt::print(stderr, "ncollapse: warning: {}\n", overlaps[i]);
  if (overlaps.size() > kMostWarnings)
    fmt::print(stderr, "ncollapse: warning: ... and {} more\n", overlaps.size() - kMostWarnings);
  if (!overlaps.empty())
    fmt::print(stderr,
               "  hint: if that is the same file, its samples now count twice in {}: merge parts without common rows\n",
               options.output);
  if (!common.quiet)
    write_output("-", fmt::format("{} samples, K = {}, d = {}, statistics {}: saved in {}\n", sum.samples(),
                                  sum.options().classes, sum.options().dim, to_string(sum.options().statistics),
                                  options.output));
}

// --- finalize

struct FinalizeOptions {
  StateMeasurement request;
  ReportOptions report;
  DeviceOptions device;
};

void run(FinalizeOptions& options, const Common& common) {
  options.report.check(options.request, common);
  const std::vector<FileList> inputs{options.request.state, options.request.weights, options.request.bias};
  spare_inputs(inputs, "--json", common.json);
  spare_inputs(inputs, "--csv", options.report.csv);
  spare_inputs(inputs, "--log", options.report.log.file);
  const RunLog log = options.report.open_log(options.request);
  const Report report = measure_state(options.device.open(), options.request);
  write_report(report, common.json, options.report.csv, common.quiet);
  log.append(report);
}

}  // namespace

void add_accumulate(CLI::App& app, Common& common) {
  auto options = std::make_shared<AccumulateOptions>();
  auto& request = options->request;
  CLI::App* command =
      app.add_subcommand("accumulate", "Accumulate a part of the data into a state file; resumes after a kill");
  command
      ->add_option("--features", request.features.specs,
                   "Features, N x d (.npy, .npz, .safetensors); many files, or a quoted glob, are read as one")
      ->required()
      ->type_name("FILE[:KEY]");
  command
      ->add_option("--labels", request.labels.specs,
                   "Labels from 0 to K-1: a file for every one of features, or one for all")
      ->required()
      ->type_name("FILE[:KEY]");
  command->add_option("--classes", request.classes, "K, the same for all parts")
      ->required()
      ->transform(kAtLeastOne)
      ->type_name("K");
  command->add_option("--state", request.state, "State file to write; an existing one is only resumed")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--statistics", options->statistics,
                   "means, traces (and variances of classes) or full (and their pooled scatter)")
      ->capture_default_str()
      ->type_name("NAME");
  add_precision_option(*command, options->precision);
  add_rows_option(*command, options->rows);
  command->add_option("--save-every", options->save_every, "Rows, or seconds with an s; default: 300s")
      ->type_name("ROWS|SECONDSs");
  command->add_flag("--resume", request.resume, "Go on where the state file ends; from the start without one");
  options->device.add_to(*command);
  command->add_option("--batch-rows", request.batch_rows, "Rows read at a time; default: about 64 MiB of features")
      ->transform(kAtLeastOne)
      ->type_name("R");
  command->add_flag("--quiet", common.quiet, "No progress bar, no last line");
  command->footer(
      "A quoted glob is expanded here, in natural order: shard-2 before shard-10. The state file remembers its inputs\n"
      "and how far it came; a resumed run gives the bits of an uninterrupted one on the same kind of device. It is "
      "also\n"
      "saved on Ctrl-C, and when a later file turns out to be bad.\n\n"
      "Examples:\n"
      "  ncollapse accumulate --features 'shard-*.npy' --labels 'labels-*.npy' --classes 1000 --state all.nc\n"
      "  ncollapse accumulate --features big.npy --labels y.npy --rows 0:5000000 --classes 10 --state part1.nc\n"
      "  ncollapse accumulate --features day1.npy day2.npy --labels y.npy --classes 10 --state days.nc --resume\n");
  command->callback([options, &common] { run(*options, common); });
}

void add_merge(CLI::App& app, Common& common) {
  auto options = std::make_shared<MergeOptions>();
  CLI::App* command = app.add_subcommand("merge", "Add up state files, in any order, whatever device made them");
  command->add_option("states", options->states.specs, "State files, or a quoted glob")->required()->type_name("FILE");
  command->add_option("--state", options->output, "State file to write, not over an existing one")
      ->required()
      ->type_name("FILE");
  options->device.add_to(*command);
  command->add_flag("--quiet", common.quiet, "No last line; warnings stay");
  command->footer(
      "All parts have the same K, d and statistics and are complete. The order matters to rounding only.\n"
      "Samples in two parts count twice. Where the states say that two parts hold the same rows of a file of the same\n"
      "name and shape, a warning names them; they are merged all the same, for on another machine that may be another\n"
      "file. States keep names as accumulate was given them: the same file under two names is not noticed.\n\n"
      "Example:\n"
      "  ncollapse merge part*.nc --state all.nc\n");
  command->callback([options, &common] { run(*options, common); });
}

void add_finalize(CLI::App& app, Common& common) {
  auto options = std::make_shared<FinalizeOptions>();
  auto& request = options->request;
  CLI::App* command = app.add_subcommand("finalize", "Measure neural collapse from a state file");
  command->add_option("state", request.state, "State file, of accumulate or merge")->required()->type_name("FILE");
  options->report.add_to(*command, request);
  options->report.add_outputs_to(*command, common);
  options->device.add_to(*command);
  command->footer(
      "Decisions (NC4, accuracies) need a second pass over the data and are not in a state: see analyze.\n\n"
      "Examples:\n"
      "  ncollapse finalize all.nc\n"
      "  ncollapse finalize all.nc --weights model.safetensors:fc.weight --bias model.safetensors:fc.bias --json "
      "r.json\n");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace ncollapse::cli
