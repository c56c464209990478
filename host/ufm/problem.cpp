// f and its gradient. With R = H W^T + 1 b^T - Y [N x K], G = R^T H/N [K x d]:
//   df/dH = R W/N + lambda_H H,   df/db = R^T 1/N,   df/dW_l = (W_L...W_{l+1})^T G (W_{l-1}...W_1)^T + lambda_l W_l.
// G goes through the layers from the right and the products of layers from the left, so that every factor has K rows or
// columns. R is formed as it stands: expanding its square would save the N x K array and lose the digits of a good fit.
#include <cmath>
#include <limits>
#include <numbers>
#include <random>
#include <string>

#include "host/backend.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/ufm.hpp"

namespace ncollapse {

namespace {

std::vector<double> repeated(Index size, double value) {
  return std::vector<double>(static_cast<std::size_t>(size), value);
}

// a * b + c for sizes that are not negative.
Index multiply_add(Index a, Index b, Index c) {
  Index product = 0, sum = 0;
  if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(product, c, &sum))
    throw MemoryError(std::to_string(a) + " x " + std::to_string(b) + " parameters fit no memory");
  return sum;
}

UfmOptions checked(UfmOptions model, Index dim) {
  if (dim < 1) throw UsageError("dim is " + std::to_string(dim) + ", must be at least 1");
  if (model.width != 0 && model.width != dim)
    throw UsageError("the width is " + std::to_string(model.width) + " for dim " + std::to_string(dim),
                     "features and layers all have the width dim; leave the model's width 0");
  model.width = dim;
  return model;
}

}  // namespace

struct UfmProblem::Impl {
  Impl(const Context& on, UfmOptions options, Index dimensions);

  void check_size(std::size_t size, const char* what) const {
    if (static_cast<Index>(size) != parameters)
      throw UsageError(std::string(what) + " has " + std::to_string(size) + " entries for " +
                       std::to_string(parameters) + " parameters");
  }
  Index layer_rows(std::size_t l) const { return l + 1 == layers.size() ? classes : dim; }
  bool has_bias() const { return model.bias; }

  /// Sends x to the device and returns R; above[l] becomes W_L...W_{l+1}, counting layers from 0: above[0] is W.
  Matrix residual(std::span<const double> x);
  double loss(const Matrix& R) const;
  void gradient(const Matrix& R, std::span<double> result);

  Context context;
  Backend& backend;
  UfmOptions model;
  UfmPrediction prediction;
  Index classes = 0, samples = 0, dim = 0, parameters = 0;
  std::vector<Index> layer_begin;  // in the vector of parameters, [L]
  Index features_begin = 0, bias_begin = 0;
  std::vector<std::int64_t> labels;  // [N]

  std::vector<Matrix> layers, above;  // [L]
  Matrix features, targets;           // H [N x d], Y [N x K]
};

UfmProblem::Impl::Impl(const Context& on, UfmOptions options, Index dimensions)
    : context(on), backend(*on.backend()), model(checked(std::move(options), dimensions)), prediction(predict(model)) {
  classes = prediction.classes;
  samples = prediction.samples;
  dim = dimensions;
  layers.resize(model.lambda_w.size());
  above.resize(layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    layer_begin.push_back(parameters);
    parameters = multiply_add(layer_rows(l), dim, parameters);
  }
  features_begin = parameters;
  bias_begin = multiply_add(samples, dim, features_begin);
  parameters = has_bias() ? multiply_add(classes, 1, bias_begin) : bias_begin;
  if (parameters > std::numeric_limits<Index>::max() / static_cast<Index>(sizeof(double)))
    throw MemoryError(std::to_string(parameters) + " parameters fit no memory");

  for (std::size_t l = 0; l < layers.size(); ++l) layers[l] = backend.matrix(layer_rows(l), dim);
  features = backend.matrix(samples, dim);
  targets = backend.matrix(samples, classes);
  labels.reserve(static_cast<std::size_t>(samples));
  for (Index k = 0; k < classes; ++k) labels.insert(labels.end(), static_cast<std::size_t>(model.counts[k]), k);
  std::vector<double> one_hot = repeated(targets.size(), 0);
  for (Index i = 0; i < samples; ++i) one_hot[i * classes + labels[i]] = 1;
  backend.from_host(targets, one_hot);
}

Matrix UfmProblem::Impl::residual(std::span<const double> x) {
  for (std::size_t l = 0; l < layers.size(); ++l)
    backend.upload(layers[l].data(), x.data() + layer_begin[l], layers[l].bytes());
  backend.upload(features.data(), x.data() + features_begin, features.bytes());
  above.back() = layers.back();
  for (std::size_t l = layers.size() - 1; l-- > 0;)
    above[l] = backend.product(above[l + 1], Transpose::no, layers[l], Transpose::no);
  Matrix R = backend.product(features, Transpose::no, above.front(), Transpose::yes);
  backend.combine(1, R, -1, targets, R);
  if (has_bias()) {
    std::vector<double> centre(x.begin() + bias_begin, x.end());
    for (double& value : centre) value = -value;
    backend.centre_rows(R, centre);
  }
  return R;
}

double UfmProblem::Impl::loss(const Matrix& R) const {
  double value = backend.inner(R, R) / (2 * static_cast<double>(samples));
  for (std::size_t l = 0; l < layers.size(); ++l) value += model.lambda_w[l] / 2 * backend.inner(layers[l], layers[l]);
  value += model.lambda_h / 2 * backend.inner(features, features);
  return std::isnan(value) ? std::numeric_limits<double>::infinity() : value;  // infinite logits of both signs
}

void UfmProblem::Impl::gradient(const Matrix& R, std::span<double> result) {
  const double per_sample = 1 / static_cast<double>(samples);
  Matrix by_features = backend.product(R, Transpose::no, above.front(), Transpose::no);
  backend.combine(per_sample, by_features, model.lambda_h, features, by_features);
  backend.download(result.data() + features_begin, by_features.data(), by_features.bytes());
  if (has_bias()) {
    const std::vector<double> by_bias = backend.weighted_row_sum(R, repeated(samples, per_sample));
    std::copy(by_bias.begin(), by_bias.end(), result.begin() + bias_begin);
  }
  Matrix G = backend.product(R, Transpose::yes, features, Transpose::no);
  backend.scale_rows(repeated(classes, per_sample), G);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const bool last = l + 1 == layers.size();
    Matrix by_layer = last ? G : backend.product(above[l + 1], Transpose::yes, G, Transpose::no);
    if (!last) G = backend.product(G, Transpose::no, layers[l], Transpose::yes);
    backend.combine(1, by_layer, model.lambda_w[l], layers[l], by_layer);
    backend.download(result.data() + layer_begin[l], by_layer.data(), by_layer.bytes());
  }
}

UfmProblem::UfmProblem(const Context& context, UfmOptions model, Index dim)
    : impl_(std::make_unique<Impl>(context, std::move(model), dim)) {}
UfmProblem::~UfmProblem() = default;
UfmProblem::UfmProblem(UfmProblem&&) noexcept = default;
UfmProblem& UfmProblem::operator=(UfmProblem&&) noexcept = default;

const Context& UfmProblem::context() const { return impl_->context; }
const UfmOptions& UfmProblem::model() const { return impl_->model; }
const UfmPrediction& UfmProblem::prediction() const { return impl_->prediction; }
Index UfmProblem::classes() const { return impl_->classes; }
Index UfmProblem::samples() const { return impl_->samples; }
Index UfmProblem::dim() const { return impl_->dim; }
Index UfmProblem::parameters() const { return impl_->parameters; }

double UfmProblem::loss(std::span<const double> x) {
  impl_->check_size(x.size(), "x");
  return impl_->loss(impl_->residual(x));
}

double UfmProblem::loss_and_gradient(std::span<const double> x, std::span<double> gradient) {
  impl_->check_size(x.size(), "x");
  impl_->check_size(gradient.size(), "the gradient");
  const Matrix R = impl_->residual(x);
  impl_->gradient(R, gradient);
  return impl_->loss(R);
}

Classifier UfmProblem::classifier(std::span<const double> x) const {
  impl_->check_size(x.size(), "x");
  Classifier result;
  for (std::size_t l = 0; l < impl_->layers.size(); ++l)
    result.layers.push_back(view(x.data() + impl_->layer_begin[l], impl_->layer_rows(l), impl_->dim));
  if (impl_->has_bias()) result.bias = view(x.data() + impl_->bias_begin, 1, impl_->classes);
  return result;
}

MatrixView UfmProblem::features(std::span<const double> x) const {
  impl_->check_size(x.size(), "x");
  return view(x.data() + impl_->features_begin, impl_->samples, impl_->dim);
}

LabelView UfmProblem::labels() const { return view(impl_->labels.data(), impl_->samples); }

std::vector<double> UfmProblem::random_start(std::uint64_t seed, double standard_deviation) const {
  if (!(standard_deviation > 0) || !std::isfinite(standard_deviation))
    throw UsageError("the standard deviation of the start is " + std::to_string(standard_deviation) +
                     ", must be positive");
  std::mt19937_64 random(seed);
  const auto uniform = [&] { return (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53; };  // in (0, 1)
  std::vector<double> x(static_cast<std::size_t>(parameters()));
  for (std::size_t i = 0; i < x.size(); i += 2) {
    const double radius = standard_deviation * std::sqrt(-2 * std::log(uniform())),
                 angle = 2 * std::numbers::pi * uniform();
    x[i] = radius * std::cos(angle);
    if (i + 1 < x.size()) x[i + 1] = radius * std::sin(angle);
  }
  return x;
}

}  // namespace ncollapse
