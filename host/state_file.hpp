// State files: the streaming state on disk, bit for bit.
#pragma once

#include <filesystem>
#include <string>

#include "host/backend.hpp"

namespace ncollapse {

/// The state in host memory, as it is written.
struct StateImage {
  AccumulatorOptions options;
  Index samples = 0;
  std::string note;  ///< the writer's own text
  std::vector<Index> counts;
  std::vector<double> shifts, sums, square_sums, scatter;  ///< scatter: rows of the lower triangle, packed
};

/// Size of a file without note and weights.
Index state_file_bytes(Index classes, Index dim, Statistics statistics);

/// Replaces `file` only once the new content is complete on disk. Throws DataError when it cannot be written.
void write_state(const std::filesystem::path& file, const StateImage& image);

/// Removes what killed writers of `file` left beside it. Nobody may be writing it.
void remove_leftovers(const std::filesystem::path& file);

/// Throws DataError: missing, truncated, damaged, foreign, another version.
StateImage read_state(const std::filesystem::path& file);

}  // namespace ncollapse
