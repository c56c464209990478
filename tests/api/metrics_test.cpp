// measure(): values that can be checked by hand, every convention against the oracle, and what has no value.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

class Measure : public OnDevice {};
NCOLLAPSE_ON_EVERY_DEVICE(Measure);

void expect_values(const Report& report, const std::map<std::string, double>& want, double absolute = 1e-14) {
  expect_sound(report);
  for (const auto& [key, value] : want) {
    if (!report.find(key))
      ADD_FAILURE() << key << " has no number";
    else
      expect_close(*report.find(key), value, 1e-14, absolute, key);
  }
}

std::vector<double> per_class(const Report& report, const std::string& key) {
  for (const auto& metric : report.per_class)
    if (metric.key == key) return metric.values;
  ADD_FAILURE() << key << " is missing";
  return std::vector<double>(at(report.classes), NAN);
}

void expect_no_number(const Report& report, const std::string& key, const std::string& code) {
  EXPECT_FALSE(report.find(key).has_value()) << key << " = " << *report.find(key);
  const auto status = report.status.find(key);
  if (status == report.status.end()) {
    ADD_FAILURE() << key << " has no status";
    return;
  }
  EXPECT_EQ(status->second.code, code) << key << ": " << status->second.why;
  EXPECT_FALSE(status->second.why.empty()) << key;
}

// --- by hand

TEST_P(Measure, TwoClassesOnALine) {
  Problem problem;
  problem.train = {2, 1, {0, 2, 9, 11}, {0, 0, 1, 1}};  // means 1 and 10, variances 1, sample mean 5.5
  problem.head = {2, 1, {-1, 1}, {0.5, 0.5}};
  problem.ood_mean = {-3};
  const Report report = measure_problem(context(), problem);
  EXPECT_EQ(report.samples, 4);
  EXPECT_EQ(report.classes, 2);
  EXPECT_EQ(report.classes_seen, 2);
  EXPECT_EQ(report.dim, 1);
  EXPECT_EQ(report.counts, (std::vector<Index>{2, 2}));
  EXPECT_EQ(report.convention.rank_used, 1);
  EXPECT_EQ(report.convention.rank_limit, 1);
  expect_values(report, {{"nc1_pinv", 1 / 20.25 / 2},
                         {"nc1_pinv_sum", 1 / 20.25},
                         {"nc1_trace_ratio", 1 / 20.25},
                         {"nc1_within_frac", 1 / 21.25},
                         {"nc1_cdnv", 1 / 81.0},
                         {"nc1_vci", 1 / 21.25},
                         {"nc2_equinorm_h", 0},
                         {"nc2_equinorm_w", 0},
                         {"nc2_equiang_h", 0},
                         {"nc2_equiang_w", 0},
                         {"nc2_cos_mean_h", -1},
                         {"nc2_cos_std_h", 0},
                         {"nc2_cos_max_h", -1},
                         {"nc2_etf_h", 0},
                         {"nc2_etf_w", 0},
                         {"nc2_of_h", std::sqrt(2 - std::sqrt(2.0))},
                         {"nc2_gnc_dist_mean", 2},
                         {"nc2_gnc_dist_var", 0},
                         {"nc2_gnc_log_mean", -std::log(2.0)},
                         {"nc2_gnc_log_var", 0},
                         {"nc2_min_angle_deg", 180},
                         {"nc2_nearest_etf", 0},
                         {"nc_drift", 5.5},
                         {"nc0_rowsum", 0},
                         {"nc_bias", std::sqrt(61.0)},
                         {"nc_bias_prior", 0},
                         {"nc3_dual", 0},
                         {"nc3_wh_etf", 0},
                         {"nc3_wh_of", std::sqrt(2 - 18 / std::sqrt(404.0))},
                         {"nc3_cos_mean", 1},
                         {"nc3_cos_min", 1},
                         {"nc3_uni_dot_var", 0},
                         {"nc4_agree_train", 0.75},  // W h + b = (0.5 - h, 0.5 + h): class 1 but for h = 0, a tie
                         {"acc_top1_train", 0.75},
                         {"acc_balanced_train", 0.75},
                         {"ncc_acc_train", 1},
                         {"nc5_ortho", 1}});
  const auto centre = per_class(report, "nc1_per_class"), nearest = per_class(report, "nc1_per_class_nearest");
  for (std::size_t k = 0; k < 2; ++k) {
    expect_close(centre[k], 1 / 20.25, 1e-14, 0);
    expect_close(nearest[k], 1 / 81.0, 1e-14, 0);
  }
}

TEST_P(Measure, ConventionsOnAnImbalancedLine) {
  Problem problem;
  problem.train = {2, 1, {3, 0, 4, 5}, {1, 0, 1, 1}};  // means 0 and 4, variances 0 and 2/3, sample mean 3
  const std::map<Convention, double> nc1 = {{Convention::zhu, 0.5 / 5 / 2},
                                            {Convention::papyan, 0.5 / 4},
                                            {Convention::peer, 0.5 / 4 / 2},
                                            {Convention::anova, 0.5 / 3 / 2},
                                            {Convention::classavg, (1.0 / 3) / 5 / 2}};
  const std::map<Convention, double> trace_ratio = {{Convention::zhu, 0.5 / 5},
                                                    {Convention::papyan, 0.5 / 4},
                                                    {Convention::peer, 0.5 / 4},
                                                    {Convention::anova, 0.5 / 3},
                                                    {Convention::classavg, (1.0 / 3) / 5}};
  for (Convention convention : ncollapse::all_conventions()) {
    SCOPED_TRACE(std::string(ncollapse::to_string(convention)));
    const Report report = measure_problem(context(), problem, convention);
    EXPECT_EQ(report.convention.preset, convention);
    EXPECT_EQ(report.convention.divided_by_classes, convention != Convention::papyan);
    expect_values(report, {{"nc1_pinv", nc1.at(convention)},
                           {"nc1_trace_ratio", trace_ratio.at(convention)},
                           {"nc1_cdnv", (2.0 / 3) / 32},
                           {"nc_drift", 3}});
    const bool by_means = convention == Convention::papyan || convention == Convention::peer;
    expect_close(per_class(report, "nc1_per_class")[0], 0, 0, 0);
    expect_close(per_class(report, "nc1_per_class")[1], (2.0 / 3) / (by_means ? 4 : 1), 1e-14, 0);
    expect_close(per_class(report, "nc1_per_class_nearest")[1], (2.0 / 3) / 16, 1e-14, 0);
  }
}

TEST_P(Measure, RoundingOfTheInput) {
  const Samples samples{2, 1, {3, 0, 4, 5}, {1, 0, 1, 1}};  // means 0 and 4
  const std::map<Convention, double> want = {{Convention::zhu, 12.0 / 5},
                                             {Convention::papyan, 12.0 / 4},
                                             {Convention::peer, 12.0 / 4},
                                             {Convention::anova, 12.0 / 3},
                                             {Convention::classavg, 8.0 / 5}};
  for (const auto& [convention, value] : want)
    for (const auto& [dtype, eps] :
         {std::pair{Dtype::bf16, 0x1p-7}, {Dtype::f16, 0x1p-10}, {Dtype::f32, 0x1p-23}, {Dtype::f64, 0x1p-52}}) {
      const Report report = ncollapse::measure(accumulate(context(), samples, 0, dtype).finish(), {}, convention);
      EXPECT_EQ(report.dtype, ncollapse::to_string(dtype));
      expect_values(report, {{"nc1_input_floor", eps * eps / (32 * std::log(2.0)) * value}});
      EXPECT_EQ(report.notes.size(), 1u);  // of class 0 there is one sample; rounding is far away
    }
  const ClassMoments equal = accumulate(context(), {2, 1, {3, 3}, {0, 1}}).finish();
  expect_no_number(ncollapse::measure(equal), "nc1_input_floor", "undefined");
}

TEST_P(Measure, TheNearestSimplexIsOneWhateverTheConvention) {
  Problem problem;
  problem.train = {3, 2, {0, 0, 0, 0, 1, 0, 0, 1}, {0, 0, 1, 2}};  // centred by their mean: C^T C = [2 -1; -1 2] / 3
  for (Convention convention : ncollapse::all_conventions()) {
    SCOPED_TRACE(std::string(ncollapse::to_string(convention)));
    expect_values(measure_problem(context(), problem, convention),
                  {{"nc2_nearest_etf", 2 - (1 + std::sqrt(1 / 3.0)) * std::sqrt(1.5)}});
  }
  problem.train = {2, 3, {0, 1, 2, 3, 4, 5, 9, 9, 9}, {0, 0, 1}};  // any two points are a simplex
  expect_values(measure_problem(context(), problem), {{"nc2_nearest_etf", 0}});
  problem.train = {3, 1, {0, 1, 3}, {0, 1, 2}};
  expect_no_number(measure_problem(context(), problem), "nc2_nearest_etf", "undefined");
}

/// K unit vectors as classes, each once, turned by an orthonormal matrix; W their centred means or the means.
Problem frame(Index K, bool centred_head, bool turned) {
  std::vector<double> turn(at(K * K), 0.0);
  for (Index i = 0; i < K; ++i)
    for (Index j = 0; j < K; ++j)  // a Householder reflection along 1, 2, 3, ...
      turn[at(i * K + j)] = (i == j ? 1.0 : 0.0) - (turned ? 12.0 * static_cast<double>((i + 1) * (j + 1)) /
                                                                 static_cast<double>(K * (K + 1) * (2 * K + 1))
                                                           : 0.0);
  Problem problem;
  problem.train = {K, K, turn, {}};
  for (Index k = 0; k < K; ++k) problem.train.labels.push_back(k);
  problem.head = {K, K, turn, std::vector<double>(at(K), 1.0 / static_cast<double>(K))};
  if (centred_head)
    for (Index j = 0; j < K; ++j) {
      double mean = 0;
      for (Index k = 0; k < K; ++k) mean += turn[at(k * K + j)] / static_cast<double>(K);
      for (Index k = 0; k < K; ++k) problem.head.weights[at(k * K + j)] -= mean;
    }
  return problem;
}

TEST_P(Measure, APerfectSimplexHasNoError) {
  for (bool turned : {false, true})
    for (Index K : {2, 3, 4, 10, 64}) {
      SCOPED_TRACE("K = " + std::to_string(K));
      const Report report = measure_problem(context(), frame(K, true, turned));
      // The residual of a Gram matrix with entries right to a few eps, summed over K^2 entries of size 1/K.
      const double absolute = 1e-14 * static_cast<double>(K);
      const auto k = static_cast<double>(K);
      expect_values(report,
                    {{"nc1_pinv", 0},
                     {"nc2_equinorm_h", 0},
                     {"nc2_equinorm_w", 0},
                     {"nc2_equiang_h", 0},
                     {"nc2_equiang_w", 0},
                     {"nc2_cos_mean_h", -1 / (k - 1)},
                     {"nc2_cos_std_h", 0},
                     {"nc2_cos_max_h", -1 / (k - 1)},
                     {"nc2_etf_h", 0},
                     {"nc2_etf_w", 0},
                     {"nc2_of_h", 0},
                     {"nc2_gnc_dist_mean", std::sqrt(2 * k / (k - 1))},
                     {"nc2_gnc_dist_var", 0},
                     {"nc2_gnc_log_mean", -0.5 * std::log(2 * k / (k - 1))},
                     {"nc2_gnc_log_var", 0},
                     {"nc2_nearest_etf", 0},
                     {"nc_drift", 1 / std::sqrt(k)},
                     {"nc0_rowsum", 0},
                     {"nc_bias_prior", 0},
                     {"nc3_dual", 0},
                     {"nc3_wh_etf", 0},
                     {"nc3_cos_mean", 1},
                     {"nc3_cos_min", 1},
                     {"nc3_uni_dot_var", 0},
                     {"nc4_agree_train", 1},
                     {"acc_top1_train", 1},
                     {"ncc_acc_train", 1}},
                    absolute);
    }
}

TEST_P(Measure, AnOrthogonalFrameHasNoFrameError) {
  for (bool turned : {false, true})
    for (Index K : {2, 5, 33}) {
      const Report report = measure_problem(context(), frame(K, false, turned));
      expect_values(report, {{"nc2_of_h", 0}, {"nc3_wh_of", 0}}, 1e-14 * static_cast<double>(K));
      EXPECT_GT(report.find("nc2_etf_w").value_or(0), 0.1);
    }
}

// More classes than a simplex in d dimensions has: W = M with orthonormal columns (harmonics), as near as they can be.
TEST_P(Measure, MoreClassesThanDimensionsStayAwayFromSimplexAndFrame) {
  for (const Index d : {2, 32})
    for (const Index K : {d + 2, 3 * d}) {
      SCOPED_TRACE("K = " + std::to_string(K) + ", d = " + std::to_string(d));
      std::vector<double> rows(at(K * d));
      for (Index k = 0; k < K; ++k)
        for (Index j = 0; j < d; ++j) {
          const double angle = 2 * std::acos(-1.0) * static_cast<double>((j / 2 + 1) * k % K) / static_cast<double>(K);
          rows[at(k * d + j)] = j % 2 == 0 ? std::cos(angle) : std::sin(angle);
        }
      Problem problem;
      problem.train = {K, d, rows, {}};
      for (Index k = 0; k < K; ++k) problem.train.labels.push_back(k);
      problem.head = {K, d, rows, {}};
      const Report report = measure_problem(context(), problem);
      const auto k = static_cast<double>(K), rank = static_cast<double>(d);
      expect_values(report,
                    {{"nc3_wh_etf", std::sqrt(2 - 2 * std::sqrt(rank / (k - 1)))},
                     {"nc3_wh_of", std::sqrt(2 - 2 * std::sqrt(rank / k))},
                     {"nc3_dual", 0}},
                    1e-15 * k);
    }
}

TEST_P(Measure, TheHeadMayBeAnyPositiveMultipleOfTheMeans) {
  Problem problem = typical_problem();
  const Truth truth(problem);
  const auto& moments = truth.moments();
  std::vector<double> mean(12, 0.0);
  for (Index k = 0; k < 7; ++k)
    for (Index j = 0; j < 12; ++j)
      mean[at(j)] += static_cast<double>(moments.counts[at(k)]) * static_cast<double>(moments.means(k, j)) /
                     static_cast<double>(problem.train.rows());
  for (Index k = 0; k < 7; ++k)
    for (Index j = 0; j < 12; ++j)
      problem.head.weights[at(k * 12 + j)] = 1e5 * (static_cast<double>(moments.means(k, j)) - mean[at(j)]);
  expect_values(measure_problem(context(), problem), {{"nc3_dual", 0}, {"nc3_cos_mean", 1}, {"nc3_cos_min", 1}}, kZero);
}

// --- against the oracle

TEST_P(Measure, EveryConventionOnImbalancedDataAgreesWithTheOracle) {
  const Problem problem = typical_problem();
  const Truth truth(problem);
  for (Convention convention : ncollapse::all_conventions()) {
    const Report report = measure_problem(context(), problem, convention);
    EXPECT_EQ(report.convention.rank_used, 6);
    EXPECT_EQ(report.convention.rank_limit, 6);
    expect_report(report, truth, convention, kRounding, kZero);
  }
}

TEST_P(Measure, AwkwardShapesAgreeWithTheOracle) {
  const std::vector<Recipe> recipes = {
      {{4, 9}, 1},                                // K = 2, d = 1
      {{4, 9}, 2},                                //
      {{3, 5, 4, 6}, 1},                          // K > d = 1
      {{8, 7, 6, 5, 4, 3, 2, 9, 8, 7, 1, 1}, 3},  // K > d
      {{8, 7, 6, 5}, 3},                          // K - 1 = d
      {{8, 7, 6, 5}, 4},                          // K = d
      {{1, 1, 1, 1, 1}, 8},                       // single samples
      {{0, 20, 10, 5}, 6},                        // absent at the start,
      {{20, 0, 0, 10, 5}, 6},                     // in the middle,
      {{20, 10, 5, 0}, 6},                        // at the end,
      {{0, 3, 0, 4, 0}, 6},                       // and two classes left
      {{2, 3, 2, 5, 4}, 70},                      // d > N
      {std::vector<Index>(40, 2), 50},            // Sigma_B of condition 1e4
      {std::vector<Index>(130, 2), 33},           // more classes than a tile of 128
      {std::vector<Index>(600, 2), 8},            // many more classes than dimensions
  };
  for (Recipe recipe : recipes) {
    SCOPED_TRACE("K = " + std::to_string(recipe.counts.size()) + ", d = " + std::to_string(recipe.dim));
    recipe.noise = {0.3, 0.7, 0.1};
    recipe.offset = 0.5;
    recipe.seed = static_cast<unsigned>(7 * recipe.counts.size()) + static_cast<unsigned>(recipe.dim);
    Problem problem;
    problem.train = make_samples(recipe);
    problem.head = random_head(problem.train.classes, recipe.dim, recipe.seed);
    problem.ood_mean.assign(at(recipe.dim), 0.25);
    problem.ood_mean[0] = -1;
    const Truth truth(problem);
    ASSERT_GT(truth.train().margin, 1e-11L) << "the oracle's decisions are too close to call";
    const Index seen = static_cast<Index>(truth.moments().seen.size());
    for (Convention convention : {Convention::zhu, Convention::papyan, Convention::anova, Convention::classavg}) {
      const Report report = measure_problem(context(), problem, convention);
      EXPECT_EQ(report.classes_seen, seen);
      EXPECT_EQ(report.convention.rank_limit, std::min(seen - 1, recipe.dim));
      EXPECT_EQ(report.convention.rank_used, report.convention.rank_limit);
      expect_report(report, truth, convention, kRounding, 1e-12);
    }
  }
}

TEST_P(Measure, TestSamplesOfClassesThatTrainingNeverSaw) {
  Problem problem = typical_problem();
  for (auto& label : problem.train.labels)
    if (label == 2 || label == 6) label = 0;
  const Truth truth(problem);
  ASSERT_GT(truth.test().samples[2], 0);
  ASSERT_GT(truth.test().margin, 1e-11L);
  expect_report(measure_problem(context(), problem), truth, Convention::zhu, kRounding, kZero);
}

TEST_P(Measure, LayersActAsTheirProduct) {
  Problem problem = typical_problem();
  const Head inner = random_head(9, 12, 71), outer = random_head(7, 9, 72);
  for (Index i = 0; i < 7; ++i)
    for (Index j = 0; j < 12; ++j) {
      double sum = 0;
      for (Index l = 0; l < 9; ++l) sum += outer.weights[at(i * 9 + l)] * inner.weights[at(l * 12 + j)];
      problem.head.weights[at(i * 12 + j)] = sum;
    }
  const Truth truth(problem);
  ASSERT_GT(truth.train().margin, 1e-11L);
  const ClassMoments moments = moments_of(context(), problem.train);
  const ncollapse::Classifier chained{
      {ncollapse::view(inner.weights.data(), 9, 12), ncollapse::view(outer.weights.data(), 7, 9)},
      ncollapse::view(problem.head.bias.data(), 1, 7)};
  ncollapse::DecisionCounter counter(moments, &chained), test_counter(moments, &chained);
  counter.add(ncollapse::view(problem.train.values.data(), problem.train.rows(), 12),
              label_view(problem.train.labels, 0, problem.train.rows()));
  test_counter.add(ncollapse::view(problem.test.values.data(), problem.test.rows(), 12),
                   label_view(problem.test.labels, 0, problem.test.rows()));
  const DecisionCounts train = counter.finish(), test = test_counter.finish();
  expect_report(ncollapse::measure(moments, {&chained, &train, &test, &problem.ood_mean}), truth, Convention::zhu,
                kRounding, kZero);
}

TEST_P(Measure, WeightsOfEveryElementType) {
  Problem problem = typical_problem();
  const ClassMoments moments = moments_of(context(), problem.train);
  for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16}) {
    problem.head.weights = rounded(problem.head.weights, dtype);
    problem.head.bias = rounded(problem.head.bias, dtype);
    const Encoded weights = encode(problem.head.weights, 7, 12, dtype, 17),
                  bias = encode(problem.head.bias, 1, 7, dtype);
    const ncollapse::Classifier classifier{{weights.view()}, bias.view()};
    ncollapse::Evidence evidence;
    evidence.classifier = &classifier;
    const Report report = ncollapse::measure(moments, evidence);
    const auto want = Truth(problem).metrics(Convention::zhu);
    for (const std::string key : {"nc2_etf_w", "nc2_equiang_w", "nc3_dual", "nc3_wh_etf", "nc_bias", "nc0_rowsum"})
      expect_close(report.find(key).value_or(NAN), want.at(key), kRounding, kZero, key);
  }
}

// --- what has no value

TEST_P(Measure, NoVarianceMeansExactlyZero) {
  Samples samples = make_samples({{1, 1, 1, 1}, 6, {1.0}, 1.0, 0.0, 73});
  for (int repeat = 0; repeat < 2; ++repeat) {
    const Samples copy = samples;
    samples.values.insert(samples.values.end(), copy.values.begin(), copy.values.end());
    samples.labels.insert(samples.labels.end(), copy.labels.begin(), copy.labels.end());
  }
  Problem problem;
  problem.train = samples;
  for (Convention convention : ncollapse::all_conventions()) {
    const Report report = measure_problem(context(), problem, convention);
    expect_sound(report);
    for (const std::string key : {"nc1_pinv", "nc1_pinv_sum", "nc1_trace_ratio", "nc1_within_frac", "nc1_cdnv"})
      EXPECT_EQ(report.find(key), std::optional<double>(0.0)) << key;
    if (convention != Convention::classavg) expect_close(report.find("nc1_vci").value_or(NAN), 0, 0, kZero, "nc1_vci");
    for (const std::string key : {"nc1_per_class", "nc1_per_class_nearest"})
      EXPECT_EQ(per_class(report, key), std::vector<double>(4, 0.0)) << key;
  }
}

TEST_P(Measure, EqualMeansHaveNoGeometry) {
  for (double mean : {0.0, 5.0}) {
    Problem problem;
    problem.train = {3, 1, {mean - 1, mean + 1, mean - 2, mean + 2, mean - 3, mean + 3}, {0, 0, 1, 1, 2, 2}};
    problem.head = {3, 1, {1, 2, -4}, {}};
    for (Convention convention : ncollapse::all_conventions()) {
      const Report report = measure_problem(context(), problem, convention);
      expect_sound(report);
      for (const std::string key :
           {"nc1_pinv",          "nc1_pinv_sum",     "nc1_trace_ratio",  "nc1_cdnv",        "nc2_equinorm_h",
            "nc2_equiang_h",     "nc2_cos_mean_h",   "nc2_cos_std_h",    "nc2_cos_max_h",   "nc2_etf_h",
            "nc2_gnc_dist_mean", "nc2_gnc_dist_var", "nc2_gnc_log_mean", "nc2_gnc_log_var", "nc2_min_angle_deg",
            "nc2_nearest_etf",   "nc3_dual",         "nc3_wh_etf",       "nc3_cos_mean",    "nc3_cos_min"})
        expect_no_number(report, key, "undefined");
      for (const std::string key : {"nc1_per_class", "nc1_per_class_nearest"})
        for (const auto& metric : report.per_class)
          for (double value : metric.values) EXPECT_TRUE(metric.key != key || std::isnan(value)) << key;
      EXPECT_EQ(report.convention.rank_used, 0);
      if (mean == 0) expect_no_number(report, "nc2_of_h", "undefined");
      expect_values(report, {{"nc_drift", mean}, {"nc0_rowsum", 1}, {"nc1_within_frac", 1}});
    }
  }
}

// The same rows in another order, and each of them twice: equal means, but for the rounding of their sums.
TEST_P(Measure, MeansThatOnlyRoundingTellsApartAreEqual) {
  for (const double mean : {0.0, 0.3}) {
    Samples rows = make_samples({{40}, 6, {1.0}, 0.0, mean, 71});
    for (Index i = 0; i < 20 && mean == 0; ++i)
      for (Index j = 0; j < 6; ++j) rows.values[at((20 + i) * 6 + j)] = -rows.values[at(i * 6 + j)];
    const auto row = [&](Index i) {
      return std::vector<double>(rows.values.begin() + i * 6, rows.values.begin() + (i + 1) * 6);
    };
    Samples two{3, 6, {}, {}}, all{3, 6, {}, {}};
    for (Index i = 0; i < 40; ++i)
      for (auto* samples : {&two, &all}) {
        samples->add(0, row(i));
        samples->add(1, row(i));
      }
    for (Index i = 0; i < 40; ++i) {
      two.add(2, row(0));
      for (int twice = 0; twice < 2; ++twice) all.add(2, row(i));
    }
    for (unsigned seed = 0; seed < 5; ++seed) {
      SCOPED_TRACE(testing::Message() << "mean " << mean << ", order " << seed);
      Problem problem;
      problem.head = {3, 6, std::vector<double>(18, 0.5), {}};
      problem.train = reordered(all, shuffled_order(all.rows(), seed));
      const Report flat = measure_problem(context(), problem);
      expect_sound(flat);
      for (const std::string key :
           {"nc1_pinv", "nc1_trace_ratio", "nc1_cdnv", "nc1_vci", "nc2_etf_h", "nc2_cos_mean_h", "nc2_gnc_log_mean",
            "nc3_dual", "nc3_cos_mean", "mc_cos_h", "norm_count_slope_h", "norm_count_r2_h"})
        expect_no_number(flat, key, "undefined");
      EXPECT_EQ(flat.convention.rank_used, 0);

      problem.train = reordered(two, shuffled_order(two.rows(), seed));
      const Report pair = measure_problem(context(), problem);
      expect_sound(pair);
      EXPECT_EQ(pair.convention.rank_used, 1);
      for (const std::string key : {"nc1_cdnv", "nc2_gnc_log_mean", "nc2_gnc_log_var"})
        expect_no_number(pair, key, "undefined");
      const auto nearest = per_class(pair, "nc1_per_class_nearest");
      EXPECT_TRUE(std::isnan(nearest[0]) && std::isnan(nearest[1])) << nearest[0] << " " << nearest[1];
      EXPECT_FALSE(std::isnan(nearest[2]));
    }
  }
}

// What the orders of equal rows leave between the means must not pass for a distance to the predicted geometry either.
TEST_P(Measure, EqualMeansHaveNoDistanceToTheMinimiser) {
  const Samples half = make_samples({{20}, 6, {1.0}, 0.0, 0.0, 73});
  const Head head = random_head(3, 6, 74);
  for (const double mean : {0.0, 0.3})
    for (unsigned seed = 0; seed < 5; ++seed) {
      SCOPED_TRACE(testing::Message() << "mean " << mean << ", order " << seed);
      Samples rows{3, 6, {}, {}};
      for (Index i = 0; i < 160; ++i) {  // 40, 40 and 80 rows, each with its opposite
        std::vector<double> row(half.values.begin() + i % 20 * 6, half.values.begin() + (i % 20 + 1) * 6);
        for (double& value : row) value = mean + (i / 20 % 2 == 0 ? value : -value);
        rows.add(std::min<Index>(i / 40, 2), row);
      }
      const ClassMoments moments = moments_of(context(), reordered(rows, shuffled_order(160, seed)));
      ncollapse::Classifier classifier = head.classifier();
      const ncollapse::Evidence evidence{.classifier = &classifier, .lambda_w = {1e-3}, .lambda_h = 1e-3};
      const Report biased = ncollapse::measure(moments, evidence);
      expect_sound(biased);
      for (const std::string key :
           {"ufmb_h", "ufmb_wh", "ufmb_col_orth", "ufmb_align_mean", "ufmb_vanished_h", "ufmb_sv"})
        expect_no_number(biased, key, "undefined");
      EXPECT_EQ(biased.find("nc3_uni_dot_var"), std::optional(0.0));
      if (mean != 0) continue;
      EXPECT_EQ(biased.find("nc_drift"), std::optional(0.0));
      for (const std::string key : {"nc2_of_h", "nc3_wh_of", "seli_h"}) expect_no_number(biased, key, "undefined");
      classifier.bias = {};
      const Report plain = ncollapse::measure(moments, evidence);
      for (const std::string key : {"gof_h", "gof_wh", "gof_w_vs_h", "gof_sv"})
        expect_no_number(plain, key, "undefined");
    }
}

TEST_P(Measure, EqualMeansOfManySamples) {
  const Samples rows = make_samples({{20000}, 2, {1.0}, 0.0, 0.0, 72});
  Samples samples{3, 2, {}, {}};
  for (std::int64_t k = 0; k < 3; ++k)
    for (const Index i : shuffled_order(rows.rows(), static_cast<unsigned>(k)))
      samples.add(k, {rows.values[at(2 * i)], rows.values[at(2 * i + 1)]});
  const Report report = ncollapse::measure(accumulate(context(), samples, 1000).finish());
  for (const std::string key : {"nc1_pinv", "nc1_cdnv", "nc2_etf_h"}) expect_no_number(report, key, "undefined");
}

TEST_P(Measure, TwoMeansAreOpposite) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    Problem problem;
    problem.train = make_samples({{3, 8}, 5, {0.7}, 1.0, 2.0, 200 + seed});
    for (Convention convention : ncollapse::all_conventions())
      EXPECT_EQ(measure_problem(context(), problem, convention).find("nc2_min_angle_deg"), std::optional(180.0));
  }
}

TEST_P(Measure, TwoCoincidingMeansLoseOneRank) {
  Problem problem;
  problem.train = {3, 2, {0, 1, 0, -1, 2, 0, -2, 0, 4, 1, 4, -1}, {0, 0, 1, 1, 2, 2}};  // means 0, 0, (4, 0)
  const Report report = measure_problem(context(), problem);
  EXPECT_EQ(report.convention.rank_limit, 2);
  EXPECT_EQ(report.convention.rank_used, 1);
  expect_report(report, Truth(problem), Convention::zhu, kRounding, kZero);
  expect_no_number(report, "nc1_cdnv", "undefined");
  expect_no_number(report, "nc2_gnc_log_mean", "undefined");
  const auto nearest = per_class(report, "nc1_per_class_nearest");
  EXPECT_TRUE(std::isnan(nearest[0]));
  EXPECT_TRUE(std::isnan(nearest[1]));
  expect_close(nearest[2], 1 / 16.0, 1e-14, 0);
}

TEST_P(Measure, AClassAtTheCentreHasNoAngle) {
  Problem problem;
  problem.train = {3, 1, {-1, 0, 1}, {0, 1, 2}};
  problem.head = {3, 1, {-1, 0, 1}, {0, 0, 0}};
  const Report report = measure_problem(context(), problem);
  expect_sound(report);
  expect_values(report, {{"nc2_equinorm_h", std::sqrt(0.5)}, {"nc2_etf_h", std::sqrt(2 - std::sqrt(2.0))}});
  EXPECT_TRUE(std::isnan(per_class(report, "nc1_per_class")[1]));
}

TEST_P(Measure, AClassifierOfZerosHasNoDirection) {
  Problem problem = typical_problem();
  problem.head.weights.assign(problem.head.weights.size(), 0.0);
  const Report report = measure_problem(context(), problem);
  expect_sound(report);
  for (const std::string key : {"nc2_etf_w", "nc2_of_w", "nc2_cos_mean_w", "nc2_equinorm_w", "nc2_equiang_w",
                                "nc3_dual", "nc3_wh_etf", "nc3_wh_of", "nc3_cos_mean", "nc3_cos_min"})
    expect_no_number(report, key, "undefined");
  expect_values(report, {{"nc0_rowsum", 0}, {"nc3_uni_dot_var", 0}});
}

TEST_P(Measure, InputsThatWereNotGivenAreNamed) {
  const Problem problem = typical_problem();
  const ClassMoments moments = moments_of(context(), problem.train);
  const Report bare = ncollapse::measure(moments);
  expect_sound(bare);
  for (const std::string key : {"nc2_equinorm_w",
                                "nc2_equiang_w",
                                "nc2_etf_w",
                                "nc2_of_w",
                                "nc2_cos_mean_w",
                                "nc2_cos_std_w",
                                "nc2_cos_max_w",
                                "acc_per_class_train",
                                "ncc_acc_per_class_test",
                                "nc3_dual",
                                "nc3_wh_etf",
                                "nc3_wh_of",
                                "nc3_cos_mean",
                                "nc3_cos_min",
                                "nc3_uni_dot_var",
                                "nc0_rowsum",
                                "nc_bias",
                                "nc_bias_prior",
                                "nc4_agree_train",
                                "nc4_agree_test",
                                "acc_top1_train",
                                "acc_top1_test",
                                "acc_balanced_train",
                                "acc_balanced_test",
                                "ncc_acc_train",
                                "ncc_acc_test",
                                "nc5_ortho",
                                "acc_per_class_train",
                                "ncc_acc_per_class_test"})
    expect_no_number(bare, key, "skipped");
  EXPECT_TRUE(bare.find("nc1_pinv").has_value());
  EXPECT_TRUE(bare.find("nc2_etf_h").has_value());

  Problem without_head = problem;
  without_head.head = {};
  const Report no_head = measure_with(moments, without_head);
  expect_report(no_head, Truth(without_head), Convention::zhu, kRounding, kZero);
  for (const std::string key : {"nc4_agree_train", "acc_top1_train", "acc_balanced_test"})
    expect_no_number(no_head, key, "skipped");

  Problem without_bias = problem;
  without_bias.head.bias.clear();
  const Report no_bias = measure_with(moments, without_bias);
  expect_no_number(no_bias, "nc_bias_prior", "skipped");
  EXPECT_TRUE(no_bias.find("nc3_dual").has_value());
  EXPECT_TRUE(no_bias.find("nc4_agree_test").has_value());
}

// Half of the training set decided, by mistake say, is no accuracy of the training set.
TEST_P(Measure, DecisionsOnAPartOfTheTrainingSetAreNoted) {
  const Samples all = make_samples({{30, 20}, 3, {0.2}, 1.0, 0.0, 4});
  const ClassMoments moments = moments_of(context(), all);
  const auto notes_of = [&](const DecisionCounts& counts) {
    return ncollapse::measure(moments, {.train = &counts, .test = &counts}).notes;
  };
  EXPECT_TRUE(notes_of(count_decisions(moments, {}, all)).empty());
  const auto notes = notes_of(count_decisions(moments, {}, split(all, {30, 10}).first));
  ASSERT_EQ(notes.size(), 1U);
  EXPECT_NE(notes[0].find("counted on 40 samples"), std::string::npos) << notes[0];
  EXPECT_NE(notes[0].find("the 50 that"), std::string::npos) << notes[0];
}

// What is reported for few classes is reported for many, or says why not. 1500 classes in 300 sizes and 5 dimensions
// are above every size at which something is cut into tiles, groups or pages, and above the dimension.
TEST_P(Measure, ManyClassesReportWhatFewDo) {
  for (const bool bias : {false, true}) {
    const auto report_of = [&](Index classes) {
      Problem problem;
      std::vector<Index> counts;
      for (Index k = 0; k < classes; ++k) counts.push_back(classes < 300 ? 2 + k / 2 : k < 300 ? 1 + k : 1 + k % 2);
      problem.train = make_samples({counts, 5, {0.1}, 1.0, 0.2, 8});
      problem.head = random_head(classes, 5, 9);
      if (!bias) problem.head.bias.clear();
      const ClassMoments moments = moments_of(context(), problem.train);
      const DecisionCounts decisions = count_decisions(moments, problem.head, problem.train);
      const auto head = problem.head.classifier();
      const std::vector<double> ood_mean{1, 2, 3, 4, 5};
      return ncollapse::measure(moments, {.classifier = &head,
                                          .train = &decisions,
                                          .test = &decisions,
                                          .ood_mean = &ood_mean,
                                          .lambda_w = {1e-7},
                                          .lambda_h = 1e-7});
    };
    const Report few = report_of(8), many = report_of(1500);
    expect_sound(many);
    EXPECT_GT(few.metrics.size(), 60U);
    for (const auto& metric : few.metrics) EXPECT_TRUE(many.find(metric.key)) << metric.key;
    for (const auto& [key, status] : many.status) {
      EXPECT_TRUE(few.status.contains(key)) << key << ": " << status.why;
      EXPECT_EQ(status.why.find("its inputs were not given"), std::string::npos) << key;
    }
    ASSERT_EQ(many.per_class.size(), few.per_class.size());
    for (std::size_t i = 0; i < few.per_class.size(); ++i) EXPECT_EQ(many.per_class[i].key, few.per_class[i].key);
    EXPECT_EQ(many.spectrum.empty(), few.spectrum.empty());
    EXPECT_FALSE(few.block_cos_h.cosines.empty());
    EXPECT_TRUE(many.block_cos_h.cosines.empty());  // 300 x 300 numbers
    EXPECT_NE(std::find(many.notes.begin(), many.notes.end(),
                        "block_cos_h and block_cos_w are not listed: there are 300 class sizes"),
              many.notes.end());
  }
}

TEST_P(Measure, LowerStatisticsMeasureLess) {
  const Problem problem = typical_problem();
  const auto want = Truth(problem).metrics(Convention::zhu);
  for (ncollapse::Statistics statistics : {ncollapse::Statistics::means, ncollapse::Statistics::traces}) {
    AccumulatorOptions options = options_for(problem.train);
    options.statistics = statistics;
    Accumulator accumulator(context(), options);
    add_samples(accumulator, problem.train);
    const Report report = measure_with(accumulator.finish(), problem);
    expect_sound(report);
    for (const std::string key : {"nc1_pinv", "nc1_pinv_sum", "nc1_vci"}) expect_no_number(report, key, "skipped");
    for (const std::string key : {"nc1_trace_ratio", "nc1_within_frac", "nc1_cdnv"}) {
      if (statistics == ncollapse::Statistics::means)
        expect_no_number(report, key, "skipped");
      else
        expect_close(report.find(key).value_or(NAN), want.at(key), kRounding, 0, key);
    }
    for (const std::string key : {"nc2_etf_h", "nc2_equiang_h", "nc3_dual", "nc4_agree_test", "nc5_ortho"})
      expect_close(report.find(key).value_or(NAN), want.at(key), kRounding, 0, key);
  }
}

TEST_P(Measure, AScatterOfOtherWeightsIsNotUsed) {
  // 1/n_k weights make the scatter of `classavg`, weights of 1 that of the others; the wrong one must not give numbers.
  const Problem problem = typical_problem();
  AccumulatorOptions options = options_for(problem.train);
  options.scatter_weights = inverse_counts(problem.train);
  Accumulator weighted(context(), options);
  add_samples(weighted, problem.train);
  const auto number = [](const ClassMoments& moments, Convention convention, const std::string& key) {
    try {
      return ncollapse::measure(moments, {}, convention).find(key);
    } catch (const ncollapse::UsageError&) {
      return std::optional<double>();
    }
  };
  for (const std::string key : {"nc1_pinv", "nc1_pinv_sum"}) {
    EXPECT_FALSE(number(weighted.finish(), Convention::zhu, key).has_value()) << key;
    EXPECT_FALSE(number(moments_of(context(), problem.train), Convention::classavg, key).has_value()) << key;
    EXPECT_TRUE(number(weighted.finish(), Convention::classavg, key).has_value()) << key;
  }
  const auto vci = number(weighted.finish(), Convention::classavg, "nc1_vci");
  if (vci) expect_close(*vci, Truth(problem).metrics(Convention::zhu).at("nc1_vci"), kRounding, kZero, "nc1_vci");

  const auto head = problem.head.classifier();
  const Report report = ncollapse::measure(
      weighted.finish(), {.classifier = &head, .lambda_w = {1e-3}, .lambda_h = 1e-3}, Convention::classavg);
  for (const std::string key : {"nc1_vci", "ufm_loss"}) {
    expect_no_number(report, key, "skipped");
    EXPECT_NE(report.status.at(key).why.find("class weights"), std::string::npos) << report.status.at(key).why;
  }
}

TEST_P(Measure, TheNearestSimplexCountsDirectionsThatAreAllButGone) {
  // Means e_0, -e_0 and s e_k: singular values sqrt 2, s of K - 3 of them, and s sqrt(2/K).
  const double s = 0x1p-27;
  for (const Index classes : {4, 10, 40})
    for (const Index dim : {classes - 1, classes + 5}) {
      std::vector<double> means(static_cast<std::size_t>(classes * dim));
      means[0] = 1;
      means[static_cast<std::size_t>(dim)] = -1;
      for (Index k = 2; k < classes; ++k) means[static_cast<std::size_t>(k * dim + k - 1)] = s;
      std::vector<std::int64_t> labels(static_cast<std::size_t>(classes));
      std::iota(labels.begin(), labels.end(), 0);
      for (const auto statistics : {ncollapse::Statistics::means, ncollapse::Statistics::full}) {
        Accumulator accumulator(context(), {.classes = classes, .dim = dim, .statistics = statistics});
        accumulator.add(ncollapse::view(means.data(), classes, dim), ncollapse::view(labels.data(), classes));
        const double k = static_cast<double>(classes), nuclear = std::sqrt(2) + s * (k - 3 + std::sqrt(2 / k));
        const double want = 2 - 2 * nuclear / std::sqrt((k - 1) * (2 + s * s * (k - 3 + 2 / k)));
        EXPECT_NEAR(ncollapse::measure(accumulator.finish()).find("nc2_nearest_etf").value(), want, 1e-14) << classes;
      }
    }
}

TEST_P(Measure, AnOodMeanOfZeroHasNoDirection) {
  Problem problem = typical_problem();
  problem.ood_mean.assign(12, 0.0);
  expect_no_number(measure_problem(context(), problem), "nc5_ortho", "undefined");
}

TEST_P(Measure, AnOodMeanOfAnySizeHasADirection) {
  Problem problem = typical_problem();
  const double want = measure_problem(context(), problem).find("nc5_ortho").value();
  const std::vector<double> mean = problem.ood_mean;
  for (const double scale : {1e-300, 1e-160, 1e200, 1e300}) {
    for (std::size_t j = 0; j < mean.size(); ++j) problem.ood_mean[j] = mean[j] * scale;
    EXPECT_NEAR(measure_problem(context(), problem).find("nc5_ortho").value_or(NAN), want, 1e-14) << scale;
  }
}

}  // namespace
}  // namespace ncollapse_test
