// The catalogue and the three ways to write a report.
#include <algorithm>
#include <cmath>
#include <locale>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

using nlohmann::json;

// --- catalogue and names

TEST(Catalogue, HasEveryPromisedKeyOnce) {
  std::map<std::string, int> entries;
  std::map<std::string, std::string> scope;
  for (const auto& info : ncollapse::metric_catalogue()) {
    ++entries[std::string(info.key)];
    scope[std::string(info.key)] = info.scope;
  }
  for (const auto& [key, count] : entries) EXPECT_EQ(count, 1) << key;
  for (const std::string& key : promised_scalars()) {
    EXPECT_EQ(entries[key], 1) << key;
    EXPECT_EQ(scope[key], "scalar") << key;
  }
  for (const std::string& key : promised_vectors()) {
    EXPECT_EQ(entries[key], 1) << key;
    EXPECT_EQ(scope[key], "per_class") << key;
  }
}

TEST(Catalogue, EveryEntryIsComplete) {
  for (const auto& info : ncollapse::metric_catalogue()) {
    const std::string key(info.key);
    EXPECT_TRUE(std::all_of(key.begin(), key.end(), [](char c) {
      return c == '_' || std::islower(c) || std::isdigit(c);
    })) << key;
    EXPECT_FALSE(info.meaning.empty()) << key;
    EXPECT_FALSE(info.formula.empty()) << key;
    EXPECT_FALSE(info.needs.empty()) << key;
    EXPECT_TRUE(!info.source.empty() || key.starts_with("acc") || key.starts_with("ncc")) << key;
    EXPECT_TRUE(info.direction == "down" || info.direction == "up" || info.direction == "none") << key;
    EXPECT_TRUE(info.scope == "scalar" || info.scope == "per_class") << key;
  }
}

TEST(Catalogue, AgreementAndAccuracyRiseWithCollapse) {
  for (const auto& info : ncollapse::metric_catalogue()) {
    const std::string key(info.key);
    if (key.starts_with("nc4_agree") || key.starts_with("acc_") || key.starts_with("ncc_") ||
        key.starts_with("nc3_cos")) {
      EXPECT_EQ(info.direction, "up") << key;
    }
    if (key == "nc1_input_floor") continue;  // is none of the network
    if (key.starts_with("nc1_") || key.starts_with("nc2_etf") || key == "nc3_dual") {
      EXPECT_EQ(info.direction, "down") << key;
    }
  }
}

TEST(Conventions, NamesRoundTrip) {
  EXPECT_EQ(ncollapse::all_conventions().size(), 5U);
  std::set<std::string> names;
  for (Convention convention : ncollapse::all_conventions()) {
    const std::string name(ncollapse::to_string(convention));
    names.insert(name);
    EXPECT_EQ(ncollapse::parse_convention(name), convention);
  }
  EXPECT_EQ(names, (std::set<std::string>{"zhu", "papyan", "peer", "anova", "classavg"}));
  for (const std::string name : {"", "Zhu", "zhu ", "default", "peers"})
    EXPECT_THROW(ncollapse::parse_convention(name), ncollapse::UsageError) << name;
}

// --- reports

class Writers : public OnDevice {
 protected:
  /// Full evidence, an absent class and a class with one sample.
  Report full() const {
    Problem problem = typical_problem();
    for (auto& label : problem.train.labels) label += label >= 2;
    for (auto& label : problem.test.labels) label += label >= 2;
    problem.train.classes = problem.test.classes = 8;
    problem.head = random_head(8, 12, 111);
    return measure_problem(context(), problem);
  }
  Report bare() const { return ncollapse::measure(moments_of(context(), typical_problem().train)); }
  /// Equal means: nearly everything is undefined.
  Report degenerate() const {
    return ncollapse::measure(moments_of(context(), {2, 1, {-1, 1, -2, 2}, {0, 0, 1, 1}}), {}, Convention::anova);
  }
};
NCOLLAPSE_ON_EVERY_DEVICE(Writers);

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// The fields of one CSV line, quotes resolved.
std::vector<std::string> fields_of(const std::string& line) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '"' && quoted && i + 1 < line.size() && line[i + 1] == '"')
      fields.back() += line[i++];
    else if (line[i] == '"')
      quoted = !quoted;
    else if (line[i] == ',' && !quoted)
      fields.emplace_back();
    else
      fields.back() += line[i];
  }
  return fields;
}

TEST_P(Writers, FindReturnsNumbersOnly) {
  const Report report = full();
  for (const auto& [key, value] : report.metrics) {
    EXPECT_EQ(report.find(key), std::optional<double>(value));
    EXPECT_EQ(report.at(key), value);
  }
  EXPECT_FALSE(report.find("acc_per_class_train").has_value());
  EXPECT_FALSE(bare().find("nc3_dual").has_value());
}

TEST_P(Writers, AKeyThatIsNoMetricIsRefused) {
  const Report report = full();
  for (const std::string key : {"no_such_key", "", "nc1_pniv", "count"}) {
    EXPECT_THROW(report.find(key), ncollapse::UsageError) << key;
    EXPECT_THROW(report.at(key), ncollapse::UsageError) << key;
    EXPECT_THROW(report.find_per_class(key), ncollapse::UsageError) << key;
  }
}

TEST_P(Writers, ANumberThatIsMissingSaysWhy) {
  for (const auto& [report, key] : {std::pair(bare(), "nc3_dual"), std::pair(degenerate(), "nc1_pinv")}) try {
      report.at(key);
      ADD_FAILURE() << key;
    } catch (const ncollapse::DataError& error) {
      const ncollapse::MetricStatus& status = report.status.at(key);
      EXPECT_EQ(std::string(error.what()), std::string(key) + " has no value (" + status.code + "): " + status.why);
    }
}

TEST_P(Writers, PerClassValuesAreFound) {
  const Report report = full(), without = bare();
  ASSERT_FALSE(report.per_class.empty());
  for (const auto& metric : report.per_class) {
    EXPECT_EQ(report.find_per_class(metric.key), &metric.values) << metric.key;
    EXPECT_THROW(report.at(metric.key), ncollapse::UsageError) << metric.key;
  }
  EXPECT_EQ(without.find_per_class("acc_per_class_train"), nullptr);
  EXPECT_THROW(report.find_per_class("nc1_pinv"), ncollapse::UsageError);
}

/// Thousands with dots and a decimal comma, as in German.
struct GermanNumbers : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

TEST_P(Writers, TheLocaleOfTheProgramChangesNothing) {
  const Samples samples = make_samples({{1234, 1500}, 2, {0.5}, 1.0, 0.0, 3});
  const Report report = ncollapse::measure(moments_of(context(), samples));
  const auto written = [&] {
    return std::vector{ncollapse::to_csv(report), ncollapse::to_json(report), ncollapse::to_table(report)};
  };
  const auto want = written();
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new GermanNumbers));
  const auto found = written();
  std::locale::global(before);
  EXPECT_EQ(found, want);
  EXPECT_NE(want[0].find("count,0,1234,ok\n"), std::string::npos);
}

TEST_P(Writers, TheReportDescribesItsInput) {
  const Report report = full();
  EXPECT_EQ(report.classes, 8);
  EXPECT_EQ(report.classes_seen, 7);
  EXPECT_EQ(report.counts, (std::vector<Index>{40, 1, 0, 17, 33, 8, 90, 25}));
  EXPECT_EQ(report.samples, 214);
  EXPECT_EQ(report.dim, 12);
  EXPECT_FALSE(report.notes.empty()) << "an absent class and a single sample deserve a remark";
  EXPECT_EQ(report.device.device, ncollapse::Device::parse(GetParam()));
  EXPECT_FALSE(report.convention.sigma_w.empty());
  EXPECT_FALSE(report.convention.centre.empty());
  EXPECT_FALSE(report.convention.sigma_b.empty());
  EXPECT_GT(report.convention.rank_tolerance, 0.0);
  EXPECT_LT(report.convention.rank_tolerance, 1e-6);
}

TEST_P(Writers, JsonHasTheSchemaAndEveryNumber) {
  for (const Report& report : {full(), bare(), degenerate()}) {
    const std::string text = ncollapse::to_json(report);
    const json j = json::parse(text);
    EXPECT_EQ(j.at("schema"), "ncollapse.metrics/1");
    for (const std::string key : {"shape", "convention", "metrics", "status", "per_class", "timing", "device"})
      EXPECT_TRUE(j.contains(key)) << key;
    EXPECT_EQ(j.at("shape").at("N"), report.samples);
    EXPECT_EQ(j.at("shape").at("K"), report.classes);
    EXPECT_EQ(j.at("shape").at("K_seen"), report.classes_seen);
    EXPECT_EQ(j.at("shape").at("D"), report.dim);
    EXPECT_EQ(j.at("convention").at("preset"), std::string(ncollapse::to_string(report.convention.preset)));
    EXPECT_EQ(j.at("convention").at("ddof"), 0);

    const json& metrics = j.at("metrics");
    std::size_t numbers = 0;
    for (const auto& [key, value] : metrics.items()) {
      if (value.is_null()) continue;
      ++numbers;
      EXPECT_EQ(report.find(key), std::optional<double>(value.get<double>())) << key;  // all 17 digits
    }
    EXPECT_EQ(numbers, report.metrics.size());
    EXPECT_EQ(j.at("status").size(), report.status.size());
    for (const auto& [key, status] : report.status) {
      EXPECT_EQ(j.at("status").at(key).at("code"), status.code) << key;
      EXPECT_EQ(j.at("status").at(key).at("why"), status.why) << key;
      EXPECT_TRUE(!metrics.contains(key) || metrics.at(key).is_null()) << key;
    }
    for (const auto& [key, values] : report.per_class) {
      const json& array = j.at("per_class").at(key);
      ASSERT_EQ(array.size(), values.size()) << key;
      for (std::size_t k = 0; k < values.size(); ++k) {
        if (std::isnan(values[k]))
          EXPECT_TRUE(array[k].is_null()) << key << " " << k;
        else
          EXPECT_EQ(array[k].get<double>(), values[k]) << key << " " << k;
      }
    }
    for (const std::string word : {"NaN", "nan", "Infinity", "inf,", "inf}", "inf]"})
      EXPECT_EQ(text.find(word), std::string::npos) << word;
  }
}

TEST_P(Writers, JsonEscapesWhatItQuotes) {
  Report report = bare();
  report.source.emplace_back("features", "a \"quoted\" \\ path\n\xc3\xa4.npy");
  report.notes.push_back("tab\there \x01");
  const json j = json::parse(ncollapse::to_json(report));
  EXPECT_NE(j.dump().find("quoted"), std::string::npos);
}

TEST_P(Writers, JsonSurvivesNamesThatAreNoUtf8) {
  Report report = bare();
  report.source.emplace_back("features", "latin1 \xe4.npy");  // file names are bytes
  EXPECT_NO_THROW(EXPECT_TRUE(json::accept(ncollapse::to_json(report))));
}

TEST_P(Writers, CsvHasOneRowPerNumber) {
  for (const Report& report : {full(), bare(), degenerate()}) {
    const auto lines = lines_of(ncollapse::to_csv(report));
    ASSERT_FALSE(lines.empty());
    EXPECT_EQ(lines[0], "key,class,value,status");
    std::map<std::string, int> scalar_rows;
    std::map<std::string, std::vector<int>> class_rows;
    std::vector<Index> counts;
    for (std::size_t i = 1; i < lines.size(); ++i) {
      const auto fields = fields_of(lines[i]);
      ASSERT_EQ(fields.size(), 4U) << lines[i];
      const std::string &key = fields[0], &value = fields[2];
      if (fields[1].empty()) {
        ++scalar_rows[key];
        if (report.find(key))
          EXPECT_EQ(std::stod(value), *report.find(key)) << key;
        else
          EXPECT_TRUE(value.empty() && !fields[3].empty()) << lines[i];
        continue;
      }
      if (key == "count") {  // n_k, beside the metrics
        counts.push_back(std::stoll(value));
        EXPECT_EQ(fields[1], std::to_string(counts.size() - 1));
        continue;
      }
      const auto metric = std::find_if(report.per_class.begin(), report.per_class.end(),
                                       [&](const ncollapse::PerClassMetric& m) { return m.key == key; });
      ASSERT_NE(metric, report.per_class.end()) << lines[i];
      const auto k = std::stoul(fields[1]);
      ASSERT_LT(k, metric->values.size()) << lines[i];
      class_rows[key].push_back(static_cast<int>(k));
      if (std::isnan(metric->values[k]))
        EXPECT_TRUE(value.empty()) << lines[i];
      else
        EXPECT_EQ(std::stod(value), metric->values[k]) << lines[i];
    }
    EXPECT_EQ(counts, report.counts);
    for (const auto& [key, count] : scalar_rows) EXPECT_EQ(count, 1) << key;
    for (const auto& metric : report.metrics) EXPECT_EQ(scalar_rows[metric.key], 1) << metric.key;
    for (const auto& [key, status] : report.status)
      EXPECT_TRUE(scalar_rows[key] == 1 || class_rows.contains(key)) << key << " is missing";
    for (const auto& [key, values] : report.per_class) {
      std::vector<int> want(values.size());
      for (std::size_t k = 0; k < want.size(); ++k) want[k] = static_cast<int>(k);
      EXPECT_EQ(class_rows[key], want) << key;
    }
  }
}

TEST_P(Writers, TheTableFitsAndNamesEveryNumber) {
  Report noted = full();
  noted.notes = {"short", "w" + std::string(84, 'o') + "rd after word after word", "x " + std::string(87, 'y') + " z"};
  for (const Report& report : {full(), bare(), degenerate(), noted}) {
    const std::string table = ncollapse::to_table(report);
    for (const auto& metric : report.metrics) EXPECT_NE(table.find(metric.key), std::string::npos) << metric.key;
    EXPECT_EQ(table.find('\x1b'), std::string::npos) << "colours were not asked for";
    EXPECT_NE(table.find(ncollapse::to_string(report.convention.preset)), std::string::npos);
    EXPECT_EQ(table.find("nan"), std::string::npos);
    for (const std::string& line : lines_of(table)) {
      const auto columns = std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xc0) != 0x80; });
      EXPECT_LE(columns, 100) << line;
    }
    EXPECT_NE(ncollapse::to_table(report, true).find('\x1b'), std::string::npos) << "colours were asked for";
  }
  EXPECT_NE(ncollapse::to_table(noted).find("\nnote        short\n"), std::string::npos);
  EXPECT_NE(ncollapse::to_table(noted).find("\nnote        x\n            yyy"), std::string::npos);
}

}  // namespace
}  // namespace ncollapse_test
