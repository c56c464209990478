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
  std::printf(
      "K=%ld d=%ld, %s: %zu waits, %zu pageable copies, %zu other copies and memsets, %zu launches, %zu vendor "
      "calls, %zu allocations\n",
      job.classes, job.dim, job.head.weights.empty() ? "no classifier" : "a classifier", used.waits,
      used.pageable_copies, used.copies, used.launches, used.vendor_calls, used.allocations);
  return used;
}

TEST(MeasureOnCuda, WaitsSeldomWhereClassesAreFew) {
  calls_of_measure({10, 512, {}});
  calls_of_measure({10, 512, random_head(10, 512, 2)});
  calls_of_measure({300, 40, random_head(300, 40, 2)});
}

}  // namespace
}  // namespace ncollapse_test
