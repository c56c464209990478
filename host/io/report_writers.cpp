// Reports as JSON and CSV.
#include <charconv>
#include <cmath>
#include <locale>
#include <sstream>

#include "host/io/report_json.hpp"
#include "ncollapse/metrics.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse {

namespace {

// The shortest text that reads back as the same double.
std::string text(double value) {
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof buffer, value);
  return {buffer, result.ptr};
}

// A CSV field, quoted where it must be.
std::string field(const std::string& value) {
  if (value.find_first_of(",\"\n") == std::string::npos) return value;
  std::string quoted = "\"";
  for (const char c : value) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

}  // namespace

std::string to_json(const Report& report) {
  const auto& convention = report.convention;
  Json json;
  json["schema"] = "ncollapse.metrics/1";
  json["tool"] = {{"name", "ncollapse"}, {"version", version()}};
  json["device"] = device_json(report.device);
  json["source"] = Json::object();
  for (const auto& [name, value] : report.source) {
    if (!json["source"].contains(name))
      json["source"][name] = value;
    else if (json["source"][name].is_array())
      json["source"][name].push_back(value);
    else
      json["source"][name] = Json::array({json["source"][name], value});
  }
  json["shape"] = {{"N", report.samples}, {"K", report.classes}, {"K_seen", report.classes_seen}, {"D", report.dim}};
  json["shape"]["dtype"] = report.dtype.empty() ? Json(nullptr) : Json(report.dtype);
  json["convention"] = {
      {"preset", std::string(to_string(convention.preset))},
      {"sigma_w", convention.sigma_w},
      {"mu", convention.centre},
      {"sigma_b", convention.sigma_b},
      {"nc1_divided_by_K", convention.divided_by_classes},
      {"ddof", 0},
      {"centre_w", false},
      {"rank_rule", "largest min(K_seen-1, d) eigenvalues of Sigma_B above max(K_seen, d) eps lambda_max"},
      {"rank_used", convention.rank_used},
      {"rank_limit", convention.rank_limit},
      {"tol", convention.rank_tolerance},
      {"accum_dtype", "f64"}};
  json["precision"] = {{"scatter", std::string(to_string(report.precision))},
                       {"scatter_error_bound", json_number(report.scatter_error)}};
  if (report.cosine_error > 0) json["precision"]["cosine_error_bound"] = report.cosine_error;
  if (!report.lambda_w.empty()) json["weight_decay"] = {{"lambda_w", report.lambda_w}, {"lambda_h", report.lambda_h}};
  json["metrics"] = metrics_json(report);
  json["status"] = status_json(report);
  json["per_class"]["counts"] = report.counts;
  for (const auto& metric : report.per_class) json["per_class"][metric.key] = json_numbers(metric.values);
  if (!report.spectrum.empty()) json["spectrum"] = spectrum_json(report);
  if (!report.singular_values_w.empty())
    json["singular_values"] = {{"w", json_numbers(report.singular_values_w)},
                               {"z", json_numbers(report.singular_values_z)}};
  add_blocks(json, report);
  json["notes"] = report.notes;
  json["timing"] = Json::object();
  for (const auto& [name, seconds] : report.timing) json["timing"][name] = json_number(seconds);
  return json.dump(2, ' ', false, Json::error_handler_t::replace);  // file names need not be UTF-8
}

std::string to_csv(const Report& report) {
  std::ostringstream csv;
  csv.imbue(std::locale::classic());  // else a count may have separators between its thousands
  csv << "key,class,value,status\n";
  for (const auto& info : metric_catalogue()) {
    const std::string key(info.key);
    if (const auto value = report.find(key)) csv << key << ",," << text(*value) << ",ok\n";
    if (const auto status = report.status.find(key); status != report.status.end())
      csv << key << ",,," << field(status->second.code + ": " + status->second.why) << "\n";
  }
  for (std::size_t k = 0; k < report.counts.size(); ++k) csv << "count," << k << "," << report.counts[k] << ",ok\n";
  for (const auto& metric : report.per_class)
    for (std::size_t k = 0; k < metric.values.size(); ++k) {
      const bool known = std::isfinite(metric.values[k]);
      csv << metric.key << "," << k << "," << (known ? text(metric.values[k]) : "") << ","
          << (known ? "ok" : "undefined") << "\n";
    }
  return csv.str();
}

}  // namespace ncollapse
