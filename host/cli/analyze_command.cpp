#include <unistd.h>

#include <memory>
#include <optional>

#include "host/cli/commands.hpp"
#include "host/cli/interrupt.hpp"
#include "host/cli/output.hpp"
#include "host/cli/progress.hpp"
#include "host/cli/row_range.hpp"
#include "ncollapse/analysis.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cli {

namespace {

struct AnalyzeOptions {
  AnalysisRequest request;
  std::optional<double> lambda_h;
  std::string rows, convention = "zhu", device = "auto", csv;
  int threads = 0;
};

void run(AnalyzeOptions& options, const Common& common) {
  check_report_outputs(common.json, options.csv);
  options.request.lambda_h = checked_decays(options.request.lambda_w, options.lambda_h);
  options.request.rows = parse_rows(options.rows);
  options.request.convention = parse_convention(options.convention);
  const Context context(Device::parse(options.device), {.threads = options.threads});

  catch_interrupts();
  ProgressBar bar(!common.quiet && isatty(STDERR_FILENO) == 1);
  options.request.on_progress = [&](const Progress& progress) {
    if (interrupted()) throw Interrupted("interrupted; nothing was written");
    bar.update(progress);
  };
  Report report = analyze(context, options.request);
  bar.clear();
  if (interrupted()) throw Interrupted("interrupted; nothing was written");
  write_report(report, common.json, options.csv, common.quiet);
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
  command
      ->add_option("--weights", request.weights,
                   "Linear layers, out x in, in the order in which features meet them (W_1 first)")
      ->type_name("FILE[:KEY]");
  command->add_option("--bias", request.bias, "Bias of the last layer, K values")->type_name("FILE[:KEY]");
  command->add_option("--test-features", request.test_features.specs, "Test features")->type_name("FILE[:KEY]");
  command->add_option("--test-labels", request.test_labels.specs, "Test labels")->type_name("FILE[:KEY]");
  command->add_option("--ood-features", request.ood_features.specs, "Out-of-distribution features")
      ->type_name("FILE[:KEY]");
  command->add_option("--classes", request.classes, "K; default: rows of the classifier, else largest label + 1")
      ->check(kAtLeastOne)
      ->type_name("K");
  command->add_option("--convention", options->convention, "zhu, papyan, peer, anova or classavg")
      ->capture_default_str()
      ->type_name("NAME");
  command
      ->add_option("--lambda-w", request.lambda_w,
                   "Weight decay of the layers, one for all or one each: compare with the predicted minimiser")
      ->type_name("X");
  command->add_option("--lambda-h", options->lambda_h, "Weight decay of the features")->type_name("X");
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--batch-rows", request.batch_rows, "Rows read at a time; default: about 64 MiB of features")
      ->check(kAtLeastOne)
      ->type_name("R");
  command->add_option("--threads", options->threads, "CPU threads; default: all cores")
      ->check(kAtLeastOne)
      ->type_name("T");
  command->add_option("--json", common.json, "Write the report as JSON; - is standard output")->type_name("FILE");
  command->add_option("--csv", options->csv, "Write the report as CSV; - is standard output")->type_name("FILE");
  command->add_flag("--quiet", common.quiet, "No table and no progress bar");
  command->footer(
      "A file may carry a key: dump.npz:features, model.safetensors:fc.weight.\n"
      "Without a key the only array of the file is taken, or the one with a usual name.\n"
      "A quoted glob is expanded here, in natural order: shard-2 before shard-10.\n\n"
      "Examples:\n"
      "  ncollapse analyze --features train.npy --labels y.npy\n"
      "  ncollapse analyze --features 'shard-*.npy' --labels 'labels-*.npy'\n"
      "  ncollapse analyze --features dump.npz:features --labels dump.npz:labels \\\n"
      "      --weights model.safetensors:fc.weight --bias model.safetensors:fc.bias --json report.json\n"
      "  ncollapse analyze --features h.npy --labels y.npy --weights W1.npy W2.npy W3.npy \\\n"
      "      --convention anova --device cuda --json - | jq .metrics.nc1_pinv\n");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace ncollapse::cli
