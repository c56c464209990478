// What Accumulator::add promises on a GPU, on the host stand-in, which counts allocations and waits: nothing of either
// per batch, batches that can be captured, and faults that are found late but lose and spoil nothing.
#include <gtest/gtest.h>

#include "cuda/backend.hpp"
#include "ncollapse/error.hpp"
#include "tests/cuda/samples.hpp"

namespace ncollapse::test {
namespace {

constexpr Index kClasses = 5, kDim = 9;

class StreamOrderTest : public testing::Test {
 protected:
  ~StreamOrderTest() override {
    cuda_shim::set_capturing(false);
    cuda_shim::set_slow(false);
    cuda_shim::check_guards();
  }

  MomentState new_state(Precision precision = Precision::exact) { return new_state(backend_, precision); }
  static MomentState new_state(Backend& backend, Precision precision, Index classes = kClasses, Index dim = kDim) {
    MomentState state;
    state.classes = classes;
    state.dim = dim;
    state.precision = precision;
    state.counts = backend.index_array(classes, 1);
    state.shifts = backend.matrix(classes, dim);
    state.sums = backend.matrix(classes, dim);
    state.square_sums = backend.matrix(classes, 1);
    state.scatter = backend.matrix(dim, dim);
    return state;
  }
  /// The centres are 0.
  static DecisionState new_decisions(Backend& backend, Index centres, Index dim) {
    DecisionState state;
    state.classes = kClasses;
    state.dim = dim;
    state.centres = backend.matrix(centres, dim);
    state.centre_class = backend.index_array(centres, 1);
    state.counters = backend.index_array(4, kClasses);
    return state;
  }
  /// Rows of the classes in turn, each 0.01 of its centre from it; the centres of `state` become these.
  static Samples near_rows(Backend& backend, DecisionState& state, const test::Grid& centres, Dtype type, Index rows,
                           std::vector<Index>& labels) {
    std::vector<Index> all;
    for (Index k = 0; k < kClasses; ++k) all.push_back(k);
    backend.from_host(state.centres, centres.values);
    backend.from_host(state.centre_class, all);
    Samples x(type, rows, state.dim);
    for (Index i = 0; i < rows; ++i) {
      labels.push_back(i % kClasses);
      for (Index j = 0; j < state.dim; ++j) x.set(i, j, centres.at(i % kClasses, j) * 1.01);
    }
    return x;
  }
  std::vector<double> image(MomentState& state) { return image(backend_, state); }
  static std::vector<double> image(Backend& backend, MomentState& state) {  // the one in whose stream it is made
    EXPECT_FALSE(backend.pending_faults(state).any());
    std::vector<double> all;
    for (const Index count : backend.to_host(state.counts)) all.push_back(static_cast<double>(count));
    for (const Matrix* matrix : {&state.shifts, &state.sums, &state.square_sums, &state.scatter})
      for (const double value : backend.to_host(*matrix)) all.push_back(value);
    return all;
  }

  static cuda::Limits small_chunks() {
    cuda::Limits limits;
    limits.centred_bytes = 40 * 8 * kDim;
    limits.group_runs = 1;
    limits.few_classes = 0;
    return limits;
  }

  cuda::CudaBackend backend_{0, {}};
  cuda::CudaBackend in_chunks_{0, {}, small_chunks()};  // takes its second stream
};

/// A batch in host and in device memory. Classes from `first_class` on.
struct OneBatch {
  OneBatch(Backend& backend, Index rows, unsigned seed, Index first_class = 0)
      : labels(make_labels(Classes::uniform, rows, kClasses - first_class, seed)), x(Dtype::f32, rows, kDim) {
    for (Index& label : labels) label += first_class;
    fill(x, labels, 0.1, seed);
    refresh(backend);
  }
  void refresh(Backend& backend) {
    y = std::make_unique<Labels>(LabelType::i64, labels);
    device_x = x.device(backend, keep_x);
    device_y = y->device(backend, keep_y);
  }

  std::vector<Index> labels;
  Samples x;
  std::unique_ptr<Labels> y;
  std::shared_ptr<void> keep_x, keep_y;
  MatrixView device_x;
  LabelView device_y;
};

void expect_no_calls(const cuda_shim::Calls& before) {
  const auto& now = cuda_shim::calls();
  EXPECT_EQ(now.allocations, before.allocations);
  EXPECT_EQ(now.waits, before.waits);
  EXPECT_EQ(now.pageable_copies, before.pageable_copies);
  EXPECT_GT(now.launches, before.launches);
}

TEST_F(StreamOrderTest, AfterTheFirstBatchNothingIsAllocatedAndNothingWaits) {
  for (const Index rows : {7, 400})  // checked in a reading of their own; watched while they are added
    for (const auto precision : {Precision::exact, Precision::fast}) {
      const OneBatch batch(backend_, rows, 1);
      MomentState on_device = new_state(precision), from_host = new_state(precision);
      for (int i = 0; i < 3; ++i) {  // host batches take two buffers in turn
        ASSERT_FALSE(backend_.add_batch(on_device, batch.device_x, batch.device_y).any());
        ASSERT_FALSE(backend_.add_batch(from_host, batch.x.host(), batch.y->host()).any());
      }
      const cuda_shim::Calls before = cuda_shim::calls();
      for (const bool slow : {false, true}) {
        cuda_shim::set_slow(slow);
        for (int i = 0; i < 5; ++i) ASSERT_FALSE(backend_.add_batch(on_device, batch.device_x, batch.device_y).any());
      }
      cuda_shim::set_slow(false);
      for (int i = 0; i < 10; ++i) ASSERT_FALSE(backend_.add_batch(from_host, batch.x.host(), batch.y->host()).any());
      expect_no_calls(before);
      EXPECT_EQ(image(on_device), image(from_host));
      EXPECT_EQ(image(on_device)[0], 13 * std::count(batch.labels.begin(), batch.labels.end(), 0));
    }
}

// What a batch of few classes asks of the host. Its rows are surveyed for new classes until every class is known to
// have samples.
TEST_F(StreamOrderTest, FewClassesTakeFewLaunches) {
  cuda::Limits limits;
  limits.few_rows = 16;
  cuda::CudaBackend backend(0, {}, limits);
  const auto expect_calls = [&](MomentState& state, const OneBatch& batch, std::size_t launches, std::size_t products,
                                std::size_t copies = 1) {
    const cuda_shim::Calls before = cuda_shim::calls();
    ASSERT_FALSE(backend.add_batch(state, batch.device_x, batch.device_y).any());
    EXPECT_EQ(cuda_shim::calls().launches - before.launches, launches);
    EXPECT_EQ(cuda_shim::calls().vendor_calls - before.vendor_calls, products);
    EXPECT_LE(cuda_shim::calls().copies - before.copies, copies);
    image(backend, state);  // the record has come
  };
  const OneBatch small(backend, 16, 31, 3), some(backend, 40, 32, 3), all(backend, 40, 33);
  MomentState state = new_state(backend, Precision::exact);
  backend.add_batch(state, some.device_x, some.device_y);
  for (int i = 0; i < 3; ++i) expect_calls(state, some, 4, 1, 2);  // survey, sums, fold; slices; promote
  expect_calls(state, small, 3, 0);                                // sums, fold, products
  expect_calls(state, all, 4, 1, 2);
  expect_calls(state, all, 4, 1, 2);  // that all classes had samples before
  expect_calls(state, all, 3, 1);
  expect_calls(state, small, 3, 0);
  MomentState plain = new_state(backend, Precision::exact);
  for (const OneBatch* batch : {&some, &some, &some, &some, &small, &all, &all, &all, &small})
    backend.add_batch(plain, batch->device_x, batch->device_y);
  EXPECT_EQ(image(backend, state), image(backend, plain));
}

// What was found of a batch's new classes before its sums were refused does not reach the next one.
TEST_F(StreamOrderTest, ARefusedBatchOfFewClassesLeavesNothing) {
  cuda::Limits limits;
  limits.few_rows = 16;
  cuda::CudaBackend backend(0, {}, limits);
  const OneBatch large(backend, 60, 34), small(backend, 40, 35);
  MomentState state = new_state(backend, Precision::exact), plain = new_state(backend, Precision::exact);
  cuda_shim::refuse_launch(1);
  EXPECT_THROW(backend.add_batch(state, large.device_x, large.device_y), DeviceError);
  cuda_shim::refuse_launch(-1);
  for (MomentState* each : {&state, &plain}) backend.add_batch(*each, small.device_x, small.device_y);
  EXPECT_EQ(image(backend, state), image(backend, plain));
}

// As long as counts are not changed, neither are the sums: what was written went to the second array.
TEST_F(StreamOrderTest, ARefusedBatchLeavesTheSums) {
  cuda::Limits limits;
  limits.few_classes = 0;
  cuda::CudaBackend backend(0, {}, limits);
  const OneBatch first(backend, 100, 36), refused(backend, 100, 37), last(backend, 100, 38);  // of whole classes
  const auto sums_after = [&](int launches) {
    MomentState state = new_state(backend, Precision::exact);
    backend.add_batch(state, first.device_x, first.device_y);
    if (launches >= 0) {
      cuda_shim::refuse_launch(launches);
      EXPECT_THROW(backend.add_batch(state, refused.device_x, refused.device_y), DeviceError);
      cuda_shim::refuse_launch(-1);
    }
    backend.add_batch(state, last.device_x, last.device_y);
    const auto all = image(backend, state);
    return std::vector<double>(all.begin(), all.begin() + kClasses + 2 * kClasses * kDim);  // counts, shifts, sums
  };
  const auto wanted = sums_after(-1);
  for (int launches = 0; launches <= 6; ++launches) EXPECT_EQ(sums_after(launches), wanted) << launches;
}

TEST_F(StreamOrderTest, WithoutRoomForASecondArrayFeaturesAreReadTwice) {
  cuda::Limits limits;
  limits.few_classes = 0;
  cuda::CudaBackend backend(0, {}, limits);
  const Index classes = 200, d = 64, rows = 600;  // 100 KiB
  std::vector<Index> labels;
  for (Index i = 0; i < rows; ++i) labels.push_back(i % classes);
  Samples x(Dtype::f32, rows, d);
  fill(x, labels, 0.1, 39);
  const Labels y(LabelType::i64, labels);
  std::vector<std::vector<double>> sums;
  for (const bool room : {true, false}) {
    MomentState state = new_state(backend, Precision::exact, classes, d);
    bool done = false;
    for (std::size_t more = 0; !done; more += std::size_t{16} << 10) {  // until all but the second array fits
      std::size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      if (!room) cuda_shim::set_memory_limit(total - free + more);
      try {
        backend.add_batch(state, x.host(), y.host());
        done = true;
      } catch (const DeviceError&) {
      }
      cuda_shim::set_memory_limit(std::size_t{4} << 30);
    }
    EXPECT_EQ(backend.to_host(state.sums) == std::vector<double>(static_cast<std::size_t>(classes * d), 0.0), room);
    backend.add_batch(state, x.host(), y.host());
    EXPECT_FALSE(backend.pending_faults(state).any());
    sums.push_back(backend.to_host(state.sums));
  }
  EXPECT_EQ(sums[0], sums[1]);
}

TEST_F(StreamOrderTest, NeitherIsDoneForBatchesOfUnlikeSizesInTurn) {
  for (const auto precision : {Precision::exact, Precision::fast}) {
    const OneBatch small(backend_, 7, 21), large(backend_, 400, 22);
    MomentState state = new_state(precision);
    const auto add_both = [&] {
      for (const OneBatch* batch : {&large, &small}) {
        ASSERT_FALSE(backend_.add_batch(state, batch->device_x, batch->device_y).any());
        ASSERT_FALSE(backend_.add_batch(state, batch->x.host(), batch->y->host()).any());
      }
    };
    for (int i = 0; i < 2; ++i) add_both();
    const cuda_shim::Calls before = cuda_shim::calls();
    for (int i = 0; i < 5; ++i) add_both();
    expect_no_calls(before);
  }
}

TEST_F(StreamOrderTest, NeitherDoTheTwoStreamsOfSeveralChunksNorDoesACapture) {
  for (const auto precision : {Precision::exact, Precision::fast}) {
    const OneBatch batch(in_chunks_, 400, 11);
    MomentState state = new_state(in_chunks_, precision), plain = new_state(precision);
    for (int i = 0; i < 2; ++i) ASSERT_FALSE(in_chunks_.add_batch(state, batch.device_x, batch.device_y).any());
    const cuda_shim::Calls before = cuda_shim::calls();
    for (const bool capturing : {false, true, false, true}) {
      cuda_shim::set_capturing(capturing);
      ASSERT_FALSE(in_chunks_.add_batch(state, batch.device_x, batch.device_y).any());
    }
    cuda_shim::set_capturing(false);
    expect_no_calls(before);
    for (int i = 0; i < 6; ++i) backend_.add_batch(plain, batch.device_x, batch.device_y);
    const auto got = image(in_chunks_, state), want = image(plain);
    for (Index i = 0; i < kClasses; ++i) EXPECT_EQ(got[i], want[i]);
    for (std::size_t i = 0; i < got.size(); ++i)  // the chunks of the scatter are others
      EXPECT_TRUE(within(got[i], want[i], (precision == Precision::exact ? 1e-12 : 1e-3) * (1 + std::abs(want[i]))))
          << i;
  }
}

TEST_F(StreamOrderTest, MemoryOfAnotherDeviceIsRefused) {
  cuda::CudaBackend other(1, {});
  const OneBatch batch(backend_, 20, 23), elsewhere(other, 20, 23);
  MomentState state = new_state();
  EXPECT_THROW(backend_.add_batch(state, elsewhere.device_x, batch.device_y), UsageError);
  EXPECT_THROW(backend_.add_batch(state, batch.device_x, elsewhere.device_y), UsageError);
  EXPECT_FALSE(backend_.add_batch(state, batch.device_x, batch.device_y).any());
}

TEST_F(StreamOrderTest, AHostBatchWaitsOnlyForPiecesStillBeingCopied) {
  const OneBatch batch(backend_, 50, 2);
  MomentState state = new_state();
  for (int i = 0; i < 3; ++i) backend_.add_batch(state, batch.x.host(), batch.y->host());
  cuda_shim::set_slow(true);
  const auto before = cuda_shim::calls().waits;
  backend_.add_batch(state, batch.x.host(), batch.y->host());
  EXPECT_LE(cuda_shim::calls().waits - before, 2u);  // one piece for the features, one for the labels
}

TEST_F(StreamOrderTest, PinnedCallerMemoryIsCopiedDirectly) {
  const OneBatch batch(backend_, 50, 3);
  const MatrixView view = batch.x.host();
  const Index bytes = view.rows * view.row_stride() * 4;
  const cuda::Pinned<unsigned char> pinned(bytes);
  std::memcpy(pinned.get(), view.data, static_cast<std::size_t>(bytes));
  MatrixView from_pinned = view;
  from_pinned.data = pinned.get();
  MomentState one = new_state(), other = new_state();
  backend_.add_batch(one, view, batch.y->host());
  backend_.add_batch(other, from_pinned, batch.y->host());
  EXPECT_EQ(image(one), image(other));
}

TEST_F(StreamOrderTest, ABatchOfAKnownShapeCanBeCaptured) {
  for (const auto precision : {Precision::exact, Precision::fast}) {
    const OneBatch batch(backend_, 60, 4), larger(backend_, 90, 5);
    MomentState state = new_state(precision), fresh = new_state(precision), plain = new_state(precision);
    backend_.add_batch(state, batch.device_x, batch.device_y);
    cuda_shim::set_capturing(true);
    EXPECT_FALSE(backend_.add_batch(state, batch.device_x, batch.device_y).any());
    EXPECT_THROW(backend_.add_batch(fresh, batch.device_x, batch.device_y), UsageError);
    EXPECT_THROW(backend_.add_batch(state, larger.device_x, larger.device_y), UsageError);
    EXPECT_THROW(backend_.add_batch(state, batch.x.host(), batch.device_y), UsageError);
    EXPECT_THROW(backend_.add_batch(state, batch.device_x, batch.y->host()), UsageError);
    cuda_shim::set_capturing(false);
    const auto live = cuda_shim::live_allocations();
    backend_.add_batch(state, larger.device_x, larger.device_y);
    EXPECT_GT(cuda_shim::live_allocations(), live);  // what was captured keeps its scratch
    for (const OneBatch* each : {&batch, &batch, &larger}) backend_.add_batch(plain, each->device_x, each->device_y);
    EXPECT_EQ(image(state), image(plain));
  }
}

// Batches that are watched, of few rows, and checked before: a graph of each may be launched at any time, so whatever
// came before, it finds the sums where they were when it was captured.
TEST_F(StreamOrderTest, WhereGraphsAreTheSumsStayInTheirPlace) {
  cuda::Limits limits;
  limits.few_bytes = 100 * kDim;
  cuda::CudaBackend backend(0, {}, limits);
  const OneBatch watched(backend, 400, 20), few(backend, 20, 21);
  MomentState state = new_state(backend, Precision::exact), plain = new_state(backend, Precision::exact);
  const auto sums = [&] { return backend.to_host(state.sums); };  // as they lie
  const auto wanted = [&] {
    EXPECT_FALSE(backend.pending_faults(plain).any());
    return backend.to_host(plain.sums);
  };
  const auto add = [&](const OneBatch& batch) {
    for (MomentState* both : {&state, &plain}) backend.add_batch(*both, batch.device_x, batch.device_y);
  };
  add(watched);
  add(few);
  EXPECT_EQ(sums(), wanted());
  add(watched);
  EXPECT_NE(sums(), wanted());  // they are in the other array, or this tests nothing
  for (const OneBatch* captured : {&few, &watched}) {
    cuda_shim::set_capturing(true);
    backend.add_batch(state, captured->device_x, captured->device_y);
    cuda_shim::set_capturing(false);
    backend.add_batch(plain, captured->device_x, captured->device_y);
    EXPECT_EQ(sums(), wanted());
    for (const OneBatch* batch : {&watched, &few, &watched, &watched}) {
      add(*batch);
      EXPECT_EQ(sums(), wanted());
    }
  }
}

TEST_F(StreamOrderTest, DecisionsCannotBeCaptured) {
  const OneBatch batch(backend_, 20, 12);
  DecisionState state = new_decisions(backend_, kClasses, kDim);
  cuda_shim::set_capturing(true);
  EXPECT_THROW(backend_.decide_batch(state, batch.device_x, batch.device_y), UsageError);
  cuda_shim::set_capturing(false);
  EXPECT_FALSE(backend_.decide_batch(state, batch.device_x, batch.device_y).any());
}

// Labels come twice: to be looked at, and in the end, when all of the batch is known to be good, to be counted.
TEST_F(StreamOrderTest, DecisionsReadTheFeaturesOfAHostBatchOnce) {
  cuda::Limits limits;
  limits.block_rows = 16;
  cuda::CudaBackend backend(0, {}, limits);
  for (const auto type : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
    const Index rows = 100, d = 64;
    Samples x(type, rows, d);
    const auto labels = make_labels(Classes::uniform, rows, kClasses, 14);
    fill(x, labels, 0.1, 14);
    DecisionState state = new_decisions(backend, kClasses, d);
    const Labels y(LabelType::i64, labels);
    ASSERT_FALSE(backend.decide_batch(state, x.host(), y.host()).any());
    const auto before = cuda_shim::calls().uploaded;
    ASSERT_FALSE(backend.decide_batch(state, x.host(), y.host()).any());
    EXPECT_EQ(cuda_shim::calls().uploaded - before, static_cast<std::size_t>(rows * (d * size_of(type) + 2 * 8)));
    const auto allocations = cuda_shim::calls().allocations;  // a smaller batch has room
    ASSERT_FALSE(backend.decide_batch(state, x.host(0, 9), y.host(0, 9)).any());
    ASSERT_FALSE(backend.decide_batch(state, x.host(), y.host()).any());
    EXPECT_EQ(cuda_shim::calls().allocations, allocations);
  }
}

TEST_F(StreamOrderTest, RowsNearTheirMeansAreNotScored) {
  const Index rows = 4 * kClasses, d = 64;  // enough for radii in the first batch
  for (const auto type : {Dtype::f16, Dtype::bf16, Dtype::f32, Dtype::f64}) {
    SCOPED_TRACE(to_string(type));
    const test::Grid centres = test::Grid::random(kClasses, d, 31);
    DecisionState state = new_decisions(backend_, kClasses, d);
    std::vector<Index> labels;
    Samples x = near_rows(backend_, state, centres, type, rows, labels);
    const Labels y(LabelType::i64, labels);
    ASSERT_FALSE(backend_.decide_batch(state, x.host(), y.host()).any());
    const auto products = [&] {
      const auto before = cuda_shim::calls().vendor_calls;
      EXPECT_FALSE(backend_.decide_batch(state, x.host(), y.host()).any());
      return cuda_shim::calls().vendor_calls - before;
    };
    EXPECT_EQ(products(), 0U);
    for (Index j = 0; j < d; ++j) x.set(7, j, centres.at((labels[7] + 1) % kClasses, j));
    EXPECT_EQ(products(), 1U);
    const auto counters = backend_.to_host(state.counters);
    for (Index k = 0; k < kClasses; ++k) {
      EXPECT_EQ(counters[k], 12);
      EXPECT_EQ(counters[kClasses + k], k == labels[7] ? 11 : 12);
    }
  }
}

// The rows of the classifier are large, and so far apart only as the centres are: what they share turns no decision.
TEST_F(StreamOrderTest, RadiiAreThoseOfTheClassifiersDifferences) {
  const Index rows = 4 * kClasses, d = 64;
  const test::Grid centres = test::Grid::random(kClasses, d, 38);
  test::Grid weights = centres;
  std::vector<double> bias;
  for (Index k = 0; k < kClasses; ++k) {
    bias.push_back(-static_cast<double>(test::dot(centres, k, centres, k)) / 2);
    for (Index j = 0; j < d; ++j) weights.at(k, j) += 100;
  }
  for (const auto type : {Dtype::f16, Dtype::bf16, Dtype::f32}) {
    SCOPED_TRACE(to_string(type));
    DecisionState state = new_decisions(backend_, kClasses, d);
    state.weights = backend_.from_host(weights.values, kClasses, d);
    state.bias = backend_.from_host(bias, 1, kClasses);
    std::vector<Index> labels;
    Samples x = near_rows(backend_, state, centres, type, rows, labels);
    const Labels y(LabelType::i64, labels);
    ASSERT_FALSE(backend_.decide_batch(state, x.host(), y.host()).any());
    const auto before = cuda_shim::calls().vendor_calls;
    ASSERT_FALSE(backend_.decide_batch(state, x.host(), y.host()).any());
    EXPECT_EQ(cuda_shim::calls().vendor_calls, before);  // no scores
    const auto counters = backend_.to_host(state.counters);
    for (Index k = 0; k < 4 * kClasses; ++k) EXPECT_EQ(counters[static_cast<std::size_t>(k)], 8);
  }
}

// Where no row was far in the batch before, the host waits once, in the end; where one is, after all, it comes late.
TEST_F(StreamOrderTest, BatchesOfNearRowsWaitOnce) {
  const Index rows = 4 * kClasses, d = 64;
  for (const auto type : {Dtype::f16, Dtype::bf16, Dtype::f32}) {
    SCOPED_TRACE(to_string(type));
    const test::Grid centres = test::Grid::random(kClasses, d, 36);
    DecisionState state = new_decisions(backend_, kClasses, d);
    std::vector<Index> labels;
    Samples x = near_rows(backend_, state, centres, type, rows, labels);
    const Labels y(LabelType::i64, labels);
    const auto waits = [&] {
      std::shared_ptr<void> keep_x, keep_y;
      const MatrixView features = x.device(backend_, keep_x);
      const LabelView classes = y.device(backend_, keep_y);
      const auto before = cuda_shim::calls().waits;
      EXPECT_FALSE(backend_.decide_batch(state, features, classes).any());
      return cuda_shim::calls().waits - before;
    };
    waits();
    EXPECT_EQ(waits(), 1U);
    for (Index j = 0; j < d; ++j) x.set(7, j, centres.at((labels[7] + 1) % kClasses, j));
    EXPECT_EQ(waits(), 2U);  // found in the end
    EXPECT_EQ(waits(), 2U);  // asked for
    for (Index j = 0; j < d; ++j) x.set(7, j, centres.at(labels[7], j));
    EXPECT_EQ(waits(), 2U);
    EXPECT_EQ(waits(), 1U);
    const auto counters = backend_.to_host(state.counters);
    for (Index k = 0; k < kClasses; ++k) {
      EXPECT_EQ(counters[k], 24);
      EXPECT_EQ(counters[kClasses + k], k == labels[7] ? 22 : 24);
    }
    x.set(3, 5, std::numeric_limits<double>::quiet_NaN());
    const BatchFaults faults = backend_.decide_batch(state, x.host(), y.host());
    EXPECT_EQ(faults.nonfinite, 1);
    EXPECT_EQ(faults.nonfinite_row, 3);
    EXPECT_EQ(backend_.to_host(state.counters), counters);
  }
}

TEST_F(StreamOrderTest, RadiiTakeNoMemory) {
  const Index rows = 3 * kClasses, d = 64;  // no radii in the first batch
  for (const auto type : {Dtype::bf16, Dtype::f32}) {
    Samples x(type, rows, d);
    const auto labels = make_labels(Classes::uniform, rows, kClasses, 15);
    fill(x, labels, 0.1, 15);
    DecisionState state = new_decisions(backend_, kClasses, d);
    backend_.from_host(state.centres, test::Grid::random(kClasses, d, 32).values);
    const Labels y(LabelType::i64, labels);
    std::shared_ptr<void> keep_x, keep_y;
    const MatrixView features = x.device(backend_, keep_x);
    const LabelView classes = y.device(backend_, keep_y);
    ASSERT_FALSE(backend_.decide_batch(state, features, classes).any());
    const auto before = cuda_shim::calls();
    ASSERT_FALSE(backend_.decide_batch(state, features, classes).any());
    EXPECT_GT(cuda_shim::calls().vendor_calls - before.vendor_calls, 1U);  // scores of the means as well
    EXPECT_EQ(cuda_shim::calls().allocations, before.allocations);
  }
}

// Gathered rows lie where those of the tile before did, whose norms the second stream still needs: rows halfway between
// two centres, which only their own norms leave open, before tiles of zeros.
TEST_F(StreamOrderTest, GatheredRowsKeepTheirNorms) {
  const Index tile = 32, tiles = 8, rows = 3 * tile * tiles, d = 16;
  cuda::Limits limits;
  limits.row_tile = tile;
  limits.candidate_tile = 8;  // two products a tile, one beside what is taken from the other
  limits.narrow_scores = false;
  cuda::CudaBackend backend(0, {}, limits);
  const test::Grid centres = test::Grid::random(2, d, 33), noise = test::Grid::random(rows, d, 34);
  DecisionState state = new_decisions(backend, 2, d);
  backend.from_host(state.centres, centres.values);
  backend.from_host(state.centre_class, {0, 1});
  std::vector<double> bias(kClasses, 0.0);
  bias[0] = 1000;
  state.weights = backend.from_host(test::Grid::random(kClasses, d, 35).values, kClasses, d);
  state.bias = backend.from_host(bias, 1, kClasses);
  double between[d], square = 0;
  for (Index j = 0; j < d; ++j) {
    between[j] = centres.at(1, j) - centres.at(0, j);
    square += between[j] * between[j];
  }
  Samples x(Dtype::bf16, rows, d);
  std::vector<Index> nearest;
  for (Index i = 0; i < rows; ++i) {
    const bool near = i % 3 != 0, halfway = i / 3 / tile == 5;  // tiles of those that are not near
    double along = 0, lead = 0;
    for (Index j = 0; j < d; ++j) along += noise.at(i, j) * between[j];
    for (Index j = 0; j < d; ++j) {
      const double on_plane = centres.at(0, j) + between[j] / 2 + noise.at(i, j) - along / square * between[j];
      x.set(i, j, near ? centres.at(0, j) : halfway ? on_plane : 0);
      const double gaps[]{x.at(i, j) - centres.at(0, j), x.at(i, j) - centres.at(1, j)};
      lead += gaps[1] * gaps[1] - gaps[0] * gaps[0];
    }
    nearest.push_back(lead >= 0 ? 0 : 1);
  }
  const Labels y(LabelType::u8, nearest);
  ASSERT_FALSE(backend.decide_batch(state, x.host(), y.host()).any());
  const auto counters = backend.to_host(state.counters);
  EXPECT_EQ(counters[kClasses] + counters[kClasses + 1], rows);
}

// Nothing is scored then, and the second stream has nothing to do that somebody would have to wait for.
TEST_F(StreamOrderTest, WithoutCentresSamplesAreCounted) {
  Samples x(Dtype::bf16, 30, 8);
  const auto labels = make_labels(Classes::uniform, 30, kClasses, 13);
  fill(x, labels, 0.1, 13);
  DecisionState state = new_decisions(backend_, 0, 8);
  ASSERT_FALSE(backend_.decide_batch(state, x.host(), Labels(LabelType::i32, labels).host()).any());
  const auto counters = backend_.to_host(state.counters);
  for (Index k = 0; k < kClasses; ++k) EXPECT_EQ(counters[k], std::count(labels.begin(), labels.end(), k));
}

TEST_F(StreamOrderTest, AFaultFoundLateLosesAndSpoilsNothing) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const Index rows : {7, 400})
    for (const bool bad_label : {false, true})
      for (const bool on_device : {false, true}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, " << bad_label << on_device);
        // Class 0 comes with the bad batch only.
        OneBatch good(backend_, rows, 6, 1), bad(backend_, rows, 7);
        if (bad_label)
          bad.labels[4] = kClasses;
        else
          for (const Index row : {2, 5}) bad.x.set(row, 3, nan);
        bad.labels[2] = 0;
        bad.refresh(backend_);
        MomentState state = new_state();
        const auto give = [&](const OneBatch& batch) {
          return on_device ? backend_.add_batch(state, batch.device_x, batch.device_y)
                           : backend_.add_batch(state, batch.x.host(), batch.y->host());
        };
        ASSERT_FALSE(give(good).any());
        ASSERT_FALSE(give(good).any());
        const auto before = image(state);
        cuda_shim::set_slow(true);
        for (const OneBatch* batch : {&bad, &good, &bad, &good}) ASSERT_FALSE(give(*batch).any());
        cuda_shim::set_slow(false);
        BatchFaults faults = give(good);
        if (!faults.any()) {  // that copy of the record was an older one; the next one, when it has come, is not
          backend_.to_host(state.counts);
          faults = give(good);
        }
        ASSERT_TRUE(faults.any());
        EXPECT_EQ(faults.batch, 2);
        EXPECT_EQ(faults.samples, 2 * rows);
        EXPECT_EQ(faults.rows, rows);
        EXPECT_EQ(faults.bad_labels, bad_label ? 1 : 0);
        EXPECT_EQ(faults.nonfinite, bad_label ? 0 : 2);
        EXPECT_EQ(bad_label ? faults.bad_label_row : faults.nonfinite_row, bad_label ? 4 : 2);
        EXPECT_EQ(image(state), before);

        // From here on batches are taken again, and the next fault is another one.
        ASSERT_FALSE(give(good).any());
        ASSERT_FALSE(backend_.pending_faults(state).any());
        MomentState three = new_state();
        for (int i = 0; i < 3; ++i) backend_.add_batch(three, good.device_x, good.device_y);
        EXPECT_EQ(image(state), image(three));
        ASSERT_FALSE(give(bad).any());
        faults = backend_.pending_faults(state);
        EXPECT_EQ(faults.batch, 3);
        EXPECT_FALSE(backend_.pending_faults(state).any());
        EXPECT_EQ(image(state), image(three));
      }
}

// One of two devices does not answer, as one that is another process's own.
TEST(CudaDevices, WhyOneIsLeftOutIsTold) {
  cuda_shim::silence_device(0);
  const auto devices = cuda_devices();
  std::string refusal;
  try {
    cuda::CudaBackend backend(0, {});
  } catch (const DeviceError& error) {
    refusal = error.what();
  }
  cuda_shim::silence_device(-1);
  ASSERT_EQ(devices.usable.size(), 1U);
  EXPECT_EQ(devices.usable[0].device.index, 1);
  EXPECT_EQ(devices.unavailable_reason(), "");
  ASSERT_EQ(devices.left_out.size(), 1U);
  const std::string why = devices.left_out[0].reason;
  EXPECT_NE(why.find("CUDA device 0 (host shim) does not answer"), std::string::npos) << why;
  EXPECT_EQ(refusal, why);
  EXPECT_NO_THROW(cuda::CudaBackend(0, {}));
}

// Their squares are infinite in double, but they are numbers.
TEST_F(StreamOrderTest, HugeFeaturesAreNoFaults) {
  Samples x(Dtype::f64, 400, kDim);
  std::vector<Index> labels(400, 1);
  fill(x, labels, 0.1, 8);
  x.set(7, 2, 1e300);
  MomentState state = new_state();
  EXPECT_FALSE(backend_.add_batch(state, x.host(), Labels(LabelType::i64, labels).host()).any());
  EXPECT_FALSE(backend_.pending_faults(state).any());
  EXPECT_EQ(backend_.to_host(state.counts)[1], 400);
}

// Labels from the host, of four blocks, the first with a bad one. Where the others find no room, what was found wrong
// is of no batch.
TEST_F(StreamOrderTest, AFaultInABatchThatDoesNotFitIsForgotten) {
  cuda::Limits limits;
  limits.block_rows = 100;
  OneBatch batch(backend_, 400, 10);
  const Labels good(LabelType::i64, batch.labels);
  batch.labels[3] = kClasses;
  const Labels bad(LabelType::i64, batch.labels);
  int failures = 0;
  for (std::size_t more = 0; more < std::size_t{1} << 20; more += 512) {
    cuda::CudaBackend backend(0, {}, limits);
    const auto device_x = batch.x.device(backend, batch.keep_x);
    MomentState state = new_state(backend, Precision::exact);
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    cuda_shim::set_memory_limit(total - free + more);
    bool fits = true;
    try {
      backend.add_batch(state, device_x, bad.host());
    } catch (const MemoryError&) {
      fits = false;
    }
    cuda_shim::set_memory_limit(std::size_t{4} << 30);
    if (fits) break;
    ++failures;
    EXPECT_FALSE(backend.add_batch(state, device_x, good.host()).any()) << more;
    EXPECT_FALSE(backend.pending_faults(state).any()) << more;
    EXPECT_EQ(backend.to_host(state.counts)[1], std::count(batch.labels.begin(), batch.labels.end(), 1)) << more;
  }
  EXPECT_GT(failures, 3);
}

// The batch comes in four blocks, of which the second finds no room at some of these limits.
TEST_F(StreamOrderTest, ABatchThatDoesNotFitChangesNothing) {
  cuda::Limits limits;
  limits.block_rows = 100;
  cuda::CudaBackend backend(0, {}, limits);
  const OneBatch batch(backend, 400, 10);
  MomentState state = new_state(backend, Precision::exact);
  backend.add_batch(state, batch.device_x, batch.device_y);
  const auto before = image(backend, state);
  int failures = 0;
  for (std::size_t limit = std::size_t{96} << 20; limit < std::size_t{97} << 20; limit += 1024) {  // three workspaces
    cuda_shim::set_memory_limit(limit);
    try {
      backend.add_batch(state, batch.x.host(), batch.y->host());
      break;
    } catch (const DeviceError&) {
      ++failures;
    }
    ASSERT_EQ(image(backend, state), before) << limit;
  }
  cuda_shim::set_memory_limit(std::size_t{4} << 30);
  EXPECT_GT(failures, 0);
  EXPECT_NE(image(backend, state), before);
}

/// Has every launch of a verb refused in turn, and does what is queued then.
template <class Verb>
void refuse_each_launch(const Verb& verb) {
  int refused = 0;
  for (bool done = false; !done; ++refused) {
    cuda_shim::refuse_launch(refused);
    try {
      verb();
      done = true;
    } catch (const DeviceError&) {
    }
    cuda_shim::refuse_launch(-1);
    cuda_shim::check_guards();  // where work is late: a second stream's that uses what is released ends the process
  }
  EXPECT_GT(refused, 8);
}

TEST_F(StreamOrderTest, AnExceptionLeavesNoWorkBehindOnASecondStream) {
  cuda::Limits limits = small_chunks();
  limits.row_tile = limits.candidate_tile = limits.half_pair_rows = limits.half_pair_columns = 8;
  limits.pair_rows = limits.pair_columns = limits.product_tile = 2;
  cuda::CudaBackend backend(0, {}, limits);
  const OneBatch batch(backend, 100, 14);
  const Matrix centres = Grid::random(kClasses, kDim, 15).on(backend);
  for (const auto precision : {Precision::exact, Precision::fast})
    refuse_each_launch([&] {
      MomentState state = new_state(backend, precision);
      backend.add_batch(state, batch.device_x, batch.device_y);
    });
  refuse_each_launch([&] {
    DecisionState state;
    state.classes = kClasses;
    state.dim = kDim;
    state.centres = centres;
    state.centre_class = backend.index_array(kClasses, 1);
    state.counters = backend.index_array(4, kClasses);
    backend.decide_batch(state, batch.device_x, batch.device_y);
  });
  PairQuery query;
  query.norms.assign(kClasses, 1);
  query.gram_norm = query.frame_norm = 1;
  refuse_each_launch([&] { backend.pair_sums(centres, query); });
  refuse_each_launch([&] { backend.product_sums(centres, centres, {1, {}, 0}); });
}

TEST_F(StreamOrderTest, AStateMayOutliveItsBackend) {
  const auto before = cuda_shim::live_allocations();
  {
    MomentState state;
    {
      cuda::CudaBackend backend(0, {});
      const OneBatch batch(backend, 30, 9);
      state.classes = kClasses;
      state.dim = kDim;
      state.counts = backend.index_array(kClasses, 1);
      state.shifts = backend.matrix(kClasses, kDim);
      state.sums = backend.matrix(kClasses, kDim);
      backend.add_batch(state, batch.device_x, batch.device_y);
    }
  }
  EXPECT_EQ(cuda_shim::live_allocations(), before);
}

}  // namespace
}  // namespace ncollapse::test
