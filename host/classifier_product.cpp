#include "host/classifier_product.hpp"

#include <cmath>

#include "host/element_types.hpp"
#include "host/moments.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

std::string shape(Index rows, Index cols) { return std::to_string(rows) + " x " + std::to_string(cols); }

// What is not finite about a matrix whose row norms are not.
std::string first_nonfinite(Backend& backend, const Matrix& matrix) {
  const auto values = backend.to_host(matrix);
  for (Index i = 0; i < matrix.size(); ++i)
    if (!std::isfinite(values[i]))
      return "a NaN or infinite value at row " + std::to_string(i / matrix.cols) + ", column " +
             std::to_string(i % matrix.cols);
  return "values whose squares overflow";
}

void check_view(const Backend& backend, const MatrixView& layer, const std::string& name) {
  if (layer.rows < 1 || layer.cols < 1 || layer.data == nullptr)
    throw UsageError(name + " is empty (" + shape(layer.rows, layer.cols) + ")");
  if (layer.row_stride() < layer.cols)
    throw UsageError(name + " has a row stride of " + std::to_string(layer.stride) + ", below its " +
                     std::to_string(layer.cols) + " columns");
  check_type(layer.dtype, name + " is");
  check_memory(backend, layer.space, "the elements of " + name);
}

}  // namespace

Matrix checked_matrix(Backend& backend, const MatrixView& view, const std::string& name) {
  check_view(backend, view, name);
  const Matrix matrix = backend.borrow(view);
  for (const double squared : backend.row_dots(matrix, matrix))
    if (!std::isfinite(squared)) throw DataError(name + " holds " + first_nonfinite(backend, matrix));
  return matrix;
}

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
  if (count > 1)
    for (const double squared : backend.row_dots(product, product))
      if (!std::isfinite(squared))
        throw DataError("the product of the layers holds " + first_nonfinite(backend, product), "rescale the layers");
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
