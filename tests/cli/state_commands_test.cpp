// A measurement in parts, from outside: accumulate, merge, finalize, and analyze over many files.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "host/state_file.hpp"
#include "ncollapse/ncollapse.hpp"
#include "tests/cli/run_command.hpp"

namespace ncollapse::test {
namespace {

using Json = nlohmann::json;
using Arguments = std::vector<std::string>;

constexpr int kUsage = 2, kData = 3;
constexpr Index kClasses = 4, kDim = 6;

Arguments operator+(Arguments left, const Arguments& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

/// Five shards whose natural order is not the order of their names, and the same rows in one file.
class StateCommands : public testing::Test {
 protected:
  StateCommands() {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<float> all;
    std::vector<std::int64_t> all_labels;
    const int numbers[] = {1, 2, 3, 10, 11}, sizes[] = {53, 1, 64, 40, 97};
    for (int i = 0; i < 5; ++i) {
      std::vector<float> values;
      std::vector<std::int64_t> labels;
      for (int row = 0; row < sizes[i]; ++row) {
        const int k = static_cast<int>(random() % kClasses);
        labels.push_back(k);
        for (int j = 0; j < kDim; ++j) values.push_back((j == k ? 2.0F : 0.0F) + 0.3F * normal(random) + 0.1F * k);
      }
      const std::string number = std::to_string(numbers[i]);
      shards_.push_back(features_file("shard-" + number + ".npy", values));
      shard_labels_.push_back(labels_file("labels-" + number + ".npy", labels));
      all.insert(all.end(), values.begin(), values.end());
      all_labels.insert(all_labels.end(), labels.begin(), labels.end());
    }
    rows_ = static_cast<Index>(all_labels.size());
    x_ = features_file("whole.npy", all);
    y_ = labels_file("whole_labels.npy", all_labels);
    std::vector<float> weights(kClasses * kDim);
    for (auto& weight : weights) weight = normal(random);
    w_ = folder_.write("w.npy", npy("<f4", "(4, 6)", bytes_of(weights)));
    b_ = folder_.write("b.npy", npy("<f4", "(4,)", bytes_of(std::vector<float>{0.1F, 0.2F, -0.1F, 0})));
  }

  std::string features_file(const std::string& name, const std::vector<float>& values, Index dim = kDim) const {
    const auto rows = static_cast<Index>(values.size()) / dim;
    return folder_.write(name,
                         npy("<f4", "(" + std::to_string(rows) + ", " + std::to_string(dim) + ")", bytes_of(values)));
  }
  std::string labels_file(const std::string& name, const std::vector<std::int64_t>& labels) const {
    return folder_.write(name, npy("<i8", "(" + std::to_string(labels.size()) + ",)", bytes_of(labels)));
  }

  Arguments accumulate(const Arguments& features, const Arguments& labels, const std::string& state,
                       const Arguments& more = {}) const {
    return Arguments{"accumulate", "--device", "cpu", "--threads", "1", "--classes", "4", "--features"} + features +
           Arguments{"--labels"} + labels + Arguments{"--state", folder_.path(state)} + more;
  }
  Arguments glob(const std::string& state, const Arguments& more = {}) const {
    return accumulate({folder_.path("shard-*.npy")}, {folder_.path("labels-*.npy")}, state, more);
  }

  void expect_done(const Arguments& arguments) const {
    const Outcome run = run_command(arguments);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(run.err, "");
  }
  /// The bytes of the state that the call makes.
  std::string state_of(const Arguments& arguments, const std::string& state) const {
    expect_done(arguments);
    const std::string bytes = read_file(folder_.path(state));
    EXPECT_FALSE(bytes.empty());
    return bytes;
  }
  /// The call fails with every word on stderr, and no file is added, removed or changed.
  void expect_error(const Arguments& arguments, int code, const std::vector<std::string>& words) const {
    const auto before = content();
    const Outcome run = run_command(arguments);
    EXPECT_EQ(run.exit_code, code) << run.err;
    EXPECT_EQ(run.out, "");
    EXPECT_EQ(run.err.rfind("ncollapse: error: ", 0), 0U) << run.err;
    for (const auto& word : words) EXPECT_NE(run.err.find(word), std::string::npos) << word << " in " << run.err;
    EXPECT_TRUE(content() == before) << "files have changed: " << run.err;
  }
  std::map<std::string, std::string> content() const {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path(".")))
      files[entry.path().filename().string()] = read_file(entry.path().string());
    return files;
  }
  Json report(const Arguments& arguments) const {
    const Outcome run = run_command(arguments + Arguments{"--json", "-"});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json::parse(run.out, nullptr, false);
  }

  TemporaryDirectory folder_;
  std::vector<std::string> shards_, shard_labels_;
  std::string x_, y_, w_, b_;
  Index rows_ = 0;
};

bool close(const Json& got, const Json& want) {
  if (!want.is_number() || !got.is_number()) return want.is_null() && got.is_null();
  const double a = got.get<double>(), b = want.get<double>();
  return std::abs(a - b) <= 1e-12 * std::abs(b) + 1e-12;
}

/// The value of a metric; null where the report has none.
Json value_of(const Json& report, const char* block, const std::string& key) {
  return report[block].contains(key) ? report[block][key] : Json();
}

/// All metrics but those that need decisions or more data than a state has; returns how many were compared.
int expect_same_metrics(const Json& got, const Json& want) {
  int compared = 0;
  for (const auto& info : metric_catalogue()) {
    const std::string key(info.key), needs = " " + std::string(info.needs) + " ";
    if (needs.find(" train ") != std::string::npos || needs.find(" test ") != std::string::npos ||
        needs.find(" ood ") != std::string::npos)
      continue;
    if (info.scope == "scalar") {
      const Json a = value_of(got, "metrics", key), b = value_of(want, "metrics", key);
      EXPECT_TRUE(close(a, b)) << key << " " << a << " " << b;
      compared += b.is_null() ? 0 : 1;
    } else {
      const Json a = value_of(got, "per_class", key), b = value_of(want, "per_class", key);
      EXPECT_EQ(a.size(), b.size()) << key;
      for (std::size_t k = 0; k < std::min(a.size(), b.size()); ++k) EXPECT_TRUE(close(a[k], b[k])) << key << " " << k;
    }
  }
  EXPECT_EQ(got["shape"]["N"], want["shape"]["N"]);
  return compared;
}

// ------------------------------------------------------------------------------------------------ parts

TEST_F(StateCommands, PartsInAnyOrderMeasureAsTheWhole) {
  const Arguments head{"--weights", w_, "--bias", b_, "--lambda-w", "1e-3", "--lambda-h", "1e-4"};
  const Json whole = report(Arguments{"analyze", "--device", "cpu", "--features", x_, "--labels", y_} + head);
  Arguments parts;
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    const std::string state = "part" + std::to_string(i) + ".nc";
    expect_done(accumulate({shards_[i]}, {shard_labels_[i]}, state));
    parts.push_back(folder_.path(state));
  }
  std::sort(parts.begin(), parts.end());
  std::mt19937 random(3);
  for (int order = 0; order < 4; ++order) {
    const std::string all = folder_.path("all" + std::to_string(order) + ".nc");
    const Outcome merged = run_command(Arguments{"merge", "--device", "cpu"} + parts + Arguments{"--state", all});
    ASSERT_EQ(merged.exit_code, 0) << merged.err;
    EXPECT_NE(merged.out.find(std::to_string(rows_) + " samples"), std::string::npos) << merged.out;
    for (const auto* convention : {"zhu", "papyan", "anova"}) {
      const Json want = report(
          Arguments{"analyze", "--device", "cpu", "--features", x_, "--labels", y_, "--convention", convention} + head);
      const Json got = report(Arguments{"finalize", all, "--device", "cpu", "--convention", convention} + head);
      EXPECT_GE(expect_same_metrics(got, want), 30);
      EXPECT_EQ(got["status"]["nc4_agree_train"]["code"], "skipped");
    }
    std::shuffle(parts.begin(), parts.end(), random);
  }
  expect_same_metrics(report(Arguments{"finalize", folder_.path("all0.nc"), "--device", "cpu"} + head), whole);
}

TEST_F(StateCommands, PartsThatShareRowsAreMergedWithAWarning) {
  const auto part = [&](const std::string& state, const std::string& rows) {
    expect_done(accumulate({x_}, {y_}, state, {"--rows", rows}));
    return folder_.path(state);
  };
  const auto merge = [&](const Arguments& parts, const std::string& state, const Arguments& more = {}) {
    const Outcome run =
        run_command(Arguments{"merge", "--device", "cpu"} + parts + Arguments{"--state", folder_.path(state)} + more);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return run.err;
  };
  const auto both = [&](const std::string& first, const std::string& second, const std::string& rows) {
    return "ncollapse: warning: " + first + " and " + second + " both hold rows " + rows + " of " + x_ + ", ";
  };
  const std::string a = part("a.nc", "0:100"), b = part("b.nc", "100:200"), c = part("c.nc", "150:255"),
                    inside = part("inside.nc", "20:30"), shard = folder_.path("shard.nc"),
                    copy = folder_.path("copy.nc");
  expect_done(accumulate({shards_[0]}, {shard_labels_[0]}, "shard.nc"));
  std::filesystem::copy_file(a, copy);
  EXPECT_EQ(merge({a, b, shard}, "apart.nc"), "");  // rows that touch, and another file's

  const std::string overlap = merge({c, a, b, inside}, "overlap.nc", {"--quiet"});
  EXPECT_EQ(overlap.find(both(a, inside, "20:30")), 0U) << overlap;
  EXPECT_NE(overlap.find("\n" + both(b, c, "150:200")), std::string::npos) << overlap;
  EXPECT_NE(overlap.find("count twice in " + folder_.path("overlap.nc")), std::string::npos) << overlap;
  EXPECT_EQ(std::count(overlap.begin(), overlap.end(), '\n'), 3) << overlap;
  EXPECT_EQ(merge({a, copy}, "copied.nc").find(both(a, copy, "0:100")), 0U);
  // A merged state still knows what is in it.
  EXPECT_EQ(merge({inside, folder_.path("apart.nc")}, "again.nc").find(both(folder_.path("apart.nc"), inside, "20:30")),
            0U);

  const Context context{Device{}};
  std::vector<std::string> overlaps{"old"};
  EXPECT_EQ(merge_states(context, {a, inside}, {}, &overlaps).samples(), 110);
  ASSERT_EQ(overlaps.size(), 1U);
  EXPECT_EQ(overlaps[0], a + " and " + inside + " both hold rows 20:30 of " + x_ + ", 255 x 6 f32");
  merge_states(context, {a, b}, {}, &overlaps);
  EXPECT_TRUE(overlaps.empty());
  // Files of one name but another shape are different files; notes of others may hold anything.
  for (const auto* line : {", 254 x 6 f32, rows 20:30", ", 255 x 6 f32, rows 20", ", 255 x 6 f32, rows x:y",
                           ", 255 x 6 f32, rows", ", 255 x 6 f32, rows :", ", 255 x 6 f32, rows 20:"}) {
    Accumulator::load(context, inside).save(folder_.path("other.nc"), "features " + x_ + line + "\n");
    merge_states(context, {a, folder_.path("other.nc")}, {}, &overlaps);
    EXPECT_TRUE(overlaps.empty()) << line;
  }
}

TEST_F(StateCommands, AnalyzeReadsManyFilesAsOne) {
  const Arguments more{"--weights", w_, "--bias", b_};
  const Json whole = report(Arguments{"analyze", "--device", "cpu", "--features", x_, "--labels", y_, "--test-features",
                                      x_, "--test-labels", y_, "--ood-features", x_} +
                            more);
  const Json split = report(
      Arguments{"analyze", "--device", "cpu", "--features", folder_.path("shard-*.npy"), "--labels",
                folder_.path("labels-*.npy"), "--test-features"} +
      shards_ +
      Arguments{"--test-labels", y_, "--ood-features", folder_.path("shard-?.npy"), folder_.path("shard-1?.npy")} +
      more);
  ASSERT_EQ(split["metrics"].size(), whole["metrics"].size());
  for (const auto& [key, value] : whole["metrics"].items())
    EXPECT_TRUE(close(split["metrics"][key], value)) << key << " " << split["metrics"][key] << " " << value;
  EXPECT_EQ(split["source"]["features"], folder_.path("shard-*.npy"));
  EXPECT_EQ(split["source"]["test_features"].size(), 5U);
}

TEST_F(StateCommands, GlobsComeInNaturalOrder) {
  const std::string globbed = state_of(glob("a.nc"), "a.nc");
  EXPECT_EQ(globbed, state_of(accumulate(shards_, shard_labels_, "b.nc"), "b.nc"));
  // As names are ordered: 1, 10, 11, 2, 3. Other first samples, so other bits.
  const auto by_name = [](const Arguments& files) {
    return Arguments{files[0], files[3], files[4], files[1], files[2]};
  };
  EXPECT_NE(globbed, state_of(accumulate(by_name(shards_), by_name(shard_labels_), "c.nc"), "c.nc"));

  for (const auto* name : {"n9", "n010", "n08", "n8", "m2x10", "m2x9", "m12x1", "n"}) folder_.write(name, "");
  std::vector<std::string> names;
  for (const auto& path : expand({folder_.path("[mn]*[0-9]"), folder_.path("n")}))
    names.push_back(std::filesystem::path(path).filename().string());
  EXPECT_EQ(names, (std::vector<std::string>{"m2x9", "m2x10", "m12x1", "n08", "n8", "n9", "n010", "n"}));
  EXPECT_EQ(expand("no wildcard").at(0), "no wildcard");
  EXPECT_TRUE(expand("").empty());
  const std::string literal = folder_.write("odd[1].npz", "");
  EXPECT_EQ(expand(literal + ":key").at(0), literal + ":key") << "names a file as it stands";
  EXPECT_EQ(expand(literal).at(0), literal);
  EXPECT_EQ(expand(folder_.path("m12*:some:key:0")).at(0), folder_.path("m12x1:some:key:0"));
}

TEST_F(StateCommands, OneArrayUnderTwoNames) {
  const std::string link = folder_.path("link.npy");
  std::filesystem::create_symlink(shards_[0], link);
  for (const std::string& other : {shards_[0], shards_[0] + ":", link, link + ":"})
    expect_error(accumulate({shards_[0], other}, {shard_labels_[0], shard_labels_[0]}, "twice.nc"), kData,
                 {"given twice"});
}

TEST_F(StateCommands, OneFileOfLabelsForAllShards) {
  const Json apart = report({"finalize", "--device", "cpu", (expect_done(glob("a.nc")), folder_.path("a.nc"))});
  expect_done(accumulate(shards_, {y_}, "b.nc"));
  const Json together = report({"finalize", "--device", "cpu", folder_.path("b.nc")});
  EXPECT_EQ(together["metrics"], apart["metrics"]);
}

TEST_F(StateCommands, RangesOfRowsAreParts) {
  // Through the middle of shards, with labels of both kinds; together they are every row once.
  expect_done(glob("1.nc", {"--rows", ":54"}));
  expect_done(accumulate(shards_, {y_}, "2.nc", {"--rows", "54:130"}));
  expect_done(accumulate({x_}, {y_}, "3.nc", {"--rows", "130:131"}));
  expect_done(glob("4.nc", {"--rows", "131:"}));
  expect_done({"merge", "--device", "cpu", folder_.path("?.nc"), "--state", folder_.path("all.nc")});
  const Json want = report({"analyze", "--device", "cpu", "--features", x_, "--labels", y_});
  EXPECT_GE(expect_same_metrics(report({"finalize", "--device", "cpu", folder_.path("all.nc")}), want), 15);

  const Json slice = report({"analyze", "--device", "cpu", "--features", folder_.path("shard-*.npy"), "--labels",
                             folder_.path("labels-*.npy"), "--rows", "54:130"});
  expect_same_metrics(report({"finalize", "--device", "cpu", folder_.path("2.nc")}), slice);
  EXPECT_EQ(slice["shape"]["N"], 76);
  EXPECT_EQ(slice["source"]["rows"], "54:130");

  const std::string past = std::to_string(rows_ + 1);
  expect_error(glob("x.nc", {"--rows", "0:" + past}), kData, {"0:" + past, std::to_string(rows_) + " rows"});
  expect_error(glob("x.nc", {"--rows", std::to_string(rows_) + ":"}), kData, {std::to_string(rows_) + " rows"});
  for (const auto* wrong : {"5", "5:5", "6:5", "-1:5", "a:b", "1:2:3", "1.5:2"})
    expect_error(glob("x.nc", {std::string("--rows=") + wrong}), kUsage, {"--rows", "FIRST:END"});
}

TEST_F(StateCommands, TheSameFromCpp) {
  const Context context(Device::parse("cpu"), {.threads = 1});
  const auto part = [&](const FileList& features, const FileList& labels, const std::string& state) {
    return accumulate_files(
        context, {.features = features, .labels = labels, .classes = kClasses, .state = folder_.path(state)});
  };
  EXPECT_EQ(part(folder_.path("shard-*.npy"), y_, "1.nc").samples(), rows_);
  EXPECT_EQ(part({shards_[0], shards_[1]}, {shard_labels_[0], shard_labels_[1]}, "2.nc").samples(), 54);
  EXPECT_THROW(part(x_, y_, "2.nc"), DataError);
  EXPECT_THROW(part(x_, "", "3.nc"), UsageError);
  EXPECT_EQ(merge_states(context, {folder_.path("1.nc"), folder_.path("2.nc")}).samples(), rows_ + 54);
  const Report report = measure_state(context, {.state = folder_.path("1.nc"), .weights = {w_}});
  EXPECT_EQ(report.samples, rows_);
  EXPECT_TRUE(report.find("nc3_dual").has_value());

  // What on_progress throws stops a run, which can then be resumed.
  AccumulationRequest request{.features = shards_, .labels = shard_labels_, .classes = kClasses};
  request.state = folder_.path("4.nc");
  std::vector<Index> done;
  request.on_progress = [&](const Progress& progress) {
    EXPECT_EQ(progress.rows_total, rows_);
    done.push_back(progress.rows_done);
    if (done.size() == 3) throw std::runtime_error("enough");
  };
  EXPECT_THROW(accumulate_files(context, request), std::runtime_error);
  EXPECT_EQ(done, (std::vector<Index>{53, 54, 118}));
  request.on_progress = {};
  request.resume = true;
  EXPECT_EQ(accumulate_files(context, request).samples(), rows_);
  request.resume = false;
  request.state = folder_.path("5.nc");
  request.rows = {0, -2};  // not "all but the last"
  EXPECT_THROW(accumulate_files(context, request), DataError);
}

// ------------------------------------------------------------------------------------------------ resuming

/// Small batches that are all saved: a run of about a second.
class ResumeCommands : public StateCommands {
 protected:
  ResumeCommands() {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    for (int shard = 0; shard < 3; ++shard) {
      std::vector<float> values;
      std::vector<std::int64_t> labels;
      for (int row = 0; row < 500; ++row) {
        labels.push_back(static_cast<std::int64_t>(random() % kClasses));
        for (Index j = 0; j < kDim; ++j) values.push_back(normal(random));
      }
      features_file("long-" + std::to_string(shard) + ".npy", values);
      labels_file("llong-" + std::to_string(shard) + ".npy", labels);
    }
  }
  Arguments long_run(const std::string& state, const Arguments& more = {}) const {
    return accumulate({folder_.path("long-*.npy")}, {folder_.path("llong-*.npy")}, state,
                      Arguments{"--batch-rows", "7", "--quiet"} + more);
  }
};

TEST_F(ResumeCommands, KilledAtAnyMomentEndsInTheSameBits) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const Arguments often{"--save-every", "7"};
  const auto start = Clock::now();
  const std::string want = state_of(long_run("whole.nc", often), "whole.nc");
  double latest = since(start);  // a kill after that would come too late

  std::mt19937 random(5);
  std::set<Index> stopped_at;  // rows that were saved when the kill came
  int killed = 0, attempts = 0;
  for (; (killed < 20 || stopped_at.size() < 5) && attempts < 200; ++attempts) {
    const std::string state = "state" + std::to_string(attempts) + ".nc";
    const auto begin = Clock::now();
    RunningCommand running(long_run(state, often));
    std::this_thread::sleep_for(
        std::chrono::duration<double>(std::uniform_real_distribution<double>(0, latest)(random)));
    running.signal(SIGKILL);
    if (running.wait().exit_code != -SIGKILL) {  // it was faster; disks and neighbours decide
      latest = std::min(latest, since(begin));
      continue;
    }
    ++killed;
    if (std::filesystem::exists(folder_.path(state))) {
      std::string note;
      const Accumulator saved = Accumulator::load(Context(Device::parse("cpu")), folder_.path(state), &note);
      EXPECT_EQ(note.rfind("rows_done " + std::to_string(saved.samples()) + " of 1500\n", 0), 0U) << note;
      if (saved.samples() < 1500) stopped_at.insert(saved.samples());
    }
    EXPECT_EQ(state_of(long_run(state, {"--resume"}), state), want) << "killed after " << attempts << " attempts";
  }
  RecordProperty("attempts", attempts);
  RecordProperty("different_rows_saved_when_killed", static_cast<int>(stopped_at.size()));
  EXPECT_GE(killed, 20) << "of " << attempts << " runs; the others had ended";
  EXPECT_GE(stopped_at.size(), 5U) << "too few kills came between the first and the last save";
  for (const auto& [name, bytes] : content()) EXPECT_EQ(name.find(".tmp"), std::string::npos) << name << " is left";
  // Once more changes nothing.
  EXPECT_EQ(state_of(long_run("whole.nc", {"--resume"}), "whole.nc"), want);
}

TEST_F(ResumeCommands, CtrlCSavesAndResumes) {
  const std::string want = state_of(long_run("whole.nc"), "whole.nc");
  const std::string state = folder_.path("state.nc");
  Outcome run;
  for (int attempts = 0; attempts < 20 && run.exit_code != 130; ++attempts) {  // a run may end before the signal comes
    std::filesystem::remove(state);
    RunningCommand running(long_run("state.nc", {"--save-every", "7"}));
    for (int tries = 0; tries < 3000 && !std::filesystem::exists(state); ++tries) usleep(1000);
    running.signal(SIGINT);
    run = running.wait();
  }
  ASSERT_EQ(run.exit_code, 130) << run.err;
  EXPECT_NE(run.err.find("--resume"), std::string::npos) << run.err;
  const Outcome early = run_command({"finalize", "--device", "cpu", folder_.path("state.nc"), "--json", "-"});
  ASSERT_EQ(early.exit_code, 0) << early.err;
  EXPECT_NE(early.out.find("the state is incomplete"), std::string::npos) << early.out;
  expect_error({"merge", "--device", "cpu", folder_.path("whole.nc"), folder_.path("state.nc"), "--state",
                folder_.path("all.nc")},
               kData, {"state.nc", "incomplete", "of 1500 rows"});
  EXPECT_EQ(state_of(long_run("state.nc", {"--resume", "--save-every", "0.01s"}), "state.nc"), want);
}

TEST_F(StateCommands, OneWriterAtATimeAndNothingOfOthersIsRemoved) {
  const std::string state = folder_.path("s.nc");
  const std::string mine = folder_.write("s.nc.tmp2024", "not a state"),
                    killed = folder_.write("s.nc.tmp77", "NCOLSTAT and half of it");
  {
    const StateLock lock(state);
    expect_error(glob("s.nc"), kData, {"s.nc", "another process"});
    expect_error(glob("s.nc") + Arguments{"--resume"}, kData, {"another process"});
    EXPECT_TRUE(std::filesystem::exists(killed));  // it might be the holder's
  }
  const std::string bytes = state_of(glob("s.nc"), "s.nc");
  EXPECT_TRUE(std::filesystem::exists(mine));
  EXPECT_FALSE(std::filesystem::exists(killed));
  EXPECT_FALSE(std::filesystem::exists(state + ".lock"));
  expect_error({"finalize", "--device", "cpu", state, "--csv", state}, kUsage, {"s.nc", "would replace"});
  EXPECT_EQ(read_file(state), bytes);
  // The same file under two names counts once.
  expect_error(accumulate({x_, folder_.path("./whole.npy")}, {y_, y_}, "twice.nc"), kData, {"twice"});
}

TEST_F(StateCommands, ABadShardDoesNotCostTheGoodOnes) {
  const std::string want = state_of(glob("whole.nc"), "whole.nc");
  const std::string good = read_file(shards_[3]);
  std::string bad = good;
  const float nan = std::nanf("");
  std::memcpy(bad.data() + bad.size() - 4 * (5 * kDim - 2), &nan, sizeof nan);  // row 35 of 40, column 2
  folder_.write("shard-10.npy", bad);
  const Outcome run = run_command(glob("state.nc"));
  EXPECT_EQ(run.exit_code, kData);
  const std::string first = std::to_string(53 + 1 + 64);
  for (const auto& word : {"shard-10.npy (its row 0 counts as row " + first + ")",
                           "first is at row " + std::to_string(53 + 1 + 64 + 35) + ", column 2"})
    EXPECT_NE(run.err.find(word), std::string::npos) << word << " in " << run.err;
  EXPECT_EQ(Accumulator::load(Context(Device::parse("cpu")), folder_.path("state.nc")).samples(), 53 + 1 + 64);
  folder_.write("shard-10.npy", good);
  EXPECT_EQ(state_of(glob("state.nc", {"--resume"}), "state.nc"), want);
}

TEST_F(StateCommands, ResumesOnlyWhatItBegan) {
  expect_done(glob("state.nc"));
  const std::string state = folder_.path("state.nc");
  expect_error(glob("state.nc"), kData, {"state.nc", "exists", "resume"});
  expect_error(glob("state.nc", {"--resume", "--batch-rows", "10"}), kData, {"batch_rows", "'batch_rows 10'"});
  expect_error(glob("state.nc", {"--resume", "--statistics", "traces"}), kData,
               {"statistics full", "statistics traces"});
  expect_error(glob("state.nc", {"--resume", "--rows", "0:60"}), kData, {"shard-3.npy", "rows 0:64", "rows 0:6'"});
  expect_error(glob("state.nc", {"--resume", "--rows", "3:"}), kData, {"rows 0:53", "rows 3:53"});
  expect_error(accumulate(shards_, {y_}, "state.nc", {"--resume"}), kData, {"labels-1.npy", "whole_labels.npy"});
  expect_error(accumulate({x_}, {y_}, "state.nc", {"--resume"}), kData, {"shard-1.npy", "whole.npy"});
  auto more_classes = glob("state.nc", {"--resume"});
  *(std::find(more_classes.begin(), more_classes.end(), "--classes") + 1) = "5";
  expect_error(more_classes, kData, {"classes 4", "classes 5"});
  // The same name with other rows in it.
  features_file("shard-2.npy", std::vector<float>(2 * kDim));
  labels_file("labels-2.npy", {0, 1});
  expect_error(glob("state.nc", {"--resume"}), kData, {"shard-2.npy, 1 x 6", "shard-2.npy, 2 x 6"});
  // What did not come from accumulate has no record.
  expect_done({"merge", "--device", "cpu", state, "--state", folder_.path("merged.nc")});
  expect_error(glob("merged.nc", {"--resume"}), kData, {"merged.nc", "cannot be resumed"});
}

// ------------------------------------------------------------------------------------------------ bad input

TEST_F(StateCommands, FinalizeSaysWhichFileHoldsNaN) {
  expect_done(glob("state.nc"));
  std::vector<float> weights(kClasses * kDim, 1);
  weights[8] = std::nanf("");
  const std::string bad = folder_.write("bad.npy", npy("<f4", "(4, 6)", bytes_of(weights)));
  expect_error({"finalize", folder_.path("state.nc"), "--device", "cpu", "--weights", bad}, kData,
               {"error: " + bad + " holds a NaN or infinite value at row 1, column 2"});
}

TEST_F(StateCommands, SaysWhichShardIsWrong) {
  expect_error(accumulate({folder_.path("none-*.npy")}, {y_}, "x.nc"), kData, {"none-*.npy", "no file matches"});
  expect_error({"analyze", "--device", "cpu", "--features", x_, "--labels", folder_.path("none-?.npy")}, kData,
               {"none-?.npy", "no file matches"});
  expect_error(accumulate(shards_, {shard_labels_[0], shard_labels_[1]}, "x.nc"), kData,
               {"5 file(s) of features", "2 of labels", "one for all"});
  expect_error(accumulate({shards_[0], shards_[0]}, {shard_labels_[0], shard_labels_[0]}, "x.nc"), kData,
               {"shard-1.npy", "twice"});
  auto swapped = shard_labels_;
  std::swap(swapped[2], swapped[3]);
  expect_error(accumulate(shards_, swapped, "x.nc"), kData, {"shard-3.npy has 64 rows", "labels-10.npy has 40 labels"});
  expect_error(accumulate({shards_[0], shards_[1]}, {y_}, "x.nc"), kData,
               {"shard-1.npy and 1 more has 54 rows", "255 labels"});
  expect_error(accumulate({shards_[0], features_file("nothing.npy", {})}, {y_}, "x.nc"), kData,
               {"nothing.npy: holds no samples", "leave it out"});
  const std::string narrow = features_file("narrow.npy", std::vector<float>(10), 5),
                    f64 = folder_.write("f64.npy", npy("<f8", "(1, 6)", bytes_of(std::vector<double>(6))));
  expect_error(accumulate({shards_[0], narrow}, {y_}, "x.nc"), kData,
               {"narrow.npy has 5 columns", "shard-1.npy has 6"});
  expect_error(accumulate({shards_[0], f64}, {y_}, "x.nc"), kData, {"f64.npy holds f64", "shard-1.npy holds f32"});
  std::vector<std::int64_t> labels(64, 1);
  labels[17] = 4;
  labels_file("labels-3.npy", labels);
  expect_error(glob("x.nc"), kData, {"labels-3.npy", "row 17 is 4", "4 classes"});
  expect_error({"analyze", "--device", "cpu", "--classes", "4", "--features", folder_.path("shard-*.npy"), "--labels",
                folder_.path("labels-*.npy")},
               kData, {"labels-3.npy", "row 17 is 4", "4 classes"});
  for (const auto* wrong : {"0", "-5", "x", "s", "0s", "5m"})
    expect_error(glob("x.nc", {std::string("--save-every=") + wrong}), kUsage, {"--save-every"});
  expect_error(glob("x.nc", {"--statistics", "all"}), kUsage, {"means, traces and full"});
}

TEST_F(StateCommands, RefusesBadStates) {
  expect_done(glob("good.nc"));
  const std::string good = folder_.path("good.nc"), out = folder_.path("out.nc"), bytes = read_file(good);
  const auto refused_everywhere = [&](const std::string& bad, const std::vector<std::string>& words) {
    expect_error({"merge", "--device", "cpu", good, bad, "--state", out}, kData, words);
    expect_error({"finalize", "--device", "cpu", bad}, kData, words);
    expect_error(glob(std::filesystem::path(bad).filename().string(), {"--resume"}), kData, words);
  };
  std::string flipped = bytes, other_version = bytes;
  flipped[flipped.size() / 2] ^= 1;
  other_version[8] = 77;
  refused_everywhere(folder_.write("flipped.nc", flipped), {"flipped.nc", "checksum"});
  refused_everywhere(folder_.write("short.nc", bytes.substr(0, bytes.size() - 9)), {"short.nc", "truncated"});
  refused_everywhere(folder_.write("empty.nc", ""), {"empty.nc", "truncated"});
  refused_everywhere(folder_.write("foreign.nc", read_file(x_)), {"foreign.nc", "not an ncollapse state file"});
  refused_everywhere(folder_.write("version.nc", other_version), {"version.nc", "version 77"});
  expect_error({"finalize", "--device", "cpu", folder_.path("none.nc")}, kData, {"none.nc"});
  const std::string long_name(300, 'n');
  expect_error({"merge", "--device", "cpu", good, "--state", folder_.path(long_name)}, kData, {long_name});
  expect_error(glob(long_name), kData, {long_name});
  expect_error({"merge", "--device", "cpu", good, good, "--state", out}, kData, {"good.nc", "twice"});
  expect_error({"merge", "--device", "cpu", good, "--state", good}, kData, {"good.nc", "exists"});
  expect_error({"merge", "--device", "cpu", folder_.path("none*.nc"), "--state", out}, kData, {"no file matches"});
  expect_error({"merge", "--device", "cpu", good, "--state", "-"}, kUsage, {"not standard output"});
  Arguments to_output = glob("-");
  *(std::find(to_output.begin(), to_output.end(), "--state") + 1) = "-";
  expect_error(to_output, kUsage, {"not standard output"});
}

TEST_F(StateCommands, MergesOnlyWhatBelongsTogether) {
  expect_done(glob("good.nc"));
  const std::string good = folder_.path("good.nc"), out = folder_.path("out.nc");
  const auto refused = [&](const std::string& state, const std::vector<std::string>& words) {
    expect_error({"merge", "--device", "cpu", good, folder_.path(state), "--state", out}, kData, words);
  };
  auto classes = glob("classes.nc");
  *(std::find(classes.begin(), classes.end(), "--classes") + 1) = "7";
  expect_done(classes);
  refused("classes.nc", {"classes.nc has K = 7", "good.nc has K = 4"});
  expect_done(accumulate({features_file("narrow.npy", std::vector<float>(10), 5)}, {labels_file("two.npy", {0, 1})},
                         "narrow.nc"));
  refused("narrow.nc", {"narrow.nc has K = 4, d = 5", "d = 6"});
  for (const std::string statistics : {"means", "traces"}) {
    expect_done(glob(statistics + ".nc", {"--statistics", statistics}));
    refused(statistics + ".nc", {"statistics " + statistics, "statistics full"});
    const Json fewer = report({"finalize", "--device", "cpu", folder_.path(statistics + ".nc")});
    EXPECT_EQ(fewer["status"]["nc1_pinv"]["code"], "skipped");
    EXPECT_TRUE(fewer["metrics"]["nc2_etf_h"].is_number());
  }
  expect_error({"finalize", "--device", "cpu", good, "--weights", b_}, kData, {"b.npy"});
  expect_error({"finalize", "--device", "cpu", good, "--bias", b_}, kUsage, {"bias"});
}

}  // namespace
}  // namespace ncollapse::test
