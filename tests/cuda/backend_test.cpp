// Every verb of the seam against plain long-double arithmetic. The same tests run on the host stand-in and on a GPU;
// where there is no GPU they are skipped. Each runs with the backend's own sizes and again with tiny blocks and tiles,
// so that small cases cross every border.
#include "cuda/backend.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <tuple>

#include "cuda/few_classes.hpp"
#include "cuda/pairs.hpp"
#include "host/moments.hpp"
#include "ncollapse/error.hpp"
#include "tests/cuda/pair_sums.hpp"

namespace ncollapse::test {
namespace {

cuda::Limits tiny_limits() {
  cuda::Limits limits;
  limits.block_bytes = 1 << 16;
  limits.block_rows = 70;
  limits.centred_bytes = 40 * 8 * 17;
  limits.slice_rows = 15;
  limits.wide_dim = 100;
  limits.piece_bytes = 4099;
  limits.group_runs = 1;
  limits.fold = 2;
  limits.few_classes = 0;
  limits.row_tile = 33;
  limits.candidate_tile = 7;
  limits.product_tile = 9;
  limits.pair_rows = 21;
  limits.pair_columns = 12;
  limits.half_pair_rows = 41;
  limits.half_pair_columns = 14;
  limits.pair_blocks = 1;
  limits.pair_terms = 16;
  return limits;
}

/// Chunks of 16 rows for batches of few classes; slices as tiny.
cuda::Limits few_limits() {
  cuda::Limits limits;
  limits.few_classes = cuda::kMostFewClasses;
  limits.few_rows = 16;
  limits.few_blocks = 1 << 20;
  limits.slice_rows = 15;
  limits.piece_bytes = 4099;
  return limits;
}

class CudaBackendTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto all = cuda_devices();
    if (all.usable.empty()) GTEST_SKIP() << "cuda: " << all.unavailable_reason();
    const int device = all.usable.front().device.index;
    if (std::string(GetParam()) == "defaults")
      backend_ = open_cuda_backend(device, {});
    else
      backend_ = std::make_shared<cuda::CudaBackend>(device, ContextOptions{},
                                                     std::string(GetParam()) == "few" ? few_limits() : tiny_limits());
  }

  std::shared_ptr<Backend> backend_;
};

INSTANTIATE_TEST_SUITE_P(Sizes, CudaBackendTest, testing::Values("defaults", "tiny"),
                         [](const auto& name) { return std::string(name.param); });

// ---------------------------------------------------------------- moments
/// Also with chunks of few classes.
class CudaMomentsTest : public CudaBackendTest {};

INSTANTIATE_TEST_SUITE_P(Sizes, CudaMomentsTest, testing::Values("defaults", "tiny", "few"),
                         [](const auto& name) { return std::string(name.param); });

MomentState new_state(Backend& backend, Index classes, Index dim, Statistics statistics,
                      const std::vector<double>& scale = {}, Precision precision = Precision::exact) {
  MomentState state;
  state.precision = precision;
  state.classes = classes;
  state.dim = dim;
  state.statistics = statistics;
  state.counts = backend.index_array(classes, 1);
  state.shifts = backend.matrix(classes, dim);
  state.sums = backend.matrix(classes, dim);
  if (statistics >= Statistics::traces) state.square_sums = backend.matrix(classes, 1);
  if (statistics >= Statistics::full) state.scatter = backend.matrix(dim, dim);
  if (!scale.empty()) {
    state.scatter_scale = backend.matrix(classes, 1);
    backend.from_host(state.scatter_scale, scale);
  }
  return state;
}

/// Adds a batch and waits for what is found in it.
BatchFaults add(Backend& backend, MomentState& state, const MatrixView& features, const LabelView& labels) {
  const BatchFaults earlier = backend.add_batch(state, features, labels);
  EXPECT_FALSE(earlier.any());
  return backend.pending_faults(state);
}

/// All bits of a state.
std::vector<double> image(Backend& backend, const MomentState& state) {
  std::vector<double> all;
  for (const Index count : backend.to_host(state.counts)) all.push_back(static_cast<double>(count));
  for (const Matrix* matrix : {&state.shifts, &state.sums, &state.square_sums, &state.scatter})
    if (*matrix)
      for (const double value : backend.to_host(*matrix)) all.push_back(value);
  return all;
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

void expect_moments(Backend& backend, const MomentState& state, const Samples& x, const Labels& y,
                    const std::vector<double>& scale) {
  const Index rows = x.rows(), d = x.cols(), classes = state.classes;
  std::vector<Index> counts(static_cast<std::size_t>(classes), 0), first(static_cast<std::size_t>(classes), -1);
  for (Index i = 0; i < rows; ++i) {
    ++counts[y[i]];
    if (first[y[i]] < 0) first[y[i]] = i;
  }
  EXPECT_EQ(backend.to_host(state.counts), counts);

  const Grid shifts = Grid::from(backend, state.shifts), sums = Grid::from(backend, state.sums);
  std::vector<Real> z(static_cast<std::size_t>(rows * d)), sum(static_cast<std::size_t>(classes * d)), sum_abs(sum),
      square(static_cast<std::size_t>(classes));
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < d; ++j) {
      const Index k = y[i];
      const Real value = static_cast<Real>(x.at(i, j)) - x.at(first[k], j);
      z[i * d + j] = value;
      sum[k * d + j] += value;
      sum_abs[k * d + j] += std::fabs(value);
      square[k] += value * value;
    }
  for (Index k = 0; k < classes; ++k)
    for (Index j = 0; j < d; ++j) {
      ASSERT_EQ(shifts.at(k, j), first[k] < 0 ? 0 : x.at(first[k], j)) << "shift of class " << k << ", column " << j;
      const Real bound = static_cast<Real>(counts[k] + 2) * kUnit * sum_abs[k * d + j];
      ASSERT_TRUE(within(sums.at(k, j), sum[k * d + j], bound)) << "sum of class " << k << ", column " << j;
    }
  if (state.square_sums) {
    const auto squares = backend.to_host(state.square_sums);
    for (Index k = 0; k < classes; ++k)
      ASSERT_TRUE(within(squares[k], square[k], static_cast<Real>(counts[k] * d + 4) * kUnit * square[k])) << k;
  }
  if (!state.scatter) return;
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < d; ++j) z[i * d + j] *= scale.empty() ? 1 : scale[y[i]];
  const Grid scatter = Grid::from(backend, state.scatter);
  std::vector<Real> diagonal;
  for (Index a = 0; a < d; ++a) {
    std::vector<Real> want(static_cast<std::size_t>(a + 1)), size(want);
    for (Index i = 0; i < rows; ++i)
      for (Index b = 0; b <= a; ++b) {
        const Real product = z[i * d + a] * z[i * d + b];
        want[b] += product;
        size[b] += std::fabs(product);
      }
    diagonal.push_back(want[a]);
    for (Index b = 0; b <= a; ++b) {
      Real bound = static_cast<Real>(rows + 8) * kUnit * size[b];
      if (state.precision == Precision::fast && b < a) bound = kFastError * std::sqrt(diagonal[a] * diagonal[b]);
      ASSERT_TRUE(within(scatter.at(a, b), want[b], bound)) << a << ", " << b;
    }
    for (Index b = a + 1; b < d; ++b) ASSERT_EQ(scatter.at(a, b), 0) << "the upper triangle was written";
  }
}

struct MomentCase {
  Index rows, dim, classes;
  Dtype dtype;
  LabelType label;
  Classes kind;
  Index padding, offset;
  Statistics statistics;
  bool weighted;
};

std::vector<MomentCase> moment_cases() {
  using enum Classes;
  const auto full = Statistics::full;
  std::vector<MomentCase> cases{
      {1, 1, 1, Dtype::f64, LabelType::i64, uniform, 0, 0, full, false},
      {1, 3, 2, Dtype::f32, LabelType::i32, uniform, 0, 0, full, false},
      {31, 17, 2, Dtype::f16, LabelType::u8, uniform, 1, 1, full, true},
      {32, 17, 33, Dtype::bf16, LabelType::i64, uniform, 0, 0, full, false},
      {33, 3, 33, Dtype::f32, LabelType::i64, singletons, 5, 3, full, false},
      {100, 17, 4, Dtype::f64, LabelType::u8, mostly_one, 0, 0, full, true},
      {100, 3, 2, Dtype::f32, LabelType::i32, sorted, 1, 0, Statistics::means, false},
      {100, 1, 33, Dtype::bf16, LabelType::u8, absent, 0, 1, Statistics::traces, false},
      {70, 130, 3, Dtype::f32, LabelType::i64, uniform, 0, 0, full, true},
  };
  if (kSmall) return cases;
  for (const auto dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
    for (const auto kind : {uniform, absent, mostly_one, singletons, sorted}) {
      cases.push_back({1000, 17, 33, dtype, LabelType::i64, kind, 0, 0, full, false});
      cases.push_back({1000, 128, kind == singletons ? 300 : 2, dtype, LabelType::i32, kind, 0, 0,
                       kind == uniform ? full : Statistics::traces, false});
      cases.push_back({333, 257, 300, dtype, LabelType::i64, kind, 7, 1, kind == sorted ? full : Statistics::means,
                       kind == sorted});
    }
  // Rows wider than 128 columns, in pairs and not; the last slab is not full.
  for (const auto dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
    for (const Index dim : {264, 145}) {
      cases.push_back({130, dim, 3, dtype, LabelType::i64, uniform, dim % 2, 0, full, true});
      cases.push_back({200, dim, 40, dtype, LabelType::i64, absent, 2, 0, Statistics::traces, false});
    }
  cases.push_back({1000, 257, 1, Dtype::f32, LabelType::u8, uniform, 3, 0, full, false});
  cases.push_back({1000, 1, 300, Dtype::f64, LabelType::i32, uniform, 2, 0, full, false});
  cases.push_back({1000, 3, 1000, Dtype::f16, LabelType::i64, singletons, 0, 0, full, false});
  return cases;
}

TEST_P(CudaMomentsTest, AddBatchIsExact) {
  unsigned seed = 0;
  for (const auto& c : moment_cases()) {
    SCOPED_TRACE(testing::Message() << c.rows << " x " << c.dim << ", " << c.classes << " classes, "
                                    << to_string(c.dtype) << ", kind " << static_cast<int>(c.kind));
    const auto labels = make_labels(c.kind, c.rows, c.classes, ++seed);
    Samples x(c.dtype, c.rows, c.dim, c.padding, c.offset);
    fill(x, labels, 0.1, seed);
    const Labels y(c.label, labels);
    std::vector<double> scale;
    for (Index k = 0; c.weighted && k < c.classes; ++k) scale.push_back(std::sqrt(1.0 / static_cast<double>(k + 2)));

    MomentState state = new_state(*backend_, c.classes, c.dim, c.statistics, scale);
    ASSERT_FALSE(add(*backend_, state, x.host(), y.host()).any());
    expect_moments(*backend_, state, x, y, scale);
    if (HasFatalFailure()) return;

    // The same rows from device memory, and again: the same bits.
    MomentState again = new_state(*backend_, c.classes, c.dim, c.statistics, scale);
    std::shared_ptr<void> keep_x, keep_y;
    ASSERT_FALSE(add(*backend_, again, x.device(*backend_, keep_x), y.device(*backend_, keep_y)).any());
    EXPECT_TRUE(same_bits(image(*backend_, state), image(*backend_, again)));
  }
}

// Batches of few classes, at the borders of chunks, octets and groups of warps; and as the general way adds them.
TEST(CudaFewClassesTest, ChunksOfEverySizeAreAddedUp) {
  const auto devices = cuda_devices().usable;
  if (devices.empty()) GTEST_SKIP() << "cuda: no device";
  struct Case {
    Index least_rows, rows, dim, classes;
    Classes kind;
    Statistics statistics;
  };
  using enum Classes;
  const auto means = Statistics::means, traces = Statistics::traces, full = Statistics::full;
  std::vector<Case> cases{
      {16, 1, 3, 1, uniform, full},       {16, 16, 3, 2, sorted, full},     {16, 17, 66, 10, uniform, full},
      {16, 33, 257, 2, mostly_one, full}, {16, 40, 512, 10, absent, means}, {128, 31, 20, 128, singletons, full},
      {16, 40, 1, 16, uniform, full},     {16, 40, 1, 17, uniform, full},   {64, 63, 1, 128, uniform, full},
      {64, 63, 3, 129, uniform, full},    {32, 100, 600, 3, sorted, traces}};
  if (!kSmall)
    for (const Case& more : {Case{32, 31, 130, 10, uniform, full},
                             {32, 32, 130, 10, mostly_one, full},
                             {32, 33, 130, 10, absent, full},
                             {128, 127, 64, 2, sorted, full},
                             {128, 128, 1030, 10, uniform, full},
                             {128, 129, 64, 16, mostly_one, full},
                             {128, 700, 520, 10, uniform, traces},
                             {1024, 1023, 65, 128, uniform, traces},
                             {1024, 1024, 768, 2, mostly_one, traces},
                             {1024, 1025, 18, 16, sorted, full},
                             {64, 2000, 9, 16, absent, full},
                             {16, 1500, 2048, 2, mostly_one, means}})
      cases.push_back(more);
  unsigned seed = 900;
  for (const auto& c : cases)
    for (const auto dtype : {Dtype::bf16, Dtype::f32}) {
      SCOPED_TRACE(testing::Message() << c.rows << " x " << c.dim << ", " << c.classes << " classes, chunks of "
                                      << c.least_rows << ", " << to_string(dtype));
      cuda::Limits limits;
      limits.few_rows = c.least_rows;
      limits.few_blocks = 1 << 20;
      cuda::Limits general = limits;
      general.few_classes = 0;
      const auto labels = make_labels(c.kind, c.rows, c.classes, ++seed);
      Samples x(dtype, c.rows, c.dim);
      fill(x, labels, 0.1, seed);
      const Labels y(LabelType::i32, labels);
      std::vector<std::vector<double>> images;
      for (const auto& each : {limits, limits, general}) {
        cuda::CudaBackend backend(devices.front().device.index, {}, each);
        MomentState state = new_state(backend, c.classes, c.dim, c.statistics);
        ASSERT_FALSE(add(backend, state, x.host(), y.host()).any());
        if (images.empty()) expect_moments(backend, state, x, y, {});
        if (HasFatalFailure()) return;
        images.push_back(image(backend, state));
      }
      EXPECT_TRUE(same_bits(images[0], images[1]));
      for (std::size_t i = 0; i < images[0].size(); ++i)
        ASSERT_TRUE(within(images[0][i], images[2][i], 1e-11 * (1 + std::fabs(images[2][i])))) << i;
    }
}

// Both kinds of faults in one batch of few classes, in full, wherever they are; and where no class was ever seen.
TEST(CudaFewClassesTest, FaultsOfBothKindsAreCounted) {
  const auto devices = cuda_devices().usable;
  if (devices.empty()) GTEST_SKIP() << "cuda: no device";
  const Index rows = 70, d = 300, classes = 4;
  const auto labels = make_labels(Classes::uniform, rows, classes, 40);
  auto wrong_labels = labels;
  wrong_labels[50] = 9;
  wrong_labels[69] = 4;
  const Labels good(LabelType::u8, labels), wrong(LabelType::u8, wrong_labels);
  Samples x(Dtype::bf16, rows, d);
  fill(x, labels, 0.1, 40);
  Samples wrong_x = x;
  for (const auto& [i, j] : {std::pair{50, 299}, {50, 0}, {23, 256}, {69, 7}})
    wrong_x.set(i, j, std::numeric_limits<double>::infinity());
  for (const auto& [limits, statistics] : {std::pair{few_limits(), Statistics::full},     // several chunks
                                           std::pair{few_limits(), Statistics::traces},   // without Z
                                           std::pair{cuda::Limits{}, Statistics::full}})  // one
    for (const bool fresh : {true, false}) {
      cuda::CudaBackend backend(devices.front().device.index, {}, limits);
      MomentState state = new_state(backend, classes, d, statistics);
      if (!fresh) {
        ASSERT_FALSE(add(backend, state, x.host(), good.host()).any());
      }
      const auto before = image(backend, state);
      const BatchFaults faults = add(backend, state, wrong_x.host(), wrong.host());
      EXPECT_EQ(faults.bad_labels, 2);
      EXPECT_EQ(faults.bad_label_row, 50);
      EXPECT_EQ(faults.bad_label, 9);
      EXPECT_EQ(faults.nonfinite, 4);
      EXPECT_EQ(faults.nonfinite_row, 23);
      EXPECT_EQ(faults.nonfinite_col, 256);
      EXPECT_EQ(faults.rows, rows);
      EXPECT_EQ(faults.batch, fresh ? 0 : 1);
      EXPECT_TRUE(same_bits(before, image(backend, state)));
      ASSERT_FALSE(add(backend, state, x.host(), good.host()).any());
      if (fresh) expect_moments(backend, state, x, good, {});
    }
}

// Batches of one chunk, of several and of the general way in turn. Before each comes a bad batch that has every class,
// and behind that a good one that must not count; classes are new in every batch.
TEST(CudaFewClassesTest, BothWaysTakeTurns) {
  const auto devices = cuda_devices().usable;
  if (devices.empty()) GTEST_SKIP() << "cuda: no device";
  const Index d = 9, classes = 7, most = 200, sizes[] = {12, 40, most, 40, 12, most};
  cuda::Limits limits = few_limits();
  limits.few_bytes = 100 * d * 2;
  std::vector<Index> labels, all;
  for (Index b = 0; b < 6; ++b)
    for (Index i = 0; i < sizes[b]; ++i) labels.push_back((5 * i) % (b + 2));
  for (Index i = 0; i < most; ++i) all.push_back((3 * i) % classes);
  auto wrong = all;
  wrong[most - 2] = classes;
  for (const auto dtype : {Dtype::bf16, Dtype::f16})
    for (const auto statistics : {Statistics::full, Statistics::traces, Statistics::means}) {
      SCOPED_TRACE(testing::Message() << to_string(dtype) << ", " << static_cast<int>(statistics));
      Samples x(dtype, static_cast<Index>(labels.size()), d), bad(dtype, most, d);
      fill(x, labels, 0.1, 50);
      fill(bad, all, 0.1, 51);
      bad.set(most - 1, d - 1, std::numeric_limits<double>::quiet_NaN());
      const Labels y(LabelType::i32, labels), good_y(LabelType::i32, all), wrong_y(LabelType::i32, wrong);
      cuda::CudaBackend backend(devices.front().device.index, {}, limits);
      MomentState state = new_state(backend, classes, d, statistics);
      Index first = 0;
      for (Index b = 0; b < 6; ++b) {
        const auto before = image(backend, state);
        for (const Index rows : {sizes[b], sizes[(b + 1) % 6]})
          for (const Labels* of_bad : {&good_y, &wrong_y}) {
            ASSERT_FALSE(backend.add_batch(state, bad.host(most - rows, rows), of_bad->host(most - rows, rows)).any());
            const BatchFaults shown = backend.add_batch(state, x.host(first, sizes[b]), y.host(first, sizes[b]));
            const BatchFaults faults = shown.any() ? shown : backend.pending_faults(state);
            EXPECT_EQ(faults.rows, rows);
            EXPECT_EQ(faults.batch, b);
            if (of_bad == &good_y || rows < most) {  // else only labels were read
              EXPECT_EQ(faults.nonfinite, 1);
            }
            EXPECT_EQ(faults.bad_labels, of_bad == &wrong_y ? 1 : 0);
            ASSERT_TRUE(same_bits(before, image(backend, state)));
          }
        ASSERT_FALSE(add(backend, state, x.host(first, sizes[b]), y.host(first, sizes[b])).any());
        first += sizes[b];
      }
      expect_moments(backend, state, x, y, {});
    }
}

// Classes of up to 32 runs, whose carries are folded two or three at a time; and Z in chunks, which change no sum.
TEST(CudaClassSumsTest, ClassesOfManyRunsAreAddedUpInOrder) {
  const auto devices = cuda_devices().usable;
  if (devices.empty()) GTEST_SKIP() << "cuda: no device";
  const Index rows = 1000, d = kSmall ? 3 : 20;
  for (const Index group_runs : {1, 2, 8})
    for (const Index fold : {2, 3, 32})
      for (const auto& [kind, classes] :
           {std::pair<Classes, Index>{Classes::mostly_one, 3}, {Classes::sorted, 3}, {Classes::uniform, 60}}) {
        SCOPED_TRACE(testing::Message() << group_runs << " runs a group, " << fold << " folded, " << classes
                                        << " classes");
        const auto labels = make_labels(kind, rows, classes, 3);
        Samples x(Dtype::f32, rows, d, 0, 0);
        fill(x, labels, 0.1, 3);
        const Labels y(LabelType::i64, labels);
        std::vector<double> whole;
        for (const Index centred_bytes : {Index{512} << 20, 32 * group_runs * ((d + 1) / 2 * 2) * 8}) {
          cuda::Limits limits;
          limits.group_runs = group_runs;
          limits.fold = fold;
          limits.few_classes = 0;
          limits.centred_bytes = centred_bytes;
          cuda::CudaBackend backend(devices.front().device.index, {}, limits);
          MomentState state = new_state(backend, classes, d, Statistics::full);
          ASSERT_FALSE(add(backend, state, x.host(), y.host()).any());
          expect_moments(backend, state, x, y, {});
          if (testing::Test::HasFatalFailure()) return;
          auto bits = image(backend, state);
          bits.resize(bits.size() - static_cast<std::size_t>(d * d));  // but for the scatter
          if (whole.empty()) whole = bits;
          EXPECT_TRUE(same_bits(whole, bits));
        }
      }
}

// Columns of sizes from 1e-25 to 1e25 and without any spread; one row that stands out by 1e4.
TEST_P(CudaBackendTest, FastScatterKeepsItsBound) {
  unsigned seed = 500;
  for (const auto& c : moment_cases()) {
    if (c.statistics != Statistics::full || c.rows * c.dim > 40000) continue;
    SCOPED_TRACE(testing::Message() << c.rows << " x " << c.dim << ", " << c.classes << " classes, "
                                    << to_string(c.dtype) << ", kind " << static_cast<int>(c.kind));
    const auto labels = make_labels(c.kind, c.rows, c.classes, ++seed);
    Samples x(c.dtype, c.rows, c.dim, c.padding, c.offset);
    fill(x, labels, 0.1, seed);
    const bool wide = c.dtype == Dtype::f64 || c.dtype == Dtype::f32;
    for (Index i = 0; i < c.rows; ++i)
      for (Index j = 0; j < c.dim; ++j) {
        const double size = wide ? std::pow(10.0, static_cast<double>(j % 6) * 10 - 25) : 1;
        x.set(i, j, j % 7 == 3 ? 0.75 : x.at(i, j) * size * (wide && i == c.rows / 2 ? 1e4 : 1));
      }
    const Labels y(c.label, labels);
    std::vector<double> scale;
    for (Index k = 0; c.weighted && k < c.classes; ++k) scale.push_back(std::sqrt(1.0 / static_cast<double>(k + 2)));
    std::vector<double> first;
    for (int run = 0; run < 2; ++run) {
      MomentState state = new_state(*backend_, c.classes, c.dim, c.statistics, scale, Precision::fast);
      ASSERT_FALSE(add(*backend_, state, x.host(), y.host()).any());
      const auto bits = image(*backend_, state);
      if (run == 0) expect_moments(*backend_, state, x, y, scale);
      if (HasFatalFailure()) return;
      if (run == 0) first = bits;
      EXPECT_TRUE(same_bits(first, bits));
    }
  }
}

// Both factors of the largest product are rounded by half a unit, and every other product is lost in the sum.
TEST_P(CudaBackendTest, FastScatterKeepsItsBoundWhereErrorsConspire) {
  const Index rows = 4096, d = 8;
  Samples x(Dtype::f32, rows, d);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < d; ++j) x.set(i, j, i == 0 ? 0 : i == 1 ? 1 + 0x1p-11 : 0x1p-12);
  const Labels y(LabelType::i64, std::vector<Index>(static_cast<std::size_t>(rows), 0));
  MomentState state = new_state(*backend_, 1, d, Statistics::full, {}, Precision::fast);
  ASSERT_FALSE(add(*backend_, state, x.host(), y.host()).any());
  expect_moments(*backend_, state, x, y, {});
}

// Columns are scaled by what came before: as large, much larger, much smaller, and all of one value.
TEST_P(CudaBackendTest, FastScatterKeepsItsBoundWhateverCameBefore) {
  const Index rows = kSmall ? 70 : 300, d = 21, classes = 5;
  const double sizes[] = {1, 3, 1e-6, 1e12, 0, 1e-12, 2, 45, 0.05, 1};
  const Index batches = 10;
  const auto labels = make_labels(Classes::uniform, batches * rows, classes, 60);
  const Labels y(LabelType::i64, labels);
  for (const auto dtype : {Dtype::f64, Dtype::f32}) {
    Samples x(dtype, batches * rows, d);
    fill(x, labels, 0.1, 60);
    for (Index i = 0; i < batches * rows; ++i)
      for (Index j = 0; j < d; ++j) x.set(i, j, x.at(i, j) * (j == 7 ? 1 : sizes[(i / rows + j % 3) % 10]));
    MomentState state = new_state(*backend_, classes, d, Statistics::full, {}, Precision::fast);
    for (Index b = 0; b < batches; ++b) {
      ASSERT_FALSE(add(*backend_, state, x.host(b * rows, rows), y.host(b * rows, rows)).any());
    }
    expect_moments(*backend_, state, x, y, {});
  }
}

TEST_P(CudaMomentsTest, AddBatchTakesManyBatches) {
  const Index rows = kSmall ? 150 : 1000, d = 17, classes = 12;
  const auto labels = make_labels(Classes::uniform, rows, classes, 5);
  Samples x(Dtype::f32, rows, d, 1);
  fill(x, labels, 1e-3, 5);
  const Labels y(LabelType::i64, labels);
  MomentState state = new_state(*backend_, classes, d, Statistics::full);
  Index first = 0;
  for (const Index size : {Index{0}, Index{1}, Index{31}, Index{0}, Index{33}, rows - 65}) {
    ASSERT_FALSE(add(*backend_, state, x.host(first, size), y.host(first, size)).any());
    first += size;
  }
  expect_moments(*backend_, state, x, y, {});
}

TEST_P(CudaMomentsTest, AlignmentDoesNotChangeBits) {
  const Index rows = kSmall ? 40 : 200, classes = 3;
  const auto labels = make_labels(Classes::uniform, rows, classes, 6);
  const Labels y(LabelType::i64, labels);
  for (const auto dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
    for (const Index d : {128, kSmall ? 130 : 300})
      for (const auto precision : {Precision::exact, Precision::fast}) {
        std::vector<double> first;
        for (const Index offset : {0, 1}) {
          Samples x(dtype, rows, d, offset == 0 ? 0 : 3, offset);
          fill(x, labels, 0.3, 6);
          MomentState state = new_state(*backend_, classes, d, Statistics::full, {}, precision);
          std::shared_ptr<void> keep;
          ASSERT_FALSE(add(*backend_, state, x.device(*backend_, keep), y.host()).any());
          const auto bits = image(*backend_, state);
          if (first.empty()) first = bits;
          EXPECT_TRUE(same_bits(first, bits)) << to_string(dtype) << ", " << d << " columns";
        }
      }
}

TEST_P(CudaMomentsTest, FaultsAreFoundAndChangeNothing) {
  const Index rows = 150, d = 19, classes = 10;
  auto labels = make_labels(Classes::uniform, rows, classes, 7);
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const auto dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16}) {
    Samples x(dtype, rows, d, 2);
    fill(x, labels, 0.1, 7);
    const Labels good(LabelType::i64, labels);
    MomentState state = new_state(*backend_, classes, d, Statistics::full);
    ASSERT_FALSE(add(*backend_, state, x.host(), good.host()).any());
    const auto before = image(*backend_, state);

    x.set(149, 18, nan);
    x.set(97, 5, -inf);
    x.set(97, 3, inf);
    BatchFaults faults = add(*backend_, state, x.host(), good.host());
    EXPECT_EQ(faults.nonfinite, 3);
    EXPECT_EQ(faults.nonfinite_row, 97);
    EXPECT_EQ(faults.nonfinite_col, 3);
    EXPECT_EQ(faults.bad_labels, 0);
    EXPECT_EQ(faults.bad_label_row, -1);

    auto wrong = labels;
    wrong[140] = 10;
    wrong[75] = -3;
    std::shared_ptr<void> keep_x, keep_y;
    for (const auto type : {LabelType::i64, LabelType::i32}) {
      const Labels bad(type, wrong);
      faults = add(*backend_, state, x.device(*backend_, keep_x), bad.device(*backend_, keep_y));
      EXPECT_EQ(faults.bad_labels, 2);
      EXPECT_EQ(faults.bad_label_row, 75);
      EXPECT_EQ(faults.bad_label, -3);
    }
    wrong[75] = 255;
    faults = add(*backend_, state, x.host(), Labels(LabelType::u8, wrong).host());
    EXPECT_EQ(faults.bad_label, 255);
    EXPECT_TRUE(same_bits(before, image(*backend_, state)));
  }
  // The first batch of a state may be the one, when nothing has been written but its start.
  auto wrong = labels;
  wrong[140] = -1;
  Samples x(Dtype::f32, rows, d, 2);
  fill(x, labels, 0.1, 7);
  for (const Precision precision : {Precision::exact, Precision::fast}) {
    MomentState state = new_state(*backend_, classes, d, Statistics::full, {}, precision);
    const auto before = image(*backend_, state);
    EXPECT_EQ(add(*backend_, state, x.host(), Labels(LabelType::i64, wrong).host()).bad_labels, 1);
    EXPECT_TRUE(same_bits(before, image(*backend_, state)));
  }
  // The largest finite and the smallest numbers are no faults.
  Samples edge(Dtype::f16, 1, 4);
  for (const auto& [j, bits] : {std::pair{0, 0x7bff}, {1, 0xfbff}, {2, 0x0001}, {3, 0x8000}})
    edge.set_bits(0, j, static_cast<std::uint16_t>(bits));
  MomentState state = new_state(*backend_, 1, 4, Statistics::means);
  EXPECT_FALSE(add(*backend_, state, edge.host(), Labels(LabelType::i64, {0}).host()).any());
  EXPECT_EQ(backend_->to_host(state.shifts), (std::vector<double>{65504, -65504, 0x1p-24, 0}));
}

// A fault that the sums themselves come upon, when they have changed classes that had samples and classes that had
// none, whole ones and one that is cut into pieces.
TEST_P(CudaBackendTest, AFaultLeavesNothingOfItsBatch) {
  const Index rows = kSmall ? 150 : 400, d = 8, classes = 7;
  std::vector<Index> first, labels;
  for (Index i = 0; i < 40; ++i) first.push_back(i % 3);                                             // 0, 1, 2
  for (Index i = 0; i < rows; ++i) labels.push_back(i % 10 == 3 ? 1 : i % 10 == 6 ? 4 + i % 2 : 0);  // not 2, 3
  for (const auto dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
    for (const auto statistics : {Statistics::full, Statistics::traces, Statistics::means}) {
      SCOPED_TRACE(testing::Message() << to_string(dtype) << ", " << static_cast<int>(statistics));
      Samples before(dtype, 40, d), x(dtype, rows, d), bad(dtype, rows, d);
      fill(before, first, 0.1, 3);
      fill(x, labels, 0.1, 4);
      fill(bad, labels, 0.1, 4);
      bad.set(rows - 1, d - 1, std::numeric_limits<double>::quiet_NaN());
      MomentState state = new_state(*backend_, classes, d, statistics),
                  other = new_state(*backend_, classes, d, statistics);
      const Labels y(LabelType::i64, labels);
      for (MomentState* both : {&state, &other})
        ASSERT_FALSE(add(*backend_, *both, before.host(), Labels(LabelType::i64, first).host()).any());
      const auto bits = image(*backend_, state);
      EXPECT_EQ(add(*backend_, state, bad.host(), y.host()).nonfinite_row, rows - 1);
      EXPECT_TRUE(same_bits(bits, image(*backend_, state)));
      ASSERT_FALSE(add(*backend_, state, x.host(), y.host()).any());
      ASSERT_FALSE(add(*backend_, other, x.host(), y.host()).any());
      EXPECT_TRUE(same_bits(image(*backend_, other), image(*backend_, state)));
    }
}

// Batches that are watched, checked before, and of few rows, in one block or several, in turn, with bad ones between:
// the state is as if every batch had been checked before.
TEST(CudaClassSumsTest, SumsOfTwoArraysAreThoseOfOne) {
  const auto devices = cuda_devices().usable;
  if (devices.empty()) GTEST_SKIP() << "cuda: no device";
  const Index d = 6, classes = 100, most = kSmall ? 200 : 400, sizes[] = {most, 150, most, 20, most, most, 3};
  for (const auto statistics : {Statistics::full, Statistics::traces, Statistics::means})
    for (const Index block_rows : {most, most / 4 + 3}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(statistics) << ", blocks of " << block_rows);
      if (kSmall && statistics != Statistics::full) continue;
      cuda::Limits limits;
      limits.block_rows = block_rows;
      limits.sum_warps = 1;
      cuda::Limits checked = limits;
      checked.second_sums_bytes = 0;
      cuda::CudaBackend backend(devices.front().device.index, {}, limits),
          other(devices.front().device.index, {}, checked);
      MomentState state = new_state(backend, classes, d, statistics), wanted = new_state(other, classes, d, statistics);
      unsigned seed = 70;
      for (const Index rows : sizes) {
        const auto labels = make_labels(Classes::mostly_one, rows, classes, ++seed);
        Samples x(Dtype::f32, rows, d), bad(Dtype::f32, most, d);
        fill(x, labels, 0.1, seed);
        const auto bad_labels = make_labels(Classes::uniform, most, classes, seed);
        fill(bad, bad_labels, 0.1, seed);
        const Labels y(LabelType::i64, labels), bad_y(LabelType::i64, bad_labels);
        for (const Index row : {most - 1, most / 2, Index{0}}) {
          bad.set(row, d - 1, std::numeric_limits<double>::infinity());
          EXPECT_EQ(add(backend, state, bad.host(), bad_y.host()).nonfinite_row, row);
          ASSERT_TRUE(same_bits(image(other, wanted), image(backend, state))) << rows << ", fault in row " << row;
        }
        for (int i = 0; i < 2; ++i) {
          ASSERT_FALSE(backend.add_batch(state, x.host(), y.host()).any());
          ASSERT_FALSE(other.add_batch(wanted, x.host(), y.host()).any());
        }
        ASSERT_FALSE(backend.pending_faults(state).any());
        ASSERT_FALSE(other.pending_faults(wanted).any());
        ASSERT_TRUE(same_bits(image(other, wanted), image(backend, state))) << rows;
      }
    }
}

TEST_P(CudaBackendTest, HostMemoryCalledDeviceMemoryIsRefused) {
  Samples x(Dtype::f32, 3, 2);
  fill(x, {0, 0, 0}, 1, 1);
  const Labels y(LabelType::i64, {0, 0, 0});
  MomentState state = new_state(*backend_, 1, 2, Statistics::means);
  MatrixView wrong = x.host();
  wrong.space = MemorySpace::device;
  EXPECT_THROW(add(*backend_, state, wrong, y.host()), UsageError);
  EXPECT_THROW(backend_->import(wrong), UsageError);
}

// ---------------------------------------------------------------- decisions
DecisionState new_decisions(Backend& backend, Index classes, const Grid& centres,
                            const std::vector<Index>& centre_class, const Grid* weights,
                            const std::vector<double>& bias) {
  DecisionState state;
  state.classes = classes;
  state.dim = centres.cols;
  state.centres = centres.on(backend);
  state.centre_class = backend.index_array(centres.rows, 1);
  backend.from_host(state.centre_class, centre_class);
  if (weights != nullptr) {
    state.weights = weights->on(backend);
    state.bias = backend.matrix(1, classes);
    backend.from_host(state.bias, bias);
  }
  state.counters = backend.index_array(4, classes);
  return state;
}

template <class Number = Real>
std::vector<Index> count_plainly(const Samples& x, const Labels& y, Index classes, const Grid& centres,
                                 const std::vector<Index>& centre_class, const Grid* weights,
                                 const std::vector<double>& bias) {
  std::vector<Index> counters(static_cast<std::size_t>(4 * classes), 0);
  for (Index i = 0; i < x.rows(); ++i) {
    Index nearest = 0, chosen = 0;
    Number smallest = 0, largest = 0;
    for (Index k = 0; k < centres.rows; ++k) {
      Number sum = 0;
      for (Index j = 0; j < centres.cols; ++j) {
        const Number gap = static_cast<Number>(x.at(i, j)) - centres.at(k, j);
        sum += gap * gap;
      }
      if (k == 0 || sum < smallest) {
        smallest = sum;
        nearest = k;
      }
    }
    for (Index k = 0; weights != nullptr && k < classes; ++k) {
      Number sum = bias[static_cast<std::size_t>(k)];
      for (Index j = 0; j < centres.cols; ++j) sum += static_cast<Number>(x.at(i, j)) * weights->at(k, j);
      if (k == 0 || sum > largest) {
        largest = sum;
        chosen = k;
      }
    }
    const Index label = y[i], decided = centre_class[static_cast<std::size_t>(nearest)];
    ++counters[label];
    if (decided == label) ++counters[classes + label];
    if (weights == nullptr) continue;
    if (chosen == label) ++counters[2 * classes + label];
    if (chosen == decided) ++counters[3 * classes + label];
  }
  return counters;
}

struct DecisionCase {
  Index rows, dim, classes, centres;
  Dtype dtype;
  LabelType label;
  Index padding, offset;
  bool classifier;
};

TEST_P(CudaBackendTest, DecisionsAreThoseOfTheFormulas) {
  std::vector<DecisionCase> cases{{1, 1, 1, 1, Dtype::f64, LabelType::i64, 0, 0, true},
                                  {31, 3, 2, 2, Dtype::f32, LabelType::u8, 1, 1, true},
                                  {33, 17, 33, 20, Dtype::f16, LabelType::i32, 0, 0, true},
                                  {40, 17, 9, 9, Dtype::bf16, LabelType::i64, 3, 1, false}};
  if (!kSmall) {
    cases.push_back({1000, 17, 300, 300, Dtype::f32, LabelType::i64, 0, 0, true});
    cases.push_back({333, 257, 33, 33, Dtype::f64, LabelType::i32, 1, 0, true});
    cases.push_back({1000, 128, 2, 2, Dtype::bf16, LabelType::u8, 0, 0, true});
  }
  unsigned seed = 100;
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << c.rows << " x " << c.dim << ", " << c.classes << " classes");
    const auto labels = make_labels(Classes::uniform, c.rows, c.classes, ++seed);
    Samples x(c.dtype, c.rows, c.dim, c.padding, c.offset);
    fill(x, labels, 1.5, seed);  // wide enough for wrong decisions
    const Labels y(c.label, labels);
    const Grid centres = Grid::random(c.centres, c.dim, seed), weights = Grid::random(c.classes, c.dim, seed + 50);
    std::vector<Index> centre_class;
    for (Index k = c.classes - c.centres; k < c.classes; ++k) centre_class.push_back(k);
    const auto bias = Grid::random(1, c.classes, seed + 70).values;
    const Grid* head = c.classifier ? &weights : nullptr;

    DecisionState state = new_decisions(*backend_, c.classes, centres, centre_class, head, bias);
    auto want = count_plainly(x, y, c.classes, centres, centre_class, head, bias);
    ASSERT_FALSE(backend_->decide_batch(state, x.host(), y.host()).any());
    EXPECT_EQ(backend_->to_host(state.counters), want);
    std::shared_ptr<void> keep_x, keep_y;
    ASSERT_FALSE(backend_->decide_batch(state, x.device(*backend_, keep_x), y.device(*backend_, keep_y)).any());
    for (Index& count : want) count *= 2;
    EXPECT_EQ(backend_->to_host(state.counters), want);
  }
}

// Rows of 16 bits are scored as they lie where that is possible, and shifted where it is not or does not pay: every
// count is that of the formulas. `offset`: of all centres, in units of their size.
TEST_P(CudaBackendTest, NarrowRowsAreDecidedByTheFormulas) {
  struct Layout {
    Index dim, padding, misaligned;
  };
  const Index rows = kSmall ? 36 : 100, classes = 21;
  unsigned seed = 300;
  for (const auto type : {Dtype::f16, Dtype::bf16, Dtype::f32})
    for (const Layout& layout : {Layout{16, 0, 0}, {13, 3, 8}, {72, 8, 0}, {16, 0, 3}, {17, 0, 0}, {1, 7, 0}})
      for (const auto& [spread, offset] : {std::pair{1e-3, 0.0}, {2.0, 0.0}, {2.0, 50.0}}) {
        SCOPED_TRACE(testing::Message() << to_string(type) << ", d = " << layout.dim << " + " << layout.padding
                                        << ", at " << layout.misaligned << ", " << spread << ", " << offset);
        const auto labels = make_labels(Classes::uniform, rows, classes, ++seed);
        Samples x(type, rows, layout.dim, layout.padding, layout.misaligned);
        Grid centres = Grid::random(classes, layout.dim, seed), weights = centres;
        for (double& value : centres.values) value = std::round(8 * (value + offset)) / 8;  // some coincide at d = 1
        const Grid noise = Grid::random(rows, layout.dim, seed + 1);
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < layout.dim; ++j) x.set(i, j, centres.at(labels[i], j) + spread * noise.at(i, j));
        std::vector<Index> all(static_cast<std::size_t>(classes));
        std::iota(all.begin(), all.end(), 0);
        const auto bias = Grid::random(1, classes, seed + 2).values;
        const Labels y(LabelType::i32, labels);
        DecisionState state = new_decisions(*backend_, classes, centres, all, &weights, bias);
        const auto want = count_plainly(x, y, classes, centres, all, &weights, bias);
        std::shared_ptr<void> keep_x, keep_y;
        ASSERT_FALSE(backend_->decide_batch(state, x.device(*backend_, keep_x), y.device(*backend_, keep_y)).any());
        EXPECT_EQ(backend_->to_host(state.counters), want);
      }
}

// Most rows lie within the safe radius of their class, one of eight far from it. Both ways to take those: gathered as
// they lie, and shifted. `offset`: of everything, in units of the centres' size.
TEST_P(CudaBackendTest, RowsNearTheirMeansAreDecidedByTheFormulas) {
  const Index rows = kSmall ? 40 : 900, classes = kSmall ? 5 : 70, d = kSmall ? 9 : 72;
  unsigned seed = 500;
  for (const auto type : {Dtype::f16, Dtype::bf16, Dtype::f32, Dtype::f64})
    for (const double offset : {0.0, 30.0}) {
      SCOPED_TRACE(testing::Message() << to_string(type) << ", " << offset);
      const auto labels = make_labels(Classes::uniform, rows, classes, ++seed);
      Grid centres = Grid::random(classes, d, seed), weights = centres;
      for (double& value : centres.values) value += offset;
      std::vector<double> bias;  // takes the offset away
      std::vector<Index> all(static_cast<std::size_t>(classes));
      std::iota(all.begin(), all.end(), 0);
      for (const Index k : all) {
        double sum = 0;
        for (Index j = 0; j < d; ++j) sum += weights.at(k, j);
        bias.push_back(-offset * sum);
      }
      const Grid noise = Grid::random(rows, d, seed + 1);
      Samples x(type, rows, d, kSmall ? 7 : 8);
      for (Index i = 0; i < rows; ++i) {
        const Index source =
            i % 16 == 3 ? (labels[static_cast<std::size_t>(i)] + 1) % classes : labels[static_cast<std::size_t>(i)];
        for (Index j = 0; j < d; ++j) x.set(i, j, centres.at(source, j) + (i % 16 == 11 ? 3 : 0.01) * noise.at(i, j));
      }
      const Labels y(LabelType::u8, labels);
      DecisionState state = new_decisions(*backend_, classes, centres, all, &weights, bias);
      auto want = count_plainly(x, y, classes, centres, all, &weights, bias);
      std::shared_ptr<void> keep_x, keep_y;
      ASSERT_FALSE(backend_->decide_batch(state, x.device(*backend_, keep_x), y.device(*backend_, keep_y)).any());
      EXPECT_EQ(backend_->to_host(state.counters), want);
      ASSERT_FALSE(backend_->decide_batch(state, x.host(), y.host()).any());
      for (Index& count : want) count *= 2;
      EXPECT_EQ(backend_->to_host(state.counters), want);
    }
}

// Scores in 16 bits or in floats, one tile of them or two.
TEST_P(CudaBackendTest, DecisionsDoNotDependOnHowScoresAreKept) {
  const Index rows = kSmall ? 40 : 300, classes = 50, d = 24;
  cuda::Limits limits = std::string(GetParam()) == "tiny" ? tiny_limits() : cuda::Limits{};
  unsigned seed = 700;
  for (const auto type : {Dtype::f16, Dtype::bf16, Dtype::f32})
    for (const double spread : {0.2, 0.6, 4.0}) {
      const auto labels = make_labels(Classes::uniform, rows, classes, ++seed);
      const Grid centres = Grid::random(classes, d, seed), weights = Grid::random(classes, d, seed + 50),
                 noise = Grid::random(rows, d, seed + 60);
      Samples x(type, rows, d);
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < d; ++j) x.set(i, j, centres.at(labels[i], j) + spread * noise.at(i, j));
      std::vector<Index> all(static_cast<std::size_t>(classes));
      std::iota(all.begin(), all.end(), 0);
      const auto bias = Grid::random(1, classes, seed + 70).values;
      const Labels y(LabelType::i32, labels);
      const auto want = count_plainly(x, y, classes, centres, all, &weights, bias);
      for (const bool narrow : {false, true})
        for (const int buffers : {1, 2}) {
          SCOPED_TRACE(testing::Message() << to_string(type) << ", " << spread << ", " << narrow << ", " << buffers);
          limits.narrow_scores = narrow;
          limits.score_buffers = buffers;
          cuda::CudaBackend backend(backend_->info().device.index, ContextOptions{}, limits);
          DecisionState state = new_decisions(backend, classes, centres, all, &weights, bias);
          ASSERT_FALSE(backend.decide_batch(state, x.host(), y.host()).any());
          EXPECT_EQ(backend.to_host(state.counters), want);
        }
    }
}

// The largest and the smallest numbers of bf16, whose products neither fp32 nor fp16 holds, and of f16, whose products
// fp16 does not; and all the same.
TEST_P(CudaBackendTest, NarrowRowsOfExtremeSizeAreDecidedByTheFormulas) {
  const Index rows = 60, classes = 6, d = 24;
  const Grid directions = Grid::random(classes, d, 77);
  for (const auto& [type, size] : {std::pair{Dtype::bf16, 0x1p125},
                                   {Dtype::bf16, 0x1p100},
                                   {Dtype::bf16, 0x1p-100},
                                   {Dtype::bf16, 0x1p-130},
                                   {Dtype::f16, 0x1p14},
                                   {Dtype::f16, 0x1p11},
                                   {Dtype::f16, 0x1p-10},
                                   {Dtype::f16, 0x1p-20}}) {
    SCOPED_TRACE(testing::Message() << to_string(type) << ", " << size);
    Grid centres = directions;
    for (double& value : centres.values) value *= size / 4;
    Samples x(type, rows, d);
    std::vector<Index> labels, all{0, 1, 2, 3, 4, 5};
    for (Index i = 0; i < rows; ++i) {
      labels.push_back(i % classes);
      for (Index j = 0; j < d; ++j) x.set(i, j, centres.at(i % classes, j) * (1 + static_cast<double>(i) / 100));
    }
    const std::vector<double> bias(static_cast<std::size_t>(classes), 0.0);
    const Labels y(LabelType::i64, labels);
    DecisionState state = new_decisions(*backend_, classes, centres, all, &directions, bias);
    ASSERT_FALSE(backend_->decide_batch(state, x.host(), y.host()).any());
    EXPECT_EQ(backend_->to_host(state.counters), count_plainly(x, y, classes, centres, all, &directions, bias));
  }
}

TEST_P(CudaBackendTest, RowsOfExtremeSizeAreDecidedByTheFormulas) {
  const Index rows = 40, classes = 6, d = 24;
  const Grid directions = Grid::random(classes, d, 87);
  for (const auto& [type, size] : {std::pair{Dtype::f64, 1e-200},
                                   {Dtype::f64, 1e-150},
                                   {Dtype::f64, 1e-60},
                                   {Dtype::f64, 1e-30},
                                   {Dtype::f64, 1e30},
                                   {Dtype::f64, 1e60},
                                   {Dtype::f64, 1e150},
                                   {Dtype::f64, 1e200},
                                   {Dtype::f32, 1e-42},
                                   {Dtype::f32, 1e-37},
                                   {Dtype::f32, 1e-30},
                                   {Dtype::f32, 1e30},
                                   {Dtype::f32, 2e36}})
    for (const bool biased : {false, true}) {
      SCOPED_TRACE(testing::Message() << to_string(type) << ", " << size << ", " << biased);
      Grid centres = directions;
      for (double& value : centres.values) value *= size;
      Samples x(type, rows, d);
      std::vector<Index> labels, all{0, 1, 2, 3, 4, 5};
      for (Index i = 0; i < rows; ++i) {
        labels.push_back(i % classes);
        // Some rows are zero, some far smaller or larger than the others.
        const double times = i % 7 == 0 ? 0 : i % 7 == 1 ? 1e-9 : i % 7 == 2 ? 7.5 : 1 + static_cast<double>(i) / 100;
        for (Index j = 0; j < d; ++j) x.set(i, j, centres.at(i % classes, j) * times);
      }
      std::vector<double> bias(static_cast<std::size_t>(classes), 0.0);
      if (biased) bias = {0.5, -0.25, 0, 1e-3, 0.75, -1};
      const Labels y(LabelType::i64, labels);
      DecisionState state = new_decisions(*backend_, classes, centres, all, &directions, bias);
      ASSERT_FALSE(backend_->decide_batch(state, x.host(), y.host()).any());
      // Squares that no double holds are infinite or zero in the formulas as well.
      auto want = count_plainly<double>(x, y, classes, centres, all, &directions, bias);
      EXPECT_EQ(backend_->to_host(state.counters), want);
    }
}

// Squares of the weights are lost, all or nearly all: what depends on their norms is not to be had. The classifier
// turns near the mean.
TEST_P(CudaBackendTest, WeightsWhoseNormsUnderflowAreDecidedByTheFormulas) {
  const Index rows = 8, d = 100;
  for (const double first : {1.5e-162, 2.3e-162}) {
    SCOPED_TRACE(first);
    Grid centres = Grid::random(2, d, 90), weights = centres;
    double at_mean = 0;
    for (Index j = 0; j < d; ++j) {
      const double weight = j == 0 ? first : 1.5e-162;
      centres.values[static_cast<std::size_t>(j)] = -1;
      centres.values[static_cast<std::size_t>(d + j)] = 1;
      weights.values[static_cast<std::size_t>(j)] = -weight;
      weights.values[static_cast<std::size_t>(d + j)] = weight;
      at_mean += weight;
    }
    const std::vector<double> bias{0.9 * at_mean, -0.9 * at_mean};
    Samples x(Dtype::f64, rows, d);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < d; ++j) x.set(i, j, 0.94 - 0.02 * static_cast<double>(i));
    const Labels y(LabelType::u8, std::vector<Index>(static_cast<std::size_t>(rows), 1));
    DecisionState state = new_decisions(*backend_, 2, centres, {0, 1}, &weights, bias);
    ASSERT_FALSE(backend_->decide_batch(state, x.host(), y.host()).any());
    EXPECT_EQ(backend_->to_host(state.counters), count_plainly(x, y, 2, centres, {0, 1}, &weights, bias));
  }
}

// Rows between two centres, so close that their scores are wrong, among rows whose own size would certify anything.
TEST_P(CudaBackendTest, RowsAreCertifiedByTheirOwnSize) {
  const Index first = 140, last = 172, rows = 210, d = 16;  // a tiny tile, between the looks at what is evaluated
  Grid centres = Grid::random(2, d, 78);
  const Grid noise = Grid::random(rows, d, 79);
  Samples x(Dtype::bf16, rows, d);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < d; ++j) {
      const double middle = (centres.at(0, j) + centres.at(1, j)) / 2;
      x.set(i, j, i >= first && i <= last ? middle + 1e-3 * noise.at(i, j) * middle : 0);
    }
  const Labels y(LabelType::u8, std::vector<Index>(static_cast<std::size_t>(rows), 0));
  DecisionState state = new_decisions(*backend_, 2, centres, {0, 1}, nullptr, {});
  ASSERT_FALSE(backend_->decide_batch(state, x.host(), y.host()).any());
  EXPECT_EQ(backend_->to_host(state.counters), count_plainly(x, y, 2, centres, {0, 1}, nullptr, {}));
}

// Few rows between two centres each, of so many that a row's candidates are shared out among blocks.
TEST_P(CudaBackendTest, OpenRowsOfManyCandidatesAreDecidedByTheFormulas) {
  const Index rows = 12, d = 16, classes = 600;
  const Grid centres = Grid::random(classes, d, 81);
  Samples x(Dtype::f32, rows, d);
  std::vector<Index> labels, all(static_cast<std::size_t>(classes));
  std::iota(all.begin(), all.end(), Index{0});
  for (Index i = 0; i < rows; ++i) {
    labels.push_back(50 * i);
    for (Index j = 0; j < d; ++j) x.set(i, j, (centres.at(50 * i, j) + centres.at(50 * i + 7, j)) / 2);
  }
  const Labels y(LabelType::i64, labels);
  DecisionState state = new_decisions(*backend_, classes, centres, all, nullptr, {});
  ASSERT_FALSE(backend_->decide_batch(state, x.host(), y.host()).any());
  EXPECT_EQ(backend_->to_host(state.counters), count_plainly(x, y, classes, centres, all, nullptr, {}));
}

// Scores in double cannot tell these centres apart (their distances are 1e-12 of their size), the formulas can.
TEST_P(CudaBackendTest, CloseCentresAreDecidedByTheFormulas) {
  const Index rows = 64, d = 33, classes = 8;
  Grid centres = Grid::random(classes, d, 9);
  for (Index k = 0; k < classes; ++k)
    for (Index j = 0; j < d; ++j) centres.at(k, j) = 1000 + centres.at(0, j) + (k == j ? 0x1p-30 : 0);
  Samples x(Dtype::f64, rows, d);
  std::vector<Index> labels;
  for (Index i = 0; i < rows; ++i) {
    labels.push_back(i % classes);
    for (Index j = 0; j < d; ++j) x.set(i, j, centres.at(i % classes, j) + (j == 20 ? 0x1p-29 : 0));
  }
  std::vector<Index> all(static_cast<std::size_t>(classes));
  std::iota(all.begin(), all.end(), 0);
  const std::vector<double> bias(static_cast<std::size_t>(classes), 0.25);
  DecisionState state = new_decisions(*backend_, classes, centres, all, &centres, bias);
  const Labels y(LabelType::i64, labels);
  ASSERT_FALSE(backend_->decide_batch(state, x.host(), y.host()).any());
  const auto counters = backend_->to_host(state.counters);
  for (Index k = 0; k < classes; ++k) EXPECT_EQ(counters[classes + k], rows / classes) << k;
}

// Rows half way between two candidates, but for the smallest step that the numbers have there; sums of squares of such
// numbers are exact in double. No score of 16-bit or single precision tells the two apart.
TEST_P(CudaBackendTest, NearTiesAreDecidedByTheFormulas) {
  unsigned seed = 500;
  for (const auto type : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
    for (const auto& [rows, d, classes] :
         {std::array<Index, 3>{1, 1, 2}, {31, 8, 3}, {32, 16, 31}, {33, 24, 32}, {kSmall ? 40 : 150, 40, 33}})
      for (const double size : {1.0, 0x1p-40, 0x1p60}) {  // of everything
        if (size != 1 && (type == Dtype::f16 || kSmall)) continue;
        SCOPED_TRACE(testing::Message() << to_string(type) << ", " << rows << " x " << d << ", " << classes << ", "
                                        << size);
        std::mt19937 random(++seed);
        Grid centres(classes, d);
        for (double& value : centres.values) value = 2 * static_cast<double>(random() % 33) - 32;
        for (Index k = 0; k < classes; ++k)
          for (Index j = 0; j < d; ++j) {
            if (k % 4 == 3) centres.at(k, j) = centres.at(k - 3, j);  // the same once more
            if (k % 4 == 2 && j > 0) centres.at(k, j) = centres.at(k - 2, j);
          }
        const Grid weights = centres;
        for (double& value : centres.values) value *= size;
        Samples x(type, rows, d);
        std::vector<Index> labels, all(static_cast<std::size_t>(classes));
        std::iota(all.begin(), all.end(), 0);
        for (Index i = 0; i < rows; ++i) {
          const Index a = static_cast<Index>(random()) % classes, b = static_cast<Index>(random()) % classes;
          labels.push_back(a);
          for (Index j = 0; j < d; ++j) x.set(i, j, (centres.at(a, j) + centres.at(b, j)) / 2);
          const Index j = static_cast<Index>(random()) % d;
          const double step = static_cast<double>(i % 3 - 1) * size;
          x.set(i, j, x.at(i, j) + step);
        }
        std::vector<double> bias;
        for (Index k = 0; k < classes; ++k)
          bias.push_back(static_cast<double>(-dot(weights, k, weights, k) / 2) * size);
        const Labels y(LabelType::i32, labels);
        DecisionState state = new_decisions(*backend_, classes, centres, all, &weights, bias);
        const auto want = count_plainly(x, y, classes, centres, all, &weights, bias);
        std::shared_ptr<void> keep_x, keep_y;
        ASSERT_FALSE(backend_->decide_batch(state, x.device(*backend_, keep_x), y.device(*backend_, keep_y)).any());
        EXPECT_EQ(backend_->to_host(state.counters), want);
      }
}

// Batches of other types and sizes in turn: candidates and scratch are made anew where they have to be.
TEST_P(CudaBackendTest, OneCounterTakesBatchesOfEveryKind) {
  const Index d = 16, classes = 12;
  const Grid centres = Grid::random(classes, d, 31), weights = Grid::random(classes, d, 32);
  std::vector<Index> all(static_cast<std::size_t>(classes));
  std::iota(all.begin(), all.end(), 0);
  const auto bias = Grid::random(1, classes, 33).values;
  DecisionState state = new_decisions(*backend_, classes, centres, all, &weights, bias);
  std::vector<Index> want(static_cast<std::size_t>(4 * classes), 0);
  unsigned seed = 700;
  for (const double spread : {0.01, 3.0})
    for (const auto& [type, rows, offset] : {std::tuple<Dtype, Index, Index>{Dtype::bf16, 20, 0},
                                             {Dtype::f32, 90, 0},
                                             {Dtype::f16, 150, 0},
                                             {Dtype::bf16, 40, 1},
                                             {Dtype::f64, 3, 0},
                                             {Dtype::f16, 33, 0}})
      for (const bool on_device : {false, true}) {
        const auto labels = make_labels(Classes::uniform, rows, classes, ++seed);
        Samples x(type, rows, d, 0, offset);
        const Grid noise = Grid::random(rows, d, seed);
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < d; ++j) x.set(i, j, centres.at(labels[i], j) + spread * noise.at(i, j));
        const Labels y(LabelType::u8, labels);
        const auto more = count_plainly(x, y, classes, centres, all, &weights, bias);
        for (std::size_t at = 0; at < want.size(); ++at) want[at] += more[at];
        std::shared_ptr<void> keep_x, keep_y;
        ASSERT_FALSE((on_device
                          ? backend_->decide_batch(state, x.device(*backend_, keep_x), y.device(*backend_, keep_y))
                          : backend_->decide_batch(state, x.host(), y.host()))
                         .any());
        EXPECT_EQ(backend_->to_host(state.counters), want) << to_string(type) << ", " << rows << " rows";

        x.set(rows - 1, d - 1, std::nan(""));  // a fault in the last block leaves everything as it was
        const BatchFaults faults = backend_->decide_batch(state, x.host(), y.host());
        EXPECT_EQ(faults.nonfinite, 1);
        EXPECT_EQ(faults.nonfinite_row, rows - 1);
        EXPECT_EQ(faults.nonfinite_col, d - 1);
        EXPECT_EQ(backend_->to_host(state.counters), want);
      }
}

void expect_ties_to_go_to_the_lowest_class(Backend& backend, Dtype type) {
  SCOPED_TRACE(to_string(type));
  const Index rows = 40, d = 8, classes = 20;
  Grid centres = Grid::random(classes, d, 11);
  for (double& value : centres.values) value = std::round(16 * value) / 16;  // f16 and bf16 hold them
  for (Index k = 10; k < classes; ++k)                                       // class k + 10 is class k once more
    for (Index j = 0; j < d; ++j) centres.at(k, j) = centres.at(k - 10, j);
  Samples x(type, rows, d);
  std::vector<Index> labels, all(static_cast<std::size_t>(classes));
  std::iota(all.begin(), all.end(), 0);
  for (Index i = 0; i < rows; ++i) {
    labels.push_back(i % classes);
    for (Index j = 0; j < d; ++j) x.set(i, j, centres.at(i % classes, j));
  }
  std::vector<double> bias(static_cast<std::size_t>(classes));
  for (Index k = 0; k < classes; ++k) bias[k] = static_cast<double>(-dot(centres, k, centres, k) / 2);
  DecisionState state = new_decisions(backend, classes, centres, all, &centres, bias);
  ASSERT_FALSE(backend.decide_batch(state, x.host(), Labels(LabelType::i64, labels).host()).any());
  const auto counters = backend.to_host(state.counters);
  for (Index k = 0; k < classes; ++k) {
    EXPECT_EQ(counters[classes + k], k < 10 ? 2 : 0) << k;
    EXPECT_EQ(counters[2 * classes + k], k < 10 ? 2 : 0) << k;
    EXPECT_EQ(counters[3 * classes + k], 2) << k;
  }
}

TEST_P(CudaBackendTest, TiesGoToTheLowestClass) {
  for (const auto type : {Dtype::f32, Dtype::f16, Dtype::bf16}) expect_ties_to_go_to_the_lowest_class(*backend_, type);
}

TEST_P(CudaBackendTest, DecideBatchReportsFaultsAndEmptyBatches) {
  const Grid centres = Grid::random(3, 4, 12);
  DecisionState state = new_decisions(*backend_, 3, centres, {0, 1, 2}, nullptr, {});
  Samples x(Dtype::f32, 5, 4);
  fill(x, {0, 1, 2, 0, 1}, 1, 3);
  EXPECT_FALSE(backend_->decide_batch(state, x.host(0, 0), Labels(LabelType::i64, {}).host()).any());
  const BatchFaults faults = backend_->decide_batch(state, x.host(), Labels(LabelType::i32, {0, 1, 3, 0, 1}).host());
  EXPECT_EQ(faults.bad_label_row, 2);
  EXPECT_EQ(faults.bad_label, 3);
  EXPECT_EQ(backend_->to_host(state.counters), std::vector<Index>(12, 0));
}

// Overflowing scores certify nothing, and the formulas themselves decide.
TEST_P(CudaBackendTest, HugeFeaturesAreDecidedByTheFormulas) {
  Grid centres(2, 1);
  centres.at(0, 0) = -1e200;
  centres.at(1, 0) = 1e200;
  Samples x(Dtype::f64, 2, 1);
  x.set(0, 0, 1e200);  // distances: infinity and 0
  x.set(1, 0, 0);      // both 1e400, which is infinity: a tie
  DecisionState state = new_decisions(*backend_, 2, centres, {0, 1}, nullptr, {});
  ASSERT_FALSE(backend_->decide_batch(state, x.host(), Labels(LabelType::i64, {1, 1}).host()).any());
  EXPECT_EQ(backend_->to_host(state.counters), (std::vector<Index>{0, 2, 0, 1, 0, 0, 0, 0}));
}

// ---------------------------------------------------------------- memory
TEST_P(CudaBackendTest, MemoryIsZeroedAndCopied) {
  for (const Index size : {0, 1, 1000}) {
    const IndexArray array = backend_->index_array(size, 1);
    EXPECT_TRUE(static_cast<bool>(array));
    EXPECT_EQ(backend_->to_host(array), std::vector<Index>(static_cast<std::size_t>(size), 0));
  }
  const Grid grid = Grid::random(7, 13, 1);
  const Matrix matrix = grid.on(*backend_);
  EXPECT_EQ(Grid::from(*backend_, backend_->clone(matrix)).values, grid.values);
}

TEST_P(CudaBackendTest, TooMuchMemoryIsADeviceError) {
  try {
    backend_->allocate(Index{1} << 50);
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find(std::to_string(Index{1} << 50)), std::string::npos) << error.what();
  }
  EXPECT_EQ(Grid::from(*backend_, backend_->matrix(3, 3)).values, std::vector<double>(9, 0.0));
}

TEST_P(CudaBackendTest, MemoryMayOutliveTheBackend) {
  const Matrix matrix = Grid::random(5, 5, 2).on(*backend_);
  backend_.reset();
  EXPECT_TRUE(static_cast<bool>(matrix));
}

TEST_P(CudaBackendTest, ImportsEveryElementType) {
  for (const auto dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
    for (const auto& [rows, cols, padding, offset] :
         {std::tuple{0, 3, 0, 0}, {1, 1, 0, 0}, {33, 17, 2, 1}, {kSmall ? 9 : 300, 128, 0, 0}, {5, 257, 0, 1}}) {
      Samples x(dtype, rows, cols, padding, offset);
      fill(x, std::vector<Index>(static_cast<std::size_t>(rows), 1), 2, 3);
      std::shared_ptr<void> keep;
      for (const auto& view : {x.host(), x.device(*backend_, keep)}) {
        const Grid got = Grid::from(*backend_, backend_->import(view));
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < cols; ++j) ASSERT_EQ(got.at(i, j), x.at(i, j)) << to_string(dtype);
      }
    }
}

// ---------------------------------------------------------------- dense algebra
std::vector<std::pair<Index, Index>> shapes() {
  std::vector<std::pair<Index, Index>> list{{1, 1}, {2, 3}, {33, 17}, {40, 5}};
  if (!kSmall) list.insert(list.end(), {{300, 17}, {1000, 3}, {31, 257}, {520, 128}});
  return list;
}

// Groups of all sizes about those at which the way changes, empty ones among them.
TEST_P(CudaBackendTest, GramsOfGroupsOfRows) {
  std::vector<Index> begin{0};
  for (const Index size : {1, 0, 2, 5, 8, 9, 63, 64, 65, 1, 100, 0})
    if (!kSmall || size < 20) begin.push_back(begin.back() + size);
  for (const Index cols : {1, 17, kSmall ? 33 : 70}) {
    const Grid A = Grid::random(begin.back(), cols, 11);
    const Matrix matrix = A.on(*backend_);
    const auto squares = backend_->group_gram_squares(matrix, begin);
    ASSERT_EQ(squares.size(), begin.size() - 1);
    for (std::size_t g = 0; g < squares.size(); ++g) {
      Real want = 0, trace = 0;
      for (Index i = begin[g]; i < begin[g + 1]; ++i) {
        for (Index j = begin[g]; j < begin[g + 1]; ++j) want += dot(A, i, A, j) * dot(A, i, A, j);
        trace += dot(A, i, A, i);
      }
      const Index rows = begin[g + 1] - begin[g];
      ASSERT_TRUE(within(squares[g], want, static_cast<Real>(rows * rows + 2 * cols + 8) * kUnit * trace * trace)) << g;
    }
    EXPECT_EQ(backend_->group_gram_squares(matrix, begin), squares);
    EXPECT_EQ(backend_->group_gram_squares(matrix, {begin[3], begin[4]}).front(), squares[3]);
    EXPECT_TRUE(backend_->group_gram_squares(matrix, {0}).empty());
  }
}

TEST_P(CudaBackendTest, RowVerbs) {
  for (const auto& [rows, cols] : shapes()) {
    const Grid A = Grid::random(rows, cols, 1), B = Grid::random(rows, cols, 2), w = Grid::random(2, rows, 3);
    const std::vector<double> a(w.values.begin(), w.values.begin() + rows), b(w.values.begin() + rows, w.values.end());
    Matrix left = A.on(*backend_);
    const Matrix right = B.on(*backend_);

    Matrix out = backend_->matrix(rows, cols);
    backend_->combine_rows(a, left, b, right, out);
    const Grid both = Grid::from(*backend_, out);
    backend_->combine_rows(a, left, {}, {}, out);
    const Grid one = Grid::from(*backend_, out);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < cols; ++j) {
        const Real first = static_cast<Real>(a[i]) * A.at(i, j), second = static_cast<Real>(b[i]) * B.at(i, j);
        ASSERT_TRUE(within(both.at(i, j), first + second, 3 * kUnit * (std::fabs(first) + std::fabs(second))));
        ASSERT_EQ(one.at(i, j), a[i] * A.at(i, j));
      }
    out = backend_->clone(left);
    backend_->combine_rows(a, out, b, right, out);  // onto itself
    EXPECT_EQ(Grid::from(*backend_, out).values, both.values);

    const std::vector<Index> index{rows - 1, 0, rows / 2, 0};
    const Grid selected = Grid::from(*backend_, backend_->select_rows(left, index));
    for (Index i = 0; i < 4; ++i)
      for (Index j = 0; j < cols; ++j) ASSERT_EQ(selected.at(i, j), A.at(index[i], j));

    const std::vector<Index> begin{0, 0, rows / 3, rows};  // an empty group first
    const Grid sums = Grid::from(*backend_, backend_->sum_groups(left, begin));
    ASSERT_EQ(sums.values.size(), static_cast<std::size_t>(3 * cols));
    for (Index g = 0; g < 3; ++g)
      for (Index j = 0; j < cols; ++j) {
        Real want = 0, size = 0;
        for (Index i = begin[g]; i < begin[g + 1]; ++i) {
          want += A.at(i, j);
          size += std::fabs(A.at(i, j));
        }
        ASSERT_TRUE(within(sums.at(g, j), want, static_cast<Real>(begin[g + 1] - begin[g]) * kUnit * size));
      }

    const auto dots = backend_->row_dots(left, right);
    const RowProducts products = backend_->row_products(left, right);
    EXPECT_EQ(products.left, backend_->row_dots(left, left));
    EXPECT_EQ(products.right, backend_->row_dots(right, right));
    EXPECT_EQ(products.cross, dots);
    Real inner = 0, inner_abs = 0;
    for (Index i = 0; i < rows; ++i) {
      Real size_abs = 0;
      for (Index j = 0; j < cols; ++j) size_abs += std::fabs(static_cast<Real>(A.at(i, j)) * B.at(i, j));
      const Real want = dot(A, i, B, i);
      ASSERT_TRUE(within(dots[i], want, static_cast<Real>(cols + 1) * kUnit * size_abs));
      inner += want;
      inner_abs += size_abs;
    }
    EXPECT_TRUE(within(backend_->inner(left, right), inner, static_cast<Real>(rows * cols + 1) * kUnit * inner_abs));

    const auto sum = backend_->weighted_row_sum(left, a);
    for (Index j = 0; j < cols; ++j) {
      Real want = 0, size_abs = 0;
      for (Index i = 0; i < rows; ++i) {
        want += static_cast<Real>(a[i]) * A.at(i, j);
        size_abs += std::fabs(static_cast<Real>(a[i]) * A.at(i, j));
      }
      ASSERT_TRUE(within(sum[j], want, static_cast<Real>(rows + 1) * kUnit * size_abs));
    }

    const auto centre = Grid::random(1, cols, 4).values;
    backend_->centre_rows(left, centre);
    const Grid centred = Grid::from(*backend_, left);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < cols; ++j) ASSERT_EQ(centred.at(i, j), A.at(i, j) - centre[j]);
  }
}

TEST_P(CudaBackendTest, EmptyMatrices) {
  Matrix none = backend_->matrix(0, 4), narrow = backend_->matrix(4, 0), square = backend_->matrix(0, 0);
  backend_->combine_rows({}, none, {}, {}, none);
  backend_->centre_rows(none, {1, 2, 3, 4});
  EXPECT_EQ(backend_->weighted_row_sum(none, {}), std::vector<double>(4, 0.0));
  EXPECT_TRUE(backend_->row_dots(none, none).empty());
  EXPECT_TRUE(backend_->row_products(none, none).cross.empty());
  EXPECT_EQ(backend_->inner(none, none), 0);
  EXPECT_EQ(backend_->select_rows(backend_->matrix(3, 2), {}).rows, 0);
  EXPECT_EQ(Grid::from(*backend_, backend_->product(none, Transpose::yes, none, Transpose::no)).values,
            std::vector<double>(16, 0.0));
  EXPECT_EQ(backend_->product(narrow, Transpose::yes, narrow, Transpose::no).size(), 0);
  Matrix T = backend_->matrix(4, 4);
  backend_->add_gram(1, none, T);
  backend_->mirror_lower(square);
  EXPECT_TRUE(backend_->eigh(square).empty());
  for (const Matrix& empty : {none, narrow, square}) {
    const Svd svd = backend_->svd(empty);
    EXPECT_TRUE(svd.values.empty());
    EXPECT_EQ(svd.left.rows, empty.rows);
    EXPECT_EQ(svd.right.cols, empty.cols);
  }
  EXPECT_TRUE(backend_->eigenvalues(square).empty());
  EXPECT_TRUE(backend_->singular_values(none).empty());
  EXPECT_EQ(backend_->triangular_factor(narrow).size(), 0);
  EXPECT_EQ(backend_->identity(0).size(), 0);
  EXPECT_EQ(backend_->cholesky(square), 1);
  backend_->solve_lower(square, Transpose::no, narrow);
}

TEST_P(CudaBackendTest, ProductAndGram) {
  for (const auto& [m, n, k] : {std::tuple<Index, Index, Index>{1, 1, 1}, {3, 5, 2}, {33, 17, 31}, {2, 40, 7}})
    for (const bool ta : {false, true})
      for (const bool tb : {false, true}) {
        const Grid A = Grid::random(ta ? k : m, ta ? m : k, 1), B = Grid::random(tb ? n : k, tb ? k : n, 2);
        const auto op = [](bool t) { return t ? Transpose::yes : Transpose::no; };
        const Grid C = Grid::from(*backend_, backend_->product(A.on(*backend_), op(ta), B.on(*backend_), op(tb)));
        ASSERT_EQ(C.rows, m);
        ASSERT_EQ(C.cols, n);
        for (Index i = 0; i < m; ++i)
          for (Index j = 0; j < n; ++j) {
            Real want = 0, size_abs = 0;
            for (Index l = 0; l < k; ++l) {
              const Real term = static_cast<Real>(ta ? A.at(l, i) : A.at(i, l)) * (tb ? B.at(j, l) : B.at(l, j));
              want += term;
              size_abs += std::fabs(term);
            }
            ASSERT_TRUE(within(C.at(i, j), want, static_cast<Real>(k + 1) * kUnit * size_abs));
          }
      }
  for (const auto& [rows, d] : shapes()) {
    const Grid A = Grid::random(rows, d, 3), start = Grid::random(d, d, 4);
    Matrix T = start.on(*backend_);
    backend_->add_gram(-0.5, A.on(*backend_), T);
    Grid got = Grid::from(*backend_, T);
    for (Index i = 0; i < d; ++i)
      for (Index j = 0; j < d; ++j) {
        if (j > i) {
          ASSERT_EQ(got.at(i, j), start.at(i, j));
          continue;
        }
        Real want = start.at(i, j), size_abs = std::fabs(want);
        for (Index l = 0; l < rows; ++l) {
          want -= 0.5L * A.at(l, i) * A.at(l, j);
          size_abs += std::fabs(0.5L * A.at(l, i) * A.at(l, j));
        }
        ASSERT_TRUE(within(got.at(i, j), want, static_cast<Real>(rows + 3) * kUnit * size_abs));
      }
    backend_->mirror_lower(T);
    const Grid mirrored = Grid::from(*backend_, T);
    for (Index i = 0; i < d; ++i)
      for (Index j = 0; j < d; ++j) ASSERT_EQ(mirrored.at(i, j), got.at(std::max(i, j), std::min(i, j)));
  }
}

TEST_P(CudaBackendTest, Eigh) {
  for (const Index n : {Index{1}, Index{2}, Index{33}, Index{kSmall ? 5 : 100}}) {
    Grid A = Grid::random(n, n, static_cast<unsigned>(n));
    Real norm = 0;
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) {
        if (j > i) A.at(i, j) = std::numeric_limits<double>::quiet_NaN();  // only the lower triangle may be read
        if (j <= i) norm += (j < i ? 2 : 1) * static_cast<Real>(A.at(i, j)) * A.at(i, j);
      }
    norm = std::sqrt(norm);
    Matrix V = A.on(*backend_);
    const auto values = backend_->eigh(V);
    ASSERT_EQ(static_cast<Index>(values.size()), n);
    EXPECT_TRUE(std::is_sorted(values.begin(), values.end()));
    const Grid vectors = Grid::from(*backend_, V);
    const Real bound = 20 * static_cast<Real>(n) * kUnit;
    for (Index i = 0; i < n; ++i) {
      for (Index k = 0; k < n; ++k) ASSERT_TRUE(within(dot(vectors, i, vectors, k), i == k, bound));
      for (Index j = 0; j < n; ++j) {
        Real sum = 0;
        for (Index l = 0; l < n; ++l) sum += static_cast<Real>(A.at(std::max(j, l), std::min(j, l))) * vectors.at(i, l);
        ASSERT_TRUE(within(sum, static_cast<Real>(values[i]) * vectors.at(i, j), bound * norm)) << n;
      }
    }
  }
}

/// A = U diag(s) V^T, orthonormal vectors, s descending and not negative. A is kept.
void expect_svd(Backend& backend, const Grid& A) {
  const Index m = A.rows, n = A.cols, r = std::min(m, n);
  const Matrix given = A.on(backend);
  const Svd svd = backend.svd(given);
  EXPECT_EQ(backend.to_host(given), A.values);
  ASSERT_EQ(static_cast<Index>(svd.values.size()), r);
  ASSERT_EQ(svd.left.rows, m);
  ASSERT_EQ(svd.left.cols, r);
  ASSERT_EQ(svd.right.rows, r);
  ASSERT_EQ(svd.right.cols, n);
  EXPECT_TRUE(std::is_sorted(svd.values.rbegin(), svd.values.rend()));
  EXPECT_TRUE(svd.values.back() >= 0);
  const Grid left = Grid::from(backend, svd.left), right = Grid::from(backend, svd.right);
  Real norm = 0;
  for (const double value : A.values) norm += static_cast<Real>(value) * value;
  norm = std::sqrt(norm);
  const Real bound = 20 * static_cast<Real>(std::max(m, n)) * kUnit;
  for (Index i = 0; i < r; ++i)
    for (Index k = 0; k < r; ++k) {
      Real columns = 0;
      for (Index l = 0; l < m; ++l) columns += static_cast<Real>(left.at(l, i)) * left.at(l, k);
      ASSERT_TRUE(within(columns, i == k, bound)) << m << " x " << n;
      ASSERT_TRUE(within(dot(right, i, right, k), i == k, bound)) << m << " x " << n;
    }
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < n; ++j) {
      Real sum = 0;
      for (Index l = 0; l < r; ++l) sum += static_cast<Real>(left.at(i, l)) * svd.values[l] * right.at(l, j);
      ASSERT_TRUE(within(sum, A.at(i, j), bound * norm)) << m << " x " << n;
    }
}

TEST_P(CudaBackendTest, Svd) {
  for (const auto& [m, n] : {std::pair<Index, Index>{1, 1}, {1, 7}, {7, 1}, {2, 3}, {33, 17}, {17, 33}, {40, 40}}) {
    expect_svd(*backend_, Grid::random(m, n, static_cast<unsigned>(m + n)));
    expect_svd(*backend_, Grid(m, n));      // zero
    Grid singular = Grid::random(m, n, 9);  // rows sum to 0 in every column, as a trained classifier's do
    for (Index j = 0; j < n; ++j) {
      double sum = 0;
      for (Index i = 1; i < m; ++i) sum += singular.at(i, j);
      singular.at(0, j) = -sum;
    }
    expect_svd(*backend_, singular);
  }
}

TEST_P(CudaBackendTest, EigenvaluesAlone) {
  for (const Index n : {Index{1}, Index{2}, Index{33}}) {
    Grid A = Grid::random(n, n, static_cast<unsigned>(n));
    for (Index i = 0; i < n; ++i)
      for (Index j = i + 1; j < n; ++j) A.at(i, j) = std::numeric_limits<double>::quiet_NaN();
    Matrix with_vectors = A.on(*backend_), alone = A.on(*backend_);
    const auto want = backend_->eigh(with_vectors), got = backend_->eigenvalues(alone);
    ASSERT_EQ(got.size(), want.size());
    EXPECT_TRUE(std::is_sorted(got.begin(), got.end()));
    const double largest = std::max(std::abs(want.front()), std::abs(want.back()));
    for (std::size_t i = 0; i < got.size(); ++i)
      EXPECT_TRUE(within(got[i], want[i], 20 * static_cast<Real>(n) * kUnit * largest)) << n;
  }
}

TEST_P(CudaBackendTest, SingularValuesAloneAndOfTheTriangularFactor) {
  for (const auto& [m, n] : {std::pair<Index, Index>{1, 1}, {5, 5}, {33, 17}, {17, 33}, {40, 1}, {1, 40}}) {
    const Grid A = Grid::random(m, n, 9);
    const Matrix on = A.on(*backend_);
    const auto want = backend_->svd(on).values, got = backend_->singular_values(on);
    ASSERT_EQ(got.size(), want.size());
    const Real bound = 20 * static_cast<Real>(std::max(m, n)) * kUnit * want.front();
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(within(got[i], want[i], bound)) << m << " x " << n;
    if (m < n) continue;
    // R^T R = A^T A, and nothing below R's diagonal.
    const Grid R = Grid::from(*backend_, backend_->triangular_factor(on));
    ASSERT_EQ(R.rows, n);
    ASSERT_EQ(R.cols, n);
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) {
        Real gram = 0, of_factor = 0;
        for (Index l = 0; l < m; ++l) gram += static_cast<Real>(A.at(l, i)) * A.at(l, j);
        for (Index l = 0; l < n; ++l) of_factor += static_cast<Real>(R.at(l, i)) * R.at(l, j);
        ASSERT_TRUE(within(static_cast<double>(of_factor), gram, bound * want.front()));
        if (j < i) {
          ASSERT_EQ(R.at(i, j), 0);
        }
      }
    EXPECT_EQ(Grid::from(*backend_, on).values, A.values);
  }
}

TEST_P(CudaBackendTest, CholeskyAndItsSolves) {
  for (const Index n : {Index{1}, Index{2}, Index{17}, Index{33}, Index{130}}) {
    const Grid C = Grid::random(2 * n + 3, n, 5), B = Grid::random(4, n, 6);
    Matrix A = backend_->matrix(n, n);
    backend_->add_gram(1, C.on(*backend_), A);
    const Grid before = Grid::from(*backend_, A);
    Matrix again = backend_->clone(A);
    const auto values = backend_->eigenvalues(again);
    Matrix inverse;
    const double estimate = backend_->cholesky(A, &inverse), want = values.front() / values.back();
    EXPECT_TRUE(estimate > want / (4 * static_cast<double>(n * n)) && estimate <= want * 4 * static_cast<double>(n))
        << estimate << " " << want;
    const Grid L = Grid::from(*backend_, A);
    const Real bound = 10 * static_cast<Real>(n) * kUnit * values.back();
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j <= i; ++j) {
        Real sum = 0;
        for (Index l = 0; l <= j; ++l) sum += static_cast<Real>(L.at(i, l)) * L.at(j, l);
        ASSERT_TRUE(within(static_cast<double>(sum), before.at(i, j), bound));
      }
    Matrix solved = backend_->identity(n);
    backend_->solve_lower(A, Transpose::no, solved);
    EXPECT_EQ(Grid::from(*backend_, inverse).values, Grid::from(*backend_, solved).values);
    for (const bool transposed : {false, true}) {
      Matrix rows = B.on(*backend_);
      backend_->solve_lower(A, transposed ? Transpose::yes : Transpose::no, rows);
      const Grid X = Grid::from(*backend_, rows);
      for (Index r = 0; r < B.rows; ++r)
        for (Index i = 0; i < n; ++i) {
          Real sum = 0, size_abs = std::fabs(static_cast<Real>(B.at(r, i)));
          for (Index j = transposed ? i : 0; j <= (transposed ? n - 1 : i); ++j) {
            const Real term = static_cast<Real>(transposed ? L.at(j, i) : L.at(i, j)) * X.at(r, j);
            sum += term;
            size_abs += std::fabs(term);
          }
          ASSERT_TRUE(within(static_cast<double>(sum), B.at(r, i), 4 * static_cast<Real>(n) * kUnit * size_abs));
        }
    }
  }
  Matrix zero = backend_->matrix(3, 3);
  EXPECT_EQ(backend_->cholesky(zero), 0);
  Matrix indefinite = backend_->identity(3);
  const double minus = -1;
  backend_->upload(indefinite.data() + 4, &minus, sizeof minus);
  EXPECT_EQ(backend_->cholesky(indefinite), 0);
}

// ---------------------------------------------------------------- pairs
TEST_P(CudaBackendTest, PairSums) {
  for (const auto& [rows, d] : shapes()) {
    if (rows < 2 || rows > 300) continue;
    SCOPED_TRACE(testing::Message() << rows << " x " << d);
    const Grid A = Grid::random(rows, d, 21);
    PairQuery query;
    expect_pairs(*backend_, A, query);
    query.offsets = Grid::random(1, rows, 22).values;
    query.variances = Grid::random(1, rows, 23).values;
    for (double& v : query.variances) v = std::abs(v);
    expect_pairs(*backend_, A, query);
  }
}

TEST_P(CudaBackendTest, PairSumsOfDegenerateRows) {
  const Grid A = degenerate_rows();
  PairQuery query;
  query.variances.assign(static_cast<std::size_t>(A.rows), 0.5);
  expect_pairs(*backend_, A, query);
}

TEST_P(CudaBackendTest, FastPairSumsKeepTheirBound) {
  std::vector<std::pair<Index, Index>> sizes{{2, 1}, {2, 3}, {33, 17}, {40, 5}};
  if (!kSmall) sizes.insert(sizes.end(), {{150, 17}, {31, 257}, {9, 64}});
  expect_fast_pairs(*backend_, sizes, cuda::half_pair_error);
  EXPECT_LE(cuda::half_pair_error(Index{1} << 18), kFastError);
}

// Products of more than 4096 terms are added in double.
TEST_P(CudaBackendTest, FastPairSumsInPieces) {
  const Index d = kSmall ? 4099 : 8195;
  PairQuery query;
  query.variances.assign(3, 0.5);
  expect_pairs(*backend_, Grid::random(3, d, 30), query, cuda::half_pair_error(d));
}

// Rows of +-1: products, norms and 2/(R-1) are exact, and what is left is what pairs.hpp says of single precision.
TEST_P(CudaBackendTest, FastPairSumsOfExactProducts) {
  Grid A = Grid::random(33, 64, 35);
  for (double& value : A.values) value = value < 0 ? -1 : 1;
  PairQuery query;
  for (Index j = 0; j < A.rows; ++j) query.norms.push_back(8);
  query.gram_norm = query.frame_norm = 3;
  query.variances = Grid::random(1, A.rows, 36).values;
  for (double& v : query.variances) v = 1 + std::abs(v);
  query.fast = true;
  const PlainPairs want = count_pairs(A, query, 0);
  const PairSums got = backend_->pair_sums(A.on(*backend_), query);

  const Real u = 0x1p-24L, sums = 44 * u;  // of a lane's 32 pairs, 4 of these, 8 lanes
  Real gaps = 0, logs = 0;
  for (Index j = 0; j < A.rows; ++j)
    for (Index k = 0; k < j; ++k) {
      const Real s = std::sqrt(2 * 33.0L / 32), unit = std::sqrt(2 - 2 * dot(A, j, A, k) / 64);
      gaps += std::fabs(unit - s);
      logs += 1 + std::fabs(std::log(s / unit));
    }
  EXPECT_TRUE(within(got.cos_sum, want.cos, sums * want.cos_abs));
  EXPECT_TRUE(within(got.cos_square_sum, want.cos2, (sums + u) * want.cos2));
  EXPECT_TRUE(within(got.cos_abs_sum, want.cos_abs, sums * want.cos_abs));
  EXPECT_TRUE(within(got.cos_max, want.cos_max, u));
  EXPECT_TRUE(within(got.distance_sum, want.dist, (sums + 9 * u) * gaps));
  EXPECT_TRUE(within(got.distance_square_sum, want.dist2, (sums + 19 * u) * want.dist2));
  EXPECT_TRUE(within(got.log_sum, want.log, (sums + 4 * u) * logs));
  EXPECT_TRUE(within(got.cdnv_sum, want.cdnv, (sums + 8 * u) * want.cdnv));
  for (Index j = 0; j < A.rows; ++j)
    EXPECT_TRUE(within(got.nearest_squared[j], want.nearest[j], 4 * u * 2 * want.nearest[j]));
}

TEST_P(CudaBackendTest, FastPairSumsRepeatTheirBits) { expect_same_pair_bits(*backend_, kSmall ? 33 : 200, 17); }

// Patches of a tile of which all pairs are taken together, in whole strips and not; of some that are close, and of some
// that only the fast tier takes so (cosines above 1/2).
TEST_P(CudaBackendTest, PairSumsOfWholePatches) {
  const Index rows = 301, d = 9;
  Grid A = Grid::random(rows, d, 37);
  for (const auto& [j, k, gap] : {std::tuple<Index, Index, double>{270, 1, 0},
                                  {271, 1, 1e-7},
                                  {260, 34, 0.1},
                                  {261, 35, 0.4},
                                  {150, 2, 0},
                                  {130, 0, 0.3},
                                  {289, 77, 1e-3}})
    for (Index l = 0; l < d; ++l) A.at(j, l) = A.at(k, l) * (1 + gap * static_cast<double>(l % 3));
  cuda::Limits limits;
  limits.pair_blocks = 1;
  for (const auto& [height, width, warp_rows] :
       {std::tuple<Index, Index, Index>{301, 301, 32}, {96, 256, 16}, {44, 140, 32}, {301, 128, 8}}) {
    SCOPED_TRACE(testing::Message() << height << " x " << width << ", " << warp_rows << " rows a warp");
    limits.pair_rows = limits.half_pair_rows = height;
    limits.pair_columns = limits.half_pair_columns = width;
    limits.pair_warp_rows = limits.half_pair_warp_rows = warp_rows;
    limits.pairs_beside = limits.half_pairs_beside = std::string(GetParam()) == "defaults";
    cuda::CudaBackend backend(backend_->info().device.index, {}, limits);
    PairQuery query;
    query.offsets = Grid::random(1, rows, 38).values;
    expect_pairs(backend, A, query);
    query.variances.assign(static_cast<std::size_t>(rows), 0.5);
    expect_pairs(backend, A, query);
    expect_pairs(backend, A, query, cuda::half_pair_error(d));
    query.variances.clear();
    expect_pairs(backend, A, query, cuda::half_pair_error(d));
  }
}

TEST_P(CudaBackendTest, ProductSums) {
  for (const auto& [rows, d] : shapes()) {
    if (rows < 2 || rows > 300) continue;
    const Grid A = Grid::random(rows, d, 31), B = Grid::random(rows, d, 32);
    for (const bool with_frame : {false, true}) {
      ProductQuery query;
      if (with_frame) query.row_offsets = Grid::random(1, rows, 33).values;
      const Real r = static_cast<Real>(rows);
      Real norm = 0, frame_norm = 0, etf = 0, frame = 0;
      for (int pass = 0; pass < 2; ++pass) {
        for (Index j = 0; j < rows; ++j)
          for (Index k = 0; k < rows; ++k) {
            const Real value = dot(A, j, B, k), shifted = value + (with_frame ? query.row_offsets[j] : 0);
            if (pass == 0) {
              norm += value * value;
              frame_norm += shifted * shifted;
              continue;
            }
            const Real e = value / query.product_norm - ((j == k ? 1 : 0) - 1 / r) / std::sqrt(r - 1);
            const Real f = with_frame ? shifted / query.frame_norm - (j == k ? 1 / std::sqrt(r) : 0) : 0;
            etf += e * e;
            frame += f * f;
          }
        if (pass == 0) {
          query.product_norm = static_cast<double>(std::sqrt(norm));
          query.frame_norm = with_frame ? static_cast<double>(std::sqrt(frame_norm)) : 0;
        }
      }
      const ProductSums got = backend_->product_sums(A.on(*backend_), B.on(*backend_), query);
      const Real bound = 64 * static_cast<Real>(d + 8) * r * kUnit;
      EXPECT_TRUE(within(got.etf_residual, etf, bound)) << rows;
      EXPECT_TRUE(within(got.frame_residual, frame, bound)) << rows;
    }
  }
}

TEST_P(CudaBackendTest, RepetitionGivesTheSameBits) {
  const Index rows = kSmall ? 33 : 300, d = 17;
  const Grid A = Grid::random(rows, d, 41), B = Grid::random(rows, d, 42);
  const Matrix left = A.on(*backend_), right = B.on(*backend_);
  PairQuery query;
  for (Index j = 0; j < rows; ++j) query.norms.push_back(static_cast<double>(size(A, j)));
  query.gram_norm = query.frame_norm = 3;
  query.variances.assign(static_cast<std::size_t>(rows), 0.5);
  std::vector<double> first;
  for (int run = 0; run < 3; ++run) {
    std::vector<double> all = backend_->row_dots(left, right);
    const auto append = [&](const std::vector<double>& more) { all.insert(all.end(), more.begin(), more.end()); };
    append(backend_->weighted_row_sum(left, query.norms));
    const PairSums p = backend_->pair_sums(left, query);
    append({p.etf_residual, p.frame_residual, p.cos_sum, p.cos_square_sum, p.cos_abs_sum, p.distance_sum,
            p.distance_square_sum, p.log_sum, p.log_square_sum, p.cdnv_sum});
    append(p.nearest_squared);
    ProductQuery product{2, {}, 3};
    const ProductSums s = backend_->product_sums(left, right, product);
    append({s.etf_residual, s.frame_residual, backend_->inner(left, right)});
    if (run == 0) first = all;
    EXPECT_TRUE(same_bits(first, all));
  }
}

}  // namespace
}  // namespace ncollapse::test
