// Class sums of a block of rows, in one reading of the features:
//   z = x - r_k,   sums_k += sum z,   square_sums_k += sum |z|^2,   Z = sqrt(a_k) z  (for T += Z^T Z).
// The rows come in bucket order (class by class). The order is cut into runs of fixed length, the columns into slabs
// of one warp's width; a warp owns one run x slab and holds its sums in registers, in double. What one run holds of a
// class is a *piece*. Whatever the class sizes, a warp has the same work, and every sum has one writer:
//   - a class inside one run: its piece is added to sums_k at once;
//   - a class over several runs: its pieces go to `carry` [runs x 2 x d] (slot 0 for a piece that comes from the run
//     before, slot 1 for one that starts here and goes on), and add_carries adds them in run order;
//   - |z|^2 of a piece has one part per slab, kept at piece_squares[slab][first position of the piece].
// Run length and slabs depend on the shape and the element type only, so the bits do not depend on the GPU. Rows are
// read once, 16 bytes a lane, kRowsAhead rows in flight.
//
// Every kernel asks the batch's record first and changes no state where its gate is shut (validate.hpp). The features
// are either checked before, or *watched*: one NaN or infinite value makes its piece's sum of squares NaN or infinite,
// whereupon the piece is looked through again and what is found goes to the record; the caller then takes the state
// back to its snapshot.
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
  double* carry;           ///< [runs x 2 x d]
  double* piece_squares;   ///< [slabs x rows]
  double* column_squares;  ///< [runs of a chunk x d] sums over a run of a_k z_j^2; null: not wanted
};

/// Where the sums of a block go, and who may stop them.
struct SumTarget {
  const double* shifts;  ///< [K x d]
  const double* scale;   ///< sqrt(a_k) [K], or null
  double* sums;          ///< [K x d]
  double* z;             ///< [positions of the launched runs x d], zeros where the gate is shut; or null
  BatchRecord* record;
  Index first_row;  ///< of the block, in the batch
  bool watch;       ///< the features were not checked before
};

/// r_k := the first row in stream order of every class with counts[k] == 0; shifts [K x d].
void launch_take_shifts(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets, const Index* counts,
                        const BatchRecord* record, double* shifts);

/// The runs first_run .. last_run - 1.
void launch_centre_and_sum(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets,
                           const SumPlan& plan, Index first_run, Index last_run, const SumScratch& scratch,
                           const SumTarget& target);

/// After all runs: adds the pieces of classes that span runs. square_sums may be null.
void launch_add_carries(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                        const BatchRecord* record, double* sums, double* square_sums);

/// Last: n_k += rows of the class; |z|^2 of classes inside one run. square_sums may be null.
void launch_close_classes(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                          const BatchRecord* record, Index* counts, double* square_sums);

/// What a batch changes, but for the shifts of new classes. Pointers of arrays that are not kept are null.
struct StateArrays {
  Index* counts;                         ///< [K]
  double *sums, *square_sums, *scatter;  ///< [K x d], [K], [d x d]
};
/// to := from.
void launch_copy_state(cudaStream_t stream, const StateArrays& from, Index classes, Index dim, const StateArrays& to);
/// Where the gate is shut: state := snapshot, and the shifts of classes without samples := 0.
void launch_restore_state(cudaStream_t stream, const StateArrays& snapshot, Index classes, Index dim,
                          const BatchRecord* record, const StateArrays& state, double* shifts);

}  // namespace ncollapse::cuda
