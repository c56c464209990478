// A multilayer perceptron whose features meet L linear layers.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "options.hpp"

namespace train_mlp {

/// Six linear layers with ReLU between them make the features; no ReLU comes after the last, so that features can be
/// centred, as the theory's minimiser is. Linear layers W_1 .. W_L follow, the last one with or without a bias b.
class Network : public torch::nn::Module {
 public:
  static constexpr int kBackboneLayers = 6;

  /// A random start, as LibTorch's Linear has it, from LibTorch's generator.
  Network(Index input_dim, Index classes, const Options& options);

  torch::Tensor features(torch::Tensor inputs);  ///< [N x input_dim] -> [N x width]

  /// The loss that is minimised, a scalar: with N rows of `features` H and of one-hot `targets` Y
  ///   f = 1/(2N) |H W^T + 1 b^T - Y|^2 + sum_l lambda_l/2 |W_l|^2 + lambda_H/2 |H|^2,   W = W_L ... W_1
  /// Where `features` are those of one of `parts` processes only, `samples` is N: the parts' losses add up to f.
  torch::Tensor loss(const torch::Tensor& features, const torch::Tensor& targets, Index samples, int parts) const;

  const std::vector<torch::Tensor>& layers() const { return layers_; }  ///< W_1 .. W_L
  const torch::Tensor& bias() const { return bias_; }                   ///< [K]; undefined without one

 private:
  std::vector<torch::nn::Linear> backbone_;
  std::vector<torch::Tensor> layers_;
  torch::Tensor bias_;
  std::vector<double> lambda_w_;
  double lambda_h_;
};

}  // namespace train_mlp
