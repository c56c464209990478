// The L-extended unconstrained feature model itself, and what an optimiser makes of it: the theory of theory.hpp seen
// at work. Samples are ordered by class; H holds one sample per row, so with W = W_L...W_1
//
//   f(W_1..W_L, H, b) = 1/(2N) |H W^T + 1 b^T - Y|^2 + sum_l lambda_l/2 |W_l|^2 + lambda_H/2 |H|^2.
//
// Sources: H. Liu, arXiv 2411.17278 (with bias); H. Dang et al., ICML 2023 (without). Symbols: K classes of n_k
// samples, N = sum n_k, d features, L layers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "ncollapse/classifier.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/export.hpp"
#include "ncollapse/metrics.hpp"
#include "ncollapse/theory.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

/// f and its gradient as functions of one flat vector of parameters in host memory, which holds, one after the other
/// and each row-major, W_1, ..., W_L (W_L is [K x d], the others [d x d]), H [N x d] and, with a bias, b [K].
/// Evaluations use memory of 2 N (K + d) + 2 L (K + d) d doubles on the device. Deterministic: the same point on the
/// same device with the same number of threads gives the same bits. Not for several threads at once.
class NCOLLAPSE_EXPORT UfmProblem {
 public:
  /// `model.width` is d; 0 stands for it. Throws UsageError for d below 1, another width, and as predict() does;
  /// MemoryError when the problem does not fit the device's memory.
  UfmProblem(const Context& context, UfmOptions model, Index dim);
  ~UfmProblem();
  UfmProblem(UfmProblem&&) noexcept;
  UfmProblem& operator=(UfmProblem&&) noexcept;

  const Context& context() const;
  const UfmOptions& model() const;          ///< with width = d
  const UfmPrediction& prediction() const;  ///< of the global minimiser in these dimensions
  Index classes() const;                    ///< K
  Index samples() const;                    ///< N
  Index dim() const;                        ///< d
  Index parameters() const;                 ///< (L - 1) d^2 + K d + N d, and K with a bias

  /// f(x); x [parameters()]. Infinite when it overflows. Throws UsageError for another size. Waits for the device.
  double loss(std::span<const double> x);
  /// f(x), and its gradient [parameters()] in the layout of x. Throws like loss(). Waits for the device.
  double loss_and_gradient(std::span<const double> x, std::span<double> gradient);

  /// Views on parts of x, in host memory, valid as long as x; labels as long as this problem. Throw UsageError for
  /// another size.
  Classifier classifier(std::span<const double> x) const;  ///< W_1..W_L, and b as a [1 x K] row
  MatrixView features(std::span<const double> x) const;    ///< H [N x d]
  LabelView labels() const;                                ///< [N], ascending

  /// All parameters drawn independently from a normal distribution of mean 0 and the given standard deviation:
  /// std::mt19937_64 and the Box-Muller transform, so that a seed means the same point everywhere, up to the last bits
  /// of log, sin and cos. Throws UsageError unless the standard deviation is positive and finite.
  std::vector<double> random_start(std::uint64_t seed, double standard_deviation) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

enum class Optimizer {
  lbfgs,  ///< limited-memory BFGS, More-Thuente line search
  gd,     ///< gradient descent, Armijo backtracking from a step that grows again
};

/// "lbfgs", "gd".
NCOLLAPSE_EXPORT std::string_view to_string(Optimizer optimizer);
/// Throws UsageError for an unknown name.
NCOLLAPSE_EXPORT Optimizer parse_optimizer(std::string_view name);

struct SimulationOptions {
  UfmOptions model = {};
  Index dim = 0;  ///< d
  Optimizer optimizer = Optimizer::lbfgs;
  Index iterations = 10000;  ///< at most
  std::uint64_t seed = 1;
  /// The random start has the standard deviation start_scale / sqrt(d). Not given: 3 for up to three layers, else
  /// 3^(3/L), so that the product of the layers starts at the same size whatever their number.
  std::optional<double> start_scale = {};
  /// Converged where |gradient| <= tolerance * (smallest weight decay) * max(1, |parameters|): about the relative error
  /// of the parameters, since a minimum's curvature is of the size of the weight decays. 0: as far as rounding allows.
  double gradient_tolerance = 1e-6;
  Index measure_every = 100;  ///< iterations; the first and the last point are always measured
};

/// options.start_scale, or its default for so many layers.
NCOLLAPSE_EXPORT double start_scale(const SimulationOptions& options);

/// A point the optimiser has reached. Iteration 0 is the start.
struct SimulationStep {
  Index iteration = 0;
  Index evaluations = 0;  ///< of f and its gradient, so far
  double loss = 0;
  double minimum = 0;                            ///< predicted
  double gap = 0;                                ///< loss - minimum
  double gradient_norm = 0, gradient_bound = 0;  ///< converged where the norm is at most the bound
  std::optional<Report> report = {};             ///< every metric at this point, where it was measured
};

enum class SimulationEnd {
  converged,    ///< the gradient is within its tolerance
  no_progress,  ///< no step that was tried along the gradient lowers the loss: rounding, or a start far too large
  iterations,   ///< as many as were allowed
  stopped,      ///< the caller asked for it
};

/// "converged", "no further progress", "iterations", "stopped".
NCOLLAPSE_EXPORT std::string_view to_string(SimulationEnd end);

/// One eigenspace of the label matrix at the reached point, beside the predicted minimiser. A measured direction
/// survives when its singular value, of the rows of U^T W that belong to the eigenspace, exceeds half of the predicted
/// w (in an eigenspace that is predicted to vanish: half of the smallest w that is predicted to survive; when nothing
/// is, half of sqrt(N lambda_H)). w and z are root mean squares over the whole eigenspace, as in SpectrumRow. So
/// nothing depends on the basis chosen inside the eigenspace.
struct EigenspaceComparison {
  double sigma = 0;
  Index multiplicity = 0;
  Index surviving_predicted = 0, surviving_measured = 0;
  double w_predicted = 0, w_measured = 0;
  double z_predicted = 0, z_measured = 0;
};

struct SimulationResult {
  SimulationStep last;  ///< measured
  SimulationEnd end = SimulationEnd::converged;
  std::vector<double> parameters;  ///< as UfmProblem lays them out
  Index rank_predicted = 0;        ///< surviving directions in all
  /// Singular values of W_L...W_1 above half of the smallest w that is predicted to survive (when nothing is, half of
  /// sqrt(N lambda_H)).
  Index rank_measured = 0;
  /// Where the reached point is not the predicted minimiser: eigenspaces with another number of surviving directions,
  /// or with w or z off by more than 1e-3 of its largest predicted value. By descending sigma. For L >= 2 gradient
  /// methods may end in stationary points of lower rank; this is where it shows. Eigenspaces exactly at the threshold
  /// are left out: there vanishing is as good as surviving.
  std::vector<EigenspaceComparison> differing;
};

/// Called before the first iteration and after every one; once more with the last point's report when that point was
/// not measured at first. False ends the run there; an exception ends it too, and leaves simulate().
using SimulationCallback = std::function<bool(const SimulationStep&)>;

/// Minimises f from a random start and compares every measured point, and the last one, with the predicted minimiser.
/// L-BFGS keeps 2 * 20 vectors of parameters() doubles in host memory; a measurement needs some N (K + d) + d^2 doubles
/// on the device beside the problem. Deterministic like UfmProblem. Throws UsageError for fewer than two classes,
/// iterations or measure_every below 1, a start scale that is not positive, a tolerance that is negative or not finite,
/// a start whose loss overflows, more than 2^31 - 9 parameters with L-BFGS, and as UfmProblem does; MemoryError, before
/// anything is allocated, when all that exceeds the memory.
NCOLLAPSE_EXPORT SimulationResult simulate(const Context& context, const SimulationOptions& options,
                                           const SimulationCallback& on_step = {});

}  // namespace ncollapse
