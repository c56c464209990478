// Single kernels and pieces of the backend on the host stand-in, and the stand-in itself: that it would notice what it
// is there to notice.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "cuda/backend.hpp"
#include "cuda/class_sums.hpp"
#include "cuda/decide.hpp"
#include "cuda/dense.hpp"
#include "cuda/device.hpp"
#include "cuda/rows.hpp"
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
    const Buckets buckets = sorter.sort(rows);
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
    }
  }
}

TEST(SumPlanTest, CoversTheShapeWhateverItsSize) {
  for (const Index rows : {1, 31, 32, 33, 1000, 100000, 4000000})
    for (const Index dim : {1, 3, 128, 256, 257, 4096, 20000}) {
      const SumPlan plan = plan_sums(rows, dim, 8, 32);
      EXPECT_TRUE(plan.run >= 32 && plan.run <= 512 && (plan.run & (plan.run - 1)) == 0);
      EXPECT_TRUE(plan.runs * plan.run >= rows && (plan.runs - 1) * plan.run < rows);
      EXPECT_EQ(plan.group, 8 * plan.run);
      const Index slab = dim <= 128 ? 64 : 256;
      EXPECT_TRUE(plan.slabs * slab >= dim && (plan.slabs - 1) * slab < dim);
      EXPECT_TRUE(plan.pitch % 2 == 0 && plan.pitch >= dim && plan.pitch <= dim + 1);
    }
}

TEST(SumPlanTest, ClassesAreCutWhereTheyAreLongOrLeaveTheirGroup) {
  const SumPlan plan = plan_sums(10000, 10, 8, 32);  // runs of 32, groups of 256
  EXPECT_TRUE(plan.whole(0, 1));
  EXPECT_TRUE(plan.whole(31, 95));
  EXPECT_FALSE(plan.whole(31, 96));
  EXPECT_TRUE(plan.whole(255, 256));
  EXPECT_FALSE(plan.whole(255, 257));
  EXPECT_TRUE(plan.whole(256, 320));
}

// ---------------------------------------------------------------- decisions
TEST_F(KernelTest, LeadersAreTheBestAndTheLowestOfEquals) {
  for (const Index count : {1, 3, 50}) {
    const Index rows = 70, tile = 7;
    Grid scores = Grid::random(rows, count, 5);
    for (double& value : scores.values) value = std::round(value);  // many ties
    const std::vector<double> constants(static_cast<std::size_t>(count), 0.5), quarters(constants.size(), 0.25);
    const Buffer<double> constant(queue_, constants), candidate_scales(queue_, quarters), best(queue_, rows * kLeaders);
    const Buffer<double> row_scales(queue_, std::vector<double>(static_cast<std::size_t>(rows), 8.0));
    const Buffer<Index> candidates(queue_, rows * kLeaders);
    for (Index first = 0; first < count; first += tile) {
      const Index width = std::min(tile, count - first);
      std::vector<float> part;
      for (Index i = 0; i < rows; ++i)
        for (Index k = 0; k < width; ++k) part.push_back(static_cast<float>(scores.at(i, first + k) / 2));
      const Buffer<float> on_device(queue_, part);
      launch_merge_leaders(stream(), on_device.get(), row_scales.get(), candidate_scales.get() + first,
                           constant.get() + first, rows, first, width, {best.get(), candidates.get()});
    }
    const auto got = best.to_host();
    const auto got_candidates = candidates.to_host();
    for (Index i = 0; i < rows; ++i) {
      std::vector<Index> order(static_cast<std::size_t>(count));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return scores.at(i, a) > scores.at(i, b); });
      for (Index place = 0; place < kLeaders; ++place) {
        if (place >= count) {
          ASSERT_EQ(got[i * kLeaders + place], -HUGE_VAL);
          continue;
        }
        ASSERT_EQ(got_candidates[i * kLeaders + place], order[place]) << i << ", " << place;
        ASSERT_EQ(got[i * kLeaders + place], scores.at(i, order[place]) + 0.5);
      }
    }
  }
}

TEST_F(KernelTest, CertificatesAreStrictAndFailForNaN) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const ScoreBound bound = centre_bound(100, 2.0, 0, 1e-4);
  const double lost = 1e-3, error = bound.of(3, lost);
  const Real product = 1e-4L + 164 * 0x1p-23L * 2.0001L;
  EXPECT_TRUE(test::within(error, 132 * 0x1p-53L * 25 + 1.001L * (1e-3L * 2 + 3.001L * product), 1e-15L));
  const double just = 1.9 * error, enough = 2.2 * error;
  const std::vector<std::vector<double>> scores{
      {1, 1, 1, 1},                             // nothing can be told apart
      {1, 1 - just, 1 - just, 1 - just},        // nor here
      {1, 1 - enough, 1 - enough, 1 - enough},  // the first
      {1, 1 - just, 1 - enough, 1 - enough},    // one of two
      {1, 1 - just, 1 - just, 1 - enough},      // one of three
      {1, 1, -inf, -inf},                       // one of two: there are no more
      {1, -inf, -inf, -inf},                    // the only one
      {nan, 0, 0, 0},
      {1, nan, nan, nan},
      {inf, 0, 0, 0},  // norms too large, below
  };
  std::vector<double> flat, norms(scores.size(), 3), losses(scores.size(), lost);
  norms.back() = 1e200;
  for (const auto& row : scores) flat.insert(flat.end(), row.begin(), row.end());
  const Index rows = static_cast<Index>(scores.size());
  const Buffer<double> s(queue_, flat), n(queue_, norms), l(queue_, losses);
  const Buffer<Index> c(queue_, std::vector<Index>(flat.size(), 5)), decisions(queue_, rows);
  const Buffer<Count> evaluations(queue_, std::vector<Count>{7});
  const NarrowRows z{Dtype::f16, nullptr, 0, nullptr, n.get(), l.get()};
  launch_certify(stream(), {s.get(), c.get()}, z, rows, bound, 50, decisions.get(), evaluations.get());
  EXPECT_EQ(decisions.to_host(), (std::vector<Index>{-1, -1, 5, -2, -3, -2, 5, -1, -1, -1}));
  EXPECT_EQ(evaluations.to_host().front(), 7u + 5 * 50 + 2 + 3 + 2);
  EXPECT_EQ(centre_bound(Index{1} << 53, 1, 0, 0).quadratic, inf);

  // Rows as they lie in bf16 may overflow in fp32: then no margin is large enough.
  ScoreBound raw = centre_bound(100, 2.0, 3.0, 1e-4);
  EXPECT_TRUE(test::within(raw.of(3, 0), 132 * 0x1p-53L * 64 + 1.001L * 3 * product, 1e-15L));
  allow_for_range(raw, Dtype::f16, 100);
  EXPECT_EQ(raw.largest_norm, inf);
  allow_for_range(raw, Dtype::bf16, 100);
  EXPECT_GE(raw.of(0, 0), 100 * 0x1p-123);
  for (double& norm : norms) norm = 0x1p119;
  const Buffer<double> large(queue_, norms);
  launch_certify(stream(), {s.get(), c.get()}, {Dtype::bf16, nullptr, 0, nullptr, large.get(), nullptr}, rows, raw, 50,
                 decisions.get(), nullptr);
  EXPECT_EQ(decisions.to_host(), std::vector<Index>(scores.size(), -1));
}

TEST_F(KernelTest, RowsAsHalvesSayWhatTheyLost) {
  for (const auto& [rows, d] : {std::pair<Index, Index>{1, 1}, {31, 64}, {33, 65}, {8, 300}}) {
    test::Samples x(Dtype::f32, rows, d, 1, 1);
    test::fill(x, std::vector<Index>(static_cast<std::size_t>(rows), 0), 1, 3);
    for (Index j = 0; j < d; ++j) x.set(0, j, j % 2 == 0 ? 1e-30 : 1e-34);
    const Index padded = (d + 63) / 64 * 64;
    const std::vector<double> origin(static_cast<std::size_t>(d), 0.0);
    CudaBackend backend(0, {.cuda_stream = stream()});
    std::shared_ptr<void> keep;
    const MatrixView view = x.device(backend, keep);
    const Buffer<Half> half(queue_, rows * padded);
    const Buffer<double> scales(queue_, rows), norms(queue_, rows), lost(queue_, rows), centre(queue_, origin);
    for (const double* from : {static_cast<const double*>(nullptr), static_cast<const double*>(centre.get())}) {
      launch_narrow_rows(stream(), {view.data, view.dtype, rows, d, view.row_stride()}, from, padded, Dtype::f16,
                         half.get(), scales.get(), norms.get(), lost.get());
      const auto got = half.to_host();
      const auto scale = scales.to_host(), norm = norms.to_host(), loss = lost.to_host();
      for (Index i = 0; i < rows; ++i) {
        Real square = 0, gap_square = 0;
        for (Index j = 0; j < padded; ++j) {
          const double value = j < d ? x.at(i, j) : 0, back = scale[i] * to_double(got[i * padded + j]);
          square += static_cast<Real>(value) * value;
          gap_square += (static_cast<Real>(value) - back) * (static_cast<Real>(value) - back);
        }
        const Real size = std::sqrt(square);
        ASSERT_TRUE(test::within(norm[i], size, 1e-13L * size));
        ASSERT_TRUE(test::within(loss[i], std::sqrt(gap_square), 1e-9L * size));
        ASSERT_LE(loss[i], norm[i] * 0x1p-11 * 1.01);
        ASSERT_TRUE(norm[i] / scale[i] >= 64 && norm[i] / scale[i] < 128);
      }
    }
  }
}

// Else every row would be evaluated in double, rightly and slowly.
TEST_F(KernelTest, CollapsedRowsAreCertified) {
  const Index rows = 40, count = 5, d = 70, padded = 128;
  const Grid centres = Grid::random(count, d, 12);
  Grid x(rows, d);
  double largest = 0;
  std::vector<double> constants;
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < d; ++j) x.at(i, j) = centres.at(i % count, j) + 1e-3 * static_cast<double>((i * j) % 7);
  for (Index k = 0; k < count; ++k) {
    largest = std::max(largest, static_cast<double>(test::size(centres, k)));
    constants.push_back(static_cast<double>(-dot(centres, k, centres, k) / 2));
  }
  struct Halves {
    Halves(Queue& queue, const Grid& grid) : values(queue, grid.values), half(queue, grid.rows * 128) {
      for (auto* each : {&scales, &norms, &lost}) *each = Buffer<double>(queue, grid.rows);
      launch_narrow_rows(queue.stream(), {values.get(), Dtype::f64, grid.rows, grid.cols, grid.cols}, nullptr, 128,
                         Dtype::f16, half.get(), scales.get(), norms.get(), lost.get());
    }
    NarrowRows get() const { return {Dtype::f16, half.get(), 128, scales.get(), norms.get(), lost.get()}; }
    Buffer<double> values;
    Buffer<Half> half;
    Buffer<double> scales, norms, lost;
  };
  const Halves z(queue_, x), c(queue_, centres);
  const Buffer<float> products(queue_, rows * count);
  const Buffer<double> constant(queue_, constants), scores(queue_, rows * kLeaders);
  const Buffer<Index> candidates(queue_, rows * kLeaders), decisions(queue_, rows);
  const Leaders leaders{scores.get(), candidates.get()};
  multiply_narrow(queue_, Dtype::f16, z.half.get(), padded, rows, c.half.get(), padded, count, padded, products.get(),
                  count);
  launch_merge_leaders(stream(), products.get(), z.get().scales, c.get().scales, constant.get(), rows, 0, count,
                       leaders);
  const auto lost = c.lost.to_host();
  launch_certify(stream(), leaders, z.get(), rows,
                 centre_bound(d, largest, 0, *std::max_element(lost.begin(), lost.end())), count, decisions.get(),
                 nullptr);
  const auto got = decisions.to_host();
  for (Index i = 0; i < rows; ++i) EXPECT_EQ(got[i], i % count);
}

// The same of rows as they lie, scored without their centre, beside what lies between and behind them.
TEST_F(KernelTest, CollapsedRowsAreCertifiedAsTheyLie) {
  const Index rows = 40, count = 5, d = 70, stride = 80;
  for (const auto type : {Dtype::f16, Dtype::bf16}) {
    const Grid centres = Grid::random(count, d, 12);  // about an origin that is as far away as they are large
    test::Samples x(type, rows, d, stride - d, 8);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < d; ++j) x.set(i, j, centres.at(i % count, j) + 1 + 1e-3 * static_cast<double>((i * j) % 7));
    CudaBackend backend(0, {.cuda_stream = stream()});
    std::shared_ptr<void> keep;
    const MatrixView view = x.device(backend, keep);
    const FeatureBlock block{view.data, type, rows, d, view.row_stride()};
    ASSERT_TRUE(can_be_raw(block));
    double largest = 0;
    std::vector<double> constants;
    for (Index k = 0; k < count; ++k) {
      Real along = dot(centres, k, centres, k) / 2;
      for (Index j = 0; j < d; ++j) along += static_cast<Real>(centres.at(k, j));
      largest = std::max(largest, static_cast<double>(test::size(centres, k)));
      constants.push_back(static_cast<double>(-along));
    }
    const Buffer<double> values(queue_, centres.values), scales(queue_, count), sizes(queue_, count),
        lost(queue_, count);
    const Buffer<std::uint16_t> narrow(queue_, count * 128);
    launch_narrow_rows(stream(), {values.get(), Dtype::f64, count, d, d}, nullptr, 128, type, narrow.get(),
                       scales.get(), sizes.get(), lost.get());
    const Buffer<float> products(queue_, rows * count);
    const Buffer<double> constant(queue_, constants), scores(queue_, rows * kLeaders), norms(queue_, rows);
    const Buffer<Index> candidates(queue_, rows * kLeaders), decisions(queue_, rows);
    const Leaders leaders{scores.get(), candidates.get()};
    launch_row_norms(stream(), block, norms.get());
    multiply_narrow(queue_, type, block.data, block.stride, rows, narrow.get(), 128, count, d, products.get(), count);
    launch_merge_leaders(stream(), products.get(), nullptr, scales.get(), constant.get(), rows, 0, count, leaders);
    const auto losses = lost.to_host(), norm = norms.to_host();
    ScoreBound bound =
        centre_bound(d, largest, std::sqrt(static_cast<double>(d)), *std::max_element(losses.begin(), losses.end()));
    allow_for_range(bound, type, d);
    launch_certify(stream(), leaders, {type, block.data, block.stride, nullptr, norms.get(), nullptr}, rows, bound,
                   count, decisions.get(), nullptr);
    const auto got = decisions.to_host();
    const auto best = scores.to_host();
    for (Index i = 0; i < rows; ++i) {
      EXPECT_EQ(got[i], i % count) << to_string(type);
      Real square = 0, score = -0.0L;
      for (Index j = 0; j < d; ++j) {
        square += static_cast<Real>(x.at(i, j)) * x.at(i, j);
        score += static_cast<Real>(x.at(i, j)) * centres.at(i % count, j);
      }
      EXPECT_TRUE(test::within(norm[i], std::sqrt(square), 1e-13L * std::sqrt(square)));
      // The bound holds, and is not far beyond what is lost.
      const double error = bound.of(norm[i], 0);
      EXPECT_TRUE(test::within(best[i * kLeaders], score + constants[i % count], error));
      EXPECT_LE(error, (type == Dtype::f16 ? 0x1p-11 : 0x1p-8) * norm[i] * largest);
    }
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

TEST_F(KernelTest, NarrowProductsAreAccumulatedInSinglePrecision) {
  for (const auto type : {Dtype::f16, Dtype::bf16}) EXPECT_TRUE(narrow_products_are_exact(queue_, type));
  const auto calls = cuda_shim::calls().vendor_calls;
  for (const auto type : {Dtype::f16, Dtype::bf16}) EXPECT_TRUE(narrow_products_are_exact(queue_, type));
  EXPECT_EQ(cuda_shim::calls().vendor_calls, calls);  // known
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
  EXPECT_NO_THROW(backend.eigh(again));
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
