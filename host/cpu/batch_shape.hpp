// How a batch is cut for Accumulator::add, and what memory that takes: one place for the code and for plans.
#pragma once

#include <algorithm>

#include "ncollapse/types.hpp"

namespace ncollapse::cpu {

constexpr Index kRunRows = 128;
constexpr Index kChunkBytes = Index{16} << 20;  // of Z: a share of the last-level cache, long enough for dsyrk
constexpr Index kSingleRows = 4096;  // of Z in single precision: products of so many terms are added in double

struct BatchShape {
  Index chunk_rows;    ///< of the largest chunk
  Index runs;          ///< of a chunk
  bool counting_sort;  ///< else a comparison sort: there are far more classes than rows
};

inline BatchShape batch_shape(Index classes, Index dim, Index rows, bool fast) {
  const Index most = (fast ? kSingleRows : 8192) / kRunRows, row_bytes = (fast ? 4 : 8) * dim;
  const Index chunk_rows = std::min(rows, std::clamp(kChunkBytes / row_bytes / kRunRows, Index{2}, most) * kRunRows);
  return {chunk_rows, (chunk_rows + kRunRows - 1) / kRunRows, classes <= 8 * rows};
}

/// Parts of a counting sort, each with a count of every class: no more than the rows are worth.
inline Index sort_parts(Index classes, Index rows, int threads) {
  return std::clamp<Index>(2 * rows / std::max(classes, Index{1}), 1, threads);
}

/// Whether the state is kept aside while a batch is added, to be brought back if a feature is not finite. Otherwise
/// features are checked first. What moves less memory: a copy of the sums (read and written), or the batch once more.
inline bool keeps_state(Index classes, Index rows, Index element_bytes, bool full) {
  return !full && 2 * 8 * classes <= rows * element_bytes;
}

/// Labels as they come, order, labels in order, the sort's own space, Z, an accumulator for every thread, two carries a
/// run, the state kept aside.
inline Index add_workspace_bytes(Index classes, Index dim, Index rows, Index element_bytes, int threads, bool full) {
  const BatchShape shape = batch_shape(classes, dim, rows, false);
  const Index sort = shape.counting_sort ? sort_parts(classes, rows, threads) * classes : rows / 2;
  return 8 * (3 * rows + sort + (full ? shape.chunk_rows * dim : 0) + threads * dim + 2 * shape.runs * dim +
              (keeps_state(classes, rows, element_bytes, full) ? classes * (dim + 2) : 0));
}

}  // namespace ncollapse::cpu
