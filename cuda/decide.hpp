// Kernels of decide_batch: certified argmax over tiles of scores, and the exact evaluation of what is not certified.
//
// With an origin o (near the mean of the centres, its coordinates floats), c_k = m_k - o and z = h - o or, raw, z = h:
//   argmin_k |h - m_k|^2 = argmax_k  z.c_k - |c_k|^2/2 (raw: - |c_k|^2/2 - o.c_k),
//   argmax_k w_k.h + b_k = argmax_k  z.w_k + w_k.o + b_k (raw: + b_k).
// The products come from 16-bit tensor cores. Candidates of a set (the centres, the rows of W) are vectors of 16-bit
// numbers times one power of two, C, which brings the largest norm to [64, 128). The rows are taken in one of two ways.
//   raw      Rows of f16 or bf16 as they lie, without a copy or a rounding; the candidates in the same type. h is not
//            centred: h.o is the same for all candidates.
//   shifted  Any rows: z = h - o as halves times a power of two, as the candidates. Nothing overflows, and what is lost
//            to subnormals is below 2^-25 an element. Costs a pass over the tile, but a bf16 candidate loses eight
//            times as much as a half, and |h - o| may be much smaller than |h|: more rows are certified.
//
// Scores of a row are compared in its own unit, the row's power of two F (raw: 1) times C:
//   score_k = p_k + q (constant_k / U),  q = U / (F C),  U the power of two above the largest constant of the set,
// in single precision: p_k as the tensor cores left it, constant_k / U rounded to a float of at most 1. q is a power of
// two in [2^-126, 2^100], what is smaller taken as 2^-126; rows that need a larger one are not certified. So all scores
// are finite.
//
// The certificate. u = 2^-53, g_n = n u/(1 - n u), a = |z|, norms as computed; r, R the norms of what rounding to 16
// bits took from z (raw: 0) and, at most, from a c_k (or w_k); G the largest constant. The 16-bit product differs from
// z.c by at most r|c| + (a + r) R. Products of such numbers are exact in fp32; adding d of them, truncated as tensor
// cores do, errs by at most (d + 64) 2^-23 (a + r)(|c| + R). The score itself is rounded once, by 2^-24 ((a + r)(|c| +
// R) + G), and its constant once, by 2^-24 G: one more in d + 64, and 2^-22 G. Constants in double: rounding c_k adds
// 2u (to first order), the half norm g_{d+8} |c|^2/2, o.c_k = m_k.o - o.o (raw) g_{d+2} (2|o|^2 + |o||c|). The direct
// evaluation, which is the definition of the decision, errs by at most g_{d+2} |h - m_k|^2 <= g_{d+2} (a + s)^2, where
// s = |c| or, raw, |o| + |c|; half of it counts in units of scores. Together, where a thousandth of everything absorbs
// the relative errors of the norms themselves (below 2^-20):
//   centres:     E = 3 g_{d+32} (a + s)^2                   + 2^-22 G + r max|c| + (a + r) P
//   classifier:  E = g_{2d+64} (max|w| (a + |o|) + max|b|)  + 2^-22 G + r max|w| + (a + r) P
// where P = R + (d + 65) 2^-23 (max|c| + R), or max|w| (the latter: g_d |w||o| for w.o, g_{d+1} (|w||h| + |b|) for the
// direct evaluation, where |h| <= a + |o|, and a few u; raw: without o). In units of the row 2^-125 is added, for a q
// that was too small and for scores that are subnormal. bf16 has the exponents of fp32, so raw bf16 rows may overflow
// or underflow there: products are at most 128 a, rows with a >= 2^119 are not certified; values and products below
// 2^-126 may count as 0, which changes a score by less than d (1 + 128) 2^-126 C, where C <= max|c|/64: d 2^-124 max|c|
// more in E. A row is certified when best - second > 2E. When best - fourth > 2E, the winner is among the up to three
// best within 2E of the first, and these alone are evaluated directly, in double; else all candidates are. Products in
// double that underflow lose less than 1e-300 in all; rows for which anything could overflow are not certified. Equal
// scores never are.
//
// Where that certifies enough, products are taken from the tensor cores as 16-bit numbers of the rows' type, which
// halves what goes through the cache. They are then off by another e of themselves: 2^-8 (bf16), as they are rounded to
// nearest, which is found out before (dense.hpp), or 2^-10 (f16), twice as much as that takes. They are taken times A:
// 1, or 2^-4 for f16, where rows with |z| / F >= 2^12 are not certified, so that products stay below 2^15 (1 + 2^-6).
// Scores are then compared in units of A F C. What is subnormal loses 2^-24 (f16) or 2^-126 of such a unit. P becomes R
// + (t + e + t e)(max|c| + R), t = (d + 65) 2^-23.
//
// 2E is known before the scores: what is further than that below the best so far is passed over. Of the others four
// are kept, and what does not reach the fourth is passed over as well: with four within 2E all are evaluated anyway.
#pragma once

#include <cmath>

#include "cuda/narrow.hpp"

namespace ncollapse::cuda {

/// E as a polynomial of a = |z|, and what 16 bits add.
struct ScoreBound {
  double constant = 0, linear = 0, quadratic = 0;
  double candidate = 0;            ///< max|c|
  double product = 0;              ///< P
  double largest_norm = HUGE_VAL;  ///< of z: from here on products may overflow

  __host__ __device__ double of(double a, double r) const {
    return 1.001 * (constant + a * (linear + a * quadratic) + r * candidate + (a + r) * product) + 1e-300;
  }
};
/// `lost`: R. `origin`: |o| where rows are raw, else 0. `largest_constant`: G. `rounding`: e, 0 for products in single
/// precision.
ScoreBound centre_bound(Index dim, double largest_centre, double origin, double lost, double largest_constant,
                        double rounding = 0);
/// `origin`: |o| where rows are shifted, else 0.
ScoreBound classifier_bound(Index dim, double largest_weights, double origin, double largest_bias, double lost,
                            double largest_constant, double rounding = 0);
/// For raw rows of that type.
void allow_for_range(ScoreBound& bound, Dtype type, Index dim);

/// How products come from the tensor cores.
struct ProductForm {
  int bytes = 4;                   ///< 4: floats; 2: numbers of the rows' type
  double rounding = 0;             ///< e
  double scale = 1;                ///< A
  double subnormal = 0;            ///< what is lost there
  double largest_norm = HUGE_VAL;  ///< of z / F: from here on they may overflow
};
/// In 16 bits.
ProductForm narrow_form(Dtype type);

/// Columns of a set among the products, and of its parts, come in multiples of it: 16 bytes of 16-bit products.
inline constexpr Index kScorePacket = 8;
/// A set of candidates.
struct Candidates {
  Index count = 0;
  const float* constants = nullptr;  ///< [columns] constant_k / U; -infinity in columns of no candidate
  double factor = 0;                 ///< U/C; 0: all constants are 0
  double inverse = 1;                ///< 1/C
  ScoreBound bound;
};
/// Behind the last product and the last constant so many of them may be read, whatever they are.
inline constexpr Index kScoreSlack = 1024;
/// The columns that their scores take.
Index columns_of(Index count);

/// The best scores of rows so far, in units of the row, descending; [rows x kLeaders]. Places that no candidate has
/// taken have the score -infinity.
inline constexpr int kLeaders = 4;
struct Leaders {
  float* scores;
  std::int32_t* candidates;
};

/// A row that is not certified.
struct alignas(16) OpenRow {
  std::int32_t row;
  std::int32_t candidates[3];  ///< that may win, the last one -1 where there are two; all -1: any
};
/// What is decided of the rows of a block, and what is open.
struct Verdicts {
  std::int32_t* decisions;     ///< [rows] candidates, of rows that are certified
  OpenRow* open;               ///< [rows] with few candidates from the front, with all from the back; in any order
  unsigned long long* counts;  ///< [2] rows open with few, with all
  Index rows;                  ///< of the block
};

/// Some columns of a row tile's products, of neighbouring candidates of one set.
struct TilePart {
  Candidates set;
  Index column = 0, width = 0;  ///< in the tile; multiples of kScorePacket
  Index first = 0;              ///< the candidate of the first one: 0 starts anew
  bool last = false;            ///< no candidate is left: rows are certified, or opened
  Leaders leaders{};            ///< of the tile; not used where a part is first and last
  Verdicts verdicts{};
};
struct ScoreTile {
  const void* products;  ///< [rows x pitch], rows at multiples of 16 bytes
  Index rows, pitch;
  Index first_row;                     ///< in the block
  const std::int32_t* list = nullptr;  ///< [rows] instead: each row's place in the block
  ProductForm form{};
};
/// Takes the candidates of up to two parts, of different sets, into their leaders; a part of width 0 is none.
/// evaluations (or null) += how many candidates are to be evaluated directly.
void launch_merge_leaders(cudaStream_t stream, const ScoreTile& tile, const NarrowRows& z, const TilePart (&parts)[2],
                          unsigned long long* evaluations);

/// By how much the score of a row's own candidate, own[first_row + i] (null: first_row + i), leads all others of the
/// set for certain: leads[first_row + i], infinite where there are no others, 0 where it does not. Columns come as in
/// launch_merge_leaders, as floats; of leaders only the scores are used.
void launch_find_leads(cudaStream_t stream, const ScoreTile& tile, const NarrowRows& z, const TilePart& part,
                       const Index* own, double* leads);

/// For rows [rows x pitch] of products with `width` neighbouring candidates: farthest[i] is, or with begun becomes at
/// least, the largest |c_j|^2/2 less the product, both in units of the square of `unit`; norms [width] of the c_j.
void launch_find_farthest(cudaStream_t stream, const float* products, Index rows, Index pitch, const double* norms,
                          Index width, double unit, bool begun, float* farthest);

/// A candidate's direct evaluation. Scores of -infinity and NaN never lead.
struct Decision {
  double score = -HUGE_VAL;
  Index candidate = 0;
};
/// Blocks among which the candidates of rows that are open with all are shared out, where they are many.
inline constexpr Index kExactBlocks = 1024;
/// Candidates as they are.
struct ExactSet {
  Index count = 0;
  const double* rows = nullptr;  ///< A [count x d]
  const double* bias = nullptr;  ///< null: of centres
  Verdicts verdicts{};
  Decision* parts = nullptr;  ///< [kExactBlocks] scratch
};
/// Decides the open rows of up to two sets (of count 0: none): argmin_k sum_j (h_j - A_kj)^2 (bias null) or argmax_k
/// (h.A_k + bias_k) over the candidates that are left, in double, every candidate by the same sequence of operations,
/// the lowest candidate among equals. Does nothing where the record (or null) has a fault: rows of NaN are all open.
void launch_decide_exactly(cudaStream_t stream, const FeatureBlock& x, const ExactSet (&sets)[2],
                           const BatchRecord* record);
/// counters [4 x K]: samples, correct_centre, correct_classifier, agree. centre [rows] numbers centres, whose classes
/// are centre_class; classifier [rows] numbers classes (null: none). Does nothing when the gate is shut, or undecided
/// (or null) is not 0.
void launch_count_decisions(cudaStream_t stream, const LabelBlock& labels, const std::int32_t* centre,
                            const Index* centre_class, const std::int32_t* classifier, Index classes,
                            const BatchRecord* record, const unsigned long long* undecided, Index* counters);

}  // namespace ncollapse::cuda
