// The log of a run, which grows by a step at each call of a command that measures: JSON lines, "ncollapse.run/1".
#pragma once

#include <optional>
#include <string>

#include "ncollapse/metrics.hpp"

namespace ncollapse::cli {

/// --log, --epoch, --loss.
struct LogOptions {
  std::string file;  ///< empty: no log
  std::optional<Index> epoch;
  std::optional<double> loss;
};

class RunLog {
 public:
  /// Reads what is there; call it before anything is measured. A last line that a kill has cut off is forgotten.
  /// Throws UsageError unless file and epoch come together, or the loss is not finite; DataError when the file cannot
  /// be read, is no such log, or has this epoch or a later one.
  explicit RunLog(LogOptions options);
  /// Puts the report behind the steps of the file, which is replaced as a whole, and made where it is missing.
  /// Throws DataError when the file is of another run (model, class sizes, weight decays, convention), or cannot be
  /// written. Does nothing without a file.
  void append(const Report& report) const;

 private:
  LogOptions options_;
  std::string header_, steps_;  ///< whole lines
};

}  // namespace ncollapse::cli
