// A batch on its way to the device, in blocks of rows. Device memory is used in place. Host memory comes through the
// staging buffers, block by block, so a host batch may be larger than the device: a batch of several blocks is then
// copied twice where it has to be looked at as a whole before it is used. The blocks depend on the shape only, so host
// and device batches give the same bits.
#pragma once

#include "cuda/element.hpp"
#include "cuda/queue.hpp"
#include "cuda/staging.hpp"
#include "cuda/validate.hpp"
#include "host/backend.hpp"

namespace ncollapse::cuda {

/// Sizes of what is processed at a time. Results may differ in their last bits between different limits; tests set them
/// low to have many blocks and tiles in small cases.
struct Limits {
  Index block_bytes = Index{4} << 30;  ///< features of a block; bounds the staging buffers
  Index block_rows = Index{1} << 23;
  Index piece_bytes = Index{8} << 20;                     ///< of pinned memory, of which there are two
  Index sum_warps = Index{1} << 13;                       ///< that share a block of rows: a few times what a GPU holds
  Index group_runs = 8, fold = 32;                        ///< of class sums; group_runs is a power of two
  Index second_sums_bytes = Index{4} << 30;               ///< of a second array of sums, at most; else features are
                                                          ///< read twice
  Index centred_bytes = Index{512} << 20;                 ///< Z of a chunk; there are two where a block has several
  Index wide_dim = 1024;                                  ///< above it the exact scatter is one DSYRK a chunk
  Index slice_rows = 4096;                                ///< of a product whose partial results are added up by us
  Index few_classes = 16;                                 ///< more only in one chunk, see few_classes.hpp; 0: not there
  Index few_rows = 128, few_blocks = 264;                 ///< least rows of several chunks, blocks of threads wanted
  Index few_bytes = Index{512} << 20;                     ///< features of several chunks, at most
  Index row_tile = 4096, candidate_tile = 2048;           ///< scores of decisions: tiles of 32 MB
  bool narrow_scores = true;                              ///< in 16 bits, twice the rows, where that certifies enough
  int score_buffers = 2;                                  ///< tiles of scores: 2, one taken while one is made, or 1
  Index pair_rows = 512, pair_columns = 8192;             ///< of a tile of a Gram matrix: two of 32 MB
  Index half_pair_rows = 2048, half_pair_columns = 8192;  ///< of a tile of halves: two of 64 MB a product
  Index pair_warp_rows = 16, half_pair_warp_rows = 16;    ///< that a warp reduces, at most; 8, 16 or 32
  Index pair_blocks = 256;                                ///< as few rows as it takes for so many blocks a tile
  bool pairs_beside = true, half_pairs_beside = true;     ///< products on one stream, reductions on another
  Index product_tile = 1024;                              ///< side of a tile of product_sums: two of 8 MB
  Index pair_terms = 4096;                                ///< columns of a product of halves, at most; a multiple of 8

  /// Rows per block for rows of this many bytes.
  Index rows_per_block(Index row_bytes, Index rows) const;
};

class Batch {
 public:
  /// Throws UsageError when a view that should lie in device memory does not, or when host memory is given while the
  /// stream is being captured.
  Batch(Queue& queue, Staging& staging, const Limits& limits, const MatrixView& features, const LabelView& labels);

  Index blocks() const { return (features_.rows + block_rows_ - 1) / block_rows_; }
  Index block_rows() const { return block_rows_; }  ///< of the largest block
  Index first_row(Index number) const { return number * block_rows_; }
  /// Makes block `number` available on the device, or its labels only; the one before is gone.
  void load(Index number, bool with_features = true);
  const FeatureBlock& features() const { return feature_block_; }
  const LabelBlock& labels() const { return label_block_; }
  /// Looks for faults in all labels and, where asked, in all features, and settles the record: with a fault the gate is
  /// shut (validate.hpp). Does not wait. keys, rows: of launch_find_bad_labels, for a batch of one block.
  void check(Index classes, bool features_too, BatchRecord* record, std::uint32_t* keys = nullptr,
             std::uint32_t* rows = nullptr);

 private:
  Queue& queue_;
  Staging& staging_;
  MatrixView features_;
  LabelView labels_;
  Index block_rows_;
  Index loaded_ = -1;
  bool features_loaded_ = false;
  FeatureBlock feature_block_;
  LabelBlock label_block_;
};

/// The record as the seam reports it.
BatchFaults faults_of(const BatchRecord& record, Index cols);

/// Rows of a host matrix, which may be reused at return, to the device, closely packed.
void upload_rows(Queue& queue, void* to, const MatrixView& from, Index first, Index rows);
/// Throws UsageError unless `pointer` can be read by the device.
void require_device_memory(const void* pointer, const char* what);

}  // namespace ncollapse::cuda
