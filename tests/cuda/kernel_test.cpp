// Single kernels and pieces of the backend on the host stand-in, and the stand-in itself: that it would notice what it
// is there to notice.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <random>
#include <tuple>

#include "cuda/backend.hpp"
#include "cuda/class_sums.hpp"
#include "cuda/decide.hpp"
#include "cuda/dense.hpp"
#include "cuda/device.hpp"
#include "cuda/narrow.hpp"
#include "cuda/rows.hpp"
#include "cuda/scatter.hpp"
#include "ncollapse/error.hpp"
#include "tests/cuda/samples.hpp"

namespace ncollapse::cuda {
namespace {

using test::Grid;
using test::kSmall;
using test::Real;

class KernelTest : public testing::Test {
 protected:
  KernelTest() : guard_(0), queue_(0, nullptr) {}
  ~KernelTest() override { cuda_shim::check_guards(); }
  cudaStream_t stream() const { return queue_.stream(); }

  DeviceGuard guard_;
  Queue queue_;
};

// ---------------------------------------------------------------- elements
TEST(ElementTest, EveryHalfAndBfloat16IsConvertedExactly) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const auto word = static_cast<std::uint16_t>(bits);
    unsigned char bytes[8] = {};
    std::memcpy(bytes, &word, 2);
    for (const auto dtype : {Dtype::f16, Dtype::bf16}) {
      const double want = test::decode(dtype, bytes);
      const double got = dtype == Dtype::f16 ? to_double(Half{word}) : to_double(Bfloat16{word});
      ASSERT_EQ(std::isnan(got), std::isnan(want)) << bits;
      if (std::isnan(want)) continue;
      ASSERT_EQ(got, want) << bits;
      ASSERT_EQ(std::signbit(got), std::signbit(want)) << bits;
    }
  }
}

TEST(ElementTest, FloatsAreRoundedToTheNearestHalf) {
  const auto expect_half = [](float value) {
    const auto want = static_cast<_Float16>(value);
    std::uint16_t bits = 0;
    std::memcpy(&bits, &want, 2);
    ASSERT_EQ(to_half(value).bits, bits) << value;
  };
  for (unsigned bits = 0; bits < 0x10000; ++bits) {  // every half, the ties between neighbours, and next to them
    const auto half = static_cast<std::uint16_t>(bits);
    const auto value = static_cast<float>(to_double(Half{half}));
    if (std::isnan(value)) continue;
    const auto next = static_cast<float>(to_double(Half{static_cast<std::uint16_t>(half + 1)}));
    const float tie = (value + next) / 2;
    for (const float x : {value, tie, std::nextafterf(tie, 0.0f), std::nextafterf(tie, 1e9f)})
      if (!std::isnan(x)) expect_half(x);
  }
  for (const float x : {65519.0f, 65520.0f, 1e30f, -1e30f, 1e-30f, std::numeric_limits<float>::infinity()})
    expect_half(x);
  EXPECT_TRUE(std::isnan(to_double(to_half(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(ElementTest, FloatsAreRoundedToTheNearestBfloat16) {
  for (std::uint32_t high = 0; high < 0x10000; ++high) {
    const Bfloat16 x{static_cast<std::uint16_t>(high)};
    const double value = to_double(x);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_double(to_bfloat16(static_cast<float>(value)))));
      continue;
    }
    const bool tiny = std::abs(value) < 0x1p-126;
    ASSERT_EQ(to_bfloat16(static_cast<float>(value)).bits, tiny ? high & 0x8000u : high);
    if (tiny || std::isinf(value)) continue;
    const float half = float_of_bits(high << 16 | 0x8000u), below = float_of_bits(high << 16 | 0x7fffu),
                above = float_of_bits(high << 16 | 0x8001u);
    ASSERT_EQ(to_bfloat16(half).bits, high + (high & 1u));  // ties to even
    ASSERT_EQ(to_bfloat16(below).bits, high);
    ASSERT_EQ(to_bfloat16(above).bits, high + 1);
  }
}

TEST(ElementTest, LanesCoverARow) {
  EXPECT_EQ(lanes_log2<float>(0), 0);
  EXPECT_EQ(lanes_log2<float>(1), 0);
  EXPECT_EQ(lanes_log2<float>(4), 0);
  EXPECT_EQ(lanes_log2<float>(5), 1);
  EXPECT_EQ(lanes_log2<float>(12), 2);
  EXPECT_EQ(lanes_log2<Half>(64), 3);
  EXPECT_EQ(lanes_log2<float>(100000), 5);
}

// ---------------------------------------------------------------- sums in a fixed order
__global__ void sum_everything(double* out) {
  const double total = block_sum(1.0 + threadIdx.x, shared_memory<double>());
  const double again = block_sum(total, shared_memory<double>());
  out[thread_id()] = total;
  out[thread_count() + thread_id()] = again;
}

TEST_F(KernelTest, BlockSumIsTheSameInEveryThread) {
  const Index blocks = 3;
  const Buffer<double> out(queue_, 2 * blocks * kBlock);
  launch(stream(), {blocks, 1, kWarps * static_cast<Index>(sizeof(double))}, sum_everything, out.get());
  const auto values = out.to_host();
  const double total = kBlock * (kBlock + 1) / 2;
  for (Index i = 0; i < blocks * kBlock; ++i) {
    ASSERT_EQ(values[i], total);
    ASSERT_EQ(values[blocks * kBlock + i], total * kBlock);
  }
}

// ---------------------------------------------------------------- buckets
TEST_F(KernelTest, BucketsKeepStreamOrder) {
  for (const auto& [rows, classes] : {std::pair<Index, Index>{1, 1}, {31, 2}, {32, 300}, {kSmall ? 100 : 1000, 33}}) {
    const auto labels = test::make_labels(test::Classes::uniform, rows, classes, 3);
    const Buffer<Index> on_device(queue_, labels);
    BucketSorter sorter(queue_, rows + 5, classes);
    const Buffer<BatchRecord> record(queue_, std::vector<BatchRecord>(1));
    launch_find_bad_labels(stream(), {on_device.get(), LabelType::i64, rows}, 0, classes, record.get(), sorter.keys(),
                           sorter.rows());
    // Classes in turn: seen and in the second array or not; every third one had rows in an earlier block of the batch.
    std::vector<Index> count, saved_count;
    std::vector<std::uint32_t> place;
    for (Index k = 0; k < classes; ++k) {
      count.push_back(k % 2 * 5);
      saved_count.push_back(count.back() - (k % 3 == 2 ? 1 : 0));
      place.push_back(k / 2 % 2);
    }
    const Buffer<Index> counts(queue_, count), saved(queue_, saved_count);
    const Buffer<std::uint32_t> places(queue_, place);
    const Buckets buckets = sorter.sort(rows, {counts.get(), saved.get(), places.get()});
    std::vector<std::uint32_t> keys(static_cast<std::size_t>(rows)), order(keys);
    std::map<std::uint32_t, std::uint32_t> begin, end;  // of the classes that there are, the others are unset
    queue_.download(keys.data(), buckets.keys, rows * 4);
    queue_.download(order.data(), buckets.rows, rows * 4);
    for (const std::uint32_t key : keys) {
      queue_.download(&begin[key], buckets.begin + key, 4);
      queue_.download(&end[key], buckets.end + key, 4);
    }
    for (Index p = 0; p < rows; ++p) {
      ASSERT_EQ(labels[order[p]], keys[p]);
      ASSERT_TRUE(p == 0 || keys[p - 1] < keys[p] || (keys[p - 1] == keys[p] && order[p - 1] < order[p]));
      ASSERT_TRUE(begin[keys[p]] <= p && p < end[keys[p]]);
    }
    for (Index k = 0; k < classes; ++k) {
      const Index size = std::count(labels.begin(), labels.end(), k);
      ASSERT_TRUE(size == 0 || static_cast<Index>(end[k]) - static_cast<Index>(begin[k]) == size);
      if (size == 0) continue;
      std::uint32_t marks = 0;
      queue_.download(&marks, buckets.marks + k, 4);
      const bool from = k / 2 % 2 != 0, first_time = k % 3 != 2;
      ASSERT_EQ(marks, (from ? kFromSecond : 0) | (from != first_time ? kToSecond : 0) | (k % 2 != 0 ? kSeen : 0));
    }
  }
}

TEST(SumPlanTest, CoversTheShapeWhateverItsSize) {
  for (const Index rows : {1, 31, 32, 33, 1000, 100000, 4000000})
    for (const Index dim : {1, 3, 128, 256, 257, 4096, 20000}) {
      const SumPlan plan = plan_sums(rows, dim, Limits{}.sum_warps, 8, 32, Limits{}.centred_bytes);
      EXPECT_TRUE(plan.run >= 32 && plan.run <= 512 && (plan.run & (plan.run - 1)) == 0);
      EXPECT_TRUE(plan.runs * plan.run >= rows && (plan.runs - 1) * plan.run < rows);
      EXPECT_EQ(plan.group, dim == 20000 ? std::min<Index>(8 * plan.run, 2048) : 8 * plan.run);
      const Index slab = dim <= 128 ? 64 : 256;
      EXPECT_TRUE(plan.slabs * slab >= dim && (plan.slabs - 1) * slab < dim);
      EXPECT_TRUE(plan.pitch % 2 == 0 && plan.pitch >= dim && plan.pitch <= dim + 1);
    }
}

// A chunk of the scatter is a group at least, and host/plan.cpp counts on no more than these bytes.
TEST(SumPlanTest, TheCentredRowsOfAGroupHaveRoom) {
  const Limits limits;
  for (const Index dim : {1024, 4096, 65535, 65536, 100000, 131072})
    for (const Index element : {2, 4, 8}) {
      const Index rows = limits.rows_per_block(dim * element, Index{1} << 22);
      const SumPlan plan = plan_sums(rows, dim, limits.sum_warps, limits.group_runs, limits.fold, limits.centred_bytes);
      EXPECT_LE(plan.group * plan.pitch * 8, limits.centred_bytes) << dim << ", " << element;
      EXPECT_TRUE(plan.group >= plan.run && (plan.group & (plan.group - 1)) == 0);
    }
  EXPECT_THROW(plan_sums(1, Index{1} << 25, limits.sum_warps, 8, 32, limits.centred_bytes), UsageError);
}

TEST(SumPlanTest, ClassesAreCutWhereTheyAreLongOrLeaveTheirGroup) {
  const SumPlan plan =
      plan_sums(10000, 10, Limits{}.sum_warps, 8, 32, Limits{}.centred_bytes);  // runs of 32, groups of 256
  EXPECT_TRUE(plan.whole(0, 1));
  EXPECT_TRUE(plan.whole(31, 95));
  EXPECT_FALSE(plan.whole(31, 96));
  EXPECT_TRUE(plan.whole(255, 256));
  EXPECT_FALSE(plan.whole(255, 257));
  EXPECT_TRUE(plan.whole(256, 320));
}

// ---------------------------------------------------------------- scatter of halves
/// What of a chunk is chosen.
struct Chosen {
  std::vector<int> exponents, expected;
  int misfit;
};
Chosen choose(Queue& queue, const std::vector<double>& squares, const std::vector<int>& own,
              const std::vector<int>& expected, bool shut = false) {
  BatchRecord gate;
  gate.shut = shut ? 1 : 0;
  const Buffer<BatchRecord> record(queue, std::vector<BatchRecord>{gate});
  const Buffer<double> of_columns(queue, squares);
  const Buffer<int> exponents(queue, own), before(queue, expected), misfit(queue, 1);
  launch_choose_exponents(queue.stream(), of_columns.get(), of_columns.size(), record.get(), exponents.get(),
                          before.get(), misfit.get());
  return {exponents.to_host(), before.to_host(), misfit.to_host()[0]};
}

TEST_F(KernelTest, HalvesAreWrittenAgainWhereExpectedExponentsDoNotFit) {
  for (const std::size_t dim : {3, 300}) {
    std::vector<double> squares(dim, 1);
    std::vector<int> own(dim, 5), expected(dim, 9);
    squares[1] = 0;
    expected[1] = -500;  // fits: there is nothing to scale
    expected.back() = 0;
    Chosen chosen = choose(queue_, squares, own, expected);
    EXPECT_EQ(chosen.misfit, 0);
    EXPECT_EQ(chosen.exponents, expected);
    EXPECT_EQ(chosen.expected, expected);

    for (const int last : {-1, 10}) {
      expected.back() = last;
      chosen = choose(queue_, squares, own, expected);
      EXPECT_EQ(chosen.misfit, 1);
      EXPECT_EQ(chosen.exponents, own);
      std::vector<int> learnt = own;
      learnt[1] = -500;
      EXPECT_EQ(chosen.expected, learnt);
    }
    const std::vector<int> unknown(dim, kUnknownExponent);
    chosen = choose(queue_, squares, own, unknown);
    EXPECT_EQ(chosen.misfit, 1);
    EXPECT_EQ(chosen.exponents, own);
    EXPECT_EQ(chosen.expected, own);

    for (const auto& before : {expected, unknown, own}) {
      chosen = choose(queue_, squares, own, before, true);
      EXPECT_EQ(chosen.misfit, 1);
      EXPECT_EQ(chosen.exponents, own);
      EXPECT_EQ(chosen.expected, before);
    }
  }
}

TEST_F(KernelTest, ExponentsAreExpectedByTheMeanSquareOfAllSamples) {
  for (const Index classes : {1, 700}) {
    const Index dim = 5;
    std::vector<Index> counts(static_cast<std::size_t>(classes), 0);
    counts.back() = 20;
    counts.front() += 44;
    Grid T(dim, dim);
    const double mean_squares[] = {1, 4 * 0.999, 0x1p-40, 0, HUGE_VAL};
    for (Index j = 0; j < dim; ++j) T.at(j, j) = mean_squares[j] * 64;
    const Buffer<double> scatter(queue_, T.values);
    const Buffer<int> expected(queue_, dim);
    const Buffer<Index> on_device(queue_, counts), none(queue_, std::vector<Index>(counts.size(), 0));
    launch_expect_exponents(stream(), scatter.get(), on_device.get(), classes, dim, expected.get());
    EXPECT_EQ(expected.to_host(), (std::vector<int>{0, 0, -20, 0, 0}));
    launch_expect_exponents(stream(), scatter.get(), none.get(), classes, dim, expected.get());
    EXPECT_EQ(expected.to_host(), std::vector<int>(5, kUnknownExponent));
  }
}

// ---------------------------------------------------------------- decisions
/// A set of candidates as merge_leaders takes it: constants 0, and no error but `margin` / 2.
struct MergedSet {
  MergedSet(Queue& queue, const Grid& given, double wanted_margin)
      : scores(given), margin(wanted_margin), columns(columns_of(given.cols)) {
    std::vector<float> padded(static_cast<std::size_t>(columns + kScoreSlack), -HUGE_VALF);
    std::fill_n(padded.begin(), scores.cols, 0.0f);
    constants = Buffer<float>(queue, padded);
    candidates.count = scores.cols;
    candidates.constants = constants.get();
    candidates.bound.constant = margin / 2.002;  // of which a bound adds a thousandth
    leader_scores = Buffer<float>(queue, scores.rows * kLeaders);
    leader_candidates = Buffer<std::int32_t>(queue, scores.rows * kLeaders);
    decisions = Buffer<std::int32_t>(queue, std::vector<std::int32_t>(static_cast<std::size_t>(scores.rows), -7));
    open = Buffer<OpenRow>(queue, std::vector<OpenRow>(static_cast<std::size_t>(scores.rows)));  // not all are written
    counts = Buffer<Count>(queue, std::vector<Count>(2, 0));
  }
  Verdicts verdicts() const { return {decisions.get(), open.get(), counts.get(), scores.rows}; }

  /// Every row is certified, or open with the candidates within the margin, or with all of them, as its scores say.
  Count expect_verdicts_of_the_scores() const {
    const auto certified = decisions.to_host();
    const auto rows = open.to_host();
    const auto count = counts.to_host();
    std::vector<int> seen(static_cast<std::size_t>(scores.rows), 0);
    std::vector<std::vector<Index>> listed(seen.size());
    for (Index at = 0; at < scores.rows; ++at) {
      const bool few = at < static_cast<Index>(count[0]), all = at >= scores.rows - static_cast<Index>(count[1]);
      if (!few && !all) continue;
      const OpenRow& row = rows[static_cast<std::size_t>(at)];
      seen.at(static_cast<std::size_t>(row.row)) += few ? 1 : 2;
      for (const std::int32_t k : row.candidates) {
        if (few && k >= 0) listed[static_cast<std::size_t>(row.row)].push_back(k);
        EXPECT_TRUE(few || k == -1);
      }
    }
    Count evaluations = 0;
    for (Index i = 0; i < scores.rows; ++i) {
      double best = -HUGE_VAL;
      for (Index k = 0; k < scores.cols; ++k) best = std::max(best, scores.at(i, k));
      std::vector<Index> near;
      for (Index k = 0; k < scores.cols; ++k)
        if (!(best - scores.at(i, k) > margin)) near.push_back(k);
      auto& got = listed[static_cast<std::size_t>(i)];
      std::sort(got.begin(), got.end());
      const bool many = near.size() > 3 || near.empty();
      const int want = near.size() == 1 ? 0 : many ? 2 : 1;
      EXPECT_EQ(seen[static_cast<std::size_t>(i)], want) << "row " << i;
      if (want == 0) {
        EXPECT_EQ(certified[static_cast<std::size_t>(i)], near.front()) << "row " << i;
      } else if (want == 1) {
        EXPECT_EQ(got, near) << "row " << i;
      }
      evaluations += want == 0 ? 0 : static_cast<Count>(want == 1 ? static_cast<Index>(near.size()) : scores.cols);
    }
    return evaluations;
  }

  Grid scores;
  double margin;
  Index columns;
  Candidates candidates;
  Buffer<float> constants, leader_scores;
  Buffer<std::int32_t> leader_candidates, decisions;
  Buffer<OpenRow> open;
  Buffer<Count> counts;
};

/// The bits of a product of that type.
float product_of(float value, float) { return value; }
Half product_of(float value, Half) { return to_half(value); }
Bfloat16 product_of(float value, Bfloat16) { return to_bfloat16(value); }

/// Merges both sets, side by side, in column tiles of that width, from products of type S.
template <class S = float>
void expect_merged(Queue& queue, const MergedSet& a, const MergedSet& b, Index width) {
  constexpr auto kType = std::is_same_v<S, Bfloat16> ? Dtype::bf16 : Dtype::f16;
  const ProductForm form = sizeof(S) == 4 ? ProductForm{} : narrow_form(kType);
  const Index rows = a.scores.rows, columns = a.columns + b.columns;
  const MergedSet* sets[2] = {&a, &b};
  const Index column[2] = {0, a.columns};
  const Buffer<double> norms(queue, std::vector<double>(static_cast<std::size_t>(rows), 1.0));
  const Buffer<Count> evaluations(queue, std::vector<Count>{5});
  for (Index first = 0; first < columns; first += width) {
    const Index pitch = std::min(width, columns - first);
    std::vector<S> part(static_cast<std::size_t>(rows * pitch + kScoreSlack),
                        product_of(6e4f, S{}));  // what is behind is not taken
    TilePart parts[2];
    for (int s = 0; s < 2; ++s) {
      const Index begin = std::max(first, column[s]), end = std::min(first + pitch, column[s] + sets[s]->columns);
      if (begin >= end) continue;
      for (Index i = 0; i < rows; ++i)
        for (Index k = begin; k < std::min(end, column[s] + sets[s]->scores.cols); ++k)
          part[static_cast<std::size_t>(i * pitch + k - first)] =
              product_of(static_cast<float>(sets[s]->scores.at(i, k - column[s]) * form.scale), S{});
      parts[s] = {sets[s]->candidates,
                  begin - first,
                  end - begin,
                  begin - column[s],
                  end == column[s] + sets[s]->columns,
                  {sets[s]->leader_scores.get(), sets[s]->leader_candidates.get()},
                  sets[s]->verdicts()};
    }
    const Buffer<S> products(queue, part);
    launch_merge_leaders(queue.stream(), {products.get(), rows, pitch, 0, nullptr, form},
                         {kType, nullptr, 0, nullptr, norms.get(), nullptr}, parts, evaluations.get());
  }
  Count wanted = 5;
  for (const MergedSet* set : sets) wanted += set->expect_verdicts_of_the_scores();
  EXPECT_EQ(evaluations.to_host().front(), wanted);
}

enum class Scores { random, few_values, equal, ascending, descending };
Grid make_scores(Scores kind, Index rows, Index count, unsigned seed) {
  Grid scores(rows, count);
  std::mt19937 random(seed);
  for (Index i = 0; i < rows; ++i)
    for (Index k = 0; k < count; ++k) {
      double& score = scores.at(i, k);
      if (kind == Scores::random) score = static_cast<double>(random() % 100000) - 50000;
      if (kind == Scores::few_values) score = static_cast<double>(random() % 100) < 3 ? 4 - random() % 3 : 0;
      if (kind == Scores::equal) score = -3;
      if (kind == Scores::ascending) score = static_cast<double>(k) / 2 - 1e4;
      if (kind == Scores::descending) score = -static_cast<double>(k) / 4;
    }
  return scores;
}

TEST_F(KernelTest, RowsAreCertifiedOrOpenedAsTheirScoresSay) {
  struct Shape {
    Index rows, first, second, width;
  };
  std::vector<Shape> shapes{{1, 1, 1, 8},    {31, 3, 2, 8},   {33, 5, 31, 8},     {32, 32, 33, 256},
                            {70, 50, 9, 40}, {5, 260, 4, 96}, {3, 1100, 70, 1172}};
  if (!kSmall) {
    shapes.push_back({300, 10, 10, 24});
    shapes.push_back({9, 1030, 2100, 520});
    shapes.push_back({40, 200, 257, 460});
  }
  unsigned seed = 1;
  for (const auto& [rows, first, second, width] : shapes)
    for (const auto kind : {Scores::random, Scores::few_values, Scores::equal, Scores::ascending, Scores::descending})
      for (const double margin : {0.125, 0.6, 1.1, 3000.0, 1e9}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, " << first << " and " << second << " by " << width
                                        << ", kind " << static_cast<int>(kind) << ", margin " << margin);
        const MergedSet a(queue_, make_scores(kind, rows, first, ++seed), margin);
        const MergedSet b(queue_, make_scores(Scores::few_values, rows, second, ++seed), 0.5);
        expect_merged(queue_, a, b, width);
      }
}

/// Scores that products of type S hold.
template <class S>
Grid held_by(S, Grid scores) {
  const double scale = narrow_form(std::is_same_v<S, Bfloat16> ? Dtype::bf16 : Dtype::f16).scale;
  for (double& score : scores.values) score = to_double(product_of(static_cast<float>(score * scale), S{})) / scale;
  return scores;
}

TEST_F(KernelTest, ScoresIn16BitsAreTakenAsTheyAre) {
  struct Shape {
    Index rows, first, second, width;
  };
  std::vector<Shape> shapes{{1, 1, 1, 8}, {33, 5, 31, 8}, {32, 32, 33, 256}, {70, 50, 9, 40}, {3, 1100, 70, 1176}};
  if (!kSmall) shapes.push_back({9, 1030, 2100, 520});
  unsigned seed = 1000;
  const auto expect = [&](auto type, const Shape& shape, Scores kind, double margin) {
    SCOPED_TRACE(testing::Message() << shape.rows << " rows, " << shape.first << " and " << shape.second << " by "
                                    << shape.width << ", kind " << static_cast<int>(kind) << ", margin " << margin);
    const MergedSet a(queue_, held_by(type, make_scores(kind, shape.rows, shape.first, ++seed)), margin);
    const MergedSet b(queue_, held_by(type, make_scores(Scores::few_values, shape.rows, shape.second, ++seed)), 0.5);
    expect_merged<decltype(type)>(queue_, a, b, shape.width);
  };
  for (const Shape& shape : shapes)
    for (const auto kind : {Scores::random, Scores::few_values, Scores::equal, Scores::ascending, Scores::descending})
      for (const double margin : {0.6, 3000.0, 1e9}) {
        expect(Half{}, shape, kind, margin);
        expect(Bfloat16{}, shape, kind, margin);
      }
}

TEST_F(KernelTest, BoundsAreThoseOfTheDerivation) {
  const ScoreBound bound = centre_bound(100, 2.0, 0, 1e-4, 5.0);
  const Real product = 1e-4L + 165 * 0x1p-23L * 2.0001L;
  const auto within_rounding = [](double got, Real want) { return test::within(got, want, 1e-14L * want); };
  EXPECT_TRUE(within_rounding(bound.of(3, 1e-3),
                              1.001L * (3 * 132 * 0x1p-53L * 25 + 0x1p-22L * 5 + 1e-3L * 2 + 3.001L * product)));
  EXPECT_EQ(centre_bound(Index{1} << 53, 1, 0, 0, 1).quadratic, HUGE_VAL);
  ScoreBound raw = centre_bound(100, 2.0, 3.0, 1e-4, 5.0);
  EXPECT_TRUE(within_rounding(raw.of(3, 0), 1.001L * (3 * 132 * 0x1p-53L * 64 + 0x1p-22L * 5 + 3 * product)));
  EXPECT_TRUE(within_rounding(classifier_bound(100, 2.0, 4.0, 6.0, 1e-4, 5.0).of(3, 0),
                              1.001L * (264 * 0x1p-53L * (2 * 7 + 6) + 0x1p-22L * 5 + 3 * product)));
  const Real t = 165 * 0x1p-23L, narrow = 1e-4L + (t + 0x1p-8L + t * 0x1p-8L) * 2.0001L;
  EXPECT_TRUE(within_rounding(centre_bound(100, 2.0, 0, 1e-4, 5.0, 0x1p-8).of(3, 1e-3),
                              1.001L * (3 * 132 * 0x1p-53L * 25 + 0x1p-22L * 5 + 1e-3L * 2 + 3.001L * narrow)));
  EXPECT_TRUE(within_rounding(classifier_bound(100, 2.0, 4.0, 6.0, 1e-4, 5.0, 0x1p-8).of(3, 0),
                              1.001L * (264 * 0x1p-53L * (2 * 7 + 6) + 0x1p-22L * 5 + 3 * narrow)));
  allow_for_range(raw, Dtype::f16, 100);
  EXPECT_EQ(raw.largest_norm, HUGE_VAL);
  allow_for_range(raw, Dtype::bf16, 100);
  EXPECT_EQ(raw.largest_norm, 0x1p119);
  EXPECT_GE(raw.constant, 100 * 0x1p-123);
}

// Two candidates with scores of 1000 and 5 in units of the row: what certifies, or not, is the row.
TEST_F(KernelTest, NothingIsCertifiedBeyondTheRangeOfTheScores) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  enum Verdict { certified, two_open, all_open };
  struct Row {
    double norm, scale, lost;
    Verdict verdict;
  };
  const std::vector<Row> given{{3, 1, 0, certified},      {nan, 1, 0, all_open},      {HUGE_VAL, 1, 0, all_open},
                               {3, 1, nan, all_open},     {3, 1, 1e4, two_open},      {0x1p119, 1, 0, all_open},
                               {3, 0x1p-99, 0, two_open}, {3, 0x1p-101, 0, all_open}, {3, 0x1p100, 0, certified},
                               {3, 0x1p900, 0, certified}};
  const Index rows = static_cast<Index>(given.size());
  std::vector<double> norms, scales, lost;
  std::vector<float> products;
  std::vector<std::int32_t> want;
  std::vector<Count> counts(2, 0);
  for (const Row& row : given) {
    norms.push_back(row.norm);
    scales.push_back(row.scale);
    lost.push_back(row.lost);
    for (const float score : {5.0f, 1000.0f, 0.0f, 0.0f}) products.push_back(score);
    want.push_back(row.verdict == certified ? 1 : -7);
    if (row.verdict != certified) ++counts[row.verdict == two_open ? 0 : 1];
  }
  MergedSet set(queue_, Grid(rows, 2), 1e-3);
  set.candidates.factor = 1;
  set.candidates.bound = centre_bound(100, 1.0, 0, 1e-4, 1.0);
  set.candidates.bound.largest_norm = 0x1p119;
  const Buffer<double> n(queue_, norms), s(queue_, scales), l(queue_, lost);
  products.resize(products.size() + kScoreSlack);
  const Buffer<float> on_device(queue_, products);
  TilePart parts[2];
  parts[1] = {set.candidates, 0, 4, 0, true, {}, set.verdicts()};
  launch_merge_leaders(stream(), {on_device.get(), rows, 4, 0}, {Dtype::bf16, nullptr, 0, s.get(), n.get(), l.get()},
                       parts, nullptr);
  EXPECT_EQ(set.decisions.to_host(), want);
  EXPECT_EQ(set.counts.to_host(), counts);
}

TEST_F(KernelTest, RowsAsHalvesSayWhatTheyLost) {
  for (const auto type : {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16})
    for (const auto& [rows, d, offset] :
         {std::array<Index, 3>{1, 1, 1}, {31, 64, 1}, {33, 65, 1}, {8, 300, 0}, {2, 1100, 1}, {3, 1100, 0}}) {
      SCOPED_TRACE(testing::Message() << to_string(type) << ", " << rows << " x " << d
                                      << (offset == 0 ? ", aligned" : ""));
      test::Samples x(type, rows, d, offset == 0 ? 4 : 1, offset);
      test::fill(x, std::vector<Index>(static_cast<std::size_t>(rows), 0), 1, 3);
      const bool tiny = type == Dtype::f32 || type == Dtype::f64;
      for (Index j = 0; j < d && tiny; ++j) x.set(0, j, j % 2 == 0 ? 1e-30 : 1e-34);
      const Index padded = (d + 63) / 64 * 64;
      std::vector<float> origin(static_cast<std::size_t>(padded), 0.0f), away = origin;
      for (Index j = 0; j < d; ++j) away[static_cast<std::size_t>(j)] = 0.3f * static_cast<float>(j % 5);
      CudaBackend backend(0, {.cuda_stream = stream()});
      std::shared_ptr<void> keep;
      const MatrixView view = x.device(backend, keep);
      const Buffer<Half> half(queue_, rows * padded);
      const Buffer<double> scales(queue_, rows), norms(queue_, rows), lost(queue_, rows);
      const Buffer<float> centre(queue_, origin), off(queue_, away);
      for (const float* from : {static_cast<const float*>(nullptr), static_cast<const float*>(centre.get()),
                                static_cast<const float*>(off.get())}) {
        launch_narrow_rows(stream(), {view.data, view.dtype, rows, d, view.row_stride()}, from, padded, Dtype::f16,
                           half.get(), scales.get(), norms.get(), lost.get());
        const auto got = half.to_host();
        const auto scale = scales.to_host(), norm = norms.to_host(), loss = lost.to_host();
        for (Index i = 0; i < rows; ++i) {
          Real square = 0, gap_square = 0;
          for (Index j = 0; j < padded; ++j) {
            const Real shift = from == off.get() ? away[static_cast<std::size_t>(j)] : 0.0f;
            const Real value = j < d ? x.at(i, j) - shift : 0;
            const Real gap = value - scale[i] * static_cast<Real>(to_double(got[i * padded + j]));
            square += value * value;
            gap_square += gap * gap;
          }
          const Real size = std::sqrt(square), gap = std::sqrt(gap_square);
          ASSERT_TRUE(test::within(norm[i], size, (from == off.get() ? 0x1p-22L : 1e-13L) * size));
          ASSERT_GE(loss[i], gap);
          ASSERT_LE(loss[i], 1.00001L * gap + 0x1p-22L * size);
          ASSERT_LE(loss[i], size * 0x1p-11 * 1.01);
          ASSERT_TRUE(norm[i] / scale[i] >= 64 && norm[i] / scale[i] < 128);
        }
      }
    }
}

// Rows of 512 to 2048 columns that are aligned are read once, others twice.
TEST_F(KernelTest, RowsReadOnceOrTwiceAreNarrowedToTheSameBits) {
  for (const auto& [type, narrow_type] :
       {std::pair{Dtype::f32, Dtype::f16}, {Dtype::f64, Dtype::f16}, {Dtype::f64, Dtype::bf16}})
    for (const auto& [rows, d] : {std::pair<Index, Index>{1, 4}, {33, 64}, {9, 508}, {3, 1028}, {2, 2048}, {2, 2052}})
      for (const bool shifted : {false, true}) {
        SCOPED_TRACE(testing::Message() << to_string(type) << " to " << to_string(narrow_type) << ", " << rows << " x "
                                        << d << (shifted ? ", shifted" : ""));
        const Index padded = (d + 63) / 64 * 64, count = rows + 1;
        std::vector<float> away(static_cast<std::size_t>(padded), 0.0f);
        for (Index j = 0; j < d; ++j) away[static_cast<std::size_t>(j)] = 0.3f * static_cast<float>(j % 5);
        const Buffer<float> origin(queue_, away);
        std::vector<std::int32_t> listed;  // backwards, the first row twice
        for (Index i = 0; i < count; ++i) listed.push_back(static_cast<std::int32_t>(std::max<Index>(rows - 1 - i, 0)));
        const Buffer<std::int32_t> list(queue_, listed);
        std::vector<std::uint16_t> bits;
        std::vector<double> numbers;
        for (const Index offset : {0, 1}) {  // aligned, not aligned
          test::Samples x(type, rows, d, offset == 0 ? 4 : 3, offset);
          test::fill(x, std::vector<Index>(static_cast<std::size_t>(rows), 0), 1, 3);
          CudaBackend backend(0, {.cuda_stream = stream()});
          std::shared_ptr<void> keep;
          const MatrixView view = x.device(backend, keep);
          const Buffer<std::uint16_t> narrow(queue_, count * padded);
          const Buffer<double> scales(queue_, count), norms(queue_, count), lost(queue_, count);
          launch_narrow_rows(stream(), {view.data, type, rows, d, view.row_stride()}, shifted ? origin.get() : nullptr,
                             padded, narrow_type, narrow.get(), scales.get(), norms.get(), lost.get(), {}, nullptr,
                             list.get(), count);
          auto found = scales.to_host();
          for (const auto& more : {norms.to_host(), lost.to_host()})
            found.insert(found.end(), more.begin(), more.end());
          if (offset == 0) {
            bits = narrow.to_host();
            numbers = found;
          }
          EXPECT_EQ(narrow.to_host(), bits);
          EXPECT_EQ(found, numbers);
        }
      }
}

TEST_F(KernelTest, NarrowedRowsKeepTheirPowersOfTwoWithinBounds) {
  const Index d = 5, padded = 64;
  const std::vector<double> sizes{1e-280, 1e-20, 0, 1, 1e20, 1e100};
  Grid x(static_cast<Index>(sizes.size()), d);
  for (Index i = 0; i < x.rows; ++i)
    for (Index j = 0; j < d; ++j) x.at(i, j) = sizes[static_cast<std::size_t>(i)] * static_cast<double>(j - 2);
  const Buffer<double> values(queue_, x.values), scales(queue_, x.rows), norms(queue_, x.rows), lost(queue_, x.rows);
  for (const auto type : {Dtype::f16, Dtype::bf16}) {
    const Buffer<std::uint16_t> rows(queue_, x.rows * padded);
    launch_narrow_rows(stream(), {values.get(), Dtype::f64, x.rows, d, d}, nullptr, padded, type, rows.get(),
                       scales.get(), norms.get(), lost.get(), {-30, 70});
    const auto scale = scales.to_host(), loss = lost.to_host();
    EXPECT_EQ(std::vector<double>(scale.begin(), scale.begin() + 3), std::vector<double>(3, 0x1p-30));
    EXPECT_EQ(scale[3], 0x1p-5);
    EXPECT_EQ(scale.back(), 0x1p70);
    const auto bits = rows.to_host();
    for (Index i = 0; i < x.rows - 1; ++i) {
      Real gaps = 0;
      for (Index j = 0; j < d; ++j) {
        const std::uint16_t word = bits[static_cast<std::size_t>(i * padded + j)];
        const double back = type == Dtype::f16 ? to_double(Half{word}) : to_double(Bfloat16{word});
        const Real gap = static_cast<Real>(x.at(i, j)) - static_cast<Real>(back) * scale[static_cast<std::size_t>(i)];
        gaps += gap * gap;
      }
      EXPECT_GE(loss[static_cast<std::size_t>(i)], std::sqrt(gaps)) << i;
    }
  }
}

// Shifted rows may overflow without being a fault: in single precision those of floats do, squares of doubles, too.
TEST_F(KernelTest, NarrowingFindsFaults) {
  for (const auto type : {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16})
    for (const auto& [rows, d, padding] : {std::array<Index, 3>{1, 1, 0}, {33, 65, 0}, {9, 300, 3}, {5, 516, 0}}) {
      SCOPED_TRACE(testing::Message() << to_string(type) << ", " << rows << " x " << d);
      test::Samples x(type, rows, d, padding, padding > 0 ? 1 : 0);
      test::fill(x, std::vector<Index>(static_cast<std::size_t>(rows), 0), 1, 3);
      const Index padded = (d + 63) / 64 * 64;
      const Buffer<float> origin(queue_, std::vector<float>(static_cast<std::size_t>(padded), -3e38f));
      const Buffer<Half> half(queue_, rows * padded);
      const Buffer<double> scales(queue_, rows), norms(queue_, rows), lost(queue_, rows);
      const double largest = type == Dtype::f16 ? 65504.0 : type == Dtype::f64 ? 1e308 : 3e38;
      for (const double value : {1.0, largest, -largest, HUGE_VAL, -HUGE_VAL, std::nan("")}) {
        x.set(rows / 2, d - 1, value);
        CudaBackend backend(0, {.cuda_stream = stream()});
        std::shared_ptr<void> keep;
        const MatrixView view = x.device(backend, keep);
        for (const float* from : {static_cast<const float*>(nullptr), static_cast<const float*>(origin.get())}) {
          const Buffer<BatchRecord> record(queue_, std::vector<BatchRecord>(1));
          launch_narrow_rows(stream(), {view.data, type, rows, d, view.row_stride()}, from, padded, Dtype::f16,
                             half.get(), scales.get(), norms.get(), lost.get(), {}, record.get());
          EXPECT_EQ(record.to_host().front().nonfinite > 0, !std::isfinite(value)) << value;
        }
      }
    }
}

TEST_F(KernelTest, OneLookFindsFaultsAndNorms) {
  for (const auto type : {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16})
    for (const auto& [rows, d, padding, offset] :
         {std::array<Index, 4>{1, 1, 0, 0}, {33, 65, 0, 0}, {40, 8, 0, 0}, {31, 17, 3, 1}, {3, 1200, 0, 0}}) {
      SCOPED_TRACE(testing::Message() << to_string(type) << ", " << rows << " x " << d);
      test::Samples x(type, rows, d, padding, offset);
      test::fill(x, std::vector<Index>(static_cast<std::size_t>(rows), 0), 1, 3);
      const Index row = rows / 2, col = d - 1;
      const double largest = type == Dtype::f16 ? 65504.0 : type == Dtype::f64 ? 1e308 : 3e38;
      for (const double value : {0.0, 1e-30, largest, HUGE_VAL, std::nan("")}) {
        x.set(row, col, value);
        CudaBackend backend(0, {.cuda_stream = stream()});
        std::shared_ptr<void> keep;
        const MatrixView view = x.device(backend, keep);
        const FeatureBlock block{view.data, type, rows, d, view.row_stride()};
        const Buffer<BatchRecord> record(queue_, std::vector<BatchRecord>(1));
        const Buffer<double> norms(queue_, rows);
        launch_check_rows(stream(), block, norms.get(), record.get());
        EXPECT_EQ(record.to_host().front().nonfinite > 0, !std::isfinite(value)) << value;
        launch_check_rows(stream(), block, nullptr, record.get());
        if (size_of(type) != 2) continue;
        launch_check_rows(stream(), block, norms.get(), nullptr);
        const auto norm = norms.to_host();
        for (Index i = 0; i < rows; ++i) {
          Real square = 0;
          for (Index j = 0; j < d; ++j) square += static_cast<Real>(x.at(i, j)) * x.at(i, j);
          const Real size = std::sqrt(square);
          if (!std::isfinite(size) || size > 1e19) {
            EXPECT_FALSE(std::isfinite(norm[static_cast<std::size_t>(i)]));
            continue;
          }
          EXPECT_GE(norm[static_cast<std::size_t>(i)], size);
          EXPECT_LE(norm[static_cast<std::size_t>(i)],
                    size * (1 + 0x1p-20L) + std::sqrt(static_cast<Real>(d)) * 0x1p-74L);
        }
      }
    }
}

// What is measured is exact here: means and rows of small integers. Every other row is a little beyond what its ball
// holds; some hold what is no number.
TEST_F(KernelTest, RowsNearTheirMeansAreFound) {
  const Index rows = kSmall ? 21 : 70, classes = 3;
  for (const auto type : {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16})
    for (const auto mean_type : {Dtype::f16, Dtype::bf16})
      for (const auto& [d, padding, offset] : {std::array<Index, 3>{1, 0, 0},
                                               {9, 3, 1},
                                               {40, 0, 0},
                                               {128, 0, 0},
                                               {264, 8, 0},
                                               {512, 0, 1},
                                               {1032, 0, 0},
                                               {1300, 4, 0}}) {
        SCOPED_TRACE(testing::Message() << to_string(type) << ", means " << to_string(mean_type) << ", d = " << d
                                        << " + " << padding << ", at " << offset);
        const Index padded = padded_columns(d);
        const double unit = 4;
        std::vector<std::uint16_t> means(static_cast<std::size_t>(classes * padded), 0);
        std::vector<float> origin(static_cast<std::size_t>(padded), 0.0f);
        Grid centres(classes, d);
        for (Index j = 0; j < d; ++j) {
          origin[static_cast<std::size_t>(j)] = static_cast<float>(j % 5 - 2);
          for (Index k = 0; k < classes; ++k) {
            const auto value = static_cast<float>((j * (k + 1)) % 7 - 3);
            means[static_cast<std::size_t>(k * padded + j)] =
                mean_type == Dtype::f16 ? to_half(value).bits : to_bfloat16(value).bits;
            centres.at(k, j) = unit * static_cast<double>(value) + static_cast<double>(j % 5 - 2);
          }
        }
        test::Samples x(type, rows, d, padding, offset);
        std::vector<std::uint32_t> labels;
        std::vector<std::int32_t> want_centre, want_class, want_far;
        for (Index i = 0; i < rows; ++i) {
          const auto label = static_cast<std::uint32_t>(i % 4);  // 3: of no centre
          const Index k = i % 4 == 3 ? 0 : i % 4;
          labels.push_back(label);
          for (Index j = 0; j < d; ++j) x.set(i, j, centres.at(k, j));
          const bool far = i % 3 == 1 || i % 4 == 3;
          x.set(i, i % d, centres.at(k, i % d) + (far ? 3 : 2));
          want_centre.push_back(far ? -7 : static_cast<std::int32_t>(k));
          want_class.push_back(far ? -7 : static_cast<std::int32_t>(label));
          if (far) want_far.push_back(static_cast<std::int32_t>(i));
        }
        std::vector<Ball> balls(4);
        for (std::int32_t k = 0; k < 3; ++k) balls[static_cast<std::size_t>(k)] = {6.25, k};
        const Buffer<std::uint32_t> y(queue_, labels);
        const Buffer<Ball> ball(queue_, balls);
        const Buffer<std::uint16_t> mean(queue_, means);
        const Buffer<float> from(queue_, origin);
        const std::vector<std::int32_t> none(static_cast<std::size_t>(rows), -7);
        for (const double value : {0.0, static_cast<double>(HUGE_VAL), std::nan("")}) {
          if (value != 0) {
            x.set(rows / 2, d - 1, value);
            if (want_centre[static_cast<std::size_t>(rows / 2)] >= 0)
              want_far.push_back(static_cast<std::int32_t>(rows / 2));
            want_centre[static_cast<std::size_t>(rows / 2)] = want_class[static_cast<std::size_t>(rows / 2)] = -7;
          }
          CudaBackend backend(0, {.cuda_stream = stream()});
          std::shared_ptr<void> keep;
          const MatrixView view = x.device(backend, keep);
          const Buffer<std::int32_t> centre(queue_, none), chosen(queue_, none), far(queue_, none);
          const Buffer<Count> count(queue_, std::vector<Count>{0});
          const Buffer<BatchRecord> record(queue_, std::vector<BatchRecord>(1));
          const NearRows near{y.get(),    ball.get(),   mean_type,    mean.get(), padded,     4.0f,
                              from.get(), centre.get(), chosen.get(), far.get(),  count.get()};
          launch_find_near_rows(stream(), {view.data, type, rows, d, view.row_stride()}, near, record.get());
          EXPECT_EQ(centre.to_host(), want_centre);
          EXPECT_EQ(chosen.to_host(), want_class);
          auto others = far.to_host();
          ASSERT_EQ(count.to_host().front(), want_far.size());
          others.resize(want_far.size());
          std::sort(others.begin(), others.end());
          std::sort(want_far.begin(), want_far.end());
          EXPECT_EQ(others, want_far);
          EXPECT_EQ(record.to_host().front().nonfinite > 0, value != 0) << value;
        }
      }
}

// Else every row would be evaluated in double, rightly and slowly. Raw rows are scored without their centre, beside
// what lies between and behind them.
TEST_F(KernelTest, CollapsedRowsAreCertified) {
  const Index rows = 40, count = 5, columns = 8, d = 70, stride = 80, padded = 128;
  const Grid centres = Grid::random(count, d, 12);  // about an origin that is as far away as they are large
  const std::vector<float> ones = [] {
    std::vector<float> origin(128, 0.0f);
    std::fill_n(origin.begin(), 70, 1.0f);
    return origin;
  }();
  const Buffer<float> origin(queue_, ones);
  for (const auto& [type, raw, narrow_scores] : {std::tuple{Dtype::f16, true, false},
                                                 {Dtype::bf16, true, false},
                                                 {Dtype::f16, false, false},
                                                 {Dtype::f32, false, false},
                                                 {Dtype::f16, true, true},
                                                 {Dtype::bf16, true, true},
                                                 {Dtype::f32, false, true}}) {
    SCOPED_TRACE(testing::Message() << to_string(type) << ", raw " << raw << ", scores in 16 bits " << narrow_scores);
    test::Samples x(type, rows, d, stride - d, 8);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < d; ++j) x.set(i, j, centres.at(i % count, j) + 1 + 1e-3 * static_cast<double>((i * j) % 7));
    CudaBackend backend(0, {.cuda_stream = stream()});
    std::shared_ptr<void> keep;
    const MatrixView view = x.device(backend, keep);
    const FeatureBlock block{view.data, type, rows, d, view.row_stride()};
    ASSERT_EQ(can_be_raw(block), size_of(type) == 2);

    double largest = 0, largest_constant = 0;
    std::vector<double> exact;
    for (Index k = 0; k < count; ++k) {
      Real along = dot(centres, k, centres, k) / 2;
      for (Index j = 0; j < d && raw; ++j) along += static_cast<Real>(centres.at(k, j));
      largest = std::max(largest, static_cast<double>(test::size(centres, k)));
      exact.push_back(static_cast<double>(-along));
      largest_constant = std::max(largest_constant, std::abs(exact.back()));
    }
    const int exponent = std::ilogb(largest) - 6;
    const double unit = std::ldexp(1.0, std::ilogb(largest_constant) + 1), scale = std::ldexp(1.0, exponent);
    std::vector<float> constants(static_cast<std::size_t>(columns + kScoreSlack), -HUGE_VALF);
    for (Index k = 0; k < count; ++k)
      constants[static_cast<std::size_t>(k)] = static_cast<float>(exact[static_cast<std::size_t>(k)] / unit);

    const Dtype narrow_type = raw ? type : Dtype::f16;
    const std::vector<double> zeros(static_cast<std::size_t>(rows), 0.0);  // not all are written
    const Buffer<double> values(queue_, centres.values), scales(queue_, zeros), norms(queue_, zeros),
        lost(queue_, zeros);
    const Buffer<std::uint16_t> narrow(queue_,
                                       std::vector<std::uint16_t>(static_cast<std::size_t>(columns * padded), 0)),
        z(queue_, rows * padded);
    launch_narrow_rows(stream(), {values.get(), Dtype::f64, count, d, d}, nullptr, padded, narrow_type, narrow.get(),
                       scales.get(), norms.get(), lost.get(), {exponent, exponent});
    double most_lost = 0;
    for (const double each : lost.to_host()) most_lost = std::max(most_lost, each);
    const ProductForm form = narrow_scores ? narrow_form(narrow_type) : ProductForm{};
    ScoreBound bound = centre_bound(d, largest, raw ? std::sqrt(static_cast<double>(d)) : 0, most_lost,
                                    largest_constant, form.rounding);
    if (raw) allow_for_range(bound, type, d);
    NarrowRows given{type, view.data, block.stride, nullptr, norms.get(), nullptr};
    if (raw) {
      launch_check_rows(stream(), block, norms.get(), nullptr);
    } else {
      launch_narrow_rows(stream(), block, origin.get(), padded, Dtype::f16, z.get(), scales.get(), norms.get(),
                         lost.get());
      given = {Dtype::f16, z.get(), padded, scales.get(), norms.get(), lost.get()};
    }
    const Buffer<float> products(queue_, std::vector<float>(static_cast<std::size_t>(rows * columns + kScoreSlack))),
        constant(queue_, constants);
    const Buffer<std::uint16_t> narrow_products(
        queue_, std::vector<std::uint16_t>(static_cast<std::size_t>(rows * columns + kScoreSlack)));
    const Index terms = raw ? d : padded;
    if (narrow_scores)
      multiply_narrow(queue_, narrow_type, given.rows, given.stride, rows, narrow.get(), padded, columns, terms,
                      static_cast<float>(form.scale), narrow_products.get(), columns);
    else
      multiply_narrow(queue_, narrow_type, given.rows, given.stride, rows, narrow.get(), padded, columns, terms,
                      products.get(), columns);
    MergedSet set(queue_, Grid(rows, count), 0);
    set.candidates = {count, constant.get(), unit / scale, 1 / scale, bound};
    TilePart parts[2];
    parts[0] = {set.candidates, 0, columns, 0, true, {}, set.verdicts()};
    const void* from = products.get();
    if (narrow_scores) from = narrow_products.get();
    launch_merge_leaders(stream(), {from, rows, columns, 0, nullptr, form}, given, parts, nullptr);

    const auto got = set.decisions.to_host();
    const auto product = products.to_host();
    const auto words = narrow_products.to_host();
    const auto product_at = [&](std::size_t at) -> double {
      if (!narrow_scores) return product[at];
      return (narrow_type == Dtype::f16 ? to_double(Half{words[at]}) : to_double(Bfloat16{words[at]})) / form.scale;
    };
    const auto norm = norms.to_host(), loss = lost.to_host(), row_scales = scales.to_host();
    for (Index i = 0; i < rows; ++i) {
      EXPECT_EQ(got[static_cast<std::size_t>(i)], i % count);
      // The bound holds, and is not far beyond what is lost.
      const double error = bound.of(norm[static_cast<std::size_t>(i)], raw ? 0 : loss[static_cast<std::size_t>(i)]);
      const double up = scale * (raw ? 1 : row_scales[static_cast<std::size_t>(i)]);
      for (Index k = 0; k < count; ++k) {
        Real score = exact[static_cast<std::size_t>(k)];
        for (Index j = 0; j < d; ++j) score += (static_cast<Real>(x.at(i, j)) - (raw ? 0 : 1)) * centres.at(k, j);
        const Real found = up * static_cast<Real>(product_at(static_cast<std::size_t>(i * columns + k))) +
                           unit * static_cast<Real>(constants[static_cast<std::size_t>(k)]);
        EXPECT_TRUE(test::within(found, score, error));
      }
      EXPECT_LE(error, ((narrow_type == Dtype::f16 ? 0x1p-10 : 0x1p-8) + form.rounding * 1.01) *
                           norm[static_cast<std::size_t>(i)] * largest);
    }
  }
}

// Small integers, whose sums are exact: ties are ties, the lowest candidate wins them, and nothing is left undecided.
TEST_F(KernelTest, OpenRowsAreEvaluatedExactly) {
  std::vector<Dtype> types{Dtype::f16, Dtype::f64};
  if (!kSmall) types.insert(types.end(), {Dtype::bf16, Dtype::f32});
  for (const auto type : types)
    for (const auto& [rows, d, count, padding, offset] : {std::array<Index, 5>{1, 1, 1, 0, 0},
                                                          {33, 7, 3, 1, 1},
                                                          {40, 64, 33, 0, 0},
                                                          {12, 530, 9, 0, 0},
                                                          {6, 5, 700, 0, 0},
                                                          {1, 3, 2100, 0, 0}}) {
      SCOPED_TRACE(testing::Message() << to_string(type) << ", " << rows << " x " << d << ", " << count);
      std::mt19937 random(7);
      test::Samples x(type, rows, d, padding, offset);
      Grid A(count, d);
      for (double& value : A.values) value = static_cast<double>(random() % 5);
      for (Index j = 0; j < d; ++j) A.at(count - 1, j) = A.at(0, j);
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < d; ++j) x.set(i, j, static_cast<double>(random() % 5));
      std::vector<double> bias;
      for (Index k = 0; k < count; ++k) bias.push_back(static_cast<double>(k % 3));
      bias.back() = bias.front();
      CudaBackend backend(0, {.cuda_stream = stream()});
      std::shared_ptr<void> keep;
      const MatrixView view = x.device(backend, keep);
      const Buffer<double> a(queue_, A.values), b(queue_, bias);

      // Every other row with all, the others with two or three candidates.
      std::vector<OpenRow> open(static_cast<std::size_t>(rows));
      std::vector<Count> counts(2, 0);
      std::vector<std::vector<Index>> asked(open.size());
      for (Index i = 0; i < rows; ++i) {
        if (i % 2 == 0 || count < 3) {
          open[static_cast<std::size_t>(rows - 1 - static_cast<Index>(counts[1]++))] = {static_cast<std::int32_t>(i),
                                                                                        {-1, -1, -1}};
          for (Index k = 0; k < count; ++k) asked[static_cast<std::size_t>(i)].push_back(k);
        } else {
          const auto last = static_cast<std::int32_t>(count - 1);
          open[static_cast<std::size_t>(counts[0]++)] = {static_cast<std::int32_t>(i), {last, 0, i % 3 == 0 ? 1 : -1}};
          asked[static_cast<std::size_t>(i)] = {0, count - 1};
          if (i % 3 == 0) asked[static_cast<std::size_t>(i)].push_back(1);
        }
      }
      const Buffer<OpenRow> rows_of_centres(queue_, open), rows_of_weights(queue_, open);
      const Buffer<Count> both(queue_, counts);
      const Buffer<std::int32_t> nearest(queue_, rows), chosen(queue_, rows);
      const Buffer<Decision> parts(queue_, 2 * kExactBlocks);
      const ExactSet sets[2] = {
          {count, a.get(), nullptr, {nearest.get(), rows_of_centres.get(), both.get(), rows}, parts.get()},
          {count,
           a.get(),
           b.get(),
           {chosen.get(), rows_of_weights.get(), both.get(), rows},
           parts.get() + kExactBlocks}};
      launch_decide_exactly(stream(), {view.data, type, rows, d, view.row_stride()}, sets, nullptr);
      const auto near = nearest.to_host(), best = chosen.to_host();
      for (Index i = 0; i < rows; ++i) {
        Index want_near = -1, want_best = -1;
        double least = HUGE_VAL, most = -HUGE_VAL;
        auto& candidates = asked[static_cast<std::size_t>(i)];
        std::sort(candidates.begin(), candidates.end());
        for (const Index k : candidates) {
          double distance = 0, score = bias[static_cast<std::size_t>(k)];
          for (Index j = 0; j < d; ++j) {
            const double gap = x.at(i, j) - A.at(k, j);
            distance += gap * gap;
            score += x.at(i, j) * A.at(k, j);
          }
          if (distance < least) want_near = k, least = distance;
          if (score > most) want_best = k, most = score;
        }
        EXPECT_EQ(near[static_cast<std::size_t>(i)], want_near) << i;
        EXPECT_EQ(best[static_cast<std::size_t>(i)], want_best) << i;
      }
      // In a batch with a fault nobody wants to know: rows of NaN are open with all candidates.
      if (kSmall && rows != 33) continue;
      const std::vector<std::int32_t> untouched(static_cast<std::size_t>(rows), -7);
      BatchRecord bad_label, nonfinite;
      bad_label.bad_labels = nonfinite.nonfinite = 1;
      for (const BatchRecord& fault : {bad_label, nonfinite}) {
        const Buffer<BatchRecord> record(queue_, std::vector<BatchRecord>{fault});
        queue_.upload(nearest.get(), untouched.data(), nearest.bytes());
        launch_decide_exactly(stream(), {view.data, type, rows, d, view.row_stride()}, sets, record.get());
        EXPECT_EQ(nearest.to_host(), untouched);
      }
    }
}

TEST_F(KernelTest, DecisionsAreCountedWhetherOrNotABlockHoldsTheCounters) {
  for (const auto& [rows, classes] : {std::pair<Index, Index>{1, 1}, {3000, 2}, {2000, 300}, {500, 2100}}) {
    const auto labels = test::make_labels(test::Classes::mostly_one, rows, classes, 5);
    std::vector<Index> of_centre;
    for (Index k = 0; k < classes; k += 2) of_centre.push_back(k);
    std::vector<std::int32_t> centre, chosen;
    std::vector<Index> want(static_cast<std::size_t>(4 * classes), 7);
    std::mt19937 random(3);
    for (const Index label : labels) {
      centre.push_back(static_cast<std::int32_t>(random() % of_centre.size()));
      if (random() % 2 == 0) centre.back() = static_cast<std::int32_t>(label / 2);
      chosen.push_back(
          static_cast<std::int32_t>(random() % 2 == 0 ? label : random() % static_cast<unsigned>(classes)));
      const Index near = of_centre[static_cast<std::size_t>(centre.back())];
      ++want[static_cast<std::size_t>(label)];
      want[static_cast<std::size_t>(classes + label)] += near == label ? 1 : 0;
      want[static_cast<std::size_t>(2 * classes + label)] += chosen.back() == label ? 1 : 0;
      want[static_cast<std::size_t>(3 * classes + label)] += chosen.back() == near ? 1 : 0;
    }
    const Buffer<Index> on_device(queue_, labels), classes_of(queue_, of_centre),
        counters(queue_, std::vector<Index>(want.size(), 7));
    const Buffer<std::int32_t> near(queue_, centre), best(queue_, chosen);
    std::vector<BatchRecord> record(1);
    const Buffer<BatchRecord> open(queue_, record);
    record.front().shut = 1;
    const Buffer<BatchRecord> shut(queue_, record);
    const Buffer<Count> none(queue_, std::vector<Count>{0}), some(queue_, std::vector<Count>{2});
    for (const auto& [gate, undecided] : {std::pair{&open, &none}, {&open, &some}, {&shut, &none}})
      launch_count_decisions(stream(), {on_device.get(), LabelType::i64, rows}, near.get(), classes_of.get(),
                             best.get(), classes, gate->get(), undecided->get(), counters.get());
    EXPECT_EQ(counters.to_host(), want);
  }
}

TEST_F(KernelTest, RowsAreRawOnlyWhereProductsCanReadThem) {
  alignas(16) unsigned char memory[64] = {};
  const auto raw = [&](Dtype type, Index stride, Index offset_bytes) {
    return can_be_raw({memory + offset_bytes, type, 2, 5, stride});
  };
  for (const auto type : {Dtype::f16, Dtype::bf16}) {
    EXPECT_TRUE(raw(type, 8, 0));
    EXPECT_TRUE(raw(type, 16, 16));
    for (const Index stride : {5, 9, 12}) EXPECT_FALSE(raw(type, stride, 0));
    for (const Index offset : {2, 8}) EXPECT_FALSE(raw(type, 8, offset));
  }
  EXPECT_FALSE(raw(Dtype::f32, 8, 0));
  EXPECT_FALSE(raw(Dtype::f64, 8, 0));
}

// Panels of columns, of unequal widths, and a last slice that is shorter. Small integers: every product is exact.
template <class Z, class P, class Make>
void expect_lower_triangles(Queue& queue, Index rows, Index d, Index slice, const Make& make) {
  const auto value = [&](Index i, Index j) { return static_cast<double>((i * 7 + j * 5) % 11 - 5); };
  std::vector<Z> z;
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < d; ++j) z.push_back(make(value(i, j)));
  const Index slices = (rows + slice - 1) / slice;
  const Buffer<Z> on_device(queue, z);
  const Buffer<P> partial(queue, std::vector<P>(static_cast<std::size_t>(slices * d * d), P{-1}));
  gram_slices(queue, on_device.get(), rows, d, slice, partial.get());
  const auto got = partial.to_host();
  for (Index s = 0; s < slices; ++s)
    for (Index i = 0; i < d; i += 3)
      for (Index j = 0; j <= i; ++j) {
        double want = 0;
        for (Index row = s * slice; row < std::min((s + 1) * slice, rows); ++row) want += value(row, i) * value(row, j);
        ASSERT_EQ(got[static_cast<std::size_t>((s * d + i) * d + j)], want) << s << ": " << i << ", " << j;
      }
}

TEST_F(KernelTest, SlicesHaveWholeLowerTriangles) {
  const auto same = [](double x) { return x; };
  for (const Index d : {255, 520, 771, kSmall ? 520 : 1030})
    expect_lower_triangles<double, double>(queue_, 11, d, 4, same);
  if (kSmall) return;
  const auto half = [](double x) { return to_half(static_cast<float>(x)); };
  for (const Index d : {1016, 2056}) expect_lower_triangles<Half, float>(queue_, 3, d, 2, half);
}

TEST_F(KernelTest, NarrowProductsAreAccumulatedInSinglePrecision) {
  for (const auto type : {Dtype::f16, Dtype::bf16}) EXPECT_TRUE(narrow_products_are_exact(queue_, type));
  const auto calls = cuda_shim::calls().vendor_calls;
  for (const auto type : {Dtype::f16, Dtype::bf16}) EXPECT_TRUE(narrow_products_are_exact(queue_, type));
  EXPECT_EQ(cuda_shim::calls().vendor_calls, calls);  // known
}

TEST_F(KernelTest, NarrowResultsAreRoundedOnce) {
  for (const auto type : {Dtype::f16, Dtype::bf16}) EXPECT_TRUE(narrow_results_are_rounded_once(queue_, type));
  for (const auto set : {cuda_shim::set_half_sums, cuda_shim::set_truncated_results}) {
    Queue other(0, nullptr);
    set(true);
    for (const auto type : {Dtype::f16, Dtype::bf16}) EXPECT_FALSE(narrow_results_are_rounded_once(other, type));
    set(false);
  }
}

// A GPU that is full, or broken, is not one that lacks such products.
TEST_F(KernelTest, AFailureOfATrialIsNotItsResult) {
  for (const auto trial : {narrow_products_are_exact, narrow_results_are_rounded_once}) {
    Queue queue(0, nullptr);
    cuda_shim::set_narrow_status(CUBLAS_STATUS_ALLOC_FAILED);
    EXPECT_THROW(trial(queue, Dtype::bf16), DeviceError);
    cuda_shim::set_narrow_status(CUBLAS_STATUS_SUCCESS);
    EXPECT_TRUE(trial(queue, Dtype::bf16));
    Queue old(0, nullptr);
    cuda_shim::set_narrow_status(CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_FALSE(trial(old, Dtype::bf16));
    cuda_shim::set_narrow_status(CUBLAS_STATUS_SUCCESS);
    EXPECT_FALSE(trial(old, Dtype::bf16));  // known
  }
}

TEST_F(KernelTest, NarrowProductsThatAreNotAreRefused) {
  cuda_shim::set_half_sums(true);
  for (const auto type : {Dtype::f16, Dtype::bf16}) EXPECT_FALSE(narrow_products_are_exact(queue_, type));
  CudaBackend backend(0, {});
  test::Samples x(Dtype::f32, 3, 8);
  test::fill(x, {0, 1, 0}, 0.1, 4);
  const test::Labels y(LabelType::i64, {0, 1, 0});
  MomentState moments;
  moments.classes = 2;
  moments.dim = 8;
  moments.precision = Precision::fast;
  moments.counts = backend.index_array(2, 1);
  moments.shifts = backend.matrix(2, 8);
  moments.sums = backend.matrix(2, 8);
  moments.square_sums = backend.matrix(2, 1);
  moments.scatter = backend.matrix(8, 8);
  EXPECT_THROW(backend.add_batch(moments, x.host(), y.host()), DeviceError);
  DecisionState decisions;
  decisions.classes = 2;
  decisions.dim = 8;
  decisions.centres = Grid::random(2, 8, 5).on(backend);
  decisions.centre_class = backend.index_array(2, 1);
  decisions.counters = backend.index_array(4, 2);
  EXPECT_THROW(backend.decide_batch(decisions, x.host(), y.host()), DeviceError);
  PairQuery query;
  query.fast = true;
  query.norms = {1, 1};
  query.gram_norm = query.frame_norm = 1;
  EXPECT_THROW(backend.pair_sums(decisions.centres, query), DeviceError);
  cuda_shim::set_half_sums(false);
}

// ---------------------------------------------------------------- the backend's care for what it is given
TEST_F(KernelTest, NothingIsLeftBehind) {
  const auto before = cuda_shim::live_allocations();
  {
    CudaBackend backend(0, {});
    const Matrix A = Grid::random(5, 5, 1).on(backend);
    backend.inner(A, A);
    EXPECT_GT(cuda_shim::live_allocations(), before);
  }
  EXPECT_EQ(cuda_shim::live_allocations(), before);
}

TEST_F(KernelTest, TheCurrentDeviceIsPutBack) {
  check(cudaSetDevice(1));
  CudaBackend backend(0, {});
  const Matrix A = Grid::random(5, 5, 1).on(backend);
  backend.inner(A, A);
  int device = -1;
  check(cudaGetDevice(&device));
  EXPECT_EQ(device, 1);
}

TEST_F(KernelTest, ABorrowedStreamIsUsedAndNotDestroyed) {
  cudaStream_t mine = nullptr;
  check(cudaStreamCreateWithFlags(&mine, cudaStreamNonBlocking));
  {
    ContextOptions options;
    options.cuda_stream = mine;
    CudaBackend backend(0, options);
    EXPECT_EQ(backend.inner(Grid::random(2, 2, 1).on(backend), backend.matrix(2, 2)), 0);
  }
  check(cudaStreamSynchronize(mine));
  check(cudaStreamDestroy(mine));
}

TEST_F(KernelTest, AnUnknownDeviceIsADeviceError) { EXPECT_THROW(open_cuda_backend(7, {}), DeviceError); }

TEST_F(KernelTest, EigenvectorsThatAreNoneAreNotReturned) {
  CudaBackend backend(0, {});
  Matrix A = backend.matrix(6, 6);
  backend.add_gram(1, Grid::random(9, 6, 2).on(backend), A);
  Matrix again = backend.clone(A);
  cuda_shim::spoil_next_eigenvectors();
  EXPECT_THROW(backend.eigh(A), Error);
  cuda_shim::spoil_next_eigenvalues();
  Matrix third = backend.clone(again);
  EXPECT_THROW(backend.eigenvalues(third), Error);
  EXPECT_NO_THROW(backend.eigh(again));
}

TEST_F(KernelTest, SolversThatDoNotConvergeAreErrors) {
  CudaBackend backend(0, {});
  const Matrix A = Grid::random(4, 6, 3).on(backend);
  const Matrix gram = backend.product(A, Transpose::no, A, Transpose::yes);
  const auto expect_error = [&](const auto& solve) {
    for (const bool fails : {true, false}) {
      Matrix B = backend.clone(gram);
      if (fails) cuda_shim::fail_next_solver();
      if (fails)
        EXPECT_THROW(solve(B), Error);
      else
        EXPECT_NO_THROW(solve(B));
    }
  };
  expect_error([&](Matrix& B) { backend.eigh(B); });
  expect_error([&](Matrix& B) { backend.eigenvalues(B); });
  expect_error([&](Matrix& B) { backend.svd(B); });
  expect_error([&](Matrix& B) { backend.singular_values(B); });
}

// ---------------------------------------------------------------- the stand-in itself
/// Wants a __syncthreads between the two lines.
__global__ void pass_on_without_waiting(double* out) {
  double* shared = shared_memory<double>();
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[(threadIdx.x + 1) % kBlock];
}

// Fails under ThreadSanitizer, as it should; run by a test of its own that expects the report.
TEST_F(KernelTest, DISABLED_ARaceIsReported) {
  const Buffer<double> out(queue_, kBlock);
  launch(stream(), {1, 1, kBlock * static_cast<Index>(sizeof(double))}, pass_on_without_waiting, out.get());
}

/// Every block adds to what the one before it left.
__global__ void pass_on_to_the_next_block(double* out) {
  if (threadIdx.x == blockIdx.x) out[blockIdx.x] = blockIdx.x > 0 ? out[blockIdx.x - 1] + 1 : 1;
}

// As above.
TEST_F(KernelTest, DISABLED_ARaceBetweenBlocksIsReported) {
  const Buffer<double> out(queue_, std::vector<double>(3));
  for (int i = 0; i < 2; ++i) launch(stream(), {3}, pass_on_to_the_next_block, out.get());
}

#ifdef CUDA_SHIM_READS
TEST_F(KernelTest, AReadOfWhatNobodyWroteEndsTheProcess) {
  const Buffer<double> values(queue_, 2), sum(queue_, 1);
  launch_identity(stream(), values.get(), 1);  // the first of both
  const auto add_up = [&](Index count) { launch_inner(stream(), values.get(), values.get(), count, sum.get()); };
  EXPECT_DEATH(add_up(2), "a read of device memory that nobody wrote");
  EXPECT_DEATH(values.to_host(), "a read of device memory that nobody wrote");
  add_up(1);
  EXPECT_EQ(sum.to_host(), std::vector<double>{1});
}
#endif

/// A kernel on one stream, a copy of its result on another.
double read_on_another_stream(Queue& queue, bool in_order, bool host_waits) {
  const Stream other(nullptr);
  Event written, copied;
  const Buffer<double> value(queue, std::vector<double>{1}), copy(queue, std::vector<double>{2});
  queue.wait();
  launch_identity(queue.stream(), value.get(), 1);
  launch_combine_rows(queue.stream(), value.get(), value.get(), value.get(), value.get(), 1, 1, value.get());  // 2
  written.record(queue.stream());
  if (in_order) written.hold(other.get());
  check(cudaMemcpyAsync(copy.get(), value.get(), sizeof(double), cudaMemcpyDeviceToDevice, other.get()));
  copied.record(other.get());
  if (host_waits)
    copied.wait();
  else
    copied.hold(queue.stream());
  return copy.to_host().front();
}

TEST_F(KernelTest, WorkOfOtherStreamsIsOrderedByEvents) {
  for (const bool host_waits : {false, true}) EXPECT_EQ(read_on_another_stream(queue_, true, host_waits), 2);
  // What nothing orders is seen to be out of order.
  const auto order = cuda_shim::order();
  if (order == cuda_shim::Order::needed_only) {
    EXPECT_EQ(read_on_another_stream(queue_, false, true), 1);
  } else if (order == cuda_shim::Order::others_first) {
    EXPECT_EQ(read_on_another_stream(queue_, false, false), 1);
  }
}

// A stream that is destroyed still does its work, but not there and then.
TEST_F(KernelTest, ADestroyedStreamIsNotWaitedFor) {
  const Buffer<double> value(queue_, std::vector<double>{1}), copy(queue_, std::vector<double>{2});
  queue_.wait();
  Event copied;
  {
    const Stream other(nullptr);
    check(cudaMemcpyAsync(copy.get(), value.get(), sizeof(double), cudaMemcpyDeviceToDevice, other.get()));
    copied.record(other.get());
  }
  if (cuda_shim::order() == cuda_shim::Order::needed_only) {
    EXPECT_EQ(copy.to_host().front(), 2);
  }
  copied.hold(stream());
  EXPECT_EQ(copy.to_host().front(), 1);
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)

class ShimDeathTest : public KernelTest {};

__global__ void write_at(double* out, Index at) {
  if (thread_id() == 0) out[at] = 1;
}
__global__ void write_shared(Index at) {
  if (thread_id() == 0) shared_memory<double>()[at] = 1;
}
__global__ void half_of_them_wait() {
  if (threadIdx.x < kBlock / 2) __syncthreads();
  if (threadIdx.x >= kBlock / 2) warp_sum(1.0);
  if (threadIdx.x % kWarp < 3) __syncthreads();
  warp_sum(1.0);
}

__global__ void some_lanes_end() {
  if (threadIdx.x % kWarp < 3) return;
  warp_sum(1.0);
}
__global__ void lanes_take_different_branches() {
  if (threadIdx.x % kWarp < 3)
    __ballot_sync(kAllLanes, true);
  else
    __ballot_sync(kAllLanes, false);
}

TEST_F(ShimDeathTest, SeesWritesOutsideAnAllocation) {
  EXPECT_DEATH(
      {
        const Buffer<double> out(queue_, 5);
        launch(stream(), {1}, write_at, out.get(), Index{5});
      },
      "behind the end");
  EXPECT_DEATH(
      {
        const Buffer<double> out(queue_, 5);
        launch(stream(), {1}, write_at, out.get(), Index{-1});
      },
      "before the start");
}

TEST_F(ShimDeathTest, SeesWritesOutsideSharedMemory) {
  EXPECT_DEATH(launch(stream(), {1, 1, 64}, write_shared, Index{8}), "shared memory");
  launch(stream(), {1, 1, 72}, write_shared, Index{8});
}

TEST_F(ShimDeathTest, SeesHostCodeThatReadsDeviceMemory) {
  const Buffer<double> out(queue_, std::vector<double>{1});
  EXPECT_DEATH(std::printf("%f", *static_cast<volatile double*>(out.get())), "");
}

TEST_F(ShimDeathTest, SeesThreadsThatWaitForEachOtherForEver) {
  EXPECT_DEATH(launch(stream(), {1}, half_of_them_wait), "wait for each other");
}

TEST_F(ShimDeathTest, SeesLanesThatDoNotMeet) {
  EXPECT_DEATH((launch(stream(), {1}, some_lanes_end), queue_.wait()), "after some lanes have ended");
  EXPECT_DEATH((launch(stream(), {1}, lanes_take_different_branches), queue_.wait()), "different exchanges");
}

TEST_F(ShimDeathTest, RefusesAnotherDevice) {
  const Buffer<double> out(queue_, 1);
  const DeviceGuard elsewhere(1);
  Event event;
  EXPECT_DEATH(event.record(stream()), "another device");
  EXPECT_DEATH(launch_identity(stream(), out.get(), 1), "another device");
  EXPECT_DEATH(gemm(queue_, Transpose::no, Transpose::no, 1, 1, 1, out.get(), 1, out.get(), 1, out.get(), 1),
               "another device");
}

TEST_F(ShimDeathTest, RefusesWhatACaptureCannotHold) {
  const Buffer<double> out(queue_, 1);
  const Stream other(nullptr, Stream::kBeside), tied(nullptr);
  Event before, within;
  before.record(other.get());
  const auto begin = [&] {
    cuda_shim::set_capturing(true);
    launch_identity(stream(), out.get(), 1);
    within.record(stream());
  };
  EXPECT_DEATH((begin(), launch_identity(other.get(), out.get(), 1)), "not part of it");
  EXPECT_DEATH((begin(), within.hold(tied.get())), "tied to the legacy default stream");
  EXPECT_DEATH((begin(), before.hold(stream())), "not recorded in it");
  EXPECT_DEATH((begin(), cuda_shim::set_capturing(false), within.hold(other.get())), "recorded in a capture");
  EXPECT_DEATH(
      (begin(), within.hold(other.get()), launch_identity(other.get(), out.get(), 1), cuda_shim::set_capturing(false)),
      "not joined");
  begin();
  within.hold(other.get());
  launch_identity(other.get(), out.get(), 1);
  before.record(other.get());
  before.hold(stream());
  cuda_shim::set_capturing(false);
}

TEST_F(ShimDeathTest, RefusesTheDefaultStreamAndEmptyGrids) {
  const Buffer<double> out(queue_, 5);
  EXPECT_DEATH(launch(cudaStream_t{nullptr}, {1}, write_at, out.get(), Index{0}), "default stream");
  launch(stream(), {0}, write_at, out.get(), Index{99});  // launch() leaves it out
}

TEST_F(ShimDeathTest, PoisonsFreshMemory) {
  const Buffer<double> fresh(queue_, 100);
  for (const double value : fresh.to_host()) EXPECT_TRUE(std::isnan(value));
  // A missing __syncthreads reads poison (or a neighbour's old value) under the fibers, and is a race under TSan.
  const Buffer<double> out(queue_, kBlock);
  launch(stream(), {1, 1, kBlock * static_cast<Index>(sizeof(double))}, pass_on_without_waiting, out.get());
  EXPECT_TRUE(std::isnan(out.to_host()[0]));
}

#endif

}  // namespace
}  // namespace ncollapse::cuda
