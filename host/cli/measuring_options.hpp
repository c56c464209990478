// Options that the commands which measure have in common.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "host/cli/commands.hpp"
#include "host/cli/output.hpp"
#include "host/cli/run_log.hpp"
#include "ncollapse/analysis.hpp"
#include "ncollapse/context.hpp"

namespace ncollapse::cli {

/// --device and --threads.
struct DeviceOptions {
  std::string device = "auto";
  int threads = 0;

  void add_to(CLI::App& command) {
    command.add_option("--device", device, "auto, cpu, cuda or cuda:N")->capture_default_str()->type_name("NAME");
    command.add_option("--threads", threads, "CPU threads; default: all cores")->transform(kAtLeastOne)->type_name("T");
  }
  Context open() const { return Context(Device::parse(device), {.threads = threads}); }
};

/// --rows: "FIRST:END", either of them may be left out; "" is every row.
RowRange parse_rows(const std::string& text);
void add_rows_option(CLI::App& command, std::string& text);

/// --precision, of the commands that accumulate.
inline void add_precision_option(CLI::App& command, std::string& name) {
  command
      .add_option("--precision", name,
                  "Of the within-class scatter, and of pairs of more than 16384 classes: exact (double), or fast "
                  "(half on a GPU, single on a CPU; the report tells the error)")
      ->capture_default_str()
      ->type_name("NAME");
}

/// The head, the convention, the weight decays, and where the report goes.
struct ReportOptions {
  std::string convention = "zhu", csv;
  std::optional<double> lambda_h;
  LogOptions log;

  /// `request` (AnalysisRequest, StateMeasurement) takes what the options say; it has to live as long as the command.
  template <class Request>
  void add_to(CLI::App& command, Request& request) {
    command
        .add_option("--weights", request.weights,
                    "Linear layers, out x in, in the order in which features meet them (W_1 first)")
        ->type_name("FILE[:KEY]");
    command.add_option("--bias", request.bias, "Bias of the last layer, K values")->type_name("FILE[:KEY]");
    command.add_option("--convention", convention, "zhu, papyan, peer, anova or classavg")
        ->capture_default_str()
        ->type_name("NAME");
    command
        .add_option("--lambda-w", request.lambda_w,
                    "Weight decay of the layers, one for all or one each: compare with the predicted minimiser")
        ->delimiter(',')
        ->type_name("X");
    command.add_option("--lambda-h", lambda_h, "Weight decay of the features")->type_name("X");
  }
  void add_outputs_to(CLI::App& command, Common& common) {
    command.add_option("--json", common.json, "Write the report as JSON; - is standard output")->type_name("FILE");
    command.add_option("--csv", csv, "Write the report as CSV; - is standard output")->type_name("FILE");
    command
        .add_option("--log", log.file,
                    "Put the report behind the steps of a run's log, for plot and report; made where it is missing")
        ->type_name("FILE");
    command.add_option("--epoch", log.epoch, "Of --log: where this step stands, behind those in the file")
        ->transform(kFromZero)
        ->type_name("N");
    command.add_option("--loss", log.loss, "Of --log: the training loss there, to be drawn beside the metrics")
        ->type_name("X");
    command.add_flag("--quiet", common.quiet, "No table and no progress bar");
  }
  /// Call before anything is read: a wrong option should not cost a pass over the data.
  template <class Request>
  void check(Request& request, const Common& common) const {
    check_outputs(common);
    request.lambda_h = checked_lambda_h(request.lambda_w);
    request.convention = parse_convention(convention);
  }
  /// To be called behind check(); looks at the log, if there is one. Throws as RunLog.
  template <class Request>
  RunLog open_log(const Request& request) const {
    return {log,
            {request.convention, request.weights.size(), !request.bias.empty(), request.lambda_w, request.lambda_h}};
  }

 private:
  void check_outputs(const Common& common) const;
  /// 0 when not given. Throws UsageError unless all weight decays are positive.
  double checked_lambda_h(const std::vector<double>& lambda_w) const;
};

/// A dump: saved features and labels, the head, how to measure them, and where.
struct DumpOptions {
  AnalysisRequest request;
  ReportOptions report;
  DeviceOptions device;
  std::string rows, precision = "exact";

  bool given() const { return !request.features.specs.empty(); }
  void add_to(CLI::App& command);
  std::vector<FileList> inputs() const;  ///< every file that is read
  /// Measures it under a progress bar. Throws Interrupted after Ctrl-C; under mpirun that ends the ranks at once. Only
  /// rank 0 has a report there.
  std::optional<Report> measure(const Common& common);
};

}  // namespace ncollapse::cli
