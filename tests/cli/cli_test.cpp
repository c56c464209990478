// The command from outside: what it prints, what it writes, and how it fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "ncollapse/metrics.hpp"
#include "ncollapse/version.hpp"
#include "tests/cli/recordings.hpp"
#include "tests/cli/run_command.hpp"

namespace ncollapse::test {
namespace {

using Json = nlohmann::json;

constexpr int kDevice = 4;

/// Twelve samples of three classes in two dimensions, with a classifier; small enough to see.
class Command : public testing::Test {
 protected:
  Command() {
    for (int i = 0; i < 12; ++i) {
      const int k = i % 3;
      labels_.push_back(k);
      features_.push_back(static_cast<float>(std::cos(2.1 * k) + 0.01 * (i / 3)));
      features_.push_back(static_cast<float>(std::sin(2.1 * k) - 0.02 * (i / 3)));
    }
    x_ = folder_.write("x.npy", npy("<f4", "(12, 2)", bytes_of(features_)));
    y_ = folder_.write("y.npy", npy("<i8", "(12,)", bytes_of(labels_)));
    w_ = folder_.write("w.npy", npy("<f4", "(3, 2)", bytes_of(std::vector<float>{1, 0, -0.5F, 0.9F, -0.5F, -0.9F})));
    b_ = folder_.write("b.npy", npy("<f4", "(3,)", bytes_of(std::vector<float>{0.3F, 0.3F, 0.3F})));
  }

  std::vector<std::string> analyze(std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments{"analyze", "--device", "cpu", "--features", x_, "--labels", y_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::vector<std::string> analyze_files(const std::string& x, const std::string& y,
                                         std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments{"analyze", "--device", "cpu", "--features", x, "--labels", y};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::string labels_file(const std::string& name, std::vector<std::int64_t> labels) const {
    const auto shape = "(" + std::to_string(labels.size()) + ",)";
    return folder_.write(name, npy("<i8", shape, bytes_of(labels)));
  }

  /// The call fails with this exit code, names every word on stderr, prints nothing else and writes no report; with
  /// --json the same error is an object.
  void expect_error(std::vector<std::string> arguments, int code, const std::vector<std::string>& words) const {
    const std::string report = folder_.path("report.json");
    arguments.insert(arguments.end(), {"--csv", folder_.path("report.csv")});
    const Outcome plain = run_command(arguments);
    EXPECT_EQ(plain.exit_code, code) << plain.err;
    EXPECT_EQ(plain.out, "");
    EXPECT_EQ(plain.err.rfind("ncollapse: error: ", 0), 0U) << plain.err;
    for (const auto& word : words) EXPECT_NE(plain.err.find(word), std::string::npos) << word << " in " << plain.err;

    arguments.insert(arguments.end(), {"--json", report});
    const Outcome as_json = run_command(arguments);
    EXPECT_EQ(as_json.exit_code, code);
    const Json error = Json::parse(as_json.err, nullptr, false);
    ASSERT_TRUE(error.is_object()) << as_json.err;
    EXPECT_EQ(error["error"]["code"], code);
    const std::string text =
        error["error"]["message"].get<std::string>() + " " + error["error"]["hint"].get<std::string>();
    for (const auto& word : words) EXPECT_NE(text.find(word), std::string::npos) << word << " in " << text;
    EXPECT_FALSE(std::filesystem::exists(report));
    EXPECT_FALSE(std::filesystem::exists(folder_.path("report.csv")));
  }

  TemporaryDirectory folder_;
  std::vector<float> features_;
  std::vector<std::int64_t> labels_;
  std::string x_, y_, w_, b_;
};

TEST_F(Command, ThreadsAreDecimalNumbers) {
  const Outcome run = run_command(analyze({"--threads", "08", "--json", "-"}));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out)["device"]["threads"], 8);
}

TEST_F(Command, ListsChosenMetrics) {
  const Json chosen = Json::parse(run_command({"metrics", "nc3_dual", "nc4_", "--json"}).out)["metrics"];
  ASSERT_EQ(chosen.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_EQ(chosen[i]["key"], std::vector<std::string>({"nc3_dual", "nc4_agree_train", "nc4_agree_test"})[i]);
  const Outcome swapped = run_command({"metrics", "--json", "nc3_dual"});
  EXPECT_EQ(swapped.exit_code, kUsage);
  EXPECT_EQ(words_in(swapped.err, {"nc3_dual", "keys before --json"}), "");
  EXPECT_FALSE(std::filesystem::exists("nc3_dual"));
  const std::string table = run_command({"metrics", "nc3_dual"}).out;
  EXPECT_EQ(words_in(table, {"nc3_dual", "Frobenius"}), "");
  EXPECT_EQ(table.find("nc3_wh"), std::string::npos);
}

// --- the log of a run

class Log : public Command {
 protected:
  std::vector<std::string> step(int epoch, std::vector<std::string> more = {}) const {
    more.insert(more.end(), {"--log", log_, "--epoch", std::to_string(epoch), "--quiet"});
    return analyze(std::move(more));
  }
  std::vector<Json> log() const {
    std::vector<Json> all;
    std::istringstream text(read_file(log_));
    for (std::string line; std::getline(text, line);) all.push_back(Json::parse(line));
    return all;
  }
  /// The call fails with these words and leaves the log as it was.
  void expect_refused(const std::vector<std::string>& arguments, int code,
                      const std::vector<std::string>& words) const {
    const std::string before = read_file(log_);
    const Outcome run = run_command(arguments);
    EXPECT_EQ(run.exit_code, code) << run.err;
    EXPECT_EQ(words_in(run.err, words), "");
    EXPECT_EQ(read_file(log_), before);
  }
  std::string log_ = folder_.path("run.jsonl");
};

TEST_F(Log, GrowsByAStepACall) {
  const std::vector<std::string> head{"--weights", w_, "--bias", b_};
  for (const auto& [epoch, loss] : {std::pair{0, "2.5"}, {7, "0.25"}}) {
    auto arguments = step(epoch, head);
    arguments.insert(arguments.end(), {"--loss", loss, "--json", folder_.path("report.json")});
    const Outcome run = run_command(arguments);
    ASSERT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(run.out + run.err, "");
  }
  ASSERT_EQ(run_command(step(9, head)).exit_code, 0);
  const auto lines = log();
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines[0]["schema"], "ncollapse.run/1");
  EXPECT_EQ(lines[0]["convention"], "zhu");
  EXPECT_EQ(lines[0]["model"],
            (Json{{"K", 3}, {"N", 12}, {"layers", 1}, {"with_bias", true}, {"width", 2}, {"counts", {4, 4, 4}}}));
  const Json report = Json::parse(read_file(folder_.path("report.json")));
  for (std::size_t i = 1; i < 4; ++i) {
    EXPECT_EQ(lines[i]["type"], "step");
    EXPECT_EQ(lines[i]["epoch"], std::vector<int>({0, 7, 9})[i - 1]);
    for (const auto* part : {"metrics", "status", "per_class", "block_cos_h", "block_cos_w"})
      EXPECT_EQ(lines[i][part], report[part]) << part;
  }
  EXPECT_EQ(lines[2]["loss"], 0.25);
  EXPECT_FALSE(lines[3].contains("loss"));

  const Path no_gnuplot(folder_.path("empty"));
  run_command({"plot", log_, "--out", folder_.path("pictures")});
  EXPECT_NE(read_file(folder_.path("pictures/curves.dat")).find("\n7 0.25 "), std::string::npos);
}

TEST_F(Log, OfAStateAsWell) {
  const std::string state = folder_.path("s.nc");
  ASSERT_EQ(run_command({"accumulate", "--features", x_, "--labels", y_, "--classes", "3", "--state", state, "--quiet"})
                .exit_code,
            0);
  const Outcome run = run_command({"finalize", state, "--weights", w_, "--log", log_, "--epoch", "3", "--lambda-w",
                                   "1e-3", "--lambda-h", "1e-3", "--quiet"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto lines = log();
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0]["model"]["with_bias"], false);
  EXPECT_EQ(lines[0]["model"]["lambda_w"], Json({1e-3}));
  EXPECT_EQ(lines[0]["model"]["lambda_h"], 1e-3);
  EXPECT_TRUE(lines[1].contains("spectrum"));
}

TEST_F(Log, WhatDoesNotFollowIsRefused) {
  ASSERT_EQ(run_command(step(5, {"--weights", w_})).exit_code, 0);
  for (const int epoch : {5, 4})
    expect_refused(step(epoch, {"--weights", w_}), kData, {"run.jsonl", "holds epoch 5", std::to_string(epoch)});
  // What options say is known before anything is measured.
  const std::string csv = folder_.path("report.csv");
  expect_refused(step(6, {"--weights", w_, "--bias", b_, "--csv", csv}), kData,
                 {"another run", "with_bias is false there, true here"});
  expect_refused(step(6, {"--csv", csv}), kData, {"another run", "layers is 1 there, not given here"});
  expect_refused(step(6, {"--weights", w_, "--convention", "anova", "--csv", csv}), kData,
                 {"convention is \"zhu\" there, \"anova\" here"});
  expect_refused(step(6, {"--weights", w_, "--lambda-w", "1e-3", "--lambda-h", "1e-3", "--csv", csv}), kData,
                 {"lambda_w is not given there, [0.001] here"});
  EXPECT_FALSE(std::filesystem::exists(csv));
  expect_refused(step(6, {"--weights", w_, "--rows", "0:11"}), kData, {"counts[2] is 4 there, 3 here"});
  expect_refused(step(6, {"--weights", w_, "--precision", "fast"}), kData, {"precision is \"exact\" there"});
  expect_refused(analyze({"--log", log_}), kUsage, {"--epoch"});
  expect_refused(analyze({"--epoch", "6"}), kUsage, {"--log"});
  expect_refused(step(6, {"--weights", w_, "--loss", "nan"}), kUsage, {"--loss is nan"});
  expect_refused(analyze({"--log", log_, "--epoch", "9007199254740993"}), kUsage, {"at most"});
  expect_refused(analyze({"--log", "-", "--epoch", "6"}), kUsage, {"standard output"});
  expect_refused(analyze({"--log", log_, "--epoch", "6", "--json", log_}), kUsage, {"--log", "--json", "one file"});
  expect_refused(analyze({"--log", x_, "--epoch", "6"}), kUsage, {"x.npy is read"});
  expect_refused(analyze({"--log", "/dev/zero", "--epoch", "6"}), kData, {"no regular file"});
}

TEST_F(Log, WhatIsNoLogOfThisProgramIsLeftAlone) {
  const std::string run = header("ncollapse.run/1").dump() + "\n";
  for (const auto& [text, words] :
       std::vector<std::pair<std::string, std::string>>{{"{\"schema\": \"ncollapse.metrics/1\"}\n", "no log of a run"},
                                                        {"{\"schema\": 1}\n", "no log of a run"},
                                                        {"words\n", "no log of a run"},
                                                        {run, "of another program"}}) {
    const std::string other = folder_.write("other", text);
    expect_refused(analyze({"--log", other, "--epoch", "6"}), kData, {"other", words});
    EXPECT_EQ(read_file(other), text);
  }
  ASSERT_EQ(run_command(step(5, {"--weights", w_})).exit_code, 0);
  const std::string good = read_file(log_);
  for (const auto& [text, words] : std::vector<std::pair<std::string, std::string>>{
           {R"({"type": "end", "epoch": 5})", "has ended"},
           {R"({"type": "step", "iteration": 5})", "no step of an epoch"}}) {
    folder_.write("run.jsonl", good + text + "\n");
    expect_refused(step(6, {"--weights", w_}), kData, {"run.jsonl", words});
  }
}

// Whole lines are kept, with their end or without; a line that a kill has cut off is dropped, and that is said.
TEST_F(Log, EndsOfAllKinds) {
  ASSERT_EQ(run_command(step(5, {"--weights", w_})).exit_code, 0);
  ASSERT_EQ(run_command(step(6, {"--weights", w_})).exit_code, 0);
  const std::string good = read_file(log_), header = good.substr(0, good.find('\n'));
  const auto after = [&](const std::string& text) {
    folder_.write("run.jsonl", text);
    const Outcome run = run_command(step(7, {"--weights", w_}));
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(log().back()["epoch"], 7);
    return std::pair{log().size(), run.err};
  };
  EXPECT_EQ(after(good), std::pair(std::size_t{4}, std::string()));
  EXPECT_EQ(after(good.substr(0, good.size() - 1)), std::pair(std::size_t{4}, std::string()));
  EXPECT_EQ(after(header), std::pair(std::size_t{2}, std::string()));
  EXPECT_EQ(after(""), std::pair(std::size_t{2}, std::string()));
  EXPECT_EQ(after(header + "\n"), std::pair(std::size_t{2}, std::string()));
  const auto [lines, note] = after(good + "{\"type\": \"step\", \"epo");
  EXPECT_EQ(lines, 4U);
  EXPECT_EQ(words_in(note, {"run.jsonl", "21 bytes", "dropped"}), "");
  const auto [few, of_few] = after(header + "\n{");
  EXPECT_EQ(few, 2U);
  EXPECT_EQ(words_in(of_few, {"1 bytes", "dropped"}), "");
  // A last line that is longer than what is read at first.
  const std::string wide = R"({"type": "step", "epoch": 6, "long": ")" + std::string(300000, 'a') + "\"}";
  EXPECT_EQ(after(good + wide + "\n").first, 5U);
  folder_.write("run.jsonl", good + wide);
  expect_refused(step(6, {"--weights", w_}), kData, {"holds epoch 6"});
}

// Of two that measure at once, one may be told that the other was first; no step is lost.
TEST_F(Log, OfProcessesAtOnceLosesNothing) {
  ASSERT_EQ(run_command(step(1, {"--weights", w_})).exit_code, 0);
  std::vector<std::thread> processes;
  std::array<int, 6> codes{};
  for (int i = 0; i < 6; ++i)
    processes.emplace_back([&, i] {
      codes[static_cast<std::size_t>(i)] = run_command(step(2 + i, {"--weights", w_})).exit_code;
    });
  for (auto& process : processes) process.join();
  std::set<int> written{1};
  for (const Json& line : log())
    if (line.contains("epoch")) written.insert(line["epoch"].get<int>());
  for (int i = 0; i < 6; ++i) {
    EXPECT_TRUE(codes[static_cast<std::size_t>(i)] == 0 || codes[static_cast<std::size_t>(i)] == kData);
    EXPECT_EQ(written.count(2 + i), codes[static_cast<std::size_t>(i)] == 0 ? 1U : 0U) << i;
  }
}

TEST_F(Log, StaysBehindItsLink) {
  const std::string link = folder_.path("link.jsonl");
  std::filesystem::create_symlink(log_, link);
  for (const char* epoch : {"1", "2"})
    ASSERT_EQ(run_command(analyze({"--log", link, "--epoch", epoch, "--quiet"})).exit_code, 0);
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(log().size(), 3U);
}

TEST_F(Command, PrintsATable) {
  const Outcome run = run_command(analyze({"--weights", w_, "--bias", b_}));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.err, "");  // no progress bar where nobody looks
  for (const auto* word : {"N = 12 samples", "K = 3 classes", "d = 2", "zhu", "nc1_pinv", "nc3_dual", "Per class",
                           "no test set was given"})
    EXPECT_NE(run.out.find(word), std::string::npos) << word << " in\n" << run.out;
  EXPECT_EQ(run.out.find('\033'), std::string::npos);
  const Outcome ranks =
      run_command(analyze({"--weights", w_, "--bias", b_, "--lambda-w", "1e-3", "--lambda-h", "1e-3"}));
  EXPECT_NE(ranks.out.find("  ufmb_rank_pred                   2  "), std::string::npos) << ranks.out;  // no decimals
  std::size_t begin = 0;
  for (std::size_t end; (end = run.out.find('\n', begin)) != std::string::npos; begin = end + 1)
    EXPECT_LE(end - begin, 110U) << run.out.substr(begin, end - begin);
}

TEST_F(Command, JsonOnStandardOutputIsTheOnlyOutput) {
  const Outcome run = run_command(analyze({"--weights", w_, "--bias", b_, "--json", "-"}));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const Json json = Json::parse(run.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << run.out;
  EXPECT_EQ(json["schema"], "ncollapse.metrics/1");
  EXPECT_EQ(json["tool"]["version"], version());
  EXPECT_EQ(json["shape"]["N"], 12);
  EXPECT_EQ(json["shape"]["K_seen"], 3);
  EXPECT_EQ(json["shape"]["dtype"], "f32");
  EXPECT_EQ(json["device"]["type"], "cpu");
  EXPECT_EQ(json["metrics"]["acc_top1_train"], 1.0);
  EXPECT_EQ(json["convention"]["preset"], "zhu");
  EXPECT_EQ(json["convention"]["rank_used"], 2);
  EXPECT_EQ(json["source"]["features"], x_);
  EXPECT_EQ(json["status"]["acc_top1_test"]["code"], "skipped");
  EXPECT_GT(json["timing"]["total_s"].get<double>(), 0);
}

TEST_F(Command, WritesFilesAndSaysWhere) {
  const std::string json = folder_.path("r.json"), csv = folder_.path("r.csv");
  const Outcome run = run_command(analyze({"--json", json, "--csv", csv}));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_NE(run.out.find("JSON written to " + json), std::string::npos);
  EXPECT_EQ(Json::parse(read_file(json))["shape"]["D"], 2);
  EXPECT_EQ(read_file(csv).rfind("key,class,value,status\n", 0), 0U);
  const Outcome quiet = run_command(analyze({"--json", json, "--quiet"}));
  EXPECT_EQ(quiet.exit_code, 0);
  EXPECT_EQ(quiet.out + quiet.err, "");
}

TEST_F(Command, SameInputGivesTheSameBitsWhateverTheBatches) {
  const auto metrics = [&](const std::vector<std::string>& more) {
    auto arguments = analyze({"--weights", w_, "--json", "-"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome run = run_command(arguments);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json::parse(run.out)["metrics"];
  };
  const Json whole = metrics({});
  EXPECT_EQ(whole, metrics({}));
  for (const auto* rows : {"1", "5", "12", "1000"}) {
    const Json batched = metrics({"--batch-rows", rows});
    for (const auto& [key, value] : whole.items())
      if (value.is_null())  // equal class sizes: some measures are undefined
        EXPECT_TRUE(batched[key].is_null()) << key;
      else
        EXPECT_TRUE(std::abs(batched[key].get<double>() - value.get<double>()) <=
                    1e-11 * std::abs(value.get<double>()) + 1e-13)
            << key << " " << batched[key] << " " << value;
  }
}

TEST_F(Command, KeysInOneFile) {
  const std::string npz =
      folder_.write("dump.npz", zip({{"features.npy", npy("<f4", "(12, 2)", bytes_of(features_)), true},
                                     {"labels.npy", npy("<i8", "(12,)", bytes_of(labels_)), true}}));
  const std::string model = folder_.write(
      "model.safetensors",
      safetensors({{"fc.weight", "F32", "[3, 2]", bytes_of(std::vector<float>{1, 0, -0.5F, 0.9F, -0.5F, -0.9F})},
                   {"fc.bias", "F32", "[3]", bytes_of(std::vector<float>{0.3F, 0.3F, 0.3F})}}));
  const auto metrics = [&](const std::vector<std::string>& arguments) {
    const Outcome run = run_command(arguments);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json::parse(run.out, nullptr, false)["metrics"];
  };
  const Json plain = metrics(analyze({"--weights", w_, "--bias", b_, "--json", "-"}));
  EXPECT_EQ(plain, metrics({"analyze", "--device", "cpu", "--features", npz + ":features", "--labels", npz + ":labels",
                            "--weights", model + ":fc.weight", "--bias", model + ":fc.bias", "--json", "-"}));
  EXPECT_EQ(plain, metrics({"analyze", "--device", "cpu", "--features", npz, "--labels", npz, "--weights", model,
                            "--bias", model, "--json", "-"}));
  expect_error(analyze_files(npz + ":featurez", y_), kData, {"dump.npz", "featurez", "features"});
}

TEST_F(Command, TestAndOutOfDistributionSets) {
  const Outcome run = run_command(
      analyze({"--weights", w_, "--test-features", x_, "--test-labels", y_, "--ood-features", x_, "--json", "-"}));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const Json json = Json::parse(run.out);
  EXPECT_EQ(json["metrics"]["ncc_acc_test"], 1.0);
  EXPECT_TRUE(json["metrics"].contains("nc5_ortho"));
  expect_error(analyze({"--test-features", x_}), kUsage, {"test labels"});
}

TEST_F(Command, ConventionsAndTheirNames) {
  for (const auto convention : all_conventions()) {
    const std::string name(to_string(convention));
    const Outcome run = run_command(analyze({"--convention", name, "--json", "-"}));
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const Json json = Json::parse(run.out);
    EXPECT_EQ(json["convention"]["preset"], name);
    EXPECT_TRUE(json["metrics"]["nc1_pinv"].is_number()) << name;
  }
  expect_error(analyze({"--convention", "zhou"}), kUsage, {"zhou", "papyan"});
}

// ------------------------------------------------------------------------------------------------ wrong files

TEST_F(Command, FilesThatAreNotThere) {
  const std::string missing = folder_.path("missing.npy");
  expect_error(analyze_files(missing, y_), kData, {"missing.npy"});
  expect_error(analyze_files(x_, missing), kData, {"missing.npy"});
  expect_error(analyze({"--weights", missing}), kData, {"missing.npy"});
  std::filesystem::create_directory(folder_.path("folder"));
  expect_error(analyze_files(folder_.path("folder"), y_), kData, {"folder", "director"});
  expect_error(analyze_files(folder_.write("empty.npy", ""), y_), kData, {"empty.npy", "empty"});
}

TEST_F(Command, FilesThatAreBroken) {
  const std::string whole = npy("<f4", "(12, 2)", bytes_of(features_));
  expect_error(analyze_files(folder_.write("header.npy", whole.substr(0, 20)), y_), kData, {"header.npy"});
  expect_error(analyze_files(folder_.write("short.npy", whole.substr(0, whole.size() - 7)), y_), kData,
               {"short.npy", "96"});
  expect_error(analyze_files(folder_.write("more.npy", npy("<f4", "(4000000000, 2)", bytes_of(features_))), y_), kData,
               {"more.npy", "32000000000"});
  expect_error(
      analyze_files(folder_.write("overflow.npy", npy("<f4", "(9223372036854775807, 4)", bytes_of(features_))), y_),
      kData, {"overflow.npy"});
  expect_error(analyze_files(folder_.write("complex.npy", npy("<c8", "(12, 1)", bytes_of(features_))), y_), kData,
               {"complex.npy", "c8"});
  expect_error(analyze_files(folder_.write("cube.npy", npy("<f4", "(3, 4, 2)", bytes_of(features_))), y_), kData,
               {"cube.npy"});
  expect_error(analyze_files(folder_.write("vector.npy", npy("<f4", "(24,)", bytes_of(features_))), y_), kData,
               {"vector.npy"});
  expect_error(analyze_files(x_, folder_.write("float.npy", npy("<f4", "(12,)", bytes_of(std::vector<float>(12))))),
               kData, {"float.npy", "f32", "astype"});
}

TEST_F(Command, ShapesThatDoNotFit) {
  expect_error(analyze_files(x_, labels_file("eleven.npy", std::vector<std::int64_t>(11, 1))), kData,
               {"x.npy", "eleven.npy", "12", "11"});
  const auto layer = [&](const std::string& name, int rows, int cols) {
    return folder_.write(name, npy("<f4", "(" + std::to_string(rows) + ", " + std::to_string(cols) + ")",
                                   bytes_of(std::vector<float>(static_cast<std::size_t>(rows * cols), 0.5F))));
  };
  expect_error(analyze({"--weights", layer("wide.npy", 3, 5)}), kData, {"wide.npy", "3 x 5", "2", "W_1 first"});
  expect_error(analyze({"--weights", layer("turned.npy", 2, 3)}), kData, {"turned.npy", "2 x 3", "transposed"});
  expect_error(analyze({"--weights", w_, layer("first.npy", 2, 2)}), kData, {"first.npy", "3"});  // wrong order
  expect_error(analyze({"--weights", layer("four.npy", 4, 2), "--classes", "3"}), kData, {"four.npy", "4", "3"});
  expect_error(analyze({"--weights", w_, "--bias", folder_.write("b4.npy", npy("<f4", "(4,)", Bytes(16, '\0')))}),
               kData, {"b4.npy", "4", "3"});
  expect_error(analyze({"--bias", b_}), kUsage, {"bias"});
  const std::string narrow = folder_.write("narrow.npy", npy("<f4", "(12, 1)", Bytes(48, '\0')));
  expect_error(analyze({"--test-features", narrow, "--test-labels", y_}), kData, {"narrow.npy", "1", "2"});
}

TEST_F(Command, LabelsThatAreOutOfRange) {
  auto labels = labels_;
  labels[7] = -1;
  expect_error(analyze_files(x_, labels_file("negative.npy", labels)), kData, {"negative.npy", "-1", "row 7"});
  expect_error(analyze({"--classes", "2"}), kData, {"y.npy", "2", "classes"});
  expect_error(analyze_files(x_, labels_file("one.npy", std::vector<std::int64_t>(12, 2))), kData,
               {"one.npy", "one class", "two"});
}

TEST_F(Command, FeaturesThatAreNotFinite) {
  auto features = features_;
  features[9] = std::numeric_limits<float>::quiet_NaN();
  features[20] = std::numeric_limits<float>::infinity();
  const std::string bad = folder_.write("nan.npy", npy("<f4", "(12, 2)", bytes_of(features)));
  expect_error(analyze_files(bad, y_), kData, {"nan.npy", "2 feature value", "row 4", "column 1"});
  expect_error(analyze_files(bad, y_, {"--batch-rows", "3"}), kData, {"nan.npy", "row 4"});
  const std::string weights =
      folder_.write("wnan.npy", npy("<f4", "(3, 2)", bytes_of(std::vector<float>{1, 2, features[9], 0, 0, 0})));
  expect_error(analyze({"--weights", weights}), kData, {"wnan.npy holds a NaN", "row 1, column 0"});
  const std::string inner = folder_.write("inner.npy", npy("<f4", "(2, 2)", bytes_of(std::vector<float>(4, 1))));
  expect_error(analyze({"--weights", inner, weights}), kData, {"wnan.npy holds a NaN"});
  const std::string bias =
      folder_.write("bnan.npy", npy("<f4", "(3,)", bytes_of(std::vector<float>{1, 2, features[9]})));
  expect_error(analyze({"--weights", w_, "--bias", bias}), kData, {"bnan.npy: the bias of class 2"});
}

// ------------------------------------------------------------------------------------- allowed, and reported

TEST_F(Command, AbsentClassesSingleSamplesAndMoreClassesThanDimensions) {
  auto labels = labels_;
  labels[3] = 6;  // one sample of class 6; classes 3, 4, 5, 7 have none
  const Outcome run =
      run_command(analyze_files(x_, labels_file("rare.npy", labels), {"--classes", "8", "--json", "-"}));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json json = Json::parse(run.out);
  EXPECT_EQ(json["shape"]["K"], 8);
  EXPECT_EQ(json["shape"]["K_seen"], 4);  // > d = 2
  EXPECT_EQ(json["per_class"]["counts"], (Json{3, 4, 4, 0, 0, 0, 1, 0}));
  EXPECT_TRUE(json["per_class"]["nc1_per_class"][3].is_null());
  EXPECT_EQ(json["per_class"]["nc1_per_class"][6], 0.0);
  EXPECT_NE(json["notes"].dump().find("4 of 8 classes have no samples"), std::string::npos) << json["notes"];
  EXPECT_TRUE(json["metrics"]["nc1_pinv"].is_number());
}

TEST_F(Command, NoVarianceIsZeroAndEqualMeansAreUndefined) {
  std::vector<float> features;
  for (const auto label : labels_) features.insert(features.end(), {static_cast<float>(label), 1.0F});
  const std::string collapsed = folder_.write("collapsed.npy", npy("<f4", "(12, 2)", bytes_of(features)));
  Outcome run = run_command(analyze_files(collapsed, y_, {"--json", "-"}));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out)["metrics"]["nc1_pinv"], 0.0);

  const std::string flat = folder_.write("flat.npy", npy("<f4", "(12, 2)", bytes_of(std::vector<float>(24, 0.5F))));
  run = run_command(analyze_files(flat, y_, {"--json", "-"}));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json json = Json::parse(run.out);
  EXPECT_TRUE(json["metrics"]["nc1_pinv"].is_null());
  EXPECT_EQ(json["status"]["nc1_pinv"]["code"], "undefined");
  EXPECT_EQ(run.out.find("NaN"), std::string::npos);
  EXPECT_EQ(run.out.find("nan"), std::string::npos);
}

// ------------------------------------------------------------------------------------------------ wrong calls

TEST_F(Command, WrongCalls) {
  expect_error({"analyze", "--labels", y_}, kUsage, {"--features"});
  expect_error(analyze({"--batch-rows", "0"}), kUsage, {"--batch-rows"});
  expect_error(analyze({"--threads", "many"}), kUsage, {"--threads"});
  expect_error(analyze({"--frobnicate"}), kUsage, {"--frobnicate"});
  expect_error(analyze({"--lambda-w", "-1"}), kUsage, {"--lambda-w"});
  const auto said = [](const std::vector<std::string>& arguments) {
    const Outcome run = run_command(arguments);
    EXPECT_EQ(run.exit_code, kUsage);
    return run.err;
  };
  EXPECT_EQ(said({"predict", "--counts", "3,2", "--lambda-w", "1e-3", "--lambda-h", "1e-3", "--width", "2", "--more"}),
            "ncollapse: error: unknown option '--width'\n  hint: see: ncollapse predict --help\n");
  EXPECT_EQ(said({"predict", "--lamda_w=1e-3", "--counts", "3,2", "--lambda-w", "1e-3", "--lambda-h", "1e-3"}),
            "ncollapse: error: unknown option '--lamda_w'\n"
            "  hint: did you mean --lambda-w? see: ncollapse predict --help\n");
  EXPECT_EQ(said({"analyze", "--feature", x_, "--labels", y_}),  // one that is required
            "ncollapse: error: unknown option '--feature'\n"
            "  hint: did you mean --features? see: ncollapse analyze --help\n");
  EXPECT_EQ(said({"analyze", "--labels", y_}),
            "ncollapse: error: --features is required\n  hint: see: ncollapse analyze --help\n");
  EXPECT_EQ(said({"--quiet", "analyze"}),
            "ncollapse: error: unknown option '--quiet'\n"
            "  hint: it stands on the other side of the command; see: ncollapse analyze --help\n");
  EXPECT_EQ(said({"metrics", "all", "of", "them"}),
            "ncollapse: error: no metric begins with 'all'\n  hint: ncollapse metrics lists all\n");
  EXPECT_EQ(said({"--verison", "devices"}),
            "ncollapse: error: unknown option '--verison'\n  hint: did you mean --version? see: ncollapse devices "
            "--help\n");
  EXPECT_EQ(said({"devices", "all"}),
            "ncollapse: error: unexpected argument 'all'\n  hint: see: ncollapse devices --help\n");
  EXPECT_EQ(said({"analyse", "--features", x_}),
            "ncollapse: error: unknown command 'analyse'\n  hint: did you mean analyze? see: ncollapse --help\n");
  EXPECT_EQ(said({"everything"}), "ncollapse: error: unknown command 'everything'\n  hint: see: ncollapse --help\n");
  const Outcome nothing = run_command({});
  EXPECT_EQ(nothing.exit_code, kUsage);
  EXPECT_NE(nothing.out.find("analyze"), std::string::npos) << nothing.out;
}

TEST_F(Command, MoreThreadsThanAnyMachineHasAreRefused) {
  expect_error(analyze({"--threads", "100000"}), kUsage, {"threads is 100000", "4096"});
  std::vector<std::string> arguments = analyze();
  arguments.insert(arguments.begin(), {"OMP_NUM_THREADS=100000", NCOLLAPSE_COMMAND});
  const Outcome run = RunningCommand(arguments, 0, "/usr/bin/env").wait();
  EXPECT_EQ(run.exit_code, kUsage);
  EXPECT_NE(run.err.find("OpenMP is set to 100000 threads"), std::string::npos) << run.err;
  EXPECT_NE(run.err.find("OMP_NUM_THREADS"), std::string::npos) << run.err;
}

TEST_F(Command, DevicesThatAreNotThere) {
  auto arguments = analyze();
  arguments[2] = "cuda:99";
  expect_error(arguments, kDevice, {"CUDA"});
  arguments[2] = "tpu";
  expect_error(arguments, kUsage, {"tpu", "cuda:N"});
}

TEST_F(Command, OutputsThatCannotBeWritten) {
  for (const auto* option : {"--json", "--csv"}) {
    const Outcome run = run_command(analyze({option, folder_.path("no/such/folder/r.json")}));
    EXPECT_EQ(run.exit_code, kData);
    EXPECT_NE(run.err.find("no/such/folder"), std::string::npos) << run.err;
    EXPECT_EQ(run_command(analyze({option, folder_.path("")})).exit_code, kData);
    const std::string before = read_file(y_);  // what is read is not replaced, with a key or without
    for (const std::string& read : {y_, y_ + ":labels"}) {
      const std::string other = folder_.path("other.npy");
      const Outcome onto =
          run_command({"analyze", "--device", "cpu", "--features", x_, "--labels", other, "--bias", read, option, y_});
      EXPECT_EQ(onto.exit_code, kUsage);
      EXPECT_NE(onto.err.find("y.npy is read, and " + std::string(option) + " would"), std::string::npos) << onto.err;
    }
    EXPECT_EQ(read_file(y_), before);
  }
  EXPECT_EQ(run_command(analyze({"--json", "-", "--csv", "-"})).exit_code, kUsage);
  const std::string one = folder_.path("one"), same = folder_.path("./one");
  for (const bool there : {false, true}) {  // one report would replace the other
    if (there) folder_.write("one", "kept");
    const Outcome both = run_command(analyze({"--json", one, "--csv", same}));
    EXPECT_EQ(both.exit_code, kUsage);
    EXPECT_NE(both.err.find("--json and --csv"), std::string::npos) << both.err;
    EXPECT_EQ(std::filesystem::exists(one), there);
  }
  EXPECT_EQ(read_file(one), "kept");
  EXPECT_EQ(run_command(analyze({"--json", "/dev/null", "--csv", "/dev/null"})).exit_code, 0);
}

// ------------------------------------------------------------------------------------------------ the listings

TEST_F(Command, HelpVersionAndListings) {
  EXPECT_EQ(run_command({"--version"}).out, std::string("ncollapse ") + version() + "\n");
  for (const std::vector<std::string>& help : {std::vector<std::string>{"--help"}, {"analyze", "--help"}}) {
    const Outcome run = run_command(help);
    EXPECT_EQ(run.exit_code, 0);
    EXPECT_NE(run.out.find("Examples:"), std::string::npos);
  }
  for (const std::string listing : {"metrics", "devices"}) {
    const Outcome run = run_command({listing, "--help"});
    EXPECT_NE(run.out.find("ncollapse " + listing + " --json"), std::string::npos) << run.out;
    EXPECT_EQ(run.out.find("ncollapse analyze"), std::string::npos) << run.out;
  }
  const Outcome text = run_command({"metrics"});
  const Json json = Json::parse(run_command({"metrics", "--json"}).out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  ASSERT_EQ(json["metrics"].size(), metric_catalogue().size());
  for (std::size_t i = 0; i < metric_catalogue().size(); ++i) {
    const std::string key(metric_catalogue()[i].key);
    EXPECT_EQ(json["metrics"][i]["key"], key);
    EXPECT_NE(text.out.find(key), std::string::npos);
    for (const auto* field : {"formula", "needs", "source", "direction"})
      EXPECT_TRUE(json["metrics"][i].contains(field)) << key;
  }
  const Json devices = Json::parse(run_command({"devices", "--json"}).out, nullptr, false);
  EXPECT_EQ(devices["devices"][0]["device"], "cpu");
  EXPECT_EQ(run_command({"devices"}).exit_code, 0);
}

// OpenBLAS's own choice for a CPU that it does not know is its slowest; what the user chose stays.
TEST_F(Command, UsesTheBlasKernelsOfTheCpu) {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "this CPU has no AVX2";
  const auto kernels_with = [](const std::string& set, const std::string& command) {
    const Outcome run =
        RunningCommand({"-c", set + "; exec " + command + "\"$0\" devices --json", NCOLLAPSE_COMMAND}, 0, "/bin/sh")
            .wait();
    return Json::parse(run.out)["devices"][0]["capability"].get<std::string>();
  };
  if (kernels_with("export OPENBLAS_CORETYPE=Haswell", "") != "OpenBLAS Haswell")
    GTEST_SKIP() << "this OpenBLAS cannot choose";
  EXPECT_NE(kernels_with("unset OPENBLAS_CORETYPE", ""), "OpenBLAS Prescott");
  EXPECT_EQ(kernels_with("export OPENBLAS_CORETYPE=Prescott", ""), "OpenBLAS Prescott");
  // Where the dynamic loader is what runs there is nothing to begin anew.
  const std::string loader = "/lib64/ld-linux-x86-64.so.2";
  if (std::filesystem::exists(loader)) {
    EXPECT_NE(kernels_with("unset OPENBLAS_CORETYPE", loader + " "), "");
  }
#endif
}

// ------------------------------------------------------------------------------------------------ predict

TEST_F(Command, PredictsTheMinimiser) {
  const std::vector<std::string> call{"predict",    "--counts", "20,12,12,5,3", "--layers", "2",
                                      "--lambda-w", "2e-3",     "--lambda-h",   "1e-3"};
  const Outcome table = run_command(call);
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_NE(table.out.find("0.01932808845"), std::string::npos) << table.out;
  auto with_json = call;
  with_json.insert(with_json.end(), {"--json", "-"});
  const Json json = Json::parse(run_command(with_json).out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_TRUE(std::abs(json["minimum"].get<double>() - 0.01932808845) <= 1e-10);
  for (const auto* key : {"sigma", "w", "z", "survives", "critical_lambda_product", "bias"})
    EXPECT_EQ(json[key].size(), 5U) << key;
  EXPECT_EQ(json["layer_singular_values"].size(), 2U);
  EXPECT_EQ(json["class_mean_logits"].size(), 5U);
  EXPECT_EQ(json["cosines"]["sizes"], Json({20, 12, 5, 3}));
  EXPECT_TRUE(json["cosines"]["w"][0][0].is_null());  // there is no other class of 20
  const PredictedCosines cosines = predicted_cosines({{20, 12, 12, 5, 3}, {2e-3, 2e-3}, 1e-3, true, 0});
  EXPECT_EQ(json["cosines"]["h"][1][2].get<double>(), cosines.h[4 + 2]);
  EXPECT_EQ(json["cosines"]["w"][3][0].get<double>(), cosines.w[3 * 4]);
  EXPECT_EQ(words_in(table.out, {"of class means", "of classifiers", "mean of all samples"}), "");
  std::string sizes = "1";
  for (int size = 2; size <= 65; ++size) sizes += "," + std::to_string(size);
  const Json many = Json::parse(
      run_command({"predict", "--counts", sizes, "--lambda-w", "1e-5", "--lambda-h", "1e-5", "--json", "-"}).out);
  EXPECT_TRUE(many["cosines"].is_null());
  EXPECT_EQ(words_in(many["status"]["cosines"].get<std::string>(), {"64"}), "");
  EXPECT_EQ(json["lost_classes"], Json::array());
  EXPECT_EQ(json["class_critical_lambda_product_log10"].size(), 5U);
  EXPECT_TRUE(json["class_critical_lambda_product_log10"][0].is_null());  // the largest class is never lost
  EXPECT_EQ(words_in(table.out, {"lost from", "never"}), "");
  auto narrow = with_json;
  narrow.insert(narrow.end(), {"--dim", "3"});
  const Json of_narrow = Json::parse(run_command(narrow).out, nullptr, false);
  EXPECT_TRUE(of_narrow["class_critical_lambda_product_log10"].is_null());
  EXPECT_TRUE(of_narrow["status"].contains("class_critical_lambda_product_log10"));

  auto from_labels = with_json;
  from_labels[1] = "--counts-from";
  std::vector<std::int64_t> labels;
  for (const auto& [label, count] : {std::pair{0, 20}, {1, 12}, {2, 12}, {3, 5}, {4, 3}})
    labels.insert(labels.end(), static_cast<std::size_t>(count), label);
  from_labels[2] = labels_file("counted.npy", labels);
  EXPECT_EQ(Json::parse(run_command(from_labels).out, nullptr, false), json);

  const std::string before = read_file(from_labels[2]);  // what is counted is not replaced
  from_labels.back() = from_labels[2];
  EXPECT_EQ(run_command(from_labels).exit_code, kUsage);
  from_labels[0] = "simulate";
  from_labels.insert(from_labels.end(), {"--dim", "5"});
  EXPECT_EQ(run_command(from_labels).exit_code, kUsage);
  EXPECT_EQ(read_file(from_labels[2]), before);
}

TEST_F(Command, NumbersAreDecimal) {
  const auto layers = [](const std::string& text) {
    const Outcome run = run_command(
        {"predict", "--counts", "5,3", "--layers", text, "--lambda-w", "1e-3", "--lambda-h", "1e-3", "--json", "-"});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json::parse(run.out, nullptr, false)["layer_singular_values"].size();
  };
  EXPECT_EQ(layers("010"), 10U);
  EXPECT_EQ(layers("08"), 8U);
}

TEST_F(Command, WeightDecaysOfLayersComeApartByCommasOrBlanks) {
  const auto predict = [&](const std::vector<std::string>& decays) {
    std::vector<std::string> call{"predict", "--counts",   "20,12,5", "--layers",
                                  "2",       "--lambda-h", "1e-3",    "--lambda-w"};
    call.insert(call.end(), decays.begin(), decays.end());
    call.insert(call.end(), {"--json", "-"});
    return Json::parse(run_command(call).out, nullptr, false);
  };
  const Json json = predict({"2e-3,5e-3"});
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["model"]["lambda_w"], (Json{2e-3, 5e-3}));
  EXPECT_EQ(predict({"2e-3", "5e-3"}), json);
  const Outcome few = run_command({"predict", "--counts", "3,2", "--lambda-w", "1e-3,1e-3", "--lambda-h", "1e-3"});
  EXPECT_NE(few.err.find("2 values for 1 layer\n"), std::string::npos) << few.err;
  const Outcome run = run_command(analyze({"--weights", w_, "--lambda-w", "1e-3,1e-3", "--lambda-h", "1e-3"}));
  EXPECT_EQ(run.exit_code, kUsage);
  EXPECT_NE(run.err.find("2 weight decays for 1 layer\n"), std::string::npos) << run.err;
  const Outcome four = run_command(
      {"predict", "--counts", "3,2", "--layers", "4", "--lambda-w", "1e-3,1e-2,1e-3,1e-4", "--lambda-h", "1e-3"});
  EXPECT_NE(four.out.find("layer 4 is in the JSON output"), std::string::npos) << four.out;
  for (const auto& [w, h] : {std::pair{"0", "1e-3"}, {"1e-3", "0"}}) {
    const Outcome none = run_command(analyze({"--weights", w_, "--lambda-w", w, "--lambda-h", h}));
    EXPECT_EQ(none.exit_code, kUsage);
    EXPECT_NE(none.err.find("no minimiser"), std::string::npos) << none.err;
  }
}

TEST_F(Command, OnlyAWidthLeavesNoRoom) {
  const auto table = [&](std::vector<std::string> call) {
    call.insert(call.begin(), "predict");
    const Outcome run = run_command(call);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return run.out;
  };
  // sigma = sqrt 2 is N sqrt(lambda_w lambda_h): the direction vanishes, whatever rounding says of the logarithms.
  const std::string threshold = table({"--counts", "2,2", "--lambda-w", "0.5", "--lambda-h", "0.25"});
  EXPECT_EQ(threshold.find("no room"), std::string::npos) << threshold;
  EXPECT_NE(threshold.find("surviving directions            0 of 2"), std::string::npos) << threshold;
  const auto of_counts = [&](const std::string& counts) {
    return table({"--counts", counts, "--lambda-w", "1e-3", "--lambda-h", "1e-3"});
  };
  EXPECT_EQ(of_counts("20x2,5 x 3"), of_counts("20,20,5,5,5"));
  EXPECT_EQ(of_counts("20, 20,5x1"), of_counts("20,20,5"));
  const std::string narrow = table({"--counts", "20,12,5", "--lambda-w", "2e-3", "--lambda-h", "1e-3", "--dim", "1"});
  EXPECT_NE(narrow.find("no room"), std::string::npos) << narrow;
}

TEST_F(Command, PredictsNothingFromWrongInput) {
  const auto fails = [&](const std::string& counts, const std::string& lambda, const std::string& word) {
    const Outcome run = run_command({"predict", "--counts", counts, "--lambda-w", lambda, "--lambda-h", "1e-3"});
    EXPECT_EQ(run.exit_code, kUsage) << counts;
    EXPECT_EQ(run.out, "");
    EXPECT_NE(run.err.find(word), std::string::npos) << run.err;
  };
  fails("", "1e-3", "--counts");
  fails("5,0", "1e-3", "class 1");
  fails("5,-3", "1e-3", "-3");
  fails("5,many", "1e-3", "many");
  fails("5,,3", "1e-3", "not a number");
  for (const auto* counts : {"5x0", "5x", "x3", "5x-1", "5x2x2", "500 300", "5 0x2"}) fails(counts, "1e-3", counts);
  fails("5,3x999999999999", "1e-3", "more than");
  fails("5,3", "0", "no minimiser");
  fails("5,3", "-1", "positive");
}

TEST_F(Command, ComparesThePredictionWithADenseDecomposition) {
  std::vector<std::string> call{"predict", "--counts", "20,12,12,5,3", "--lambda-w", "2e-3", "--lambda-h", "1e-3"};
  const auto run_with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), call.begin(), call.end());
    return run_command(more);
  };
  EXPECT_FALSE(Json::parse(run_with({"--json", "-"}).out).contains("dense"));
  for (const auto& bias : {std::vector<std::string>{}, {"--no-bias"}}) {
    auto more = bias;
    more.insert(more.end(), {"--dense", "--device", "cpu", "--threads", "1", "--json", "-"});
    const Outcome run = run_with(more);
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const Json dense = Json::parse(run.out)["dense"];
    EXPECT_EQ(dense["device"], "cpu");
    EXPECT_TRUE(dense["max_relative_difference"].get<double>() <= 1e-14) << dense;
    EXPECT_TRUE(dense["residual"].get<double>() <= 1e-14) << dense;
    EXPECT_TRUE(dense["orthogonality"].get<double>() <= 1e-14) << dense;
    EXPECT_TRUE(dense["seconds"].get<double>() > 0) << dense;
    EXPECT_TRUE(dense["structured_seconds"].get<double>() > 0) << dense;
  }
  EXPECT_NE(run_with({"--dense", "--device", "cpu"}).out.find("dense decomposition on cpu"), std::string::npos);
  call[2] = "7";  // one class: the matrix is 0 with a bias
  EXPECT_EQ(run_with({"--dense", "--device", "cpu"}).exit_code, 0);
  EXPECT_EQ(run_with({"--device", "cpu"}).exit_code, kUsage);  // only --dense computes on a device
  EXPECT_EQ(run_with({"--dense", "--device", "tpu"}).exit_code, kUsage);
  std::vector<std::int64_t> labels(32769);
  std::iota(labels.begin(), labels.end(), 0);
  call[1] = "--counts-from";
  call[2] = labels_file("many.npy", labels);
  const Outcome large = run_with({"--dense", "--device", "cpu"});
  EXPECT_EQ(large.exit_code, kUsage);
  EXPECT_NE(large.err.find("32768"), std::string::npos) << large.err;
}

// ------------------------------------------------------------------------------------------------ simulate

std::vector<std::string> simulate(const std::string& lambda_w, const std::string& lambda_h,
                                  std::vector<std::string> more = {}) {
  std::vector<std::string> arguments{"simulate", "--device", "cpu",        "--counts", "20,12,12,5,3",
                                     "--layers", "3",        "--lambda-w", lambda_w,   "--lambda-h",
                                     lambda_h,   "--dim",    "8"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// The complete lines of a JSON lines text, parsed. A last line without an end is what a killed run was writing.
std::vector<Json> json_lines(const std::string& text) {
  std::vector<Json> lines;
  std::size_t begin = 0;
  for (std::size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    lines.push_back(Json::parse(text.substr(begin, end - begin), nullptr, false));
    EXPECT_TRUE(lines.back().is_object()) << text.substr(begin, end - begin);
  }
  return lines;
}

TEST_F(Command, SimulatesInJsonLines) {
  const Outcome run = run_command(simulate("2e-3", "1e-3", {"--json", "-", "--measure-every", "50"}));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.err, "");
  const auto lines = json_lines(run.out);
  ASSERT_GE(lines.size(), 4U);
  const Json &header = lines.front(), &first = lines[1], &last = lines[lines.size() - 2], &end = lines.back();
  EXPECT_EQ(header["schema"], "ncollapse.simulation/1");
  EXPECT_EQ(header["tool"]["version"], version());
  EXPECT_EQ(header["device"]["type"], "cpu");
  EXPECT_EQ(header["model"]["counts"], (Json{20, 12, 12, 5, 3}));
  EXPECT_EQ(header["model"]["width"], 8);
  EXPECT_EQ(header["optimizer"]["start_scale"], 3.0);  // the default
  EXPECT_EQ(header["prediction"]["rank"], 4);
  EXPECT_EQ(first["iteration"], 0);
  EXPECT_EQ(lines[2]["iteration"], 50);
  for (const Json* step : {&first, &last}) {
    EXPECT_EQ((*step)["type"], "step");
    EXPECT_EQ((*step)["minimum"], header["prediction"]["minimum"]);
    EXPECT_EQ((*step)["spectrum"].size(), 5U);  // 12 twice: its contrast is an eigenspace too
    EXPECT_TRUE((*step)["metrics"]["ufmb_w"].is_number());
    EXPECT_EQ((*step)["status"]["nc4_agree_test"]["code"], "skipped");
  }
  EXPECT_TRUE(last["metrics"]["ufmb_w"].get<double>() <= 1e-5);
  EXPECT_EQ(end["type"], "end");
  EXPECT_EQ(end["reason"], "converged");
  EXPECT_EQ(end["loss"], last["loss"]);
  EXPECT_EQ(end["rank"], 4);
  EXPECT_EQ(end["differing"], Json::array());
  EXPECT_GE(end["seconds"].get<double>(), 0);
}

TEST_F(Command, SimulatesForAReader) {
  const Outcome global = run_command(simulate("2e-3", "1e-3"));
  EXPECT_EQ(global.exit_code, 0) << global.err;
  EXPECT_EQ(global.err, "");
  for (const auto* word : {"converged", "0.0227991811", "ufmb_w", "reached the predicted global minimiser, of rank 4"})
    EXPECT_NE(global.out.find(word), std::string::npos) << word << " in\n" << global.out;

  const std::string json = folder_.path("low.jsonl");
  const Outcome low = run_command(simulate("1e-2", "6e-3", {"--start-scale", "0.8", "--json", json}));
  EXPECT_EQ(low.exit_code, 0) << low.err;
  for (const auto* word : {"stopped in a stationary point of rank", "the global minimiser has rank 4", "--start-scale",
                           "--seed", "JSON lines written to"})
    EXPECT_NE(low.out.find(word), std::string::npos) << word << " in\n" << low.out;
  const Json end = json_lines(read_file(json)).back();
  ASSERT_FALSE(end["differing"].empty());
  Index missing = 0;
  for (const Json& space : end["differing"])
    missing += space["surviving_predicted"].get<Index>() - space["surviving_measured"].get<Index>();
  EXPECT_GE(missing, 1);
  EXPECT_EQ(end["rank"].get<Index>(), 4 - missing);
  EXPECT_NE(low.out.find("a larger --start-scale"), std::string::npos) << low.out;

  // Here all vanishes at the minimiser, and a start that is too large stops where a direction lives.
  const Outcome high = run_command({"simulate", "--device", "cpu", "--counts", "30,1", "--layers", "2", "--dim", "4",
                                    "--lambda-w", "2e-2", "--lambda-h", "3e-2"});
  for (const auto* word : {"of rank 1, the global minimiser has rank 0", "a smaller --start-scale"})
    EXPECT_NE(high.out.find(word), std::string::npos) << word << " in\n" << high.out;

  const Outcome short_run =
      run_command(simulate("1e-2", "6e-3", {"--iterations", "3", "--optimizer", "gd", "--no-bias"}));
  EXPECT_EQ(short_run.exit_code, 0) << short_run.err;
  for (const auto* word : {"not converged", "--iterations", "gof_w"})
    EXPECT_NE(short_run.out.find(word), std::string::npos) << word << " in\n" << short_run.out;
  const Outcome quiet = run_command(simulate("2e-3", "1e-3", {"--quiet", "--json", json}));
  EXPECT_EQ(quiet.exit_code, 0);
  EXPECT_EQ(quiet.out + quiet.err, "");
}

/// Starts a run that would last for hours, waits for a few of its lines, and sends it a signal.
Outcome interrupted_run(const std::string& json, int signal) {
  RunningCommand running({"simulate", "--device", "cpu", "--counts", "200,100,50", "--lambda-w", "1e-9", "--lambda-h",
                          "1e-9", "--dim", "32", "--optimizer", "gd", "--iterations", "1000000000", "--measure-every",
                          "5", "--json", json});
  for (int tries = 0; tries < 3000; ++tries) {
    const std::string text = read_file(json);
    if (std::count(text.begin(), text.end(), '\n') >= 4) break;
    usleep(10000);
  }
  running.signal(signal);
  return running.wait();
}

TEST_F(Command, CtrlCEndsASimulationWithItsLastLine) {
  const std::string json = folder_.path("run.jsonl");
  const Outcome run = interrupted_run(json, SIGINT);
  EXPECT_EQ(run.exit_code, 130) << run.err;
  EXPECT_NE(run.err.find("interrupted after iteration"), std::string::npos) << run.err;
  EXPECT_NE(run.out.find("not converged"), std::string::npos) << run.out;
  const std::string text = read_file(json);
  EXPECT_EQ(text.back(), '\n');
  const auto lines = json_lines(text);
  ASSERT_GE(lines.size(), 5U);
  EXPECT_EQ(lines.back()["type"], "end");
  EXPECT_EQ(lines.back()["reason"], "interrupted");
  EXPECT_EQ(lines.back()["iterations"], lines[lines.size() - 2]["iteration"]);
}

TEST_F(Command, AKilledSimulationLeavesCompleteLines) {
  const std::string json = folder_.path("run.jsonl");
  const Outcome run = interrupted_run(json, SIGKILL);
  EXPECT_EQ(run.exit_code, -SIGKILL);
  const auto lines = json_lines(read_file(json));
  ASSERT_GE(lines.size(), 4U);
  EXPECT_EQ(lines.back()["type"], "step");
}

TEST_F(Command, SimulatesNothingFromWrongInput) {
  const auto fails = [&](const std::vector<std::string>& more, int code, const std::string& word) {
    const std::string json = folder_.path("wrong.jsonl");
    std::vector<std::string> arguments{"simulate", "--device", "cpu", "--json", json};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome run = run_command(arguments);
    EXPECT_EQ(run.exit_code, code) << word;
    EXPECT_EQ(run.out, "");
    const Json error = Json::parse(run.err, nullptr, false);
    ASSERT_TRUE(error.is_object()) << run.err;
    EXPECT_NE(run.err.find(word), std::string::npos) << run.err;
    EXPECT_FALSE(std::filesystem::exists(json));
  };
  const auto with = [](const std::string& counts, const std::string& lambda_w, const std::string& dim,
                       const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments{"--counts", counts, "--lambda-w", lambda_w, "--lambda-h", "1e-3", "--dim", dim};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  fails(with("", "1e-3", "2"), kUsage, "--counts");
  fails(with("5,0", "1e-3", "2"), kUsage, "class 1");
  fails(with("5,-3", "1e-3", "2"), kUsage, "-3");
  fails(with("5,many", "1e-3", "2"), kUsage, "many");
  fails(with("5", "1e-3", "2"), kUsage, "at least 2");
  fails(with("5,3", "0", "2"), kUsage, "no minimiser");
  fails(with("5,3", "-1", "2"), kUsage, "positive");
  fails(with("5,3", "1e-3", "0"), kUsage, "--dim");
  fails(with("5,3", "1e-3", "4611686018427387904"), kDevice, "memory");
  fails({"--counts", "5,3", "--lambda-w", "1e-3", "--lambda-h", "1e-3"}, kUsage, "--dim");
  fails(with("5,3", "1e-3", "2", {"--layers", "0"}), kUsage, "--layers");
  fails(with("5,3", "1e-3", "2", {"--iterations", "0"}), kUsage, "--iterations");
  fails(with("5,3", "1e-3", "2", {"--measure-every", "0"}), kUsage, "--measure-every");
  fails(with("5,3", "1e-3", "2", {"--seed", "-1"}), kUsage, "--seed");
  fails(with("5,3", "1e-3", "2", {"--start-scale", "0"}), kUsage, "start scale");
  fails(with("5,3", "1e-3", "2", {"--optimizer", "adam"}), kUsage, "lbfgs");
  fails(with("5,3", "1e-3", "2", {"--counts-from", y_}), kUsage, "--counts-from");
}

// ------------------------------------------------------------------------------------------------ limits

// A link stays one, and what it leads to is whole at any time.
TEST_F(Command, OutputsThroughALinkReplaceItsTarget) {
  const std::string target = folder_.write("target.json", "what was there"), link = folder_.path("link.json");
  std::filesystem::create_symlink("target.json", link);
  std::vector<std::string> arguments{"-c", "ulimit -f 1; exec \"$0\" \"$@\"", NCOLLAPSE_COMMAND};
  for (const auto& argument : analyze({"--quiet", "--json", link})) arguments.push_back(argument);
  const Outcome failed = RunningCommand(arguments, 0, "/bin/sh").wait();
  EXPECT_EQ(failed.exit_code, kData) << failed.err;
  EXPECT_EQ(read_file(target), "what was there");
  EXPECT_EQ(run_command(analyze({"--quiet", "--json", link})).exit_code, 0);
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(Json::parse(read_file(target))["shape"]["D"], 2);
  // Links of the system are open files: this one is where standard output goes.
  const Outcome run = run_command(analyze({"--quiet", "--json", "/dev/stdout"}));
  EXPECT_EQ(Json::parse(run.out)["shape"]["D"], 2) << run.err;
}

TEST_F(Command, AFileThatMayNotGrowIsAMessage) {
  for (const std::string output : {"--json", "--csv"}) {
    const std::string report = folder_.path("long");
    std::vector<std::string> arguments{"-c", "ulimit -f 1; exec \"$0\" \"$@\"",
                                       NCOLLAPSE_COMMAND};  // 512 or 1024 bytes
    for (const auto& argument : analyze({"--quiet", output, report})) arguments.push_back(argument);
    const Outcome run = RunningCommand(arguments, 0, "/bin/sh").wait();
    EXPECT_EQ(run.exit_code, kData) << run.err;
    EXPECT_NE(run.err.find("cannot write"), std::string::npos) << run.err;
    Index reports = 0;
    for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(report).parent_path()))
      reports += entry.path().filename().string().starts_with("long") ? 1 : 0;
    EXPECT_EQ(reports, 0) << "something was left of " << output;
  }
}

TEST_F(Command, HelpThatCannotBeWrittenIsAMessage) {
  for (const std::string asked : {"--help", "--version", "metrics"}) {
    const Outcome run =
        RunningCommand({"-c", "exec \"$0\" \"$1\" > /dev/full", NCOLLAPSE_COMMAND, asked}, 0, "/bin/sh").wait();
    EXPECT_EQ(run.exit_code, kData) << asked;
    EXPECT_NE(run.err.find("cannot write to standard output"), std::string::npos) << run.err;
  }
}

TEST_F(Command, AFileThatIsCutOffWhileItIsReadIsAMessage) {
  constexpr Index kRows = Index{1} << 19, kDim = 256;  // 512 MiB, all of it a hole in the file
  const std::string labels =
      folder_.write("zeros.npy", npy("|u1", "(" + std::to_string(kRows) + ",)", std::string(kRows, '\0')));
  int cut = 0;
  for (int wait_ms = 60; wait_ms < 1500 && cut < 4; wait_ms += 120) {
    const std::string holes = folder_.write("holes.npy", npy("<f4", "(" + std::to_string(kRows) + ", 256)", ""));
    std::filesystem::resize_file(holes, std::filesystem::file_size(holes) + kRows * kDim * 4);
    const std::string state = folder_.path("state.nc");
    std::filesystem::remove(state);
    RunningCommand running({"accumulate", "--device", "cpu", "--features", holes, "--labels", labels, "--classes", "2",
                            "--batch-rows", "65536", "--state", state});
    usleep(static_cast<useconds_t>(wait_ms) * 1000);
    std::filesystem::resize_file(holes, 200);
    const Outcome run = running.wait();
    if (run.exit_code == 0) continue;  // it was faster
    ++cut;
    EXPECT_EQ(run.exit_code, kData) << run.err;
    EXPECT_NE(run.err.find("holes.npy"), std::string::npos) << run.err;
  }
  EXPECT_GT(cut, 0);
}

TEST_F(Command, ABusErrorThatNoFileHasCausedStaysOne) {
  const Outcome run = interrupted_run(folder_.path("run.jsonl"), SIGBUS);
  EXPECT_EQ(run.exit_code, -SIGBUS);
  EXPECT_EQ(run.err.find("read no more"), std::string::npos) << run.err;
}

// ------------------------------------------------------------------------------------------------ large files

TEST_F(Command, AFileLargerThanItsMemory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need far more address space than the limit of this test";
#endif
  constexpr Index kRows = Index{3} << 20, kDim = 256;  // 3 GiB of float32, nearly all of it a hole in the file
  constexpr rlim_t kLimit = rlim_t{2560} << 20;        // the process's libraries included
  const std::string large = folder_.write("large.npy", npy("<f4", "(" + std::to_string(kRows) + ", 256)", ""));
  const auto header = static_cast<std::streamoff>(std::filesystem::file_size(large));
  std::filesystem::resize_file(large, static_cast<std::uintmax_t>(header + kRows * kDim * 4));
  {
    std::fstream file(large, std::ios::binary | std::ios::in | std::ios::out);
    const float one = 1;
    for (const Index row : {Index{1}, kRows / 2 + 1, kRows - 1}) {  // all of class 1
      file.seekp(header + row * kDim * 4);
      file.write(reinterpret_cast<const char*>(&one), sizeof one);
    }
  }
  std::vector<std::uint8_t> labels(static_cast<std::size_t>(kRows));
  for (Index i = 0; i < kRows; ++i) labels[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(i % 2);
  const std::string y = folder_.write("y8.npy", npy("|u1", "(" + std::to_string(kRows) + ",)", bytes_of(labels)));
  ASSERT_GT(std::filesystem::file_size(large), kLimit);

  const Outcome run = run_command(analyze_files(large, y, {"--json", "-"}), kLimit);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  // One batch is 64 MiB; the rest is the program, its libraries and a state of less than a MiB.
  EXPECT_LT(run.peak_kib, 512 << 10);
  // Three ones among n = kRows/2 zeros: v = 3/n - (3/n)^2 in class 1, 0 in class 0; the means are 3/n apart.
  const double p = 3.0 / (kRows / 2), expected = (p - p * p) / 2 / (2 * (p / 2) * (p / 2) / 2);
  const double got = Json::parse(run.out)["metrics"]["nc1_trace_ratio"].get<double>();
  EXPECT_TRUE(std::abs(got / expected - 1) <= 1e-9) << got << " " << expected;
}

}  // namespace
}  // namespace ncollapse::test
