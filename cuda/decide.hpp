// Kernels of decide_batch: certified argmax over tiles of scores, and the exact evaluation of what is not certified.
//
// With an origin o (the mean of the centres), z = h - o, c_k = m_k - o, both rounded to double:
//   argmin_k |h - m_k|^2 = argmax_k  z.c_k - |c_k|^2/2,        argmax_k w_k.h + b_k = argmax_k  z.w_k + (w_k.o + b_k).
// The tiles z.c_k, z.w_k come from DGEMM; a kernel keeps each row's best and second-best score.
//
// The certificate. u = 2^-53, g_n = n u/(1 - n u), a = |z|, norms as computed. A sum of d products in any order, fused
// or not, errs by at most g_d |z||c| (Higham 2002, section 3.1); rounding z and c_k adds 2u (to first order) to that
// factor, the half norm g_{d+3} |c|^2/2, the last subtraction one u. So a centre's score errs by at most
// g_{d+8} (a|c| + |c|^2/2). The direct evaluation, which is the definition of the decision, errs by at most
// g_{d+2} |h - m_k|^2 <= g_{d+2} (a + |c|)^2, half of which counts in units of scores. Together, with the relative
// errors of the norms themselves absorbed by a longer n:
//   centres:     E = g_{d+32} (a + max|c|)^2
//   classifier:  E = g_{2d+64} (max|w| (a + |o|) + max|b|)
// (the latter: g_d |w||z| for the product, g_d |w||o| for w.o, g_{d+1} (|w||h| + |b|) for the direct evaluation, where
// |h| <= a + |o|, and a few u). A row is certified when best - second > 2E. Products that underflow lose less than
// 1e-300 in all; rows for which anything could overflow are not certified. Equal scores are never certified.
#pragma once

#include "cuda/element.hpp"

namespace ncollapse::cuda {

/// E as a polynomial of a = |z|.
struct ScoreBound {
  double constant = 0, linear = 0, quadratic = 0;
};
ScoreBound centre_bound(Index dim, double largest_centre);
ScoreBound classifier_bound(Index dim, double largest_weights, double origin, double largest_bias);

/// Running best and second-best score per row, and the lowest candidate with the best one; each [rows].
struct Leaders {
  double *best, *second;
  Index* candidate;
};

/// z [rows x d] = x - origin; norms [rows] = |z|.
void launch_shift_rows(cudaStream_t stream, const FeatureBlock& x, const double* origin, double* z, double* norms);
/// Takes the candidates first .. first + count - 1 into the leaders; first == 0 starts anew.
/// scores [rows x count] without constants; constants [count].
void launch_merge_leaders(cudaStream_t stream, const double* scores, const double* constants, Index rows, Index first,
                          Index count, const Leaders& leaders);
/// decisions [rows]: the candidate where it is certified, else -1.
void launch_certify(cudaStream_t stream, const Leaders& leaders, const double* norms, Index rows,
                    const ScoreBound& bound, Index* decisions);
/// For every row with decisions[row] < 0: argmin_k sum_j (h_j - A_kj)^2 (bias null) or argmax_k (h.A_k + bias_k), in
/// double, every candidate by the same sequence of operations, the lowest candidate among equals. A [count x d].
void launch_decide_exactly(cudaStream_t stream, const FeatureBlock& x, const double* A, const double* bias, Index count,
                           Index* decisions);
/// counters [4 x K]: samples, correct_centre, correct_classifier, agree. centre [rows] numbers centres, whose classes
/// are centre_class; classifier [rows] numbers classes (null: none).
void launch_count_decisions(cudaStream_t stream, const LabelBlock& labels, const Index* centre,
                            const Index* centre_class, const Index* classifier, Index classes, Index* counters);

}  // namespace ncollapse::cuda
