// The benchmark suite on the host stand-in of CUDA: that it runs there, agrees with its oracle, and that the plain way
// finds what the library finds. Times mean nothing here.
#include <gtest/gtest.h>

#include <cmath>

#include "bench/suite.hpp"
#include "ncollapse/ncollapse.hpp"

namespace ncollapse::bench {
namespace {

Results run_tiny(const std::vector<Case>& cases, const std::vector<std::string>& operations) {
  Options options;
  options.device = {DeviceType::cuda, 0};
  options.matrix = cases;
  options.operations = operations;
  options.seconds = 1e-3;
  options.repeats = 1;
  options.baseline = true;
  options.profile = true;
  return run(options, [](const Results&, const std::string&) {});
}

constexpr double kHalf = 0x1p-10;  // two roundings to half precision; so few rows are added without loss

void expect_sound(const Results& results, double error) {
  for (const Skipped& skipped : results.skipped)
    ADD_FAILURE() << skipped.id << " " << skipped.operation << ": " << skipped.why;
  for (const Measurement& row : results.rows) {
    const std::string what = row.shape.id + " " + row.operation;
    EXPECT_GT(row.seconds, 0) << what;
    const bool fast = row.operation == "scatter_fast" || row.operation == "pairs_fast";
    EXPECT_LE(row.error, fast ? kHalf : error) << what << ", " << row.error_of;
    EXPECT_TRUE(row.same_bits) << what;
    EXPECT_GE(row.hashed, 2) << what;
  }
}

Case tiny(const std::string& id, Index classes, Dtype dtype, Sizes sizes, bool on_host = false) {
  return {{id, 150, classes, 12, dtype, sizes, false, 1e-2, 0, on_host},
          "",
          {"sums", "scatter", "scatter_fast", "decisions", "decisions_collapsed", "pairs", "pairs_fast", "eigen", "svd",
           "measure", "end_to_end", "add_overhead"}};
}

TEST(BenchOnCuda, EveryOperationAgreesWithItsOracle) {
  const Results results =
      run_tiny({tiny("few", 4, Dtype::bf16, Sizes::equal), tiny("many", 20, Dtype::f32, Sizes::zipf)}, {});
  EXPECT_EQ(results.device.device.type, DeviceType::cuda);
  EXPECT_GT(results.rates.copy_bytes_per_s, 0);
  EXPECT_GT(results.rates.hgemm, 0);
  EXPECT_EQ(results.rows.size(), 2 * operations().size());
  expect_sound(results, 1e-12);
}

TEST(BenchOnCuda, FeaturesMayStayInHostMemory) {
  expect_sound(run_tiny({tiny("host", 4, Dtype::f16, Sizes::equal, true)}, {"sums", "scatter"}), 1e-12);
}

TEST(BenchOnCuda, ThePlainWayFindsWhatTheLibraryFinds) {
  // Single precision, and a noise of 1e-2: seven digits of squares of 1e-4 about means of size 1.
  const Results results = run_tiny({tiny("plain", 6, Dtype::f32, Sizes::equal)}, {"end_to_end"});
  ASSERT_EQ(results.rows.size(), 1u);
  const Measurement& row = results.rows.front();
  ASSERT_TRUE(row.plain.has_value());
  EXPECT_GT(row.nc1_trace_ratio, 0);
  EXPECT_LE(std::abs(row.plain->nc1_trace_ratio / row.nc1_trace_ratio - 1), 1e-3);
  EXPECT_LE(std::abs(row.plain->nc1_cdnv / row.nc1_cdnv - 1), 1e-3);
  EXPECT_EQ(row.plain->agree, row.agree);
}

}  // namespace
}  // namespace ncollapse::bench
