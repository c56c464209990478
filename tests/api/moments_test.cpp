// Accumulator and ClassMoments: counts, means, variances and the pooled scatter of every shape and type of input.
#include <cmath>
#include <limits>

#include "host/backend.hpp"
#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

using ncollapse::DataError;
using ncollapse::LabelView;
using ncollapse::MatrixView;
using ncollapse::Statistics;
using ncollapse::UsageError;

class Moments : public OnDevice {};
NCOLLAPSE_ON_EVERY_DEVICE(Moments);

/// Means against the size of the features, variances and scatter against their own scale.
void expect_moments(const ClassMoments& got, const oracle::Moments& want, double relative = kRounding) {
  EXPECT_EQ(got.counts(), want.counts);
  EXPECT_EQ(got.classes_seen(), static_cast<Index>(want.seen.size()));
  const Index K = want.means.rows, d = want.means.cols;
  const std::vector<double> means = got.means(), scatter = got.within_scatter();
  ASSERT_EQ(means.size(), at(K * d));
  ASSERT_EQ(scatter.size(), at(d * d));
  ASSERT_EQ(got.within_variances().size(), at(K));
  double largest = 0;
  for (oracle::Real m : want.means.values) largest = std::max(largest, static_cast<double>(std::abs(m)));
  for (Index k = 0; k < K; ++k) {
    expect_close(got.within_variances()[at(k)], static_cast<double>(want.variances[at(k)]), relative, 0, "variance");
    for (Index j = 0; j < d; ++j)
      expect_close(means[at(k * d + j)], static_cast<double>(want.means(k, j)), 0, relative * largest, "mean");
  }
  for (Index i = 0; i < d; ++i)
    for (Index j = 0; j < d; ++j) {
      const auto scale = std::sqrt(want.scatter(i, i) * want.scatter(j, j));
      expect_close(scatter[at(i * d + j)], static_cast<double>(want.scatter(i, j)), 0,
                   relative * static_cast<double>(scale), "scatter");
    }
}

TEST_P(Moments, TwoClassesOnALine) {
  Samples samples{2, 1, {0, 9, 2, 11, 10}, {0, 1, 0, 1, 1}};
  const ClassMoments moments = moments_of(context(), samples);
  EXPECT_EQ(moments.classes(), 2);
  EXPECT_EQ(moments.dim(), 1);
  EXPECT_EQ(moments.samples(), 5);
  EXPECT_EQ(moments.classes_seen(), 2);
  EXPECT_EQ(moments.statistics(), Statistics::full);
  EXPECT_EQ(moments.counts(), (std::vector<Index>{2, 3}));
  EXPECT_EQ(moments.means(), (std::vector<double>{1, 10}));
  EXPECT_EQ(moments.within_variances()[0], 1.0);
  expect_close(moments.within_variances()[1], 2.0 / 3, 4e-16, 0);
  EXPECT_EQ(moments.within_scatter(), (std::vector<double>{4}));
}

TEST_P(Moments, ScatterOfAPlaneIsFullAndSymmetric) {
  Samples samples{1, 2, {1, 2, 3, 8, 5, 2}, {0, 0, 0}};  // mean (3, 4)
  const ClassMoments moments = moments_of(context(), samples);
  Samples tilted{1, 2, {0, 0, 2, 1, 4, 2}, {0, 0, 0}};
  const std::vector<double> want = {8, 0, 0, 24}, got = moments.within_scatter();
  const std::vector<double> want_tilted = {8, 4, 4, 2}, got_tilted = moments_of(context(), tilted).within_scatter();
  for (std::size_t i = 0; i < 4; ++i) {
    expect_close(got[i], want[i], 0, 2e-14);
    expect_close(got_tilted[i], want_tilted[i], 0, 2e-14);
  }
  EXPECT_EQ(got_tilted[1], got_tilted[2]);
}

TEST_P(Moments, AwkwardShapesAgreeWithTheOracle) {
  const std::vector<Recipe> recipes = {
      {{3, 4}, 1},                                // K = 2, d = 1
      {{5, 1, 7}, 2},                             // one sample in a class
      {{0, 6, 5}, 3},                             // absent at the start,
      {{6, 0, 0, 5}, 3},                          // in the middle,
      {{6, 5, 0}, 3},                             // at the end
      {{9, 8, 7, 6, 5, 4, 3, 2, 1, 9, 8, 7}, 4},  // K > d
      {{40, 50}, 33},                             // d just above 32
      {{31, 32, 33, 64, 65}, 65},                 //
      {{20, 30}, 129},                            //
      {{6, 4, 2}, 257},                           // d > N
      {{3000, 1, 500}, 5},                        // long runs of one class
      {std::vector<Index>(300, 3), 7},            // many small classes
      {{1, 1, 1, 1}, 6},                          // only single samples
  };
  for (Recipe recipe : recipes) {
    SCOPED_TRACE("K = " + std::to_string(recipe.counts.size()) + ", d = " + std::to_string(recipe.dim));
    recipe.noise = {0.3, 1.0, 0.1};
    recipe.seed = static_cast<unsigned>(recipe.dim + 100);
    const Samples samples = make_samples(recipe);
    expect_moments(moments_of(context(), samples), oracle::moments(samples.truth()));
  }
}

TEST_P(Moments, EveryElementTypeAndStride) {
  const Recipe recipe{{30, 5, 1, 44}, 35, {0.5, 0.1}, 1.0, 0.0, 3};
  for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16}) {
    SCOPED_TRACE(std::string(ncollapse::to_string(dtype)));
    const Samples samples = rounded(make_samples(recipe), dtype);
    const ClassMoments exact = moments_of(context(), samples);  // the same values as f64
    expect_moments(exact, oracle::moments(samples.truth()));
    for (Index stride : {0, 36, 40, 64}) {
      SCOPED_TRACE("stride " + std::to_string(stride));
      const Encoded features = encode(samples.values, samples.rows(), samples.dim, dtype, stride);
      Accumulator accumulator(context(), options_for(samples));
      accumulator.add(features.view(), label_view(samples.labels, 0, samples.rows()));
      expect_moments(accumulator.finish(), oracle::moments(samples.truth()));
    }
  }
}

TEST_P(Moments, RowsThatStartAtOddAddresses) {
  // Sixteen-bit rows of odd length from an odd element on: no vector load may assume alignment.
  const Samples samples = rounded(make_samples({{30, 21}, 13, {0.5}, 1.0, 0.0, 4}), Dtype::bf16);
  const Encoded features = encode(samples.values, samples.rows(), samples.dim, Dtype::bf16);
  Accumulator accumulator(context(), options_for(samples));
  for (Index first : {0, 1, 2, 17})
    accumulator.add(features.view(first, first < 2    ? 1
                                         : first == 2 ? 15
                                                      : samples.rows() - 17),
                    label_view(samples.labels, first,
                               first < 2    ? 1
                               : first == 2 ? 15
                                            : samples.rows() - 17));
  expect_moments(accumulator.finish(), oracle::moments(samples.truth()));
}

TEST_P(Moments, EveryLabelTypeGivesTheSameBits) {
  const Samples samples = make_samples({{30, 5, 0, 44}, 6, {0.5}, 1.0, 0.0, 5});
  const std::vector<std::int32_t> narrow(samples.labels.begin(), samples.labels.end());
  const std::vector<std::uint8_t> bytes(samples.labels.begin(), samples.labels.end());
  const auto run = [&](const LabelView& labels) {
    Accumulator accumulator(context(), options_for(samples));
    accumulator.add(encode(samples.values, samples.rows(), 6, Dtype::f64).view(), labels);
    return accumulator.finish();
  };
  const ClassMoments want = run(label_view(samples.labels, 0, samples.rows()));
  expect_same_bits(run(ncollapse::view(narrow.data(), samples.rows())), want);
  expect_same_bits(run(ncollapse::view(bytes.data(), samples.rows())), want);
}

TEST_P(Moments, SubnormalAndHugeElementsKeepTheirValue) {
  struct Case {
    Dtype dtype;
    std::vector<std::uint16_t> bits;
  };
  const std::vector<Case> cases = {{Dtype::f16, {0x0001, 0x03ff, 0x8001, 0x0400, 0x7bff, 0xfbff, 0x8000}},
                                   {Dtype::bf16, {0x0001, 0x007f, 0x8001, 0x0080, 0x7f7f, 0xff7f, 0x8000}}};
  for (const Case& c : cases) {
    const auto n = static_cast<Index>(c.bits.size());
    std::vector<std::int64_t> labels(c.bits.size());
    for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<std::int64_t>(i);
    AccumulatorOptions options;
    options.classes = n;
    options.dim = 1;
    Accumulator accumulator(context(), options);
    accumulator.add({c.bits.data(), c.dtype, n, 1, 0, ncollapse::MemorySpace::host}, label_view(labels, 0, n));
    const std::vector<double> means = accumulator.finish().means();
    for (std::size_t i = 0; i < labels.size(); ++i) EXPECT_EQ(means[i], decode16(c.bits[i], c.dtype)) << c.bits[i];
  }
  const std::vector<float> tiny = {std::numeric_limits<float>::denorm_min(), -1e-40F,
                                   std::numeric_limits<float>::max()};
  const std::vector<std::int64_t> labels = {0, 1, 2};
  AccumulatorOptions options;
  options.classes = 3;
  options.dim = 1;
  Accumulator accumulator(context(), options);
  accumulator.add(ncollapse::view(tiny.data(), 3, 1), label_view(labels, 0, 3));
  EXPECT_EQ(accumulator.finish().means(), (std::vector<double>(tiny.begin(), tiny.end())));
}

TEST_P(Moments, NoRowsChangeNothing) {
  const Samples samples = make_samples({{5, 6}, 3, {0.5}, 1.0, 0.0, 6});
  Accumulator accumulator(context(), options_for(samples));
  EXPECT_EQ(accumulator.samples(), 0);
  const MatrixView nothing{nullptr, Dtype::f32, 0, 3, 0, ncollapse::MemorySpace::host};
  accumulator.add(nothing, LabelView{});
  EXPECT_EQ(accumulator.samples(), 0);
  EXPECT_EQ(accumulator.finish().counts(), (std::vector<Index>{0, 0}));
  EXPECT_EQ(accumulator.finish().classes_seen(), 0);
  EXPECT_EQ(accumulator.finish().means(), std::vector<double>(6, 0.0));
  EXPECT_EQ(accumulator.finish().within_scatter(), std::vector<double>(9, 0.0));

  add_samples(accumulator, samples);
  EXPECT_EQ(accumulator.samples(), 11);
  const ClassMoments before = accumulator.finish();
  accumulator.add(nothing, LabelView{});
  EXPECT_EQ(accumulator.samples(), 11);
  expect_same_bits(accumulator.finish(), before);
}

TEST_P(Moments, SingleAndConstantSamplesHaveExactlyNoVariance) {
  Samples samples = make_samples({{1, 1, 1, 1, 1}, 9, {1.0}, 1.0, 0.0, 7});
  for (int repeat = 0; repeat < 3; ++repeat) {
    const ClassMoments moments = moments_of(context(), samples);
    EXPECT_EQ(moments.means().size(), 45U);
    for (double v : moments.within_variances()) EXPECT_EQ(v, 0.0);
    for (double s : moments.within_scatter()) EXPECT_EQ(s, 0.0);
    // The same vectors once more: values that are no short binary fractions, many times over.
    const Samples copy = samples;
    samples.values.insert(samples.values.end(), copy.values.begin(), copy.values.end());
    samples.labels.insert(samples.labels.end(), copy.labels.begin(), copy.labels.end());
  }
}

TEST_P(Moments, AFinishedResultDoesNotFollowLaterSamples) {
  const Samples samples = make_samples({{50, 60}, 5, {0.5}, 1.0, 0.0, 8});
  Accumulator accumulator = accumulate(context(), samples);
  const ClassMoments first = accumulator.finish();
  const std::vector<double> means = first.means(), scatter = first.within_scatter();
  add_samples(accumulator, samples);
  EXPECT_EQ(first.samples(), 110);
  EXPECT_TRUE(same_bits(first.means(), means));
  EXPECT_TRUE(same_bits(first.within_scatter(), scatter));
  const ClassMoments second = accumulator.finish();
  EXPECT_EQ(second.samples(), 220);
  for (std::size_t i = 0; i < scatter.size(); ++i)
    expect_close(second.within_scatter()[i], 2 * scatter[i], kOrder, kOrder * scatter[0]);
}

TEST_P(Moments, TheAccumulatorOutlivesTheContextAndMoves) {
  const Samples samples = make_samples({{50, 60}, 5, {0.5}, 1.0, 0.0, 9});
  std::optional<ClassMoments> moments;
  {
    const Context own(ncollapse::Device::parse(GetParam()));
    Accumulator first = accumulate(own, samples);
    Accumulator second = std::move(first);
    EXPECT_EQ(second.options().dim, 5);
    moments = second.finish();
  }
  expect_moments(*moments, oracle::moments(samples.truth()));
  EXPECT_EQ(moments->context().info().device, ncollapse::Device::parse(GetParam()));
}

TEST_P(Moments, LowerStatisticsKeepTheirPartAndRefuseTheRest) {
  const Samples samples = make_samples({{50, 0, 60}, 5, {0.5}, 1.0, 0.0, 10});
  const oracle::Moments want = oracle::moments(samples.truth());
  for (Statistics statistics : {Statistics::means, Statistics::traces}) {
    AccumulatorOptions options = options_for(samples);
    options.statistics = statistics;
    Accumulator accumulator(context(), options);
    add_samples(accumulator, samples, 7);
    const ClassMoments moments = accumulator.finish();
    EXPECT_EQ(moments.statistics(), statistics);
    EXPECT_EQ(moments.counts(), want.counts);
    const std::vector<double> means = moments.means();
    for (std::size_t i = 0; i < means.size(); ++i)
      expect_close(means[i], static_cast<double>(want.means.values[i]), kOrder, kZero);
    EXPECT_THROW(moments.within_scatter(), UsageError);
    if (statistics == Statistics::means) {
      EXPECT_THROW(moments.within_variances(), UsageError);
    } else {
      for (std::size_t k = 0; k < 3; ++k)
        expect_close(moments.within_variances()[k], static_cast<double>(want.variances[k]), kOrder, 0);
    }
  }
}

TEST_P(Moments, ScatterWeightsWeighTheScatterOnly) {
  const Samples samples = make_samples({{50, 7, 60}, 4, {0.5, 2.0}, 1.0, 0.0, 12});
  AccumulatorOptions options = options_for(samples);
  options.scatter_weights = {0.25, 3.0, 1e-3};
  Accumulator accumulator(context(), options);
  add_samples(accumulator, samples, 11);
  const ClassMoments moments = accumulator.finish();
  const oracle::Moments want = oracle::moments(samples.truth());
  for (std::size_t k = 0; k < 3; ++k)
    expect_close(moments.within_variances()[k], static_cast<double>(want.variances[k]), kOrder, 0);

  std::vector<double> weighted(16, 0.0);
  double trace = 0;
  for (Index k = 0; k < 3; ++k) {
    Samples one{3, 4, {}, {}};
    for (Index i = 0; i < samples.rows(); ++i)
      if (samples.labels[at(i)] == k)
        one.add(k, {samples.values.begin() + i * 4, samples.values.begin() + (i + 1) * 4});
    const oracle::Moments of_class = oracle::moments(one.truth());
    for (std::size_t i = 0; i < 16; ++i)
      weighted[i] += options.scatter_weights[at(k)] * static_cast<double>(of_class.scatter.values[i]);
  }
  for (std::size_t i = 0; i < 4; ++i) trace += weighted[5 * i];
  for (std::size_t i = 0; i < 16; ++i)
    expect_close(moments.within_scatter()[i], weighted[i], 0, kOrder * trace, "scatter");
}

TEST_P(Moments, UnusableOptionsAreRefused) {
  const auto open = [&](Index classes, Index dim, std::vector<double> weights) {
    AccumulatorOptions options;
    options.classes = classes;
    options.dim = dim;
    options.scatter_weights = std::move(weights);
    const Accumulator accumulator(context(), options);
  };
  EXPECT_NO_THROW(open(2, 1, {1, 2}));
  EXPECT_THROW(open(0, 1, {}), UsageError);
  EXPECT_THROW(open(-3, 1, {}), UsageError);
  EXPECT_THROW(open(2, 0, {}), UsageError);
  EXPECT_THROW(open(2, -1, {}), UsageError);
  EXPECT_THROW(open(2, 1, {1}), UsageError);
  EXPECT_THROW(open(2, 1, {1, 2, 3}), UsageError);
  EXPECT_THROW(open(2, 1, {1, 0}), UsageError);
  EXPECT_THROW(open(2, 1, {1, -1}), UsageError);
  EXPECT_THROW(open(2, 1, {1, std::numeric_limits<double>::quiet_NaN()}), UsageError);
  EXPECT_THROW(open(2, 1, {1, std::numeric_limits<double>::infinity()}), UsageError);
}

TEST_P(Moments, DeviceMemoryGivesTheBitsOfHostMemory) {
  if (context().info().device.type != ncollapse::DeviceType::cuda)
    GTEST_SKIP() << "device memory belongs to a GPU; this is " << GetParam();
  const auto& backend = context().backend();
  for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16}) {
    const Samples samples = rounded(make_samples({{30, 5, 1, 44}, 35, {0.5, 0.1}, 1.0, 0.0, 13}), dtype);
    const Encoded host = encode(samples.values, samples.rows(), samples.dim, dtype, 37);
    const auto features = backend->allocate(static_cast<Index>(host.bytes.size()));
    const auto labels = backend->allocate(samples.rows() * 8);
    backend->upload(features.get(), host.bytes.data(), static_cast<Index>(host.bytes.size()));
    backend->upload(labels.get(), samples.labels.data(), samples.rows() * 8);
    MatrixView device_features = host.view();
    device_features.data = features.get();
    device_features.space = ncollapse::MemorySpace::device;
    LabelView device_labels = label_view(samples.labels, 0, samples.rows());
    device_labels.data = labels.get();
    device_labels.space = ncollapse::MemorySpace::device;
    Accumulator from_device(context(), options_for(samples)), from_host(context(), options_for(samples));
    from_device.add(device_features, device_labels);
    from_host.add(host.view(), label_view(samples.labels, 0, samples.rows()));
    expect_same_bits(from_device.finish(), from_host.finish());
    expect_moments(from_device.finish(), oracle::moments(samples.truth()));
  }
}

}  // namespace
}  // namespace ncollapse_test
