#include "network.hpp"

#include <cmath>
#include <string>

namespace train_mlp {

Network::Network(Index input_dim, Index classes, const Options& options)
    : lambda_w_(options.lambda_w), lambda_h_(options.lambda_h) {
  for (int i = 1; i <= kBackboneLayers; ++i)
    backbone_.push_back(register_module("backbone" + std::to_string(i),
                                        torch::nn::Linear(i == 1 ? input_dim : options.width, options.width)));
  const double bound = 1 / std::sqrt(static_cast<double>(options.width));
  for (Index l = 1; l <= options.layers; ++l) {
    torch::Tensor weight = torch::empty({l == options.layers ? classes : options.width, options.width});
    torch::nn::init::uniform_(weight, -bound * options.head_scale, bound * options.head_scale);
    layers_.push_back(register_parameter("W" + std::to_string(l), weight));
  }
  if (options.bias)
    bias_ = register_parameter("bias", torch::nn::init::uniform_(torch::empty({classes}), -bound, bound));
}

torch::Tensor Network::features(torch::Tensor inputs) {
  for (std::size_t i = 0; i < backbone_.size(); ++i) {
    inputs = backbone_[i](inputs);
    if (i + 1 < backbone_.size()) inputs = torch::relu(inputs);
  }
  return inputs;
}

torch::Tensor Network::loss(const torch::Tensor& features, const torch::Tensor& targets, Index samples,
                            int parts) const {
  torch::Tensor classifier = layers_.back();  // from the left, products have only K rows
  for (std::size_t l = layers_.size() - 1; l-- > 0;) classifier = torch::matmul(classifier, layers_[l]);
  torch::Tensor residual = torch::matmul(features, classifier.t()) - targets;
  if (bias_.defined()) residual = residual + bias_;
  torch::Tensor f =
      residual.square().sum() / (2.0 * static_cast<double>(samples)) + features.square().sum() * (lambda_h_ / 2);
  for (std::size_t l = 0; l < layers_.size(); ++l) f = f + layers_[l].square().sum() * (lambda_w_[l] / 2 / parts);
  return f;
}

}  // namespace train_mlp
