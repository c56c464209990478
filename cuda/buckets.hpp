// Rows of a block put together by class: a stable radix sort of (label, row), so that within a class the rows stay in
// stream order. Everything that adds up rows walks this order; that is what makes sums independent of scheduling.
#pragma once

#include <cstdint>

#include "cuda/element.hpp"
#include "cuda/queue.hpp"
#include "cuda/validate.hpp"

namespace ncollapse::cuda {

// What a block does with the sums of a class, which are in one of two arrays. The first block of a batch that has rows
// of the class reads them in one and writes them to the other, so that the batch can be undone without a copy; later
// blocks of the batch read and write there.
inline constexpr std::uint32_t kFromSecond = 1, kToSecond = 2;  ///< the second array
inline constexpr std::uint32_t kSeen = 4;                       ///< the class had samples before the block

/// Device pointers. Sorted position p holds row rows[p] of class keys[p]; class k, if it is in the block, holds the
/// positions begin[k] .. end[k] - 1, and its marks are as above (other entries of these three are unset).
struct Buckets {
  const std::uint32_t *keys, *rows;          ///< [size]
  const std::uint32_t *begin, *end, *marks;  ///< [K]
  Index size;
};

/// What the state says of the classes, for their marks.
struct ClassState {
  const Index* counts;          ///< [K] before the block
  const Index* saved_counts;    ///< [K] before the batch; null: it need not be undone, sums stay where they are
  const std::uint32_t* places;  ///< [K] 1: the sums are in the second array, else 0
};

/// Owns the arrays of Buckets; made for the largest block.
class BucketSorter {
 public:
  BucketSorter(Queue& queue, Index max_rows, Index classes);
  /// Where launch_find_bad_labels writes what is to be sorted.
  std::uint32_t* keys() const { return keys_in_.get(); }
  std::uint32_t* rows() const { return rows_in_.get(); }
  /// Sorts these; valid until the next call.
  Buckets sort(Index size, const ClassState& state);

 private:
  Queue& queue_;
  int key_bits_;
  Buffer<std::uint32_t> keys_in_, rows_in_, keys_, rows_, begin_, end_, marks_;
  Buffer<unsigned char> sort_space_;
};

}  // namespace ncollapse::cuda
