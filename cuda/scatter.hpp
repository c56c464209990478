// T += Z^T Z for a chunk of centred rows, two ways of precision.
//
// exact. Z in double. d > Limits::wide_dim: one DSYRK, half the operations of a full product. d <= wide_dim: a triangle
// of so few output tiles leaves most of a GPU idle, so the rows are cut into slices, whose products are made by batched
// DGEMMs of panels of columns on or below the diagonal (tiles x slices keep it busy), and `promote` adds the slices'
// results in order.
//
// fast. Z in fp16, column j scaled by 2^-e_j. The chunk's own e_j is floor(log2(rms of its column)); the rms is exact,
// it comes from the column's sum of squares c_j, which is kept in double anyway. But a chunk is read once, so its
// halves are written with the e_j that are *expected*: of the rms of all that the state has, or, while it has nothing,
// of the chunk before. Only where one of them is not within -5 .. 4 of the chunk's own are they written once more. A
// scaled rms is from 2^-4 on and below 2^6 then. |z_ij| <= sqrt(c_j) and a chunk has at most 2^18 rows, so scaled
// values are below 2^6 * 2^9: overflow is impossible; and values that lose digits as subnormals (2^-25 absolute) lose
// at most 2^-21 of the rms. Products accumulate in fp32 over slices of at most 4096 rows, because tensor cores
// truncate: the bias grows with the length of the chain (-5e-9 a row). promote adds the slices in double, in order,
// scaled back, and puts c_j on the diagonal, which so is exact. Only panels of columns on or below the diagonal are
// multiplied. No TF32 is involved: operands are fp16, see Queue's self-test for the accumulation. Error of T_ij,
// relative to sqrt(T_ii T_jj): kFastError (host/moments.hpp).
#pragma once

#include "cuda/class_sums.hpp"

namespace ncollapse::cuda {

/// How a block's rows are taken through Z. Sizes depend on the shape and the limits only.
struct ScatterPlan {
  bool fast;
  Index dim;
  Index padded;      ///< columns of Z and of partial products; Z is 0 in those beyond dim
  Index slice_rows;  ///< of a product
  Index slices;      ///< of a chunk, at most; 0: one DSYRK for the chunk
  Index runs_per_chunk;

  Index chunk_rows(const SumPlan& sums) const { return std::min(runs_per_chunk * sums.run, sums.rows); }
  Index z_bytes(const SumPlan& sums) const { return chunk_rows(sums) * padded * (fast ? 2 : 8); }
  Index partial_bytes() const { return slices * padded * padded * (fast ? 4 : 8); }
};

inline constexpr int kUnknownExponent = -1 << 20;

/// expected [d]: e_j by the state's T and counts; kUnknownExponent while it has no samples.
void launch_expect_exponents(cudaStream_t stream, const double* T, const Index* counts, Index classes, Index dim,
                             int* expected);
/// Column sums of squares of a chunk, from those of its runs, and its own e_j.
/// column_squares [runs x d], squares [d], exponents [d].
void launch_fold_columns(cudaStream_t stream, const double* column_squares, Index runs, Index dim, Index rows,
                         double* squares, int* exponents);
/// Where the expected ones fit, *misfit := 0 and exponents := expected. Else *misfit := 1, and the chunk's own are
/// expected from now on. Where the gate is shut *misfit := 1, and nothing else.
void launch_choose_exponents(cudaStream_t stream, const double* squares, Index dim, const BatchRecord* record,
                             int* exponents, int* expected, int* misfit);

/// T_ij += 2^(e_i + e_j) sum_s partial_s,ij for j <= i, s in order; not where the gate is shut. partial [slices x
/// padded x padded] float or double. Exact: exponents and squares are null; else T_ii += squares_i instead.
template <class P>
void launch_promote(cudaStream_t stream, const P* partial, Index slices, Index dim, Index padded, const int* exponents,
                    const double* squares, const BatchRecord* record, double* T);

}  // namespace ncollapse::cuda
