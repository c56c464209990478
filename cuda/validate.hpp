// What is wrong with a batch: labels outside 0 .. K-1, NaN and infinite features, and the first of each. Counts and
// minima are integers, so atomics may come in any order.
//
// The host does not wait for the answer. A BatchRecord stays on the device with the state that batches are added to;
// from the first batch with a fault until the host takes the record over, `shut` is set, and every kernel that would
// change the state does nothing. So the state is always that of all batches before the bad one, the record always that
// of the bad one, however many batches were queued after it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/element.hpp"

namespace ncollapse::cuda {

/// On the device. The start: counts 0, firsts all ones (as unsigned numbers: none), open.
struct BatchRecord {
  unsigned long long bad_labels = 0, nonfinite = 0;
  unsigned long long first_bad_label = ~0ULL;  ///< row in the batch
  unsigned long long first_nonfinite = ~0ULL;  ///< row in the batch * cols + column
  Index bad_label = 0;                         ///< the first bad label itself
  Index rows = 0;                              ///< of the batch with the fault
  Index batch = 0;                             ///< batches that were good; so the number of the one that is not
  Index shut = 0;                              ///< 1: nothing may change any more
  unsigned long long suspect = 0;              ///< sums over this batch that were not finite
  unsigned long long unseen = 1;               ///< classes without a sample before the last batch of few_classes.hpp
};

/// `first_row`: the block's first row in the batch. They do nothing when the gate is shut, but for the keys.
/// keys (or null): keys[i] = label i, 0 where that is no class or the gate is shut; rows (or null): rows[i] = i.
void launch_find_bad_labels(cudaStream_t stream, const LabelBlock& labels, Index first_row, Index classes,
                            BatchRecord* record, std::uint32_t* keys = nullptr, std::uint32_t* rows = nullptr);
/// suspects: only in a suspect batch.
void launch_find_nonfinite(cudaStream_t stream, const FeatureBlock& features, Index first_row, BatchRecord* record,
                           bool suspects = false);
/// After the above for a block. `batch_rows` > 0, the rows of the whole batch: the last block was looked at, and the
/// gate is shut if anything was found; else, if the batch is `done`, one more was good.
void launch_settle(cudaStream_t stream, const LabelBlock& labels, Index first_row, Index batch_rows, bool done,
                   BatchRecord* record);

}  // namespace ncollapse::cuda
