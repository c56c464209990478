// Backend::pair_sums against plain long-double arithmetic, on any backend and in both tiers.
#pragma once

#include <algorithm>
#include <vector>

#include "tests/cuda/samples.hpp"

namespace ncollapse::test {

/// The sums, and how far the fast tier may be off them when no cosine is off by more than E.
struct PlainPairs {
  Real etf = 0, frame = 0, cos = 0, cos2 = 0, cos_abs = 0, cos_max = -2, dist = 0, dist2 = 0, unit_min = 4, log = 0,
       log2 = 0, cdnv = 0;
  Real log_slack =
      0;  // unit vectors are rounded: their distance errs by a few units, its log by that over the distance
  Index angles = 0, coincident_directions = 0, coincident_means = 0;
  std::vector<Real> nearest;
  Real cos2_off = 0, dist_off = 0, dist2_off = 0, log_off = 0, log2_off = 0, cdnv_off = 0;
  std::vector<Real> nearest_least, nearest_most;
};

inline PlainPairs count_pairs(const Grid& A, const PairQuery& query, Real E) {
  constexpr Real kSingle = 0x1p-21L;  // a few roundings to single precision, which is what CUDA does with one pair
  PlainPairs sums;
  const Index R = A.rows;
  const Real r = static_cast<Real>(R), s = std::sqrt(2 * r / (r - 1)), close = std::max(1e-4L, 64 * E);
  for (auto* list : {&sums.nearest, &sums.nearest_least, &sums.nearest_most})
    list->assign(static_cast<std::size_t>(R), std::numeric_limits<Real>::infinity());
  std::vector<Real> sizes;
  for (Index j = 0; j < R; ++j) sizes.push_back(size(A, j));
  for (Index j = 0; j < R; ++j)
    for (Index k = 0; k < R; ++k) {
      const Real gram = dot(A, j, A, k);
      const Real etf = gram / query.gram_norm - ((j == k ? 1 : 0) - 1 / r) / std::sqrt(r - 1);
      const Real offset = query.offsets.empty() ? 0 : static_cast<Real>(query.offsets[j]) + query.offsets[k];
      const Real frame = (gram + offset) / query.frame_norm - (j == k ? 1 / std::sqrt(r) : 0);
      sums.etf += etf * etf;
      sums.frame += frame * frame;
      if (k == j) continue;
      Real squared = 0, unit_squared = 0;
      const Real nj = sizes[j], nk = sizes[k];
      for (Index l = 0; l < A.cols; ++l) {
        const Real gap = static_cast<Real>(A.at(j, l)) - A.at(k, l);
        squared += gap * gap;
        if (nj > 0 && nk > 0) {
          const Real unit_gap = A.at(j, l) / nj - A.at(k, l) / nk;
          unit_squared += unit_gap * unit_gap;
        }
      }
      // Below the threshold a pair is evaluated directly; at it, perhaps: E counts only from just below it on.
      const Real both = nj * nj + nk * nk;
      const Real squared_off = squared < (close - E) * both ? 0 : E * both;
      sums.nearest[j] = std::min(sums.nearest[j], squared);
      sums.nearest_least[j] = std::min(sums.nearest_least[j], squared - squared_off);
      sums.nearest_most[j] = std::min(sums.nearest_most[j], squared + squared_off);
      if (k < j) continue;
      if (nj > 0 && nk > 0) {
        const Real e = gram / (nj * nk) + 1 / (r - 1), unit = std::sqrt(unit_squared), f = unit - s;
        ++sums.angles;
        sums.cos += e;
        sums.cos2 += e * e;
        sums.cos_abs += std::fabs(e);
        sums.cos_max = std::max(sums.cos_max, gram / (nj * nk));
        sums.dist += f;
        sums.dist2 += f * f;
        sums.unit_min = std::min(sums.unit_min, unit);
        sums.cos2_off += 2 * std::fabs(e) * E + E * E;
        const Real unit_off = (unit_squared < 2 * (close - E) ? 0 : E / unit * 1.02L) + kSingle;
        sums.dist_off += unit_off;
        sums.dist2_off += 2 * std::fabs(f) * unit_off + unit_off * unit_off;
        if (unit > 0) {
          const Real g = std::log(s / unit),
                     log_off = (unit_off - kSingle) / unit * 1.02L + kSingle * (1 + std::fabs(g));
          sums.log += g;
          sums.log_slack += 8 * kUnit / unit;
          sums.log2 += g * g;
          sums.log_off += log_off;
          sums.log2_off += 2 * std::fabs(g) * log_off + log_off * log_off;
        } else {
          ++sums.coincident_directions;
        }
      }
      if (query.variances.empty()) continue;
      if (squared > 0) {
        const Real term = (static_cast<Real>(query.variances[j]) + query.variances[k]) / (2 * squared);
        sums.cdnv += term;
        sums.cdnv_off += term * squared_off / squared * 1.05L;
      } else {
        ++sums.coincident_means;
      }
    }
  return sums;
}

/// The query with norms filled in. `E`: what PairSums::cosine_error should say.
inline PairSums expect_pairs(Backend& backend, const Grid& A, PairQuery query, double E = 0) {
  const Index R = A.rows;
  Real gram_square = 0, frame_square = 0;
  for (Index j = 0; j < R; ++j) query.norms.push_back(static_cast<double>(size(A, j)));
  for (Index j = 0; j < R; ++j)
    for (Index k = 0; k < R; ++k) {
      const Real gram = dot(A, j, A, k);
      const Real offset = query.offsets.empty() ? 0 : static_cast<Real>(query.offsets[j]) + query.offsets[k];
      gram_square += gram * gram;
      frame_square += (gram + offset) * (gram + offset);
    }
  query.gram_norm = static_cast<double>(std::sqrt(gram_square));
  query.frame_norm = static_cast<double>(std::sqrt(frame_square));
  query.fast = E > 0;
  const PlainPairs want = count_pairs(A, query, E);
  const PairSums got = backend.pair_sums(A.on(backend), query);

  // One pair: eps (d + few) of the norms; distances lose another 1e4 where they are not recomputed, logs as much.
  const Real pairs = static_cast<Real>(R) * static_cast<Real>(R), one = 8 * static_cast<Real>(A.cols + 8) * kUnit;
  const Real fast = query.fast ? 1 : 0;
  EXPECT_EQ(got.cosine_error, E);
  EXPECT_EQ(got.angles, want.angles);
  EXPECT_EQ(got.coincident_directions, want.coincident_directions);
  EXPECT_EQ(got.coincident_means, want.coincident_means);
  // Residuals from the identity are exact to units of 1, whatever their size.
  EXPECT_TRUE(within(got.etf_residual, want.etf, one * (pairs * 8 + fast * 64)));
  EXPECT_TRUE(within(got.frame_residual, want.frame, one * (pairs * 8 + fast * 64)));
  EXPECT_TRUE(within(got.cos_sum, want.cos, one * pairs + E * pairs / 2));
  EXPECT_TRUE(within(got.cos_square_sum, want.cos2, one * pairs * 4 + want.cos2_off));
  EXPECT_TRUE(within(got.cos_abs_sum, want.cos_abs, one * pairs + E * pairs / 2));
  EXPECT_TRUE(within(got.cos_max, want.cos_max, one + E));
  EXPECT_TRUE(within(got.distance_sum, want.dist, one * pairs * 100 + fast * want.dist_off));
  EXPECT_TRUE(within(got.distance_square_sum, want.dist2, one * pairs * 400 + fast * want.dist2_off));
  EXPECT_TRUE(within(got.min_unit_distance, want.unit_min, (one * 100 + fast / 64) * want.unit_min));
  EXPECT_TRUE(within(got.log_sum, want.log, one * pairs * 100 + want.log_slack + fast * want.log_off));
  EXPECT_TRUE(within(got.log_square_sum, want.log2, one * pairs * 10000 + 60 * want.log_slack + fast * want.log2_off));
  EXPECT_EQ(got.nearest_squared.size(), query.variances.empty() ? 0 : static_cast<std::size_t>(R));
  if (query.variances.empty()) {
    EXPECT_EQ(got.cdnv_sum, 0);
    return got;
  }
  EXPECT_TRUE(within(got.cdnv_sum, want.cdnv, one * 10000 * want.cdnv + fast * want.cdnv_off));
  for (Index j = 0; j < R && !testing::Test::HasFailure(); ++j) {
    const Real slack = one * 10000 * want.nearest[j];
    EXPECT_TRUE(got.nearest_squared[j] >= want.nearest_least[j] - slack) << j;
    EXPECT_TRUE(got.nearest_squared[j] <= want.nearest_most[j] + slack) << j;
  }
  return got;
}

/// Rows that are equal, parallel, zero, or so close that the expanded formula would return noise.
inline Grid degenerate_rows() {
  const Index rows = 40, d = 19;
  Grid A = Grid::random(rows, d, 24);
  for (Index j = 0; j < d; ++j) {
    A.at(1, j) = A.at(0, j);
    A.at(2, j) = 2 * A.at(0, j);
    A.at(3, j) = 0;
    A.at(38, j) = 0;
    A.at(5, j) = A.at(4, j) * (1 + 1e-9 * static_cast<double>(j));
    A.at(39, j) = A.at(4, j) + (j == 3 ? 1e-10 : 0);
    A.at(20, j) = A.at(39, j) * 1.001 + (j == 7 ? 1e-7 : 0);
  }
  return A;
}

/// What the fast tier has to stand: error(d) is the backend's bound.
template <class Error>
void expect_fast_pairs(Backend& backend, const std::vector<std::pair<Index, Index>>& shapes, const Error& error) {
  for (const auto& [rows, d] : shapes) {
    SCOPED_TRACE(testing::Message() << rows << " x " << d);
    const Grid A = Grid::random(rows, d, 21);
    PairQuery query;
    expect_pairs(backend, A, query, error(d));
    query.offsets = Grid::random(1, rows, 22).values;
    query.variances = Grid::random(1, rows, 23).values;
    for (double& v : query.variances) v = std::abs(v);
    expect_pairs(backend, A, query, error(d));
  }
  PairQuery query;
  const auto with_variances = [&](const Grid& A) {
    query.variances.assign(static_cast<std::size_t>(A.rows), 0.5);
    expect_pairs(backend, A, query, error(A.cols));
  };
  {
    SCOPED_TRACE("degenerate rows");
    with_variances(degenerate_rows());
  }
  {
    SCOPED_TRACE("norms from 1e-30 to 1e30");
    Grid A = Grid::random(33, 21, 25);
    for (Index i = 0; i < A.rows; ++i)
      for (Index j = 0; j < A.cols; ++j) A.at(i, j) *= std::pow(10.0, static_cast<double>(i % 7) * 10 - 30);
    with_variances(A);
  }
  {
    SCOPED_TRACE("norms from 1e-15 to 1, variances from 1e-40 to 1e40");
    Grid A = Grid::random(90, 21, 33);
    query.variances.clear();
    for (Index i = 0; i < A.rows; ++i) {
      for (Index j = 0; j < A.cols; ++j) A.at(i, j) *= std::pow(10.0, -static_cast<double>(i) / 6);
      query.variances.push_back(std::pow(10.0, static_cast<double>(i * 37 % 90) - 45));
    }
    expect_pairs(backend, A, query, error(A.cols));
  }
  {
    SCOPED_TRACE("elements from 1e-30 to 1e30 within rows, one of size 1e4 among ones");
    Grid A = Grid::random(20, 40, 26);
    for (Index i = 0; i < A.rows; ++i)
      for (Index j = 0; j < A.cols; ++j)
        A.at(i, j) *= i % 2 == 0 ? std::pow(10.0, static_cast<double>((i + j) % 7) * 10 - 30) : j == i ? 1e4 : 1;
    with_variances(A);
  }
  {
    SCOPED_TRACE("near a simplex");
    const Index rows = 31;
    Grid A(rows, rows);
    const Grid noise = Grid::random(rows, rows, 27);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < rows; ++j)
        A.at(i, j) = (i == j ? 1.0 : 0.0) - 1 / static_cast<double>(rows) + 1e-5 * noise.at(i, j);
    with_variances(A);
  }
  {
    // Two bundles of directions within 1e-3: nearly every pair is close, and the exact tier takes over.
    SCOPED_TRACE("collapsed into two");
    const Index rows = kSmall ? 70 : 150, d = 12;
    Grid A(rows, d);
    const Grid noise = Grid::random(rows, d, 28);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < d; ++j) A.at(i, j) = (j == 0 ? (i < rows / 2 ? 1 : -1) : 0) + 1e-3 * noise.at(i, j);
    with_variances(A);
  }
  {
    // The same bundles for the first rows and columns alone: some blocks are left, others are not.
    SCOPED_TRACE("partly collapsed");
    const Index rows = kSmall ? 70 : 300, d = 12;
    Grid A = Grid::random(rows, d, 34);
    for (Index i = 0; i < rows / 3; ++i)
      for (Index j = 0; j < d; ++j) A.at(i, j) = (j == 0 ? 1 : 0) + 1e-3 * A.at(i, j);
    with_variances(A);
  }
  {
    // Closer than 64 E, not than 1e-4: evaluated directly because of E.
    SCOPED_TRACE("three pairs of rows at 2 % of their norm");
    Grid A = Grid::random(6, 300, 32);
    for (Index i = 1; i < A.rows; i += 2)
      for (Index j = 0; j < A.cols; ++j) A.at(i, j) = A.at(i - 1, j) + 0.02 * A.at(i, j);
    with_variances(A);
  }
  {
    // Every factor of a product is rounded by nearly half a unit, towards 0: a cosine of -62/64, too small by 2^-10.
    SCOPED_TRACE("errors that conspire");
    Grid A(2, 64);
    for (Index j = 0; j < A.cols; ++j) {
      A.at(0, j) = 1 + 0x1.ffp-12 + 0x1.ffp-25;
      A.at(1, j) = j == 0 ? A.at(0, j) : -A.at(0, j);
    }
    with_variances(A);
  }
}

/// The same query three times.
inline void expect_same_pair_bits(Backend& backend, Index rows, Index d) {
  const Grid A = Grid::random(rows, d, 29);
  PairQuery query;
  query.fast = true;
  for (Index j = 0; j < rows; ++j) query.norms.push_back(static_cast<double>(size(A, j)));
  query.gram_norm = query.frame_norm = 3;
  query.variances.assign(static_cast<std::size_t>(rows), 0.5);
  const Matrix on_device = A.on(backend);
  std::vector<double> first;
  for (int run = 0; run < 3; ++run) {
    const PairSums p = backend.pair_sums(on_device, query);
    std::vector<double> all{
        p.etf_residual, p.frame_residual, p.cos_sum, p.cos_square_sum, p.cos_abs_sum,         p.cos_max,
        p.distance_sum, p.log_square_sum, p.log_sum, p.cdnv_sum,       p.distance_square_sum, p.min_unit_distance};
    all.insert(all.end(), p.nearest_squared.begin(), p.nearest_squared.end());
    if (run == 0) first = all;
    EXPECT_EQ(std::memcmp(first.data(), all.data(), first.size() * sizeof(double)), 0);
  }
}

}  // namespace ncollapse::test
