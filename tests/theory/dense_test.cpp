// The structured spectrum against LAPACK's decomposition of the dense label matrix, over random imbalances.
//
// What may be asked of the vectors: let A = U0 S0 V0^T be exact and A + E = U S V^T computed, P = U0^T U, Q = V0^T V.
// Then S0 Q - P S and S0 P - Q S are at most |E| in every entry, so
//   |s0_i - s_j| |P_ij + Q_ij| <= 2 |E|   and   (s0_i + s_j) |P_ij - Q_ij| <= 2 |E|:
// outside an eigenspace both vanish as its distance allows, and inside it U and V are turned by the same rotation.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "host/theory/structure.hpp"
#include "ncollapse/decomposition.hpp"
#include "tests/theory/dense.hpp"

namespace ncollapse {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

/// Sizes of classes: few or many distinct ones, near each other or far apart.
std::vector<Index> random_counts(unsigned seed) {
  std::mt19937 random(seed);
  const Index classes = seed % 10 == 0 ? 100 + random() % 201 : 2 + random() % 39;
  const Index largest = std::vector<Index>{2, 5, 50, 1000, 100000}[random() % 5];
  std::vector<Index> counts;
  for (Index k = 0; k < classes; ++k) counts.push_back(1 + static_cast<Index>(random()) % largest);
  if (seed % 3 == 0)  // long-tailed
    for (Index k = 0; k < classes; ++k)
      counts[static_cast<std::size_t>(k)] =
          1 + static_cast<Index>(static_cast<double>(largest) * std::pow(0.9, static_cast<double>(k)));
  return counts;
}

class DenseSpectrum : public testing::TestWithParam<LabelModel> {
 protected:
  Context context_{Device{}, {.threads = 1}};  // small matrices, and tests share the cores
};
INSTANTIATE_TEST_SUITE_P(Models, DenseSpectrum,
                         testing::Values(LabelModel::with_bias, LabelModel::without_bias, LabelModel::seli),
                         [](const auto& model) {
                           return model.param == LabelModel::with_bias      ? "with_bias"
                                  : model.param == LabelModel::without_bias ? "without_bias"
                                                                            : "seli";
                         });

TEST_P(DenseSpectrum, SingularValuesAgree) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    const auto counts = random_counts(seed);
    const Vector sigma = LabelSpectrum(counts, GetParam()).sigma();
    const auto dense = decompose_label_matrix(context_, counts, GetParam());
    ASSERT_EQ(dense.values.size(), sigma.size());
    for (std::size_t i = 0; i < sigma.size(); ++i) {
      const double scale = sigma[i] > 0 ? sigma[i] : sigma.front();
      EXPECT_TRUE(std::abs(dense.values[i] - sigma[i]) <= 1e-9 * scale)
          << "seed " << seed << ": " << dense.values[i] << " " << sigma[i];
    }
    EXPECT_EQ(dense.rank(), static_cast<Index>(counts.size()) - (GetParam() == LabelModel::without_bias ? 0 : 1));
  }
}

TEST_P(DenseSpectrum, VectorsSpanTheSameSpaces) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    const auto counts = random_counts(seed);
    const LabelSpectrum spectrum(counts, GetParam());
    const Vector sigma = spectrum.sigma();
    const auto classes = static_cast<Index>(counts.size());
    const auto svd = decompose_label_matrix(context_, counts, GetParam());
    Dense right_transposed(classes, classes);
    right_transposed.values = svd.right;
    Dense P(classes, classes), Q(classes, classes);
    P.values = spectrum.apply_left(svd.left, classes);
    Q.values = spectrum.apply_right(transposed(right_transposed).values, classes);
    const double rounding = 50 * static_cast<double>(classes) * kEps, error = rounding * sigma.front();
    double apart = 0, turned = 0;
    for (Index i = 0; i < classes; ++i)
      for (Index j = 0; j < classes; ++j) {
        const double s0 = sigma[static_cast<std::size_t>(i)], s = svd.values[static_cast<std::size_t>(j)];
        apart = std::max(apart, std::abs(s0 - s) * std::abs(P(i, j) + Q(i, j)));
        turned = std::max(turned, (s0 + s) * std::abs(P(i, j) - Q(i, j)));
      }
    EXPECT_TRUE(apart <= 2 * error) << "seed " << seed << ": " << apart << " " << error;
    EXPECT_TRUE(turned <= 2 * error) << "seed " << seed << ": " << turned << " " << error;

    // So every eigenspace's block is orthogonal, as far as its distance from the others allows.
    const auto& spaces = spectrum.eigenspaces();
    Index first = 0;
    for (std::size_t g = 0; g < spaces.size(); ++g) {
      double gap = HUGE_VAL;
      if (g > 0) gap = spaces[g - 1].sigma - spaces[g].sigma;
      if (g + 1 < spaces.size()) gap = std::min(gap, spaces[g].sigma - spaces[g + 1].sigma);
      const double leak = std::sqrt(static_cast<double>(classes)) * 4 * error / gap;  // norm of a row outside the block
      for (const Dense* turn : {&P, &Q})
        for (Index i = first; i < first + spaces[g].multiplicity; ++i)
          for (Index k = first; k <= i; ++k) {
            double dot = i == k ? -1 : 0;
            for (Index j = first; j < first + spaces[g].multiplicity; ++j) dot += (*turn)(i, j) * (*turn)(k, j);
            ASSERT_TRUE(std::abs(dot) <= leak * leak + 2 * rounding)
                << "seed " << seed << " sigma " << spaces[g].sigma << " gap " << gap << ": " << dot;
          }
      first += spaces[g].multiplicity;
    }
    ASSERT_EQ(first, classes);
  }
}

TEST_P(DenseSpectrum, DiagonalisesTheDenseMatrix) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    const auto counts = random_counts(seed);
    const LabelSpectrum spectrum(counts, GetParam());
    const Vector sigma = spectrum.sigma();
    const auto classes = static_cast<Index>(counts.size());
    Dense left(classes, classes), both(classes, classes), expected(classes, classes);
    left.values = spectrum.apply_left(label_matrix(counts, GetParam()).values, classes);  // U^T A
    both.values = spectrum.apply_right(transposed(left).values, classes);                 // V^T A^T U
    for (Index i = 0; i < classes; ++i) expected(i, i) = sigma[static_cast<std::size_t>(i)];
    EXPECT_TRUE(largest_gap(both, expected) <= 50 * static_cast<double>(classes) * kEps * sigma.front())
        << "seed " << seed << ": " << largest_gap(both, expected);
  }
}

// A size N_i of l_i classes gives sigma^2 = N_i (l_i - 1) times, and strictly inside each (N_{i+1}, N_i) lies one more.
// The offsets from the sizes are asked, since a root may be nearer to a size than doubles of its own size can tell.
TEST(StructuredSpectrum, InterlacesStrictly) {
  for (const auto model : {LabelModel::with_bias, LabelModel::seli})
    for (unsigned seed = 0; seed < 300; ++seed) {
      const LabelSpectrum spectrum(random_counts(seed), model);
      const auto& s = spectrum.structure();
      ASSERT_EQ(static_cast<Index>(s.roots.size()), s.groups() - 1);
      std::size_t space = 0;
      for (Index i = 0; i < s.groups(); ++i) {
        if (s.members(i) > 1) {
          EXPECT_EQ(spectrum.eigenspaces()[space].multiplicity, s.members(i) - 1);
          EXPECT_DOUBLE_EQ(spectrum.eigenspaces()[space++].sigma, std::sqrt(static_cast<double>(s.sizes[i])));
        }
        EXPECT_EQ(spectrum.eigenspaces()[space].multiplicity, 1);
        if (i + 1 < s.groups()) {
          EXPECT_TRUE(s.gap(i, i) > 0 && s.gap(i + 1, i) < 0) << "seed " << seed << " root " << i;
          EXPECT_DOUBLE_EQ(spectrum.eigenspaces()[space].sigma, std::sqrt(s.root(i)));
        } else {
          EXPECT_EQ(spectrum.eigenspaces()[space].sigma, 0);
        }
        ++space;
      }
      EXPECT_EQ(space, spectrum.eigenspaces().size());
    }
}

}  // namespace
}  // namespace ncollapse
