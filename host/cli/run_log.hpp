// The log of a run, which grows by a step at each call of a command that measures: JSON lines, "ncollapse.run/1".
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ncollapse/metrics.hpp"

namespace ncollapse::cli {

/// --log, --epoch, --loss.
struct LogOptions {
  std::string file;  ///< empty: no log
  std::optional<Index> epoch;
  std::optional<double> loss;
};

/// What options say of a run before anything is measured.
struct RunOptions {
  Convention convention = Convention::zhu;
  std::size_t layers = 0;
  bool with_bias = false;
  std::vector<double> lambda_w;  ///< empty: not given
  double lambda_h = 0;
};

class RunLog {
 public:
  /// Looks at the file, so that what cannot be appended is known before anything is measured. Throws UsageError unless
  /// file and epoch come together and the loss is finite; DataError when the file is there and no regular file, or no
  /// log that append began, or has ended, or holds this epoch or a later one, or is of a run with other options.
  RunLog(LogOptions options, const RunOptions& run);
  /// Puts the report behind the last whole line of the file, which is made where it is missing. Nobody else can do so
  /// meanwhile, where the file system has locks; what was added since the log was opened is looked at again. A line
  /// that a kill has cut off is dropped, with a note on stderr. Throws DataError as the constructor, and where class
  /// sizes, dimensions or precision differ from the log's, or the step cannot be written; the file is as before then.
  /// Does nothing without a file.
  void append(const Report& report) const;

 private:
  LogOptions options_;
};

}  // namespace ncollapse::cli
