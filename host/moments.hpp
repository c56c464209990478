// The finished moments, and the step from the streaming state to them.
//
// Read-out (docs/exactness.md):  m_k = r_k + s_k/n_k,  n_k v_k = t_k - |s_k|^2/n_k,
// S = T - sum_k a_k s_k s_k^T / n_k.  r_k is a sample of the class (after a reduction: its mean), so |s_k|^2/n_k is of
// the size of the class's own spread and the subtractions lose at most a factor n_k + 1 (an extreme first sample),
// typically 2.
//
// Precision::fast. E is the error of the scatter. |E_ij| <= kFastError sqrt(T_ii T_jj), so |E|_F <= kFastError tr T,
// and what lies on the diagonal is exact. A merge adds up the errors of both sides and starts a new T; so the bound of
// a state is kFastError tr T + c, where c makes up for what is in T without error, or in E without being in T any more.
#pragma once

#include <limits>
#include <vector>

#include "host/backend.hpp"

namespace ncollapse {

/// Of a product of columns in fp16, relative to their norms: two roundings of 2^-11 to half precision; 2^-11 for sums
/// of 4096 terms in single precision, each of which may lose 2^-23 of the sum by truncation; 2^-19 for the products of
/// these and for subnormals (columns are scaled so that their rms is 1/16 or more). Single precision throughout (CPU)
/// stays below a fifth of it.
inline constexpr double kFastError = 0x1p-10 + 0x1p-11 + 0x1p-19;

/// Rows above which pair statistics are fast ones in Precision::fast (PairQuery::fast); up to here double costs little.
inline constexpr Index kFastPairRows = 16384;

struct MomentData {
  Context context;
  AccumulatorOptions options;
  std::vector<Index> counts;  ///< [K]
  Index samples = 0, seen = 0;
  std::vector<double> variances;  ///< [K] v_k; empty for Statistics::means
  Matrix means;                   ///< [K x d]; zero rows for absent classes
  Matrix scatter;                 ///< [d x d] symmetric, sum_k a_k sum_i (h - m_k)(h - m_k)^T; null below full
  double scatter_trace = 0;       ///< tr S; 0 below full
  double scatter_error = 0;       ///< bound on |E|_F; 0 for Precision::exact
  std::optional<Dtype> dtype = {};
};

/// a_k; weights [K], or empty: all 1.
inline double weight_of(const std::vector<double>& weights, std::size_t k) {
  return weights.empty() ? 1.0 : weights[k];
}

/// sum_k a_k squares_k: the trace of a pooled scatter, of the traces of the classes; weights [K], or empty: all 1.
double trace_of(const std::vector<double>& squares, const std::vector<double>& weights);

/// Up to which the squared distance of a class mean from another one, or from their centre, is rounding alone. A mean
/// is right to some eps of its own size, and of the root of n v: its samples are summed up from one of them on.
inline double rounding_of_mean(double mean_square, Index count, double variance) {
  constexpr double kRounding = 16 * std::numeric_limits<double>::epsilon();
  return kRounding * kRounding * (mean_square + static_cast<double>(count) * variance);
}

/// Zeroed state for these options.
MomentState make_state(Backend& backend, const AccumulatorOptions& options);

/// The moments of a state; the state stays as it is.
MomentData read_out(const Context& context, const AccumulatorOptions& options, const MomentState& state);

}  // namespace ncollapse
