#include "host/cli/plot_input.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>

#include "ncollapse/error.hpp"

namespace ncollapse::cli {

namespace {

using Json = nlohmann::json;

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();
constexpr const char* kReportSchema = "ncollapse.metrics/1";
constexpr const char* kRunSchemas[] = {"ncollapse.simulation/1", "ncollapse.run/1"};

/// Where in which file: every complaint starts with it.
struct Place {
  std::string file;
  std::size_t line;
};

[[noreturn]] void fail(const Place& place, const std::string& what, const std::string& hint = {}) {
  throw DataError(fmt::format("{}: line {}: {}", place.file, place.line, what), hint);
}

// NaN for null and for what is not there.
double number(const Json& object, const std::string& key, const Place& place) {
  const auto value = object.find(key);
  if (value == object.end() || value->is_null()) return kUndefined;
  if (!value->is_number()) fail(place, fmt::format("\"{}\" is not a number", key));
  return value->get<double>();
}

// The array or object under the key; an empty one where the key is absent.
Json part(const Json& object, const std::string& key, Json::value_t type, const Place& place) {
  const auto value = object.find(key);
  if (value == object.end() || value->is_null()) return Json(type);
  if (value->type() != type)
    fail(place, fmt::format("\"{}\" is not {}", key, type == Json::value_t::array ? "an array" : "an object"));
  return *value;
}

std::vector<SpectrumRow> read_spectrum(const Json& object, const Place& place) {
  std::vector<SpectrumRow> spectrum;
  for (const Json& row : part(object, "spectrum", Json::value_t::array, place)) {
    if (!row.is_object()) fail(place, "a row of \"spectrum\" is not an object");
    const double multiplicity = number(row, "multiplicity", place);
    spectrum.push_back({.sigma = number(row, "sigma", place),
                        .multiplicity = multiplicity >= 1 ? static_cast<Index>(multiplicity) : 1,
                        .w_predicted = number(row, "w_predicted", place),
                        .w_measured = number(row, "w_measured", place),
                        .z_predicted = number(row, "z_predicted", place),
                        .z_measured = number(row, "z_measured", place),
                        .cosine = number(row, "cosine", place)});
  }
  return spectrum;
}

BlockCosines read_blocks(const Json& report, const std::string& key, const Place& place) {
  const Json blocks = part(report, key, Json::value_t::object, place);
  BlockCosines result;
  for (const Json& size : part(blocks, "sizes", Json::value_t::array, place)) {
    if (!size.is_number_integer()) fail(place, fmt::format("\"{}\" has a class size that is not whole", key));
    result.sizes.push_back(size.get<Index>());
  }
  for (const Json& row : part(blocks, "cosines", Json::value_t::array, place)) {
    if (!row.is_array()) fail(place, fmt::format("a row of \"{}\" is not an array", key));
    for (const Json& cosine : row) {
      if (!cosine.is_number() && !cosine.is_null())
        fail(place, fmt::format("\"{}\" has a cosine that is not a number", key));
      result.cosines.push_back(cosine.is_null() ? kUndefined : cosine.get<double>());
    }
  }
  if (!result.cosines.empty() && result.cosines.size() != result.sizes.size() * result.sizes.size())
    fail(place,
         fmt::format("\"{}\" has {} cosines for {} class sizes", key, result.cosines.size(), result.sizes.size()));
  return result;
}

// "L = 3, with bias, d = 8", or what the header tells of it.
std::string model_title(const Json& header, const Place& place) {
  const Json model = part(header, "model", Json::value_t::object, place);
  std::string title;
  const auto add = [&](const std::string& text) { title += (title.empty() ? "" : ", ") + text; };
  if (const double layers = number(model, "layers", place); std::isfinite(layers)) add(fmt::format("L = {}", layers));
  if (model.contains("with_bias") && model["with_bias"].is_boolean())
    add(model["with_bias"].get<bool>() ? "with bias" : "no bias");
  if (const double width = number(model, "width", place); std::isfinite(width)) add(fmt::format("d = {}", width));
  return title;
}

std::string report_title(const Json& report, const Place& place) {
  const Json shape = part(report, "shape", Json::value_t::object, place);
  std::string title;
  for (const auto& [key, text] : {std::pair{"K", "K"}, {"D", "d"}, {"N", "N"}})
    if (const double value = number(shape, key, place); std::isfinite(value))
      title += fmt::format("{}{} = {:.0f}", title.empty() ? "" : ", ", text, value);
  return title;
}

void read_report(const Json& report, const Place& place, Recording& recording) {
  recording.title = report_title(report, place);
  if (recording.title.empty()) recording.title = recording.file_name();
  recording.spectrum = read_spectrum(report, place);
  recording.block_cos_h = read_blocks(report, "block_cos_h", place);
  recording.block_cos_w = read_blocks(report, "block_cos_w", place);
}

/// The curves of a run grow step by step; only the last spectrum is kept.
class RunReader {
 public:
  explicit RunReader(Recording& recording) : recording_(recording) {
    for (const auto* name : {"loss", "minimum", "gap"}) recording.curves.push_back({name, {}});
    for (const auto& info : metric_catalogue())
      if (info.scope == "scalar") recording.curves.push_back({std::string(info.key), {}});
  }

  void read_line(const Json& line, const Place& place) {
    const auto type = line.find("type");
    if (type == line.end() || !type->is_string()) fail(place, "has no \"type\"");
    if (*type != "step") return;  // the end, and what later versions may tell
    const std::string x_name = line.contains("epoch") ? "epoch" : "iteration";
    const double x = number(line, x_name, place);
    if (!std::isfinite(x)) fail(place, "the step has neither an \"epoch\" nor an \"iteration\"");
    if (!recording_.x_name.empty() && x_name != recording_.x_name)
      fail(place, fmt::format("counts in \"{}\", the steps before in \"{}\"", x_name, recording_.x_name));
    recording_.x_name = x_name;
    recording_.x.push_back(x);
    const Json metrics = part(line, "metrics", Json::value_t::object, place);
    for (std::size_t i = 0; i < recording_.curves.size(); ++i) {
      auto& [name, values] = recording_.curves[i];
      const Json& values_of_step = i < kLosses ? line : metrics;
      values.push_back(values_of_step.contains(name) ? std::optional(number(values_of_step, name, place))
                                                     : std::nullopt);
    }
    if (auto spectrum = read_spectrum(line, place); !spectrum.empty()) {
      recording_.spectrum = std::move(spectrum);
      recording_.spectrum_at = x;
    }
  }

  void finish() {
    if (recording_.x.empty()) throw DataError(recording_.file + ": holds no steps yet, so there is nothing to draw");
    std::erase_if(recording_.curves, [](const RecordedCurve& curve) {
      return std::none_of(curve.values.begin(), curve.values.end(), [](auto y) { return y && std::isfinite(*y); });
    });
  }

 private:
  static constexpr std::size_t kLosses = 3;  ///< these stand in the step itself, the others under "metrics"
  Recording& recording_;
};

std::string schema_of(const Json& json) {
  if (!json.is_object()) return "";
  const auto schema = json.find("schema");
  return schema != json.end() && schema->is_string() ? schema->get<std::string>() : "";
}

bool is_run_schema(const std::string& schema) {
  return std::find(std::begin(kRunSchemas), std::end(kRunSchemas), schema) != std::end(kRunSchemas);
}

bool blank(const std::string& text) { return text.find_first_not_of(" \t\r\n") == std::string::npos; }

// The lines after the header.
void read_steps(std::istream& input, Place place, Recording& recording) {
  RunReader reader(recording);
  std::string line;
  std::size_t broken = 0;  // the number of a line that is no JSON: allowed when nothing follows it
  while (std::getline(input, line)) {
    ++place.line;
    if (blank(line)) continue;
    if (broken > 0) break;
    const Json json = Json::parse(line, nullptr, false);
    if (json.is_object())
      reader.read_line(json, place);
    else
      broken = place.line;
  }
  if (broken > 0 && input) fail({place.file, broken}, "is not a JSON object");
  if (broken > 0)
    fmt::print(stderr, "ncollapse: note: {}: line {}, the last one, is broken (was the run killed?) and left out\n",
               place.file, broken);
  reader.finish();
}

// A document of one object over many lines.
Json parse_document(const std::string& text, const std::string& file) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(error.byte, text.size()));
    const auto line = 1 + std::count(text.begin(), end, '\n');
    fail({file, static_cast<std::size_t>(line)}, "is broken JSON",
         "plot reads what ncollapse simulate --json and ncollapse analyze --json write");
  } catch (const Json::exception& error) {  // a number that no double holds
    throw DataError(fmt::format("{}: {}", file, error.what()));
  }
}

}  // namespace

Recording read_recording(const std::string& file) {
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored)) throw DataError(file + ": is a directory");
  std::ifstream input(file, std::ios::binary);
  if (!input) throw DataError(file + ": cannot open: " + std::error_code(errno, std::generic_category()).message());
  Recording recording;
  recording.file = file;
  const Place first{file, 1};
  std::string text;
  std::getline(input, text);
  Json json = Json::parse(text, nullptr, false);
  if (is_run_schema(schema_of(json))) {
    recording.title = model_title(json, first);
    if (recording.title.empty()) recording.title = recording.file_name();
    read_steps(input, first, recording);
    return recording;
  }
  const std::string rest(std::istreambuf_iterator<char>(input), {});
  if (blank(text) && blank(rest)) throw DataError(file + ": is empty");
  if (!json.is_object() || !blank(rest)) json = parse_document(text + "\n" + rest, file);  // a report has many lines
  const std::string schema = schema_of(json);
  if (schema != kReportSchema)
    throw DataError(schema.empty() ? file + ": has no \"schema\" that says what it is"
                                   : fmt::format("{}: the schema \"{}\" is unknown", file, schema),
                    fmt::format("plot draws {}, {} and {}", kRunSchemas[0], kRunSchemas[1], kReportSchema));
  read_report(json, first, recording);
  return recording;
}

}  // namespace ncollapse::cli
