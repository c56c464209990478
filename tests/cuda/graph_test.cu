// Accumulator::add in a captured CUDA graph, through the public API.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <memory>

#include "cuda/check.hpp"
#include "ncollapse/accumulator.hpp"
#include "ncollapse/error.hpp"
#include "tests/cuda/samples.hpp"

namespace ncollapse::test {
namespace {

using cuda::check;

/// More than 2^18 rows are more than one chunk of either scatter, for which a second stream gathers.
struct GraphCase {
  Precision precision;
  Index rows;
};

class GraphTest : public testing::TestWithParam<GraphCase> {
 protected:
  static constexpr Index kClasses = 10, kDim = 48;

  void SetUp() override {
    const auto all = cuda_devices();
    if (all.usable.empty()) GTEST_SKIP() << "cuda: " << all.unavailable_reason();
    device_ = all.usable.front().device;
    check(cudaSetDevice(device_.index));
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    context_ = std::make_unique<Context>(device_, ContextOptions{.cuda_stream = stream_});
    labels_ = make_labels(Classes::uniform, rows_, kClasses, 1);
    fill(x_, labels_, 0.1, 1);
    upload();
  }
  void TearDown() override {
    if (!context_) return;
    keep_x_.reset();
    keep_y_.reset();
    context_.reset();
    check(cudaStreamDestroy(stream_));
  }

  Accumulator accumulator() const {
    return Accumulator(*context_, {.classes = kClasses, .dim = kDim, .precision = GetParam().precision});
  }
  /// The same device memory again, so that a captured graph sees it.
  void upload() {
    Backend& backend = *context_->backend();
    const Labels y(LabelType::i64, labels_);
    if (!keep_x_) {
      view_x_ = x_.device(backend, keep_x_);
      view_y_ = y.device(backend, keep_y_);
      return;
    }
    backend.upload(keep_x_.get(), x_.host().data, rows_ * kDim * 4);
  }

  const Index rows_ = GetParam().rows;
  Device device_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Context> context_;
  std::vector<Index> labels_;
  Samples x_{Dtype::f32, rows_, kDim};
  std::shared_ptr<void> keep_x_, keep_y_;
  MatrixView view_x_;
  LabelView view_y_;
};

INSTANTIATE_TEST_SUITE_P(Precisions, GraphTest,
                         testing::Values(GraphCase{Precision::exact, 5000}, GraphCase{Precision::fast, 5000},
                                         GraphCase{Precision::exact, 270000}, GraphCase{Precision::fast, 270000}),
                         [](const auto& name) {
                           return std::string(to_string(name.param.precision)) +
                                  (name.param.rows > 5000 ? "_on_two_streams" : "");
                         });

TEST_P(GraphTest, ReplaysAddTheBatchAgainAndReportFaults) {
  Accumulator captured = accumulator(), plain = accumulator();
  captured.add(view_x_, view_y_);  // warm
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  captured.add(view_x_, view_y_);
  check(cudaStreamEndCapture(stream_, &graph));
  check(cudaGraphInstantiate(&replay, graph, 0));
  EXPECT_EQ(captured.samples(), rows_);  // a capture does nothing yet
  for (int i = 0; i < 3; ++i) check(cudaGraphLaunch(replay, stream_));
  for (int i = 0; i < 4; ++i) plain.add(view_x_, view_y_);
  EXPECT_EQ(captured.samples(), 4 * rows_);
  EXPECT_EQ(captured.finish().means(), plain.finish().means());
  EXPECT_EQ(captured.finish().within_scatter(), plain.finish().within_scatter());

  x_.set(17, 3, std::numeric_limits<double>::quiet_NaN());
  upload();
  check(cudaGraphLaunch(replay, stream_));
  check(cudaGraphLaunch(replay, stream_));
  try {
    captured.check();
    ADD_FAILURE() << "a NaN was not reported";
  } catch (const DataError& error) {
    EXPECT_EQ(error.row(), 4 * rows_ + 17) << error.what();
  }
  EXPECT_EQ(captured.finish().within_scatter(), plain.finish().within_scatter());
  check(cudaGraphExecDestroy(replay));
  check(cudaGraphDestroy(graph));
}

// Batches that are watched leave sums in a second array; a graph of a small batch does not know of it.
TEST_P(GraphTest, BatchesOfAllKindsComeBetweenReplays) {
  Accumulator captured = accumulator(), plain = accumulator();
  const Index few = 60;
  const MatrixView small_x{view_x_.data, Dtype::f32, few, kDim, 0, MemorySpace::device};
  const LabelView small_y{view_y_.data, LabelType::i64, few, MemorySpace::device};
  for (Accumulator* both : {&captured, &plain}) {
    both->add(small_x, small_y);
    both->add(view_x_, view_y_);
  }
  cudaGraph_t graphs[2] = {};
  cudaGraphExec_t replays[2] = {};
  for (const int which : {0, 1}) {
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    which == 0 ? captured.add(small_x, small_y) : captured.add(view_x_, view_y_);
    check(cudaStreamEndCapture(stream_, &graphs[which]));
    check(cudaGraphInstantiate(&replays[which], graphs[which], 0));
  }
  EXPECT_EQ(captured.finish().means(), plain.finish().means());  // captures do nothing
  for (const int which : {0, 2, 0, 1, 1, 2, 3, 0, 1}) {  // graphs of a small and a large batch; the same without
    if (which < 2)
      check(cudaGraphLaunch(replays[which], stream_));
    else
      which == 2 ? captured.add(view_x_, view_y_) : captured.add(small_x, small_y);
    which % 3 == 0 ? plain.add(small_x, small_y) : plain.add(view_x_, view_y_);
    if (which == 3) {
      EXPECT_EQ(captured.finish().means(), plain.finish().means());
    }
  }
  EXPECT_EQ(captured.finish().means(), plain.finish().means());
  EXPECT_EQ(captured.finish().within_scatter(), plain.finish().within_scatter());
  for (const int which : {0, 1}) {
    check(cudaGraphExecDestroy(replays[which]));
    check(cudaGraphDestroy(graphs[which]));
  }
}

}  // namespace
}  // namespace ncollapse::test
