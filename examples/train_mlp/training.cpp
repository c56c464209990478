#include "training.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>

#include <ncollapse/ncollapse.hpp>
#include <ncollapse/torch.hpp>

#include "datasets.hpp"
#include "dump.hpp"
#include "network.hpp"
#include "progress.hpp"
#include "run_log.hpp"

namespace train_mlp {

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kCheckpointFormat = "train_mlp.checkpoint/1";

torch::Device parse_device(const std::string& text, const Ranks& ranks) {
  const ncollapse::Device device = ncollapse::Device::parse(text);
  if (text == "auto" && !torch::cuda::is_available()) return torch::kCPU;
  if (device.type == ncollapse::DeviceType::cpu) return torch::kCPU;
  if (device.index >= static_cast<int>(torch::cuda::device_count()))
    throw ncollapse::DeviceError(
        "--device " + text + ": this LibTorch sees " + std::to_string(torch::cuda::device_count()) + " GPU(s)",
        "a LibTorch built for CUDA and a GPU are needed; --device cpu needs neither");
  const bool named = text.find(':') != std::string::npos;
  const int index = named ? device.index : ranks.local_rank() % static_cast<int>(torch::cuda::device_count());
  return torch::Device(torch::kCUDA, static_cast<torch::DeviceIndex>(index));
}

/// This rank's part of rows in a tensor.
torch::Tensor part_of(const torch::Tensor& whole, const Ranks& ranks) {
  const auto begin = [&](int rank) { return whole.size(0) * rank / ranks.size(); };
  return whole.slice(0, begin(ranks.rank()), begin(ranks.rank() + 1)).clone();
}

torch::Tensor inputs_of(Samples& samples, const Ranks& ranks) {
  return part_of(torch::from_blob(samples.values.data(), {samples.rows, samples.dim}, torch::kFloat), ranks);
}

torch::Tensor labels_of(Samples& samples, const Ranks& ranks) {
  return part_of(torch::from_blob(samples.labels.data(), {samples.rows}, torch::kLong), ranks);
}

/// A file is replaced once the new one is complete.
template <class Write>
void replace_file(const std::string& path, const Write& write) {
  const std::string temporary = path + ".new";
  std::error_code status;
  try {
    write(temporary);
  } catch (const c10::Error&) {
    throw ncollapse::DataError(temporary + ": cannot be written");
  }
  std::filesystem::rename(temporary, path, status);
  if (status) throw ncollapse::DataError(path + ": cannot be replaced: " + status.message());
}

void use_threads(int threads) {
  torch::set_num_threads(threads);
  // Some LibTorch, Debian's for one, multiplies by OpenBLAS, whose own threads the call above does not reach.
  if (void* const set = dlsym(RTLD_DEFAULT, "openblas_set_num_threads")) reinterpret_cast<void (*)(int)>(set)(threads);
}

class Training {
 public:
  /// Reads data and checkpoint, and begins the log.
  Training(const Options& options, const Ranks& ranks);

  bool run(bool (*interrupted)());

  /// The command that measures the dump once more.
  std::string analyze_command() const;

 private:
  Json header() const;
  void measure(const torch::Tensor& features, const torch::Tensor& test_features, double loss);
  void set_learning_rate();
  void sum_gradients();
  bool first() const { return ranks_.rank() == 0; }  ///< the rank that writes
  bool load_checkpoint();
  void save_checkpoint() const;
  void dump(const torch::Tensor& features);

  Options options_;
  const Ranks& ranks_;
  torch::Device device_;
  torch::Tensor inputs_, labels_, targets_, test_inputs_, test_labels_;
  std::shared_ptr<Network> network_;
  std::unique_ptr<torch::optim::Adam> adam_;
  std::optional<ncollapse::Context> context_;
  ncollapse::UfmPrediction prediction_;
  Index test_samples_ = 0;               ///< of all ranks
  std::optional<RunLog> log_;            ///< of the first rank
  std::optional<Progress::State> last_;  ///< measured by this process
  Index epoch_ = 0, rank_ = 0;
  struct Seconds {
    double train = 0;
    double test = 0;     ///< forward passes of the test samples
    double measure = 0;  ///< in ncollapse, and writing the log
  } seconds_;
};

Training::Training(const Options& options, const Ranks& ranks)
    : options_(options), ranks_(ranks), device_(parse_device(options.device, ranks)) {
  Dataset data = load_dataset(options_);
  if (data.train.rows < ranks.size())
    throw ncollapse::UsageError(fmt::format("{} samples for {} processes", data.train.rows, ranks.size()));
  const auto classes = static_cast<Index>(options_.counts.size());
  inputs_ = inputs_of(data.train, ranks).to(device_);
  labels_ = labels_of(data.train, ranks).to(device_);
  targets_ = torch::zeros({inputs_.size(0), classes}, inputs_.options()).scatter_(1, labels_.unsqueeze(1), 1.0);
  test_inputs_ = inputs_of(data.test, ranks).to(device_);
  test_labels_ = labels_of(data.test, ranks).to(device_);
  test_samples_ = data.test.rows;
  context_ = ncollapse::context_for(inputs_, options_.threads);

  torch::manual_seed(options_.seed);
  network_ = std::make_shared<Network>(data.train.dim, classes, options_);
  network_->to(device_);
  adam_ = std::make_unique<torch::optim::Adam>(network_->parameters(), torch::optim::AdamOptions(options_.lr));

  prediction_ =
      ncollapse::predict({options_.counts, options_.lambda_w, options_.lambda_h, options_.bias, options_.width});
  for (const auto& direction : prediction_.directions) rank_ += direction.surviving;

  const bool resumed = load_checkpoint();
  Index epochs = epoch_;
  ranks.communicator().sum(&epochs, 1);
  if (epochs != epoch_ * ranks.size())
    throw ncollapse::DataError(options_.checkpoint + ": is not the same for all processes",
                               "put it where all of them can read it");
  if (!first()) return;
  log_ = resumed ? RunLog::resume(options_.log, header(), epoch_) : RunLog::begin(options_.log, header());
}

Json Training::header() const {
  const ncollapse::DeviceInfo& device = context_->info();
  Json json;
  json["schema"] = "ncollapse.run/1";
  json["tool"] = {{"name", "train_mlp"}, {"version", ncollapse::version()}, {"torch", TORCH_VERSION}};
  json["device"] = {{"type", device.device.type == ncollapse::DeviceType::cpu ? "cpu" : "cuda"},
                    {"index", device.device.index},
                    {"name", device.name},
                    {"capability", device.capability},
                    {"threads", device.threads},
                    {"processes", ranks_.size()},
                    {"memory_bytes", device.memory_bytes}};
  json["model"] = {{"K", prediction_.classes},          {"N", prediction_.samples},
                   {"layers", options_.layers},         {"lambda_w", options_.lambda_w},
                   {"lambda_h", options_.lambda_h},     {"with_bias", options_.bias},
                   {"width", options_.width},           {"backbone_layers", Network::kBackboneLayers},
                   {"head_scale", options_.head_scale}, {"counts", options_.counts}};
  json["dataset"] = {{"name", options_.dataset},
                     {"split", options_.dataset == "emnist" ? Json(options_.emnist_split) : Json(nullptr)},
                     {"input_dim", inputs_.size(1)},
                     {"test_samples", test_samples_}};
  json["optimizer"] = {{"name", "adam"},
                       {"batch", "full"},
                       {"epochs", options_.epochs},
                       {"lr", options_.lr},
                       {"decay_at", options_.decay_at},
                       {"decay_factor", options_.decay_factor},
                       {"seed", options_.seed},
                       {"measure_every", options_.measure_every}};
  json["prediction"] = {{"minimum", prediction_.minimum}, {"rank", rank_}};
  return json;
}

void Training::set_learning_rate() {
  const bool decayed = static_cast<double>(epoch_) >= options_.decay_at * static_cast<double>(options_.epochs);
  const double lr = options_.lr * (decayed ? options_.decay_factor : 1.0);
  for (auto& group : adam_->param_groups()) static_cast<torch::optim::AdamOptions&>(group.options()).lr(lr);
}

/// In double and in the order of ranks, so that all ranks take the same step.
void Training::sum_gradients() {
  if (ranks_.size() == 1) return;
  std::vector<torch::Tensor> parts;
  for (const auto& parameter : network_->parameters()) parts.push_back(parameter.grad().reshape(-1));
  torch::Tensor all = torch::cat(parts).to(torch::kCPU, torch::kDouble);
  ranks_.communicator().sum(all.data_ptr<double>(), all.numel());
  all = all.to(inputs_.options());
  Index at = 0;
  for (const auto& parameter : network_->parameters()) {
    parameter.grad().copy_(all.narrow(0, at, parameter.numel()).view_as(parameter));
    at += parameter.numel();
  }
}

void Training::measure(const torch::Tensor& features, const torch::Tensor& test_features, double loss) {
  if (!std::isfinite(loss))
    throw ncollapse::DataError(fmt::format("training diverged: the loss after {} epochs is {}", epoch_, loss),
                               "try a smaller --lr");
  ncollapse::Classifier head;
  for (const auto& weight : network_->layers()) head.layers.push_back(ncollapse::view(weight));
  if (network_->bias().defined()) head.bias = ncollapse::view(network_->bias());

  ncollapse::Accumulator accumulator(*context_, {.classes = prediction_.classes, .dim = options_.width});
  accumulator.add(ncollapse::view(features), ncollapse::label_view(labels_));
  accumulator.reduce(ranks_.communicator());
  const ncollapse::ClassMoments moments = accumulator.finish();
  const auto decide = [&](const torch::Tensor& samples, const torch::Tensor& labels) {
    ncollapse::DecisionCounter counter(moments, &head);
    counter.add(ncollapse::view(samples), ncollapse::label_view(labels));
    counter.reduce(ranks_.communicator());
    return counter.finish();
  };
  const ncollapse::DecisionCounts train = decide(features, labels_);
  const ncollapse::DecisionCounts test = decide(test_features, test_labels_);
  if (!first()) return;
  const ncollapse::Report report = ncollapse::measure(moments, {.classifier = &head,
                                                                .train = &train,
                                                                .test = &test,
                                                                .lambda_w = options_.lambda_w,
                                                                .lambda_h = options_.lambda_h});
  Json json = Json::parse(ncollapse::to_json(report));
  last_ = Progress::State{loss, loss - prediction_.minimum, report.at("acc_top1_train")};
  Json line = {
      {"type", "step"}, {"epoch", epoch_}, {"loss", loss}, {"minimum", prediction_.minimum}, {"gap", last_->gap}};
  for (const auto* part : {"metrics", "status", "per_class", "spectrum", "block_cos_h", "block_cos_w"})
    if (json.contains(part)) line[part] = std::move(json[part]);
  log_->write(line);
}

bool Training::run(bool (*interrupted)()) {
  Progress progress(options_.quiet || !first(), epoch_, options_.epochs);
  auto start = Clock::now();
  const auto lap = [&] {  // seconds since the last lap
    if (device_.is_cuda()) torch::cuda::synchronize(device_.index());
    const auto now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - start).count();
    start = now;
    return seconds;
  };
  for (;;) {
    Index signalled = interrupted();
    ranks_.communicator().sum(&signalled, 1);  // all stop when one is told to
    const bool stop = signalled > 0 && epoch_ < options_.epochs;
    const bool last = stop || epoch_ == options_.epochs;
    const torch::Tensor features = network_->features(inputs_);
    const torch::Tensor loss = network_->loss(features, targets_, prediction_.samples, ranks_.size());
    if (last || epoch_ % options_.measure_every == 0) {
      const torch::NoGradGuard no_gradients;
      auto value = loss.item<double>();
      ranks_.communicator().sum(&value, 1);
      seconds_.train += lap();
      const torch::Tensor test_features = network_->features(test_inputs_);
      seconds_.test += lap();
      measure(features, test_features, value);
      seconds_.measure += lap();
    }
    progress.update(epoch_, last_);
    if (last) {
      progress.clear();
      if (first() && !options_.checkpoint.empty()) save_checkpoint();
      if (!options_.dump.empty()) dump(features);
      if (!first()) return !stop;
      log_->write({{"type", "end"},
                   {"reason", stop ? "interrupted" : "epochs"},
                   {"epoch", epoch_},
                   {"loss", last_->loss},
                   {"gap", last_->gap},
                   {"train_seconds", seconds_.train},
                   {"test_seconds", seconds_.test},
                   {"measure_seconds", seconds_.measure}});
      if (!options_.quiet)
        fmt::print(
            "{} epochs, loss {:.8g}, predicted minimum {:.8g}, training accuracy {:.4f}\n"
            "{:.1f} s training, {:.1f} s test samples ({:.1f} %), {:.1f} s measuring ({:.1f} %)\nlog written to {}\n",
            epoch_, last_->loss, prediction_.minimum, last_->accuracy, seconds_.train, seconds_.test,
            100 * seconds_.test / seconds_.train, seconds_.measure, 100 * seconds_.measure / seconds_.train,
            options_.log);
      return !stop;
    }
    adam_->zero_grad();
    loss.backward();
    sum_gradients();
    set_learning_rate();
    adam_->step();
    ++epoch_;
    if (first() && !options_.checkpoint.empty() && epoch_ % options_.checkpoint_every == 0) save_checkpoint();
  }
}

// --- checkpoints

void Training::save_checkpoint() const {
  replace_file(options_.checkpoint, [&](const std::string& path) {
    torch::serialize::OutputArchive archive, network, adam;
    const Json head = header();
    archive.write("format", c10::IValue(kCheckpointFormat));
    archive.write(
        "settings",
        c10::IValue(
            Json{{"model", head["model"]}, {"dataset", head["dataset"]}, {"optimizer", head["optimizer"]}}.dump()));
    archive.write("epoch", c10::IValue(epoch_));
    archive.write("seconds", c10::IValue(std::vector<double>{seconds_.train, seconds_.test, seconds_.measure}));
    network_->save(network);
    archive.write("network", network);
    adam_->save(adam);
    archive.write("adam", adam);
    archive.save_to(path);
  });
}

bool Training::load_checkpoint() {
  const std::string& path = options_.checkpoint;
  if (path.empty() || !std::filesystem::exists(path)) return false;
  if (!options_.resume)
    throw ncollapse::DataError(path + ": the checkpoint exists already",
                               "go on with it by --resume, or remove it to begin anew");
  torch::serialize::InputArchive archive, network, adam;
  c10::IValue format, settings, epoch, seconds;
  try {
    archive.load_from(path, device_);
    archive.read("format", format);
  } catch (const c10::Error&) {
    throw ncollapse::DataError(path + ": is not a checkpoint of train_mlp, or damaged");
  }
  if (!format.isString() || format.toStringRef() != kCheckpointFormat)
    throw ncollapse::DataError(path + ": is not a checkpoint of this version of train_mlp");
  archive.read("settings", settings);
  const Json was = Json::parse(settings.toStringRef()), now = header();
  for (const auto& part : was.items())
    for (const auto& setting : part.value().items())
      if (const Json& wanted = now[part.key()][setting.key()]; wanted != setting.value())
        throw ncollapse::DataError(fmt::format("{}: is of a run with {} = {}, not {}", path, setting.key(),
                                               setting.value().dump(), wanted.dump()),
                                   "resume with the options that the run was begun with");
  archive.read("epoch", epoch);
  archive.read("seconds", seconds);
  archive.read("network", network);
  network_->load(network);
  archive.read("adam", adam);
  adam_->load(adam);
  epoch_ = epoch.toInt();
  const std::vector<double> past = seconds.toDoubleVector();
  seconds_ = {past.at(0), past.at(1), past.at(2)};
  return true;
}

// --- the dump

void Training::dump(const torch::Tensor& features) {
  const torch::NoGradGuard no_gradients;
  const std::string& folder = options_.dump;
  std::error_code status;
  std::filesystem::create_directories(folder, status);
  if (status) throw ncollapse::DataError(folder + ": cannot be created: " + status.message());
  const std::string part = ranks_.size() > 1 ? fmt::format("-{}-of-{}.npy", ranks_.rank(), ranks_.size()) : ".npy";
  write_npy(folder + "/features" + part, features);
  write_npy(folder + "/labels" + part, labels_);
  write_npy(folder + "/test_features" + part, network_->features(test_inputs_));
  write_npy(folder + "/test_labels" + part, test_labels_);
  if (!first()) return;
  for (std::size_t l = 0; l < network_->layers().size(); ++l)
    write_npy(fmt::format("{}/W{}.npy", folder, l + 1), network_->layers()[l]);
  if (network_->bias().defined()) write_npy(folder + "/bias.npy", network_->bias());
}

std::string Training::analyze_command() const {
  const std::string& folder = options_.dump;
  const std::string part = ranks_.size() > 1 ? fmt::format("-*-of-{}.npy", ranks_.size()) : ".npy";
  std::string text =
      fmt::format("ncollapse analyze --features {0}/features{1} --labels {0}/labels{1} --weights", folder, part);
  for (Index l = 1; l <= options_.layers; ++l) text += fmt::format(" {}/W{}.npy", folder, l);
  if (options_.bias) text += fmt::format(" --bias {}/bias.npy", folder);
  text +=
      fmt::format(" --test-features {0}/test_features{1} --test-labels {0}/test_labels{1} --lambda-w", folder, part);
  for (const double lambda : options_.lambda_w) text += fmt::format(" {}", lambda);
  return text + fmt::format(" --lambda-h {} --device {}", options_.lambda_h,
                            device_.is_cuda() ? "cuda:" + std::to_string(device_.index())
                                              : "cpu --threads " + std::to_string(options_.threads));
}

}  // namespace

bool train(const Options& options, const Ranks& ranks, bool (*interrupted)()) {
  use_threads(options.threads);
  Training training(options, ranks);
  const bool complete = training.run(interrupted);
  if (!options.dump.empty() && !options.quiet && ranks.rank() == 0)
    fmt::print("measure the dump again:\n  {}\n", training.analyze_command());
  return complete;
}

}  // namespace train_mlp
