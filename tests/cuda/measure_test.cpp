// What `measure` asks of the device where classes and columns are few, or sizes of classes many: there its time is
// launches and waits. And what `plan` says of memory on the device.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "ncollapse/decisions.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/plan.hpp"
#include "ncollapse/state.hpp"
#include "tests/api/support.hpp"
#include "tests/io/array_writers.hpp"
#include "tests/shim/cublas_v2.h"
#include "tests/shim/cuda_runtime.h"

namespace ncollapse_test {
namespace {

namespace test = ncollapse::test;

struct Job {
  Index classes, dim;
  Head head;        // no weights: none
  Index sizes = 1;  // of classes
};

cuda_shim::Calls calls_of_measure(const Job& job) {
  const Context context({ncollapse::DeviceType::cuda, 0});
  std::vector<Index> counts;
  for (Index k = 0; k < job.classes; ++k) counts.push_back(2 * job.dim / job.classes + 2 + k % job.sizes);
  const ClassMoments moments = moments_of(context, make_samples({counts, job.dim}));
  const ncollapse::Classifier classifier = job.head.classifier();
  ncollapse::Evidence evidence;
  if (!job.head.weights.empty()) evidence.classifier = &classifier;
  const cuda_shim::Calls before = cuda_shim::calls();
  expect_sound(ncollapse::measure(moments, evidence));
  cuda_shim::Calls used = cuda_shim::calls();
  used.allocations -= before.allocations;
  used.waits -= before.waits;
  used.pageable_copies -= before.pageable_copies;
  used.copies -= before.copies;
  used.launches -= before.launches;
  used.vendor_calls -= before.vendor_calls;
  return used;
}

TEST(MeasureOnCuda, WaitsSeldom) {
  const auto expect_few = [](const Job& job, std::size_t waits) {
    const cuda_shim::Calls used = calls_of_measure(job);
    const std::string what = std::to_string(job.classes) + " classes: " + std::to_string(used.waits) + " waits, " +
                             std::to_string(used.launches) + " launches, " + std::to_string(used.copies) +
                             " copies and memsets, " + std::to_string(used.vendor_calls) + " vendor calls, " +
                             std::to_string(used.allocations) + " allocations";
    EXPECT_LE(used.waits, waits) << what;
    EXPECT_EQ(used.pageable_copies, 0) << what;
  };
  expect_few({10, 512, {}}, 18);
  expect_few({10, 512, random_head(10, 512, 2)}, 40);
  expect_few({300, 40, random_head(300, 40, 2)}, 40);
  expect_few({200, 40, random_head(200, 40, 2), 100}, 48);
}

// cuBLAS refuses a product in the middle of a run over files. What has a part of that batch in it is not kept, so that
// a resumed run ends as one that nothing stopped.
TEST(MeasureOnCuda, AHalfAddedBatchIsNotSaved) {
  const Samples samples = make_samples({std::vector<Index>(20, 60), 40, {0.3}, 1.0, 0.0, 5});
  const test::TemporaryDirectory folder;
  const std::string rows = std::to_string(samples.rows());
  ncollapse::AccumulationRequest request{
      .features = {folder.write("x.npy", test::npy("<f8", "(" + rows + ", 40)", test::bytes_of(samples.values)))},
      .labels = {folder.write("y.npy", test::npy("<i8", "(" + rows + ",)", test::bytes_of(samples.labels)))},
      .classes = 20,
      .state = folder.path("state.nc"),
      .resume = true,
      .batch_rows = 400};
  const Context context({ncollapse::DeviceType::cuda, 0});
  const auto run = [&] { return ncollapse::accumulate_files(context, request); };
  for (const Index save_every : {0, 400}) {
    request.save_every_rows = save_every;
    request.on_progress = [](const auto&) { cuda_shim::set_product_status(CUBLAS_STATUS_EXECUTION_FAILED); };
    EXPECT_THROW(run(), ncollapse::Error);
    cuda_shim::set_product_status(CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(std::filesystem::exists(request.state), save_every > 0);
    request.on_progress = {};
    const ClassMoments found = run().finish();
    EXPECT_EQ(found.samples(), samples.rows());
    expect_same_bits(found, accumulate(context, samples, 400).finish());
    std::filesystem::remove(request.state);
  }
}

std::size_t bytes_in_use() {
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  return total - free;
}

// An accumulator into which a part of a batch may have come says so from then on, whatever is asked of it; so does a
// counter. What is refused before anything was changed breaks neither.
TEST(MeasureOnCuda, WhatAFailureLeftInPartIsNotUsed) {
  using ncollapse::UsageError;
  const Samples samples = make_samples({std::vector<Index>(20, 60), 40, {0.3}, 1.0, 0.0, 5});
  const auto x = ncollapse::view(samples.values.data(), samples.rows(), 40);
  const auto y = ncollapse::view(samples.labels.data(), samples.rows());
  const Context context({ncollapse::DeviceType::cuda, 0});
  Accumulator broken(context, {.classes = 20, .dim = 40}), whole(context, {.classes = 20, .dim = 40});
  whole.add(x, y);
  const test::TemporaryDirectory folder;
  EXPECT_THROW(broken.add(x, ncollapse::view(samples.labels.data(), 3)), UsageError);
  cuda_shim::set_memory_limit(bytes_in_use());
  EXPECT_THROW(broken.add(x, y), ncollapse::MemoryError);
  cuda_shim::set_memory_limit(std::size_t{4} << 30);
  cuda_shim::refuse_pinned_memory(true);
  EXPECT_THROW(broken.add(x, y), ncollapse::MemoryError);
  cuda_shim::refuse_pinned_memory(false);
  EXPECT_EQ(broken.samples(), 0);
  broken.add(x, y);
  expect_same_bits(broken.finish(), whole.finish());
  cuda_shim::set_product_status(CUBLAS_STATUS_EXECUTION_FAILED);
  EXPECT_THROW(broken.add(x, y), ncollapse::Error);
  cuda_shim::set_product_status(CUBLAS_STATUS_SUCCESS);
  for (const auto& use : std::vector<std::function<void()>>{
           [&] { broken.add(x, y); }, [&] { broken.check(); }, [&] { static_cast<void>(broken.samples()); },
           [&] { broken.finish(); }, [&] { broken.merge(whole); }, [&] { whole.merge(broken); },
           [&] { broken.save(folder.path("state.nc")); }})
    EXPECT_THROW(use(), UsageError);
  EXPECT_FALSE(std::filesystem::exists(folder.path("state.nc")));
  EXPECT_EQ(whole.finish().samples(), samples.rows());

  const std::vector<double> weights(20 * 40, 0.5);
  const ncollapse::Classifier head{.layers = {ncollapse::view(weights.data(), 20, 40)}};
  ncollapse::DecisionCounter counter(whole.finish(), &head);
  cuda_shim::set_product_status(CUBLAS_STATUS_EXECUTION_FAILED);
  EXPECT_THROW(counter.add(x, y), ncollapse::Error);
  cuda_shim::set_product_status(CUBLAS_STATUS_SUCCESS);
  EXPECT_THROW(counter.add(x, y), UsageError);
  EXPECT_THROW(counter.finish(), UsageError);
}

// Batches of few classes, in one chunk and in several, and of the general way, from the host. The sort's own memory is
// the vendor's: up to 16 bytes a row.
TEST(MeasureOnCuda, PlansSayWhatBatchesTake) {
  using ncollapse::Statistics;
  struct Case {
    Index classes, dim, rows;
    Statistics statistics;
  };
  for (const auto& [classes, dim, rows, statistics] : {Case{10, 64, 2000, Statistics::full},
                                                       {16, 300, 700, Statistics::traces},
                                                       {17, 300, 700, Statistics::traces},
                                                       {128, 300, 128, Statistics::full},
                                                       {129, 300, 128, Statistics::full},
                                                       {200, 64, 2000, Statistics::full},
                                                       {3, 1040, 200, Statistics::full}}) {
    const Context context({ncollapse::DeviceType::cuda, 0});
    const std::vector<float> x(at(rows * dim), 1);
    std::vector<std::int64_t> labels;
    for (Index i = 0; i < rows; ++i) labels.push_back(i % classes);
    const auto before = bytes_in_use();
    Accumulator accumulator(context, {classes, dim, statistics, {}});
    for (const Index size : {rows, rows, Index{1}})  // host batches take two buffers in turn; what is left in the end
      accumulator.add(ncollapse::view(x.data(), size, dim), ncollapse::view(labels.data(), size));
    const auto took = static_cast<Index>(bytes_in_use() - before);
    const ncollapse::MemoryPlan plan = ncollapse::plan({.classes = classes,
                                                        .dim = dim,
                                                        .statistics = statistics,
                                                        .device = ncollapse::DeviceType::cuda,
                                                        .batch_rows = rows});
    const Index planned = plan.state_bytes + plan.add_bytes, small = 8 << 10;  // the record, and arrays of a few bytes
    EXPECT_TRUE(took <= planned + small && planned <= took + 16 * rows + planned / 50)
        << classes << " classes, " << rows << " x " << dim << ": " << took << " bytes, planned " << planned;
  }
}

// Where they are most of what measuring takes.
TEST(MeasureOnCuda, PlansHaveRoomForTilesOfPairs) {
  const Index classes = 2300, dim = 8;
  const Context context({ncollapse::DeviceType::cuda, 0});
  const ClassMoments moments = moments_of(context, make_samples({std::vector<Index>(at(classes), 2), dim}));
  expect_sound(ncollapse::measure(moments));  // what the context keeps is there now
  const auto planned =
      ncollapse::plan({.classes = classes, .dim = dim, .device = ncollapse::DeviceType::cuda}).measure_bytes;
  const auto measure_in = [&](Index bytes) {
    cuda_shim::set_memory_limit(bytes_in_use() + at(bytes));
    ncollapse::measure(moments);
  };
  EXPECT_NO_THROW(measure_in(planned));
  EXPECT_THROW(measure_in(planned - planned / 3), ncollapse::DeviceError);
  cuda_shim::set_memory_limit(std::size_t{4} << 30);
}

}  // namespace
}  // namespace ncollapse_test
