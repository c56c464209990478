// The unconstrained feature model as an optimiser sees it: its gradient, its minimiser, and what runs end in.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>

#include "host/ufm/minimise.hpp"
#include "ncollapse/ncollapse.hpp"
#include "tests/theory/dense.hpp"

namespace ncollapse {
namespace {

const std::vector<Index> kImbalanced{20, 12, 12, 5, 3};

UfmOptions ufm(std::vector<Index> counts, Index layers, double lambda_w, double lambda_h, bool bias) {
  return {std::move(counts), Vector(static_cast<std::size_t>(layers), lambda_w), lambda_h, bias, 0};
}

class Simulate : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    try {
      context_.emplace(Device::parse(GetParam()), ContextOptions{.threads = 1});
    } catch (const DeviceError& error) {
      GTEST_SKIP() << error.what();
    }
  }

  SimulationResult best_of(Index seeds, SimulationOptions options) const {
    std::optional<SimulationResult> best;
    for (options.seed = 1; options.seed <= static_cast<std::uint64_t>(seeds); ++options.seed) {
      SimulationResult result = simulate(*context_, options);
      if (!best || result.last.loss < best->last.loss) best = std::move(result);
    }
    return std::move(*best);
  }

  std::optional<Context> context_;
};

INSTANTIATE_TEST_SUITE_P(Devices, Simulate, testing::Values("cpu", "cuda"),
                         [](const auto& name) { return std::string(name.param); });

/// Layer widths and counts that the derivatives are tried on: K > d, K < d, K = d, one class, single samples.
std::vector<std::pair<UfmOptions, Index>> models() {
  std::vector<std::pair<UfmOptions, Index>> all;
  for (Index layers = 1; layers <= 3; ++layers)
    for (const bool bias : {true, false})
      for (const auto& [counts, dim] : {std::pair<std::vector<Index>, Index>{{4, 3, 1, 1, 2}, 3},
                                        {{4, 3, 1, 1, 2}, 7},
                                        {{2, 5}, 2},
                                        {{6}, 4},
                                        {{1, 2, 1}, 1}}) {
        UfmOptions model = ufm(counts, layers, 0, 0.3, bias);
        for (Index l = 0; l < layers; ++l)
          model.lambda_w[static_cast<std::size_t>(l)] = 0.1 * static_cast<double>(l + 1);
        all.emplace_back(model, dim);
      }
  return all;
}

// Central differences err by h^2/6 |f'''| and by the rounding eps |f| / h; with h = 1e-5 both are below 1e-9 here,
// where f and its derivatives are of the size of 10.
TEST_P(Simulate, GradientAgainstDifferences) {
  for (const auto& [model, dim] : models()) {
    UfmProblem problem(*context_, model, dim);
    Vector x = problem.random_start(3, 0.7), gradient(x.size());
    const double value = problem.loss_and_gradient(x, gradient);
    EXPECT_EQ(value, problem.loss(x));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double at = x[i], h = 1e-5;
      x[i] = at + h;
      const double above = problem.loss(x);
      x[i] = at - h;
      const double below = problem.loss(x);
      x[i] = at;
      EXPECT_NEAR((above - below) / (2 * h), gradient[i], 1e-8 * (1 + value))
          << "parameter " << i << " of " << x.size() << ", L " << model.lambda_w.size() << ", K " << model.counts.size()
          << ", d " << dim;
    }
  }
}

// The loss against its formula, one sample and one class at a time.
TEST_P(Simulate, LossAgainstItsFormula) {
  for (const auto& [model, dim] : models()) {
    UfmProblem problem(*context_, model, dim);
    const Vector x = problem.random_start(5, 0.6);
    const Classifier head = problem.classifier(x);
    const MatrixView features = problem.features(x);
    ASSERT_EQ(head.layers.size(), model.lambda_w.size());
    const auto dense = [](const MatrixView& from) {
      Dense matrix(from.rows, from.cols);
      std::copy_n(static_cast<const double*>(from.data), matrix.values.size(), matrix.values.begin());
      return matrix;
    };
    const Dense H = dense(features);
    Dense W = dense(head.layers.front());
    double expected = model.lambda_h / 2 * H.squares();
    for (std::size_t l = 0; l < head.layers.size(); ++l) {
      const Dense layer = dense(head.layers[l]);
      if (l > 0) W = times(layer, W);
      expected += model.lambda_w[l] / 2 * layer.squares();
    }
    ASSERT_EQ(W.rows, problem.classes());
    ASSERT_EQ(head.bias.cols, model.bias ? problem.classes() : 0);
    const Dense logits = times(H, transposed(W));
    for (Index i = 0; i < problem.samples(); ++i)
      for (Index k = 0; k < problem.classes(); ++k) {
        const double offset = model.bias ? static_cast<const double*>(head.bias.data)[k] : 0.0;
        const double gap = logits(i, k) + offset - (label_at(problem.labels(), i) == k ? 1.0 : 0.0);
        expected += gap * gap / (2 * static_cast<double>(problem.samples()));
      }
    EXPECT_NEAR(problem.loss(x), expected, 1e-13 * expected);
  }
}

/// The parameters of the global minimiser: W_l = diag(s_l), W_L = U diag(s_L), H = D^-1 V diag(z), b = n/N.
Vector minimiser(const UfmProblem& problem) {
  const UfmOptions& model = problem.model();
  const LabelSpectrum spectrum(model.counts, model.label_model());
  const Dense left = basis(spectrum, true), right = basis(spectrum, false);
  Vector x(static_cast<std::size_t>(problem.parameters()), 0.0);
  const Classifier head = problem.classifier(x);
  const auto entry = [&](const MatrixView& matrix, Index i, Index j) -> double& {
    return x[static_cast<std::size_t>(static_cast<const double*>(matrix.data) - x.data() + i * matrix.cols + j)];
  };
  Index i = 0, column = 0;
  for (const auto& direction : problem.prediction().directions)
    for (Index copy = 0; copy < direction.multiplicity; ++copy, ++i) {
      if (copy >= direction.surviving) continue;
      for (std::size_t l = 0; l + 1 < head.layers.size(); ++l)
        entry(head.layers[l], column, column) = direction.layer_singular_values[l];
      for (Index k = 0; k < problem.classes(); ++k)
        entry(head.layers.back(), k, column) = left(i, k) * direction.layer_singular_values.back();
      for (Index n = 0; n < problem.samples(); ++n) {
        const Index k = label_at(problem.labels(), n);
        entry(problem.features(x), n, column) =
            direction.z * right(i, k) / std::sqrt(static_cast<double>(model.counts[static_cast<std::size_t>(k)]));
      }
      ++column;
    }
  for (Index k = 0; k < head.bias.cols; ++k)
    entry(head.bias, 0, k) = problem.prediction().bias[static_cast<std::size_t>(k)];
  return x;
}

TEST_P(Simulate, ThePredictedMinimiserIsStationary) {
  for (const auto& counts : {kImbalanced, {9, 1}, {6, 6, 6}})
    for (Index layers = 1; layers <= 3; ++layers)
      for (const bool bias : {true, false})
        for (const Index dim : {2, 5, 8}) {
          UfmOptions model = ufm(counts, layers, 2e-3, 1e-3, bias);
          model.lambda_w.back() = 5e-4;
          UfmProblem problem(*context_, model, dim);
          const Vector x = minimiser(problem);
          Vector gradient(x.size());
          const double reached = problem.loss_and_gradient(x, gradient);
          EXPECT_NEAR(reached, problem.prediction().minimum, 1e-13) << layers << " " << bias << " " << dim;
          for (const double value : gradient) EXPECT_NEAR(value, 0, 1e-14) << layers << " " << bias << " " << dim;
        }
}

TEST_P(Simulate, NoRandomPointIsBelowTheMinimum) {
  for (int trial = 0; trial < 1000; ++trial) {
    const Index layers = 1 + trial % 3;
    UfmProblem problem(*context_, ufm(kImbalanced, layers, std::pow(10, -1 - trial % 5), 1e-3, trial % 2 == 0),
                       1 + trial % 7);
    const Vector x = problem.random_start(static_cast<std::uint64_t>(trial), 0.02 * (1 + trial % 50));
    EXPECT_GE(problem.loss(x), problem.prediction().minimum) << trial;
  }
}

TEST(UfmProblem, TheRandomStartIsNormalAndTheSameEverywhere) {
  UfmProblem problem(Context(Device::parse("cpu")), ufm({100, 100}, 1, 1, 1, false), 101);
  const Vector x = problem.random_start(1, 2), again = problem.random_start(1, 2), other = problem.random_start(2, 2);
  EXPECT_EQ(x, again);
  EXPECT_NE(x, other);
  const auto n = static_cast<double>(x.size());
  double sum = 0, squares = 0, fourths = 0;
  for (const double value : x) {
    sum += value / 2;
    squares += value * value / 4;
    fourths += std::pow(value / 2, 4);
  }
  EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));  // five standard deviations of each moment
  EXPECT_NEAR(squares / n, 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(fourths / n, 3, 5 * std::sqrt(96 / n));
}

// ------------------------------------------------------------------------------------------------ runs

TEST_P(Simulate, ReachesTheGlobalMinimum) {
  const double with_bias[] = {0.01656018, 0.01932809, 0.02279918};
  const double without[] = {0.02147428, 0.02470530, 0.02895435};
  for (const bool bias : {true, false})
    for (Index layers = 1; layers <= 3; ++layers) {
      const SimulationResult best = best_of(4, {.model = ufm(kImbalanced, layers, 2e-3, 1e-3, bias), .dim = 8});
      EXPECT_EQ(best.end, SimulationEnd::converged);
      EXPECT_NEAR(best.last.loss, (bias ? with_bias : without)[layers - 1], 5.1e-9);  // as many digits as they have
      EXPECT_TRUE(std::abs(best.last.gap) <= 1e-9 * best.last.minimum) << best.last.gap;
      EXPECT_GE(best.last.gap, -1e-13 * best.last.minimum);
      EXPECT_EQ(best.last.gap, best.last.loss - best.last.minimum);
      EXPECT_TRUE(best.differing.empty());
      EXPECT_EQ(best.rank_measured, bias ? 4 : 5);
      for (const auto* key : {"w", "h", "wh"}) {
        const auto value = best.last.report->find((bias ? "ufmb_" : "gof_") + std::string(key));
        ASSERT_TRUE(value.has_value()) << key;
        EXPECT_TRUE(*value <= 1e-5) << key << " " << *value;
      }
      EXPECT_NEAR(*best.last.report->find("ufm_loss"), best.last.loss, 1e-12);
      EXPECT_EQ(best.last.report->find("nc4_agree_train"), 1.0);
    }
}

TEST_P(Simulate, GradientDescentReachesItToo) {
  const SimulationResult result = simulate(
      *context_,
      {.model = ufm(kImbalanced, 2, 2e-3, 1e-3, true), .dim = 8, .optimizer = Optimizer::gd, .iterations = 50000});
  EXPECT_TRUE(std::abs(result.last.gap) <= 1e-9 * result.last.minimum) << result.last.gap;
  EXPECT_TRUE(result.differing.empty());
}

TEST_P(Simulate, ReachesTheMinimumOfANarrowModel) {
  const SimulationResult best = best_of(4, {.model = ufm(kImbalanced, 2, 2e-3, 1e-3, true), .dim = 2});
  EXPECT_NEAR(best.last.loss, 0.103008, 5.1e-7);
  EXPECT_TRUE(std::abs(best.last.gap) <= 1e-9 * best.last.minimum) << best.last.gap;
  EXPECT_EQ(best.rank_measured, 2);
  EXPECT_TRUE(best.differing.empty());
}

// Four classes of one size share an eigenspace of three directions, of which d = 2 leaves two alive, whichever they
// are.
TEST_P(Simulate, CountsSurvivorsInsideAnEigenspace) {
  const SimulationResult best = best_of(4, {.model = ufm({10, 10, 10, 10}, 2, 1e-3, 1e-3, true), .dim = 2});
  EXPECT_TRUE(std::abs(best.last.gap) <= 1e-9 * best.last.minimum) << best.last.gap;
  EXPECT_EQ(best.rank_predicted, 2);
  EXPECT_EQ(best.rank_measured, 2);
  EXPECT_TRUE(best.differing.empty());
}

TEST_P(Simulate, ManyLayersStartAtASizeThatConverges) {
  for (const Index layers : {8, 12}) {
    const SimulationResult result =
        simulate(*context_, {.model = ufm(kImbalanced, layers, 1e-3, 1e-3, true), .dim = 8});
    EXPECT_EQ(result.end, SimulationEnd::converged) << layers;
    EXPECT_GE(result.last.gap, -1e-12);
    EXPECT_LE(result.rank_measured, result.rank_predicted);
  }
}

TEST_P(Simulate, AStartFarTooLargeIsNotCalledConverged) {
  const SimulationResult result = simulate(
      *context_, {.model = ufm(kImbalanced, 2, 2e-3, 1e-3, true), .dim = 8, .iterations = 300, .start_scale = 3000.0});
  EXPECT_NE(result.end, SimulationEnd::converged);
  EXPECT_GT(result.last.iteration, 0);
  EXPECT_GT(result.last.gradient_norm, result.last.gradient_bound);
}

TEST_P(Simulate, AStationaryPointOfLowerRankIsReported) {
  SimulationOptions options{.model = ufm(kImbalanced, 3, 1e-2, 6e-3, true), .dim = 8, .start_scale = 1.4};
  SimulationResult low = simulate(*context_, options);
  for (; low.rank_measured != 3 && options.seed < 6; low = simulate(*context_, options)) ++options.seed;
  EXPECT_EQ(low.end, SimulationEnd::converged);
  EXPECT_NEAR(low.last.minimum, 0.116693, 5.1e-7);
  EXPECT_NEAR(low.last.loss, 0.126843, 5.1e-7);
  EXPECT_EQ(low.rank_predicted, 4);
  EXPECT_EQ(low.rank_measured, 3);
  const auto& directions = predict(options.model).directions;
  ASSERT_EQ(low.differing.size(), 1U);  // the smallest sigma that should survive
  EXPECT_EQ(low.differing[0].sigma, directions[3].sigma);
  EXPECT_EQ(low.differing[0].multiplicity, 1);
  EXPECT_EQ(low.differing[0].surviving_predicted, 1);
  EXPECT_EQ(low.differing[0].surviving_measured, 0);
  EXPECT_EQ(low.differing[0].w_predicted, directions[3].w);
  EXPECT_EQ(low.differing[0].z_predicted, directions[3].z);
  EXPECT_TRUE(low.differing[0].w_measured <= 1e-4);
  EXPECT_TRUE(low.differing[0].z_measured <= 1e-4);
  // It is what the theory of a narrower model calls its minimum.
  options.model.width = 3;
  EXPECT_NEAR(low.last.loss, predict(options.model).minimum, 1e-9);

  options.model.width = 0;
  options.start_scale = 3;
  const SimulationResult global = best_of(4, options);
  EXPECT_NEAR(global.last.loss, 0.116693, 5.1e-7);
  EXPECT_TRUE(global.differing.empty());
}

TEST_P(Simulate, WhenEverythingVanishes) {
  const SimulationResult result = simulate(*context_, {.model = ufm(kImbalanced, 2, 1, 1, true), .dim = 4});
  EXPECT_EQ(result.rank_predicted, 0);
  EXPECT_EQ(result.rank_measured, 0);
  EXPECT_TRUE(result.differing.empty());
  EXPECT_TRUE(std::abs(result.last.gap) <= 1e-9 * result.last.minimum);
}

TEST_P(Simulate, StepsAreMeasuredAsAskedFor) {
  SimulationOptions options{
      .model = ufm(kImbalanced, 2, 2e-3, 1e-3, true), .dim = 8, .iterations = 25, .measure_every = 10};
  std::vector<Index> seen, measured;
  double before = std::numeric_limits<double>::infinity();
  const auto note = [&](const SimulationStep& step) {
    if (seen.empty() || seen.back() != step.iteration) seen.push_back(step.iteration);
    if (step.report) measured.push_back(step.iteration);
    EXPECT_LE(step.loss, before);
    EXPECT_EQ(step.gap, step.loss - step.minimum);
    EXPECT_GE(step.evaluations, step.iteration + 1);
    before = step.loss;
    return true;
  };
  for (const auto optimizer : {Optimizer::lbfgs, Optimizer::gd}) {
    options.optimizer = optimizer;
    seen.clear();
    measured.clear();
    before = std::numeric_limits<double>::infinity();
    const SimulationResult result = simulate(*context_, options, note);
    EXPECT_EQ(result.end, SimulationEnd::iterations);
    EXPECT_EQ(result.last.iteration, 25);
    std::vector<Index> all(26);
    std::iota(all.begin(), all.end(), Index{0});
    EXPECT_EQ(seen, all);
    EXPECT_EQ(measured, (std::vector<Index>{0, 10, 20, 25}));
    UfmProblem problem(*context_, options.model, options.dim);
    EXPECT_EQ(problem.loss(result.parameters), result.last.loss);
    EXPECT_EQ(simulate(*context_, options).parameters, result.parameters);  // the same bits
  }
}

TEST_P(Simulate, TheCallbackCanStopIt) {
  struct Stop {};
  SimulationOptions options{.model = ufm(kImbalanced, 2, 2e-3, 1e-3, true), .dim = 8};
  for (const auto optimizer : {Optimizer::lbfgs, Optimizer::gd})
    for (const Index at : {0, 7}) {
      options.optimizer = optimizer;
      Index last = -1;
      EXPECT_THROW(simulate(*context_, options,
                            [&](const SimulationStep& step) -> bool {
                              last = step.iteration;
                              if (step.iteration == at) throw Stop();
                              return true;
                            }),
                   Stop);
      EXPECT_EQ(last, at);
      const SimulationResult result =
          simulate(*context_, options, [&](const SimulationStep& step) { return step.iteration < at; });
      EXPECT_EQ(result.end, SimulationEnd::stopped);
      EXPECT_EQ(result.last.iteration, at);
      ASSERT_TRUE(result.last.report.has_value());
      UfmProblem problem(*context_, options.model, options.dim);
      EXPECT_EQ(problem.loss(result.parameters), result.last.loss);
    }
}

// With no tolerance the line search goes on until rounding stops it.
TEST_P(Simulate, EndsAtRounding) {
  for (const auto optimizer : {Optimizer::lbfgs, Optimizer::gd}) {
    const SimulationResult result = simulate(*context_, {.model = ufm(kImbalanced, 1, 1e-2, 1e-2, true),
                                                         .dim = 8,
                                                         .optimizer = optimizer,
                                                         .iterations = 1000000,
                                                         .gradient_tolerance = 0});
    EXPECT_EQ(result.end, SimulationEnd::no_progress);
    EXPECT_TRUE(std::abs(result.last.gap) <= 1e-12 * result.last.minimum) << result.last.gap;
  }
}

// ------------------------------------------------------------------------------------------------ the optimisers

/// Rosenbrock's valley, minimum 0 at (1, 1).
double rosenbrock(std::span<const double> x, std::span<double> gradient) {
  const double across = x[1] - x[0] * x[0], along = 1 - x[0];
  gradient[0] = -400 * x[0] * across - 2 * along;
  gradient[1] = 200 * across;
  return 100 * across * across + along * along;
}

TEST(Minimise, ReachesAMinimumAndStopsThere) {
  for (const auto minimise : {minimise_lbfgs, minimise_gd}) {
    Vector x{-1.2, 1}, last;
    Index expected = 0;
    const auto end = minimise(rosenbrock, x, [&](const Iterate& point) {
      EXPECT_EQ(point.iteration, expected++);
      last.assign(point.x.begin(), point.x.end());
      return point.iteration < 1000000;
    });
    EXPECT_EQ(end, MinimiseEnd::no_progress);
    EXPECT_EQ(x, last);
    EXPECT_NEAR(x[0], 1, 1e-6);
    EXPECT_NEAR(x[1], 1, 1e-6);
  }
}

// Whatever throws inside, at whichever evaluation, the exception comes out, and nothing is called after it.
TEST(Minimise, ExceptionsOfTheObjectiveComeOut) {
  struct Broken {};
  for (const auto minimise : {minimise_lbfgs, minimise_gd})
    for (int at = 1; at <= 30; ++at) {
      Vector x{-1.2, 1};
      int calls = 0;
      const Objective objective = [&](std::span<const double> point, std::span<double> gradient) {
        if (++calls == at) throw Broken();
        return rosenbrock(point, gradient);
      };
      EXPECT_THROW(minimise(objective, x, [](const Iterate&) { return true; }), Broken);
      EXPECT_EQ(calls, at);
    }
}

TEST(Minimise, EndsWhereTheLossIsNoNumber) {
  for (const auto minimise : {minimise_lbfgs, minimise_gd}) {
    Vector x{-1.2, 1};
    const Objective wall = [](std::span<const double> point, std::span<double> gradient) {
      const double value = rosenbrock(point, gradient);
      return point[0] > -1 ? std::nan("") : value;
    };
    EXPECT_EQ(minimise(wall, x, [](const Iterate& point) { return point.iteration < 100000; }),
              MinimiseEnd::no_progress);
    EXPECT_TRUE(x[0] <= -1);
  }
}

TEST(Simulation, WrongInput) {
  const Context context(Device::parse("cpu"));
  const SimulationOptions right{.model = ufm(kImbalanced, 2, 1e-3, 1e-3, true), .dim = 4};
  const auto fails = [&](auto change, const std::string& word) {
    SimulationOptions options = right;
    change(options);
    try {
      simulate(context, options);
      ADD_FAILURE() << word;
    } catch (const UsageError& error) {
      EXPECT_NE((std::string(error.what()) + error.hint()).find(word), std::string::npos) << error.what();
    }
  };
  fails([](auto& o) { o.model.counts = {}; }, "no class counts");
  fails([](auto& o) { o.model.counts = {4, 0}; }, "class 1");
  fails([](auto& o) { o.model.counts = {-4, 3}; }, "-4");
  fails([](auto& o) { o.model.counts = {4}; }, "at least 2");
  fails([](auto& o) { o.model.lambda_w = {}; }, "layers");
  fails([](auto& o) { o.model.lambda_w[1] = 0; }, "no minimiser");
  fails([](auto& o) { o.model.lambda_h = 0; }, "no minimiser");
  fails([](auto& o) { o.model.lambda_h = -1; }, "lambda_h");
  fails([](auto& o) { o.model.width = 3; }, "width");
  fails([](auto& o) { o.dim = 0; }, "dim is 0");
  fails([](auto& o) { o.iterations = 0; }, "iterations");
  fails([](auto& o) { o.measure_every = 0; }, "measure_every");
  fails([](auto& o) { o.start_scale = 0; }, "start scale");
  fails([](auto& o) { o.start_scale = std::nan(""); }, "start scale");
  fails([](auto& o) { o.start_scale = 1e200; }, "overflows");
  fails([](auto& o) { o.gradient_tolerance = -1; }, "tolerance");
  EXPECT_THROW(parse_optimizer("adam"), UsageError);

  SimulationOptions large = right;
  large.dim = Index{1} << 62;
  EXPECT_THROW(simulate(context, large), DeviceError);

  UfmProblem problem(context, right.model, right.dim);
  const Vector x = problem.random_start(1, 1), longer(x.size() + 1);
  Vector gradient(x.size()), shorter(x.size() - 1);
  EXPECT_THROW(problem.loss(longer), UsageError);
  EXPECT_THROW(problem.loss_and_gradient(x, shorter), UsageError);
  EXPECT_THROW(problem.features(longer), UsageError);
}

}  // namespace
}  // namespace ncollapse
