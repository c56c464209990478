#include <memory>
#include <optional>

#include "host/cli/commands.hpp"
#include "host/cli/measuring_options.hpp"
#include "host/cli/output.hpp"
#include "host/cli/ranks.hpp"

namespace ncollapse::cli {

namespace {

void run(DumpOptions& options, const Common& common) {
  spare_inputs(options.inputs(), "--json", common.json);
  spare_inputs(options.inputs(), "--csv", options.report.csv);
  spare_inputs(options.inputs(), "--log", options.report.log.file);
  options.report.check(options.request, common);
  std::optional<RunLog> log;
  if (common.ranks->rank() == 0) log.emplace(options.report.open_log(options.request));  // others may see other files
  const std::optional<Report> report = options.measure(common);
  if (!report) return;
  write_report(*report, common.json, options.report.csv, common.quiet);
  if (log) log->append(*report);
}

}  // namespace

void add_analyze(CLI::App& app, Common& common) {
  auto options = std::make_shared<DumpOptions>();
  CLI::App* command = app.add_subcommand("analyze", "Measure neural collapse on saved features, labels and weights");
  options->add_to(*command);
  for (const auto* name : {"--features", "--labels"}) command->get_option(name)->required();
  options->report.add_outputs_to(*command, common);
  command->footer(
      "A file may carry a key: dump.npz:features, model.safetensors:fc.weight.\n"
      "Without a key the only array of the file is taken, or the one with a usual name.\n"
      "A quoted glob is expanded here, in natural order: shard-2 before shard-10.\n"
      "Under mpirun the ranks divide the rows; each takes its own GPU or its share of the cores, and rank 0 "
      "reports.\n\n"
      "Examples:\n"
      "  ncollapse analyze --features train.npy --labels y.npy\n"
      "  ncollapse analyze --features 'shard-*.npy' --labels 'labels-*.npy'\n"
      "  ncollapse analyze --features e7.npy --labels y.npy --weights W7.npy --log run.jsonl --epoch 7   # then plot\n"
      "  mpirun -n 8 ncollapse analyze --features 'shard-*.npy' --labels 'labels-*.npy'\n"
      "  ncollapse analyze --features dump.npz:features --labels dump.npz:labels \\\n"
      "      --weights model.safetensors:fc.weight --bias model.safetensors:fc.bias --json report.json\n"
      "  ncollapse analyze --features h.npy --labels y.npy --weights W1.npy W2.npy W3.npy \\\n"
      "      --convention anova --device cuda --json - | jq .metrics.nc1_pinv\n");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace ncollapse::cli
