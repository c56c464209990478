// Full-batch training, measured on the way.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ncollapse/ncollapse.hpp>

#include "datasets.hpp"
#include "network.hpp"
#include "progress.hpp"
#include "run_log.hpp"

namespace train_mlp {

/// One run, from its start or its checkpoint to its end or an interrupt.
class Training {
 public:
  /// Reads the data and the checkpoint. Throws UsageError, DataError or DeviceError before anything is written.
  explicit Training(const Options& options);

  /// Trains with Adam on all samples at once. The line of epoch e is about the network after e steps; the features of
  /// the next step's forward pass are measured, so that measuring needs none of its own. Asks `interrupted` once an
  /// epoch: when it says so, the run ends there like at its last epoch (measured, checkpoint, dump). Returns false
  /// then. On the CPU, the same options and threads give the same bits, resumed or not.
  bool run(bool (*interrupted)());

  /// The command that measures the dump once more.
  std::string analyze_command() const;

 private:
  Json header() const;
  void measure(const torch::Tensor& features, double loss);
  void set_learning_rate();
  bool load_checkpoint();
  void save_checkpoint() const;
  void dump(const torch::Tensor& features);

  Options options_;
  torch::Device device_;
  torch::Tensor inputs_, labels_, targets_, test_inputs_, test_labels_;
  std::shared_ptr<Network> network_;
  std::unique_ptr<torch::optim::Adam> adam_;
  std::optional<ncollapse::Context> context_;
  ncollapse::UfmPrediction prediction_;
  std::optional<RunLog> log_;
  Progress::State last_{};
  Index epoch_ = 0, rank_ = 0;
  double train_seconds_ = 0, measure_seconds_ = 0;
};

}  // namespace train_mlp
