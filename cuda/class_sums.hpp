// Class sums of a block of rows, in one reading of the features:
//   z = x - r_k,   sums_k += sum z,   square_sums_k += sum |z|^2,   Z = sqrt(a_k) z  (for T += Z^T Z), or in fp16
//   Z = sqrt(a_k) z 2^-e_j, where the e_j are known before (scatter.hpp).
// r_k is the class's shift: the first row of the class, in stream order, that the state ever saw.
//
// The rows come in bucket order (class by class). The order is cut into runs of fixed length, the columns into slabs
// of one warp's width; a warp has one run x slab and holds its sums in registers, in double. A lane has pairs of
// neighbouring columns, so that a warp reads and writes whole lines, of doubles as well. What a warp takes of a class
// is a *piece*:
//   - a class that is *whole* (no longer than two runs, inside one group of runs) is one piece, taken by the warp of
//     the run in which it begins, and added to sums_k at once;
//   - any other class is cut where runs end. Its pieces go to `carry` [runs x 2 x pitch] (slot 0 for a piece that comes
//     from the run before, slot 1 for one that begins in this run), and close_classes adds them in run order; of a
//     class of very many runs fold_carries has added up `fold` neighbouring ones at a time before.
// |z|^2 of a piece has one part per slab, kept at piece_squares[slab][first position of the piece]. So whatever the
// class sizes, a warp has at most three runs of work, every sum has one writer, and the carries are a small part of the
// features. Groups of runs are what larger pieces of work consist of: no warp writes beyond its group.
// Run length, groups and slabs depend on the shape only, so the bits do not depend on the GPU.
//
// Rows are read once, through a ring of shared memory in each warp: asynchronous copies fetch the next rows of the run,
// whatever their class, so that as many bytes are on their way while a piece begins or ends as while it is summed.
//
// No batch changes the state where the gate of its record is shut (validate.hpp). The features
// are either checked before, or *watched*: one NaN or infinite value makes its piece's sum of squares NaN or infinite,
// which makes the batch suspect. A suspect batch is looked through again, and with faults the caller restores the
// state. The sums before the batch are still there (buckets.hpp): counts and places of sums change at the very end, in
// close_classes.
#pragma once

#include "cuda/buckets.hpp"

namespace ncollapse::cuda {

struct SumPlan {
  Index rows, dim;
  Index run;    ///< positions of a run, a power of two
  Index group;  ///< positions of a group, a power of two, at least run; more only where their Z has room
  Index fold;   ///< runs whose carries are added up together
  Index runs;
  Index slabs;
  Index pitch;  ///< doubles from row to row of carry and Z: dim, made even

  /// Whether the class at the positions begin .. end - 1 is one piece.
  __host__ __device__ bool whole(Index begin, Index end) const {
    return end - begin <= 2 * run && (begin ^ (end - 1)) < group;
  }
};
/// warps, group_runs (powers of two), fold, centred_bytes: see Limits. Throws UsageError where dim is too large for a
/// grid.
SumPlan plan_sums(Index rows, Index dim, Index warps, Index group_runs, Index fold, Index centred_bytes);

/// Scratch of a block: device pointers.
struct SumScratch {
  double* carry;           ///< [runs x 2 x pitch]
  double* piece_squares;   ///< [slabs x rows]
  double* column_squares;  ///< [runs of a chunk x d] sums over a run of a_k z_j^2, 0 where the gate is shut; null
                           ///< without halves
};

/// Z [positions of the launched runs x padded] in fp16: sqrt(a_k) (x - r_k) 2^-e_j, zeros beyond d.
struct Halves {
  Half* z;
  Index padded;
  const int* exponents;  ///< [d] e_j, or kUnknownExponent in all
};

/// The sums of the state. The second array may be null where no class has its sums there and no batch is to be undone.
struct TwoArrays {
  double *first, *second;  ///< [K x d]
  std::uint32_t* places;   ///< [K] 1: in the second
};

/// Where the sums of a block go, and who may stop them.
struct SumTarget {
  double* shifts;       ///< [K x d]; a class without samples gets its own here
  const double* scale;  ///< sqrt(a_k) [K], or null
  TwoArrays sums;
  double* z;      ///< [positions of the launched runs x pitch], zeros where the gate is shut; or null
  Halves halves;  ///< nothing is written where exponents are unknown or the gate is shut; z null: not wanted
  BatchRecord* record;
  bool watch;  ///< the features were not checked before
};

/// The runs first_run .. last_run - 1, whole groups unless they are the last.
void launch_centre_and_sum(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets,
                           const SumPlan& plan, Index first_run, Index last_run, const SumScratch& scratch,
                           const SumTarget& target);

/// After the sums of the same runs, where *misfit is not 0 (scatter.hpp).
void launch_write_halves(cudaStream_t stream, const FeatureBlock& features, const Buckets& buckets, const SumPlan& plan,
                         Index first_run, Index last_run, const double* shifts, const double* scale,
                         const Halves& halves, const int* misfit);

/// After all runs: adds the pieces of classes that were cut, n_k += rows of the class, and |z|^2, and says where the
/// sums are. square_sums may be null.
void launch_close_classes(cudaStream_t stream, const Buckets& buckets, const SumPlan& plan, const SumScratch& scratch,
                          const BatchRecord* record, Index* counts, const TwoArrays& sums, double* square_sums);

/// What a batch changes, but for sums, and shifts of new classes. Pointers of arrays that are not kept are null.
struct StateArrays {
  Index* counts;                  ///< [K]
  double *square_sums, *scatter;  ///< [K], [d x d]
};
/// saved := state.
void launch_save_state(cudaStream_t stream, const StateArrays& state, Index classes, Index dim,
                       const StateArrays& saved);
/// Where the gate is shut: state := saved, the sums are where they were, and shifts of classes without samples := 0.
void launch_restore_state(cudaStream_t stream, const StateArrays& saved, Index classes, Index dim,
                          const BatchRecord* record, const StateArrays& state, std::uint32_t* places, double* shifts);
/// All sums into the first array.
void launch_gather_sums(cudaStream_t stream, Index classes, Index dim, const TwoArrays& sums);

}  // namespace ncollapse::cuda
