// Layout: everything is placed by hand, in pixels, so that legends stand beside the panels and nothing can overlap. Axis
// ranges are computed here as well: gnuplot would end with an error where an axis has no values, and panels that
// stand side by side must share them.
#include "host/cli/plot_pictures.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

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

// ------------------------------------------------------------------------------------------------ text

// Names of files need be neither UTF-8 nor one line; pictures and scripts are.
std::string printable(const std::string& text) {
  using Json = nlohmann::json;
  std::string clean = Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
  for (char& c : clean)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return clean;
}

// A string in gnuplot's single quotes, where only the quote itself is special.
std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : printable(text)) result += c == '\'' ? std::string("''") : std::string(1, c);
  return result + "'";
}

// The shortest text that reads back as the same double; ? is declared missing in the scripts.
std::string data_value(double value) { return std::isfinite(value) ? fmt::format("{}", value) : "?"; }

std::string file_name(const std::string& path) { return std::filesystem::path(path).filename().string(); }

std::string data_head(const Recording& recording, const std::string& what) {
  return fmt::format("# {}\n# of {} ({}), made by ncollapse {}\n# ? is a value that is undefined or was not measured\n",
                     what, printable(recording.file), printable(recording.title), version());
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

std::string script_head(const std::string& image, PictureFormat format, const Canvas& canvas, const std::string& what) {
  const std::string terminal =
      format == PictureFormat::svg
          ? fmt::format("svg noenhanced size {0:.0f},{1:.0f} font 'Helvetica,12' background '#ffffff'", canvas.width,
                        canvas.height)
          : fmt::format("pngcairo noenhanced size {:.0f},{:.0f} font 'Helvetica,9' background '#ffffff'", canvas.width,
                        canvas.height);
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
      "positive(y) = y > 0 ? y : NaN  # a logarithmic axis has no place for 0\n"
      "set border lw 0.7 lc '#404040'\n"
      "set tics nomirror scale 0.6\n"
      "set grid lc '#dddddd' lw 0.5 dt 1\n"
      "set multiplot\n",
      what, version(), std::filesystem::path(image).stem().string(), terminal, quoted(image));
}

const std::string kScriptEnd = "unset multiplot\nunset output\n";

std::string place(const Canvas& canvas, const Box& box) {
  return fmt::format("set lmargin at screen {:.5f}\nset rmargin at screen {:.5f}\n"
                     "set tmargin at screen {:.5f}\nset bmargin at screen {:.5f}\n",
                     canvas.x(box.left), canvas.x(box.left + box.width), canvas.y(box.top),
                     canvas.y(box.top + box.height));
}

struct TextStyle {
  std::string_view justify = "left", font = "";
};

std::string text_at(const Canvas& canvas, double x, double y, const std::string& text, TextStyle style = {}) {
  return fmt::format("set label {} at screen {:.5f},{:.5f} {}{}\n", quoted(text), canvas.x(x), canvas.y(y),
                     style.justify, style.font.empty() ? "" : fmt::format(" font '{}'", style.font));
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

// Whole decades.
Range decades(Range range) {
  Range result{std::pow(10, std::floor(std::log10(std::max(range.low, kLowest)))),
               std::pow(10, std::ceil(std::log10(std::max(range.high, kLowest))))};
  if (result.low >= result.high) result.high = result.low * 10;
  return result;
}

std::string log_axis(const Range& range) {
  const double count = std::round(std::log10(range.high / range.low));
  const double step = std::max(1.0, std::ceil(count / 6));
  return fmt::format("set logscale y 10\nset yrange [{:.0e}:{:.0e}]\nset ytics {:.0e}\nset mytics {}\n", range.low,
                     range.high, std::pow(10, step), step > 1 ? "default" : "10");
}

// ------------------------------------------------------------------------------------------------ curves

// One row of the picture of curves. Its curves are chosen by the catalogue: scalars of one direction whose key
// begins with one of the prefixes.
struct PanelKind {
  std::string_view title;
  bool logarithmic;
  std::string_view direction;
  std::vector<std::string_view> prefixes;
};

const std::vector<PanelKind>& panel_kinds() {
  static const std::vector<PanelKind> kinds{
      {"NC1 variability, NC3 duality (0: collapsed)", true, "down", {"nc1_pinv", "nc3_"}},
      {"NC2 geometry of means (_h) and classifiers (_w) (0: that of balanced classes)", true, "down", {"nc2_"}},
      {"Distance to the predicted global minimiser (0: reached)", true, "down", {"ufmb_", "gof_"}},
      {"Accuracy, agreement, alignment (1: collapsed)", false, "up", {"acc_", "ncc_", "nc4_", "nc3_", "ufmb_", "gof_"}},
  };
  return kinds;
}

struct Curve {
  std::string name, meaning;
  std::string colour;
  int dash, marker;
};

struct Panel {
  std::string title;
  bool logarithmic;
  std::vector<Curve> curves;
  Range range;
};

// Members of a pair share their colour; the line's dashes tell which one it is.
std::pair<std::string_view, int> stem_and_dash(std::string_view key) {
  constexpr int kSolid = 1, kDashed = 2, kDashDotted = 4;
  for (const auto& [suffix, dash] :
       {std::pair{"_h", kSolid}, {"_w", kDashed}, {"_train", kSolid}, {"_test", kDashed}, {"_wh", kDashDotted}})
    if (key.ends_with(suffix)) return {key.substr(0, key.size() - std::string_view(suffix).size()), dash};
  return {key, kSolid};
}

bool drawable(double y, bool logarithmic) { return std::isfinite(y) && (!logarithmic || y > 0); }

const std::vector<double>* find_curve(const Recording& run, std::string_view name) {
  for (const auto& [key, values] : run.curves)
    if (key == name) return &values;
  return nullptr;
}

// Includes what any of the runs has of the curve; false when there is nothing to draw.
bool include_curve(std::string_view name, const std::vector<const Recording*>& runs, bool logarithmic, Range& range) {
  bool any = false;
  for (const Recording* run : runs)
    if (const auto* values = find_curve(*run, name))
      for (const double y : *values)
        if (drawable(y, logarithmic)) {
          range.include(y);
          any = true;
        }
  return any;
}

bool belongs(const MetricInfo& info, const PanelKind& kind) {
  // The largest cosine ends at -1/(K-1), on a linear axis.
  if (info.scope != "scalar" || info.direction != kind.direction || info.key.find("_cos_max") != info.key.npos)
    return false;
  if (info.key == "nc1_pinv_sum") return false;  // nc1_pinv times a constant
  return std::any_of(kind.prefixes.begin(), kind.prefixes.end(),
                     [&](std::string_view prefix) { return info.key.starts_with(prefix); });
}

std::vector<Panel> panels_of(const std::vector<const Recording*>& runs) {
  std::vector<Panel> panels;
  for (const PanelKind& kind : panel_kinds()) {
    Panel panel{std::string(kind.title), kind.logarithmic, {}, {}};
    std::vector<std::string_view> stems;
    for (const MetricInfo& info : metric_catalogue()) {
      if (!belongs(info, kind) || !include_curve(info.key, runs, kind.logarithmic, panel.range)) continue;
      auto [stem, dash] = stem_and_dash(info.key);
      auto found = std::find(stems.begin(), stems.end(), stem);
      if (found == stems.end()) found = stems.insert(stems.end(), stem);
      const auto style = static_cast<std::size_t>(found - stems.begin());
      panel.curves.push_back({std::string(info.key), std::string(info.meaning),
                              std::string(kColours[style % kColours.size()]), dash, static_cast<int>(style)});
    }
    if (!panel.curves.empty()) panels.push_back(std::move(panel));
  }
  Panel loss{"Loss, its predicted minimum, and the gap between them", true, {}, {}};
  for (const Curve& curve : {Curve{"loss", "reached", "#0072B2", 1, 0}, Curve{"minimum", "predicted", "#000000", 2, -1},
                             Curve{"gap", "loss - minimum", "#D55E00", 4, 1}})
    if (include_curve(curve.name, runs, true, loss.range)) loss.curves.push_back(curve);
  if (!loss.curves.empty()) panels.push_back(std::move(loss));
  for (Panel& panel : panels) {
    if (panel.logarithmic) {
      panel.range = decades(panel.range);
    } else {
      const double low = std::floor(10 * std::min(panel.range.low, 0.9)) / 10;
      panel.range = {low, 1 + 0.05 * (1 - low)};
    }
  }
  return panels;
}

TextFile curves_data(const Recording& run, const std::string& name) {
  std::string text = data_head(run, "The curves of a run, a line a measured step") + run.x_name;
  for (const auto& [key, values] : run.curves) text += " " + key;
  text += "\n";
  for (std::size_t i = 0; i < run.x.size(); ++i) {
    text += data_value(run.x[i]);
    for (const auto& [key, values] : run.curves) text += " " + data_value(values[i]);
    text += "\n";
  }
  return {name, text};
}

std::string draw_curve(const Curve& curve, const Recording& run, const std::string& data, bool logarithmic) {
  constexpr std::array<int, 8> kMarkers{7, 5, 9, 11, 13, 6, 4, 8};
  const std::string y = fmt::format("column('{}')", curve.name);
  const std::string marks =
      curve.marker < 0 ? "lines"
                       : fmt::format("linespoints pt {} ps 0.45 pn 9",
                                     kMarkers[static_cast<std::size_t>(curve.marker) % kMarkers.size()]);
  return fmt::format("  {} using (column('{}')):({}) with {} lc '{}' dt {} lw 1.4 title ", quoted(data), run.x_name,
                     logarithmic ? "positive(" + y + ")" : y, marks, curve.colour, curve.dash);
}

// Panels below each other share the x axis, runs side by side the y axis as well; the legends stand on the right.
TextFile curves_script(const std::vector<const Recording*>& runs, const std::vector<std::string>& data,
                       const std::string& image, PictureFormat format) {
  const auto panels = panels_of(runs);
  if (panels.empty()) throw DataError(runs.front()->file + ": no step has a value that can be drawn");
  const double columns = static_cast<double>(runs.size());
  const double left = 95, gap = 22, legend = 380, top = 62, bottom = 58, between = 34, line = 17;
  const double panel_width = runs.size() == 1 ? 620 : std::max(260.0, 1000 / columns);
  std::vector<double> heights;
  double height = top + bottom - between;
  for (const Panel& panel : panels) {
    heights.push_back(std::max(170.0, line * static_cast<double>(panel.curves.size()) + 12));
    height += heights.back() + between;
  }
  const Canvas canvas{left + columns * panel_width + (columns - 1) * gap + legend, height};
  Range x;
  for (const Recording* run : runs) {
    if (run->x_name != runs.front()->x_name)
      throw UsageError(fmt::format("{} counts in {}s and {} in {}s: they cannot share an axis", runs.front()->file,
                                   runs.front()->x_name, run->file, run->x_name),
                       "plot them one by one");
    for (const double step : run->x) x.include(step);
  }
  if (x.low == x.high) x.high = x.low + 1;

  std::string script =
      script_head(image, format, canvas, runs.size() == 1 ? "The curves of a run" : "Runs side by side, on the same axes");
  script += fmt::format("set xrange [{}:{}]\n", x.low, x.high);
  double panel_top = top;
  for (std::size_t p = 0; p < panels.size(); ++p) {
    const Panel& panel = panels[p];
    const bool last_row = p + 1 == panels.size();
    script += "\n# " + panel.title + "\n";
    script += panel.logarithmic ? log_axis(panel.range)
                                : fmt::format("unset logscale y\nset yrange [{}:{}]\nset ytics autofreq\nunset mytics\n",
                                              panel.range.low, panel.range.high);
    for (std::size_t r = 0; r < runs.size(); ++r) {
      const Recording& run = *runs[r];
      const Box box{left + static_cast<double>(r) * (panel_width + gap), panel_top, panel_width, heights[p]};
      const bool last_column = r + 1 == runs.size();
      script += place(canvas, box) + "unset label\n";
      if (p == 0) {
        script += text_at(canvas, box.left, 16, run.title, {.font = ",14"});
        script += text_at(canvas, box.left, 34, file_name(run.file), {.font = ",10"});
      }
      if (r == 0) script += text_at(canvas, box.left, panel_top - 10, panel.title, {.font = ",11"});
      script += r == 0 ? fmt::format("set format y '{}'\nset ylabel '{}' offset 0,0\n", panel.logarithmic ? "%.0e" : "%g",
                                     last_row && panel.title.starts_with("Loss") ? "loss" : "dimensionless")
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
      for (const Curve& curve : panel.curves) {
        const std::string title = quoted(curve.name + "  " + curve.meaning);
        if (find_curve(run, curve.name) != nullptr)
          curves += draw_curve(curve, run, data[r], panel.logarithmic) + title + ", \\\n";
        else  // only in another run: NaN draws the legend's entry and no curve
          curves += fmt::format("  NaN with lines lc '{}' dt {} lw 1.4 title {}, \\\n", curve.colour, curve.dash, title);
      }
      curves.erase(curves.size() - 4);  // the last comma
      script += curves + "\n";
    }
    panel_top += heights[p] + between;
  }
  return {std::filesystem::path(image).stem().string() + ".gp", script + kScriptEnd};
}

// ------------------------------------------------------------------------------------------------ spectrum

TextFile spectrum_data(const Recording& recording, const std::string& name) {
  std::string text = data_head(recording, "The eigenspaces of the label matrix, predicted and measured");
  if (recording.is_run()) text += fmt::format("# at {} {}\n", recording.x_name, recording.spectrum_at);
  text += "sigma multiplicity w_predicted w_measured z_predicted z_measured cosine\n";
  for (const SpectrumRow& row : recording.spectrum) {
    // A direction that is not there has no angle.
    const bool vanished = row.w_measured == 0 || row.z_measured == 0 || row.w_predicted == 0 || row.z_predicted == 0;
    text += data_value(row.sigma) + fmt::format(" {}", row.multiplicity);
    for (const double value : {row.w_predicted, row.w_measured, row.z_predicted, row.z_measured}) text += " " + data_value(value);
    text += " " + (vanished ? "?" : data_value(row.cosine)) + "\n";
  }
  return {name, text};
}

TextFile spectrum_script(const Recording& recording, const std::string& data, const std::string& image,
                         PictureFormat format) {
  const Canvas canvas{760, 760};
  const double left = 95, width = 520, top = 78, height = 180, between = 36, legend = left + width + 10;
  Range x, w, z, cosine;
  for (const SpectrumRow& row : recording.spectrum) {
    for (const auto& [range, value] : {std::pair{&x, row.sigma},
                                       {&w, row.w_predicted},
                                       {&w, row.w_measured},
                                       {&z, row.z_predicted},
                                       {&z, row.z_measured},
                                       {&cosine, row.cosine}})
      if (std::isfinite(value)) range->include(value);
  }
  std::string script = script_head(image, format, canvas, "The spectrum, predicted beside measured");
  const auto from_zero = [](const Range& range) {
    const double high = range.empty() || range.high <= 0 ? 1 : range.high;
    return Range{-0.05 * high, 1.12 * high};
  };
  const Range x_range = from_zero(x);
  script += fmt::format("set xrange [{}:{}]\n", x_range.low, x_range.high);
  script += text_at(canvas, left, 20, recording.title, {.font = ",14"});
  script += text_at(canvas, left, 38,
                    file_name(recording.file) +
                        (recording.is_run() ? fmt::format(", {} {}", recording.x_name, recording.spectrum_at) : ""),
                    {.font = ",10"});
  struct Row {
    const char *title, *label, *predicted, *measured;
    Range range;
  };
  const double lowest_cosine = cosine.empty() ? 0 : std::min(cosine.low, 0.0);
  const Row rows[] = {{"Classifier W", "norm of its part, w", "w_predicted", "w_measured", from_zero(w)},
                      {"Class means Z = M D", "norm of their part, z", "z_predicted", "z_measured", from_zero(z)},
                      {"Alignment of the two", "cosine", nullptr, "cosine", {1.05 * lowest_cosine - 0.05, 1.1}}};
  double row_top = top;
  for (const Row& row : rows) {
    const bool last_row = row.predicted == nullptr;
    script += fmt::format("\n# {}\n", row.title) + place(canvas, {left, row_top, width, height});
    script += text_at(canvas, left, row_top - 10, row.title, {.font = ",11"});
    script += fmt::format("set yrange [{}:{}]\nset ylabel '{}'\n", row.range.low, row.range.high, row.label);
    script += last_row ? "set format x '%g'\nset xlabel 'sigma, singular value of the label matrix'\n"
                       : "set format x ''\n";
    script += fmt::format("set key at screen {:.5f},{:.5f} left top Left reverse samplen 1.5 spacing 1.1 font ',11'\n",
                          canvas.x(legend), canvas.y(row_top));
    script += "plot \\\n";
    if (row.predicted != nullptr)
      script += fmt::format("  {} using (column('sigma')):(column('{}')) with points pt 6 ps 1.6 lw 1.4 lc '{}' title "
                            "'predicted', \\\n",
                            quoted(data), row.predicted, kPredictedColour);
    script += fmt::format("  {} using (column('sigma')):(column('{}')) with points pt 7 ps 0.7 lc '{}' title 'measured'\n",
                          quoted(data), row.measured, kMeasuredColour);
    script += "unset label\n";
    row_top += height + between;
  }
  return {std::filesystem::path(image).stem().string() + ".gp", script + kScriptEnd};
}

// ------------------------------------------------------------------------------------------------ cosines

struct Heatmap {
  std::string_view name, title;
  const BlockCosines* blocks;
};

std::vector<Heatmap> heatmaps(const Recording& report) {
  std::vector<Heatmap> maps;
  for (const Heatmap& map : {Heatmap{"block_cos_h", "class means, block_cos_h", &report.block_cos_h},
                             Heatmap{"block_cos_w", "classifiers, block_cos_w", &report.block_cos_w}})
    if (!map.blocks->cosines.empty()) maps.push_back(map);
  return maps;
}

TextFile cosines_data(const Recording& report, const std::string& name) {
  std::string text = data_head(report, "Mean cosines between groups of classes of equal size, by descending size") +
                     "of row column size_row size_column cosine\n";
  for (const Heatmap& map : heatmaps(report)) {
    const auto& sizes = map.blocks->sizes;
    for (std::size_t row = 0; row < sizes.size(); ++row)
      for (std::size_t column = 0; column < sizes.size(); ++column)
        text += fmt::format("{} {} {} {} {} {}\n", map.name, row, column, sizes[row], sizes[column],
                            data_value(map.blocks->cosines[row * sizes.size() + column]));
  }
  return {name, text};
}

std::string size_tics(const std::vector<Index>& sizes) {
  constexpr std::size_t kMaxTics = 12;
  const std::size_t step = (sizes.size() + kMaxTics - 1) / kMaxTics;
  std::string tics;
  for (std::size_t g = 0; g < sizes.size(); g += step)
    tics += fmt::format("{}'{}' {}", tics.empty() ? "" : ", ", sizes[g], g);
  return "(" + tics + ")";
}

TextFile cosines_script(const Recording& report, const std::string& data, const std::string& image,
                        PictureFormat format) {
  constexpr std::size_t kMaxNumbered = 12;  // more groups leave no room for numbers in the cells
  const auto maps = heatmaps(report);
  const double left = 95, top = 78, side = 400, between = 110, bottom = 65, right = 110;
  const auto count = static_cast<double>(maps.size());
  const Canvas canvas{left + count * side + (count - 1) * between + right, top + side + bottom};
  double largest = 0.05;
  for (const Heatmap& map : maps)
    for (const double cosine : map.blocks->cosines)
      if (std::isfinite(cosine)) largest = std::max(largest, std::abs(cosine));
  largest = std::min(1.0, std::ceil(largest * 20) / 20);
  std::string script = script_head(image, format, canvas, "Mean cosines between groups of classes of equal size");
  script += text_at(canvas, left, 20, report.title, {.font = ",14"});
  script += text_at(canvas, left, 38, file_name(report.file), {.font = ",10"});
  script +=
      "set palette defined (-1 '#0072B2', 0 '#ffffff', 1 '#D55E00')\n"
      "unset grid\nunset key\n"
      "set style fill solid noborder\n"
      "cell(name, value) = strcol('of') eq name ? value : NaN\n";
  script += fmt::format("set cbrange [{}:{}]\n", -largest, largest);
  for (std::size_t m = 0; m < maps.size(); ++m) {
    const Heatmap& map = maps[m];
    const auto& sizes = map.blocks->sizes;
    const double map_left = left + static_cast<double>(m) * (side + between);
    script += fmt::format("\n# {}\n", map.title) + place(canvas, {map_left, top, side, side});
    script += text_at(canvas, map_left, top - 12, fmt::format("Mean cosines of {}", map.title), {.font = ",12"});
    script += fmt::format("set xrange [-0.5:{0}]\nset yrange [{0}:-0.5]\n", static_cast<double>(sizes.size()) - 0.5);
    script += fmt::format("set xtics {0}\nset ytics {0}\n", size_tics(sizes));
    script += "set xlabel 'samples of a class'\nset ylabel 'samples of a class'\n";
    if (m + 1 == maps.size())
      script += fmt::format("set colorbox user origin screen {:.5f},{:.5f} size screen {:.5f},{:.5f}\nset cblabel "
                            "'cosine; grey: undefined'\n",
                            canvas.x(map_left + side + 18), canvas.y(top + side), 14 / canvas.width,
                            side / canvas.height);
    else
      script += "unset colorbox\n";
    script += "set object 1 rectangle from graph 0,0 to graph 1,1 fillcolor '#c0c0c0' fillstyle solid noborder behind\n";
    script += fmt::format(
        "plot {0} using (cell('{1}', column('column'))):(column('row')):(0.5):(0.5):(column('cosine')) with boxxyerror "
        "lc palette",
        quoted(data), map.name);
    if (sizes.size() <= kMaxNumbered)
      script += fmt::format(
          ", \\\n     {} using (cell('{}', column('column'))):(column('row')):(sprintf('%.2f', column('cosine'))) with "
          "labels font ',10'",
          quoted(data), map.name);
    script += "\nunset label\n";
  }
  return {std::filesystem::path(image).stem().string() + ".gp", script + kScriptEnd};
}

}  // namespace

std::vector<Picture> pictures(const std::vector<Recording>& recordings, PictureFormat format) {
  const std::string extension = format == PictureFormat::svg ? ".svg" : ".png";
  std::vector<Picture> all;
  std::vector<const Recording*> runs;
  std::vector<std::string> run_data;
  for (std::size_t i = 0; i < recordings.size(); ++i) {
    const Recording& recording = recordings[i];
    const std::string number = recordings.size() > 1 ? fmt::format("-{}", i + 1) : "";
    const auto already = all.size();
    const auto add = [&](const std::string& kind, const std::string& what, auto make_data, auto make_script) {
      const std::string stem = kind + number;
      const TextFile data = make_data(recording, stem + ".dat");
      all.push_back({stem + extension, what + " of " + recording.file,
                     make_script(recording, data.name, stem + extension, format), {data}});
    };
    if (recording.is_run()) {
      runs.push_back(&recording);
      run_data.push_back("curves" + number + ".dat");
      add("curves", "curves", curves_data,
          [](const Recording& run, const std::string& data, const std::string& image, PictureFormat as) {
            return curves_script({&run}, {data}, image, as);
          });
    }
    if (!recording.spectrum.empty()) add("spectrum", "predicted and measured spectrum", spectrum_data, spectrum_script);
    if (!heatmaps(recording).empty()) add("cosines", "cosines by class size", cosines_data, cosines_script);
    if (all.size() == already)
      throw DataError(recording.file + ": holds nothing that plot draws",
                      "analyze with --lambda-w and --lambda-h gives a spectrum, unequal class sizes give cosines");
  }
  if (runs.size() > 1)
    all.push_back({"compare" + extension, "runs side by side",
                   curves_script(runs, run_data, "compare" + extension, format), {}});
  return all;
}

}  // namespace ncollapse::cli
