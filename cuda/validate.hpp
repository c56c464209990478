// Counting what is wrong with a batch before anything is changed: labels outside 0 .. K-1, NaN and infinite features,
// and the first of each. Counts and minima are integers, so atomics may come in any order.
#pragma once

#include <cuda_runtime.h>

#include "cuda/element.hpp"

namespace ncollapse::cuda {

/// On the device. Before the first block: counts 0, firsts all ones (as unsigned numbers: none).
struct FaultWords {
  unsigned long long bad_labels, nonfinite;
  unsigned long long first_bad_label;  ///< row in the batch
  unsigned long long first_nonfinite;  ///< row in the batch * cols + column
};

/// `first_row`: the block's first row in the batch.
void launch_find_bad_labels(cudaStream_t stream, const LabelBlock& labels, Index first_row, Index classes,
                            FaultWords* faults);
void launch_find_nonfinite(cudaStream_t stream, const FeatureBlock& features, Index first_row, FaultWords* faults);

/// keys[i] = label i, rows[i] = i; labels were checked.
void launch_number_labels(cudaStream_t stream, const LabelBlock& labels, std::uint32_t* keys, std::uint32_t* rows);

/// *value = label `row`.
void launch_read_label(cudaStream_t stream, const LabelBlock& labels, Index row, Index* value);

}  // namespace ncollapse::cuda
