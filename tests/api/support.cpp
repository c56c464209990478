#include "tests/api/support.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <tuple>

namespace ncollapse_test {

using ncollapse::MatrixView;

void expect_close(double got, double want, double relative, double absolute, const std::string& what,
                  std::source_location where) {
  const double bound = relative * std::abs(want) + absolute;
  if (!(std::abs(got - want) <= bound))
    ADD_FAILURE_AT(where.file_name(), static_cast<int>(where.line()))
        << what << ": " << testing::PrintToString(got) << " instead of " << testing::PrintToString(want) << ", off by "
        << std::abs(got - want) << ", allowed " << bound;
}

void OnDevice::SetUp() {
  try {
    context_.emplace(ncollapse::Device::parse(GetParam()));
  } catch (const ncollapse::DeviceError& error) {
    GTEST_SKIP() << GetParam() << ": " << error.what();
  }
}

// --- samples

void Samples::add(std::int64_t label, const std::vector<double>& row) {
  labels.push_back(label);
  values.insert(values.end(), row.begin(), row.end());
}

oracle::Data Samples::truth() const {
  oracle::Data data;
  data.features = oracle::Matrix(rows(), dim);
  std::copy(values.begin(), values.end(), data.features.values.begin());
  data.labels = labels;
  data.classes = classes;
  return data;
}

Samples make_samples(const Recipe& recipe) {
  std::mt19937_64 random(recipe.seed);
  std::normal_distribution<double> normal;
  Samples samples;
  samples.classes = static_cast<Index>(recipe.counts.size());
  samples.dim = recipe.dim;
  for (Index k = 0; k < samples.classes; ++k) {
    std::vector<double> mean(at(recipe.dim)), row(at(recipe.dim));
    for (double& x : mean) x = recipe.offset + recipe.spread * normal(random);
    for (Index i = 0; i < recipe.counts[at(k)]; ++i) {
      for (std::size_t j = 0; j < row.size(); ++j)
        row[j] = mean[j] + recipe.noise[at(k) % recipe.noise.size()] * normal(random);
      samples.add(k, row);
    }
  }
  return reordered(samples, shuffled_order(samples.rows(), recipe.seed + 1));
}

Samples reordered(const Samples& samples, const std::vector<Index>& order) {
  Samples result{samples.classes, samples.dim, {}, {}};
  for (Index i : order) {
    const auto row = samples.values.begin() + i * samples.dim;
    result.add(samples.labels[at(i)], std::vector<double>(row, row + samples.dim));
  }
  return result;
}

std::vector<Index> shuffled_order(Index rows, unsigned seed) {
  std::vector<Index> order(at(rows));
  std::iota(order.begin(), order.end(), Index(0));
  std::mt19937_64 random(seed);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

std::pair<Samples, Samples> split(const Samples& samples, std::vector<Index> counts) {
  std::vector<Index> first, second;
  for (Index i = 0; i < samples.rows(); ++i) (counts[at(samples.labels[at(i)])]-- > 0 ? first : second).push_back(i);
  return {reordered(samples, first), reordered(samples, second)};
}

namespace {

/// Stored mantissa bits and exponent bias of the 16-bit types.
int mantissa_bits(Dtype dtype) { return dtype == Dtype::f16 ? 10 : 7; }
int exponent_bias(Dtype dtype) { return dtype == Dtype::f16 ? 15 : 127; }

/// The nearest value, ties to even.
std::uint16_t encode16(double x, Dtype dtype) {
  const int m = mantissa_bits(dtype), bias = exponent_bias(dtype);
  const auto sign = static_cast<std::uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const auto infinity = static_cast<std::uint16_t>(0x7fff >> m << m);
  if (std::isnan(x)) return static_cast<std::uint16_t>(infinity | 1);
  if (std::isinf(x)) return static_cast<std::uint16_t>(sign | infinity);
  if (x == 0) return sign;
  const int exponent = std::max(std::ilogb(x), 1 - bias);  // subnormal values share the lowest one
  const auto mantissa = static_cast<int>(std::nearbyint(std::ldexp(std::abs(x), m - exponent)));  // up to 2^(m+1)
  const int bits = ((exponent + bias - 1) << m) + mantissa;  // the leading 1 raises the exponent field
  EXPECT_LT(bits, infinity) << x << " is too large for the element type";
  return static_cast<std::uint16_t>(sign | bits);
}

template <class T>
void store(std::vector<std::byte>& bytes, Index element, T value) {
  std::memcpy(bytes.data() + at(element) * sizeof(T), &value, sizeof(T));
}

}  // namespace

double decode16(std::uint16_t bits, Dtype dtype) {
  const int m = mantissa_bits(dtype), bias = exponent_bias(dtype);
  const int exponent = (bits & 0x7fff) >> m, mantissa = bits & ((1 << m) - 1);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, 1 - bias - m) : std::ldexp(mantissa + (1 << m), exponent - bias - m);
  return bits & 0x8000 ? -magnitude : magnitude;
}

MatrixView Encoded::view(Index first, Index count) const {
  return {bytes.data() + first * stride * ncollapse::size_of(dtype),
          dtype,
          count,
          cols,
          stride,
          ncollapse::MemorySpace::host};
}

Encoded encode(const std::vector<double>& values, Index rows, Index cols, Dtype dtype, Index stride) {
  Encoded result{dtype, rows, cols, stride == 0 ? cols : stride, {}};
  result.bytes.resize(at(rows * result.stride * ncollapse::size_of(dtype)));
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < result.stride; ++j) {
      const double x = j < cols ? values[at(i * cols + j)] : std::numeric_limits<double>::quiet_NaN();
      const Index element = i * result.stride + j;
      switch (dtype) {
        case Dtype::f64: store(result.bytes, element, x); break;
        case Dtype::f32: store(result.bytes, element, static_cast<float>(x)); break;
        case Dtype::f16:
        case Dtype::bf16: store(result.bytes, element, encode16(x, dtype)); break;
      }
    }
  return result;
}

std::vector<double> rounded(std::vector<double> values, Dtype dtype) {
  for (double& x : values) {
    if (dtype == Dtype::f32) x = static_cast<double>(static_cast<float>(x));
    if (dtype == Dtype::f16 || dtype == Dtype::bf16) x = decode16(encode16(x, dtype), dtype);
  }
  return values;
}

Samples rounded(Samples samples, Dtype dtype) {
  samples.values = rounded(std::move(samples.values), dtype);
  return samples;
}

// --- runs of the library

AccumulatorOptions options_for(const Samples& samples) {
  AccumulatorOptions options;
  options.classes = samples.classes;
  options.dim = samples.dim;
  return options;
}

std::vector<double> inverse_counts(const Samples& samples) {
  std::vector<double> counts(at(samples.classes), 0.0);
  for (std::int64_t label : samples.labels) ++counts[at(label)];
  for (double& n : counts) n = n > 0 ? 1 / n : 1;
  return counts;
}

void add_samples(Accumulator& accumulator, const Samples& samples, Index batch_rows, Dtype dtype) {
  const Encoded features = encode(samples.values, samples.rows(), samples.dim, dtype);
  if (batch_rows == 0) batch_rows = samples.rows();
  for (Index first = 0; first < samples.rows(); first += batch_rows) {
    const Index count = std::min(batch_rows, samples.rows() - first);
    accumulator.add(features.view(first, count), label_view(samples.labels, first, count));
  }
  accumulator.check();  // a GPU finds faults later
}

Accumulator accumulate(const Context& context, const Samples& samples, Index batch_rows, Dtype dtype) {
  Accumulator accumulator(context, options_for(samples));
  add_samples(accumulator, samples, batch_rows, dtype);
  return accumulator;
}

ClassMoments moments_of(const Context& context, const Samples& samples) {
  return accumulate(context, samples).finish();
}

ncollapse::Classifier Head::classifier() const {
  ncollapse::Classifier result;
  result.layers = {ncollapse::view(weights.data(), classes, dim)};
  if (!bias.empty()) result.bias = ncollapse::view(bias.data(), 1, classes);
  return result;
}

oracle::Head Head::truth() const {
  oracle::Head result;
  result.weights = oracle::Matrix(classes, dim);
  std::copy(weights.begin(), weights.end(), result.weights.values.begin());
  result.bias.assign(bias.begin(), bias.end());
  return result;
}

Head random_head(Index classes, Index dim, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  Head head{classes, dim, std::vector<double>(at(classes * dim)), std::vector<double>(at(classes))};
  for (double& w : head.weights) w = normal(random);
  for (double& b : head.bias) b = normal(random);
  return head;
}

Problem typical_problem() {
  Problem problem;
  const Samples all = make_samples({{49, 13, 24, 34, 8, 105, 55}, 12, {0.4, 0.7, 1.2}, 1.0, 0.3, 11});
  std::tie(problem.train, problem.test) = split(all, {40, 1, 17, 33, 8, 90, 25});
  problem.head = random_head(7, 12, 12);
  // Near the means, so that the head is often right and the alignments are not those of noise alone.
  const oracle::Moments moments = oracle::moments(problem.train.truth());
  for (std::size_t i = 0; i < problem.head.weights.size(); ++i)
    problem.head.weights[i] = 0.3 * problem.head.weights[i] + static_cast<double>(moments.means.values[i]);
  problem.ood_mean.resize(12);
  for (std::size_t j = 0; j < 12; ++j) problem.ood_mean[j] = 0.1 * static_cast<double>(j) - 0.4;
  return problem;
}

DecisionCounts count_decisions(const ClassMoments& centres, const Head& head, const Samples& samples, Index batch_rows,
                               Dtype dtype) {
  const ncollapse::Classifier classifier = head.classifier();
  ncollapse::DecisionCounter counter(centres, head.weights.empty() ? nullptr : &classifier);
  const Encoded features = encode(samples.values, samples.rows(), samples.dim, dtype);
  if (batch_rows == 0) batch_rows = samples.rows();
  for (Index first = 0; first < samples.rows(); first += batch_rows) {
    const Index count = std::min(batch_rows, samples.rows() - first);
    counter.add(features.view(first, count), label_view(samples.labels, first, count));
  }
  return counter.finish();
}

Report measure_with(const ClassMoments& moments, const Problem& problem, Convention convention, Index batch_rows) {
  const ncollapse::Classifier classifier = problem.head.classifier();
  const DecisionCounts train = count_decisions(moments, problem.head, problem.train, batch_rows);
  DecisionCounts test;
  ncollapse::Evidence evidence;
  evidence.train = &train;
  if (!problem.head.weights.empty()) evidence.classifier = &classifier;
  if (problem.test.rows() > 0) {
    test = count_decisions(moments, problem.head, problem.test, batch_rows);
    evidence.test = &test;
  }
  if (!problem.ood_mean.empty()) evidence.ood_mean = &problem.ood_mean;
  return ncollapse::measure(moments, evidence, convention);
}

Report measure_problem(const Context& context, const Problem& problem, Convention convention) {
  AccumulatorOptions options = options_for(problem.train);
  if (convention == Convention::classavg) options.scatter_weights = inverse_counts(problem.train);
  Accumulator accumulator(context, options);
  add_samples(accumulator, problem.train);
  return measure_with(accumulator.finish(), problem, convention);
}

// --- runs of the oracle, and comparisons

Truth::Truth(const Problem& problem) : moments_(oracle::moments(problem.train.truth())) {
  if (!problem.head.weights.empty()) head_ = problem.head.truth();
  train_ = oracle::decide(moments_, head_, problem.train.truth());
  if (problem.test.rows() > 0) test_ = oracle::decide(moments_, head_, problem.test.truth());
  ood_mean_.assign(problem.ood_mean.begin(), problem.ood_mean.end());
  vci_ = static_cast<double>(oracle::vci(moments_));
}

oracle::Evidence Truth::evidence() const {
  oracle::Evidence result;
  result.train = &train_;
  if (head_.weights.rows > 0) result.head = &head_;
  if (!test_.samples.empty()) result.test = &test_;
  if (!ood_mean_.empty()) result.ood_mean = &ood_mean_;
  return result;
}

std::map<std::string, double> Truth::metrics(Convention convention) const {
  std::map<std::string, double> result;
  for (const auto& [key, value] : oracle::metrics(moments_, evidence(), convention))
    result[key] = static_cast<double>(value);
  if (convention != Convention::classavg) result["nc1_vci"] = vci_;
  return result;
}

std::map<std::string, std::vector<double>> Truth::per_class(Convention convention) const {
  std::map<std::string, std::vector<double>> result;
  for (const auto& [key, values] : oracle::per_class(moments_, evidence(), convention))
    result[key].assign(values.begin(), values.end());
  return result;
}

void expect_report(const Report& report, const Truth& truth, Convention convention, double relative, double absolute) {
  SCOPED_TRACE("convention " + std::string(ncollapse::to_string(convention)));
  expect_sound(report);
  const auto want = truth.metrics(convention);
  for (const auto& [key, value] : want) {
    const auto got = report.find(key);
    if (!got) {
      ADD_FAILURE() << key << " has no number; expected " << value;
    } else {
      expect_close(*got, value, relative, absolute, key);
    }
  }
  for (const std::string& key : promised_scalars())
    if (!want.contains(key) && key != "nc1_vci") {
      EXPECT_FALSE(report.find(key).has_value()) << key << " has a number although its formula has none here";
    }
  for (const auto& [key, values] : truth.per_class(convention)) {
    const auto got = std::find_if(report.per_class.begin(), report.per_class.end(),
                                  [&, name = key](const ncollapse::PerClassMetric& m) { return m.key == name; });
    if (got == report.per_class.end()) {
      ADD_FAILURE() << key << " is missing";
      continue;
    }
    ASSERT_EQ(got->values.size(), values.size()) << key;
    for (std::size_t k = 0; k < values.size(); ++k) {
      if (std::isnan(values[k]))
        EXPECT_TRUE(std::isnan(got->values[k])) << key << " of class " << k;
      else
        expect_close(got->values[k], values[k], relative, absolute, key + " of class " + std::to_string(k));
    }
  }
}

void expect_sound(const Report& report) {
  std::map<std::string, std::size_t> position;
  for (const auto& info : ncollapse::metric_catalogue()) position.emplace(info.key, position.size());
  std::size_t next = 0;
  std::set<std::string> numbers;
  for (const auto& [key, value] : report.metrics) {
    EXPECT_TRUE(std::isfinite(value)) << key;
    const auto found = position.find(key);
    if (found == position.end()) {
      ADD_FAILURE() << key << " is not in the catalogue";
      continue;
    }
    EXPECT_GE(found->second, next) << key << " is out of catalogue order, or there twice";
    next = found->second + 1;
    numbers.insert(key);
  }
  for (const auto& [key, status] : report.status) {
    EXPECT_TRUE(position.contains(key)) << key << " is not in the catalogue";
    EXPECT_TRUE(status.code == "skipped" || status.code == "undefined") << key << ": " << status.code;
    EXPECT_FALSE(status.why.empty()) << key;
    EXPECT_FALSE(numbers.contains(key)) << key << " has both a number and a status";
  }
  std::set<std::string> vectors;
  for (const auto& [key, values] : report.per_class) {
    EXPECT_TRUE(position.contains(key)) << key << " is not in the catalogue";
    EXPECT_EQ(values.size(), at(report.classes)) << key;
    EXPECT_TRUE(vectors.insert(key).second) << key << " is there twice";
    for (double value : values) EXPECT_FALSE(std::isinf(value)) << key;
  }
  for (const auto& info : ncollapse::metric_catalogue()) {
    const std::string key(info.key);
    EXPECT_TRUE(numbers.contains(key) || vectors.contains(key) || report.status.contains(key))
        << key << " has neither a number nor a status";
  }
}

void expect_counts(const DecisionCounts& got, const oracle::Decisions& want) {
  EXPECT_EQ(got.samples, want.samples);
  EXPECT_EQ(got.correct_centre, want.correct_centre);
  if (!got.has_classifier) return;
  EXPECT_EQ(got.correct_classifier, want.correct_classifier);
  EXPECT_EQ(got.agree, want.agree);
}

void expect_same_metrics(const Report& got, const Report& want, double relative, double absolute) {
  ASSERT_EQ(got.metrics.size(), want.metrics.size());
  for (std::size_t i = 0; i < want.metrics.size(); ++i) {
    EXPECT_EQ(got.metrics[i].key, want.metrics[i].key);
    expect_close(got.metrics[i].value, want.metrics[i].value, relative, absolute, want.metrics[i].key);
  }
  ASSERT_EQ(got.per_class.size(), want.per_class.size());
  for (std::size_t i = 0; i < want.per_class.size(); ++i)
    for (std::size_t k = 0; k < want.per_class[i].values.size(); ++k)
      if (!std::isnan(want.per_class[i].values[k]))
        expect_close(got.per_class[i].values[k], want.per_class[i].values[k], relative, absolute,
                     want.per_class[i].key + " of class " + std::to_string(k));
  EXPECT_EQ(got.convention.rank_used, want.convention.rank_used);
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](double x, double y) {
           return std::bit_cast<std::uint64_t>(x) == std::bit_cast<std::uint64_t>(y);
         });
}

void expect_same_bits(const ClassMoments& a, const ClassMoments& b) {
  EXPECT_EQ(a.samples(), b.samples());
  EXPECT_EQ(a.counts(), b.counts());
  EXPECT_TRUE(same_bits(a.means(), b.means())) << "means differ";
  ASSERT_EQ(a.statistics(), b.statistics());
  if (a.statistics() == ncollapse::Statistics::means) return;
  EXPECT_TRUE(same_bits(a.within_variances(), b.within_variances())) << "variances differ";
  if (a.statistics() == ncollapse::Statistics::traces) return;
  EXPECT_TRUE(same_bits(a.within_scatter(), b.within_scatter())) << "scatters differ";
}

void expect_same_bits(const Report& a, const Report& b) {
  ASSERT_EQ(a.metrics.size(), b.metrics.size());
  for (std::size_t i = 0; i < a.metrics.size(); ++i) {
    EXPECT_EQ(a.metrics[i].key, b.metrics[i].key);
    EXPECT_TRUE(same_bits({a.metrics[i].value}, {b.metrics[i].value})) << a.metrics[i].key;
  }
  ASSERT_EQ(a.per_class.size(), b.per_class.size());
  for (std::size_t i = 0; i < a.per_class.size(); ++i)
    EXPECT_TRUE(same_bits(a.per_class[i].values, b.per_class[i].values)) << a.per_class[i].key;
}

const std::vector<std::string>& promised_scalars() {
  static const std::vector<std::string> keys = {
      "nc1_pinv",          "nc1_pinv_sum",      "nc1_trace_ratio",    "nc1_within_frac",   "nc1_cdnv",
      "nc1_vci",           "nc2_equinorm_h",    "nc2_equinorm_w",     "nc2_equiang_h",     "nc2_equiang_w",
      "nc2_cos_mean_h",    "nc2_cos_std_h",     "nc2_cos_max_h",      "nc2_etf_h",         "nc2_etf_w",
      "nc2_of_h",          "nc2_gnc_dist_mean", "nc2_gnc_dist_var",   "nc2_gnc_log_mean",  "nc2_gnc_log_var",
      "nc2_nearest_etf",   "nc_drift",          "nc3_dual",           "nc3_wh_etf",        "nc3_wh_of",
      "nc3_cos_mean",      "nc3_cos_min",       "nc3_uni_dot_var",    "nc0_rowsum",        "nc_bias",
      "nc_bias_prior",     "nc2_cos_mean_w",    "nc2_cos_std_w",      "nc2_cos_max_w",     "nc2_of_w",
      "nc2_min_angle_deg", "nc4_agree_train",   "nc4_agree_test",     "acc_top1_train",    "acc_top1_test",
      "ncc_acc_train",     "ncc_acc_test",      "acc_balanced_train", "acc_balanced_test", "nc5_ortho"};
  return keys;
}

const std::vector<std::string>& promised_vectors() {
  static const std::vector<std::string> keys = {"nc1_per_class",           "nc1_per_class_nearest",
                                                "acc_per_class_train",     "acc_per_class_test",
                                                "ncc_acc_per_class_train", "ncc_acc_per_class_test"};
  return keys;
}

}  // namespace ncollapse_test
