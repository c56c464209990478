// Two feature dumps of real networks, read from their files, against metrics that a NumPy script computed.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

using ncollapse::ArrayFile;
using ncollapse::ArrayRole;

class Dumps : public OnDevice {
 protected:
  static std::string dump(const std::string& name) {
    return std::string(NCOLLAPSE_SHARED_DATA) + "/dumps/" + name + "/";
  }
  static bool missing(const std::string& name) { return !std::filesystem::exists(dump(name) + "expected.json"); }
  static nlohmann::json expected(const std::string& name) {
    return nlohmann::json::parse(std::ifstream(dump(name) + "expected.json"));
  }
  static std::vector<std::string> weight_files(const std::string& name) {
    std::vector<std::string> files;
    for (int layer = 1; std::filesystem::exists(dump(name) + "W" + std::to_string(layer) + ".npy"); ++layer)
      files.push_back(dump(name) + "W" + std::to_string(layer) + ".npy");
    return files;
  }

  /// Hands the rows of a split to `take` in batches that do not divide their number.
  template <class Take>
  static void stream(const std::string& name, const std::string& split, Take&& take) {
    ArrayFile features = ArrayFile::open(dump(name) + split + "features.npy", ArrayRole::features);
    ArrayFile labels = ArrayFile::open(dump(name) + split + "labels.npy", ArrayRole::labels);
    ASSERT_EQ(features.rows(), labels.rows());
    for (Index first = 0; first < features.rows(); first += 701) {
      const Index count = std::min(Index(701), features.rows() - first);
      take(features.read_matrix(first, count), labels.read_labels(first, count));
    }
  }

  static void check(const std::function<std::optional<double>(const std::string&)>& find,
                    const nlohmann::json& values) {
    int compared = 0;
    for (const auto& [key, value] : values.items()) {
      if (!key.starts_with("nc") && !key.starts_with("acc")) continue;
      ++compared;
      const auto got = find(key);
      if (!got) {
        ADD_FAILURE() << key << " has no number";
        continue;
      }
      const bool is_count = key.starts_with("nc4") || key.starts_with("acc") || key.starts_with("ncc");
      expect_close(*got, value.get<double>(), is_count ? 0 : 1e-6, is_count ? 0 : 1e-9, key);
    }
    EXPECT_EQ(compared, 33);
  }
};
NCOLLAPSE_ON_EVERY_DEVICE(Dumps);

TEST_P(Dumps, EveryExpectedMetricOfEveryConvention) {
  for (const std::string name : {"cifar10_L3_bias", "cifar10_L1_collapsed"}) {
    SCOPED_TRACE(name);
    if (missing(name)) GTEST_SKIP() << "no data: " << dump(name) << " is not there";
    AccumulatorOptions options;
    options.classes = 10;
    options.dim = 256;
    Accumulator accumulator(context(), options);
    stream(name, "", [&](const auto& features, const auto& labels) { accumulator.add(features, labels); });
    const ClassMoments moments = accumulator.finish();
    EXPECT_EQ(moments.samples(), 3000);

    std::vector<ArrayFile> files;
    for (const std::string& file : weight_files(name)) files.push_back(ArrayFile::open(file, ArrayRole::weights));
    ArrayFile bias = ArrayFile::open(dump(name) + "b.npy", ArrayRole::bias);
    ncollapse::Classifier classifier;
    for (ArrayFile& file : files) classifier.layers.push_back(file.read_matrix(0, file.rows()));
    classifier.bias = bias.read_matrix(0, bias.rows());
    std::swap(classifier.bias.rows, classifier.bias.cols);  // a column of the file as the row of a classifier
    classifier.bias.stride = 0;

    ncollapse::DecisionCounter train_counter(moments, &classifier), test_counter(moments, &classifier);
    stream(name, "", [&](const auto& features, const auto& labels) { train_counter.add(features, labels); });
    stream(name, "test_", [&](const auto& features, const auto& labels) { test_counter.add(features, labels); });
    const DecisionCounts train = train_counter.finish(), test = test_counter.finish();
    const nlohmann::json wanted = expected(name);
    for (const auto& [convention, values] : wanted.items()) {
      SCOPED_TRACE(convention);
      const Report report =
          ncollapse::measure(moments, {&classifier, &train, &test, nullptr}, ncollapse::parse_convention(convention));
      expect_sound(report);
      check([&](const std::string& key) { return report.find(key); }, values);
    }
  }
}

TEST_P(Dumps, MetricsWithoutExpectedValueAgreeWithTheOracle) {
  for (const std::string name : {"cifar10_L3_bias", "cifar10_L1_collapsed"}) {
    SCOPED_TRACE(name);
    if (missing(name)) GTEST_SKIP() << "no data: " << dump(name) << " is not there";
    const oracle::Matrix features = oracle::read_npy(dump(name) + "features.npy");
    Problem problem;
    problem.train = {10, 256, {features.values.begin(), features.values.end()}, {}};
    for (oracle::Real label : oracle::read_npy(dump(name) + "labels.npy").values)
      problem.train.labels.push_back(static_cast<std::int64_t>(label));
    oracle::Matrix weights = oracle::read_npy(dump(name) + "W1.npy");
    for (std::size_t layer = 1; layer < weight_files(name).size(); ++layer)
      weights = oracle::product(oracle::read_npy(weight_files(name)[layer]), weights);
    problem.head = {10, 256, {weights.values.begin(), weights.values.end()}, {}};
    for (oracle::Real b : oracle::read_npy(dump(name) + "b.npy").values)
      problem.head.bias.push_back(static_cast<double>(b));
    const Truth truth(problem);
    for (Convention convention : {Convention::zhu, Convention::classavg}) {
      // VCI is 1 minus a trace that an inverse of condition up to 1e10 makes: 1e-10 and better in practice.
      const Report report = measure_problem(context(), problem, convention);
      expect_report(report, truth, convention, 1e-8, 1e-9);
    }
  }
}

TEST_P(Dumps, AnalyzeGivesTheExpectedMetrics) {
  const std::string name = "cifar10_L3_bias";
  if (missing(name)) GTEST_SKIP() << "no data: " << dump(name) << " is not there";
  ncollapse::AnalysisRequest request;
  request.features = dump(name) + "features.npy";
  request.labels = dump(name) + "labels.npy";
  request.weights = weight_files(name);
  request.bias = dump(name) + "b.npy";
  request.test_features = dump(name) + "test_features.npy";
  request.test_labels = dump(name) + "test_labels.npy";
  request.batch_rows = 999;
  const nlohmann::json wanted = expected(name);
  for (const auto& [convention, values] : wanted.items()) {
    request.convention = ncollapse::parse_convention(convention);
    const Report report = ncollapse::analyze(context(), request);
    EXPECT_EQ(report.dtype, "f32");
    expect_sound(report);
    check([&](const std::string& key) { return report.find(key); }, values);
  }
}

}  // namespace
}  // namespace ncollapse_test
