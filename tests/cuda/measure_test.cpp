// What `measure` asks of the device where classes and columns are few: there its time is launches and waits.
#include <gtest/gtest.h>

#include "tests/api/support.hpp"
#include "tests/shim/cuda_runtime.h"

namespace ncollapse_test {
namespace {

struct Job {
  Index classes, dim;
  Head head;  // no weights: none
};

cuda_shim::Calls calls_of_measure(const Job& job) {
  const Context context({ncollapse::DeviceType::cuda, 0});
  const std::vector<Index> counts(at(job.classes), 2 * job.dim / job.classes + 2);
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

TEST(MeasureOnCuda, WaitsSeldomWhereClassesAreFew) {
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
}

}  // namespace
}  // namespace ncollapse_test
