// Class sums of a batch of few classes, or of few rows, in two or three launches: the same definitions as
// class_sums.hpp, without a sort of the whole block, a copy of the state, or a reading for faults.
//
// The rows are cut into chunks of fixed length. A block of threads has one chunk x some slabs of columns. It reads the
// chunk's labels and puts its rows together by class in shared memory, each class in *octets* of its own, of which the
// last may not be full, so that a warp reads ahead whatever class comes next. The octets are dealt out evenly to the
// groups of warps, so that a class with nearly all rows is as good as ten equal ones. What a group has of a class that
// began in a group before is added up, in order, by the one where it began. So there is one partial sum for every
// chunk and class, zero where the chunk has none of it, and fold_chunks adds them in the order of the chunks.
//
// Labels and features are checked on the way: a bad label counts as class 0, and a block whose sums of squares are not
// finite looks through its chunk again. Nobody but fold_chunks changes the state (and add_products, or promote, the
// scatter), and it does so only where nothing was found; so a bad batch changes nothing, and both kinds of faults are
// always counted in full.
//
// The shift of a new class is its first row in the batch. A batch of one chunk knows it from the order of its rows; of
// several chunks survey_classes finds it before.
#pragma once

#include "cuda/element.hpp"
#include "cuda/validate.hpp"

namespace ncollapse::cuda {

struct FewPlan {
  Index rows, dim, classes;
  Index chunk;  ///< rows of a chunk
  Index chunks;
  Index slabs;  ///< of columns, a warp's width each
  Index side;   ///< slabs of a block: 1, 2, 4 or 8; slabs is a multiple of it
  Index pitch;  ///< doubles from row to row: dim, made even
};
/// As many classes as a batch of one chunk may have, and columns: a grid's blocks in y.
inline constexpr Index kMostFewClasses = 128, kMostFewColumns = Index{65534} * 64;
/// least_rows: of a chunk, where there are several. blocks: of threads, wanted; a chunk may have several.
FewPlan plan_few(Index rows, Index dim, Index classes, Index least_rows, Index blocks);

/// Scratch of a batch: device pointers.
struct FewScratch {
  std::uint32_t* first;   ///< [K] the first row of a new class, all ones: none; see launch_survey_classes
  std::uint32_t* fresh;   ///< [K] 1: new classes of this batch
  std::uint32_t* counts;  ///< [chunks x K]
  double* shifts;         ///< [K x pitch] of new classes
  double* partial;        ///< [chunks x K x pitch]
  double* squares;        ///< [chunks x K x slabs]
};
/// The state, and what stops its change.
struct FewTarget {
  Index* counts;        ///< [K]
  double* shifts;       ///< [K x d]
  const double* scale;  ///< sqrt(a_k) [K], or null
  double* sums;         ///< [K x d]
  double* square_sums;  ///< [K], or null
  BatchRecord* record;
};

/// first[k] = first row in the batch of every class k that the state has no sample of. Needed where there are several
/// chunks and such a class.
void launch_survey_classes(cudaStream_t stream, const LabelBlock& labels, const FewPlan& plan, const Index* counts,
                           const BatchRecord* record, std::uint32_t* first);
/// Partial sums of the chunks, faults, and record->unseen. z (or null) [rows x pitch]: row i becomes sqrt(a_k)
/// (x_i - r_k), zeros where the gate was shut before.
void launch_sum_chunks(cudaStream_t stream, const FeatureBlock& features, const LabelBlock& labels, const FewPlan& plan,
                       const FewScratch& scratch, const FewTarget& target, double* z);
/// Adds them up, counts the rows, sets the shifts of new classes, and settles the record.
void launch_fold_chunks(cudaStream_t stream, const LabelBlock& labels, const FewPlan& plan, const FewScratch& scratch,
                        const FewTarget& target);
/// Lower triangle of T [d x d] += z^T z, for few rows; not where a fault was found. After launch_sum_chunks.
void launch_add_products(cudaStream_t stream, const FewPlan& plan, const double* z, const BatchRecord* record,
                         double* T);

}  // namespace ncollapse::cuda
