// The theory of imbalanced collapse against dense linear algebra, the raw loss, and numbers from an independent program
// (L-BFGS on the raw loss in double precision).
#include "ncollapse/theory.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "ncollapse/error.hpp"
#include "tests/theory/dense.hpp"

namespace ncollapse {
namespace {

const std::vector<Index> kImbalanced{20, 12, 12, 5, 3};

std::vector<std::vector<Index>> many_imbalances() {
  std::vector<std::vector<Index>> all{{7},
                                      {4, 4},
                                      {9, 1},
                                      {5, 5, 5},
                                      {1, 2, 3},
                                      {3, 1, 2, 1},
                                      kImbalanced,
                                      {1000000, 999999, 999999, 1},
                                      {500, 500, 400, 400, 300, 300, 200, 200, 100, 100}};
  std::mt19937 random(3);
  for (const Index classes : {17, 64, 300})
    for (const Index largest : {Index{3}, Index{50}, Index{100000}}) {
      std::vector<Index> counts;
      for (Index k = 0; k < classes; ++k) counts.push_back(1 + static_cast<Index>(random() % largest));
      all.push_back(counts);
    }
  return all;
}

TEST(LabelSpectrum, PublishedExample) {
  const LabelSpectrum spectrum({500, 500, 400, 400, 300, 300, 200, 200, 100, 100}, LabelModel::with_bias);
  const Vector expected{22.36067977, 21.28034791, 20,          18.40281884, 17.32050808,
                        15.06110948, 14.14213562, 10.72284321, 10,          0};
  const Vector sigma = spectrum.sigma();
  ASSERT_EQ(sigma.size(), expected.size());
  for (std::size_t i = 0; i < sigma.size(); ++i) EXPECT_NEAR(sigma[i], expected[i], 5.1e-9) << i;
  EXPECT_EQ(sigma.back(), 0.0);
}

TEST(LabelSpectrum, DecomposesTheDenseMatrix) {
  for (const auto& counts : many_imbalances())
    for (const auto model : {LabelModel::with_bias, LabelModel::without_bias, LabelModel::seli}) {
      const LabelSpectrum spectrum(counts, model);
      const Vector sigma = spectrum.sigma();
      const auto classes = static_cast<Index>(counts.size());
      ASSERT_EQ(sigma.size(), counts.size());
      const Dense left = basis(spectrum, true), right = basis(spectrum, false);
      const double unit = 1e-14 * static_cast<double>(classes);
      for (const Dense& vectors : {left, right}) {
        const double gap = largest_gap(times(vectors, transposed(vectors)), identity(classes));
        EXPECT_TRUE(gap <= unit) << gap << " with " << classes << " classes of at most "
                                 << *std::max_element(counts.begin(), counts.end());
      }
      const Dense product = times(times(left, label_matrix(counts, model)), transposed(right));
      Dense expected(classes, classes);
      for (Index i = 0; i < classes; ++i) expected(i, i) = sigma[static_cast<std::size_t>(i)];
      EXPECT_TRUE(largest_gap(product, expected) <= unit * sigma.front()) << classes << " classes";
      for (std::size_t i = 1; i < sigma.size(); ++i) EXPECT_LE(sigma[i], sigma[i - 1]);
    }
}

TEST(LabelSpectrum, InterlacesWithTheClassSizes) {
  for (auto counts : many_imbalances()) {
    const Vector sigma = LabelSpectrum(counts, LabelModel::with_bias).sigma();
    std::sort(counts.rbegin(), counts.rend());
    for (std::size_t i = 0; i + 1 < counts.size(); ++i) {
      EXPECT_LE(sigma[i], std::sqrt(static_cast<double>(counts[i])) * (1 + 1e-15));
      EXPECT_GE(sigma[i], std::sqrt(static_cast<double>(counts[i + 1])) * (1 - 1e-15));
    }
    EXPECT_EQ(sigma.back(), 0.0);
  }
}

TEST(LabelSpectrum, SizesFarApart) {
  const std::vector<Index> counts{1'000'000'000'000'000, 500'000'000'000'000, 3, 1};
  const std::vector<double> sigma = LabelSpectrum(counts, LabelModel::with_bias).sigma();
  for (std::size_t r = 0; r < 3; ++r) {
    long double low = static_cast<long double>(counts[r + 1]), high = static_cast<long double>(counts[r]);
    for (int halving = 0; halving < 200; ++halving) {
      const long double middle = low + (high - low) / 2;
      long double sum = 0;
      for (const Index count : counts)
        sum += static_cast<long double>(count) / (static_cast<long double>(count) - middle);
      (sum < 0 ? low : high) = middle;
    }
    EXPECT_NEAR(sigma[r] * sigma[r] / static_cast<double>(low), 1, 1e-14) << r;
  }
}

TEST(LabelSpectrum, ManyEqualClassesShareTheirValue) {
  const LabelSpectrum spectrum(std::vector<Index>(100000, 7), LabelModel::with_bias);
  ASSERT_EQ(spectrum.eigenspaces().size(), 2U);
  EXPECT_EQ(spectrum.eigenspaces()[0].multiplicity, 99999);
  EXPECT_DOUBLE_EQ(spectrum.eigenspaces()[0].sigma, std::sqrt(7.0));
}

// ------------------------------------------------------------------------------------------------ the minimiser

UfmOptions ufm(std::vector<Index> counts, Index layers, double lambda_w, double lambda_h, bool bias, Index width = 0) {
  return {std::move(counts), Vector(static_cast<std::size_t>(layers), lambda_w), lambda_h, bias, width};
}

/// f at layers W_1..W_L, class features H (all samples of a class equal, columns are classes) and bias b.
double loss(const UfmOptions& model, const std::vector<Dense>& layers, const Dense& features, const Vector& bias) {
  Dense product = layers.front();
  for (std::size_t l = 1; l < layers.size(); ++l) product = times(layers[l], product);
  const Dense logits = times(product, features);
  double samples = 0, fit = 0, decay = 0;
  for (const Index count : model.counts) samples += static_cast<double>(count);
  for (Index k = 0; k < logits.cols; ++k) {
    const auto count = static_cast<double>(model.counts[static_cast<std::size_t>(k)]);
    for (Index j = 0; j < logits.rows; ++j) {
      const double gap = logits(j, k) + (model.bias ? bias[static_cast<std::size_t>(j)] : 0.0) - (j == k ? 1.0 : 0.0);
      fit += count * gap * gap;
    }
    for (Index i = 0; i < features.rows; ++i) decay += model.lambda_h / 2 * count * features(i, k) * features(i, k);
  }
  for (std::size_t l = 0; l < layers.size(); ++l) decay += model.lambda_w[l] / 2 * layers[l].squares();
  return fit / (2 * samples) + decay;
}

TEST(Predict, MinimaFoundByOptimisation) {
  const double with_bias[] = {0.01656018, 0.01932809, 0.02279918};
  const double without[] = {0.02147428, 0.02470530, 0.02895435};
  for (Index layers = 1; layers <= 3; ++layers) {
    EXPECT_NEAR(predict(ufm(kImbalanced, layers, 2e-3, 1e-3, true)).minimum, with_bias[layers - 1], 5.1e-9);
    EXPECT_NEAR(predict(ufm(kImbalanced, layers, 2e-3, 1e-3, false)).minimum, without[layers - 1], 5.1e-9);
  }
  EXPECT_NEAR(predict(ufm(kImbalanced, 2, 2e-3, 1e-3, true, 2)).minimum, 0.103008, 5.1e-7);  // rank-limited
  const UfmPrediction four = predict(ufm(kImbalanced, 3, 1e-2, 6e-3, true));
  EXPECT_NEAR(four.minimum, 0.116693, 5.1e-7);
  EXPECT_NEAR(predict(ufm({500, 500, 400, 400, 300, 300, 200, 200, 100, 100}, 3, 1e-5, 1e-5, true)).minimum,
              0.0007267897402421933, 1e-15);
}

// The predicted singular values, put together with the spectrum's vectors, have the predicted loss: so it is reached.
TEST(Predict, TheMinimiserReachesItsLoss) {
  for (const auto& counts : {kImbalanced, {9, 1}, {6, 6, 6}, {1000, 30, 30, 2, 1}})
    for (const bool bias : {true, false})
      for (Index layers = 1; layers <= 9; layers += 2)
        for (const double lambda : {1e-7, 1e-4, 2e-2}) {
          UfmOptions model = ufm(counts, layers, lambda, lambda / 3, bias);
          for (Index l = 0; l < layers; ++l)
            model.lambda_w[static_cast<std::size_t>(l)] *= 1 + 0.3 * static_cast<double>(l);
          const UfmPrediction prediction = predict(model);
          const LabelSpectrum spectrum(counts, bias ? LabelModel::with_bias : LabelModel::without_bias);
          const auto classes = spectrum.classes();
          const Dense left = basis(spectrum, true), right = basis(spectrum, false);
          std::vector<Dense> matrices(static_cast<std::size_t>(layers), Dense(classes, classes));
          Dense features(classes, classes);
          Index i = 0;
          for (const auto& direction : prediction.directions)
            for (Index copy = 0; copy < direction.multiplicity; ++copy, ++i) {
              if (copy >= direction.surviving) continue;
              for (Index l = 0; l < layers; ++l) {
                const double s = direction.layer_singular_values[static_cast<std::size_t>(l)];
                for (Index k = 0; k < classes; ++k) {
                  if (l + 1 == layers)
                    matrices[static_cast<std::size_t>(l)](k, i) = left(i, k) * s;  // U diag(s)
                  else if (k == i)
                    matrices[static_cast<std::size_t>(l)](i, i) = s;
                }
              }
              for (Index k = 0; k < classes; ++k)
                features(i, k) =
                    direction.z * right(i, k) / std::sqrt(static_cast<double>(counts[static_cast<std::size_t>(k)]));
            }
          const double reached = loss(model, matrices, features, prediction.bias);
          EXPECT_TRUE(std::abs(reached - prediction.minimum) <= 1e-12 * prediction.minimum + 1e-15)
              << reached << " " << prediction.minimum << " L " << layers << " lambda " << lambda;
        }
}

TEST(Predict, NoRandomPointIsBelow) {
  std::mt19937 random(11);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 1000; ++trial) {
    const Index classes = 2 + static_cast<Index>(random() % 4), layers = 1 + static_cast<Index>(random() % 3), dim = 5;
    std::vector<Index> counts;
    for (Index k = 0; k < classes; ++k) counts.push_back(1 + static_cast<Index>(random() % 30));
    const UfmOptions model = ufm(counts, layers, std::pow(10, -1 - 4 * (random() % 100) / 100.0), 1e-3, trial % 2 == 0);
    const double size = 0.05 + 2.0 * (random() % 100) / 100;
    std::vector<Dense> matrices;
    for (Index l = 0; l < layers; ++l) {
      matrices.emplace_back(l + 1 == layers ? classes : dim, dim);
      for (auto& value : matrices.back().values) value = size * normal(random);
    }
    Dense features(dim, classes);
    for (auto& value : features.values) value = size * normal(random);
    Vector bias;
    for (const Index count : counts)
      bias.push_back(static_cast<double>(count) /
                     static_cast<double>(std::accumulate(counts.begin(), counts.end(), Index{0})));
    EXPECT_GE(loss(model, matrices, features, bias), predict(model).minimum);
  }
}

// x* is compared with a fine scan of g, which knows nothing of thresholds or roots.
TEST(Predict, EveryRootMinimisesG) {
  for (Index layers = 1; layers <= 9; ++layers)
    for (const double lambda : {1e-6, 1e-3, 1e-2, 3e-2, 0.1}) {
      const UfmOptions model = ufm(kImbalanced, layers, lambda, lambda, true);
      const double samples = 52, product = std::pow(lambda, static_cast<double>(layers + 1)),
                   L = static_cast<double>(layers);
      for (const auto& direction : predict(model).directions) {
        if (direction.sigma == 0) continue;
        const double alpha = L * samples * std::pow(samples * product, 1 / L) / (direction.sigma * direction.sigma);
        const auto g = [&](double x) { return 1 / (std::pow(x, L) + 1) + alpha * x; };
        double best = 1;
        for (double u = -12; u < 14; u += 1e-3) best = std::min(best, g(std::exp(u)));
        const double value = direction.surviving > 0 ? g(direction.x) : 1.0;
        EXPECT_TRUE(value <= best + 1e-14) << layers << " " << lambda << " " << direction.sigma;
        EXPECT_EQ(direction.surviving > 0, product < direction.critical_lambda_product);
      }
    }
}

TEST(Predict, TheThreshold) {
  for (Index layers = 1; layers <= 5; ++layers) {
    const UfmPrediction free = predict(ufm({8, 8}, layers, 1e-6, 1e-6, true));
    const double critical = free.directions[0].critical_lambda_product;
    const auto survives_at = [&](double factor) {  // lambda_h carries the whole change
      const UfmPrediction p = predict(ufm({8, 8}, layers, 1e-3, factor * critical / std::pow(1e-3, layers), true));
      return p.directions[0];
    };
    EXPECT_EQ(survives_at(1 - 1e-9).surviving, 1);
    EXPECT_EQ(survives_at(1 + 1e-9).surviving, 0);
    const DirectionPrediction below = survives_at(1 - 1e-9);
    if (layers == 1)
      EXPECT_LT(below.x, 1e-8);  // shrinks continuously
    else
      EXPECT_NEAR(below.x, std::pow(layers - 1, 1.0 / static_cast<double>(layers)), 1e-3);  // jumps
    EXPECT_EQ(survives_at(1).at_threshold, layers > 1);
  }
}

TEST(Predict, LayersShareTheirPenalty) {
  UfmOptions model = ufm(kImbalanced, 3, 1e-4, 3e-4, true);
  model.lambda_w = {1e-4, 5e-5, 2e-3};
  for (const auto& direction : predict(model).directions) {
    if (direction.surviving == 0) continue;
    const double features = model.lambda_h * direction.z * direction.z;
    double product = 1;
    for (std::size_t l = 0; l < 3; ++l) {
      const double s = direction.layer_singular_values[l];
      EXPECT_NEAR(model.lambda_w[l] * s * s / features, 1, 1e-12);
      product *= s;
    }
    EXPECT_NEAR(product / direction.w, 1, 1e-12);
  }
}

// Two classes of n1 > n2 samples, one layer, with bias: the small one's logits are n2/N + q and n1/N - q with q = wz
// sqrt(n1/(2 N n2)) and wz = sigma - N sqrt(A), sigma^2 = 2 n1 n2/N, so it is lost from A = ((sigma - t)/N)^2 on, where
// t = (n1 - n2)/(2N) sqrt(2 N n2/n1). predict takes logits within 64 eps of their sizes, below 2 here, for equal.
TEST(Predict, WhereTheSmallerOfTwoClassesIsLost) {
  for (const auto& [n1, n2] : {std::pair<Index, Index>{9, 1}, {100, 99}, {1000, 3}, {1000000, 7}}) {
    const double a = static_cast<double>(n1), b = static_cast<double>(n2), N = a + b, sigma = std::sqrt(2 * a * b / N),
                 stretch = std::sqrt(2 * N * b / a), t = (a - b) / (2 * N) * stretch;
    const Vector found = class_critical_lambda_products_log10(ufm({n1, n2}, 1, 1e-3, 1e-3, true));
    const double relative = 2 * (128 * 2.3e-16 * stretch) / (sigma - t) + 2e-13;
    EXPECT_NEAR(found[1], 2 * std::log10((sigma - t) / N), relative / std::log(10.0) + 1e-14) << n1;
    EXPECT_TRUE(std::isinf(found[0]));
  }
}

// A class is lost from its critical product on: predict says so just above it and not just below.
TEST(Predict, WhereClassesAreLost) {
  for (const auto& counts : {kImbalanced, {9, 1}, {100, 100, 3, 3, 2}, {50, 20, 20, 1}, {1000, 1000, 10, 10}})
    for (const bool bias : {true, false})
      for (const Index layers : {1, 2, 5}) {
        SCOPED_TRACE(testing::Message() << counts.size() << " classes, " << layers << " layers, bias " << bias);
        const auto with_product = [&](double log10_product) {
          const double each = std::pow(10, log10_product / static_cast<double>(layers + 1));
          return ufm(counts, layers, each, each, bias);
        };
        const Vector found = class_critical_lambda_products_log10(with_product(-3));
        ASSERT_EQ(found.size(), counts.size());
        EXPECT_EQ(found, class_critical_lambda_products_log10(with_product(-9)));
        const auto is_lost = [&](Index k, double log10_product) {
          const auto lost = *predict(with_product(log10_product)).lost_classes;
          return std::count(lost.begin(), lost.end(), k) > 0;
        };
        for (std::size_t k = 0; k < counts.size(); ++k) {
          const auto label = static_cast<Index>(k);
          if (std::isinf(found[k])) {
            EXPECT_TRUE(bias && std::count(counts.begin(), counts.end(), counts[0]) == 1 && k == 0) << k;
            EXPECT_FALSE(is_lost(label, 3));
            continue;
          }
          EXPECT_FALSE(is_lost(label, found[k] - 1e-9)) << k;
          EXPECT_TRUE(is_lost(label, found[k] + 1e-9)) << k;
          EXPECT_TRUE(is_lost(label, found[k] + 4)) << k;
        }
        if (bias) continue;  // without, a class is its own direction
        for (const auto& direction : predict(with_product(-3)).directions)
          EXPECT_TRUE(std::any_of(found.begin(), found.end(), [&](double product) {
            return std::abs(product - direction.log10_critical_lambda_product) <= 1e-12;
          }));
      }
  UfmOptions narrow = ufm(kImbalanced, 1, 1e-3, 1e-3, true);
  narrow.width = 3;
  EXPECT_THROW(class_critical_lambda_products_log10(narrow), UsageError);
  EXPECT_EQ(class_critical_lambda_products_log10(ufm({5}, 1, 1e-3, 1e-3, true)),
            Vector({std::numeric_limits<double>::infinity()}));
}

TEST(Predict, LogitsAndLostClasses) {
  for (const auto& counts : {kImbalanced, {9, 1}, {100, 100, 3, 3, 2}, {50, 20, 20, 1}})
    for (const bool bias : {true, false})
      for (const double lambda : {1e-5, 3e-3, 2e-2, 1.0}) {
        const UfmOptions model = ufm(counts, 2, lambda, lambda, bias);
        const UfmPrediction prediction = predict(model);
        const LabelSpectrum spectrum(counts, bias ? LabelModel::with_bias : LabelModel::without_bias);
        const Dense left = basis(spectrum, true), right = basis(spectrum, false);
        const auto classes = spectrum.classes();
        const Vector logits = predicted_logits(model);
        ASSERT_EQ(logits.size(), static_cast<std::size_t>(classes * classes));
        std::vector<Index> lost;
        for (Index k = 0; k < classes; ++k) {
          double rival = -1e300, own = 0;
          for (Index j = 0; j < classes; ++j) {
            double expected = bias ? prediction.bias[static_cast<std::size_t>(j)] : 0.0;
            Index i = 0;
            for (const auto& direction : prediction.directions)
              for (Index copy = 0; copy < direction.multiplicity; ++copy, ++i)
                expected += left(i, j) * direction.w * direction.z * right(i, k) /
                            std::sqrt(static_cast<double>(counts[static_cast<std::size_t>(k)]));
            EXPECT_NEAR(logits[static_cast<std::size_t>(j * classes + k)], expected, 1e-13);
            (j == k ? own : rival) = j == k ? expected : std::max(rival, expected);
          }
          if (own <= rival + 1e-12) lost.push_back(k);
        }
        EXPECT_EQ(prediction.lost_classes, std::optional(lost)) << lambda;
      }
  // So strong a decay that nothing survives: only the largest class is told from the others, by the bias alone.
  const UfmPrediction nothing = predict(ufm(kImbalanced, 1, 1, 1, true));
  EXPECT_EQ(nothing.lost_classes, std::optional(std::vector<Index>{1, 2, 3, 4}));
  EXPECT_EQ(predict(ufm({5, 5, 5}, 1, 1, 1, true)).lost_classes->size(), 3U);
}

TEST(Predict, LogitsOfManyAdjacentSizes) {  // where partial fractions lose digits, if they are not made of neighbours
  std::vector<Index> many;
  for (Index k = 0; k < 150; ++k) many.push_back(10000 - k - k % 3);
  for (const auto& counts :
       {many, std::vector<Index>{1000000, 999999, 50000, 49999, 10, 9, 2, 1}, {1000000000, 1000000, 999999, 1}}) {
    const UfmOptions model = ufm(counts, 2, 1e-14, 1e-14, true);
    const UfmPrediction prediction = predict(model);
    EXPECT_GT(prediction.directions.front().surviving, 0);
    const LabelSpectrum spectrum(counts, LabelModel::with_bias);
    Dense left = basis(spectrum, true);
    const Dense right = basis(spectrum, false);
    Index i = 0;
    for (const auto& direction : prediction.directions)
      for (Index copy = 0; copy < direction.multiplicity; ++copy, ++i)
        for (Index k = 0; k < left.cols; ++k) left(i, k) *= direction.w * direction.z;
    const Dense product = times(transposed(left), right);
    const Vector logits = predicted_logits(model);
    double largest = 0;
    for (Index j = 0; j < product.rows; ++j)
      for (Index k = 0; k < product.cols; ++k) {
        const auto column = static_cast<std::size_t>(k);
        const double expected = product(j, k) / std::sqrt(static_cast<double>(counts[column])) +
                                prediction.bias[static_cast<std::size_t>(j)];
        largest = std::max(largest, std::abs(logits[static_cast<std::size_t>(j * product.cols + k)] - expected));
      }
    EXPECT_TRUE(largest <= 1e-13) << largest << " for " << counts.size() << " classes";
  }
}

TEST(Predict, ExtremeDecaysAndOneClass) {
  // Far below where lambda products underflow every number is still right: s^2 lambda_l = z^2 lambda_h.
  const UfmPrediction tiny = predict(ufm({50, 30}, 1, 1e-300, 1e-300, true));
  EXPECT_NEAR(tiny.directions[0].layer_singular_values[0] / tiny.directions[0].z, 1, 1e-12);
  for (const UfmOptions& beyond : {ufm({50, 30}, 1, 1e-310, 1e-310, true), ufm({3, 2, 2}, 4, 1e-300, 1e300, true)}) {
    EXPECT_THROW(predict(beyond), UsageError);
    EXPECT_THROW(predicted_logits(beyond), UsageError);
    EXPECT_THROW(predicted_cosines(beyond), UsageError);
  }
  // 120 layers: the critical product underflows, its logarithm does not.
  const UfmPrediction deep = predict(ufm({100, 50, 10}, 120, 1e-4, 1e-3, true));
  EXPECT_GT(deep.directions[1].surviving, 0);
  EXPECT_EQ(deep.directions[1].critical_lambda_product, 0);
  EXPECT_GT(deep.directions[1].log10_critical_lambda_product, 120 * -4 - 3);
  EXPECT_EQ(predict(ufm({5}, 1, 1e-3, 1e-3, true)).lost_classes, std::optional(std::vector<Index>{}));
}

TEST(Predict, AWidthThatCutsThroughAnEigenspace) {
  const UfmOptions model = ufm({10, 10, 10, 10}, 1, 1e-3, 1e-3, true, 2);
  const UfmPrediction prediction = predict(model);
  EXPECT_EQ(prediction.directions[0].multiplicity, 3);
  EXPECT_EQ(prediction.directions[0].surviving, 2);
  EXPECT_FALSE(prediction.lost_classes.has_value());
  EXPECT_THROW(predicted_logits(model), UsageError);
  EXPECT_THROW(predicted_cosines(model), UsageError);
}

/// The vectors of the classes at the minimiser in coordinates of their own: columns diag(w) U^T, or diag(z) V^T D^-1.
Dense vectors_at_minimum(const UfmOptions& model, bool left) {
  const LabelSpectrum spectrum(model.counts, model.label_model());
  Dense vectors = basis(spectrum, left);
  Index i = 0;
  for (const auto& direction : predict(model).directions)
    for (Index copy = 0; copy < direction.multiplicity; ++copy, ++i)
      for (Index k = 0; k < vectors.cols; ++k)
        vectors(i, k) *= left ? direction.w
                              : direction.z / std::sqrt(static_cast<double>(model.counts[static_cast<std::size_t>(k)]));
  return vectors;
}

TEST(Predict, CosinesBySize) {
  for (const std::vector<Index>& counts :
       {std::vector<Index>{12, 20, 5, 12, 3}, {7, 7, 7}, {1000000, 999999, 3, 3, 1}, {9, 8, 7, 6, 5, 5, 5, 5, 2}})
    for (const Index layers : {1, 2, 4})
      for (const bool bias : {true, false})
        for (const MeanCentre centre : {MeanCentre::samples, MeanCentre::classes}) {
          const double lambda = layers == 1 ? 1e-4 : layers == 2 ? 1e-3 : 2e-3;  // something survives, not everything
          const UfmOptions model = ufm(counts, layers, lambda, lambda, bias);
          const PredictedCosines found = predicted_cosines(model, centre);
          const auto m = static_cast<Index>(found.sizes.size());
          EXPECT_GT(predict(model).rank(), 0) << layers << bias;  // or NaN would be compared with NaN
          EXPECT_TRUE(std::is_sorted(found.sizes.rbegin(), found.sizes.rend()));
          double samples = 0;
          for (const Index count : counts) samples += static_cast<double>(count);
          for (const bool left : {true, false}) {
            Dense vectors = vectors_at_minimum(model, left);
            for (Index i = 0; !left && i < vectors.rows; ++i) {
              double mean = 0;
              for (Index k = 0; k < vectors.cols; ++k)
                mean += vectors(i, k) * (centre == MeanCentre::classes
                                             ? 1 / static_cast<double>(vectors.cols)
                                             : static_cast<double>(counts[static_cast<std::size_t>(k)]) / samples);
              for (Index k = 0; k < vectors.cols; ++k) vectors(i, k) -= mean;
            }
            const Dense gram = times(transposed(vectors), vectors);
            const Vector& cosines = left ? found.w : found.h;
            ASSERT_EQ(cosines.size(), static_cast<std::size_t>(m * m));
            Vector compared(cosines.size());
            for (Index j = 0; j < gram.rows; ++j)
              for (Index k = 0; k < gram.cols; ++k) {
                const auto place = [&](Index of) {
                  return std::find(found.sizes.begin(), found.sizes.end(), counts[static_cast<std::size_t>(of)]) -
                         found.sizes.begin();
                };
                const auto at = static_cast<std::size_t>(place(j) * m + place(k));
                if (j == k) continue;
                compared[at] += 1;
                if (gram(j, j) > 0 && gram(k, k) > 0) {
                  EXPECT_NEAR(cosines[at], gram(j, k) / std::sqrt(gram(j, j) * gram(k, k)), 1e-12)
                      << layers << bias << left << " classes " << j << ", " << k;
                } else {
                  EXPECT_TRUE(std::isnan(cosines[at])) << layers << bias << left << " classes " << j << ", " << k;
                }
              }
            for (std::size_t at = 0; at < cosines.size(); ++at)
              EXPECT_EQ(compared[at] == 0 || std::isnan(cosines[at]), std::isnan(cosines[at])) << at;
          }
        }
}

TEST(Predict, CosinesOfBalancedAndOfLostClasses) {
  // The simplex: with a bias the classifiers', without one that of the means less their own mean. Without bias the
  // classifiers are orthogonal.
  for (const bool bias : {true, false}) {
    const PredictedCosines cosines = predicted_cosines(ufm({10, 10, 10, 10}, 2, 1e-4, 1e-4, bias));
    EXPECT_EQ(cosines.sizes, (std::vector<Index>{10}));
    EXPECT_NEAR(cosines.h.at(0), -1.0 / 3, 1e-14);
    EXPECT_NEAR(cosines.w.at(0), bias ? -1.0 / 3 : 0, 1e-14);
  }
  // Two classes with a bias: one direction, on both sides of 0.
  const PredictedCosines two = predicted_cosines(ufm({90, 10}, 1, 1e-4, 1e-4, true));
  EXPECT_NEAR(two.h.at(1), -1, 1e-14);
  EXPECT_NEAR(two.w.at(2), -1, 1e-14);
  EXPECT_TRUE(std::isnan(two.h.at(0)));  // a class of a size of its own has no other of it
  // Without bias and above N lambda = sqrt(n_k) class k vanishes (L = 1): its mean is 0, which the centre is not.
  const PredictedCosines lost = predicted_cosines(ufm({400, 1}, 1, 5.0 / 401, 5.0 / 401, false));
  EXPECT_TRUE(std::isnan(lost.w.at(1)));
  EXPECT_NEAR(lost.h.at(1), -1, 1e-12);
  // Small rows are exact: those of 3 and 2 are some 1e-9 of the others.
  const PredictedCosines small =
      predicted_cosines(ufm({1000000000, 999999999, 999999998, 3, 2}, 1, 1e2 / 3e9, 1e2 / 3e9, true));
  EXPECT_NEAR(small.w.at(3 * 5 + 4), 1, 1e-12);
  EXPECT_NEAR(std::abs(small.w.at(3)), std::sqrt(0.75), 1e-8);
  // And means beside the centre of a class with nearly all samples, without bias: a_i e_i less sum_k n_k/N a_k e_k.
  const UfmOptions model = ufm({1'000'000'000'000, 2, 1}, 1, 1e-14, 1e-14, false);
  long double a[3], share[3];
  for (std::size_t i = 0; i < 3; ++i) {
    a[i] = predict(model).directions[i].z / std::sqrt(static_cast<long double>(model.counts[i]));
    share[i] = static_cast<long double>(model.counts[i]) / (1e12L + 3);
  }
  const long double rest = share[1] + share[2];
  const long double first[3] = {rest * a[0], -share[1] * a[1], -share[2] * a[2]},
                    second[3] = {-share[0] * a[0], (share[0] + share[2]) * a[1], -share[2] * a[2]};
  long double dot = 0, one = 0, other = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    dot += first[i] * second[i];
    one += first[i] * first[i];
    other += second[i] * second[i];
  }
  EXPECT_NEAR(predicted_cosines(model).h.at(1), static_cast<double>(dot / std::sqrt(one * other)), 1e-14);
  // Where nothing survives there is no direction, and with one class no difference.
  for (const double cosine : predicted_cosines(ufm({4, 4, 2}, 1, 1, 1, true)).h) EXPECT_TRUE(std::isnan(cosine));
  EXPECT_TRUE(std::isnan(predicted_cosines(ufm({5}, 1, 1e-3, 1e-3, true)).h.at(0)));
}

TEST(Predict, WrongInput) {
  const auto fails = [](const UfmOptions& model, const std::string& word) {
    try {
      predict(model);
      ADD_FAILURE() << word;
    } catch (const UsageError& error) {
      EXPECT_NE((error.what() + error.hint()).find(word), std::string::npos) << error.what();
    }
  };
  fails(ufm({}, 1, 1, 1, true), "no class counts");
  fails(ufm({3, 0}, 1, 1, 1, true), "class 1");
  fails(ufm({3, -2}, 1, 1, 1, true), "-2");
  fails(ufm({3, 2}, 0, 1, 1, true), "layers");
  fails(ufm({3, 2}, 1, 0, 1, true), "no minimiser");
  fails(ufm({3, 2}, 1, 1, -1, true), "lambda_h");
  fails(ufm({3, 2}, 1, std::nan(""), 1, true), "lambda_w");
  fails(ufm({3, 2}, 1, 1, 1, true, -1), "width");
  fails(ufm({INT64_MAX, 2}, 1, 1, 1, true), "2^53");
  const LabelSpectrum spectrum(kImbalanced, LabelModel::with_bias);
  EXPECT_THROW(spectrum.apply_left(Vector(7), 2), UsageError);
}

}  // namespace
}  // namespace ncollapse
