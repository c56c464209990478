// Wrong labels, numbers that are none, shapes that do not fit: a clear error, and a state as before.
#include <cctype>
#include <cmath>
#include <functional>
#include <limits>

#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

using ncollapse::DataError;
using ncollapse::DecisionCounter;
using ncollapse::LabelView;
using ncollapse::MatrixView;
using ncollapse::Statistics;
using ncollapse::UsageError;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Statistics kEveryStatistics[] = {Statistics::means, Statistics::traces, Statistics::full};

class BadInput : public OnDevice {};
NCOLLAPSE_ON_EVERY_DEVICE(BadInput);

/// The message has `number` as a number of its own.
bool mentions(const std::string& message, std::int64_t number) {
  const std::string digits = std::to_string(number);
  for (std::size_t i = message.find(digits); i != std::string::npos; i = message.find(digits, i + 1)) {
    const bool starts = i == 0 || (!std::isdigit(message[i - 1]) && message[i - 1] != '.');
    const std::size_t end = i + digits.size();
    if (starts && (end == message.size() || !std::isdigit(message[end]))) return true;
  }
  return false;
}

/// Runs `action`, which must throw a DataError whose message has both numbers. Rows count from the first row that the
/// accumulator or the counter was given.
void expect_data_error(const std::function<void()>& action, std::int64_t count, std::int64_t first_row) {
  try {
    action();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const DataError& error) {
    EXPECT_EQ(error.kind(), ncollapse::ErrorKind::data);
    EXPECT_TRUE(mentions(error.what(), count)) << "no count " << count << " in: " << error.what();
    EXPECT_TRUE(mentions(error.what(), first_row)) << "no row " << first_row << " in: " << error.what();
  }
}

Samples some_samples(unsigned seed) { return make_samples({{100, 80, 60, 0}, 6, {0.5, 0.1}, 1.0, 0.0, seed}); }

TEST_P(BadInput, LabelsOutOfRange) {
  const Samples good = some_samples(51);
  for (std::int64_t label : {std::int64_t(4), std::int64_t(-1), std::int64_t(1) << 32, (std::int64_t(1) << 32) + 1,
                             std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()}) {
    SCOPED_TRACE("label " + std::to_string(label));
    Samples bad = good;
    for (std::size_t i = 47; i < 47 + 13 * 2; i += 2) bad.labels[i] = label;
    Accumulator accumulator = accumulate(context(), good);
    const ClassMoments before = accumulator.finish();
    expect_data_error([&] { add_samples(accumulator, bad); }, 13, good.rows() + 47);
    expect_same_bits(accumulator.finish(), before);
    EXPECT_EQ(accumulator.samples(), good.rows());
  }
  const std::vector<std::int32_t> narrow(static_cast<std::size_t>(good.rows()), -7);
  const std::vector<std::uint8_t> bytes(static_cast<std::size_t>(good.rows()), 200);
  const Encoded features = encode(good.values, good.rows(), good.dim, Dtype::f32);
  Accumulator accumulator(context(), options_for(good));
  const auto add = [&](const LabelView& labels) {
    accumulator.add(features.view(), labels);
    accumulator.check();
  };
  expect_data_error([&] { add(ncollapse::view(narrow.data(), good.rows())); }, 240, 0);
  expect_data_error([&] { add(ncollapse::view(bytes.data(), good.rows())); }, 240, 0);
  EXPECT_EQ(accumulator.samples(), 0);
}

TEST_P(BadInput, FeaturesThatAreNotFinite) {
  const Samples good = rounded(some_samples(52), Dtype::bf16);
  for (Statistics statistics : kEveryStatistics)
    for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
      for (double value : {kNan, kInfinity, -kInfinity}) {
        SCOPED_TRACE(std::string(ncollapse::to_string(statistics)) + " " + std::string(ncollapse::to_string(dtype)) +
                     " " + std::to_string(value));
        Samples bad = good;
        for (Index row = 173; row < 173 + 14; ++row) bad.values[at(row * 6 + row % 6)] = value;
        AccumulatorOptions options = options_for(good);
        options.statistics = statistics;
        Accumulator accumulator(context(), options);
        add_samples(accumulator, good, 0, dtype);
        const ClassMoments before = accumulator.finish();
        expect_data_error([&] { add_samples(accumulator, bad, 0, dtype); }, 14, good.rows() + 173);
        expect_same_bits(accumulator.finish(), before);
      }
}

TEST_P(BadInput, AStateThatHadARefusedBatchGoesOnAsIfItNeverCame) {
  // The refused batch is the first to bring class 3, so a shift taken from it would be seen afterwards.
  const Samples good = some_samples(53);
  Samples bad = some_samples(54), rest = some_samples(55);
  bad.labels[0] = 3;
  rest.labels[9] = 3;
  for (Statistics statistics : kEveryStatistics)
    for (const std::string fault : {"label", "nan", "nan in a new class"}) {
      SCOPED_TRACE(std::string(ncollapse::to_string(statistics)) + " " + fault);
      AccumulatorOptions options = options_for(good);
      options.statistics = statistics;
      Samples refused = bad;
      if (fault == "label") refused.labels.back() = 99;
      if (fault == "nan") refused.values.back() = kNan;
      if (fault == "nan in a new class") refused.values.front() = kNan;
      Accumulator met(context(), options), clean(context(), options);
      EXPECT_THROW(add_samples(met, refused), DataError);
      add_samples(met, good);
      EXPECT_THROW(add_samples(met, refused), DataError);
      add_samples(met, rest);
      add_samples(clean, good);
      add_samples(clean, rest);
      expect_same_bits(met.finish(), clean.finish());
    }
}

// Both are told, and row() is the first that is bad in any way.
TEST_P(BadInput, LabelsAndFeaturesOfOneBatch) {
  for (const Index row : {31, 211}) {
    Samples bad = some_samples(58);
    bad.labels[120] = 9;
    bad.values[at(row * 6 + 2)] = kNan;
    Accumulator accumulator(context(), options_for(bad));
    try {
      add_samples(accumulator, bad);
      accumulator.check();
      ADD_FAILURE() << "nothing was thrown";
    } catch (const DataError& error) {
      EXPECT_EQ(error.row(), std::min<Index>(row, 120));
      for (const Index value : {Index{120}, Index{9}, row, Index{2}})
        EXPECT_TRUE(mentions(error.what(), value)) << value << " in: " << error.what();
    }
  }
}

// Each class has a variance, the scatter of all has none.
TEST_P(BadInput, APooledScatterBeyondDoubleIsRefused) {
  const Samples vast{2, 1, {0, 1.2e154, 0, 1.2e154}, {0, 0, 1, 1}};
  for (Statistics statistics : {Statistics::traces, Statistics::full}) {
    AccumulatorOptions options = options_for(vast);
    options.statistics = statistics;
    Accumulator accumulator(context(), options);
    add_samples(accumulator, vast);
    if (statistics == Statistics::full)
      EXPECT_THROW(accumulator.finish(), DataError);
    else
      EXPECT_NEAR(accumulator.finish().within_variances()[1] / 3.6e307, 1, 1e-12);
  }
}

TEST_P(BadInput, ValuesOfOneBadRowAreCounted) {
  Samples bad = some_samples(56);
  for (Index j = 0; j < 6; ++j) bad.values[at(101 * 6 + j)] = j % 2 == 0 ? kNan : kInfinity;
  bad.values[at(202 * 6)] = kNan;
  Accumulator accumulator(context(), options_for(bad));
  expect_data_error([&] { add_samples(accumulator, bad); }, 7, 101);
}

TEST_P(BadInput, LargestFiniteValuesAreNoFault) {
  Samples samples{2, 1, {3e38, -3e38}, {0, 1}};
  samples = rounded(samples, Dtype::bf16);
  EXPECT_NO_THROW(accumulate(context(), samples, 0, Dtype::f32));
  EXPECT_NO_THROW(accumulate(context(), samples, 0, Dtype::bf16));
}

TEST_P(BadInput, FiniteValuesWhoseSquaresAreNotAreTaken) {
  Samples samples = some_samples(58);
  for (Index j = 0; j < 6; ++j) samples.values[at(7 * 6 + j)] = 1e200;
  AccumulatorOptions options = options_for(samples);
  options.statistics = Statistics::means;
  Accumulator accumulator(context(), options);
  add_samples(accumulator, samples);
  EXPECT_EQ(accumulator.samples(), samples.rows());
  double sum = 0;
  const Index k = samples.labels[7];
  for (Index i = 0; i < samples.rows(); ++i)
    if (samples.labels[at(i)] == k) sum += samples.values[at(i * 6)];
  const auto count = static_cast<double>(accumulator.finish().counts()[at(k)]);
  EXPECT_NEAR(accumulator.finish().means()[at(k * 6)] / (sum / count), 1.0, 1e-12);
}

TEST_P(BadInput, AVarianceBeyondDoubleIsRefusedRatherThanTakenFor0) {
  // The mean of the first class is 0, so nothing else is out of range.
  const Samples samples{2, 2, {1e160, 1e160, -1e160, -1e160, 1, 2, 1.1, 2.2}, {0, 0, 1, 1}};
  for (const Statistics statistics : {Statistics::traces, Statistics::full}) {
    AccumulatorOptions options = options_for(samples);
    options.statistics = statistics;
    Accumulator accumulator(context(), options);
    add_samples(accumulator, samples);
    EXPECT_THROW(accumulator.finish(), DataError);
    Accumulator other(context(), options);
    EXPECT_THROW(other.merge(accumulator), DataError);
  }
}

constexpr auto kNoDtype = static_cast<Dtype>(9);
constexpr auto kNoLabelType = static_cast<ncollapse::LabelType>(9);

/// The two classes that take batches answer alike.
template <class Taker>
void expect_shapes_checked(Taker& taker, const Samples& samples) {
  const Index n = samples.rows();
  const MatrixView features = ncollapse::view(samples.values.data(), n, samples.dim);
  const LabelView labels = label_view(samples.labels, 0, n);
  EXPECT_THROW(taker.add(features, label_view(samples.labels, 0, n - 1)), UsageError);
  EXPECT_THROW(taker.add(features, LabelView{}), UsageError);
  EXPECT_THROW(taker.add(ncollapse::view(samples.values.data(), n - 1, samples.dim), labels), UsageError);
  EXPECT_THROW(taker.add(ncollapse::view(samples.values.data(), n, samples.dim - 1), labels), UsageError);
  EXPECT_THROW(taker.add(ncollapse::view(samples.values.data(), n, samples.dim + 1), labels), UsageError);
  EXPECT_THROW(taker.add(ncollapse::view(samples.values.data(), n, samples.dim, samples.dim - 1), labels), UsageError);
  EXPECT_THROW(taker.add(ncollapse::view(samples.values.data(), -1, samples.dim), label_view(samples.labels, 0, -1)),
               UsageError);
  MatrixView unknown_features = features;
  unknown_features.dtype = kNoDtype;
  EXPECT_THROW(taker.add(unknown_features, labels), UsageError);
  LabelView unknown_labels = labels;
  unknown_labels.type = kNoLabelType;
  EXPECT_THROW(taker.add(features, unknown_labels), UsageError);
}

TEST_P(BadInput, ShapesThatDoNotFit) {
  const Samples samples = some_samples(57);
  Accumulator accumulator(context(), options_for(samples));
  expect_shapes_checked(accumulator, samples);
  EXPECT_EQ(accumulator.samples(), 0);
  const ClassMoments moments = moments_of(context(), samples);
  DecisionCounter counter(moments, nullptr);
  expect_shapes_checked(counter, samples);
  EXPECT_EQ(counter.finish().samples, (std::vector<Index>{0, 0, 0, 0}));
}

TEST_P(BadInput, DecisionsOnBadBatchesCountNothing) {
  const Samples good = some_samples(58);
  const Head head = random_head(4, 6, 59);
  const ncollapse::Classifier classifier = head.classifier();
  const ClassMoments moments = moments_of(context(), good);
  DecisionCounter counter(moments, &classifier);
  const auto add = [&](const Samples& samples) {
    counter.add(ncollapse::view(samples.values.data(), samples.rows(), 6),
                label_view(samples.labels, 0, samples.rows()));
  };
  Samples bad = good;
  for (std::size_t i = 47; i < 47 + 13; ++i) bad.labels[i] = 4;
  expect_data_error([&] { add(bad); }, 13, 47);
  bad = good;
  bad.values[77 * 6 + 3] = kNan;
  bad.values[78 * 6 + 3] = kInfinity;
  expect_data_error([&] { add(bad); }, 2, 77);
  add(good);
  expect_counts(counter.finish(), oracle::decide(oracle::moments(good.truth()), head.truth(), good.truth()));
}

TEST_P(BadInput, ClassifiersThatDoNotFit) {
  const Samples samples = some_samples(60);
  const ClassMoments moments = moments_of(context(), samples);
  const std::vector<double> numbers(100, 1.0);
  const auto layer = [&](Index rows, Index cols) { return ncollapse::view(numbers.data(), rows, cols); };
  const auto refused = [&](const ncollapse::Classifier& classifier) {
    EXPECT_THROW(DecisionCounter(moments, &classifier), UsageError);
    ncollapse::Evidence evidence;
    evidence.classifier = &classifier;
    EXPECT_THROW(ncollapse::measure(moments, evidence), UsageError);
  };
  refused({{layer(4, 5)}, {}});               // W_1 does not take d features
  refused({{layer(3, 6)}, {}});               // does not give K logits
  refused({{layer(5, 6), layer(4, 6)}, {}});  // the layers do not chain
  refused({{layer(4, 5), layer(5, 6)}, {}});  // in the wrong order
  refused({{layer(5, 6), layer(3, 5)}, {}});  //
  refused({{layer(4, 6)}, layer(1, 3)});      // bias of another length
  refused({{layer(4, 6)}, layer(1, 5)});      //
  refused({{}, layer(1, 4)});                 // bias without layers
  MatrixView unknown_layer = layer(4, 6), unknown_bias = layer(1, 4), null_bias = layer(1, 4);
  unknown_layer.dtype = unknown_bias.dtype = kNoDtype;
  null_bias.data = nullptr;
  refused({{unknown_layer}, {}});
  refused({{layer(4, 6)}, unknown_bias});
  refused({{layer(4, 6)}, null_bias});
  const ncollapse::Classifier chained{{layer(5, 6), layer(4, 5)}, layer(1, 4)};
  EXPECT_NO_THROW(DecisionCounter(moments, &chained));
}

TEST_P(BadInput, WeightsThatAreNotFinite) {
  const ClassMoments moments = moments_of(context(), some_samples(61));
  const Head head = random_head(4, 6, 62);
  for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
    for (double value : {kNan, kInfinity}) {
      SCOPED_TRACE(std::string(ncollapse::to_string(dtype)) + " " + std::to_string(value));
      const auto encoded = [&](std::vector<double> values, Index rows, Index cols, Index spoilt) {
        values = rounded(values, dtype);
        if (spoilt >= 0) values[at(spoilt)] = value;
        return encode(values, rows, cols, dtype);
      };
      const Encoded weights = encoded(head.weights, 4, 6, -1), bias = encoded(head.bias, 1, 4, -1),
                    bad_weights = encoded(head.weights, 4, 6, 13), bad_bias = encoded(head.bias, 1, 4, 2);
      const ncollapse::Classifier good{{weights.view()}, bias.view()}, first{{bad_weights.view()}, bias.view()},
          second{{weights.view()}, bad_bias.view()};
      EXPECT_NO_THROW(DecisionCounter(moments, &good));
      EXPECT_THROW(DecisionCounter(moments, &first), DataError);
      EXPECT_THROW(DecisionCounter(moments, &second), DataError);
    }
}

TEST_P(BadInput, LayersWhoseProductIsNotFinite) {
  // Every layer is in range; entries of their product are 1e450 + 1e450, infinite, or 1e450 - 1e450, a NaN.
  const ClassMoments moments = moments_of(context(), some_samples(61));
  std::vector<double> first(2 * 6, 1e150);
  const std::vector<double> second{1e150, 0, 0, 1e150}, last(4 * 2, 1e150);
  for (const double sign : {1.0, -1.0}) {
    for (std::size_t j = 6; j < 12; ++j) first[j] = sign * 1e150;
    const ncollapse::Classifier classifier{
        {ncollapse::view(first.data(), 2, 6), ncollapse::view(second.data(), 2, 2), ncollapse::view(last.data(), 4, 2)},
        {}};
    EXPECT_THROW(DecisionCounter(moments, &classifier), DataError);
    EXPECT_THROW(ncollapse::measure(moments, {.classifier = &classifier}), DataError);
  }
}

TEST_P(BadInput, ClassifiersTooSmallToMeasure) {
  // Three layers that are small, and their product so small that its squares are 0.
  const ClassMoments moments = moments_of(context(), some_samples(61));
  const std::vector<double> first(6 * 6, 1e-30), last(4 * 6, 1e-30);
  const ncollapse::Classifier classifier{
      {ncollapse::view(first.data(), 6, 6), ncollapse::view(first.data(), 6, 6), ncollapse::view(last.data(), 4, 6)},
      {}};
  EXPECT_THROW(ncollapse::measure(moments, {.classifier = &classifier}), DataError);
  const std::vector<double> zero(4 * 6, 0.0);  // a classifier that is 0 is one
  const ncollapse::Classifier none{{ncollapse::view(zero.data(), 4, 6)}, {}};
  EXPECT_NO_THROW(ncollapse::measure(moments, {.classifier = &none}));
}

TEST_P(BadInput, WeightsInMemoryThatTheContextCannotSee) {
  if (context().info().device.type != ncollapse::DeviceType::cpu) GTEST_SKIP() << "device memory is welcome there";
  const ClassMoments moments = moments_of(context(), some_samples(61));
  const std::vector<double> numbers(4 * 6, 1.0);
  MatrixView weights = ncollapse::view(numbers.data(), 4, 6), bias = ncollapse::view(numbers.data(), 1, 4);
  weights.space = bias.space = ncollapse::MemorySpace::device;
  const ncollapse::Classifier first{{weights}, {}}, second{{ncollapse::view(numbers.data(), 4, 6)}, bias};
  for (const auto* classifier : {&first, &second}) {
    EXPECT_THROW(DecisionCounter(moments, classifier), UsageError);
    EXPECT_THROW(ncollapse::measure(moments, {.classifier = classifier}), UsageError);
  }
}

TEST_P(BadInput, CountsThatDoNotFitTheClasses) {
  const ClassMoments moments = moments_of(context(), some_samples(61));
  const std::vector<Index> four(4, 1), three(3, 1);
  const auto refused = [&](const ncollapse::DecisionCounts& counts) {
    EXPECT_THROW(ncollapse::measure(moments, {.train = &counts}), UsageError);
    EXPECT_THROW(ncollapse::measure(moments, {.test = &counts}), UsageError);
  };
  ncollapse::DecisionCounts counts;
  counts.samples = counts.correct_centre = counts.correct_classifier = counts.agree = four;
  counts.has_classifier = true;
  EXPECT_NO_THROW(ncollapse::measure(moments, {.train = &counts}));
  for (auto* values : {&counts.samples, &counts.correct_centre, &counts.correct_classifier, &counts.agree}) {
    *values = three;
    refused(counts);
    *values = {};
    refused(counts);
    *values = four;
  }
  for (auto* hits : {&counts.correct_centre, &counts.correct_classifier, &counts.agree})
    for (const Index wrong : {-1, 2}) {  // among one sample
      (*hits)[2] = wrong;
      refused(counts);
      (*hits)[2] = 1;
    }
}

TEST_P(BadInput, OptionsThatStandForNothing) {
  AccumulatorOptions options;
  options.classes = options.dim = 2;
  options.statistics = static_cast<ncollapse::Statistics>(7);
  EXPECT_THROW(Accumulator(context(), options), UsageError);
  options.statistics = ncollapse::Statistics::full;
  options.precision = static_cast<ncollapse::Precision>(7);
  EXPECT_THROW(Accumulator(context(), options), UsageError);
}

TEST_P(BadInput, BatchesThatFitNoMemory) {
  if (context().info().device.type != ncollapse::DeviceType::cpu) GTEST_SKIP() << "its rows would be looked for";
  const Samples samples = some_samples(61);
  Accumulator moments = accumulate(context(), samples);
  const Index rows = Index{1} << 61;
  EXPECT_THROW(moments.add(ncollapse::view(samples.values.data(), rows, 6),
                           {samples.labels.data(), ncollapse::LabelType::i64, rows}),
               ncollapse::MemoryError);
  EXPECT_EQ(moments.samples(), samples.rows());
  EXPECT_THROW(Accumulator(context(), {.classes = Index{1} << 40, .dim = Index{1} << 40}), ncollapse::MemoryError);
}

static_assert(!std::is_reference_v<decltype(std::declval<ClassMoments>().counts())>);
static_assert(!std::is_reference_v<decltype(std::declval<ClassMoments>().within_variances())>);

TEST_P(BadInput, MomentsThatAreGoneLeaveTheirCounts) {
  const Samples samples = some_samples(61);
  Index sum = 0;
  for (const Index count : moments_of(context(), samples).counts()) sum += count;
  EXPECT_EQ(sum, samples.rows());
  double variance = 0;
  for (const double value : moments_of(context(), samples).within_variances()) variance += value;
  EXPECT_TRUE(variance > 0);
}

TEST_P(BadInput, SumsBeyondDoubleOfMeansAlone) {
  const Samples samples{2, 1, {1.7e308, 1, -1.7e308}, {0, 1, 0}};
  AccumulatorOptions options = options_for(samples);
  options.statistics = Statistics::means;
  Accumulator accumulator(context(), options);
  EXPECT_THROW(
      {
        add_samples(accumulator, samples);
        accumulator.finish();
      },
      DataError);
}

TEST_P(BadInput, ClassifiersTooLargeToMeasure) {
  const ClassMoments moments = moments_of(context(), some_samples(65));
  Head head = random_head(4, 6, 66);
  ncollapse::Evidence evidence;
  const auto etf = [&](double scale) {
    Head scaled = head;
    for (double& w : scaled.weights) w *= scale;
    const ncollapse::Classifier classifier = scaled.classifier();
    evidence.classifier = &classifier;
    return ncollapse::measure(moments, evidence).find("nc2_etf_w").value_or(kNan);
  };
  const double want = etf(1);
  EXPECT_NEAR(etf(1e60), want, 1e-13);
  EXPECT_NEAR(etf(1e-60), want, 1e-13);
  EXPECT_THROW(etf(1e80), DataError);  // its fourth power is no number
  EXPECT_THROW(etf(1e140), DataError);

  // A product of layers each of which is small enough.
  Head first = random_head(5, 6, 67), last = random_head(4, 5, 68);
  for (Head* layer : {&first, &last})
    for (double& w : layer->weights) w *= 1e50;
  const ncollapse::Classifier product{
      {ncollapse::view(first.weights.data(), 5, 6), ncollapse::view(last.weights.data(), 4, 5)}, {}};
  evidence.classifier = &product;
  EXPECT_THROW(ncollapse::measure(moments, evidence), DataError);
}

TEST_P(BadInput, LengthsWhoseProductsVanishOrOverflow) {
  for (const double scale : {1e-300, 1e-200, 1e-100, 1e-50, 1e50, 1e100}) {
    SCOPED_TRACE(scale);
    Samples samples = some_samples(69);
    for (double& x : samples.values) x *= scale;
    const ClassMoments moments = moments_of(context(), samples);
    Head head = random_head(4, 6, 70);
    for (double& w : head.weights) w *= scale;
    const ncollapse::Classifier classifier = head.classifier();
    const ClassMoments usual = moments_of(context(), some_samples(69));
    const auto decide = [&] { ncollapse::DecisionCounter counter(moments, nullptr); };
    const auto measure_means = [&] { ncollapse::measure(moments); };
    const auto measure_weights = [&] { ncollapse::measure(usual, {.classifier = &classifier}); };
    if (std::abs(std::log10(scale)) < 60) {
      EXPECT_NO_THROW(decide());
      EXPECT_NO_THROW(measure_means());
      EXPECT_NO_THROW(measure_weights());
    } else {
      EXPECT_THROW(decide(), DataError);
      EXPECT_THROW(measure_means(), DataError);
      EXPECT_THROW(measure_weights(), DataError);
    }
  }
}

TEST_P(BadInput, EvidenceThatDoesNotFit) {
  const Samples samples = some_samples(63), others = make_samples({{5, 6, 7}, 6, {0.5}, 1.0, 0.0, 64});
  const ClassMoments moments = moments_of(context(), samples), other_moments = moments_of(context(), others);
  const DecisionCounts counts = count_decisions(other_moments, {}, others);  // three classes instead of four
  ncollapse::Evidence evidence;
  evidence.train = &counts;
  EXPECT_THROW(ncollapse::measure(moments, evidence), UsageError);
  evidence = {};
  evidence.test = &counts;
  EXPECT_THROW(ncollapse::measure(moments, evidence), UsageError);
  evidence = {};
  const std::vector<double> ood_mean(5, 1.0);
  evidence.ood_mean = &ood_mean;
  EXPECT_THROW(ncollapse::measure(moments, evidence), UsageError);
}

TEST_P(BadInput, WeightDecaysThatAreNoPair) {
  const ClassMoments moments = moments_of(context(), make_samples({{5, 6, 7}, 6, {0.5}, 1.0, 0.0, 64}));
  const std::vector<double> weights(3 * 6, 0.5);
  const ncollapse::Classifier head{.layers = {ncollapse::view(weights.data(), 3, 6)}};
  EXPECT_TRUE(ncollapse::measure(moments, {.classifier = &head, .lambda_w = {1e-3}, .lambda_h = 1e-3}).find("gof_w"));
  EXPECT_THROW(ncollapse::measure(moments, {.classifier = &head, .lambda_w = {1e-3}}), UsageError);
  EXPECT_THROW(ncollapse::measure(moments, {.classifier = &head, .lambda_h = 1e-3}), UsageError);
  EXPECT_THROW(ncollapse::measure(moments, {.lambda_w = {1e-3}, .lambda_h = 1e-3}), UsageError);
  const Samples two_of_three{3, 6, std::vector<double>(6 * 6, 0.25), {0, 2, 0, 2, 0, 2}};
  const ClassMoments without_one = moments_of(context(), two_of_three);
  EXPECT_THROW(ncollapse::measure(without_one, {.classifier = &head, .lambda_w = {1e-3, 1e-3}, .lambda_h = 1e-3}),
               UsageError);
  for (const double wrong : {-1e-3, kNan, kInfinity}) {
    EXPECT_THROW(ncollapse::measure(without_one, {.classifier = &head, .lambda_w = {wrong}, .lambda_h = 1e-3}),
                 UsageError);
    EXPECT_THROW(ncollapse::measure(moments, {.classifier = &head, .lambda_w = {1e-3}, .lambda_h = wrong}), UsageError);
    EXPECT_THROW(ncollapse::measure(moments, {.classifier = &head, .lambda_w = {wrong}, .lambda_h = 1e-3}), UsageError);
  }
}

TEST_P(BadInput, FewerThanTwoClassesCannotBeMeasured) {
  EXPECT_THROW(ncollapse::measure(moments_of(context(), Samples{3, 2, {1, 2, 3, 4}, {1, 1}})), DataError);
  EXPECT_THROW(ncollapse::measure(moments_of(context(), Samples{1, 2, {1, 2, 3, 4}, {0, 0}})), DataError);
  AccumulatorOptions options;
  options.classes = 2;
  options.dim = 2;
  try {
    ncollapse::measure(Accumulator(context(), options).finish());
    ADD_FAILURE() << "nothing was thrown";
  } catch (const DataError& error) {
    EXPECT_EQ(std::string(error.what()), "none of 2 classes has samples");
  }
}

}  // namespace
}  // namespace ncollapse_test
