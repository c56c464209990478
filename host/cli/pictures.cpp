// Layout: everything is placed by hand, in pixels, so that legends stand beside the panels and nothing can overlap.
// Axis ranges are computed here as well: gnuplot would end with an error where an axis has no values, and panels that
// stand side by side must share them.
#include "host/cli/pictures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>

#include "host/cli/gnuplot.hpp"
#include "host/cli/output.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse::cli {

namespace {

// Okabe and Ito's colours for all kinds of colour vision; grey instead of their yellow, which is pale on white.
constexpr std::array<std::string_view, 8> kColours{"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                   "#E69F00", "#56B4E9", "#000000", "#808080"};
constexpr std::string_view kPredictedColour = "#000000", kMeasuredColour = "#D55E00";

// Below it a distance is rounding; a curve that falls further leaves its panel through the bottom.
constexpr double kLowest = 1e-18;
constexpr std::string_view kNeverAbove = "(0 within rounding)";

// ------------------------------------------------------------------------------------------------ text

// A string in gnuplot's single quotes, where only the quote itself is special.
std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : printable(text)) result += c == '\'' ? std::string("''") : std::string(1, c);
  return result + "'";
}

// The shortest text that reads back as the same double. gnuplot draws its lines across what is missing, and interrupts
// them where a value is undefined.
constexpr std::string_view kNotMeasured = "?";
std::string data_value(std::optional<double> value) {
  if (!value) return std::string(kNotMeasured);
  return std::isfinite(*value) ? fmt::format("{}", *value) : "NaN";
}

// As much of the text as fits into so many pixels: digits and most letters take 0.56 of the font's size.
std::string fitted(const std::string& text, int size, double pixels) {
  std::string clean = printable(text);
  const auto length = static_cast<std::size_t>(pixels / (0.56 * size));
  if (clean.size() <= length) return clean;
  const auto continues = [&](std::size_t at) { return (static_cast<unsigned char>(clean[at]) & 0xc0) == 0x80; };
  std::size_t end = length - 3;
  while (end > 0 && continues(end)) --end;  // not inside a character of UTF-8
  return clean.substr(0, end) + "...";
}

std::string data_head(const Recording& recording, const std::string& what) {
  return fmt::format("# {}\n# of {} ({}), made by ncollapse {}\n# ? was not measured, NaN is undefined\n", what,
                     printable(recording.file), printable(recording.title), version());
}

// ------------------------------------------------------------------------------------------------ layout

struct Canvas {
  double width, height;
  double x(double pixel) const { return pixel / width; }
  double y(double pixel_from_top) const { return 1 - pixel_from_top / height; }
};

struct Box {
  double left, top, width, height;
};

constexpr std::array<std::string_view, 3> kFormatNames{"svg", "png", "pdf"};

std::string extension(PictureFormat format) {
  return "." + std::string(kFormatNames[static_cast<std::size_t>(format)]);
}

// A pixel is a point of a page, so that fonts take the same part of the picture in all formats.
std::string terminal(PictureFormat format, const Canvas& canvas) {
  const std::string_view style = "background '#ffffff'";
  switch (format) {
    case PictureFormat::svg: break;
    case PictureFormat::png:
      return fmt::format("pngcairo noenhanced size {:.0f},{:.0f} font 'Helvetica,12' fontscale 0.75 {}", canvas.width,
                         canvas.height, style);
    case PictureFormat::pdf:
      return fmt::format("pdfcairo noenhanced size {:.4f}in,{:.4f}in font 'Helvetica,12' fontscale 0.75 {}",
                         canvas.width / 72, canvas.height / 72, style);
  }
  return fmt::format("svg noenhanced size {:.0f},{:.0f} font 'Helvetica,12' {}", canvas.width, canvas.height, style);
}

std::string script_head(const std::string& stem, PictureFormat format, const Canvas& canvas, const std::string& what) {
  return fmt::format(
      "# {}\n"
      "# Made by ncollapse {}; draw it again, in this folder: gnuplot {}.gp\n"
      "reset\n"
      "set encoding utf8\n"
      "set terminal {}\n"
      "set output {}\n"
      "set datafile separator whitespace\n"
      "set datafile missing '?'\n"
      "set datafile columnheaders\n"
      "set border lw 0.7 lc '#404040'\n"
      "set tics nomirror scale 0.6\n"
      "set grid lc '#d8d8d8' lw 0.7 dt 1\n"
      "set multiplot\n",
      what, version(), stem, terminal(format, canvas), quoted(stem + extension(format)));
}

const std::string kScriptEnd = "unset multiplot\nunset output\n";

std::string place(const Canvas& canvas, const Box& box) {
  return fmt::format(
      "set lmargin at screen {:.5f}\nset rmargin at screen {:.5f}\n"
      "set tmargin at screen {:.5f}\nset bmargin at screen {:.5f}\n",
      canvas.x(box.left), canvas.x(box.left + box.width), canvas.y(box.top), canvas.y(box.top + box.height));
}

std::string text_at(const Canvas& canvas, double x, double y, const std::string& text, int size) {
  return fmt::format("set label {} at screen {:.5f},{:.5f} left font ',{}'\n", quoted(text), canvas.x(x), canvas.y(y),
                     size);
}

// The lines above a panel of this width: the model, its data, its weight decays and file. They end kHeading pixels from
// the top.
constexpr double kHeading = 52;
std::string heading(const Canvas& canvas, double left, double width, const Recording& recording,
                    const std::string& remark = {}) {
  std::string script = text_at(canvas, left, 16, fitted(recording.title, 14, width), 14), origin;
  for (const std::string& part : {recording.decays, recording.file_name(), remark})
    if (!part.empty() && part != recording.title) origin += (origin.empty() ? "" : ", ") + part;
  double y = 33;
  for (const std::string& line : {recording.data, origin}) {
    if (line.empty()) continue;
    script += text_at(canvas, left, y, fitted(line, 10, width), 10);
    y += 14;
  }
  return script;
}

// ------------------------------------------------------------------------------------------------ ranges

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

// Whole decades, with room between a curve and the border.
Range decades(Range range) {
  constexpr double kLargest = 308;
  return {std::pow(10, std::min(std::floor(std::log10(range.low) - 0.1), kLargest - 1)),
          std::pow(10, std::min(std::ceil(std::log10(range.high) + 0.1), kLargest))};
}

std::string log_axis(const Range& range) {
  const int low = static_cast<int>(std::lround(std::log10(range.low)));
  const int high = static_cast<int>(std::lround(std::log10(range.high)));
  std::string tics = "set ytics autofreq\nset mytics 10";
  if (const int step = (high - low + 5) / 6; step > 1) {
    tics.clear();
    for (int exponent = low; exponent <= high; ++exponent)
      if (exponent % step == 0) tics += fmt::format("{}1e{}", tics.empty() ? "set ytics (" : ", ", exponent);
    tics += ")\nunset mytics";
  }
  return fmt::format("set logscale y\nset yrange [1e{}:1e{}]\n{}\n", low, high, tics);
}

// ------------------------------------------------------------------------------------------------ curves

// One row of the picture of curves. Its curves are chosen by the catalogue: scalars of one direction whose key
// begins with one of the prefixes.
struct PanelKind {
  std::string_view title, axis;
  bool logarithmic;
  std::string_view direction;
  std::vector<std::string_view> prefixes;
};

const std::vector<PanelKind>& panel_kinds() {
  static const std::vector<PanelKind> kinds{
      {"NC1 variability, NC3 duality (0: collapse of balanced classes)",
       "NC1, NC3",
       true,
       "down",
       {"nc1_pinv", "nc3_"}},
      {"NC2 norms and angles of means (_h) and classifiers (_w) (0: collapse of balanced classes)",
       "NC2",
       true,
       "down",
       {"nc2_equi", "nc2_cos_"}},
      {"NC2 distances from the simplex and the frame (0: collapse of balanced classes)",
       "NC2",
       true,
       "down",
       {"nc2_etf", "nc2_of", "nc2_nearest", "nc2_gnc_"}},
      {"Distance to the predicted global minimiser (0: reached)", "distance", true, "down", {"ufmb_", "gof_"}},
      {"Accuracy, agreement, alignment (1: collapsed)",
       "share or cosine",
       false,
       "up",
       {"acc_", "ncc_", "nc4_", "nc3_", "ufmb_", "gof_"}},
  };
  return kinds;
}

struct Curve {
  std::string name, meaning;
  std::string colour;
  int dash;
  std::optional<std::size_t> marker;
};

std::string legend_of(const Curve& curve) { return curve.name + (curve.meaning.empty() ? "" : "  " + curve.meaning); }

struct Panel {
  std::string title, axis;
  bool logarithmic;
  std::vector<Curve> curves;
  Range range;
  double least_height = 170;
};

constexpr int kSolid = 1, kDashed = 2;

// Members of a pair share their colour; dashes and open marks tell which one it is.
std::pair<std::string_view, int> stem_and_dash(std::string_view key) {
  for (const auto& [suffix, dash] : {std::pair{"_h", kSolid}, {"_w", kDashed}, {"_train", kSolid}, {"_test", kDashed}})
    if (key.ends_with(suffix))  // the stem keeps the _: ufmb_sv is none of the pair ufmb_sv_w, ufmb_sv_h
      return {key.substr(0, key.size() - std::string_view(suffix).size() + 1), dash};
  return {key, kSolid};
}

bool drawable(std::optional<double> y, bool logarithmic) {
  return y && std::isfinite(*y) && (!logarithmic || *y >= kLowest);
}

const RecordedCurve* find_curve(const Recording& run, std::string_view name) {
  for (const RecordedCurve& curve : run.curves)
    if (curve.name == name) return &curve;
  return nullptr;
}

bool has_curve(const Recording& run, std::string_view name, bool logarithmic) {
  const RecordedCurve* curve = find_curve(run, name);
  return curve != nullptr &&
         std::any_of(curve->values.begin(), curve->values.end(), [&](auto y) { return drawable(y, logarithmic); });
}

// Adds the curve to the panel when one of the runs has measured it.
void add_curve(Curve curve, const std::vector<const Recording*>& runs, Panel& panel) {
  bool measured = false, drawn = false;
  for (const Recording* run : runs) {
    const RecordedCurve* recorded = find_curve(*run, curve.name);
    if (recorded == nullptr) continue;
    measured = true;
    for (const auto y : recorded->values)
      if (drawable(y, panel.logarithmic)) {
        panel.range.include(*y);
        drawn = true;
      }
  }
  if (!measured) return;
  if (!drawn) curve.meaning += (curve.meaning.empty() ? "" : " ") + std::string(kNeverAbove);
  panel.curves.push_back(std::move(curve));
}

bool belongs(const MetricInfo& info, const PanelKind& kind) {
  // The largest cosine ends at -1/(K-1), on a linear axis.
  if (info.scope != "scalar" || info.direction != kind.direction || info.key.find("_cos_max") != info.key.npos)
    return false;
  if (info.key == "nc1_pinv_sum") return false;  // nc1_pinv times a constant
  return std::any_of(kind.prefixes.begin(), kind.prefixes.end(),
                     [&](std::string_view prefix) { return info.key.starts_with(prefix); });
}

// Axes around what the panels hold.
void set_ranges(std::vector<Panel>& panels) {
  for (Panel& panel : panels) {
    if (panel.logarithmic) {
      panel.range = decades(panel.range);
    } else {
      const double low = std::floor(10 * std::min(panel.range.low, 0.9)) / 10;
      panel.range = {low, 1 + 0.05 * (1 - low)};
    }
  }
}

// The figure of a paper: few curves, one of each property.
std::vector<Panel> collapse_panels(const std::vector<const Recording*>& runs) {
  struct Choice {
    std::string_view key, meaning, colour;
    int dash;
    std::size_t marker;
  };
  const auto panel_of = [&](std::string_view title, std::string_view axis, bool logarithmic,
                            const std::vector<Choice>& choices) {
    Panel panel{std::string(title), std::string(axis), logarithmic, {}, {}};
    for (const auto& [key, meaning, colour, dash, marker] : choices)
      add_curve({std::string(key), std::string(meaning), std::string(colour), dash, marker}, runs, panel);
    panel.least_height = logarithmic ? 300 : 150;
    return panel;
  };
  // What no weight decays predict is seen against the simplex of balanced classes.
  const bool predicted = std::any_of(runs.begin(), runs.end(), [](const Recording* run) {
    return find_curve(*run, "ufmb_w") != nullptr || find_curve(*run, "gof_w") != nullptr;
  });
  const Choice nc1{"nc1_pinv", "NC1, variability within classes", kColours[0], 1, 0};
  std::vector<Panel> panels{
      predicted ? panel_of("Distance to collapse and to the geometry predicted for these class sizes (0: reached)",
                           "NC metrics", true,
                           {nc1,
                            {"ufmb_w", "NC2, classifiers", kColours[1], 1, 1},
                            {"gof_w", "NC2, classifiers (no bias)", kColours[1], 2, 1},
                            {"ufmb_h", "NC2, class means", kColours[2], 1, 2},
                            {"gof_h", "NC2, class means (no bias)", kColours[2], 2, 2},
                            {"ufmb_wh", "NC3, duality", kColours[3], 1, 3},
                            {"gof_wh", "NC3, duality (no bias)", kColours[3], 2, 3}})
                : panel_of("Distance to the collapse of balanced classes (0: reached)", "NC metrics", true,
                           {nc1,
                            {"nc2_etf_w", "NC2, classifiers", kColours[1], 1, 1},
                            {"nc2_etf_h", "NC2, class means", kColours[2], 1, 2},
                            {"nc3_dual", "NC3, duality", kColours[3], 1, 3}}),
      panel_of("Training accuracy (1: every sample)", "share", false,
               {{"acc_top1_train", "of all samples", kColours[6], 1, 0},
                {"acc_balanced_train", "mean over classes", kColours[4], 2, 1}})};
  std::erase_if(panels, [](const Panel& panel) { return panel.range.empty(); });
  set_ranges(panels);
  return panels;
}

// Everything. Beside several runs there is room for the names of the curves only.
std::vector<Panel> panels_of(const std::vector<const Recording*>& runs) {
  std::vector<Panel> panels;
  for (const PanelKind& kind : panel_kinds()) {
    Panel panel{std::string(kind.title), std::string(kind.axis), kind.logarithmic, {}, {}};
    std::vector<std::string_view> stems;
    for (const MetricInfo& info : metric_catalogue()) {
      if (!belongs(info, kind) || std::none_of(runs.begin(), runs.end(), [&](const Recording* run) {
            return find_curve(*run, info.key) != nullptr;
          }))
        continue;
      auto [stem, dash] = stem_and_dash(info.key);
      auto found = std::find(stems.begin(), stems.end(), stem);
      if (found == stems.end()) found = stems.insert(stems.end(), stem);
      const auto style = static_cast<std::size_t>(found - stems.begin());
      add_curve({std::string(info.key), runs.size() > 1 ? "" : std::string(info.meaning),
                 std::string(kColours[style % kColours.size()]), dash,
                 style + style / kColours.size()},  // once the colours repeat, with other markers
                runs, panel);
    }
    if (!panel.range.empty()) panels.push_back(std::move(panel));
  }
  Panel loss{"Loss, its predicted minimum, and the gap between them", "loss", true, {}, {}};
  for (const Curve& curve :
       {Curve{"loss", "reached", "#0072B2", 1, 0}, Curve{"minimum", "predicted", "#000000", 2, std::nullopt},
        Curve{"gap", "loss - minimum", "#D55E00", 4, 1}})
    add_curve(curve, runs, loss);
  if (loss.curves.size() == 1) loss.title = "Loss";
  if (!loss.range.empty()) panels.push_back(std::move(loss));
  set_ranges(panels);
  return panels;
}

std::string curves_data(const Recording& run) {
  std::string text = data_head(run, "The curves of a run, a line a measured step") + run.x_name;
  for (const RecordedCurve& curve : run.curves) text += " " + curve.name;
  text += "\n";
  for (std::size_t i = 0; i < run.x.size(); ++i) {
    text += data_value(run.x[i]);
    for (const RecordedCurve& curve : run.curves) text += " " + data_value(curve.values[i]);
    text += "\n";
  }
  return text;
}

// How it looks, in the panel and in the legend.
std::string style_of(const Curve& curve, std::size_t steps) {
  constexpr std::size_t kFewSteps = 25;                    // so few that each one gets its mark
  constexpr std::array<int, 5> kMarkers{7, 5, 9, 11, 13};  // filled ones, the open ones come before them
  std::string marks = "lines";
  if (curve.marker) {
    const bool open = curve.dash == kDashed;
    marks = fmt::format("linespoints pt {} ps {}{}", kMarkers[*curve.marker % kMarkers.size()] - (open ? 1 : 0),
                        open ? 0.6 : 0.45, steps > kFewSteps ? " pn 9" : "");
  }
  return fmt::format("with {} lc '{}' dt {} lw 1.4 title {}", marks, curve.colour, curve.dash,
                     quoted(legend_of(curve)));
}

// NaN where the run has nothing to draw: only the legend's entry appears.
std::string draw_curve(const Curve& curve, const Recording& run, const std::string& data, bool logarithmic) {
  if (!has_curve(run, curve.name, logarithmic)) return "  NaN " + style_of(curve, 0);
  return fmt::format("  {} using '{}':'{}' {}", quoted(data), run.x_name, curve.name, style_of(curve, run.x.size()));
}

// Panels below each other share the x axis, runs side by side the y axis as well; the legends stand on the right.
std::string curves_script(const std::vector<Panel>& panels, const std::vector<const Recording*>& runs,
                          const std::vector<std::string>& data, const std::string& stem, PictureFormat format,
                          bool log_x) {
  if (panels.empty()) throw DataError(runs.front()->file + ": no step has a value that can be drawn");
  const double columns = static_cast<double>(runs.size());
  const double left = 95, gap = 36, top = kHeading + 28, bottom = 58, between = 34, line = 17;
  const double panel_width = runs.size() == 1 ? 620 : std::max(260.0, 1000 / columns);
  std::vector<double> heights;
  double height = top + bottom - between;
  std::size_t longest = 0;
  for (const Panel& panel : panels) {
    for (const Curve& curve : panel.curves) longest = std::max(longest, legend_of(curve).size());
    heights.push_back(std::max(panel.least_height, line * static_cast<double>(panel.curves.size()) + 12));
    height += heights.back() + between;
  }
  const double legend = 70 + 6.2 * static_cast<double>(longest);
  const Canvas canvas{left + columns * panel_width + (columns - 1) * gap + legend, height};
  Range x;
  for (const Recording* run : runs) {
    if (run->x_name != runs.front()->x_name)
      throw UsageError(fmt::format("{} counts in {}s and {} in {}s: they cannot share an axis", runs.front()->file,
                                   runs.front()->x_name, run->file, run->x_name),
                       "plot them one by one");
    for (const double step : run->x)
      if (!log_x || step > 0) x.include(step);
  }
  if (x.empty()) throw DataError(runs.front()->file + ": has no step beyond 0, which a logarithmic axis leaves out");
  if (x.low == x.high) x.high = x.low + std::max(1.0, 0.01 * std::abs(x.low));

  std::string script = script_head(stem, format, canvas,
                                   runs.size() == 1 ? "The curves of a run" : "Runs side by side, on the same axes");
  script += fmt::format("set xrange [{}:{}]\n{}", x.low, x.high, log_x ? "set logscale x\n" : "");
  double panel_top = top;
  for (std::size_t p = 0; p < panels.size(); ++p) {
    const Panel& panel = panels[p];
    const bool last_row = p + 1 == panels.size();
    script += "\n# " + panel.title + "\n";
    script += panel.logarithmic
                  ? log_axis(panel.range)
                  : fmt::format("unset logscale y\nset yrange [{}:{}]\nset ytics autofreq\nunset mytics\n",
                                panel.range.low, panel.range.high);
    for (std::size_t r = 0; r < runs.size(); ++r) {
      const Recording& run = *runs[r];
      const Box box{left + static_cast<double>(r) * (panel_width + gap), panel_top, panel_width, heights[p]};
      const bool last_column = r + 1 == runs.size();
      script += place(canvas, box) + "unset label\n";
      if (p == 0) script += heading(canvas, box.left, panel_width, run);
      if (r == 0) script += text_at(canvas, box.left, panel_top - 10, panel.title, 11);
      script += r == 0
                    ? fmt::format("set format y '{}'\nset ylabel '{}'\n", panel.logarithmic ? "%.0e" : "%g", panel.axis)
                    : "set format y ''\nunset ylabel\n";
      script += last_row ? fmt::format("set format x '%g'\nset xlabel '{}'\n", run.x_name)
                         : "set format x ''\nunset xlabel\n";
      if (last_column)
        script += fmt::format(
            "set key at screen {:.5f},{:.5f} left top Left reverse samplen 3 spacing 1 font ',10' width 0\n",
            canvas.x(box.left + box.width + 12), canvas.y(panel_top));
      else
        script += "unset key\n";
      script += "plot \\\n";
      std::string curves;
      for (const Curve& curve : panel.curves)
        curves += (curves.empty() ? "" : ", \\\n") + draw_curve(curve, run, data[r], panel.logarithmic);
      script += curves + "\n";
    }
    panel_top += heights[p] + between;
  }
  return script + kScriptEnd;
}

// ------------------------------------------------------------------------------------------------ spectrum

std::string spectrum_data(const Recording& recording) {
  std::string text = data_head(recording, "The eigenspaces of the label matrix, predicted and measured");
  if (recording.is_run()) text += fmt::format("# at {} {}\n", recording.x_name, recording.spectrum_at);
  text += "sigma multiplicity w_predicted w_measured z_predicted z_measured cosine\n";
  for (const SpectrumRow& row : recording.report.spectrum) {
    // A direction that is not there has no angle.
    const bool vanished = row.w_measured == 0 || row.z_measured == 0 || row.w_predicted == 0 || row.z_predicted == 0;
    text += data_value(row.sigma) + fmt::format(" {}", row.multiplicity);
    for (const double value : {row.w_predicted, row.w_measured, row.z_predicted, row.z_measured})
      text += " " + data_value(value);
    text += " " + (vanished ? "NaN" : data_value(row.cosine)) + "\n";
  }
  return text;
}

std::string spectrum_script(const Recording& recording, const std::string& data, const std::string& stem,
                            PictureFormat format) {
  const Canvas canvas{760, 770};
  const double left = 95, width = 520, top = kHeading + 36, height = 180, between = 36, legend = left + width + 10;
  Range x, w, z, cosine;
  for (const SpectrumRow& row : recording.report.spectrum) {
    for (const auto& [range, value] : {std::pair{&x, row.sigma},
                                       {&w, row.w_predicted},
                                       {&w, row.w_measured},
                                       {&z, row.z_predicted},
                                       {&z, row.z_measured},
                                       {&cosine, row.cosine}})
      if (std::isfinite(value)) range->include(value);
  }
  std::string script = script_head(stem, format, canvas, "The spectrum, predicted beside measured");
  const auto from_zero = [](const Range& range) {
    const double high = range.empty() || range.high <= 0 ? 1 : range.high;
    return Range{-0.05 * high, std::min(1.12 * high, std::numeric_limits<double>::max())};
  };
  const Range x_range = from_zero(x);
  script += fmt::format("set xrange [{}:{}]\n", x_range.low, x_range.high);
  script += heading(canvas, left, width, recording,
                    recording.is_run() ? fmt::format("{} {}", recording.x_name, recording.spectrum_at) : "");
  struct Row {
    const char *title, *label, *predicted, *measured;
    Range range;
  };
  const double lowest_cosine = cosine.empty() ? 0 : std::min(cosine.low, 0.0);
  const Row rows[] = {
      {"Classifier W, along the label matrix's left singular vectors u", "w = |u^T W|", "w_predicted", "w_measured",
       from_zero(w)},
      {"Class means M D, D = diag(sqrt(n_k)), along its right singular vectors v", "z = |M D v|", "z_predicted",
       "z_measured", from_zero(z)},
      {"Alignment of the two", "cosine of u^T W and M D v", nullptr, "cosine", {1.05 * lowest_cosine - 0.05, 1.1}}};
  double row_top = top;
  for (const Row& row : rows) {
    const bool last_row = row.predicted == nullptr;
    script += fmt::format("\n# {}\n", row.title) + place(canvas, {left, row_top, width, height});
    script += text_at(canvas, left, row_top - 10, row.title, 11);
    script += fmt::format("set yrange [{}:{}]\nset ylabel '{}'\n", row.range.low, row.range.high, row.label);
    script +=
        last_row ? "set format x '%g'\nset xlabel 'sigma, singular value of the label matrix'\n" : "set format x ''\n";
    script += fmt::format("set key at screen {:.5f},{:.5f} left top Left reverse samplen 1.5 spacing 1.1 font ',11'\n",
                          canvas.x(legend), canvas.y(row_top));
    script += "plot \\\n";
    if (row.predicted != nullptr)
      script += fmt::format(
          "  {} using 'sigma':'{}' with points pt 6 ps 1.6 lw 1.4 lc '{}' title "
          "'predicted', \\\n",
          quoted(data), row.predicted, kPredictedColour);
    script += fmt::format("  {} using 'sigma':'{}' with points pt 7 ps 0.7 lc '{}' title 'measured'\n", quoted(data),
                          row.measured, kMeasuredColour);
    script += "unset label\n";
    row_top += height + between;
  }
  return script + kScriptEnd;
}

// ------------------------------------------------------------------------------------------------ cosines

struct Heatmap {
  std::string name, title;
  std::size_t column, row;  ///< in the picture: means and classifiers side by side, predicted below measured
  const std::vector<Index>* sizes;
  const std::vector<double>* cosines;
};

std::vector<Heatmap> heatmaps(const Recording& recording) {
  std::vector<Heatmap> maps;
  std::size_t column = 0;
  for (const auto& [name, title, blocks] : {std::tuple{"block_cos_h", "class means", &recording.report.block_cos_h},
                                            {"block_cos_w", "classifiers", &recording.report.block_cos_w}}) {
    if (blocks->cosines.empty()) continue;
    maps.push_back({name, fmt::format("{}, {}", title, name), column, 0, &blocks->sizes, &blocks->cosines});
    if (!blocks->predicted.empty())
      maps.push_back({fmt::format("{}_predicted", name), fmt::format("{}, predicted", title), column, 1, &blocks->sizes,
                      &blocks->predicted});
    ++column;
  }
  return maps;
}

std::string cosines_data(const Recording& recording) {
  std::string text = data_head(recording, "Mean cosines between groups of classes of equal size, by descending size") +
                     "of row column size_row size_column cosine\n";
  for (const Heatmap& map : heatmaps(recording)) {
    const auto& sizes = *map.sizes;
    for (std::size_t row = 0; row < sizes.size(); ++row)
      for (std::size_t column = 0; column < sizes.size(); ++column)
        text += fmt::format("{} {} {} {} {} {}\n", map.name, row, column, sizes[row], sizes[column],
                            data_value((*map.cosines)[row * sizes.size() + column]));
  }
  return text;
}

// Names as many groups as an axis of so many pixels has room for.
std::string size_tics(const std::vector<Index>& sizes, double pixels) {
  const double widest = 7 * static_cast<double>(std::to_string(sizes.front()).size()) + 12;
  const auto most = std::max<std::size_t>(1, static_cast<std::size_t>(pixels / widest));
  const std::size_t step = (sizes.size() + most - 1) / most;
  std::string tics;
  for (std::size_t g = 0; g < sizes.size(); g += step)
    tics += fmt::format("{}'{}' {}", tics.empty() ? "" : ", ", sizes[g], g);
  return "(" + tics + ")";
}

std::string cosines_script(const Recording& recording, const std::string& data, const std::string& stem,
                           PictureFormat format) {
  constexpr std::size_t kMaxNumbered = 12;  // more groups leave no room for numbers in the cells
  const auto maps = heatmaps(recording);
  const double left = 95, top = kHeading + 36, side = 400, between = 110, below = 100, bottom = 65, right = 110;
  double columns = 1, rows = 1, largest = 0.05;
  for (const Heatmap& map : maps) {
    columns = std::max(columns, static_cast<double>(map.column + 1));
    rows = std::max(rows, static_cast<double>(map.row + 1));
    for (const double cosine : *map.cosines)
      if (std::isfinite(cosine)) largest = std::max(largest, std::abs(cosine));
  }
  const Canvas canvas{left + columns * side + (columns - 1) * between + right,
                      top + rows * side + (rows - 1) * below + bottom};
  largest = std::min(1.0, std::ceil(largest * 20) / 20);
  std::string script = script_head(stem, format, canvas, "Mean cosines between groups of classes of equal size");
  script += heading(canvas, left, canvas.width - left, recording, recording.last_step());
  script +=
      "set palette defined (-1 '#0072B2', 0 '#ffffff', 1 '#D55E00')\n"
      "unset grid\nunset key\n"
      "set style fill solid noborder\n"
      "# Undefined cells stay as they are, grey.\n"
      "cell(name, value) = strcol('of') eq name && column('cosine') == column('cosine') ? value : NaN\n"
      "rounded(c) = c == c ? sprintf('%.2f', floor(100 * c + 0.5) / 100.0) : ''  # without -0.00\n";
  script += fmt::format("set cbrange [{}:{}]\n", -largest, largest);
  for (const Heatmap& map : maps) {
    const auto& sizes = *map.sizes;
    const double map_left = left + static_cast<double>(map.column) * (side + between),
                 map_top = top + static_cast<double>(map.row) * (side + below);
    script += fmt::format("\n# {}\n", map.title) + place(canvas, {map_left, map_top, side, side});
    script += text_at(canvas, map_left, map_top - 12, fmt::format("Mean cosines of {}", map.title), 12);
    script += fmt::format("set xrange [-0.5:{0}]\nset yrange [{0}:-0.5]\n", static_cast<double>(sizes.size()) - 0.5);
    script += fmt::format("set xtics {0}\nset ytics {0}\n", size_tics(sizes, side));
    script += "set xlabel 'samples of a class'\nset ylabel 'samples of a class'\n";
    if (&map == &maps.back())
      script += fmt::format(
          "set colorbox user origin screen {:.5f},{:.5f} size screen {:.5f},{:.5f}\nset cblabel "
          "'cosine; grey: undefined'\n",
          canvas.x(map_left + side + 18), canvas.y(map_top + side), 14 / canvas.width, side / canvas.height);
    else
      script += "unset colorbox\n";
    script +=
        "set object 1 rectangle from graph 0,0 to graph 1,1 fillcolor '#c0c0c0' fillstyle solid noborder behind\n";
    script += fmt::format(
        "plot {0} using (cell('{1}', column('column'))):(column('row')):(0.5):(0.5):(column('cosine')) with boxxyerror "
        "lc palette",
        quoted(data), map.name);
    if (sizes.size() <= kMaxNumbered)
      script += fmt::format(
          ", \\\n     {} using (cell('{}', column('column'))):(column('row')):(rounded(column('cosine'))) with "
          "labels font ',10'",
          quoted(data), map.name);
    script += "\nunset label\n";
  }
  return script + kScriptEnd;
}

// ------------------------------------------------------------------------------------------------ captions

constexpr std::string_view kCurvesCaption =
    "Every measured step. Metrics of one property share a panel; members of a pair share a colour. Values that are "
    "undefined, and 0 on a logarithmic axis, leave a gap.";
constexpr std::string_view kCollapseCaption =
    "Collapse within classes (NC1), of classifiers and class means to the geometry predicted for these class sizes, or "
    "without weight decays to that of balanced classes (NC2), and of both to each other (NC3), with the training "
    "accuracy below.";
constexpr std::string_view kSpectrumCaption =
    "Classifier and class means along the singular vectors of the label matrix. Circles: the predicted global "
    "minimiser; dots: measured. Where it is reached each dot lies in its circle and the cosines are 1.";
constexpr std::string_view kCosinesCaption =
    "Mean cosines between classes, grouped by their number of samples, largest first; on the diagonal between "
    "different classes of one group. Below, with weight decays, those of the predicted global minimiser. Blue: "
    "negative, white: orthogonal, orange: positive.";

// Models, data and weight decays; what runs have in common once.
std::string described(const std::vector<const Recording*>& recordings) {
  std::string text;
  for (const auto part : {&Recording::title, &Recording::data, &Recording::decays}) {
    std::vector<std::string> different;
    for (const Recording* recording : recordings)
      if (std::find(different.begin(), different.end(), recording->*part) == different.end())
        different.push_back(recording->*part);
    const std::string all = fmt::format("{}", fmt::join(different, " | "));
    if (!all.empty()) text += (text.empty() ? "" : "; ") + all;
  }
  return text;
}

// "nc1_pinv 3.1e-05, ufmb_w 0.0002", as far as the run measured them last.
std::string last_values(const Recording& run, const std::vector<std::string_view>& names) {
  std::string text;
  for (const std::string_view name : names)
    if (const RecordedCurve* curve = find_curve(run, name); curve != nullptr)
      for (auto value = curve->values.rbegin(); value != curve->values.rend(); ++value)
        if (*value && std::isfinite(**value)) {
          text += fmt::format("{}{} {:.3g}", text.empty() ? "" : ", ", name, **value);
          break;
        }
  return text;
}

std::string curves_alternative(const std::vector<const Recording*>& runs) {
  std::string text = fmt::format("Curves against {}.", runs.front()->x_name);
  for (const Recording* run : runs) {
    const std::string values = last_values(*run, {"nc1_pinv", "ufmb_w", "ufmb_h", "ufmb_wh", "gof_w", "gof_h", "gof_wh",
                                                  "acc_top1_train", "loss", "minimum"});
    text += fmt::format(" {}: {} measured steps{}", run->title, run->x.size(),
                        values.empty() ? "." : ", the last values are " + values + ".");
  }
  return text;
}

std::string spectrum_alternative(const Recording& recording) {
  const auto& spectrum = recording.report.spectrum;
  double worst = 0, largest = 0;
  for (const SpectrumRow& row : spectrum)
    for (const auto& [predicted, measured] :
         {std::pair{row.w_predicted, row.w_measured}, {row.z_predicted, row.z_measured}})
      if (std::isfinite(predicted) && std::isfinite(measured)) {
        worst = std::max(worst, std::abs(predicted - measured));
        largest = std::max(largest, predicted);
      }
  return fmt::format(
      "Predicted and measured singular values in {} eigenspaces of the label matrix: they differ by at most {:.3g}, "
      "the "
      "largest predicted one is {:.3g}.",
      spectrum.size(), worst, largest);
}

std::string cosines_alternative(const Recording& recording) {
  std::string text;
  for (const Heatmap& map : heatmaps(recording)) {
    Range range;
    for (const double cosine : *map.cosines)
      if (std::isfinite(cosine)) range.include(cosine);
    text += fmt::format("{}Heatmap of the mean cosines of {}, {} class sizes", text.empty() ? "" : " ", map.title,
                        map.sizes->size());
    text += range.empty() ? "." : fmt::format(", from {:.3g} to {:.3g}.", range.low, range.high);
  }
  return text;
}

}  // namespace

PictureFormat parse_picture_format(std::string_view name) {
  for (std::size_t i = 0; i < kFormatNames.size(); ++i)
    if (name == kFormatNames[i]) return static_cast<PictureFormat>(i);
  throw UsageError("unknown format '" + std::string(name) + "'", "formats are svg, png and pdf");
}

std::vector<Picture> pictures(const std::vector<Recording>& recordings, PictureFormat format, bool log_x) {
  std::vector<Picture> all;
  std::vector<const Recording*> runs;
  std::vector<std::string> run_data;
  for (std::size_t i = 0; i < recordings.size(); ++i) {
    const Recording& recording = recordings[i];
    const std::string number = recordings.size() > 1 ? fmt::format("-{}", i + 1) : "";
    const auto add = [&](const std::string& kind, const std::string& what, std::string_view caption,
                         std::string alternative, auto make_data, auto make_script) {
      const std::string stem = kind + number, data = stem + ".dat";
      all.push_back({i,
                     stem + extension(format),
                     what + " of " + recording.file,
                     fmt::format("{}. {}", described({&recording}), caption),
                     std::move(alternative),
                     {stem + ".gp", make_script(recording, data, stem, format)},
                     {{data, make_data(recording)}}});
    };
    if (recording.is_run()) {
      runs.push_back(&recording);
      run_data.push_back("curves" + number + ".dat");
      add("curves", "curves", kCurvesCaption, curves_alternative({&recording}), curves_data,
          [log_x](const Recording& run, const std::string& data, const std::string& stem, PictureFormat as) {
            return curves_script(panels_of({&run}), {&run}, {data}, stem, as, log_x);
          });
    }
    if (!recording.report.spectrum.empty())
      add("spectrum", "predicted and measured spectrum", kSpectrumCaption, spectrum_alternative(recording),
          spectrum_data, spectrum_script);
    if (!heatmaps(recording).empty())
      add("cosines", "cosines by class size", kCosinesCaption, cosines_alternative(recording), cosines_data,
          cosines_script);
  }
  const auto add_together = [&](const std::string& stem, const std::string& what, std::string_view caption,
                                const std::vector<Panel>& panels) {
    const bool alone = recordings.size() == 1;  // the picture to look at first
    Picture picture{alone ? std::optional<std::size_t>(0) : std::nullopt,
                    stem + extension(format),
                    what,
                    fmt::format("{}. {}", described(runs), caption),
                    curves_alternative(runs),
                    {stem + ".gp", curves_script(panels, runs, run_data, stem, format, log_x)},
                    {}};
    all.insert(alone ? all.begin() : all.end(), std::move(picture));
  };
  if (runs.empty()) return all;
  if (const auto panels = collapse_panels(runs); !panels.empty())
    add_together("collapse", "distance to collapse and training accuracy", kCollapseCaption, panels);
  if (runs.size() > 1) add_together("compare", "runs side by side, on the same axes", kCurvesCaption, panels_of(runs));
  return all;
}

void write_script(const Picture& picture, const std::filesystem::path& folder) {
  for (const TextFile& data : picture.data) write_output(folder / data.name, data.text);
  write_output(folder / picture.script.name, picture.script.text);
  std::error_code ignored;
  std::filesystem::remove(folder / picture.image, ignored);
}

void draw(const Picture& picture, const std::filesystem::path& folder, const std::string& remark) {
  try {
    run_gnuplot(folder, picture.script.name, remark);
    // gnuplot does not tell when it could not write.
    std::ifstream file(folder / picture.image, std::ios::binary);
    const std::string image = rest_of(file, (folder / picture.image).string());
    const std::string_view end = picture.image.ends_with(".svg")   ? "</svg>"
                                 : picture.image.ends_with(".png") ? "IEND"
                                                                   : "%%EOF";
    if (image.rfind(end) == image.npos)
      throw Error(ErrorKind::internal, (folder / picture.image).string() + ": gnuplot has not written a whole picture",
                  "is the disk full?" + (remark.empty() ? "" : " " + remark));
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(folder / picture.image, ignored);  // half a picture
    throw;
  }
}

}  // namespace ncollapse::cli
