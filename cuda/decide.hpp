// Kernels of decide_batch: certified argmax over tiles of scores, and the exact evaluation of what is not certified.
//
// With an origin o (the mean of the centres), z = h - o, c_k = m_k - o, both rounded to double:
//   argmin_k |h - m_k|^2 = argmax_k  z.c_k - |c_k|^2/2,        argmax_k w_k.h + b_k = argmax_k  z.w_k + (w_k.o + b_k).
// The products come from fp16 tensor cores. Every row and every candidate is a vector of halves times a power of two of
// its own, which brings its norm to [64, 128): nothing overflows, and what is lost to subnormals is below 2^-25 an
// element. A kernel keeps each row's four best scores.
//
// The certificate. u = 2^-53, g_n = n u/(1 - n u), a = |z|, norms as computed; r, R the norms of what rounding to half
// took from z and, at most, from a c_k (or w_k). The halves' product differs from z.c by at most r|c| + (a + r) R.
// Products of halves are exact in fp32; adding d of them, truncated as tensor cores do, errs by at most (d + 64) 2^-23
// (a + r)(|c| + R). In double: rounding z and c_k adds 2u (to first order) to g_d, the half norm g_{d+3} |c|^2/2, the
// last subtraction one u, so with room g_{d+8} (a|c| + |c|^2/2). The direct evaluation, which is the definition of the
// decision, errs by at most g_{d+2} |h - m_k|^2 <= g_{d+2} (a + |c|)^2, half of which counts in units of scores.
// Together, with the relative errors of the norms themselves absorbed by a longer n, and by a thousandth in the terms
// with r and R:
//   centres:     E = g_{d+32} (a + max|c|)^2                    + r max|c| + (a + r)(R + (d + 64) 2^-23 (max|c| + R))
//   classifier:  E = g_{2d+64} (max|w| (a + |o|) + max|b|)      + r max|w| + (a + r)(R + (d + 64) 2^-23 (max|w| + R))
// (the latter: g_d |w||o| for w.o, g_{d+1} (|w||h| + |b|) for the direct evaluation, where |h| <= a + |o|, and a few
// u). A row is certified when best - second > 2E. When best - fourth > 2E, the winner is among the up to three best
// within 2E of the first, and these alone are evaluated directly, in double; else all candidates are. Products that
// underflow lose less than 1e-300 in all; rows for which anything could overflow are not certified. Equal scores never
// are.
#include "cuda/element.hpp"

namespace ncollapse::cuda {

/// E as a polynomial of a = |z|, and what half precision adds.
struct ScoreBound {
  double constant = 0, linear = 0, quadratic = 0;
  double candidate = 0;  ///< max|c|
  double product = 0;    ///< R + (d + 64) 2^-23 (max|c| + R)

  __host__ __device__ double of(double a, double r) const {
    return constant + a * (linear + a * quadratic) + 1.001 * (r * candidate + (a + r) * product) + 1e-300;
  }
};
/// `lost`: R.
ScoreBound centre_bound(Index dim, double largest_centre, double lost);
ScoreBound classifier_bound(Index dim, double largest_weights, double origin, double largest_bias, double lost);

/// Rows as halves times a power of two; device pointers.
struct HalfRows {
  Half* rows;      ///< [n x padded], zeros beyond the d columns
  double* scales;  ///< [n] 2^f: row i is scales_i rows_i and what was lost
  double* norms;   ///< [n]
  double* lost;    ///< [n] norm of the difference
};

/// The best scores of every row, descending, the lower candidate first among equals; [rows x kLeaders]. Places that no
/// candidate has taken have the score -infinity.
inline constexpr int kLeaders = 4;
struct Leaders {
  double* scores;
  Index* candidates;
};

/// half := x - origin; origin null: 0.
void launch_half_rows(cudaStream_t stream, const FeatureBlock& x, const double* origin, Index padded,
                      const HalfRows& half);
/// Takes the candidates first .. first + count - 1 into the leaders; first == 0 starts anew. products [rows x count] of
/// halves; row_scales [rows], candidate_scales [count], constants [count].
void launch_merge_leaders(cudaStream_t stream, const float* products, const double* row_scales,
                          const double* candidate_scales, const double* constants, Index rows, Index first, Index count,
                          const Leaders& leaders);
/// decisions [rows]: the candidate where it is certified; -m where it is one of the first m leaders, m = 2 or 3; else
/// -1.
void launch_certify(cudaStream_t stream, const Leaders& leaders, const HalfRows& z, Index rows, const ScoreBound& bound,
                    Index* decisions);
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
