// Accumulator::reduce and DecisionCounter::reduce over ranks that are threads, against the whole in one accumulator.
#include <cmath>
#include <limits>

#include "host/exchange.hpp"
#include "tests/api/support.hpp"
#include "tests/io/array_writers.hpp"
#include "tests/ranks/thread_ranks.hpp"

namespace ncollapse_test {
namespace {

using ncollapse::Communicator;
using ncollapse::DecisionCounter;
using ncollapse::ErrorKind;
using ncollapse::Statistics;
using ncollapse::UsageError;

class Reduce : public OnDevice {
 protected:
  /// The moments on every rank; fails when a rank does.
  std::vector<ClassMoments> reduced(const std::vector<Samples>& parts, const AccumulatorOptions& options,
                                    ThreadRanks& ranks, const std::vector<Index>& batches = {3}) const {
    std::vector<std::optional<ClassMoments>> moments(parts.size());
    const auto errors = ranks.run([&](const Communicator& rank) {
      Accumulator accumulator(context(), options);
      add_samples(accumulator, parts[at(rank.rank())], batches[at(rank.rank()) % batches.size()]);
      accumulator.reduce(rank);
      moments[at(rank.rank())].emplace(accumulator.finish());
    });
    for (const auto& error : errors) EXPECT_EQ(message_of(error), "");
    EXPECT_TRUE(ranks.counts_agreed());
    std::vector<ClassMoments> result;
    for (auto& one : moments) result.push_back(one.value());
    return result;
  }
};
NCOLLAPSE_ON_EVERY_DEVICE(Reduce);

/// Contiguous parts, as many as there are ranks; some are empty when there are more ranks than rows.
std::vector<Samples> contiguous(const Samples& samples, int ranks) {
  std::vector<Samples> parts;
  for (Index rank = 0; rank < ranks; ++rank) {
    std::vector<Index> rows;
    for (Index i = samples.rows() * rank / ranks; i < samples.rows() * (rank + 1) / ranks; ++i) rows.push_back(i);
    parts.push_back(reordered(samples, rows));
  }
  return parts;
}

/// Variances to 1e-12 of their own, means and scatter to 1e-12 of their size.
void expect_same_moments(const ClassMoments& got, const ClassMoments& want) {
  EXPECT_EQ(got.counts(), want.counts());
  EXPECT_EQ(got.samples(), want.samples());
  const auto close = [](const std::vector<double>& a, const std::vector<double>& b, const std::string& what) {
    ASSERT_EQ(a.size(), b.size());
    double largest = 0;
    for (const double value : b) largest = std::max(largest, std::abs(value));
    for (std::size_t i = 0; i < a.size(); ++i) expect_close(a[i], b[i], 0, 1e-12 * largest, what);
  };
  close(got.means(), want.means(), "mean");
  if (want.statistics() >= Statistics::traces)
    for (Index k = 0; k < want.classes(); ++k)
      expect_close(got.within_variances()[at(k)], want.within_variances()[at(k)], 1e-12, 0, "variance");
  if (want.statistics() >= Statistics::full) close(got.within_scatter(), want.within_scatter(), "scatter");
}

TEST_P(Reduce, TwoRanksOfOneClassByHand) {
  // {1, 3} and {5, 7, 8}: mean 24/5; sum of squares about it 14.44 + 3.24 + 0.04 + 4.84 + 10.24.
  ThreadRanks ranks(2);
  const std::vector<Samples> parts = {{1, 1, {1, 3}, {0, 0}}, {1, 1, {5, 7, 8}, {0, 0, 0}}};
  for (const ClassMoments& moments : reduced(parts, {1, 1, Statistics::full, {}}, ranks)) {
    EXPECT_EQ(moments.counts(), (std::vector<Index>{5}));
    expect_close(moments.means()[0], 4.8, 2e-15, 0);
    expect_close(moments.within_variances()[0], 32.8 / 5, 4e-15, 0);
    expect_close(moments.within_scatter()[0], 32.8, 4e-15, 0);
  }
}

TEST_P(Reduce, AnyNumberOfRanksGivesTheWhole) {
  const Samples samples = make_samples({{250, 1, 17, 103, 40, 9, 0, 92}, 12, {0.2, 0.5, 1.0}, 1.0, 0.3, 5});
  const ClassMoments whole = moments_of(context(), samples);
  for (const int size : {1, 2, 3, 4, 7}) {
    SCOPED_TRACE(size);
    ThreadRanks ranks(size), again(size);
    const auto parts = contiguous(samples, size);
    const auto moments = reduced(parts, options_for(samples), ranks, {50, 7, 11});
    for (const ClassMoments& one : moments) {
      expect_same_moments(one, whole);
      expect_same_bits(one, moments.front());
    }
    expect_same_bits(reduced(parts, options_for(samples), again, {50, 7, 11}).front(), moments.front());
  }
}

TEST_P(Reduce, SendsMeansTwiceVariancesAndOneTriangle) {
  const Samples samples = make_samples({{5, 6, 7}, 4, {1.0}, 1.0, 0.0, 5});
  const Index K = 3, d = 4;
  for (const auto& [statistics, numbers] :
       {std::pair{Statistics::means, 2 * K * d}, std::pair{Statistics::traces, 2 * K * d + K},
        std::pair{Statistics::full, 2 * K * d + K + d * (d + 1) / 2}}) {
    AccumulatorOptions options = options_for(samples);
    options.statistics = statistics;
    Accumulator all(context(), options);
    add_samples(all, samples);
    ThreadRanks ranks(3);
    for (const ClassMoments& moments : reduced(contiguous(samples, 3), options, ranks))
      expect_same_moments(moments, all.finish());
    EXPECT_EQ(ranks.doubles(), numbers);
  }
}

TEST_P(Reduce, RanksWithoutSamplesAndDisjointClasses) {
  const Samples samples = make_samples({{30, 1, 20, 2}, 5, {0.5}, 1.0, 0.0, 9});
  std::vector<Samples> parts;
  for (Index k = 0; k < 4; ++k) {
    std::vector<Index> rows;
    for (Index i = 0; i < samples.rows(); ++i)
      if (samples.labels[at(i)] == k) rows.push_back(i);
    parts.push_back(reordered(samples, rows));
  }
  const Samples nothing = reordered(samples, {});
  parts.insert(parts.begin(), nothing);
  parts.push_back(nothing);
  ThreadRanks ranks(6);
  const ClassMoments whole = moments_of(context(), samples);
  for (const ClassMoments& moments : reduced(parts, options_for(samples), ranks)) expect_same_moments(moments, whole);

  ThreadRanks empty(3);
  for (const ClassMoments& moments : reduced({nothing, nothing, nothing}, options_for(samples), empty)) {
    EXPECT_EQ(moments.samples(), 0);
    EXPECT_EQ(moments.dtype(), std::nullopt);
    EXPECT_EQ(moments.within_scatter(), std::vector<double>(25, 0.0));
  }
}

TEST_P(Reduce, AllRanksKnowTheCoarsestType) {
  const Samples samples = make_samples({{4, 5}, 3, {0.5}, 1.0, 0.0, 9});
  const std::vector<std::optional<Dtype>> types = {Dtype::f32, std::nullopt, Dtype::f16, Dtype::f64};
  ThreadRanks ranks(4);
  const auto errors = ranks.run([&](const Communicator& rank) {
    Accumulator accumulator(context(), options_for(samples));
    if (const auto& type = types[at(rank.rank())]) add_samples(accumulator, samples, 0, *type);
    accumulator.reduce(rank);
    EXPECT_EQ(accumulator.finish().dtype(), Dtype::f16);
  });
  for (const auto& error : errors) EXPECT_EQ(message_of(error), "");
}

TEST_P(Reduce, SingleSamplesHaveNoVarianceAtAll) {
  // Every class on one rank: nothing is rounded, however large the features are.
  ThreadRanks ranks(2);
  const std::vector<Samples> parts = {{2, 2, {1e200, -1e-7}, {0}}, {2, 2, {0.1, 1e160}, {1}}};
  for (const ClassMoments& moments : reduced(parts, {2, 2, Statistics::full, {}}, ranks)) {
    EXPECT_EQ(moments.means(), (std::vector<double>{1e200, -1e-7, 0.1, 1e160}));
    EXPECT_EQ(moments.within_variances(), (std::vector<double>{0, 0}));
    EXPECT_EQ(moments.within_scatter(), (std::vector<double>{0, 0, 0, 0}));
  }
}

TEST_P(Reduce, CollapsedClassesKeepTheirDigits) {
  // Variance within classes down to 1e-22 of the squared means, far from the origin: what E|x|^2 - |Ex|^2 would lose.
  for (const double noise : {1e-4, 1e-8, 1e-10}) {
    SCOPED_TRACE(noise);
    const Samples samples = make_samples({{200, 30, 5}, 8, {noise}, 1.0, 10.0, 3});
    const ClassMoments whole = moments_of(context(), samples);
    Accumulator twice(context(), options_for(samples));
    for (int i = 0; i < 2; ++i) add_samples(twice, samples);
    ThreadRanks ranks(4);
    const auto parts = contiguous(samples, 4);
    std::vector<std::optional<Accumulator>> sums(4);
    const auto errors = ranks.run([&](const Communicator& rank) {
      Accumulator moments(context(), options_for(samples));
      add_samples(moments, parts[at(rank.rank())], rank.rank() % 2 == 0 ? 1 : 64);
      moments.reduce(rank);
      sums[at(rank.rank())].emplace(std::move(moments));
    });
    for (const auto& error : errors) EXPECT_EQ(message_of(error), "");
    for (auto& sum : sums) {
      expect_same_moments(sum->finish(), whole);
      sum->merge(accumulate(context(), samples));  // what the common mean lost is still there
      expect_same_moments(sum->finish(), twice.finish());
    }
  }
}

TEST_P(Reduce, ScatterIsPositiveSemiDefinite) {
  // Constant features on all ranks but one sample each side: rank one, no negative direction beyond rounding.
  ThreadRanks ranks(2);
  const std::vector<Samples> parts = {{1, 2, {1, 1, 1, 1}, {0, 0}}, {1, 2, {1, 1, 1 + 1e-9, 1 - 1e-9}, {0, 0}}};
  for (const ClassMoments& moments : reduced(parts, {1, 2, Statistics::full, {}}, ranks)) {
    const auto s = moments.within_scatter();
    EXPECT_GT(s[0], 0);
    EXPECT_GT(s[3], 0);
    EXPECT_GE(s[0] * s[3] - s[1] * s[2], -1e-15 * s[0] * s[3]);
    expect_close(s[0], 0.75e-18, 1e-6, 0);  // 3/4 gap^2; 1 + 1e-9 itself is rounded by 1e-16
  }
}

TEST_P(Reduce, WeightsOfClassesAndMoreSamplesAfterwards) {
  const Samples samples = make_samples({{40, 3, 11}, 6, {0.4, 1.0}, 1.0, 0.0, 12});
  AccumulatorOptions options = options_for(samples);
  options.scatter_weights = inverse_counts(samples);
  Accumulator all(context(), options);
  add_samples(all, samples);
  ThreadRanks ranks(3);
  for (const ClassMoments& moments : reduced(contiguous(samples, 3), options, ranks))
    expect_same_moments(moments, all.finish());

  const Samples more = make_samples({{4, 5, 6}, 6, {0.4}, 1.0, 0.0, 13});
  add_samples(all, more);
  std::vector<std::optional<ClassMoments>> moments(2);
  ThreadRanks two(2);
  two.run([&](const Communicator& rank) {
    Accumulator accumulator(context(), options);
    add_samples(accumulator, contiguous(samples, 2)[at(rank.rank())]);
    accumulator.reduce(rank);
    EXPECT_EQ(accumulator.samples(), samples.rows());
    add_samples(accumulator, more);
    moments[at(rank.rank())].emplace(accumulator.finish());
  });
  for (const auto& one : moments) expect_same_moments(one.value(), all.finish());
}

TEST_P(Reduce, LargeArraysGoInPieces) {
  // K d above Communicator::kMostValues, means only.
  const Index K = 3000, d = 1500;
  ThreadRanks ranks(2);
  std::vector<Samples> parts(2);
  for (Index rank = 0; rank < 2; ++rank) {
    parts[at(rank)] = {K, d, std::vector<double>(at(d), 1.0 + 2.0 * static_cast<double>(rank)), {K - 1}};
  }
  for (const ClassMoments& moments : reduced(parts, {K, d, Statistics::means, {}}, ranks)) {
    const auto means = moments.means();
    EXPECT_EQ(means[at(K * d - 1)], 2.0);
    EXPECT_EQ(means[at((K - 1) * d)], 2.0);
    EXPECT_EQ(means[at((K - 1) * d - 1)], 0.0);
  }
  EXPECT_EQ(ranks.doubles(), 2 * K * d);
  EXPECT_LE(ranks.largest_call(), Communicator::kMostValues);
}

TEST_P(Reduce, DecisionsAddUp) {
  const Problem problem = typical_problem();
  const ClassMoments whole = moments_of(context(), problem.train);
  const DecisionCounts want = count_decisions(whole, problem.head, problem.train);
  const auto parts = contiguous(problem.train, 3);
  std::vector<DecisionCounts> got(3);
  ThreadRanks ranks(3);
  const auto errors = ranks.run([&](const Communicator& rank) {
    const auto classifier = problem.head.classifier();
    DecisionCounter counter(whole, &classifier);
    const Samples& part = parts[at(rank.rank())];
    const Encoded features = encode(part.values, part.rows(), part.dim, Dtype::f64);
    counter.add(features.view(), label_view(part.labels, 0, part.rows()));
    counter.reduce(rank);
    got[at(rank.rank())] = counter.finish();
    EXPECT_THROW(counter.reduce(rank), UsageError);
  });
  for (const auto& error : errors) EXPECT_EQ(message_of(error), "");
  for (const DecisionCounts& counts : got) {
    EXPECT_EQ(counts.samples, want.samples);
    EXPECT_EQ(counts.correct_centre, want.correct_centre);
    EXPECT_EQ(counts.correct_classifier, want.correct_classifier);
    EXPECT_EQ(counts.agree, want.agree);
  }
}

/// Every rank fails with each of the words, and keeps its own state.
void expect_all_fail(const Context& context, const std::vector<AccumulatorOptions>& options,
                     const std::vector<std::string>& words) {
  ThreadRanks ranks(static_cast<int>(options.size()));
  const auto errors = ranks.run([&](const Communicator& rank) {
    Accumulator accumulator(context, options[at(rank.rank())]);
    try {
      accumulator.reduce(rank);
    } catch (...) {
      EXPECT_EQ(accumulator.samples(), 0);
      accumulator.finish();
      throw;
    }
  });
  EXPECT_TRUE(ranks.counts_agreed());
  for (const auto& error : errors) {
    EXPECT_THROW(std::rethrow_exception(error), UsageError);
    for (const auto& word : words) EXPECT_NE(message_of(error).find(word), std::string::npos) << message_of(error);
  }
}

TEST_P(Reduce, UnlikeRanksFailTogether) {
  const AccumulatorOptions usual{3, 4, Statistics::full, {}};
  expect_all_fail(context(), {usual, usual, {2, 4, Statistics::full, {}}}, {"rank 2", "2 x 4", "3 x 4"});
  expect_all_fail(context(), {usual, {3, 5, Statistics::full, {}}, usual}, {"rank 1", "3 x 5"});
  expect_all_fail(context(), {{3, 4, Statistics::traces, {}}, usual}, {"rank 0", "traces", "full"});
  expect_all_fail(context(), {usual, {3, 4, Statistics::full, {1, 2, 3}}}, {"rank 1", "weights"});
}

TEST_P(Reduce, TwiceWouldCountTwice) {
  ThreadRanks ranks(2);
  const auto errors = ranks.run([&](const Communicator& rank) {
    Accumulator accumulator(context(), {2, 1, Statistics::full, {}});
    accumulator.reduce(rank);
    accumulator.reduce(rank);
  });
  for (const auto& error : errors) EXPECT_NE(message_of(error).find("reduced before"), std::string::npos);

  ThreadRanks merging(2);
  for (const auto& error : merging.run([&](const Communicator& rank) {
         Accumulator reduced(context(), {2, 1, Statistics::full, {}}), accumulator(context(), reduced.options());
         add_samples(reduced, {2, 1, {1, 2}, {0, 1}});
         reduced.reduce(rank);
         accumulator.merge(reduced);
         accumulator.reduce(rank);
       }))
    EXPECT_NE(message_of(error).find("reduced before"), std::string::npos);
}

TEST_P(Reduce, FastPrecisionKeepsItsBound) {
  const Samples samples = make_samples({{40, 3, 11}, 6, {0.4, 1.0}, 1.0, 0.0, 12});
  AccumulatorOptions options = options_for(samples);
  options.scatter_weights = inverse_counts(samples);
  Accumulator exact(context(), options);
  add_samples(exact, samples);
  const ClassMoments whole = exact.finish();
  const auto want = whole.within_scatter();
  options.precision = ncollapse::Precision::fast;
  ThreadRanks ranks(3);
  for (const ClassMoments& moments : reduced(contiguous(samples, 3), options, ranks)) {
    const auto got = moments.within_scatter();
    double error = 0, trace = 0;
    for (std::size_t i = 0; i < got.size(); ++i) error += (got[i] - want[i]) * (got[i] - want[i]);
    for (std::size_t i = 0; i < got.size(); i += 7) trace += want[i];
    EXPECT_GT(error, 0);
    EXPECT_GT(moments.scatter_error(), 0);
    EXPECT_LT(moments.scatter_error(), 0.02);
    EXPECT_LE(std::sqrt(error), moments.scatter_error() * trace);
    for (Index k = 0; k < whole.classes(); ++k)
      expect_close(moments.within_variances()[at(k)], whole.within_variances()[at(k)], 1e-12, 0);
  }
}

TEST_P(Reduce, ABadRowThatAGpuFindsLateFailsAll) {
  if (GetParam() == "cpu") GTEST_SKIP() << "add itself throws there";
  ThreadRanks ranks(2);
  const auto errors = ranks.run([&](const Communicator& rank) {
    Accumulator accumulator(context(), {1, 2, Statistics::full, {}});
    add_samples(accumulator, {1, 2, {1, 2}, {0}});
    const double bad_row[] = {1, std::numeric_limits<double>::quiet_NaN()};
    const std::int64_t label[] = {0};
    if (rank.rank() == 1) accumulator.add(ncollapse::view(bad_row, 1, 2), ncollapse::view(label, 1));
    try {
      accumulator.reduce(rank);
    } catch (...) {
      EXPECT_EQ(accumulator.samples(), 1);
      throw;
    }
  });
  EXPECT_TRUE(ranks.counts_agreed());
  EXPECT_THROW(std::rethrow_exception(errors[1]), ncollapse::DataError);
  EXPECT_NE(message_of(errors[0]).find("rank 1 of 2 failed while reading out its moments"), std::string::npos);
}

TEST_P(Reduce, AReducedStateIsStillReducedAfterLoading) {
  const ncollapse::test::TemporaryDirectory directory;
  const Samples part{2, 1, {1, 2}, {0, 1}};
  ThreadRanks ranks(2);
  const auto errors = ranks.run([&](const Communicator& rank) {
    Accumulator accumulator(context(), {2, 1, Statistics::full, {}});
    add_samples(accumulator, part);
    accumulator.reduce(rank);
    EXPECT_EQ(accumulator.samples(), 4);
    const auto own = directory.path(std::to_string(rank.rank()));
    accumulator.save(own);
    Accumulator loaded = Accumulator::load(context(), own);
    expect_same_bits(loaded.finish(), accumulator.finish());
    loaded.reduce(rank);
  });
  for (const auto& error : errors) EXPECT_NE(message_of(error).find("reduced before"), std::string::npos);
}

TEST_P(Reduce, ABrokenLineLeavesCountsAsTheyWere) {
  const Problem problem = typical_problem();
  const ClassMoments whole = moments_of(context(), problem.train);
  const DecisionCounts want = count_decisions(whole, problem.head, problem.train);
  for (const int call : {0, 1, 2, 3}) {  // preparing, agreeing, copying, the sum itself
    ThreadRanks ranks(2);
    ranks.break_sum(1, call);
    const auto errors = ranks.run([&](const Communicator& rank) {
      const auto classifier = problem.head.classifier();
      DecisionCounter counter(whole, &classifier);
      const Encoded features = encode(problem.train.values, problem.train.rows(), problem.train.dim, Dtype::f64);
      counter.add(features.view(), label_view(problem.train.labels, 0, problem.train.rows()));
      try {
        counter.reduce(rank);
      } catch (...) {
        const DecisionCounts counts = counter.finish();
        EXPECT_EQ(counts.samples, want.samples);
        EXPECT_EQ(counts.correct_centre, want.correct_centre);
        EXPECT_EQ(counts.correct_classifier, want.correct_classifier);
        EXPECT_EQ(counts.agree, want.agree);
        throw;
      }
    });
    EXPECT_EQ(message_of(errors[1]), "line cut") << call;
  }
}

TEST_P(Reduce, ABrokenLineLeavesTheStateAsItWas) {
  const Samples samples = make_samples({{40, 3, 11}, 6, {0.4, 1.0}, 1.0, 0.0, 12});
  const auto parts = contiguous(samples, 2);
  for (const int call : {0, 1, 2, 4, 5, 7, 8}) {
    ThreadRanks ranks(2);
    ranks.break_sum(1, call);
    std::vector<std::optional<ClassMoments>> after(2);
    const auto errors = ranks.run([&](const Communicator& rank) {
      Accumulator accumulator(context(), options_for(samples));
      add_samples(accumulator, parts[at(rank.rank())]);
      try {
        accumulator.reduce(rank);
      } catch (...) {
        after[at(rank.rank())].emplace(accumulator.finish());
        throw;
      }
    });
    EXPECT_EQ(message_of(errors[1]), "line cut") << call;
    ASSERT_TRUE(after[1].has_value());
    expect_same_bits(*after[1], moments_of(context(), parts[1]));
  }
}

TEST(CommunicatorTest, ARankThatFailsEndsAllRanks) {
  const Context context(ncollapse::Device::parse("cpu"));
  std::vector<int> told(3, 0);
  ThreadRanks ranks(3);
  const auto errors = ranks.run([&](const Communicator& rank) {
    ncollapse::CommunicatorCallbacks callbacks = rank.callbacks();
    callbacks.on_failure = [&](std::exception_ptr error) {
      EXPECT_EQ(message_of(error), std::bad_alloc().what());
      ++told[at(rank.rank())];
    };
    const Communicator loud(rank.rank(), rank.size(), callbacks);
    ncollapse::Exchange(*context.backend(), loud).together("reading rows", [&] {
      if (rank.rank() == 1) throw std::bad_alloc();
    });
    ADD_FAILURE() << "not reached";
  });
  EXPECT_EQ(told, (std::vector<int>{0, 1, 0}));
  EXPECT_THROW(std::rethrow_exception(errors[1]), std::bad_alloc);
  for (const int other : {0, 2}) {
    EXPECT_EQ(message_of(errors[at(other)]), "rank 1 of 3 failed while reading rows");
    try {
      std::rethrow_exception(errors[at(other)]);
    } catch (const ncollapse::Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::device);
    }
  }
}

TEST(CommunicatorTest, ARankThatFailsInASumTells) {
  const Context context(ncollapse::Device::parse("cpu"));
  int told = 0, sums = 0;
  ncollapse::CommunicatorCallbacks callbacks;
  callbacks.sum_doubles = [&](double*, Index) { throw std::bad_alloc(); };
  callbacks.sum_integers = [&](Index*, Index) {
    if (++sums > 1) throw std::bad_alloc();  // the first one is preparing
  };
  callbacks.on_failure = [&](std::exception_ptr) { ++told; };
  const Communicator rank(0, 2, callbacks);
  const ncollapse::Exchange exchange(*context.backend(), rank);
  EXPECT_EQ(told, 0);
  std::vector<double> vector(3);
  auto array = context.backend()->matrix(2, 2);
  EXPECT_THROW(exchange.sum(vector), std::bad_alloc);
  EXPECT_EQ(told, 1);
  EXPECT_THROW(exchange.sum(array), std::bad_alloc);
  EXPECT_EQ(told, 2);
  EXPECT_THROW(exchange.gather({1}), std::bad_alloc);
  EXPECT_EQ(told, 3);
}

TEST(CommunicatorTest, OneRankNeedsNothing) {
  const Communicator alone;
  EXPECT_EQ(alone.rank(), 0);
  EXPECT_EQ(alone.size(), 1);
  double value = 2;
  alone.sum(&value, 1);
  EXPECT_EQ(value, 2);
  Accumulator accumulator(Context(ncollapse::Device::parse("cpu")), {2, 1, Statistics::full, {}});
  accumulator.reduce(alone);
  accumulator.reduce(alone);
}

TEST(CommunicatorTest, WrongRanksAreRefused) {
  const auto sum = [](auto*, Index) {};
  EXPECT_THROW(Communicator(0, 0, {sum, sum}), UsageError);
  EXPECT_THROW(Communicator(2, 2, {sum, sum}), UsageError);
  EXPECT_THROW(Communicator(-1, 2, {sum, sum}), UsageError);
  EXPECT_THROW(Communicator(0, 2, {sum, nullptr}), UsageError);
  EXPECT_THROW(Communicator(0, 2, {nullptr, sum}), UsageError);
  Accumulator accumulator(Context(ncollapse::Device::parse("cpu")), {2, 1, Statistics::full, {}});
  int told = 0;  // the other ranks wait for a sum that this one cannot take part in
  const auto on_failure = [&](std::exception_ptr error) {
    EXPECT_NE(message_of(error).find("device memory"), std::string::npos);
    ++told;
  };
  EXPECT_THROW(accumulator.reduce(Communicator(0, 2, {sum, sum, ncollapse::MemorySpace::device, on_failure})),
               UsageError);
  EXPECT_EQ(told, 1);
}

}  // namespace
}  // namespace ncollapse_test
