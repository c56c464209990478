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
  double error_carried = 0;         ///< of MomentState; kept for Precision::fast only
  bool reduced = false;             ///< holds what other ranks have seen
  std::optional<Dtype> dtype = {};  ///< the coarsest of the features
  std::string note;                 ///< the writer's own text
  std::vector<Index> counts;
  std::vector<double> shifts, sums, square_sums, scatter;  ///< scatter: rows of the lower triangle, packed
};

/// Size of a file without note and weights.
Index state_file_bytes(Index classes, Index dim, Statistics statistics);

/// Replaces `file` only once the new content is complete on disk. Throws DataError when it cannot be written.
void write_state(const std::filesystem::path& file, const StateImage& image);

/// The right to write `file`, held from before the work that fills it until its end: other processes that ask for it
/// are refused, and a folder that cannot be written is found at once. (flock on a neighbour file, which goes with the
/// lock; a file system without locks keeps nobody out.)
class StateLock {
 public:
  /// Throws DataError when another process holds it, or nothing can be created beside `file`.
  explicit StateLock(const std::filesystem::path& file);
  ~StateLock();
  StateLock(const StateLock&) = delete;
  StateLock& operator=(const StateLock&) = delete;
  /// Removes what killed writers left beside the file: temporaries that begin as a state file does.
  void remove_leftovers() const;

 private:
  std::filesystem::path file_, lock_;
  int descriptor_ = -1;
};

/// Throws DataError: missing, truncated, damaged, foreign, another version.
StateImage read_state(const std::filesystem::path& file);

}  // namespace ncollapse
