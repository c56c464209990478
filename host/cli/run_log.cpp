#include "host/cli/run_log.hpp"

#include <fmt/core.h>

#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "host/cli/output.hpp"
#include "host/cli/recording.hpp"
#include "host/io/report_json.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse::cli {

namespace {

constexpr const char* kSchema = "ncollapse.run/1";

// What stays the same from step to step.
Json model_of(const Report& report) {
  Index layers = 0;
  bool with_bias = false;
  for (const auto& [name, file] : report.source) {
    layers += name == "weights" ? 1 : 0;
    with_bias = with_bias || name == "bias";
  }
  Json model = {{"K", report.classes}, {"N", report.samples}};
  if (layers > 0) {
    model["layers"] = layers;
    model["with_bias"] = with_bias;
  }
  if (!report.lambda_w.empty()) {
    model["lambda_w"] = report.lambda_w;
    model["lambda_h"] = report.lambda_h;
  }
  model["width"] = report.dim;
  model["counts"] = report.counts;
  return model;
}

// Names of devices need not be UTF-8.
std::string line_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

std::string header_of(const Report& report) {
  Json header;
  header["schema"] = kSchema;
  header["tool"] = {{"name", "ncollapse"}, {"version", version()}};
  header["device"] = device_json(report.device);
  header["convention"] = std::string(to_string(report.convention.preset));
  header["model"] = model_of(report);
  return line_of(header);
}

std::string step_of(const Report& report, Index epoch, std::optional<double> loss) {
  Json step = {{"type", "step"}, {"epoch", epoch}};
  if (loss) step["loss"] = *loss;
  step["metrics"] = metrics_json(report);
  step["status"] = status_json(report);
  step["per_class"]["counts"] = report.counts;
  for (const auto& metric : report.per_class) step["per_class"][metric.key] = json_numbers(metric.values);
  if (!report.spectrum.empty()) step["spectrum"] = spectrum_json(report);
  add_blocks(step, report);
  return line_of(step);
}

// A value in a message; lists of class sizes may be long.
std::string shown(const Json& object, const std::string& key) {
  constexpr std::size_t kLongest = 40;
  if (!object.contains(key)) return "not given";
  std::string text = object[key].dump();
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

}  // namespace

RunLog::RunLog(LogOptions options) : options_(std::move(options)) {
  const auto& [file, epoch, loss] = options_;
  if (file.empty() && !epoch && !loss) return;
  if (file.empty() || !epoch)
    throw UsageError(file.empty() ? "--epoch and --loss are for a --log" : "--log needs the --epoch of this step",
                     "for every measured epoch: --log run.jsonl --epoch 7, with --loss if it is known");
  if (file == "-") throw UsageError("a log is a file, not standard output", "write ./- for one named -");
  if (loss && !std::isfinite(*loss)) throw UsageError(fmt::format("--loss is {}", *loss), "leave it out");
  check_output(file);
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored)) return;
  std::ifstream input(file, std::ios::binary);
  if (!input) throw DataError(file + ": cannot open: " + std::error_code(errno, std::generic_category()).message());
  const std::string text = rest_of(input, file);
  const std::size_t end = text.rfind('\n') + 1, first = text.find('\n') + 1;  // npos + 1 is 0
  if (text.empty()) return;
  header_ = text.substr(0, first);
  steps_ = text.substr(first, end - first);
  const Json header = Json::parse(header_, nullptr, false);
  if (!header.is_object() || header.value("schema", "") != kSchema || !header.contains("model") ||
      !header["model"].is_object())
    throw DataError(file + ": is there and no log of a run", fmt::format("name another file; a log begins with a line "
                                                                         "of the schema {}",
                                                                         kSchema));
  if (steps_.empty()) return;
  const std::size_t before_last = steps_.rfind('\n', steps_.size() - 2) + 1;
  const Json last = Json::parse(steps_.substr(before_last), nullptr, false);
  if (!last.is_object() || !last.contains("epoch") || !last["epoch"].is_number())
    throw DataError(file + ": its last line is no step with an epoch", "was the run ended? begin another log");
  if (last["epoch"].get<double>() >= static_cast<double>(*epoch))
    throw DataError(
        fmt::format("{}: holds epoch {} already, so epoch {} cannot follow", file, last["epoch"].get<double>(), *epoch),
        "steps come in the order of their epochs; for another run name another file");
}

void RunLog::append(const Report& report) const {
  if (options_.file.empty()) return;
  const std::string header = header_of(report);
  if (!header_.empty()) {
    const Json was = Json::parse(header_), is = Json::parse(header);
    const auto expect = [&](const Json& old, const Json& now, const std::string& key) {
      if (shown(old, key) != shown(now, key) || (old.contains(key) && old[key] != now[key]))
        throw DataError(fmt::format("{}: is the log of another run: {} is {} there, {} here", options_.file, key,
                                    shown(old, key), shown(now, key)),
                        "name another file for this run");
    };
    expect(was, is, "convention");
    for (const auto* key : {"K", "width", "counts", "layers", "with_bias", "lambda_w", "lambda_h"})
      expect(was["model"], is["model"], key);
  }
  write_output(options_.file,
               (header_.empty() ? header : header_) + steps_ + step_of(report, *options_.epoch, options_.loss));
}

}  // namespace ncollapse::cli
