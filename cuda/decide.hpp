// Kernels of decide_batch: certified argmax over tiles of scores, and the exact evaluation of what is not certified.
//
// With an origin o (the mean of the centres), c_k = m_k - o, rounded to double, and z = h - o or, raw, z = h:
//   argmin_k |h - m_k|^2 = argmax_k  z.c_k - |c_k|^2/2 (raw: - |c_k|^2/2 - o.c_k),
//   argmax_k w_k.h + b_k = argmax_k  z.w_k + w_k.o + b_k (raw: + b_k).
// The products come from 16-bit tensor cores. A candidate is a vector of 16-bit numbers times a power of two of its
// own, which brings its norm to [64, 128). The rows are taken in one of two ways.
//   raw      Rows of f16 or bf16 as they lie, without a copy or a rounding; the candidates in the same type. h is not
//            centred: h.o is the same for all candidates.
//   shifted  Any rows: z = h - o as halves times a power of two, as the candidates. Nothing overflows, and what is lost
//            to subnormals is below 2^-25 an element. Costs a pass over the tile, but a bf16 candidate loses eight
//            times as much as a half, and |h - o| may be much smaller than |h|: more rows are certified.
// A kernel keeps each row's four best scores.
//
// The certificate. u = 2^-53, g_n = n u/(1 - n u), a = |z|, norms as computed; r, R the norms of what rounding to 16
// bits took from z (raw: 0) and, at most, from a c_k (or w_k). The 16-bit product differs from z.c by at most r|c| + (a
// + r) R. Products of such numbers are exact in fp32; adding d of them, truncated as tensor cores do, errs by at most
// (d + 64) 2^-23 (a + r)(|c| + R). In double: rounding z and c_k adds 2u (to first order) to g_d, the half norm g_{d+3}
// |c|^2/2, o.c_k (raw) g_d |o||c|, the last subtraction one u of the terms. The direct evaluation, which is the
// definition of the decision, errs by at most g_{d+2} |h - m_k|^2 <= g_{d+2} (a + s)^2, where s = |c| or, raw, |o| +
// |c|; half of it counts in units of scores. Together, with the relative errors of the norms themselves absorbed by a
// longer n, and by a thousandth in the terms with r and R:
//   centres:     E = g_{d+32} (a + s)^2                         + r max|c| + (a + r)(R + (d + 64) 2^-23 (max|c| + R))
//   classifier:  E = g_{2d+64} (max|w| (a + |o|) + max|b|)      + r max|w| + (a + r)(R + (d + 64) 2^-23 (max|w| + R))
// (the latter: g_d |w||o| for w.o, g_{d+1} (|w||h| + |b|) for the direct evaluation, where |h| <= a + |o|, and a few
// u; raw: without o). bf16 has the exponents of fp32, so raw bf16 rows may overflow or underflow there: products are at
// most 128 a, rows with a >= 2^119 are not certified; values and products below 2^-126 may count as 0, which changes a
// score by less than d (1 + 128) 2^-126 times the candidate's power of two, at most |c|/64: d 2^-124 |c| more in E. A
// row is certified when best - second > 2E. When best - fourth > 2E, the winner is among the up to three best within 2E
// of the first, and these alone are evaluated directly, in double; else all candidates are. Products in double that
// underflow lose less than 1e-300 in all; rows for which anything could overflow are not certified. Equal scores never
// are.
#pragma once

#include <cmath>

#include "cuda/element.hpp"

namespace ncollapse::cuda {

/// E as a polynomial of a = |z|, and what 16 bits add.
struct ScoreBound {
  double constant = 0, linear = 0, quadratic = 0;
  double candidate = 0;            ///< max|c|
  double product = 0;              ///< R + (d + 64) 2^-23 (max|c| + R)
  double largest_norm = HUGE_VAL;  ///< of z: from here on products may overflow

  __host__ __device__ double of(double a, double r) const {
    return constant + a * (linear + a * quadratic) + 1.001 * (r * candidate + (a + r) * product) + 1e-300;
  }
};
/// `lost`: R. `origin`: |o| where rows are raw, else 0.
ScoreBound centre_bound(Index dim, double largest_centre, double origin, double lost);
/// `origin`: |o| where rows are shifted, else 0.
ScoreBound classifier_bound(Index dim, double largest_weights, double origin, double largest_bias, double lost);
/// For raw rows of that type.
void allow_for_range(ScoreBound& bound, Dtype type, Index dim);

/// Rows as 16-bit numbers times a power of two; device pointers.
struct NarrowRows {
  Dtype type;        ///< f16 or bf16
  const void* rows;  ///< row i at element i * stride
  Index stride;
  const double* scales;  ///< [n] 2^f: row i is scales_i rows_i and what was lost; null: all 1
  const double* norms;   ///< [n] of what the row stands for
  const double* lost;    ///< [n] norm of the difference; null: all 0
};
/// Whether cuBLAS may read the rows as they lie: a 16-bit type, every row at a multiple of 16 bytes.
bool can_be_raw(const FeatureBlock& x);

/// The best scores of every row, descending, the lower candidate first among equals; [rows x kLeaders]. Places that no
/// candidate has taken have the score -infinity.
inline constexpr int kLeaders = 4;
struct Leaders {
  double* scores;
  Index* candidates;
};

/// Rounds x - origin (null: 0) into rows [n x padded] of the type, with zeros beyond the d columns; scales, norms and
/// lost [n]. To bf16 from doubles only.
void launch_narrow_rows(cudaStream_t stream, const FeatureBlock& x, const double* origin, Index padded, Dtype type,
                        void* rows, double* scales, double* norms, double* lost);
/// norms [rows] of x as it is.
void launch_row_norms(cudaStream_t stream, const FeatureBlock& x, double* norms);
/// Takes the candidates first .. first + count - 1 into the leaders; first == 0 starts anew. products [rows x count] of
/// 16-bit numbers; row_scales [rows] (null: 1), candidate_scales [count], constants [count].
void launch_merge_leaders(cudaStream_t stream, const float* products, const double* row_scales,
                          const double* candidate_scales, const double* constants, Index rows, Index first, Index count,
                          const Leaders& leaders);
/// decisions [rows]: the candidate where it is certified; -m where it is one of the first m leaders, m = 2 or 3; else
/// -1. evaluations (or null) += how many candidates, of `count`, are to be evaluated directly.
void launch_certify(cudaStream_t stream, const Leaders& leaders, const NarrowRows& z, Index rows,
                    const ScoreBound& bound, Index count, Index* decisions, unsigned long long* evaluations);
/// For every row with decisions[row] < 0: argmin_k sum_j (h_j - A_kj)^2 (bias null) or argmax_k (h.A_k + bias_k) over
/// the candidates that are left, in double, every candidate by the same sequence of operations, the lowest candidate
/// among equals. A [count x d].
void launch_decide_exactly(cudaStream_t stream, const FeatureBlock& x, const double* A, const double* bias, Index count,
                           const Leaders& leaders, Index* decisions);
/// counters [4 x K]: samples, correct_centre, correct_classifier, agree. centre [rows] numbers centres, whose classes
/// are centre_class; classifier [rows] numbers classes (null: none).
void launch_count_decisions(cudaStream_t stream, const LabelBlock& labels, const Index* centre,
                            const Index* centre_class, const Index* classifier, Index classes, Index* counters);

}  // namespace ncollapse::cuda
