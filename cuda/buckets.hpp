// Rows of a block put together by class: a stable radix sort of (label, row), so that within a class the rows stay in
// stream order. Everything that adds up rows walks this order; that is what makes sums independent of scheduling.
#pragma once

#include <cstdint>

#include "cuda/element.hpp"
#include "cuda/queue.hpp"
#include "cuda/validate.hpp"

namespace ncollapse::cuda {

/// Device pointers. Sorted position p holds row rows[p] of class keys[p]; class k, if it is in the block, holds the
/// positions begin[k] .. end[k] - 1 (other entries of begin and end are unset).
struct Buckets {
  const std::uint32_t *keys, *rows;  ///< [size]
  const std::uint32_t *begin, *end;  ///< [K]
  Index size;
};

/// Owns the arrays of Buckets; made for the largest block.
class BucketSorter {
 public:
  BucketSorter(Queue& queue, Index max_rows, Index classes);
  /// Where launch_find_bad_labels writes what is to be sorted.
  std::uint32_t* keys() const { return keys_in_.get(); }
  std::uint32_t* rows() const { return rows_in_.get(); }
  /// Sorts these; valid until the next call.
  Buckets sort(Index size);

 private:
  Queue& queue_;
  int key_bits_;
  Buffer<std::uint32_t> keys_in_, rows_in_, keys_, rows_, begin_, end_;
  Buffer<unsigned char> sort_space_;
};

}  // namespace ncollapse::cuda
