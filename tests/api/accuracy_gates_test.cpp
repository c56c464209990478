// The accuracy that every backend owes, whatever is done for speed: features in single precision whose variance within
// classes is 1e-8 of that between them, against the oracle on the stored values. The bounds are the project's promise;
// a derivation of what rounding allows is in near_collapse_test.cpp.
#include <cmath>

#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

class AccuracyGates : public OnDevice {};
NCOLLAPSE_ON_EVERY_DEVICE(AccuracyGates);

constexpr double kExact = 1e-10;       // relative error of NC1 against the oracle
constexpr double kSameStream = 1e-12;  // relative difference between orders and batch sizes of one stream
constexpr Index kDim = 12;

const std::vector<std::string> kRatios{"nc1_pinv", "nc1_pinv_sum", "nc1_trace_ratio", "nc1_within_frac", "nc1_cdnv"};

Samples collapsed(std::vector<Index> counts) {
  return rounded(make_samples({std::move(counts), kDim, {1e-4}, 1.0, 0.0, 7}), Dtype::f32);
}

Report measured(const Context& context, const Samples& samples, Index batch_rows = 0) {
  return ncollapse::measure(accumulate(context, samples, batch_rows, Dtype::f32).finish());
}

void expect_exact(const Context& context, const Samples& samples, const std::string& what) {
  Problem problem;
  problem.train = samples;
  const auto want = Truth(problem).metrics(Convention::zhu);
  for (const Index batch_rows : {Index{0}, Index{50}}) {
    const Report report = measured(context, samples, batch_rows);
    for (const std::string& key : kRatios)
      expect_close(report.find(key).value_or(NAN), want.at(key), kExact, 0, what + ", " + key);
  }
}

TEST_P(AccuracyGates, CollapsedToARatioOf1em8) {
  expect_exact(context(), collapsed({400, 200, 90, 40, 11, 3}), "collapsed");
}

TEST_P(AccuracyGates, AnotherOrderOrBatchSizeChangesNothing) {
  const Samples samples = collapsed({400, 200, 90, 40, 11, 3});
  const Report whole = measured(context(), samples);
  const Samples shuffled = reordered(samples, shuffled_order(samples.rows(), 5));
  const auto same = [&](const Report& other, const std::string& what) {
    for (const std::string& key : kRatios)
      expect_close(other.find(key).value_or(NAN), whole.find(key).value_or(NAN), kSameStream, 0, what + ", " + key);
  };
  same(measured(context(), samples, 1), "rows one by one");
  same(measured(context(), samples, 33), "batches of 33");
  same(measured(context(), shuffled), "shuffled");
  same(measured(context(), shuffled, 64), "shuffled, batches of 64");
}

TEST_P(AccuracyGates, FirstSamplesThirtyDeviationsOff) {
  Samples samples = collapsed({400, 200, 90, 40, 11, 3});
  std::vector<bool> met(at(samples.classes), false);
  for (Index i = 0; i < samples.rows(); ++i) {
    const auto label = at(samples.labels[at(i)]);
    if (met[label]) continue;
    met[label] = true;
    for (Index j = 0; j < kDim; ++j)
      samples.values[at(i * kDim + j)] += (static_cast<Index>(label) + j) % 2 == 0 ? 30e-4 : -30e-4;
  }
  expect_exact(context(), rounded(samples, Dtype::f32), "outliers first");
}

TEST_P(AccuracyGates, AwkwardClasses) {
  expect_exact(context(), collapsed({60, 0, 40, 0, 25}), "absent classes");
  expect_exact(context(), collapsed({60, 1, 40, 1, 25}), "classes of one sample");
  expect_exact(context(), collapsed({60, 30}), "two classes");
  expect_exact(context(), collapsed(std::vector<Index>(20, 4)), "more classes than dimensions");

  Samples constant = collapsed({60, 30, 20});
  for (Index i = 0; i < constant.rows(); ++i) constant.values[at(i * kDim + 3)] = 0.625;
  expect_exact(context(), constant, "a constant feature");
}

TEST_P(AccuracyGates, DuplicateMeans) {
  // Classes 0 and 1 around one mean: CDNV is large, everything else as ever.
  Samples samples = collapsed({50, 50, 40, 30});
  std::vector<double> shift(at(kDim), 0.0);
  const auto moments = oracle::moments(samples.truth());
  for (Index j = 0; j < kDim; ++j) shift[at(j)] = static_cast<double>(moments.means(0, j) - moments.means(1, j));
  for (Index i = 0; i < samples.rows(); ++i)
    for (Index j = 0; j < kDim; ++j)
      if (samples.labels[at(i)] == 1) samples.values[at(i * kDim + j)] += shift[at(j)];
  samples = rounded(samples, Dtype::f32);
  Problem problem;
  problem.train = samples;
  const auto want = Truth(problem).metrics(Convention::zhu);
  const Report report = measured(context(), samples);
  for (const std::string key : {"nc1_trace_ratio", "nc1_within_frac"})
    expect_close(report.find(key).value_or(NAN), want.at(key), kExact, 0, key);
  // The means' distance is some 1e-7, the rounding of the samples: its square is known to 2 eps / 1e-7 = 4e-9, and so
  // are CDNV and the smallest eigenvalue of Sigma_B, where that counts.
  expect_close(report.find("nc1_cdnv").value_or(NAN), want.at("nc1_cdnv"), 1e-7, 0, "nc1_cdnv");
  for (const auto& metric : report.metrics) EXPECT_TRUE(std::isfinite(metric.value)) << metric.key;
}

TEST_P(AccuracyGates, ConstantSamplesHaveNoVariance) {
  Samples samples{3, kDim, {}, {}};
  for (Index i = 0; i < 30; ++i) {
    std::vector<double> row(at(kDim), 0.1F);
    row[at(i % 3)] = 1.1F;
    samples.add(i % 3, row);
  }
  const Report report = measured(context(), samples, 7);
  for (const std::string& key : kRatios) EXPECT_EQ(report.find(key).value_or(NAN), 0.0) << key;
}

}  // namespace
}  // namespace ncollapse_test
