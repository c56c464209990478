// How a batch is cut for Accumulator::add, and what memory that takes: one place for the code and for plans.
#pragma once

#include <algorithm>

#include "ncollapse/types.hpp"

namespace ncollapse::cpu {

constexpr Index kRunRows = 128;
constexpr Index kSingleRows = 4096;  // of Z in single precision: products of so many terms are added in double

/// The rows walked between two products, and the runs they are cut into: what a thread takes at a time.
struct Chunk {
  Index rows;  ///< of the largest chunk
  Index runs;  ///< of that
};

enum class Keep { sums, scatter, fast_scatter };

inline Chunk chunk_of(Index dim, Index rows, Keep what) {
  // With a scatter, Z is to be a share of the last-level cache, yet long enough for dsyrk; without, the carries are
  // what a chunk takes.
  constexpr Index kElements = Index{1} << 21;
  const Index elements = what == Keep::scatter ? kElements : what == Keep::fast_scatter ? 2 * kElements : 8 * kElements;
  const Index most = what == Keep::scatter ? 8192 : what == Keep::fast_scatter ? kSingleRows : rows + kRunRows;
  const Index chunk = std::min(rows, std::clamp(elements / dim / kRunRows, Index{2}, most / kRunRows) * kRunRows);
  return {chunk, (chunk + kRunRows - 1) / kRunRows};
}

/// Else a comparison sort: there are far more classes than rows.
inline bool counting_sort(Index classes, Index rows) { return classes <= 8 * rows; }

/// Parts of a counting sort, each with a count of every class: no more than the rows are worth.
inline Index sort_parts(Index classes, Index rows, int threads) {
  return std::clamp<Index>(2 * rows / std::max(classes, Index{1}), 1, threads);
}

/// Classes a batch may touch and have their sums kept aside while it is added, to be brought back if a feature is not
/// finite. With more of them, features are checked first: reading the batch once more then moves less than twice what
/// the copy does.
inline Index most_kept(Index rows, Index element_bytes) { return rows * element_bytes / (2 * 2 * 8); }

/// Labels as they come, order, labels in order, the sort's own space, Z, an accumulator for every thread, two carries a
/// run, sums kept aside.
inline Index add_workspace_bytes(Index classes, Index dim, Index rows, Index element_bytes, int threads, bool full) {
  const Chunk chunk = chunk_of(dim, rows, full ? Keep::scatter : Keep::sums);
  const Index sort = counting_sort(classes, rows) ? sort_parts(classes, rows, threads) * classes : rows / 2;
  const Index own = full ? chunk.rows * dim : std::min(classes, most_kept(rows, element_bytes)) * (dim + 2);
  return 8 * (3 * rows + sort + own + threads * dim + 2 * chunk.runs * dim);
}

}  // namespace ncollapse::cpu
