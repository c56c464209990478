// `bench` from outside: what it measures, what it writes, what it refuses. Nothing here looks at how long anything
// took.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/cli/run_command.hpp"

namespace ncollapse::test {
namespace {

using Json = nlohmann::json;

constexpr int kUsage = 2, kBadInput = 3, kDevice = 4;

/// As few samples as there may be, on one thread, in hardly any time.
std::vector<std::string> tiny(const std::vector<std::string>& more) {
  std::vector<std::string> arguments{"bench",     "--case", "C1",        "--scale", "1e-9",     "--seconds", "0.001",
                                     "--repeats", "1",      "--threads", "1",       "--device", "cpu"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(BenchCommand, EveryRowHasAnErrorAFloorAndBits) {
  TemporaryDirectory folder;
  const std::string file = folder.path("bench.json");
  const Outcome run =
      run_command(tiny({"--op", "sums", "scatter", "decisions", "measure", "--commit", "abc", "--json", file}));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json document = Json::parse(read_file(file));
  EXPECT_EQ(document.at("schema"), "ncollapse.bench/1");
  EXPECT_EQ(document.at("commit"), "abc");
  EXPECT_TRUE(document.at("complete").get<bool>());
  EXPECT_EQ(document.at("device").at("threads"), 1);
  EXPECT_EQ(document.at("device").at("device"), "cpu");
  for (const char* floor : {"copy_bytes_per_s", "dgemm_flop_per_s", "sgemm_flop_per_s"})
    EXPECT_GT(document.at("floors").at(floor).get<double>(), 0) << floor;
  EXPECT_TRUE(document.at("floors").at("hgemm_flop_per_s").is_null());
  ASSERT_EQ(document.at("rows").size(), 4u);
  std::vector<std::string> operations;
  for (const Json& row : document.at("rows")) {
    operations.push_back(row.at("operation"));
    EXPECT_EQ(row.at("case"), "C1");
    EXPECT_EQ(row.at("classes"), 10);
    EXPECT_EQ(row.at("dim"), 512);
    EXPECT_EQ(row.at("dtype"), "bf16");
    EXPECT_GT(row.at("seconds").get<double>(), 0);
    EXPECT_LE(row.at("error").at("value").get<double>(), 1e-13) << row;
    EXPECT_TRUE(row.at("bits").at("equal").get<bool>());
    EXPECT_GE(row.at("bits").at("runs").get<int>(), 2);
    EXPECT_EQ(row.at("bits").at("hash").get<std::string>().size(), 16u);
    EXPECT_GT(row.at("floor").at("seconds").get<double>(), 0);
  }
  EXPECT_EQ(operations, (std::vector<std::string>{"sums", "scatter", "measure", "decisions"}));
  EXPECT_EQ(document.at("rows")[0].at("samples"), 64);
  EXPECT_TRUE(document.at("rows")[2].at("rows_per_s").is_null());  // is no pass over samples

  EXPECT_NE(run.out.find("of it"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("decisions"), std::string::npos) << run.out;
}

TEST(BenchCommand, TheSameInputsGiveTheSameBits) {
  const auto hash = [] {
    const Outcome run = run_command(tiny({"--op", "scatter", "--json", "-"}));
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json::parse(run.out).at("rows").at(0).at("bits").at("hash").get<std::string>();
  };
  EXPECT_EQ(hash(), hash());
}

TEST(BenchCommand, ThePlainWayStandsBesideEndToEnd) {
  const Outcome run = run_command(tiny({"--op", "end_to_end", "--plain", "--json", "-"}));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json row = Json::parse(run.out).at("rows").at(0);
  const Json& plain = row.at("plain");
  // The same data: seven digits of its single precision, noise and means being of one size here.
  EXPECT_NEAR(plain.at("nc1_trace_ratio").get<double>() / plain.at("nc1_trace_ratio_here").get<double>(), 1, 1e-4);
  EXPECT_NEAR(plain.at("nc1_cdnv").get<double>() / plain.at("nc1_cdnv_here").get<double>(), 1, 1e-4);
  EXPECT_EQ(plain.at("agree"), plain.at("agree_here"));
  EXPECT_GT(plain.at("speedup").get<double>(), 0);
}

TEST(BenchCommand, AResultBecomesAPage) {
  TemporaryDirectory folder;
  const std::string json = folder.path("bench.json"), page = folder.path("bench.md"), again = folder.path("again.md");
  ASSERT_EQ(run_command(tiny({"--op", "sums", "--json", json, "--markdown", page})).exit_code, 0);
  const Outcome run = run_command({"bench", "--from", json, "--markdown", again});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(read_file(page), read_file(again));
  for (const auto* option : {"--json", "--markdown"}) {
    const std::string before = read_file(json);
    EXPECT_EQ(run_command({"bench", "--from", json, option, json}).exit_code, kUsage);
    EXPECT_EQ(read_file(json), before);
  }
  EXPECT_NE(read_file(page).find("| C1 | sums | 64 | 10 | 512 |"), std::string::npos) << read_file(page);

  // What ./dev gpu writes has the suite's document inside.
  Json gpu{
      {"schema", "ncollapse.gpu/1"},
      {"gpu", "Some GPU"},
      {"driver", "1.2"},
      {"commit", "abc"},
      {"date", "2026-01-01"},
      {"architectures", "90"},
      {"verdict", "failed"},
      {"bench", Json::parse(read_file(json))},
      {"steps",
       {{{"step", "memcheck"}, {"outcome", "failed: exit 9"}, {"seconds", 3}, {"passed", 7}, {"skipped", nullptr}}}}};
  const std::string whole = folder.write("gpu.json", gpu.dump());
  const Outcome both = run_command({"bench", "--from", whole, "--markdown", "-"});
  ASSERT_EQ(both.exit_code, 0) << both.err;
  EXPECT_NE(both.out.find("# Some GPU, commit abc, 2026-01-01: failed"), std::string::npos) << both.out;
  EXPECT_NE(both.out.find("| memcheck | failed: exit 9 | 7 |  | 3 |"), std::string::npos) << both.out;
  EXPECT_NE(both.out.find("| C1 | sums |"), std::string::npos) << both.out;
  gpu["bench"] = nullptr;
  EXPECT_EQ(run_command({"bench", "--from", folder.write("gpu.json", gpu.dump())}).exit_code, 0);
}

TEST(BenchCommand, TheListMeasuresNothing) {
  const Outcome run = run_command({"bench", "--list"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  for (const char* word : {"C1", "N1", "50257", "zipf", "sums", "end_to_end"})
    EXPECT_NE(run.out.find(word), std::string::npos) << word;
}

TEST(BenchCommand, WrongArgumentsAreRefused) {
  TemporaryDirectory folder;
  const auto refused = [](const std::vector<std::string>& arguments, int code, const std::string& word) {
    std::vector<std::string> all{"bench"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    const Outcome run = run_command(all);
    EXPECT_EQ(run.exit_code, code) << run.err;
    EXPECT_NE(run.err.find(word), std::string::npos) << run.err;
    EXPECT_EQ(run.out, "");
  };
  refused({"--case", "C9"}, kUsage, "C9");
  refused({"--case", "C1", "--op", "pairs"}, kUsage, "pairs");
  refused({"--op", "sort"}, kUsage, "end_to_end");  // the hint lists what there is
  refused({"--seconds", "0"}, kUsage, "--seconds");
  refused({"--scale", "-1"}, kUsage, "'-1' must be a number above 0");
  refused({"--repeats", "0"}, kUsage, "--repeats");
  refused({"--device", "tpu"}, kUsage, "tpu");
  refused({"--device", "cuda:77"}, kDevice, "");
  refused({"--json", "-", "--markdown", "-"}, kUsage, "--markdown");
  refused({"--json", folder.path("one"), "--markdown", folder.path("./one")}, kUsage, "name one file");
  refused({"--json", folder.path("nowhere/x.json")}, kBadInput, "nowhere");
  refused({"--from", folder.path("missing.json")}, kBadInput, "missing.json");
  refused({"--from", folder.write("list.json", "[1]")}, kBadInput, "list.json");
  refused({"--from", folder.write("other.json", R"({"schema": "ncollapse.plan/1"})")}, kBadInput, "ncollapse.plan/1");
  refused({"--from", folder.write("cut.json", R"({"schema": "ncollapse.bench/1", "rows": [{}]})")}, kBadInput,
          "cut.json");
}

}  // namespace
}  // namespace ncollapse::test
