// DecisionCounter: the counts of double arithmetic, whatever arithmetic made them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

using ncollapse::Classifier;
using ncollapse::DecisionCounter;

class Decisions : public OnDevice {};
NCOLLAPSE_ON_EVERY_DEVICE(Decisions);

/// One sample per class: the centre of class k is row k exactly.
Samples centres(Index dim, const std::vector<std::vector<double>>& rows) {
  Samples samples{static_cast<Index>(rows.size()), dim, {}, {}};
  for (std::size_t k = 0; k < rows.size(); ++k) samples.add(static_cast<std::int64_t>(k), rows[k]);
  return samples;
}

Samples random_centres(Index classes, Index dim, unsigned seed) {
  const Samples samples = make_samples({std::vector<Index>(at(classes), 1), dim, {0.0}, 1.0, 0.0, seed});
  std::vector<Index> by_class(at(classes));
  for (Index i = 0; i < classes; ++i) by_class[at(samples.labels[at(i)])] = i;
  return reordered(samples, by_class);
}

/// Trains on `train`, decides `test` in `dtype` and compares every count with the oracle, whose margin must leave no
/// doubt: 1e-11 is above d eps for every d here.
void expect_oracle_counts(const Context& context, const Samples& train, const Head& head, const Samples& test,
                          Dtype dtype = Dtype::f64) {
  const oracle::Head want_head = head.weights.empty() ? oracle::Head{} : head.truth();
  const oracle::Decisions want = oracle::decide(oracle::moments(train.truth()), want_head, test.truth());
  ASSERT_GT(want.margin, 1e-11L) << "the oracle's decisions are too close to call";
  const ClassMoments moments = moments_of(context, train);
  expect_counts(count_decisions(moments, head, test, 0, dtype), want);
  expect_counts(count_decisions(moments, head, test, 77, dtype), want);
}

TEST_P(Decisions, OnALine) {
  const Samples train = centres(1, {{0}, {10}, {20}});
  const Head head{3, 1, {-1, 0, 1}, {6, 2, -13}};  // class 0 below 4, class 1 up to 15, class 2 above
  const Samples test{3, 1, {1, 4.5, 6, 12, 14, 15.5, 30, 3}, {0, 0, 0, 1, 2, 2, 2, 1}};
  const DecisionCounts counts = count_decisions(moments_of(context(), train), head, test);
  EXPECT_TRUE(counts.has_classifier);
  EXPECT_EQ(counts.samples, (std::vector<Index>{3, 2, 3}));
  EXPECT_EQ(counts.correct_centre, (std::vector<Index>{2, 1, 2}));      // 1 4.5 | 12 | 15.5 30
  EXPECT_EQ(counts.correct_classifier, (std::vector<Index>{1, 1, 2}));  // 1 | 12 | 15.5 30
  EXPECT_EQ(counts.agree, (std::vector<Index>{2, 2, 3}));               // all but 4.5
}

TEST_P(Decisions, EveryShapeAndElementTypeAgreesWithTheOracle) {
  struct Shape {
    Index classes, dim, rows_per_class;
  };
  for (const Shape& shape : {Shape{2, 1, 40}, Shape{5, 1, 20}, Shape{10, 64, 30}, Shape{40, 33, 10}, Shape{300, 7, 3},
                             Shape{10, 700, 12}, Shape{129, 130, 3}})
    for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16}) {
      SCOPED_TRACE("K = " + std::to_string(shape.classes) + ", d = " + std::to_string(shape.dim) + ", " +
                   std::string(ncollapse::to_string(dtype)));
      const std::vector<Index> counts(at(shape.classes), 2 * shape.rows_per_class);
      const Samples all = rounded(make_samples({counts, shape.dim, {1.5, 0.5}, 1.0, 0.0, 81}), dtype);
      const auto [train, test] = split(all, std::vector<Index>(at(shape.classes), shape.rows_per_class));
      expect_oracle_counts(context(), train, random_head(shape.classes, shape.dim, 82), test, dtype);
    }
}

TEST_P(Decisions, ALargeCommonOffsetIsNoExcuse) {
  // |h|^2 is 1e8 d: in single precision the scores are off by more than the distances between the classes.
  for (Dtype dtype : {Dtype::f32, Dtype::f64}) {
    const Samples all = rounded(make_samples({std::vector<Index>(20, 60), 16, {0.7}, 1.0, 1e4, 83}), dtype);
    const auto [train, test] = split(all, std::vector<Index>(20, 20));
    Head head = random_head(20, 16, 84);
    for (Index k = 0; k < 20; ++k)  // the bias takes the offset away again
      for (Index j = 0; j < 16; ++j) head.bias[at(k)] -= 1e4 * head.weights[at(k * 16 + j)];
    expect_oracle_counts(context(), train, head, test, dtype);
  }
}

TEST_P(Decisions, AnyScaleOfTheFeatures) {
  // 1e30 overflows squares in single precision, 1e-30 underflows them.
  const Samples all = make_samples({std::vector<Index>(12, 40), 9, {0.7}, 1.0, 0.0, 85});
  for (double scale : {1e30, 1e-30, 1e-42}) {
    SCOPED_TRACE("scale " + std::to_string(std::log10(scale)));
    Samples scaled = all;
    for (double& x : scaled.values) x *= scale;
    scaled = rounded(scaled, Dtype::f32);
    const auto [train, test] = split(scaled, std::vector<Index>(12, 20));
    Head head = random_head(12, 9, 86);
    for (double& b : head.bias) b *= scale;
    expect_oracle_counts(context(), train, head, test, Dtype::f32);
  }
}

TEST_P(Decisions, AnyScaleOfTheWeights) {
  const Samples all = make_samples({std::vector<Index>(12, 40), 9, {0.7}, 1.0, 0.0, 87});
  const auto [train, test] = split(all, std::vector<Index>(12, 20));
  for (double scale : {1e100, 1e-100}) {  // beyond single precision, squares within double
    Head head = random_head(12, 9, 88);
    for (double& w : head.weights) w *= scale;
    for (double& b : head.bias) b *= scale;
    expect_oracle_counts(context(), train, head, test);
  }
}

TEST_P(Decisions, CentresCloserThanSinglePrecisionCanTell) {
  // Pairs of centres 2e-9 apart; the sample lies clearly on one side, seen from their middle.
  Samples train{40, 3, {}, {}}, test{40, 3, {}, {}};
  const Samples middles = make_samples({std::vector<Index>(20, 1), 3, {0.0}, 1.0, 0.0, 89});
  for (Index pair = 0; pair < 20; ++pair)
    for (int side : {-1, 1}) {
      const auto shifted = [&](double by) {
        std::vector<double> row(middles.values.begin() + pair * 3, middles.values.begin() + pair * 3 + 3);
        row[0] += by * side;
        return row;
      };
      train.add(2 * pair + (side > 0), shifted(1e-9));
      for (double distance : {1e-10, 0.9e-9, 3e-9}) test.add(2 * pair + (side > 0), shifted(distance));
    }
  Head head{40, 3, std::vector<double>(120, 0.0), std::vector<double>(40, 0.0)};
  for (std::size_t k = 0; k < 40; ++k)  // even classes have the logit h_0, odd ones (1 + 1e-9) h_0
    head.weights[3 * k] = 1 + 1e-9 * static_cast<double>(k % 2);
  const DecisionCounts counts = count_decisions(moments_of(context(), train), head, test);
  EXPECT_EQ(counts.correct_centre, std::vector<Index>(40, 3));
  // Where h_0 < 0 the even classes tie and class 0 is chosen, else class 1.
  const oracle::Decisions want = oracle::decide(oracle::moments(train.truth()), head.truth(), test.truth());
  EXPECT_EQ(counts.correct_classifier, want.correct_classifier);
}

/// Right at the means; of two classes the rows of W are opposite. Decides by distances, somewhat displaced.
Head displaced_nearest_centre(const Samples& centres) {
  const Index K = centres.classes, d = centres.dim;
  Head head{K, d, centres.values, std::vector<double>(at(K))};
  for (Index j = 0; j < d; ++j) {
    double mean = 0;
    for (Index k = 0; k < K; ++k) mean += centres.values[at(k * d + j)] / static_cast<double>(K);
    for (Index k = 0; k < K; ++k) head.weights[at(k * d + j)] -= mean;
    for (Index k = 0; k < K; ++k)
      head.bias[at(k)] -= head.weights[at(k * d + j)] * (centres.values[at(k * d + j)] + mean) / 2;
  }
  for (Index k = 0; k < K; ++k) head.bias[at(k)] += 1e-2 * std::sin(static_cast<double>(k));
  return head;
}

TEST_P(Decisions, OnTheWayToAnotherClass) {
  // From every mean straight to every other one, and where the classifier turns: no row is nearer to its own class than
  // it may be without scores. Four rows a class and more, so that means get their radii.
  for (const auto& [K, d] : {std::pair<Index, Index>{2, 1}, {2, 7}, {6, 5}, {6, 300}}) {
    SCOPED_TRACE("K = " + std::to_string(K) + ", d = " + std::to_string(d));
    const Samples train = random_centres(K, d, 103);
    const Head head = displaced_nearest_centre(train);
    Samples test{K, d, {}, {}};
    const auto mean = [&](Index k) { return train.values.data() + k * d; };
    for (Index k = 0; k < K; ++k)
      for (Index other = 0; other < K; ++other) {
        if (other == k) continue;
        for (const double part : {0.0, 0.3, 0.49, 0.49999, 0.499999999, 0.500000001, 0.50001, 0.51, 0.9}) {
          std::vector<double> row(mean(k), mean(k) + d);
          for (Index j = 0; j < d; ++j) row[at(j)] += part * (mean(other)[j] - mean(k)[j]);
          test.add(k, row);
        }
        double lead = head.bias[at(k)] - head.bias[at(other)], slope = 0;
        for (Index j = 0; j < d; ++j) {
          const double turn = head.weights[at(k * d + j)] - head.weights[at(other * d + j)];
          lead += turn * mean(k)[j];
          slope += turn * turn;
        }
        for (const double part : {0.7, 0.99999, 0.999999999, 1.000000001, 1.00001, 1.3}) {
          std::vector<double> row(mean(k), mean(k) + d);
          for (Index j = 0; j < d; ++j)
            row[at(j)] -= part * lead / slope * (head.weights[at(k * d + j)] - head.weights[at(other * d + j)]);
          test.add(k, row);
        }
      }
    expect_oracle_counts(context(), train, head, test);
  }
}

TEST_P(Decisions, AClassifierThatIsWrongAtTheMeans) {
  // Class 1's mean goes to class 0, by weights; class 2's to class 0, by a hair; all rows lie at the means.
  const Samples train = centres(2, {{1, 0}, {0, 1}, {-1, 0}});
  const Head head{3, 2, {1, 1, 0.5, 0.5, -2, 0}, {0, 0, -3.0000001}};
  Samples test{3, 2, {}, {}};
  for (int repeat = 0; repeat < 20; ++repeat)
    for (std::int64_t k = 0; k < 3; ++k) test.add(k, {train.values.begin() + 2 * k, train.values.begin() + 2 * k + 2});
  for (const Dtype dtype : {Dtype::f64, Dtype::bf16}) {
    const DecisionCounts counts = count_decisions(moments_of(context(), train), head, test, 0, dtype);
    EXPECT_EQ(counts.correct_centre, (std::vector<Index>{20, 20, 20}));
    EXPECT_EQ(counts.correct_classifier, (std::vector<Index>{20, 0, 0}));
    EXPECT_EQ(counts.agree, (std::vector<Index>{20, 0, 0}));
  }
}

TEST_P(Decisions, CollapsedFeaturesAndAFewThatStray) {
  // Nearly all rows lie close to their means; of every class one lies at the mean of the next and one far from all.
  const Index K = 40, d = 33;
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16}) {
    SCOPED_TRACE(std::string(ncollapse::to_string(dtype)));
    const Samples train = rounded(random_centres(K, d, 105), dtype);
    Samples test{K, d, {}, {}};
    for (Index i = 0; i < 30 * K; ++i) {
      const Index k = i % K, source = i / K == 7 ? (k + 1) % K : k;
      std::vector<double> row(train.values.begin() + source * d, train.values.begin() + (source + 1) * d);
      for (Index j = 0; j < d; ++j)
        row[at(j)] += (i / K == 11 ? 50.0 : 1e-2) * std::sin(static_cast<double>(i * d + j));
      test.add(k, row);
    }
    expect_oracle_counts(context(), train, random_head(K, d, 107), rounded(test, dtype), dtype);
    Head own{K, d, train.values, std::vector<double>(at(K), 0.0)};  // what collapse makes of W
    expect_oracle_counts(context(), train, own, rounded(test, dtype), dtype);
  }
}

TEST_P(Decisions, ABadRowAmongNearOnesIsFound) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16}) {
    SCOPED_TRACE(std::string(ncollapse::to_string(dtype)));
    const Samples train = rounded(random_centres(3, 5, 108), dtype);
    Samples test{3, 5, {}, {}};
    for (Index i = 0; i < 30; ++i)
      test.add(i % 3, {train.values.begin() + i % 3 * 5, train.values.begin() + (i % 3 + 1) * 5});
    const ClassMoments moments = moments_of(context(), train);
    DecisionCounter counter(moments, nullptr);
    const auto add = [&] {
      const Encoded features = encode(test.values, test.rows(), 5, dtype);
      counter.add(features.view(), label_view(test.labels, 0, test.rows()));
    };
    add();
    for (const double bad : {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()}) {
      const double good = std::exchange(test.values[17 * 5 + 4], bad);
      try {
        add();
        ADD_FAILURE() << bad << " was taken";
      } catch (const ncollapse::DataError& error) {
        EXPECT_NE(std::string(error.what()).find("row 47, column 4"), std::string::npos) << error.what();
      }
      test.values[17 * 5 + 4] = good;
    }
    if (dtype == Dtype::f64) test.values[17 * 5 + 4] = 1e200;  // whose square overflows
    add();
    const DecisionCounts counts = counter.finish();
    EXPECT_EQ(counts.samples, (std::vector<Index>{20, 20, 20}));
    EXPECT_EQ(std::accumulate(counts.correct_centre.begin(), counts.correct_centre.end(), Index{0}),
              dtype == Dtype::f64 ? 59 : 60);
  }
}

TEST_P(Decisions, TiesGoToTheLowestClass) {
  // Small integers: every way to compute these scores is exact.
  const Samples train = centres(2, {{9, 9}, {1, 0}, {-1, 0}, {1, 0}, {9, 9}});
  const Head head{5, 2, {-3, 0, 1, 1, -1, 1, 1, 1, -1, 1}, {0, 0, 0, 0, 0}};
  const Samples test{5, 2, {0, 5, 1, 0, 2, 1, -4, 0, 9, 9}, {1, 1, 3, 2, 0}};
  // centres:     (0,5) -> 1 (tie of 1 2 3)   (1,0) -> 1   (2,1) -> 1   (-4,0) -> 2   (9,9) -> 0
  // classifier:  (0,5) -> 1 (tie of 1 to 4)  (1,0) -> 1   (2,1) -> 1   (-4,0) -> 0   (9,9) -> 1
  const DecisionCounts counts = count_decisions(moments_of(context(), train), head, test);
  EXPECT_EQ(counts.correct_centre, (std::vector<Index>{1, 2, 1, 0, 0}));
  EXPECT_EQ(counts.correct_classifier, (std::vector<Index>{0, 2, 0, 0, 0}));
  EXPECT_EQ(counts.agree, (std::vector<Index>{0, 2, 0, 1, 0}));
}

TEST_P(Decisions, DuplicatesTieWhateverTheirDigits) {
  // Classes k and k + 150 have the same centre and the same weights: the first one wins, wherever the two rows stand.
  const Index K = 300, d = 7;
  Samples train = random_centres(150, d, 90);
  train.classes = K;
  for (Index k = 0; k < 150; ++k)
    train.add(150 + k, {train.values.begin() + k * d, train.values.begin() + (k + 1) * d});
  Head head = random_head(K, d, 91);
  std::copy_n(head.weights.begin(), 150 * d, head.weights.begin() + 150 * d);
  std::copy_n(head.bias.begin(), 150, head.bias.begin() + 150);
  const Samples test = make_samples({std::vector<Index>(300, 5), d, {0.8}, 1.0, 0.0, 92});
  for (Dtype dtype : {Dtype::f64, Dtype::f32})
    expect_oracle_counts(context(), train, head, rounded(test, dtype), dtype);
}

TEST_P(Decisions, AllCentresAlike) {
  Samples train{6, 4, {}, {}};
  for (std::int64_t k = 5; k >= 0; --k)
    for (int i = 0; i < 3; ++i) train.add(k, {0.1, -0.7, 1e3, 0.3});
  const Samples test = make_samples({std::vector<Index>(6, 10), 4, {1.0}, 1.0, 0.0, 93});
  const DecisionCounts counts = count_decisions(moments_of(context(), train), {}, test);
  EXPECT_EQ(counts.correct_centre, (std::vector<Index>{10, 0, 0, 0, 0, 0}));
}

TEST_P(Decisions, AbsentClassesAreNoCentres) {
  // Class 0, 2 and 4 are absent: their mean of zeros must not attract the samples around the origin.
  const Samples train{5, 2, {3, 0, -3, 0}, {1, 3}};
  const Samples test{5, 2, {0.1, 0, -0.1, 0, 0.2, 0.2, -5, 1}, {1, 3, 0, 4}};
  const Head head{5, 2, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 1, 0, 0}};  // always class 2
  const DecisionCounts counts = count_decisions(moments_of(context(), train), head, test);
  EXPECT_EQ(counts.samples, (std::vector<Index>{1, 1, 0, 1, 1}));
  EXPECT_EQ(counts.correct_centre, (std::vector<Index>{0, 1, 0, 1, 0}));
  EXPECT_EQ(counts.correct_classifier, (std::vector<Index>{0, 0, 0, 0, 0}));
  EXPECT_EQ(counts.agree, (std::vector<Index>{0, 0, 0, 0, 0}));
  const Samples absent{5, 2, {0.1, 0}, {2}};
  EXPECT_EQ(count_decisions(moments_of(context(), train), head, absent).correct_classifier,
            (std::vector<Index>{0, 0, 1, 0, 0}));
}

TEST_P(Decisions, WithoutAClassifierOnlyCentresDecide) {
  const Samples all = make_samples({{40, 0, 30}, 5, {0.7}, 1.0, 0.0, 94});
  const ClassMoments moments = moments_of(context(), all);
  const Classifier no_layers;
  DecisionCounter counter(moments, &no_layers);
  counter.add(ncollapse::view(all.values.data(), all.rows(), 5), label_view(all.labels, 0, all.rows()));
  for (const DecisionCounts& counts : {count_decisions(moments, {}, all), counter.finish()}) {
    EXPECT_FALSE(counts.has_classifier);
    EXPECT_TRUE(counts.correct_classifier.empty());
    EXPECT_TRUE(counts.agree.empty());
    expect_counts(counts, oracle::decide(oracle::moments(all.truth()), {}, all.truth()));
  }
}

TEST_P(Decisions, MeansAreEnoughAndTheBiasMayBeMissing) {
  const Samples all = make_samples({{40, 20, 30}, 5, {0.7}, 1.0, 0.0, 95});
  AccumulatorOptions options = options_for(all);
  options.statistics = ncollapse::Statistics::means;
  Accumulator accumulator(context(), options);
  add_samples(accumulator, all);
  Head head = random_head(3, 5, 96);
  head.bias.clear();
  const oracle::Decisions want = oracle::decide(oracle::moments(all.truth()), head.truth(), all.truth());
  ASSERT_GT(want.margin, 1e-11L);
  expect_counts(count_decisions(accumulator.finish(), head, all), want);
}

TEST_P(Decisions, TheBiasDecides) {
  const Samples train = centres(1, {{0}, {1}, {2}});
  const Head head{3, 1, {0, 0, 0}, {1, 3, 2}};
  const Samples test{3, 1, {0, 1, 2, 5}, {0, 1, 2, 1}};
  EXPECT_EQ(count_decisions(moments_of(context(), train), head, test).correct_classifier,
            (std::vector<Index>{0, 2, 0}));
}

TEST_P(Decisions, CountsGrowAndRepeat) {
  const Samples all = make_samples({{400, 200, 300}, 5, {0.7}, 1.0, 0.0, 97});
  const Head head = random_head(3, 5, 98);
  const Classifier classifier = head.classifier();
  const ClassMoments moments = moments_of(context(), all);
  const DecisionCounts once = count_decisions(moments, head, all);
  DecisionCounter counter(moments, &classifier);
  EXPECT_EQ(counter.finish().samples, (std::vector<Index>{0, 0, 0}));
  for (Index repeat = 1; repeat <= 3; ++repeat) {
    for (Index first = 0; first < all.rows(); first += 7) {
      const Index count = std::min(Index(7), all.rows() - first);
      counter.add(ncollapse::view(all.values.data() + first * 5, count, 5), label_view(all.labels, first, count));
      counter.add({nullptr, Dtype::f32, 0, 5, 0, ncollapse::MemorySpace::host}, ncollapse::LabelView{});
    }
    const DecisionCounts counts = counter.finish();
    for (std::size_t k = 0; k < 3; ++k) {
      EXPECT_EQ(counts.samples[k], repeat * once.samples[k]);
      EXPECT_EQ(counts.correct_centre[k], repeat * once.correct_centre[k]);
      EXPECT_EQ(counts.correct_classifier[k], repeat * once.correct_classifier[k]);
      EXPECT_EQ(counts.agree[k], repeat * once.agree[k]);
    }
  }
}

TEST_P(Decisions, CountsOfPartsAddUp) {
  const Samples all = make_samples({{40, 20, 30}, 5, {0.7}, 1.0, 0.0, 97});
  const auto [left, right] = split(all, {11, 20, 3});
  const Head head = random_head(3, 5, 98);
  const ClassMoments moments = moments_of(context(), all);
  const DecisionCounts want = count_decisions(moments, head, all);
  DecisionCounts sum = count_decisions(moments, head, left);
  sum += count_decisions(moments, head, right);
  EXPECT_EQ(sum.samples, want.samples);
  EXPECT_EQ(sum.correct_centre, want.correct_centre);
  EXPECT_EQ(sum.correct_classifier, want.correct_classifier);
  EXPECT_EQ(sum.agree, want.agree);
  const DecisionCounts no_head = count_decisions(moments, {}, left), none;
  for (const DecisionCounts* other : {&no_head, &none}) EXPECT_THROW(sum += *other, ncollapse::UsageError);
  EXPECT_EQ(sum.samples, want.samples);
}

TEST_P(Decisions, WithoutSamplesThereAreNoCentres) {
  const Accumulator nothing(context(), {.classes = 3, .dim = 2});
  EXPECT_THROW(DecisionCounter(nothing.finish(), nullptr), ncollapse::DataError);
}

TEST_P(Decisions, StridesAndLabelTypes) {
  const Samples all = rounded(make_samples({{40, 20, 30}, 9, {0.7}, 1.0, 0.0, 99}), Dtype::bf16);
  const Head head = random_head(3, 9, 100);
  const Classifier classifier = head.classifier();
  const ClassMoments moments = moments_of(context(), all);
  const oracle::Decisions want = oracle::decide(oracle::moments(all.truth()), head.truth(), all.truth());
  ASSERT_GT(want.margin, 1e-11L);
  const std::vector<std::int32_t> narrow(all.labels.begin(), all.labels.end());
  const std::vector<std::uint8_t> bytes(all.labels.begin(), all.labels.end());
  for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
    for (Index stride : {9, 10, 16}) {
      const Encoded features = encode(all.values, all.rows(), 9, dtype, stride);
      DecisionCounter first(moments, &classifier), second(moments, &classifier);
      first.add(features.view(), ncollapse::view(narrow.data(), all.rows()));
      second.add(features.view(), ncollapse::view(bytes.data(), all.rows()));
      expect_counts(first.finish(), want);
      expect_counts(second.finish(), want);
    }
}

TEST_P(Decisions, TheViewsOfTheClassifierAreNotNeededAfterwards) {
  const Samples all = make_samples({{40, 20, 30}, 5, {0.7}, 1.0, 0.0, 101});
  const ClassMoments moments = moments_of(context(), all);
  Head head = random_head(3, 5, 102);
  const oracle::Decisions want = oracle::decide(oracle::moments(all.truth()), head.truth(), all.truth());
  ASSERT_GT(want.margin, 1e-11L);
  const Classifier classifier = head.classifier();
  DecisionCounter first(moments, &classifier);
  for (double& w : head.weights) w = -w;  // training goes on
  for (double& b : head.bias) b = -b;
  DecisionCounter second = std::move(first);
  second.add(ncollapse::view(all.values.data(), all.rows(), 5), label_view(all.labels, 0, all.rows()));
  expect_counts(second.finish(), want);
}

}  // namespace
}  // namespace ncollapse_test
