// `bench`: runs the benchmark suite. Results become a JSON document first; tables for a terminal and for a page are
// made from that alone, so that they can be made of a document from another machine as well (--from).
#include <fmt/core.h>

#include <unistd.h>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "bench/suite.hpp"
#include "host/cli/commands.hpp"
#include "host/cli/output.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kSchema = "ncollapse.bench/1";

struct BenchOptions {
  bench::Options suite;
  std::string device = "auto", commit, markdown, from;
  bool list = false;
};

// ------------------------------------------------------------------------------------------------ JSON

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof text, "%F", std::gmtime(&now));
  return text;
}

Json rate_or_null(double rate) { return rate > 0 ? Json(rate) : Json(nullptr); }

Json to_json(const bench::Measurement& row) {
  const bench::Shape& shape = row.shape;
  const auto samples = static_cast<double>(shape.samples);
  Json json{{"case", shape.id},
            {"operation", row.operation},
            {"samples", row.by_rows ? Json(shape.samples) : Json(nullptr)},
            {"classes", shape.classes},
            {"dim", shape.dim},
            {"dtype", to_string(shape.dtype)},
            {"class_sizes", to_string(shape.sizes)},
            {"sorted", shape.sorted},
            {"sigma", shape.sigma},
            {"features_in", shape.on_host ? "host" : "device"},
            {"repeats", row.repeats},
            {"seconds", row.seconds},
            {"seconds_fastest", row.fastest},
            {"seconds_slowest", row.slowest},
            {"rows_per_s", row.by_rows ? Json(samples / row.seconds) : Json(nullptr)},
            {"bytes", row.bytes},
            {"bytes_per_s", row.bytes / row.seconds},
            {"flop", row.flop},
            {"flop_per_s", row.flop / row.seconds}};
  json["floor"] = row.floor.seconds > 0 ? Json{{"kind", row.floor.kind},
                                               {"seconds", row.floor.seconds},
                                               {"fraction", row.fraction()},
                                               {"bar", row.bar > 0 ? Json(row.bar) : Json(nullptr)}}
                                        : Json(nullptr);
  json["error"] = {{"value", std::isfinite(row.error) ? Json(row.error) : Json(nullptr)}, {"of", row.error_of}};
  json["bits"] = {{"equal", row.same_bits}, {"runs", row.hashed}, {"hash", fmt::format("{:016x}", row.hash)}};
  if (row.plain) {
    const bench::PlainResult& plain = *row.plain;
    const double seconds = plain.sums + plain.scatter + plain.decisions + plain.pairs;
    json["plain"] = {{"seconds", seconds},
                     {"speedup", seconds / row.seconds},
                     {"sums_seconds", plain.sums},
                     {"scatter_seconds", plain.scatter},
                     {"decisions_seconds", plain.decisions},
                     {"pairs_seconds", plain.pairs},
                     {"nc1_trace_ratio", plain.nc1_trace_ratio},
                     {"nc1_cdnv", plain.nc1_cdnv},
                     {"agree", plain.agree},
                     {"nc1_trace_ratio_here", row.nc1_trace_ratio},
                     {"nc1_cdnv_here", row.nc1_cdnv},
                     {"agree_here", row.agree}};
  }
  return json;
}

Json to_json(const bench::Results& results, const BenchOptions& options, bool complete) {
  const DeviceInfo& device = results.device;
  Json json{{"schema", kSchema},
            {"version", version()},
            {"commit", options.commit.empty() ? Json(nullptr) : Json(options.commit)},
            {"date", today()},
            {"complete", complete},
            {"device",
             {{"device", to_string(device.device)},
              {"name", device.name},
              {"capability", device.capability},
              {"memory_bytes", device.memory_bytes},
              {"threads", device.threads}}},
            {"scale", options.suite.scale},
            {"seconds_per_row", options.suite.seconds},
            {"floors",
             {{"copy_bytes_per_s", results.rates.copy_bytes_per_s},
              {"dgemm_flop_per_s", results.rates.dgemm},
              {"sgemm_flop_per_s", results.rates.sgemm},
              {"hgemm_flop_per_s", rate_or_null(results.rates.hgemm)}}},
            {"seconds", results.seconds},
            {"others", results.others},
            {"rows", Json::array()},
            {"skipped", Json::array()}};
  for (const auto& row : results.rows) json["rows"].push_back(to_json(row));
  for (const auto& skipped : results.skipped)
    json["skipped"].push_back({{"case", skipped.id}, {"operation", skipped.operation}, {"why", skipped.why}});
  return json;
}

// ------------------------------------------------------------------------------------------------ tables

std::string count_text(double count) {
  for (const auto& [unit, letter] : {std::pair{1e9, 'G'}, {1e6, 'M'}, {1e4, 'k'}})
    if (count >= unit) return fmt::format("{:.3g}{}", count / (letter == 'k' ? 1e3 : unit), letter);
  return fmt::format("{:.0f}", count);
}

std::string time_text(double seconds) {
  if (seconds >= 1) return fmt::format("{:.3g} s", seconds);
  if (seconds >= 1e-3) return fmt::format("{:.3g} ms", seconds * 1e3);
  return fmt::format("{:.3g} us", seconds * 1e6);
}

std::string rate_text(const Json& rate, double unit) {
  const double value = rate.get<double>() / unit;
  return value == 0 ? "-" : value >= 100 ? fmt::format("{:.0f}", value) : fmt::format("{:.3g}", value);
}

const std::vector<std::string> kColumns{"case",   "operation", "N",       "K",     "d",     "dtype", "time",
                                        "rows/s", "GB/s",      "GFLOP/s", "floor", "of it", "error", "bits"};

bool below_bar(const Json& row) {
  const Json& floor = row.at("floor");
  return floor.is_object() && floor.at("bar").is_number() &&
         floor.at("fraction").get<double>() < floor.at("bar").get<double>();
}

std::vector<std::string> cells(const Json& row) {
  const Json &floor = row.at("floor"), &bits = row.at("bits"), &error = row.at("error").at("value");
  return {row.at("case"),
          row.at("operation"),
          row.at("samples").is_number() ? std::to_string(row.at("samples").get<Index>()) : "-",
          std::to_string(row.at("classes").get<Index>()),
          std::to_string(row.at("dim").get<Index>()),
          row.at("dtype"),
          time_text(row.at("seconds")),
          row.at("rows_per_s").is_number() ? count_text(row.at("rows_per_s")) : "-",
          rate_text(row.at("bytes_per_s"), 1e9),
          rate_text(row.at("flop_per_s"), 1e9),
          floor.is_object() ? floor.at("kind").get<std::string>() : "-",
          floor.is_object()
              ? fmt::format("{:.0f}%{}", 100 * floor.at("fraction").get<double>(), below_bar(row) ? " <" : "")
              : "-",
          error.is_number() ? fmt::format("{:.0e}", error.get<double>()) : "none",
          (bits.at("equal").get<bool>() ? "" : "DIFFER ") + bits.at("hash").get<std::string>().substr(0, 8) +
              fmt::format(" {}x", bits.at("runs").get<Index>())};
}

std::string heading(const Json& document) {
  const Json &device = document.at("device"), &floors = document.at("floors");
  const auto rate = [&](const char* key, double unit) {
    return floors.at(key).is_number() ? rate_text(floors.at(key), unit) : "-";
  };
  std::string text = fmt::format("{} {}, {} ({}), {} threads", "ncollapse", document.at("version").get<std::string>(),
                                 device.at("name").get<std::string>(), device.at("capability").get<std::string>(),
                                 device.at("threads").get<int>());
  if (document.at("commit").is_string()) text += ", commit " + document.at("commit").get<std::string>();
  text += fmt::format(", {}\nmeasured here: copy {} GB/s, dgemm {} GFLOP/s, sgemm {}",
                      document.at("date").get<std::string>(), rate("copy_bytes_per_s", 1e9),
                      rate("dgemm_flop_per_s", 1e9), rate("sgemm_flop_per_s", 1e9));
  if (floors.at("hgemm_flop_per_s").is_number()) text += ", hgemm " + rate("hgemm_flop_per_s", 1e9);
  constexpr double kQuiet = 0.05;
  if (const double others = document.at("others"); others > kQuiet)
    text += fmt::format("\nother processes took {:.0f}% of the processor meanwhile: times are too long", 100 * others);
  if (!document.at("complete").get<bool>()) text += "\nthe run was ended before its last row";
  return text + "\n";
}

const std::string kLegend =
    "N, K, d are what was measured, scaled to this machine; time is the median. floor: what the bytes need at the\n"
    "rate of a copy (read and written), or the operations at that of a product of the row's shape (on a GPU: the best\n"
    "of large squares), whichever is more; or the bare solver. of it: floor / time, < where that is below the bar.\n"
    "error: against an oracle in long double. bits: a hash of the results and in how many runs from a fresh start\n"
    "it was the same, unless it says DIFFER: 100 where so many fit the time of the row, fewer where not.\n";

/// What stands below a table, each line behind the mark: the plain way beside, and rows that are missing.
std::string notes(const Json& document, std::string_view mark) {
  std::string text;
  for (const Json& row : document.at("rows")) {
    if (!row.contains("plain")) continue;
    const Json& plain = row.at("plain");
    text += fmt::format("{}{} N={} K={} d={}: {} beside {} by one-hot products and separate passes, {:.1f}x\n", mark,
                        row.at("case").get<std::string>(), row.at("samples").get<Index>(),
                        row.at("classes").get<Index>(), row.at("dim").get<Index>(), time_text(row.at("seconds")),
                        time_text(plain.at("seconds")), plain.at("speedup").get<double>());
  }
  for (const Json& skipped : document.at("skipped"))
    text += fmt::format("{}not measured: {} {}: {}\n", mark, skipped.at("case").get<std::string>(),
                        skipped.at("operation").get<std::string>(), skipped.at("why").get<std::string>());
  return text;
}

std::string to_table(const Json& document) {
  std::vector<std::vector<std::string>> lines{kColumns};
  for (const Json& row : document.at("rows")) lines.push_back(cells(row));
  std::vector<std::size_t> widths(kColumns.size());
  for (const auto& line : lines)
    for (std::size_t c = 0; c < line.size(); ++c) widths[c] = std::max(widths[c], line[c].size());
  std::string text = heading(document) + "\n";
  for (const auto& line : lines) {
    for (std::size_t c = 0; c < line.size(); ++c)
      text += c < 2 ? fmt::format("{:<{}}  ", line[c], widths[c])
                    : fmt::format("{:>{}}{}", line[c], widths[c], c + 1 < line.size() ? "  " : "");
    text += "\n";
  }
  return text + "\n" + kLegend + notes(document, "");
}

std::string markdown_row(const std::vector<std::string>& line) {
  std::string text = "|";
  for (const auto& cell : line) text += " " + cell + " |";
  return text + "\n";
}

std::string to_markdown(const Json& document) {
  std::string text = heading(document) + "\n" + markdown_row(kColumns) +
                     markdown_row(std::vector<std::string>(kColumns.size(), "---"));
  for (const Json& row : document.at("rows")) text += markdown_row(cells(row));
  const std::string lines = notes(document, "- ");
  return text + "\n" + kLegend + (lines.empty() ? "" : "\n" + lines);
}

/// Of what `./dev gpu` writes (schema ncollapse.gpu/1): the steps, then the suite's table where it ran.
std::string gpu_markdown(const Json& document) {
  const auto text_of = [&](const char* key) { return document.at(key).get<std::string>(); };
  std::string text =
      fmt::format("# {}, commit {}, {}: {}\n\nDriver {}, code for sm_{}.\n\n", text_of("gpu"), text_of("commit"),
                  text_of("date"), text_of("verdict"), text_of("driver"), text_of("architectures"));
  text += markdown_row({"step", "outcome", "tests passed", "skipped", "seconds"}) +
          markdown_row({"---", "---", "---", "---", "---"});
  const auto number = [](const Json& value) {
    return value.is_number() ? std::to_string(value.get<Index>()) : std::string();
  };
  for (const Json& step : document.at("steps"))
    text += markdown_row({step.at("step"), step.at("outcome"), number(step.at("passed")), number(step.at("skipped")),
                          number(step.at("seconds"))});
  if (document.at("bench").is_object()) text += "\n## Benchmarks\n\n" + to_markdown(document.at("bench"));
  return text;
}

Json read_document(const std::string& path) {
  std::ifstream file(path);
  if (!file)
    throw DataError(path + ": cannot be read", "--from takes what `ncollapse bench --json` or `./dev gpu` wrote");
  const Json document = Json::parse(file, nullptr, false);
  if (!document.is_object() || !document.contains("schema"))
    throw DataError(path + ": is no JSON document with a schema",
                    "--from takes what `ncollapse bench --json` or `./dev gpu` wrote");
  return document;
}

// ------------------------------------------------------------------------------------------------ the command

std::string list_text() {
  std::string text = "cases, at full size (--case):\n";
  for (const bench::Case& each : bench::matrix()) {
    const bench::Shape& shape = each.shape;
    text += fmt::format("  {:<10} {:>9} x {:<5} {:>7} classes  {:<5} {:<11} {}\n", shape.id, shape.samples, shape.dim,
                        shape.classes, to_string(shape.dtype), bench::to_string(shape.sizes), each.about);
    std::string names;
    for (const auto operation : each.operations)
      names += std::string(names.empty() ? "" : " ") + std::string(operation);
    text += fmt::format("  {:<10} {}\n", "", names);
  }
  text += "\noperations (--op):\n";
  for (const bench::Operation& each : bench::operations()) text += fmt::format("  {:<14} {}\n", each.name, each.about);
  return text;
}

void write_results(const Json& document, const BenchOptions& options, const Common& common) {
  const std::string schema = document.at("schema");
  const bool gpu = schema == "ncollapse.gpu/1";
  if (!gpu && schema != kSchema)
    throw DataError(fmt::format("the schema '{}' is unknown", schema),
                    fmt::format("known are {} and ncollapse.gpu/1", kSchema));
  if (!common.json.empty())
    write_output(common.json, document.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  if (!options.markdown.empty()) write_output(options.markdown, gpu ? gpu_markdown(document) : to_markdown(document));
  if (common.json == "-" || options.markdown == "-") return;
  std::string table = gpu ? gpu_markdown(document) : to_table(document);
  for (const auto& [kind, path] : {std::pair{"JSON", common.json}, std::pair{"Markdown", options.markdown}})
    if (!path.empty()) table += fmt::format("\n{} written to {}\n", kind, path);
  write_output("-", table);
}

/// What is off by more is wrong, not rounded. Counts of decisions are exact; the bound of the fast scatter is relative
/// to sums about the shifts, a few times the scatter.
double largest_error(const bench::Measurement& row) {
  const bool fast = row.operation == "scatter_fast" || row.operation == "pairs_fast";
  return row.operation.starts_with("decisions") ? 0 : fast ? 1e-2 : 1e-9;
}

void run(BenchOptions& options, const Common& common) {
  if (options.list) return write_output("-", list_text());
  check_output(common.json);
  check_output(options.markdown);
  part_outputs("--json", common.json, "--markdown", options.markdown);
  spare_inputs({FileList(options.from)}, "--json", common.json);
  spare_inputs({FileList(options.from)}, "--markdown", options.markdown);
  if (!options.from.empty()) {
    try {
      return write_results(read_document(options.from), options, common);
    } catch (const nlohmann::json::exception& error) {
      throw DataError(options.from + ": is not a complete result: " + error.what());
    }
  }
  options.suite.device = Device::parse(options.device);
  const bool show = isatty(STDERR_FILENO) == 1 && !common.quiet;
  const bench::Results results = bench::run(options.suite, [&](const bench::Results& so_far, const std::string& next) {
    if (show) fmt::print(stderr, "\r\033[K{}", next);
    // Who ends a long run keeps what it found.
    if (!common.json.empty() && common.json != "-" && !so_far.rows.empty())
      write_output(common.json,
                   to_json(so_far, options, false).dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  });
  if (show) fmt::print(stderr, "\r\033[K");
  write_results(to_json(results, options, true), options, common);
  const bool sound = std::all_of(results.rows.begin(), results.rows.end(), [](const bench::Measurement& row) {
    return row.same_bits && row.error <= largest_error(row);  // false for NaN
  });
  if (!sound)
    throw Error(ErrorKind::internal, "results are wrong or differ between repetitions, see the columns error and bits");
}

}  // namespace

void add_bench(CLI::App& app, Common& common) {
  const CLI::Validator positive(
      [](std::string& text) {
        double value = 0;
        const auto [stop, status] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool good =
            status == std::errc{} && stop == text.data() + text.size() && value > 0 && std::isfinite(value);
        return good ? std::string() : "'" + text + "' must be a number above 0";
      },
      "");
  auto options = std::make_shared<BenchOptions>();
  bench::Options& suite = options->suite;
  CLI::App* command = app.add_subcommand("bench", "Speed of every operation here, beside copies and products");
  command->add_option("--case", suite.cases, "Only these cases of the matrix")->type_name("ID");
  command->add_option("--op", suite.operations, "Only these operations")->type_name("NAME");
  command->add_flag("--list", options->list, "Cases and operations, and nothing is measured");
  command->add_option("--scale", suite.scale, "Times the samples of a case, before it is fitted to the machine")
      ->capture_default_str()
      ->check(positive)
      ->type_name("X");
  command
      ->add_option("--sigma", suite.sigma,
                   "Noise over the norm of a class mean, for decisions 0.75 at least, collapsed 0.01 at most; default: "
                   "by case, 1 to 1e-4")
      ->check(positive)
      ->type_name("X");
  command->add_option("--seconds", suite.seconds, "Timing of a row; larger cases fit in more seconds")
      ->capture_default_str()
      ->check(positive)
      ->type_name("S");
  command->add_option("--repeats", suite.repeats, "Timed repetitions, at most; default: 7, on a GPU 20")
      ->transform(kAtLeastOne)
      ->type_name("R");
  command->add_option("--limit", suite.limit, "Begin no further row after so many seconds")
      ->check(positive)
      ->type_name("S");
  command->add_flag("--plain", suite.baseline,
                    "Beside end_to_end: one-hot products and separate passes, by BLAS alone");
  command->add_flag(
      "--profile", suite.profile,
      "On a GPU: show a profiler that waits for it (ncu --profile-from-start off) one call of each operation");
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--threads", suite.threads, "CPU threads; default: all cores")
      ->transform(kAtLeastOne)
      ->type_name("T");
  command->add_option("--commit", options->commit, "Recorded with the results")->type_name("NAME");
  command->add_option("--json", common.json, "Write the results as JSON; - is standard output")->type_name("FILE");
  command->add_option("--markdown", options->markdown, "Write the table for a page; - is standard output")
      ->type_name("FILE");
  command->add_option("--from", options->from, "Measure nothing, read what --json or ./dev gpu wrote")
      ->type_name("FILE");
  command->add_flag("--quiet", common.quiet, "No progress");
  command->footer(
      "Examples:\n"
      "  ncollapse bench\n"
      "  ncollapse bench --case C1 I1 --op sums scatter --threads 1\n"
      "  ncollapse bench --op end_to_end --plain --json speed.json\n"
      "  ncollapse bench --from speed.json --markdown speed.md\n\n"
      "< behind a share of the floor: below the bar of that operation, which is in the JSON.\n");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace ncollapse::cli
