// Devices and contexts.
#include <limits>
#include <optional>

#include "tests/api/support.hpp"

extern "C" void openblas_set_num_threads(int threads);
extern "C" int openblas_get_num_threads();
extern "C" int omp_get_max_threads();
extern "C" void omp_set_num_threads(int threads);

namespace ncollapse_test {
namespace {

using ncollapse::Device;
using ncollapse::DeviceType;

TEST(Devices, NamesParse) {
  EXPECT_EQ(Device::parse("cpu"), (Device{DeviceType::cpu, 0}));
  EXPECT_EQ(Device::parse("cuda"), (Device{DeviceType::cuda, 0}));
  EXPECT_EQ(Device::parse("cuda:3"), (Device{DeviceType::cuda, 3}));
  EXPECT_EQ(Device::parse("auto"), Device::best());
  for (const std::string name :
       {"", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1x", "cuda:99999999999999999999", "cpu:1x", "cpu "})
    EXPECT_THROW(Device::parse(name), ncollapse::UsageError) << name;
}

TEST(Devices, NamesRoundTrip) {
  for (const std::string name : {"cpu", "cuda:0", "cuda:7"}) EXPECT_EQ(ncollapse::to_string(Device::parse(name)), name);
}

TEST(Devices, TheCpuIsListedFirst) {
  const auto devices = ncollapse::devices();
  ASSERT_FALSE(devices.empty());
  EXPECT_EQ(devices[0].device, Device{});
  EXPECT_FALSE(devices[0].name.empty());
  EXPECT_GT(devices[0].memory_bytes, 0);
  EXPECT_GE(devices[0].threads, 1);
  const bool has_cuda = devices.size() > 1;
  EXPECT_EQ(ncollapse::cuda_unavailable_reason().empty(), has_cuda) << ncollapse::cuda_unavailable_reason();
  EXPECT_EQ(Device::best(), has_cuda ? (Device{DeviceType::cuda, 0}) : Device{});
}

TEST(Devices, ADeviceThatIsNotThereIsAnError) {
  EXPECT_THROW(Context(Device{DeviceType::cuda, 1000}), ncollapse::DeviceError);
  if (!ncollapse::cuda_unavailable_reason().empty()) {
    EXPECT_THROW(Context(Device{DeviceType::cuda, 0}), ncollapse::DeviceError);
  }
}

TEST(Devices, NumbersOfThreadsThatNoMachineHasAreRefused) {
  for (const int threads : {-1, 4097, std::numeric_limits<int>::max()})
    EXPECT_THROW(Context(Device{}, {.threads = threads}), ncollapse::UsageError) << threads;
  const int before = omp_get_max_threads();
  omp_set_num_threads(4097);  // as OMP_NUM_THREADS does
  EXPECT_THROW(Context{Device{}}, ncollapse::UsageError);
  EXPECT_NO_THROW(Context(Device{}, {.threads = 1}));
  omp_set_num_threads(before);
  EXPECT_NO_THROW(Context{Device{}});
}

TEST(Devices, ThreadCountsAgree) {
  const Problem problem = typical_problem();
  const int usual = Context(Device{}).info().threads;
  std::optional<Report> want;
  for (int threads : {1, 2, 3, usual}) {  // the last one leaves the process as it was
    ncollapse::ContextOptions options;
    options.threads = threads;
    const Context context(Device{}, options);
    EXPECT_EQ(context.info().threads, threads);
    const Report report = measure_problem(context, problem);
    if (!want) want = report;
    expect_same_metrics(report, *want, kOrder, kZero);
    expect_same_bits(report, measure_problem(context, problem));
  }
}

// A program may compute in the same BLAS between its measurements, as one with LibTorch does.
TEST(Devices, TheThreadsOfBlasStayAsTheyWere) {
  const int before = openblas_get_num_threads();
  for (const int threads : {1, 2}) {
    openblas_set_num_threads(threads);
    const Context context(Device{}, {.threads = 3 - threads});
    EXPECT_EQ(openblas_get_num_threads(), threads);
    measure_problem(context, typical_problem());
    EXPECT_EQ(openblas_get_num_threads(), threads);
  }
  openblas_set_num_threads(before);
}

class Contexts : public OnDevice {};
NCOLLAPSE_ON_EVERY_DEVICE(Contexts);

TEST_P(Contexts, KnowTheirDevice) {
  EXPECT_EQ(context().info().device, Device::parse(GetParam()));
  EXPECT_FALSE(context().info().name.empty());
  EXPECT_GT(context().info().memory_bytes, 0);
  const Context copy = context();
  EXPECT_EQ(copy.backend(), context().backend());
}

TEST_P(Contexts, SeveralMayBeUsedInTurn) {
  const Samples samples = make_samples({{50, 60}, 5, {0.5}, 1.0, 0.0, 121});
  const Context other(Device::parse(GetParam()));
  Accumulator first(context(), options_for(samples)), second(other, options_for(samples));
  for (int repeat = 0; repeat < 3; ++repeat) {
    add_samples(first, samples, 9);
    add_samples(second, samples, 9);
  }
  expect_same_bits(first.finish(), second.finish());
}

}  // namespace
}  // namespace ncollapse_test
