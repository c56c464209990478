// `plan` from outside, and its figures against what runs really take.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "ncollapse/ncollapse.hpp"
#include "tests/cli/run_command.hpp"

namespace ncollapse::test {
namespace {

using Json = nlohmann::json;

constexpr int kUsage = 2, kDevice = 4;

Json plan_json(const std::vector<std::string>& more) {
  std::vector<std::string> arguments{"plan", "--device", "cpu", "--threads", "1", "--json", "-"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Outcome run = run_command(arguments);
  EXPECT_EQ(run.exit_code, 0) << run.err;
  return Json::parse(run.out, nullptr, false);
}

/// Files of `rows` samples in `classes` classes, and the largest resident size of the commands that measure them.
class MeasuredPeaks {
 public:
  MeasuredPeaks(Index classes, Index dim, Index rows) : classes_(classes), dim_(dim) {
    std::vector<float> values(static_cast<std::size_t>(rows * dim));
    std::uint32_t random = 1;
    for (auto& value : values) value = static_cast<float>((random = random * 1664525U + 1013904223U) >> 16);
    std::vector<std::int64_t> labels;
    for (Index i = 0; i < rows; ++i) labels.push_back(i % classes);
    x_ = write("x.npy", rows, values);
    y_ = folder_.write("y.npy", npy("<i8", "(" + std::to_string(rows) + ",)", bytes_of(labels)));
    values.resize(static_cast<std::size_t>(classes * dim));
    w_ = write("w.npy", classes, values);
  }

  std::map<std::string, double> bytes(const std::string& statistics) {
    const std::string state = folder_.path(statistics + ".nc"), again = folder_.path(statistics + "2.nc");
    std::map<std::string, double> peaks;
    peaks["accumulate"] = run({"accumulate", "--features", x_, "--labels", y_, "--classes", std::to_string(classes_),
                               "--statistics", statistics, "--state", state});
    std::filesystem::copy_file(state, again);
    peaks["merge"] = run({"merge", state, again, "--state", folder_.path(statistics + "all.nc")});
    peaks["finalize"] = run({"finalize", state, "--weights", w_});
    return peaks;
  }

 private:
  std::string write(const std::string& name, Index rows, const std::vector<float>& values) const {
    return folder_.write(name,
                         npy("<f4", "(" + std::to_string(rows) + ", " + std::to_string(dim_) + ")", bytes_of(values)));
  }
  static double run(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--device", "cpu", "--threads", "1", "--quiet"});
    const Outcome outcome = run_command(arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return static_cast<double>(outcome.peak_kib) * 1024;
  }

  TemporaryDirectory folder_;
  Index classes_, dim_;
  std::string x_, y_, w_;
};

TEST(Plan, SaysWhatRunsTake) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need far more memory than the program";
#endif
  if (cuda_unavailable_reason() != "this library was built without CUDA")
    GTEST_SKIP() << "CUDA's libraries take more memory than what is measured; builds without CUDA run this";
  // Nearly nothing but the program, its libraries and their buffers.
  auto programs = MeasuredPeaks(4, 8, 16).bytes("full");
  // The second has fewer samples than dimensions, so that nc1_vci takes its larger way; in the third, workspace counts.
  struct Size {
    Index classes, dim, rows;
  };
  for (const auto& [classes, dim, rows] : {Size{1500, 2048, 4000}, Size{600, 1536, 1300}, Size{8, 512, 30000}}) {
    MeasuredPeaks measured(classes, dim, rows);
    for (const std::string statistics : {"means", "full"}) {
      const MemoryPlan planned = plan(
          {.classes = classes, .dim = dim, .statistics = parse_statistics(statistics), .samples = rows, .threads = 1});
      std::map<std::string, Index> phases;
      for (const auto& phase : planned.phases) phases[phase.name] = phase.host_bytes;
      const std::map<std::string, Index> expected{
          {"accumulate", std::max(phases["accumulate"], phases["save"])},
          {"merge", std::max(phases["load"], phases["merge"])},
          {"finalize", std::max({phases["load"], phases["finish"], phases["measure"]})}};
      for (const auto& [command, peak] : measured.bytes(statistics)) {
        const double got = peak - programs[command], want = static_cast<double>(expected.at(command));
        RecordProperty(command + "_" + statistics + "_" + std::to_string(classes) + "x" + std::to_string(dim),
                       std::to_string(got / want));
        // A plan counts arrays as if every page was touched: after a merge the sums stay zero, and resident nowhere.
        // Above it may lie OpenBLAS's packing buffer, 32 MiB a thread, which the small run does not fill.
        const bool streaming = command == "accumulate";
        const double least = streaming ? 0.9 : 0.75, buffers = streaming ? 4 << 20 : 32 << 20;
        if (want < 2 * buffers) continue;  // the buffers would hide what is measured
        EXPECT_TRUE(got >= least * want - (4 << 20) && got <= 1.1 * want + buffers)
            << command << " of " << statistics << ", K = " << classes << ", d = " << dim << ": " << got
            << " bytes, planned " << want;
      }
    }
  }
}

TEST(Plan, CountsWhatIsKnown) {
  constexpr Index kClasses = 30, kDim = 20;
  TemporaryDirectory folder;
  for (const Statistics statistics : {Statistics::means, Statistics::traces, Statistics::full}) {
    const MemoryPlan planned = plan({.classes = kClasses, .dim = kDim, .statistics = statistics, .samples = 1000});
    const Index traces = statistics >= Statistics::traces ? kClasses : 0,
                square = statistics >= Statistics::full ? kDim * kDim : 0,
                triangle = statistics >= Statistics::full ? kDim * (kDim + 1) / 2 : 0;
    EXPECT_EQ(planned.state_bytes, 8 * (kClasses + 2 * kClasses * kDim + traces + square));
    EXPECT_EQ(planned.exchange_bytes, 8 * (kClasses * (2 * kDim + 1) + traces + triangle));
    EXPECT_EQ(planned.batch_rows, 1000);
    EXPECT_EQ(planned.data_bytes, 1000 * kDim * 4);
    const std::string file = folder.path(std::string(to_string(statistics)));
    Accumulator(Context(Device::parse("cpu")), {kClasses, kDim, statistics, {}}).save(file);
    EXPECT_EQ(planned.state_file_bytes, static_cast<Index>(std::filesystem::file_size(file)));
  }
  EXPECT_EQ(plan({.classes = 10, .dim = 512}).batch_rows, (64 << 20) / (512 * 4));
  const MemoryPlan gpu = plan({.classes = 1000, .dim = 2048, .device = DeviceType::cuda});
  EXPECT_GT(gpu.device_peak_bytes, gpu.state_bytes + gpu.add_bytes);
  EXPECT_GE(gpu.host_peak_bytes, gpu.batch_bytes + gpu.state_file_bytes);
  EXPECT_EQ(plan({.classes = 1000, .dim = 2048}).device_peak_bytes, 0);
  EXPECT_THROW(plan({.classes = 10, .dim = 512, .dtype = static_cast<Dtype>(9)}), UsageError);
}

TEST(Plan, TakesABatchThatFits) {
  const Json free = plan_json({"--classes", "10", "--dim", "512"})["plan"];
  const Json tight = plan_json({"--classes", "10", "--dim", "512", "--memory", "40M"});
  EXPECT_EQ(tight["request"]["memory_bytes"], 40 << 20);
  EXPECT_LE(tight["plan"]["host_peak_bytes"].get<Index>(), 40 << 20);
  EXPECT_LT(tight["plan"]["batch_rows"].get<Index>(), free["batch_rows"].get<Index>());
  EXPECT_GT(free["host_peak_bytes"].get<Index>(), 40 << 20);
  ASSERT_EQ(tight["all"].size(), 3U);
  for (const Json& other : tight["all"]) EXPECT_EQ(other["fits"], true);

  const std::vector<std::string> large{"plan",  "--device", "cpu",      "--classes", "100",
                                       "--dim", "4096",     "--memory", "64M"};
  const Outcome refused = run_command(large);
  EXPECT_EQ(refused.exit_code, kDevice);
  EXPECT_EQ(refused.out, "");
  for (const auto* word : {"statistics full", "above the limit of 64.0 MiB", "these statistics fit: means, traces"})
    EXPECT_NE(refused.err.find(word), std::string::npos) << word << " in " << refused.err;
  auto traces = large;
  traces.insert(traces.end(), {"--statistics", "traces"});
  const Outcome fits = run_command(traces);
  EXPECT_EQ(fits.exit_code, 0) << fits.err;
  for (const auto* word : {"* traces", "state file", "exchange of a merge", "fits 64.0 MiB"})
    EXPECT_NE(fits.out.find(word), std::string::npos) << word << " in " << fits.out;
  traces[8] = "1K";
  const Outcome none = run_command(traces);
  EXPECT_EQ(none.exit_code, kDevice);
  EXPECT_NE(none.err.find("no statistics fit"), std::string::npos) << none.err;
}

TEST(Plan, SizesMayBeWrittenAsPeopleDo) {
  for (const auto& [size, bytes] : {std::pair{"1000000", 1000000},
                                    {"900000B", 900000},
                                    {"1.5M", 3 << 19},
                                    {"1.5 mb", 3 << 19},
                                    {"1536KiB", 3 << 19}})
    EXPECT_EQ(plan_json({"--classes", "10", "--dim", "5", "--memory", size})["request"]["memory_bytes"], bytes) << size;
}

TEST(Plan, RefusesWrongSizes) {
  const auto refused = [](const std::vector<std::string>& more) {
    std::vector<std::string> arguments{"plan", "--device", "cpu"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    EXPECT_EQ(run_command(arguments).exit_code, kUsage) << more.back();
  };
  refused({"--classes", "10"});
  refused({"--classes", "0", "--dim", "5"});
  refused({"--classes", "16777217", "--dim", "5"});
  refused({"--classes", "10", "--dim", "5", "--dtype", "f8"});
  refused({"--classes", "10", "--dim", "5", "--statistics", "some"});
  refused({"--classes", "10", "--dim", "5", "--memory", "-3"});
  for (const auto* size : {"much", "0", "0.1", "1.2.3G", "5X", "5BB", "5GG", "G", ".", "1e30", "9000P"})
    refused({"--classes", "10", "--dim", "5", "--memory", size});
  refused({"--classes", "10", "--dim", "4611686018427387904"});
  refused({"--classes", "10", "--dim", "5", "--samples", "4611686018427387904"});
}

}  // namespace
}  // namespace ncollapse::test
