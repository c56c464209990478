// What the tests share: devices, synthetic samples in every element type, runs of the library and of the oracle.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

#include "ncollapse/ncollapse.hpp"
#include "tests/oracle/oracle.hpp"

namespace ncollapse_test {

using ncollapse::Accumulator;
using ncollapse::AccumulatorOptions;
using ncollapse::ClassMoments;
using ncollapse::Context;
using ncollapse::Convention;
using ncollapse::DecisionCounts;
using ncollapse::Dtype;
using ncollapse::Index;
using ncollapse::Report;

inline std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// Bound for a metric against the oracle on well-conditioned data: sums of up to 1e4 double terms carry less than
/// 1e4 eps = 2e-12 (in practice its root), and a between-class scatter of condition up to 1e4 turns 40 eps into 1e-10.
constexpr double kRounding = 1e-10;
/// Bound for the same metric computed twice by the library from the same samples in another order.
constexpr double kOrder = 1e-11;
/// For values whose exact result is 0 or cancels to it: a few hundred eps of numbers of size 1.
constexpr double kZero = 1e-13;

/// Fails unless |got - want| <= relative |want| + absolute. NaN fails.
void expect_close(double got, double want, double relative, double absolute, const std::string& what = "",
                  std::source_location where = std::source_location::current());

/// One test body for every backend; a device that is not there is skipped with the reason.
class OnDevice : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override;
  const Context& context() const { return *context_; }

 private:
  std::optional<Context> context_;
};
#define NCOLLAPSE_ON_EVERY_DEVICE(suite)                                   \
  INSTANTIATE_TEST_SUITE_P(Devices, suite, testing::Values("cpu", "cuda"), \
                           [](const testing::TestParamInfo<std::string>& parameter) { return parameter.param; })

// --- samples

struct Samples {
  Index classes = 0, dim = 0;
  std::vector<double> values;        // [rows x dim]
  std::vector<std::int64_t> labels;  // [rows]

  Index rows() const { return static_cast<Index>(labels.size()); }
  void add(std::int64_t label, const std::vector<double>& row);
  oracle::Data truth() const;
};

struct Recipe {
  std::vector<Index> counts;  // n_k; 0 for an absent class
  Index dim = 1;
  std::vector<double> noise = {1.0};  // standard deviation of class k within a coordinate: noise[k % size]
  double spread = 1.0;                // standard deviation of a coordinate of the class means
  double offset = 0.0;                // added to every coordinate
  unsigned seed = 1;
};
/// Normal class means, normal noise, rows in random order.
Samples make_samples(const Recipe& recipe);

Samples reordered(const Samples& samples, const std::vector<Index>& order);
std::vector<Index> shuffled_order(Index rows, unsigned seed);
/// The first counts[k] rows of every class, and the others.
std::pair<Samples, Samples> split(const Samples& samples, std::vector<Index> counts);

/// The samples in the bytes of an element type. Elements between the columns and the stride are NaN.
struct Encoded {
  Dtype dtype = Dtype::f64;
  Index rows = 0, cols = 0, stride = 0;
  std::vector<std::byte> bytes;

  ncollapse::MatrixView view(Index first, Index count) const;
  ncollapse::MatrixView view() const { return view(0, rows); }
};
Encoded encode(const std::vector<double>& values, Index rows, Index cols, Dtype dtype, Index stride = 0);
/// The value that the bit pattern of a 16-bit element stands for.
double decode16(std::uint16_t bits, Dtype dtype);
/// Every value replaced by the nearest one of the element type, so that encode() loses nothing.
std::vector<double> rounded(std::vector<double> values, Dtype dtype);
Samples rounded(Samples samples, Dtype dtype);

inline ncollapse::LabelView label_view(const std::vector<std::int64_t>& labels, Index first, Index count) {
  return ncollapse::view(labels.data() + first, count);
}

// --- runs of the library

AccumulatorOptions options_for(const Samples& samples);
/// 1/n_k for the classes that have samples, 1 for the others: what the convention `classavg` needs.
std::vector<double> inverse_counts(const Samples& samples);

/// Adds the rows in batches of `batch_rows` (0: all at once), and throws what is wrong with any of them.
void add_samples(Accumulator& accumulator, const Samples& samples, Index batch_rows = 0, Dtype dtype = Dtype::f64);
Accumulator accumulate(const Context& context, const Samples& samples, Index batch_rows = 0, Dtype dtype = Dtype::f64);
ClassMoments moments_of(const Context& context, const Samples& samples);

/// A single linear layer, f64.
struct Head {
  Index classes = 0, dim = 0;
  std::vector<double> weights, bias;  // no bias: empty

  ncollapse::Classifier classifier() const;
  oracle::Head truth() const;
};
Head random_head(Index classes, Index dim, unsigned seed);

/// All evidence there can be; an empty part is evidence that was not given.
struct Problem {
  Samples train, test;
  Head head;
  std::vector<double> ood_mean;
};
/// Imbalanced classes of different noise, a class with one sample, a head that is no copy of the means, a test split.
Problem typical_problem();

DecisionCounts count_decisions(const ClassMoments& centres, const Head& head, const Samples& samples,
                               Index batch_rows = 0, Dtype dtype = Dtype::f64);
/// measure() on moments that were made from problem.train; counts the decisions of both splits first.
Report measure_with(const ClassMoments& moments, const Problem& problem, Convention convention = Convention::zhu,
                    Index batch_rows = 0);
Report measure_problem(const Context& context, const Problem& problem, Convention convention = Convention::zhu);

// --- runs of the oracle, and comparisons

/// What is expected of a problem; the expensive parts are computed once for all conventions.
class Truth {
 public:
  explicit Truth(const Problem& problem);
  std::map<std::string, double> metrics(Convention convention) const;
  std::map<std::string, std::vector<double>> per_class(Convention convention) const;
  const oracle::Moments& moments() const { return moments_; }
  const oracle::Decisions& train() const { return train_; }
  const oracle::Decisions& test() const { return test_; }

 private:
  oracle::Evidence evidence() const;

  oracle::Head head_;
  oracle::Moments moments_;
  oracle::Decisions train_, test_;
  oracle::Vector ood_mean_;
  double vci_ = 0;
};

/// Every metric of the oracle, and none that the oracle finds undefined.
void expect_report(const Report& report, const Truth& truth, Convention convention, double relative, double absolute);
/// Finite numbers under catalogued keys in catalogue order; every other scalar key has a status with a reason.
void expect_sound(const Report& report);
void expect_counts(const DecisionCounts& got, const oracle::Decisions& want);
/// Scalars, per-class values and rank agree.
void expect_same_metrics(const Report& got, const Report& want, double relative, double absolute);

bool same_bits(const std::vector<double>& a, const std::vector<double>& b);
void expect_same_bits(const ClassMoments& a, const ClassMoments& b);
void expect_same_bits(const Report& a, const Report& b);

/// Keys that the catalogue has to have.
const std::vector<std::string>& promised_scalars();
const std::vector<std::string>& promised_vectors();

}  // namespace ncollapse_test
