// Class sums of a block of rows, in one reading of the features:
//   z = x - r_k,   sums_k += sum z,   square_sums_k += sum |z|^2,   Z = sqrt(a_k) z  (for T += Z^T Z).
// The rows come in bucket order (class by class). The order is cut into runs of fixed length, the columns into slabs
// of one warp's width; a warp owns one run x slab and holds its sums in registers, in double. What one run holds of a
// class is a *piece*. Whatever the class sizes, a warp has the same work, and every sum has one writer:
//   - a class inside one run: its piece is added to sums_k at once;
//   - a class over several runs: its pieces go to `carry` [runs x 2 x d] (slot 0 for a piece that comes from the run
//     before, slot 1 for one that starts here and goes on), and add_carries adds them in run order;
//   - |z|^2 of a piece has one part per slab, kept at piece_squares[slab][first position of the piece].
// Run length and slabs depend on the shape and the element type only, so the bits do not depend on the GPU.
#pragma once

#include "cuda/buckets.hpp"

namespace ncollapse::cuda {

struct SumPlan {
  Index rows, dim;
  Index run;  ///< positions of a run, a power of two
  Index runs;
  Index slabs;
};
SumPlan plan_sums(Index rows, Index dim, Dtype dtype);

/// Scratch of a block: device pointers.
struct SumScratch {
  double* carry;          ///< [runs x 2 x d]
  double* piece_squares;  ///< [slabs x rows]
};

/// r_k := the first row in stream order of every class with counts[k] == 0; shifts [K x d].
void launch_take_shifts(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets, const Index* counts,
                        double* shifts);

/// The runs first_run .. last_run - 1. z: [positions of these runs x d], or null. scale: sqrt(a_k) [K], or null.
void launch_centre_and_sum(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets,
                           const SumPlan& plan, Index first_run, Index last_run, const double* shifts,
                           const double* scale, const SumScratch& scratch, double* sums, double* z);

/// After all runs: adds the pieces of classes that span runs. square_sums may be null.
void launch_add_carries(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                        double* sums, double* square_sums);

/// Last: n_k += rows of the class; |z|^2 of classes inside one run. square_sums may be null.
void launch_close_classes(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                          Index* counts, double* square_sums);

}  // namespace ncollapse::cuda
