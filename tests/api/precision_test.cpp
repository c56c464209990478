// Precision::fast: how far it is off, that it says so, and that the rest of the library knows.
#include <unistd.h>
#include <cmath>
#include <filesystem>
#include <random>

#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

using ncollapse::Precision;

class FastPrecision : public OnDevice {
 protected:
  Accumulator accumulator(const Samples& samples, Precision precision) const {
    AccumulatorOptions options = options_for(samples);
    options.precision = precision;
    return Accumulator(context(), options);
  }
  Accumulator accumulate(const Samples& samples, Precision precision, Index batch_rows = 0,
                         Dtype dtype = Dtype::f64) const {
    Accumulator moments = accumulator(samples, precision);
    add_samples(moments, samples, batch_rows, dtype);
    return moments;
  }
};
NCOLLAPSE_ON_EVERY_DEVICE(FastPrecision);

Samples collapsed(double deviation, unsigned seed = 51) {
  return rounded(make_samples({{2000, 976, 482, 238, 118, 58, 29, 14, 7, 1}, 24, {deviation}, 1.0, 0.0, seed}),
                 Dtype::f32);
}

/// |S - S_exact|_F <= scatter_error tr S, and the diagonal is exact.
void expect_within_bound(const ClassMoments& fast, const ClassMoments& exact) {
  const auto got = fast.within_scatter(), want = exact.within_scatter();
  const Index d = fast.dim();
  double error = 0, trace = 0;
  for (Index i = 0; i < d; ++i)
    for (Index j = 0; j < d; ++j) {
      const double gap = got[at(i * d + j)] - want[at(i * d + j)];
      error += gap * gap;
      if (i != j) continue;
      trace += want[at(i * d + i)];
      expect_close(got[at(i * d + i)], want[at(i * d + i)], 1e-11, 0);
    }
  EXPECT_GT(fast.scatter_error(), 0);
  EXPECT_LT(fast.scatter_error(), 0.02);  // 2^-10 and a bit, times tr T / tr S
  EXPECT_LE(std::sqrt(error), fast.scatter_error() * trace);
  EXPECT_GT(error, 0);  // else it would not be the fast one
}

TEST_P(FastPrecision, AtRatio1em8NC1IsGoodToFiveDigits) {
  Problem problem;
  problem.train = collapsed(1e-4);
  const Truth truth(problem);
  for (const Index batch_rows : {0, 777}) {
    const Report report = measure(accumulate(problem.train, Precision::fast, batch_rows, Dtype::f32).finish());
    expect_sound(report);
    const auto want = truth.metrics(Convention::zhu);
    for (const std::string key : {"nc1_pinv", "nc1_pinv_sum"})
      expect_close(report.find(key).value_or(NAN), want.at(key), 5e-5, 0, key);
    for (const std::string key : {"nc1_trace_ratio", "nc1_within_frac", "nc1_cdnv"})
      expect_close(report.find(key).value_or(NAN), want.at(key), kRounding, 0, key);
    EXPECT_FALSE(report.find("nc1_vci"));
    EXPECT_EQ(report.status.at("nc1_vci").code, "skipped");
    EXPECT_EQ(report.precision, Precision::fast);
    EXPECT_NE(to_json(report).find("\"scatter\": \"fast\""), std::string::npos);
    EXPECT_NE(to_table(report).find("precision   fast"), std::string::npos);
  }
}

TEST_P(FastPrecision, TheScatterKeepsItsBound) {
  for (const double deviation : {1e-4, 1.0})
    for (const Index batch_rows : {0, 100}) {
      const Samples samples = collapsed(deviation);
      const auto exact = accumulate(samples, Precision::exact).finish();
      EXPECT_EQ(exact.scatter_error(), 0);
      expect_within_bound(accumulate(samples, Precision::fast, batch_rows).finish(), exact);
    }
}

TEST_P(FastPrecision, WhereNothingVariesThereIsNoError) {
  const Samples samples = collapsed(0);
  const auto moments = accumulate(samples, Precision::fast).finish();
  EXPECT_EQ(moments.scatter_error(), 0);
  for (const double value : moments.within_scatter()) EXPECT_EQ(value, 0);
}

TEST_P(FastPrecision, MeansAndVariancesAreThoseOfExact) {
  const Samples samples = collapsed(1e-3);
  const auto fast = accumulate(samples, Precision::fast).finish(),
             exact = accumulate(samples, Precision::exact).finish();
  EXPECT_EQ(fast.means(), exact.means());
  EXPECT_EQ(fast.within_variances(), exact.within_variances());
}

TEST_P(FastPrecision, StateFilesRemember) {
  const Samples samples = collapsed(1e-2);
  const auto file =
      std::filesystem::path(testing::TempDir()) / ("fast-" + GetParam() + std::to_string(getpid()) + ".nc");
  const Accumulator moments = accumulate(samples, Precision::fast);
  moments.save(file);
  const Accumulator loaded = Accumulator::load(context(), file);
  EXPECT_EQ(loaded.options().precision, Precision::fast);
  EXPECT_EQ(loaded.finish().scatter_error(), moments.finish().scatter_error());
  expect_same_bits(loaded.finish(), moments.finish());
  std::filesystem::remove(file);
}

TEST_P(FastPrecision, AMergedStateHasTheLowerPrecisionAndKeepsItsBound) {
  const Samples first = collapsed(1e-2, 52), second = collapsed(1e-2, 53), third = collapsed(1e-2, 54);
  Accumulator exact = accumulate(first, Precision::exact);
  exact.merge(accumulate(second, Precision::exact));
  add_samples(exact, third);
  for (const auto& [left, right] : {std::pair{Precision::exact, Precision::fast},
                                    {Precision::fast, Precision::exact},
                                    {Precision::fast, Precision::fast}}) {
    Accumulator sum = accumulate(first, left);
    sum.merge(accumulate(second, right));
    EXPECT_EQ(sum.options().precision, Precision::fast);
    add_samples(sum, third);
    expect_within_bound(sum.finish(), exact.finish());
  }
  // Whichever side is empty.
  Accumulator nothing = accumulate(second, Precision::exact),
              empty(context(), accumulate(first, Precision::fast).options());
  nothing.merge(empty);
  EXPECT_EQ(nothing.options().precision, Precision::fast);
  expect_close(nothing.finish().within_scatter()[0], accumulate(second, Precision::exact).finish().within_scatter()[0],
               1e-13, 0);
  empty.merge(accumulate(second, Precision::exact));
  EXPECT_EQ(empty.options().precision, Precision::fast);
}

/// Two samples a class and a head, d = 5.
Report measure_many(Index classes, Precision precision) {
  const Index dim = 5;
  std::mt19937 random(61);
  std::normal_distribution<float> normal;
  const Index rows = 2 * classes;
  std::vector<float> features(at(rows * dim)), weights(at(classes * dim));
  for (std::vector<float>* values : {&features, &weights})
    for (float& value : *values) value = normal(random);
  std::vector<std::int64_t> labels;
  for (Index i = 0; i < rows; ++i) labels.push_back(i % classes);
  const Context cpu(ncollapse::Device::parse("cpu"));
  Accumulator moments(cpu, {.classes = classes, .dim = dim, .precision = precision});
  moments.add(ncollapse::view(features.data(), rows, dim), ncollapse::view(labels.data(), rows));
  const ncollapse::Classifier head{.layers = {ncollapse::view(weights.data(), classes, dim)}};
  return measure(moments.finish(), {.classifier = &head});
}

TEST(FastPairs, AreStatedAndKeepTheirBound) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "millions of pairs";
#endif
  const Index classes = 16385;
  const Report fast = measure_many(classes, Precision::fast), exact = measure_many(classes, Precision::exact);
  expect_sound(fast);
  EXPECT_EQ(exact.cosine_error, 0);
  EXPECT_GT(fast.cosine_error, 0);
  EXPECT_LT(fast.cosine_error, 1e-6);  // 9 roundings to single precision
  EXPECT_NE(to_json(fast).find("\"cosine_error_bound\": "), std::string::npos);
  EXPECT_NE(to_table(fast).find("pairs of classes: see the note"), std::string::npos);
  EXPECT_NE(to_table(fast).find("statistics of pairs are by fast products"), std::string::npos);
  const auto off = [&](const std::string& key) { return std::abs(fast.find(key).value() - exact.find(key).value()); };
  // Each e of a sum is off by E; |e| <= 2, so that a root mean square is as well.
  for (const std::string suffix : {"_h", "_w"})
    for (const std::string key : {"nc2_cos_mean", "nc2_cos_std", "nc2_cos_max", "nc2_equiang", "block_err"})
      EXPECT_LE(off(key + suffix), 1.001 * fast.cosine_error) << key << suffix;
  EXPECT_GT(off("nc2_cos_std_h"), 0);  // else they would not be the fast ones
  for (const std::string key : {"nc2_etf_h", "nc2_etf_w", "nc2_of_h", "nc2_of_w", "nc3_wh_etf", "nc3_wh_of"})
    EXPECT_LE(off(key), 1e-12) << key;
  for (const std::string key : {"nc2_gnc_dist_mean", "nc2_gnc_dist_var", "nc2_gnc_log_mean", "nc2_gnc_log_var"})
    EXPECT_LE(off(key), 1e-5) << key;
  EXPECT_LE(off("nc2_min_angle_deg"), exact.find("nc2_min_angle_deg").value() / 64);
  for (const auto& metric : exact.metrics) EXPECT_TRUE(fast.find(metric.key) || metric.key == "nc1_vci") << metric.key;
}

TEST(FastPairs, AreForManyClassesOnly) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "millions of pairs";
#endif
  const Report fast = measure_many(16384, Precision::fast), exact = measure_many(16384, Precision::exact);
  EXPECT_EQ(fast.cosine_error, 0);
  EXPECT_EQ(to_json(fast).find("cosine_error_bound"), std::string::npos);
  EXPECT_EQ(to_table(fast).find("fast products"), std::string::npos);
  for (const std::string key : {"nc2_cos_std_h", "nc2_cos_std_w", "nc2_gnc_log_var", "nc1_cdnv", "nc3_wh_etf"})
    EXPECT_EQ(fast.find(key), exact.find(key)) << key;
}

TEST(Precisions, NoErrorIsStatedOfAScatterThatIsNotThere) {
  const Samples samples = make_samples({{9, 4, 7}, 3, {0.4}, 1.0, 0.0, 12});
  using ncollapse::Statistics;
  const auto table_of = [&](Statistics statistics) {
    Accumulator moments(Context(ncollapse::Device::parse("cpu")),
                        {.classes = 3, .dim = 3, .statistics = statistics, .precision = Precision::fast});
    add_samples(moments, samples);
    return to_table(measure(moments.finish()));
  };
  EXPECT_NE(table_of(Statistics::full).find("|error of the scatter| <="), std::string::npos);
  for (const Statistics statistics : {Statistics::means, Statistics::traces}) {
    EXPECT_EQ(table_of(statistics).find("error of the scatter"), std::string::npos);
    EXPECT_NE(table_of(statistics).find("precision   fast: there was nothing to take fast"), std::string::npos);
  }
}

TEST(Precisions, HaveNames) {
  EXPECT_EQ(to_string(Precision::exact), "exact");
  EXPECT_EQ(ncollapse::parse_precision("fast"), Precision::fast);
  EXPECT_THROW(ncollapse::parse_precision("tf32"), ncollapse::UsageError);
}

}  // namespace
}  // namespace ncollapse_test
