// `ncollapse analyze` under mpirun, from outside: the report is that of one process, and a rank that fails ends all.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>

#include "ncollapse/context.hpp"
#include "ncollapse/types.hpp"
#include "tests/cli/run_command.hpp"

namespace ncollapse::test {
namespace {

using Json = nlohmann::json;
using Arguments = std::vector<std::string>;

constexpr int kUsage = 2, kData = 3, kDevice = 4;

Arguments operator+(Arguments left, const Arguments& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

class MpiRun : public testing::Test {
 protected:
  MpiRun() {
    // More ranks than cores, in a container as root; ranks that wait leave the core to others.
    for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
                             "OMPI_MCA_rmaps_base_oversubscribe", "OMPI_MCA_mpi_yield_when_idle"})
      setenv(name, "1", 1);
    setenv("OMPI_MCA_hwloc_base_binding_policy", "none", 1);
    setenv("OMPI_MCA_pml", "ob1", 1);  // looking for UCX's networks takes longer than the runs
    setenv("OMPI_MCA_osc", "^ucx", 1);
    setenv("OPENBLAS_NUM_THREADS", "1", 1);  // whose threads take address space
  }

  /// mpirun is what run_command runs here.
  static Outcome run(int ranks, const Arguments& arguments) {
    return run_command(Arguments{"-n", std::to_string(ranks), NCOLLAPSE_PROGRAM} + arguments);
  }
  /// `script` runs in a shell on every rank; "$@" is the command.
  static Outcome run_script(int ranks, const std::string& script, const Arguments& arguments) {
    return run_command(Arguments{"-n", std::to_string(ranks), "sh", "-c", script, "sh", NCOLLAPSE_PROGRAM} + arguments);
  }
  /// The report, without what may differ between runs.
  Json report(int ranks, const Arguments& arguments) const {
    const std::string file = folder_.path("report.json");
    std::filesystem::remove(file);
    const Outcome outcome = run(ranks, arguments + Arguments{"--threads", "1", "--quiet", "--json", file});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    Json json = Json::parse(read_file(file), nullptr, false);
    EXPECT_FALSE(json.is_discarded());
    EXPECT_EQ(json["source"].value("ranks", "1"), std::to_string(ranks));
    for (const char* key : {"timing", "source"}) json.erase(key);
    return json;
  }
  /// 1, 2, 3 and 4 ranks give the report of one process.
  void expect_same_reports(const Arguments& arguments) const {
    const Json alone = report(1, arguments);
    for (const int ranks : {2, 3, 4}) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks");
      expect_same(report(ranks, arguments), alone, "");
    }
  }
  static void expect_same(const Json& got, const Json& want, const std::string& where) {
    ASSERT_EQ(got.type(), want.type()) << where;
    ASSERT_EQ(got.size(), want.size()) << where;
    if (want.is_object()) {
      for (const auto& [key, value] : want.items()) {
        ASSERT_TRUE(got.contains(key)) << where << "/" << key;
        expect_same(got[key], value, where + "/" + key);
      }
    } else if (want.is_array()) {
      for (std::size_t i = 0; i < want.size(); ++i) expect_same(got[i], want[i], where + "/" + std::to_string(i));
    } else if (want.is_number_float()) {
      const double a = got.get<double>(), b = want.get<double>();
      EXPECT_LE(std::abs(a - b), cancels(where) ? 1e-13 : 1e-12 * std::abs(b)) << where << ": " << a << " and " << b;
    } else {
      EXPECT_EQ(got, want) << where;
    }
  }

  /// Numbers that are what is left of something of size 1, or would be 0 without rounding: a few hundred eps of 1.
  static bool cancels(const std::string& where) {
    for (const char* key : {"nc1_vci", "block_err", "ufmb_sv", "ufmb_vanished", "singular_values", "spectrum"})
      if (where.find(key) != std::string::npos) return true;
    return false;
  }
  std::string write_features(const std::string& name, const std::vector<float>& values, Index dim) const {
    const auto rows = static_cast<Index>(values.size()) / dim;
    return folder_.write(name,
                         npy("<f4", "(" + std::to_string(rows) + ", " + std::to_string(dim) + ")", bytes_of(values)));
  }
  std::string write_labels(const std::string& name, const std::vector<std::int64_t>& labels) const {
    return folder_.write(name, npy("<i8", "(" + std::to_string(labels.size()) + ",)", bytes_of(labels)));
  }

  /// Six samples of two classes.
  Arguments tiny(const std::vector<float>& values = {0, 0.1F, 1, 1.1F, 0.2F, 0.9F},
                 const std::vector<std::int64_t>& labels = {0, 0, 1, 1, 0, 1}) const {
    return {"analyze",
            "--device",
            "cpu",
            "--features",
            write_features("x.npy", values, 1),
            "--labels",
            write_labels("y.npy", labels)};
  }

  static std::size_t count(const std::string& text, const std::string& word) {
    std::size_t found = 0;
    for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++found;
    return found;
  }
  /// Ends soon with that exit code and one message, which holds the words.
  static void expect_error(const Outcome& outcome, int code, const std::vector<std::string>& words) {
    EXPECT_EQ(outcome.exit_code, code) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(count(outcome.err, "ncollapse: error: "), 1U) << outcome.err;
    for (const auto& word : words) EXPECT_NE(outcome.err.find(word), std::string::npos) << word << ": " << outcome.err;
  }

  TemporaryDirectory folder_;
};

Arguments real_dump(const std::string& folder, const Arguments& weights) {
  Arguments arguments{"analyze", "--device", "cpu"};
  for (const char* what : {"features", "labels", "test-features", "test-labels"}) {
    std::string file = what;
    if (const auto dash = file.find('-'); dash != std::string::npos) file[dash] = '_';
    arguments = arguments + Arguments{std::string("--") + what, folder + "/" + file + ".npy"};
  }
  arguments = arguments + Arguments{"--bias", folder + "/b.npy", "--weights"};
  for (const auto& file : weights) arguments.push_back(folder + "/" + file);
  return arguments;
}

TEST_F(MpiRun, RealDump) { expect_same_reports(real_dump(NCOLLAPSE_DEMO_DATA, {"W1.npy"})); }

TEST_F(MpiRun, RealDumpOfThreeLayers) {
  const std::string folder = NCOLLAPSE_SHARED_DATA "/dumps/cifar10_L3_bias";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not here";
  expect_same_reports(real_dump(folder, {"W1.npy", "W2.npy", "W3.npy"}) +
                      Arguments{"--lambda-w", "1e-5", "--lambda-h", "1e-5"});
}

/// Forty classes whose sizes fall like 1/k, rare ones in one place: most are seen by one rank only, with single samples
/// among them; shards of unlike sizes, one file of labels, rows at both ends left out.
TEST_F(MpiRun, HeavyTailOverShards) {
  constexpr Index kClasses = 40, kDim = 24;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> means(kClasses * kDim);
  for (auto& mean : means) mean = 2 * normal(random);
  std::vector<float> values;
  std::vector<std::int64_t> labels;
  const auto add = [&](Index k) {
    labels.push_back(k);
    for (Index j = 0; j < kDim; ++j)
      values.push_back(means[static_cast<std::size_t>(k * kDim + j)] + 0.2F * normal(random));
  };
  for (Index k = 0; k < kClasses; ++k)
    for (Index i = 0; i < 400 / (k + 1) - (k == 39 ? 9 : 0); ++i) add(k);  // the last class has one sample
  const auto rows = static_cast<Index>(labels.size());
  Index first = 0;
  int number = 0;
  for (const Index size : {7L, 400L, 1L, 900L, rows - 1308}) {
    write_features("shard-" + std::to_string(++number) + ".npy",
                   {values.begin() + first * kDim, values.begin() + (first + size) * kDim}, kDim);
    first += size;
  }
  write_labels("labels.npy", labels);
  std::vector<float> hidden(20 * kDim), last(kClasses * 20), bias(kClasses), out_of_distribution(11 * kDim);
  for (auto* numbers : {&hidden, &last, &bias, &out_of_distribution})
    for (auto& value : *numbers) value = normal(random);
  const Arguments arguments{"analyze",
                            "--device",
                            "cpu",
                            "--features",
                            folder_.path("shard-*.npy"),
                            "--labels",
                            folder_.path("labels.npy"),
                            "--weights",
                            write_features("w1.npy", hidden, kDim),
                            write_features("w2.npy", last, 20),
                            "--bias",
                            write_features("b.npy", bias, kClasses),
                            "--test-features",
                            folder_.path("shard-2.npy"),
                            "--test-labels",
                            write_labels("test.npy", {labels.begin() + 7, labels.begin() + 407}),
                            "--ood-features",
                            write_features("ood.npy", out_of_distribution, kDim),
                            "--rows",
                            "3:" + std::to_string(rows - 2),
                            "--batch-rows",
                            "64"};
  expect_same_reports(arguments);
  const Arguments averaged = arguments + Arguments{"--convention", "classavg"};
  expect_same(report(3, averaged), report(1, averaged), "");
  EXPECT_EQ(report(3, arguments), report(3, arguments));  // the same bits
}

TEST_F(MpiRun, TwoHosts) {
  const Arguments arguments = real_dump(NCOLLAPSE_DEMO_DATA, {"W1.npy"});
  const std::string file = folder_.path("two_hosts.json");
  std::string call = "sh '" NCOLLAPSE_TWO_HOSTS "' '" NCOLLAPSE_COMMAND "' '" NCOLLAPSE_PROGRAM "'";
  for (const auto& argument : arguments + Arguments{"--threads", "1", "--quiet", "--json", file})
    call += " '" + argument + "'";
  const int status = std::system((call + " 2>'" + folder_.path("err") + "'").c_str());
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) GTEST_SKIP() << "no network namespaces here";
  ASSERT_EQ(status, 0) << read_file(folder_.path("err"));
  Json json = Json::parse(read_file(file), nullptr, false);
  EXPECT_EQ(json["source"].value("ranks", ""), "2");
  for (const char* key : {"timing", "source"}) json.erase(key);
  expect_same(json, report(1, arguments), "");
}

TEST_F(MpiRun, MoreRanksThanRows) {
  const Arguments arguments = tiny({0, 1, 0.5F}, {0, 1, 0});
  expect_same(report(5, arguments), report(1, arguments), "");
}

TEST_F(MpiRun, TheTableComesOnceAndWithoutColours) {
  const Outcome outcome = run(3, tiny());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(count(outcome.out, "nc1_pinv "), 1U) << outcome.out;
  EXPECT_EQ(count(outcome.out, "\033"), 0U);
  EXPECT_EQ(outcome.err, "");
}

TEST_F(MpiRun, ARankWithBadDataEndsAll) {
  const float nan = std::nanf("");
  expect_error(run(3, tiny({0, 0.1F, 1, 1.1F, nan, 0.9F})), kData, {"rank 2: ", "x.npy", "NaN", "column 0"});
  expect_error(run(3, tiny({nan, 0.1F, 1, 1.1F, 0.2F, 0.9F})), kData, {"error: /", "x.npy", "at row 0"});
  expect_error(run(3, tiny({0, 0.1F, 1, 1.1F, 0.2F, 0.9F}, {0, 0, 1, 1, 0, -7})), kData,
               {"rank 2: ", "y.npy", "row 5 is -7"});
}

TEST_F(MpiRun, WhatAllRanksFindWrongIsSaidOnce) {
  expect_error(run(3, {"analyze", "--features", "nowhere.npy", "--labels", "y.npy"}), kData, {"error: nowhere.npy"});
  expect_error(run(3, {"analyze", "--features", "nowhere.npy"}), kUsage, {"--labels is required"});
  expect_error(run(3, tiny({0, 1, 2}, {1, 1, 1})), kData, {"only one class"});
  expect_error(run(3, tiny() + Arguments{"--threads", "0"}), kUsage, {"at least 1"});
  const Outcome as_json = run(3, {"analyze", "--features", "nowhere.npy", "--labels", "y.npy", "--json", "-"});
  EXPECT_EQ(as_json.exit_code, kData);
  EXPECT_EQ(count(as_json.err, "\"message\""), 1U) << as_json.err;
}

TEST_F(MpiRun, OtherCommandsAreRefused) {
  expect_error(run(2, {"devices"}), kUsage, {"devices was started in a job of several processes"});
  expect_error(run(2, {"merge", "a.nc", "--state", "b.nc"}), kUsage, {"merge was started"});
  const Outcome version = run(3, {"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_EQ(count(version.out, "ncollapse "), 1U);
  EXPECT_EQ(run(1, {"metrics"}).exit_code, 0);
}

TEST_F(MpiRun, ARankOutOfMemoryEndsAll) {
  if (cuda_unavailable_reason() != "this library was built without CUDA")
    GTEST_SKIP() << "CUDA's libraries take more addresses than the limit leaves; builds without CUDA run this";
  // One batch of 4096 dimensions takes two squares of 128 MiB; rank 1 has less than that left.
  constexpr Index kDim = 4096;
  std::vector<float> values(4 * kDim);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 7);
  const Arguments arguments{"analyze",
                            "--device",
                            "cpu",
                            "--threads",
                            "1",
                            "--features",
                            write_features("wide.npy", values, kDim),
                            "--labels",
                            write_labels("y4.npy", {0, 1, 0, 1})};
  const Outcome outcome = run_script(2,
                                     "[ $OMPI_COMM_WORLD_RANK = 0 ] || ulimit -v $(($(awk '/VmSize/ {print $2}' "
                                     "/proc/self/status) + 700000)); exec \"$@\"",
                                     arguments);
  expect_error(outcome, kDevice, {"rank 1: "});
}

TEST_F(MpiRun, AKilledRankEndsAll) {
  const Outcome outcome = run_script(3, "[ $OMPI_COMM_WORLD_RANK != 1 ] || kill -9 $$; exec \"$@\"", tiny());
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_EQ(outcome.out, "");
}

TEST_F(MpiRun, RanksThatSeeOtherFilesAreRefused) {
  const Arguments arguments = tiny();
  const Outcome outcome =
      run_script(2, "[ $OMPI_COMM_WORLD_RANK = 0 ] || set -- \"$@\" --rows 0:4; exec \"$@\"", arguments);
  expect_error(outcome, kUsage, {"the ranks differ: rank 0 has 6 x 1", "rank 1 has 4 x 1"});
}

TEST_F(MpiRun, AnotherMpisLauncherIsRefused) {
  // Else every process would do, and write, the whole.
  const Outcome outcome = run_script(1, "env -u OMPI_COMM_WORLD_SIZE PMI_SIZE=4 \"$@\"", tiny());
  expect_error(outcome, kUsage, {"started as one of 4 processes", "its MPI sees itself alone"});
}

}  // namespace
}  // namespace ncollapse::test
