// Trains a network until its features collapse and measures it on the way. Exit codes as of the ncollapse command: 0
// ok, 1 internal, 2 usage, 3 bad input, 4 device or memory, 130 interrupted.
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <exception>
#include <filesystem>
#include <new>
#include <string>
#include <thread>

#include <ncollapse/error.hpp>

#include "ranks.hpp"
#include "training.hpp"

namespace {

using train_mlp::Index;
using train_mlp::Options;

volatile std::sig_atomic_t signalled = 0;

bool interrupted() { return signalled != 0; }

/// The first Ctrl-C ends the run after its epoch, a second one at once.
void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = [](int) { signalled = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

void add_options(CLI::App& app, Options& options, std::string& counts) {
  const CLI::Validator positive(
      [](const std::string& text) {
        double value = 0;
        const bool good = CLI::detail::lexical_cast(text, value) && value > 0 && std::isfinite(value);
        return good ? std::string() : "'" + text + "' is not a positive number";
      },
      "");
  const CLI::Range at_least_one(Index{1}, Index{1} << 40);
  app.add_option("--dataset", options.dataset, "cifar10, mnist, emnist or gaussian (which needs no files)")
      ->required()
      ->check(CLI::IsMember({"cifar10", "mnist", "emnist", "gaussian"}))
      ->type_name("NAME");
  app.add_option("--data", options.data, "Folder with the files")->check(CLI::ExistingDirectory)->type_name("DIR");
  app.add_option("--emnist-split", options.emnist_split, "balanced, letters, digits, byclass, bymerge or mnist")
      ->capture_default_str()
      ->type_name("NAME");
  app.add_option("--gaussian-dim", options.gaussian_dim, "Input dimension of gaussian")
      ->capture_default_str()
      ->check(at_least_one)
      ->type_name("D");
  app.add_option("--counts", counts, "Training samples of every class, separated by commas")
      ->required()
      ->type_name("N1,N2,...");
  app.add_option("--layers", options.layers, "L, linear layers on the features")
      ->capture_default_str()
      ->check(at_least_one)
      ->type_name("L");
  app.add_option("--width", options.width, "Of the hidden layers and of the features")
      ->capture_default_str()
      ->check(at_least_one)
      ->type_name("W");
  app.add_flag("!--no-bias", options.bias, "The last linear layer has no bias");
  app.add_option("--head-scale", options.head_scale, "Times the usual random start of the linear layers")
      ->capture_default_str()
      ->check(positive)
      ->type_name("X");
  app.add_option("--lambda-w", options.lambda_w,
                 "Weight decay of the linear layers: one for all, or one each, W_1 first; default 1e-5")
      ->delimiter(',')
      ->check(positive)
      ->type_name("X");
  app.add_option("--lambda-h", options.lambda_h, "Weight decay of the features")
      ->capture_default_str()
      ->check(positive)
      ->type_name("X");
  app.add_option("--epochs", options.epochs, "Steps of full-batch Adam")
      ->capture_default_str()
      ->check(at_least_one)
      ->type_name("E");
  app.add_option("--lr", options.lr, "Learning rate")->capture_default_str()->check(positive)->type_name("X");
  app.add_option("--decay-at", options.decay_at, "Share of the epochs after which the learning rate is cut; 1: never")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("X");
  app.add_option("--decay-factor", options.decay_factor, "What it is multiplied by then")
      ->capture_default_str()
      ->check(positive)
      ->type_name("X");
  app.add_option("--seed", options.seed, "Of the random start, and of gaussian")->capture_default_str()->type_name("S");
  app.add_option("--device", options.device, "auto, cpu, cuda or cuda:N")->capture_default_str()->type_name("NAME");
  app.add_option("--threads", options.threads, "CPU threads; default: all cores")
      ->check(CLI::Range(1, 4096))
      ->type_name("T");
  app.add_flag(
      "--distributed", options.distributed,
      "Divide the samples among the processes that mpirun started, each with its own GPU or share of the cores");
  app.add_option("--measure-every", options.measure_every, "Epochs between measurements")
      ->capture_default_str()
      ->check(at_least_one)
      ->type_name("N");
  app.add_option("--log", options.log, "JSON lines to write: the run, every measurement, the end")
      ->required()
      ->type_name("FILE");
  app.add_option("--checkpoint", options.checkpoint,
                 "Save the run's state there, to go on after an interrupt or a kill")
      ->type_name("FILE");
  app.add_option("--checkpoint-every", options.checkpoint_every, "Epochs between checkpoints")
      ->capture_default_str()
      ->check(at_least_one)
      ->type_name("N");
  app.add_flag("--resume", options.resume, "Go on where the checkpoint is; from the start without one");
  app.add_option("--dump", options.dump, "Write the final features, labels and weights there, for ncollapse analyze")
      ->type_name("DIR");
  app.add_flag("--quiet", options.quiet, "No progress and no summary");
  app.footer(
      "Examples:\n"
      "  train_mlp --dataset gaussian --counts 50,30,20 --width 32 --epochs 500 --log run.jsonl --dump dump\n"
      "  train_mlp --dataset cifar10 --data cifar-10-batches-bin --counts 500,500,400,400,300,300,200,200,100,100 \\\n"
      "      --layers 3 --checkpoint run.pt --resume --log run.jsonl\n\n"
      "The loss is 1/(2N) |W_L...W_1 H + b - Y|^2 + sum_l lambda_l/2 |W_l|^2 + lambda_H/2 |H|^2 of the features H; "
      "the\n"
      "network that makes them has no weight decay. Adam on all samples at once. Ctrl-C ends a run after its epoch, "
      "with\n"
      "its line, checkpoint and dump written. ncollapse plot draws the log.");
}

std::vector<Index> parse_counts(const std::string& text) {
  std::vector<Index> counts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    Index count = 0;
    const auto [stop, status] = std::from_chars(word.data(), word.data() + word.size(), count);
    if (status != std::errc{} || stop != word.data() + word.size() || count < 1)
      throw ncollapse::UsageError("--counts: '" + word + "' is not a number of samples, at least 1",
                                  "write --counts 500,300,100");
    counts.push_back(count);
    begin = end + 1;
  }
  if (counts.size() < 2) throw ncollapse::UsageError("--counts names one class, at least two are needed");
  return counts;
}

void complete(Options& options, const std::string& counts) {
  options.counts = parse_counts(counts);
  if (options.dataset != "gaussian" && options.data.empty())
    throw ncollapse::UsageError("--data is missing", "name the folder with the files of " + options.dataset);
  const auto layers = static_cast<std::size_t>(options.layers);
  if (options.lambda_w.empty()) options.lambda_w = {1e-5};
  if (options.lambda_w.size() == 1) options.lambda_w.resize(layers, options.lambda_w.front());
  if (options.lambda_w.size() != layers)
    throw ncollapse::UsageError(
        fmt::format("--lambda-w has {} values for {} layer{}", options.lambda_w.size(), layers, layers == 1 ? "" : "s"),
        "give one for all layers, or one for each, W_1 first");
  if (options.resume && options.checkpoint.empty())
    throw ncollapse::UsageError("--resume needs the --checkpoint to go on from");
  if (options.log == options.checkpoint)
    throw ncollapse::UsageError("--log and --checkpoint name the same file, " + options.log, "give each its own");
  for (const auto& path : {options.log, options.checkpoint}) {
    const auto folder = std::filesystem::path(path).parent_path();
    if (!folder.empty() && !std::filesystem::is_directory(folder))
      throw ncollapse::DataError(path + ": the folder " + folder.string() + " does not exist", "create it first");
  }
}

int fail(int code, const std::string& message, const std::string& hint = {}) {
  fmt::print(stderr, "train_mlp: error: {}\n", message);
  if (!hint.empty()) fmt::print(stderr, "  hint: {}\n", hint);
  return code;
}

/// Says what went wrong; returns the exit code.
int report(std::exception_ptr error) {
  try {
    std::rethrow_exception(std::move(error));
  } catch (const ncollapse::Error& failure) {
    return fail(static_cast<int>(failure.kind()), failure.what(), failure.hint());
  } catch (const c10::Error& failure) {
    const std::string message = failure.what_without_backtrace();
    const bool memory =
        message.find("out of memory") != std::string::npos || message.find("can't allocate") != std::string::npos;
    return fail(memory ? 4 : 1, message);
  } catch (const std::bad_alloc&) {
    return fail(4, "out of memory");
  } catch (const std::exception& failure) {
    return fail(1, failure.what());
  }
}

int run(int argc, char** argv) {
  Options options;
  std::string counts;
  CLI::App app{
      "Trains a ReLU network with L linear layers on its features until they collapse, and measures it on the way.",
      "train_mlp"};
  app.get_formatter()->column_width(34);
  add_options(app, options, counts);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    throw ncollapse::UsageError(error.what(), "see: train_mlp --help");
  }
  complete(options, counts);
  catch_interrupts();
  const train_mlp::Ranks ranks(options.distributed);
  if (options.threads == 0) {
    const auto cores = static_cast<int>(std::thread::hardware_concurrency());
    options.threads = std::max(1, cores / ranks.local_size());
  }
  try {
    if (train_mlp::train(options, ranks, interrupted)) return 0;
  } catch (...) {
    if (ranks.size() == 1) throw;
    if (ranks.rank() > 0) {  // what all have in common the first rank says, and mpirun ends the others by SIGTERM
      std::signal(SIGTERM, SIG_DFL);
      if (!interrupted()) std::this_thread::sleep_for(std::chrono::seconds(2));
    }
    ranks.abort(report(std::current_exception()));
  }
  return ranks.rank() > 0 ? 130 : fail(130, "interrupted", options.checkpoint.empty() ? "" : "go on with --resume");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (...) {
    return report(std::current_exception());
  }
}
