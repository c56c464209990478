// Devices and contexts.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <limits>
#include <optional>
#include <thread>

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

/// Every thread's own results of what all of them do at once; `context_of` gives a thread its context.
template <class ContextOf>
void expect_threads_agree(const ContextOf& context_of) {
  constexpr int kThreads = 4, kRepeats = 5;
  Problem problem;  // large enough that no step is over before another thread comes
  problem.train = problem.test = make_samples({{400, 100, 200, 300, 250, 350}, 96, {0.3}, 1.0, 0.0, 7});
  problem.head = random_head(6, 96, 8);
  const Report want = measure_problem(context_of(), problem);
  std::vector<std::vector<Report>> found(kThreads);
  std::vector<std::thread> threads;
  for (auto& reports : found)
    threads.emplace_back([&, mine = context_of()] {
      for (int repeat = 0; repeat < kRepeats; ++repeat) reports.push_back(measure_problem(mine, problem));
    });
  for (auto& thread : threads) thread.join();
  for (const auto& reports : found)
    for (const Report& report : reports) expect_same_bits(report, want);
}

// BLAS has one number of threads: who restores it must not be who found that of another one.
TEST(Devices, ThreadsWithContextsOfTheirOwnAgree) {
  const int before = openblas_get_num_threads();
  openblas_set_num_threads(2);
  expect_threads_agree([] { return Context(Device{}, {.threads = 1}); });
  EXPECT_EQ(openblas_get_num_threads(), 2);
  expect_threads_agree([] { return Context(Device{}, {.threads = 2}); });
  EXPECT_EQ(openblas_get_num_threads(), 2);
  openblas_set_num_threads(before);
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kMayFork = false;  // the thread sanitizer ends such a child; both are slow to start again
#else
constexpr bool kMayFork = true;
#endif

TEST(Devices, AForkedProcessIsToldThatItsThreadsAreGone) {
  if (!kMayFork) GTEST_SKIP() << "not under a sanitizer";
  const Problem problem = typical_problem();
  const Samples many = make_samples({{5000, 5000}, 20, {0.5}, 1.0, 0.0, 3});  // enough for two threads
  const Context two(Device{}, {.threads = 2});
  const Report want = measure_problem(Context(Device{}, {.threads = 1}), problem);
  moments_of(two, many);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);  // OpenMP would wait for ever
    int wrong = 0;
    for (const Context& context : {two, Context(Device{}, {.threads = 2})}) try {
        moments_of(context, many);
        wrong |= 1;
      } catch (const ncollapse::DeviceError& error) {
        wrong |= std::string(error.what()).find("forked") == std::string::npos ? 2 : 0;
      } catch (...) {
        wrong |= 4;
      }
    const Report found = measure_problem(Context(Device{}, {.threads = 1}), problem);
    if (found.at("nc1_pinv") != want.at("nc1_pinv")) wrong |= 8;
    _exit(wrong);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_NO_THROW(moments_of(two, many));  // the parent goes on
}

// The program of a static object measures after main, when what the library made later than that object is gone.
TEST(DevicesDeathTest, MeasuringAtTheEndOfTheProgram) {
  if (!kMayFork) GTEST_SKIP() << "not under a sanitizer";
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a process that has not measured yet
  const auto measure_late = [] {
    std::atexit([] {
      const Report report = measure_problem(Context(Device{}, {.threads = 1}), typical_problem());
      _exit(report.at("nc1_pinv") > 0 && ncollapse::all_conventions().size() == 5 ? 0 : 1);
    });
    measure_problem(Context(Device{}, {.threads = 1}), typical_problem());
    ncollapse::all_conventions();
    std::exit(2);
  };
  EXPECT_EXIT(measure_late(), testing::ExitedWithCode(0), "");
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

TEST_P(Contexts, OneMayServeSeveralThreads) {
  expect_threads_agree([&] { return context(); });
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
