#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <optional>

#include "host/cli/commands.hpp"
#include "host/cli/interrupt.hpp"
#include "host/cli/measuring_options.hpp"
#include "host/cli/output.hpp"
#include "host/cli/progress.hpp"
#include "host/cli/ranks.hpp"
#include "host/cli/row_range.hpp"
#include "ncollapse/analysis.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cli {

namespace {

struct AnalyzeOptions {
  AnalysisRequest request;
  ReportOptions report;
  DeviceOptions device;
  std::string rows;
};

/// Under mpirun each rank has its own GPU, or its share of the cores.
Context open(const DeviceOptions& options, const Ranks& ranks) {
  if (ranks.size() == 1) return options.open();
  DeviceOptions mine = options;
  Device device = Device::parse(options.device);
  if (device.type == DeviceType::cuda && options.device.find(':') == std::string::npos) {
    const auto gpus = static_cast<int>(devices().size()) - 1;  // the CPU is the first
    if (gpus > 0) device.index = ranks.local_rank() % gpus;
  }
  if (options.threads == 0 && std::getenv("OMP_NUM_THREADS") == nullptr) mine.threads = ranks.threads();
  return Context(device, {.threads = mine.threads});
}

void run(AnalyzeOptions& options, const Common& common) {
  Ranks& ranks = *common.ranks;
  options.report.check(options.request, common);
  options.request.rows = parse_rows(options.rows);
  const Context context = open(options.device, ranks);

  catch_interrupts();
  using Style = ProgressBar::Style;
  ProgressBar bar(common.quiet || ranks.rank() != 0 ? Style::none
                  : isatty(STDERR_FILENO) == 1      ? Style::bar
                  : ranks.size() > 1                ? Style::lines  // mpirun hands stderr on by a pipe
                                                    : Style::none);
  options.request.on_progress = [&](const Progress& progress) {
    if (interrupted()) throw Interrupted("interrupted; nothing was written");
    bar.update(ranks.together(progress));
  };
  const auto report = analyze(context, options.request, ranks.communicator(!common.json.empty()));
  ranks.finish();
  bar.clear();
  if (interrupted()) throw Interrupted("interrupted; nothing was written");
  if (report) write_report(*report, common.json, options.report.csv, common.quiet);
}

}  // namespace

void add_analyze(CLI::App& app, Common& common) {
  auto options = std::make_shared<AnalyzeOptions>();
  auto& request = options->request;
  CLI::App* command = app.add_subcommand("analyze", "Measure neural collapse on saved features, labels and weights");
  command
      ->add_option("--features", request.features.specs,
                   "Training features, N x d (.npy, .npz, .safetensors); many files, or a quoted glob, are read as one")
      ->required()
      ->type_name("FILE[:KEY]");
  command
      ->add_option("--labels", request.labels.specs,
                   "Training labels, N integers from 0 to K-1: a file for every one of features, or one for all")
      ->required()
      ->type_name("FILE[:KEY]");
  add_rows_option(*command, options->rows);
  command->add_option("--test-features", request.test_features.specs, "Test features")->type_name("FILE[:KEY]");
  command->add_option("--test-labels", request.test_labels.specs, "Test labels")->type_name("FILE[:KEY]");
  command->add_option("--ood-features", request.ood_features.specs, "Out-of-distribution features")
      ->type_name("FILE[:KEY]");
  command->add_option("--classes", request.classes, "K; default: rows of the classifier, else largest label + 1")
      ->check(kAtLeastOne)
      ->type_name("K");
  options->report.add_to(*command, request, common);
  options->device.add_to(*command);
  command->add_option("--batch-rows", request.batch_rows, "Rows read at a time; default: about 64 MiB of features")
      ->check(kAtLeastOne)
      ->type_name("R");
  command->footer(
      "A file may carry a key: dump.npz:features, model.safetensors:fc.weight.\n"
      "Without a key the only array of the file is taken, or the one with a usual name.\n"
      "A quoted glob is expanded here, in natural order: shard-2 before shard-10.\n"
      "Under mpirun the ranks divide the rows; each takes its own GPU or its share of the cores, and rank 0 "
      "reports.\n\n"
      "Examples:\n"
      "  ncollapse analyze --features train.npy --labels y.npy\n"
      "  ncollapse analyze --features 'shard-*.npy' --labels 'labels-*.npy'\n"
      "  mpirun -n 8 ncollapse analyze --features 'shard-*.npy' --labels 'labels-*.npy'\n"
      "  ncollapse analyze --features dump.npz:features --labels dump.npz:labels \\\n"
      "      --weights model.safetensors:fc.weight --bias model.safetensors:fc.bias --json report.json\n"
      "  ncollapse analyze --features h.npy --labels y.npy --weights W1.npy W2.npy W3.npy \\\n"
      "      --convention anova --device cuda --json - | jq .metrics.nc1_pinv\n");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace ncollapse::cli
