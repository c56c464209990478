// Order, batches, merging: the result belongs to the samples, not to the way they came.
#include <algorithm>

#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

using ncollapse::Statistics;
using ncollapse::UsageError;

class Streaming : public OnDevice {};
NCOLLAPSE_ON_EVERY_DEVICE(Streaming);

/// More rows than one batch of 4096, well-conditioned, noise as large as the differences of the means.
Problem long_problem() {
  Problem problem = typical_problem();
  problem.train = make_samples({{2500, 1, 17, 1033, 408, 90, 925}, 12, {0.2, 0.5, 1.0}, 1.0, 0.3, 21});
  return problem;
}

TEST_P(Streaming, BatchSizesAgree) {
  const Problem problem = long_problem();
  const Report whole = measure_with(moments_of(context(), problem.train), problem);
  expect_report(whole, Truth(problem), Convention::zhu, kRounding, kZero);
  for (Index batch : {Index(1), Index(7), Index(4096)}) {
    SCOPED_TRACE("batches of " + std::to_string(batch));
    const ClassMoments moments = accumulate(context(), problem.train, batch).finish();
    EXPECT_EQ(moments.samples(), problem.train.rows());
    expect_same_metrics(measure_with(moments, problem, Convention::zhu, batch), whole, kOrder, kZero);
  }
}

TEST_P(Streaming, RowOrdersAgree) {
  Problem problem = long_problem();
  const Report whole = measure_problem(context(), problem);
  const Samples original = problem.train;
  std::vector<Index> sorted = shuffled_order(original.rows(), 0);
  std::sort(sorted.begin(), sorted.end(), [&](Index a, Index b) {
    return original.labels[at(a)] != original.labels[at(b)] ? original.labels[at(a)] < original.labels[at(b)] : a < b;
  });
  std::vector<std::vector<Index>> orders = {sorted, {sorted.rbegin(), sorted.rend()}};
  for (unsigned seed : {1U, 2U, 3U}) orders.push_back(shuffled_order(original.rows(), seed));
  for (const auto& order : orders) {
    problem.train = reordered(original, order);
    expect_same_metrics(measure_problem(context(), problem), whole, kOrder, kZero);
  }
}

TEST_P(Streaming, TheSameInputGivesTheSameBits) {
  const Problem problem = long_problem();
  const ClassMoments first = accumulate(context(), problem.train, 500).finish();
  const ClassMoments second = accumulate(context(), problem.train, 500).finish();
  expect_same_bits(first, second);
  expect_same_bits(measure_with(first, problem), measure_with(second, problem));
  expect_same_bits(measure_with(first, problem), measure_with(first, problem));
}

// Rows enough for many blocks of a GPU at a time, and everything anew in each run: sums, scatter in both precisions,
// decisions, every metric.
TEST_P(Streaming, AHundredRunsGiveTheSameBits) {
  constexpr int kRuns = 100;
  constexpr Index kDim = 64;
  const Samples samples = rounded(
      make_samples({{5000, 2500, 1200, 600, 300, 150, 70, 30, 9, 1}, kDim, {0.5, 2.0}, 1.0, 0.0, 22}), Dtype::bf16);
  const Encoded features = encode(samples.values, samples.rows(), kDim, Dtype::bf16);
  const auto labels = label_view(samples.labels, 0, samples.rows());
  const Head head = random_head(samples.classes, kDim, 23);
  const ncollapse::Classifier classifier = head.classifier();
  for (const auto precision : {ncollapse::Precision::exact, ncollapse::Precision::fast}) {
    AccumulatorOptions options = options_for(samples);
    options.precision = precision;
    std::optional<ClassMoments> first;
    DecisionCounts decided;
    Report report;
    for (int run = 0; run < kRuns && !HasFailure(); ++run) {
      SCOPED_TRACE(std::string(to_string(precision)) + ", run " + std::to_string(run));
      Accumulator sums(context(), options);
      sums.add(features.view(), labels);
      const ClassMoments moments = sums.finish();
      ncollapse::DecisionCounter counter(moments, &classifier);
      counter.add(features.view(), labels);
      const DecisionCounts decisions = counter.finish();
      const Report found = measure(moments, {.classifier = &classifier, .train = &decisions});
      if (!first) {
        first = moments;
        decided = decisions;
        report = found;
      }
      expect_same_bits(moments, *first);
      EXPECT_EQ(decisions.correct_centre, decided.correct_centre);
      EXPECT_EQ(decisions.correct_classifier, decided.correct_classifier);
      EXPECT_EQ(decisions.agree, decided.agree);
      expect_same_bits(found, report);
    }
  }
}

/// Five parts: one whole of mixed classes, one with few classes, one with a single class, one empty, and the rest.
std::vector<Samples> five_shards(const Samples& samples) {
  std::vector<std::vector<Index>> rows(5);
  for (Index i = 0; i < samples.rows(); ++i) {
    const auto label = samples.labels[at(i)];
    if (i % 3 == 0)
      rows[0].push_back(i);
    else if (label == 3 || label == 5)
      rows[1].push_back(i);
    else if (label == 0 && i % 3 == 1)
      rows[2].push_back(i);
    else
      rows[4].push_back(i);  // rows[3] stays empty
  }
  std::vector<Samples> shards;
  for (const auto& part : rows) shards.push_back(reordered(samples, part));
  return shards;
}

TEST_P(Streaming, ShardsMergeInAnyOrder) {
  const Problem problem = long_problem();
  const Report whole = measure_problem(context(), problem);
  std::vector<Accumulator> shards;
  for (const Samples& part : five_shards(problem.train)) shards.push_back(accumulate(context(), part, 300));
  const auto fresh = [&] { return Accumulator(context(), options_for(problem.train)); };
  const auto check = [&](const Accumulator& merged) {
    EXPECT_EQ(merged.samples(), problem.train.rows());
    const ClassMoments moments = merged.finish();
    EXPECT_EQ(moments.samples(), problem.train.rows());
    expect_same_metrics(measure_with(moments, problem), whole, kOrder, kZero);
  };
  for (const std::vector<int>& order :
       std::vector<std::vector<int>>{{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {3, 2, 4, 0, 1}, {1, 4, 0, 3, 2}}) {
    SCOPED_TRACE("first shard " + std::to_string(order[0]));
    Accumulator merged = fresh();
    for (int shard : order) merged.merge(shards[static_cast<std::size_t>(shard)]);
    check(merged);
  }
  Accumulator left = fresh(), right = fresh();  // ((0 1) (2 (3 4)))
  right.merge(shards[3]);
  right.merge(shards[4]);
  shards[2].merge(right);
  left.merge(shards[0]);
  left.merge(shards[1]);
  left.merge(shards[2]);
  check(left);
}

TEST_P(Streaming, SamplesAfterAMergeCount) {
  const Problem problem = long_problem();
  const auto shards = five_shards(problem.train);
  Accumulator merged = accumulate(context(), shards[0]);
  merged.merge(accumulate(context(), shards[1]));
  add_samples(merged, shards[2], 100);
  merged.merge(accumulate(context(), shards[4]));
  expect_same_metrics(measure_with(merged.finish(), problem), measure_problem(context(), problem), kOrder, kZero);
}

TEST_P(Streaming, MergingNothingKeepsTheBits) {
  const Samples samples = make_samples({{50, 0, 60}, 5, {0.5}, 1.0, 0.0, 22});
  Accumulator accumulator = accumulate(context(), samples);
  const ClassMoments before = accumulator.finish();
  accumulator.merge(Accumulator(context(), options_for(samples)));
  expect_same_bits(accumulator.finish(), before);
}

TEST_P(Streaming, MergingLeavesTheOtherAsItWas) {
  const Samples samples = make_samples({{50, 4, 60}, 5, {0.5}, 1.0, 0.0, 23});
  const Accumulator other = accumulate(context(), samples);
  const ClassMoments before = other.finish();
  Accumulator target = accumulate(context(), reordered(samples, shuffled_order(samples.rows(), 5)));
  target.merge(other);
  add_samples(target, samples);
  EXPECT_EQ(other.samples(), samples.rows());
  expect_same_bits(other.finish(), before);
}

TEST_P(Streaming, MergingWithItselfDoubles) {
  const Samples samples = make_samples({{50, 4, 60}, 5, {0.5}, 1.0, 0.0, 24});
  Accumulator accumulator = accumulate(context(), samples);
  const ClassMoments before = accumulator.finish();
  accumulator.merge(accumulator);
  const ClassMoments after = accumulator.finish();
  EXPECT_EQ(after.counts(), (std::vector<Index>{100, 8, 120}));
  for (std::size_t i = 0; i < 15; ++i) expect_close(after.means()[i], before.means()[i], kOrder, kZero);
  for (std::size_t k = 0; k < 3; ++k)
    expect_close(after.within_variances()[k], before.within_variances()[k], kOrder, 0);
  double trace = 0;
  for (std::size_t j = 0; j < 5; ++j) trace += before.within_scatter()[6 * j];
  for (std::size_t i = 0; i < 25; ++i)
    expect_close(after.within_scatter()[i], 2 * before.within_scatter()[i], kOrder, kOrder * trace);
}

TEST_P(Streaming, LowerStatisticsMergeToo) {
  const Samples samples = make_samples({{50, 4, 60}, 5, {0.5}, 1.0, 0.0, 25});
  for (Statistics statistics : {Statistics::means, Statistics::traces}) {
    AccumulatorOptions options = options_for(samples);
    options.statistics = statistics;
    Accumulator whole(context(), options), first(context(), options), second(context(), options);
    add_samples(whole, samples);
    const auto [head, tail] = split(samples, {20, 4, 1});
    add_samples(first, head);
    add_samples(second, tail);
    first.merge(second);
    const ClassMoments got = first.finish(), want = whole.finish();
    EXPECT_EQ(got.counts(), want.counts());
    for (std::size_t i = 0; i < 15; ++i) expect_close(got.means()[i], want.means()[i], kOrder, kZero);
    if (statistics == Statistics::traces)
      for (std::size_t k = 0; k < 3; ++k)
        expect_close(got.within_variances()[k], want.within_variances()[k], kOrder, 0);
  }
}

TEST_P(Streaming, WeightedScattersMerge) {
  const Samples samples = make_samples({{50, 4, 60}, 5, {0.5}, 1.0, 0.0, 26});
  AccumulatorOptions options = options_for(samples);
  options.scatter_weights = inverse_counts(samples);
  Accumulator whole(context(), options), first(context(), options), second(context(), options);
  add_samples(whole, samples);
  const auto [head, tail] = split(samples, {20, 4, 1});
  add_samples(first, head);
  add_samples(second, tail);
  second.merge(first);
  const std::vector<double> got = second.finish().within_scatter(), want = whole.finish().within_scatter();
  for (std::size_t i = 0; i < want.size(); ++i) expect_close(got[i], want[i], kOrder, kOrder * want[0]);
}

TEST_P(Streaming, UnlikeAccumulatorsDoNotMerge) {
  AccumulatorOptions options;
  options.classes = 3;
  options.dim = 4;
  Accumulator accumulator(context(), options);
  const auto refused = [&](AccumulatorOptions other) {
    EXPECT_THROW(accumulator.merge(Accumulator(context(), other)), UsageError);
  };
  AccumulatorOptions other = options;
  other.classes = 4;
  refused(other);
  other = options;
  other.dim = 5;
  refused(other);
  other = options;
  other.statistics = Statistics::traces;
  refused(other);
  other = options;
  other.scatter_weights = {1, 2, 3};
  refused(other);
  EXPECT_NO_THROW(accumulator.merge(Accumulator(context(), options)));
}

TEST_P(Streaming, ShardsOfOtherDevicesMerge) {
  if (GetParam() == "cpu") GTEST_SKIP() << "needs a second device beside the CPU";
  const Problem problem = long_problem();
  const Context cpu(ncollapse::Device::parse("cpu"));
  const auto [head, tail] = split(problem.train, {1000, 0, 10, 1033, 0, 45, 400});
  const Report want = measure_problem(cpu, problem);
  Accumulator here = accumulate(context(), head), there = accumulate(cpu, tail);
  Accumulator onto_cpu = accumulate(cpu, tail);
  onto_cpu.merge(here);
  here.merge(there);
  expect_same_metrics(measure_with(here.finish(), problem), want, kOrder, kZero);
  expect_same_metrics(measure_with(onto_cpu.finish(), problem), want, kOrder, kZero);
}

}  // namespace
}  // namespace ncollapse_test
