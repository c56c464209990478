// What the library is for: classes that are almost points. Everything is compared with the oracle on the very values
// that were stored, so the element type's own rounding is no error.
//
// Bounds: the samples are held as differences to one sample of their class, which double represents exactly here. A
// first sample at c standard deviations makes the accumulated squares 1 + c^2 times the scatter that is left, so the
// relative rounding is at most (1 + c^2) n eps: 1e-12 for c = 1 and n = 4000, 8e-10 for c = 30; in practice sqrt(n)
// stands for n. A first sample from another class makes c^2 = n: n^2 eps = 4e-9.
#include <cmath>

#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

class NearCollapse : public OnDevice {};
NCOLLAPSE_ON_EVERY_DEVICE(NearCollapse);

const std::vector<Index> kCounts = {4000, 1976, 976, 482, 238, 118, 58, 29, 14, 7};

/// Coordinates of size 1 and noise `deviation`: the ratio of the variances is deviation^2.
Problem collapsed(double deviation, Dtype dtype, double offset = 0) {
  Problem problem;
  problem.train = rounded(make_samples({kCounts, 24, {deviation}, 1.0, offset, 31}), dtype);
  return problem;
}

/// The metrics of the variability within classes. The index inverts Sigma_W: its condition number counts as well.
void expect_variability(const Report& report, const Problem& problem, double relative) {
  const Truth truth(problem);
  const auto want = truth.metrics(Convention::zhu);
  for (const std::string key : {"nc1_pinv", "nc1_pinv_sum", "nc1_trace_ratio", "nc1_within_frac", "nc1_cdnv"}) {
    ASSERT_TRUE(report.find(key)) << key;
    expect_close(*report.find(key), want.at(key), relative, 0, key);
  }
  ASSERT_TRUE(report.find("nc1_vci"));
  expect_close(*report.find("nc1_vci"), want.at("nc1_vci"), 10 * relative, 0, "nc1_vci");
  const auto vectors = truth.per_class(Convention::zhu);
  int compared = 0;
  for (const auto& got : report.per_class) {
    if (!got.key.starts_with("nc1")) continue;
    ++compared;
    const std::vector<double>& values = vectors.at(got.key);
    for (std::size_t k = 0; k < values.size(); ++k)
      expect_close(got.values[k], values[k], relative, 0, got.key + " of class " + std::to_string(k));
  }
  EXPECT_EQ(compared, 2);
}

Report measure_typed(const Context& context, const Problem& problem, Dtype dtype, Index batch_rows = 0) {
  return ncollapse::measure(accumulate(context, problem.train, batch_rows, dtype).finish());
}

// Noise of a few units in the last place: the rest of the variance is what rounding to the type adds.
TEST_P(NearCollapse, TheInputFloorIsWhatRoundingAdds) {
  for (const auto& [dtype, deviation] : {std::pair{Dtype::bf16, 0.01}, {Dtype::f16, 0.00125}}) {
    SCOPED_TRACE(ncollapse::to_string(dtype));
    const auto report_of = [&](double noise, Dtype type) {
      const Samples samples = make_samples({kCounts, 256, {noise}, 1.0, 0, 31});
      return ncollapse::measure(accumulate(context(), samples, 0, type).finish());
    };
    const Report rounded = report_of(deviation, dtype), exact = report_of(deviation, Dtype::f64);
    const double floor = rounded.find("nc1_input_floor").value();
    const double added = rounded.find("nc1_trace_ratio").value() - exact.find("nc1_trace_ratio").value();
    EXPECT_GT(added, 0.8 * floor);
    EXPECT_LT(added, 1.25 * floor);
    EXPECT_TRUE(rounded.notes.empty());  // 36 times the floor
    EXPECT_TRUE(report_of(deviation / 3, Dtype::f64).notes.empty());
    const Report near = report_of(deviation / 3, dtype);
    ASSERT_EQ(near.notes.size(), 1u);
    EXPECT_NE(near.notes.front().find(near.dtype), std::string::npos) << near.notes.front();
  }
}

TEST_P(NearCollapse, SinglePrecisionAtRatio1em8) {
  const Problem problem = collapsed(1e-4, Dtype::f32);
  expect_variability(measure_typed(context(), problem, Dtype::f32), problem, 1e-10);
  expect_variability(measure_typed(context(), problem, Dtype::f32, 64), problem, 1e-10);
}

TEST_P(NearCollapse, DoublePrecisionAtRatio1em12) {
  const Problem problem = collapsed(1e-6, Dtype::f64);
  expect_variability(measure_typed(context(), problem, Dtype::f64), problem, 1e-10);
}

TEST_P(NearCollapse, HalfPrecisionAtItsOwnGrid) {
  // The noise is a few units in the last place: the differences are small integers times the grid.
  for (Dtype dtype : {Dtype::f16, Dtype::bf16}) {
    const Problem problem = collapsed(dtype == Dtype::f16 ? 2e-3 : 2e-2, dtype);
    expect_variability(measure_typed(context(), problem, dtype), problem, 1e-10);
  }
}

TEST_P(NearCollapse, EveryConventionAtRatio1em8) {
  const Problem problem = collapsed(1e-4, Dtype::f32);
  const Truth truth(problem);
  for (Convention convention : ncollapse::all_conventions()) {
    const Report report = measure_problem(context(), problem, convention);
    for (const std::string key : {"nc1_pinv", "nc1_trace_ratio"})
      expect_close(report.find(key).value_or(NAN), truth.metrics(convention).at(key), 1e-10, 0, key);
  }
}

TEST_P(NearCollapse, FirstSampleThirtyDeviationsOff) {
  Problem problem = collapsed(1e-4, Dtype::f32);
  std::vector<bool> met(10, false);
  for (Index i = 0; i < problem.train.rows(); ++i) {
    const auto label = at(problem.train.labels[at(i)]);
    if (met[label]) continue;
    met[label] = true;
    for (Index j = 0; j < 24; ++j)
      problem.train.values[at(i * 24 + j)] += (static_cast<Index>(label) + j) % 2 == 0 ? 30e-4 : -30e-4;
  }
  problem.train = rounded(problem.train, Dtype::f32);
  expect_variability(measure_typed(context(), problem, Dtype::f32), problem, 1e-10);
  expect_variability(measure_typed(context(), problem, Dtype::f32, 512), problem, 1e-10);
}

TEST_P(NearCollapse, FirstSampleOfAnotherClass) {
  Problem problem = collapsed(1e-4, Dtype::f32);
  // The first sample of class 0 looks like class 1: a wrong label. Then the same for every class.
  const oracle::Moments moments = oracle::moments(problem.train.truth());
  const Samples clean = problem.train;
  for (Index mislabelled : {Index(1), Index(10)}) {
    problem.train = clean;
    std::vector<bool> met(10, false);
    for (Index i = 0; i < clean.rows(); ++i) {
      const Index label = clean.labels[at(i)];
      if (met[at(label)] || label >= mislabelled) continue;
      met[at(label)] = true;
      for (Index j = 0; j < 24; ++j)
        problem.train.values[at(i * 24 + j)] = static_cast<double>(moments.means((label + 1) % 10, j));
    }
    problem.train = rounded(problem.train, Dtype::f32);
    expect_variability(measure_typed(context(), problem, Dtype::f32), problem, 1e-8);
  }
}

TEST_P(NearCollapse, OneOutlierInTheMiddleOfTheStream) {
  Problem problem = collapsed(1e-4, Dtype::f32);
  const Index row = problem.train.rows() / 2;
  for (Index j = 0; j < 24; ++j) problem.train.values[at(row * 24 + j)] += 1.0;
  problem.train = rounded(problem.train, Dtype::f32);
  expect_variability(measure_typed(context(), problem, Dtype::f32), problem, 1e-10);
}

TEST_P(NearCollapse, FarFromTheOrigin) {
  // Distances of size 1 at an offset of 1e6: the means are exact to 1e6 eps = 2e-10, relative to the distances.
  const Problem problem = collapsed(1e-4, Dtype::f64, 1e6);
  expect_variability(measure_typed(context(), problem, Dtype::f64), problem, 1e-8);
}

TEST_P(NearCollapse, BatchesOrdersAndMergesAgree) {
  const Problem problem = collapsed(1e-4, Dtype::f32);
  const Report whole = measure_typed(context(), problem, Dtype::f32);
  // VCI is about the ratio of the variances, the difference of two numbers of size 1.
  const auto same = [&](const Report& other) { expect_same_metrics(other, whole, kRounding, kZero); };
  same(measure_typed(context(), problem, Dtype::f32, 7));
  same(measure_typed(context(), problem, Dtype::f32, 4096));
  Problem mixed;
  mixed.train = reordered(problem.train, shuffled_order(problem.train.rows(), 3));
  same(measure_typed(context(), mixed, Dtype::f32));

  Accumulator merged(context(), options_for(problem.train));
  for (Index shard : {3, 0, 4, 2, 1}) {
    std::vector<Index> rows;
    for (Index i = 0; i < problem.train.rows(); ++i)
      if ((i + problem.train.labels[at(i)]) % 5 == shard) rows.push_back(i);
    merged.merge(accumulate(context(), reordered(problem.train, rows), 100, Dtype::f32));
  }
  same(ncollapse::measure(merged.finish()));
}

TEST_P(NearCollapse, MergesLoseNothingHoweverTheClassesHaveCollapsed) {
  for (const double noise : {1e-4, 1e-8, 1e-12}) {
    SCOPED_TRACE(noise);
    const Problem problem = collapsed(noise, Dtype::f64);
    const ClassMoments whole = accumulate(context(), problem.train).finish();
    // One after the other, and in pairs.
    std::vector<Accumulator> parts;
    for (Index shard = 0; shard < 4; ++shard) {
      std::vector<Index> rows;
      for (Index i = 0; i < problem.train.rows(); ++i)
        if (i % 4 == shard) rows.push_back(i);
      parts.push_back(accumulate(context(), reordered(problem.train, rows)));
    }
    Accumulator chain(context(), options_for(problem.train));
    for (const Accumulator& part : parts) chain.merge(part);
    parts[0].merge(parts[1]);
    parts[2].merge(parts[3]);
    parts[2].merge(parts[0]);
    for (const ClassMoments& moments : {chain.finish(), parts[2].finish()}) {
      for (Index k = 0; k < 10; ++k)
        expect_close(moments.within_variances()[at(k)], whole.within_variances()[at(k)], 1e-14, 0,
                     "class " + std::to_string(k));
      const auto scatter = moments.within_scatter(), once = whole.within_scatter();
      double gap = 0, size = 0;
      for (std::size_t i = 0; i < scatter.size(); ++i) {
        gap += (scatter[i] - once[i]) * (scatter[i] - once[i]);
        size += once[i] * once[i];
      }
      EXPECT_TRUE(gap <= 1e-24 * size) << gap / size;
    }
  }
}

TEST_P(NearCollapse, AlmostASimplex) {
  // Means at a simplex up to 1e-9: the distance to it is 1e-9 as well, far below the root of eps.
  const Index K = 10;
  Samples samples{K, K, {}, {}};
  for (Index k = 0; k < K; ++k) {
    std::vector<double> row(at(K), 0.0);
    row[at(k)] = 1.0 + 1e-9 * static_cast<double>(k % 3);
    samples.add(k, row);
    samples.add(k, row);
  }
  Problem problem;
  problem.train = samples;
  problem.head = Head{K, K, std::vector<double>(at(K * K), 0.0), {}};
  for (Index k = 0; k < K; ++k) problem.head.weights[at(k * K + k)] = 1.0;
  const Report report = measure_problem(context(), problem);
  const auto want = Truth(problem).metrics(Convention::zhu);
  EXPECT_GT(want.at("nc2_etf_h"), 1e-10);
  EXPECT_LT(want.at("nc2_etf_h"), 1e-8);
  // Entries of size 1 with a few eps each: 1e-15 of absolute error, 1e-6 of the value.
  for (const std::string key :
       {"nc2_etf_h", "nc2_equinorm_h", "nc2_equiang_h", "nc2_cos_std_h", "nc2_of_h", "nc3_wh_etf", "nc3_wh_of"})
    expect_close(report.find(key).value_or(NAN), want.at(key), 1e-5, 0, key);
}

TEST_P(NearCollapse, DirectionsThatAlmostCoincide) {
  // Two means 1e-9 apart: their difference is right to eps / 1e-9 = 2e-7, and so are all distances made from it.
  Problem problem;
  problem.train = {4, 3, {}, {}};
  const std::vector<std::vector<double>> means = {{1, 0, 0}, {0, 1, 0.5}, {1, 1e-9, 0}, {-1, 0, 1}};
  for (std::size_t k = 0; k < means.size(); ++k)
    for (double noise : {-1e-12, 1e-12})
      problem.train.add(static_cast<std::int64_t>(k), {means[k][0], means[k][1] + noise, means[k][2]});
  const Report report = measure_problem(context(), problem);
  const Truth truth(problem);
  const auto want = truth.metrics(Convention::zhu);
  EXPECT_LT(want.at("nc2_min_angle_deg"), 1e-6);
  for (const std::string key : {"nc2_min_angle_deg", "nc2_gnc_log_mean", "nc2_gnc_log_var", "nc1_cdnv"})
    expect_close(report.find(key).value_or(NAN), want.at(key), 2e-6, 0, key);
  for (const auto& metric : report.per_class)
    if (metric.key == "nc1_per_class_nearest") {
      const std::vector<double> values = truth.per_class(Convention::zhu).at(metric.key);
      for (std::size_t k = 0; k < 4; ++k) expect_close(metric.values[k], values[k], 2e-6, 0, metric.key);
    }
}

TEST_P(NearCollapse, MinorityMeansThatShrink) {
  // Tail means a thousand times shorter than the head's: eigenvalues of Sigma_B down to 1e-6 are still signal.
  Samples samples = make_samples({std::vector<Index>(20, 12), 32, {0.0}, 1.0, 0.0, 32});
  for (Index i = 0; i < samples.rows(); ++i)
    for (Index j = 0; j < 32; ++j) {
      double& x = samples.values[at(i * 32 + j)];
      if (samples.labels[at(i)] >= 10) x *= 1e-3;
      x += 1e-4 * std::sin(static_cast<double>(i * 37 + j * 11));
    }
  Problem problem;
  problem.train = samples;
  const Report report = measure_problem(context(), problem);
  EXPECT_EQ(report.convention.rank_used, 19);
  const auto want = Truth(problem).metrics(Convention::zhu);
  // The smallest eigenvalue is 1e-7 of the largest, its singular value 3e-4: right to 20 eps over that.
  expect_close(report.find("nc1_pinv").value_or(NAN), want.at("nc1_pinv"), 1e-10, 0, "nc1_pinv");
  expect_close(report.find("nc1_cdnv").value_or(NAN), want.at("nc1_cdnv"), 1e-9, 0, "nc1_cdnv");
}

/// Two classes at (-1, 0) and (1, 0), each with the deviations (+-2^-10, +-2^e): Sigma_W is diagonal, 2^-20 and 2^2e,
/// Sigma_B is 1 in the first direction, and the index is 2^-20/(1 + 2^-20). Turned by 45 degrees, all is as exact.
Samples with_a_noisy_column(int e, bool turned) {
  Samples samples{2, 2, {}, {}};
  for (const std::int64_t k : {0, 1})
    for (const double x : {-0x1p-10, 0x1p-10})
      for (const double y : {-std::ldexp(1, e), std::ldexp(1, e)}) {
        const double a = (k == 0 ? -1 : 1) + x;
        samples.add(k, turned ? std::vector<double>{a + y, a - y} : std::vector<double>{a, y});
      }
  return samples;
}

TEST_P(NearCollapse, AColumnThatVariesFarMore) {
  for (const int e : {-10, 0, 10, 20, 30, 40})
    for (const bool turned : {false, true}) {
      SCOPED_TRACE(std::to_string(e) + (turned ? ", turned" : ""));
      const Report report = ncollapse::measure(moments_of(context(), with_a_noisy_column(e, turned)));
      // Where it has a number, that is right; where rounding has eaten it, it says so.
      for (const auto& [key, want] :
           {std::pair<std::string, double>{"nc1_vci", 0x1p-20 / (1 + 0x1p-20)}, {"nc1_pinv", 0x1p-21}}) {
        const auto value = report.find(key);
        if (value)
          expect_close(*value, want, e > 0 ? 0.1 : 1e-6, 0, key);
        else
          EXPECT_EQ(report.status.at(key).code, "undefined");
        EXPECT_EQ(value.has_value(), e < 20) << key;
      }
    }
}

TEST_P(NearCollapse, ALossThatTheBiasKeepsSmall) {
  // Features at 2^A + 1 and 2^A - 1, +-2^-5; the logits (x - 2^A)/2 + 1/2 and 1 - that: only the deviations cost.
  for (const int exponent : {0, 10, 20, 30}) {
    SCOPED_TRACE(exponent);
    const double far = std::ldexp(1, exponent), w = 0.5;
    const Samples samples{2, 1, {far + 1 - 0x1p-5, far + 1 + 0x1p-5, far - 1 - 0x1p-5, far - 1 + 0x1p-5}, {0, 0, 1, 1}};
    const Head head{2, 1, {w, -w}, {0.5 - w * far, 0.5 + w * far}};
    const ncollapse::Classifier classifier = head.classifier();
    const Report report = ncollapse::measure(moments_of(context(), samples),
                                             {.classifier = &classifier, .lambda_w = {1e-40}, .lambda_h = 1e-40});
    expect_close(report.find("ufm_loss").value_or(NAN), 0x1p-12, 1e-12, 0, "ufm_loss");
  }
}

TEST_P(NearCollapse, AColumnThatNeverVaries) {
  const Samples plain = rounded(make_samples({std::vector<Index>(7, 30), 10, {0.5}, 1.0, 0.0, 77}), Dtype::f32);
  const auto index = [&](const Samples& samples) {
    return ncollapse::measure(moments_of(context(), samples)).find("nc1_vci").value_or(NAN);
  };
  const double want = index(plain);
  for (const double value : {0.0, 1.0, 0.1, -3e7}) {
    SCOPED_TRACE(value);
    Samples more{7, 11, {}, plain.labels};
    for (Index i = 0; i < plain.rows(); ++i) {
      more.values.insert(more.values.end(), plain.values.begin() + i * 10, plain.values.begin() + (i + 1) * 10);
      more.values.push_back(value);
    }
    expect_close(index(more), want, 1e-10, 0, "nc1_vci");
  }
}

// Two classes lie a million deviations apart in one direction, the others a few in the rest: squares of both add up to
// numbers that have lost the smaller ones, their singular values are only off by some 10 eps of the largest, 1e7. More
// classes than dimensions, and fewer.
TEST_P(NearCollapse, DirectionsOfVeryDifferentSize) {
  for (const Index dim : {3, 9}) {
    SCOPED_TRACE(dim);
    Problem problem;
    problem.train = make_samples({std::vector<Index>(6, 30), dim, {1.0}, 1.0, 0.0, 33});
    for (Index i = 0; i < problem.train.rows(); ++i) {
      const auto label = problem.train.labels[at(i)];
      for (Index j = 0; j < dim && label < 2; ++j)
        problem.train.values[at(i * dim + j)] += (label == 0 ? 1e6 : -1e6) * (1 + 0.3 * static_cast<double>(j));
    }
    const Report report = measure_problem(context(), problem);
    const auto want = Truth(problem).metrics(Convention::zhu);
    expect_close(report.find("nc1_vci").value_or(NAN), want.at("nc1_vci"), 1e-7, 0, "nc1_vci");
    // The oracle's eigenvalues are those of squares, 1e14 apart in 64 bits.
    expect_close(report.find("nc1_pinv").value_or(NAN), want.at("nc1_pinv"), 1e-6, 0, "nc1_pinv");
  }
}

}  // namespace
}  // namespace ncollapse_test
