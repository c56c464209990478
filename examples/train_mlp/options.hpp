// What a training run is told.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ncollapse/types.hpp>

namespace train_mlp {

using ncollapse::Index;

struct Options {
  // Data
  std::string dataset;                    ///< cifar10, mnist, emnist or gaussian
  std::string data;                       ///< folder with the files
  std::string emnist_split = "balanced";  ///< as in the files' names
  Index gaussian_dim = 64;
  std::vector<Index> counts;  ///< training samples of each class, [K]

  // Network and loss
  Index layers = 1;                   ///< L, linear layers on the features
  Index width = 256;                  ///< of every hidden layer and of the features
  bool bias = true;                   ///< of the last linear layer
  double head_scale = 1;              ///< times the usual random start of the linear layers
  std::vector<double> lambda_w = {};  ///< weight decay of W_1 .. W_L, [L]
  double lambda_h = 1e-5;             ///< weight decay of the features

  // Training
  Index epochs = 1500;
  double lr = 3e-4;
  double decay_at = 0.5;  ///< share of the epochs after which lr is multiplied by decay_factor
  double decay_factor = 0.1;
  std::uint64_t seed = 1;
  std::string device = "auto";
  int threads = 0;           ///< 0: all cores, shared with the other processes of a distributed run here
  bool distributed = false;  ///< the samples are divided among the processes that mpirun started

  // Output
  Index measure_every = 10;
  std::string log;
  std::string checkpoint;
  Index checkpoint_every = 100;
  bool resume = false;
  std::string dump;
  bool quiet = false;
};

}  // namespace train_mlp
