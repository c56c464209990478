// Small kernels on row-major double matrices: elementwise work on rows, and sums in an order fixed by the shape.
// "row dots" take one warp per row (lanes stride over the columns, then a butterfly); sums over rows are made in two
// stages, row_chunks() chunks of rows first, then the chunks in order.
#pragma once

#include <cuda_runtime.h>

#include "cuda/element.hpp"

namespace ncollapse::cuda {

/// Enough of them that a thousand rows keep a GPU busy, few enough that adding them up takes little: 64 at most.
Index row_chunks(Index rows);
/// Partial sums of launch_inner: one per block, as many as the size gives work to, 256 at most.
Index inner_parts(Index size);

/// to [rows x cols] := the block as doubles.
void launch_convert(cudaStream_t stream, const FeatureBlock& from, double* to);
/// out_k = a_k A_k + b_k B_k; a, b on the device; B null: b is not read. out may be A or B.
void launch_combine_rows(cudaStream_t stream, const double* a, const double* A, const double* b, const double* B,
                         Index rows, Index cols, double* out);
/// out_i = A_{index_i}.
void launch_select_rows(cudaStream_t stream, const double* A, const Index* index, Index rows, Index cols, double* out);
/// out_g = sum of the rows begin[g] .. begin[g+1] - 1, in row order; begin [groups + 1] on the device.
void launch_sum_groups(cudaStream_t stream, const double* A, const Index* begin, Index groups, Index cols, double* out);
/// |A_g A_g^T|^2 (Frobenius) of groups of up to kMostGroupRows rows, 0 of larger ones: sums of `parts`
/// [groups x kGroupParts] over the parts. begin as above.
inline constexpr Index kMostGroupRows = 64, kGroupParts = 8;
void launch_group_grams(cudaStream_t stream, const double* A, const Index* begin, Index groups, Index cols,
                        double* parts);
/// A_k -= centre.
void launch_centre_rows(cudaStream_t stream, double* A, const double* centre, Index rows, Index cols);
/// out_k = <A_k, B_k>.
void launch_row_dots(cudaStream_t stream, const double* A, const double* B, Index rows, Index cols, double* out);
/// out [3 x rows]: |A_k|^2, |B_k|^2, <A_k, B_k>.
void launch_row_products(cudaStream_t stream, const double* A, const double* B, Index rows, Index cols, double* out);
/// out [cols] = sum_k w_k A_k (w null: all 1); partial [row_chunks(rows) x cols].
void launch_weighted_row_sum(cudaStream_t stream, const double* A, const double* w, Index rows, Index cols,
                             double* partial, double* out);
/// partial [inner_parts(size)]; their sum in order is sum_i A_i B_i.
void launch_inner(cudaStream_t stream, const double* A, const double* B, Index size, double* partial);
/// A_ij := A_ji for i < j; A [n x n].
void launch_mirror_lower(cudaStream_t stream, double* A, Index n);
/// out_i = A_ii; A [n x n].
void launch_diagonal(cudaStream_t stream, const double* A, Index n, double* out);
/// A := identity [n x n].
void launch_identity(cudaStream_t stream, double* A, Index n);

/// Whether the device answers and this library holds code that it can run: cudaSuccess,
/// cudaErrorNoKernelImageForDevice, or what CUDA says. Never throws.
cudaError_t probe(int device);

}  // namespace ncollapse::cuda
