// The demo dump through the installed library's public face, on the best device here, against expected.json of an
// independent NumPy program. The folder may be named in NCOLLAPSE_DEMO_DATA.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "ncollapse/ncollapse.hpp"

namespace {

TEST(Demo, EveryExpectedNumberInEveryConvention) {
  const char* named = std::getenv("NCOLLAPSE_DEMO_DATA");
  const std::string folder = std::string(named != nullptr ? named : NCOLLAPSE_DEMO_DATA) + "/";
  const ncollapse::Context context;
  std::cout << "on " << context.info().name << "\n";

  ncollapse::AnalysisRequest request;
  request.features = folder + "features.npy";
  request.labels = folder + "labels.npy";
  request.weights = {folder + "W1.npy"};
  request.bias = folder + "b.npy";
  request.test_features = folder + "test_features.npy";
  request.test_labels = folder + "test_labels.npy";

  const nlohmann::json expected = nlohmann::json::parse(std::ifstream(folder + "expected.json"));
  ASSERT_EQ(expected.size(), 4u);
  for (const auto& [convention, values] : expected.items()) {
    request.convention = ncollapse::parse_convention(convention);
    const ncollapse::Report report = ncollapse::analyze(context, request);
    for (const auto& [key, value] : values.items()) {
      const double want = value, got = report.find(key).value_or(std::nan(""));
      // Both sides sum up to 1500 x 256 doubles: 4e5 eps = 1e-10 (found on a CPU: below 1e-14).
      EXPECT_LE(std::abs(got - want), 1e-10 * std::abs(want)) << convention << ": " << key << " = " << got;
    }
  }
}

}  // namespace
