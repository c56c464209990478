#include "host/cli/report_page.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>

#include "host/cli/output.hpp"
#include "host/io/report_layout.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse::cli {

namespace {

constexpr std::size_t kMaxRows = 1000;  // of a table; a browser is slow beyond, and nobody reads them

// Pictures are drawn on white and stay so in the dark.
constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; --ink: #1c1c1c; --faint: #5c5c5c; --paper: #ffffff; --line: #d4d4d4; --band: #f3f3f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --faint: #a8a8a8; --paper: #191919; --line: #444444; --band: #252525; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 92rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 0.5rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 0.5rem; }
h3 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
p, dl, figcaption { max-width: 60rem; overflow-wrap: anywhere; }
p.lead { margin: 0.1rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: 1rem 0; font-size: 0.9rem; }
dt, figcaption, small { color: var(--faint); }
dd { margin: 0; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
td, th { padding: 0.15rem 0.7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th.group { background: var(--band); padding-top: 0.5rem; }
th.group small { display: block; font-weight: normal; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font-size: 0.95em; }
figure { margin: 1.5rem 0; }
figure svg { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); }
figcaption { font-size: 0.85rem; margin-top: 0.4rem; }
footer { margin-top: 3rem; font-size: 0.85rem; color: var(--faint); }
@media print {
  :root { --ink: #000000; --faint: #444444; --paper: #ffffff; --line: #bbbbbb; --band: #eeeeee; }
  main { max-width: none; padding: 0; }
  body { font-size: 10pt; }
  div.wide { overflow: visible; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
)";

// ------------------------------------------------------------------------------------------------ text

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : printable(std::string(text))) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      case '\'': result += "&#39;"; break;
      default: result += c;
    }
  }
  return result;
}

std::string element(std::string_view name, std::string_view text) {
  return text.empty() ? "" : fmt::format("<{0}>{1}</{0}>\n", name, escaped(text));
}

std::string number_cell(std::string_view text) { return fmt::format("<td class=\"number\">{}</td>", text); }
std::string number_cell(double value) { return number_cell(readable(value)); }

// A table in a box that scrolls where the page is narrow.
std::string table(std::string_view kind, const std::vector<std::string_view>& heads, const std::string& rows) {
  std::string html = fmt::format("<div class=\"wide\"><table class=\"{}\">\n<thead><tr>", kind);
  for (const auto head : heads) html += fmt::format("<th scope=\"col\">{}</th>", escaped(head));
  return html + "</tr></thead>\n<tbody>\n" + rows + "</tbody>\n</table></div>\n";
}

std::string left_out(std::size_t rows, std::string_view what) {
  return rows <= kMaxRows ? "" : element("p", fmt::format("The table ends after {} of {} {}.", kMaxRows, rows, what));
}

// ------------------------------------------------------------------------------------------------ tables

std::string group_row(std::string_view name, std::string_view title, std::string_view explanation) {
  return fmt::format("<tr><th class=\"group\" colspan=\"4\" scope=\"colgroup\">{}{}{}<small>{}</small></th></tr>\n",
                     escaped(name), name.empty() ? "" : ": ", escaped(title), escaped(explanation));
}

std::string metric_row(std::string_view key, double value, std::string_view direction, std::string_view meaning,
                       std::string_view formula) {
  const std::string_view arrow = direction == "down" ? "<abbr title=\"lower is more collapsed\">\u2193</abbr>"
                                 : direction == "up" ? "<abbr title=\"higher is more collapsed\">\u2191</abbr>"
                                                     : "";
  return fmt::format("<tr><td><code title=\"{}\">{}</code></td>{}<td>{}</td><td>{}</td></tr>\n", escaped(formula),
                     escaped(key), number_cell(readable(key, value)), arrow, escaped(meaning));
}

// What a run's steps say of the loss; a report has its loss among its metrics.
std::string loss_rows(const Recording& recording) {
  std::string rows;
  for (const auto& [name, meaning] : {std::pair{"loss", "loss reached"},
                                      {"minimum", "its predicted minimum"},
                                      {"gap", "how far the loss is above that minimum"}})
    for (const RecordedCurve& curve : recording.curves)
      if (curve.name == name && curve.values.back())
        rows += metric_row(name, *curve.values.back(), "none", meaning, "");
  return rows.empty() ? "" : group_row("", "Loss", "What training has brought down.") + rows;
}

std::string metrics_table(const Recording& recording) {
  std::string rows = loss_rows(recording);
  for (const MetricGroup& group : kMetricGroups) {
    std::string lines;
    for (const MetricInfo& info : metric_catalogue())
      if (info.key.starts_with(group.prefix))
        if (const auto value = recording.report.find(info.key))
          lines += metric_row(info.key, *value, info.direction, info.meaning, info.formula);
    if (!lines.empty()) rows += group_row(group.name, group.title, group.explanation) + lines;
  }
  if (rows.empty()) return "";
  return "<h3>Metrics</h3>\n<p>\u2193: lower is more collapsed, \u2191: higher is. Formulas and sources: "
         "<code>ncollapse metrics</code>.</p>\n" +
         table("metrics", {"metric", "value", "", "meaning"}, rows);
}

std::string spectrum_table(const Report& report) {
  if (report.spectrum.empty()) return "";
  std::string rows;
  for (std::size_t i = 0; i < std::min(report.spectrum.size(), kMaxRows); ++i) {
    const SpectrumRow& row = report.spectrum[i];
    rows += "<tr>" + number_cell(row.sigma) + fmt::format("<td class=\"number\">{}</td>", row.multiplicity);
    for (const double value : {row.w_predicted, row.w_measured, row.z_predicted, row.z_measured, row.cosine})
      rows += number_cell(value);
    rows += "</tr>\n";
  }
  return "<h3>Predicted and measured</h3>\n"
         "<p>Along the singular vectors of the label matrix: w of the classifier, z of the class means, and the cosine "
         "between the two, which is 1 where they are aligned.</p>\n" +
         table("spectrum", {"sigma", "times", "w predicted", "w measured", "z predicted", "z measured", "cosine"},
               rows) +
         left_out(report.spectrum.size(), "rows");
}

std::string class_table(const Report& report) {
  std::vector<std::string_view> heads{"class", "samples"};
  std::vector<const PerClassMetric*> columns;
  for (const ClassColumn& column : kClassColumns)
    for (const PerClassMetric& metric : report.per_class)
      if (metric.key == column.key) {
        heads.push_back(column.head);
        columns.push_back(&metric);
      }
  if (columns.empty()) return "";
  std::string rows;
  for (std::size_t k = 0; k < std::min(report.counts.size(), kMaxRows); ++k) {
    rows += fmt::format("<tr><th scope=\"row\">{}</th><td class=\"number\">{}</td>", k, report.counts[k]);
    for (const auto* column : columns) rows += number_cell(column->values[k]);
    rows += "</tr>\n";
  }
  return "<h3>Per class</h3>\n" + table("classes", heads, rows) + left_out(report.counts.size(), "classes");
}

std::string status_table(const Report& report) {
  std::map<std::pair<std::string, std::string>, std::string> keys_of;  // by reason
  for (const auto& [key, status] : report.status) {
    std::string& keys = keys_of[{status.code, status.why}];
    keys += (keys.empty() ? "" : " ") + key;
  }
  if (keys_of.empty()) return "";
  std::string rows;
  for (const auto& [reason, keys] : keys_of)
    rows += fmt::format("<tr><td>{}</td><td>{}</td><td><code>{}</code></td></tr>\n", escaped(reason.first),
                        escaped(reason.second), escaped(keys));
  return "<h3>Not computed</h3>\n" + table("status", {"", "why", "metrics"}, rows);
}

// ------------------------------------------------------------------------------------------------ pictures

// gnuplot's file as an element of the page. Its names get a prefix: every picture brings symbols of the same names. Its
// titles, the curves' numbers, would pop up under the pointer.
std::string embedded(const std::string& drawing, const std::string& prefix, const std::string& alternative) {
  auto at = drawing.find("<svg");
  if (at == drawing.npos) throw Error(ErrorKind::internal, "gnuplot has drawn something that is not SVG");
  std::string html = fmt::format("<svg role=\"img\" aria-label=\"{}\"", escaped(alternative));
  at += std::string_view("<svg").size();
  bool in_tag = true;
  while (at < drawing.size()) {
    const auto end = std::min(drawing.find(in_tag ? '>' : '<', at), drawing.size());
    std::string piece = drawing.substr(at, end - at);
    if (in_tag && (piece == "<title" || piece == "<desc")) {
      at = drawing.find('>', drawing.find("</" + piece.substr(1), end));
      if (at == drawing.npos) throw Error(ErrorKind::internal, "gnuplot has drawn half a picture");
      ++at;
      in_tag = false;
      continue;
    }
    if (in_tag)
      for (const std::string_view reference : {" id='", " id=\"", "href='#", "href=\"#", "url(#"})
        for (auto found = piece.find(reference); found != piece.npos; found = piece.find(reference, found + 1))
          piece.insert(found + reference.size(), prefix);
    html += piece;
    at = end;
    if (in_tag && at < drawing.size()) html += drawing[at++];
    in_tag = !in_tag;
  }
  return html;
}

std::string figures(std::optional<std::size_t> recording, const std::vector<Picture>& all,
                    const std::vector<std::string>& drawings) {
  std::string html;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].recording != recording) continue;
    html += fmt::format("<figure>\n{}\n<figcaption>{}</figcaption>\n</figure>\n",
                        embedded(drawings[i], fmt::format("p{}-", i + 1), all[i].alternative), escaped(all[i].caption));
  }
  return html;
}

// ------------------------------------------------------------------------------------------------ the page

std::string facts(const Recording& recording) {
  std::string html = "<dl>\n";
  for (const auto& [name, value] : recording.facts) html += element("dt", name) + element("dd", value);
  return html + "</dl>\n";
}

std::string section(const Recording& recording, std::size_t number, const std::vector<Picture>& all,
                    const std::vector<std::string>& drawings) {
  std::string html = fmt::format("<section id=\"recording-{}\">\n<h2>{}</h2>\n", number + 1, escaped(recording.title));
  for (const std::string& line : {recording.data, recording.decays, recording.last_step()})
    if (!line.empty()) html += fmt::format("<p class=\"lead\">{}</p>\n", escaped(line));
  html += facts(recording);
  for (const auto& note : recording.report.notes) html += element("p", "Note: " + note);
  html += figures(number, all, drawings) + metrics_table(recording) + spectrum_table(recording.report) +
          class_table(recording.report) + status_table(recording.report);
  return html + "</section>\n";
}

}  // namespace

std::string report_page(const std::vector<Recording>& recordings, const std::vector<Picture>& all,
                        const std::vector<std::string>& drawings) {
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<title>Neural collapse report</title>\n<style>";
  html += kStyle;
  html += "</style>\n</head>\n<body>\n<main>\n<h1>Neural collapse report</h1>\n";
  if (recordings.size() > 1) {
    html += "<ol>\n";
    for (std::size_t i = 0; i < recordings.size(); ++i)
      html += fmt::format("<li><a href=\"#recording-{}\">{}</a> <small>{}</small></li>\n", i + 1,
                          escaped(recordings[i].title), escaped(recordings[i].file_name()));
    html += "</ol>\n";
  }
  html += figures(std::nullopt, all, drawings);
  for (std::size_t i = 0; i < recordings.size(); ++i) html += section(recordings[i], i, all, drawings);
  return html + fmt::format("<footer>Made by ncollapse {}.</footer>\n</main>\n</body>\n</html>\n", version());
}

}  // namespace ncollapse::cli
