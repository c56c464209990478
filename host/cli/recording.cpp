#include "host/cli/recording.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>

#include "ncollapse/error.hpp"

namespace ncollapse::cli {

namespace {

using Json = nlohmann::ordered_json;  // facts are shown in the order of the file

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

/// Refuses text that is nested deeper than any recording: values are copied and shown by recursion, on the stack.
Json::parser_callback_t no_deeper(const std::string& file) {
  return [&file](int depth, Json::parse_event_t, Json&) {
    constexpr int kDeepest = 64;
    if (depth > kDeepest) throw DataError(fmt::format("{}: is nested more than {} levels deep", file, kDeepest));
    return true;
  };
}

/// The JSON of one line; discarded when it is none.
Json parse_line(const std::string& text, const std::string& file) { return Json::parse(text, no_deeper(file), false); }

// NaN for null and for what is not there.
double number(const Json& object, const std::string& key, const Place& place) {
  const auto value = object.find(key);
  if (value == object.end() || value->is_null()) return kUndefined;
  if (!value->is_number()) fail(place, fmt::format("\"{}\" is not a number", key));
  return value->get<double>();
}

// A number of samples: whole, and not below 0.
Index sample_count(const Json& value, const std::string& key, const Place& place) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<Index>::max()})
    fail(place, fmt::format("\"{}\" has a number of samples that is not whole, or out of range", key));
  return value.get<Index>();
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
    if (!std::isnan(multiplicity) && !(multiplicity >= 1 && multiplicity <= 0x1p53))
      fail(place, fmt::format("a row of \"spectrum\" has the multiplicity {}", multiplicity));
    spectrum.push_back({.sigma = number(row, "sigma", place),
                        .multiplicity = std::isnan(multiplicity) ? 1 : static_cast<Index>(multiplicity),
                        .w_predicted = number(row, "w_predicted", place),
                        .w_measured = number(row, "w_measured", place),
                        .z_predicted = number(row, "z_predicted", place),
                        .z_measured = number(row, "z_measured", place),
                        .cosine = number(row, "cosine", place)});
  }
  return spectrum;
}

std::vector<Index> sample_counts(const Json& object, const std::string& key, const Place& place) {
  std::vector<Index> counts;
  for (const Json& value : part(object, key, Json::value_t::array, place))
    counts.push_back(sample_count(value, key, place));
  return counts;
}

// NaN for null.
std::vector<double> numbers(const Json& array, const std::string& key, const Place& place) {
  std::vector<double> values;
  for (const Json& value : array) {
    if (!value.is_number() && !value.is_null()) fail(place, fmt::format("\"{}\" has a value that is no number", key));
    values.push_back(value.is_null() ? kUndefined : value.get<double>());
  }
  return values;
}

BlockCosines read_blocks(const Json& report, const std::string& key, const Place& place) {
  const Json blocks = part(report, key, Json::value_t::object, place);
  BlockCosines result;
  result.sizes = sample_counts(blocks, "sizes", place);
  const auto read_square = [&](const std::string& name, std::vector<double>& square) {
    for (const Json& row : part(blocks, name, Json::value_t::array, place)) {
      if (!row.is_array()) fail(place, fmt::format("a row of \"{}\" of \"{}\" is not an array", name, key));
      if (row.size() != result.sizes.size())
        fail(place, fmt::format("\"{}\" of \"{}\" has a row of {} numbers for {} class sizes", name, key, row.size(),
                                result.sizes.size()));
      const std::vector<double> cosines = numbers(row, key, place);
      square.insert(square.end(), cosines.begin(), cosines.end());
    }
    if (!square.empty() && square.size() != result.sizes.size() * result.sizes.size())
      fail(place, fmt::format("\"{}\" of \"{}\" has {} numbers for {} class sizes", name, key, square.size(),
                              result.sizes.size()));
  };
  read_square("cosines", result.cosines);
  read_square("predicted", result.predicted);
  return result;
}

// Puts what is there behind what is there already.
void append(std::string& list, const std::string& item) {
  if (!item.empty()) list += (list.empty() ? "" : ", ") + item;
}

// "500 x 2, 400, 300 x 3": how many classes have how many samples.
std::string sizes_text(const std::vector<Index>& counts) {
  constexpr std::size_t kMostSizes = 8;
  std::map<Index, Index, std::greater<>> classes_of;
  for (const Index count : counts) ++classes_of[count];
  if (classes_of.size() > kMostSizes)
    return fmt::format("{} classes of {} to {} samples", counts.size(), classes_of.rbegin()->first,
                       classes_of.begin()->first);
  std::string text;
  for (const auto& [size, classes] : classes_of)
    append(text, classes == 1 ? fmt::format("{}", size) : fmt::format("{} x {}", size, classes));
  return text.empty() ? "" : "n_k = " + text;
}

// "lambda_W = lambda_H = 1e-05" as far as they are known.
std::string decays_text(const Json& object, const Place& place) {
  std::string layers;
  if (const auto all = object.find("lambda_w"); all != object.end() && !all->is_null()) {
    std::vector<double> values;
    for (const Json& value : *all) {
      if (!value.is_number()) fail(place, "\"lambda_w\" has a weight decay that is not a number");
      values.push_back(value.get<double>());
    }
    const bool equal = std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) == values.end();
    if (equal && !values.empty()) values.resize(1);
    layers = fmt::format("{}", fmt::join(values, "; "));
  }
  const double h = number(object, "lambda_h", place);
  const std::string features = std::isfinite(h) ? fmt::format("{}", h) : "";
  if (!layers.empty() && layers == features) return "lambda_W = lambda_H = " + layers;
  std::string text = layers.empty() ? "" : "lambda_W = " + layers;
  append(text, features.empty() ? "" : "lambda_H = " + features);
  return text;
}

// A value of the header as a reader wants it: "name = adam, seed = 1".
std::string plain_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_null()) return "none";
  if (!value.is_structured()) return value.dump();
  std::string text;
  for (const auto& [key, item] : value.items())
    append(text, value.is_array() ? plain_text(item) : key + " = " + plain_text(item));
  return text;
}

void add_fact(Recording& recording, const std::string& name, const std::string& value) {
  if (!value.empty()) recording.facts.emplace_back(name, value);
}

std::string device_text(const Json& device) {
  const auto word = [&](const char* key) { return device.contains(key) ? plain_text(device[key]) : std::string(); };
  std::string text = word("type");
  append(text, word("name"));
  append(text, word("type") == "cpu" ? word("threads") + " threads" : "");
  return text;
}

// The catalogue's scalars under "metrics", and why others have none.
void read_metrics(const Json& object, const Place& place, Report& report) {
  report.metrics.clear();
  report.status.clear();
  const Json metrics = part(object, "metrics", Json::value_t::object, place);
  for (const auto& info : metric_catalogue())
    if (const double value = number(metrics, std::string(info.key), place); std::isfinite(value))
      report.metrics.push_back({std::string(info.key), value});
  const Json all = part(object, "status", Json::value_t::object, place);
  for (const auto& [key, status] : all.items()) {
    if (!status.is_object()) fail(place, fmt::format("the status of \"{}\" is not an object", key));
    const auto word = [&](const char* name) { return status.contains(name) ? plain_text(status[name]) : ""; };
    report.status[key] = {word("code"), word("why")};
  }
}

// What has one value for the whole of a report, or the last one in a run: a part that is absent leaves what was read.
void read_parts(const Json& object, const Place& place, Report& report) {
  if (auto spectrum = read_spectrum(object, place); !spectrum.empty()) report.spectrum = std::move(spectrum);
  if (auto blocks = read_blocks(object, "block_cos_h", place); !blocks.sizes.empty()) report.block_cos_h = blocks;
  if (auto blocks = read_blocks(object, "block_cos_w", place); !blocks.sizes.empty()) report.block_cos_w = blocks;
  const Json classes = part(object, "per_class", Json::value_t::object, place);
  if (classes.empty()) return;
  if (auto counts = sample_counts(classes, "counts", place); !counts.empty()) report.counts = counts;
  report.per_class.clear();
  for (const auto& info : metric_catalogue()) {
    const std::string key(info.key);
    PerClassMetric metric{key, numbers(part(classes, key, Json::value_t::array, place), key, place)};
    if (metric.values.empty()) continue;
    if (metric.values.size() != report.counts.size())
      fail(place, fmt::format("\"{}\" has {} values for {} classes", key, metric.values.size(), report.counts.size()));
    report.per_class.push_back(std::move(metric));
  }
}

void read_report(const Json& report, const Place& place, Recording& recording) {
  const Json shape = part(report, "shape", Json::value_t::object, place);
  for (const auto& [key, text] : {std::pair{"K", "K"}, {"D", "d"}, {"N", "N"}})
    if (const double value = number(shape, key, place); std::isfinite(value))
      append(recording.title, fmt::format("{} = {:.0f}", text, value));
  const Json source = part(report, "source", Json::value_t::object, place);
  if (source.contains("weights")) {  // one file, or a list of them
    append(recording.title, fmt::format("L = {}", source["weights"].size()));
    append(recording.title, source.contains("bias") ? "with bias" : "no bias");
  }
  if (recording.title.empty()) recording.title = recording.file_name();
  read_metrics(report, place, recording.report);
  read_parts(report, place, recording.report);
  for (const Json& note : part(report, "notes", Json::value_t::array, place))
    recording.report.notes.push_back(plain_text(note));
  recording.data = sizes_text(recording.report.counts);
  recording.decays = decays_text(part(report, "weight_decay", Json::value_t::object, place), place);

  const Json convention = part(report, "convention", Json::value_t::object, place);
  const auto word = [&](const char* key) { return convention.contains(key) ? plain_text(convention[key]) : ""; };
  if (!convention.empty()) {
    add_fact(recording, "convention",
             fmt::format("{}: Sigma_W {}, centre {}, Sigma_B weights {}", word("preset"), word("sigma_w"), word("mu"),
                         word("sigma_b")));
    add_fact(recording, "rank",
             fmt::format("{} of at most {} directions of Sigma_B", word("rank_used"), word("rank_limit")));
  }
  const Json precision = part(report, "precision", Json::value_t::object, place);
  if (precision.contains("scatter") && plain_text(precision["scatter"]) != "exact")
    add_fact(recording, "precision",
             fmt::format("{}: |error of the scatter| <= {:.1e} of its trace", plain_text(precision["scatter"]),
                         number(precision, "scatter_error_bound", place)));
  add_fact(recording, "element type", shape.contains("dtype") ? plain_text(shape["dtype"]) : "");
  add_fact(recording, "device", device_text(part(report, "device", Json::value_t::object, place)));
  for (const auto& [name, value] : source.items()) add_fact(recording, name, plain_text(value));
}

// The first line of a run: "L = 3, with bias, d = 8", the data, the weight decays, and every other setting.
void read_header(const Json& header, const Place& place, Recording& recording) {
  const Json model = part(header, "model", Json::value_t::object, place);
  if (const double layers = number(model, "layers", place); std::isfinite(layers))
    append(recording.title, fmt::format("L = {}", layers));
  if (model.contains("with_bias") && model["with_bias"].is_boolean())
    append(recording.title, model["with_bias"].get<bool>() ? "with bias" : "no bias");
  if (const double width = number(model, "width", place); std::isfinite(width))
    append(recording.title, fmt::format("d = {}", width));
  if (recording.title.empty()) recording.title = recording.file_name();
  recording.report.counts = sample_counts(model, "counts", place);
  if (const auto dataset = header.find("dataset"); dataset != header.end() && dataset->is_object()) {
    for (const auto* key : {"name", "split"})
      if (dataset->contains(key) && (*dataset)[key].is_string())
        recording.data += (recording.data.empty() ? "" : " ") + (*dataset)[key].get<std::string>();
  }
  append(recording.data, sizes_text(recording.report.counts));
  recording.decays = decays_text(model, place);
  recording.rank = number(part(header, "prediction", Json::value_t::object, place), "rank", place);
  for (const auto& [name, value] : header.items()) {
    if (name == "schema" || name == "model") continue;  // the headings say it
    add_fact(recording, name, name == "device" && value.is_object() ? device_text(value) : plain_text(value));
  }
}

/// The curves of a run grow step by step; of everything else the last is kept.
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
    if (*type == "end") {
      read_parts(line, place, recording_.report);
      std::string end = line.contains("reason") ? plain_text(line["reason"]) : "";
      if (const double rank = number(line, "rank", place); std::isfinite(rank) && std::isfinite(recording_.rank))
        append(end, fmt::format("rank {} of {} predicted", rank, recording_.rank));
      add_fact(recording_, "ended", end);
    }
    if (*type != "step") return;  // what later versions may tell
    const std::string x_name = line.contains("epoch") ? "epoch" : "iteration";
    const double x = number(line, x_name, place);
    if (!std::isfinite(x)) fail(place, "the step has neither an \"epoch\" nor an \"iteration\"");
    if (!recording_.x_name.empty() && x_name != recording_.x_name)
      fail(place, fmt::format("counts in \"{}\", the steps before in \"{}\"", x_name, recording_.x_name));
    if (!recording_.x.empty() && x <= recording_.x.back())
      fail(place, fmt::format("{} {} stands behind {} {}", x_name, x, x_name, recording_.x.back()),
           "steps come in order, each once");
    recording_.x_name = x_name;
    recording_.x.push_back(x);
    const Json metrics = part(line, "metrics", Json::value_t::object, place);
    for (std::size_t i = 0; i < recording_.curves.size(); ++i) {
      auto& [name, values] = recording_.curves[i];
      const Json& values_of_step = i < kLosses ? line : metrics;
      values.push_back(values_of_step.contains(name) ? std::optional(number(values_of_step, name, place))
                                                     : std::nullopt);
    }
    if (line.contains("spectrum")) recording_.spectrum_at = x;
    read_metrics(line, place, recording_.report);
    read_parts(line, place, recording_.report);
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
    const Json json = parse_line(line, place.file);
    if (json.is_object())
      reader.read_line(json, place);
    else
      broken = place.line;
  }
  if (input.bad()) throw DataError(place.file + ": cannot be read to its end");
  if (broken > 0 && input) fail({place.file, broken}, "is not a JSON object");
  if (broken > 0)
    fmt::print(stderr, "ncollapse: note: {}: line {}, the last one, is broken (was the run killed?) and left out\n",
               place.file, broken);
  reader.finish();
}

// A document of one object over many lines.
Json parse_document(const std::string& text, const std::string& file) {
  try {
    return Json::parse(text, no_deeper(file));
  } catch (const Json::parse_error& error) {
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(error.byte, text.size()));
    const auto line = 1 + std::count(text.begin(), end, '\n');
    fail({file, static_cast<std::size_t>(line)}, "is broken JSON",
         "ncollapse simulate --json and ncollapse analyze --json write what can be read here");
  } catch (const Json::exception& error) {  // a number that no double holds
    throw DataError(fmt::format("{}: {}", file, error.what()));
  }
}

}  // namespace

std::string rest_of(std::istream& input, const std::string& file) {
  std::string text;
  char piece[1 << 14];
  while (input.read(piece, sizeof piece) || input.gcount() > 0)
    text.append(piece, static_cast<std::size_t>(input.gcount()));
  if (input.bad()) throw DataError(file + ": cannot be read to its end");
  return text;
}

std::string Recording::last_step() const { return is_run() ? fmt::format("{} {}", x_name, x.back()) : ""; }

Recording recording_of(const Report& report, const std::string& name) {
  Recording recording;
  recording.file = name;
  read_report(Json::parse(to_json(report)), {name, 1}, recording);
  return recording;
}

Recording read_recording(const std::string& file) {
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored))
    throw DataError(
        file + ": is a directory",
        "name the file of a run or of a report; analyze and report take a dump by --features, --labels, --weights");
  std::ifstream input(file, std::ios::binary);
  if (!input) throw DataError(file + ": cannot open: " + std::error_code(errno, std::generic_category()).message());
  Recording recording;
  recording.file = file;
  const Place first{file, 1};
  std::string text;
  std::getline(input, text);
  if (input.bad()) throw DataError(file + ": cannot be read");
  Json json = parse_line(text, file);
  if (is_run_schema(schema_of(json))) {
    read_header(json, first, recording);
    read_steps(input, first, recording);
    return recording;
  }
  const std::string rest = rest_of(input, file);
  if (blank(text) && blank(rest)) throw DataError(file + ": is empty");
  if (!json.is_object() || !blank(rest)) json = parse_document(text + "\n" + rest, file);  // a report has many lines
  const std::string schema = schema_of(json);
  if (schema != kReportSchema)
    throw DataError(schema.empty() ? file + ": has no \"schema\" that says what it is"
                                   : fmt::format("{}: the schema \"{}\" is unknown", file, schema),
                    fmt::format("{}, {} and {} can be shown", kRunSchemas[0], kRunSchemas[1], kReportSchema));
  read_report(json, first, recording);
  return recording;
}

}  // namespace ncollapse::cli
