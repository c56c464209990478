// Independent checks of benchmark results: the definitions, evaluated in long double on samples that are made again;
// for large shapes on some classes, columns, rows or vectors only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/samples.hpp"
#include "host/backend.hpp"
#include "ncollapse/ncollapse.hpp"

namespace ncollapse::bench {

/// The largest relative error of class means (against the mean's norm) and variances of some classes, over the first
/// `rows` samples.
double error_of_sums(const Samples& samples, Index rows, const ClassMoments& moments);
/// Of some entries S_ij of the scatter, against sqrt(S_ii S_jj).
double error_of_scatter(const Samples& samples, Index rows, const ClassMoments& moments);
/// Wrong counts per sample, of decisions over the first `rows` samples. weights [K x d].
double error_of_decisions(const Samples& samples, Index rows, const std::vector<double>& means,
                          const std::vector<Index>& counts, const std::vector<float>& weights,
                          const DecisionCounts& decisions);
/// Of the sums over pairs of the rows of A [R x d] (all of them: O(R^2 d)).
double error_of_pairs(const std::vector<double>& A, Index rows, Index dim, const std::vector<double>& variances,
                      const PairSums& sums);
/// |A v - lambda v| / |A|_F of some eigenvectors, rows of V. A [n x n] symmetric.
double error_of_eigen(const std::vector<double>& A, Index n, const std::vector<double>& values,
                      const std::vector<double>& V);
/// |A v - s u| / |A|_F of some triplets. A [m x n].
double error_of_svd(const std::vector<double>& A, Index m, Index n, const std::vector<double>& values,
                    const std::vector<double>& left, const std::vector<double>& right);
/// Of nc1_trace_ratio and nc2_equinorm_h, by definition over the first `rows` samples.
double error_of_report(const Samples& samples, Index rows, const Report& report);

}  // namespace ncollapse::bench
