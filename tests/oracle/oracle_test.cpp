// The oracle against numbers that were made by somebody else: a NumPy script and, for `peer`, a PyTorch package.
#include "tests/oracle/oracle.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

namespace {

using ncollapse::Index;

TEST(Oracle, EigenDecompositionOfAMatrixWithNullDirections) {
  oracle::Matrix root(3, 5);
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 5; ++j) root(i, j) = static_cast<oracle::Real>((7 * i + 3 * j * j + i * j) % 11) - 4;
  const oracle::Matrix A = oracle::product(oracle::transpose(root), root);
  const oracle::Eigen e = oracle::eigen(A);
  const oracle::Matrix AV = oracle::product(A, e.vectors),
                       VtV = oracle::product(oracle::transpose(e.vectors), e.vectors);
  int positive = 0;
  for (Index j = 0; j < 5; ++j) {
    const auto value = e.values[static_cast<std::size_t>(j)];
    positive += value > 1e-12L;
    for (Index i = 0; i < 5; ++i) {
      EXPECT_LE(std::abs(AV(i, j) - value * e.vectors(i, j)), 1e-15L);
      EXPECT_LE(std::abs(VtV(i, j) - (i == j ? 1 : 0)), 1e-17L);
    }
  }
  EXPECT_EQ(positive, 3);
  const oracle::Matrix back = oracle::product(oracle::product(A, oracle::pseudo_inverse(A)), A);
  for (std::size_t i = 0; i < A.values.size(); ++i) EXPECT_LE(std::abs(back.values[i] - A.values[i]), 1e-13L);
}

class OracleOnDump : public testing::TestWithParam<std::string> {};

TEST_P(OracleOnDump, ReproducesTheExpectedMetrics) {
  const std::string dump = std::string(NCOLLAPSE_SHARED_DATA) + "/dumps/" + GetParam() + "/";
  if (!std::filesystem::exists(dump + "expected.json")) GTEST_SKIP() << "no data: " << dump << " is not there";
  const auto expected = nlohmann::json::parse(std::ifstream(dump + "expected.json"));
  const auto load = [&](const std::string& split) {
    oracle::Data data;
    data.features = oracle::read_npy(dump + split + "features.npy");
    for (oracle::Real label : oracle::read_npy(dump + split + "labels.npy").values)
      data.labels.push_back(static_cast<Index>(label));
    data.classes = 10;
    return data;
  };
  oracle::Head head;
  head.weights = oracle::read_npy(dump + "W1.npy");
  for (const std::string layer : {"W2.npy", "W3.npy"})
    if (std::filesystem::exists(dump + layer))
      head.weights = oracle::product(oracle::read_npy(dump + layer), head.weights);
  head.bias = oracle::read_npy(dump + "b.npy").values;

  const oracle::Data train_data = load(""), test_data = load("test_");
  const oracle::Moments moments = oracle::moments(train_data);
  const oracle::Decisions train = oracle::decide(moments, head, train_data),
                          test = oracle::decide(moments, head, test_data);
  for (const auto& [name, values] : expected.items()) {
    const auto metrics = oracle::metrics(moments, {&head, &train, &test, nullptr}, ncollapse::parse_convention(name));
    int compared = 0;
    for (const auto& [key, value] : values.items()) {
      if (key.starts_with("ufm")) continue;  // predictions of the unconstrained feature model: not the oracle's subject
      ++compared;
      ASSERT_TRUE(metrics.contains(key)) << key;
      const double got = static_cast<double>(metrics.at(key)), want = value.get<double>();
      EXPECT_TRUE(std::abs(got - want) <= 1e-10 * std::abs(want)) << name << " " << key << ": " << got << ", " << want;
    }
    EXPECT_EQ(compared, 33) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Dumps, OracleOnDump, testing::Values("cifar10_L3_bias", "cifar10_L1_collapsed"));

}  // namespace
