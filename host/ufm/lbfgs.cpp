// L-BFGS by libLBFGS (N. Okazaki's C port of J. Nocedal's program), its only home. Its own tests of convergence are
// switched off: `on_iterate` decides. A line search that fails leaves the last accepted point; since a poor quadratic
// model can be the reason, the search is begun anew from there along the plain gradient, until that gains nothing
// either.
#include <lbfgs.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <string>

#include "host/ufm/minimise.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

constexpr int kAsked = 1;
constexpr Index kMaxParameters = std::numeric_limits<int>::max() - 8;  // the library may round up to a multiple of 8

struct Run {
  const Objective& objective;
  const OnIterate& on_iterate;
  Index iteration = 0;
  double loss = 0;
  std::exception_ptr error = {};  // must not cross the C library
};

// After an exception there is nothing to find any more: no gradient, and no step that is accepted.
double evaluate(void* instance, const double* x, double* gradient, int n, double) {
  Run& run = *static_cast<Run*>(instance);
  const auto size = static_cast<std::size_t>(n);
  if (!run.error) try {
      return run.objective({x, size}, {gradient, size});
    } catch (...) {
      run.error = std::current_exception();
    }
  std::fill_n(gradient, size, 0.0);
  return std::numeric_limits<double>::infinity();
}

int progress(void* instance, const double* x, const double* gradient, double loss, double, double, double, int n, int,
             int) {
  Run& run = *static_cast<Run*>(instance);
  const auto size = static_cast<std::size_t>(n);
  if (run.error) return kAsked;
  try {
    run.loss = loss;
    return run.on_iterate({++run.iteration, loss, {x, size}, {gradient, size}}) ? 0 : kAsked;
  } catch (...) {
    run.error = std::current_exception();
    return kAsked;
  }
}

// Whether the library's return code says that a line search ended without an acceptable point.
bool search_failed(int code) {
  switch (code) {
    case LBFGSERR_OUTOFINTERVAL:
    case LBFGSERR_INCORRECT_TMINMAX:
    case LBFGSERR_ROUNDING_ERROR:
    case LBFGSERR_MINIMUMSTEP:
    case LBFGSERR_MAXIMUMSTEP:
    case LBFGSERR_MAXIMUMLINESEARCH:
    case LBFGSERR_WIDTHTOOSMALL:
    case LBFGSERR_INVALIDPARAMETERS:  // a step that is not positive: the direction overflowed
    case LBFGSERR_INCREASEGRADIENT: return true;
    default: return false;
  }
}

}  // namespace

MinimiseEnd minimise_lbfgs(const Objective& objective, std::vector<double>& x, const OnIterate& on_iterate) {
  const auto size = static_cast<Index>(x.size());
  if (size > kMaxParameters)
    throw UsageError(
        "there are " + std::to_string(size) + " parameters, L-BFGS takes at most " + std::to_string(kMaxParameters),
        "gradient descent takes any number");
  Run run{objective, on_iterate};
  std::vector<double> gradient(x.size());
  run.loss = objective(x, gradient);
  if (!on_iterate({0, run.loss, x, gradient})) return MinimiseEnd::asked;
  std::vector<double>().swap(gradient);

  lbfgs_parameter_t parameters;
  lbfgs_parameter_init(&parameters);
  parameters.m = kLbfgsHistory;
  parameters.epsilon = 0;
  parameters.max_iterations = 0;
  parameters.linesearch = LBFGS_LINESEARCH_MORETHUENTE;
  parameters.min_step = std::numeric_limits<double>::min();  // the first step is 1/|gradient|, which may be tiny
  parameters.max_step = std::numeric_limits<double>::max();
  const auto n = static_cast<int>(size);
  const std::unique_ptr<double, decltype(&lbfgs_free)> point(lbfgs_malloc(n), lbfgs_free);  // aligned as it wants it
  if (!point) throw std::bad_alloc();
  std::copy(x.begin(), x.end(), point.get());
  while (true) {
    const double before = run.loss;
    const int code = lbfgs(n, point.get(), nullptr, evaluate, progress, &run, &parameters);
    if (run.error) std::rethrow_exception(run.error);
    std::copy_n(point.get(), x.size(), x.begin());
    if (code == kAsked) return MinimiseEnd::asked;
    if (code == LBFGS_SUCCESS || code == LBFGS_ALREADY_MINIMIZED) return MinimiseEnd::no_progress;  // no gradient left
    if (code == LBFGSERR_OUTOFMEMORY) throw std::bad_alloc();
    if (!search_failed(code)) throw Error(ErrorKind::internal, "libLBFGS failed with code " + std::to_string(code));
    if (!(before - run.loss > 4 * std::numeric_limits<double>::epsilon() * before)) return MinimiseEnd::no_progress;
  }
}

}  // namespace ncollapse
