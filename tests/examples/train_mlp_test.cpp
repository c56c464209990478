// The program train_mlp, run as a user does.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "ncollapse/context.hpp"
#include "tests/cli/run_command.hpp"

namespace {

using ncollapse::test::Outcome;
using ncollapse::test::read_file;
using ncollapse::test::RunningCommand;
using ncollapse::test::TemporaryDirectory;
using Json = nlohmann::ordered_json;
using Arguments = std::vector<std::string>;

const Arguments kSmall = {"--dataset",      "gaussian", "--counts",   "40,20,10", "--width",   "16",
                          "--gaussian-dim", "24",       "--layers",   "2",        "--threads", "1",
                          "--lambda-w",     "1e-3",     "--lambda-h", "2e-3",     "--lr",      "3e-3"};

bool is_option(const std::string& word) { return word.starts_with("--"); }

/// Options on the right take the place of the same ones on the left.
Arguments operator+(const Arguments& left, const Arguments& right) {
  Arguments all;
  bool keep = true;
  for (const std::string& word : left) {
    if (is_option(word)) keep = std::find(right.begin(), right.end(), word) == right.end();
    if (keep) all.push_back(word);
  }
  all.insert(all.end(), right.begin(), right.end());
  return all;
}

Outcome train(const Arguments& arguments) { return RunningCommand(arguments, 0, TRAIN_MLP).wait(); }

std::vector<Json> read_log(const std::string& path) {
  std::vector<Json> lines;
  std::istringstream text(read_file(path));
  for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
  return lines;
}

TEST(TrainMlp, LogsARun) {
  const TemporaryDirectory folder;
  const Outcome run =
      train(kSmall + Arguments{"--epochs", "45", "--measure-every", "10", "--log", folder.path("run.jsonl")});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const std::vector<Json> log = read_log(folder.path("run.jsonl"));
  ASSERT_EQ(log.size(), 8U);  // the run, epochs 0 to 40, 45, the end
  const Json& header = log.front();
  EXPECT_EQ(header["schema"], "ncollapse.run/1");
  EXPECT_EQ(header["model"]["K"], 3);
  EXPECT_EQ(header["model"]["N"], 70);
  EXPECT_EQ(header["model"]["layers"], 2);
  EXPECT_EQ(header["model"]["lambda_w"], (std::vector<double>{1e-3, 1e-3}));
  EXPECT_EQ(header["model"]["counts"], (std::vector<int>{40, 20, 10}));
  const double minimum = header["prediction"]["minimum"];
  EXPECT_GT(minimum, 0);
  const std::vector<int> epochs = {0, 10, 20, 30, 40, 45};
  for (std::size_t i = 0; i < epochs.size(); ++i) {
    const Json& step = log[i + 1];
    EXPECT_EQ(step["type"], "step");
    EXPECT_EQ(step["epoch"], epochs[i]);
    EXPECT_EQ(step["minimum"], minimum);
    EXPECT_EQ(step["gap"], step["loss"].get<double>() - minimum);
    EXPECT_GE(step["loss"].get<double>(), minimum);
    for (const auto* key :
         {"nc1_pinv", "nc1_trace_ratio", "nc2_etf_h", "nc2_of_w", "nc3_dual", "nc4_agree_train", "nc4_agree_test",
          "acc_top1_train", "acc_top1_test", "ufmb_w", "ufmb_h", "ufmb_wh", "ufm_loss", "nc_bias_prior"})
      EXPECT_TRUE(step["metrics"].contains(key)) << key;
    // The network's own loss in single precision, and the library's of the same features and layers in double.
    EXPECT_NEAR(step["loss"].get<double>(), step["metrics"]["ufm_loss"].get<double>(),
                1e-5 * step["loss"].get<double>());
    EXPECT_EQ(step["spectrum"].size(), 3U);
    EXPECT_EQ(step["per_class"]["counts"], (std::vector<int>{40, 20, 10}));
  }
  EXPECT_LT(log[6]["loss"].get<double>(), 0.7 * log[1]["loss"].get<double>());
  const Json& end = log.back();
  EXPECT_EQ(end["type"], "end");
  EXPECT_EQ(end["reason"], "epochs");
  EXPECT_EQ(end["epoch"], 45);
  EXPECT_GT(end["train_seconds"].get<double>(), 0);
  EXPECT_GT(end["measure_seconds"].get<double>(), 0);
}

TEST(TrainMlp, GoesDownToThePredictedMinimum) {
  const TemporaryDirectory folder;
  const Outcome run =
      train({"--dataset",       "gaussian", "--counts",   "12,8,4", "--width",    "16",
             "--gaussian-dim",  "24",       "--threads",  "1",      "--lambda-w", "1e-2",
             "--lambda-h",      "1e-2",     "--epochs",   "2000",   "--lr",       "3e-3",
             "--measure-every", "1000",     "--decay-at", "0.7",    "--log",      folder.path("run.jsonl")});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json last = read_log(folder.path("run.jsonl"))[3];
  EXPECT_EQ(last["epoch"], 2000);
  EXPECT_LT(last["gap"].get<double>(), 1e-3 * last["minimum"].get<double>());
  for (const auto* key : {"ufmb_w", "ufmb_h", "ufmb_wh", "nc1_pinv", "nc_bias_prior"})
    EXPECT_LT(last["metrics"][key].get<double>(), 1e-2) << key;
  EXPECT_EQ(last["metrics"]["acc_top1_train"], 1.0);
}

// The printed command, with the installed ncollapse in place of the one on PATH.
Json analyse(const std::string& printed) {
  const auto begin = printed.find("ncollapse analyze");
  if (begin == std::string::npos) return {};
  std::istringstream words(printed.substr(begin, printed.find('\n', begin) - begin));
  Arguments arguments;
  for (std::string word; words >> word;) arguments.push_back(word);
  arguments.erase(arguments.begin());
  const Outcome outcome = ncollapse::test::run_command(arguments + Arguments{"--threads", "1", "--json", "-"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  return Json::parse(outcome.out, nullptr, false);
}

TEST(TrainMlp, TheDumpGivesTheLastLineAgain) {
  // On a CPU that OpenBLAS does not know the command would take other kernels than the program: both take these.
  if (const std::string kernels = ncollapse::better_blas_kernels(); !kernels.empty())
    setenv("OPENBLAS_CORETYPE", kernels.c_str(), 1);
  const std::vector<Arguments> variants = {
      {"--layers", "1"}, {"--layers", "3", "--lambda-w", "1e-3,2e-3", "5e-4"}, {"--no-bias"}};
  for (const Arguments& variant : variants) {
    const TemporaryDirectory folder;
    const Outcome run = train(Arguments{"--dataset", "gaussian", "--counts", "40,20,10", "--width", "16",
                                        "--gaussian-dim", "24", "--threads", "1", "--epochs", "30", "--log",
                                        folder.path("run.jsonl"), "--dump", folder.path("dump")} +
                              variant);
    ASSERT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(std::filesystem::exists(folder.path("dump/bias.npy")), variant[0] != "--no-bias");
    const Json report = analyse(run.out);
    ASSERT_TRUE(report.is_object()) << run.out;
    const auto log = read_log(folder.path("run.jsonl"));
    const Json& step = log[log.size() - 2];
    ASSERT_EQ(step["epoch"], 30);
    ASSERT_GT(step["metrics"].size(), 60U);
    EXPECT_TRUE(step["metrics"].contains(variant[0] == "--no-bias" ? "gof_w" : "ufmb_w"));
    ASSERT_EQ(report["metrics"].size(), step["metrics"].size());
    for (const auto& metric : step["metrics"].items()) {
      const Json& again = report["metrics"][metric.key()];
      if (metric.value().is_null()) {
        EXPECT_TRUE(again.is_null()) << metric.key();
        continue;
      }
      const double want = metric.value();
      EXPECT_NEAR(again.get<double>(), want, 1e-12 * std::abs(want)) << metric.key();
    }
    EXPECT_EQ(report["per_class"], step["per_class"]);
  }
}

// mpirun is Open MPI's here, on one machine with fewer cores than processes.
Outcome train_on(int processes, const Arguments& arguments, const std::string& script = "exec \"$@\"") {
  for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
                           "OMPI_MCA_rmaps_base_oversubscribe", "OMPI_MCA_mpi_yield_when_idle"})
    setenv(name, "1", 1);
  setenv("OMPI_MCA_hwloc_base_binding_policy", "none", 1);
  setenv("OMPI_MCA_pml", "ob1", 1);  // looking for faster networks takes longer than the runs
  setenv("OMPI_MCA_osc", "^ucx", 1);
  Arguments all{"-n", std::to_string(processes), "bash", "-c", script, "bash", TRAIN_MLP, "--distributed"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return RunningCommand(all, 0, MPIEXEC).wait();
}

TEST(TrainMlp, ProcessesTrainTheSameNetworkTogether) {
  if (std::string(MPIEXEC).empty()) GTEST_SKIP() << "no MPI here (Debian: libopenmpi-dev, openmpi-bin)";
  const TemporaryDirectory folder;
  const Arguments settings = kSmall + Arguments{"--epochs", "40", "--measure-every", "20"};
  ASSERT_EQ(train(settings + Arguments{"--log", folder.path("alone.jsonl")}).exit_code, 0);
  const std::vector<Json> alone = read_log(folder.path("alone.jsonl"));
  for (const int processes : {2, 3}) {  // 70 samples in classes: with 2 the second class is cut
    const std::string name = folder.path("of" + std::to_string(processes));
    const Outcome run = train_on(
        processes, settings + Arguments{"--log", name + ".jsonl", "--dump", name, "--checkpoint", name + ".pt"});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const std::vector<Json> log = read_log(name + ".jsonl");
    EXPECT_EQ(log.front()["device"]["processes"], processes);
    ASSERT_EQ(log.size(), alone.size());
    for (std::size_t i = 1; i + 1 < log.size(); ++i) {
      EXPECT_EQ(log[i]["epoch"], alone[i]["epoch"]);
      EXPECT_EQ(log[i]["per_class"]["counts"], (std::vector<int>{40, 20, 10}));
      const double want = alone[i]["loss"];  // gradients are summed in another order, in single precision
      EXPECT_NEAR(log[i]["loss"].get<double>(), want, 1e-4 * want) << i;
      for (const auto* key : {"nc1_pinv", "nc2_etf_h", "ufmb_w", "acc_top1_train", "acc_top1_test"}) {
        const double metric = alone[i]["metrics"][key];
        EXPECT_NEAR(log[i]["metrics"][key].get<double>(), metric, 2e-3 * metric) << key << " in step " << i;
      }
    }
    // What all processes saw is what their parts of the dump hold.
    const Json report = analyse(run.out);
    ASSERT_TRUE(report.is_object()) << run.out;
    const Json& last = log[log.size() - 2]["metrics"];
    ASSERT_EQ(report["metrics"].size(), last.size());
    for (const auto& metric : last.items()) {
      if (metric.value().is_null()) continue;
      EXPECT_NEAR(report["metrics"][metric.key()].get<double>(), metric.value().get<double>(),
                  1e-9 * std::abs(metric.value().get<double>()) + 1e-12)
          << metric.key();
    }
    // One process goes on from the checkpoint of many.
    const Outcome resumed = train(
        settings + Arguments{"--epochs", "40", "--log", name + ".jsonl", "--checkpoint", name + ".pt", "--resume"});
    EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  }
  // A signal to one process ends all of them after the same epoch, with everything written.
  const std::string cut = folder.path("cut");
  const Outcome stopped =
      train_on(2, kSmall + Arguments{"--epochs", "100000", "--log", cut + ".jsonl", "--checkpoint", cut + ".pt"},
               "[ $OMPI_COMM_WORLD_RANK != 1 ] || (sleep 2; kill -TERM $$) & exec \"$@\"");
  EXPECT_NE(stopped.exit_code, 0);
  EXPECT_NE(stopped.err.find("go on with --resume"), std::string::npos) << stopped.err;
  const std::vector<Json> lines = read_log(cut + ".jsonl");
  EXPECT_EQ(lines.back()["reason"], "interrupted");
  EXPECT_EQ(lines[lines.size() - 2]["epoch"], lines.back()["epoch"]);

  const Outcome failed = train_on(2, Arguments{"--dataset", "cifar10", "--data", folder.path("."), "--counts", "5,5",
                                               "--log", folder.path("none.jsonl")});
  EXPECT_EQ(failed.exit_code, 3) << failed.err;
  const auto first = failed.err.find("train_mlp: error");
  EXPECT_NE(first, std::string::npos) << failed.err;
  EXPECT_EQ(failed.err.find("train_mlp: error", first + 1), std::string::npos) << "said twice: " << failed.err;
}

std::string without_times(const std::string& path) {
  std::string text;
  for (Json line : read_log(path)) {
    for (const auto* key : {"train_seconds", "test_seconds", "measure_seconds"}) line.erase(key);
    text += line.dump() + "\n";
  }
  return text;
}

// Waits until the log has that many lines.
void wait_for_lines(const std::string& path, long lines) {
  for (int i = 0; i < 6000; ++i) {
    const std::string text = read_file(path);
    if (std::count(text.begin(), text.end(), '\n') >= lines) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  FAIL() << path << " did not grow";
}

TEST(TrainMlp, AResumedRunEqualsAnUninterruptedOne) {
  const TemporaryDirectory folder;
  const Arguments settings = kSmall + Arguments{"--epochs", "1503", "--measure-every", "20"};
  const Outcome whole =
      train(settings + Arguments{"--log", folder.path("whole.jsonl"), "--dump", folder.path("whole")});
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  for (const int signal : {SIGINT, SIGTERM, SIGKILL}) {
    const std::string name = "cut" + std::to_string(signal), log = folder.path(name + ".jsonl");
    const Arguments arguments = settings + Arguments{"--log",
                                                     log,
                                                     "--dump",
                                                     folder.path(name),
                                                     "--checkpoint",
                                                     folder.path(name + ".pt"),
                                                     "--checkpoint-every",
                                                     "70",
                                                     "--resume"};
    RunningCommand first(arguments, 0, TRAIN_MLP);
    wait_for_lines(log, 8);
    first.signal(signal);
    const Outcome cut = first.wait();
    if (signal == SIGKILL) {
      ASSERT_EQ(cut.exit_code, -SIGKILL);
    } else {
      ASSERT_EQ(cut.exit_code, 130) << cut.err;
      EXPECT_NE(cut.err.find("go on with --resume"), std::string::npos) << cut.err;
      const std::vector<Json> lines = read_log(log);
      EXPECT_EQ(lines.back()["reason"], "interrupted");
      ASSERT_LT(lines.back()["epoch"], 1503);
      EXPECT_EQ(lines[lines.size() - 2]["epoch"], lines.back()["epoch"]);
    }
    const Outcome rest = train(arguments);
    ASSERT_EQ(rest.exit_code, 0) << rest.err;
    EXPECT_EQ(without_times(log), without_times(folder.path("whole.jsonl")));
    for (const auto* file : {"features.npy", "test_features.npy", "labels.npy", "W1.npy", "W2.npy", "bias.npy"})
      EXPECT_EQ(read_file(folder.path(name + "/" + file)), read_file(folder.path("whole/" + std::string(file))))
          << file;
    // Once more: it is complete, and stays as it is.
    ASSERT_EQ(train(arguments).exit_code, 0);
    EXPECT_EQ(without_times(log), without_times(folder.path("whole.jsonl")));
  }
}

TEST(TrainMlp, WhatCannotBeResumedSaysWhy) {
  const TemporaryDirectory folder;
  const std::string log = folder.path("run.jsonl"), checkpoint = folder.path("run.pt");
  const Arguments run = kSmall + Arguments{"--epochs", "20", "--log", log, "--checkpoint", checkpoint};
  ASSERT_EQ(train(run).exit_code, 0);
  const std::string before = read_file(log), state = read_file(checkpoint);
  const auto expect = [&](const Arguments& arguments, const std::string& text) {
    const Outcome outcome = train(arguments);
    EXPECT_EQ(outcome.exit_code, 3) << outcome.err;
    EXPECT_NE(outcome.err.find(text), std::string::npos) << outcome.err;
    EXPECT_EQ(read_file(log), before);
    EXPECT_EQ(read_file(checkpoint), state);
  };
  expect(run, "exists already");
  expect(run + Arguments{"--resume", "--lr", "0.5"}, "is of a run with lr = 0.003, not 0.5");
  expect(run + Arguments{"--resume", "--counts", "40,20,11"}, "is of a run with N = 70, not 71");
  expect(run + Arguments{"--resume", "--width", "17"}, "is of a run with width = 16, not 17");
  expect(run + Arguments{"--resume", "--log", folder.path("other.jsonl")}, "missing or empty");
  folder.write("other.jsonl", "{\"schema\":\"ncollapse.run/1\"}\n");
  expect(run + Arguments{"--resume", "--log", folder.path("other.jsonl")}, "the log of another run");
  folder.write("other.pt", "no checkpoint");
  expect(run + Arguments{"--resume", "--checkpoint", folder.path("other.pt")}, "is not a checkpoint of train_mlp");
  folder.write("short.pt", state.substr(0, state.size() / 2));
  expect(run + Arguments{"--resume", "--checkpoint", folder.path("short.pt")}, "is not a checkpoint of train_mlp");
}

TEST(TrainMlp, WrongArguments) {
  const TemporaryDirectory folder;
  const Arguments log = {"--log", folder.path("run.jsonl")};
  const auto expect = [&](int code, const Arguments& arguments, const std::string& text) {
    const Outcome outcome = train(arguments);
    EXPECT_EQ(outcome.exit_code, code) << outcome.err;
    EXPECT_NE(outcome.err.find(text), std::string::npos) << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(folder.path("run.jsonl")));
  };
  expect(2, {}, "--dataset");
  expect(2, kSmall, "--log");
  expect(2, kSmall + log + Arguments{"--epochs", "0"}, "--epochs");
  expect(2, kSmall + log + Arguments{"--lr", "-1"}, "--lr: '-1' is not a positive number");
  expect(2, kSmall + log + Arguments{"--lr", "inf"}, "--lr: 'inf' is not a positive number");
  expect(2, kSmall + log + Arguments{"--lambda-w", "0"}, "--lambda-w");
  expect(2, kSmall + log + Arguments{"--lambda-w", "1e-3", "1e-3", "1e-3"}, "--lambda-w has 3 values for 2 layers");
  expect(2, kSmall + log + Arguments{"--counts", "5"}, "at least two");
  expect(2, kSmall + log + Arguments{"--counts", "5,x"}, "'x' is not a number of samples");
  expect(2, kSmall + log + Arguments{"--counts", "5,0"}, "'0' is not a number of samples");
  expect(2, kSmall + log + Arguments{"--dataset", "imagenet"}, "imagenet");
  expect(2, kSmall + log + Arguments{"--resume"}, "--checkpoint");
  expect(2, kSmall + log + Arguments{"--checkpoint", folder.path("run.jsonl")}, "the same file");
  expect(2, kSmall + log + Arguments{"--device", "gpu"}, "gpu");
  expect(2, kSmall + log + Arguments{"--dataset", "cifar10"}, "--data is missing");
  expect(2, kSmall + log + Arguments{"--dataset", "cifar10", "--data", folder.path("nowhere")}, "nowhere");
  expect(3, kSmall + log + Arguments{"--dataset", "cifar10", "--data", folder.path("")}, "data_batch_1.bin");
  expect(3, kSmall + Arguments{"--log", folder.path("no/run.jsonl")}, "does not exist");
  expect(4, kSmall + log + Arguments{"--device", "cuda:99"}, "cuda:99");
}

TEST(TrainMlp, DivergenceIsAnError) {
  const TemporaryDirectory folder;
  const Outcome outcome =
      train(kSmall + Arguments{"--epochs", "30", "--lr", "1e30", "--log", folder.path("run.jsonl")});
  EXPECT_EQ(outcome.exit_code, 3) << outcome.err;
  EXPECT_NE(outcome.err.find("training diverged"), std::string::npos) << outcome.err;
}

TEST(TrainMlp, RealImages) {
  for (const std::string dataset : {"cifar10", "mnist"}) {
    const std::string data = std::string(SHARED_DATA) + "/" + dataset;
    if (!std::filesystem::is_directory(data)) GTEST_SKIP() << "no real images: " << data << " is absent";
    const TemporaryDirectory folder;
    const Outcome run = train({"--dataset", dataset, "--data", data, "--counts", "50,50,40,40,30,30,20,20,10,10",
                               "--layers", "3", "--width", "64", "--epochs", "30", "--lr", "2e-3", "--measure-every",
                               "30", "--log", folder.path("run.jsonl")});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const auto log = read_log(folder.path("run.jsonl"));
    EXPECT_EQ(log[0]["model"]["N"], 300);
    EXPECT_EQ(log[0]["dataset"]["test_samples"], 2000);
    EXPECT_EQ(log[2]["epoch"], 30);
    EXPECT_LT(log[2]["loss"].get<double>(), 0.8 * log[1]["loss"].get<double>());
  }
}

}  // namespace
