#include "host/cli/measuring_options.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "host/cli/interrupt.hpp"
#include "host/cli/progress.hpp"
#include "host/cli/ranks.hpp"

namespace ncollapse::cli {

namespace {

/// Under mpirun each rank has its own GPU, or its share of the cores.
Context open(const DeviceOptions& options, const Ranks& ranks) {
  if (ranks.size() == 1) return options.open();
  DeviceOptions mine = options;
  Device device = Device::parse(options.device);
  if (device.type == DeviceType::cuda && options.device.find(':') == std::string::npos) {
    const auto all = devices();  // the CPU is the first
    const auto gpus = all.size() - 1;
    if (gpus > 0) device = all[1 + static_cast<std::size_t>(ranks.local_rank()) % gpus].device;
  }
  if (options.threads == 0 && std::getenv("OMP_NUM_THREADS") == nullptr) mine.threads = ranks.threads();
  return Context(device, {.threads = mine.threads});
}

}  // namespace

RowRange parse_rows(const std::string& text) {
  if (text.empty()) return {};
  const std::string wrong = fmt::format("--rows: '{}' is not a range of rows", text),
                    right = "write --rows FIRST:END for the rows FIRST to END - 1, counted from 0";
  const auto colon = text.find(':');
  if (colon == std::string::npos) throw UsageError(wrong, right);
  RowRange range;
  const std::string_view first = std::string_view(text).substr(0, colon),
                         end = std::string_view(text).substr(colon + 1);
  if (!first.empty()) range.first = parse_number<Index>(first, wrong, right);
  if (!end.empty()) range.end = parse_number<Index>(end, wrong, right);
  if (range.first < 0 || (!end.empty() && range.end <= range.first)) throw UsageError(wrong, right);
  return range;
}

void add_rows_option(CLI::App& command, std::string& text) {
  command
      .add_option("--rows", text,
                  "Only the rows FIRST to END - 1 of all files together, counted from 0; either may be left out")
      ->type_name("FIRST:END");
}

void ReportOptions::check_outputs(const Common& common) const {
  check_output(common.json);
  check_output(csv);
  part_outputs("--json", common.json, "--csv", csv);
  part_outputs("--log", log.file, "--json", common.json);
  part_outputs("--log", log.file, "--csv", csv);
}

double ReportOptions::checked_lambda_h(const std::vector<double>& lambda_w) const {
  const auto check = [](const char* option, double lambda) {
    if (lambda > 0) return;
    throw UsageError(fmt::format("{} is {}, must be positive", option, lambda),
                     lambda == 0
                         ? "without weight decay the loss has no minimiser to compare with; leave both options out"
                         : "weight decays are positive numbers");
  };
  for (const double lambda : lambda_w) check("--lambda-w", lambda);
  if (lambda_h) check("--lambda-h", *lambda_h);
  return lambda_h.value_or(0);
}

void DumpOptions::add_to(CLI::App& command) {
  command
      .add_option("--features", request.features.specs,
                  "Training features, N x d (.npy, .npz, .safetensors); many files, or a quoted glob, are read as one")
      ->type_name("FILE[:KEY]");
  command
      .add_option("--labels", request.labels.specs,
                  "Training labels, N integers from 0 to K-1: a file for every one of features, or one for all")
      ->type_name("FILE[:KEY]");
  add_rows_option(command, rows);
  command.add_option("--test-features", request.test_features.specs, "Test features")->type_name("FILE[:KEY]");
  command.add_option("--test-labels", request.test_labels.specs, "Test labels")->type_name("FILE[:KEY]");
  command.add_option("--ood-features", request.ood_features.specs, "Out-of-distribution features")
      ->type_name("FILE[:KEY]");
  command.add_option("--classes", request.classes, "K; default: rows of the classifier, else largest label + 1")
      ->transform(kAtLeastOne)
      ->type_name("K");
  add_precision_option(command, precision);
  report.add_to(command, request);
  device.add_to(command);
  command.add_option("--batch-rows", request.batch_rows, "Rows read at a time; default: about 64 MiB of features")
      ->transform(kAtLeastOne)
      ->type_name("R");
}

std::vector<FileList> DumpOptions::inputs() const {
  return {request.features,      request.labels,       request.test_features,
          request.test_labels,   request.ood_features, FileList(request.weights),
          FileList(request.bias)};
}

std::optional<Report> DumpOptions::measure(const Common& common) {
  Ranks& ranks = *common.ranks;
  report.check(request, common);
  request.rows = parse_rows(rows);
  request.precision = parse_precision(precision);
  const Context context = open(device, ranks);

  if (ranks.size() == 1) catch_interrupts();  // mpirun ends its ranks by SIGTERM, also because another one has failed
  using Style = ProgressBar::Style;
  ProgressBar bar(common.quiet || ranks.rank() != 0 ? Style::none
                  : isatty(STDERR_FILENO) == 1      ? Style::bar
                  : ranks.size() > 1                ? Style::lines  // mpirun hands stderr on by a pipe
                                                    : Style::none);
  request.on_progress = [&](const Progress& progress) {
    if (interrupted()) throw Interrupted("interrupted; nothing was written");
    bar.update(ranks.together(progress));
  };
  std::optional<Report> result = analyze(context, request, ranks.communicator(!common.json.empty()));
  ranks.finish();
  bar.clear();
  if (interrupted()) throw Interrupted("interrupted; nothing was written");
  return result;
}

}  // namespace ncollapse::cli
