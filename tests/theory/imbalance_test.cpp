// Distance to the predicted geometry: against dense matrices, at the minimiser itself, and on real dumps.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "ncollapse/ncollapse.hpp"
#include "tests/theory/dense.hpp"

namespace ncollapse {
namespace {

class Imbalance : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    try {
      context_.emplace(Device::parse(GetParam()));
    } catch (const DeviceError& error) {
      GTEST_SKIP() << error.what();
    }
  }

  /// Every sample of class k is column k of `features` [d x K], so nothing varies within classes.
  ClassMoments moments_of(const std::vector<Index>& counts, const Dense& features) const {
    const Dense rows = transposed(features);
    Accumulator moments(*context_, {.classes = rows.rows, .dim = rows.cols});
    for (Index k = 0; k < rows.rows; ++k) {
      Vector block;
      for (Index i = 0; i < counts[static_cast<std::size_t>(k)]; ++i)
        block.insert(block.end(), rows.values.begin() + k * rows.cols, rows.values.begin() + (k + 1) * rows.cols);
      const std::vector<std::int64_t> labels(static_cast<std::size_t>(counts[static_cast<std::size_t>(k)]), k);
      moments.add(view(block.data(), counts[static_cast<std::size_t>(k)], rows.cols),
                  view(labels.data(), counts[static_cast<std::size_t>(k)]));
    }
    return moments.finish();
  }
  Report measured(const std::vector<Index>& counts, const Dense& features, const std::vector<Dense>& layers,
                  const Vector& bias, double lambda_w, double lambda_h) const {
    Classifier head;
    for (const Dense& layer : layers) head.layers.push_back(view(layer.values.data(), layer.rows, layer.cols));
    if (!bias.empty()) head.bias = view(bias.data(), 1, static_cast<Index>(bias.size()));
    return measure(moments_of(counts, features), {.classifier = &head, .lambda_w = {lambda_w}, .lambda_h = lambda_h});
  }

  std::optional<Context> context_;
};

const std::vector<std::vector<Index>> kImbalances{{20, 12, 12, 5, 3}, {9, 1}, {6, 6, 6}, {30, 30, 2, 2, 2, 7}};

/// W_1..W_L and H of the global minimiser, in d = K dimensions.
struct Minimiser {
  std::vector<Dense> layers;
  Dense features;  // [d x K]
};
Minimiser minimiser(const UfmOptions& model) {
  const UfmPrediction prediction = predict(model);
  const LabelSpectrum spectrum(model.counts, model.label_model());
  const Index classes = spectrum.classes();
  const Dense left = basis(spectrum, true), right = basis(spectrum, false);
  Minimiser result{std::vector<Dense>(model.lambda_w.size(), Dense(classes, classes)), Dense(classes, classes)};
  Index i = 0;
  for (const auto& direction : prediction.directions)
    for (Index copy = 0; copy < direction.multiplicity; ++copy, ++i) {
      for (std::size_t l = 0; l < result.layers.size(); ++l)
        for (Index k = 0; k < classes; ++k) {
          const bool last = l + 1 == result.layers.size();
          result.layers[l](last ? k : i, i) = (last ? left(i, k) : 1.0) * direction.layer_singular_values[l];
        }
      for (Index k = 0; k < classes; ++k)
        result.features(i, k) =
            direction.z * right(i, k) / std::sqrt(static_cast<double>(model.counts[static_cast<std::size_t>(k)]));
    }
  return result;
}

TEST_P(Imbalance, EveryMeasureIsZeroAtTheMinimiser) {
  for (const auto& counts : kImbalances)
    for (const bool bias : {true, false})
      for (const Index layers : {1, 3})
        for (const double lambda : {1e-5, 5e-3}) {
          const UfmOptions model{counts, Vector(static_cast<std::size_t>(layers), lambda), lambda / 2, bias, 0};
          const UfmPrediction prediction = predict(model);
          if (prediction.directions.front().surviving == 0) continue;
          const Minimiser point = minimiser(model);
          const Report report = measured(counts, point.features, point.layers, prediction.bias, lambda, lambda / 2);
          const std::string family = bias ? "ufmb_" : "gof_";
          for (const auto* name : {"w", "h", "wh"}) {
            const auto value = report.find(family + name);
            ASSERT_TRUE(value.has_value()) << family << name;
            EXPECT_TRUE(*value <= 1e-7) << family << name << " " << *value;
          }
          EXPECT_TRUE(std::abs(*report.find("ufm_loss") - prediction.minimum) <= 1e-12 * prediction.minimum + 1e-15);
          EXPECT_DOUBLE_EQ(*report.find("ufm_loss_min"), prediction.minimum);
          for (const auto* name : {"sv", "sv_w", "sv_h"})
            EXPECT_TRUE(report.find(family + name).value() <= 1e-13) << family << name;
          EXPECT_EQ(report.find(family + "rank_obs").value(), report.find(family + "rank_pred").value());
          if (!bias) {
            EXPECT_TRUE(report.find("gof_w_vs_h").value() <= 1e-14);
            if (layers == 1 && prediction.directions.back().surviving > 0) {
              EXPECT_TRUE(report.find("gof_len_ratio").value() <= 1e-13);
            } else {
              EXPECT_EQ(report.status.at("gof_len_ratio").code, "undefined");
            }
          }
          if (bias) {
            EXPECT_TRUE(report.find("ufmb_row_orth").value() <= 1e-7);
            EXPECT_TRUE(report.find("ufmb_col_orth").value() <= 1e-7);
            EXPECT_NEAR(*report.find("ufmb_align_min"), 1, 1e-12);
            EXPECT_TRUE(*report.find("ufmb_vanished_w") <= 1e-25);
            EXPECT_TRUE(*report.find("nc_bias_prior") <= 1e-15);
          }
          ASSERT_EQ(report.spectrum.size(), prediction.directions.size());
          for (const auto& row : report.spectrum) {
            EXPECT_NEAR(row.w_measured, row.w_predicted, 1e-12);
            EXPECT_NEAR(row.z_measured, row.z_predicted, 1e-12);
          }
        }
}

double normalised_gap(const Dense& a, const Dense& b) {
  double sum = 0;
  const double na = std::sqrt(a.squares()), nb = std::sqrt(b.squares());
  for (std::size_t i = 0; i < a.values.size(); ++i) sum += std::pow(a.values[i] / na - b.values[i] / nb, 2);
  return std::sqrt(sum);
}

TEST_P(Imbalance, RandomPointsAgreeWithDenseMatrices) {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  for (const auto& counts : kImbalances)
    for (const Index dim : {2, 3, 9}) {
      const auto classes = static_cast<Index>(counts.size());
      Dense weights(classes, dim), features(dim, classes);
      for (auto& value : weights.values) value = normal(random);
      for (auto& value : features.values) value = normal(random);
      const auto samples = static_cast<double>(std::accumulate(counts.begin(), counts.end(), Index{0}));
      const Vector bias(counts.size(), 0.1);
      const double lambda = 1e-4;
      for (const bool with_bias : {true, false}) {
        const Report report = measured(counts, features, {weights}, with_bias ? bias : Vector{}, lambda, lambda);
        const UfmOptions model{counts, {lambda}, lambda, with_bias, dim};
        const UfmPrediction prediction = predict(model);
        const LabelSpectrum spectrum(counts, with_bias ? LabelModel::with_bias : LabelModel::without_bias);
        const Dense left = basis(spectrum, true), right = basis(spectrum, false);
        Dense means = transposed(features);  // [K x d], centred with a bias
        if (with_bias)
          for (Index j = 0; j < dim; ++j) {
            double centre = 0;
            for (Index k = 0; k < classes; ++k)
              centre += static_cast<double>(counts[static_cast<std::size_t>(k)]) * means(k, j) / samples;
            for (Index k = 0; k < classes; ++k) means(k, j) -= centre;
          }
        Dense z = means;
        for (Index k = 0; k < classes; ++k)
          for (Index j = 0; j < dim; ++j)
            z(k, j) *= std::sqrt(static_cast<double>(counts[static_cast<std::size_t>(k)]));
        const Dense a = times(left, weights), b = times(right, z);
        Dense w2(classes, classes), z2(classes, classes), wz(classes, classes), per_sample(classes, classes);
        Index i = 0;
        bool cut = false;
        for (const auto& direction : prediction.directions) {
          cut = cut || (direction.surviving > 0 && direction.surviving < direction.multiplicity);
          for (Index copy = 0; copy < direction.multiplicity; ++copy, ++i) {
            w2(i, i) = direction.w * direction.w;
            z2(i, i) = direction.z * direction.z;
            wz(i, i) = direction.w * direction.z;
            per_sample(i, i) = z2(i, i) / (direction.sigma * direction.sigma);
          }
        }
        const std::string family = with_bias ? "ufmb_" : "gof_";
        if (cut) {
          EXPECT_FALSE(report.find(family + "w").has_value());
          EXPECT_EQ(report.status.at(family + "w").code, "undefined");
          EXPECT_FALSE(report.find("gof_w_vs_h").has_value());
          continue;
        }
        EXPECT_NEAR(report.find(family + "w").value(), normalised_gap(times(a, transposed(a)), w2), 1e-8);
        EXPECT_NEAR(report.find(family + "wh").value(), normalised_gap(times(a, transposed(b)), wz), 1e-8);
        if (with_bias) {
          // Off the diagonal blocks of eigenspaces, relative.
          const auto outside = [&](const Dense& rows) {
            const Dense gram = times(rows, transposed(rows));
            double squares = 0;
            Index begin_i = 0;
            for (const auto& rows_space : spectrum.eigenspaces()) {
              Index begin_j = 0;
              for (const auto& cols_space : spectrum.eigenspaces()) {
                for (Index p = begin_i; p < begin_i + rows_space.multiplicity; ++p)
                  for (Index q = begin_j; q < begin_j + cols_space.multiplicity; ++q)
                    squares += begin_i == begin_j ? 0.0 : gram(p, q) * gram(p, q);
                begin_j += cols_space.multiplicity;
              }
              begin_i += rows_space.multiplicity;
            }
            return std::sqrt(squares / gram.squares());
          };
          constexpr double kRest = 0x1p-24;  // the root of 16 eps: they come from a difference of numbers of size 1
          EXPECT_NEAR(report.find("ufmb_row_orth").value(), outside(a), kRest);
          EXPECT_NEAR(report.find("ufmb_col_orth").value(), outside(b), kRest);
        } else {
          Dense dual = means;
          Vector ratio;
          double ratio_norm = 0, count_norm = 0, gap = 0;
          for (Index k = 0; k < classes; ++k) {
            const auto row = static_cast<std::size_t>(k);
            const double n = static_cast<double>(counts[row]);
            const double t = std::max(0.0, std::sqrt(n) - samples * lambda);  // closed form: L = 1, equal decays
            double w_norm = 0, m_norm = 0;
            for (Index j = 0; j < dim; ++j) {
              dual(k, j) *= t + samples * lambda;
              w_norm += weights(k, j) * weights(k, j);
              m_norm += means(k, j) * means(k, j);
            }
            ratio.push_back(w_norm / m_norm);
            ratio_norm += ratio.back() * ratio.back();
            count_norm += n * n;
          }
          for (std::size_t k = 0; k < ratio.size(); ++k)
            gap +=
                std::pow(ratio[k] / std::sqrt(ratio_norm) - static_cast<double>(counts[k]) / std::sqrt(count_norm), 2);
          if (dim >= classes) {
            EXPECT_NEAR(report.find("gof_w_vs_h").value(), normalised_gap(weights, dual), 1e-12);
          }
          EXPECT_NEAR(report.find("gof_len_ratio").value(), std::sqrt(gap), 1e-12);
        }
        // The same from C++, without the measurement.
        const GeometryDistance distance = geometry_distance(*context_, model, view(weights.values.data(), classes, dim),
                                                            view(transposed(features).values.data(), classes, dim));
        EXPECT_TRUE(distance.undefined.empty());
        EXPECT_NEAR(distance.w, report.find(family + "w").value(), 1e-10);
        EXPECT_NEAR(distance.h, report.find(family + "h").value(), 1e-10);
        EXPECT_NEAR(distance.wh, report.find(family + "wh").value(), 1e-10);
        if (with_bias) {
          EXPECT_NEAR(distance.align_min, report.find("ufmb_align_min").value(), 1e-10);
        }
        EXPECT_EQ(distance.spectrum.size(), spectrum.eigenspaces().size());
        const Dense sorted = times(right, means);  // without bias: rows in the order of sizes
        EXPECT_NEAR(report.find(family + "h").value(),
                    with_bias ? normalised_gap(times(b, transposed(b)), z2)
                              : normalised_gap(times(sorted, transposed(sorted)), per_sample),
                    1e-8);
      }

      // SELI, from its dense decomposition.
      const Report report = measured(counts, features, {weights}, {}, lambda, lambda);
      const LabelSpectrum seli(counts, LabelModel::seli);
      const Vector sigma = seli.sigma();
      const Dense left = basis(seli, true), right = basis(seli, false), means = transposed(features);
      Dense p(classes, classes), q(classes, classes), target(classes, classes);
      for (Index j = 0; j < classes; ++j)
        for (Index k = 0; k < classes; ++k) {
          for (Index i = 0; i < classes; ++i) {
            p(j, k) += left(i, j) * sigma[static_cast<std::size_t>(i)] * left(i, k);
            q(j, k) += right(i, j) * sigma[static_cast<std::size_t>(i)] * right(i, k);
          }
          q(j, k) /=
              std::sqrt(static_cast<double>(counts[static_cast<std::size_t>(j)] * counts[static_cast<std::size_t>(k)]));
          target(j, k) = (j == k ? 1.0 : 0.0) - 1.0 / static_cast<double>(classes);
        }
      EXPECT_NEAR(report.find("seli_w").value(), normalised_gap(times(weights, transposed(weights)), p), 1e-8);
      EXPECT_NEAR(report.find("seli_h").value(), normalised_gap(times(means, transposed(means)), q), 1e-8);
      EXPECT_NEAR(report.find("seli_z").value(), normalised_gap(times(weights, transposed(means)), target), 1e-8);
    }
}

/// Turns the columns of U and of V inside every eigenspace by one random rotation, the same for both.
void rotate_inside_eigenspaces(const std::vector<Eigenspace>& spaces, std::mt19937& random, Dense& U, Dense& V) {
  std::normal_distribution<double> normal;
  Index first = 0;
  for (const auto& space : spaces) {
    const Index n = space.multiplicity;
    Dense rotation(n, n);
    for (Index i = 0; i < n; ++i) {  // Gram-Schmidt, twice for orthogonality to working precision
      for (Index j = 0; j < n; ++j) rotation(i, j) = normal(random);
      for (int pass = 0; pass < 2; ++pass) {
        for (Index k = 0; k <= i; ++k) {
          double dot = 0;
          for (Index j = 0; j < n; ++j) dot += rotation(i, j) * rotation(k, j);
          for (Index j = 0; j < n; ++j)
            rotation(i, j) = k < i ? rotation(i, j) - dot * rotation(k, j) : rotation(i, j) / std::sqrt(dot);
        }
      }
    }
    for (Dense* basis : {&U, &V}) {
      const Dense old = *basis;
      for (Index k = 0; k < old.rows; ++k)
        for (Index i = 0; i < n; ++i) {
          double sum = 0;
          for (Index j = 0; j < n; ++j) sum += rotation(i, j) * old(k, first + j);
          (*basis)(k, first + i) = sum;
        }
    }
    first += n;
  }
}

/// Every ufmb_* by its definition, with full K x K Grams in the basis of U and V [K x K, columns]; scaled_means is D M,
/// M [K x d] centred.
std::map<std::string, double> measured_in_basis(const Dense& U, const Dense& V, const UfmPrediction& prediction,
                                                const Dense& weights, const Dense& scaled_means) {
  const Dense a = times(transposed(U), weights), b = times(transposed(V), scaled_means);
  const Dense gram_w = times(a, transposed(a)), gram_h = times(b, transposed(b)), product = times(a, transposed(b));
  const Index classes = U.rows;
  Dense w2(classes, classes), z2(classes, classes), wz(classes, classes);
  double aligned = 0, least = 1, alive = 0, vanished_w = 0, vanished_h = 0, all_w = 0, all_h = 0;
  double blocks_w = 0, blocks_h = 0;  // squares inside the eigenspaces' diagonal blocks
  Index i = 0;
  for (const auto& direction : prediction.directions) {
    double w = 0, h = 0, wh = 0;  // traces of the eigenspace's blocks
    for (Index p = i; p < i + direction.multiplicity; ++p)
      for (Index q = i; q < i + direction.multiplicity; ++q) {
        blocks_w += gram_w(p, q) * gram_w(p, q);
        blocks_h += gram_h(p, q) * gram_h(p, q);
      }
    for (Index copy = 0; copy < direction.multiplicity; ++copy, ++i) {
      w2(i, i) = direction.w * direction.w;
      z2(i, i) = direction.z * direction.z;
      wz(i, i) = direction.w * direction.z;
      w += gram_w(i, i);
      h += gram_h(i, i);
      wh += product(i, i);
    }
    all_w += w;
    all_h += h;
    if (direction.surviving == 0) {
      vanished_w += w;
      vanished_h += h;
      continue;
    }
    const double cosine = wh / std::sqrt(w * h);
    aligned += static_cast<double>(direction.multiplicity) * cosine;
    alive += static_cast<double>(direction.multiplicity);
    least = std::min(least, cosine);
  }
  return {{"ufmb_w", normalised_gap(gram_w, w2)},
          {"ufmb_h", normalised_gap(gram_h, z2)},
          {"ufmb_wh", normalised_gap(product, wz)},
          {"ufmb_row_orth", std::sqrt(std::max(0.0, 1 - blocks_w / gram_w.squares()))},
          {"ufmb_col_orth", std::sqrt(std::max(0.0, 1 - blocks_h / gram_h.squares()))},
          {"ufmb_align_mean", aligned / alive},
          {"ufmb_align_min", least},
          {"ufmb_vanished_w", vanished_w / all_w},
          {"ufmb_vanished_h", vanished_h / all_h},
          {"ufmb_rank_pred", alive}};
}
std::map<std::string, double> seli_in_basis(const Dense& U, const Dense& V, const Vector& sigma, const Dense& weights,
                                            const Dense& means, const std::vector<Index>& counts) {
  const Index classes = U.rows;
  Dense left = U, right = V;  // columns times sqrt(sigma); rows of the right one over sqrt(n)
  for (Index k = 0; k < classes; ++k)
    for (Index i = 0; i < classes; ++i) {
      const double root = std::sqrt(sigma[static_cast<std::size_t>(i)]);
      left(k, i) *= root;
      right(k, i) *= root / std::sqrt(static_cast<double>(counts[static_cast<std::size_t>(k)]));
    }
  return {{"seli_w", normalised_gap(times(weights, transposed(weights)), times(left, transposed(left)))},
          {"seli_h", normalised_gap(times(means, transposed(means)), times(right, transposed(right)))},
          {"seli_z", normalised_gap(times(weights, transposed(means)), times(left, transposed(right)))}};
}

// With classes of equal size the vectors of Yhat are not unique. Measured in LAPACK's basis, and in that basis turned
// at random inside every eigenspace, each measure is what measure() finds without any basis. The identities behind it
// lose some K eps of a squared distance, so 1e-10 of a distance of order 1 is generous.
TEST_P(Imbalance, NoMeasureDependsOnTheBasisOfAnEigenspace) {
  std::mt19937 random(8);
  std::normal_distribution<double> normal;
  for (const std::vector<Index>& counts : std::vector<std::vector<Index>>{
           {12, 20, 5, 12, 3, 5, 12}, {6, 6, 6, 6}, {30, 2, 30, 2, 2, 7, 30, 2, 7}, {9, 4, 1}})
    for (const double threshold : {1e-3, 1.0}) {  // of sigma, below which a direction vanishes; relative to its middle
      const auto classes = static_cast<Index>(counts.size()), dim = classes + 2;
      const auto samples = static_cast<double>(std::accumulate(counts.begin(), counts.end(), Index{0}));
      Dense weights(classes, dim), means(classes, dim);
      for (auto& value : weights.values) value = normal(random);
      for (auto& value : means.values) value = normal(random);
      const auto [fewest, most] = std::minmax_element(counts.begin(), counts.end());
      const double middle = *fewest == *most ? 1.0 : std::sqrt(static_cast<double>(*fewest + *most) / 2);
      const double lambda = threshold * middle / samples;  // L = 1: survives iff sigma > N lambda
      const Report report = measured(counts, transposed(means), {weights}, Vector(counts.size(), 0.1), lambda, lambda);
      const UfmPrediction prediction = predict({counts, {lambda}, lambda, true, dim});

      Dense scaled = means;  // D (M - centre)
      for (Index j = 0; j < dim; ++j) {
        double centre = 0;
        for (Index k = 0; k < classes; ++k)
          centre += static_cast<double>(counts[static_cast<std::size_t>(k)]) * means(k, j) / samples;
        for (Index k = 0; k < classes; ++k)
          scaled(k, j) = std::sqrt(static_cast<double>(counts[static_cast<std::size_t>(k)])) * (means(k, j) - centre);
      }
      const auto vectors_of = [&](LabelModel model) {
        const auto svd = decompose_label_matrix(*context_, counts, model);
        Dense left(classes, classes), right(classes, classes);
        left.values = svd.left;
        right.values = svd.right;
        return std::pair{left, transposed(right)};
      };
      auto [U, V] = vectors_of(LabelModel::with_bias);
      auto [seli_U, seli_V] = vectors_of(LabelModel::seli);
      const LabelSpectrum with_bias(counts, LabelModel::with_bias), seli(counts, LabelModel::seli);
      for (int turn = 0; turn < 4; ++turn) {  // LAPACK's basis first
        auto expected = measured_in_basis(U, V, prediction, weights, scaled);
        expected.merge(seli_in_basis(seli_U, seli_V, seli.sigma(), weights, means, counts));
        std::size_t compared = 0;
        for (const auto& [key, value] : report.metrics) {
          if (!key.starts_with("ufmb_") && !key.starts_with("seli_")) continue;
          if (key.starts_with("ufmb_sv") || key == "ufmb_rank_obs") continue;  // singular values need no basis
          ASSERT_TRUE(expected.contains(key)) << key;
          const bool near_zero = std::abs(value * value - expected[key] * expected[key]) <= 1e-13;  // one eigenspace
          EXPECT_TRUE(std::abs(value - expected[key]) <= 1e-10 || (key.ends_with("_orth") && near_zero))
              << key << " " << value << " " << expected[key] << ", turn " << turn << ", " << classes << " classes";
          ++compared;
        }
        EXPECT_EQ(compared, expected.size());
        for (const auto* key : {"ufmb_w", "ufmb_h", "ufmb_wh", "seli_w", "seli_h", "seli_z"})
          EXPECT_GE(expected[key], 0.1) << key;
        rotate_inside_eigenspaces(with_bias.eigenspaces(), random, U, V);
        rotate_inside_eigenspaces(seli.eigenspaces(), random, seli_U, seli_V);
      }
    }
}

// Norms that only rounding tells apart have no line to fit; a difference of 1e-12 has one, through two sizes exactly.
TEST_P(Imbalance, NormsThatAreEqualToRounding) {
  std::mt19937 random(11);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 6; ++trial) {
    std::vector<double> row(5);
    for (double& value : row) value = normal(random);
    Dense weights(4, 5), near(4, 5);
    for (Index k = 0; k < 4; ++k)
      for (Index j = 0; j < 5; ++j) {
        weights(k, j) = row[static_cast<std::size_t>((j + k) % 5)];
        near(k, j) = weights(k, j) * (k < 2 ? 1 + 1e-12 : 1);
      }
    const Report equal = measured({80, 40, 20, 10}, transposed(weights), {weights}, {}, 1e-4, 1e-4);
    EXPECT_FALSE(equal.find("norm_count_r2_w").has_value());
    EXPECT_EQ(equal.status.at("norm_count_r2_w").code, "undefined");
    EXPECT_NEAR(equal.find("norm_count_slope_w").value(), 0, 1e-14);
    const Report apart = measured({80, 80, 10, 10}, transposed(near), {near}, {}, 1e-4, 1e-4);
    EXPECT_NEAR(apart.find("norm_count_r2_w").value(), 1, 1e-3);
    EXPECT_LE(apart.find("norm_count_r2_w").value(), 1);
  }
}

TEST_P(Imbalance, MinoritiesAndNorms) {
  // Two large classes apart, two small ones in one direction: collapsed minorities. Norms grow as n^0.5.
  Dense weights(4, 2);
  weights.values = {3, 0, 0, 3, -1, -1, -1, -1};
  const std::vector<Index> counts{90, 90, 10, 10};
  const Report report = measured(counts, transposed(weights), {weights}, {}, 1e-4, 1e-4);
  EXPECT_NEAR(report.find("mc_cos_w").value(), 1, 1e-12);
  EXPECT_NEAR(report.find("mc_cos_std_w").value(), 0, 1e-7);
  EXPECT_NEAR(report.find("mc_norm_ratio_w").value(), std::sqrt(2.0) / 3, 1e-12);
  EXPECT_NEAR(report.find("norm_count_slope_w").value(), std::log(3 / std::sqrt(2.0)) / std::log(9.0), 1e-12);
  EXPECT_NEAR(report.find("norm_count_r2_w").value(), 1, 1e-12);
  const Report balanced = measured({5, 5, 5, 5}, transposed(weights), {weights}, {}, 1e-4, 1e-4);
  EXPECT_EQ(balanced.status.at("mc_cos_w").code, "undefined");
  EXPECT_EQ(balanced.status.at("norm_count_slope_w").code, "undefined");

  // More minorities than dimensions, and fewer; far from each other, and nearly in one direction.
  for (const auto& [dim, noise] : {std::pair<Index, double>{2, 1}, {9, 1}, {2, 1e-5}, {9, 1e-5}}) {
    const Index small = 5;
    Dense W(2 + small, dim);
    std::mt19937_64 random(3);
    std::normal_distribution<double> normal;
    for (double& value : W.values) value = noise * normal(random);
    for (Index k = 2; k < 2 + small && noise < 1; ++k) W(k, 0) += 1;
    std::vector<Index> sizes(static_cast<std::size_t>(2 + small), 10);
    sizes[0] = sizes[1] = 90;
    const Report found = measured(sizes, transposed(W), {W}, {}, 1e-4, 1e-4);
    std::vector<long double> gaps;  // 1 - cosine
    long double mean = 0, square = 0;
    for (Index j = 2; j < 2 + small; ++j)
      for (Index k = j + 1; k < 2 + small; ++k) {
        long double product = 0, left = 0, right = 0;
        for (Index i = 0; i < dim; ++i) {
          product += static_cast<long double>(W(j, i)) * W(k, i);
          left += static_cast<long double>(W(j, i)) * W(j, i);
          right += static_cast<long double>(W(k, i)) * W(k, i);
        }
        gaps.push_back(1 - product / std::sqrt(left * right));
        mean += gaps.back() / 10;
      }
    for (const long double gap : gaps) square += (gap - mean) * (gap - mean) / 10;
    const auto spread = static_cast<double>(std::sqrt(square));
    EXPECT_NEAR(found.find("mc_cos_w").value(), static_cast<double>(1 - mean), 1e-15) << dim << ", " << noise;
    EXPECT_NEAR(found.find("mc_cos_std_w").value(), spread, 1e-15) << dim << ", " << noise;
  }

  // As many as a simplex has, and a simplex: 5 in 4 dimensions.
  Dense simplex(7, 4);
  for (Index k = 0; k < 5; ++k)
    for (Index j = 0; j < 4; ++j) simplex(2 + k, j) = k < 4 ? (j == k ? std::sqrt(5.0) : 0) : 1;
  for (Index k = 0; k < 4; ++k)
    for (Index j = 0; j < 4; ++j) simplex(2 + k, j) -= (1 + std::sqrt(5.0)) / 4;
  simplex(0, 0) = simplex(1, 1) = 1;
  const Report found = measured({90, 90, 10, 10, 10, 10, 10}, transposed(simplex), {simplex}, {}, 1e-4, 1e-4);
  EXPECT_NEAR(found.find("mc_cos_w").value(), -0.25, 1e-15);
  EXPECT_NEAR(found.find("mc_cos_std_w").value(), 0, 1e-15);
}

TEST_P(Imbalance, MeansAloneTellWhatNeedsNoClassifier) {
  // Balanced about 0: two large classes, and three small ones, two of which have one direction.
  Dense means(5, 2);
  means.values = {3, 0, -3, 0, 0, -1, 0, 3, 0, -2};
  const std::vector<Index> counts{90, 90, 10, 10, 10};
  const ClassMoments moments = moments_of(counts, transposed(means));
  const Report alone = measure(moments);
  EXPECT_NEAR(alone.find("mc_cos_h").value(), (-1.0 + 1 - 1) / 3, 1e-12);
  // log norms on log sizes: the line goes through the means of both groups.
  const double small = std::log(6.0) / 3, large = std::log(3.0);
  EXPECT_NEAR(alone.find("norm_count_slope_h").value(), (large - small) / std::log(9.0), 1e-12);
  const double between = 1.2 * (large - small) * (large - small),  // 2 * 3 / 5
      within = std::log(2.0) * std::log(2.0) + large * large - 3 * small * small;
  EXPECT_NEAR(alone.find("norm_count_r2_h").value(), between / (between + within), 1e-12);

  Dense weights(5, 2);
  weights.values = {1, 2, 0, 1, -1, 3, 2, 2, -2, 0};
  const Report both = measured(counts, transposed(means), {weights}, {}, 1e-4, 1e-4);
  const Dense zero(5, 2);
  const Report none = measured(counts, transposed(means), {zero}, {}, 1e-4, 1e-4);
  for (const auto* key : {"seli_h", "mc_cos_h", "norm_count_slope_h", "norm_count_r2_h"})
    for (const Report* with_classifier : {&both, &none})
      EXPECT_EQ(alone.find(key).value(), with_classifier->find(key).value()) << key;
  for (const auto& [key, status] : none.status) EXPECT_NE(status.why, "its inputs were not given") << key;
  for (const auto& info : metric_catalogue()) {
    const bool needs_classifier = (" " + std::string(info.needs) + " ").find(" classifier ") != std::string::npos;
    const auto status = alone.status.find(std::string(info.key));
    const bool skipped = status != alone.status.end() && status->second.code == "skipped";
    if (needs_classifier || info.needs == "means") {
      EXPECT_EQ(skipped, needs_classifier) << info.key;
    }
  }
  const Report balanced = measure(moments_of({5, 5, 5, 5, 5}, transposed(means)));
  for (const auto* key : {"mc_cos_h", "norm_count_slope_h", "norm_count_r2_h"})
    EXPECT_EQ(balanced.status.at(key).why, "all classes have the same size") << key;
  EXPECT_TRUE(balanced.find("seli_h").has_value());
  EXPECT_EQ(measure(moments_of(counts, transposed(zero))).status.at("seli_h").why, "all class means are 0");
}

TEST_P(Imbalance, SingularValuesAreThoseOfTheProducts) {
  // W = diag(3, 1), M = diag(2, 1) with sizes 4 and 1, no bias: W has 3, 1; M D has 4, 1; W M D has 12, 1.
  Dense weights(2, 2), features(2, 2);
  weights.values = {3, 0, 0, 1};
  features.values = {2, 0, 0, 1};
  const double lambda = 1e-2;
  const Report report = measured({4, 1}, features, {weights}, {}, lambda, lambda);
  EXPECT_NEAR(report.singular_values_w.at(0), 3, 1e-14);
  EXPECT_NEAR(report.singular_values_w.at(1), 1, 1e-14);
  EXPECT_NEAR(report.singular_values_z.at(0), 4, 1e-14);
  EXPECT_NEAR(report.singular_values_z.at(1), 1, 1e-14);
  // L = 1, equal decays: w^2 = sigma - N lambda, z = w; here sigma = 2, 1 and N lambda = 0.05.
  const double w0 = std::sqrt(1.95), w1 = std::sqrt(0.95), size = std::sqrt(145.0), wz = std::hypot(1.95, 0.95);
  EXPECT_NEAR(report.find("gof_sv_w").value(), std::hypot(3 - w0, 1 - w1) / std::hypot(w0, w1), 1e-13);
  EXPECT_NEAR(report.find("gof_sv_h").value(), std::hypot(4 - w0, 1 - w1) / std::hypot(w0, w1), 1e-13);
  EXPECT_NEAR(report.find("gof_sv").value(), std::hypot(12 / size - 1.95 / wz, 1 / size - 0.95 / wz), 1e-13);
  EXPECT_EQ(report.find("gof_rank_obs").value(), 2);
  weights.values = {3, 0, 0, 0.4};  // below w1 / 2
  EXPECT_EQ(measured({4, 1}, features, {weights}, {}, lambda, lambda).find("gof_rank_obs").value(), 1);
}

TEST_P(Imbalance, BlocksOfEqualSizes) {
  // Sizes 9, 9, 4, 4, 1. Between the 9s: cos 0; between 9s and 4s: 0.6, 0.8, 0.8, 0.6; between the 4s: 0.96.
  Dense weights(5, 3);
  weights.values = {1, 0, 0, 0, 2, 0, 0.6, 0.8, 0, 1.6, 1.2, 0, 0, 0, 5};
  const Report report = measured({9, 9, 4, 4, 1}, transposed(weights), {weights}, {}, 1e-4, 1e-4);
  const BlockCosines& blocks = report.block_cos_w;
  EXPECT_EQ(blocks.sizes, (std::vector<Index>{9, 4, 1}));
  ASSERT_EQ(blocks.cosines.size(), 9U);
  const Vector expected{0, 0.7, 0, 0.7, 0.96, 0};
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(blocks.cosines[i], expected[i], 1e-14) << i;
  EXPECT_TRUE(std::isnan(blocks.cosines[8]));
  EXPECT_NEAR(report.find("block_err_w").value(), std::sqrt(4 * 0.01 / 10), 1e-12);
  EXPECT_EQ(report.block_cos_h.sizes, blocks.sizes);
  EXPECT_TRUE(blocks.predicted.empty());  // three dimensions leave room for half of the 4s: undetermined
  const auto json = nlohmann::json::parse(to_json(report));
  EXPECT_NEAR(json["block_cos_w"]["cosines"][1][0].get<double>(), 0.7, 1e-14);
  EXPECT_TRUE(json["block_cos_w"]["cosines"][2][2].is_null());
  const Report all_different = measured({9, 8, 4, 3, 1}, transposed(weights), {weights}, {}, 1e-4, 1e-4);
  EXPECT_EQ(all_different.status.at("block_err_w").code, "undefined");
  EXPECT_EQ(all_different.block_cos_w.sizes, (std::vector<Index>{9, 8, 4, 3, 1}));  // plain cosines, by size
  ASSERT_EQ(all_different.block_cos_w.cosines.size(), 25U);
  EXPECT_NEAR(all_different.block_cos_w.cosines[2], 0.6, 1e-14);    // of the classes of 9 and 4
  EXPECT_NEAR(all_different.block_cos_w.cosines[13], 0.96, 1e-14);  // of those of 4 and 3
  EXPECT_TRUE(std::isnan(all_different.block_cos_w.cosines[0]));    // a group of one has no pair
  const PredictedCosines predicted = predicted_cosines({{9, 8, 4, 3, 1}, {1e-4}, 1e-4, false, 3});
  EXPECT_NEAR(predicted.w[1], 0, 1e-15);
  EXPECT_TRUE(std::isnan(predicted.w[3]));  // no room for the class of 3
  const auto listed = nlohmann::json::parse(to_json(all_different));
  for (const auto& [key, found, wanted] :
       {std::tuple{"block_cos_h", &all_different.block_cos_h.predicted, &predicted.h},
        {"block_cos_w", &all_different.block_cos_w.predicted, &predicted.w}}) {
    ASSERT_EQ(found->size(), 25U) << key;
    for (std::size_t i = 0; i < 25; ++i) {
      const auto& number = listed[key]["predicted"][i / 5][i % 5];
      EXPECT_EQ(std::isnan((*found)[i]), std::isnan((*wanted)[i])) << key << i;
      EXPECT_EQ(number.is_null(), std::isnan((*wanted)[i])) << key << i;
      if (number.is_null()) continue;
      EXPECT_EQ(number.get<double>(), (*wanted)[i]) << key << i;
    }
  }
}

TEST_P(Imbalance, CosinesAtTheMinimiser) {
  for (const auto& counts : kImbalances)
    for (const bool bias : {true, false}) {
      const UfmOptions model{counts, {2e-3}, 1e-3, bias, 0};
      const Minimiser point = minimiser(model);
      Classifier head;
      for (const Dense& layer : point.layers) head.layers.push_back(view(layer.values.data(), layer.rows, layer.cols));
      const Vector biases = predict(model).bias;
      if (bias) head.bias = view(biases.data(), 1, static_cast<Index>(biases.size()));
      for (const Convention convention : {Convention::zhu, Convention::papyan}) {
        const Report report =
            measure(moments_of(counts, point.features),
                    {.classifier = &head, .lambda_w = model.lambda_w, .lambda_h = model.lambda_h}, convention);
        const PredictedCosines expected =
            predicted_cosines(model, convention == Convention::zhu ? MeanCentre::samples : MeanCentre::classes);
        for (const auto& [blocks, predicted] :
             {std::pair{&report.block_cos_h, &expected.h}, {&report.block_cos_w, &expected.w}}) {
          EXPECT_EQ(blocks->sizes, expected.sizes);
          ASSERT_EQ(blocks->cosines.size(), predicted->size());
          ASSERT_EQ(blocks->predicted.size(), predicted->size());
          for (std::size_t i = 0; i < predicted->size(); ++i) {
            if (std::isnan((*predicted)[i])) continue;
            EXPECT_EQ(blocks->predicted[i], (*predicted)[i]);
            EXPECT_NEAR(blocks->cosines[i], (*predicted)[i], 1e-12) << bias << counts.size() << " " << i;
          }
        }
      }
    }
}

TEST_P(Imbalance, NoCosinesArePredictedWhereAClassHasNoSamples) {
  Dense features(3, 3);
  features.values = {2, 0, 0, 0.5, 1, 0, 0, 0, 1};
  const Report all = measured({4, 2, 1}, features, {features}, {}, 1e-3, 1e-3),
               absent = measured({4, 2, 0}, features, {features}, {}, 1e-3, 1e-3);
  EXPECT_EQ(all.block_cos_w.predicted.size(), 9U);
  EXPECT_EQ(absent.block_cos_w.cosines.size(), 4U);
  EXPECT_TRUE(absent.block_cos_w.predicted.empty());
  EXPECT_FALSE(nlohmann::json::parse(to_json(absent))["block_cos_h"].contains("predicted"));
}

TEST_P(Imbalance, GeometryDistanceRefusesWrongShapes) {
  const Dense three(3, 2), four(4, 2), wide(3, 3);
  const UfmOptions model{{5, 3, 2}, {1e-3}, 1e-3, true, 0};
  const auto of = [](const Dense& matrix) { return view(matrix.values.data(), matrix.rows, matrix.cols); };
  EXPECT_THROW(geometry_distance(*context_, model, of(four), of(three)), UsageError);
  EXPECT_THROW(geometry_distance(*context_, model, of(three), of(wide)), UsageError);
  for (const double scale : {1e-200, 1e-100, 1e100}) {
    Dense usual(3, 2), extreme(3, 2);
    usual.values = {1, 0, 0, 1, -1, 2};
    for (std::size_t i = 0; i < usual.values.size(); ++i) extreme.values[i] = scale * usual.values[i];
    EXPECT_THROW(geometry_distance(*context_, model, of(extreme), of(usual)), DataError) << scale;
    EXPECT_THROW(geometry_distance(*context_, model, of(usual), of(extreme)), DataError) << scale;
  }
  const GeometryDistance zero = geometry_distance(*context_, model, of(three), of(three));
  EXPECT_EQ(zero.undefined.at("w"), "the classifier is 0");
  EXPECT_EQ(zero.undefined.at("vanished_h"), "all class means are equal");
  EXPECT_EQ(zero.undefined.size(), 9U);
  EXPECT_TRUE(std::isnan(zero.w));
  EXPECT_EQ(zero.spectrum.size(), 3U);
}

TEST_P(Imbalance, WhatNeedsNoProductIsThereWithoutOne) {
  // Two classes: U = (1, -1)/sqrt 2 and (1, 1)/sqrt 2, W along the second axis and the third, means along the first.
  Dense weights(2, 3), features(3, 2);
  weights.values = {0, 1, 0, 0, 0, 2};
  features.values = {1, -1, 0, 0, 0, 0};
  const Report with_bias = measured({1, 1}, features, {weights}, {0, 0}, 1e-3, 1e-3);
  // U^T W = (0, 1, -2)/sqrt 2 and (0, 1, 2)/sqrt 2: Gram matrix 2.5, -1.5.
  EXPECT_NEAR(with_bias.find("ufmb_w").value(), std::sqrt(2 - 2 * 2.5 / std::sqrt(17.0)), 1e-8);
  EXPECT_NEAR(with_bias.find("ufmb_row_orth").value(), 1.5 * std::sqrt(2 / 17.0), 1e-8);
  EXPECT_NEAR(with_bias.find("ufmb_vanished_w").value(), 0.5, 1e-15);
  EXPECT_NEAR(with_bias.find("ufmb_h").value(), 0, 1e-8);
  EXPECT_NEAR(with_bias.find("ufmb_vanished_h").value(), 0, 1e-15);
  EXPECT_EQ(with_bias.find("ufmb_align_min").value(), 0);
  EXPECT_EQ(with_bias.status.at("ufmb_wh").code, "undefined");
  const Report without = measured({1, 1}, features, {weights}, {}, 1e-3, 1e-3);
  EXPECT_NEAR(without.find("gof_w").value(), std::sqrt(2 - 2 * 5 / std::sqrt(34.0)), 1e-8);
  EXPECT_NEAR(without.find("gof_h").value(), std::sqrt(2 - std::sqrt(2.0)), 1e-8);
  EXPECT_NEAR(without.find("gof_w_vs_h").value(), std::sqrt(2.0), 1e-15);
  EXPECT_EQ(without.status.at("gof_wh").why, "the product of classifier and means is 0");

  const Report vanishes = measured({1, 1}, features, {weights}, {0, 0}, 1, 1);
  EXPECT_EQ(vanishes.status.at("ufmb_w").why, "every direction is predicted to vanish");
  for (const auto* key : {"ufmb_vanished_w", "ufmb_vanished_h"}) EXPECT_NEAR(vanishes.find(key).value(), 1, 1e-15);
  EXPECT_TRUE(vanishes.find("ufmb_row_orth").has_value());

  const Dense zero(2, 3);
  const Report no_classifier = measured({1, 1}, features, {zero}, {0, 0}, 1e-3, 1e-3);
  EXPECT_EQ(no_classifier.status.at("ufmb_w").why, "the classifier is 0");
  EXPECT_NEAR(no_classifier.find("ufmb_h").value(), 0, 1e-8);
  weights.values = {2.5, 0, 0, 2.5, 0, 0};  // nothing in the direction that survives
  const Report aside = measured({1, 1}, features, {weights}, {0, 0}, 1e-3, 1e-3);
  EXPECT_EQ(aside.status.at("ufmb_align_min").code, "undefined");
}

TEST_P(Imbalance, AClassifierOrthogonalToTheMeansHasNoProduct) {
  // Means in one half of the dimensions, the classifier in the other, then all turned: what is left is rounding.
  std::mt19937_64 random(11);
  std::normal_distribution<double> normal;
  const std::vector<Index> counts{5, 3, 2, 4, 6};
  for (const Index dim : {8, 4})  // more dimensions than classes, and fewer
    for (const bool bias : {true, false}) {
      Dense features(dim, 5), weights(5, dim);
      for (Index k = 0; k < 5; ++k)
        for (Index i = 0; i < dim / 2; ++i) {
          features(i, k) = normal(random);
          weights(k, dim / 2 + i) = normal(random);
        }
      for (Index i = 0; i < dim; ++i)
        for (Index j = i + 1; j < dim; ++j) {
          const double angle = normal(random), c = std::cos(angle), s = std::sin(angle);
          for (Index k = 0; k < 5; ++k) {
            const double a = features(i, k), b = features(j, k), v = weights(k, i), w = weights(k, j);
            features(i, k) = c * a - s * b;
            features(j, k) = s * a + c * b;
            weights(k, i) = c * v - s * w;
            weights(k, j) = s * v + c * w;
          }
        }
      const Report report = measured(counts, features, {weights}, bias ? Vector(5, 0.1) : Vector(), 1e-4, 1e-4);
      const std::string family = bias ? "ufmb_" : "gof_";
      for (const std::string& key :
           {std::string("nc3_wh_etf"), std::string("nc3_wh_of"), std::string("seli_z"), family + "wh", family + "sv"}) {
        EXPECT_FALSE(report.find(key).has_value()) << key << " " << *report.find(key);
        EXPECT_EQ(report.status.at(key).why, "the product of classifier and means is 0");
      }
      EXPECT_TRUE(report.find("seli_w").has_value());
      // A hundredth of the means is seen again.
      for (Index k = 0; k < 5; ++k)
        for (Index i = 0; i < dim; ++i) weights(k, i) += 0.01 * features(i, k);
      const Report seen = measured(counts, features, {weights}, bias ? Vector(5, 0.1) : Vector(), 1e-4, 1e-4);
      for (const auto* key : {"nc3_wh_etf", "nc3_wh_of", "seli_z"}) EXPECT_TRUE(seen.find(key).has_value()) << key;
    }
}

TEST_P(Imbalance, RealDumps) {
  const std::filesystem::path dumps = std::filesystem::path(NCOLLAPSE_SHARED_DATA) / "dumps";
  if (!std::filesystem::exists(dumps)) GTEST_SKIP() << "NO REAL DUMPS AT " << dumps << ": NOT COMPARED";
  struct Case {
    const char* name;
    int layers;
    double lambda;
  };
  for (const Case& dump : {Case{"cifar10_L3_bias", 3, 1e-5}, {"cifar10_L1_collapsed", 1, 1e-3}}) {
    const auto file = [&](const std::string& name) { return (dumps / dump.name / name).string(); };
    AnalysisRequest request{.features = file("features.npy"), .labels = file("labels.npy"), .bias = file("b.npy")};
    for (int l = 1; l <= dump.layers; ++l) request.weights.push_back(file("W" + std::to_string(l) + ".npy"));
    request.lambda_w = {dump.lambda};
    request.lambda_h = dump.lambda;
    const Report report = analyze(*context_, request);
    const auto expected = nlohmann::json::parse(std::ifstream(file("expected.json")))["zhu"];
    for (const auto* key : {"ufmb_w", "ufmb_h", "ufmb_wh", "ufm_loss", "ufm_loss_min"}) {
      const double want = expected.at(key).get<double>(), got = report.find(key).value();
      EXPECT_TRUE(std::abs(got - want) <= 1e-6 * want + 1e-9) << dump.name << " " << key << " " << got << " " << want;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, Imbalance, testing::Values("cpu", "cuda"),
                         [](const testing::TestParamInfo<const char*>& parameter) {
                           return std::string(parameter.param);
                         });

}  // namespace
}  // namespace ncollapse
