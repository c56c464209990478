#include "host/moments.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "ncollapse/error.hpp"

namespace ncollapse {

double trace_of(const std::vector<double>& squares, const std::vector<double>& weights) {
  double trace = 0;
  for (std::size_t k = 0; k < squares.size(); ++k) trace += squares[k] * weight_of(weights, k);
  return trace;
}

MomentState make_state(Backend& backend, const AccumulatorOptions& options) {
  const Index classes = options.classes, dim = options.dim;
  MomentState state;
  state.classes = classes;
  state.dim = dim;
  state.statistics = options.statistics;
  state.precision = options.precision;
  state.counts = backend.index_array(classes, 1);
  state.shifts = backend.matrix(classes, dim);
  state.sums = backend.matrix(classes, dim);
  if (options.statistics >= Statistics::traces) state.square_sums = backend.matrix(classes, 1);
  if (options.statistics >= Statistics::full) {
    state.scatter = backend.matrix(dim, dim);
    if (!options.scatter_weights.empty()) {
      std::vector<double> scale(options.scatter_weights);
      for (auto& value : scale) value = std::sqrt(value);
      state.scatter_scale = backend.from_host(scale, classes, 1);
    }
  }
  return state;
}

MomentData read_out(const Context& context, const AccumulatorOptions& options, const MomentState& state) {
  Backend& backend = *context.backend();
  MomentData out{context, options, backend.to_host(state.counts), 0, 0, {}, {}, {}};
  const auto classes = static_cast<std::size_t>(options.classes);

  std::vector<double> one(classes, 1.0), inverse(classes), correction(classes);
  for (std::size_t k = 0; k < classes; ++k) {
    const auto count = static_cast<double>(out.counts[k]);
    out.samples += out.counts[k];
    out.seen += out.counts[k] > 0 ? 1 : 0;
    inverse[k] = count > 0 ? 1.0 / count : 0.0;
    correction[k] = count > 0 ? std::sqrt(weight_of(options.scatter_weights, k) / count) : 0.0;
  }
  out.means = backend.matrix(options.classes, options.dim);
  backend.combine_rows(one, state.shifts, inverse, state.sums, out.means);
  if (options.statistics == Statistics::means) {  // others see it in the variances; the mean of finite means is finite
    const std::vector<double> share(classes, 1 / static_cast<double>(classes));
    for (const double value : backend.weighted_row_sum(out.means, share))
      if (!std::isfinite(value))
        throw DataError("the sums of features leave the range of double",
                        "rescale the features: the metrics do not depend on their unit");
  }

  if (options.statistics >= Statistics::traces) {
    out.variances = backend.to_host(state.square_sums);
    const double trace = trace_of(out.variances, options.scatter_weights);  // of T
    if (options.statistics >= Statistics::full && !std::isfinite(trace))
      throw DataError("the features are so far apart that the sum of all squared distances leaves the range of double",
                      "rescale the features: the metrics do not depend on their unit");
    const auto sums_squared = backend.row_dots(state.sums, state.sums);
    for (std::size_t k = 0; k < classes; ++k) {
      const double variance = (out.variances[k] - sums_squared[k] * inverse[k]) * inverse[k];
      if (!std::isfinite(variance))
        throw DataError("the features of class " + std::to_string(k) + " are so far apart that the sum of their " +
                            "squared distances leaves the range of double",
                        "rescale the features: the metrics do not depend on their unit");
      out.variances[k] = std::max(0.0, variance);
    }
    if (options.statistics >= Statistics::full) {
      std::vector<double> squares = out.variances;
      for (std::size_t k = 0; k < classes; ++k) squares[k] *= static_cast<double>(out.counts[k]);
      out.scatter_trace = trace_of(squares, options.scatter_weights);
      if (options.precision == Precision::fast)
        out.scatter_error = std::max(0.0, kFastError * trace + state.error_carried);
    }
  }
  if (options.statistics >= Statistics::full) {
    out.scatter = backend.clone(state.scatter);
    backend.add_gram(-1.0, backend.scaled(correction, state.sums), out.scatter);
    backend.mirror_lower(out.scatter);
  }
  return out;
}

ClassMoments::ClassMoments(std::shared_ptr<const MomentData> data) : data_(std::move(data)) {}
Index ClassMoments::classes() const { return data_->options.classes; }
Index ClassMoments::dim() const { return data_->options.dim; }
Index ClassMoments::samples() const { return data_->samples; }
Index ClassMoments::classes_seen() const { return data_->seen; }
std::optional<Dtype> ClassMoments::dtype() const { return data_->dtype; }
Statistics ClassMoments::statistics() const { return data_->options.statistics; }
const std::vector<Index>& ClassMoments::counts() const& { return data_->counts; }
std::vector<Index> ClassMoments::counts() && { return data_->counts; }
double ClassMoments::scatter_error() const {
  return data_->scatter_trace > 0 ? data_->scatter_error / data_->scatter_trace : 0.0;
}
const Context& ClassMoments::context() const { return data_->context; }

std::vector<double> ClassMoments::within_variances() && { return std::as_const(*this).within_variances(); }
const std::vector<double>& ClassMoments::within_variances() const& {
  if (statistics() < Statistics::traces)
    throw UsageError("only means were accumulated", "accumulate with Statistics::traces or Statistics::full");
  return data_->variances;
}

std::vector<double> ClassMoments::means() const { return context().backend()->to_host(data_->means); }

std::vector<double> ClassMoments::within_scatter() const {
  if (statistics() < Statistics::full)
    throw UsageError("no scatter was accumulated", "accumulate with Statistics::full");
  return context().backend()->to_host(data_->scatter);
}

}  // namespace ncollapse
