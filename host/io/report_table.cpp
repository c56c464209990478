// The report as a person reads it: one line a metric, grouped by property, within 100 columns.
#include <algorithm>
#include <map>
#include <sstream>

#include "host/io/report_layout.hpp"
#include "ncollapse/metrics.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse {

namespace {

constexpr std::size_t kWidth = 100;
constexpr std::size_t kMaxClassRows = 20;

std::string padded(std::string text, std::size_t width, bool right = false) {
  if (text.size() >= width) return text;
  const std::string blanks(width - text.size(), ' ');
  return right ? blanks + text : text + blanks;
}

// The head and the words of the text, with a blank before each, folded under a hanging indent.
std::string folded(const std::string& head, const std::string& text, std::size_t indent) {
  std::string out = head, word;
  std::size_t column = head.size();
  for (std::istringstream words(text); words >> word; column += 1 + word.size()) {
    if (column + 1 + word.size() > kWidth) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    }
    out += " " + word;
  }
  return out + "\n";
}

std::string arrow(std::string_view direction) { return direction == "down" ? "v" : direction == "up" ? "^" : " "; }

std::string spectrum_table(const Report& report) {
  std::string out;
  for (const auto* head : {"sigma", "times", "w predicted", "w measured", "z predicted", "z measured", "cosine"})
    out += padded(head, 13, true);
  out += "\n";
  const std::size_t rows = std::min(report.spectrum.size(), kMaxClassRows);
  for (std::size_t i = 0; i < rows; ++i) {
    const SpectrumRow& row = report.spectrum[i];
    out += padded(readable(row.sigma), 13, true) + padded(std::to_string(row.multiplicity), 13, true);
    for (const double value : {row.w_predicted, row.w_measured, row.z_predicted, row.z_measured, row.cosine})
      out += padded(readable(value), 13, true);
    out += "\n";
  }
  if (rows < report.spectrum.size())
    out += "  ... " + std::to_string(report.spectrum.size() - rows) + " more in the JSON output\n";
  return out;
}

std::string class_table(const Report& report) {
  std::string out = padded("  class", 9) + padded("samples", 9, true);
  std::vector<const PerClassMetric*> columns;
  for (const auto& column : kClassColumns)
    for (const auto& metric : report.per_class)
      if (metric.key == column.key) {
        columns.push_back(&metric);
        out += padded(std::string(column.head), 13, true);
      }
  out += "\n";
  const std::size_t rows = std::min(report.counts.size(), kMaxClassRows);
  for (std::size_t k = 0; k < rows; ++k) {
    out += padded("  " + std::to_string(k), 9) + padded(std::to_string(report.counts[k]), 9, true);
    for (const auto* column : columns) out += padded(readable(column->values[k]), 13, true);
    out += "\n";
  }
  if (rows < report.counts.size())
    out += "  ... " + std::to_string(report.counts.size() - rows) + " more classes in the JSON and CSV output\n";
  return out;
}

}  // namespace

std::string to_table(const Report& report, bool colour) {
  const auto bold = [&](const std::string& text) { return colour ? "\033[1m" + text + "\033[0m" : text; };
  const auto faint = [&](const std::string& text) { return colour ? "\033[2m" + text + "\033[0m" : text; };
  std::string out;
  out += bold("ncollapse " + std::string(version())) + "  N = " + std::to_string(report.samples) +
         " samples, K = " + std::to_string(report.classes) + " classes, d = " + std::to_string(report.dim) +
         (report.dtype.empty() ? "" : ", " + report.dtype) + "\n";
  const auto& device = report.device;
  out += "device      " + to_string(device.device) + " (" + device.name + ", " +
         (device.device.type == DeviceType::cpu ? std::to_string(device.threads) + " threads"
                                                : "compute capability " + device.capability) +
         ")\n";
  const auto& convention = report.convention;
  out += "convention  " + std::string(to_string(convention.preset)) + ": Sigma_W " + convention.sigma_w + ", centre " +
         convention.centre + ", Sigma_B weights " + convention.sigma_b + "\n";
  out += "rank        " + std::to_string(convention.rank_used) + " of at most " +
         std::to_string(convention.rank_limit) + " directions of Sigma_B\n";
  if (report.precision != Precision::exact) {
    out += "precision   " + std::string(to_string(report.precision)) + ": ";
    if (report.scatter_error > 0) {
      char bound[32];
      std::snprintf(bound, sizeof bound, "%.1e", report.scatter_error);
      out += "|error of the scatter| <= " + std::string(bound) + " of its trace; its diagonal " +
             (report.cosine_error > 0 ? "is exact; " : "and everything else are exact\n");
    }
    if (report.cosine_error > 0)
      out += "pairs of classes: see the note\n";
    else if (!(report.scatter_error > 0))
      out += "there was nothing to take fast, everything is exact\n";
  }
  for (const auto& note : report.notes) out += folded("note       ", note, 11);

  for (const auto& group : kMetricGroups) {
    std::string lines;
    for (const auto& info : metric_catalogue()) {
      if (!info.key.starts_with(group.prefix)) continue;
      const auto value = report.find(info.key);
      if (!value) continue;
      lines += "  " + padded(std::string(info.key), 20) + padded(readable(info.key, *value), 14, true) + "  " +
               arrow(info.direction) + "  " + faint(std::string(info.meaning)) + "\n";
    }
    if (!lines.empty())
      out += "\n" + bold(padded(std::string(group.name), 5) + std::string(group.title)) + "\n" + lines;
  }
  out += faint("\n  v: lower is more collapsed, ^: higher is\n");
  if (!report.spectrum.empty()) out += "\n" + bold("Spectrum of the label matrix") + "\n" + spectrum_table(report);
  out += "\n" + bold("Per class") + "\n" + class_table(report);

  std::map<std::string, std::string> by_reason;
  for (const auto& [key, status] : report.status) {
    std::string& keys = by_reason[status.code + ", " + status.why + ":"];
    keys += (keys.empty() ? "" : ", ") + key;
  }
  if (!by_reason.empty()) out += "\n" + bold("Not computed") + "\n";
  for (const auto& [reason, keys] : by_reason) out += folded("  " + reason, keys, 5);
  return out;
}

}  // namespace ncollapse
