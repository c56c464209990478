#include "host/classifier_product.hpp"

#include <cmath>

#include "host/input.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

std::string shape(Index rows, Index cols) { return std::to_string(rows) + " x " + std::to_string(cols); }

}  // namespace

bool has_layers(const Classifier* classifier) {
  if (classifier == nullptr) return false;
  if (classifier->layers.empty() && classifier->bias.rows != 0)
    throw UsageError("a bias needs the layers that it belongs to");
  return !classifier->layers.empty();
}

Matrix classifier_product(Backend& backend, const Classifier& classifier, Index dim, Index classes) {
  Matrix product;
  Index width = dim;
  const auto count = classifier.layers.size();
  for (std::size_t l = 0; l < count; ++l) {
    const MatrixView& layer = classifier.layers[l];
    const std::string name = "W_" + std::to_string(l + 1);
    check_view(backend, layer, name);
    if (layer.cols != width)
      throw UsageError(name + " is " + shape(layer.rows, layer.cols) + ", but " +
                           (l == 0 ? "the features have " + std::to_string(width) + " columns"
                                   : "W_" + std::to_string(l) + " has " + std::to_string(width) + " rows"),
                       "layers are given in the order in which features meet them, W_1 first");
    width = layer.rows;
  }
  if (width != classes)
    throw UsageError("the last layer W_" + std::to_string(count) + " has " + std::to_string(width) + " rows for " +
                         std::to_string(classes) + " classes",
                     "layers are given in the order in which features meet them, W_1 first");
  // From the last layer down: K rows stay K rows, so no product is larger than K x d_l.
  for (std::size_t l = count; l-- > 0;) {
    const Matrix layer = checked_matrix(backend, classifier.layers[l], "W_" + std::to_string(l + 1));
    product = product ? backend.product(product, Transpose::no, layer, Transpose::no) : layer;
  }
  if (count > 1) check_finite(backend, product, "the product of the layers", "rescale the layers");
  return product;
}

std::vector<double> classifier_bias(Backend& backend, const Classifier& classifier, Index classes) {
  const MatrixView& bias = classifier.bias;
  if (bias.rows == 0) return {};
  check_view(backend, bias, "the bias");
  const Index size = bias.rows * bias.cols;
  if (size != classes || (bias.rows != 1 && bias.cols != 1))
    throw UsageError("the bias is " + shape(bias.rows, bias.cols) + " for " + std::to_string(classes) + " classes",
                     "one value for every class");
  auto values = backend.to_host(backend.import(bias));
  for (std::size_t k = 0; k < values.size(); ++k)
    if (!std::isfinite(values[k])) throw DataError("the bias of class " + std::to_string(k) + " is NaN or infinite");
  return values;
}

}  // namespace ncollapse
