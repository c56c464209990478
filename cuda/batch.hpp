// A batch on its way to the device, in blocks of rows. Device memory is used in place. Host memory is copied block by
// block into one staging buffer of the device, so a host batch may be larger than the device: it is then copied twice,
// once to be checked and once to be used, because nothing may change before all of it was checked. The blocks depend on
// the shape only, so host and device batches give the same bits.
#pragma once

#include "cuda/element.hpp"
#include "cuda/queue.hpp"
#include "host/backend.hpp"

namespace ncollapse::cuda {

/// Sizes of what is processed at a time. Results may differ in their last bits between different limits; tests set them
/// low to have many blocks and tiles in small cases.
struct Limits {
  Index block_bytes = Index{512} << 20;  ///< features of a block; bounds the staging buffer
  Index block_rows = Index{1} << 22;
  Index centred_bytes = Index{128} << 20;        ///< Z, and the shifted rows of decisions
  Index row_tile = 2048, candidate_tile = 2048;  ///< scores of decisions: 32 MB
  Index pair_tile = 1024;                        ///< side of a Gram tile: 8 MB

  /// Rows per block for rows of this many bytes.
  Index rows_per_block(Index row_bytes, Index rows) const;
};

class Batch {
 public:
  /// Throws UsageError when a view that should lie in device memory does not.
  Batch(Queue& queue, const Limits& limits, const MatrixView& features, const LabelView& labels);

  /// Looks at every label and feature; waits.
  BatchFaults find_faults(Index classes);

  Index blocks() const;
  Index block_rows() const { return block_rows_; }  ///< of the largest block
  /// Makes block `number` available on the device; the one before is gone.
  void load(Index number);
  const FeatureBlock& features() const { return feature_block_; }
  const LabelBlock& labels() const { return label_block_; }
  bool from_host() const { return features_.space == MemorySpace::host || labels_.space == MemorySpace::host; }

 private:
  Index first_row(Index number) const { return number * block_rows_; }

  Queue& queue_;
  MatrixView features_;
  LabelView labels_;
  Index block_rows_;
  Index loaded_ = -1;
  Buffer<unsigned char> feature_stage_, label_stage_;
  FeatureBlock feature_block_;
  LabelBlock label_block_;
};

/// Rows of a host matrix to the device, closely packed; does not wait.
void upload_rows(Queue& queue, void* to, const MatrixView& from, Index first, Index rows);
/// Throws UsageError unless `pointer` can be read by the device.
void require_device_memory(const void* pointer, const char* what);

}  // namespace ncollapse::cuda
