// The finished moments, and the step from the streaming state to them.
//
// Read-out (README, "How it stays exact"):  m_k = r_k + s_k/n_k,  n_k v_k = t_k - |s_k|^2/n_k,
// S = T - sum_k a_k s_k s_k^T / n_k.  r_k is a sample of the class (after a merge: its mean), so |s_k|^2/n_k is of the
// size of the class's own spread and the subtractions lose at most a factor n_k + 1 (an extreme first sample),
// typically 2.
#pragma once

#include <vector>

#include "host/backend.hpp"

namespace ncollapse {

struct MomentData {
  Context context;
  AccumulatorOptions options;
  std::vector<Index> counts;  ///< [K]
  Index samples = 0, seen = 0;
  std::vector<double> variances;  ///< [K] v_k; empty for Statistics::means
  Matrix means;                   ///< [K x d]; zero rows for absent classes
  Matrix scatter;                 ///< [d x d] symmetric, sum_k a_k sum_i (h - m_k)(h - m_k)^T; null below full
};

/// Zeroed state for these options.
MomentState make_state(Backend& backend, const AccumulatorOptions& options);

/// The moments of a state; the state stays as it is.
MomentData read_out(const Context& context, const AccumulatorOptions& options, const MomentState& state);

/// Throws UsageError unless a batch fits: d columns, as many labels as rows, a stride >= d, memory the backend can see.
void check_batch(const Backend& backend, Index dim, const MatrixView& features, const LabelView& labels);

/// Throws the DataError that describes the faults; rows are counted from `first_row` of the stream.
[[noreturn]] void throw_faults(const BatchFaults& faults, Index first_row, Index rows, Index classes);

}  // namespace ncollapse
